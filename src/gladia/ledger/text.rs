//! What comes back: interims and finals, mapped to session time, each utterance once and in order.

use std::ops::Range;
use std::time::Duration;

use chrono::{DateTime, Utc};
use tokio::time::Instant;

use super::dedupe::OwnWords;
use super::ranges::Ranges;
use super::stt_session::Recognised;
use super::{Ledger, bytes};
use crate::transcript::Word;
use crate::transcript::clean;
use crate::transcript::{TranscriptEvent, Utterance};

/// Longest wait of a final for that of an earlier utterance which is still open.
const HOLD: Duration = Duration::from_secs(2);
/// And how much longer when the recogniser is silent altogether: long enough for a hung connection to be detected.
const HOLD_IN_SILENCE: Duration = Duration::from_secs(8);
/// Sound shorter than this may go without text.
const LEAST_SPEECH_MS: u64 = 180;
/// So may the sound right after a final: recognisers cut words tighter than the speech detector cuts speech.
const TAIL_MS: u64 = 200;
/// Speech that begins before a cut is known as such after so long.
const BEGIN_MS: u64 = 500;
/// After the longest utterance, how long its final may take before a resumed session counts as forgetful.
pub(super) const FINAL_PATIENCE: Duration = Duration::from_secs(5);

/// Utterances that may be open at a time; the oldest is taken back for another one.
const MAX_OPEN: usize = 64;
/// Stands for an utterance that cannot be read; no utterance's id begins so.
const UNREADABLE_ID: &str = "?";
/// Finals whose place is not known yet, at most.
const MAX_UNPLACED: usize = 256;
/// A final shorter than this has no place of its own, and one that begins so far beyond what was sent lies.
const LEAST_FINAL_S: f64 = 0.02;
const MAX_AHEAD_MS: u64 = 200;

/// An utterance with interims and no final.
#[derive(Debug, Clone)]
pub(super) struct Open {
    pub id: String,
    pub start: u64,
    pub end: u64,
    /// It may have been a final.
    pub is_doubtful: bool,
    /// Viewers have seen an interim of it.
    pub is_shown: bool,
}

/// A final that waits for an earlier one.
#[derive(Debug, Clone)]
pub(super) struct WaitingFinal {
    deadline: Instant,
    span: Range<u64>,
    pub utterance: Utterance,
}

/// After a resume: the finals of `from..until` may have been lost with the old connection.
#[derive(Debug, Clone)]
pub(super) struct Unconfirmed {
    pub from: u64,
    pub until: u64,
    pub since: Instant,
}

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
        let sent = self.sent;
        self.answer.heard(now, sent, said.is_final);
        let mut said = said.clone();
        if self.hearing.as_ref().is_some_and(|hearing| hearing.is_unplaced(said.end_s)) {
            if said.is_final {
                self.unplaced.push((now, utc, said));
            }
            return if self.unplaced.len() > MAX_UNPLACED { Verdict::Forgotten } else { Verdict::Nothing };
        }
        let is_timed = self.give_time(&mut said);
        let Some(hearing) = &mut self.hearing else {
            return Verdict::Nothing;
        };
        if hearing.is_repeated(&mut said, is_timed) {
            let id = hearing.utterance_id(&said.id);
            if said.is_final {
                self.close_open(&id, true);
                self.release_ripe();
            }
            return Verdict::Nothing;
        }
        let (id, said) = (hearing.utterance_id(&said.id), &said);
        let (covered, held) = (&self.covered, &self.held);
        let has_text = |at: u64| covered.contains(at) || held.iter().any(|h| h.span.contains(&at));
        let kept = hearing.keep(said, sent, has_text);
        match kept {
            Some(kept) if said.is_final && is_timed && self.counts_anew(said, &kept) => Verdict::Forgotten,
            Some(kept) if said.is_final => self.take_final(now, utc, id, said, kept),
            Some(kept) => self.take_interim(now, utc, id, said, kept),
            None if said.is_final => {
                if let Some(hearing) = &mut self.hearing {
                    hearing.note_final(said);
                }
                self.close_open(&id, true);
                self.release_ripe();
                Verdict::Nothing
            }
            None if said.text.trim().is_empty() => {
                // It takes its guess back.
                self.close_open(&id, true);
                self.release_ripe();
                Verdict::Nothing
            }
            None => Verdict::Nothing,
        }
    }

    /// A resumed session has a new text for earlier audio that has text, or in which nobody speaks: its times begin at zero
    /// again.
    fn counts_anew(&self, said: &Recognised, kept: &OwnWords) -> bool {
        let span = &kept.span;
        let is_earlier = self.hearing.as_ref().is_some_and(|hearing| hearing.is_before_resume(said.end_s));
        if !is_earlier || span.start < self.restored_at {
            return false;
        }
        let held = self.held.iter().map(|h| h.span.end.min(span.end).saturating_sub(h.span.start.max(span.start)));
        let told = self.covered.overlap(span) + held.sum::<u64>();
        told * 2 > span.end - span.start || self.spoken.overlap(span) == 0
    }

    /// Fills in times that nothing tells: those of the first speech that has no text yet. False when it had to.
    fn give_time(&self, said: &mut Recognised) -> bool {
        let Some(hearing) = &self.hearing else { return true };
        let is_beyond = hearing.offset_of(said.start_s) > self.sent + bytes(MAX_AHEAD_MS);
        let is_point = said.is_final && said.end_s - said.start_s < LEAST_FINAL_S;
        if said.start_s.is_nan() || is_beyond || is_point {
            let speech = self.first_untold().unwrap_or(self.sent..self.sent);
            (said.start_s, said.end_s) = (hearing.seconds_of(speech.start), hearing.seconds_of(speech.end));
            return false;
        }
        if said.end_s.is_nan() {
            let start = hearing.offset_of(said.start_s).min(self.sent);
            let end = self.spoken.within(&(start..self.sent)).next().map_or(self.sent, |speech| speech.end);
            said.end_s = hearing.seconds_of(end).max(said.start_s);
            return false;
        }
        true
    }

    /// The first speech that was sent and has no text.
    fn first_untold(&self) -> Option<Range<u64>> {
        let piece = self.unanswered_pieces(self.sent).into_iter().next()?;
        let end = self.spoken.within(&(piece.start..self.sent)).next().map_or(piece.end, |speech| speech.end);
        Some(piece.start..end.max(piece.end))
    }

    /// A final cannot be read; its times may be known. Another session hears the same; when that one's cannot be read,
    /// either, the audio is lost, and that is said. What only may be a final is one when others follow it.
    pub fn unreadable(&mut self, is_final: bool, start_s: f64, end_s: f64) -> Verdict {
        let Some(hearing) = &self.hearing else { return Verdict::Nothing };
        let is_known = end_s - start_s >= LEAST_FINAL_S;
        let span = if is_known { Some(hearing.range_of(start_s, end_s, self.sent)) } else { self.first_untold() };
        let span = span.unwrap_or(self.sent..self.sent);
        if is_final {
            return self.unread(span);
        }
        self.open.retain(|open| open.id != UNREADABLE_ID);
        let (id, start, end) = (UNREADABLE_ID.to_owned(), span.start, span.end);
        self.open.push(Open { id, start, end, is_doubtful: true, is_shown: false });
        Verdict::Nothing
    }

    fn unread(&mut self, span: Range<u64>) -> Verdict {
        if self.covered.missing(&span).is_empty() {
            return Verdict::Nothing;
        }
        let is_second = self.unread.take().is_some_and(|was| was.start < span.end && span.start < was.end);
        if is_second {
            self.abandon_open(span.end);
            self.release_held();
            self.lose_unread(span);
            return Verdict::Nothing;
        }
        self.unread = Some(span);
        Verdict::Unreadable
    }

    fn take_interim(
        &mut self,
        now: Instant,
        utc: DateTime<Utc>,
        id: String,
        said: &Recognised,
        kept: OwnWords,
    ) -> Verdict {
        let (start, end, is_doubtful) = (kept.span.start, kept.span.end, said.is_doubtful);
        let open = Open { id: id.clone(), start, end, is_doubtful, is_shown: true };
        match self.open.iter_mut().find(|o| o.id == id) {
            Some(known) => *known = open,
            None => self.open.push(open),
        }
        if self.open.len() > MAX_OPEN {
            let oldest = self.open[0].id.clone();
            self.close_open(&oldest, true);
        }
        let interim = TranscriptEvent::Interim(self.utterance(now, utc, id.clone(), said, &kept));
        let queued = self.ready.iter_mut().rev().find(|i| matches!(i, TranscriptEvent::Interim(u) if u.id == id));
        match queued {
            Some(queued) => *queued = interim,
            None => self.ready.push_back(interim),
        }
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
        let is_early = self.open.iter().any(|o| o.id != id && o.start < kept.span.start);
        if !is_early && self.is_forgotten_before(kept.span.start) {
            return Verdict::Forgotten;
        }
        if let Some(hearing) = &mut self.hearing {
            hearing.note_final(said);
        }
        self.close_open(&id, false);
        let is_read = |open: &Open| open.start < kept.span.end && kept.span.start < open.end;
        self.open.retain(|open| open.id != UNREADABLE_ID || !is_read(open));
        let utterance = self.utterance(now, utc, id, said, &kept);
        self.held.push(WaitingFinal { deadline: now + HOLD, span: kept.span, utterance });
        self.held.sort_by_key(|h| h.span.start);
        self.release_ripe();
        Verdict::Taken
    }

    /// Recognisers finalise in order: with a final that begins at `at`, speech before it that was sent on an earlier
    /// connection and has no text will get none.
    fn is_forgotten_before(&self, at: u64) -> bool {
        self.suspect.as_ref().is_some_and(|s| self.missing_speech(s.from..at, s.until, &self.covered).is_some())
    }

    /// Lets time pass: held finals, and finals that a resumed session owes. Call while connected; `last_heard` is when
    /// the last message came (a connection that hangs is no reason to give an utterance up).
    pub fn tick(&mut self, now: Instant, last_heard: Instant) -> Verdict {
        let is_due = |held: &&WaitingFinal| held.deadline <= last_heard || held.deadline + HOLD_IN_SILENCE <= now;
        if let Some(first) = self.held.first().filter(is_due) {
            let before = first.span.start;
            let is_suspect = |open: &Open| self.suspect.as_ref().is_some_and(|s| open.start < s.until);
            if self.open.iter().any(|o| o.start < before && is_suspect(o)) {
                return Verdict::Forgotten;
            }
            // The recogniser has gone on without making it final, unless that is what could not be read.
            let doubtful = self.open.iter().find(|o| o.start < before && o.is_doubtful).map(|o| o.start..o.end);
            if let Some(span) = doubtful
                && self.unread(span) == Verdict::Unreadable
            {
                return Verdict::Unreadable;
            }
            self.abandon_open(before);
            self.release_ripe();
        }
        self.settle_suspicion();
        let patience = self.limits.max_utterance + FINAL_PATIENCE;
        let is_over = self.suspect.as_ref().is_some_and(|s| now.saturating_duration_since(s.since) >= patience);
        if is_over && self.is_missing_text() {
            return Verdict::Forgotten;
        }
        if is_over {
            self.suspect = None;
        }
        Verdict::Nothing
    }

    /// Ends the suspicion once all speech in question has its text.
    pub(super) fn settle_suspicion(&mut self) {
        // Speech that had just begun at the cut has to grow before it counts.
        let is_heard = self.suspect.as_ref().is_some_and(|s| self.clock.end() >= s.until + bytes(BEGIN_MS));
        if is_heard && !self.is_missing_text() {
            self.suspect = None;
            self.trim();
        }
    }

    /// The recogniser owes text of audio that it got on an earlier connection.
    pub(super) fn is_missing_text(&self) -> bool {
        let is_open = |until: u64| self.open.iter().any(|o| o.start < until);
        self.suspect.as_ref().is_some_and(|s| is_open(s.until)) || self.hole(&self.covered).is_some()
    }

    /// First speech of some length in `span` that begins before `before` and is not in `finals`.
    pub(super) fn missing_speech(&self, span: Range<u64>, before: u64, finals: &Ranges) -> Option<u64> {
        self.missing_pieces(span, finals).into_iter().map(|piece| piece.start).filter(|start| *start < before).min()
    }

    fn missing_pieces(&self, span: Range<u64>, finals: &Ranges) -> Vec<Range<u64>> {
        if span.is_empty() {
            return Vec::new();
        }
        let missing = self.spoken.within(&span).flat_map(|speech| finals.missing(&speech));
        let pieces = missing.filter_map(|piece| {
            let is_tail = piece.start > 0 && finals.contains(piece.start - 1);
            let start = piece.start + if is_tail { bytes(TAIL_MS) } else { 0 };
            (start + bytes(LEAST_SPEECH_MS) <= piece.end).then_some(start..piece.end)
        });
        pieces.collect()
    }

    /// Speech up to `upto` and after the last text: where it begins, and how many bytes it is. Recognisers finalise in
    /// order, so what lies before a text is dealt with.
    pub(super) fn unanswered(&self, upto: u64) -> Option<(u64, u64)> {
        let pieces = self.unanswered_pieces(upto).into_iter().filter(|piece| piece.end > self.trimmed);
        let (first, sum) = pieces.fold((None, 0), |(first, sum), p| (first.or(Some(p.start)), sum + p.end - p.start));
        first.map(|first| (first, sum))
    }

    /// First speech that a resumed session still owes.
    pub(super) fn hole(&self, finals: &Ranges) -> Option<u64> {
        let suspect = self.suspect.as_ref()?;
        self.missing_speech(suspect.from..self.clock.end(), suspect.until, finals)
    }

    pub(super) fn unanswered_pieces(&self, upto: u64) -> Vec<Range<u64>> {
        let told = self.covered.end().unwrap_or(0).max(self.done);
        self.missing_pieces(told..upto, &self.covered)
    }

    /// Releases finals that no open utterance precedes.
    fn release_ripe(&mut self) {
        while let Some(first) = self.held.first() {
            if self.open.iter().any(|o| o.start < first.span.start) {
                return;
            }
            let first = self.held.remove(0);
            self.release(first);
        }
    }

    pub(super) fn release_held(&mut self) {
        for held in std::mem::take(&mut self.held) {
            self.release(held);
        }
    }

    /// They will be heard again, after what they waited for.
    pub(super) fn discard_held(&mut self) {
        for held in std::mem::take(&mut self.held) {
            self.ready.push_back(TranscriptEvent::Retracted { id: held.utterance.id });
        }
    }

    fn release(&mut self, held: WaitingFinal) {
        let WaitingFinal { span, utterance, .. } = held;
        self.covered.insert(span.clone());
        self.uncommitted.insert(utterance.id.clone(), span);
        self.ready.retain(|i| !matches!(i, TranscriptEvent::Interim(u) if u.id == utterance.id));
        self.final_is_said(&utterance);
        let (id, start_ms, end_ms) = (utterance.id.clone(), utterance.start_ms, utterance.end_ms);
        self.ready.push_back(TranscriptEvent::Final(utterance));
        self.translate_waiting(&id, start_ms, end_ms);
        self.settle_suspicion();
    }

    /// A new connection: what held finals wait for gets its full time again.
    pub(super) fn postpone_held(&mut self, now: Instant) {
        for held in &mut self.held {
            held.deadline = now + HOLD;
        }
    }

    /// Open utterances that begin before `before` will have no final.
    pub(super) fn abandon_open(&mut self, before: u64) {
        let ids: Vec<_> = self.open.iter().filter(|o| o.start < before).map(|o| o.id.clone()).collect();
        for id in ids {
            self.close_open(&id, true);
        }
    }

    /// Viewers forget the open utterances; the ledger still knows where they began.
    pub(super) fn retract_open(&mut self) {
        for open in self.open.iter_mut().filter(|o| o.is_shown) {
            open.is_shown = false;
            self.ready.push_back(TranscriptEvent::Retracted { id: open.id.clone() });
        }
    }

    fn close_open(&mut self, id: &str, retract: bool) {
        let Some(n) = self.open.iter().position(|o| o.id == id) else {
            return;
        };
        let open = self.open.remove(n);
        if retract && open.is_shown {
            self.ready.push_back(TranscriptEvent::Retracted { id: open.id });
        }
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
        let mark = self.marks.get(self.marks.partition_point(|m| m.end < kept.span.end));
        let sent = mark.and_then(|m| m.sent);
        let (start_ms, end_ms) = times(&kept.span);
        Utterance {
            id,
            text: kept.text.clone(),
            start_ms,
            end_ms,
            language: said.language.clone(),
            confidence: said.confidence,
            words: (!words.is_empty()).then_some(words),
            received_at: utc,
            received: now,
            decode_ms: mark.map(|m| m.decode_ms),
            stt_ms: sent.map(|at| now.saturating_duration_since(at).as_millis() as u64),
        }
    }
}
