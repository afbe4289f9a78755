//! Two clocks that never meet: an encoder whose audio pauses while only its video goes on, and whose timestamps know
//! nothing of it; one that is too slow, or too fast. What is heard later has the time at which it came, and the label of
//! who spoke then.

use std::ops::Range;

use futures_util::future::join_all;
use serde_json::{Value, json};

use crate::support::app::{TestApp, admin_token};
use crate::support::pace::Pace;
use crate::support::publisher::{marked_audio, write_wav};
use crate::support::raw_publisher::{RawPublisher, Tag, aac_tags, encoded_tags};
use crate::support::stt::marker_service;
use crate::support::viewer::{Viewer, finals};

/// A pause of the audio in ms, and whether video comes meanwhile.
const PAUSES: &[(u64, bool)] = &[(1000, true), (3000, false), (7000, true), (7000, false), (15_000, true)];
/// Speeds of an encoder in per cent of real time.
const SPEEDS: &[u64] = &[80, 90, 110, 125];

const PAUSE_MS: usize = 600;
/// Session time is never further from arrival, as promised; and so much for a machine that sends late.
const BOUND_MS: u64 = 1000 + 400;

async fn tags(server: &TestApp, markers: u32) -> (Vec<Tag>, Vec<u64>) {
    let wav = server.dir.path().join(format!("{markers}.wav"));
    write_wav(&wav, &marked_audio(1..=markers, PAUSE_MS));
    let starts = (1..=markers).map(|n| marked_audio(1..n, PAUSE_MS).len() as u64 / 16).collect();
    (aac_tags(&wav).await, starts)
}

/// Sends each tag when `at_ms` says, of its timestamp.
async fn send(publisher: &mut RawPublisher, tags: &[Tag], at_ms: impl Fn(u64) -> u64) {
    let pace = Pace::begin();
    for tag in tags {
        pace.reaches(at_ms(tag.timestamp_ms.into())).await;
        assert!(publisher.send(tag).await);
    }
}

fn lines(seen: &[Value]) -> Vec<&Value> {
    seen.iter().filter(|m| m["isFinal"] == true).collect()
}

fn gaps(seen: &[Value]) -> Vec<&Value> {
    seen.iter().filter(|m| m["type"] == "gap").collect()
}

/// Tells every 200 ms that `who` speaks.
async fn speaks(viewer: &mut Viewer, who: &str, pace: Pace, span_ms: Range<u64>) {
    for at_ms in span_ms.step_by(200) {
        pace.reaches(at_ms).await;
        viewer.send(&json!({"type": "active_speakers", "speakers": [{"identity": who, "level": 0.9}]})).await;
    }
}

/// Four markers of ann's, the pause, four of bob's.
async fn pauses(server: &TestApp, pause_ms: u64, with_video: bool) {
    let slug = format!("pause-{pause_ms}-{with_video}");
    let mut viewer = Viewer::join(server, &slug).await;
    // An admin's word counts about others.
    let token = admin_token(&slug);
    let mut witness = Viewer::connect_as(server.app.http_addr(), &slug, "", &token).await;
    let (tags, starts) = tags(server, 8).await;
    let first_after_ms = starts[4] - 200;
    let pace = Pace::begin();
    let reports = async {
        speaks(&mut witness, "ann", pace, 0..first_after_ms).await;
        speaks(&mut witness, "bob", pace, first_after_ms + pause_ms..starts[7] + pause_ms + 2000).await;
    };
    let audio = async {
        let mut publisher = RawPublisher::publish(server.app.rtmp_addr().unwrap(), &slug).await.expect("it may");
        let is_before = |tag: &&Tag| u64::from(tag.timestamp_ms) < first_after_ms;
        let count = tags.iter().take_while(is_before).count();
        send(&mut publisher, &tags[..count], |at| at).await;
        for n in 1..pause_ms / 100 {
            pace.reaches(first_after_ms + n * 100).await;
            assert!(!with_video || publisher.send_video((first_after_ms + n * 100) as u32).await);
        }
        pace.reaches(first_after_ms + pause_ms).await;
        send(&mut publisher, &tags[count..], |at| at - first_after_ms).await;
        publisher
    };
    let (publisher, ()) = tokio::join!(audio, reports);
    viewer.until("every marker", |seen| finals(seen).len() >= 8).await;
    drop(publisher);
    server.end(&slug).await;
    viewer.until_ended().await;
    assert_eq!(viewer.finals(), (1..=8).map(|n| format!("marker {n}")).collect::<Vec<_>>(), "{slug}");
    for ((line, start_ms), n) in lines(&viewer.seen).iter().zip(&starts).zip(0..) {
        let sent_ms = start_ms + if n < 4 { 0 } else { pause_ms };
        assert!(line["startMs"].as_u64().unwrap().abs_diff(sent_ms) < BOUND_MS, "{slug}: {line} was sent at {sent_ms}");
        let speaker = &line["speaker"]["identity"];
        let wanted = if n < 4 { "ann" } else { "bob" };
        assert!(speaker.is_null() || speaker == wanted, "{slug}: {line}");
    }
    let labels = lines(&viewer.seen).iter().filter(|line| !line["speaker"].is_null()).count();
    assert!(labels >= 6, "{slug}: {labels} of 8 lines have a label");
    let told: u64 =
        gaps(&viewer.seen).iter().map(|gap| gap["endMs"].as_u64().unwrap() - gap["startMs"].as_u64().unwrap()).sum();
    if pause_ms >= 2000 {
        assert_eq!(gaps(&viewer.seen).len(), 1, "{slug}: {:?}", gaps(&viewer.seen));
        assert!(told.abs_diff(pause_ms) < 600, "{slug}: {:?}", gaps(&viewer.seen));
    }
    assert!(gaps(&viewer.seen).iter().all(|gap| gap["reason"] == "publisher_lost"));
}

#[actix::test]
async fn a_pause_is_a_gap_of_its_length_and_who_speaks_after_it_keeps_its_words() {
    let stt = marker_service().await;
    let server = TestApp::start(&[("GLADIA_API_URL", &stt.url), ("SPEAKER_OFFSET_MS", "0")]).await;
    join_all(PAUSES.iter().map(|(pause_ms, with_video)| pauses(&server, *pause_ms, *with_video))).await;
    server.stop().await;
}

/// At the end comes another AAC configuration, and one more marker in it.
async fn runs_at(server: &TestApp, speed: u64) {
    let slug = format!("speed-{speed}");
    let mut viewer = Viewer::join(server, &slug).await;
    let (tags, starts) = tags(server, 14).await;
    let wav = server.dir.path().join("last.wav");
    write_wav(&wav, &marked_audio([15], PAUSE_MS));
    let other = encoded_tags(&wav, &["-c:a", "aac", "-b:a", "96k", "-ar", "48000", "-ac", "1"]).await;
    let mut publisher = RawPublisher::publish(server.app.rtmp_addr().unwrap(), &slug).await.expect("it may");
    send(&mut publisher, &tags, |at| at * 100 / speed).await;
    let last_ms = tags.last().unwrap().timestamp_ms + 23;
    let other: Vec<Tag> =
        other.into_iter().map(|tag| Tag { timestamp_ms: tag.timestamp_ms + last_ms, ..tag }).collect();
    send(&mut publisher, &other, |at| (at - u64::from(last_ms)) * 100 / speed).await;
    viewer.until("every marker", |seen| finals(seen).len() >= 15).await;
    let state = server.session(&slug).await;
    assert_eq!(state["children"]["ffmpegDecoder"]["state"]["insertedMs"], 0, "{slug}: silence was put in");
    drop(publisher);
    server.end(&slug).await;
    viewer.until_ended().await;
    assert_eq!(viewer.finals(), (1..=15).map(|n| format!("marker {n}")).collect::<Vec<_>>(), "{slug}");
    assert!(gaps(&viewer.seen).is_empty(), "{slug}: {:?}", gaps(&viewer.seen));
    for (line, start_ms) in lines(&viewer.seen).iter().zip(&starts) {
        let sent_ms = start_ms * 100 / speed;
        assert!(line["startMs"].as_u64().unwrap().abs_diff(sent_ms) < BOUND_MS, "{slug}: {line} was sent at {sent_ms}");
    }
}

#[actix::test]
async fn a_slow_or_fast_encoder_is_followed_without_gap_or_loss() {
    let stt = marker_service().await;
    let server = TestApp::start(&[("GLADIA_API_URL", &stt.url)]).await;
    join_all(SPEEDS.iter().map(|speed| runs_at(&server, *speed))).await;
    assert_eq!(server.app.metrics().lost_audio_ms(), 0);
    server.stop().await;
}
