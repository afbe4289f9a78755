//! Our participant in a LiveKit room: it hears who speaks, asks for no media, keeps no room open, and its troubles cost
//! labels alone.

mod support;

use std::sync::Arc;
use std::time::Duration;

use actix::prelude::*;
use prost::Message as _;
use stenocast::actors::Shutdown;
use stenocast::actors::room_participant::{RoomParticipant, RoomParticipantState, Timing};
use stenocast::actors::session_core::SessionCore;
use stenocast::actors::speaker_tracker::SpeakerTracker;
use stenocast::actors::supervision::{ChildDown, ChildKind, Exit, Lifeline, Observe};
use stenocast::bus::http::trusted;
use stenocast::config::{Config, Secret};
use stenocast::livekit::api::ApiServer;
use stenocast::livekit::keys::KeyRing;
use stenocast::livekit::wire::{Response, SignalResponse, SpeakerInfo, SpeakersChanged, number};
use stenocast::metrics::Metrics;
use stenocast::transcript::Slug;
use support::app::{KEY, settings};
use support::livekit::rtc::Signalling;
use support::livekit::{FakeLiveKit, Fault};
use support::parent::Parent;
use support::wait::until;
use tokio::sync::mpsc;

const FAST: Timing = Timing {
    udp: Duration::from_secs(10),
    rotate: Duration::from_secs(45),
    udp_again: Duration::from_secs(300),
    look_for_room: Duration::from_millis(50),
};

/// A session's participant, and what it reports to.
struct Rig {
    livekit: FakeLiveKit,
    core: Arc<SessionCore>,
    participant: Addr<RoomParticipant>,
    downs: mpsc::UnboundedReceiver<ChildDown>,
    _dir: tempfile::TempDir,
}

fn server_of(livekit: &FakeLiveKit, config: &Config) -> Arc<ApiServer> {
    let _ = rustls::crypto::ring::default_provider().install_default();
    let keys = Arc::new(KeyRing::new(vec![(KEY.0.to_owned(), Secret::new(KEY.1))]));
    Arc::new(ApiServer::new(&livekit.http_url(), keys, trusted(&config.split).unwrap()))
}

impl Rig {
    fn start(livekit: FakeLiveKit, timing: Timing) -> Self {
        Self::with(livekit, timing, &[("LIVEKIT_SPEAKERS", "observer")])
    }

    fn with(livekit: FakeLiveKit, timing: Timing, more: &[(&str, &str)]) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let mut values = settings(dir.path(), more);
        values.insert("LIVEKIT_URL".into(), livekit.url());
        let config = Arc::new(Config::load(&values, false).unwrap());
        let server = server_of(&livekit, &config);
        let core = Arc::new(SessionCore::new(Slug::parse("demo").unwrap(), config, Arc::new(Metrics::new())));
        let (parent, downs) = Parent::start();
        let lifeline = |kind| Lifeline::new(parent.clone().recipient(), kind, 1, core.metrics.clone());
        *core.tracker() = Some(SpeakerTracker::start(core.clone(), lifeline(ChildKind::SpeakerTracker)));
        let lifeline = lifeline(ChildKind::RoomParticipant);
        let participant = RoomParticipant::start_with(&Arbiter::current(), core.clone(), server, lifeline, timing);
        Self { livekit, core, participant, downs, _dir: dir }
    }

    async fn state(&self) -> RoomParticipantState {
        self.participant.send(Observe::default()).await.unwrap()
    }

    async fn state_until(&self, what: &str, condition: impl Fn(&RoomParticipantState) -> bool) -> RoomParticipantState {
        until(what, async || {
            let state = self.state().await;
            if condition(&state) { Ok(state) } else { Err(format!("{state:?}")) }
        })
        .await
    }

    /// Participants that the tracker has heard of.
    async fn heard_of(&self) -> usize {
        let tracker = self.core.tracker().clone().unwrap();
        tracker.send(Observe::default()).await.unwrap().participants
    }

    async fn is_in_room(&self) -> RoomParticipantState {
        // With WebRTC: the server's version is known from there on.
        self.state_until("it is in the room", |state| !state.server.is_empty()).await
    }

    /// Ends it as its session does.
    async fn stop(mut self) -> FakeLiveKit {
        self.core.log.close();
        self.participant.do_send(Shutdown);
        let down = self.downs.recv().await.unwrap();
        assert_eq!((down.kind, down.exit), (ChildKind::RoomParticipant, Exit::Normal));
        self.livekit
    }
}

fn room_with_anna() -> FakeLiveKit {
    let livekit = FakeLiveKit::start();
    livekit.create_room("demo");
    livekit.join("demo", "anna", "Anna");
    livekit.publish_microphone("demo", "anna");
    livekit
}

#[actix::test]
async fn it_hears_who_speaks_hidden_and_without_a_byte_of_media() {
    let rig = Rig::start(room_with_anna(), FAST);
    let state = rig.is_in_room().await;
    assert_eq!(state.participants, 1, "anna, and not itself");
    rig.livekit.server.rtc.speak("demo", "anna", 0.4);
    until("anna is heard of", async || rig.heard_of().await == 1).await;
    // Somebody comes later: another section of audio is negotiated on the same connection.
    rig.livekit.join("demo", "ben", "Ben");
    rig.livekit.publish_microphone("demo", "ben");
    rig.livekit.publish("demo", "ben", false, "CAMERA");
    rig.livekit.server.rtc.speak("demo", "ben", 0.9);
    until("ben is heard of", async || rig.heard_of().await == 2).await;

    let visit = rig.livekit.server.rtc.visits().remove(0);
    for (grant, value) in [("hidden", true), ("agent", true), ("canPublish", false), ("canPublishData", false)] {
        assert_eq!(visit.grants[grant], value, "{grant}");
    }
    assert!(visit.identity.starts_with("stenocast-") && !visit.query.contains("token"), "{visit:?}");
    assert!(visit.is_active && visit.query.contains("auto_subscribe=0"), "{visit:?}");
    assert_eq!((visit.subscribed.len(), visit.wants_media()), (2, 0), "microphones alone, and silent");
    assert_eq!(rig.core.metrics.livekit_media_bytes_total.get(), 0);
    // A steady speaker is said once by LiveKit and again by us: a report counts for two seconds.
    let said = rig.state().await.speaker_updates;
    rig.state_until("it is said again", |state| state.speaker_updates > said + 2).await;
    let metrics = rig.core.metrics.clone();
    assert_eq!(metrics.livekit_rooms_joined.with_label_values(&["udp"]).get(), 1);
    let livekit = rig.stop().await;
    let goodbye = async || match &livekit.server.rtc.visits()[0] {
        visit if visit.left == Some(number::CLIENT_INITIATED) => Ok(()),
        visit => Err(format!("{visit:?}")),
    };
    until("it has said goodbye", goodbye).await;
    assert_eq!(metrics.livekit_rooms_joined.with_label_values(&["udp"]).get(), 0);
}

#[actix::test]
async fn it_waits_for_a_room_makes_none_and_keeps_none_open() {
    let livekit = FakeLiveKit::start();
    livekit.server.rtc.settings.lock().departure_timeout = Duration::from_millis(300);
    let rig = Rig::start(livekit, FAST);
    until("it has looked", async || rig.livekit.calls("ListRooms").len() > 3).await;
    assert!(rig.livekit.server.rtc.visits().is_empty(), "joining would have made the room");
    rig.livekit.join("demo", "anna", "Anna");
    rig.livekit.publish_microphone("demo", "anna");
    rig.is_in_room().await;
    rig.livekit.leave("demo", "anna");
    until("the room is closed", async || rig.livekit.server.rtc.visits()[0].left == Some(number::ROOM_CLOSED)).await;
    let looked = rig.livekit.calls("ListRooms").len();
    until("it looks again", async || rig.livekit.calls("ListRooms").len() > looked + 2).await;
    assert_eq!(rig.livekit.server.rtc.visits().len(), 1, "and has not come back to nobody");
    // The same name again, at once.
    rig.livekit.join("demo", "anna", "Anna");
    until("it is there again", async || rig.livekit.server.rtc.visits().len() == 2).await;
    rig.stop().await;
}

#[actix::test]
async fn a_room_that_is_deleted_and_made_again_is_joined_again() {
    let rig = Rig::start(room_with_anna(), FAST);
    rig.is_in_room().await;
    rig.livekit.delete_room("demo");
    rig.livekit.join("demo", "anna", "Anna");
    until("it is there again", async || rig.livekit.server.rtc.visits().len() == 2).await;
    let visits = rig.livekit.server.rtc.visits();
    assert_ne!(visits[0].identity, visits[1].identity);
    rig.stop().await;
}

/// By signalling alone LiveKit tolerates a participant for a minute. Here: two seconds.
#[actix::test]
async fn without_udp_it_goes_on_by_short_connections_and_says_so() {
    let livekit = room_with_anna();
    livekit.server.rtc.settings.lock().signalling = Signalling::NoUdp;
    livekit.server.rtc.settings.lock().join_timeout = Duration::from_secs(2);
    let udp_again = Duration::from_secs(3600);
    let timing = Timing { udp: Duration::from_millis(500), rotate: Duration::from_millis(1200), udp_again, ..FAST };
    let rig = Rig::start(livekit, timing);
    let state = rig.state_until("it notices", |state| state.is_udp_blocked).await;
    assert!(state.fault.unwrap().contains("UDP"));
    rig.livekit.server.rtc.speak("demo", "anna", 0.5);
    until("anna is heard of", async || rig.heard_of().await == 1).await;
    let visits = async || match rig.livekit.server.rtc.visits() {
        visits if visits.len() >= 4 => Ok(()),
        visits => Err(format!("{visits:?}")),
    };
    until("four connections", visits).await;
    let visits = rig.livekit.server.rtc.visits();
    let left = visits[..2].iter().map(|visit| visit.left).collect::<Vec<_>>();
    assert_eq!(left, [Some(number::CLIENT_INITIATED); 2], "none was sent out: the next was there before");
    assert!(visits.iter().all(|visit| !visit.is_active && visit.wants_media() == 0));
    let identities: std::collections::BTreeSet<_> = visits.iter().map(|visit| &visit.identity).collect();
    assert_eq!(identities.len(), visits.len(), "and no identity twice");
    assert_eq!(rig.core.metrics.livekit_rooms_joined.with_label_values(&["signalling"]).get(), 1);
    rig.stop().await;
}

#[actix::test]
async fn udp_that_goes_through_again_is_used_again() {
    let livekit = room_with_anna();
    livekit.server.rtc.settings.lock().signalling = Signalling::NoUdp;
    let (udp, rotate) = (Duration::from_millis(2500), Duration::from_secs(3));
    let rig = Rig::start(livekit, Timing { udp, rotate, udp_again: Duration::from_millis(100), ..FAST });
    rig.state_until("it is blocked", |state| state.is_udp_blocked).await;
    rig.livekit.server.rtc.settings.lock().signalling = Signalling::Normal;
    rig.state_until("it is used", |state| !state.is_udp_blocked && !state.server.is_empty()).await;
    rig.stop().await;
}

#[actix::test]
async fn what_the_server_asks_for_when_it_sends_it_away_is_done() {
    let rig = Rig::start(room_with_anna(), FAST);
    rig.is_in_room().await;
    let rtc = &rig.livekit.server.rtc;
    let visits = async |n: usize| {
        until("it is there again", async || {
            rtc.visits().len() == n && rtc.visits()[n - 1].is_active && !rtc.present("demo").is_empty()
        })
        .await;
    };
    rtc.dismiss_all(number::SERVER_SHUTDOWN, number::RECONNECT);
    visits(2).await;
    rtc.dismiss_all(0, number::RESUME);
    visits(3).await;
    // Another one has come with its identity: no fight.
    let identity = rtc.visits()[2].identity.clone();
    rtc.send_out("demo", &identity, number::DUPLICATE_IDENTITY);
    let state = rig.state_until("it stays away", |state| state.identity.is_none()).await;
    assert!(state.fault.unwrap().contains("identity"));
    assert_eq!(rtc.visits().len(), 3);
    rig.stop().await;
}

#[actix::test]
async fn a_server_that_is_none_costs_nothing_but_labels() {
    for (signalling, fault) in
        [(Signalling::Refuses, "status 401: invalid API key: testkey"), (Signalling::ClosesAtOnce, "closed")]
    {
        let livekit = room_with_anna();
        livekit.server.rtc.settings.lock().signalling = signalling;
        let rig = Rig::start(livekit, FAST);
        let is_said = |state: &RoomParticipantState| state.fault.as_deref().is_some_and(|said| said.contains(fault));
        let state = rig.state_until(fault, is_said).await;
        assert!(!format!("{state:?}").contains("eyJ"), "no token: {state:?}");
        assert_eq!(rig.core.metrics.livekit_joins_total.with_label_values(&["joined"]).get(), 0);
        rig.stop().await;
    }
    let livekit = room_with_anna();
    livekit.fault("ListRooms", Some(Fault::Denied));
    let rig = Rig::start(livekit, FAST);
    rig.state_until("it says why", |state| state.fault.as_deref().is_some_and(|said| said.contains("token"))).await;
    rig.livekit.fault("ListRooms", None);
    rig.is_in_room().await;
    rig.stop().await;
}

#[actix::test]
async fn one_that_says_nothing_ends_with_its_session_and_not_before_its_time() {
    let livekit = room_with_anna();
    livekit.server.rtc.settings.lock().signalling = Signalling::SaysNothing;
    let rig = Rig::start(livekit, FAST);
    until("it is there", async || rig.livekit.server.rtc.visits().len() == 1).await;
    let fault = "said nothing for 10 s";
    rig.state_until(fault, |state| state.fault.as_deref().is_some_and(|said| said.contains(fault))).await;
    rig.stop().await;
}

/// A peer once put off the end of a dead connection with each ping.
#[actix::test]
async fn a_server_that_falls_silent_is_left_after_its_ping_timeout() {
    let livekit = room_with_anna();
    livekit.server.rtc.settings.lock().signalling = Signalling::FallsSilent;
    livekit.server.rtc.settings.lock().ping_s = (1, 2);
    let rig = Rig::start(livekit, FAST);
    until("it is there", async || rig.livekit.server.rtc.visits().len() == 1).await;
    rig.livekit.server.rtc.settings.lock().signalling = Signalling::Normal;
    until("it has come again", async || rig.livekit.server.rtc.visits().len() == 2).await;
    rig.is_in_room().await;
    rig.stop().await;
}

#[actix::test]
async fn garbage_strangers_absurd_levels_and_floods_are_survived() {
    let livekit = room_with_anna();
    livekit.server.rtc.settings.lock().signalling = Signalling::Garbage;
    let rig = Rig::start(livekit, FAST);
    rig.is_in_room().await;
    let rtc = &rig.livekit.server.rtc;
    let anna = {
        let state = rig.livekit.server.state.lock();
        state.rooms["demo"].participants["anna"].sid.clone()
    };
    let speaker = |sid: &str, level: f32| SpeakerInfo { sid: sid.to_owned(), level, active: true };
    let mut speakers: Vec<_> = [f32::NAN, 1e30, -1.0].map(|level| speaker(&anna, level)).into();
    speakers.extend((0..500).map(|n| speaker(&format!("PA_stranger{n}"), 0.5)));
    let message = Response::SpeakersChanged(SpeakersChanged { speakers });
    (0..1000).for_each(|_| rtc.say_to_all(&message));
    let cut = SignalResponse::from(message).encode_to_vec();
    rtc.send_frame(&cut[..cut.len() / 2]);
    rtc.send_frame(&vec![0xff; 1 << 20]);
    let state = rig.state_until("the flood is cut", |state| state.dropped_updates > 1000).await;
    assert!(state.speaker_updates < 2000, "{state:?}");
    assert_eq!(rig.heard_of().await, 1, "strangers are not heard of");
    assert_eq!(rtc.visits().len(), 1, "and it is still the same connection");
    rig.stop().await;
}
