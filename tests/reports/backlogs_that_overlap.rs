//! An encoder that was cut off does not know what has arrived. When it is back, it sends what it had to keep meanwhile in a
//! burst, and may begin with what it has sent already. Nothing is missing: no gap, and each word once.

use futures_util::future::join_all;
use serde_json::Value;
use tokio::time::Duration;

use crate::support::app::TestApp;
use crate::support::pace::Pace;
use crate::support::publisher::{marked_audio, write_wav};
use crate::support::raw_publisher::{RawPublisher, Tag, aac_tags};
use crate::support::stt::marker_service;
use crate::support::viewer::{Viewer, assert_contiguous, finals};

struct Return {
    name: &'static str,
    away_ms: u64,
    /// Frames that come a second time, or, below zero, that never come.
    overlap: i64,
    /// Speed of the burst, in per cent of real time.
    speed: u64,
}

const RETURNS: &[Return] = &[
    Return { name: "on-the-frame", away_ms: 3000, overlap: 0, speed: 10_000 },
    Return { name: "two-frames", away_ms: 3000, overlap: 2, speed: 10_000 },
    Return { name: "a-second", away_ms: 3000, overlap: 43, speed: 10_000 },
    Return { name: "three-seconds", away_ms: 4000, overlap: 129, speed: 10_000 },
    Return { name: "at-once", away_ms: 0, overlap: 43, speed: 10_000 },
    Return { name: "over-a-thin-line", away_ms: 3000, overlap: 20, speed: 200 },
    Return { name: "a-hole", away_ms: 4000, overlap: -86, speed: 10_000 },
];

/// The first part ends in the silence after this one.
const BEFORE: u32 = 5;
const MARKERS: std::ops::RangeInclusive<u32> = 1..=12;
/// So that two seconds may be missing without a word.
const PAUSE_MS: usize = 700;
const LONG_PAUSE_MS: usize = 2600;

fn audio() -> Vec<i16> {
    [
        marked_audio(1..=BEFORE, PAUSE_MS),
        vec![0; LONG_PAUSE_MS * 16],
        marked_audio(BEFORE + 1..=*MARKERS.end(), PAUSE_MS),
    ]
    .concat()
}

async fn returns(server: &TestApp, case: &Return) {
    let slug = case.name;
    let mut viewer = Viewer::join(server, slug).await;
    let wav = server.dir.path().join(format!("{slug}.wav"));
    write_wav(&wav, &audio());
    let tags = aac_tags(&wav).await;
    let (config, frames) = tags.split_first().expect("a configuration");
    let rtmp = server.app.rtmp_addr().unwrap();
    let cut_ms = (marked_audio(1..=BEFORE, PAUSE_MS).len() / 16 + 200) as u64;
    let cut = frames.iter().take_while(|tag| u64::from(tag.timestamp_ms) < cut_ms).count();

    let mut publisher = RawPublisher::publish(rtmp, slug).await.expect("it may");
    assert!(publisher.send(config).await);
    let live = Pace::begin();
    for tag in &frames[..cut] {
        live.reaches(tag.timestamp_ms).await;
        assert!(publisher.send(tag).await);
    }
    let is_heard = |state: &Value| state["audio"]["receivedMs"].as_u64().is_some_and(|ms| ms + 200 >= cut_ms);
    server.session_until(slug, "the first part is heard", is_heard).await;
    publisher.reset().await;
    Pace::begin().reaches(case.away_ms).await;

    let mut publisher = RawPublisher::publish(rtmp, slug).await.expect("it may");
    assert!(publisher.send(&Tag { timestamp_ms: frames[cut].timestamp_ms, body: config.body.clone() }).await);
    let from = (cut as i64 - case.overlap) as usize;
    let mut burst = Duration::ZERO;
    let back = Pace::begin();
    for tag in &frames[from..] {
        // Behind real time it comes as fast as the line takes it.
        if live.is_past(tag.timestamp_ms) {
            back.reaches(burst.as_millis() as u64).await;
            burst += Duration::from_micros(23_220 * 100 / case.speed);
        } else {
            live.reaches(tag.timestamp_ms).await;
        }
        assert!(publisher.send(tag).await, "{slug}: it was cut off");
    }
    viewer.until("every marker", |seen| finals(seen).len() >= MARKERS.count()).await;
    let state = server.session(slug).await;
    drop(publisher);
    server.end(slug).await;
    viewer.until_ended().await;
    assert_eq!(viewer.finals(), MARKERS.map(|n| format!("marker {n}")).collect::<Vec<_>>(), "{slug}: each word once");
    assert_contiguous(&viewer.seqs(), 1);
    let skipped_ms = (case.overlap.max(0) as f64 * 23.22) as u64;
    let audio = &state["audio"];
    assert!(audio["skippedMs"].as_u64().unwrap().abs_diff(skipped_ms) < 30, "{slug}: {audio}");
    assert_eq!(audio["lostMs"], 0, "{slug}: {audio}");
    let gaps: Vec<_> = viewer.seen.iter().filter(|m| m["type"] == "gap").collect();
    if case.overlap >= 0 {
        assert!(gaps.is_empty(), "{slug}: {gaps:?}");
        return;
    }
    let [gap] = gaps[..] else { panic!("{slug}: {gaps:?}") };
    let announced_ms = gap["endMs"].as_u64().unwrap() - gap["startMs"].as_u64().unwrap();
    assert!(announced_ms.abs_diff((-case.overlap as f64 * 23.22) as u64) < 60, "{slug}: {gap}");
    assert_eq!(gap["reason"], "publisher_lost");
}

#[actix::test]
async fn what_is_sent_again_is_heard_once_and_the_time_away_is_no_gap() {
    let stt = marker_service().await;
    let server = TestApp::start(&[("GLADIA_API_URL", &stt.url)]).await;
    join_all(RETURNS.iter().map(|case| returns(&server, case))).await;
    server.stop().await;
}
