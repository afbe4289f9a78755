//! A real HTTP server on a free port over a real directory, fed by the test, and clients for it.

use std::collections::HashMap;
use std::net::{SocketAddr, TcpListener};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use actix::prelude::*;
use actix_web::dev::ServerHandle;
use chrono::Utc;
use futures_util::future::BoxFuture;
use futures_util::{FutureExt, SinkExt, StreamExt};
use parking_lot::Mutex;
use serde_json::Value;
use stenocast::actors::root::{Root, RootState};
use stenocast::actors::session::state::{ChildrenState, EdgeDepths, SessionActorState};
use stenocast::actors::session_registry::{
    Broadcast, BroadcastAck, BroadcastRefusal, SessionAnswer, SessionRegistryState, SessionState,
};
use stenocast::actors::supervision::{Answer, ChildState, Observe};
use stenocast::config::{Config, Secret};
use stenocast::gladia::ledger::Account;
use stenocast::http::{self, AppState};
use stenocast::livekit::token::{mint, sign};
use stenocast::metrics::Metrics;
use stenocast::transcript::{
    Directory, Entry, Epoch, Latency, ReadError, Room, SessionInfo, Slug, Status, StatusChange, StorageState,
    Transcript, TranscriptLog, TranscriptReader, Translation,
};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::watch;
use tokio_tungstenite::tungstenite::client::IntoClientRequest;
use tokio_tungstenite::tungstenite::http::{HeaderValue, Request, Response};
use tokio_tungstenite::tungstenite::protocol::CloseFrame;
use tokio_tungstenite::tungstenite::{self, Message};
use tokio_tungstenite::{MaybeTlsStream, WebSocketStream};

use super::wait::DEADLINE;

pub const KEY: &str = "APItest";
pub const SECRET: &str = "secret-of-APItest";
pub const ADMIN_TOKEN: &str = "admin-token";
pub const BROADCAST_TOKEN: &str = "broadcast-token";

pub struct TestServer {
    pub addr: SocketAddr,
    pub state: Arc<AppState>,
    pub store: FakeStore,
    pub hub: Hub,
    draining: watch::Sender<bool>,
    handle: ServerHandle,
}

impl TestServer {
    pub fn start() -> Self {
        Self::with(&[])
    }

    /// `settings` go on top of keys, tokens and two workers.
    pub fn with(settings: &[(&str, &str)]) -> Self {
        let defaults = [
            ("LIVEKIT_API_KEY", KEY),
            ("LIVEKIT_API_SECRET", SECRET),
            ("ADMIN_TOKEN", ADMIN_TOKEN),
            ("BROADCAST_TOKEN", BROADCAST_TOKEN),
            ("WORKERS", "2"),
        ];
        let values: HashMap<String, String> =
            defaults.iter().chain(settings).map(|(name, value)| ((*name).into(), (*value).into())).collect();
        let config = Arc::new(Config::load(&values, true).unwrap());
        let (store, hub) = (FakeStore::default(), Hub::default());
        let addr = hub.clone().start();
        let (draining, drains) = watch::channel(false);
        let state = Arc::new(AppState::new(
            config.clone(),
            Arc::new(Metrics::new()),
            Arc::new(Directory::default()),
            addr.clone().recipient(),
            addr.recipient(),
            Arc::new(store.clone()),
            drains,
        ));
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let addr = listener.local_addr().unwrap();
        let (server, handle) = http::start(&config, state.clone(), listener).unwrap();
        actix::spawn(server);
        Self { addr, state, store, hub, draining, handle }
    }

    pub fn refuse_newcomers(&self) {
        self.draining.send_replace(true);
    }

    pub fn admit_again(&self) {
        self.draining.send_replace(false);
    }

    pub fn url(&self, path: &str) -> String {
        format!("http://{}{path}", self.addr)
    }

    pub fn room(&self, slug: &str) -> Arc<Room> {
        self.state.directory.get_or_create(&self::slug(slug))
    }

    /// A new epoch of `slug` begins, with the ring's size of the configuration.
    pub fn begin(&self, slug: &str) -> Speech {
        self.begin_as(slug, |log| log)
    }

    /// The same for a log that another node numbers.
    pub fn begin_mirror(&self, slug: &str) -> Speech {
        self.begin_as(slug, TranscriptLog::mirror)
    }

    fn begin_as(&self, slug: &str, kind: impl Fn(TranscriptLog) -> TranscriptLog) -> Speech {
        let limits = &self.state.config.viewers;
        let epoch = Epoch::now_v7();
        let log = kind(TranscriptLog::new(self::slug(slug), epoch, 0, limits.history, limits.history_bytes));
        let speech = Speech { log: Arc::new(log), store: self.store.clone() };
        self.store.begin(slug, epoch);
        self.room(slug).set_current(speech.log.clone());
        speech
    }

    /// Opens a WebSocket with a good token; `query` begins with `&`.
    pub async fn view(&self, slug: &str, query: &str) -> Client {
        let uri = format!("ws://{}/api/realtime/transcribe?session={slug}&token={}{query}", self.addr, token(slug));
        Client::open(uri.into_client_request().unwrap()).await.expect("admitted")
    }

    /// GET; gives status and body.
    pub async fn get(&self, path: &str, bearer: Option<&str>) -> (u16, String) {
        let mut request = awc::Client::default().get(self.url(path)).timeout(DEADLINE);
        if let Some(token) = bearer {
            request = request.bearer_auth(token);
        }
        let mut response = request.send().await.unwrap();
        let body = response.body().limit(64 << 20).await.unwrap();
        (response.status().as_u16(), String::from_utf8(body.to_vec()).unwrap())
    }

    pub async fn get_json(&self, path: &str, bearer: Option<&str>) -> (u16, Value) {
        let (status, body) = self.get(path, bearer).await;
        (status, serde_json::from_str(&body).unwrap_or_else(|_| panic!("not JSON: {body}")))
    }

    /// POST broadcast; gives status and body.
    pub async fn post(&self, bearer: Option<&str>, body: impl Into<String>) -> (u16, Value) {
        let mut request = awc::Client::default().post(self.url("/api/realtime/transcribe/broadcast")).timeout(DEADLINE);
        if let Some(token) = bearer {
            request = request.bearer_auth(token);
        }
        let mut response = request.send_body(body.into()).await.unwrap();
        let text = response.body().await.unwrap();
        (response.status().as_u16(), serde_json::from_slice(&text).unwrap())
    }

    /// Sends bytes as they are and reads to the end of the connection.
    pub async fn raw(&self, request: &str) -> String {
        let mut stream = TcpStream::connect(self.addr).await.unwrap();
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut answer = Vec::new();
        let end = tokio::time::timeout(DEADLINE, stream.read_to_end(&mut answer)).await;
        end.expect("the connection to end").unwrap();
        String::from_utf8_lossy(&answer).to_lowercase()
    }

    pub async fn stop(self) {
        self.state.viewers.close_all();
        self.handle.stop(false).await;
    }
}

/// Says things in one epoch of a room. Durable entries go to the fake database too.
#[derive(Clone)]
pub struct Speech {
    pub log: Arc<TranscriptLog>,
    store: FakeStore,
}

impl Speech {
    pub fn epoch(&self) -> Epoch {
        self.log.epoch()
    }

    /// Publishes `count` finals.
    pub fn say(&self, count: usize) {
        for _ in 0..count {
            let seq = self.log.last_seq() + 1;
            self.publish(self.line(&format!("u{seq}"), Some(seq), &format!("line {seq}")));
        }
    }

    pub fn publish(&self, entry: Entry) {
        self.log.publish(&entry).unwrap();
        self.store.add(entry);
    }

    /// For tests that publish much: no copy in the fake database.
    pub fn publish_to_log_only(&self, entry: Entry) {
        self.log.publish(&entry).unwrap();
    }

    /// Of the final `of`, which need not be there.
    pub fn translate(&self, of: &str, language: &str) {
        self.publish(Entry::Translation(Translation {
            session: self.log.slug().clone(),
            epoch: self.epoch(),
            seq: Some(self.log.last_seq() + 1),
            id: format!("{of}:{language}"),
            of: of.to_owned(),
            language: language.to_owned(),
            text: format!("{language} of {of}"),
            start_ms: 0,
            end_ms: 900,
            durable: true,
        }));
    }

    pub fn interim(&self, id: &str, text: &str) {
        assert!(self.log.show_interim(&self.line(id, None, text)));
    }

    pub fn status(&self, status: Status) {
        let seq = self.log.last_seq() + 1;
        let (session, epoch, id) = (self.log.slug().clone(), self.epoch(), format!("s{seq}"));
        let change = StatusChange { session, epoch, seq: Some(seq), id, status, reason: None, durable: true };
        self.publish(Entry::Status(change));
    }

    pub fn end(&self) {
        self.status(Status::Ended);
        self.log.close();
    }

    pub fn line(&self, id: &str, seq: Option<u64>, text: &str) -> Entry {
        Entry::Transcript(Transcript {
            session: self.log.slug().clone(),
            epoch: self.epoch(),
            seq,
            id: id.into(),
            is_final: seq.is_some(),
            revision: 1,
            text: text.into(),
            start_ms: 0,
            end_ms: 900,
            language: Some("en".into()),
            confidence: Some(0.9),
            speaker: None,
            words: None,
            timestamp: Utc::now(),
            latency: Latency::default(),
            durable: true,
        })
    }
}

/// The database of a test.
#[derive(Clone, Default)]
pub struct FakeStore(Arc<StoreState>);

struct StoreState {
    sessions: Mutex<Vec<SessionInfo>>,
    entries: Mutex<HashMap<Epoch, Vec<Entry>>>,
    down: AtomicBool,
    storage: Mutex<StorageState>,
    /// Pages that can still be read.
    pages_left: AtomicU64,
}

impl Default for StoreState {
    fn default() -> Self {
        Self {
            sessions: Mutex::default(),
            entries: Mutex::default(),
            storage: Mutex::default(),
            down: AtomicBool::new(false),
            pages_left: AtomicU64::new(u64::MAX),
        }
    }
}

impl FakeStore {
    pub fn set_down(&self, down: bool) {
        self.0.down.store(down, Ordering::Relaxed);
    }

    /// Rows in quarantine, and the reason of the newest.
    pub fn set_quarantined(&self, quarantined: u64, reason: Option<&str>) {
        let reason = reason.map(str::to_owned);
        *self.0.storage.lock() = StorageState { fault: None, quarantined, quarantine_reason: reason };
    }

    /// The database goes away after `pages` more.
    pub fn allow_pages(&self, pages: u64) {
        self.0.pages_left.store(pages, Ordering::Relaxed);
    }

    pub fn begin(&self, slug: &str, epoch: Epoch) {
        let info = SessionInfo {
            session: self::slug(slug),
            epoch,
            started_at: Utc::now(),
            ended_at: None,
            status: Status::Live,
            seq: 0,
        };
        self.0.sessions.lock().push(info);
    }

    pub fn add(&self, entry: Entry) {
        let epoch = entry.epoch();
        if let Some(info) = self.0.sessions.lock().iter_mut().find(|info| info.epoch == epoch) {
            info.seq = entry.seq().unwrap();
        }
        self.0.entries.lock().entry(epoch).or_default().push(entry);
    }

    /// Rows that the database has not got.
    pub fn forget(&self, epoch: Epoch, lost: impl Fn(u64) -> bool) {
        self.0.entries.lock().get_mut(&epoch).unwrap().retain(|entry| !lost(entry.seq().unwrap()));
    }

    fn answer<T: Send + 'static>(
        &self,
        read: impl FnOnce(&StoreState) -> T,
    ) -> BoxFuture<'static, Result<T, ReadError>> {
        let down = self.0.down.load(Ordering::Relaxed);
        let answer = if down { Err(ReadError("down".into())) } else { Ok(read(&self.0)) };
        async move { answer }.boxed()
    }
}

impl TranscriptReader for FakeStore {
    fn transcripts(&self, epoch: Epoch, after: u64, limit: usize) -> BoxFuture<'static, Result<Vec<Entry>, ReadError>> {
        let spend = |left: u64| left.checked_sub(1);
        if self.0.pages_left.fetch_update(Ordering::Relaxed, Ordering::Relaxed, spend).is_err() {
            return async { Err(ReadError("no more pages".into())) }.boxed();
        }
        self.answer(|s| {
            let entries = s.entries.lock();
            let of_epoch = entries.get(&epoch).into_iter().flatten();
            of_epoch.filter(|e| e.seq() > Some(after)).take(limit).cloned().collect()
        })
    }

    fn sessions(
        &self,
        slug: Option<Slug>,
        before: Option<Epoch>,
        limit: usize,
    ) -> BoxFuture<'static, Result<Vec<SessionInfo>, ReadError>> {
        self.answer(|s| {
            let all = s.sessions.lock();
            let wanted = all.iter().rev().filter(|i| slug.as_ref().is_none_or(|slug| *slug == i.session));
            wanted.filter(|i| before.is_none_or(|before| i.epoch < before)).take(limit).cloned().collect()
        })
    }

    fn session(&self, epoch: Epoch) -> BoxFuture<'static, Result<Option<SessionInfo>, ReadError>> {
        self.answer(|s| s.sessions.lock().iter().find(|i| i.epoch == epoch).cloned())
    }

    fn latest_session(&self, slug: Slug) -> BoxFuture<'static, Result<Option<SessionInfo>, ReadError>> {
        self.answer(|s| s.sessions.lock().iter().rev().find(|i| i.session == slug).cloned())
    }

    fn storage(&self) -> BoxFuture<'static, StorageState> {
        let fault = self.0.down.load(Ordering::Relaxed).then(|| "down".to_owned());
        let state = StorageState { fault, ..self.0.storage.lock().clone() };
        async move { state }.boxed()
    }
}

/// Stands for the session registry and the actor tree.
#[derive(Clone, Default)]
pub struct Hub {
    pub posts: Arc<Mutex<Vec<Broadcast>>>,
    pub answer: Arc<Mutex<Option<Result<BroadcastAck, BroadcastRefusal>>>>,
}

impl Actor for Hub {
    type Context = Context<Self>;
}

impl Handler<Broadcast> for Hub {
    type Result = Result<BroadcastAck, BroadcastRefusal>;
    fn handle(&mut self, post: Broadcast, _: &mut Self::Context) -> Self::Result {
        let accepted = post.entries.len();
        self.posts.lock().push(post);
        let ack = BroadcastAck { accepted, duplicates: 0, seq: accepted as u64 };
        self.answer.lock().clone().unwrap_or(Ok(ack))
    }
}

impl Handler<Observe<Root>> for Hub {
    type Result = MessageResult<Observe<Root>>;
    fn handle(&mut self, _: Observe<Root>, _: &mut Self::Context) -> Self::Result {
        let sessions = vec![observed_session("demo", 3), observed_session("other", 4)];
        let registry = SessionRegistryState { generation: 1, arbiters: 1, active: 2, sessions };
        MessageResult(RootState {
            session_registry: child(Answer::State(registry)),
            batch_writer: child(Answer::Gone),
            stt_process: None,
            rtmp_listener: None,
            forwarders: Vec::new(),
            room_keeper: None,
            follower: None,
            egress_controller: None,
        })
    }
}

fn child<S>(state: Answer<S>) -> ChildState<S> {
    ChildState { restarts: 0, last_fault: None, state }
}

/// A session with so many tags that wait.
fn observed_session(slug: &str, tags: u64) -> SessionState {
    let children = ChildrenState {
        transcript_room: child(Answer::Gone),
        speaker_tracker: child(Answer::Silent),
        gladia_bridge: None,
        ffmpeg_decoder: None,
        rtmp_connection: None,
        room_participant: None,
        room_captions: None,
    };
    let state = SessionActorState {
        session: Slug::parse(slug).unwrap(),
        epoch: Epoch::from_u128(1),
        origin: "relay",
        phase: "live",
        status: Status::Live,
        started_at: chrono::Utc::now(),
        uptime_ms: 1,
        generation: 1,
        degraded: false,
        rebuilds: 0,
        viewers: 0,
        seq: 0,
        edges: EdgeDepths { tags, ..EdgeDepths::default() },
        audio: Account::default(),
        children,
    };
    SessionState { actor: SessionAnswer::State(Box::new(state)), restarts: 0, last_fault: None }
}

type Socket = WebSocketStream<MaybeTlsStream<TcpStream>>;

/// A viewer.
pub struct Client {
    socket: Socket,
    pub response: Response<Option<Vec<u8>>>,
}

/// Why a WebSocket was not opened.
#[derive(Debug)]
pub struct Refusal {
    pub status: u16,
    pub code: String,
    pub message: String,
}

impl Client {
    pub async fn open(request: Request<()>) -> Result<Self, Refusal> {
        match tokio_tungstenite::connect_async(request).await {
            Ok((socket, response)) => Ok(Self { socket, response }),
            Err(tungstenite::Error::Http(response)) => {
                let body: Value = serde_json::from_slice(response.body().as_deref().unwrap_or_default())
                    .expect("refusals have a JSON body");
                let text = |name: &str| body["error"][name].as_str().expect("code and message").to_owned();
                Err(Refusal { status: response.status().as_u16(), code: text("code"), message: text("message") })
            }
            Err(error) => panic!("{error}"),
        }
    }

    pub async fn send(&mut self, text: impl Into<String>) {
        self.socket.send(Message::text(text.into())).await.unwrap();
    }

    pub async fn send_raw(&mut self, message: Message) -> Result<(), tungstenite::Error> {
        self.socket.send(message).await
    }

    /// The next JSON message.
    pub async fn next(&mut self) -> Value {
        match self.next_or_close().await {
            Ok(value) => value,
            Err(close) => panic!("closed: {close:?}"),
        }
    }

    /// The next JSON message that is no ping, or how the server ended the connection.
    pub async fn next_or_close(&mut self) -> Result<Value, Option<CloseFrame>> {
        loop {
            let message = self.next_or_ping().await?;
            if message["type"] != "ping" {
                return Ok(message);
            }
        }
    }

    /// The next JSON message, or how the server ended the connection.
    pub async fn next_or_ping(&mut self) -> Result<Value, Option<CloseFrame>> {
        loop {
            let message = tokio::time::timeout(DEADLINE, self.socket.next()).await.expect("a message in time");
            match message {
                Some(Ok(Message::Text(text))) => return Ok(serde_json::from_str(&text).unwrap()),
                Some(Ok(Message::Close(frame))) => return Err(frame),
                Some(Ok(_)) => {}
                Some(Err(_)) | None => return Err(None),
            }
        }
    }

    /// Reads to the end; gives the close frame.
    pub async fn closed(&mut self) -> CloseFrame {
        loop {
            if let Err(frame) = self.next_or_close().await {
                return frame.expect("a close frame");
            }
        }
    }

    /// Reads `count` messages and gives the sequence numbers of the durable ones.
    pub async fn seqs(&mut self, count: usize) -> Vec<u64> {
        let mut seqs = Vec::new();
        while seqs.len() < count {
            seqs.extend(self.next().await["seq"].as_u64());
        }
        seqs
    }
}

pub fn slug(text: &str) -> Slug {
    Slug::parse(text).unwrap()
}

/// A good token for one room.
pub fn token(room: &str) -> String {
    token_of("anna", room)
}

pub fn token_of(identity: &str, room: &str) -> String {
    mint(KEY, &Secret::new(SECRET), identity, Some("Anna"), &slug(room), Duration::from_secs(600), false)
}

pub fn room_admin(room: &str) -> String {
    mint(KEY, &Secret::new(SECRET), "boss", None, &slug(room), Duration::from_secs(600), true)
}

/// A token with claims of the test's own.
pub fn token_with(secret: &str, claims: Value) -> String {
    sign(&claims, &Secret::new(secret))
}

pub fn ws_request(server: &TestServer, query: &str, headers: &[(&'static str, &str)]) -> Request<()> {
    let uri = format!("ws://{}/api/realtime/transcribe?{query}", server.addr);
    let mut request = uri.into_client_request().unwrap();
    for (name, value) in headers {
        request.headers_mut().insert(*name, HeaderValue::from_str(value).unwrap());
    }
    request
}
