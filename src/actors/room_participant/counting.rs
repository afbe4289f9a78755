//! How many reports of speakers are passed on, and in how many rooms our participants are.

use prometheus::IntGauge;
use tokio::time::Instant;

/// Reports that may come at once, and how many more each second.
const BURST: f64 = 400.0;
const REFILL_PER_S: f64 = 200.0;

/// A token bucket: [`BURST`] at once, [`REFILL_PER_S`] a second.
pub(super) struct Gate {
    left: f64,
    last: Instant,
}

impl Gate {
    pub(super) fn new(now: Instant) -> Self {
        Self { left: BURST, last: now }
    }

    /// False when there were too many.
    pub(super) fn admit(&mut self, now: Instant) -> bool {
        let elapsed_s = now.saturating_duration_since(self.last).as_secs_f64();
        self.last = now;
        self.left = (self.left + elapsed_s * REFILL_PER_S).min(BURST);
        let is_admitted = self.left >= 1.0;
        if is_admitted {
            self.left -= 1.0;
        }
        is_admitted
    }
}

/// Counts one until dropped.
pub(super) struct Counted(IntGauge);

impl Counted {
    pub(super) fn new(gauge: &IntGauge) -> Self {
        gauge.inc();
        Self(gauge.clone())
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.0.dec();
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn a_flood_of_reports_is_cut_and_forgiven() {
        let now = Instant::now();
        let mut gate = Gate::new(now);
        assert_eq!((0..5000).filter(|_| gate.admit(now)).count(), 400);
        assert_eq!((0..5000).filter(|_| gate.admit(now + Duration::from_secs(1))).count(), 200);
    }
}
