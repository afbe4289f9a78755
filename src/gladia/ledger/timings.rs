//! When each chunk of audio was decoded and sent, for the latency of the text that ends in it.
//!
//! The invariant: chunks are in the order of their ends.

use std::collections::VecDeque;
use std::ops::Range;

use tokio::time::Instant;

/// The times of a chunk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct ChunkTiming {
    end: u64,
    pub decode_ms: u64,
    pub sent: Option<Instant>,
}

/// The times of the chunks that text may still come for.
#[derive(Debug, Default)]
pub(super) struct ChunkTimings(VecDeque<ChunkTiming>);

impl ChunkTimings {
    /// A chunk that ends at `end` took so long to be decoded.
    pub fn decoded(&mut self, end: u64, decode_ms: u64) {
        self.0.push_back(ChunkTiming { end, decode_ms, sent: None });
    }

    /// The chunks that end within `span` are sent, or sent again.
    pub fn sent(&mut self, now: Instant, span: &Range<u64>) {
        let first = self.0.partition_point(|chunk| chunk.end <= span.start);
        for chunk in self.0.iter_mut().skip(first).take_while(|chunk| chunk.end <= span.end) {
            chunk.sent = Some(now);
        }
    }

    /// The chunk in which text ends that ends at `at`.
    pub fn at(&self, at: u64) -> Option<ChunkTiming> {
        self.0.get(self.0.partition_point(|chunk| chunk.end < at)).copied()
    }

    pub fn forget_before(&mut self, at: u64) {
        while self.0.front().is_some_and(|chunk| chunk.end <= at) {
            self.0.pop_front();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_has_the_times_of_the_chunk_in_which_it_ends() {
        let (mut timings, now) = (ChunkTimings::default(), Instant::now());
        for n in 1..=3 {
            timings.decoded(n * 100, n);
        }
        timings.sent(now, &(100..250));
        let at = |timings: &ChunkTimings, at| timings.at(at).map(|chunk| (chunk.decode_ms, chunk.sent.is_some()));
        assert_eq!(at(&timings, 100), Some((1, false)));
        assert_eq!(at(&timings, 101), Some((2, true)), "a chunk that is not wholly sent is not sent");
        assert_eq!([at(&timings, 201), at(&timings, 301)], [Some((3, false)), None]);
        timings.forget_before(200);
        assert_eq!(at(&timings, 100), Some((3, false)));
    }
}
