//! Timestamps are the clock. This compares a publisher's timestamps with the audio that came, and says where audio is
//! missing, where there is too much of it, and where the timestamps began anew.

use super::SAMPLES_PER_MS;

/// A jump between two tags that is no gap: encoders round and jitter.
const GAP_MS: u64 = 60;
/// Beyond it, the publisher paused or began anew: no silence is made for it.
const LONG_GAP_MS: u64 = 2000;
/// Timestamps may step back so far by jitter.
const BACKWARDS_MS: u64 = 100;
/// How far audio and timestamps may drift apart.
const DRIFT_MS: u64 = 100;

/// What has to happen before a tag's audio.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Before {
    Nothing,
    /// So many samples of silence belong here.
    Silence(u64),
    /// So many samples of the tag are too much.
    Skip(u64),
    /// The timestamps tell nothing about the distance to the tag before.
    Segment,
}

/// The clock of one decoder run. All lengths in samples of the output.
#[derive(Debug, Default)]
pub struct Clock {
    last: Option<Last>,
}

#[derive(Debug, Clone, Copy)]
struct Last {
    timestamp_ms: u64,
    /// Where its audio begins, on the decoder's own count.
    decoded: u64,
    /// The same two of the segment's first tag.
    first_timestamp_ms: u64,
    first_decoded: u64,
    /// Silence inserted less samples skipped in the segment.
    shift: i64,
}

impl Clock {
    /// The next tag: its timestamp, where its audio begins on the decoder's own count, and its length.
    pub fn accept(&mut self, timestamp_ms: u64, decoded: u64, length: u64) -> Before {
        let before = self.last.map_or(Before::Segment, |last| last.judge(timestamp_ms, decoded, length));
        let new = Last { timestamp_ms, decoded, first_timestamp_ms: timestamp_ms, first_decoded: decoded, shift: 0 };
        let last = self.last.get_or_insert(new);
        (last.timestamp_ms, last.decoded) = (timestamp_ms, decoded);
        match before {
            Before::Nothing => {}
            Before::Silence(samples) => last.shift += samples as i64,
            Before::Skip(samples) => last.shift -= samples as i64,
            Before::Segment => *last = new,
        }
        before
    }

    pub fn last_timestamp_ms(&self) -> Option<u64> {
        self.last.map(|last| last.timestamp_ms)
    }
}

impl Last {
    fn judge(&self, timestamp_ms: u64, decoded: u64, length: u64) -> Before {
        if timestamp_ms + BACKWARDS_MS < self.timestamp_ms || timestamp_ms < self.first_timestamp_ms {
            return Before::Segment;
        }
        // What the timestamps say less what was heard, since the last tag and since the segment's begin.
        let step = samples(timestamp_ms) - samples(self.timestamp_ms) - (decoded - self.decoded) as i64;
        let heard = (decoded - self.first_decoded) as i64 + self.shift;
        let missing = samples(timestamp_ms) - samples(self.first_timestamp_ms) - heard;
        if step > samples(LONG_GAP_MS) {
            Before::Segment
        } else if missing > 0 && (step >= samples(GAP_MS) || missing > samples(DRIFT_MS)) {
            Before::Silence(missing as u64)
        } else if missing < -samples(DRIFT_MS) {
            Before::Skip(length)
        } else {
            Before::Nothing
        }
    }
}

fn samples(ms: u64) -> i64 {
    (ms * SAMPLES_PER_MS) as i64
}

#[cfg(test)]
mod tests {
    use super::*;

    const FRAME: u64 = 320;
    const FRAME_MS: u64 = 20;

    /// Feeds tags of 20 ms with these timestamps and gives what was not plain.
    fn judge(timestamps: impl IntoIterator<Item = u64>) -> Vec<(u64, Before)> {
        let mut clock = Clock::default();
        let mut decoded = 0;
        let mut notable = Vec::new();
        for timestamp_ms in timestamps {
            let before = clock.accept(timestamp_ms, decoded, FRAME);
            decoded += FRAME;
            if before != Before::Nothing {
                notable.push((timestamp_ms, before));
            }
        }
        notable
    }

    fn steady(from: u64, count: u64) -> impl Iterator<Item = u64> {
        (0..count).map(move |n| from + n * FRAME_MS)
    }

    #[test]
    fn rounding_and_jitter_are_nothing() {
        let jitter = steady(1000, 500).enumerate().map(|(n, t)| t + [0, 7, 40, 3][n % 4]);
        assert_eq!(judge(jitter), [(1000, Before::Segment)]);
    }

    #[test]
    fn a_gap_is_filled_to_its_exact_length_and_only_once() {
        let stream = steady(0, 10).chain(steady(200 + 60, 10)).chain(steady(460 + 2000, 10));
        let filled = [(0, Before::Segment), (260, Before::Silence(60 * 16)), (2460, Before::Silence(2000 * 16))];
        assert_eq!(judge(stream), filled);
    }

    #[test]
    fn a_long_gap_or_a_step_back_begins_a_segment() {
        let stream = steady(5000, 10).chain(steady(5200 + 2001, 10)).chain(steady(100, 10));
        assert_eq!(judge(stream), [(5000, Before::Segment), (7201, Before::Segment), (100, Before::Segment)]);
    }

    #[test]
    fn drift_is_corrected_in_both_directions() {
        let slow = (0..1000).map(|n| n * 21);
        let made: u64 = judge(slow).iter().map(|(_, b)| if let Before::Silence(n) = b { *n } else { 0 }).sum();
        assert!((900 * 16..=1000 * 16).contains(&made), "{made}");
        let fast = (0..1000).map(|n| n * 19);
        let skipped: u64 = judge(fast).iter().map(|(_, b)| if let Before::Skip(n) = b { *n } else { 0 }).sum();
        assert!((880 * 16..=1000 * 16).contains(&skipped), "{skipped}");
    }
}
