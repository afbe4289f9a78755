//! `GladiaBridge`: sends a session's audio to the recogniser and brings its text back.
//!
//! Owns one loop (`driver`) with the connection; borrows everything that must not be lost from the session's core:
//! audio and accounts in the ledger, results in the room's edge. Receives PCM by `core.pcm_ready`, and `Finish`,
//! `Observe`, `Shutdown`. Sends results to `TranscriptRoom` through `core.results`. Its own reconnects are not restarts.
//! Ends on `Shutdown`; a panic costs the connection, and its successor resumes the recogniser session.

mod driver;
mod socket;

use std::cell::RefCell;
use std::rc::Rc;
use std::sync::Arc;

use actix::prelude::*;
use serde::Serialize;
use tokio::sync::{Semaphore, mpsc, oneshot};
use tokio::time::Instant;
use tracing::Instrument;

use self::driver::{Command, Driver};
use super::session_core::SessionCore;
use super::supervision::{Lifeline, Observable, Observe};
use crate::gladia::client::Client;
use crate::gladia::endpoint::SttEndpoint;
use crate::gladia::ledger::Account;
use crate::gladia::machine::SttMachine;
use crate::gladia::phase::Counters;
use crate::gladia::policy::Timing;
use crate::transcript::Status;

/// The parts of a bridge.
pub struct BridgeParams {
    pub core: Arc<SessionCore>,
    pub endpoint: SttEndpoint,
    /// `GLADIA_MAX_SESSIONS` permits, shared by all sessions of the process.
    pub slots: Arc<Semaphore>,
    pub lifeline: Lifeline,
}

/// Bring everything home: send the rest, `stop_recording`, wait for the last text. Answers when all of it is in the
/// room's edge; what has no text by the deadline is in there as a gap.
#[derive(Debug, Clone, Copy, Message)]
#[rtype(result = "()")]
pub struct Finish {
    pub deadline: Instant,
}

/// The actor of a session that talks to the recogniser.
pub struct GladiaBridge {
    core: Arc<SessionCore>,
    machine: Rc<RefCell<SttMachine>>,
    commands: mpsc::UnboundedSender<Command>,
    driver: Option<Driver>,
    lifeline: Lifeline,
}

impl GladiaBridge {
    /// Starts a bridge on the present arbiter, which must be the session's.
    pub fn start(params: BridgeParams) -> Addr<Self> {
        Self::start_with(params, Timing::default())
    }

    /// As [`Self::start`], with other time spans; tests shorten them.
    pub fn start_with(params: BridgeParams, timing: Timing) -> Addr<Self> {
        let BridgeParams { core, endpoint, slots, lifeline } = params;
        let stt = &core.config.stt;
        let client = Client::new(stt, timing.connect_timeout);
        let mut ledger = core.ledger();
        ledger.expect_translations(&stt.translate_to);
        let machine =
            SttMachine::new(timing, stt.stall, stt.session_max, core.metrics.clone(), &ledger, Instant::now());
        drop(ledger);
        let machine = Rc::new(RefCell::new(machine));
        let (commands, receiver) = mpsc::unbounded_channel();
        let (core_of_driver, machine_of_driver) = (core.clone(), machine.clone());
        let driver =
            Driver { core: core_of_driver, endpoint, slots, client, machine: machine_of_driver, commands: receiver };
        Actor::start(Self { core, machine, commands, driver: Some(driver), lifeline })
    }
}

impl Actor for GladiaBridge {
    type Context = Context<Self>;

    fn started(&mut self, ctx: &mut Self::Context) {
        self.lifeline.started();
        let span = tracing::info_span!("bridge", session = %self.core.slug, epoch = %self.core.epoch);
        if let Some(driver) = self.driver.take() {
            // Inside the actor, so that a panic of the loop is a panic of the actor.
            ctx.spawn(driver.run().instrument(span).into_actor(self));
        }
    }
}

impl Handler<Finish> for GladiaBridge {
    type Result = ResponseFuture<()>;

    fn handle(&mut self, finish: Finish, _: &mut Self::Context) -> Self::Result {
        let (done, finished) = oneshot::channel();
        // A loop that is gone has nothing left to do.
        let _ = self.commands.send(Command::Finish { deadline: finish.deadline, done });
        Box::pin(async move {
            let _ = finished.await;
        })
    }
}

/// The state that `/metrics` shows.
#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct GladiaBridgeState {
    pub generation: u64,
    pub state: &'static str,
    pub status: Option<ShownStatus>,
    pub stt_session: Option<String>,
    pub stt_session_number: Option<u32>,
    pub tally: Counters,
    pub backlog_ms: u64,
    pub last_ack_age_ms: Option<u64>,
    pub progress: u64,
    pub audio: Account,
}

/// The status that viewers saw last.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct ShownStatus {
    pub status: Status,
    pub reason: &'static str,
}

impl Observable for GladiaBridge {
    type State = GladiaBridgeState;
}

impl Handler<Observe<Self>> for GladiaBridge {
    type Result = MessageResult<Observe<Self>>;

    fn handle(&mut self, _: Observe<Self>, _: &mut Self::Context) -> Self::Result {
        let (machine, ledger, now) = (self.machine.borrow(), self.core.ledger(), Instant::now());
        let session = ledger.session();
        MessageResult(GladiaBridgeState {
            generation: self.lifeline.generation(),
            state: machine.phase().as_str(),
            status: machine.status().map(|(status, reason)| ShownStatus { status, reason }),
            stt_session: session.as_ref().map(|s| s.id.clone()),
            stt_session_number: session.as_ref().map(|s| s.number),
            tally: machine.tally().clone(),
            backlog_ms: ledger.backlog_ms(),
            last_ack_age_ms: machine.last_ack().map(|at| now.saturating_duration_since(at).as_millis() as u64),
            progress: machine.progress(),
            audio: ledger.account(),
        })
    }
}

crate::stops_and_crashes!(GladiaBridge);
