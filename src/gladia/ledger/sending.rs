//! What goes out: recogniser sessions and their connections, the next audio to send, acknowledgements.

use std::ops::Range;
use std::time::Duration;

use bytes::Bytes;
use tokio::time::Instant;

use super::clock::BYTES_PER_MS;
use super::stt_session::SttSession;
use super::text::{FINAL_PATIENCE, Open, Unconfirmed, Verdict};
use super::{LEAD_MS, Ledger, LossReason, REMEMBER_MS, Unanswered, bytes};
use crate::config::Secret;

/// A new session may say words that begin a little before where the old one's text ended.
const BORDER_MS: u64 = 200;

/// So much sound without a word is told to viewers, whatever it was.
const MUCH_SPEECH_MS: u64 = 5_000;
/// So much speech brings text; less may be a cough.
const ENOUGH_SPEECH_MS: u64 = 1_000;
/// Pauses up to this belong to the speech around them, where it is lost.
const PAUSE_MS: u64 = 5_000;

/// The recogniser session that audio goes to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SessionRef {
    /// Counts from 1 within the epoch.
    pub number: u32,
    /// The recogniser's id; no secret.
    pub id: String,
    /// Holds the token.
    pub url: Secret,
    pub began: Instant,
    /// How often it was connected to.
    pub connections: u32,
}

impl Ledger {
    /// A new recogniser session takes over everything that has no final text yet. It says nothing about the rest.
    pub fn begin_session(&mut self, now: Instant, id: String, url: Secret) -> u32 {
        self.drop_session();
        let from = self.frontier(&self.covered);
        self.lose_unheard(from..self.window.start());
        self.open.clear();
        self.discard_held();
        self.suspect = None;
        self.stop_at = None;
        let lead = from.saturating_sub(bytes(LEAD_MS));
        // What is lost is in no other state any more.
        let lost_end = self.counts.lost_spans.within(&(lead..from)).last().map_or(0, |lost| lost.end);
        let base = lead.max(self.window.start()).max(lost_end);
        self.move_acked(base);
        self.sent = base;
        let mut hearing = SttSession::new(self.next_hearing, id, url, base, now);
        hearing.own_from = self.done.max(from.saturating_sub(bytes(BORDER_MS)));
        hearing.excluded = self.covered.clone();
        hearing.excluded.forget_before(base);
        self.hearing = Some(hearing);
        self.next_hearing += 1;
        self.verify();
        self.next_hearing - 1
    }

    /// Acknowledged by a session that is gone, and not in the window any more: from the first speech without text on, it
    /// is lost.
    fn lose_unheard(&mut self, span: Range<u64>) {
        let Some(from) = self.missing_speech(span.clone(), span.end, &self.covered) else {
            return;
        };
        let span = from..span.end;
        let is_old = span.start < self.restored_at;
        let reason = if is_old { LossReason::ProcessRestart } else { LossReason::WindowOverflow };
        for part in self.counts.lost_spans.missing(&span) {
            self.counts.acknowledged -= part.end - part.start;
            self.lose(part, reason);
        }
    }

    /// The window's limit has pushed `cut` out of it: speech in it that was acknowledged and to which nothing has been said
    /// is lost, with the pauses in between.
    pub(super) fn lose_unanswered(&mut self, cut: Range<u64>) {
        let mut spans: Vec<Range<u64>> = Vec::new();
        for piece in self.unanswered_pieces(self.acked) {
            match spans.last_mut() {
                Some(last) if piece.start <= last.end + bytes(PAUSE_MS) => last.end = piece.end,
                _ => spans.push(piece),
            }
        }
        let reason_of =
            |at: u64, old: u64| if at < old { LossReason::ProcessRestart } else { LossReason::WindowOverflow };
        for span in spans {
            let span = span.start.max(cut.start)..span.end.min(cut.end);
            if span.is_empty() {
                continue;
            }
            for part in self.counts.lost_spans.missing(&span) {
                self.counts.acknowledged -= part.end - part.start;
                let reason = reason_of(part.start, self.restored_at);
                self.lose(part, reason);
            }
        }
    }

    /// What two sessions said about it could not be read. What comes before it is dealt with.
    pub(super) fn lose_unread(&mut self, span: Range<u64>) {
        let span = span.start.max(self.done).max(self.trimmed)..span.end.min(self.acked);
        if span.is_empty() {
            return;
        }
        tracing::warn!(length_ms = (span.end - span.start) / BYTES_PER_MS, "two sessions said what cannot be read");
        for untold in self.covered.missing(&span) {
            for part in self.counts.lost_spans.missing(&untold) {
                self.counts.acknowledged -= part.end - part.start;
                self.lose(part, LossReason::SttUnavailable);
            }
        }
        self.covered.insert(span.clone());
        self.committed.insert(span.clone());
        self.done = self.done.max(span.end);
        self.trim();
    }

    /// The cursor goes to `to`, forth (its text is there) or back (to be heard again).
    fn move_acked(&mut self, to: u64) {
        self.counts.acknowledged = (self.counts.acknowledged + to) - self.acked;
        self.acked = to;
    }

    /// A connection to the present session is open (the first, or a resumed one): sending goes on at the last
    /// acknowledged byte.
    pub fn connected(&mut self, now: Instant) {
        if self.hearing.is_some() {
            self.step_back_from_edge();
        }
        self.announce_loss();
        let Some(hearing) = &mut self.hearing else {
            return;
        };
        hearing.connected(self.acked, self.sent);
        if hearing.connection.count > 1 {
            let from = self.suspect.as_ref().map_or_else(|| self.covered.end().unwrap_or(0), |s| s.from);
            // The recogniser may have counted, and answered, more than it acknowledged.
            self.suspect = Some(Unconfirmed { from: from.max(self.done), until: self.sent, since: now });
            self.settle_suspicion();
        }
        self.sent = self.acked;
        self.is_torn = false;
        self.answer = Default::default();
        self.postpone_held(now);
        self.verify();
    }

    /// The present recogniser session, if audio was ever given to one and it is not known to be over.
    pub fn session(&self) -> Option<SessionRef> {
        self.hearing.as_ref().map(|h| SessionRef {
            number: h.number,
            id: h.id.clone(),
            url: h.url.clone(),
            began: h.began,
            connections: h.connection.count,
        })
    }

    /// The present session is of no use any more. Its open utterances are taken back; what it has not made final waits
    /// for [`Self::begin_session`].
    pub fn drop_session(&mut self) {
        self.retract_open();
        self.hearing = None;
        self.stop_at = None;
        self.is_garbled = false;
        self.unplaced.clear();
        self.drop_waiting_translations();
    }

    /// The present session cannot be resumed any more: its byte offsets can no longer be mapped to ours.
    pub fn is_ambiguous(&self) -> bool {
        self.hearing.as_ref().is_some_and(|h| h.is_ambiguous(self.acked, self.sent))
    }

    /// The next audio to send, at most `most` bytes; None when all is sent.
    pub fn next_audio(&mut self, most: usize) -> Option<Bytes> {
        self.hearing.as_ref()?;
        loop {
            let until = self.stop_at.unwrap_or(u64::MAX).min(self.clock.end());
            if self.sent >= until {
                return None;
            }
            match self.window.read(self.sent, most.min((until - self.sent) as usize)) {
                Ok(pcm) => return Some(pcm),
                Err(fault) => {
                    tracing::error!(error = %fault, "replay audio cannot be read back and is lost");
                    self.window.drop_spooled();
                    self.count_overflow();
                }
            }
        }
    }

    /// `len` bytes of [`Self::next_audio`] are on their way.
    pub fn mark_sent(&mut self, now: Instant, len: u64) {
        let span = self.sent..(self.sent + len).min(self.clock.end());
        let is_spoken = self.spoken.overlap(&span) > 0;
        if is_spoken && (!self.answer.is_waiting() || self.unanswered(span.start).is_none()) {
            self.answer.begin(now, span.start);
        }
        let first = self.marks.partition_point(|m| m.end <= span.start);
        for mark in self.marks.iter_mut().skip(first).take_while(|m| m.end <= span.end) {
            mark.sent = Some(now);
        }
        self.counts.send(span.clone());
        self.sent = span.end;
        let old = self.sent.saturating_sub(bytes(REMEMBER_MS));
        while self.marks.front().is_some_and(|m| m.end <= old) {
            self.marks.pop_front();
        }
    }

    /// The recogniser has begun to count anew, as its acknowledgement of `start..end` shows.
    pub fn counts_anew_at(&self, start: u64, end: u64) -> bool {
        self.hearing.as_ref().is_some_and(|hearing| hearing.counts_anew(start, end))
    }

    /// The recogniser acknowledges its bytes `start..end`. True when that is news.
    pub fn acknowledged(&mut self, start: u64, end: u64) -> bool {
        let sent = self.sent;
        let Some(hearing) = &mut self.hearing else {
            return false;
        };
        let doubled_before = hearing.doubled();
        let Some(to) = hearing.acked(start, end, sent) else {
            return false;
        };
        // A recogniser that hears a piece of a word twice does not understand the word.
        let doubled = hearing.doubled();
        self.is_garbled |= doubled != doubled_before && self.spoken.overlap(&doubled) > 0;
        if to > self.acked {
            self.is_at_edge = false;
            self.move_acked(to);
            self.trim();
        }
        true
    }

    /// What was said before its place was known, after an acknowledgement has told.
    pub fn place(&mut self) -> Verdict {
        if self.is_garbled {
            return Verdict::Forgotten;
        }
        let mut verdict = Verdict::Nothing;
        for (now, utc, said) in std::mem::take(&mut self.unplaced) {
            match self.text(now, utc, &said) {
                Verdict::Forgotten => return Verdict::Forgotten,
                Verdict::Nothing => {}
                news => verdict = news,
            }
        }
        verdict
    }

    /// The present session is to end here. It owns the words up to shortly before the end of what was sent, so that it
    /// has heard each of them whole; its successor begins as much before. Nothing more is sent to it.
    pub fn plan_cut(&mut self) {
        let back = self.sent.saturating_sub(bytes(LEAD_MS));
        let until = back.max(self.covered.end().unwrap_or(0)).min(self.sent);
        self.stop_at = Some(self.sent);
        if let Some(hearing) = &mut self.hearing {
            hearing.own_until = Some(until);
        }
    }

    /// The recogniser has ended its session: it has said all there is to say of what it acknowledged, unless a resumed
    /// session has forgotten some.
    pub fn ended(&mut self) -> Verdict {
        self.settle_suspicion();
        let Some(hearing) = &self.hearing else {
            return Verdict::Nothing;
        };
        if self.is_missing_text() || !self.unplaced.is_empty() {
            return Verdict::Forgotten;
        }
        let upto = hearing.own_until.unwrap_or(self.acked).min(self.acked);
        self.abandon_open(u64::MAX);
        self.release_held();
        self.done = self.done.max(upto);
        // What it heard beyond its own part is for the next session.
        self.move_acked(upto.max(self.window.start()));
        self.suspect = None;
        self.hearing = None;
        self.stop_at = None;
        self.drop_waiting_translations();
        self.trim();
        Verdict::Nothing
    }

    /// There will be no more tries: what has no text is lost, and that is said.
    pub fn give_up(&mut self, reason: LossReason) {
        self.abandon_open(u64::MAX);
        self.release_held();
        self.drop_waiting_translations();
        let from = self.frontier(&self.covered);
        let end = self.clock.end();
        let is_speech_missing = self.missing_speech(from..end, end, &self.covered).is_some();
        if end > self.acked || is_speech_missing {
            let from = if is_speech_missing { from.min(self.acked) } else { self.acked };
            let held: u64 = self.counts.lost_spans.missing(&(from..self.acked)).iter().map(|r| r.end - r.start).sum();
            self.counts.acknowledged -= held;
            for part in self.counts.lost_spans.missing(&(from..end)) {
                self.lose(part, reason);
            }
        }
        self.announce_loss();
        self.hearing = None;
        (self.acked, self.sent, self.done, self.trimmed) = (end, end, end, end);
        self.window.drop_before(end);
        self.verify();
    }

    /// True when every byte has been acknowledged and nothing that was said is known to be without text.
    pub fn is_settled(&self) -> bool {
        let end = self.clock.end();
        let is_quiet = self.open.is_empty() && self.held.is_empty() && !self.is_missing_text();
        let untold = self.frontier(&self.covered)..end;
        is_quiet && self.acked == end && self.missing_speech(untold, end, &self.covered).is_none()
    }

    /// There is audio that a recogniser session ought to hear.
    pub fn has_work(&self) -> bool {
        self.clock.end() > self.acked
    }

    /// Some of it was not sent yet.
    pub fn has_unsent(&self) -> bool {
        self.sent < self.stop_at.unwrap_or(u64::MAX).min(self.clock.end())
    }

    /// Sent and not acknowledged.
    pub fn awaits_ack(&self) -> bool {
        self.sent > self.acked
    }

    /// Audio that the recogniser has not acknowledged.
    pub fn backlog_ms(&self) -> u64 {
        self.in_flight_bytes() / BYTES_PER_MS
    }

    /// The present session was told to end ([`Self::plan_cut`]).
    pub fn is_cut(&self) -> bool {
        self.stop_at.is_some()
    }

    /// Audio was lost that the connection was in the middle of: it has to be resumed.
    pub fn is_torn(&self) -> bool {
        self.is_torn
    }

    /// The session that ends now has said nothing to something of its own that may be speech.
    pub fn is_text_missing(&self) -> bool {
        let own_until = self.hearing.as_ref().and_then(|h| h.own_until).unwrap_or(self.acked).min(self.acked);
        self.unanswered(own_until).is_some()
    }

    /// That is so much that two sessions without a word about it prove nothing: it may be music, and the recogniser may be
    /// dead behind a door that still opens and closes. Or there was a guess at it: then it was words.
    pub fn is_much_text_missing(&self) -> bool {
        let is_much = self.unanswered(self.acked).is_some_and(|(_, len)| len >= bytes(MUCH_SPEECH_MS));
        let pieces = self.unanswered_pieces(self.acked);
        let is_guessed = |open: &Open| pieces.iter().any(|piece| piece.start < open.end && open.start < piece.end);
        is_much || self.open.iter().any(is_guessed)
    }

    /// Speech that went out and has had no answer.
    pub fn unanswered_speech(&self) -> Option<Unanswered> {
        let patience = self.limits.max_utterance + FINAL_PATIENCE;
        let (since, sent) = self.answer.since(patience)?;
        let (_, len) = self.unanswered(self.sent)?;
        let audio = Duration::from_millis(self.sent.saturating_sub(sent) / BYTES_PER_MS);
        Some(Unanswered { since, audio, is_enough: len >= bytes(ENOUGH_SPEECH_MS) })
    }
}
