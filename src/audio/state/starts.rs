//! Decoders of a stream: how many may be started, and how many may die over the same tags. It outlives the actor that
//! starts them.

use std::time::Duration;

use tokio::time::Instant;

use crate::allowance::Allowance;

/// Decoders in a row, and then one in an interval: a publisher whose codec or configuration changes with every tag would
/// have a process started for each.
const START_BURST: u32 = 10;
const START_INTERVAL: Duration = Duration::from_secs(1);
/// Decoders that may die over the same tags before these are given up.
const MAX_DEATHS: u32 = 3;

/// The budget of decoders.
#[derive(Debug)]
pub(super) struct Starts {
    budget: Allowance,
    /// Decoders that died without bringing anything.
    deaths: u32,
}

impl Default for Starts {
    fn default() -> Self {
        Self { budget: Allowance::new(START_BURST, START_INTERVAL), deaths: 0 }
    }
}

impl Starts {
    /// When another may be started: `now` at the earliest.
    pub fn ready_at(&self, now: Instant) -> Instant {
        self.budget.ready_at(now)
    }

    pub fn spend(&mut self, now: Instant) {
        self.budget.spend(now);
    }

    /// A decoder died; true when it was the last that may over the same tags.
    pub fn died(&mut self) -> bool {
        self.deaths += 1;
        self.deaths >= MAX_DEATHS
    }

    /// The tags that decoders died over are out or given up.
    pub fn progress(&mut self) {
        self.deaths = 0;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_third_death_in_a_row_is_the_last() {
        let mut starts = Starts::default();
        assert_eq!([starts.died(), starts.died()], [false, false]);
        starts.progress();
        assert_eq!([starts.died(), starts.died(), starts.died()], [false, false, true]);
    }

    #[tokio::test]
    async fn the_eleventh_start_waits_a_second() {
        tokio::time::pause();
        let (mut starts, now) = (Starts::default(), Instant::now());
        for _ in 0..START_BURST {
            assert_eq!(starts.ready_at(now), now);
            starts.spend(now);
        }
        assert_eq!(starts.ready_at(now), now + START_INTERVAL);
    }
}
