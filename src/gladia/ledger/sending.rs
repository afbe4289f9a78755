//! What goes out: recogniser sessions and their connections, the next audio to send, acknowledgements.

use std::time::Duration;

use bytes::Bytes;
use tokio::time::Instant;

use super::clock::BYTES_PER_MS;
use super::cursors::Cursors;
use super::stt_session::SttSession;
use super::text::{FINAL_PATIENCE, Verdict};
use super::{LEAD_MS, Ledger, REMEMBER_MS, Unanswered, bytes};
use crate::config::Secret;

/// A new session may say words that begin a little before where the old one's text ended.
const BORDER_MS: u64 = 200;

/// So much sound without a word is announced, whatever it was.
const MUCH_SPEECH_MS: u64 = 5_000;
/// So much speech brings text; less may be a cough.
const ENOUGH_SPEECH_MS: u64 = 1_000;

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
        let from = self.frontier(self.coverage.delivered());
        self.lose_unheard(from..self.window.start());
        self.utterances.forget_open();
        self.discard_waiting();
        self.suspicions.confirm();
        let lead = from.saturating_sub(bytes(LEAD_MS));
        // What is lost is in no other state any more.
        let lost_end = self.counts.lost_spans.within(&(lead..from)).last().map_or(0, |lost| lost.end);
        let base = lead.max(self.window.start()).max(lost_end);
        self.move_acked(|cursors| cursors.begin_at(base));
        let mut session = SttSession::new(self.next_session, id, url, base, now);
        session.own_from = self.cursors.done().max(from.saturating_sub(bytes(BORDER_MS)));
        session.excluded = self.coverage.delivered().clone();
        session.excluded.forget_before(base);
        self.session = Some(session);
        self.next_session += 1;
        self.verify();
        self.next_session - 1
    }

    /// The acknowledged cursor goes forth (its text is there) or back (to be heard again), and its bytes are counted.
    fn move_acked<T>(&mut self, step: impl FnOnce(&mut Cursors) -> T) -> T {
        let from = self.cursors.acked();
        let answer = step(&mut self.cursors);
        self.counts.acknowledged = self.counts.acknowledged + self.cursors.acked() - from;
        answer
    }

    /// A connection to the present session is open (the first, or a resumed one): sending goes on at the last
    /// acknowledged byte.
    pub fn connected(&mut self, now: Instant) {
        if self.session.is_some() {
            self.step_back_from_edge();
        }
        self.announce_loss();
        let Some(session) = &mut self.session else {
            return;
        };
        session.connected(self.cursors.acked(), self.cursors.sent());
        if session.connection.count > 1 {
            let text_end = self.coverage.delivered().end().unwrap_or(0);
            // The recogniser may have counted, and answered, more than it acknowledged.
            self.suspicions.resumed(now, text_end, self.cursors.done(), self.cursors.sent());
            self.settle_suspicion();
        }
        self.cursors.resend();
        self.answer = Default::default();
        self.utterances.postpone(now);
        self.verify();
    }

    /// The present recogniser session, if audio was ever given to one and it is not known to be over.
    pub fn session(&self) -> Option<SessionRef> {
        self.session.as_ref().map(|session| SessionRef {
            number: session.number,
            id: session.id.clone(),
            url: session.url.clone(),
            began: session.began,
            connections: session.connection.count,
        })
    }

    /// The present session is of no use any more. Its open utterances are taken back; what it has not made final waits
    /// for [`Self::begin_session`].
    pub fn drop_session(&mut self) {
        self.announcements.retract(self.utterances.retract());
        self.utterances.take_unplaced();
        self.session = None;
        self.cursors.lift_stop();
        self.drop_waiting_translations();
    }

    /// The present session cannot be resumed any more: its byte offsets can no longer be mapped to ours.
    pub fn is_ambiguous(&self) -> bool {
        self.session.as_ref().is_some_and(|session| session.is_ambiguous(self.cursors.acked(), self.cursors.sent()))
    }

    /// The next audio to send, at most `most` bytes; None when all is sent.
    pub fn next_audio(&mut self, most: usize) -> Option<Bytes> {
        self.session.as_ref()?;
        loop {
            let unsent = self.cursors.unsent();
            if unsent.is_empty() {
                return None;
            }
            match self.window.read(unsent.start, most.min((unsent.end - unsent.start) as usize)) {
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
        let span = self.cursors.send(len);
        let is_spoken = self.coverage.spoken().overlap(&span) > 0;
        if is_spoken && (!self.answer.is_waiting() || self.unanswered(span.start).is_none()) {
            self.answer.begin(now, span.start);
        }
        self.timings.sent(now, &span);
        self.timings.forget_before(span.end.saturating_sub(bytes(REMEMBER_MS)));
        self.counts.send(span);
    }

    /// The recogniser has begun to count anew, as its acknowledgement of `start..end` shows.
    pub fn counts_anew_at(&self, start: u64, end: u64) -> bool {
        self.session.as_ref().is_some_and(|session| session.counts_anew(start, end))
    }

    /// The recogniser acknowledges its bytes `start..end`. True when that is news.
    pub fn acknowledged(&mut self, start: u64, end: u64) -> bool {
        let Some(session) = &mut self.session else {
            return false;
        };
        let doubled_before = session.doubled();
        let Some(to) = session.acked(start, end, self.cursors.sent()) else {
            return false;
        };
        // A recogniser that hears a piece of a word twice does not understand the word.
        let doubled = session.doubled();
        session.heard_twice |= doubled != doubled_before && self.coverage.spoken().overlap(&doubled) > 0;
        if self.move_acked(|cursors| cursors.acknowledge(to)) {
            self.trim();
        }
        true
    }

    /// What was said before its place was known, after an acknowledgement has shown it.
    pub fn place(&mut self) -> Verdict {
        if self.session.as_ref().is_some_and(|session| session.heard_twice) {
            return Verdict::Forgotten;
        }
        let mut verdict = Verdict::Nothing;
        for (now, utc, said) in self.utterances.take_unplaced() {
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
        let sent = self.cursors.sent();
        let back = sent.saturating_sub(bytes(LEAD_MS));
        let until = back.max(self.coverage.delivered().end().unwrap_or(0)).min(sent);
        self.cursors.stop();
        if let Some(session) = &mut self.session {
            session.own_until = Some(until);
        }
    }

    /// The recogniser has ended its session: it has said all there is to say of what it acknowledged, unless a resumed
    /// session has forgotten some.
    pub fn ended(&mut self) -> Verdict {
        self.settle_suspicion();
        if self.session.is_none() {
            return Verdict::Nothing;
        }
        if self.is_missing_text() || self.utterances.has_unplaced() {
            return Verdict::Forgotten;
        }
        let upto = self.own_end();
        self.abandon_open(u64::MAX);
        self.release_waiting();
        self.cursors.conclude(upto);
        // What it heard beyond its own part is for the next session.
        let from = upto.max(self.window.start());
        self.move_acked(|cursors| cursors.step_back(from));
        self.suspicions.confirm();
        self.session = None;
        self.cursors.lift_stop();
        self.drop_waiting_translations();
        self.trim();
        Verdict::Nothing
    }

    /// True when every byte has been acknowledged and nothing that was said is known to be without text.
    pub fn is_settled(&self) -> bool {
        let (delivered, end) = (self.coverage.delivered(), self.cursors.end());
        let is_quiet = self.utterances.is_empty() && !self.is_missing_text();
        let without_text = self.frontier(delivered)..end;
        is_quiet && !self.has_work() && self.coverage.missing_speech(without_text, end, delivered).is_none()
    }

    /// There is audio that a recogniser session ought to hear.
    pub fn has_work(&self) -> bool {
        self.cursors.end() > self.cursors.acked()
    }

    /// Some of it was not sent yet.
    pub fn has_unsent(&self) -> bool {
        !self.cursors.unsent().is_empty()
    }

    /// Sent and not acknowledged.
    pub fn awaits_ack(&self) -> bool {
        self.cursors.sent() > self.cursors.acked()
    }

    /// Audio that the recogniser has not acknowledged.
    pub fn backlog_ms(&self) -> u64 {
        self.in_flight_bytes() / BYTES_PER_MS
    }

    /// The present session was told to end ([`Self::plan_cut`]).
    pub fn is_cut(&self) -> bool {
        self.cursors.is_stopped()
    }

    /// Audio was lost that the connection was in the middle of: it has to be resumed.
    pub fn has_overflowed(&self) -> bool {
        self.cursors.has_overflowed()
    }

    /// The session that ends now has said nothing to something of its own that may be speech.
    pub fn is_text_missing(&self) -> bool {
        self.unanswered(self.own_end()).is_some()
    }

    /// The end of what the present session has acknowledged and is to give text for.
    fn own_end(&self) -> u64 {
        let acked = self.cursors.acked();
        self.session.as_ref().and_then(|session| session.own_until).unwrap_or(acked).min(acked)
    }

    /// That is so much that two sessions without a word about it prove nothing: it may be music, and the recogniser may be
    /// dead behind a door that still opens and closes. Or there was a guess at it: then it was words.
    pub fn is_much_text_missing(&self) -> bool {
        let acked = self.cursors.acked();
        let is_much = self.unanswered(acked).is_some_and(|(_, len)| len >= bytes(MUCH_SPEECH_MS));
        is_much || self.utterances.is_guessed(&self.unanswered_pieces(acked))
    }

    /// Speech that went out and has had no answer.
    pub fn unanswered_speech(&self) -> Option<Unanswered> {
        let patience = self.limits.max_utterance + FINAL_PATIENCE;
        let (since, sent) = self.answer.since(patience)?;
        let (_, len) = self.unanswered(self.cursors.sent())?;
        let audio = Duration::from_millis(self.cursors.sent().saturating_sub(sent) / BYTES_PER_MS);
        Some(Unanswered { since, audio, is_enough: len >= bytes(ENOUGH_SPEECH_MS) })
    }
}
