//! The end of a session: the last words are recognised, published and stored before its actors go.

use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use actix::prelude::*;
use bytes::Bytes;
use tokio::time::Instant;

use super::children::{ASK_AGAIN, Children};
use super::{End, FLUSH_TIMEOUT, Origin, Phase, Session, Then};
use crate::actors::ffmpeg_decoder::{Flush, give_up_waiting};
use crate::actors::gladia_bridge::Finish;
use crate::actors::rtmp_connection::{ClosePublisher, CloseReason};
use crate::actors::services::SessionEnd;
use crate::actors::session_core::SessionCore;
use crate::actors::session_core::presence::Away;
use crate::actors::session_registry::SessionEnding;
use crate::actors::transcript_room::Drain;
use crate::audio::PcmChunk;
use crate::transcript::{GapReason, Status};

/// Silence sent at once after a lost publisher, so that its last words become final.
const CLOSING_SILENCE_MS: u64 = 1000;

impl Session {
    pub(super) fn end(&mut self, end: End, ctx: &mut Context<Self>) {
        if self.phase == Phase::Ending {
            return;
        }
        self.phase = Phase::Ending;
        // Of a session that goes on elsewhere, the other node knows how long nobody was heard.
        if end.then != Then::GoesOnElsewhere {
            self.announce_away();
        }
        if end.then == Then::Suspended && self.core.presence().publisher().is_some() {
            // Its socket is closed now, and the drain takes time: what is said meanwhile is for the next process to announce.
            let start_ms = self.core.clock_ms();
            let lost = Away::since(start_ms, GapReason::ProcessRestart);
            self.core.presence().missed_since(Away { missing_until_ms: Some(start_ms), ..lost });
        }
        if end.then == Then::Over {
            self.announce_missing();
        }
        self.attach_newcomer(ctx);
        tracing::info!(session = %self.core.slug, reason = %end.reason, suspend = end.then == Then::Suspended, "session ends");
        self.registry.do_send(SessionEnding { slug: self.core.slug.clone(), epoch: self.core.epoch });
        let finish = finish(self.core.clone(), self.children.clone(), end.clone());
        ctx.spawn(finish.into_actor(self).map(move |_, this, ctx| this.ended(&end, ctx)));
    }

    pub(super) fn ended(&mut self, end: &End, ctx: &mut Context<Self>) {
        let of_epoch = match (end.then, self.core.origin) {
            (Then::Suspended, _) => SessionEnd::Suspended,
            (Then::GoesOnElsewhere, _) => SessionEnd::HandedOver,
            // Another node's log has ended when that node says so.
            (Then::Over, Origin::Mirror) if self.core.log.status() != Status::Ended => SessionEnd::Left,
            (Then::Over, _) => SessionEnd::Ended,
        };
        self.core.log.close();
        self.services.session_ended(&self.core, of_epoch);
        let audio = self.core.ledger().account();
        tracing::info!(
            session = %self.core.slug, last_seq = self.core.log.last_seq(), received_ms = audio.received_ms,
            finalised_ms = audio.finalised_ms, lost_ms = audio.lost_ms, "session ended"
        );
        for kind in self.kinds().into_iter().rev() {
            self.stop_child(kind);
        }
        for waiting in self.enders.drain(..) {
            let _ = waiting.send(());
        }
        ctx.stop();
    }
}

/// The order of an end: publisher, decoder, recogniser, room, last status, room.
async fn finish(core: Arc<SessionCore>, children: Rc<Children>, end: End) {
    let publisher = core.presence().left();
    if core.origin == Origin::Ingest {
        let closed_ms = core.clock_ms();
        if let Some(publisher) = publisher {
            let reason = match end.then {
                Then::Over => CloseReason::SessionEnded,
                Then::Suspended => CloseReason::Draining,
                Then::GoesOnElsewhere => CloseReason::Displaced,
            };
            let close = publisher.addr.send(ClosePublisher { reason });
            let _ = tokio::time::timeout(FLUSH_TIMEOUT, close).await;
        }
        // Also after a publisher that has left by itself: its last samples may still be in the decoder.
        children.decoder.ask(Flush, end.deadline.min(Instant::now() + FLUSH_TIMEOUT)).await;
        let gone_ms = core.presence().away().map_or(u64::MAX, |away| away.start_ms);
        give_up_waiting(&core, closed_ms.min(gone_ms));
        let slack = Duration::from_millis(500);
        let deadline = end.deadline.checked_sub(slack).unwrap_or(end.deadline);
        if !children.bridge.ask(Finish { deadline }, deadline + slack / 2).await {
            tracing::warn!(session = %core.slug, "the recogniser did not finish in time");
            give_up_text(&core, &children).await;
        }
    }
    drain_room(&core, &children, end.deadline).await;
    // Another node's log ends by its word; a third party may have said the last one already.
    if core.origin == Origin::Mirror || core.log.is_closed() {
        return;
    }
    let status = match end.then {
        Then::Over => Status::Ended,
        Then::Suspended => Status::Suspended,
        Then::GoesOnElsewhere => return,
    };
    core.announce_status(status, &end.reason);
    drain_room(&core, &children, end.deadline + Duration::from_millis(200)).await;
}

/// No bridge has brought the last text or said that there is none: whatever has no text is announced here.
async fn give_up_text(core: &SessionCore, children: &Children) {
    // It must not take results out of the ledger at the same time.
    children.bridge.retire().await;
    core.ledger().give_up(GapReason::SttUnavailable);
    loop {
        let Some(result) = core.ledger().delivered() else { break };
        core.results.push_unbounded(result);
    }
    core.ledger().report(&core.metrics);
}

/// A room that dies while it drains answers too early: what counts is the empty edge.
async fn drain_room(core: &SessionCore, children: &Children, deadline: Instant) {
    while children.room.ask(Drain, deadline).await && !core.is_room_done() {
        tokio::time::sleep(ASK_AGAIN).await;
    }
}

pub(super) fn push_silence(core: &SessionCore) {
    let chunk_ms = core.config.audio.chunk_ms;
    for _ in 0..CLOSING_SILENCE_MS / chunk_ms {
        let start_ms = core.ledger().end_clock_ms();
        let pcm = Bytes::from(vec![0; chunk_ms as usize * 32]);
        core.push_pcm(PcmChunk { pcm, start_ms, inserted: true, arrived: Instant::now() });
    }
}
