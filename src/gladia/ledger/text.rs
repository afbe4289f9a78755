//! What comes back: interims and finals, mapped to session time, each utterance once and in order.

use std::ops::Range;
use std::time::Duration;

use chrono::{DateTime, Utc};
use tokio::time::Instant;

use super::hearing::{Kept, Recognised};
use super::ranges::Ranges;
use super::{Ledger, bytes};
use crate::actors::transcript_room::{RoomInput, Utterance};
use crate::log::Word;
use crate::log::clean;

/// How long a final waits for that of an earlier utterance which is still open.
const HOLD: Duration = Duration::from_secs(2);
/// And how much longer when the recogniser is silent altogether: until a connection that hangs is known to.
const HOLD_IN_SILENCE: Duration = Duration::from_secs(8);
/// Sound shorter than this may go without text.
const LEAST_SPEECH_MS: u64 = 180;
/// So may the sound right after a final: recognisers cut words tighter than the speech detector cuts speech.
const TAIL_MS: u64 = 200;
/// Speech that begins before a cut is known as such after so long.
const BEGIN_MS: u64 = 500;
/// After the longest utterance, how long its final may take before a resumed session counts as forgetful.
const FINAL_PATIENCE: Duration = Duration::from_secs(5);

/// An utterance with interims and no final.
#[derive(Debug, Clone)]
pub(super) struct Open {
    pub id: String,
    pub start: u64,
    /// Viewers have seen an interim of it.
    pub is_shown: bool,
}

/// A final that waits for an earlier one.
#[derive(Debug, Clone)]
pub(super) struct Held {
    deadline: Instant,
    span: Range<u64>,
    utterance: Utterance,
}

/// After a resume: the finals of `from..until` may have been lost with the old connection.
#[derive(Debug, Clone)]
pub(super) struct Suspect {
    pub from: u64,
    pub until: u64,
    pub since: Instant,
}

/// What a message of the recogniser came to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// It is on its way to the room, or waits for its turn.
    Taken,
    /// Nothing new in it.
    Nothing,
    /// The recogniser has forgotten speech that it acknowledged: a new session has to hear it again.
    Forgotten,
}

impl Ledger {
    /// Takes an interim or a final of the present session.
    pub fn text(&mut self, now: Instant, utc: DateTime<Utc>, said: &Recognised) -> Verdict {
        let sent = self.sent;
        let Some(hearing) = &mut self.hearing else {
            return Verdict::Nothing;
        };
        self.answer.since = self.answer.since.map(|_| (now, sent));
        if hearing.is_final(&said.id) {
            return Verdict::Nothing;
        }
        if hearing.is_unplaced(said.end_s) {
            if said.is_final {
                self.unplaced.push((now, utc, said.clone()));
            }
            return Verdict::Nothing;
        }
        let id = hearing.utterance_id(&said.id);
        let (covered, held) = (&self.covered, &self.held);
        let has_text = |at: u64| covered.contains(at) || held.iter().any(|h| h.span.contains(&at));
        let kept = hearing.keep(said, sent, has_text);
        match kept {
            Some(kept) if said.is_final => self.take_final(now, utc, id, said, kept),
            Some(kept) => self.take_interim(now, utc, id, said, kept),
            None if said.is_final => {
                hearing.note_final(&said.id);
                self.close_open(&id, true);
                self.release_ripe();
                Verdict::Nothing
            }
            None => Verdict::Nothing,
        }
    }

    fn take_interim(&mut self, now: Instant, utc: DateTime<Utc>, id: String, said: &Recognised, kept: Kept) -> Verdict {
        match self.open.iter_mut().find(|o| o.id == id) {
            Some(open) => (open.start, open.is_shown) = (kept.span.start, true),
            None => self.open.push(Open { id: id.clone(), start: kept.span.start, is_shown: true }),
        }
        let interim = RoomInput::Interim(self.utterance(now, utc, id.clone(), said, &kept));
        let queued = self.ready.iter_mut().rev().find(|i| matches!(i, RoomInput::Interim(u) if u.id == id));
        match queued {
            Some(queued) => *queued = interim,
            None => self.ready.push_back(interim),
        }
        Verdict::Taken
    }

    fn take_final(&mut self, now: Instant, utc: DateTime<Utc>, id: String, said: &Recognised, kept: Kept) -> Verdict {
        let is_early = self.open.iter().any(|o| o.id != id && o.start < kept.span.start);
        if !is_early && self.is_forgotten_before(kept.span.start) {
            return Verdict::Forgotten;
        }
        if let Some(hearing) = &mut self.hearing {
            hearing.note_final(&said.id);
        }
        self.close_open(&id, false);
        let utterance = self.utterance(now, utc, id, said, &kept);
        self.held.push(Held { deadline: now + HOLD, span: kept.span, utterance });
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
        let is_due = |held: &&Held| held.deadline <= last_heard || held.deadline + HOLD_IN_SILENCE <= now;
        if let Some(first) = self.held.first().filter(is_due) {
            let before = first.span.start;
            let is_suspect = |open: &Open| self.suspect.as_ref().is_some_and(|s| open.start < s.until);
            if self.open.iter().any(|o| o.start < before && is_suspect(o)) {
                return Verdict::Forgotten;
            }
            self.abandon_open(before);
            self.release_ripe();
        }
        self.settle_suspicion();
        let patience = self.limits.max_utterance + FINAL_PATIENCE;
        let is_over = self.suspect.as_ref().is_some_and(|s| now.saturating_duration_since(s.since) >= patience);
        if is_over && self.owes() {
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
        if is_heard && !self.owes() {
            self.suspect = None;
            self.trim();
        }
    }

    /// The recogniser owes text of audio that it got on an earlier connection.
    pub(super) fn owes(&self) -> bool {
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
            self.ready.push_back(RoomInput::Retracted { id: held.utterance.id });
        }
    }

    fn release(&mut self, held: Held) {
        let Held { span, utterance, .. } = held;
        self.covered.insert(span.clone());
        self.uncommitted.insert(utterance.id.clone(), span);
        self.ready.retain(|i| !matches!(i, RoomInput::Interim(u) if u.id == utterance.id));
        self.ready.push_back(RoomInput::Final(utterance));
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
            self.ready.push_back(RoomInput::Retracted { id: open.id.clone() });
        }
    }

    fn close_open(&mut self, id: &str, retract: bool) {
        let Some(n) = self.open.iter().position(|o| o.id == id) else {
            return;
        };
        let open = self.open.remove(n);
        if retract && open.is_shown {
            self.ready.push_back(RoomInput::Retracted { id: open.id });
        }
    }

    fn utterance(&self, now: Instant, utc: DateTime<Utc>, id: String, said: &Recognised, kept: &Kept) -> Utterance {
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
