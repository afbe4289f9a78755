//! The recogniser's status for viewers: each state is published once, and only if it lasts.

use std::time::Duration;

use tokio::time::Instant;

use super::policy::Allowance;

use crate::transcript::Status;

/// A status with its machine-readable reason.
pub type ReasonedStatus = (Status, &'static str);

/// The recogniser's status for viewers, without flicker.
#[derive(Debug)]
pub struct StatusTracker {
    settle: Duration,
    published: Option<ReasonedStatus>,
    next: Option<(ReasonedStatus, Instant)>,
    changes: Allowance,
}

impl StatusTracker {
    /// A state shorter than `settle` is not published, except that speech without answer has lasted long enough already.
    /// `published` is the last one; a change that is not allowed yet is published later, if it lasts.
    pub fn new(settle: Duration, published: Option<ReasonedStatus>, changes: Allowance) -> Self {
        Self { settle, published, next: None, changes }
    }

    pub fn published(&self) -> Option<ReasonedStatus> {
        self.published
    }

    /// The present state, None when there is nothing to say. Answers a change that is to be published.
    pub fn update(&mut self, now: Instant, state: Option<ReasonedStatus>) -> Option<ReasonedStatus> {
        let Some(state) = state.filter(|s| self.published.map(|was| was.0) != Some(s.0) || self.is_new_reason(*s))
        else {
            self.next = None;
            return None;
        };
        let since = match self.next {
            Some((next, since)) if next == state => since,
            _ => now,
        };
        self.next = Some((state, since));
        let is_at_once = state.0 == Status::Stalled || (self.published.is_none() && state.0 == Status::Live);
        if !is_at_once && now.saturating_duration_since(since) < self.settle {
            return None;
        }
        if !self.changes.take(now) {
            return None;
        }
        self.next = None;
        self.published = Some(state);
        Some(state)
    }

    /// Why it is live or catching up is of no interest.
    fn is_new_reason(&self, state: ReasonedStatus) -> bool {
        let is_fault = !matches!(state.0, Status::Live | Status::CatchingUp);
        is_fault && self.published.is_some_and(|was| was.1 != state.1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIVE: ReasonedStatus = (Status::Live, "recogniser_connected");
    const DOWN: ReasonedStatus = (Status::Reconnecting, "network");
    const PAY: ReasonedStatus = (Status::Degraded, "payment_required");

    #[test]
    fn a_recogniser_that_comes_and_goes_does_not_fill_the_log() {
        let start = Instant::now();
        let mut tracker = StatusTracker::new(Duration::ZERO, None, Allowance::new(3, Duration::from_secs(10)));
        let states = (0..600u64).map(|s| (s, if s % 2 == 0 { LIVE } else { DOWN }));
        let changes = states.filter_map(|(s, state)| tracker.update(start + Duration::from_secs(s), Some(state)));
        assert_eq!(changes.count(), 62);
    }

    #[test]
    fn each_state_is_published_once_and_short_ones_not_at_all() {
        let start = Instant::now();
        let mut tracker = StatusTracker::new(Duration::from_secs(1), None, Allowance::new(100, Duration::ZERO));
        let mut changes = Vec::new();
        let states = [(0, LIVE), (500, LIVE), (600, DOWN), (1500, DOWN), (1550, LIVE), (3000, DOWN), (3900, DOWN)];
        let more = [(4000, DOWN), (4500, DOWN), (4600, PAY), (5600, PAY), (6000, PAY), (6100, LIVE), (7100, LIVE)];
        for (ms, state) in states.into_iter().chain(more) {
            changes.extend(tracker.update(start + Duration::from_millis(ms), Some(state)).map(|s| (ms, s)));
        }
        assert_eq!(changes, [(0, LIVE), (4000, DOWN), (5600, PAY), (7100, LIVE)]);
    }

    #[test]
    fn a_stall_is_published_at_once_and_nothing_to_say_says_nothing() {
        let now = Instant::now();
        let mut tracker = StatusTracker::new(Duration::from_secs(1), None, Allowance::new(100, Duration::ZERO));
        let stalled = (Status::Stalled, "stt_stalled");
        assert_eq!(tracker.update(now, Some(stalled)), Some(stalled));
        assert_eq!(tracker.update(now, None), None);
        assert_eq!(tracker.update(now, Some(stalled)), None);
    }
}
