//! How loud decoded audio was, frame by frame, until somebody asks: what is laid beside reports of speakers.

use std::collections::VecDeque;

use super::voice::{FRAME_MS, rms};
use super::{BYTES_PER_SAMPLE, PcmChunk, SAMPLES_PER_MS};

const FRAME_BYTES: usize = (FRAME_MS * SAMPLES_PER_MS) as usize * BYTES_PER_SAMPLE;
/// Frames kept for whoever does not ask: a minute.
const MAX_FRAMES: usize = 3000;
/// Rounding of chunk times does not cut a frame.
const TOLERANCE_MS: u64 = 2;

/// Frames of audio that lie end to end.
#[derive(Debug, Clone, PartialEq)]
pub struct LoudRun {
    /// Session clock of the first.
    pub start_ms: u64,
    /// Their root mean squares.
    pub frames: Vec<f64>,
}

/// The loudness of a session's newest audio.
#[derive(Debug, Default)]
pub struct Loudness {
    runs: VecDeque<LoudRun>,
    frames: usize,
    partial: Vec<u8>,
    /// End of the last chunk.
    end_ms: u64,
}

impl Loudness {
    /// Takes audio of a publisher. Silence that we made says nothing of anybody.
    pub fn push(&mut self, chunk: &PcmChunk) {
        if chunk.inserted {
            return;
        }
        if chunk.start_ms.abs_diff(self.end_ms) > TOLERANCE_MS {
            self.partial.clear();
        }
        let before_ms = self.partial.len() as u64 / (SAMPLES_PER_MS * BYTES_PER_SAMPLE as u64);
        self.end_ms = chunk.start_ms + chunk.pcm.len() as u64 / (SAMPLES_PER_MS * BYTES_PER_SAMPLE as u64);
        self.partial.extend_from_slice(&chunk.pcm);
        let whole = self.partial.len() / FRAME_BYTES * FRAME_BYTES;
        let sample = |bytes: &[u8]| i16::from_le_bytes([bytes[0], bytes[1]]);
        let frame = |bytes: &[u8]| rms(bytes.chunks_exact(BYTES_PER_SAMPLE).map(sample));
        let frames: Vec<f64> = self.partial[..whole].chunks_exact(FRAME_BYTES).map(frame).collect();
        self.partial.drain(..whole);
        if frames.is_empty() {
            return;
        }
        self.frames += frames.len();
        self.runs.push_back(LoudRun { start_ms: chunk.start_ms.saturating_sub(before_ms), frames });
        while self.frames > MAX_FRAMES {
            self.frames -= self.runs.pop_front().map_or(self.frames, |oldest| oldest.frames.len());
        }
    }

    /// Everything since the last call.
    pub fn take(&mut self) -> Vec<LoudRun> {
        self.frames = 0;
        self.runs.drain(..).collect()
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use tokio::time::Instant;

    use super::*;

    fn chunk(start_ms: u64, ms: usize, level: i16) -> PcmChunk {
        let pcm: Vec<u8> = (0..ms * 16).flat_map(|_| level.to_le_bytes()).collect();
        PcmChunk { pcm: Bytes::from(pcm), start_ms, inserted: false, arrived: Instant::now() }
    }

    #[test]
    fn frames_run_on_over_chunks_and_not_over_gaps() {
        let mut loudness = Loudness::default();
        loudness.push(&chunk(100, 50, 7));
        loudness.push(&chunk(150, 50, 7));
        loudness.push(&chunk(1000, 30, 9));
        loudness.push(&PcmChunk { inserted: true, ..chunk(1030, 100, 0) });
        let run = |start_ms, count, level| LoudRun { start_ms, frames: vec![level; count] };
        assert_eq!(loudness.take(), [run(100, 2, 7.0), run(140, 3, 7.0), run(1000, 1, 9.0)]);
        assert_eq!(loudness.take(), []);
    }

    #[test]
    fn nobody_who_asks_costs_a_minute_at_most() {
        let mut loudness = Loudness::default();
        (0..2000).for_each(|n| loudness.push(&chunk(n * 100, 100, 1)));
        assert_eq!(loudness.take().iter().map(|run| run.frames.len()).sum::<usize>(), MAX_FRAMES);
    }
}
