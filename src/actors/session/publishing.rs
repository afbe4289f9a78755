//! Publishers come, are displaced, go, and come back within the grace period.

use std::time::Duration;

use actix::prelude::*;
use tokio::time::Instant;

use super::ending::push_silence;
use super::{Answer, AttachResult, End, FLUSH_TIMEOUT, Origin, Phase, Session, Then};
use crate::actors::ffmpeg_decoder::Flush;
use crate::actors::rtmp_connection::{ClosePublisher, CloseReason, RtmpConnection};
use crate::actors::session_core::presence::{Away, PublisherLink};
use crate::actors::session_registry::PublishRefusal;
use crate::actors::supervision::{ChildDown, ChildKind, Lifeline};
use crate::rtmp::PendingPublish;
use crate::transcript::{GapReason, Status};

/// Takeovers of a publisher that is still sending, within [`TAKEOVER_PERIOD`].
pub(super) const MAX_TAKEOVERS: usize = 3;
pub(super) const TAKEOVER_PERIOD: Duration = Duration::from_secs(30);
/// A publisher whose last audio is younger than this is "still sending".
const STILL_SENDING: Duration = Duration::from_secs(2);
/// A publisher that is back within it is not shown as away.
const SETTLE: Duration = Duration::from_secs(1);
/// A publisher that is back and sends no audio for so long is not waited for: the time without it is told.
const FIRST_AUDIO: Duration = Duration::from_secs(5);
/// Longest wait for the recogniser's last finals when a session ends by itself.
const END_TIMEOUT: Duration = Duration::from_secs(30);
/// Time to read what a dropped publisher had already sent.
const LAST_WORDS: Duration = Duration::from_millis(300);
/// From the loss of a publisher to the flush of its decoder.
const FLUSH_DELAY: Duration = Duration::from_millis(400);
/// Least wait for a session's first publisher.
const FIRST_PUBLISHER: Duration = Duration::from_secs(5);
/// A relayed session without any entry for so long ends; a mirrored one too, unless somebody watches it.
const RELAY_IDLE: Duration = Duration::from_secs(600);
/// A mirrored session whose successor is here waits so long for its last entries.
const SUPERSEDED_IDLE: Duration = Duration::from_secs(30);

impl Session {
    /// A publisher that was heard a moment ago may have broken off just now: the newcomer waits for what it has sent
    /// last, and for its end. One that goes on sending is displaced.
    pub(super) fn attach_when_clear(
        &mut self,
        publisher: Box<PendingPublish>,
        answer: Answer,
        ctx: &mut Context<Self>,
    ) {
        if let Some((earlier, answer)) = self.newcomer.take() {
            let _ = answer.send(Err((PublishRefusal::TakeoverLimit, earlier)));
        }
        if !self.is_publisher_sending() || self.phase == Phase::Ending {
            let _ = answer.send(self.attach(publisher, ctx));
            return;
        }
        self.newcomer = Some((publisher, answer));
        let generation = self.publisher_generation();
        ctx.run_later(LAST_WORDS, move |this, ctx| {
            if this.publisher_generation() == generation {
                this.attach_newcomer(ctx);
            }
        });
    }

    pub(super) fn attach_newcomer(&mut self, ctx: &mut Context<Self>) {
        if let Some((publisher, answer)) = self.newcomer.take() {
            // Nobody may be waiting any more: then the publisher goes with the answer.
            let _ = answer.send(self.attach(publisher, ctx));
        }
    }

    pub(super) fn is_publisher_sending(&self) -> bool {
        let is_here = self.core.presence().publisher().is_some();
        is_here && self.core.tags.last_push().is_some_and(|at| at.elapsed() < STILL_SENDING)
    }

    fn attach(&mut self, publisher: Box<PendingPublish>, ctx: &mut Context<Self>) -> AttachResult {
        if self.phase == Phase::Ending || self.core.origin != Origin::Ingest {
            return Err((PublishRefusal::Ending, publisher));
        }
        if self.is_publisher_sending()
            && let Err(refusal) = self.count_takeover()
        {
            return Err((refusal, publisher));
        }
        let old = self.core.presence().left();
        if let Some(old) = old {
            self.core.metrics.rtmp_takeovers_total.inc();
            if let Some(silent_ms) = self.core.silent_since_ms(old.since_ms) {
                self.lose_publisher(silent_ms);
            }
            old.addr.do_send(ClosePublisher { reason: CloseReason::Displaced });
        }
        let generation = self.core.presence().next_generation();
        let metrics = self.core.metrics.clone();
        let lifeline = Lifeline::new(ctx.address().recipient(), ChildKind::RtmpConnection, generation, metrics);
        let addr = RtmpConnection::start(publisher, self.core.clone(), generation, lifeline);
        let since_ms = self.core.clock_ms();
        self.core.presence().came(PublisherLink { addr, generation, since_ms });
        self.publisher_here(ctx);
        Ok(())
    }

    pub(super) fn publisher_here(&mut self, ctx: &mut Context<Self>) {
        if let Some(grace) = self.grace.take() {
            ctx.cancel_future(grace);
        }
        let now_ms = self.core.clock_ms();
        self.core.presence().back(now_ms);
        self.announce_away_later(ctx);
        // A process that takes over is to know that somebody was here.
        self.services.checkpoint(&self.core);
        self.services.renew(&self.core);
        self.phase = Phase::Live;
        if std::mem::take(&mut self.is_waiting_announced) {
            self.core.announce_status(Status::Live, "publisher_connected");
        }
    }

    /// By then its first audio has told whether anything is missing: see [`Away`].
    pub(super) fn announce_away_later(&self, ctx: &mut Context<Self>) {
        self.announce_away_within(FIRST_AUDIO, ctx);
    }

    fn announce_away_within(&self, patience: Duration, ctx: &mut Context<Self>) {
        let generation = self.publisher_generation();
        ctx.run_later(SETTLE, move |this, ctx| {
            if this.publisher_generation() != generation {
                return;
            }
            let is_placed = this.core.decode().placed() >= generation;
            match patience.checked_sub(SETTLE) {
                Some(patience) if !is_placed => this.announce_away_within(patience, ctx),
                _ => this.announce_away(),
            }
        });
    }

    /// Unless there is still nobody.
    pub(super) fn announce_away(&self) {
        let absence = self.core.presence().take_absence();
        if let Some(absence) = absence {
            self.core.announce_absence(absence);
            self.core.decode().announced_until(absence.end_ms);
        }
    }

    /// The last words are to become final, unless the publisher is back at once: then it goes on in the same decoder.
    fn flush_later(&self, ctx: &mut Context<Self>) {
        let generation = self.publisher_generation();
        ctx.run_later(FLUSH_DELAY, move |this, ctx| {
            if this.publisher_generation() != generation || this.phase != Phase::Waiting {
                return;
            }
            let children = this.children.clone();
            let flush = async move { children.decoder.ask(Flush, Instant::now() + FLUSH_TIMEOUT).await };
            ctx.spawn(flush.into_actor(this).map(move |_, this, _| {
                if this.publisher_generation() == generation && this.phase == Phase::Waiting {
                    push_silence(&this.core);
                }
            }));
        });
    }

    fn tell_waiting_later(&self, ctx: &mut Context<Self>) {
        let generation = self.publisher_generation();
        ctx.run_later(SETTLE, move |this, _| {
            if this.publisher_generation() == generation && this.phase == Phase::Waiting {
                this.is_waiting_announced = true;
                this.core.announce_status(Status::Waiting, "publisher_lost");
            }
        });
    }

    pub(super) fn publisher_down(&mut self, down: ChildDown, ctx: &mut Context<Self>) {
        if down.generation != self.publisher_generation() || self.phase == Phase::Ending {
            return;
        }
        let old = self.core.presence().left();
        tracing::info!(session = %self.core.slug, exit = %down.exit, "publisher gone");
        self.phase = Phase::Waiting;
        let silent_ms = old.and_then(|old| self.core.silent_since_ms(old.since_ms));
        self.lose_publisher(silent_ms.unwrap_or_else(|| self.core.clock_ms()));
        self.tell_waiting_later(ctx);
        self.flush_later(ctx);
        self.start_grace(ctx);
        self.attach_newcomer(ctx);
    }

    /// From then on nobody is heard, until somebody is back.
    fn lose_publisher(&self, start_ms: u64) {
        self.announce_away();
        self.core.presence().missed_since(Away::since(start_ms, GapReason::PublisherLost));
    }

    /// Nobody comes back any more to a session that an earlier process has left in the middle of a publish.
    pub(super) fn announce_missing(&self) {
        let missing = self.core.presence().take_missing();
        if let Some(missing) = missing {
            self.core.announce_absence(missing);
        }
    }

    pub(super) fn publisher_generation(&self) -> u64 {
        self.core.presence().generation()
    }

    pub(super) fn start_grace(&mut self, ctx: &mut Context<Self>) {
        let grace = match self.core.origin {
            // The first publisher is on its way: a short grace period must not end the session before it is here.
            Origin::Ingest if self.publisher_generation() == 0 => self.core.config.rtmp.grace.max(FIRST_PUBLISHER),
            Origin::Ingest => self.core.config.rtmp.grace,
            Origin::Relay | Origin::Mirror if self.is_superseded => SUPERSEDED_IDLE,
            Origin::Relay | Origin::Mirror => RELAY_IDLE,
        };
        if let Some(old) = self.grace.take() {
            ctx.cancel_future(old);
        }
        self.grace = Some(ctx.run_later(grace, |this, ctx| {
            let watched = || this.services.directory.get(&this.core.slug).is_some_and(|room| room.viewers() > 0);
            let goes_on = this.core.origin == Origin::Mirror && !this.is_superseded && !this.core.log.is_closed();
            if goes_on && watched() {
                return this.start_grace(ctx);
            }
            let deadline = Instant::now() + END_TIMEOUT;
            this.end(End { reason: "grace_period_over".into(), deadline, then: Then::Over }, ctx);
        }));
    }
}
