//! Encoders whose timestamps say something else than their audio: groups of frames with one timestamp, jitter, zeros,
//! clocks of a wrong unit, of a wrong speed, or two of them in turn. The audio comes in real time and is whole, so every
//! word is heard once, at its time, and nothing is put between.

use futures_util::future::join_all;
use serde_json::Value;

use crate::support::app::TestApp;
use crate::support::pace::Pace;
use crate::support::publisher::{marked_audio, write_wav};
use crate::support::raw_publisher::{RawPublisher, Tag, encoded_tags};
use crate::support::stt::marker_service;
use crate::support::viewer::{Viewer, assert_contiguous, finals};

/// Timestamp of tag `n` (from 0, without the configuration), of those that it ought to have, in ms.
type Lie = fn(n: usize, own: &[u32]) -> u32;
const LIES: &[(&str, Lie)] = &[
    ("true", |n, own| own[n]),
    ("groups-of-2", |n, own| own[n / 2 * 2]),
    ("groups-of-8", |n, own| own[n / 8 * 8]),
    ("groups-of-32", |n, own| own[n / 32 * 32]),
    ("jitter", |n, own| own[n] + n as u32 * 7919 % 181),
    ("all-zero", |_, _| 0),
    ("half-speed", |n, own| own[n] / 2),
    ("double-speed", |n, own| own[n] * 2),
    ("beyond-2-32", |n, own| own[n].wrapping_sub(3000)),
    ("seconds", |n, own| own[n] / 1000),
    ("90-khz", |n, own| own[n] * 90),
    ("steps-back", |n, own| (own[n] + 9000).saturating_sub(n as u32 / 60 * 1500)),
    ("leaps", |n, own| own[n] + n as u32 / 60 * 10_000),
    ("begun-again", |n, own| own[n % 60]),
    ("two-clocks", |n, own| own[n] + n as u32 % 2 * 3_600_000),
];

const AAC_44: &[&str] = &["-c:a", "aac", "-b:a", "128k", "-ar", "44100", "-ac", "2"];
const OTHERS: &[(&str, &[&str])] = &[
    ("aac-48", &["-c:a", "aac", "-b:a", "96k", "-ar", "48000", "-ac", "1"]),
    ("aac-16", &["-c:a", "aac", "-b:a", "48k", "-ar", "16000", "-ac", "1"]),
    ("aac-8", &["-c:a", "aac", "-b:a", "32k", "-ar", "8000", "-ac", "1"]),
    ("mp3-44", &["-c:a", "libmp3lame", "-b:a", "128k", "-ar", "44100", "-ac", "2"]),
    ("mp3-22", &["-c:a", "libmp3lame", "-b:a", "64k", "-ar", "22050", "-ac", "1"]),
    ("pcm", &["-c:a", "pcm_s16le", "-ar", "44100", "-ac", "1"]),
    ("g711", &["-c:a", "pcm_alaw", "-ar", "8000", "-ac", "1"]),
    ("adpcm", &["-c:a", "adpcm_swf", "-ar", "22050", "-ac", "1"]),
    ("speex", &["-c:a", "libspeex", "-b:a", "42k", "-ar", "16000", "-ac", "1"]),
    ("speex-4", &["-c:a", "libspeex", "-b:a", "42k", "-ar", "16000", "-ac", "1", "-frames_per_packet", "4"]),
];
/// What is tried with each of these.
const FEW_LIES: &[&str] = &["groups-of-2", "groups-of-8", "all-zero", "double-speed"];

const MARKERS: std::ops::RangeInclusive<u32> = 1..=8;
const PAUSE_MS: usize = 600;
/// Between the time of a word and the time at which it was sent: less is promised, a loaded machine sends late.
const NEAR_MS: u64 = 1500;

/// Where each marker begins, in ms.
fn starts() -> Vec<u64> {
    let before = |n: u32| marked_audio(1..n, PAUSE_MS).len() as u64 / 16;
    MARKERS.map(before).collect()
}

struct Input {
    slug: String,
    lie: Lie,
    tags: Vec<Tag>,
}

async fn encode(server: &TestApp, encoding: &[&str]) -> Vec<Tag> {
    let wav = server.dir.path().join("marked.wav");
    write_wav(&wav, &marked_audio(MARKERS, PAUSE_MS));
    encoded_tags(&wav, encoding).await
}

/// Publishes in real time and compares what was heard.
async fn is_heard(server: &TestApp, input: &Input) {
    let slug = &input.slug;
    let mut viewer = Viewer::join(server, slug).await;
    let mut publisher = RawPublisher::publish(server.app.rtmp_addr().unwrap(), slug).await.expect("it may");
    let (configs, frames): (Vec<&Tag>, Vec<&Tag>) = input.tags.iter().partition(|tag| tag.body[..2] == [0xAF, 0]);
    for config in configs {
        assert!(publisher.send(config).await);
    }
    let own: Vec<u32> = frames.iter().map(|frame| frame.timestamp_ms).collect();
    let pace = Pace::begin();
    for (n, frame) in frames.iter().enumerate() {
        pace.reaches(own[n]).await;
        let tag = Tag { timestamp_ms: (input.lie)(n, &own), body: frame.body.clone() };
        assert!(publisher.send(&tag).await, "{slug}: cut off at tag {n}");
    }
    viewer.until("every marker", |seen| finals(seen).len() >= MARKERS.count()).await;
    let is_out = |state: &Value| {
        state["audio"]["receivedMs"].as_u64().is_some_and(|ms| ms + 500 >= u64::from(own[own.len() - 1]))
    };
    let state = server.session_until(slug, "all audio is out", is_out).await;
    let audio = &state["audio"];
    assert_eq!(state["children"]["ffmpegDecoder"]["state"]["insertedMs"], 0, "{slug}: silence was put in");
    assert_eq!([&audio["lostMs"], &audio["skippedMs"]], [0, 0], "{slug}: {audio}");
    assert_eq!(audio["decodedMs"], audio["receivedMs"], "{slug}");
    drop(publisher);
    server.end(slug).await;
    viewer.until_ended().await;
    let expected: Vec<String> = MARKERS.map(|n| format!("marker {n}")).collect();
    assert_eq!(viewer.finals(), expected, "{slug}: each word once");
    assert_contiguous(&viewer.seqs(), 1);
    let gaps: Vec<_> = viewer.seen.iter().filter(|m| m["type"] == "gap").collect();
    assert!(gaps.is_empty(), "{slug}: {gaps:?}");
    for (line, sent_ms) in viewer.seen.iter().filter(|m| m["isFinal"] == true).zip(starts()) {
        let start_ms = line["startMs"].as_u64().unwrap();
        assert!(start_ms.abs_diff(sent_ms) < NEAR_MS, "{slug}: {line} was sent at {sent_ms}");
    }
}

#[actix::test]
async fn of_aac_in_real_time_every_word_is_heard_at_its_time() {
    let stt = marker_service().await;
    let server = TestApp::start(&[("GLADIA_API_URL", &stt.url)]).await;
    let tags = encode(&server, AAC_44).await;
    let inputs: Vec<Input> =
        LIES.iter().map(|(name, lie)| Input { slug: (*name).to_owned(), lie: *lie, tags: tags.clone() }).collect();
    join_all(inputs.iter().map(|input| is_heard(&server, input))).await;
    server.stop().await;
}

#[actix::test]
async fn of_every_codec_in_real_time_every_word_is_heard_at_its_time() {
    let stt = marker_service().await;
    let server = TestApp::start(&[("GLADIA_API_URL", &stt.url), ("RTMP_MAX_PER_IP", "100")]).await;
    let mut inputs = Vec::new();
    for (codec, encoding) in OTHERS {
        let tags = encode(&server, encoding).await;
        for (name, lie) in LIES.iter().filter(|(name, _)| FEW_LIES.contains(name)) {
            inputs.push(Input { slug: format!("{codec}.{name}"), lie: *lie, tags: tags.clone() });
        }
    }
    for some in inputs.chunks(12) {
        join_all(some.iter().map(|input| is_heard(&server, input))).await;
    }
    server.stop().await;
}
