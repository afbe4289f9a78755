//! Two channels into one that never cancel each other out.
//!
//! A decoder gives *mid*, the mono mix just as ffmpeg makes it, and *side*, half of left less right. Where two wires of
//! one channel are swapped (right = -left), mid is silence and side has everything. Then the louder single channel,
//! mid plus or minus side, is taken instead. Everywhere else the output is mid, to the bit.

use bytes::Bytes;

/// Interleaved mid and side, 16 bits each.
pub const FRAME_BYTES: usize = 4;
/// Mid has cancelled when side has so many times its energy (9 dB), over a packet and over its recent past.
const CANCELLED: f64 = 8.0;
/// Side is no more than noise below this mean square (-60 dB of full scale).
const NOISE: f64 = 33.0 * 33.0;
/// Reach of the recent past: its weight falls to a third (1/e) in so many samples (100 ms).
const RECENT_SAMPLES: f64 = 1600.0;
/// The same of the past in which mid must have the more energy before it is trusted again (1 s). Till then everything in
/// the louder channel is heard, also what a pause of the one voice lets through of another.
const LONG_SAMPLES: f64 = 16_000.0;
/// Length of the change from one mix to another (5 ms).
const FADE_SAMPLES: usize = 80;

/// The part of side that is added to mid.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
enum Mix {
    #[default]
    Mid,
    Left,
    Right,
}

impl Mix {
    fn weight(self) -> f64 {
        match self {
            Self::Mid => 0.0,
            Self::Left => 1.0,
            Self::Right => -1.0,
        }
    }
}

/// Mixes two channels to one that never cancels.
#[derive(Debug, Default)]
pub struct Downmix {
    mix: Mix,
    recent: Energy,
    long: Energy,
    cancelled_samples: u64,
}

/// Sums over a time.
#[derive(Debug, Clone, Copy, Default)]
struct Energy {
    mid: f64,
    side: f64,
    /// More than 0: left is louder than right.
    both: f64,
    samples: f64,
}

impl Downmix {
    /// One packet: mid and side in, mono out.
    pub fn mix(&mut self, packet: &[u8]) -> Bytes {
        let now = Energy::of(packet);
        self.recent.fade(now, RECENT_SAMPLES);
        self.long.fade(now, LONG_SAMPLES);
        let before = self.mix;
        self.mix = self.choose(now);
        if before == Mix::Mid && self.mix != Mix::Mid {
            // What mid was before it cancelled says nothing of when it will be fine again.
            self.long = now;
        }
        if self.mix != Mix::Mid {
            self.cancelled_samples += (packet.len() / FRAME_BYTES) as u64;
        }
        let mut mono = Vec::with_capacity(packet.len() / 2);
        for (n, [mid, side]) in frames(packet).enumerate() {
            let sample = if self.mix == before && before == Mix::Mid {
                mid
            } else {
                let share = ((n + 1) as f64 / FADE_SAMPLES as f64).min(1.0);
                let weight = before.weight() + (self.mix.weight() - before.weight()) * share;
                (f64::from(mid) + f64::from(side) * weight).round() as i16
            };
            mono.extend_from_slice(&sample.to_le_bytes());
        }
        mono.into()
    }

    /// Samples so far in which a single channel was taken.
    pub fn cancelled_samples(&self) -> u64 {
        self.cancelled_samples
    }

    fn choose(&self, now: Energy) -> Mix {
        let long = self.long;
        let louder = |energy: Energy| if energy.both < 0.0 { Mix::Right } else { Mix::Left };
        match self.mix {
            Mix::Mid => {
                let is_sound = now.side > NOISE * now.samples;
                let is_cancelled = |energy: Energy| energy.side > CANCELLED * energy.mid;
                if is_sound && is_cancelled(now) && is_cancelled(self.recent) { louder(now) } else { Mix::Mid }
            }
            single if long.side.max(long.mid) <= NOISE * long.samples => single,
            _ if long.side < long.mid => Mix::Mid,
            // The louder one by far, or a word would be torn for nothing.
            _ if long.both.abs() > (long.mid + long.side) / 4.0 => louder(long),
            single => single,
        }
    }
}

impl Energy {
    fn of(packet: &[u8]) -> Self {
        let mut sum = Self::default();
        for [mid, side] in frames(packet) {
            let (mid, side) = (f64::from(mid), f64::from(side));
            sum.mid += mid * mid;
            sum.side += side * side;
            sum.both += mid * side;
            sum.samples += 1.0;
        }
        sum
    }

    fn fade(&mut self, now: Self, memory_samples: f64) {
        let keep = (-now.samples / memory_samples).exp();
        self.mid = self.mid * keep + now.mid;
        self.side = self.side * keep + now.side;
        self.both = self.both * keep + now.both;
        self.samples = self.samples * keep + now.samples;
    }
}

fn frames(packet: &[u8]) -> impl Iterator<Item = [i16; 2]> {
    packet.chunks_exact(FRAME_BYTES).map(|f| [i16::from_le_bytes([f[0], f[1]]), i16::from_le_bytes([f[2], f[3]])])
}

#[cfg(test)]
mod tests {
    use super::*;

    const PACKET: usize = 371;
    const SECOND: usize = 16_000;

    /// Two voices that have nothing to do with each other, with pauses.
    fn voice(seed: u64) -> impl Fn(usize) -> f64 {
        move |n| {
            let t = n as f64 / SECOND as f64;
            let pitch = 110.0 + 37.0 * seed as f64;
            let is_word = !(n / 3000 + seed as usize).is_multiple_of(4);
            let tones: f64 =
                (1..12).map(|k| (t * pitch * f64::from(k) * std::f64::consts::TAU).sin() / f64::from(k)).sum();
            if is_word { tones * 3000.0 } else { 0.0 }
        }
    }

    fn run(seconds: usize, left: impl Fn(usize) -> f64, right: impl Fn(usize) -> f64) -> (Vec<i16>, u64) {
        let mut packet = Vec::new();
        let (mut downmix, mut mono) = (Downmix::default(), Vec::new());
        for n in 0..seconds * SECOND {
            let (l, r) = (left(n), right(n));
            for value in [(l + r) / 2.0, (l - r) / 2.0] {
                packet.extend_from_slice(&(value.round() as i16).to_le_bytes());
            }
            if packet.len() == PACKET * FRAME_BYTES {
                mono.extend(downmix.mix(&packet).chunks(2).map(|b| i16::from_le_bytes([b[0], b[1]])));
                packet.clear();
            }
        }
        (mono, downmix.cancelled_samples())
    }

    /// The same as mid, to the bit.
    fn assert_untouched(what: &str, left: impl Fn(usize) -> f64, right: impl Fn(usize) -> f64) {
        let (mono, cancelled) = run(4, &left, &right);
        let mid = |n: usize| ((left(n) + right(n)) / 2.0).round() as i16;
        assert!(mono.iter().enumerate().all(|(n, sample)| *sample == mid(n)), "{what}");
        assert_eq!(cancelled, 0, "{what}");
    }

    #[test]
    fn where_the_sum_is_fine_it_is_the_output() {
        let (a, b) = (voice(1), voice(2));
        assert_untouched("mono", &a, &a);
        assert_untouched("a dead channel", &a, |_| 0.0);
        assert_untouched("a quiet channel", &a, |n| a(n) * 0.1);
        assert_untouched("two speakers", &a, &b);
        assert_untouched("a little width", |n| a(n) + b(n) * 0.3, |n| a(n) - b(n) * 0.3);
        assert_untouched("noise against each other", |n| (n % 7) as f64, |n| -((n % 7) as f64));
        assert_untouched("silence", |_| 0.0, |_| 0.0);
    }

    /// Part of `voice` that is missing from the output, in parts of its energy. Its sign is of no interest.
    fn missing(mono: &[i16], voice: impl Fn(usize) -> f64) -> f64 {
        let power: f64 = (0..mono.len()).map(|n| voice(n).powi(2)).sum();
        let error = |sign: f64| -> f64 {
            mono.iter().enumerate().map(|(n, s)| (voice(n) * sign - f64::from(*s)).powi(2)).sum()
        };
        error(1.0).min(error(-1.0)) / power
    }

    #[test]
    fn what_would_cancel_is_heard_from_its_first_packet_on() {
        let a = voice(1);
        for gain in [1.0, 0.8, 0.6] {
            let (mono, cancelled) = run(4, &a, |n| -a(n) * gain);
            assert!(missing(&mono, &a) < 0.01, "right = -{gain} left");
            assert!(cancelled > 2 * SECOND as u64);
            let (mono, _) = run(4, |n| -a(n) * gain, &a);
            assert!(missing(&mono, &a) < 0.01, "left = -{gain} right");
        }
    }

    #[test]
    fn a_voice_in_the_middle_beside_one_that_cancels_is_heard_too() {
        let (a, b) = (voice(1), voice(2));
        // Both are in the left channel.
        let second = |n: usize| if n > 2 * SECOND { b(n) } else { 0.0 };
        let (mono, _) = run(5, |n| a(n) + 0.3 * second(n), |n| -a(n) + 0.3 * second(n));
        assert!(missing(&mono, |n| a(n) + 0.3 * second(n)) < 0.05);
    }

    /// It was fine for long before.
    #[test]
    fn a_wire_that_is_swapped_in_the_middle_costs_no_word() {
        let a = voice(1);
        let (mono, cancelled) = run(8, &a, |n| if n < 5 * SECOND { a(n) } else { -a(n) });
        assert!(missing(&mono, &a) < 0.02);
        // In running speech the recent past decides after 0.2 s; here a pause of as much comes first.
        assert!(cancelled.abs_diff(3 * SECOND as u64) < SECOND as u64 / 2, "{cancelled}");
    }

    #[test]
    fn a_wire_that_is_mended_gives_the_sum_again_without_a_click() {
        let a = voice(1);
        let (mono, _) = run(6, &a, |n| if n < 3 * SECOND { -a(n) } else { a(n) });
        assert!(missing(&mono, &a) < 0.02);
        let step = |values: &[i16]| values.windows(2).map(|w| i32::from(w[1]) - i32::from(w[0])).map(i32::abs).max();
        let natural: Vec<i16> = (0..mono.len()).map(|n| a(n) as i16).collect();
        assert!(step(&mono) <= step(&natural).map(|s| s + s / 10), "{:?} of {:?}", step(&mono), step(&natural));
    }
}
