//! PCM that is out, and the account of every sample that came out of a decoder.
//!
//! The invariant ([`Output::check`]): every sample that a decoder brought is in exactly one chunk, or was so before, since a
//! decoder repeats what warms it up.

use tokio::time::Instant;

use crate::audio::chunker::Chunker;
use crate::audio::{BYTES_PER_SAMPLE, PcmChunk};

/// The end of PCM that is out, and the chunks that nobody has taken yet.
#[derive(Debug)]
pub(super) struct Output {
    chunker: Chunker,
    /// On the decoders' count: samples since the session began.
    end: u64,
    /// Of the present decoder: samples that were out before and that it has still to bring.
    repeated: u64,
    counts: Counts,
}

/// Counts of what came out of decoders, in samples.
#[derive(Debug, Default)]
struct Counts {
    decoded: u64,
    /// Out before, by a decoder's predecessor.
    repeated: u64,
    /// Silence in the place of frames at the end that brought nothing.
    padded: u64,
}

impl Output {
    pub fn new(chunk_ms: u64) -> Self {
        Self { chunker: Chunker::new(chunk_ms), end: 0, repeated: 0, counts: Counts::default() }
    }

    /// End of what is out, on the decoders' count.
    pub fn end(&self) -> u64 {
        self.end
    }

    /// End of what is out, on the session clock.
    pub fn end_ms(&self) -> u64 {
        self.chunker.end_ms()
    }

    /// End of what is out, on the session clock in samples.
    pub fn position(&self) -> u64 {
        self.chunker.position()
    }

    /// A decoder begins whose first sample belongs here.
    pub fn decoder_begins(&mut self, starts: u64) {
        self.repeated = self.end.saturating_sub(starts);
    }

    /// The present decoder brings nothing more.
    pub fn decoder_ended(&mut self) {
        self.repeated = 0;
    }

    /// The present decoder brings so many samples again.
    pub fn repeats(&mut self, samples: u64) {
        self.repeated += samples;
    }

    /// Takes the part of the decoder's next samples that was out before; gives how many.
    pub fn pass_over(&mut self, samples: u64) -> u64 {
        let repeated = self.repeated.min(samples);
        self.repeated -= repeated;
        repeated
    }

    /// A decoder has brought so much.
    pub fn decoded(&mut self, pcm: &[u8]) {
        self.counts.decoded += samples(pcm);
    }

    /// The part of a decoder's next audio that was not out before.
    pub fn unheard<'a>(&mut self, pcm: &'a [u8]) -> &'a [u8] {
        let repeated = self.pass_over(samples(pcm));
        self.counts.repeated += repeated;
        &pcm[repeated as usize * BYTES_PER_SAMPLE..]
    }

    /// Puts out as much as belongs before `until`, and gives the rest.
    pub fn audio<'a>(&mut self, pcm: &'a [u8], until: u64, arrived: Instant) -> &'a [u8] {
        let room = until.saturating_sub(self.end) as usize * BYTES_PER_SAMPLE;
        let (now, later) = pcm.split_at(room.min(pcm.len()));
        self.chunker.audio(now, arrived);
        self.end += samples(now);
        later
    }

    /// Audio beyond the length of its tags: the decoders' count does not know it.
    pub fn surplus(&mut self, pcm: &[u8], arrived: Instant) {
        self.chunker.audio(pcm, arrived);
    }

    /// So many samples are to be silence in the place of a run's end.
    pub fn pad(&mut self, samples: u64) -> Vec<u8> {
        self.counts.padded += samples;
        vec![0; samples as usize * BYTES_PER_SAMPLE]
    }

    /// Goes on by at most so many samples, without sound, and not beyond `until`; gives how many.
    pub fn step(&mut self, samples: u64, until: u64) -> u64 {
        let part = samples.min(until.saturating_sub(self.end));
        self.end += part;
        part
    }

    /// Nothing before `end` will come any more.
    pub fn skip_to(&mut self, end: u64) {
        self.end = self.end.max(end);
    }

    /// Silence on the session clock.
    pub fn silence(&mut self, samples: u64, arrived: Instant) {
        self.chunker.silence(samples, arrived);
    }

    /// Session time goes on at `at_ms`.
    pub fn segment(&mut self, at_ms: u64) {
        self.chunker.segment(at_ms);
    }

    /// Session time goes back by so many samples.
    pub fn back(&mut self, samples: u64) {
        self.chunker.back(samples);
    }

    /// Makes a chunk of the rest, full or not.
    pub fn flush(&mut self) {
        self.chunker.flush();
    }

    pub fn front(&self) -> Option<PcmChunk> {
        self.chunker.front().cloned()
    }

    pub fn pop(&mut self) {
        self.chunker.pop();
    }

    /// Verifies the invariant.
    pub fn check(&self) -> Result<(), String> {
        let counts = &self.counts;
        let (come, gone) = (counts.decoded + counts.padded, counts.repeated + self.chunker.heard());
        if come != gone {
            return Err(format!("{come} samples were decoded, and {gone} are accounted for: {counts:?}"));
        }
        self.chunker.check()
    }
}

fn samples(pcm: &[u8]) -> u64 {
    (pcm.len() / BYTES_PER_SAMPLE) as u64
}

#[cfg(test)]
mod tests {
    use super::*;

    const PCM: &[u8] = &[1; 200];

    fn decoded<'a>(output: &mut Output, pcm: &'a [u8]) -> &'a [u8] {
        output.decoded(pcm);
        output.unheard(pcm)
    }

    #[test]
    fn what_a_second_decoder_repeats_is_out_once() {
        let mut output = Output::new(100);
        let rest = decoded(&mut output, PCM);
        assert!(output.audio(rest, 100, Instant::now()).is_empty());
        output.decoder_begins(60);
        let rest = decoded(&mut output, PCM);
        assert_eq!(rest.len(), 120, "40 samples were out");
        assert_eq!(
            output.check(),
            Err(
                "200 samples were decoded, and 140 are accounted for: Counts { decoded: 200, repeated: 40, padded: 0 }"
                    .to_owned()
            )
        );
        output.audio(rest, 160, Instant::now());
        assert_eq!((output.end(), output.check()), (160, Ok(())));
    }

    #[test]
    fn a_decoder_that_ended_leaves_nothing_to_its_successor() {
        let mut output = Output::new(100);
        output.skip_to(50);
        output.decoder_begins(0);
        assert_eq!(output.pass_over(20), 20);
        output.decoder_ended();
        assert_eq!(output.pass_over(20), 0);
    }

    #[test]
    fn no_more_is_put_out_than_belongs_before_the_limit() {
        let mut output = Output::new(100);
        assert_eq!(output.audio(PCM, 30, Instant::now()).len(), 140);
        assert_eq!(output.step(100, 50), 20);
        assert_eq!(output.end(), 50);
    }
}
