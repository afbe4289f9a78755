//! When the waiting rows are written: at so many, or so long after the first of them came, whichever is first.
//!
//! Pure: time is an argument. A timer means nothing but "decide again", so a late one does no harm.

use std::collections::VecDeque;
use std::time::Duration;

use tokio::time::Instant;

/// Times of arrival that are remembered; beyond it the rows are long overdue anyway.
const MAX_ARRIVALS: usize = 1024;

/// Why a batch was begun. The label in metrics.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Trigger {
    Size,
    Timeout,
    Flush,
}

impl Trigger {
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Size => "size",
            Self::Timeout => "timeout",
            Self::Flush => "flush",
        }
    }
}

/// The next step.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Next {
    Write(Trigger),
    WaitUntil(Instant),
    /// Until rows come.
    Idle,
}

/// Decides when pending rows become a batch.
#[derive(Debug)]
pub struct Batching {
    max_rows: u64,
    interval: Duration,
    /// Index of the last row that is there.
    last: u64,
    /// Index of the last row that is in a batch, or was.
    taken: u64,
    /// For rows after `taken`: up to which index they had come, and when.
    arrivals: VecDeque<(u64, Instant)>,
}

impl Batching {
    /// `taken` is the index of the last row that is dealt with.
    pub fn new(max_rows: usize, interval: Duration, taken: u64) -> Self {
        Self { max_rows: max_rows as u64, interval, last: taken, taken, arrivals: VecDeque::new() }
    }

    /// Rows up to index `last` are there.
    pub fn arrived(&mut self, last: u64, now: Instant) {
        if last > self.last {
            self.last = last;
            if self.arrivals.len() < MAX_ARRIVALS {
                self.arrivals.push_back((last, now));
            }
        }
    }

    /// Rows up to index `taken` are in a batch.
    pub fn took(&mut self, taken: u64) {
        self.taken = self.taken.max(taken);
        self.last = self.last.max(self.taken);
        while self.arrivals.front().is_some_and(|(index, _)| *index <= self.taken) {
            self.arrivals.pop_front();
        }
    }

    /// Rows that are in no batch yet.
    pub fn waiting(&self) -> u64 {
        self.last - self.taken
    }

    pub fn next(&self, flushing: bool, now: Instant) -> Next {
        if self.waiting() == 0 {
            return Next::Idle;
        }
        if self.waiting() >= self.max_rows {
            return Next::Write(Trigger::Size);
        }
        if flushing {
            return Next::Write(Trigger::Flush);
        }
        match self.arrivals.front().map(|(_, at)| *at + self.interval) {
            Some(due) if due > now => Next::WaitUntil(due),
            _ => Next::Write(Trigger::Timeout),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const INTERVAL: Duration = Duration::from_millis(300);

    #[tokio::test(start_paused = true)]
    async fn the_interval_counts_from_the_first_row() {
        let mut batching = Batching::new(100, INTERVAL, 0);
        let start = Instant::now();
        assert_eq!(batching.next(false, start), Next::Idle);
        batching.arrived(1, start);
        batching.arrived(2, start + INTERVAL / 2);
        assert_eq!(batching.next(false, start + INTERVAL / 2), Next::WaitUntil(start + INTERVAL));
        assert_eq!(batching.next(false, start + INTERVAL), Next::Write(Trigger::Timeout));
        // A row that came while the batch was on its way waits from its own arrival.
        batching.took(1);
        assert_eq!(batching.next(false, start + INTERVAL), Next::WaitUntil(start + INTERVAL + INTERVAL / 2));
        batching.took(2);
        assert_eq!(batching.next(false, start + INTERVAL * 9), Next::Idle);
    }

    #[tokio::test(start_paused = true)]
    async fn a_full_batch_does_not_wait() {
        let mut batching = Batching::new(100, INTERVAL, 5);
        let now = Instant::now();
        batching.arrived(104, now);
        assert!(matches!(batching.next(false, now), Next::WaitUntil(_)));
        assert_eq!(batching.next(true, now), Next::Write(Trigger::Flush));
        batching.arrived(105, now);
        assert_eq!(batching.next(false, now), Next::Write(Trigger::Size));
        assert_eq!(batching.waiting(), 100);
    }

    #[tokio::test(start_paused = true)]
    async fn a_long_backlog_costs_no_memory_and_is_overdue() {
        let mut batching = Batching::new(1_000_000, INTERVAL, 0);
        let now = Instant::now();
        for index in 1..=10_000 {
            batching.arrived(index, now);
        }
        assert_eq!(batching.arrivals.len(), MAX_ARRIVALS);
        batching.took(9_000);
        assert_eq!((batching.waiting(), batching.next(false, now)), (1000, Next::Write(Trigger::Timeout)));
    }
}
