//! What is known of a room's messages, without I/O.

use std::collections::VecDeque;

use chrono::Utc;

use crate::bus::log_server::{Logged, MessageKind, Position};
use crate::bus::wire::LogBatch;
use crate::transcript::Epoch;

#[derive(Default)]
pub(super) struct State {
    pub queue: VecDeque<Step>,
    /// What is after `fed`, up to here, is to be read from the log server.
    pub behind: Option<Position>,
    /// The last message that was dealt with.
    pub fed: Position,
    /// Counts resets.
    pub era: u64,
    /// The greatest that `fed` has been.
    pub seen: Position,
    /// Of the room's latest owner record.
    pub fence: Option<String>,
    /// The difference of the clocks and the shortest way here, in ms.
    pub clock_offset_ms: Option<i64>,
    pub healing: Option<Healing>,
}

/// A mirror lacks entries that have come before.
#[derive(Clone, Copy)]
pub(super) struct Healing {
    pub epoch: Epoch,
    pub expected: u64,
    /// The message that did not follow.
    pub until: Position,
    /// Up to here, everything was dealt with before.
    pub seen: Position,
}

pub(super) enum Step {
    Message(Logged),
    Reset(Position),
}

impl Healing {
    /// Nothing that it lacks is in there.
    pub fn passes_over(&self, batch: &LogBatch, last: u64, position: Position) -> bool {
        position <= self.seen && (batch.epoch != self.epoch || last < self.expected)
    }
}

impl State {
    pub fn has_reset(&self) -> bool {
        self.queue.iter().any(|step| matches!(step, Step::Reset(_)))
    }

    pub fn reset(&mut self, position: Position) {
        let era = self.era + 1;
        let queue = std::mem::take(&mut self.queue);
        *self = Self { queue, fed: position, seen: position, era, ..Self::default() };
    }

    pub fn dealt_with(&mut self, position: Position) {
        self.fed = position;
        self.seen = self.seen.max(position);
        self.healing.take_if(|healing| healing.until <= position);
        self.behind.take_if(|behind| *behind <= position);
    }

    /// A message that was dealt with is read again only where entries are missing.
    pub fn is_healed_by(&self, logged: &Logged) -> bool {
        self.healing.is_some() || logged.position > self.seen
    }

    /// Notes an owner's record. False: the message is by somebody else.
    pub fn is_of_owner(&mut self, logged: &Logged) -> bool {
        let fence = &logged.message.fence;
        if logged.message.kind == MessageKind::Owner {
            self.fence = Some(fence.clone());
            self.clock_offset_ms = None;
        }
        self.may_be_by_owner(logged)
    }

    pub fn may_be_by_owner(&self, logged: &Logged) -> bool {
        self.fence.as_ref().is_none_or(|owner| *owner == logged.message.fence)
    }

    /// How much later our clock is than the sender's. Some messages take longer than others.
    pub fn clock_offset(&mut self, batch: &LogBatch) -> Option<i64> {
        let ms = (Utc::now() - batch.sent_at?).num_milliseconds();
        let least = self.clock_offset_ms.map_or(ms, |before| before.min(ms));
        self.clock_offset_ms = Some(least);
        Some(least)
    }
}

#[cfg(test)]
mod tests {
    use chrono::TimeDelta;

    use super::*;

    #[test]
    fn clocks_are_compared_by_the_message_that_took_least() {
        let json = r#"{"session":"demo","epoch":"00000000-0000-0000-0000-000000000001"}"#;
        let mut batch: LogBatch = serde_json::from_str(json).unwrap();
        let mut state = State::default();
        let offsets = [60_000, 300, 4000].map(|ms| {
            batch.sent_at = Some(Utc::now() - TimeDelta::milliseconds(ms));
            state.clock_offset(&batch).unwrap()
        });
        assert!(offsets[0] >= 60_000 && (300..400).contains(&offsets[1]) && offsets[1] == offsets[2], "{offsets:?}");
    }
}
