//! Tells voice from silence by energy, in frames of 20 ms: the yardstick with which what a publisher sends is laid beside
//! what single microphones send.
//!
//! A frame is loud when it is 9.5 dB above the noise floor and above about -47 dBFS; once there is voice, 6 dB are enough.
//! The floor is the least that was heard in the last three seconds, so a noise that begins is voice for so long at most.
//! Three loud frames begin voice, and ten others end it; both are told from where they began.

/// Length of a frame.
pub const FRAME_MS: u64 = 20;
/// Loud frames that begin voice.
const ONSET_FRAMES: u32 = 3;
/// Frames without that end it: pauses within words are shorter.
const HANGOVER_FRAMES: u32 = 10;
const LOUD_FACTOR: f64 = 3.0;
/// For voice that goes on.
const STILL_LOUD_FACTOR: f64 = 2.0;
/// Root mean square of 16-bit samples below which nothing is loud.
const LOUD_LEAST: f64 = 150.0;
/// Digital silence tells nothing of a microphone's noise.
const NO_SOUND: f64 = 3.0;
const FLOOR_LEAST: f64 = 10.0;
/// What is steady and this loud is noise, or was no audio at all.
const FLOOR_MOST: f64 = 16_000.0;
/// The floor is the least of so many parts of so many frames.
const FLOOR_PARTS: usize = 4;
const FLOOR_PART_FRAMES: u32 = 38;

/// A change, with the number of frames ago at which it came about; 1 is the frame that was just judged.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum VoiceChange {
    Began(u32),
    Ended(u32),
}

/// Tells voice from silence. Takes one frame after the other.
#[derive(Debug)]
pub struct VoiceDetector {
    /// The least of each part, the present one first.
    least: [f64; FLOOR_PARTS],
    frames: u32,
    is_voice: bool,
    /// Frames in a row that speak for a change.
    streak: u32,
}

impl Default for VoiceDetector {
    fn default() -> Self {
        Self { least: [f64::MAX; FLOOR_PARTS], frames: 0, is_voice: false, streak: 0 }
    }
}

impl VoiceDetector {
    /// Judges a frame by its root mean square.
    pub fn frame(&mut self, rms: f64) -> Option<VoiceChange> {
        let floor = self.floor_after(rms);
        let factor = if self.is_voice { STILL_LOUD_FACTOR } else { LOUD_FACTOR };
        let is_loud = rms > (floor * factor).max(LOUD_LEAST);
        self.streak = if is_loud == self.is_voice { 0 } else { self.streak + 1 };
        let needed = if self.is_voice { HANGOVER_FRAMES } else { ONSET_FRAMES };
        if self.streak < needed {
            return None;
        }
        self.is_voice = !self.is_voice;
        self.streak = 0;
        Some(if self.is_voice { VoiceChange::Began(needed) } else { VoiceChange::Ended(needed) })
    }

    pub fn is_voice(&self) -> bool {
        self.is_voice
    }

    /// Nothing more comes for now.
    pub fn cut(&mut self) {
        (self.is_voice, self.streak) = (false, 0);
    }

    fn floor_after(&mut self, rms: f64) -> f64 {
        if rms >= NO_SOUND {
            self.frames += 1;
            if self.frames.is_multiple_of(FLOOR_PART_FRAMES) {
                self.least.rotate_right(1);
                self.least[0] = f64::MAX;
            }
            self.least[0] = self.least[0].min(rms);
        }
        let least = self.least.iter().copied().fold(f64::MAX, f64::min);
        // What has not been silent yet may be voice from its first frame on.
        let floor = if self.frames < FLOOR_PART_FRAMES { least.min(LOUD_LEAST / LOUD_FACTOR) } else { least };
        floor.clamp(FLOOR_LEAST, FLOOR_MOST)
    }
}

/// Root mean square of samples.
pub fn rms(samples: impl ExactSizeIterator<Item = i16>) -> f64 {
    let count = samples.len().max(1);
    (samples.map(|sample| f64::from(sample).powi(2)).sum::<f64>() / count as f64).sqrt()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Changes, with the frame from which on each holds.
    fn changes(levels: &[(usize, f64)]) -> Vec<(bool, usize)> {
        let mut detector = VoiceDetector::default();
        let frames = levels.iter().flat_map(|(count, level)| std::iter::repeat_n(*level, *count));
        let change = |(n, level): (usize, f64)| match detector.frame(level)? {
            VoiceChange::Began(ago) => Some((true, n + 1 - ago as usize)),
            VoiceChange::Ended(ago) => Some((false, n + 1 - ago as usize)),
        };
        frames.enumerate().filter_map(change).collect()
    }

    #[test]
    fn voice_is_found_to_a_frame() {
        let levels = [(50, 20.0), (20, 4000.0), (5, 20.0), (30, 2000.0), (40, 20.0), (2, 9000.0), (40, 20.0)];
        assert_eq!(changes(&levels), [(true, 50), (false, 105)], "a short pause belongs to it, and a click does not");
        assert_eq!(changes(&[(10, 3000.0), (20, 0.0)]), [(true, 0), (false, 10)], "also from the first frame on");
    }

    #[test]
    fn a_noise_that_begins_stops_being_voice() {
        let changes = changes(&[(200, 0.0), (600, 400.0), (20, 3000.0), (100, 400.0)]);
        assert!(matches!(changes[..], [(true, 200), (false, 201..360), (true, 800), (false, 820)]), "{changes:?}");
    }

    #[test]
    fn loudness_is_that_of_the_samples() {
        assert_eq!(rms([3i16, -3, 3, -3].into_iter()), 3.0);
        assert_eq!(rms([].into_iter()), 0.0);
        assert_eq!(rms([i16::MIN; 2].into_iter()), 32768.0);
    }
}
