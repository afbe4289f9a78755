//! `TranscriptRoom`: numbers a session's results, makes them durable and shows them.
//!
//! Owns: the order of the log (it alone assigns seq). Receives: [`TranscriptEvent`] from the session's `room` edge, and
//! [`Broadcast`]s from outside. Sends: durable entries to the outbox, then to the log that viewers read. Ends when told.
//!
//! An item leaves the edge only after it was published, so a panic here repeats the item instead of losing it; the
//! log refuses an id that it has, which makes the repetition harmless.

mod labelling;
mod pieces;
mod posts;
mod writer;

use std::sync::Arc;

use actix::prelude::*;
use serde::Serialize;
use tokio::sync::{mpsc, oneshot, watch};

use self::writer::Writer;
use super::session_core::SessionCore;
use super::session_registry::{Broadcast, BroadcastAck, BroadcastRefusal};
use super::supervision::{Lifeline, Observable, Observe};
use crate::transcript::EntrySink;

/// Answers once everything that is in the room edge now has been published.
#[derive(Debug, Clone, Copy, Message)]
#[rtype(result = "()")]
pub struct Drain;

/// The actor that numbers a session's entries and shows them.
pub struct TranscriptRoom {
    core: Arc<SessionCore>,
    sink: Arc<dyn EntrySink>,
    ingest: mpsc::UnboundedSender<Ingest>,
    ingest_rx: Option<mpsc::UnboundedReceiver<Ingest>>,
    /// Items taken off the edge in this life.
    done: watch::Sender<u64>,
    lifeline: Lifeline,
}

type Answer = oneshot::Sender<Result<BroadcastAck, BroadcastRefusal>>;
type Ingest = (Broadcast, Answer);

impl TranscriptRoom {
    pub fn start(core: Arc<SessionCore>, sink: Arc<dyn EntrySink>, lifeline: Lifeline) -> Addr<Self> {
        let (ingest, ingest_rx) = mpsc::unbounded_channel();
        let done = watch::Sender::new(0);
        Actor::start(Self { core, sink, ingest, ingest_rx: Some(ingest_rx), done, lifeline })
    }
}

impl Actor for TranscriptRoom {
    type Context = Context<Self>;

    fn started(&mut self, ctx: &mut Self::Context) {
        self.lifeline.started();
        let Some(ingest) = self.ingest_rx.take() else { return };
        let writer = Writer::new(self.core.clone(), self.sink.clone(), self.done.clone());
        ctx.spawn(writer.run(ingest).into_actor(self));
    }
}

impl Handler<Drain> for TranscriptRoom {
    type Result = ResponseFuture<()>;

    fn handle(&mut self, _: Drain, _: &mut Self::Context) -> Self::Result {
        let core = self.core.clone();
        let mut done = self.done.subscribe();
        Box::pin(async move {
            while !core.is_room_done() {
                if done.changed().await.is_err() {
                    return;
                }
            }
        })
    }
}

impl Handler<Broadcast> for TranscriptRoom {
    type Result = ResponseFuture<Result<BroadcastAck, BroadcastRefusal>>;

    fn handle(&mut self, broadcast: Broadcast, _: &mut Self::Context) -> Self::Result {
        let (reply, answer) = oneshot::channel();
        let sent = self.ingest.send((broadcast, reply));
        Box::pin(async move {
            sent.map_err(|_| BroadcastRefusal::Unavailable)?;
            answer.await.unwrap_or(Err(BroadcastRefusal::Unavailable))
        })
    }
}

/// The state that `/metrics` shows.
#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct TranscriptRoomState {
    pub generation: u64,
    pub last_seq: u64,
    pub status: &'static str,
    pub waiting: usize,
    pub handled: u64,
}

impl Observable for TranscriptRoom {
    type State = TranscriptRoomState;
}

impl Handler<Observe<Self>> for TranscriptRoom {
    type Result = MessageResult<Observe<Self>>;

    fn handle(&mut self, _: Observe<Self>, _: &mut Self::Context) -> Self::Result {
        MessageResult(TranscriptRoomState {
            generation: self.lifeline.generation(),
            last_seq: self.core.log.last_seq(),
            status: self.core.log.status().as_str(),
            waiting: self.core.results.len(),
            handled: *self.done.borrow(),
        })
    }
}

crate::stops_and_crashes!(TranscriptRoom);

#[cfg(test)]
mod tests;
