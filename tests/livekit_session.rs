//! What talks to LiveKit's rooms is a part of a session that the session does without: whatever becomes of it, no word is
//! lost and nobody is told of trouble.

mod support;

use base64::Engine;
use serde_json::Value;
use stenocast::actors::root::Drill;
use stenocast::actors::supervision::ChildKind;
use stenocast::livekit::wire::number;
use stenocast::transcript::Slug;
use support::app::TestApp;
use support::livekit::FakeLiveKit;
use support::publisher::{ffmpeg, marked_audio, write_wav};
use support::stt::marker_service;
use support::viewer::{Viewer, finals};
use support::wait::until;

const MARKERS: std::ops::RangeInclusive<u32> = 1..=8;

/// Finals that were sent into the room, each once however often.
fn captions(livekit: &FakeLiveKit) -> Vec<String> {
    let read = |request: &Value| {
        let data = base64::engine::general_purpose::STANDARD.decode(request["data"].as_str()?).ok()?;
        let line: Value = serde_json::from_slice(&data).ok()?;
        (line["isFinal"] == true).then(|| line["text"].as_str().map(str::to_owned))?
    };
    let mut texts: Vec<_> = livekit.calls("SendData").iter().filter_map(read).collect();
    texts.dedup();
    texts
}

#[actix::test]
async fn a_session_goes_on_whatever_becomes_of_its_participant() {
    let stt = marker_service().await;
    let livekit = FakeLiveKit::start();
    livekit.join("demo", "anna", "Anna");
    livekit.publish_microphone("demo", "anna");
    livekit.server.rtc.speak("demo", "anna", 0.5);
    let server = TestApp::start(&[
        ("GLADIA_API_URL", &stt.url),
        ("LIVEKIT_URL", &livekit.url()),
        ("LIVEKIT_SPEAKERS", "observer"),
        ("LIVEKIT_CAPTIONS", "data"),
        ("LIVEKIT_ROOMS", "demo,team-*"),
    ])
    .await;
    let audio = server.dir.path().join("marked.wav");
    write_wav(&audio, &marked_audio(MARKERS, 700));
    let mut viewer = Viewer::join(&server, "demo").await;
    let publishers = [ffmpeg(&audio, &server.rtmp_url("demo"), true), ffmpeg(&audio, &server.rtmp_url("other"), true)];
    viewer.until("the first final", |seen| !finals(seen).is_empty()).await;
    let participant = |session: &Value| session["children"]["roomParticipant"]["state"].clone();
    let is_in = |session: &Value| participant(session)["phase"] == "in_room" && participant(session)["server"] != "";
    server.session_until("demo", "it is in the room", is_in).await;
    let other = server.session("other").await;
    let children = other["children"].as_object().unwrap();
    assert!(!children.contains_key("roomParticipant") && !children.contains_key("roomCaptions"), "{other:#}");

    for kind in [ChildKind::RoomParticipant, ChildKind::RoomCaptions] {
        let crash = Drill::Crash { slug: Some(Slug::parse("demo").unwrap()), kind };
        assert!(server.app.root().send(crash).await.unwrap());
    }
    let is_back = |session: &Value| {
        let restarts = |child: &str| session["children"][child]["restarts"].as_u64();
        is_in(session) && restarts("roomParticipant") == Some(1) && restarts("roomCaptions") == Some(1)
    };
    let session = server.session_until("demo", "both are back", is_back).await;
    assert_eq!(session["degraded"], false);
    assert!(session["children"]["speakerTracker"]["state"]["updates"].as_u64() > Some(0), "{session:#}");

    for publisher in publishers {
        assert!(publisher.wait_with_output().await.unwrap().status.success(), "the publisher noticed");
    }
    server.end("demo").await;
    viewer.until_ended().await;
    let expected: Vec<_> = MARKERS.map(|n| format!("marker {n}")).collect();
    assert_eq!(viewer.finals(), expected);
    assert!(viewer.seen.iter().all(|message| message["status"] != "degraded"), "no viewer is told of it");
    until("every final has reached the room", async || {
        let said = captions(&livekit);
        if said == expected { Ok(()) } else { Err(format!("{said:?}")) }
    })
    .await;
    until("it has said goodbye", async || {
        let left = livekit.server.rtc.visits().last().map(|visit| visit.left);
        if left == Some(Some(number::CLIENT_INITIATED)) { Ok(()) } else { Err(format!("{left:?}")) }
    })
    .await;
    server.stop().await;
}
