//! `SttProcess`: the local recogniser as a child process, since native code may crash and must not take the server along.
//!
//! Owns the child. Publishes its base URL through a watch channel (`None` while there is none), logs what it writes to
//! standard error, asks its `/health`, and starts it again after every end, within the policy's budget; over it, the
//! state is visible as `failed` and a new attempt follows once the period is over. Receives [`Observe`] and
//! [`Shutdown`]. Ends with [`Shutdown`], and the child with it; the kernel ends the child if the server dies.

mod child;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use actix::prelude::*;
use serde::Serialize;
use tokio::sync::{oneshot, watch};
use tokio::time::Instant;

use self::child::{Tell, health, spawn, watch_child};
use super::supervision::{ChildKind, Decision, Exit, Lifeline, Observable, Observe, Restarts};
use super::{Crash, Shutdown};
use crate::config::LocalSttConfig;
use crate::metrics::Metrics;

/// Unanswered health questions in a row that end the child.
const HEALTH_FAILURES: u32 = 3;
/// The command line to run.
#[derive(Debug, Clone)]
pub struct SttCommand {
    pub program: PathBuf,
    pub args: Vec<String>,
    pub timing: SttTiming,
}

#[derive(Debug, Clone, Copy)]
pub struct SttTiming {
    /// Loading the models takes about a second; on a machine under load or a slow disk much more.
    pub ready_within: Duration,
    pub health_period: Duration,
    pub health_timeout: Duration,
}

impl Default for SttTiming {
    fn default() -> Self {
        let [ready_within, health_period, health_timeout] = [60, 5, 5].map(Duration::from_secs);
        Self { ready_within, health_period, health_timeout }
    }
}

impl SttCommand {
    /// This program's own `stt` subcommand on a free loopback port.
    ///
    /// `engine` is another one than the real one, for drills.
    pub fn from_config(config: &LocalSttConfig, engine: Option<&str>) -> std::io::Result<Self> {
        let model_dir = config.model_dir.to_string_lossy().into_owned();
        let (threads, sessions) = (config.threads.to_string(), config.max_sessions.to_string());
        let args = ["stt", "--host", "127.0.0.1", "--port", "0", "--model-dir", &model_dir].into_iter().chain([
            "--threads",
            &threads,
            "--max-sessions",
            &sessions,
        ]);
        let engine = engine.into_iter().flat_map(|engine| ["--engine", engine]);
        Ok(Self {
            program: std::env::current_exe()?,
            args: args.chain(engine).map(str::to_owned).collect(),
            timing: SttTiming::default(),
        })
    }
}

#[derive(Debug, Clone, PartialEq)]
enum State {
    Starting,
    Ready {
        url: String,
    },
    /// It ended; the next start is due soon.
    Waiting,
    /// The budget is exhausted; the next start is due after the policy's period.
    Failed,
    Stopped,
}

/// The local recogniser's process, started and watched.
pub struct SttProcess {
    command: SttCommand,
    base_url: watch::Sender<Option<String>>,
    metrics: Arc<Metrics>,
    restarts: Restarts,
    state: State,
    /// Grows with each start; news of an older life are ignored.
    generation: u64,
    started_at: Instant,
    lifeline: Option<Lifeline>,
    pid: Option<u32>,
    /// Dropped to end the child.
    stop: Option<oneshot::Sender<()>>,
    /// Dropped when the child is gone.
    stopping: Vec<oneshot::Sender<()>>,
    model: Option<String>,
    /// The child's last words, which say what is wrong.
    last_line: Option<String>,
    last_fault: Option<String>,
    unanswered: u32,
    restarted: u64,
    /// The budget was exhausted and the child has not been ready since: no more quick attempts.
    given_up: bool,
}

/// News of the child.
#[derive(Debug, Message)]
#[rtype(result = "()")]
struct News {
    generation: u64,
    what: What,
}

#[derive(Debug)]
enum What {
    Ready(String),
    Said(String),
    Healthy(Option<serde_json::Value>),
    Ended(Exit),
}

impl SttProcess {
    /// A panic of this actor is reported to its parent.
    pub fn supervised(mut self, lifeline: Lifeline) -> Self {
        self.lifeline = Some(lifeline);
        self
    }

    /// Readers of `base_url` wait for `Some`; a restarted child has another URL.
    pub fn new(command: SttCommand, base_url: watch::Sender<Option<String>>, metrics: Arc<Metrics>) -> Self {
        Self {
            command,
            base_url,
            metrics,
            restarts: Restarts::new(ChildKind::SttProcess.policy()),
            state: State::Waiting,
            generation: 0,
            started_at: Instant::now(),
            lifeline: None,
            pid: None,
            stop: None,
            stopping: Vec::new(),
            model: None,
            last_line: None,
            last_fault: None,
            unanswered: 0,
            restarted: 0,
            given_up: false,
        }
    }

    fn start_child(&mut self, ctx: &mut Context<Self>) {
        if self.state == State::Stopped {
            return;
        }
        self.generation += 1;
        self.started_at = Instant::now();
        self.state = State::Starting;
        self.last_line = None;
        self.unanswered = 0;
        let tell = Tell { to: ctx.address(), generation: self.generation };
        match spawn(&self.command) {
            Ok(child) => {
                self.pid = child.id();
                let (stop, stopped) = oneshot::channel();
                self.stop = Some(stop);
                tracing::info!(pid = self.pid, "local recogniser starting");
                actix::spawn(watch_child(child, stopped, self.command.timing.ready_within, tell));
            }
            Err(error) => {
                let program = self.command.program.display();
                tell.tell(What::Ended(Exit::Failed(format!("cannot start {program}: {error}"))));
            }
        }
    }

    fn set_url(&self, url: Option<String>) {
        self.metrics.stt_process_up.set(url.is_some().into());
        self.base_url.send_replace(url);
    }

    fn ready(&mut self, url: String, ctx: &mut Context<Self>) {
        tracing::info!(pid = self.pid, url, "local recogniser ready; it understands English only");
        self.given_up = false;
        self.state = State::Ready { url: url.clone() };
        self.set_url(Some(url));
        self.ask_health(ctx);
    }

    fn said(&mut self, line: String) {
        tracing::info!(target: "stenocast::local_stt", pid = self.pid, "{line}");
        self.last_line = Some(line);
    }

    fn ask_health(&mut self, ctx: &mut Context<Self>) {
        let State::Ready { url } = &self.state else { return };
        let (url, tell) = (format!("{url}/health"), Tell { to: ctx.address(), generation: self.generation });
        let timeout = self.command.timing.health_timeout;
        let asked = async move { tell.tell(What::Healthy(health(&url, timeout).await)) };
        ctx.spawn(asked.into_actor(self));
    }

    fn healthy(&mut self, answer: Option<serde_json::Value>, ctx: &mut Context<Self>) {
        match answer {
            Some(answer) => {
                self.unanswered = 0;
                self.model = answer["model"].as_str().map(str::to_owned);
            }
            None => self.unanswered += 1,
        }
        if self.unanswered >= HEALTH_FAILURES {
            tracing::error!(pid = self.pid, unanswered = self.unanswered, "local recogniser is frozen; ending it");
            self.set_url(None);
            self.stop = None;
        } else {
            let generation = self.generation;
            ctx.run_later(self.command.timing.health_period, move |process, ctx| {
                // A restarted child has a chain of questions of its own.
                if process.generation == generation {
                    process.ask_health(ctx);
                }
            });
        }
    }

    fn ended(&mut self, exit: Exit, ctx: &mut Context<Self>) {
        (self.pid, self.stop) = (None, None);
        self.set_url(None);
        if self.state == State::Stopped {
            self.stopping.clear();
            return ctx.stop();
        }
        let exit = if self.unanswered >= HEALTH_FAILURES { Exit::Frozen } else { exit };
        let why = self.last_line.as_ref().map_or_else(|| exit.to_string(), |line| format!("{exit}: {line}"));
        let delay = match self.restarts.decide(&exit, self.started_at.elapsed(), Instant::now()) {
            Decision::Restart(delay) if !self.given_up => {
                self.state = State::Waiting;
                tracing::warn!(fault = why, delay_ms = delay.as_millis() as u64, "local recogniser ended");
                delay
            }
            _ => {
                (self.state, self.given_up) = (State::Failed, true);
                let delay = ChildKind::SttProcess.policy().period;
                tracing::error!(fault = why, delay_ms = delay.as_millis() as u64, "local recogniser does not run");
                delay
            }
        };
        self.last_fault = Some(why);
        ctx.run_later(delay, |process, ctx| {
            process.restarted += 1;
            process.metrics.stt_process_restarts_total.inc();
            process.metrics.actor_restarts_total.with_label_values(&[ChildKind::SttProcess.as_str()]).inc();
            process.start_child(ctx);
        });
    }
}

impl Actor for SttProcess {
    type Context = Context<Self>;

    fn started(&mut self, ctx: &mut Self::Context) {
        if let Some(lifeline) = &mut self.lifeline {
            lifeline.started();
        }
        self.set_url(None);
        self.start_child(ctx);
    }

    fn stopped(&mut self, _: &mut Self::Context) {
        self.set_url(None);
    }
}

impl Handler<Crash> for SttProcess {
    type Result = ();

    fn handle(&mut self, _: Crash, _: &mut Self::Context) {
        panic!("crash requested");
    }
}

impl Handler<News> for SttProcess {
    type Result = ();

    fn handle(&mut self, news: News, ctx: &mut Self::Context) {
        if news.generation != self.generation {
            return;
        }
        match news.what {
            What::Ready(url) if self.state == State::Starting => self.ready(url, ctx),
            What::Ready(_) => {}
            What::Said(line) => self.said(line),
            What::Healthy(answer) => self.healthy(answer, ctx),
            What::Ended(exit) => self.ended(exit, ctx),
        }
    }
}

/// The state that `/metrics` shows.
#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct SttProcessState {
    pub state: &'static str,
    pub ready: bool,
    pub pid: Option<u32>,
    pub url: Option<String>,
    pub model: Option<String>,
    pub language: &'static str,
    pub restarts: u64,
    pub last_fault: Option<String>,
}

impl Observable for SttProcess {
    type State = SttProcessState;
}

impl Handler<Observe<Self>> for SttProcess {
    type Result = MessageResult<Observe<Self>>;

    fn handle(&mut self, _: Observe<Self>, _: &mut Self::Context) -> Self::Result {
        let (state, url) = match &self.state {
            State::Starting => ("starting", None),
            State::Ready { url } => ("ready", Some(url)),
            State::Waiting => ("waiting", None),
            State::Failed => ("failed", None),
            State::Stopped => ("stopped", None),
        };
        MessageResult(SttProcessState {
            state,
            ready: url.is_some(),
            pid: self.pid,
            url: url.cloned(),
            model: self.model.clone(),
            language: "en",
            restarts: self.restarted,
            last_fault: self.last_fault.clone(),
        })
    }
}

impl Handler<Shutdown> for SttProcess {
    type Result = ResponseFuture<()>;

    fn handle(&mut self, _: Shutdown, ctx: &mut Self::Context) -> Self::Result {
        self.state = State::Stopped;
        let (done, gone) = oneshot::channel();
        match self.stop.take() {
            Some(_dropped) => self.stopping.push(done),
            None if self.pid.is_some() => self.stopping.push(done),
            None => ctx.stop(),
        }
        Box::pin(async move { drop(gone.await) })
    }
}
