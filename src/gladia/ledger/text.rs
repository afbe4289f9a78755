//! What comes back: interims and finals, mapped to session time, each utterance once and in order.

use std::ops::Range;
use std::time::Duration;

use chrono::{DateTime, Utc};
use tokio::time::Instant;

use super::dedupe::OwnWords;
use super::ranges::Ranges;
use super::stt_session::Recognised;
use super::utterances::WaitingFinal;
use super::{Ledger, bytes};
use crate::transcript::{NumberedVoice, Utterance, Word, clean};

/// Speech that begins before a cut is known as such after so long.
const BEGIN_MS: u64 = 500;
/// After the longest utterance, how long its final may take before a resumed session counts as forgetful.
pub(super) const FINAL_PATIENCE: Duration = Duration::from_secs(5);

/// A final shorter than this has no place of its own, and one that begins so far beyond what was sent lies.
const LEAST_FINAL_S: f64 = 0.02;
const MAX_AHEAD_MS: u64 = 200;

/// The effect of a message of the recogniser.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// A final is on its way to the room, or waits for its turn.
    Taken,
    /// So is a guess.
    Guessed,
    /// Nothing new in it.
    Nothing,
    /// The recogniser has forgotten speech that it acknowledged: a new session has to hear it again.
    Forgotten,
    /// What it said about some speech cannot be read: the same.
    Unreadable,
}

impl Ledger {
    /// Takes an interim or a final of the present session.
    pub fn text(&mut self, now: Instant, utc: DateTime<Utc>, said: &Recognised) -> Verdict {
        let sent = self.cursors.sent();
        self.answer.heard(now, sent, said.is_final);
        let mut said = said.clone();
        if self.session.as_ref().is_some_and(|session| session.is_unplaced(said.end_s)) {
            if said.is_final {
                self.utterances.set_aside((now, utc, said));
            }
            let is_too_much = self.utterances.has_too_many_unplaced();
            return if is_too_much { Verdict::Forgotten } else { Verdict::Nothing };
        }
        let is_timed = self.give_time(&mut said);
        let Some(session) = &self.session else {
            return Verdict::Nothing;
        };
        if session.is_repeated(&mut said, is_timed) {
            let id = session.utterance_id(&said.id);
            if said.is_final {
                self.take_back(&id);
            }
            return Verdict::Nothing;
        }
        let (id, said) = (session.utterance_id(&said.id), &said);
        let (delivered, utterances) = (self.coverage.delivered(), &self.utterances);
        let has_text = |at: u64| delivered.contains(at) || utterances.is_waiting_at(at);
        let kept = session.keep(said, sent, has_text);
        match kept {
            Some(kept) if said.is_final && is_timed && self.counts_anew(said, &kept) => Verdict::Forgotten,
            Some(kept) if said.is_final => self.take_final(now, utc, id, said, kept),
            Some(kept) => self.take_interim(now, utc, id, said, kept),
            None if said.is_final => {
                self.note_final(said);
                self.take_back(&id);
                Verdict::Nothing
            }
            None if said.text.trim().is_empty() => {
                self.take_back(&id);
                Verdict::Nothing
            }
            None => Verdict::Nothing,
        }
    }

    /// A resumed session has a new text for earlier audio that has text, or in which nobody speaks: its times begin at zero
    /// again.
    fn counts_anew(&self, said: &Recognised, kept: &OwnWords) -> bool {
        let span = &kept.span;
        let is_earlier = self.session.as_ref().is_some_and(|session| session.is_before_resume(said.end_s));
        if !is_earlier || span.start < self.cursors.restored_at() {
            return false;
        }
        let with_text = self.coverage.delivered().overlap(span) + self.utterances.waiting_overlap(span);
        with_text * 2 > span.end - span.start || self.coverage.spoken().overlap(span) == 0
    }

    /// Fills in times that nothing tells: those of the first speech that has no text yet. False when it had to.
    fn give_time(&self, said: &mut Recognised) -> bool {
        let Some(session) = &self.session else { return true };
        let sent = self.cursors.sent();
        let is_beyond = session.offset_of(said.start_s) > sent + bytes(MAX_AHEAD_MS);
        let is_point = said.is_final && said.end_s - said.start_s < LEAST_FINAL_S;
        if said.start_s.is_nan() || is_beyond || is_point {
            let speech = self.first_without_text().unwrap_or(sent..sent);
            (said.start_s, said.end_s) = (session.seconds_of(speech.start), session.seconds_of(speech.end));
            return false;
        }
        if said.end_s.is_nan() {
            let start = session.offset_of(said.start_s).min(sent);
            let end = self.coverage.speech_end(start, sent).unwrap_or(sent);
            said.end_s = session.seconds_of(end).max(said.start_s);
            return false;
        }
        true
    }

    /// The first speech that was sent and has no text.
    fn first_without_text(&self) -> Option<Range<u64>> {
        let sent = self.cursors.sent();
        let piece = self.unanswered_pieces(sent).into_iter().next()?;
        let end = self.coverage.speech_end(piece.start, sent).unwrap_or(piece.end);
        Some(piece.start..end.max(piece.end))
    }

    /// A final cannot be read; its times may be known. Another session hears the same; when that one's cannot be read,
    /// either, the audio is lost, and that is said. What only may be a final is one when others follow it.
    pub fn unreadable(&mut self, is_final: bool, start_s: f64, end_s: f64) -> Verdict {
        let Some(session) = &self.session else { return Verdict::Nothing };
        let sent = self.cursors.sent();
        let is_known = end_s - start_s >= LEAST_FINAL_S;
        let span = if is_known { Some(session.range_of(start_s, end_s, sent)) } else { self.first_without_text() };
        let span = span.unwrap_or(sent..sent);
        if is_final {
            return self.unread(span);
        }
        self.utterances.guess_unreadable(span);
        Verdict::Nothing
    }

    fn unread(&mut self, span: Range<u64>) -> Verdict {
        if self.coverage.delivered().missing(&span).is_empty() {
            return Verdict::Nothing;
        }
        if !self.suspicions.is_unread_again(&span) {
            return Verdict::Unreadable;
        }
        self.abandon_open(span.end);
        self.release_waiting();
        self.lose_unread(span);
        Verdict::Nothing
    }

    fn take_interim(
        &mut self,
        now: Instant,
        utc: DateTime<Utc>,
        id: String,
        said: &Recognised,
        kept: OwnWords,
    ) -> Verdict {
        let oldest = self.utterances.guess(&id, kept.span.clone(), said.is_doubtful);
        self.announcements.retract(oldest);
        self.announcements.interim(self.utterance(now, utc, id, said, &kept));
        Verdict::Guessed
    }

    fn take_final(
        &mut self,
        now: Instant,
        utc: DateTime<Utc>,
        id: String,
        said: &Recognised,
        kept: OwnWords,
    ) -> Verdict {
        let is_early = self.utterances.is_preceded(&id, kept.span.start);
        if !is_early && self.is_forgotten_before(kept.span.start) {
            return Verdict::Forgotten;
        }
        self.note_final(said);
        let utterance = self.utterance(now, utc, id, said, &kept);
        self.utterances.finish(now, kept.span, utterance);
        self.release_ripe();
        Verdict::Taken
    }

    /// A final that comes again is no news.
    fn note_final(&mut self, said: &Recognised) {
        if let Some(session) = &mut self.session {
            session.note_final(said);
        }
    }

    /// Recognisers finalise in order: with a final that begins at `at`, speech before it that was sent on an earlier
    /// connection and has no text will get none.
    fn is_forgotten_before(&self, at: u64) -> bool {
        let Some(unconfirmed) = self.suspicions.unconfirmed() else { return false };
        let finals = self.coverage.delivered();
        self.coverage.missing_speech(unconfirmed.from..at, unconfirmed.until, finals).is_some()
    }

    /// Lets time pass: waiting finals, and finals that a resumed session has yet to give. Call while connected; `last_heard` is when
    /// the last message came (a connection that hangs is no reason to give an utterance up).
    pub fn tick(&mut self, now: Instant, last_heard: Instant) -> Verdict {
        if let Some(before) = self.utterances.overdue(now, last_heard) {
            let unconfirmed = self.suspicions.unconfirmed();
            if unconfirmed.is_some_and(|u| self.utterances.is_open_before(before.min(u.until))) {
                return Verdict::Forgotten;
            }
            // The recogniser has gone on without making it final, unless that is what could not be read.
            if let Some(span) = self.utterances.doubtful_before(before)
                && self.unread(span) == Verdict::Unreadable
            {
                return Verdict::Unreadable;
            }
            self.abandon_open(before);
            self.release_ripe();
        }
        self.settle_suspicion();
        let patience = self.limits.max_utterance + FINAL_PATIENCE;
        let is_over = self.suspicions.unconfirmed().is_some_and(|unconfirmed| unconfirmed.is_over(now, patience));
        if is_over && self.is_missing_text() {
            return Verdict::Forgotten;
        }
        if is_over {
            self.suspicions.confirm();
        }
        Verdict::Nothing
    }

    /// Ends the suspicion once all speech in question has its text.
    pub(super) fn settle_suspicion(&mut self) {
        // Speech that had just begun at the cut has to grow before it counts.
        let unconfirmed = self.suspicions.unconfirmed();
        let is_heard = unconfirmed.is_some_and(|u| self.cursors.end() >= u.until + bytes(BEGIN_MS));
        if is_heard && !self.is_missing_text() {
            self.suspicions.confirm();
            self.trim();
        }
    }

    /// Text of audio that the recogniser got on an earlier connection is missing.
    pub(super) fn is_missing_text(&self) -> bool {
        let is_open = |until: u64| self.utterances.is_open_before(until);
        let unconfirmed = self.suspicions.unconfirmed();
        unconfirmed.is_some_and(|u| is_open(u.until)) || self.hole(self.coverage.delivered()).is_some()
    }

    /// Speech up to `upto` and after the last text: where it begins, and how many bytes it is. Recognisers finalise in
    /// order, so what lies before a text is dealt with.
    pub(super) fn unanswered(&self, upto: u64) -> Option<(u64, u64)> {
        let pieces = self.unanswered_pieces(upto).into_iter().filter(|piece| piece.end > self.cursors.trimmed());
        let (first, sum) = pieces.fold((None, 0), |(first, sum), p| (first.or(Some(p.start)), sum + p.end - p.start));
        first.map(|first| (first, sum))
    }

    /// First speech of which a resumed session has yet to give the text.
    pub(super) fn hole(&self, finals: &Ranges) -> Option<u64> {
        let unconfirmed = self.suspicions.unconfirmed()?;
        self.coverage.missing_speech(unconfirmed.from..self.cursors.end(), unconfirmed.until, finals)
    }

    pub(super) fn unanswered_pieces(&self, upto: u64) -> Vec<Range<u64>> {
        let delivered = self.coverage.delivered();
        let from = delivered.end().unwrap_or(0).max(self.cursors.done());
        self.coverage.missing_pieces(from..upto, delivered)
    }

    /// A guess came to nothing: viewers forget it, and what waits for it goes on.
    fn take_back(&mut self, id: &str) {
        self.announcements.retract(self.utterances.close(id));
        self.release_ripe();
    }

    /// Open utterances that begin before `before` will have no final.
    pub(super) fn abandon_open(&mut self, before: u64) {
        self.announcements.retract(self.utterances.abandon(before));
    }

    /// Releases finals that no open utterance precedes.
    fn release_ripe(&mut self) {
        while let Some(ripe) = self.utterances.next_ripe() {
            self.release(ripe);
        }
    }

    pub(super) fn release_waiting(&mut self) {
        for waiting in self.utterances.take_waiting() {
            self.release(waiting);
        }
    }

    /// They will be heard again, after what they waited for.
    pub(super) fn discard_waiting(&mut self) {
        let discarded = self.utterances.take_waiting();
        self.announcements.retract(discarded.into_iter().map(|waiting| waiting.utterance.id));
    }

    fn release(&mut self, waiting: WaitingFinal) {
        let WaitingFinal { span, utterance, .. } = waiting;
        self.coverage.deliver(utterance.id.clone(), span);
        self.translations.final_delivered(&utterance);
        let (id, start_ms, end_ms) = (utterance.id.clone(), utterance.start_ms, utterance.end_ms);
        self.announcements.finished(utterance);
        self.translate_waiting(&id, start_ms, end_ms);
        self.settle_suspicion();
    }

    fn utterance(&self, now: Instant, utc: DateTime<Utc>, id: String, said: &Recognised, kept: &OwnWords) -> Utterance {
        // What has no length of its own is on the earlier side of a jump of the clock.
        let times = |span: &Range<u64>| {
            let end_ms = self.clock.end_ms(span.end);
            (self.clock.start_ms(span.start).min(end_ms), end_ms)
        };
        let words = kept.words.iter().map(|(word, span)| {
            let (start_ms, end_ms) = times(span);
            Word { word: clean::name(&word.word).into_owned(), start_ms, end_ms, confidence: word.confidence }
        });
        let words: Vec<_> = words.collect();
        let timing = self.timings.at(kept.span.end);
        let sent = timing.and_then(|timing| timing.sent);
        let (start_ms, end_ms) = times(&kept.span);
        Utterance {
            id,
            text: kept.text.clone(),
            start_ms,
            end_ms,
            language: said.language.clone(),
            confidence: said.confidence,
            words: (!words.is_empty()).then_some(words),
            voice: said.voice.zip(self.session.as_ref()).map(|(number, s)| NumberedVoice { session: s.number, number }),
            received_at: utc,
            received: now,
            decode_ms: timing.map(|timing| timing.decode_ms),
            stt_ms: sent.map(|at| now.saturating_duration_since(at).as_millis() as u64),
        }
    }
}
