//! A LiveKit server for tests: rooms, participants, tracks and egresses; its API as it was captured from a real one, its
//! webhooks, and egresses that really publish.
//!
//! Everybody in a room has a voice, which is fed with [`FakeLiveKit::say`]. The room plays all voices on one clock, 10 ms
//! at a time: a Room Composite Egress publishes their sum, a Track Egress sends one of them.

pub mod egress;
pub mod participant;
pub mod rtc;
pub mod sdk;
pub mod twirp;
pub mod voices;
pub mod webhooks;

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::net::{SocketAddr, TcpListener};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use actix_web::dev::ServerHandle;
use actix_web::{App, HttpServer, web};
use parking_lot::Mutex;
use serde_json::{Value, json};
use stenocast::config::Secret;
use stenocast::livekit::keys::KeyRing;
use tokio::task::JoinHandle;

use super::app::KEY;
use egress::{Egress, Manner};
use voices::Voices;
use webhooks::Webhooks;

/// A fault of the server's API.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// Answers after so many ms.
    Slow(u64),
    /// Refuses every token, as for a wrong grant.
    Denied,
    /// No egress worker.
    NoWorker,
    Quota,
    Precondition,
    /// Something else than LiveKit answers.
    BadGateway,
    /// It is done, and the caller does not hear of it.
    AnswerLost,
}

/// See the module. The server ends when it is dropped.
pub struct FakeLiveKit {
    pub addr: SocketAddr,
    pub server: Arc<Server>,
    handle: ServerHandle,
}

/// The state of the server; shared by its threads.
pub struct Server {
    pub keys: KeyRing,
    pub state: Mutex<State>,
    pub webhooks: Webhooks,
    pub rtc: rtc::Hub,
    faults: Mutex<HashMap<String, Fault>>,
    calls: Mutex<Vec<(String, Value)>>,
    next_id: AtomicU64,
    /// Older servers do not know `StartEgress` (v2).
    pub has_v2: AtomicBool,
}

#[derive(Default)]
pub struct State {
    /// By name.
    pub rooms: BTreeMap<String, Room>,
    pub egresses: Vec<Egress>,
    /// Manners of the next egresses; the last one stays.
    pub manners: VecDeque<Manner>,
}

pub struct Room {
    pub sid: String,
    pub name: String,
    pub created_ms: u64,
    /// By identity.
    pub participants: BTreeMap<String, Participant>,
    pub voices: Voices,
}

#[derive(Clone)]
pub struct Participant {
    pub sid: String,
    pub identity: String,
    pub name: String,
    pub kind: &'static str,
    pub is_hidden: bool,
    pub is_agent: bool,
    pub joined_ms: u64,
    pub tracks: Vec<Track>,
}

#[derive(Clone)]
pub struct Track {
    pub sid: String,
    pub is_audio: bool,
    pub source: &'static str,
    pub is_muted: bool,
}

pub fn now_ms() -> u64 {
    chrono::Utc::now().timestamp_millis() as u64
}

impl FakeLiveKit {
    /// Starts with the key of [`super::app`]; webhooks go nowhere yet.
    pub fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let addr = listener.local_addr().unwrap();
        let server = Arc::new(Server {
            keys: KeyRing::new(vec![(KEY.0.to_owned(), Secret::new(KEY.1))]),
            state: Mutex::default(),
            webhooks: Webhooks::default(),
            rtc: rtc::Hub::default(),
            faults: Mutex::default(),
            calls: Mutex::default(),
            next_id: AtomicU64::new(1),
            has_v2: AtomicBool::new(false),
        });
        let data = web::Data::from(server.clone());
        let http = HttpServer::new(move || {
            // Pages of any origin may ask LiveKit.
            let app = App::new().wrap(actix_cors::Cors::permissive()).app_data(data.clone());
            app.configure(twirp::routes).configure(rtc::routes)
        })
        .workers(1)
        .disable_signals()
        .shutdown_timeout(0)
        .listen(listener)
        .unwrap()
        .run();
        let handle = http.handle();
        actix_rt::spawn(http);
        rtc::Hub::start(&server);
        Self { addr, server, handle }
    }

    /// `LIVEKIT_URL`, as LiveKit's own tools write it.
    pub fn url(&self) -> String {
        format!("ws://{}", self.addr)
    }

    pub fn http_url(&self) -> String {
        format!("http://{}", self.addr)
    }

    /// Webhooks go to these URLs from now on.
    pub fn send_webhooks_to(&self, urls: &[String]) {
        self.server.webhooks.send_to(urls);
    }

    /// The same for a server of ours at this address.
    pub fn send_webhooks_to_addr(&self, http: SocketAddr) {
        self.send_webhooks_to(&[format!("http://{http}/api/livekit/webhook")]);
    }

    pub fn create_room(&self, name: &str) -> String {
        self.server.create_room(name)
    }

    /// Sends everybody out of the room; its egresses end.
    pub fn delete_room(&self, name: &str) {
        self.server.delete_room(name);
    }

    pub fn join(&self, room: &str, identity: &str, name: &str) {
        self.server.join(room, Participant::new(&self.server, identity, name));
    }

    pub fn leave(&self, room: &str, identity: &str) {
        self.server.leave(room, identity);
    }

    /// Gives the id of the microphone's track.
    pub fn publish_microphone(&self, room: &str, identity: &str) -> String {
        self.server.publish(room, identity, true, "MICROPHONE")
    }

    pub fn publish(&self, room: &str, identity: &str, is_audio: bool, source: &'static str) -> String {
        self.server.publish(room, identity, is_audio, source)
    }

    pub fn unpublish(&self, room: &str, track: &str) {
        self.server.unpublish(room, track);
    }

    /// What somebody says from now on, or after what was said before: mono, 48 kHz.
    pub fn say(&self, room: &str, identity: &str, samples: &[i16]) {
        let state = self.server.state.lock();
        state.rooms[room].voices.say(identity, samples);
    }

    pub fn mute(&self, room: &str, identity: &str, is_muted: bool) {
        let mut state = self.server.state.lock();
        let room = state.rooms.get_mut(room).expect("a room");
        let participant = room.participants.get_mut(identity).expect("a participant");
        participant.tracks.iter_mut().for_each(|track| track.is_muted = is_muted);
        room.voices.mute(identity, is_muted);
    }

    /// Manners of the next egresses, in order; the last one stays.
    pub fn egresses_will(&self, manners: &[Manner]) {
        self.server.state.lock().manners = manners.iter().cloned().collect();
    }

    /// A fault of one method, such as `StopEgress`, or of all of them (`*`).
    pub fn fault(&self, method: &str, fault: Option<Fault>) {
        let mut faults = self.server.faults.lock();
        match fault {
            Some(fault) => drop(faults.insert(method.to_owned(), fault)),
            None => drop(faults.remove(method)),
        }
    }

    /// The requests of a method, in order.
    pub fn calls(&self, method: &str) -> Vec<Value> {
        let calls = self.server.calls.lock();
        calls.iter().filter(|(name, _)| name == method).map(|(_, request)| request.clone()).collect()
    }

    /// Every egress of a room with its status, in order of its start.
    pub fn egresses(&self, room: &str) -> Vec<(String, &'static str)> {
        let state = self.server.state.lock();
        let of_room = state.egresses.iter().filter(|egress| egress.room_name == room);
        of_room.map(|egress| (egress.id.clone(), egress.status)).collect()
    }

    /// Ids of those that are starting or active.
    pub fn running(&self, room: &str) -> Vec<String> {
        let is_running = |status: &str| matches!(status, "EGRESS_STARTING" | "EGRESS_ACTIVE");
        self.egresses(room).into_iter().filter(|(_, status)| is_running(status)).map(|(id, _)| id).collect()
    }

    /// An egress breaks.
    pub fn fail_egress(&self, id: &str) {
        self.server.end_egress(id, "EGRESS_FAILED", "failed on purpose");
    }

    /// Sends an event of the test's own making.
    pub fn send_event(&self, event: &str, parts: Value) {
        self.server.webhooks.send(&self.server, event, parts);
    }
}

impl Drop for FakeLiveKit {
    fn drop(&mut self) {
        let mut state = self.server.state.lock();
        state.egresses.iter_mut().for_each(Egress::kill);
        state.rooms.clear();
        drop(state);
        self.server.webhooks.send_to(&[]);
        drop(self.handle.stop(false));
    }
}

impl Server {
    pub fn id(&self, prefix: &str) -> String {
        format!("{prefix}_fake{:08}", self.next_id.fetch_add(1, Ordering::Relaxed))
    }

    pub fn fault_of(&self, method: &str) -> Option<Fault> {
        let faults = self.faults.lock();
        faults.get(method).or_else(|| faults.get("*")).copied()
    }

    pub fn note_call(&self, method: &str, request: &Value) {
        self.calls.lock().push((method.to_owned(), request.clone()));
    }

    pub fn create_room(&self, name: &str) -> String {
        let mut state = self.state.lock();
        if let Some(room) = state.rooms.get(name) {
            return room.sid.clone();
        }
        let room = Room {
            sid: self.id("RM"),
            name: name.to_owned(),
            created_ms: now_ms(),
            participants: BTreeMap::new(),
            voices: Voices::start(),
        };
        let (sid, event) = (room.sid.clone(), room.camel());
        state.rooms.insert(name.to_owned(), room);
        drop(state);
        self.webhooks.send(self, "room_started", json!({"room": event}));
        sid
    }

    pub fn delete_room(&self, name: &str) {
        let identities: Vec<String> = match self.state.lock().rooms.get(name) {
            Some(room) => room.participants.keys().cloned().collect(),
            None => return,
        };
        for identity in identities {
            self.leave(name, &identity);
        }
        let room = self.state.lock().rooms.remove(name);
        let Some(room) = room else { return };
        let ids: Vec<String> = {
            let state = self.state.lock();
            let of_room = state.egresses.iter().filter(|egress| egress.room_id == room.sid && egress.is_running());
            of_room.map(|egress| egress.id.clone()).collect()
        };
        ids.iter().for_each(|id| self.end_egress(id, "EGRESS_COMPLETE", ""));
        self.webhooks.send(self, "room_finished", json!({"room": room.camel()}));
    }

    pub fn join(&self, room: &str, participant: Participant) {
        self.create_room(room);
        let mut state = self.state.lock();
        let room = state.rooms.get_mut(room).expect("it was just made");
        let event = json!({"room": room.camel(), "participant": participant.camel("ACTIVE")});
        room.participants.insert(participant.identity.clone(), participant);
        drop(state);
        self.webhooks.send(self, "participant_joined", event);
    }

    pub fn leave(&self, room: &str, identity: &str) {
        let mut state = self.state.lock();
        let Some(room) = state.rooms.get_mut(room) else { return };
        let Some(participant) = room.participants.remove(identity) else { return };
        room.voices.forget(identity);
        let short = json!({"sid": room.sid, "name": room.name});
        let who = json!({"sid": participant.sid, "identity": participant.identity});
        let event = json!({"room": room.camel(), "participant": participant.camel("DISCONNECTED")});
        drop(state);
        for track in &participant.tracks {
            let parts = json!({"room": short, "participant": who, "track": track.camel()});
            self.end_track_egresses(&track.sid);
            self.webhooks.send(self, "track_unpublished", parts);
        }
        self.webhooks.send(self, "participant_left", event);
    }

    pub fn publish(&self, room: &str, identity: &str, is_audio: bool, source: &'static str) -> String {
        let track = Track { sid: self.id("TR"), is_audio, source, is_muted: false };
        let mut state = self.state.lock();
        let room = state.rooms.get_mut(room).expect("a room");
        let participant = room.participants.get_mut(identity).expect("a participant");
        // Only sid and identity, and sid and name, as captured.
        let event = json!({
            "room": {"sid": room.sid, "name": room.name},
            "participant": {"sid": participant.sid, "identity": participant.identity},
            "track": track.camel(),
        });
        participant.tracks.push(track.clone());
        drop(state);
        self.webhooks.send(self, "track_published", event);
        track.sid
    }

    pub fn unpublish(&self, room: &str, track: &str) {
        let mut state = self.state.lock();
        let Some(room) = state.rooms.get_mut(room) else { return };
        let short = json!({"sid": room.sid, "name": room.name});
        let mut event = Value::Null;
        for participant in room.participants.values_mut() {
            if let Some(n) = participant.tracks.iter().position(|of| of.sid == track) {
                let track = participant.tracks.remove(n);
                let who = json!({"sid": participant.sid, "identity": participant.identity});
                event = json!({"room": short, "participant": who, "track": track.camel()});
            }
        }
        drop(state);
        self.end_track_egresses(track);
        self.webhooks.send(self, "track_unpublished", event);
    }
}

impl Participant {
    pub fn new(server: &Server, identity: &str, name: &str) -> Self {
        Self {
            sid: server.id("PA"),
            identity: identity.to_owned(),
            name: name.to_owned(),
            kind: "STANDARD",
            is_hidden: false,
            is_agent: false,
            joined_ms: now_ms(),
            tracks: Vec::new(),
        }
    }

    /// As webhooks have it: zero values left out.
    fn camel(&self, state: &str) -> Value {
        let mut all = json!({
            "sid": self.sid, "identity": self.identity, "state": state, "name": self.name, "version": 2,
            "joinedAt": (self.joined_ms / 1000).to_string(), "joinedAtMs": self.joined_ms.to_string(),
            "permission": {"canSubscribe": true, "canPublish": true, "canPublishData": true}, "clientProtocol": 2,
        });
        if self.name.is_empty() {
            all.as_object_mut().expect("an object").remove("name");
        }
        if self.kind != "STANDARD" {
            all["kind"] = json!(self.kind);
        }
        if self.is_hidden {
            all["permission"]["hidden"] = json!(true);
        }
        if self.is_agent {
            all["permission"]["agent"] = json!(true);
        }
        if state == "DISCONNECTED" {
            all["disconnectReason"] = json!("CLIENT_INITIATED");
        }
        all
    }

    /// As the API answers: zero values written.
    pub fn snake(&self) -> Value {
        json!({
            "sid": self.sid, "identity": self.identity, "state": "ACTIVE", "name": self.name, "metadata": "",
            "tracks": self.tracks.iter().map(Track::snake).collect::<Vec<_>>(), "version": 2, "region": "",
            "joined_at": (self.joined_ms / 1000).to_string(), "joined_at_ms": self.joined_ms.to_string(),
            "permission": {
                "can_subscribe": true, "can_publish": true, "can_publish_data": true, "can_publish_sources": [],
                "hidden": self.is_hidden, "recorder": false, "can_update_metadata": false, "agent": self.is_agent,
                "can_subscribe_metrics": false,
            },
            "is_publisher": !self.tracks.is_empty(), "kind": self.kind, "attributes": {},
            "disconnect_reason": "UNKNOWN_REASON", "kind_details": [],
        })
    }
}

impl Track {
    fn camel(&self) -> Value {
        let mime = if self.is_audio { "audio/red" } else { "video/VP8" };
        let mut all = json!({"sid": self.sid, "name": "mic", "source": self.source, "mimeType": mime, "mid": "7"});
        if !self.is_audio {
            all["type"] = json!("VIDEO");
        }
        all
    }

    fn snake(&self) -> Value {
        let (kind, mime) = if self.is_audio { ("AUDIO", "audio/red") } else { ("VIDEO", "video/VP8") };
        json!({
            "sid": self.sid, "type": kind, "name": "mic", "muted": self.is_muted, "width": 0, "height": 0,
            "simulcast": false, "disable_dtx": false, "source": self.source, "layers": [], "mime_type": mime, "mid": "7",
            "codecs": [], "stereo": false, "disable_red": false, "encryption": "NONE", "stream": "camera", "version": null,
        })
    }
}

impl Room {
    fn camel(&self) -> Value {
        json!({
            "sid": self.sid, "name": self.name, "emptyTimeout": 300, "departureTimeout": 20,
            "creationTime": (self.created_ms / 1000).to_string(), "creationTimeMs": self.created_ms.to_string(),
            "turnPassword": "not-a-real-one", "enabledCodecs": [{"mime": "audio/opus"}, {"mime": "audio/red"}],
        })
    }

    pub fn snake(&self) -> Value {
        let people = self.participants.values().filter(|participant| !participant.is_hidden);
        let publishers = people.clone().filter(|participant| !participant.tracks.is_empty()).count();
        json!({
            "sid": self.sid, "name": self.name, "empty_timeout": 300, "departure_timeout": 20, "max_participants": 0,
            "creation_time": (self.created_ms / 1000).to_string(), "creation_time_ms": self.created_ms.to_string(),
            "turn_password": "", "enabled_codecs": [], "metadata": "", "num_participants": people.count(),
            "num_publishers": publishers, "active_recording": false, "version": null,
        })
    }
}

/// A task that ends with whoever started it.
pub struct Task(pub JoinHandle<()>);

impl Drop for Task {
    fn drop(&mut self) {
        self.0.abort();
    }
}
