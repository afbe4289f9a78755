//! Codecs other than AAC, as old encoders and telephone gateways send them. All that a healthy publisher sends is heard,
//! and nothing is lost; a frame in the middle that gives no sound is counted as lost, and the rest is heard.
//!
//! Reports: MP3 streams that crackle or fall silent where a frame is damaged, MP3 at 8 kHz that no decoder is found for,
//! PCM in tags of seconds, Speex packets and Nellymoser blocks cut short by a gateway.

use std::path::Path;

use crate::audio::{outcome, random_payload};
use crate::support::raw_publisher::{Tag, encoded_tags};
use crate::support::rtmp::run;

/// Of the clip that is sent.
const CLIP: &str = "tests/fixtures/speech/librivox_0870.wav";

struct Codec {
    name: &'static str,
    encoding: &'static str,
    /// How a frame is broken so that no decoder takes it: random bytes decode in the codecs without any redundancy.
    broken: Broken,
}

#[derive(Clone, Copy, PartialEq)]
enum Broken {
    Random,
    AllOnes,
    CutTo(usize),
    /// Whatever its bytes are, they are sound.
    Never,
}

const fn codec(name: &'static str, encoding: &'static str, broken: Broken) -> Codec {
    Codec { name, encoding, broken }
}

#[rustfmt::skip]
const CODECS: &[Codec] = &[
    codec("mp3-44", "-c:a libmp3lame -ar 44100 -ac 2 -b:a 128k", Broken::Random),
    codec("mp3-44-vbr", "-c:a libmp3lame -ar 44100 -ac 2 -q:a 6", Broken::Random),
    codec("mp3-22", "-c:a libmp3lame -ar 22050 -ac 1 -b:a 16k", Broken::Random),
    codec("mp3-shine", "-c:a libshine -ar 44100 -ac 2 -b:a 96k", Broken::Random),
    codec("nellymoser-44", "-c:a nellymoser -ar 44100 -ac 1", Broken::CutTo(40)),
    codec("nellymoser-16", "-c:a nellymoser -ar 16000 -ac 1", Broken::CutTo(40)),
    codec("nellymoser-8", "-c:a nellymoser -ar 8000 -ac 1", Broken::CutTo(40)),
    codec("adpcm-44", "-c:a adpcm_swf -ar 44100 -ac 2", Broken::CutTo(3)),
    codec("adpcm-11", "-c:a adpcm_swf -ar 11025 -ac 1", Broken::CutTo(2)),
    codec("speex", "-c:a libspeex -ar 16000 -ac 1", Broken::AllOnes),
    codec("a-law", "-c:a pcm_alaw -ar 8000 -ac 1", Broken::Never),
    codec("mu-law", "-c:a pcm_mulaw -ar 8000 -ac 1", Broken::Never),
    codec("pcm-16", "-c:a pcm_s16le -ar 44100 -ac 2", Broken::Never),
    codec("pcm-8", "-c:a pcm_u8 -ar 11025 -ac 1", Broken::Never),
];

async fn encoded(codec: &Codec) -> Vec<Tag> {
    let wav = Path::new(env!("CARGO_MANIFEST_DIR")).join(CLIP);
    encoded_tags(&wav, &codec.encoding.split(' ').collect::<Vec<_>>()).await
}

/// Of the whole clip, by the time of the last tag.
fn length_ms(tags: &[Tag]) -> u64 {
    let last = tags.last().unwrap().timestamp_ms;
    u64::from(last) + u64::from(last) / (tags.len() as u64 - 1)
}

#[actix::test]
async fn a_healthy_stream_of_every_codec_is_heard_and_loses_nothing() {
    for codec in CODECS {
        let tags = encoded(codec).await;
        let length = length_ms(&tags);
        let got = outcome(codec.name, &tags).await;
        assert_eq!((got.lost, got.silent, got.frames, got.decoders), (0, 0, 0, 1), "{}: {got:?}", codec.name);
        // The last tag of PCM is shorter than the others.
        let shorter = if codec.broken == Broken::Never { frame_ms(&tags) } else { 0 };
        assert!((length - shorter - 5..=length + 5).contains(&got.heard), "{}: {got:?} of {length} ms", codec.name);
    }
}

fn frame_ms(tags: &[Tag]) -> u64 {
    length_ms(tags) / tags.len() as u64
}

/// Two seconds in the middle, and single frames after them.
fn is_broken(tag: &Tag, index: usize) -> bool {
    (2000..4000).contains(&tag.timestamp_ms) || (tag.timestamp_ms >= 4500 && index.is_multiple_of(25))
}

fn break_frame(broken: Broken, index: usize, tag: &Tag) -> Tag {
    let first = tag.body[0];
    let body = match broken {
        Broken::Random | Broken::Never => random_payload(index as u64, tag, 1).body,
        Broken::AllOnes => [&[first][..], &vec![0xFF; tag.body.len() - 1]].concat(),
        Broken::CutTo(bytes) => tag.body[..bytes].to_vec(),
    };
    Tag { timestamp_ms: tag.timestamp_ms, body }
}

#[actix::test]
async fn frames_that_give_no_sound_are_lost_and_the_rest_is_heard() {
    for codec in CODECS {
        let tags = encoded(codec).await;
        let healthy = outcome(codec.name, &tags).await.heard;
        let is_broken = |(index, tag): &(usize, &Tag)| is_broken(tag, *index);
        let count = tags.iter().enumerate().filter(is_broken).count() as u64;
        let break_some = |(index, tag): (usize, &Tag)| match is_broken(&(index, tag)) {
            true => break_frame(codec.broken, index, tag),
            false => tag.clone(),
        };
        let sent: Vec<Tag> = tags.iter().enumerate().map(break_some).collect();
        let got = outcome(codec.name, &sent).await;
        let (name, frame) = (codec.name, frame_ms(&tags));
        assert_eq!(got.decoders, 1, "{name}: {got:?}");
        if codec.broken == Broken::Never {
            assert_eq!((got.heard, got.silent, got.lost, got.gaps), (healthy, 0, 0, 0), "{name}: {got:?}");
            continue;
        }
        // What is sent and not heard is lost. (Sound before a hole is filled up to a whole millisecond.)
        let holes = 20;
        assert!((got.heard + got.silent).abs_diff(healthy) <= 2, "{name}: {got:?} of {healthy} ms");
        assert!(got.silent.abs_diff(got.lost) <= holes, "{name}: {got:?}");
        // A damaged frame of MP3 may take its neighbour along.
        assert!((count..=count + 6).contains(&got.frames), "{name}: {got:?} for {count} frames of {frame} ms");
        assert!((1..=4).contains(&got.gaps), "{name}: {got:?}");
    }
}

/// A relay that knows nothing of frames cuts the stream where it likes.
#[actix::test]
async fn mp3_whose_frames_begin_anywhere_is_heard() {
    let whole = encoded(&CODECS[0]).await;
    let healthy = outcome("whole", &whole).await.heard;
    let stream: Vec<u8> = whole.iter().flat_map(|tag| tag.body[1..].to_vec()).collect();
    // 16 bytes are a millisecond at 128 kbit/s.
    for size in [100, 320, 1000] {
        let tag = |(n, bytes): (u32, &[u8])| Tag { timestamp_ms: n * size / 16, body: [&[0x2F], bytes].concat() };
        let tags: Vec<Tag> = (0..).zip(stream.chunks(size as usize)).map(tag).collect();
        let got = outcome("cut", &tags).await;
        assert_eq!((got.lost, got.silent, got.decoders), (0, 0, 1), "{size} bytes: {got:?}");
        assert!(got.heard.abs_diff(healthy) <= 27, "{size} bytes: {got:?} of {healthy} ms");
    }
}

/// FLV has a format of its own for it (14), which ffmpeg neither writes nor reads.
#[actix::test]
async fn mp3_at_8_khz_is_heard() {
    let wav = Path::new(env!("CARGO_MANIFEST_DIR")).join(CLIP);
    let encoding = "-c:a libmp3lame -ar 8000 -ac 1 -b:a 16k -write_xing 0 -id3v2_version 0 -f mp3 pipe:1";
    let arguments = ["-v", "error", "-i", wav.to_str().unwrap()].into_iter().chain(encoding.split(' '));
    let output = run("ffmpeg", &arguments.collect::<Vec<_>>()).await;
    assert!(output.success, "{}", output.stderr);
    // 576 samples, 72 ms, in 144 bytes.
    let tag = |(n, frame): (u32, &[u8])| Tag { timestamp_ms: n * 72, body: [&[0xE2], frame].concat() };
    let tags: Vec<Tag> = (0..).zip(output.stdout.chunks_exact(144)).map(tag).collect();
    let got = outcome("mp3-8", &tags).await;
    assert_eq!(
        (got.lost, got.heard.abs_diff(tags.len() as u64 * 72) <= 1),
        (0, true),
        "{got:?} of {} tags",
        tags.len()
    );
}

#[actix::test]
async fn pcm_in_tags_of_seconds_is_heard() {
    for (name, format, bytes, seconds) in [("a-law", 0x72, 8000 * 3, 3), ("pcm-8", 0x00, 5512 * 30, 30)] {
        let body: Vec<u8> = std::iter::once(format).chain((0..bytes).map(|n| (n * 7 % 251) as u8)).collect();
        let tags: Vec<Tag> = (0..3).map(|n| Tag { timestamp_ms: n * seconds * 1000, body: body.clone() }).collect();
        let got = outcome(name, &tags).await;
        assert_eq!((got.lost, got.silent, got.decoders), (0, 0, 1), "{name}: {got:?}");
        assert!(got.heard.abs_diff(u64::from(seconds) * 3000) <= 1, "{name}: {got:?}");
    }
}
