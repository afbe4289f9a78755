//! Starting, stopping and restarting the children, and what happens when a restart budget is exhausted.

use std::cell::RefCell;
use std::sync::Arc;
use std::time::Duration;

use actix::prelude::*;
use tokio::time::Instant;

use super::children::Record;
use super::{Origin, Phase, Session};
use crate::actors::ffmpeg_decoder::FfmpegDecoder;
use crate::actors::gladia_bridge::{BridgeParams, GladiaBridge};
use crate::actors::speaker_tracker::SpeakerTracker;
use crate::actors::supervision::{ChildDown, ChildKind, Decision, Exit, Lifeline, backoff};
use crate::actors::transcript_room::TranscriptRoom;
use crate::log::Status;

/// Pause before the children are rebuilt after an exhausted budget.
pub(super) const REBUILD_DELAY: Duration = Duration::from_secs(5);
/// Pause before a bridge that has exhausted its budget is tried again.
const BRIDGE_RETRY: Duration = Duration::from_secs(30);
/// A reader that takes nothing from a filled edge for so long is frozen.
const FROZEN_AFTER: Duration = Duration::from_secs(10);
/// All children alive for so long after a rebuild: the session is not degraded any more.
pub(super) const CALM: Duration = Duration::from_secs(10);

/// Watches one edge: items wait and none is taken.
pub(super) struct FrozenCheck {
    pub(super) popped: u64,
    pub(super) since: Instant,
}

impl Session {
    /// Downstream first, so that nobody speaks to somebody who is not there.
    pub(super) fn kinds(&self) -> &'static [ChildKind] {
        match self.core.origin {
            Origin::Ingest => &[
                ChildKind::TranscriptRoom,
                ChildKind::SpeakerTracker,
                ChildKind::GladiaBridge,
                ChildKind::FfmpegDecoder,
            ],
            Origin::Relay | Origin::Mirror => &[ChildKind::TranscriptRoom, ChildKind::SpeakerTracker],
        }
    }

    pub(super) fn record(&self, kind: ChildKind) -> Option<&RefCell<Record>> {
        match kind {
            ChildKind::TranscriptRoom => Some(&self.children.room.record),
            ChildKind::SpeakerTracker => Some(&self.children.tracker.record),
            ChildKind::GladiaBridge => Some(&self.children.bridge.record),
            ChildKind::FfmpegDecoder => Some(&self.children.decoder.record),
            _ => None,
        }
    }

    pub(super) fn start_child(&mut self, kind: ChildKind, ctx: &mut Context<Self>) {
        let Some(record) = self.record(kind) else { return };
        let generation = {
            let mut record = record.borrow_mut();
            record.generation += 1;
            record.started = Instant::now();
            record.generation
        };
        let parent = ctx.address().recipient();
        let lifeline = Lifeline::new(parent, kind, generation, self.core.metrics.clone());
        let core = self.core.clone();
        let children = &self.children;
        match kind {
            ChildKind::TranscriptRoom => {
                let room = TranscriptRoom::start(core, self.services.sink.clone(), lifeline);
                children.room.addr.replace(Some(room));
            }
            ChildKind::SpeakerTracker => {
                let tracker = SpeakerTracker::start(core, lifeline);
                self.connect_tracker(&tracker);
                self.children.tracker.addr.replace(Some(tracker));
            }
            ChildKind::GladiaBridge => {
                let params = BridgeParams {
                    core,
                    endpoint: self.services.stt.clone(),
                    slots: self.services.stt_slots.clone(),
                    lifeline,
                };
                children.bridge.addr.replace(Some(GladiaBridge::start(params)));
            }
            ChildKind::FfmpegDecoder => {
                children.decoder.addr.replace(Some(FfmpegDecoder::start(core, lifeline)));
            }
            _ => {}
        }
    }

    /// The room asks it for labels; viewers report to it.
    pub(super) fn connect_tracker(&self, tracker: &Addr<SpeakerTracker>) {
        *self.core.tracker.lock() = Some(tracker.clone());
        let tracker = tracker.clone();
        let room = self.services.directory.get_or_create(&self.core.slug);
        // A full mailbox drops the report: a newer one follows.
        room.set_speaker_sink(Some(Arc::new(move |update| {
            let _ = tracker.try_send(update);
        })));
    }

    pub(super) fn stop_child(&self, kind: ChildKind) {
        if let Some(record) = self.record(kind) {
            // The end of this life is expected: its ChildDown is an old generation's.
            record.borrow_mut().generation += 1;
        }
        match kind {
            ChildKind::TranscriptRoom => self.children.room.stop(),
            ChildKind::SpeakerTracker => self.children.tracker.stop(),
            ChildKind::GladiaBridge => self.children.bridge.stop(),
            ChildKind::FfmpegDecoder => self.children.decoder.stop(),
            _ => {}
        }
    }

    pub(super) fn child_down(&mut self, down: ChildDown, ctx: &mut Context<Self>) {
        let kind = down.kind;
        let Some(record) = self.record(kind) else { return };
        let decision = {
            let mut record = record.borrow_mut();
            if record.generation != down.generation {
                return;
            }
            let lived = record.started.elapsed();
            record.restarts.decide(&down.exit, lived, Instant::now())
        };
        self.stop_child(kind);
        let session = &self.core.slug;
        match decision {
            Decision::Ended => tracing::debug!(%session, child = kind.as_str(), "child ended"),
            Decision::Restart(delay) => {
                let delay_ms = delay.as_millis() as u64;
                tracing::warn!(%session, child = kind.as_str(), exit = %down.exit, delay_ms, "child restarts");
                self.core.metrics.actor_restarts_total.with_label_values(&[kind.as_str()]).inc();
                let due = self.generation(kind);
                ctx.run_later(delay, move |this, ctx| this.start_if_due(kind, due, ctx));
            }
            Decision::Escalate => self.escalate(kind, &down.exit, ctx),
        }
    }

    /// A budget is exhausted: rebuild everything downstream of the publisher, whose socket stays.
    pub(super) fn escalate(&mut self, kind: ChildKind, exit: &Exit, ctx: &mut Context<Self>) {
        let alone: &'static [ChildKind] = &[ChildKind::GladiaBridge];
        let rebuilt = if kind == ChildKind::GladiaBridge { alone } else { self.kinds() };
        let base = if kind == ChildKind::GladiaBridge { BRIDGE_RETRY } else { REBUILD_DELAY };
        let delay = backoff(base, BRIDGE_RETRY.max(base), self.rebuilds);
        self.rebuilds += 1;
        let session = &self.core.slug;
        let delay_s = delay.as_secs();
        tracing::error!(%session, child = kind.as_str(), %exit, delay_s, "restart budget exhausted, session degraded");
        self.core.metrics.actor_escalations_total.with_label_values(&[kind.as_str()]).inc();
        for kind in rebuilt.iter().rev() {
            self.stop_child(*kind);
        }
        let due: Vec<_> = rebuilt.iter().map(|kind| (*kind, self.generation(*kind))).collect();
        self.degraded = true;
        self.core.announce_status(Status::Degraded, &format!("{}_failing", kind.as_str()));
        ctx.run_later(delay, move |this, ctx| {
            for (kind, due) in due {
                if let Some(record) = this.record(kind) {
                    record.borrow_mut().restarts.reset();
                }
                this.start_if_due(kind, due, ctx);
            }
            ctx.run_later(CALM, |this, ctx| this.recovered(ctx));
        });
    }

    /// Asks again until all children have lived through [`CALM`].
    pub(super) fn recovered(&mut self, ctx: &mut Context<Self>) {
        if !self.degraded || self.phase == Phase::Ending {
            return;
        }
        let now = Instant::now();
        let calm = |kind: &ChildKind| {
            self.is_running(*kind) && self.record(*kind).is_some_and(|r| r.borrow().restarts.is_calm(now, CALM))
        };
        if !self.kinds().iter().all(calm) {
            ctx.run_later(CALM, |this, ctx| this.recovered(ctx));
            return;
        }
        self.degraded = false;
        self.rebuilds = 0;
        let status = if self.phase == Phase::Live { Status::Live } else { self.resting_status() };
        self.core.announce_status(status, "recovered");
    }

    /// Without a publisher: one that is fed by posts waits for nobody.
    pub(super) fn resting_status(&self) -> Status {
        if self.core.origin == Origin::Ingest { Status::Waiting } else { Status::Live }
    }

    pub(super) fn generation(&self, kind: ChildKind) -> u64 {
        self.record(kind).map_or(0, |record| record.borrow().generation)
    }

    pub(super) fn is_running(&self, kind: ChildKind) -> bool {
        match kind {
            ChildKind::TranscriptRoom => self.children.room.addr.borrow().is_some(),
            ChildKind::SpeakerTracker => self.children.tracker.addr.borrow().is_some(),
            ChildKind::GladiaBridge => self.children.bridge.addr.borrow().is_some(),
            ChildKind::FfmpegDecoder => self.children.decoder.addr.borrow().is_some(),
            _ => false,
        }
    }

    /// Unless somebody else has stopped or started it since: two readers of one edge would lose items.
    pub(super) fn start_if_due(&mut self, kind: ChildKind, due: u64, ctx: &mut Context<Self>) {
        if self.generation(kind) == due && !self.is_running(kind) {
            self.start_child(kind, ctx);
        }
    }

    pub(super) fn check_frozen(&mut self, ctx: &mut Context<Self>) {
        let edges = [
            (ChildKind::FfmpegDecoder, self.core.tags.len(), self.core.tags.popped()),
            (ChildKind::TranscriptRoom, self.core.room.len(), self.core.room.popped()),
        ];
        let running = edges.map(|(kind, ..)| self.is_running(kind));
        for ((check, (kind, waiting, popped)), running) in self.frozen.iter_mut().zip(edges).zip(running) {
            // A child that waits for its restart is not frozen.
            if waiting == 0 || popped != check.popped || !running {
                *check = FrozenCheck { popped, since: Instant::now() };
            }
            if check.since.elapsed() >= FROZEN_AFTER {
                check.since = Instant::now();
                let generation = match kind {
                    ChildKind::FfmpegDecoder => self.children.decoder.record.borrow().generation,
                    _ => self.children.room.record.borrow().generation,
                };
                ctx.notify(ChildDown { kind, generation, exit: Exit::Frozen });
            }
        }
    }
}
