//! Audio that will never be text: how it comes to be lost, and that each byte of it is counted and announced once.

use std::ops::Range;

use tokio::time::Instant;

use super::clock::BYTES_PER_MS;
use super::{Ledger, LossReason, REMEMBER_MS, bytes};

/// Given up at the old end of a full window, for a connection to get its first acknowledgement: at most this, and a tenth
/// of the window.
const EDGE_MARGIN_MS: u64 = 30_000;
/// Pauses up to this belong to the speech around them, where it is lost.
const PAUSE_MS: u64 = 5_000;

impl Ledger {
    /// After audio fell out of the window: what no recogniser session ever got is lost.
    pub(super) fn count_overflow(&mut self) {
        let start = self.window.start();
        let is_cut = self.cursors.is_cut_by(start);
        if is_cut {
            self.lose_unanswered(self.cursors.trimmed()..start.min(self.cursors.acked()));
        }
        let is_connected = self.session.as_ref().is_some_and(|session| session.connection.count > 0);
        let reason = if is_connected { LossReason::WindowOverflow } else { LossReason::SttUnavailable };
        let lost = self.cursors.overflow(start);
        self.lose(lost, reason);
        if is_cut {
            self.cursors.trim(start);
            self.forget(start.saturating_sub(bytes(REMEMBER_MS)));
        }
    }

    /// A connection begins after an outage that was longer than the window: what would fall out of it before the first
    /// acknowledgement comes is given up now, or every connection would lose audio in the middle of sending it.
    pub(super) fn step_back_from_edge(&mut self) {
        if !self.cursors.leave_edge() {
            return;
        }
        let margin = bytes(EDGE_MARGIN_MS).min((self.window.end() - self.window.start()) / 10) & !1;
        self.window.drop_before(self.window.start() + margin);
        self.count_overflow();
        self.cursors.leave_edge();
    }

    /// Books `span` as lost (it is in no other state any more) and prepares its announcement.
    pub(super) fn lose(&mut self, span: Range<u64>, reason: LossReason) {
        if !span.is_empty() {
            self.counts.lose(reason, span.clone());
            self.announcements.lose(&self.clock, span, reason);
        }
    }

    /// As [`Self::lose`], of audio that was acknowledged; what of it is lost already stays so.
    fn lose_acknowledged(&mut self, span: &Range<u64>, reason_at: impl Fn(u64) -> LossReason) {
        for part in self.counts.lost_spans.missing(span) {
            self.counts.acknowledged -= part.end - part.start;
            let reason = reason_at(part.start);
            self.lose(part, reason);
        }
    }

    /// Why acknowledged audio at `at` is lost when it can be heard nowhere any more.
    fn reason_at(&self) -> impl Fn(u64) -> LossReason + use<> {
        let restored_at = self.cursors.restored_at();
        move |at| if at < restored_at { LossReason::ProcessRestart } else { LossReason::WindowOverflow }
    }

    /// Acknowledged by a session that is gone, and not in the window any more: from the first speech without text on, it
    /// is lost.
    pub(super) fn lose_unheard(&mut self, span: Range<u64>) {
        let delivered = self.coverage.delivered();
        let Some(from) = self.coverage.missing_speech(span.clone(), span.end, delivered) else {
            return;
        };
        let reason = self.reason_at()(from);
        self.lose_acknowledged(&(from..span.end), |_| reason);
    }

    /// The window's limit has pushed `cut` out of it: speech in it that was acknowledged and to which nothing has been said
    /// is lost, with the pauses in between.
    fn lose_unanswered(&mut self, cut: Range<u64>) {
        let mut spans: Vec<Range<u64>> = Vec::new();
        for piece in self.unanswered_pieces(self.cursors.acked()) {
            match spans.last_mut() {
                Some(last) if piece.start <= last.end + bytes(PAUSE_MS) => last.end = piece.end,
                _ => spans.push(piece),
            }
        }
        for span in spans {
            let span = span.start.max(cut.start)..span.end.min(cut.end);
            if !span.is_empty() {
                self.lose_acknowledged(&span, self.reason_at());
            }
        }
    }

    /// What two sessions said about it could not be read. What comes before it is dealt with.
    pub(super) fn lose_unread(&mut self, span: Range<u64>) {
        let start = span.start.max(self.cursors.done()).max(self.cursors.trimmed());
        let span = start..span.end.min(self.cursors.acked());
        if span.is_empty() {
            return;
        }
        tracing::warn!(length_ms = (span.end - span.start) / BYTES_PER_MS, "two sessions said what cannot be read");
        for without_text in self.coverage.delivered().missing(&span) {
            self.lose_acknowledged(&without_text, |_| LossReason::SttUnavailable);
        }
        self.cursors.conclude(span.end);
        self.coverage.conclude(span);
        self.trim();
    }

    /// There will be no more tries: what has no text is lost, and that is said.
    pub fn give_up(&mut self, reason: LossReason) {
        self.abandon_open(u64::MAX);
        self.release_waiting();
        self.drop_waiting_translations();
        let (acked, end) = (self.cursors.acked(), self.cursors.end());
        let from = self.frontier(self.coverage.delivered());
        let is_speech_missing = self.coverage.missing_speech(from..end, end, self.coverage.delivered()).is_some();
        if end > acked || is_speech_missing {
            let from = if is_speech_missing { from.min(acked) } else { acked };
            let missing = |upto: u64| self.counts.lost_spans.missing(&(from..upto));
            let acknowledged: u64 = missing(acked).iter().map(|part| part.end - part.start).sum();
            let lost = missing(end);
            self.counts.acknowledged -= acknowledged;
            for part in lost {
                self.lose(part, reason);
            }
        }
        self.announce_loss();
        self.session = None;
        self.cursors.close();
        self.window.drop_before(end);
        self.verify();
    }

    /// Announces a loss that does not grow any more. (One that does is announced piece by piece.)
    pub fn announce_due(&mut self, now: Instant) {
        self.announcements.announce_due(&self.clock, now);
    }

    pub(super) fn announce_loss(&mut self) {
        self.announcements.announce_loss(&self.clock);
    }
}
