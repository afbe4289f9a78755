//! The children of a session: where they are, how often each was restarted, and how to ask one that may be restarting.

use std::cell::RefCell;
use std::sync::Arc;
use std::time::Duration;

use actix::dev::ToEnvelope;
use actix::prelude::*;
use tokio::time::Instant;

use crate::actors::ffmpeg_decoder::FfmpegDecoder;
use crate::actors::gladia_bridge::GladiaBridge;
use crate::actors::room_captions::RoomCaptions;
use crate::actors::room_participant::RoomParticipant;
use crate::actors::speaker_tracker::SpeakerTracker;
use crate::actors::supervision::{
    ChildDown, ChildKind, ChildState, Decision, Lifeline, Observable, Observe, Supervised,
};
use crate::actors::transcript_room::TranscriptRoom;
use crate::actors::{Crash, Shutdown};
use crate::metrics::Metrics;

/// Pause before a child that did not answer, because it is being restarted, is asked again.
pub(super) const ASK_AGAIN: Duration = Duration::from_millis(20);
pub(super) const OBSERVE_TIMEOUT: Duration = Duration::from_millis(200);

/// The children that are restarted. Dropped with the session, panics included, and then they stop too; the
/// publisher's connection is not among them: it is adopted by the next session actor.
pub(super) struct Children {
    pub(super) room: Child<TranscriptRoom>,
    pub(super) tracker: Child<SpeakerTracker>,
    pub(super) bridge: Child<GladiaBridge>,
    pub(super) decoder: Child<FfmpegDecoder>,
    pub(super) participant: Child<RoomParticipant>,
    pub(super) captions: Child<RoomCaptions>,
}

pub(super) struct Child<A: Actor>(RefCell<Supervised<A>>);

impl<A: Actor> Child<A> {
    pub(super) fn new(kind: ChildKind) -> Self {
        Self(RefCell::new(Supervised::new(kind)))
    }

    pub(super) fn addr(&self) -> Option<Addr<A>> {
        self.0.borrow().addr()
    }

    pub(super) fn runs_at(&self, addr: Addr<A>) {
        self.0.borrow_mut().runs_at(Some(addr));
    }
}

/// A child of any kind, as its supervisor handles it.
pub(super) trait Managed {
    fn begin(&self, parent: Recipient<ChildDown>, metrics: &Arc<Metrics>) -> Lifeline;
    /// None when an earlier life has ended.
    fn decide(&self, down: &ChildDown) -> Option<Decision>;
    /// Ends its present life, of which no report is expected any more.
    fn stop(&self);
    fn crash(&self);
    fn is_running(&self) -> bool;
    fn generation(&self) -> u64;
    /// No restart within the last `period`.
    fn is_calm(&self, period: Duration) -> bool;
    /// Forgets past restarts.
    fn forgive(&self);
}

impl<A> Managed for Child<A>
where
    A: Actor<Context = Context<A>> + Handler<Shutdown> + Handler<Crash>,
{
    fn begin(&self, parent: Recipient<ChildDown>, metrics: &Arc<Metrics>) -> Lifeline {
        self.0.borrow_mut().begin(parent, metrics)
    }

    fn decide(&self, down: &ChildDown) -> Option<Decision> {
        self.0.borrow_mut().decide(down)
    }

    fn stop(&self) {
        if let Some(addr) = self.0.borrow_mut().give_up() {
            addr.do_send(Shutdown);
        }
    }

    fn crash(&self) {
        if let Some(addr) = self.addr() {
            addr.do_send(Crash);
        }
    }

    fn is_running(&self) -> bool {
        self.0.borrow().is_running()
    }

    fn generation(&self) -> u64 {
        self.0.borrow().generation()
    }

    fn is_calm(&self, period: Duration) -> bool {
        self.0.borrow().restarts().is_calm(Instant::now(), period)
    }

    fn forgive(&self) {
        self.0.borrow_mut().forgive();
    }
}

impl Children {
    pub(super) fn new() -> Self {
        Self {
            room: Child::new(ChildKind::TranscriptRoom),
            tracker: Child::new(ChildKind::SpeakerTracker),
            bridge: Child::new(ChildKind::GladiaBridge),
            decoder: Child::new(ChildKind::FfmpegDecoder),
            participant: Child::new(ChildKind::RoomParticipant),
            captions: Child::new(ChildKind::RoomCaptions),
        }
    }

    pub(super) fn get(&self, kind: ChildKind) -> Option<&dyn Managed> {
        match kind {
            ChildKind::TranscriptRoom => Some(&self.room),
            ChildKind::SpeakerTracker => Some(&self.tracker),
            ChildKind::GladiaBridge => Some(&self.bridge),
            ChildKind::FfmpegDecoder => Some(&self.decoder),
            ChildKind::RoomParticipant => Some(&self.participant),
            ChildKind::RoomCaptions => Some(&self.captions),
            _ => None,
        }
    }
}

impl<A> Child<A>
where
    A: Actor<Context = Context<A>> + Handler<Shutdown>,
{
    /// Stops it for good: it is not restarted, and when this answers, it does nothing more.
    pub(super) async fn retire(&self) {
        let addr = self.0.borrow_mut().give_up();
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
            if let Some(addr) = self.addr() {
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

    pub(super) async fn observe(&self) -> ChildState<A::State>
    where
        A: Observable + Handler<Observe<A>>,
        A::Context: ToEnvelope<A, Observe<A>>,
    {
        let answer = self.0.borrow().observe(OBSERVE_TIMEOUT);
        answer.await
    }
}

impl Drop for Children {
    fn drop(&mut self) {
        self.captions.stop();
        self.participant.stop();
        self.decoder.stop();
        self.bridge.stop();
        self.tracker.stop();
        self.room.stop();
    }
}
