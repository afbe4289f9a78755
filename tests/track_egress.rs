//! A Track Egress comes by a signed URL and brings one microphone's audio: who speaks when is told, whatever is sent, and
//! nobody else gets in.

mod support;

use std::sync::Arc;

use chrono::{TimeDelta, Utc};
use parking_lot::Mutex;
use serde_json::{Value, json};
use stenocast::livekit::track_url::Microphone;
use stenocast::transcript::{SpeakerSource, SpeakerUpdate};
use support::app::TestApp;
use support::http::*;
use support::pace::Pace;
use support::publisher::{ffmpeg, marked_audio, write_wav};
use support::stt::marker_service;
use support::viewer::Viewer;
use support::wait::until;
use tokio_tungstenite::tungstenite::http::Request;
use tokio_tungstenite::tungstenite::{Bytes, Message};

type Heard = Arc<Mutex<Vec<SpeakerUpdate>>>;

fn microphone(track: &str, identity: &str) -> Microphone {
    Microphone::new(slug("demo"), track, identity).unwrap()
}

fn url(server: &TestServer, microphone: &Microphone) -> String {
    microphone.url(&format!("http://{}", server.addr), Utc::now(), &server.state.keys)
}

/// As an egress dials: no header of ours.
fn request(url: &str) -> Request<()> {
    let host = url.split('/').nth(2).unwrap();
    let headers = [
        ("Host", host),
        ("Connection", "Upgrade"),
        ("Upgrade", "websocket"),
        ("Sec-WebSocket-Version", "13"),
        ("Sec-WebSocket-Key", "dGhlIHNhbXBsZSBub25jZQ=="),
        ("Content-Type", "audio/x-raw"),
    ];
    headers.iter().fold(Request::get(url), |request, (name, value)| request.header(*name, *value)).body(()).unwrap()
}

async fn dial(server: &TestServer, microphone: &Microphone) -> Client {
    Client::open(request(&url(server, microphone))).await.unwrap_or_else(|refusal| panic!("{}", refusal.status))
}

fn hear(server: &TestServer) -> Heard {
    let heard: Heard = Arc::default();
    let sink = heard.clone();
    server.room("demo").set_speaker_sink(Some(Arc::new(move |update| sink.lock().push(update))));
    heard
}

/// Ten milliseconds, both channels the same.
fn message(level: i16) -> Message {
    let sample = |n: i32| if n % 2 == 0 { level } else { -level };
    let samples = (0..480).flat_map(|n| [sample(n), sample(n)]);
    Message::Binary(samples.flat_map(i16::to_le_bytes).collect::<Vec<u8>>().into())
}

async fn send(client: &mut Client, messages: usize, level: i16) {
    for _ in 0..messages {
        client.send_raw(message(level)).await.unwrap();
    }
}

fn told(heard: &Heard) -> Vec<(String, bool)> {
    let mut told: Vec<_> = heard.lock().iter().map(|update| (update.identity.clone(), update.active)).collect();
    told.dedup();
    told
}

fn changes(who: &str, changes: &[bool]) -> Vec<(String, bool)> {
    changes.iter().map(|is_active| (who.to_owned(), *is_active)).collect()
}

#[actix::test]
async fn voice_on_a_track_is_told_and_mute_ends_it() {
    let server = TestServer::start();
    let heard = hear(&server);
    let mut egress = dial(&server, &microphone("TR_1", "anna")).await;
    send(&mut egress, 50, 20).await;
    send(&mut egress, 60, 4000).await;
    until("voice", async || told(&heard) == changes("anna", &[true])).await;
    send(&mut egress, 30, 20).await;
    until("its end", async || told(&heard) == changes("anna", &[true, false])).await;
    send(&mut egress, 10, 4000).await;
    egress.send(json!({"muted": true}).to_string()).await;
    until("mute", async || told(&heard) == changes("anna", &[true, false, true, false])).await;
    egress.send(json!({"muted": false}).to_string()).await;
    egress.send_raw(Message::Ping(Bytes::from_static(b"here"))).await.unwrap();
    send(&mut egress, 10, 4000).await;
    until("voice again", async || told(&heard).len() == 5).await;
    egress.send_raw(Message::Close(None)).await.unwrap();
    until("the end of the egress", async || told(&heard).len() == 6 && server.state.tracks.is_empty()).await;
    assert!(heard.lock().iter().all(|update| update.source == SpeakerSource::Track && update.name.is_none()));
    let seconds = server.state.metrics.track_audio_seconds_total.get();
    assert!((seconds - 1.6).abs() < 0.01, "{seconds}");
    server.stop().await;
}

#[actix::test]
async fn only_a_url_of_ours_opens_and_only_for_its_track_and_time() {
    let server = TestServer::start();
    let good = url(&server, &microphone("TR_1", "anna"));
    let later = Utc::now() - TimeDelta::minutes(10);
    let old = microphone("TR_1", "anna").url(&format!("http://{}", server.addr), later, &server.state.keys);
    let refused = [
        (good.replace("anna", "ben"), 401),
        (good.replace("TR_1", "TR_2"), 401),
        (good.replace("/demo/", "/other/"), 401),
        (good.replace("key=", "key=00"), 401),
        (old, 401),
        (good.split("?").next().unwrap().to_owned(), 400),
        (good.replace("TR_1", "TR%201"), 400),
        (good.replace("/demo/", "/de%2Fmo/"), 400),
    ];
    for (url, status) in refused {
        let refusal = Client::open(request(&url)).await.err().unwrap_or_else(|| panic!("{url} opens"));
        assert_eq!(refusal.status, status, "{url}");
    }
    let (status, body) = server.get("/api/egress/track/demo/TR_1", None).await;
    assert_eq!(status, 400, "{body}");
    let key = good.split("key=").nth(1).unwrap();
    assert!(!body.contains(key));
    dial(&server, &microphone("TR_1", "anna")).await;
    server.stop().await;
}

#[actix::test]
async fn the_newer_connection_of_a_track_wins() {
    let server = TestServer::start();
    let heard = hear(&server);
    let anna = microphone("TR_1", "anna");
    let mut first = dial(&server, &anna).await;
    send(&mut first, 20, 4000).await;
    until("voice", async || told(&heard) == changes("anna", &[true])).await;
    let mut second = dial(&server, &anna).await;
    assert_eq!(u16::from(first.closed().await.code), 4009);
    send(&mut second, 60, 4000).await;
    until("one that goes on", async || heard.lock().len() >= 2).await;
    assert_eq!(told(&heard), changes("anna", &[true]), "the older one does not end it");
    assert_eq!(server.state.tracks.len(), 1);
    send(&mut second, 30, 20).await;
    until("the end", async || told(&heard) == changes("anna", &[true, false])).await;
    server.stop().await;
}

#[actix::test]
async fn whatever_comes_on_a_track_costs_that_track_alone() {
    let server = TestServer::start();
    let heard = hear(&server);
    let mut other = dial(&server, &microphone("TR_9", "ben")).await;
    let mut odd = dial(&server, &microphone("TR_1", "anna")).await;
    for text in
        ["", "{", "[]", r#"{"muted":"yes"}"#, r#"{"muted":"true"}"#, r#"{"muted":7}"#, r#"{"unknown":1}"#, "null"]
    {
        odd.send(text).await;
    }
    for bytes in [0, 1, 3, 1919, 60_000] {
        odd.send_raw(Message::Binary(vec![0; bytes].into())).await.unwrap();
    }
    // Thirty seconds at once, as after a stall.
    send(&mut odd, 3000, 20).await;
    odd.send_raw(Message::Binary(vec![0; 70_000].into())).await.unwrap();
    assert_eq!(u16::from(odd.closed().await.code), 1009);
    let mut flood = dial(&server, &microphone("TR_2", "anna")).await;
    let second = Message::Binary(vec![0x40; 60_000].into());
    while flood.send_raw(second.clone()).await.is_ok() {}
    let closed = |code| server.state.metrics.track_closed_total.with_label_values(&[code]).get();
    until("too much for a microphone", async || closed("1008") == 1).await;
    // A frame that says it has 300 MB, and goes on and on.
    let mut endless = dial(&server, &microphone("TR_3", "anna")).await;
    endless.send_raw(Message::Binary(vec![0; 8 << 20].into())).await.ok();
    until("a frame without end", async || closed("1009") == 2).await;
    assert_eq!(heard.lock().iter().filter(|update| update.identity == "ben").count(), 0);
    send(&mut other, 20, 4000).await;
    until("the other one", async || heard.lock().iter().any(|update| update.identity == "ben")).await;
    assert_eq!((closed("1009"), closed("1008")), (2, 1));
    server.refuse_newcomers();
    assert_eq!(u16::from(other.closed().await.code), 1001, "the server stops");
    server.stop().await;
}

/// Markers of a conversation; each speaker says three at a time.
const MARKERS: usize = 18;

/// Sends what a microphone hears in real time; between its own markers it is silent.
async fn speak(url: String, speech: Vec<i16>, pace: Pace) {
    let mut egress = Client::open(request(&url)).await.unwrap_or_else(|refusal| panic!("{}", refusal.status));
    for (n, part) in (0u64..).zip(speech.chunks(160)) {
        pace.reaches(n * 10).await;
        // 16 kHz to 48 kHz, one channel to two.
        let samples = part.iter().flat_map(|sample| [*sample; 6]).flat_map(i16::to_le_bytes).collect::<Vec<u8>>();
        egress.send_raw(Message::Binary(samples.into())).await.unwrap();
    }
}

/// Two microphones whose owners take turns, and the composite that a publisher sends.
#[actix::test]
async fn lines_have_the_names_of_those_on_whose_tracks_they_are() {
    let stt = marker_service().await;
    let server = TestApp::start(&[("GLADIA_API_URL", &stt.url)]).await;
    let mut viewer = Viewer::join(&server, "demo").await;
    let (mut both, mut anna, mut ben) = (Vec::new(), Vec::new(), Vec::new());
    for n in 0..MARKERS {
        // Without a rhythm, as people speak.
        let speech = marked_audio([n as u32 + 1], 500 + n * n * 137 % 900);
        let silence = vec![0; speech.len()];
        let (one, other) = if n / 3 % 2 == 0 { (&speech, &silence) } else { (&silence, &speech) };
        anna.extend_from_slice(one);
        ben.extend_from_slice(other);
        both.extend_from_slice(&speech);
    }
    let wav = server.dir.path().join("both.wav");
    write_wav(&wav, &both);
    let publisher = ffmpeg(&wav, &server.rtmp_url("demo"), true);
    let base = format!("http://{}", server.app.http_addr());
    let pace = Pace::begin();
    let egress =
        |track, who, speech| speak(microphone(track, who).url(&base, Utc::now(), server.app.keys()), speech, pace);
    tokio::join!(egress("TR_1", "anna", anna), egress("TR_2", "ben", ben));
    assert!(publisher.wait_with_output().await.unwrap().status.success());
    server.end("demo").await;
    viewer.until_ended().await;
    let lines: Vec<_> = viewer.seen.iter().filter(|m| m["isFinal"] == true).collect();
    let label = |line: &&Value| line["speaker"]["identity"].as_str().map(str::to_owned);
    let labels: Vec<_> = lines.iter().map(label).collect();
    assert_eq!(lines.len(), MARKERS, "{lines:?}");
    for (n, who) in labels.iter().enumerate() {
        let truth = if n / 3 % 2 == 0 { "anna" } else { "ben" };
        assert!(who.as_deref().is_none_or(|who| who == truth), "line {n} of {labels:?}");
    }
    assert!(labels.iter().flatten().count() >= MARKERS / 2, "{labels:?}");
    server.stop().await;
}
