//! What the reports about audio share: marked speech as AAC frames, sent as it is spoken; and what becomes of tags that are
//! sent at once.

use crate::support::wait::until;
use serde_json::Value;
use tokio::io::AsyncWriteExt;

use crate::support::app::TestApp;
use crate::support::pace::Pace;
use crate::support::publisher::{marked_audio, write_wav};
use crate::support::raw_publisher::{RawPublisher, Tag, aac_tags_filtered};
use crate::support::rtmp::Server;
use crate::support::rtmp_bytes::{handshake, message_at, publish};
use stenocast::actors::supervision::Exit;
use stenocast::transcript::GapReason;
use stenocast::transcript::event::TranscriptEvent;

pub const MARKERS: std::ops::RangeInclusive<u32> = 1..=10;
const PAUSE_MS: usize = 700;

/// Of so many AAC frames at 44.1 kHz.
pub fn frames_ms(frames: u64) -> u64 {
    frames * 1024 * 1000 / 44_100
}

pub fn markers() -> Vec<String> {
    MARKERS.map(|n| format!("marker {n}")).collect()
}

/// The markers as stereo AAC-LC at 44.1 kHz behind an ffmpeg filter: configuration and frames.
pub async fn marked_tags(filter: &str) -> (Tag, Vec<Tag>) {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let path = dir.path().join("marked.wav");
    write_wav(&path, &marked_audio(MARKERS, PAUSE_MS));
    let mut tags = aac_tags_filtered(&path, filter).await;
    let config = tags.remove(0);
    assert_eq!(config.body[..2], [0xAF, 0]);
    (config, tags)
}

/// The same tag with random bytes behind its head.
pub fn random_payload(seed: u64, tag: &Tag, head: usize) -> Tag {
    let mut state = seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1;
    let mut body = tag.body.clone();
    for byte in &mut body[head..] {
        (state, *byte) = (state ^ state << 13, (state >> 32) as u8);
        state ^= state >> 7;
        state ^= state << 17;
    }
    Tag { timestamp_ms: tag.timestamp_ms, body }
}

/// Sends each tag when its time has come. False when the server is gone.
pub async fn send_in_time(publisher: &mut RawPublisher, tags: &[Tag]) -> bool {
    let pace = Pace::begin();
    let first_ms = tags.first().map_or(0, |tag| tag.timestamp_ms);
    for tag in tags {
        pace.reaches(tag.timestamp_ms - first_ms).await;
        if !publisher.send(tag).await {
            return false;
        }
    }
    true
}

/// The session's state once everything of a publisher that has gone is decoded.
pub async fn all_decoded(server: &TestApp, slug: &str) -> Value {
    let is_done = |s: &Value| {
        let decoder = &s["children"]["ffmpegDecoder"]["state"];
        s["children"]["rtmpConnection"].is_null() && decoder["tagsWaiting"] == 0 && decoder["childPid"].is_null()
    };
    server.session_until(slug, "everything is decoded", is_done).await
}

/// What became of a publish, in ms.
#[derive(Debug)]
pub struct Outcome {
    pub heard: u64,
    pub silent: u64,
    pub lost: u64,
    /// That gave no sound.
    pub frames: u64,
    pub decoders: u64,
    /// Decoders that had to wait for their turn.
    pub deferred: u64,
    pub gaps: usize,
}

/// Publishes the tags at once, and waits for the last sample.
pub async fn outcome(name: &str, tags: &[Tag]) -> Outcome {
    let server = Server::start(&[]);
    let mut socket = handshake(server.address).await;
    socket.write_all(&publish("room")).await.unwrap();
    until(name, async || server.seen.lock().sessions.contains_key("room")).await;
    let bytes: Vec<u8> = tags.iter().flat_map(|tag| message_at(tag.timestamp_ms, 8, 1, &tag.body)).collect();
    socket.write_all(&bytes).await.unwrap();
    socket.shutdown().await.unwrap();
    server.flushed(1).await;
    let seen = server.seen.lock();
    assert_eq!(seen.connection_exits.last(), Some(&("room".to_owned(), Exit::Normal)), "{name}");
    let session = &seen.sessions["room"];
    assert_eq!(session.core.decode().check(), Ok(()), "{name}");
    let ms = |silent| {
        let chunks = session.chunks.lock();
        chunks.iter().filter(|chunk| chunk.inserted == silent).map(|chunk| chunk.pcm.len() as u64).sum::<u64>() / 32
    };
    Outcome {
        heard: ms(false),
        silent: ms(true),
        lost: session.core.ledger().account().lost_ms,
        frames: server.metrics.decode_errors_total.get(),
        decoders: server.metrics.ffmpeg_starts_total.get(),
        deferred: server.metrics.decoder_starts_deferred_total.get(),
        gaps: std::iter::from_fn(|| session.core.results.pop()).filter(is_loss).count(),
    }
}

fn is_loss(input: &TranscriptEvent) -> bool {
    matches!(input, TranscriptEvent::Gap { reason: GapReason::DecodeError, .. })
}
