//! Captions in a LiveKit room, as LiveKit's own client gets them: data packets by the API, and text streams of our
//! participant.

mod support;

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use actix::prelude::*;
use base64::Engine;
use serde_json::{Value, json};
use stenocast::actors::Shutdown;
use stenocast::actors::room_captions::{RoomCaptions, RoomCaptionsState};
use stenocast::actors::room_participant::RoomParticipant;
use stenocast::actors::session_core::SessionCore;
use stenocast::actors::supervision::{ChildDown, ChildKind, Exit, Lifeline, Observe};
use stenocast::bus::http::trusted;
use stenocast::config::{Config, Secret};
use stenocast::livekit::api::ApiServer;
use stenocast::livekit::keys::KeyRing;
use stenocast::metrics::Metrics;
use stenocast::transcript::{Entry, Slug};
use support::app::{KEY, settings};
use support::livekit::participant::NodeParticipant;
use support::livekit::{FakeLiveKit, Fault};
use support::parent::Parent;
use support::wait::until;
use tokio::sync::mpsc;

/// A session with captions, and its room.
struct Rig {
    livekit: FakeLiveKit,
    core: Arc<SessionCore>,
    parent: Addr<Parent>,
    downs: mpsc::UnboundedReceiver<ChildDown>,
    server: Arc<ApiServer>,
    _dir: tempfile::TempDir,
}

impl Rig {
    fn new(captions: &str) -> Self {
        let _ = rustls::crypto::ring::default_provider().install_default();
        let livekit = FakeLiveKit::start();
        livekit.join("demo", "anna", "Anna");
        let dir = tempfile::tempdir().unwrap();
        let mut values = settings(dir.path(), &[("LIVEKIT_CAPTIONS", captions)]);
        values.insert("LIVEKIT_URL".into(), livekit.url());
        let config = Arc::new(Config::load(&values, false).unwrap());
        let keys = Arc::new(KeyRing::new(vec![(KEY.0.to_owned(), Secret::new(KEY.1))]));
        let server = Arc::new(ApiServer::new(&livekit.http_url(), keys, trusted(&config.split).unwrap()));
        let core = Arc::new(SessionCore::new(Slug::parse("demo").unwrap(), config, Arc::new(Metrics::new())));
        let (parent, downs) = Parent::start();
        Self { livekit, core, parent, downs, server, _dir: dir }
    }

    fn lifeline(&self, kind: ChildKind) -> Lifeline {
        Lifeline::new(self.parent.clone().recipient(), kind, 1, self.core.metrics.clone())
    }

    fn start_captions(&self) -> Addr<RoomCaptions> {
        let lifeline = self.lifeline(ChildKind::RoomCaptions);
        RoomCaptions::start(&Arbiter::current(), self.core.clone(), self.server.clone(), lifeline)
    }

    fn entry(&self, more: Value) -> Entry {
        let mut entry = json!({
            "type": "transcript", "session": "demo", "epoch": self.core.epoch, "seq": null, "id": "a", "isFinal": false,
            "text": "", "startMs": 0, "endMs": 900, "language": "en",
        });
        entry.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        serde_json::from_value(entry).unwrap()
    }

    fn say(&self, id: &str, text: &str, speaker: Value) {
        let seq = self.core.log.last_seq() + 1;
        let line = json!({"id": id, "seq": seq, "isFinal": true, "text": text, "speaker": speaker});
        self.core.log.publish(&self.entry(line)).unwrap();
    }

    fn guess(&self, id: &str, text: &str) {
        self.core.log.show_interim(&self.entry(json!({"id": id, "text": text})));
    }

    /// Requests to send data: kind, topic and what is in it.
    fn sent(&self) -> Vec<(String, Value)> {
        let read = |request: &Value| {
            assert_eq!(request["topic"], "stenocast.transcript");
            let data = base64::engine::general_purpose::STANDARD.decode(request["data"].as_str().unwrap()).unwrap();
            assert!(data.len() <= 15 * 1024);
            (request["kind"].as_str().unwrap().to_owned(), serde_json::from_slice(&data).unwrap())
        };
        self.livekit.calls("SendData").iter().map(read).collect()
    }

    fn counted(&self, result: &str) -> u64 {
        self.core.metrics.livekit_captions_total.with_label_values(&[result]).get()
    }
}

async fn state(captions: &Addr<RoomCaptions>) -> RoomCaptionsState {
    captions.send(Observe::default()).await.unwrap()
}

#[actix::test]
async fn livekits_client_gets_finals_and_interims_as_data() {
    let rig = Rig::new("data");
    let mut node = NodeParticipant::join(&rig.livekit, "demo", "ben").await;
    let captions = rig.start_captions();
    rig.guess("a", "Hello wor");
    let interim = node.until("data", |_| true).await;
    let read = |event: &Value| serde_json::from_str::<Value>(event["text"].as_str().unwrap()).unwrap();
    assert_eq!((&interim["topic"], &interim["from"]), (&json!("stenocast.transcript"), &Value::Null));
    assert_eq!((&read(&interim)["isFinal"], &read(&interim)["text"]), (&json!(false), &json!("Hello wor")));
    rig.say("a", "Hello world.", json!({"identity": "anna", "name": "Anna"}));
    let line = read(&node.until("data", |event| event["text"].as_str().unwrap().contains("world")).await);
    let expected = json!({"identity": "anna", "name": "Anna"});
    assert_eq!((&line["isFinal"], &line["seq"], &line["speaker"]), (&json!(true), &json!(1), &expected));
    let kinds: Vec<_> = rig.sent().into_iter().map(|(kind, _)| kind).collect();
    assert_eq!(kinds, ["LOSSY", "RELIABLE"]);
    until("both are counted", async || state(&captions).await.sent == 2).await;
}

#[actix::test]
async fn a_flood_of_interims_is_five_a_second_and_a_long_line_comes_in_parts() {
    let rig = Rig::new("data");
    let _captions = rig.start_captions();
    let begun = std::time::Instant::now();
    let mut guesses = 0;
    until("interims have come", async || {
        guesses += 10;
        (guesses - 10..guesses).for_each(|n| rig.guess("a", &format!("guess {n}")));
        rig.sent().len() >= 4
    })
    .await;
    let most = begun.elapsed().as_millis() / 200 + 2;
    assert!(rig.sent().len() as u128 <= most && guesses > 8, "{} of {guesses}", rig.sent().len());
    rig.say("a", &"word ".repeat(3276), Value::Null);
    until("the final has come", async || rig.core.captioned.load(Ordering::Relaxed) == 1).await;
    let parts: Vec<_> = rig.sent().into_iter().filter(|(kind, _)| kind == "RELIABLE").map(|(_, part)| part).collect();
    assert_eq!(parts.len(), 2);
    assert_eq!((&parts[0]["part"], &parts[1]["part"], &parts[1]["parts"]), (&json!(1), &json!(2), &json!(2)));
}

#[actix::test]
async fn finals_outlive_an_outage_and_the_log_does_not_wait() {
    let rig = Rig::new("data");
    rig.livekit.fault("SendData", Some(Fault::BadGateway));
    let captions = rig.start_captions();
    rig.say("a", "one", Value::Null);
    until("it has failed", async || state(&captions).await.failed > 0).await;
    rig.guess("x", "nobody sees this");
    (2..=20).for_each(|n| rig.say(&format!("{n}"), &format!("line {n}"), Value::Null));
    assert_eq!(rig.core.log.last_seq(), 20, "viewers have everything");
    let said = state(&captions).await;
    assert!(said.fault.unwrap().contains("502"), "an operator is told");
    rig.livekit.fault("SendData", None);
    until("all have come", async || rig.core.captioned.load(Ordering::Relaxed) == 20).await;
    let mut seqs: Vec<_> = rig.sent().into_iter().filter_map(|(_, line)| line["seq"].as_u64()).collect();
    seqs.dedup();
    assert_eq!(seqs, (1..=20).collect::<Vec<_>>(), "in order");
    assert_eq!((rig.counted("late"), rig.counted("sent") >= 20), (0, true));
}

#[actix::test]
async fn a_room_that_is_not_there_costs_nothing_and_a_successor_goes_on() {
    let rig = Rig::new("data");
    rig.livekit.delete_room("demo");
    let first = rig.start_captions();
    rig.say("a", "nobody is here", Value::Null);
    until("it is given up", async || rig.counted("no_room") == 1).await;
    first.do_send(Shutdown);
    rig.livekit.join("demo", "anna", "Anna");
    rig.say("b", "anna is here", Value::Null);
    let second = rig.start_captions();
    until("it has come", async || state(&second).await.sent == 1).await;
    let last = rig.sent().pop().unwrap().1;
    assert_eq!((&last["seq"], &last["text"]), (&json!(2), &json!("anna is here")));
}

#[actix::test]
async fn the_last_words_of_a_session_are_sent_before_it_goes() {
    let mut rig = Rig::new("data");
    rig.livekit.fault("SendData", Some(Fault::Slow(200)));
    let captions = rig.start_captions();
    (1..=3).for_each(|n| rig.say(&format!("{n}"), &format!("line {n}"), Value::Null));
    rig.core.log.close();
    captions.do_send(Shutdown);
    let down = rig.downs.recv().await.unwrap();
    assert_eq!((down.exit, rig.sent().len()), (Exit::Normal, 3));
}

#[actix::test]
async fn livekits_client_gets_text_streams_of_whoever_spoke() {
    let mut rig = Rig::new("transcription");
    let track = rig.livekit.publish_microphone("demo", "anna");
    let mut node = NodeParticipant::join(&rig.livekit, "demo", "ben").await;
    let lifeline = rig.lifeline(ChildKind::RoomParticipant);
    let participant = RoomParticipant::start(&Arbiter::current(), rig.core.clone(), rig.server.clone(), lifeline);
    rig.guess("a", "Hello wor");
    let interim = node.until("text", |_| true).await;
    let segment = format!("{}:a", rig.core.epoch);
    assert_eq!((&interim["text"], &interim["from"]), (&json!("Hello wor"), &json!("")));
    assert_eq!(interim["attributes"]["lk.transcription_final"], "false");
    assert_eq!(interim["attributes"]["lk.segment_id"], segment.as_str());

    rig.say("a", "Hello world.", json!({"identity": "anna", "name": "Anna"}));
    let line = node.until("text", |event| event["attributes"]["lk.transcription_final"] == "true").await;
    assert_eq!((&line["text"], &line["from"]), (&json!("Hello world."), &json!("anna")), "an agent may speak for her");
    assert_eq!(line["attributes"]["lk.segment_id"], segment.as_str());
    assert_eq!(line["attributes"]["lk.transcribed_track_id"], track.as_str());

    // A label that is nobody's identity, and a text of many packets.
    let text = "слово ".repeat(1400);
    rig.say("b", &text, json!({"identity": "speaker-1", "name": null}));
    let line = node.until("text", |event| event["text"].as_str().unwrap().starts_with("слово")).await;
    assert_eq!((line["text"].as_str(), &line["from"]), (Some(text.as_str()), &json!("")));
    assert!(line["attributes"].get("lk.transcribed_track_id").is_none());
    let visit = rig.livekit.server.rtc.visits().pop().unwrap();
    assert_eq!((visit.grants["canPublishData"].as_bool(), visit.subscribed.len()), (Some(true), 0), "{visit:?}");

    // The last words come before the goodbye.
    rig.say("c", "Goodbye.", Value::Null);
    rig.core.log.close();
    participant.do_send(Shutdown);
    node.until("text", |event| event["text"] == "Goodbye.").await;
    assert_eq!(
        tokio::time::timeout(Duration::from_secs(10), rig.downs.recv()).await.unwrap().unwrap().exit,
        Exit::Normal
    );
}
