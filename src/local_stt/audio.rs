//! From what a client may send (raw samples of several kinds) to what engines take: PCM16, 16 kHz, one stream a channel.

use super::engine::SAMPLE_RATE;

/// Taps of the resampling filter on each side of its centre.
const HALF_TAPS: usize = 16;
/// Share of the lower Nyquist frequency that is kept.
const PASS: f64 = 0.95;

/// A WAV header is not longer.
const MAX_HEADER_BYTES: usize = 64 << 10;

/// Encodings of the request, in its own words.
pub const ENCODINGS: [&str; 3] = ["wav/pcm", "wav/alaw", "wav/ulaw"];
pub const BIT_DEPTHS: [u32; 4] = [8, 16, 24, 32];
pub const SAMPLE_RATES: [u32; 5] = [8000, 16_000, 32_000, 44_100, 48_000];
pub const MAX_CHANNELS: u32 = 8;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Encoding {
    Pcm,
    Alaw,
    Ulaw,
}

/// The format of a session's bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Format {
    pub encoding: Encoding,
    pub bit_depth: u32,
    pub sample_rate: u32,
    pub channels: u32,
}

impl Format {
    /// Bytes of one sample of all channels.
    pub fn frame_bytes(&self) -> usize {
        let depth = if self.encoding == Encoding::Pcm { self.bit_depth } else { 8 };
        (depth / 8 * self.channels) as usize
    }

    pub fn bytes_per_second(&self) -> usize {
        self.frame_bytes() * self.sample_rate as usize
    }
}

/// Turns a session's bytes into samples; keeps what does not fill a frame for the next call.
pub struct Reader {
    format: Format,
    rest: Vec<u8>,
    resamplers: Vec<Resampler>,
    at_start: bool,
}

impl Reader {
    pub fn new(format: Format) -> Self {
        let resamplers = (0..format.channels).map(|_| Resampler::new(format.sample_rate as usize)).collect();
        Self { format, rest: Vec::new(), resamplers, at_start: true }
    }

    /// Samples of each channel.
    pub fn read(&mut self, bytes: &[u8]) -> Vec<Vec<i16>> {
        self.rest.extend_from_slice(bytes);
        if self.at_start {
            let Some(header) = wav_header(&self.rest) else {
                return vec![Vec::new(); self.format.channels as usize];
            };
            self.at_start = false;
            self.rest.drain(..header);
        }
        let frame = self.format.frame_bytes();
        let whole = self.rest.len() / frame * frame;
        let width = frame / self.format.channels as usize;
        let mut channels: Vec<Vec<i16>> = vec![Vec::with_capacity(whole / frame); self.format.channels as usize];
        for (index, sample) in self.rest[..whole].chunks_exact(width).enumerate() {
            channels[index % self.format.channels as usize].push(self.sample(sample));
        }
        self.rest.drain(..whole);
        channels.iter().zip(&mut self.resamplers).map(|(samples, r)| r.resample(samples)).collect()
    }

    fn sample(&self, bytes: &[u8]) -> i16 {
        match (self.format.encoding, bytes) {
            (Encoding::Alaw, [b]) => alaw(*b),
            (Encoding::Ulaw, [b]) => ulaw(*b),
            (_, [b]) => (i16::from(*b) - 128) << 8,
            // Little endian: the two last bytes are the loudest.
            (_, [.., low, high]) => i16::from_le_bytes([*low, *high]),
            (_, []) => 0,
        }
    }
}

/// Length of a WAV header at the start of `bytes`, None while that cannot be told. Some clients send one although raw
/// samples are asked for; it may come in pieces, and samples after it are only read right from where it ends.
fn wav_header(bytes: &[u8]) -> Option<usize> {
    const MAGIC: [(usize, &[u8]); 2] = [(0, b"RIFF"), (8, b"WAVE")];
    let is_other =
        |(at, magic): (usize, &[u8])| bytes.iter().skip(at).zip(magic).any(|(byte, expected)| byte != expected);
    if MAGIC.into_iter().any(is_other) || bytes.len() > MAX_HEADER_BYTES {
        return Some(0);
    }
    let mut at = 12;
    while let Some(chunk) = bytes.get(at..at + 8) {
        if chunk.starts_with(b"data") {
            return Some(at + 8);
        }
        let length = u32::from_le_bytes([chunk[4], chunk[5], chunk[6], chunk[7]]) as usize;
        at += 8 + length.next_multiple_of(2);
    }
    None
}

/// ITU-T G.711.
fn ulaw(byte: u8) -> i16 {
    let b = !byte;
    let magnitude = ((i16::from(b & 0x0F) << 3) + 0x84) << ((b & 0x70) >> 4);
    if b & 0x80 != 0 { 0x84 - magnitude } else { magnitude - 0x84 }
}

/// ITU-T G.711.
fn alaw(byte: u8) -> i16 {
    let b = byte ^ 0x55;
    let mantissa = i16::from(b & 0x0F) << 4;
    let magnitude = match (b & 0x70) >> 4 {
        0 => mantissa + 8,
        segment => (mantissa + 0x108) << (segment - 1),
    };
    if b & 0x80 != 0 { magnitude } else { -magnitude }
}

/// Windowed-sinc conversion of one channel to [`SAMPLE_RATE`], continuous over calls.
struct Resampler {
    /// Input samples per output sample.
    step: f64,
    /// Width of the filter, in input samples on each side.
    reach: usize,
    cutoff: f64,
    /// Input from position `from`.
    history: Vec<i16>,
    from: i64,
    produced: u64,
}

impl Resampler {
    fn new(rate: usize) -> Self {
        let step = rate as f64 / SAMPLE_RATE as f64;
        let reach = (HALF_TAPS as f64 * step.max(1.0)).ceil() as usize;
        // Zeros before the beginning stand in for the audio that was not there.
        Self { step, reach, cutoff: PASS / step.max(1.0), history: vec![0; reach], from: -(reach as i64), produced: 0 }
    }

    fn resample(&mut self, samples: &[i16]) -> Vec<i16> {
        if self.step == 1.0 {
            return samples.to_vec();
        }
        self.history.extend_from_slice(samples);
        let end = self.from + self.history.len() as i64;
        let mut output = Vec::with_capacity((samples.len() as f64 / self.step) as usize + 1);
        loop {
            let centre = self.produced as f64 * self.step;
            if centre.floor() as i64 + self.reach as i64 >= end {
                break;
            }
            output.push(self.interpolate(centre));
            self.produced += 1;
        }
        let needed = (self.produced as f64 * self.step).floor() as i64 - self.reach as i64;
        let spare = (needed - self.from).clamp(0, self.history.len() as i64);
        self.history.drain(..spare as usize);
        self.from += spare;
        output
    }

    fn interpolate(&self, centre: f64) -> i16 {
        let first = (centre.floor() as i64 - self.reach as i64 + 1).max(self.from);
        let last = centre.floor() as i64 + self.reach as i64;
        let sum: f64 = (first..=last)
            .map(|i| f64::from(self.history[(i - self.from) as usize]) * self.weight(centre - i as f64))
            .sum();
        sum.round().clamp(-32768.0, 32767.0) as i16
    }

    /// Hann-windowed sinc.
    fn weight(&self, distance: f64) -> f64 {
        let x = distance * self.cutoff * std::f64::consts::PI;
        let sinc = if x == 0.0 { 1.0 } else { x.sin() / x };
        let window = (distance / (self.reach as f64 + 1.0) * std::f64::consts::FRAC_PI_2).cos().powi(2);
        sinc * window * self.cutoff
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::f64::consts::TAU;

    const PCM16: Format = Format { encoding: Encoding::Pcm, bit_depth: 16, sample_rate: 16_000, channels: 1 };

    fn tone(rate: u32, hz: f64) -> Vec<i16> {
        (0..rate).map(|i| ((f64::from(i) / f64::from(rate) * hz * TAU).sin() * 10_000.0) as i16).collect()
    }

    fn bytes(samples: &[i16]) -> Vec<u8> {
        samples.iter().flat_map(|s| s.to_le_bytes()).collect()
    }

    fn loudness(samples: &[i16]) -> f64 {
        (samples.iter().map(|&s| f64::from(s).powi(2)).sum::<f64>() / samples.len() as f64).sqrt()
    }

    #[test]
    fn the_native_format_passes_unchanged_whatever_the_cuts() {
        let samples = tone(16_000, 440.0);
        let mut reader = Reader::new(PCM16);
        let read: Vec<i16> = bytes(&samples).chunks(333).flat_map(|c| reader.read(c).remove(0)).collect();
        assert_eq!(read, samples);
    }

    #[test]
    fn rates_are_converted_and_what_cannot_be_heard_is_removed() {
        for rate in [8000, 32_000, 44_100, 48_000] {
            let format = Format { sample_rate: rate, ..PCM16 };
            let convert = |hz| {
                let mut reader = Reader::new(format);
                let audio = bytes(&tone(rate, hz));
                audio.chunks(1234).flat_map(|c| reader.read(c).remove(0)).collect::<Vec<i16>>()
            };
            let low = convert(1000.0);
            assert!(low.len().abs_diff(16_000) < 60, "{rate}: {}", low.len());
            let expected = tone(16_000, 1000.0);
            let error: Vec<i16> = low.iter().zip(&expected).map(|(a, b)| a.wrapping_sub(*b)).collect();
            assert!(loudness(&error[100..15_900]) < 200.0, "{rate}: {}", loudness(&error[100..15_900]));
            if rate > 16_000 {
                assert!(loudness(&convert(11_000.0)) < 200.0, "{rate}: 11 kHz folds back");
            }
        }
    }

    #[test]
    fn channels_are_taken_apart() {
        let mut reader = Reader::new(Format { channels: 2, ..PCM16 });
        assert_eq!(reader.read(&bytes(&[1, -1, 2, -2])), [vec![1, 2], vec![-1, -2]]);
        assert_eq!(reader.read(&[5, 0, 6]), [Vec::<i16>::new(), Vec::new()]);
        assert_eq!(reader.read(&[0]), [vec![5], vec![6]]);
    }

    #[test]
    fn depths_and_laws_are_read() {
        let read = |encoding, bit_depth, bytes: &[u8]| {
            Reader::new(Format { encoding, bit_depth, ..PCM16 }).read(bytes).remove(0)
        };
        assert_eq!(read(Encoding::Pcm, 8, &[128, 255, 0]), [0, 127 << 8, -128 << 8]);
        assert_eq!(read(Encoding::Pcm, 24, &[0xFF, 0x34, 0x12]), [0x1234]);
        assert_eq!(read(Encoding::Pcm, 32, &[0xFF, 0xFF, 0x34, 0x12]), [0x1234]);
        assert_eq!(read(Encoding::Ulaw, 8, &[0xFF, 0x80, 0x00]), [0, 32124, -32124]);
        assert_eq!(read(Encoding::Alaw, 8, &[0xD5, 0xAA, 0x2A]), [8, 32256, -32256]);
    }

    #[test]
    fn a_wav_header_is_skipped() {
        let mut file = b"RIFF\x24\0\0\0WAVEfmt \x10\0\0\0".to_vec();
        file.extend([0; 16]);
        file.extend(b"data\x04\0\0\0\x01\0\x02\0");
        assert_eq!(Reader::new(PCM16).read(&file), [vec![1, 2]]);
    }

    #[test]
    fn a_wav_header_may_come_in_pieces_and_have_odd_chunks() {
        let mut file = b"RIFF\xFF\xFF\xFF\xFFWAVEfmt \x10\0\0\0".to_vec();
        file.extend([0; 16]);
        file.extend(b"LIST\x03\0\0\0abc\0");
        file.extend(b"data\xFF\xFF\xFF\xFF\xFF\x34\x12\xFF\x35\x12");
        for size in [1, 7, 12, 44, 1000] {
            let mut reader = Reader::new(Format { bit_depth: 24, ..PCM16 });
            let read: Vec<i16> = file.chunks(size).flat_map(|piece| reader.read(piece).remove(0)).collect();
            assert_eq!(read, [0x1234, 0x1235], "in pieces of {size}");
        }
        // Samples that begin as a header does are samples.
        let mut reader = Reader::new(PCM16);
        let read: Vec<i16> = b"RIxxRI".chunks(1).flat_map(|piece| reader.read(piece).remove(0)).collect();
        assert_eq!(read, [0x4952, 0x7878, 0x4952]);
        let long = [b"RIFF\0\0\0\0WAVE".as_slice(), &vec![1; 2 * MAX_HEADER_BYTES]].concat();
        assert_eq!(Reader::new(PCM16).read(&long)[0].len(), long.len() / 2);
    }
}
