//! Utterances on their way to the room: open ones, finals that wait for them, and finals whose place is not known.
//!
//! The invariants: an id is open once; waiting finals are in order of their beginnings, and one goes out only when no open
//! utterance precedes it. Whatever takes an open utterance away answers the ids that viewers have to forget.

use std::ops::Range;
use std::time::Duration;

use chrono::{DateTime, Utc};
use tokio::time::Instant;

use super::stt_session::Recognised;
use crate::transcript::Utterance;

/// Longest wait of a final for that of an earlier utterance which is still open.
const HOLD: Duration = Duration::from_secs(2);
/// And how much longer when the recogniser is silent altogether: long enough for a hung connection to be detected.
const HOLD_IN_SILENCE: Duration = Duration::from_secs(8);
/// Utterances that may be open at a time; the oldest is taken back for another one.
const MAX_OPEN: usize = 64;
/// Stands for an utterance that cannot be read; no utterance's id begins so.
const UNREADABLE_ID: &str = "?";
/// Finals whose place is not known yet, at most.
const MAX_UNPLACED: usize = 256;

/// An utterance with interims and no final.
#[derive(Debug, Clone)]
struct Open {
    id: String,
    span: Range<u64>,
    /// It may have been a final.
    is_doubtful: bool,
    /// Viewers have seen an interim of it.
    is_delivered: bool,
}

/// A final that waits for an earlier one.
#[derive(Debug, Clone)]
pub(super) struct WaitingFinal {
    deadline: Instant,
    pub span: Range<u64>,
    pub utterance: Utterance,
}

/// Text that came before the first acknowledgement of its connection, and when it came.
pub(super) type Unplaced = (Instant, DateTime<Utc>, Recognised);

/// What was heard and has not gone to the room as final.
#[derive(Debug, Default)]
pub(super) struct Utterances {
    open: Vec<Open>,
    waiting: Vec<WaitingFinal>,
    unplaced: Vec<Unplaced>,
}

impl Utterances {
    /// Takes a guess. Answers the id of another utterance that is taken back for it.
    pub fn guess(&mut self, id: &str, span: Range<u64>, is_doubtful: bool) -> Option<String> {
        let open = Open { id: id.to_owned(), span, is_doubtful, is_delivered: true };
        match self.open.iter_mut().find(|known| known.id == id) {
            Some(known) => *known = open,
            None => self.open.push(open),
        }
        if self.open.len() <= MAX_OPEN {
            return None;
        }
        let oldest = self.open[0].id.clone();
        self.close(&oldest)
    }

    /// Notes that what was said of `span` cannot be read, and may have been a final.
    pub fn guess_unreadable(&mut self, span: Range<u64>) {
        self.open.retain(|open| open.id != UNREADABLE_ID);
        self.open.push(Open { id: UNREADABLE_ID.to_owned(), span, is_doubtful: true, is_delivered: false });
    }

    /// The utterance is not open any more.
    pub fn close(&mut self, id: &str) -> Option<String> {
        let n = self.open.iter().position(|open| open.id == id)?;
        let open = self.open.remove(n);
        open.is_delivered.then_some(open.id)
    }

    /// Open utterances that begin before `before` will have no final.
    pub fn abandon(&mut self, before: u64) -> Vec<String> {
        let abandoned = self.open.extract_if(.., |open| open.span.start < before);
        abandoned.filter(|open| open.is_delivered).map(|open| open.id).collect()
    }

    /// Viewers forget the open utterances; where they began is still known.
    pub fn retract(&mut self) -> Vec<String> {
        let open = self.open.iter_mut();
        open.filter_map(|open| std::mem::take(&mut open.is_delivered).then(|| open.id.clone())).collect()
    }

    /// None is open any more; viewers know that already.
    pub fn forget_open(&mut self) {
        self.open.clear();
    }

    /// Where the first open utterance begins.
    pub fn first_open(&self) -> Option<u64> {
        self.open.iter().map(|open| open.span.start).min()
    }

    pub fn is_open_before(&self, at: u64) -> bool {
        self.open.iter().any(|open| open.span.start < at)
    }

    /// There is a guess at one of the `pieces`.
    pub fn is_guessed(&self, pieces: &[Range<u64>]) -> bool {
        pieces.iter().any(|piece| self.open.iter().any(|open| overlaps(&open.span, piece)))
    }

    /// An utterance other than `id` that begins before `at` is open.
    pub fn is_preceded(&self, id: &str, at: u64) -> bool {
        self.open.iter().any(|open| open.id != id && open.span.start < at)
    }

    /// The first open utterance before `at` that may have been a final.
    pub fn doubtful_before(&self, at: u64) -> Option<Range<u64>> {
        self.open.iter().find(|open| open.span.start < at && open.is_doubtful).map(|open| open.span.clone())
    }

    /// Takes a final: it is not open any more, and neither is what could not be read of the same audio.
    pub fn finish(&mut self, now: Instant, span: Range<u64>, utterance: Utterance) {
        self.close(&utterance.id);
        self.open.retain(|open| open.id != UNREADABLE_ID || !overlaps(&open.span, &span));
        self.waiting.push(WaitingFinal { deadline: now + HOLD, span, utterance });
        self.waiting.sort_by_key(|waiting| waiting.span.start);
    }

    /// The next final that no open utterance precedes.
    pub fn next_ripe(&mut self) -> Option<WaitingFinal> {
        let first = self.waiting.first()?.span.start;
        (!self.is_open_before(first)).then(|| self.waiting.remove(0))
    }

    /// All waiting finals, whatever precedes them.
    pub fn take_waiting(&mut self) -> Vec<WaitingFinal> {
        std::mem::take(&mut self.waiting)
    }

    /// A new connection: what waiting finals wait for gets its full time again.
    pub fn postpone(&mut self, now: Instant) {
        for waiting in &mut self.waiting {
            waiting.deadline = now + HOLD;
        }
    }

    /// Where the first waiting final begins, when it has waited long enough. A connection that hangs, with nothing heard
    /// since `last_heard`, is no reason to give an utterance up.
    pub fn overdue(&self, now: Instant, last_heard: Instant) -> Option<u64> {
        let first = self.waiting.first()?;
        let is_due = first.deadline <= last_heard || first.deadline + HOLD_IN_SILENCE <= now;
        is_due.then_some(first.span.start)
    }

    /// `at` is in a waiting final.
    pub fn is_waiting_at(&self, at: u64) -> bool {
        self.waiting.iter().any(|waiting| waiting.span.contains(&at))
    }

    pub fn is_waiting(&self, id: &str) -> bool {
        self.waiting.iter().any(|waiting| waiting.utterance.id == id)
    }

    /// How much of `span` is in waiting finals.
    pub fn waiting_overlap(&self, span: &Range<u64>) -> u64 {
        let overlap =
            |waiting: &WaitingFinal| waiting.span.end.min(span.end).saturating_sub(waiting.span.start.max(span.start));
        self.waiting.iter().map(overlap).sum()
    }

    /// True when everything that was heard has gone to the room.
    pub fn is_empty(&self) -> bool {
        self.open.is_empty() && self.waiting.is_empty()
    }

    pub fn set_aside(&mut self, unplaced: Unplaced) {
        self.unplaced.push(unplaced);
    }

    pub fn has_unplaced(&self) -> bool {
        !self.unplaced.is_empty()
    }

    /// More text was set aside than any connection brings before its first acknowledgement.
    pub fn has_too_many_unplaced(&self) -> bool {
        self.unplaced.len() > MAX_UNPLACED
    }

    pub fn take_unplaced(&mut self) -> Vec<Unplaced> {
        std::mem::take(&mut self.unplaced)
    }
}

fn overlaps(one: &Range<u64>, other: &Range<u64>) -> bool {
    one.start < other.end && other.start < one.end
}

#[cfg(test)]
mod tests {
    use super::*;

    fn finish(utterances: &mut Utterances, now: Instant, id: &str, span: Range<u64>) {
        let utterance = Utterance {
            id: id.to_owned(),
            text: id.to_owned(),
            start_ms: 0,
            end_ms: 0,
            language: None,
            confidence: None,
            words: None,
            voice: None,
            received_at: Utc::now(),
            received: now,
            decode_ms: None,
            stt_ms: None,
        };
        utterances.finish(now, span, utterance);
    }

    fn ripe(utterances: &mut Utterances) -> Vec<String> {
        std::iter::from_fn(|| utterances.next_ripe()).map(|ripe| ripe.utterance.id).collect()
    }

    #[test]
    fn finals_go_out_in_order_and_none_before_an_open_utterance() {
        let (mut utterances, now) = (Utterances::default(), Instant::now());
        utterances.guess("b", 100..200, false);
        finish(&mut utterances, now, "d", 300..400);
        finish(&mut utterances, now, "c", 200..300);
        finish(&mut utterances, now, "a", 0..100);
        assert_eq!(ripe(&mut utterances), ["a"]);
        finish(&mut utterances, now, "b", 120..200);
        assert_eq!(ripe(&mut utterances), ["b", "c", "d"]);
        assert!(utterances.is_empty());
    }

    #[test]
    fn what_viewers_have_not_seen_they_need_not_forget() {
        let mut utterances = Utterances::default();
        assert_eq!(utterances.guess("a", 0..10, false), None);
        utterances.guess("b", 20..30, false);
        utterances.guess_unreadable(40..50);
        assert_eq!(utterances.retract(), ["a", "b"]);
        assert_eq!(utterances.retract(), [""; 0], "once is enough");
        utterances.guess("b", 20..35, false);
        assert_eq!(utterances.first_open(), Some(0), "where they began is still known");
        assert_eq!(utterances.abandon(20), [""; 0]);
        assert_eq!(utterances.abandon(u64::MAX), ["b"]);
        assert!(utterances.is_empty());
    }

    #[test]
    fn the_oldest_of_too_many_open_utterances_is_taken_back() {
        let mut utterances = Utterances::default();
        let taken: Vec<_> = (0..66).filter_map(|n| utterances.guess(&n.to_string(), n..n + 1, false)).collect();
        assert_eq!(taken, ["0", "1"]);
        assert_eq!(utterances.guess("65", 70..80, false), None, "one that is known takes no place");
    }

    #[test]
    fn an_unreadable_final_is_doubtful_until_its_audio_has_another() {
        let (mut utterances, now) = (Utterances::default(), Instant::now());
        utterances.guess_unreadable(100..200);
        utterances.guess_unreadable(100..220);
        finish(&mut utterances, now, "b", 220..300);
        assert_eq!(utterances.doubtful_before(220), Some(100..220));
        finish(&mut utterances, now, "a", 150..200);
        assert_eq!(utterances.doubtful_before(220), None);
        assert_eq!(ripe(&mut utterances), ["a", "b"]);
    }

    #[test]
    fn a_final_waits_longer_on_a_connection_that_hangs() {
        let (mut utterances, now) = (Utterances::default(), Instant::now());
        finish(&mut utterances, now, "a", 100..200);
        let after = |s: u64| now + Duration::from_secs(s);
        assert_eq!(utterances.overdue(after(3), now), None);
        assert_eq!(utterances.overdue(after(3), after(2)), Some(100));
        assert_eq!(utterances.overdue(after(10), now), Some(100));
        utterances.postpone(after(10));
        assert_eq!(utterances.overdue(after(11), after(11)), None);
        assert_eq!((utterances.waiting_overlap(&(150..900)), utterances.is_waiting_at(200)), (50, false));
    }
}
