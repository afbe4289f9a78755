//! The children of a session: where they are, how often each was restarted, and how to ask one that may be restarting.

use std::cell::RefCell;
use std::time::Duration;

use actix::dev::ToEnvelope;
use actix::prelude::*;
use serde_json::{Value, json};
use tokio::time::Instant;

use crate::actors::ffmpeg_decoder::FfmpegDecoder;
use crate::actors::gladia_bridge::GladiaBridge;
use crate::actors::speaker_tracker::SpeakerTracker;
use crate::actors::supervision::{ChildKind, Restarts};
use crate::actors::transcript_room::TranscriptRoom;
use crate::actors::{Observe, Shutdown};

/// Pause before a child that did not answer, because it is being restarted, is asked again.
pub(super) const ASK_AGAIN: Duration = Duration::from_millis(20);
pub(super) const OBSERVE_TIMEOUT: Duration = Duration::from_millis(200);

/// The four children that are restarted. Dropped with the session, panics included, and then they stop too; the
/// publisher's connection is not among them: it is adopted by the next session actor.
pub(super) struct Children {
    pub(super) room: Child<TranscriptRoom>,
    pub(super) tracker: Child<SpeakerTracker>,
    pub(super) bridge: Child<GladiaBridge>,
    pub(super) decoder: Child<FfmpegDecoder>,
}

pub(super) struct Child<A: Actor> {
    pub(super) addr: RefCell<Option<Addr<A>>>,
    pub(super) record: RefCell<Record>,
}

pub(super) struct Record {
    pub(super) generation: u64,
    pub(super) started: Instant,
    pub(super) restarts: Restarts,
}
impl<A: Actor> Child<A> {
    pub(super) fn new(kind: ChildKind) -> Self {
        let record = Record { generation: 0, started: Instant::now(), restarts: Restarts::new(kind.policy()) };
        Self { addr: RefCell::new(None), record: RefCell::new(record) }
    }
}

impl<A> Child<A>
where
    A: Actor<Context = Context<A>> + Handler<Shutdown>,
{
    pub(super) fn stop(&self) {
        if let Some(addr) = self.addr.borrow_mut().take() {
            addr.do_send(Shutdown);
        }
    }

    /// Stops it for good: it is not restarted, and when this answers, it does nothing more.
    pub(super) async fn retire(&self) {
        self.record.borrow_mut().generation += 1;
        let addr = self.addr.borrow_mut().take();
        if let Some(addr) = addr {
            let _ = addr.send(Shutdown).await;
        }
    }

    /// Asks until the child answers; it may be restarted meanwhile. False when the deadline has passed.
    pub(super) async fn ask<M>(&self, message: M, deadline: Instant) -> bool
    where
        M: Message + Clone + Send + 'static,
        M::Result: Send,
        A: Handler<M>,
        A::Context: ToEnvelope<A, M>,
    {
        while Instant::now() < deadline {
            let addr = self.addr.borrow().clone();
            if let Some(addr) = addr {
                match tokio::time::timeout_at(deadline, addr.send(message.clone())).await {
                    Ok(Ok(_)) => return true,
                    Ok(Err(_)) => {}
                    Err(_) => return false,
                }
            }
            tokio::time::sleep(ASK_AGAIN).await;
        }
        false
    }

    pub(super) async fn observe(&self) -> Value
    where
        A: Handler<Observe>,
        A::Context: ToEnvelope<A, Observe>,
    {
        let (restarts, last_fault) = {
            let record = self.record.borrow();
            (record.restarts.total(), record.restarts.last_fault().map(str::to_owned))
        };
        let addr = self.addr.borrow().clone();
        let state = match addr {
            None => Value::Null,
            Some(addr) => match tokio::time::timeout(OBSERVE_TIMEOUT, addr.send(Observe)).await {
                Ok(Ok(state)) => state,
                Ok(Err(_)) => Value::Null,
                Err(_) => json!("no answer"),
            },
        };
        json!({ "restarts": restarts, "lastFault": last_fault, "state": state })
    }
}

impl Drop for Children {
    fn drop(&mut self) {
        self.decoder.stop();
        self.bridge.stop();
        self.tracker.stop();
        self.room.stop();
    }
}
