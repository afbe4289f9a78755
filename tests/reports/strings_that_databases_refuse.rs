//! A NUL or another control character in a name, a language or a reason: one such string put every line of its speaker
//! out of the database.

use serde_json::{Value, json};
use stenocast::transcript::Slug;

use crate::support::app::TestApp;
use crate::support::postgres;
use crate::support::publisher::{ffmpeg, marked_audio, write_wav};
use crate::support::server::request_as;
use crate::support::stt::marker_service;
use crate::support::viewer::Viewer;

const ODD: &str = "Te\u{0}s\u{7}s\u{9b}";

/// What is posted, where the odd string lands, and what is stored there.
fn posts() -> Vec<(Value, &'static str, Value)> {
    let line = |more: Value| {
        let mut line = json!({"isFinal": true, "text": "Hello.", "startMs": 0, "endMs": 900});
        line.as_object_mut().expect("an object").extend(more.as_object().expect("an object").clone());
        line
    };
    vec![
        (line(json!({"id": "1", "text": ODD})), "/text", json!("Tess")),
        (line(json!({"id": "2", "language": ODD})), "/language", json!("Tess")),
        (line(json!({"id": "3", "speaker": {"identity": "t", "name": ODD}})), "/speaker/name", json!("Tess")),
        (line(json!({"id": "4", "words": [{"word": ODD, "startMs": 0, "endMs": 9}]})), "/words/0/word", json!("Tess")),
        (json!({"id": "5", "type": "status", "status": "live", "reason": ODD}), "/reason", json!("Tess")),
        (line(json!({"id": "6", "text": "one\r\ntwo\tthree"})), "/text", json!("one  two three")),
    ]
}

async fn stored_whole(more: &[(&str, &str)]) {
    let server = TestApp::start(&[&[("BROADCAST_TOKEN", "b")], more].concat()).await;
    let transcripts: Vec<Value> = posts().into_iter().map(|(entry, ..)| entry).collect();
    let body = json!({"session": "odd", "transcripts": transcripts}).to_string();
    let path = "/api/realtime/transcribe/broadcast";
    let (status, answer) = request_as(server.app.http_addr(), "b", "POST", path, &body).await.expect("it answers");
    assert_eq!(status, 202, "{answer}");
    let stored = server.app.stored_entries(&Slug::parse("odd").expect("a slug")).await.expect("the database answers");
    let stored: Vec<Value> = stored.iter().map(|entry| serde_json::to_value(entry).expect("JSON")).collect();
    for (entry, pointer, wanted) in posts() {
        let row = stored.iter().find(|row| row["id"] == entry["id"]);
        assert_eq!(row.and_then(|row| row.pointer(pointer)), Some(&wanted), "{entry}");
    }
    server.stop().await;
}

#[actix::test]
async fn each_is_stored_on_postgres() {
    let database = postgres::cluster().fresh_database().await;
    stored_whole(&[("DATABASE_URL", &database.url())]).await;
}

#[actix::test]
async fn each_is_stored_on_sqlite() {
    stored_whole(&[]).await;
}

#[actix::test]
async fn a_speaker_with_an_odd_name_is_stored_with_its_lines() {
    let stt = marker_service().await;
    let database = postgres::cluster().fresh_database().await;
    let server = TestApp::start(&[("GLADIA_API_URL", &stt.url), ("DATABASE_URL", &database.url())]).await;
    let mut viewer = Viewer::join(&server, "talk").await;
    let mut browser = Viewer::join(&server, "talk").await;
    let wav = server.dir.path().join("marked.wav");
    write_wav(&wav, &marked_audio(1..=4, 700));
    let publisher = ffmpeg(&wav, &server.rtmp_url("talk"), true);
    viewer.until("the session", |seen| seen.iter().any(|m| m["status"] == "live")).await;
    let speaking = actix_rt::spawn(async move {
        let mut often = tokio::time::interval(std::time::Duration::from_millis(200));
        let report =
            json!({"type": "active_speakers", "speakers": [{"identity": "tester", "name": ODD, "level": 0.8}]});
        loop {
            often.tick().await;
            browser.send(&report).await;
        }
    });
    assert!(publisher.wait_with_output().await.expect("ffmpeg ends").status.success());
    server.end("talk").await;
    viewer.until_ended().await;
    speaking.abort();
    let names: Vec<_> =
        viewer.seen.iter().filter(|m| m["isFinal"] == true).map(|m| m["speaker"]["name"].clone()).collect();
    assert_eq!(names[1..], vec![json!("Tess"); 3], "the first report may come after the first words");
    assert_eq!(server.stored_finals("talk").await, viewer.finals());
    server.stop().await;
}
