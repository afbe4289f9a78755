//! Starting, stopping and restarting the children, and what happens when a restart budget is exhausted.

use std::sync::Arc;
use std::time::Duration;

use actix::prelude::*;
use tokio::time::Instant;

use super::children::Managed;
use super::{Origin, Phase, Session};
use crate::actors::ffmpeg_decoder::FfmpegDecoder;
use crate::actors::gladia_bridge::{BridgeParams, GladiaBridge};
use crate::actors::room_captions::RoomCaptions;
use crate::actors::room_participant::RoomParticipant;
use crate::actors::speaker_tracker::SpeakerTracker;
use crate::actors::supervision::{ChildDown, ChildKind, Decision, Exit, Scope, backoff};
use crate::actors::transcript_room::TranscriptRoom;
use crate::config::CaptionsTo;
use crate::transcript::Status;

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
    pub(super) fn kinds(&self) -> Vec<ChildKind> {
        let mut kinds = vec![ChildKind::TranscriptRoom, ChildKind::SpeakerTracker];
        if self.core.origin != Origin::Ingest {
            return kinds;
        }
        kinds.extend([ChildKind::GladiaBridge, ChildKind::FfmpegDecoder]);
        let livekit = &self.core.config.livekit;
        if self.services.livekit.is_some() && livekit.rooms.matches(self.core.slug.as_str()) {
            kinds.extend(livekit.joins_rooms().then_some(ChildKind::RoomParticipant));
            kinds.extend((livekit.captions == CaptionsTo::Data).then_some(ChildKind::RoomCaptions));
        }
        kinds
    }

    /// Those without which the session does not do its work.
    fn needed(&self) -> Vec<ChildKind> {
        self.kinds().into_iter().filter(|kind| !kind.policy().is_beside).collect()
    }

    pub(super) fn start_child(&mut self, kind: ChildKind, ctx: &mut Context<Self>) {
        let Some(child) = self.children.get(kind) else { return };
        let lifeline = child.begin(ctx.address().recipient(), &self.core.metrics);
        let core = self.core.clone();
        let children = &self.children;
        match kind {
            ChildKind::TranscriptRoom => {
                let sink = self.services.sink_of(&core);
                children.room.runs_at(TranscriptRoom::start(core, sink, lifeline));
            }
            ChildKind::SpeakerTracker => {
                let tracker = SpeakerTracker::start(core, lifeline);
                self.connect_tracker(&tracker);
                self.children.tracker.runs_at(tracker);
            }
            ChildKind::GladiaBridge => {
                let params = BridgeParams {
                    core,
                    endpoint: self.services.stt.clone(),
                    slots: self.services.stt_slots.clone(),
                    lifeline,
                };
                children.bridge.runs_at(GladiaBridge::start(params));
            }
            ChildKind::FfmpegDecoder => {
                children.decoder.runs_at(FfmpegDecoder::start(core, lifeline));
            }
            ChildKind::RoomParticipant => {
                let Some(server) = self.services.livekit.clone() else { return };
                let arbiter = self.services.livekit_thread();
                children.participant.runs_at(RoomParticipant::start(&arbiter, core, server, lifeline));
            }
            ChildKind::RoomCaptions => {
                let Some(server) = self.services.livekit.clone() else { return };
                let arbiter = self.services.livekit_thread();
                children.captions.runs_at(RoomCaptions::start(&arbiter, core, server, lifeline));
            }
            _ => {}
        }
    }

    /// The room asks it for labels; viewers report to it.
    pub(super) fn connect_tracker(&self, tracker: &Addr<SpeakerTracker>) {
        *self.core.tracker() = Some(tracker.clone());
        let tracker = tracker.clone();
        // The node that numbers the log labels its lines.
        let elsewhere = (self.core.origin == Origin::Mirror).then(|| self.services.reports.clone());
        let slug = self.core.slug.clone();
        let room = self.services.directory.get_or_create(&self.core.slug);
        // A full mailbox drops the report: a newer one follows.
        room.set_speaker_sink(Some(Arc::new(move |update| {
            if let Some(reports) = &elsewhere {
                reports.push(&slug, &update);
            }
            let _ = tracker.try_send(update);
        })));
    }

    pub(super) fn stop_child(&self, kind: ChildKind) {
        if let Some(child) = self.children.get(kind) {
            child.stop();
        }
    }

    pub(super) fn child_down(&mut self, down: ChildDown, ctx: &mut Context<Self>) {
        let kind = down.kind;
        let Some(decision) = self.children.get(kind).and_then(|child| child.decide(&down)) else { return };
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
        let policy = kind.policy();
        let rebuilt = if policy.rebuilds == Scope::Alone { vec![kind] } else { self.needed() };
        let delay = backoff(policy.rebuild_first, policy.rebuild_most, self.rebuilds);
        self.rebuilds += 1;
        let session = &self.core.slug;
        let delay_s = delay.as_secs();
        if policy.is_beside {
            tracing::error!(%session, child = kind.as_str(), %exit, delay_s, "restart budget exhausted");
        } else {
            tracing::error!(%session, child = kind.as_str(), %exit, delay_s, "restart budget exhausted, session degraded");
            self.degraded = true;
            self.core.announce_status(Status::Degraded, &format!("{}_failing", kind.as_str()));
        }
        self.core.metrics.actor_escalations_total.with_label_values(&[kind.as_str()]).inc();
        for kind in rebuilt.iter().rev() {
            self.stop_child(*kind);
        }
        let due: Vec<_> = rebuilt.iter().map(|kind| (*kind, self.generation(*kind))).collect();
        ctx.run_later(delay, move |this, ctx| {
            for (kind, due) in due {
                if let Some(child) = this.children.get(kind) {
                    child.forgive();
                }
                this.start_if_due(kind, due, ctx);
            }
            ctx.run_later(CALM, super::Session::recovered);
        });
    }

    /// Asks again until all children have lived through [`CALM`].
    pub(super) fn recovered(&mut self, ctx: &mut Context<Self>) {
        if !self.degraded || self.phase == Phase::Ending {
            return;
        }
        let calm = |kind: &ChildKind| {
            self.is_running(*kind) && self.children.get(*kind).is_some_and(|child| child.is_calm(CALM))
        };
        if !self.needed().iter().all(calm) {
            ctx.run_later(CALM, super::Session::recovered);
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
        self.children.get(kind).map_or(0, Managed::generation)
    }

    pub(super) fn is_running(&self, kind: ChildKind) -> bool {
        self.children.get(kind).is_some_and(Managed::is_running)
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
            (ChildKind::TranscriptRoom, self.core.results.len(), self.core.results.popped()),
        ];
        let running = edges.map(|(kind, ..)| self.is_running(kind));
        let children = self.children.clone();
        for ((check, (kind, waiting, popped)), running) in self.frozen.iter_mut().zip(edges).zip(running) {
            // A child that waits for its restart is not frozen.
            if waiting == 0 || popped != check.popped || !running {
                *check = FrozenCheck { popped, since: Instant::now() };
            }
            if check.since.elapsed() >= FROZEN_AFTER {
                check.since = Instant::now();
                let generation = children.get(kind).map_or(0, Managed::generation);
                ctx.notify(ChildDown { kind, generation, exit: Exit::Frozen });
            }
        }
    }
}
