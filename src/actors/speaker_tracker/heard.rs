//! Which audio of late was voice. Pure; times are ms on the session's clock, when it arrived.

use std::collections::VecDeque;

use super::delay::STEP_MS;
use super::timeline::SLOT_MS;
use crate::audio::voice::{VoiceChange, VoiceDetector};

/// What was heard is kept until it is laid beside reports.
const HEARD_SLOTS: usize = 30_000 / SLOT_MS as usize;
/// A delay that was known until audio stopped for so long may be another one.
const PAUSE_MS: i64 = 400;

/// The newest audio, in slots: voice or not.
#[derive(Debug, Default)]
pub struct Heard {
    detector: VoiceDetector,
    /// Slot number of the first.
    first: i64,
    slots: VecDeque<Option<bool>>,
    /// Slots of the last frames, newest last.
    recent: VecDeque<i64>,
}

impl Heard {
    /// Takes a frame by its root mean square.
    pub fn frame(&mut self, at_ms: i64, rms: f64) {
        let slot = at_ms.div_euclid(SLOT_MS);
        self.recent.push_back(slot);
        let change = self.detector.frame(rms);
        self.set(slot, self.detector.is_voice());
        let (is_voice, ago) = match change {
            Some(VoiceChange::Began(ago)) => (true, ago),
            Some(VoiceChange::Ended(ago)) => (false, ago),
            None => (false, 0),
        };
        for n in 0..(ago as usize).min(self.recent.len()) {
            self.set(self.recent[self.recent.len() - 1 - n], is_voice);
        }
        if self.recent.len() > 16 {
            self.recent.pop_front();
        }
    }

    fn set(&mut self, slot: i64, is_voice: bool) {
        let last = self.first + self.slots.len() as i64;
        if self.slots.is_empty() || slot > last + HEARD_SLOTS as i64 {
            self.slots.clear();
            self.first = slot;
        }
        let Ok(n) = usize::try_from(slot - self.first) else { return };
        if n >= self.slots.len() {
            self.slots.resize(n + 1, None);
        }
        self.slots[n] = Some(is_voice);
        while self.slots.len() > HEARD_SLOTS {
            self.slots.pop_front();
            self.first += 1;
        }
    }

    fn at(&self, slot: i64) -> Option<bool> {
        *self.slots.get(usize::try_from(slot - self.first).ok()?)?
    }

    /// The share of voice in a step; None without audio.
    pub fn share(&self, at_ms: i64) -> Option<f32> {
        let slots = (0..STEP_MS / SLOT_MS).filter_map(|n| self.at(at_ms.div_euclid(SLOT_MS) + n));
        let (count, voice) = slots.fold((0, 0), |(count, voice), is_voice| (count + 1, voice + i32::from(is_voice)));
        (count > 0).then(|| voice as f32 / count as f32)
    }

    /// Audio begins here, after some time without any.
    pub fn is_after_pause(&self, at_ms: i64) -> bool {
        let slot = at_ms.div_euclid(SLOT_MS);
        let steps = 1..=PAUSE_MS / SLOT_MS;
        (self.at(slot).is_some() || self.at(slot + 1).is_some())
            && steps.into_iter().all(|n| self.at(slot - n).is_none())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn voice_is_where_it_began_and_audio_after_a_pause_is_known() {
        let mut heard = Heard::default();
        let levels = (0..150).map(|n| if (50..100).contains(&n) { 3000.0 } else { 20.0 });
        (0..).zip(levels).for_each(|(n, level)| heard.frame(10_000 + n * SLOT_MS, level));
        let shares = [10_900, 10_980, 11_040, 11_940, 12_060, 12_990].map(|at_ms| heard.share(at_ms));
        assert_eq!(shares, [Some(0.0), Some(2.0 / 3.0), Some(1.0), Some(1.0), Some(0.0), Some(0.0)]);
        assert_eq!(heard.share(13_100), None, "nothing yet");
        heard.frame(13_800, 20.0);
        assert!(heard.is_after_pause(13_800) && !heard.is_after_pause(11_000));
        heard.frame(9_000_000, 20.0);
        heard.frame(-9_000_000, 20.0);
        assert!(heard.slots.len() <= HEARD_SLOTS);
    }
}
