//! Loudness of the last seconds, and their quietest place. Pure; positions are samples.
//!
//! The voice probability is flat inside running speech, so it cannot tell a place between words from one within: the
//! short-time energy can.

use std::collections::VecDeque;
use std::ops::Range;

use super::super::engine::SAMPLES_PER_MS;

/// Samples of one value (8 ms).
const FRAME: usize = 8 * SAMPLES_PER_MS;
/// Values that are averaged (104 ms): the closure of a "t" or "k" is half as long, a pause between words is longer.
const SMOOTHED: usize = 13;

/// Mean power of the last frames.
pub struct Energy {
    frames: VecDeque<f32>,
    /// Frames kept.
    span: usize,
    /// Frames before the first one that is kept.
    first: usize,
}

impl Energy {
    /// Remembers the last `span` samples.
    pub fn new(span: usize) -> Self {
        Self { frames: VecDeque::new(), span: span / FRAME + SMOOTHED, first: 0 }
    }

    /// Takes the samples that follow; whole frames only.
    pub fn push(&mut self, samples: &[i16]) {
        for frame in samples.chunks_exact(FRAME) {
            self.frames.push_back(frame.iter().map(|&s| f32::from(s).powi(2)).sum::<f32>() / FRAME as f32);
        }
        let spare = self.frames.len().saturating_sub(self.span);
        self.frames.drain(..spare);
        self.first += spare;
    }

    /// The middle of the quietest stretch whose middle is in `range`; the later one of equals.
    pub fn quietest(&self, range: Range<usize>) -> Option<usize> {
        let middles = range.start.div_ceil(FRAME)..range.end.div_ceil(FRAME);
        let loudness = |middle: usize| {
            let from = middle.checked_sub(SMOOTHED / 2 + self.first)?;
            let to = from + SMOOTHED;
            let whole = to <= self.frames.len();
            whole.then(|| (middle, self.frames.range(from..to).sum::<f32>()))
        };
        let stretches = middles.filter_map(loudness);
        stretches.reduce(|best, next| if next.1 <= best.1 { next } else { best }).map(|(middle, _)| middle * FRAME)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ms(count: usize, level: i16) -> Vec<i16> {
        vec![level; count * SAMPLES_PER_MS]
    }

    #[test]
    fn a_longer_valley_beats_a_short_one_that_is_as_deep() {
        let mut energy = Energy::new(2000 * SAMPLES_PER_MS);
        // A closure of 40 ms at 400 ms, a pause of 120 ms at 840 ms.
        let audio = [ms(400, 3000), ms(40, 10), ms(400, 3000), ms(120, 10), ms(400, 3000)].concat();
        audio.chunks(512).for_each(|window| energy.push(window));
        let at = energy.quietest(200 * SAMPLES_PER_MS..1300 * SAMPLES_PER_MS).unwrap();
        assert!(at.abs_diff(900 * SAMPLES_PER_MS) <= 2 * FRAME, "{} ms", at / SAMPLES_PER_MS);
        let at = energy.quietest(200 * SAMPLES_PER_MS..700 * SAMPLES_PER_MS).unwrap();
        assert!(at.abs_diff(420 * SAMPLES_PER_MS) <= SMOOTHED / 2 * FRAME, "{} ms", at / SAMPLES_PER_MS);
    }

    #[test]
    fn what_was_forgotten_is_no_candidate() {
        let mut energy = Energy::new(500 * SAMPLES_PER_MS);
        assert_eq!(energy.quietest(0..1000), None);
        energy.push(&[ms(1000, 0), ms(600, 3000)].concat());
        assert_eq!(energy.quietest(0..800 * SAMPLES_PER_MS), None);
        assert!(energy.quietest(0..1500 * SAMPLES_PER_MS).is_some_and(|at| at > 1000 * SAMPLES_PER_MS));
    }
}
