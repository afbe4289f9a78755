//! Root: the top of the tree. Restarts the permanent actors and is the fixed address that the outside knows.
//!
//! Owns: SessionRegistry, BatchWriter, SttProcess, RtmpListener. Receives: [`Publish`] from the RTMP listener,
//! [`Broadcast`] and [`Observe`] from HTTP, and passes them on to the living registry. Ends when told.

use std::sync::Arc;
use std::time::Duration;

use actix::prelude::*;
use serde_json::{Value, json};
use tokio::sync::watch;
use tokio::time::Instant;

use super::batch_writer::{BatchWriter, BatchWriterParams, Flush};
use super::rtmp_listener::{RtmpListener, StopAccepting};
use super::services::Services;
use super::session_registry::{
    AdoptSession, Broadcast, BroadcastAck, BroadcastRefusal, CrashActor, DrainAll, EndSession, Publish, PublishRefusal,
    SessionRegistry, Sessions,
};
use super::stt_process::{SttCommand, SttProcess};
use super::supervision::{ChildDown, ChildKind, Decision, Lifeline, Restarts};
use super::{Crash, Observe, Shutdown};
use crate::db::{DATABASE_CONSUMER, Storage};
use crate::log::Slug;
use crate::rtmp::{Connections, Publisher};

const OBSERVE_TIMEOUT: Duration = Duration::from_secs(1);
/// Pause before a permanent actor whose budget is exhausted is tried again.
const ESCALATION_DELAY: Duration = Duration::from_secs(10);

/// Publishers may come: everything that they need is there.
#[derive(Debug, Clone, Copy, Message)]
#[rtype(result = "()")]
pub struct OpenDoors;

/// Breaks something on purpose. False when there is no such thing.
#[derive(Debug, Message)]
#[rtype(result = "bool")]
pub enum Drill {
    Crash {
        slug: Option<Slug>,
        kind: ChildKind,
    },
    /// A panic in the root itself, which nobody repairs.
    CrashRoot,
    /// Blocks the first session thread.
    Hog(Duration),
}

/// What the permanent actors are made of.
pub struct RootParams {
    pub services: Arc<Services>,
    pub storage: Arc<Storage>,
    pub arbiters: Arc<Vec<ArbiterHandle>>,
    /// None where no local recogniser is wanted.
    pub stt_process: Option<(SttCommand, watch::Sender<Option<String>>)>,
    /// None where nobody publishes.
    pub rtmp: Option<std::net::TcpListener>,
}

/// See the module.
pub struct Root {
    params: RootParams,
    sessions: Arc<Sessions>,
    registry: Slot<SessionRegistry>,
    batch_writer: Slot<BatchWriter>,
    stt_process: Slot<SttProcess>,
    rtmp_listener: Slot<RtmpListener>,
    connections: Arc<Connections>,
    stopping: bool,
}

struct Slot<A: Actor> {
    addr: Option<Addr<A>>,
    generation: u64,
    started: Instant,
    restarts: Restarts,
}

impl<A: Actor> Slot<A> {
    fn new(kind: ChildKind) -> Self {
        Self { addr: None, generation: 0, started: Instant::now(), restarts: Restarts::new(kind.policy()) }
    }

    fn next(&mut self) -> u64 {
        self.generation += 1;
        self.started = Instant::now();
        self.generation
    }

    fn decide(&mut self, down: &ChildDown) -> Option<Decision> {
        if self.generation != down.generation {
            return None;
        }
        self.addr = None;
        Some(self.restarts.decide(&down.exit, self.started.elapsed(), Instant::now()))
    }

    fn describe(&self, state: Value) -> Value {
        json!({ "restarts": self.restarts.total(), "lastFault": self.restarts.last_fault(), "state": state })
    }
}

impl Root {
    pub fn start(params: RootParams) -> Addr<Self> {
        let (limits, metrics) = (&params.services.config.rtmp, params.services.metrics.clone());
        let connections = Connections::new(limits.max_connections, limits.max_per_ip, metrics);
        Actor::start(Self {
            params,
            connections,
            rtmp_listener: Slot::new(ChildKind::RtmpListener),
            sessions: Arc::new(Sessions::default()),
            registry: Slot::new(ChildKind::SessionRegistry),
            batch_writer: Slot::new(ChildKind::BatchWriter),
            stt_process: Slot::new(ChildKind::SttProcess),
            stopping: false,
        })
    }

    fn start_child(&mut self, kind: ChildKind, ctx: &mut Context<Self>) {
        let generation = match kind {
            ChildKind::SessionRegistry => self.registry.next(),
            ChildKind::BatchWriter => self.batch_writer.next(),
            ChildKind::RtmpListener => self.rtmp_listener.next(),
            _ => self.stt_process.next(),
        };
        let metrics = self.params.services.metrics.clone();
        let lifeline = Lifeline::new(ctx.address().recipient(), kind, generation, metrics);
        match kind {
            ChildKind::SessionRegistry => {
                let (services, arbiters) = (self.params.services.clone(), self.params.arbiters.clone());
                let registry = SessionRegistry::start(self.sessions.clone(), services, arbiters, lifeline);
                self.registry.addr = Some(registry);
            }
            ChildKind::BatchWriter => {
                self.batch_writer.addr = self.start_batch_writer(lifeline);
            }
            ChildKind::SttProcess => {
                if let Some((command, url)) = &self.params.stt_process {
                    let metrics = self.params.services.metrics.clone();
                    let process = SttProcess::new(command.clone(), url.clone(), metrics).supervised(lifeline);
                    self.stt_process.addr = Some(process.start());
                }
            }
            ChildKind::RtmpListener => {
                self.rtmp_listener.addr = self.start_rtmp_listener(lifeline, ctx);
            }
            _ => {}
        }
    }
}

impl Root {
    /// None where nobody publishes. Its lifeline reports a failure of its own.
    fn start_rtmp_listener(&self, mut lifeline: Lifeline, ctx: &Context<Self>) -> Option<Addr<RtmpListener>> {
        let socket = match self.params.rtmp.as_ref()?.try_clone() {
            Ok(socket) => socket,
            Err(error) => {
                lifeline.fail(error.to_string());
                return None;
            }
        };
        let services = &self.params.services;
        let (config, metrics) = (services.config.clone(), services.metrics.clone());
        let registry = ctx.address().recipient();
        let listener = RtmpListener::new(socket, self.connections.clone(), config, metrics, registry);
        Some(listener.supervised(lifeline).start())
    }

    /// None where the mode has no database.
    fn start_batch_writer(&self, lifeline: Lifeline) -> Option<Addr<BatchWriter>> {
        let storage = &self.params.storage;
        let store = storage.store.clone()?;
        let queue = match storage.outbox.consumer(DATABASE_CONSUMER) {
            Ok(queue) => Arc::new(queue),
            Err(error) => {
                tracing::error!(%error, "the outbox cannot be read");
                return None;
            }
        };
        let params = BatchWriterParams {
            queue,
            store,
            quarantine: storage.quarantine.clone(),
            config: self.params.services.config.store.clone(),
            metrics: self.params.services.metrics.clone(),
            lifeline,
        };
        Some(BatchWriter::new(params).start())
    }
}

impl Actor for Root {
    type Context = Context<Self>;

    fn started(&mut self, ctx: &mut Self::Context) {
        if self.params.storage.store.is_some() {
            self.start_child(ChildKind::BatchWriter, ctx);
        }
        if self.params.stt_process.is_some() {
            self.start_child(ChildKind::SttProcess, ctx);
        }
        self.start_child(ChildKind::SessionRegistry, ctx);
    }
}

/// The doors, once what is behind them is there.
impl Handler<OpenDoors> for Root {
    type Result = ();

    fn handle(&mut self, _: OpenDoors, ctx: &mut Self::Context) {
        if self.params.rtmp.is_some() && self.rtmp_listener.generation == 0 {
            self.start_child(ChildKind::RtmpListener, ctx);
        }
    }
}

/// No listener is started again after it.
impl Handler<StopAccepting> for Root {
    type Result = ();

    fn handle(&mut self, stop: StopAccepting, _: &mut Self::Context) {
        self.params.rtmp = None;
        if let Some(listener) = &self.rtmp_listener.addr {
            listener.do_send(stop);
        }
    }
}

impl Handler<ChildDown> for Root {
    type Result = ();

    fn handle(&mut self, down: ChildDown, ctx: &mut Self::Context) {
        if self.stopping {
            return;
        }
        let kind = down.kind;
        let decision = match kind {
            ChildKind::SessionRegistry => self.registry.decide(&down),
            ChildKind::BatchWriter => self.batch_writer.decide(&down),
            ChildKind::SttProcess => self.stt_process.decide(&down),
            ChildKind::RtmpListener => self.rtmp_listener.decide(&down),
            _ => None,
        };
        let delay = match decision {
            None | Some(Decision::Ended) => return,
            Some(Decision::Restart(delay)) => delay,
            Some(Decision::Escalate) => {
                self.params.services.metrics.actor_escalations_total.with_label_values(&[kind.as_str()]).inc();
                ESCALATION_DELAY
            }
        };
        let delay_ms = delay.as_millis() as u64;
        tracing::error!(actor = kind.as_str(), exit = %down.exit, delay_ms, "permanent actor restarts");
        self.params.services.metrics.actor_restarts_total.with_label_values(&[kind.as_str()]).inc();
        ctx.run_later(delay, move |this, ctx| this.start_child(kind, ctx));
    }
}

impl Handler<Publish> for Root {
    type Result = ResponseFuture<Result<(), (PublishRefusal, Box<Publisher>)>>;

    fn handle(&mut self, publish: Publish, _: &mut Self::Context) -> Self::Result {
        match self.registry.addr.clone().filter(Addr::connected) {
            Some(registry) => Box::pin(async move { registry.send(publish).await.unwrap_or(Ok(())) }),
            None => Box::pin(async move { Err((PublishRefusal::Restarting, publish.publisher)) }),
        }
    }
}

impl Handler<Broadcast> for Root {
    type Result = ResponseFuture<Result<BroadcastAck, BroadcastRefusal>>;

    fn handle(&mut self, broadcast: Broadcast, _: &mut Self::Context) -> Self::Result {
        let registry = self.registry.addr.clone();
        Box::pin(async move {
            let registry = registry.ok_or(BroadcastRefusal::Unavailable)?;
            registry.send(broadcast).await.unwrap_or(Err(BroadcastRefusal::Unavailable))
        })
    }
}

/// Passes a message to the registry; a registry that is being restarted answers with the default.
macro_rules! forward_to_registry {
    ($($message:ty => $answer:ty),+) => {$(
        impl Handler<$message> for Root {
            type Result = ResponseFuture<$answer>;

            fn handle(&mut self, message: $message, _: &mut Self::Context) -> Self::Result {
                let registry = self.registry.addr.clone();
                Box::pin(async move {
                    let Some(registry) = registry else { return Default::default() };
                    registry.send(message).await.unwrap_or_default()
                })
            }
        }
    )+};
}

forward_to_registry!(EndSession => bool, DrainAll => (), AdoptSession => ());

impl Handler<Drill> for Root {
    type Result = ResponseFuture<bool>;

    fn handle(&mut self, drill: Drill, _: &mut Self::Context) -> Self::Result {
        tracing::warn!(?drill, "drill");
        let done = match drill {
            Drill::CrashRoot => panic!("crash requested"),
            Drill::Hog(duration) => {
                self.params.arbiters.first().is_some_and(|a| a.spawn_fn(move || std::thread::sleep(duration)))
            }
            Drill::Crash { kind: ChildKind::BatchWriter, .. } => {
                self.batch_writer.addr.as_ref().map(|writer| writer.do_send(Crash)).is_some()
            }
            Drill::Crash { kind: ChildKind::SessionRegistry, .. } => {
                self.registry.addr.as_ref().map(|registry| registry.do_send(Crash)).is_some()
            }
            Drill::Crash { kind: ChildKind::RtmpListener, .. } => {
                self.rtmp_listener.addr.as_ref().map(|listener| listener.do_send(Crash)).is_some()
            }
            Drill::Crash { kind: ChildKind::SttProcess, .. } => {
                self.stt_process.addr.as_ref().map(|process| process.do_send(Crash)).is_some()
            }
            Drill::Crash { slug: Some(slug), kind } => {
                let crash = CrashActor { slug, kind };
                self.registry.addr.as_ref().map(|registry| registry.do_send(crash)).is_some()
            }
            Drill::Crash { slug: None, .. } => false,
        };
        Box::pin(async move { done })
    }
}

/// Writes what is pending; answers with the rows that are left in the outbox.
impl Handler<Flush> for Root {
    type Result = ResponseFuture<u64>;

    fn handle(&mut self, flush: Flush, _: &mut Self::Context) -> Self::Result {
        let writer = self.batch_writer.addr.clone();
        Box::pin(async move {
            let Some(writer) = writer else { return 0 };
            writer.send(flush).await.unwrap_or_default()
        })
    }
}

impl Handler<Observe> for Root {
    type Result = ResponseFuture<Value>;

    fn handle(&mut self, _: Observe, _: &mut Self::Context) -> Self::Result {
        async fn ask<A>(addr: Option<Addr<A>>) -> Value
        where
            A: Actor<Context = Context<A>> + Handler<Observe>,
        {
            let Some(addr) = addr else { return Value::Null };
            match tokio::time::timeout(OBSERVE_TIMEOUT, addr.send(Observe)).await {
                Ok(Ok(state)) => state,
                Ok(Err(_)) => Value::Null,
                Err(_) => json!("no answer"),
            }
        }
        let registry = ask(self.registry.addr.clone());
        let writer = ask(self.batch_writer.addr.clone());
        let stt = ask(self.stt_process.addr.clone());
        let listener = ask(self.rtmp_listener.addr.clone());
        let has_stt = self.params.stt_process.is_some();
        let has_listener = self.rtmp_listener.generation > 0;
        let shells = [
            self.registry.describe(Value::Null),
            self.batch_writer.describe(Value::Null),
            self.stt_process.describe(Value::Null),
            self.rtmp_listener.describe(Value::Null),
        ];
        Box::pin(async move {
            let (registry, writer, stt, listener) = tokio::join!(registry, writer, stt, listener);
            let [mut registry_tree, mut writer_tree, mut stt_tree, mut listener_tree] = shells;
            registry_tree["state"] = registry;
            writer_tree["state"] = writer;
            stt_tree["state"] = stt;
            listener_tree["state"] = listener;
            let mut tree = json!({ "sessionRegistry": registry_tree, "batchWriter": writer_tree });
            if has_stt {
                tree["sttProcess"] = stt_tree;
            }
            if has_listener {
                tree["rtmpListener"] = listener_tree;
            }
            tree
        })
    }
}

/// Answers when the recogniser's process is gone.
impl Handler<Shutdown> for Root {
    type Result = ResponseActFuture<Self, ()>;

    fn handle(&mut self, _: Shutdown, _: &mut Self::Context) -> Self::Result {
        self.stopping = true;
        if let Some(listener) = self.rtmp_listener.addr.take() {
            listener.do_send(Shutdown);
        }
        if let Some(registry) = self.registry.addr.take() {
            registry.do_send(Shutdown);
        }
        if let Some(writer) = self.batch_writer.addr.take() {
            writer.do_send(Shutdown);
        }
        let stt = self.stt_process.addr.take();
        let gone = async move {
            if let Some(stt) = stt {
                let _ = tokio::time::timeout(OBSERVE_TIMEOUT, stt.send(Shutdown)).await;
            }
        };
        Box::pin(gone.into_actor(self).map(|_, _, ctx| ctx.stop()))
    }
}
