//! From a track's samples to reports of voice, on our own arrival clock. Pure.
//!
//! A Track Egress sends s16le, two channels interleaved, 48 kHz, in messages of about 10 ms; any length is taken. Samples
//! lie end to end; when each was sent tells the message that came with the least delay of late.

use std::collections::VecDeque;

use crate::audio::voice::{FRAME_MS, VoiceChange, VoiceDetector, rms};

const SAMPLE_RATE: u64 = 48_000;
const CHANNELS: u64 = 2;
const SAMPLE_BYTES: usize = 2;
const FRAME_BYTES: usize = (SAMPLE_RATE * CHANNELS * FRAME_MS / 1000) as usize * SAMPLE_BYTES;
/// Bytes of one second.
pub const BYTES_PER_S: u64 = SAMPLE_RATE * CHANNELS * SAMPLE_BYTES as u64;
/// Voice that goes on is told again after so much audio.
const RENEW_MS: i64 = 400;
/// The least delay is that of messages within so much time.
const WITNESS_MS: i64 = 1000;
const MAX_WITNESSES: usize = 256;
/// The quietest level that is told, in dBFS; 0 dBFS is 1.
const QUIETEST_DB: f64 = -60.0;

/// Voice began, goes on, or ended.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct VoiceReport {
    pub is_active: bool,
    /// 0..=1, by decibels.
    pub level: f32,
    pub at_ms: i64,
}

/// Measures one track.
#[derive(Debug, Default)]
pub struct TrackMeter {
    detector: VoiceDetector,
    partial: Vec<u8>,
    /// End of the whole frames so far, in ms of audio.
    position_ms: i64,
    /// Arrival less position, with the arrival, of late; the least first.
    lags: VecDeque<(i64, i64)>,
    renewed_ms: i64,
    /// Mean square of voice since the last report.
    energy: (f64, u32),
}

impl TrackMeter {
    /// Takes the samples of one message.
    pub fn feed(&mut self, mut bytes: &[u8], arrived_ms: i64) -> Vec<VoiceReport> {
        let length_ms = ((self.partial.len() + bytes.len()) as u64 * 1000 / BYTES_PER_S) as i64;
        self.arrived(length_ms, arrived_ms);
        let mut reports = Vec::new();
        while self.partial.len() + bytes.len() >= FRAME_BYTES {
            let (head, rest) = bytes.split_at(FRAME_BYTES - self.partial.len());
            bytes = rest;
            self.partial.extend_from_slice(head);
            let level = loudness(&self.partial);
            self.partial.clear();
            reports.extend(self.frame(level));
        }
        self.partial.extend_from_slice(bytes);
        reports
    }

    /// So much audio has arrived that is not measured yet.
    pub fn arrived(&mut self, length_ms: i64, arrived_ms: i64) {
        self.witness(arrived_ms, self.position_ms + length_ms);
    }

    /// The microphone is muted, or its egress is gone.
    pub fn silence(&mut self, at_ms: i64) -> Option<VoiceReport> {
        let was_voice = self.detector.is_voice();
        self.detector.cut();
        self.partial.clear();
        was_voice.then_some(VoiceReport { is_active: false, level: 0.0, at_ms })
    }

    /// Takes the root mean square of the next frame.
    pub fn frame(&mut self, level: f64) -> Option<VoiceReport> {
        self.position_ms += FRAME_MS as i64;
        let at_ms = self.position_ms + self.lags.front().map_or(0, |(lag_ms, _)| *lag_ms);
        let began_ms = |frames: u32| at_ms - i64::from(frames) * FRAME_MS as i64;
        let change = self.detector.frame(level);
        if self.detector.is_voice() {
            self.energy = (self.energy.0 + level.powi(2), self.energy.1 + 1);
        }
        match change {
            Some(VoiceChange::Began(ago)) => Some(self.active(began_ms(ago))),
            Some(VoiceChange::Ended(ago)) => {
                self.energy = (0.0, 0);
                Some(VoiceReport { is_active: false, level: 0.0, at_ms: began_ms(ago) })
            }
            None if self.detector.is_voice() && self.position_ms - self.renewed_ms >= RENEW_MS => {
                Some(self.active(at_ms))
            }
            None => None,
        }
    }

    fn active(&mut self, at_ms: i64) -> VoiceReport {
        self.renewed_ms = self.position_ms;
        let (sum, count) = std::mem::take(&mut self.energy);
        let db = 10.0 * (sum / f64::from(count.max(1)) / f64::from(i16::MAX).powi(2)).max(1e-12).log10();
        let level = (1.0 - db / QUIETEST_DB).clamp(0.02, 1.0) as f32;
        VoiceReport { is_active: true, level, at_ms }
    }

    fn witness(&mut self, arrived_ms: i64, position_ms: i64) {
        let lag_ms = arrived_ms - position_ms;
        self.lags.retain(|(_, at_ms)| *at_ms > arrived_ms - WITNESS_MS);
        while self.lags.back().is_some_and(|(last_ms, _)| *last_ms >= lag_ms) || self.lags.len() >= MAX_WITNESSES {
            self.lags.pop_back();
        }
        self.lags.push_back((lag_ms, arrived_ms));
    }
}

fn loudness(frame: &[u8]) -> f64 {
    rms(frame.chunks_exact(SAMPLE_BYTES).map(|sample| i16::from_le_bytes([sample[0], sample[1]])))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Samples as an egress sends them: both channels the same.
    fn stereo(ms: usize, level: i16) -> Vec<u8> {
        let sample = |n: usize| if n.is_multiple_of(2) { level } else { -level };
        (0..ms * 48).flat_map(|n| [sample(n), sample(n)]).flat_map(i16::to_le_bytes).collect()
    }

    /// Feeds messages of so many bytes as fast as in `speed` times real time.
    fn feed(meter: &mut TrackMeter, audio: &[u8], message: usize, speed: f64, began_ms: i64) -> Vec<VoiceReport> {
        let mut sent = 0;
        let mut reports = Vec::new();
        for bytes in audio.chunks(message) {
            sent += bytes.len();
            let arrived_ms = began_ms + (sent as f64 * 1000.0 / BYTES_PER_S as f64 / speed) as i64;
            reports.extend(meter.feed(bytes, arrived_ms));
        }
        reports
    }

    fn ends(reports: &[VoiceReport]) -> Vec<(bool, i64)> {
        let mut ends: Vec<_> = reports.iter().map(|report| (report.is_active, report.at_ms)).collect();
        ends.dedup_by_key(|(is_active, _)| *is_active);
        ends
    }

    #[test]
    fn voice_is_reported_to_a_frame_whatever_the_messages_are() {
        let audio = [stereo(500, 20), stereo(1000, 4000), stereo(500, 20)].concat();
        for message in [1, 777, 1920, 3840, 10_001] {
            let mut meter = TrackMeter::default();
            let reports = feed(&mut meter, &audio, message, 1.0, 100);
            let [(true, from_ms), (false, to_ms)] = ends(&reports)[..] else { panic!("{message}: {reports:?}") };
            assert!((from_ms - 600).abs() <= 60 && (to_ms - 1600).abs() <= 60, "{message}: {from_ms} to {to_ms}");
            assert_eq!(reports.len(), 4, "it is renewed");
            assert!(reports[1].level > 0.6 && reports[1].level < 0.8, "{reports:?}");
            assert!(meter.partial.len() < FRAME_BYTES);
        }
    }

    #[test]
    fn a_pause_of_the_stream_does_not_shift_what_follows_and_a_burst_is_not_in_the_future() {
        let mut meter = TrackMeter::default();
        feed(&mut meter, &stereo(500, 20), 1920, 1.0, 0);
        let reports = feed(&mut meter, &[stereo(300, 20), stereo(600, 4000)].concat(), 1920, 1.0, 9500);
        assert!((reports[0].at_ms - 9800).abs() <= 60, "{reports:?}");
        assert_eq!(meter.silence(10_400), Some(VoiceReport { is_active: false, level: 0.0, at_ms: 10_400 }));
        assert_eq!(meter.silence(10_500), None);
        let fast =
            feed(&mut meter, &[stereo(2000, 20), stereo(9000, 4000), stereo(2000, 20)].concat(), 1920, 20.0, 20_000);
        assert!(fast.iter().all(|report| report.at_ms <= 20_700), "{fast:?}");
        assert!(meter.lags.len() <= MAX_WITNESSES);
    }

    #[test]
    fn what_is_no_voice_stops_being_reported() {
        let mut meter = TrackMeter::default();
        // Floats, read as 16-bit samples, are a noise that does not end.
        let floats: Vec<u8> = (0..48_000 * 2 * 10).flat_map(|n| ((n % 97) as f32 / 97.0).to_le_bytes()).collect();
        let reports = feed(&mut meter, &floats, 1920, 1.0, 0);
        let last = reports.last().copied();
        assert!(last.is_none_or(|report| report.at_ms < 8000), "{last:?}");
        assert_eq!(feed(&mut TrackMeter::default(), &stereo(3000, 0), 1920, 1.0, 0), [], "silence");
        assert_eq!(meter.feed(&[], 0), []);
    }
}
