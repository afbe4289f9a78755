//! Length of the audio in a tag of an older codec, as its own headers say: timestamps of publishers are no measure.

/// Samples, and their rate in Hz.
pub type Samples = (u32, u32);

/// MPEG audio (ISO/IEC 11172-3 2.4.1.3, 13818-3): whole frames, one or more.
pub fn mpeg(data: &[u8]) -> Option<Samples> {
    Mpeg::default().samples(data)
}

/// MPEG audio whose frames need not begin where tags do, as relays cut it that know nothing of frames.
#[derive(Debug, Default)]
pub struct Mpeg {
    rate: u32,
    /// Bytes of the last frame that are still to come, or the beginning of its head.
    missing: usize,
    carry: Vec<u8>,
}

impl Mpeg {
    /// Of the frames that begin in the next tag; perhaps none.
    pub fn samples(&mut self, data: &[u8]) -> Option<Samples> {
        let last = std::mem::take(self);
        let joined = [&last.carry[..], data].concat();
        // One that was cut off is follmissing by a whole one instead.
        let is_parted = last.missing > 0 || !last.carry.is_empty();
        let goes_on = match joined.get(last.missing..) {
            Some(rest) if rest.len() >= MPEG_HEAD_BYTES => is_parted && mpeg_frame(rest).is_some(),
            _ => is_parted && mpeg_frame(data).is_none(),
        };
        let (bytes, mut at) = if goes_on { (&joined[..], last.missing) } else { (data, 0) };
        let (mut count, mut rate) = (0, if goes_on { last.rate } else { 0 });
        while let Some(frame) = bytes.get(at..).and_then(mpeg_frame) {
            at += frame.bytes;
            count += frame.samples;
            rate = frame.rate;
        }
        let carry = bytes.get(at..).filter(|rest| rest.len() < MPEG_HEAD_BYTES).unwrap_or_default().to_vec();
        *self = Self { rate, missing: at.saturating_sub(bytes.len()), carry };
        (rate > 0).then_some((count, rate))
    }
}

const MPEG_HEAD_BYTES: usize = 4;

struct MpegFrame {
    bytes: usize,
    samples: u32,
    rate: u32,
}

/// kbit/s of MPEG-1 layers I, II and III, and of MPEG-2 layers I and II or III.
const KBITS: [[u32; 14]; 5] = [
    [32, 64, 96, 128, 160, 192, 224, 256, 288, 320, 352, 384, 416, 448],
    [32, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320, 384],
    [32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320],
    [32, 48, 56, 64, 80, 96, 112, 128, 144, 160, 176, 192, 224, 256],
    [8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160],
];

fn mpeg_frame(data: &[u8]) -> Option<MpegFrame> {
    let [0xFF, second, third, _] = *data.first_chunk()? else { return None };
    // 3 is MPEG-1, 2 MPEG-2, 0 MPEG-2.5; 3 is layer I, 1 layer III.
    let (version, layer) = (second >> 3 & 3, second >> 1 & 3);
    if second >> 5 != 7 || version == 1 || layer == 0 {
        return None;
    }
    let row = match (version, layer) {
        (3, layer) => usize::from(3 - layer),
        (_, 3) => 3,
        _ => 4,
    };
    let bits = 1000 * KBITS[row].get(usize::from(third >> 4).checked_sub(1)?)?;
    let rate = [44_100, 48_000, 32_000].get(usize::from(third >> 2 & 3))? >> [2, 0, 1, 0][usize::from(version)];
    let samples = match (version, layer) {
        (_, 3) => 384,
        (3, _) | (_, 2) => 1152,
        _ => 576,
    };
    let padding = u32::from(third >> 1 & 1);
    let bytes = if layer == 3 { (12 * bits / rate + padding) * 4 } else { samples / 8 * bits / rate + padding };
    Some(MpegFrame { bytes: bytes as usize, samples, rate })
}

/// Nellymoser: blocks of 64 bytes.
pub fn nellymoser(data: &[u8], rate: u32) -> Option<Samples> {
    let blocks = data.len() as u32 / 64;
    (blocks > 0).then_some((blocks * 256, rate))
}

/// ADPCM as in SWF (SWF file format specification 19, "ADPCM sound data"): 2 bits say the width of a code, then blocks of
/// 4096 samples, each with 22 bits of head for each channel.
pub fn adpcm(data: &[u8], channels: u32, rate: u32) -> Option<Samples> {
    let width = u32::from(data.first()? >> 6) + 2;
    let bits = data.len() as u32 * 8 - 2;
    let (head, code) = (22 * channels, width * channels);
    let block = head + 4095 * code;
    let rest = bits % block;
    let last = if rest >= head { 1 + (rest - head) / code } else { 0 };
    let count = bits / block * 4096 + last;
    (count > 0).then_some((count, rate))
}

/// Bits of a Speex frame's narrow band by mode, and of its wide band (the Speex manual, 9.3 and 10.1); 0: there is none.
const SPEEX_NARROW: [usize; 9] = [5, 43, 119, 160, 220, 300, 364, 492, 79];
const SPEEX_WIDE: [usize; 5] = [4, 36, 112, 192, 352];
const SPEEX_FRAME: Samples = (320, 16_000);

/// Speex, always wide band in FLV: one frame or more.
pub fn speex(data: &[u8]) -> Option<Samples> {
    let frames = speex_frames(data).len() as u32;
    (frames > 0).then_some((frames * SPEEX_FRAME.0, SPEEX_FRAME.1))
}

/// One packet for each frame of a Speex packet with several, of which ffmpeg 5.1 decodes the first only. Frames are bits;
/// each packet is filled up with a terminator: a zero, then ones (the Speex manual, 5.5).
pub fn split_speex(data: &[u8]) -> Option<Vec<Vec<u8>>> {
    let frames = speex_frames(data);
    if frames.len() < 2 {
        return None;
    }
    let packet = |frame: std::ops::Range<usize>| {
        let mut bytes = vec![0; frame.len().div_ceil(8)];
        let filled = frame.len()..bytes.len() * 8;
        for n in 0..bytes.len() * 8 {
            let is_set = if n < filled.start { is_set(data, frame.start + n)? } else { n > filled.start };
            bytes[n / 8] |= u8::from(is_set) << (7 - n % 8);
        }
        Some(bytes)
    };
    frames.into_iter().map(packet).collect()
}

fn is_set(data: &[u8], bit: usize) -> Option<bool> {
    Some(data.get(bit / 8)? >> (7 - bit % 8) & 1 == 1)
}

/// The bits of each frame.
fn speex_frames(data: &[u8]) -> Vec<std::ops::Range<usize>> {
    let bits = |from: usize, count: usize| {
        (from..from + count).try_fold(0, |value, n| Some(value << 1 | usize::from(is_set(data, n)?)))
    };
    let (mut frames, mut at) = (Vec::new(), 0);
    // A wide band that begins where a frame should ends it; 15 is the end, 13 and 14 are no sound.
    while let Some(length) = bits(at, 5).and_then(|mode| SPEEX_NARROW.get(mode)) {
        let from = at;
        at += length;
        if let Some(mode @ 8..) = bits(at, 4) {
            let Some(wide) = SPEEX_WIDE.get(mode - 8) else { break };
            at += wide;
        }
        if at > data.len() * 8 {
            break;
        }
        frames.push(from..at);
    }
    frames
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mpeg_frames_are_counted_by_their_heads() {
        // Layer III, 44.1 kHz, 128 kbit/s, and one of 24 kHz, 64 kbit/s.
        let frame = |head: [u8; 4], bytes: usize| [&head[..], &vec![0; bytes - 4]].concat();
        let cd = frame([0xFF, 0xFB, 0x90, 0x00], 417);
        assert_eq!(mpeg(&cd), Some((1152, 44_100)));
        assert_eq!(mpeg(&[cd.clone(), cd.clone()].concat()), Some((2304, 44_100)));
        assert_eq!(mpeg(&frame([0xFF, 0xF3, 0x84, 0x00], 192)), Some((576, 24_000)));
        assert_eq!(mpeg(&frame([0xFF, 0xE3, 0x48, 0x00], 72)), Some((576, 8000)));
        // Cut every 100 bytes, also inside of a head; then one is cut off, and whole ones follow.
        let stream = cd.repeat(60);
        let mut cut = Mpeg::default();
        let counts: Vec<Samples> = stream.chunks(100).map(|tag| cut.samples(tag).unwrap()).collect();
        assert_eq!(counts.iter().map(|count| count.0).sum::<u32>(), 60 * 1152);
        assert!(counts.iter().all(|count| matches!(count, (0 | 1152, 44_100))), "{counts:?}");
        for tag in [&cd[..], &cd[..200], &cd, &cd[..200], &cd[..100], &cd] {
            assert_eq!(cut.samples(tag), Some((1152, 44_100)));
        }
        for nothing in [&[][..], &[1, 2, 3, 4], &[0xFF, 0xFB, 0xF0, 0], &[0xFF, 0xFB, 0x9C, 0], &[0xFF, 0xFB]] {
            assert_eq!(mpeg(nothing), None);
        }
    }

    #[test]
    fn blocks_of_the_flash_codecs_are_counted() {
        assert_eq!(nellymoser(&[0; 128], 8000), Some((512, 8000)));
        assert_eq!(nellymoser(&[0; 63], 8000), None);
        // 4-bit codes, mono: 2 + 22 bits, then two samples a byte.
        assert_eq!(adpcm(&[&[0x80][..], &[0; 2]].concat(), 1, 22_050), Some((1, 22_050)));
        assert_eq!(adpcm(&[&[0x80][..], &[0; 12]].concat(), 1, 22_050), Some((21, 22_050)));
        assert_eq!(adpcm(&[0x80], 1, 22_050), None);
    }

    #[test]
    fn speex_frames_are_counted_with_their_wide_band() {
        // Narrow mode 5 (300 bits), wide mode 1 (36 bits): 42 bytes.
        let frame = || {
            let mut bits = vec![false; 336];
            (bits[2], bits[4]) = (true, true);
            (bits[300], bits[303]) = (true, true);
            bits
        };
        let packed = |frames: usize, tail: &[bool]| {
            let mut bits: Vec<bool> = (0..frames).flat_map(|_| frame()).collect();
            bits.extend(tail);
            bits.chunks(8)
                .map(|byte| byte.iter().enumerate().fold(0u8, |sum, (n, bit)| sum | u8::from(*bit) << (7 - n)))
                .collect::<Vec<u8>>()
        };
        assert_eq!(speex(&packed(1, &[])), Some((320, 16_000)));
        assert_eq!(speex(&packed(4, &[])), Some((1280, 16_000)));
        assert_eq!(speex(&packed(2, &[false, true, true, true, true, false, false, false])), Some((640, 16_000)));
        assert_eq!(speex(&[0x78]), None);
        assert_eq!(speex(&[]), None);
        let end = [false, true, true, true, true, false, false, false];
        assert_eq!(split_speex(&packed(3, &end)), Some(vec![packed(1, &[]); 3]));
        assert_eq!(split_speex(&packed(1, &end)), None);
        // Narrow mode 1 alone: 43 bits, and five to fill.
        let narrow: Vec<bool> = [false, false, false, false, true].into_iter().chain([false; 38]).collect();
        let two = [&narrow[..], &narrow[..], &[false, true]].concat();
        let bytes: Vec<u8> = two
            .chunks(8)
            .map(|byte| byte.iter().enumerate().fold(0, |sum, (n, bit)| sum | u8::from(*bit) << (7 - n)))
            .collect();
        assert_eq!(split_speex(&bytes), Some(vec![vec![0b1000, 0, 0, 0, 0, 0b1111]; 2]));
    }
}
