//! Promise: a fault inside a session costs no word, and the other sessions do not notice. Marked audio goes in by real
//! ffmpeg and RTMP; every marker must come out once, in order, whatever breaks on the way.

mod support;

use serde_json::Value;
use stenocast::actors::root::Drill;
use stenocast::actors::supervision::ChildKind;
use stenocast::transcript::Slug;
use support::app::TestApp;
use support::pace::Pace;
use support::publisher::{ffmpeg, marked_audio, publish, write_wav};
use support::raw_publisher::{RawPublisher, Tag, aac_tags};
use support::stt::marker_service;
use support::viewer::{Viewer, assert_contiguous};

const MARKERS: std::ops::RangeInclusive<u32> = 1..=12;
const PAUSE_MS: usize = 700;

fn expected() -> Vec<String> {
    MARKERS.map(|n| format!("marker {n}")).collect()
}

fn audio(server: &TestApp) -> std::path::PathBuf {
    let path = server.dir.path().join("marked.wav");
    write_wav(&path, &marked_audio(MARKERS, PAUSE_MS));
    path
}

/// Publishes in real time, breaks something when `when` finals have been seen, and returns the viewer at the end.
async fn with_fault<F: Future<Output = ()>>(server: &TestApp, slug: &str, when: usize, fault: F) -> Viewer {
    let mut viewer = Viewer::join(server, slug).await;
    let publisher = ffmpeg(&audio(server), &server.rtmp_url(slug), true);
    viewer.until("the first finals", |seen| support::viewer::finals(seen).len() >= when).await;
    fault.await;
    let output = publisher.wait_with_output().await.unwrap();
    assert!(output.status.success(), "the publisher noticed: {}", String::from_utf8_lossy(&output.stderr));
    server.end(slug).await;
    viewer.until_ended().await;
    viewer
}

async fn assert_nothing_lost(server: &TestApp, slug: &str, viewer: &Viewer) {
    assert_eq!(viewer.finals(), expected(), "every marker once, in order");
    assert_contiguous(&viewer.seqs(), 1);
    assert_eq!(server.stored_finals(slug).await, expected(), "rows");
    assert_eq!(server.app.metrics().lost_audio_ms(), 0, "lost audio");
    let gaps: Vec<_> = viewer.seen.iter().filter(|m| m["type"] == "gap").collect();
    assert!(gaps.is_empty(), "no gap: {gaps:?}");
}

fn restarts(session: &Value, child: &str) -> u64 {
    session["children"][child]["restarts"].as_u64().unwrap_or(0)
}

#[actix::test]
async fn an_undisturbed_stream_loses_nothing() {
    let stt = marker_service().await;
    let server = TestApp::start(&[("GLADIA_API_URL", &stt.url)]).await;
    let viewer = with_fault(&server, "calm", 1, async {}).await;
    assert_nothing_lost(&server, "calm", &viewer).await;
    server.stop().await;
}

#[actix::test]
async fn a_killed_ffmpeg_child_loses_nothing() {
    let stt = marker_service().await;
    let server = TestApp::start(&[("GLADIA_API_URL", &stt.url), ("DECODER", "process")]).await;
    let viewer = with_fault(&server, "killed", 3, async {
        let session = server.session("killed").await;
        let pid = session["children"]["ffmpegDecoder"]["state"]["childPid"].as_i64().expect("the child's pid");
        nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid as i32), nix::sys::signal::Signal::SIGKILL).unwrap();
        server.session_until("killed", "the child is back", |s| restarts(s, "ffmpegDecoder") == 1).await;
    })
    .await;
    assert_nothing_lost(&server, "killed", &viewer).await;
    server.stop().await;
}

#[actix::test]
async fn a_cut_recogniser_socket_loses_nothing() {
    let stt = marker_service().await;
    let server = TestApp::start(&[("GLADIA_API_URL", &stt.url)]).await;
    let viewer = with_fault(&server, "cut", 3, stt.drop_sockets()).await;
    assert_nothing_lost(&server, "cut", &viewer).await;
    server.stop().await;
}

#[actix::test]
async fn a_panic_in_each_child_is_repaired_and_loses_nothing() {
    let children = [
        (ChildKind::TranscriptRoom, "transcriptRoom"),
        (ChildKind::SpeakerTracker, "speakerTracker"),
        (ChildKind::GladiaBridge, "gladiaBridge"),
        (ChildKind::FfmpegDecoder, "ffmpegDecoder"),
    ];
    let stt = marker_service().await;
    let server = TestApp::start(&[("GLADIA_API_URL", &stt.url)]).await;
    let mut neighbour = Viewer::join(&server, "neighbour").await;
    let undisturbed = ffmpeg(&audio(&server), &server.rtmp_url("neighbour"), true);
    let viewer = with_fault(&server, "panics", 2, async {
        for (kind, name) in children {
            let crash = Drill::Crash { slug: Some(Slug::parse("panics").unwrap()), kind };
            assert!(server.app.root().send(crash).await.unwrap());
            server
                .session_until("panics", "repaired", |s| {
                    restarts(s, name) == 1 && !s["children"][name]["state"].is_null()
                })
                .await;
        }
    })
    .await;
    assert_nothing_lost(&server, "panics", &viewer).await;
    undisturbed.wait_with_output().await.unwrap();
    server.end("neighbour").await;
    neighbour.until_ended().await;
    assert_eq!(neighbour.finals(), expected(), "the other session did not notice");
    let text = server.app.metrics().encode();
    for (kind, _) in children {
        assert!(text.contains(&format!("stenocast_actor_panics_total{{kind=\"{}\"}} 1", kind.as_str())), "{text}");
    }
    server.stop().await;
}

#[actix::test]
async fn a_panic_of_the_session_actor_keeps_publisher_and_words() {
    let stt = marker_service().await;
    let server = TestApp::start(&[("GLADIA_API_URL", &stt.url)]).await;
    let viewer = with_fault(&server, "supervisor", 3, async {
        let crash = Drill::Crash { slug: Some(Slug::parse("supervisor").unwrap()), kind: ChildKind::Session };
        assert!(server.app.root().send(crash).await.unwrap());
        server.session_until("supervisor", "restarted", |s| s["restarts"] == 1 && s["phase"] == "live").await;
    })
    .await;
    assert_nothing_lost(&server, "supervisor", &viewer).await;
    server.stop().await;
}

#[actix::test]
async fn a_publish_that_is_asked_while_the_registry_restarts_waits_for_it() {
    let server = TestApp::start(&[("GLADIA_API_URL", "http://127.0.0.1:9")]).await;
    let rtmp = server.app.rtmp_addr().unwrap();
    for attempt in 0..2 {
        let slug = format!("early-{attempt}");
        let crash = Drill::Crash { slug: None, kind: ChildKind::SessionRegistry };
        assert!(server.app.root().send(crash).await.unwrap());
        assert!(RawPublisher::publish(rtmp, &slug).await.is_ok(), "the publish is taken");
        server.session_until(&slug, "its session", |session| !session.is_null()).await;
    }
    server.stop().await;
}

#[actix::test]
async fn a_publisher_that_returns_goes_on_in_the_same_epoch() {
    let stt = marker_service().await;
    let server = TestApp::start(&[("GLADIA_API_URL", &stt.url)]).await;
    let mut viewer = Viewer::join(&server, "blip").await;
    let file = audio(&server);
    publish(&file, &server.rtmp_url("blip"), false).await;
    viewer.until("the publisher's loss", |seen| seen.iter().any(|m| m["status"] == "waiting")).await;
    publish(&file, &server.rtmp_url("blip"), false).await;
    server.end("blip").await;
    viewer.until_ended().await;
    let twice = [expected(), expected()].concat();
    assert_eq!(viewer.finals(), twice);
    assert_contiguous(&viewer.seqs(), 1);
    let gap = viewer.seen.iter().find(|m| m["type"] == "gap").expect("the time away is announced");
    assert_eq!(gap["reason"], "publisher_lost");
    let epochs: std::collections::HashSet<_> = viewer.seen.iter().map(|m| m["epoch"].to_string()).collect();
    assert_eq!(epochs.len(), 1);
    server.stop().await;
}

/// Length of an AAC frame, rounded up.
const FRAME_MS: u64 = 24;

/// The tags of the first markers of the file, and where their audio ends.
fn first_markers(tags: &[Tag]) -> (&[Tag], u32) {
    let until_ms = start_of(2) as u32;
    let count = tags.iter().enumerate().take_while(|(n, tag)| *n == 0 || tag.timestamp_ms < until_ms).count();
    (&tags[..count], until_ms)
}

async fn send_at_once(tags: &[Tag], publisher: &mut RawPublisher, from_ms: u32) {
    for (n, tag) in tags.iter().enumerate() {
        let timestamp_ms = if n == 0 { 0 } else { from_ms + tag.timestamp_ms };
        assert!(publisher.send(&Tag { timestamp_ms, body: tag.body.clone() }).await);
    }
}

/// The session's clock, once it has all tags that were sent.
async fn uptime_ms(server: &TestApp, slug: &str, tags: &[Tag]) -> u64 {
    let has_tags = |s: &Value| s["children"]["rtmpConnection"]["audioTags"] == tags.len() && s["edges"]["tags"] == 0;
    let state = server.session_until(slug, "its audio is there", has_tags).await;
    state["uptimeMs"].as_u64().expect("a time")
}

/// Waits until the time of what was sent is long over.
async fn silent(server: &TestApp, slug: &str, until_ms: u32) {
    let is_over = |s: &Value| s["uptimeMs"].as_u64().is_some_and(|ms| ms > u64::from(until_ms) + 4000);
    server.session_until(slug, "it is silent", is_over).await;
}

/// `sent_ms` is a time of the session at which what it is silent after had been sent.
async fn one_gap_after(mut viewer: Viewer, until_ms: u32, sent_ms: u64) {
    viewer.until("four finals", |seen| support::viewer::finals(seen).len() >= 4).await;
    let is_gap = |seen: &[Value]| seen.iter().any(|m| m["type"] == "gap");
    viewer.until("a gap", is_gap).await;
    let gaps: Vec<_> = viewer.seen.iter().filter(|m| m["type"] == "gap").collect();
    let [gap] = gaps[..] else { panic!("{gaps:?}") };
    assert_eq!(gap["reason"], "publisher_lost");
    let (start_ms, end_ms) = (gap["startMs"].as_u64().unwrap(), gap["endMs"].as_u64().unwrap());
    let until_ms = u64::from(until_ms);
    // The publisher came some time after the session had begun, and before it had sent. A decoder keeps its last frame to
    // itself, and the last frame ends after the marker.
    let range = until_ms - FRAME_MS..=until_ms + sent_ms + FRAME_MS;
    assert!(range.contains(&start_ms) && end_ms > until_ms + 4000, "{gap}: sent up to {until_ms} after {sent_ms}");
    let starts = viewer.seen.iter().filter(|m| m["isFinal"] == true).map(|m| m["startMs"].as_u64().unwrap());
    assert!(starts.skip(2).all(|at| at + 100 > end_ms), "what is heard is not in the gap: {:?}", viewer.seen);
}

#[actix::test]
async fn a_publisher_that_falls_silent_and_is_displaced_leaves_a_gap() {
    let stt = marker_service().await;
    let server = TestApp::start(&[("GLADIA_API_URL", &stt.url)]).await;
    let viewer = Viewer::join(&server, "silent").await;
    let rtmp = server.app.rtmp_addr().unwrap();
    let tags = aac_tags(&audio(&server)).await;
    let mut first = RawPublisher::publish(rtmp, "silent").await.expect("it may");
    let (tags, until_ms) = first_markers(&tags);
    send_at_once(tags, &mut first, 0).await;
    let sent_ms = uptime_ms(&server, "silent", tags).await;
    silent(&server, "silent", until_ms).await;
    let mut second = RawPublisher::publish(rtmp, "silent").await.expect("it may");
    send_at_once(tags, &mut second, 0).await;
    one_gap_after(viewer, until_ms, sent_ms).await;
    server.stop().await;
}

#[actix::test]
async fn a_pause_within_one_publish_leaves_a_gap() {
    let stt = marker_service().await;
    let server = TestApp::start(&[("GLADIA_API_URL", &stt.url)]).await;
    let viewer = Viewer::join(&server, "paused").await;
    let tags = aac_tags(&audio(&server)).await;
    let mut publisher = RawPublisher::publish(server.app.rtmp_addr().unwrap(), "paused").await.expect("it may");
    let (tags, until_ms) = first_markers(&tags);
    send_at_once(tags, &mut publisher, 0).await;
    let sent_ms = uptime_ms(&server, "paused", tags).await;
    silent(&server, "paused", until_ms).await;
    send_at_once(tags, &mut publisher, 60_000).await;
    one_gap_after(viewer, until_ms, sent_ms).await;
    server.stop().await;
}

/// Encoders that fight for a slug, each still sending: the fourth takeover in a row is refused, and who publishes goes on.
#[actix::test]
async fn the_fourth_takeover_in_a_row_is_refused_and_the_publisher_goes_on() {
    let stt = marker_service().await;
    let server = TestApp::start(&[("GLADIA_API_URL", &stt.url), ("MAX_SESSIONS", "1")]).await;
    let rtmp = server.app.rtmp_addr().unwrap();
    let tags = aac_tags(&audio(&server)).await;
    let mut publishers = Vec::new();
    for n in 0..=3 {
        let mut publisher = RawPublisher::publish(rtmp, "fought").await.unwrap_or_else(|_| panic!("takeover {n}"));
        for tag in &tags[..3] {
            assert!(publisher.send(&Tag { timestamp_ms: tag.timestamp_ms, body: tag.body.clone() }).await);
        }
        let sends = |s: &Value| s["children"]["rtmpConnection"]["audioTags"] == 3 && s["edges"]["tags"] == 0;
        server.session_until("fought", "it sends", sends).await;
        publishers.push(publisher);
    }
    let said = RawPublisher::publish(rtmp, "fought").await.err().expect("one too many");
    assert!(String::from_utf8_lossy(&said).contains("another encoder is publishing"));
    assert_eq!(server.app.metrics().rtmp_takeovers_total.get(), 3);
    assert_eq!(server.app.metrics().rtmp_refused_total.with_label_values(&["takeover_limit"]).get(), 1);
    let last = publishers.last_mut().expect("four");
    assert!(last.send(&Tag { timestamp_ms: tags[3].timestamp_ms, body: tags[3].body.clone() }).await);
    server.session_until("fought", "it goes on", |s| s["children"]["rtmpConnection"]["audioTags"] == 4).await;
    let said = RawPublisher::publish(rtmp, "another").await.err().expect("MAX_SESSIONS is 1");
    assert!(String::from_utf8_lossy(&said).contains("sessions are in use"));
    server.stop().await;
}

/// Production has seen LiveKit Egress publish 34 times in 8 s; its timestamps go on.
#[actix::test]
async fn a_storm_of_reconnects_costs_no_word_and_no_recogniser_session() {
    const PUBLISHES: u32 = 34;
    const EACH_MS: u32 = 235;
    let stt = marker_service().await;
    let server = TestApp::start(&[("GLADIA_API_URL", &stt.url)]).await;
    let mut viewer = Viewer::join(&server, "storm").await;
    let tags = aac_tags(&audio(&server)).await;
    let (config, frames) = tags.split_first().expect("a configuration");
    let rtmp = server.app.rtmp_addr().unwrap();
    let pace = Pace::begin();
    let mut sent = frames.iter().peekable();
    for n in 0..PUBLISHES {
        let mut publisher = RawPublisher::publish(rtmp, "storm").await.expect("nobody is refused");
        let mut tag = config.clone();
        tag.timestamp_ms = n * EACH_MS;
        assert!(publisher.send(&tag).await);
        let until = if n + 1 == PUBLISHES { u32::MAX } else { (n + 1) * EACH_MS };
        while let Some(tag) = sent.next_if(|tag| tag.timestamp_ms < until) {
            pace.reaches(tag.timestamp_ms).await;
            assert!(publisher.send(tag).await, "publisher {n} was cut off");
        }
        publisher.vanish();
    }
    server.end("storm").await;
    viewer.until_ended().await;
    assert_eq!(viewer.finals(), expected(), "every marker once, in order");
    assert_contiguous(&viewer.seqs(), 1);
    assert_eq!(server.stored_finals("storm").await, expected());
    let metrics = server.app.metrics();
    let connects: Vec<String> =
        metrics.encode().lines().filter(|l| l.contains("stt_connects_total{")).map(str::to_owned).collect();
    // One POST and one WebSocket.
    assert_eq!(connects, [r#"stenocast_stt_connects_total{result="ok"} 2"#]);
    assert_eq!((metrics.sessions_total.get(), metrics.stt_resumes_total.get(), metrics.lost_audio_ms()), (1, 0, 0));
    let statuses: Vec<_> = viewer.seen.iter().filter(|m| m["type"] == "status").map(|m| m["status"].clone()).collect();
    assert_eq!(statuses, ["live", "ended"], "nobody was away for long");
    let gaps: Vec<_> = viewer.seen.iter().filter(|m| m["type"] == "gap").collect();
    assert!(gaps.is_empty(), "its timestamps go on: {gaps:#?}");
    // The recogniser heard what was spoken and the silences that close sentences; times are those of the speech.
    for (line, n) in viewer.seen.iter().filter(|m| m["isFinal"] == true).zip(0..) {
        let spoken_ms = start_of(n);
        let start_ms = line["startMs"].as_u64().unwrap();
        assert!(start_ms.abs_diff(spoken_ms) < 1500, "marker {} is at {start_ms}, was spoken at {spoken_ms}", n + 1);
    }
    server.stop().await;
}

/// Where marker `n` (from 0) begins in [`audio`].
fn start_of(n: u32) -> u64 {
    let lengths = MARKERS.take(n as usize).map(|n| marked_audio([n], PAUSE_MS).len() as u64 / 16);
    lengths.sum()
}

#[actix::test]
async fn without_a_grace_period_each_publish_is_a_session_of_its_own() {
    let stt = marker_service().await;
    let server = TestApp::start(&[("GLADIA_API_URL", &stt.url), ("SESSION_GRACE_MS", "0")]).await;
    let file = server.dir.path().join("one.wav");
    write_wav(&file, &marked_audio([5], PAUSE_MS));
    for n in 0..8 {
        let slug = format!("short-{n}");
        publish(&file, &server.rtmp_url(&slug), false).await;
        server.session_until(&slug, "the session is over", Value::is_null).await;
        assert_eq!(server.stored_finals(&slug).await, ["marker 5"]);
    }
    server.stop().await;
}

#[actix::test]
async fn twenty_rooms_hear_only_themselves() {
    let stt = marker_service().await;
    let server = TestApp::start(&[("GLADIA_API_URL", &stt.url), ("DECODER", "auto")]).await;
    let rooms: Vec<u32> = (1..=20).collect();
    let mut viewers = Vec::new();
    let mut publishers = Vec::new();
    for n in &rooms {
        let slug = format!("room-{n}");
        viewers.push(Viewer::join(&server, &slug).await);
        let path = server.dir.path().join(format!("{slug}.wav"));
        write_wav(&path, &marked_audio([100 + n, 200 + n], PAUSE_MS));
        publishers.push(ffmpeg(&path, &server.rtmp_url(&slug), true));
    }
    for publisher in publishers {
        assert!(publisher.wait_with_output().await.unwrap().status.success());
    }
    for (n, viewer) in rooms.iter().zip(&mut viewers) {
        server.end(&format!("room-{n}")).await;
        viewer.until_ended().await;
        assert_eq!(viewer.finals(), [format!("marker {}", 100 + n), format!("marker {}", 200 + n)], "room {n}");
        assert!(viewer.seen.iter().all(|m| m["session"] == format!("room-{n}")), "only its own");
    }
    server.stop().await;
}
