//! Which audio holds speech, by energy: the yardstick that the recogniser's answers are measured with.
//!
//! Frames of 20 ms; loud is three times (9.5 dB) above an adaptive noise floor and above about -47 dBFS. Three loud
//! frames in a row begin speech; pauses up to 300 ms belong to it. The floor falls at once and rises 1 dB in 0.8 s, so a
//! constant noise stops being speech after some seconds. Music and coughs do count: this decides nothing by itself.

use super::ranges::Ranges;

const FRAME_BYTES: usize = 640;
const LOUD_FACTOR: f64 = 3.0;
const LOUD_LEAST: f64 = 150.0;
const FLOOR_RISE: f64 = 1.003;
const FLOOR_BOUNDS: (f64, f64) = (10.0, 1000.0);
const ONSET_FRAMES: u32 = 3;
const BRIDGE_BYTES: u64 = 300 * super::clock::BYTES_PER_MS;

/// Tells speech from silence by energy. Feed it every byte in order.
#[derive(Debug)]
pub struct SpeechDetector {
    frame: Vec<u8>,
    floor: f64,
    loud_frames: u32,
    /// End of the last speech.
    last_end: Option<u64>,
}

impl Default for SpeechDetector {
    fn default() -> Self {
        Self { frame: Vec::with_capacity(FRAME_BYTES), floor: 100.0, loud_frames: 0, last_end: None }
    }
}

impl SpeechDetector {
    /// `offset` is the session offset of the first byte. Adds what is speech to `spoken`; answers how many bytes.
    pub fn feed(&mut self, offset: u64, mut pcm: &[u8], spoken: &mut Ranges) -> u64 {
        let mut start = offset - self.frame.len() as u64;
        let mut bytes = 0;
        while !pcm.is_empty() {
            let (head, rest) = pcm.split_at(pcm.len().min(FRAME_BYTES - self.frame.len()));
            self.frame.extend_from_slice(head);
            pcm = rest;
            if self.frame.len() == FRAME_BYTES {
                bytes += self.judge(start, spoken);
                self.frame.clear();
                start += FRAME_BYTES as u64;
            }
        }
        bytes
    }

    fn judge(&mut self, start: u64, spoken: &mut Ranges) -> u64 {
        let level = rms(&self.frame);
        let is_loud = level > (self.floor * LOUD_FACTOR).max(LOUD_LEAST);
        self.floor = level.min(self.floor * FLOOR_RISE).clamp(FLOOR_BOUNDS.0, FLOOR_BOUNDS.1);
        if !is_loud {
            self.loud_frames = 0;
            return 0;
        }
        self.loud_frames += 1;
        let end = start + FRAME_BYTES as u64;
        let bridged = self.last_end.filter(|last| start.saturating_sub(*last) <= BRIDGE_BYTES);
        let from = match bridged {
            Some(last) => last,
            None if self.loud_frames < ONSET_FRAMES => return 0,
            None => end - u64::from(self.loud_frames) * FRAME_BYTES as u64,
        };
        self.last_end = Some(end);
        spoken.insert(from..end).iter().map(|r| r.end - r.start).sum()
    }
}

fn rms(frame: &[u8]) -> f64 {
    let squares = frame.chunks_exact(2).map(|s| f64::from(i16::from_le_bytes([s[0], s[1]])).powi(2));
    (squares.sum::<f64>() / (frame.len() as f64 / 2.0)).sqrt()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tone(ms: usize, level: i16) -> Vec<u8> {
        (0..ms * 16).flat_map(|n| (if n % 2 == 0 { level } else { -level }).to_le_bytes()).collect()
    }

    #[test]
    fn speech_is_found_to_a_frame_and_short_pauses_belong_to_it() {
        let audio = [tone(1000, 5), tone(400, 4000), tone(200, 5), tone(300, 3000), tone(2000, 5)].concat();
        let (mut detector, mut spoken) = (SpeechDetector::default(), Ranges::default());
        let mut bytes = 0;
        for (n, piece) in audio.chunks(1234).enumerate() {
            bytes += detector.feed(n as u64 * 1234, piece, &mut spoken);
        }
        assert_eq!(spoken.missing(&(1000 * 32..1900 * 32)), vec![]);
        assert_eq!(spoken.overlap(&(0..audio.len() as u64)), bytes);
        assert_eq!(bytes, 900 * 32);
    }

    #[test]
    fn a_click_is_not_speech_and_a_hum_stops_being_it() {
        let (mut detector, mut spoken) = (SpeechDetector::default(), Ranges::default());
        let click = [tone(500, 5), tone(40, 9000), tone(500, 5)].concat();
        assert_eq!(detector.feed(0, &click, &mut spoken), 0);
        let hum = tone(30_000, 300);
        detector.feed(click.len() as u64, &hum, &mut spoken);
        let tail = (click.len() + hum.len() - 32 * 5000) as u64..(click.len() + hum.len()) as u64;
        assert_eq!(spoken.overlap(&tail), 0);
    }
}
