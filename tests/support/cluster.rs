//! Two ingest nodes and two ws nodes as processes of their own, on one NATS and one database.

use std::ops::RangeInclusive;
use std::path::PathBuf;

use nix::sys::signal::Signal;
use serde_json::Value;

use super::nats::{Nats, Version};
use super::postgres::{self, Database};
use super::publisher::{marked_audio, write_wav};
use super::server::Server;
use super::viewer::Viewer;
use super::wait::until;

pub const TOKEN: &str = "a-broadcast-token-of-many-nodes-0";
const PAUSE_MS: usize = 700;
const NODES: usize = 2;
/// A session whose publisher has moved, or whose node has died, is not over at once.
const GRACE_MS: &str = "6000";

/// See the module.
pub struct Cluster {
    pub nats: Nats,
    pub database: Database,
    pub dir: tempfile::TempDir,
    nats_url: String,
    /// Settings of every ingest node.
    ingest_settings: Vec<(String, String)>,
    ingest: [Option<Server>; NODES],
    ws: [Option<Server>; NODES],
}

impl Cluster {
    /// The ingest nodes send to the recogniser at `stt`.
    pub async fn start(version: Version, stt: &str) -> Self {
        let nats = Nats::start(version).await;
        let url = nats.url();
        Self::start_on(nats, &url, &[("GLADIA_API_URL", stt)]).await
    }

    /// On servers of which `nats` is one; `ingest_settings` are added to those of the ingest nodes.
    pub async fn start_on(nats: Nats, nats_url: &str, ingest_settings: &[(&str, &str)]) -> Self {
        let database = postgres::cluster().fresh_database().await;
        let dir = tempfile::tempdir().expect("a temporary directory");
        let owned = |(name, value): &(&str, &str)| ((*name).to_owned(), (*value).to_owned());
        let mut cluster = Self {
            nats,
            database,
            dir,
            nats_url: nats_url.to_owned(),
            ingest_settings: ingest_settings.iter().map(owned).collect(),
            ingest: [None, None],
            ws: [None, None],
        };
        for n in 0..NODES {
            cluster.start_ws(n).await;
            cluster.start_ingest(n).await;
        }
        cluster
    }

    pub async fn start_ws(&mut self, n: usize) {
        self.start_ws_with(n, &[]).await;
    }

    async fn start_ws_with(&mut self, n: usize, more: &[(&str, &str)]) {
        let (database, node) = (self.database.url(), format!("ws-{n}"));
        let settings = [("SERVER_MODE", "ws"), ("NODE_ID", &node), ("DATABASE_URL", &database)];
        self.ws[n] = Some(self.node(&node, &[&settings[..], more].concat()).await);
    }

    pub async fn start_ingest(&mut self, n: usize) {
        self.start_ingest_with(n, &[]).await;
    }

    /// The same with more of an environment.
    pub async fn start_ingest_with(&mut self, n: usize, environment: &[(&str, &str)]) {
        if let Some(server) = self.ingest[n].take() {
            server.signal(Signal::SIGTERM);
            server.end().await;
        }
        let node = format!("ingest-{n}");
        let mut settings = vec![("SERVER_MODE", "rtmp"), ("NODE_ID", &node), ("SESSION_GRACE_MS", GRACE_MS)];
        settings.push(("NATS_LEASE_MS", "3000"));
        settings.extend(environment);
        settings.extend(self.ingest_settings.iter().map(|(name, value)| (name.as_str(), value.as_str())));
        self.ingest[n] = Some(self.node(&node, &settings).await);
    }

    async fn node(&self, node: &str, settings: &[(&str, &str)]) -> Server {
        let dir = self.dir.path().join(node);
        std::fs::create_dir_all(&dir).expect("a folder");
        let bus = [("BUS", "nats"), ("NATS_URL", self.nats_url.as_str()), ("BROADCAST_TOKEN", TOKEN)];
        Server::start_drill(&dir, &[&bus[..], settings].concat()).await
    }

    /// `kill -9`.
    pub async fn kill_ingest(&mut self, n: usize) {
        let server = self.ingest[n].take().expect("it runs");
        server.signal(Signal::SIGKILL);
        server.end().await;
    }

    /// `kill -9`.
    pub async fn kill_ws(&mut self, n: usize) {
        let server = self.ws[n].take().expect("it runs");
        server.signal(Signal::SIGKILL);
        server.end().await;
    }

    /// A restart as an operator does it: SIGTERM, and a new process when it has ended.
    pub async fn restart_ingest(&mut self, n: usize) {
        let server = self.ingest[n].take().expect("it runs");
        server.signal(Signal::SIGTERM);
        let (code, log) = server.end().await;
        assert_eq!(code, 0, "{log}");
        self.start_ingest(n).await;
    }

    /// See [`Self::restart_ingest`].
    pub async fn restart_ws(&mut self, n: usize) {
        self.restart_ws_with(n, &[]).await;
    }

    /// The same with more settings.
    pub async fn restart_ws_with(&mut self, n: usize, more: &[(&str, &str)]) {
        let server = self.ws[n].take().expect("it runs");
        server.signal(Signal::SIGTERM);
        let (code, log) = server.end().await;
        assert_eq!(code, 0, "{log}");
        self.start_ws_with(n, more).await;
    }

    pub fn ingest(&self, n: usize) -> &Server {
        self.ingest[n].as_ref().expect("it runs")
    }

    pub fn ws(&self, n: usize) -> &Server {
        self.ws[n].as_ref().expect("it runs")
    }

    pub fn rtmp_url(&self, n: usize, slug: &str) -> String {
        format!("rtmp://{}/live/{slug}", self.ingest(n).rtmp)
    }

    pub async fn join(&self, n: usize, slug: &str) -> Viewer {
        Viewer::connect(self.ws(n).http, slug, "").await
    }

    /// The query of a viewer that goes on after what another one has seen.
    pub fn resume(seen: &Viewer) -> String {
        let epoch = seen.seen.iter().rev().chain([&seen.hello]).find_map(|message| message["epoch"].as_str());
        format!("&after={}&epoch={}", seen.last_seq(), epoch.expect("it has seen something"))
    }

    /// A file in which each of these markers is said.
    pub fn audio(&self, name: &str, markers: RangeInclusive<u32>) -> PathBuf {
        let path = self.dir.path().join(format!("{name}-{}-{}.wav", markers.start(), markers.end()));
        write_wav(&path, &marked_audio(markers, PAUSE_MS));
        path
    }

    /// Rows of an ingest node that the log server has not taken.
    pub async fn rows_left(&self, n: usize) -> u64 {
        self.ingest(n).tree().await["forwarders"][0]["state"]["rowsLeft"].as_u64().unwrap_or(u64::MAX)
    }

    /// The finals of a room in the database, in order of their sessions and numbers, once there are so many.
    pub async fn stored_finals(&self, slug: &str, count: usize) -> Vec<String> {
        let sql = format!(
            "select t.text from transcripts t join sessions s using (session_id) \
             where s.slug = '{slug}' and t.kind = 'final' order by t.session_id, t.seq"
        );
        let all = async || {
            let found = self.database.query(&sql).await;
            if found.len() >= count { Ok(found) } else { Err(format!("{found:?}")) }
        };
        until("every final is in the database", all).await
    }
}

/// What a viewer sees of an entry that must be the same on every node: epoch, number, and what it says.
pub fn identities(viewer: &Viewer) -> Vec<(String, u64, String)> {
    let durable = viewer.seen.iter().filter(|m| m["seq"].is_u64() && m["type"] != "hello");
    let says = |m: &Value| m["text"].as_str().or(m["status"].as_str()).unwrap_or_default().to_owned();
    durable.map(|m| (m["epoch"].to_string(), m["seq"].as_u64().expect("a number"), says(m))).collect()
}
