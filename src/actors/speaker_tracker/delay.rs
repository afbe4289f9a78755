//! How much later audio arrives than what is told of the speakers: a Bayesian filter over all delays that may be.
//!
//! A mixer upstream may hold audio back by up to three seconds, and by another amount a minute later; what tells of the
//! speakers has a delay of its own. So each delay is weighed by how well the voice in the audio fits the activity that
//! was told of so much before. No evidence makes a delay impossible: it may have changed a moment ago. Where one is clear
//! its weight is near 1; where the evidence is thin or of two minds the weights are spread, and whoever asks sees that.

use std::collections::VecDeque;

use super::timeline::SLOT_MS;

/// Between two delays.
pub const STEP_MS: i64 = 3 * SLOT_MS;
/// The range: what is told may also come later than the audio.
pub const LEAST_MS: i64 = -1500;
pub const MOST_MS: i64 = 3960;
const DELAYS: usize = ((MOST_MS - LEAST_MS) / STEP_MS) as usize + 1;

/// Delays so near to each other count as one.
const AROUND_STEPS: usize = 4;
const CLEAR: f64 = 0.9;

/// What is known of a kind of source.
#[derive(Debug, Clone, Copy)]
pub struct Model {
    /// Chance of voice in the audio while somebody is said to be active, and while nobody is.
    pub voice_if_active: f64,
    pub voice_if_not: f64,
    /// What a step's evidence counts: steps that follow each other say nearly the same.
    pub weight: f64,
    /// Chance, in each step, that the delay has become any other one.
    pub jump: f64,
    /// Chance, in each step, that it has drifted by one step, to each side.
    pub drift: f64,
}

/// The weights of all delays.
#[derive(Debug)]
pub struct DelayFilter {
    model: Model,
    weights: Vec<f64>,
    /// Activity in steps, NaN before anything was told; the newest is as much ahead of the audio as [`LEAST_MS`] says.
    active: VecDeque<f32>,
}

impl DelayFilter {
    pub fn new(model: Model) -> Self {
        Self { model, weights: vec![1.0 / DELAYS as f64; DELAYS], active: VecDeque::from(vec![f32::NAN; DELAYS]) }
    }

    /// Goes on by a step. `heard`: the share of voice in the audio of this step; None where there is none. `active`: the
    /// share of activity [`LEAST_MS`] later. `trust`, 0..=1, is what reports are worth.
    pub fn step(&mut self, heard: Option<f32>, active: f32, trust: f32) {
        self.active.pop_front();
        self.active.push_back(active);
        let Some(heard) = heard.map(f64::from) else { return };
        let Model { voice_if_active, voice_if_not, weight, jump, drift } = self.model;
        let likelihood =
            |voice: f64| (weight * f64::from(trust) * (heard * voice.ln() + (1.0 - heard) * (1.0 - voice).ln())).exp();
        let (if_not, if_active) = (likelihood(voice_if_not), likelihood(voice_if_active));
        let (stays, jumps) = (1.0 - jump - 2.0 * drift, jump / DELAYS as f64);
        let of = |active: f32| if_not + (if_active - if_not) * f64::from(active);
        // What was not told yet speaks neither for a delay nor against it.
        let known = self.weights.iter().zip(self.active.iter().rev()).filter(|(_, active)| !active.is_nan());
        let (told, weight) = known.fold((0.0, 0.0), |(sum, all), (w, active)| (sum + w * of(*active), all + w));
        let neutral = if weight > 0.0 { told / weight } else { 1.0 };
        let (mut sum, mut before, mut this) = (0.0, self.weights[0], self.weights[0]);
        for n in 0..DELAYS {
            let after = self.weights[(n + 1).min(DELAYS - 1)];
            let stayed = this * stays + (before + after) * drift + jumps;
            let active = self.active[DELAYS - 1 - n];
            self.weights[n] = stayed * if active.is_nan() { neutral } else { of(active) };
            sum += self.weights[n];
            (before, this) = (this, after);
        }
        self.weights.iter_mut().for_each(|new| *new /= sum);
    }

    /// The delay is another one now, as likely as not.
    pub fn doubt(&mut self) {
        self.weights.iter_mut().for_each(|weight| *weight = (*weight + 1.0 / DELAYS as f64) / 2.0);
    }

    /// Another publisher has a delay of its own.
    pub fn forget(&mut self) {
        self.weights.fill(1.0 / DELAYS as f64);
    }

    /// Delays of some weight, which sums to nearly 1.
    pub fn weights(&self) -> Vec<(i64, f32)> {
        let delay_ms = |n: usize| LEAST_MS + n as i64 * STEP_MS;
        let all = self.weights.iter().enumerate().map(|(n, weight)| (delay_ms(n), *weight as f32));
        all.filter(|(_, weight)| *weight > 1e-4).collect()
    }

    /// The delay, when it is clear: the heaviest, with nearly all weight on it and those around it.
    pub fn clear_ms(&self) -> Option<i64> {
        let (heaviest, _) = self.weights.iter().enumerate().max_by(|(_, a), (_, b)| a.total_cmp(b))?;
        let around = AROUND_STEPS.min(heaviest);
        let near: f64 = self.weights[heaviest - around..].iter().take(around + 1 + AROUND_STEPS).sum();
        (near >= CLEAR).then_some(LEAST_MS + heaviest as i64 * STEP_MS)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MODEL: Model = Model { voice_if_active: 0.93, voice_if_not: 0.05, weight: 0.37, jump: 3e-4, drift: 1e-3 };

    /// Voice that comes and goes without a rhythm.
    fn speaks(step: i64) -> f32 {
        f32::from(u8::from((step / 7 * 2_654_435_761_i64).rem_euclid(97) < 50))
    }

    fn listen(filter: &mut DelayFilter, steps: std::ops::Range<i64>, delay_ms: i64) {
        let (late, ahead) = (delay_ms / STEP_MS, -LEAST_MS / STEP_MS);
        steps.for_each(|step| filter.step(Some(speaks(step - late)), speaks(step + ahead), 1.0));
    }

    fn assert_near(filter: &DelayFilter, delay_ms: i64) {
        let clear_ms = filter.clear_ms();
        assert!(clear_ms.is_some_and(|ms| (ms - delay_ms).abs() <= STEP_MS), "{clear_ms:?}, not {delay_ms}");
    }

    #[test]
    fn a_delay_becomes_clear_and_is_followed_when_it_changes() {
        for delay_ms in [-600, 0, 900, 3000] {
            let mut filter = DelayFilter::new(MODEL);
            assert_eq!(filter.clear_ms(), None);
            listen(&mut filter, 0..300, delay_ms);
            assert_near(&filter, delay_ms);
            listen(&mut filter, 300..900, 2400);
            assert_near(&filter, 2400);
            filter.forget();
            assert_eq!(filter.clear_ms(), None);
        }
    }

    #[test]
    fn silence_and_one_long_speech_tell_nothing() {
        for (heard, active) in [(Some(0.0), 0.0), (Some(1.0), 1.0), (None, 1.0), (Some(1.0), 0.0)] {
            let mut filter = DelayFilter::new(MODEL);
            (0..2000).for_each(|_| filter.step(heard, active, 1.0));
            assert_eq!(filter.clear_ms(), None);
            let sum: f32 = filter.weights().iter().map(|(_, weight)| weight).sum();
            assert!((sum - 1.0).abs() < 0.01, "{sum}");
        }
    }
}
