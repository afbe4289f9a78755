//! How patient the controller is, as data, and the account of tries that have failed.

use std::time::Duration;

use tokio::time::Instant;

use crate::actors::supervision::backoff;

/// Between two looks at what is known of every room.
pub const LOOK_INTERVAL: Duration = Duration::from_secs(1);
/// Between two comparisons with what LiveKit lists; all nodes look, at different times.
pub const RECONCILE_INTERVAL: Duration = Duration::from_secs(60);
/// Between two of them while LiveKit does not answer.
pub const RECONCILE_AGAIN: Duration = Duration::from_secs(5);
/// An egress that has not become active after so long is stuck. LiveKit was seen to leave one so for ever.
pub const STARTING_LIMIT: Duration = Duration::from_secs(60);
/// An egress that is active and has never published here is stopped after so long.
pub const FIRST_WORD_LIMIT: Duration = Duration::from_secs(20);
/// One that has published here and does not any more: it tries again by itself for 30 s.
pub const SILENT_LIMIT: Duration = Duration::from_secs(40);
/// One that was told to stop and does not is forgotten.
pub const ENDING_LIMIT: Duration = Duration::from_secs(30);
/// Who was heard for so long is forgiven what was before.
pub const CALM: Duration = Duration::from_secs(60);
/// Pauses between tries: the first, and the longest, to which they double.
pub const FIRST_PAUSE: Duration = Duration::from_secs(1);
pub const MOST_PAUSE: Duration = Duration::from_secs(60);
/// Failures in a row after which it is given up for [`GIVEN_UP_PAUSE`].
pub const MAX_FAILURES: u32 = 8;
pub const GIVEN_UP_PAUSE: Duration = Duration::from_secs(600);
/// After a start, others may have started one at the same moment.
pub const SECOND_LOOKS: [Duration; 2] = [Duration::from_secs(3), Duration::from_secs(10)];
/// Somebody has stopped one of two: if both are gone then, both have been.
pub const SETTLING: Duration = Duration::from_secs(30);
/// A room has ended: its egress may send what it still has.
pub const LAST_WORDS: Duration = Duration::from_secs(10);
/// Longest wait for the recogniser's last finals of a room that has ended.
pub const END_TIMEOUT: Duration = Duration::from_secs(30);

pub const MAX_ROOMS: usize = 10_000;
pub const MAX_PEOPLE: usize = 1000;
pub const MAX_TRACKS: usize = 200;
/// Rooms whose participants are asked for in one comparison.
pub const MAX_ASKED: usize = 200;
/// Names of rooms for which nothing is started that are remembered, each for one log line.
pub const MAX_IGNORED: usize = 1000;

/// Tries of one thing, and when the next one is due.
#[derive(Debug, Clone, Default)]
pub struct Attempts {
    failures: u32,
    pub(super) next: Option<Instant>,
}

impl Attempts {
    pub fn may_try(&self, now: Instant) -> bool {
        self.next.is_none_or(|next| now >= next)
    }

    /// `is_lasting`: somebody has to see to it first. Gives the pause.
    pub fn failed(&mut self, now: Instant, is_lasting: bool) -> Duration {
        let least = if is_lasting { MOST_PAUSE } else { Duration::ZERO };
        let pause = match self.failures + 1 {
            MAX_FAILURES.. => GIVEN_UP_PAUSE,
            _ => backoff(FIRST_PAUSE, MOST_PAUSE, self.failures).max(least),
        };
        self.failures = self.failures.saturating_add(1);
        self.next = Some(now + pause);
        pause
    }

    pub fn failures(&self) -> u32 {
        self.failures
    }

    pub fn is_given_up(&self) -> bool {
        self.failures >= MAX_FAILURES
    }

    pub fn forgive(&mut self) {
        *self = Self::default();
    }
}
