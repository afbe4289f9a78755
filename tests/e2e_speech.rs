//! The main job with real parts: human speech, ffmpeg or GStreamer, RTMP, ffmpeg decoding, the real model, viewers, rows.

mod support;

use support::app::TestApp;
use support::publisher::{clip, publish, publish_with_gstreamer};
use support::stt::moonshine;
use support::viewer::{Viewer, assert_contiguous};

/// Human readers, with their texts beside them.
const CLIPS: &[&str] = &["goforward", "librivox_0870", "librivox_0880", "librivox_0890"];

fn words(text: &str) -> Vec<String> {
    let plain = text.to_lowercase().replace("mr.", "mister").replace(|c: char| !c.is_alphanumeric() && c != '\'', " ");
    plain.split_whitespace().map(str::to_owned).collect()
}

/// Edits between two word lists.
fn edits(expected: &[String], heard: &[String]) -> usize {
    let mut row: Vec<usize> = (0..=heard.len()).collect();
    for (i, word) in expected.iter().enumerate() {
        let mut diagonal = std::mem::replace(&mut row[0], i + 1);
        for j in 0..heard.len() {
            let substitution = diagonal + usize::from(*word != heard[j]);
            diagonal = row[j + 1];
            row[j + 1] = substitution.min(row[j] + 1).min(diagonal + 1);
        }
    }
    row[heard.len()]
}

#[actix::test]
async fn real_speech_becomes_captions_for_two_viewers_and_rows() {
    let model = moonshine().await;
    let server = TestApp::start(&[("GLADIA_API_URL", &model.url)]).await;
    let (mut expected, mut heard) = (Vec::new(), Vec::new());
    for name in CLIPS {
        let mut first = Viewer::join(&server, name).await;
        let mut second = Viewer::join(&server, name).await;
        publish(&clip(&format!("{name}.wav")), &server.rtmp_url(name), true).await;
        server.end(name).await;
        first.until_ended().await;
        second.until_ended().await;
        assert_contiguous(&first.seqs(), 1);
        assert_eq!(first.finals(), second.finals());
        for line in first.seen.iter().filter(|m| m["isFinal"] == true) {
            let stages = ["decodeMs", "sttMs", "serverMs"].map(|stage| line["latency"][stage].is_u64());
            assert_eq!(stages, [true; 3], "each stage of each line is known: {line}");
            let heard = line["timestamp"].as_str().and_then(|at| chrono::DateTime::parse_from_rfc3339(at).ok());
            assert!(heard.is_some(), "{line}");
        }
        let rows = server.stored_finals(name).await;
        assert_eq!(rows, first.finals(), "what viewers saw is what the database has");
        let text = std::fs::read_to_string(clip(&format!("{name}.txt"))).unwrap();
        let (wanted, got) = (words(&text), words(&first.finals().join(" ")));
        assert_eq!(got.first(), wanted.first(), "the first word of {name}");
        expected.extend(wanted);
        heard.extend(got);
    }
    let wrong = edits(&expected, &heard);
    let limit = expected.len() * 6 / 100;
    assert!(wrong <= limit, "{wrong} wrong words of {}, at most {limit}: {heard:?}", expected.len());
    assert_eq!(server.app.metrics().lost_audio_ms(), 0);
    server.stop().await;
}

#[actix::test]
async fn egress_own_sink_is_understood() {
    let model = moonshine().await;
    let server = TestApp::start(&[("GLADIA_API_URL", &model.url)]).await;
    let mut viewer = Viewer::join(&server, "egress").await;
    publish_with_gstreamer(&clip("goforward.wav"), &server.rtmp_url("egress")).await;
    server.end("egress").await;
    viewer.until_ended().await;
    assert_eq!(words(&viewer.finals().join(" ")), ["go", "forward", "ten", "meters"]);
    server.stop().await;
}
