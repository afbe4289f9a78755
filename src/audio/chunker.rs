//! Cuts PCM into chunks whose start is known on the session clock.

use std::collections::VecDeque;

use bytes::{Bytes, BytesMut};
use tokio::time::Instant;

use super::{BYTES_PER_SAMPLE, SAMPLES_PER_MS};
use crate::audio::PcmChunk;

/// Takes samples in order and gives chunks of at most the configured length. A chunk begins at a whole millisecond.
#[derive(Debug)]
pub struct Chunker {
    chunk_samples: u64,
    /// Session clock of the next sample, in samples.
    position: u64,
    partial: BytesMut,
    partial_arrived: Instant,
    ready: VecDeque<PcmChunk>,
    counts: Counts,
}

/// Samples, each counted by its own event.
#[derive(Debug, Default)]
struct Counts {
    heard: u64,
    silent: u64,
    given: u64,
}

impl Chunker {
    pub fn new(chunk_ms: u64) -> Self {
        Self {
            chunk_samples: chunk_ms.max(1) * SAMPLES_PER_MS,
            position: 0,
            partial: BytesMut::new(),
            partial_arrived: Instant::now(),
            ready: VecDeque::new(),
            counts: Counts::default(),
        }
    }

    /// Audio of a publisher: whole samples.
    pub fn audio(&mut self, mut pcm: &[u8], arrived: Instant) {
        self.counts.heard += (pcm.len() / BYTES_PER_SAMPLE) as u64;
        while !pcm.is_empty() {
            if self.partial.is_empty() {
                self.position = self.position.next_multiple_of(SAMPLES_PER_MS);
            }
            let room = self.chunk_samples as usize * BYTES_PER_SAMPLE - self.partial.len();
            let (taken, rest) = pcm.split_at(room.min(pcm.len()));
            self.partial.extend_from_slice(taken);
            self.position += (taken.len() / BYTES_PER_SAMPLE) as u64;
            self.partial_arrived = arrived;
            if taken.len() == room {
                self.flush();
            }
            pcm = rest;
        }
    }

    /// Silence of our making. What precedes it is first filled up to a whole millisecond with it.
    pub fn silence(&mut self, samples: u64, arrived: Instant) {
        let fill = (self.position.next_multiple_of(SAMPLES_PER_MS) - self.position).min(samples);
        self.counts.silent += samples - fill;
        if !self.partial.is_empty() {
            let length = self.partial.len() + fill as usize * BYTES_PER_SAMPLE;
            self.partial.resize(length, 0);
            self.counts.silent += fill;
        }
        self.position += fill;
        self.flush();
        let mut left = samples - fill;
        while left > 0 {
            let count = left.min(self.chunk_samples);
            let pcm = Bytes::from(vec![0; count as usize * BYTES_PER_SAMPLE]);
            let start_ms = self.position / SAMPLES_PER_MS;
            self.ready.push_back(PcmChunk { pcm, start_ms, inserted: true, arrived });
            self.position += count;
            left -= count;
        }
    }

    /// What comes next was heard at `at_ms`, or just after what is out already if that is later.
    pub fn segment(&mut self, at_ms: u64) {
        self.flush();
        self.position = self.position.next_multiple_of(SAMPLES_PER_MS).max(at_ms * SAMPLES_PER_MS);
    }

    /// What comes next takes the place of the last `samples`, in time only: it came sooner than the audio before it is long.
    pub fn back(&mut self, samples: u64) {
        self.flush();
        self.position = self.position.next_multiple_of(SAMPLES_PER_MS).saturating_sub(samples);
    }

    /// Makes a chunk of what is there.
    pub fn flush(&mut self) {
        if self.partial.is_empty() {
            return;
        }
        let pcm = self.partial.split().freeze();
        let start_ms = (self.position - (pcm.len() / BYTES_PER_SAMPLE) as u64) / SAMPLES_PER_MS;
        self.ready.push_back(PcmChunk { pcm, start_ms, inserted: false, arrived: self.partial_arrived });
    }

    /// Session clock of the end of all audio taken, in samples.
    pub fn position(&self) -> u64 {
        self.position
    }

    /// The same in ms, rounded up.
    pub fn end_ms(&self) -> u64 {
        self.position.div_ceil(SAMPLES_PER_MS)
    }

    pub fn front(&self) -> Option<&PcmChunk> {
        self.ready.front()
    }

    pub fn pop(&mut self) {
        if let Some(chunk) = self.ready.pop_front() {
            self.counts.given += (chunk.pcm.len() / BYTES_PER_SAMPLE) as u64;
        }
    }

    /// Samples of publishers that were taken.
    pub fn heard(&self) -> u64 {
        self.counts.heard
    }

    /// The invariant: all that was taken or made is in a chunk, once.
    pub fn check(&self) -> Result<(), String> {
        let bytes = self.partial.len() + self.ready.iter().map(|chunk| chunk.pcm.len()).sum::<usize>();
        let (come, gone) =
            (self.counts.heard + self.counts.silent, self.counts.given + (bytes / BYTES_PER_SAMPLE) as u64);
        if come == gone {
            Ok(())
        } else {
            Err(format!("{come} samples came, and {gone} are in chunks: {:?}", self.counts))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn chunks(chunker: &mut Chunker) -> Vec<(u64, usize, bool)> {
        let mut all = Vec::new();
        while let Some(chunk) = chunker.front() {
            all.push((chunk.start_ms, chunk.pcm.len() / BYTES_PER_SAMPLE, chunk.inserted));
            chunker.pop();
        }
        all
    }

    fn sound(samples: usize) -> Vec<u8> {
        vec![1; samples * BYTES_PER_SAMPLE]
    }

    #[tokio::test]
    async fn chunks_are_full_except_the_last() {
        let mut chunker = Chunker::new(100);
        chunker.segment(500);
        for _ in 0..10 {
            chunker.audio(&sound(341), Instant::now());
        }
        assert_eq!(chunks(&mut chunker), [(500, 1600, false), (600, 1600, false)]);
        chunker.flush();
        assert_eq!(chunks(&mut chunker), [(700, 210, false)]);
        assert_eq!(chunker.end_ms(), 714);
        chunker.audio(&sound(1600), Instant::now());
        assert_eq!(chunks(&mut chunker), [(714, 1600, false)]);
    }

    #[tokio::test]
    async fn silence_is_exact_and_begins_at_a_whole_millisecond() {
        let mut chunker = Chunker::new(100);
        chunker.audio(&sound(1234), Instant::now());
        let gap = 200 * SAMPLES_PER_MS - 1234;
        chunker.silence(gap, Instant::now());
        chunker.audio(&sound(1600), Instant::now());
        let expected = [(0, 1248, false), (78, 1600, true), (178, 352, true), (200, 1600, false)];
        assert_eq!(chunks(&mut chunker), expected);
    }

    #[tokio::test]
    async fn a_segment_never_begins_before_the_end_of_the_last() {
        let mut chunker = Chunker::new(100);
        chunker.segment(1000);
        chunker.audio(&sound(1601), Instant::now());
        chunker.segment(50);
        chunker.audio(&sound(1600), Instant::now());
        assert_eq!(chunks(&mut chunker), [(1000, 1600, false), (1100, 1, false), (1101, 1600, false)]);
    }
}
