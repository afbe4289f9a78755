//! A session's life through the real server: publishers of every kind, speakers, viewers that come and go, databases,
//! restarts. Marked audio in, "marker N" out.

mod support;

use std::path::PathBuf;

use serde_json::json;
use stenocast::transcript::Slug;
use support::app::TestApp;
use support::postgres;
use support::publisher::{ffmpeg, marked_audio, publish, publish_with_librtmp, write_wav};
use support::stt::marker_service;
use support::viewer::{Viewer, assert_contiguous, finals};

const PAUSE_MS: usize = 700;
/// Long enough for a final to come and a server to be stopped before the next word, on a busy machine too.
const LONG_PAUSE_MS: usize = 2500;

fn expected(markers: impl IntoIterator<Item = u32>) -> Vec<String> {
    markers.into_iter().map(|n| format!("marker {n}")).collect()
}

fn audio(server: &TestApp, markers: std::ops::RangeInclusive<u32>) -> PathBuf {
    audio_with_pauses(server, markers, PAUSE_MS)
}

fn audio_with_pauses(server: &TestApp, markers: std::ops::RangeInclusive<u32>, pause_ms: usize) -> PathBuf {
    let path = server.dir.path().join(format!("marked-{}.wav", markers.start()));
    write_wav(&path, &marked_audio(markers, pause_ms));
    path
}

#[actix::test]
async fn a_librtmp_publisher_is_heard() {
    let stt = marker_service().await;
    let server = TestApp::start(&[("GLADIA_API_URL", &stt.url)]).await;
    let mut viewer = Viewer::join(&server, "librtmp").await;
    publish_with_librtmp(&audio(&server, 1..=4), &server.rtmp_url("librtmp")).await;
    server.end("librtmp").await;
    viewer.until_ended().await;
    assert_eq!(viewer.finals(), expected(1..=4));
    assert_eq!(server.stored_finals("librtmp").await, expected(1..=4));
    server.stop().await;
}

#[actix::test]
async fn what_a_browser_says_about_its_speaker_labels_finals() {
    let stt = marker_service().await;
    let server = TestApp::start(&[("GLADIA_API_URL", &stt.url)]).await;
    let mut viewer = Viewer::join(&server, "talk").await;
    let mut browser = Viewer::join(&server, "talk").await;
    let publisher = ffmpeg(&audio(&server, 1..=4), &server.rtmp_url("talk"), true);
    viewer.until("the session", |seen| seen.iter().any(|m| m["status"] == "live")).await;
    let speaking = actix_rt::spawn(async move {
        let mut often = tokio::time::interval(std::time::Duration::from_millis(200));
        loop {
            often.tick().await;
            browser
                .send(&json!({"type": "active_speakers", "speakers": [{"identity": "tester", "name": "Tess", "level": 0.8}]}))
                .await;
        }
    });
    let output = publisher.wait_with_output().await.unwrap();
    assert!(output.status.success());
    server.end("talk").await;
    viewer.until_ended().await;
    speaking.abort();
    assert_eq!(viewer.finals(), expected(1..=4));
    let speakers: Vec<_> =
        viewer.seen.iter().filter(|m| m["isFinal"] == true).map(|m| m["speaker"]["identity"].clone()).collect();
    // The first report may come after the first words; unknown stays null.
    assert!(speakers[1..].iter().all(|s| s == "tester"), "{speakers:?}");
    let stored = server.app.stored_entries(&Slug::parse("talk").unwrap()).await.unwrap();
    let labelled =
        |e: &&stenocast::transcript::Entry| serde_json::to_value(e).unwrap()["speaker"]["identity"] == "tester";
    assert!(stored.iter().filter(labelled).count() >= 3, "{stored:?}");
    server.stop().await;
}

#[actix::test]
async fn translations_follow_their_finals_to_viewers_and_into_the_database() {
    let stt = marker_service().await;
    // Finals wait, so that translations come first.
    stt.fault(json!({"late_finals_ms": 150})).await;
    let server = TestApp::start(&[("GLADIA_API_URL", &stt.url), ("GLADIA_TRANSLATE_TO", "fr,de")]).await;
    let mut viewer = Viewer::join(&server, "world").await;
    publish(&audio(&server, 1..=3), &server.rtmp_url("world"), false).await;
    server.end("world").await;
    viewer.until_ended().await;
    assert_eq!(viewer.finals(), expected(1..=3));
    assert_contiguous(&viewer.seqs(), 1);
    let mut finals = Vec::new();
    let mut translated = Vec::new();
    for message in &viewer.seen {
        if message["isFinal"] == true {
            finals.push(message.clone());
        } else if message["type"] == "translation" {
            let of = finals.iter().find(|line| line["id"] == message["of"]).expect("its final came before");
            assert_eq!((&message["startMs"], &message["endMs"]), (&of["startMs"], &of["endMs"]));
            let language = message["language"].as_str().unwrap();
            assert_eq!(message["id"], format!("{}:{language}", of["id"].as_str().unwrap()));
            translated.push(message["text"].as_str().unwrap().to_owned());
        }
    }
    let words = |n: u32| ["fr", "de"].map(|to| format!("marker-{to} {n}-{to}"));
    assert_eq!(translated, (1..=3).flat_map(words).collect::<Vec<_>>());
    let stored = server.app.stored_entries(&Slug::parse("world").unwrap()).await.unwrap();
    let texts = stored.iter().filter_map(|entry| match entry {
        stenocast::transcript::Entry::Translation(line) => Some(line.text.clone()),
        _ => None,
    });
    assert_eq!(texts.collect::<Vec<_>>(), translated);
    server.stop().await;
}

/// Two viewers, one of which breaks off and resumes; what both saw is what the database has.
async fn rows_are_what_viewers_saw(more: &[(&str, &str)]) {
    let stt = marker_service().await;
    let server = TestApp::start(&[&[("GLADIA_API_URL", stt.url.as_str())], more].concat()).await;
    let mut steady = Viewer::join(&server, "rows").await;
    let mut first = Viewer::join(&server, "rows").await;
    let publisher = ffmpeg(&audio(&server, 1..=8), &server.rtmp_url("rows"), true);
    first.until("two finals", |seen| finals(seen).len() == 2).await;
    let epoch = first.seen[0]["epoch"].as_str().expect("an epoch").to_owned();
    let (after, mut seen) = (first.last_seq(), first.seqs());
    let mut texts = first.finals();
    drop(first);
    steady.until("two more finals", |seen| finals(seen).len() >= 4).await;
    let more = format!("&after={after}&epoch={epoch}");
    let mut second = Viewer::connect(server.app.http_addr(), "rows", &more).await;
    assert_eq!(second.hello["recovered"], true, "{}", second.hello);
    assert_eq!(second.hello["epoch"], epoch);
    assert!(publisher.wait_with_output().await.unwrap().status.success());
    server.end("rows").await;
    steady.until_ended().await;
    second.until_ended().await;
    seen.extend(second.seqs());
    texts.extend(second.finals());
    assert_contiguous(&steady.seqs(), 1);
    assert_eq!(seen, steady.seqs(), "nothing is missing and nothing came twice");
    assert_eq!((texts, steady.finals()), (expected(1..=8), expected(1..=8)));
    let rows = server.app.stored_entries(&Slug::parse("rows").unwrap()).await.unwrap();
    let numbers: Vec<u64> = rows.iter().filter_map(stenocast::transcript::Entry::seq).collect();
    assert_eq!(numbers, steady.seqs(), "rows = entries");
    assert_eq!(server.stored_finals("rows").await, expected(1..=8), "rows = finals");
    server.stop().await;
}

#[actix::test]
async fn rows_are_finals_on_sqlite() {
    rows_are_what_viewers_saw(&[]).await;
}

#[actix::test]
async fn rows_are_finals_on_postgres() {
    let database = postgres::cluster().fresh_database().await;
    rows_are_what_viewers_saw(&[("DATABASE_URL", &database.url())]).await;
    let rows = database.query("SELECT text FROM transcripts WHERE kind = 'final' ORDER BY seq").await;
    assert_eq!(rows, expected(1..=8));
}

#[actix::test]
async fn a_restarted_server_goes_on_under_the_same_epoch() {
    let stt = marker_service().await;
    let settings = [("GLADIA_API_URL", stt.url.as_str())];
    let server = TestApp::start(&settings).await;
    let file = audio_with_pauses(&server, 1..=8, LONG_PAUSE_MS);
    let mut before = Viewer::join(&server, "restart").await;
    let publisher = ffmpeg(&file, &server.rtmp_url("restart"), true);
    before.until("three finals", |seen| finals(seen).len() == 3).await;
    let dir = server.stop().await;
    before.until_closed().await;
    assert_eq!(before.closed, Some(1001));
    assert!(before.seen.iter().any(|m| m["status"] == "suspended"), "{:#?}", before.seen);
    let _ = publisher.wait_with_output().await;

    let server = TestApp::start_in(dir, &settings).await;
    let epoch = before.seen[0]["epoch"].as_str().expect("an epoch");
    let more = format!("&after={}&epoch={epoch}", before.last_seq());
    let mut after = Viewer::connect(server.app.http_addr(), "restart", &more).await;
    assert_eq!(after.hello["recovered"], true, "{}", after.hello);
    assert_eq!(after.hello["epoch"], epoch);
    publish(&audio(&server, 101..=103), &server.rtmp_url("restart"), false).await;
    server.end("restart").await;
    after.until_ended().await;
    assert_contiguous(&[before.seqs(), after.seqs()].concat(), 1);
    assert!(after.seen.iter().all(|m| m["epoch"] == epoch));
    let gaps: Vec<_> = after.seen.iter().filter(|m| m["type"] == "gap").collect();
    assert_eq!(gaps.iter().map(|m| m["reason"].clone()).collect::<Vec<_>>(), ["process_restart"]);
    // From where its publisher was closed: the drain, which takes its time, is in it.
    let last_ms = before.seen.iter().filter(|m| m["isFinal"] == true).filter_map(|m| m["endMs"].as_u64()).max();
    let gap_ms = gaps[0]["startMs"].as_u64().unwrap();
    assert!(
        gap_ms < last_ms.unwrap() + LONG_PAUSE_MS as u64,
        "a final ends at {last_ms:?} ms, the gap begins at {gap_ms} ms"
    );
    let heard = before.finals().len();
    assert_eq!(before.finals(), expected(1..=heard as u32), "to the last word before the stop");
    assert_eq!(after.finals(), expected(101..=103));
    assert_eq!(server.stored_finals("restart").await, [before.finals(), after.finals()].concat());
    server.stop().await;
}

/// Killed between the last line of its log and the removal of its checkpoint.
#[actix::test]
async fn a_session_that_had_ended_does_not_come_back() {
    let stt = marker_service().await;
    let settings = [("GLADIA_API_URL", stt.url.as_str())];
    let server = TestApp::start(&settings).await;
    let mut viewer = Viewer::join(&server, "over").await;
    publish(&audio(&server, 1..=2), &server.rtmp_url("over"), false).await;
    viewer.until("a final", |seen| !finals(seen).is_empty()).await;
    let epoch = viewer.seen[0]["epoch"].as_str().expect("an epoch").to_owned();
    let path = server.dir.path().join("sessions").join(format!("{epoch}.json"));
    let checkpoint = std::fs::read(&path).expect("there is one while it lives");
    server.end("over").await;
    viewer.until_ended().await;
    let dir = server.stop().await;
    assert!(!path.exists());
    std::fs::write(&path, checkpoint).unwrap();

    let server = TestApp::start_in(dir, &settings).await;
    assert!(server.session("over").await.is_null(), "it is over");
    publish(&audio(&server, 11..=12), &server.rtmp_url("over"), false).await;
    server.session_until("over", "a session of its own", |s| s["epoch"].is_string() && s["epoch"] != epoch).await;
    let dir = server.stop().await;
    assert!(!path.exists(), "its checkpoint is gone");
    let left = std::fs::read_dir(dir.path().join("sessions")).unwrap().count();
    assert_eq!(left, 1, "that of the new one");
}

#[actix::test]
async fn a_publisher_needs_the_key_that_the_program_prints() {
    let stt = marker_service().await;
    let server = TestApp::start(&[("GLADIA_API_URL", &stt.url), ("RTMP_PUBLISH_KEY", "top-secret")]).await;
    let file = audio(&server, 1..=2);
    let refused = ffmpeg(&file, &server.rtmp_url("keyed"), false).wait_with_output().await.unwrap();
    assert!(!refused.status.success());
    assert_eq!(server.app.metrics().rtmp_refused_total.with_label_values(&["key_missing"]).get(), 1);
    assert!(server.session("keyed").await.is_null(), "nothing was started for it");

    let port = server.app.rtmp_addr().unwrap().port().to_string();
    let mut program = tokio::process::Command::new(env!("CARGO_BIN_EXE_stenocast"));
    for setting in stenocast::config::SETTINGS {
        program.env_remove(setting.name);
    }
    program.args(["token", "--room", "keyed", "--publish", "--host", "127.0.0.1", "--rtmp-port", &port]);
    program.env("RTMP_PUBLISH_KEY", "top-secret");
    let output = program.output().await.unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let url = String::from_utf8(output.stdout).unwrap();
    let mut viewer = Viewer::join(&server, "keyed").await;
    publish(&file, url.trim(), false).await;
    server.end("keyed").await;
    viewer.until_ended().await;
    assert_eq!(viewer.finals(), expected(1..=2));
    let key = url.trim().rsplit_once("key=").expect("a key").1.to_owned();
    let text = format!("{}{}", server.app.metrics().encode(), server.tree().await);
    assert!(!text.contains(&key) && !text.contains("top-secret"));
    server.stop().await;
}
