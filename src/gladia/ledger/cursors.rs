//! The cursors of a session's audio, as session offsets.
//!
//! The invariant: `trimmed` <= `acked` <= `sent` <= `end`, whatever the methods are given. Audio is *resent* from `acked`,
//! and *trimmed* only where it was acknowledged.

use std::ops::Range;

/// Positions up to which a session's audio is done with, acknowledged and sent.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Cursors {
    /// Everything before is done with.
    trimmed: u64,
    /// Next byte that the recogniser has not acknowledged.
    acked: u64,
    /// Next byte to send.
    sent: u64,
    /// Past the newest byte.
    end: u64,
    /// Everything before was said all there is to say of, by a recogniser session that ended properly.
    done: u64,
    /// Audio before this was an earlier process's and is nowhere any more.
    restored_at: u64,
    /// Where the present recogniser session is to end; nothing past it is sent to it.
    stop_at: Option<u64>,
    /// Audio was lost that the present connection was in the middle of sending.
    has_overflowed: bool,
    /// The window's old end has reached audio that is not acknowledged: with each chunk more of it falls out.
    is_at_edge: bool,
}

impl Cursors {
    /// Those of a process that takes over at `end`: what is before it cannot be sent any more.
    pub fn restored(trimmed: u64, done: u64, end: u64) -> Self {
        let (trimmed, done) = (trimmed.min(end), done.min(end));
        Self { trimmed, done, acked: end, sent: end, end, restored_at: end, ..Self::default() }
    }

    pub fn trimmed(&self) -> u64 {
        self.trimmed
    }

    pub fn acked(&self) -> u64 {
        self.acked
    }

    pub fn sent(&self) -> u64 {
        self.sent
    }

    pub fn end(&self) -> u64 {
        self.end
    }

    pub fn done(&self) -> u64 {
        self.done
    }

    pub fn restored_at(&self) -> u64 {
        self.restored_at
    }

    /// Counts audio that has come in.
    pub fn extend(&mut self, len: u64) {
        self.end += len;
    }

    /// Gives what is to be sent next, as far as the present session may hear it.
    pub fn unsent(&self) -> Range<u64> {
        self.sent..self.stop_at.unwrap_or(u64::MAX).min(self.end).max(self.sent)
    }

    /// Sends `len` bytes; answers which.
    pub fn send(&mut self, len: u64) -> Range<u64> {
        let span = self.sent..self.sent.saturating_add(len).min(self.end);
        self.sent = span.end;
        span
    }

    /// A new connection goes on at the last acknowledged byte.
    pub fn resend(&mut self) {
        self.sent = self.acked;
        self.has_overflowed = false;
    }

    /// Audio up to `to` is acknowledged. True when that is news.
    pub fn acknowledge(&mut self, to: u64) -> bool {
        let to = to.min(self.sent);
        let is_news = to > self.acked;
        if is_news {
            self.acked = to;
            self.is_at_edge = false;
        }
        is_news
    }

    /// A recogniser session begins and hears everything from `base` on.
    pub fn begin_at(&mut self, base: u64) {
        let base = base.clamp(self.trimmed, self.end);
        (self.acked, self.sent) = (base, base);
        self.stop_at = None;
    }

    /// What was acknowledged beyond `to` is for the next session.
    pub fn step_back(&mut self, to: u64) {
        self.acked = to.clamp(self.trimmed, self.acked);
    }

    /// Nothing more is sent to the present session.
    pub fn stop(&mut self) {
        self.stop_at = Some(self.sent);
    }

    pub fn is_stopped(&self) -> bool {
        self.stop_at.is_some()
    }

    pub fn lift_stop(&mut self) {
        self.stop_at = None;
    }

    /// All was said of the audio before `upto`.
    pub fn conclude(&mut self, upto: u64) {
        self.done = self.done.max(upto.min(self.end));
    }

    /// Audio before `to` is not needed any more. True when that is news.
    pub fn trim(&mut self, to: u64) -> bool {
        let to = to.min(self.acked);
        let is_news = to > self.trimmed;
        self.trimmed = self.trimmed.max(to);
        is_news
    }

    /// True when a window that begins at `start` has lost audio that was still of use and was ever there: what a restarted
    /// process has never had cannot fall out of its window.
    pub fn is_cut_by(&self, start: u64) -> bool {
        start > self.trimmed.max(self.restored_at)
    }

    /// The window begins at `start` now. Answers which audio before it nobody has acknowledged.
    pub fn overflow(&mut self, start: u64) -> Range<u64> {
        let lost = self.acked..start.min(self.end).max(self.acked);
        if !lost.is_empty() {
            self.has_overflowed |= self.sent > self.acked;
            self.is_at_edge = true;
            self.acked = lost.end;
            self.sent = self.sent.max(lost.end);
        }
        lost
    }

    /// Audio was lost that the present connection was in the middle of sending.
    pub fn has_overflowed(&self) -> bool {
        self.has_overflowed
    }

    /// The window does not lose audio with each chunk any more. True when it did.
    pub fn leave_edge(&mut self) -> bool {
        std::mem::take(&mut self.is_at_edge)
    }

    /// Nothing of what came so far is sent, or sent again, any more.
    pub fn close(&mut self) {
        let end = self.end;
        (self.trimmed, self.acked, self.sent, self.done) = (end, end, end, end);
    }

    pub fn is_ordered(&self) -> bool {
        [self.trimmed, self.acked, self.sent, self.end].is_sorted() && self.done <= self.end
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[derive(Debug, Clone)]
    enum Op {
        Extend(u64),
        Send(u64),
        Resend,
        Acknowledge(u64),
        Begin(u64),
        StepBack(u64),
        Stop,
        Conclude(u64),
        Trim(u64),
        Overflow(u64),
        Close,
    }

    fn op() -> impl Strategy<Value = Op> {
        let at = || prop_oneof![4 => 0u64..1000, 1 => Just(u64::MAX)];
        prop_oneof![
            (0u64..300).prop_map(Op::Extend),
            at().prop_map(Op::Send),
            Just(Op::Resend),
            at().prop_map(Op::Acknowledge),
            at().prop_map(Op::Begin),
            at().prop_map(Op::StepBack),
            Just(Op::Stop),
            at().prop_map(Op::Conclude),
            at().prop_map(Op::Trim),
            at().prop_map(Op::Overflow),
            Just(Op::Close),
        ]
    }

    proptest! {
        #[test]
        fn they_are_in_order_whatever_they_are_given(ops in prop::collection::vec(op(), 0..60)) {
            let mut cursors = Cursors::restored(5, 900, 100);
            for op in ops {
                let before = cursors.clone();
                match op {
                    Op::Extend(len) => cursors.extend(len),
                    Op::Send(len) => { cursors.send(len); }
                    Op::Resend => cursors.resend(),
                    Op::Acknowledge(to) => { cursors.acknowledge(to); }
                    Op::Begin(base) => cursors.begin_at(base),
                    Op::StepBack(to) => cursors.step_back(to),
                    Op::Stop => cursors.stop(),
                    Op::Conclude(upto) => cursors.conclude(upto),
                    Op::Trim(to) => { cursors.trim(to); }
                    Op::Overflow(start) => {
                        let lost = cursors.overflow(start);
                        prop_assert_eq!((lost.start, lost.end), (before.acked, cursors.acked));
                    }
                    Op::Close => cursors.close(),
                }
                prop_assert!(cursors.is_ordered(), "{before:?} became {cursors:?}");
                prop_assert!(cursors.trimmed >= before.trimmed && cursors.done >= before.done, "they never go back");
            }
        }
    }

    fn sent(len: u64) -> Cursors {
        let mut cursors = Cursors::default();
        cursors.extend(len);
        assert_eq!(cursors.send(u64::MAX), 0..len);
        cursors
    }

    #[test]
    fn an_old_acknowledgement_is_no_news_and_one_of_what_was_never_sent_is_cut() {
        let mut cursors = sent(100);
        cursors.extend(100);
        assert!(cursors.acknowledge(60) && !cursors.acknowledge(60) && !cursors.acknowledge(10));
        assert!(cursors.acknowledge(u64::MAX));
        assert_eq!(cursors.acked(), 100);
        cursors.resend();
        assert_eq!(cursors.unsent(), 100..200);
    }

    #[test]
    fn a_stopped_session_is_sent_nothing_more_until_the_next_begins() {
        let mut cursors = sent(100);
        cursors.stop();
        cursors.extend(50);
        assert!(cursors.unsent().is_empty() && cursors.is_stopped());
        cursors.resend();
        assert_eq!(cursors.unsent(), 0..100, "what it has not acknowledged is still its own");
        cursors.begin_at(80);
        assert_eq!((cursors.unsent(), cursors.is_stopped()), (80..150, false));
    }

    #[test]
    fn only_a_loss_in_the_middle_of_sending_is_an_overflow_of_the_connection() {
        let mut cursors = sent(100);
        cursors.acknowledge(100);
        cursors.extend(100);
        assert_eq!(cursors.overflow(120), 100..120);
        assert!(!cursors.has_overflowed(), "it was never sent");
        cursors.send(30);
        assert_eq!(cursors.overflow(130), 120..130);
        assert!(cursors.has_overflowed());
        cursors.resend();
        assert!(!cursors.has_overflowed());
        assert!(cursors.leave_edge() && !cursors.leave_edge());
    }

    #[test]
    fn a_restarted_process_has_no_window_that_could_lose_what_was_before_it() {
        let mut cursors = Cursors::restored(20, 10, 100);
        assert!(!cursors.is_cut_by(100));
        cursors.extend(50);
        assert!(cursors.is_cut_by(101));
        assert!(!Cursors::default().is_cut_by(0));
    }
}
