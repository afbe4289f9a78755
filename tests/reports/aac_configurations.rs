//! What encoders say of their AAC, and what they send without saying it. All of it is heard, frame by frame, in one decoder
//! as long as the configuration stays the same.
//!
//! Reports: surround sound whose layout is in a program config element, or in none (google/ExoPlayer#7770,
//! shaka-project/shaka-packager#598, mbunkus/mkvtoolnix#2107, pkviet/obs-studio#29); HE-AAC that is announced as AAC-LC, or
//! in an extension behind it (Comcast/gaad#20, gpac/gpac#121); phones that change the microphone, mono for stereo, with a
//! new configuration or without (bluenviron/mediamtx#6220, HaishinKit#158 and #1497); flags in the first byte that say
//! mono (plonk/peercast-yt#99); an empty configuration before the right one (harlanc/xiu#110); frames of no byte
//! (ossrs/srs#2690, arut/nginx-rtmp-module#1734); timestamps beyond 24 and 32 bits (pedroSG94/RootEncoder#1179,
//! obsproject/obs-studio#11013); MP3 under its FourCC (moq-dev/moq#1967).

use std::path::Path;

use crate::audio::{Outcome, outcome};
use crate::support::raw_publisher::{Tag, encoded_tags};

const WAV: &str = "tests/fixtures/speech/librivox_0890.wav";

/// Name, what ffmpeg is told, Hz, and in hex the configuration that is said instead of the right one.
#[rustfmt::skip]
const CONFIGURATIONS: &[(&str, &str, u64, Option<&str>)] = &[
    ("2.1 in an element", "-ar 48000 -af aformat=channel_layouts=2.1", 48_000, None),
    ("5.1", "-ar 48000 -af aformat=channel_layouts=5.1", 48_000, None),
    ("5.1 at the side", "-ar 48000 -af aformat=channel_layouts=5.1(side)", 48_000, None),
    ("7.1", "-ar 48000 -af aformat=channel_layouts=7.1", 48_000, None),
    ("octagonal", "-ar 48000 -af aformat=channel_layouts=octagonal", 48_000, None),
    ("16 channels", "-ar 48000 -af aformat=channel_layouts=hexadecagonal", 48_000, None),
    ("96 kHz", "-ar 96000 -ac 2", 96_000, None),
    ("8 kHz", "-ar 8000 -ac 1", 8000, None),
    ("7350 Hz", "-ar 7350 -ac 1", 7350, None),
    ("two bytes", "-ar 48000 -ac 2", 48_000, Some("1190")),
    ("an extension without SBR", "-ar 48000 -ac 2", 48_000, Some("119056e500")),
    ("bytes behind it", "-ar 48000 -ac 2", 48_000, Some("1190ffffffffffffffff")),
    ("mono said, stereo sent", "-ar 48000 -ac 2", 48_000, Some("1188")),
    ("stereo said, mono sent", "-ar 48000 -ac 1", 48_000, Some("1190")),
    ("no channels said, stereo sent", "-ar 48000 -ac 2", 48_000, Some("1180")),
    ("no channels said, mono sent", "-ar 48000 -ac 1", 48_000, Some("118056e500")),
];

/// The same of the clip of HE-AAC, whose core has 24 kHz.
const HE_CONFIGURATIONS: &[(&str, &str)] =
    &[("explicit", "2b118800"), ("said as AAC-LC", "1310"), ("in an extension", "131056e598")];

async fn aac(encoding: &str) -> Vec<Tag> {
    let wav = Path::new(env!("CARGO_MANIFEST_DIR")).join(WAV);
    let arguments = encoding.split(' ').chain(["-c:a", "aac", "-b:a", "96k"]);
    encoded_tags(&wav, &arguments.collect::<Vec<_>>()).await
}

fn with_config(tags: &mut [Tag], config: &str) {
    tags[0].body = [&[0xAF, 0][..], &hex::decode(config).unwrap()].concat();
}

/// All frames are heard, and nothing else.
fn assert_heard(name: &str, got: &Outcome, frames: usize, rate: u64, decoders: u64) {
    let wanted = frames as u64 * 1024 * 1000 / rate;
    assert_eq!((got.lost, got.silent, got.frames, got.decoders), (0, 0, 0, decoders), "{name}: {got:?}");
    assert!(got.heard.abs_diff(wanted) <= 2 * decoders, "{name}: {got:?} of {wanted} ms");
}

#[actix::test]
async fn every_configuration_is_heard() {
    for (name, encoding, rate, config) in CONFIGURATIONS {
        let mut tags = aac(encoding).await;
        if let Some(config) = config {
            with_config(&mut tags, config);
        }
        assert_heard(name, &outcome(name, &tags).await, tags.len() - 1, *rate, 1);
    }
}

#[actix::test]
async fn he_aac_is_heard_however_it_is_announced() {
    let clip = crate::support::rtmp::tags("audio_heaac48s.flv");
    for (name, config) in HE_CONFIGURATIONS {
        let mut tags: Vec<Tag> =
            clip.iter().map(|(time, body)| Tag { timestamp_ms: *time as u32, body: body.to_vec() }).collect();
        with_config(&mut tags, config);
        assert_heard(name, &outcome(name, &tags).await, tags.len() - 1, 24_000, 1);
    }
}

/// Tags of one stream in a row: of each part, from and to.
fn joined(parts: &[(&[Tag], std::ops::Range<usize>)]) -> Vec<Tag> {
    let mut joined = Vec::new();
    let mut end_ms = 0;
    for (tags, range) in parts {
        let part = &tags[range.clone()];
        let (first, last) = (part[0].timestamp_ms, part[part.len() - 1].timestamp_ms);
        let at = |tag: &Tag| Tag { timestamp_ms: end_ms + tag.timestamp_ms - first, body: tag.body.clone() };
        joined.extend(part.iter().map(at));
        end_ms += last - first + 21;
    }
    joined
}

#[actix::test]
async fn a_microphone_that_changes_is_heard() {
    let (stereo, mono) = (aac("-ar 48000 -ac 2").await, aac("-ar 48000 -ac 1").await);
    let unsaid = joined(&[(&stereo, 0..80), (&mono, 80..160), (&stereo, 160..240)]);
    assert_heard("unsaid", &outcome("unsaid", &unsaid).await, 239, 48_000, 1);
    let said = joined(&[(&stereo, 0..80), (&mono, 0..1), (&mono, 80..160), (&stereo, 0..1), (&stereo, 160..240)]);
    assert_heard("said", &outcome("said", &said).await, 239, 48_000, 3);
    // A headset of 16 kHz: 80 frames of 64 ms.
    let headset = aac("-ar 16000 -ac 1").await;
    let slow = joined(&[(&stereo, 0..101), (&headset, 0..1), (&headset, 1..81), (&stereo, 0..1), (&stereo, 101..201)]);
    let got = outcome("headset", &slow).await;
    assert_heard("headset", &got, 200 + 3 * 80, 48_000, 3);
}

#[actix::test]
async fn what_lies_between_frames_takes_nothing_away() {
    let tags = aac("-ar 48000 -ac 2").await;
    let empty = |tag: &Tag| Tag { body: vec![0xAF, 1], ..tag.clone() };
    let nothing = |tag: &Tag| Tag { body: vec![], ..tag.clone() };
    let again = |tag: &Tag| Tag { body: tags[0].body.clone(), ..tag.clone() };
    type Change<'a> = &'a dyn Fn(&Tag) -> Tag;
    let inserted: [(&str, Change<'_>); 3] =
        [("frames of no byte", &empty), ("messages of no byte", &nothing), ("its configuration", &again)];
    for (name, between) in inserted {
        let sent: Vec<Tag> = tags.iter().flat_map(|tag| [tag.clone(), between(tag)]).collect();
        assert_heard(name, &outcome(name, &sent).await, tags.len() - 1, 48_000, 1);
    }
    let mut late = tags.clone();
    late.insert(0, Tag { timestamp_ms: 0, body: vec![0xAF, 0] });
    assert_heard("an empty one first", &outcome("empty", &late).await, tags.len() - 1, 48_000, 1);
    let flag = |tag: &Tag| Tag { body: [&[0xAE], &tag.body[1..]].concat(), ..tag.clone() };
    let mono: Vec<Tag> =
        tags.iter().enumerate().map(|(n, tag)| if n % 2 == 0 { flag(tag) } else { tag.clone() }).collect();
    assert_heard("flags that say mono", &outcome("flags", &mono).await, tags.len() - 1, 48_000, 1);
}

#[actix::test]
async fn timestamps_that_are_large_or_wrap_take_nothing_away() {
    let tags = aac("-ar 48000 -ac 2").await;
    for base in [(1 << 24) - 2000, (1 << 31) - 2000, u32::MAX - 2000, u32::MAX - 10] {
        let name = format!("from {base}");
        let shifted = |tag: &Tag| Tag { timestamp_ms: tag.timestamp_ms.wrapping_add(base), body: tag.body.clone() };
        let sent: Vec<Tag> = tags.iter().map(shifted).collect();
        assert_heard(&name, &outcome(&name, &sent).await, tags.len() - 1, 48_000, 1);
        // The configuration says 0, as many do, and the frames do not.
        let sent: Vec<Tag> = std::iter::once(tags[0].clone()).chain(tags[1..].iter().map(shifted)).collect();
        assert_heard(&name, &outcome(&name, &sent).await, tags.len() - 1, 48_000, 1);
    }
}

#[actix::test]
async fn mp3_under_its_fourcc_is_heard() {
    let wav = Path::new(env!("CARGO_MANIFEST_DIR")).join(WAV);
    let tags = encoded_tags(&wav, &["-c:a", "libmp3lame", "-ar", "44100", "-ac", "2", "-b:a", "128k"]).await;
    let enhanced = |tag: &Tag| Tag { body: [&[0x91][..], b".mp3", &tag.body[1..]].concat(), ..tag.clone() };
    let sent: Vec<Tag> = tags.iter().map(enhanced).collect();
    let (classic, got) = (outcome("classic", &tags).await, outcome("enhanced", &sent).await);
    assert_eq!((got.heard, got.lost, got.decoders), (classic.heard, 0, 1), "{got:?}");
}

/// Two streams in one, as muxers make them that know of no tracks: each change is a decoder of its own. There is a bound on
/// how fast they follow each other, and nothing is lost by waiting.
#[actix::test]
async fn a_configuration_that_changes_with_every_frame_has_a_budget_of_decoders() {
    const CHANGES: usize = 20;
    let (mono, stereo) = (aac("-ar 48000 -ac 1").await, aac("-ar 48000 -ac 2").await);
    let change = |n: usize| {
        let of = if n.is_multiple_of(2) { &mono } else { &stereo };
        let at = of[n + 1].timestamp_ms;
        [Tag { timestamp_ms: at, ..of[0].clone() }, of[n + 1].clone()]
    };
    let sent: Vec<Tag> = (0..CHANGES).flat_map(change).collect();
    let got = outcome("changes", &sent).await;
    assert_eq!(got.decoders, CHANGES as u64, "{got:?}");
    assert!(got.deferred > 0, "ten in a row, then one a second: {got:?}");
    let wanted = CHANGES as u64 * 1024 / 48;
    assert_eq!(got.lost, got.silent, "{got:?}");
    assert!((got.heard + got.lost).abs_diff(wanted) <= 2 * CHANGES as u64, "{got:?} of {wanted} ms");
}
