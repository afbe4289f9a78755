//! Restart budget and exponential back-off. Pure: time is an argument.

use std::collections::VecDeque;
use std::time::Duration;

use tokio::time::Instant;

use super::lifeline::Exit;
use super::policy::{Policy, Restart};

/// Decides what happens after a child has ended.
#[derive(Debug)]
pub struct Restarts {
    policy: Policy,
    recent: VecDeque<Instant>,
    consecutive: u32,
    total: u64,
    last_fault: Option<String>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Decision {
    /// Start it again after the delay.
    Restart(Duration),
    /// It has ended for good, as it should.
    Ended,
    /// The budget is exhausted: the parent's turn.
    Escalate,
}

impl Restarts {
    pub fn new(policy: Policy) -> Self {
        Self { policy, recent: VecDeque::new(), consecutive: 0, total: 0, last_fault: None }
    }

    /// `child_lived` is how long the child that has just ended had been running.
    pub fn decide(&mut self, exit: &Exit, child_lived: Duration, now: Instant) -> Decision {
        if !exit.is_normal() {
            self.last_fault = Some(exit.to_string());
        }
        match self.policy.restart {
            Restart::Temporary => return Decision::Ended,
            Restart::Transient if exit.is_normal() => return Decision::Ended,
            Restart::Transient | Restart::Permanent => {}
        }
        while self.recent.front().is_some_and(|at| now.duration_since(*at) >= self.policy.period) {
            self.recent.pop_front();
        }
        if self.recent.len() >= self.policy.intensity {
            return Decision::Escalate;
        }
        if child_lived >= self.policy.backoff_most * 2 {
            self.consecutive = 0;
        }
        self.recent.push_back(now);
        self.total += 1;
        let delay = backoff(self.policy.backoff_first, self.policy.backoff_most, self.consecutive);
        self.consecutive += 1;
        Decision::Restart(delay)
    }

    /// Forgets past restarts, after an escalation was dealt with.
    pub fn reset(&mut self) {
        self.recent.clear();
    }

    /// No restart within the last `period`.
    pub fn is_calm(&self, now: Instant, period: Duration) -> bool {
        self.recent.back().is_none_or(|at| now.duration_since(*at) >= period)
    }

    pub fn total(&self) -> u64 {
        self.total
    }

    pub fn last_fault(&self) -> Option<&str> {
        self.last_fault.as_deref()
    }
}

/// `first * 2^attempt`, at most `most`.
pub fn backoff(first: Duration, most: Duration, attempt: u32) -> Duration {
    first.saturating_mul(1u32.checked_shl(attempt.min(20)).unwrap_or(u32::MAX)).min(most)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::actors::supervision::ChildKind;

    const SHORT: Duration = Duration::from_millis(10);

    #[tokio::test(start_paused = true)]
    async fn the_budget_allows_its_intensity_within_its_period() {
        let mut restarts = Restarts::new(ChildKind::TranscriptRoom.policy());
        for expected_ms in [100, 200, 400] {
            let decision = restarts.decide(&Exit::Panicked, SHORT, Instant::now());
            assert_eq!(decision, Decision::Restart(Duration::from_millis(expected_ms)));
        }
        assert_eq!(restarts.decide(&Exit::Panicked, SHORT, Instant::now()), Decision::Escalate);
        tokio::time::advance(Duration::from_secs(60)).await;
        assert!(matches!(restarts.decide(&Exit::Panicked, SHORT, Instant::now()), Decision::Restart(_)));
        assert_eq!(restarts.total(), 4);
    }

    #[tokio::test(start_paused = true)]
    async fn a_long_life_resets_the_back_off() {
        let mut restarts = Restarts::new(ChildKind::GladiaBridge.policy());
        for _ in 0..3 {
            restarts.decide(&Exit::Failed("x".into()), SHORT, Instant::now());
        }
        let decision = restarts.decide(&Exit::Failed("x".into()), Duration::from_secs(60), Instant::now());
        assert_eq!(decision, Decision::Restart(Duration::from_millis(100)));
        assert_eq!(restarts.last_fault(), Some("failed: x"));
    }

    #[tokio::test(start_paused = true)]
    async fn kinds_of_restart_follow_otp() {
        let now = Instant::now();
        let mut transient = Restarts::new(ChildKind::FfmpegDecoder.policy());
        assert_eq!(transient.decide(&Exit::Normal, SHORT, now), Decision::Ended);
        assert!(matches!(transient.decide(&Exit::Panicked, SHORT, now), Decision::Restart(_)));
        let mut temporary = Restarts::new(ChildKind::RtmpConnection.policy());
        assert_eq!(temporary.decide(&Exit::Panicked, SHORT, now), Decision::Ended);
        let mut permanent = Restarts::new(ChildKind::BatchWriter.policy());
        assert!(matches!(permanent.decide(&Exit::Normal, SHORT, now), Decision::Restart(_)));
    }

    #[test]
    fn back_off_doubles_up_to_its_limit() {
        let at = |n| backoff(Duration::from_millis(100), Duration::from_secs(5), n).as_millis();
        assert_eq!([at(0), at(1), at(5), at(6), at(60)], [100, 200, 3200, 5000, 5000]);
    }
}
