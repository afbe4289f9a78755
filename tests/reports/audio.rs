//! What the reports about audio share: marked speech as AAC frames, sent as it is spoken.

use std::time::Duration;

use serde_json::Value;
use tokio::time::{Instant, sleep_until};

use crate::support::app::TestApp;
use crate::support::publisher::{marked_audio, write_wav};
use crate::support::raw_publisher::{RawPublisher, Tag, aac_tags_filtered};

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

/// The same tag with random bytes for a frame.
pub fn random_payload(seed: u64, tag: &Tag) -> Tag {
    let mut state = seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1;
    let mut body = tag.body.clone();
    for byte in &mut body[2..] {
        (state, *byte) = (state ^ state << 13, (state >> 32) as u8);
        state ^= state >> 7;
        state ^= state << 17;
    }
    Tag { timestamp_ms: tag.timestamp_ms, body }
}

/// Sends each tag when its time has come. False when the server is gone.
pub async fn send_in_time(publisher: &mut RawPublisher, tags: &[Tag]) -> bool {
    let begun = Instant::now();
    let first_ms = tags.first().map_or(0, |tag| tag.timestamp_ms);
    for tag in tags {
        sleep_until(begun + Duration::from_millis((tag.timestamp_ms - first_ms).into())).await;
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
