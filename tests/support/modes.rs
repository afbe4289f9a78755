//! The same servers three times: one process, two over HTTP, two over NATS; and what they say without what differs
//! from run to run.

use std::net::SocketAddr;
use std::path::PathBuf;

use serde_json::{Map, Value, json};
use stenocast::transcript::{Entry, Epoch, Slug, Status};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use super::app::{KEY, TestApp, viewer_token};
use super::http::token_with;
use super::nats::{Nats, Version};
use super::publisher::{marked_audio, write_wav};
use super::server::request_as;
use super::stt::{Stt, marker_service};
use super::viewer::Viewer;
use super::wait::{DEADLINE, until};

pub const BROADCAST_TOKEN: &str = "a-broadcast-token-of-all-modes-0";
pub const ADMIN_TOKEN: &str = "an-admin-token-of-all-modes-0000";
/// Where third parties post.
pub const BROADCAST: &str = "/api/realtime/transcribe/broadcast";

/// How the ingest side and the viewers' side are joined.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    Both,
    Http,
    Nats,
}

/// An ingest side and a viewers' side, which may be one.
pub struct World {
    pub mode: Mode,
    pub stt: Stt,
    /// None while it is being restarted.
    serving: Option<TestApp>,
    /// The ingest side, where it is not `serving`.
    separate: Option<TestApp>,
    settings: Vec<(String, String)>,
    nats: Option<Nats>,
    files: tempfile::TempDir,
}

impl World {
    pub async fn start(mode: Mode, more: &[(&str, &str)]) -> Self {
        let stt = marker_service().await;
        let nats = if mode == Mode::Nats { Some(Nats::start(Version::Newest).await) } else { None };
        let mut settings = vec![("BROADCAST_TOKEN", BROADCAST_TOKEN), ("ADMIN_TOKEN", ADMIN_TOKEN)];
        settings.extend_from_slice(more);
        let nats_url = nats.as_ref().map(Nats::url).unwrap_or_default();
        if nats.is_some() {
            settings.extend([("BUS", "nats"), ("NATS_URL", nats_url.as_str())]);
        }
        let mut world = Self {
            mode,
            stt,
            serving: None,
            separate: None,
            settings: settings.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect(),
            nats,
            files: tempfile::tempdir().expect("a temporary directory"),
        };
        world.start_serving(tempfile::tempdir().expect("a temporary directory"), "0").await;
        if mode != Mode::Both {
            world.start_ingest(tempfile::tempdir().expect("a temporary directory")).await;
        }
        world
    }

    async fn start_serving(&mut self, dir: tempfile::TempDir, port: &str) {
        let mut settings: Vec<_> = self.settings.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect();
        settings.push(("PORT", port));
        settings.push(match self.mode {
            Mode::Both => ("GLADIA_API_URL", self.stt.url.as_str()),
            _ => ("SERVER_MODE", "ws"),
        });
        self.serving = Some(TestApp::start_in(dir, &settings).await);
    }

    async fn start_ingest(&mut self, dir: tempfile::TempDir) {
        let target = format!("http://{}", self.http());
        let mut settings = vec![("SERVER_MODE", "rtmp"), ("GLADIA_API_URL", self.stt.url.as_str())];
        settings.extend(self.settings.iter().map(|(name, value)| (name.as_str(), value.as_str())));
        if self.nats.is_none() {
            settings.push(("WS_SERVER_URL", &target));
        }
        self.separate = Some(TestApp::start_in(dir, &settings).await);
    }

    /// Restarts the node that has the publishers. In one process the viewers' side is restarted with it.
    pub async fn restart_ingest(&mut self) {
        match self.separate.take() {
            Some(ingest) => {
                let dir = ingest.stop().await;
                self.start_ingest(dir).await;
            }
            None => self.restart_serving().await,
        }
    }

    /// Restarts the node that has the viewers, on its port.
    pub async fn restart_serving(&mut self) {
        let port = self.http().port().to_string();
        let dir = self.stop_serving().await;
        self.start_serving(dir, &port).await;
    }

    /// Stops the node that has the viewers.
    pub async fn stop_serving(&mut self) -> tempfile::TempDir {
        self.serving.take().expect("it runs").stop().await
    }

    pub fn serving(&self) -> &TestApp {
        self.serving.as_ref().expect("it runs")
    }

    pub fn ingest(&self) -> &TestApp {
        self.separate.as_ref().unwrap_or_else(|| self.serving())
    }

    pub fn http(&self) -> SocketAddr {
        self.serving().app.http_addr()
    }

    pub async fn join(&self, slug: &str, more: &str) -> Viewer {
        Viewer::connect(self.http(), slug, more).await
    }

    pub fn audio(&self, markers: impl IntoIterator<Item = u32> + Clone, pause_ms: usize) -> PathBuf {
        let first = markers.clone().into_iter().next().expect("a marker");
        let path = self.files.path().join(format!("{first}-{pause_ms}.wav"));
        write_wav(&path, &marked_audio(markers, pause_ms));
        path
    }

    pub fn rtmp_url(&self, slug: &str) -> String {
        self.ingest().rtmp_url(slug)
    }

    /// Status and JSON of a request to the viewers' side.
    pub async fn ask(&self, token: &str, method: &str, path: &str, body: &str) -> (u16, Value) {
        ask(self.http(), token, method, path, body).await
    }

    /// A post of a third party to the viewers' side.
    pub async fn post(&self, slug: &str, lines: &[Value]) -> (u16, Value) {
        let body = json!({"session": slug, "transcripts": lines}).to_string();
        self.ask(BROADCAST_TOKEN, "POST", BROADCAST, &body).await
    }

    /// The row of a session and the rows of its entries, once the row says that it has ended.
    pub async fn rows(&self, slug: &str) -> (Value, Vec<Entry>) {
        let (slug, store) = (Slug::parse(slug).expect("a slug"), self.serving().app.storage().store.clone());
        let store = store.expect("the viewers' side has a database");
        let all = async || {
            let Some(row) = store.latest_session(&slug).await.expect("the database answers") else {
                return Err("no row of the session".to_owned());
            };
            let rows = store.transcripts(row.epoch, 0, 1000).await.expect("the database answers");
            // The row of the session may be there before the last rows of its entries.
            let is_last = |entry: &Entry| matches!(entry, Entry::Status(change) if change.status == Status::Ended);
            let is_all =
                row.ended_at.is_some() && rows.last().is_some_and(is_last) && rows.len() as u64 == row.last_seq;
            if is_all { Ok((row, rows)) } else { Err(format!("{:?}: {} rows, {row:?}", self.mode, rows.len())) }
        };
        let (row, rows) = until("the rows of a session that has ended", all).await;
        (serde_json::to_value(row).expect("JSON"), rows)
    }

    pub async fn stop(self) {
        if let Some(ingest) = self.separate {
            ingest.stop().await;
        }
        if let Some(serving) = self.serving {
            serving.stop().await;
        }
    }
}

/// Status and JSON of a request.
pub async fn ask(http: SocketAddr, token: &str, method: &str, path: &str, body: &str) -> (u16, Value) {
    let (status, answer) = request_as(http, token, method, path, body).await.expect("it answers");
    let body = answer.split_once("\r\n\r\n").map_or("", |(_, body)| body);
    (status, serde_json::from_str(body).unwrap_or_else(|_| json!(body)))
}

/// Server-sent events up to the one that is looked for: each with its `id` field as `lastEventId`.
pub async fn events(
    http: SocketAddr,
    slug: &str,
    last_event_id: Option<&str>,
    is_last: impl Fn(&Value) -> bool,
) -> Vec<Value> {
    let mut socket = TcpStream::connect(http).await.expect("it listens");
    let id = last_event_id.map(|id| format!("Last-Event-ID: {id}\r\n")).unwrap_or_default();
    let query = format!("session={slug}&token={}", viewer_token(slug));
    let request = format!("GET /api/realtime/events?{query} HTTP/1.0\r\nHost: test\r\n{id}\r\n");
    socket.write_all(request.as_bytes()).await.expect("it reads");
    let (mut text, mut found) = (String::new(), Vec::new());
    let read = async {
        loop {
            let mut bytes = [0; 16 << 10];
            let count = socket.read(&mut bytes).await.expect("it writes");
            assert!(count > 0, "the events have ended: {text}");
            text.push_str(std::str::from_utf8(&bytes[..count]).expect("text"));
            while let Some(end) = text.find("\n\n") {
                let block: String = text.drain(..end + 2).collect();
                let field = |name: &str| block.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(": "));
                let Some(data) = field("data") else { continue };
                let mut data: Value = serde_json::from_str(data).expect("JSON");
                data["lastEventId"] = json!(field("id"));
                if data["type"] == "ping" {
                    continue;
                }
                found.push(data);
                if found.last().is_some_and(&is_last) {
                    return;
                }
            }
        }
    };
    let is_in_time = tokio::time::timeout(DEADLINE, read).await.is_ok();
    assert!(is_in_time, "not within {DEADLINE:?}; seen {found:#?}");
    found
}

/// Replaces what differs from run to run. The same id or epoch has the same replacement.
#[derive(Default)]
pub struct Plain {
    ids: Vec<String>,
    epochs: Vec<String>,
}

impl Plain {
    pub fn of(&mut self, value: &Value) -> Value {
        self.field("", value)
    }

    pub fn all<'a>(&mut self, values: impl IntoIterator<Item = &'a Value>) -> Value {
        values.into_iter().map(|value| self.of(value)).collect()
    }

    fn field(&mut self, name: &str, value: &Value) -> Value {
        match (name, value) {
            (_, Value::Null) => Value::Null,
            ("pingMs", value) => value.clone(),
            ("epoch" | "next", Value::String(epoch)) => numbered(&mut self.epochs, "epoch", epoch),
            ("id" | "of", Value::String(id)) => numbered(&mut self.ids, "id", id),
            ("lastEventId", Value::String(id)) => {
                let (epoch, seq) = id.split_once(':').expect("an epoch and a number");
                let epoch = numbered(&mut self.epochs, "epoch", epoch);
                json!(format!("{}:{seq}", epoch.as_str().expect("a string")))
            }
            ("timestamp" | "startedAt" | "endedAt", Value::String(at)) => {
                let is_one = chrono::DateTime::parse_from_rfc3339(at).is_ok() && at.ends_with('Z');
                json!(if is_one { format!("a time of {} characters", at.len()) } else { at.clone() })
            }
            ("revision", Value::Number(_)) => json!("a number"),
            (name, Value::Number(ms)) if name.ends_with("Ms") => {
                json!(if ms.as_u64().is_some() { "ms" } else { "no ms" })
            }
            (_, Value::Array(values)) => values.iter().map(|value| self.field(name, value)).collect(),
            (_, Value::Object(fields)) => {
                let fields = fields.iter().map(|(name, value)| (name.clone(), self.field(name, value)));
                Value::Object(fields.collect::<Map<_, _>>())
            }
            (_, value) => value.clone(),
        }
    }
}

fn numbered(known: &mut Vec<String>, what: &str, name: &str) -> Value {
    let place = known.iter().position(|one| one == name).unwrap_or_else(|| {
        known.push(name.to_owned());
        known.len() - 1
    });
    json!(format!("{what}-{place}"))
}

/// Plays the script in all modes. What it tells must be the same in each.
pub async fn same_in_all_modes(more: &[(&str, &str)], script: impl AsyncFn(&mut World) -> Value) {
    same_in(&[Mode::Both, Mode::Http, Mode::Nats], more, script).await;
}

/// Plays the script in these modes, side by side. What it tells must be the same in each.
pub async fn same_in(modes: &[Mode], more: &[(&str, &str)], script: impl AsyncFn(&mut World) -> Value) {
    let play = async |mode: &Mode| {
        let mut world = World::start(*mode, more).await;
        let told = script(&mut world).await;
        world.stop().await;
        told
    };
    let told = futures_util::future::join_all(modes.iter().map(play)).await;
    let mut differences = Vec::new();
    for (mode, here) in modes.iter().zip(&told).skip(1) {
        differ("", &told[0], here, &mut |place, first, here| {
            differences.push(format!("{mode:?}{place}\n    {:?}: {first}\n    here: {here}", modes[0]));
        });
    }
    assert!(differences.is_empty(), "not the same:\n{}\n\n{:?}: {:#}", differences.join("\n"), modes[0], told[0]);
}

fn differ(place: &str, left: &Value, right: &Value, tell: &mut impl FnMut(&str, &Value, &Value)) {
    match (left, right) {
        (Value::Object(left), Value::Object(right)) if left.keys().eq(right.keys()) => {
            for (name, value) in left {
                differ(&format!("{place}.{name}"), value, &right[name], tell);
            }
        }
        (Value::Array(left), Value::Array(right)) if left.len() == right.len() => {
            for (n, (left, right)) in left.iter().zip(right).enumerate() {
                differ(&format!("{place}[{n}]"), left, right, tell);
            }
        }
        (left, right) if left == right => {}
        (left, right) => tell(place, left, right),
    }
}

/// The epoch of a message.
pub fn epoch_of(message: &Value) -> Epoch {
    message["epoch"].as_str().expect("an epoch").parse().expect("a UUID")
}

/// The query of a viewer that goes on after this entry.
pub fn after(message: &Value) -> String {
    format!("&after={}&epoch={}", message["seq"], epoch_of(message))
}

/// A viewer's token that ends at this time, in seconds.
pub fn token_until(slug: &str, exp: i64) -> String {
    let video = json!({"roomJoin": true, "room": slug});
    token_with(KEY.1, json!({"iss": KEY.0, "sub": "tester", "exp": exp, "video": video}))
}
