//! A budget for what somebody else can make us do.

use std::time::Duration;

use tokio::time::Instant;

/// A budget: so many times in a row, and then once in an interval.
#[derive(Debug, Clone, Copy)]
pub struct Allowance {
    burst: u32,
    interval: Duration,
    /// When all of it is there again; None while it is.
    whole_at: Option<Instant>,
}

impl Allowance {
    pub fn new(burst: u32, interval: Duration) -> Self {
        Self { burst: burst.max(1), interval, whole_at: None }
    }

    /// Gives the time of the next one that is allowed: `now` at the earliest.
    pub fn ready_at(&self, now: Instant) -> Instant {
        let ready_at = self.whole_at.and_then(|at| at.checked_sub(self.interval * (self.burst - 1)));
        ready_at.unwrap_or(now).max(now)
    }

    pub fn spend(&mut self, now: Instant) {
        self.whole_at = Some(self.whole_at.map_or(now, |at| at.max(now)) + self.interval);
    }

    /// Spends one, or says that there is none.
    pub fn take(&mut self, now: Instant) -> bool {
        let is_ready = self.ready_at(now) <= now;
        if is_ready {
            self.spend(now);
        }
        is_ready
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn it_allows_its_burst_and_then_one_in_each_interval() {
        let interval = Duration::from_secs(1);
        let mut allowance = Allowance::new(3, interval);
        let begun = Instant::now();
        assert_eq!([(); 5].map(|()| allowance.take(begun)), [true, true, true, false, false]);
        assert_eq!(allowance.ready_at(begun), begun + interval);
        assert!(allowance.take(begun + interval) && !allowance.take(begun + interval));
        let later = begun + interval * 60;
        assert_eq!([(); 4].map(|()| allowance.take(later)), [true, true, true, false], "it is whole again");
    }
}
