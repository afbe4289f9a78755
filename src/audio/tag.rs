//! The body of an FLV audio tag (FLV specification 10.1, E.4.2; Enhanced RTMP v2): its codec and its length in time.

use bytes::{BufMut, Bytes, BytesMut};

use super::aac::{self, AacConfig, AacError};
use super::adts;
use super::length;

/// Format byte of AAC; the flags in its low half are fixed.
const AAC: u8 = 0xAF;
pub const AAC_FORMAT: u8 = 10;
const SPEEX_FORMAT: u8 = 11;
pub const MP3_FORMAT: u8 = 2;
/// The same at 8 kHz, which no other format says. ffmpeg does not know it; the frames' own headers tell the rate.
const MP3_8_KHZ_FORMAT: u8 = 14;
const EX_HEADER: u8 = 9;
/// Packet types of Enhanced RTMP v2 that carry other packets.
const MULTITRACK: u8 = 5;
const MOD_EX: u8 = 7;

/// The kind of an audio tag.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TagKind {
    /// AAC sequence header.
    Config(AacConfig),
    AacFrame,
    /// AAC frames with a header of their own, which says this.
    Adts(AacConfig),
    /// Any other codec that ffmpeg decodes, without a header of its own.
    Other {
        codec: &'static str,
        length: Length,
    },
}

/// The length of a tag of another codec.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Length {
    /// As its size or its own headers say.
    Samples { count: u32, rate: u32 },
    /// Its headers cannot be read.
    Unknown,
}

impl Length {
    /// 0 where it is not known.
    pub fn ms(self) -> u64 {
        match self {
            Self::Samples { count, rate } => u64::from(count) * 1000 / u64::from(rate),
            Self::Unknown => 0,
        }
    }
}

/// Length of a tag whose frames need not begin where it does (MP3), after those before it.
pub fn length_after(body: &[u8], cut: &mut length::Mpeg) -> Option<Length> {
    let data = body.split_first().filter(|(first, _)| **first >> 4 == MP3_FORMAT)?.1;
    Some(cut.samples(data).map_or(Length::Unknown, |(count, rate)| Length::Samples { count, rate }))
}

/// So many bytes of earlier tags may belong to a tag's own frame (ISO/IEC 11172-3 2.4.2.7: `main_data_begin`, and the
/// frame before it, which it overlaps).
pub fn reservoir_bytes(body: &[u8]) -> usize {
    match body.first() {
        Some(first) if first >> 4 == MP3_FORMAT => 2 * 512,
        _ => 0,
    }
}

/// Each frame as a tag of its own, where a decoder would take the first of several only (Speex).
pub fn frames(body: &Bytes) -> Option<Vec<(Bytes, Length)>> {
    let (first, data) = body.split_first().filter(|(first, _)| **first >> 4 == SPEEX_FORMAT)?;
    let tag = |frame: Vec<u8>| {
        let length = length::speex(&frame).map_or(Length::Unknown, |(count, rate)| Length::Samples { count, rate });
        (Bytes::from([&[*first], &frame[..]].concat()), length)
    };
    Some(length::split_speex(data)?.into_iter().map(tag).collect())
}

/// Why audio is refused. The text goes to the publisher.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Unsupported {
    #[error("audio codec {0} is not supported; send AAC")]
    Codec(&'static str),
    #[error("audio of another track than the first")]
    SideTrack,
    #[error(transparent)]
    Aac(#[from] AacError),
}

impl Unsupported {
    /// The label in metrics.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Codec(name) => name,
            Self::SideTrack => "multitrack",
            Self::Aac(AacError::ObjectType(23)) => "aac-ld",
            Self::Aac(AacError::ObjectType(39)) => "aac-eld",
            Self::Aac(_) => "aac",
        }
    }
}

/// Brings a tag into its classic form (Enhanced RTMP carries AAC too). `None`: nothing to decode in it.
pub fn normalise(body: Bytes) -> Result<Option<Bytes>, Unsupported> {
    let Some(first) = body.first() else { return Ok(None) };
    if first >> 4 == MP3_8_KHZ_FORMAT {
        return Ok(Some([&[MP3_FORMAT << 4 | first & 0x0F], &body[1..]].concat().into()));
    }
    if first >> 4 != EX_HEADER {
        return Ok(Some(mended_config(&body)?.unwrap_or(body)));
    }
    let Some(Enhanced { packet, fourcc, track, payload }) = Enhanced::read(&body) else { return Ok(None) };
    if track.is_some_and(|track| track != 0) {
        return Err(Unsupported::SideTrack);
    }
    match (packet, fourcc) {
        (0 | 1, b"mp4a") => {
            let mut classic = BytesMut::with_capacity(2 + payload.len());
            classic.put_slice(&[AAC, packet]);
            classic.put_slice(payload);
            let classic = classic.freeze();
            Ok(Some(mended_config(&classic)?.unwrap_or(classic)))
        }
        // Coded frames; a sequence start of it holds nothing.
        (1, b".mp3") => Ok(Some([&[MP3_FORMAT << 4 | 0x0F], payload].concat().into())),
        (_, b".mp3") => Ok(None),
        // Sequence end, channel layout: nothing to hear.
        (_, b"mp4a") => Ok(None),
        (_, b"Opus") => Err(Unsupported::Codec("opus")),
        (_, b"fLaC") => Err(Unsupported::Codec("flac")),
        (_, b"ac-3" | b"ec-3") => Err(Unsupported::Codec("ac-3")),
        _ => Err(Unsupported::Codec("other")),
    }
}

/// A sequence header that decoders take, for one that holds an ADTS header, or that does not say its channels.
fn mended_config(body: &[u8]) -> Result<Option<Bytes>, Unsupported> {
    match body {
        [first, 0, config @ ..] if first >> 4 == AAC_FORMAT => match adts::config(config).transpose()? {
            Some(config) => Ok(Some(config.sequence_header())),
            None => Ok(aac::with_channels(config).map(|config| [&[*first, 0], &config[..]].concat().into())),
        },
        _ => Ok(None),
    }
}

/// A whole LOAS frame (ISO 14496-3, 1.7.2): eleven bits of its own, then its length.
fn is_latm(frame: &[u8]) -> bool {
    let [0x56, second, third, rest @ ..] = frame else { return false };
    second & 0xE0 == 0xE0 && usize::from(second & 0x1F) << 8 | usize::from(*third) == rest.len()
}

/// The codec of an enhanced tag, of the first track where it has many.
pub fn fourcc(body: &[u8]) -> Option<&[u8; 4]> {
    Enhanced::read(body).map(|enhanced| enhanced.fourcc)
}

/// The tag names its track.
pub fn is_multitrack(body: &[u8]) -> bool {
    Enhanced::read(body).is_some_and(|enhanced| enhanced.track.is_some())
}

/// An enhanced tag (Enhanced RTMP v2, "Enhanced audio") without its wrappings.
struct Enhanced<'a> {
    packet: u8,
    fourcc: &'a [u8; 4],
    track: Option<u8>,
    payload: &'a [u8],
}

impl<'a> Enhanced<'a> {
    /// `None`: it is a classic tag, or cut short.
    fn read(body: &'a [u8]) -> Option<Self> {
        let (first, mut rest) = body.split_first().filter(|(first, _)| **first >> 4 == EX_HEADER)?;
        let mut packet = first & 0x0F;
        while packet == MOD_EX {
            (packet, rest) = modified(rest)?;
        }
        if packet == MULTITRACK {
            return Self::first_track(rest);
        }
        let (fourcc, payload) = rest.split_first_chunk()?;
        Some(Self { packet, fourcc, track: None, payload })
    }

    /// One track, many of one codec, or many of many codecs; where there are many, each has its size. The first of
    /// them, and track 0 where there is one.
    fn first_track(body: &'a [u8]) -> Option<Self> {
        let (head, mut rest) = body.split_first()?;
        let (form, packet) = (head >> 4, head & 0x0F);
        let mut common = None;
        if form < 2 {
            (common, rest) = rest.split_first_chunk().map(|(fourcc, rest)| (Some(fourcc), rest))?;
        }
        let mut first = None;
        while !rest.is_empty() {
            let fourcc = match common {
                Some(fourcc) => fourcc,
                None => take(&mut rest)?,
            };
            let [track] = *take(&mut rest)?;
            let length = match form {
                0 => rest.len(),
                _ => take(&mut rest).map(|[a, b, c]| u32::from_be_bytes([0, *a, *b, *c]) as usize)?,
            };
            let payload = rest.split_off(..length)?;
            if track == 0 || first.is_none() {
                first = Some(Self { packet, fourcc, track: Some(track), payload });
            }
            if track == 0 {
                break;
            }
        }
        first
    }
}

/// Packet type and rest behind a modifier, which refines the time by less than a millisecond.
fn modified(mut rest: &[u8]) -> Option<(u8, &[u8])> {
    let mut length = usize::from(take::<1>(&mut rest)?[0]) + 1;
    if length == 256 {
        length = usize::from(u16::from_be_bytes(*take(&mut rest)?)) + 1;
    }
    rest.split_off(..length)?;
    let [kinds] = *take(&mut rest)?;
    Some((kinds & 0x0F, rest))
}

fn take<'a, const N: usize>(bytes: &mut &'a [u8]) -> Option<&'a [u8; N]> {
    let (part, rest) = bytes.split_first_chunk()?;
    *bytes = rest;
    Some(part)
}

/// Reads the head of a tag in its classic form. `None`: empty, or cut short.
pub fn inspect(body: &[u8]) -> Result<Option<TagKind>, Unsupported> {
    let Some((first, rest)) = body.split_first() else { return Ok(None) };
    let format = first >> 4;
    let flag_rate = [5_512, 11_025, 22_050, 44_100][usize::from(first >> 2 & 3)];
    let frame_bytes = (u32::from(first >> 1 & 1) + 1) << (first & 1);
    let pcm = |bytes_each: u32, rate| Length::Samples { count: rest.len() as u32 / bytes_each.max(1), rate };
    let channels = u32::from(first & 1) + 1;
    let frames =
        |known: Option<length::Samples>| known.map_or(Length::Unknown, |(count, rate)| Length::Samples { count, rate });
    let other = |codec, length| Ok((!rest.is_empty()).then_some(TagKind::Other { codec, length }));
    match format {
        AAC_FORMAT => match rest.split_first() {
            Some((0, config)) if !config.is_empty() => Ok(Some(TagKind::Config(AacConfig::parse(config)?))),
            Some((1, frame)) if !frame.is_empty() => match adts::config_of_frames(frame) {
                Some(config) => Ok(Some(TagKind::Adts(config))),
                None if is_latm(frame) => Err(Unsupported::Codec("AAC in LATM")),
                None => Ok(Some(TagKind::AacFrame)),
            },
            _ => Ok(None),
        },
        0 | 3 => other("PCM", pcm(frame_bytes, flag_rate)),
        1 => other("ADPCM", frames(length::adpcm(rest, channels, flag_rate))),
        MP3_FORMAT => other("MP3", frames(length::mpeg(rest))),
        4..=6 => other("Nellymoser", frames(length::nellymoser(rest, nellymoser_rate(format, flag_rate)))),
        7 | 8 => other("G.711", pcm(channels, 8_000)),
        SPEEX_FORMAT => other("Speex", frames(length::speex(rest))),
        _ => Err(Unsupported::Codec("other")),
    }
}

fn nellymoser_rate(format: u8, flag_rate: u32) -> u32 {
    match format {
        4 => 16_000,
        5 => 8_000,
        _ => flag_rate,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn body(hex: &str) -> Bytes {
        hex::decode(hex).unwrap().into()
    }

    #[test]
    fn enhanced_aac_becomes_classic_and_other_codecs_are_refused() {
        let asc = [&[0x90][..], b"mp4a", &[0x11, 0x90]].concat();
        assert_eq!(normalise(asc.into()), Ok(Some(body("af001190"))));
        let adts = [&[0x90][..], b"mp4a", &[0xFF, 0xF9, 0x5B, 0x45, 0x2E, 0, 0x23]].concat();
        assert_eq!(normalise(adts.into()), Ok(Some(body("af001328"))), "an ADTS header as the sequence header");
        let frame = [&[0x91][..], b"mp4a", &[0x21]].concat();
        assert_eq!(normalise(frame.into()), Ok(Some(body("af0121"))));
        let opus = [&[0x90][..], b"Opus", &[1]].concat();
        assert_eq!(normalise(opus.into()), Err(Unsupported::Codec("opus")));
        assert_eq!(normalise([&[0x95, 1][..], b"mp4a", &[1, 0x21]].concat().into()), Err(Unsupported::SideTrack));
        assert_eq!(normalise(body("af001180")), Ok(Some(body("af001190"))), "its channels are not said");
        let mp3 = [&[0x91][..], b".mp3", &[0xFF, 0xFB, 0x90, 0x44, 0]].concat();
        assert_eq!(normalise(mp3.into()), Ok(Some(body("2ffffb904400"))));
        assert_eq!(normalise(body("902e6d7033")), Ok(None));
        assert_eq!(normalise(body("e2ffe328c4")), Ok(Some(body("22ffe328c4"))), "MP3 at 8 kHz");
        assert_eq!(normalise(Bytes::new()), Ok(None));
        assert_eq!(normalise(body("9064")), Ok(None));
    }

    #[test]
    fn lengths_come_from_the_codec_where_it_says() {
        let length = |hex| match inspect(&body(hex)) {
            Ok(Some(TagKind::Other { length, .. })) => length,
            other => panic!("{other:?}"),
        };
        assert_eq!(length("2ffffb904400"), Length::Samples { count: 1152, rate: 44_100 });
        assert_eq!(length("2f0102030405"), Length::Unknown);
        assert_eq!(length("82d5d5d5d5"), Length::Samples { count: 4, rate: 8_000 });
        assert_eq!(length("3f0000000000000000"), Length::Samples { count: 2, rate: 44_100 });
        assert_eq!(length("b6010203"), Length::Samples { count: 320, rate: 16_000 });
        assert_eq!(inspect(&body("af0121")), Ok(Some(TagKind::AacFrame)));
        assert!(matches!(inspect(&body("af001190")), Ok(Some(TagKind::Config(c))) if c.rate == 48_000));
    }

    #[test]
    fn broken_heads_are_no_fault_and_strange_codecs_are_refused() {
        for nothing in ["", "af", "af00", "af01", "af02", "2f"] {
            assert_eq!(inspect(&body(nothing)), Ok(None), "{nothing}");
        }
        assert_eq!(inspect(&body("c000")), Err(Unsupported::Codec("other")));
        assert_eq!(inspect(&body("af00b99100")), Err(Unsupported::Aac(AacError::ObjectType(23))));
        assert_eq!(inspect(&body("af00f8e640")).unwrap_err().as_str(), "aac-eld");
    }
}
