//! Session byte offsets to session clock milliseconds and back.
//!
//! The recogniser hears one continuous stream; the session's clock also counts the time in which nobody published. Where
//! a chunk does not begin where the one before it ended, a new segment begins.

use std::collections::VecDeque;

use serde::{Deserialize, Serialize};

/// PCM16, 16 kHz, mono.
pub const BYTES_PER_MS: u64 = 32;
/// Rounding of chunk times to whole milliseconds does not begin a segment.
const TOLERANCE_MS: u64 = 2;
/// The largest integer that JavaScript holds exactly, as in the wire contract.
const MAX_MS: u64 = (1 << 53) - 1;

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Segment {
    pub offset: u64,
    pub ms: u64,
}

/// Maps byte positions to session time, and back.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Clock {
    segments: VecDeque<Segment>,
    end: u64,
    /// Measures the silence at the end that was put in.
    #[serde(default)]
    silence: u64,
}

impl Clock {
    /// Appends `len` bytes whose first sample is at `start_ms`. Earlier than the end of the audio before, it takes the place
    /// of `inserted` silence (the second that closes a lost publisher's last sentence is sent ahead of its time), or of up
    /// to half of the time since the last jump: what came faster than in real time takes less of it.
    pub fn append(&mut self, start_ms: u64, len: u64, inserted: bool) {
        let expected_ms = self.end_ms(self.end);
        let half_ms = self.segments.back().map_or(0, |last| (self.end - last.offset) / BYTES_PER_MS / 2);
        let earliest_ms = expected_ms.saturating_sub(half_ms.max(self.silence / BYTES_PER_MS));
        let is_back = start_ms + TOLERANCE_MS < expected_ms;
        if self.segments.is_empty() || start_ms > expected_ms + TOLERANCE_MS {
            self.segments.push_back(Segment { offset: self.end, ms: start_ms });
            self.silence = 0;
        } else if is_back && !inserted {
            self.segments.push_back(Segment { offset: self.end, ms: start_ms.max(earliest_ms) });
        }
        self.end += len;
        self.silence = if inserted { self.silence + len } else { 0 };
    }

    /// True for a clock that [`Self::append`] can have made.
    pub fn is_sound(&self) -> bool {
        self.segments.iter().is_sorted_by(|a, b| a.offset <= b.offset && a.ms <= b.ms)
            && self.segments.iter().all(|s| s.offset <= self.end && s.ms <= MAX_MS)
            && self.silence <= self.end
    }

    /// Offset past the last byte.
    pub fn end(&self) -> u64 {
        self.end
    }

    /// Clock of the byte at `offset`.
    pub fn start_ms(&self, offset: u64) -> u64 {
        let n = self.segments.partition_point(|s| s.offset <= offset).max(1) - 1;
        self.in_segment(n, offset)
    }

    /// Clock at the end of the audio before `offset`: at a jump of the clock, its earlier side.
    pub fn end_ms(&self, offset: u64) -> u64 {
        let n = self.segments.partition_point(|s| s.offset < offset).max(1) - 1;
        self.in_segment(n, offset)
    }

    /// Never beyond the next segment: silence that was ahead of its time ends where the audio after it begins.
    fn in_segment(&self, n: usize, offset: u64) -> u64 {
        let ms = self.segments.get(n).map_or(0, |s| s.ms + offset.saturating_sub(s.offset) / BYTES_PER_MS);
        self.segments.get(n + 1).map_or(ms, |next| ms.min(next.ms))
    }

    /// Forgets segments that end at or before `offset`.
    pub fn forget_before(&mut self, offset: u64) {
        while self.segments.get(1).is_some_and(|s| s.offset <= offset) {
            self.segments.pop_front();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_jump_begins_a_segment_and_rounding_does_not() {
        let mut clock = Clock::default();
        clock.append(500, 3200, false);
        clock.append(601, 3200, false);
        clock.append(5000, 3200, false);
        assert_eq!(clock.segments.len(), 2);
        assert_eq!((clock.start_ms(0), clock.end_ms(6400), clock.start_ms(6400)), (500, 700, 5000));
        assert_eq!(clock.end_ms(clock.end()), 5100);
        assert_eq!(clock.start_ms(6400 + 320), 5010);
        clock.forget_before(6400);
        assert_eq!(clock.start_ms(6400), 5000);
    }

    #[test]
    fn audio_takes_the_place_of_silence_that_was_ahead_of_its_time_and_of_nothing_else() {
        let second = 32_000;
        let mut clock = Clock::default();
        clock.append(0, second, false);
        clock.append(1000, second, true);
        clock.append(1250, second, false);
        assert_eq!(
            (clock.end_ms(2 * second), clock.start_ms(2 * second), clock.end_ms(3 * second)),
            (1250, 1250, 2250)
        );
        assert_eq!(clock.start_ms(2 * second - 1920), 1250, "time never runs backwards");
        clock.append(2250, second, true);
        clock.append(1000, second, false);
        assert_eq!(clock.start_ms(4 * second), 2250, "what was heard keeps its time");
        clock.append(3250, second, true);
        clock.append(9000, second, true);
        clock.append(0, second, false);
        assert_eq!(clock.start_ms(7 * second), 9000, "not before the jump");
        assert!(clock.is_sound());
    }

    #[test]
    fn audio_that_comes_faster_than_real_time_takes_less_of_it_and_half_at_least() {
        let second = 32_000;
        let mut clock = Clock::default();
        clock.append(0, second, false);
        clock.append(800, second, false);
        clock.append(1000, second, false);
        assert_eq!([0, 1, 2].map(|n| clock.start_ms(n * second)), [0, 800, 1300]);
        assert_eq!((clock.end_ms(second), clock.end_ms(clock.end())), (800, 2300));
        assert_eq!(clock.start_ms(second - 32), 800, "time never runs backwards");
        assert!(clock.is_sound());
    }
}
