//! What sessions live in: server processes, a recogniser, a database, NATS, and the proxies between them.

mod node;

use std::cell::RefCell;
use std::net::SocketAddr;
use std::path::Path;
use std::rc::Rc;
use std::time::Duration;

use nix::sys::signal::Signal;
use serde_json::Value;
use tokio::sync::{Mutex, MutexGuard};

use self::node::Node;
use super::rig::POLL;
use super::verdict::Stored;
use super::{Leg, Split};
use crate::support::chaos_proxy::ChaosProxy;
use crate::support::nats::{self, Nats, Version};
use crate::support::pgbouncer::PgBouncer;
use crate::support::postgres::{Database, cluster};
use crate::support::server::Server;
use crate::support::stt::{Stt, marker_service};
use crate::support::wait::within;

/// Longest wait for the same ports after a restart.
const PORTS_TAKEN: Duration = Duration::from_secs(1);

/// Fewer than the server's own pool: its transactions share them.
const POOLED_CONNECTIONS: u32 = 2;
/// Of what is far away: about that from Europe to the east coast of America.
const ROUND_TRIP: Duration = Duration::from_millis(80);
/// About what TCP takes to send a lost packet again.
const LATE: Duration = Duration::from_millis(500);

/// How a world differs from the plain one.
#[derive(Clone, Copy)]
pub struct Setup {
    /// Of the servers that ingest; with NATS, of every node.
    pub settings: &'static [(&'static str, &'static str)],
    /// A disk of its own for `DATA_DIR`.
    pub disk_mib: Option<u32>,
    /// The server runs the recogniser itself, as a child process.
    pub has_local_recogniser: bool,
    pub far: &'static [Leg],
    pub late_per_mille: u64,
    /// The database is behind PgBouncer in transaction mode.
    pub pooled: bool,
    pub split: Split,
}

/// What nodes know each other by.
pub const NODES_TOKEN: &str = "the-token-of-the-drills-nodes-0";

/// See the module.
pub struct World {
    setup: Setup,
    pub stt: Stt,
    pub database: Database,
    /// Between the servers and the database, or its pooler.
    pub proxy: ChaosProxy,
    pooler: RefCell<Option<PgBouncer>>,
    /// Before what is far away.
    legs: RefCell<Vec<(Leg, Rc<ChaosProxy>)>>,
    /// Of no server where NATS is not between the nodes.
    nats: Mutex<nats::Cluster>,
    /// Where publishers connect. Without a split, the first of them is the whole server.
    ingest: Vec<Node>,
    ws: Vec<Node>,
    /// What servers that have ended have logged.
    logs: RefCell<String>,
}

impl World {
    pub async fn start(setup: Setup) -> Self {
        let database = cluster().fresh_database().await;
        let pooler = match setup.pooled {
            true => Some(PgBouncer::start(&database, POOLED_CONNECTIONS).await),
            false => None,
        };
        let (ingest, ws) = setup.split.nodes();
        let world = Self {
            setup,
            stt: marker_service().await,
            proxy: ChaosProxy::start(pooler.as_ref().map_or(database.addr, |pooler| pooler.addr)).await,
            pooler: pooler.into(),
            database,
            legs: RefCell::default(),
            nats: Mutex::new(nats_servers(setup.split).await),
            ingest: (0..ingest).map(|n| Node::new(format!("in-{n}"))).collect(),
            ws: (0..ws).map(|n| Node::new(format!("ws-{n}"))).collect(),
            logs: RefCell::default(),
        };
        world.place(Leg::Recogniser, world.stt.service.addr()).await;
        world.make_ways_to_nats().await;
        for n in 0..ws {
            world.start_ws_node(n).await;
        }
        for n in 0..ingest {
            world.start_ingest(n).await;
        }
        // A server that is started again has the same ports.
        world.place(Leg::Publisher, world.rtmp()).await;
        world.place(Leg::Viewer, world.http()).await;
        world
    }

    /// Puts something far away, if this world has it there.
    async fn place(&self, leg: Leg, target: SocketAddr) {
        if self.setup.far.contains(&leg) {
            let proxy = ChaosProxy::start(target).await;
            self.send_far(leg, &proxy);
            self.legs.borrow_mut().push((leg, Rc::new(proxy)));
        }
    }

    fn send_far(&self, leg: Leg, proxy: &ChaosProxy) {
        if self.setup.far.contains(&leg) {
            proxy.round_trip(ROUND_TRIP);
            proxy.late_writes(self.setup.late_per_mille, LATE);
        }
    }

    /// Each node has a way of its own to NATS. Servers of a cluster tell clients of each other: there are no ways then.
    async fn make_ways_to_nats(&self) {
        let [server] = &self.nats.lock().await.servers[..] else { return };
        for node in self.nodes() {
            let proxy = Rc::new(ChaosProxy::start(server.addr).await);
            self.send_far(Leg::Nats, &proxy);
            self.legs.borrow_mut().push((Leg::Nats, proxy.clone()));
            node.set_way(proxy);
        }
    }

    /// The way to what is far away.
    pub fn leg(&self, leg: Leg) -> Option<Rc<ChaosProxy>> {
        self.legs_of(leg).into_iter().next()
    }

    /// The ways of all nodes.
    pub fn legs_of(&self, leg: Leg) -> Vec<Rc<ChaosProxy>> {
        self.legs.borrow().iter().filter(|(of, _)| *of == leg).map(|(_, proxy)| proxy.clone()).collect()
    }

    /// Where the victim's publisher or viewer connects.
    pub fn at(&self, leg: Leg) -> SocketAddr {
        self.leg(leg).map_or(if leg == Leg::Publisher { self.rtmp() } else { self.http() }, |proxy| proxy.addr)
    }

    /// Where the viewers of the room of this number connect, each of them. On NATS, one is at each ws node, and one goes to
    /// the other ws node when its own is gone.
    pub fn viewers_at(&self, room: usize) -> Vec<Vec<SocketAddr>> {
        let ws: Vec<_> = self.ws.iter().map(Node::http).collect();
        match self.setup.split {
            Split::Not if room == 0 => vec![vec![self.at(Leg::Viewer)]],
            Split::Not => vec![vec![self.http()]],
            Split::Http => vec![vec![ws[room % ws.len()]]],
            Split::Nats { .. } => ws.iter().map(|node| vec![*node]).chain([ws.clone()]).collect(),
        }
    }

    /// Where the publisher of the room of this number connects.
    pub fn publisher_at(&self, room: usize) -> SocketAddr {
        if room == 0 { self.at(Leg::Publisher) } else { self.rtmp_of(room % self.ingest.len()) }
    }

    fn nodes(&self) -> impl Iterator<Item = &Node> {
        self.ws.iter().chain(&self.ingest)
    }

    /// Starts a ws node, with the data and the port that it had before.
    pub async fn start_ws_node(&self, n: usize) {
        let node = &self.ws[n];
        let url = self.database.url_at(self.proxy.addr);
        let [port, _] = node.next_ports();
        let own = [("SERVER_MODE", "ws"), ("DATABASE_URL", &*url), ("PORT", &*port), ("NODE_ID", &*node.name)];
        let bus = self.bus(node).await;
        let settings = [&own[..], &borrowed(&bus)].concat();
        node.started(Server::start_drill(node.dir.path(), &settings).await);
        if node.way().is_none() && self.setup.split == Split::Http {
            node.set_way(Rc::new(ChaosProxy::start(node.http()).await));
        }
    }

    /// Ends a ws node by a signal; gives its exit code.
    pub async fn end_ws_node(&self, n: usize, signal: Signal) -> i32 {
        self.ws[n].server().signal(signal);
        self.ended(&self.ws[n]).await
    }

    /// The same for a node that ingests.
    pub async fn end_ingest(&self, n: usize, signal: Signal) -> i32 {
        self.ingest[n].server().signal(signal);
        self.ended(&self.ingest[n]).await
    }

    async fn ended(&self, node: &Node) -> i32 {
        let (code, log) = node.ended().await;
        self.logs.borrow_mut().push_str(&log);
        code
    }

    /// The way from the ingest node to a ws node.
    pub fn way_of_ws(&self, n: usize) -> Rc<ChaosProxy> {
        self.ws[n].way().expect("it has been started")
    }

    /// Addresses of all servers that run.
    pub fn servers(&self) -> Vec<SocketAddr> {
        self.nodes().filter_map(|node| Some(node.running()?.http)).collect()
    }

    pub async fn nats(&self) -> MutexGuard<'_, nats::Cluster> {
        self.nats.lock().await
    }

    /// Settings about what is between the nodes.
    async fn bus(&self, node: &Node) -> Vec<(&'static str, String)> {
        let token = ("BROADCAST_TOKEN", NODES_TOKEN.to_owned());
        match self.setup.split {
            Split::Not => Vec::new(),
            Split::Http if self.ws.iter().any(|ws| std::ptr::eq(ws, node)) => vec![token],
            Split::Http => {
                let urls = self.ws.iter().filter_map(Node::way).map(|proxy| format!("http://{}", proxy.addr));
                vec![token, ("WS_SERVER_URL", urls.collect::<Vec<_>>().join(","))]
            }
            Split::Nats { servers } => {
                let urls = match node.way() {
                    Some(proxy) => format!("nats://{}", proxy.addr),
                    None => self.nats.lock().await.urls(),
                };
                let settings = self.setup.settings.iter().map(|(name, value)| (*name, (*value).to_owned()));
                let own = [token, ("BUS", "nats".to_owned()), ("NATS_REPLICAS", servers.to_string())];
                own.into_iter()
                    .chain([("NATS_URL", urls), ("NATS_MAX_BYTES", "64MiB".to_owned())])
                    .chain(settings)
                    .collect()
            }
        }
    }

    /// Starts a node that ingests, with the data and the ports that it had before.
    pub async fn start_ingest(&self, n: usize) {
        let node = &self.ingest[n];
        let url = self.database.url_at(self.proxy.addr);
        let [http, rtmp] = node.next_ports();
        let ports = [("PORT", &*http), ("RTMP_PORT", &*rtmp)];
        let role = match self.setup.split {
            Split::Not => vec![("DATABASE_URL", &*url)],
            Split::Http | Split::Nats { .. } => vec![("SERVER_MODE", "rtmp"), ("NODE_ID", &*node.name)],
        };
        let bus = self.bus(node).await;
        let recogniser =
            self.leg(Leg::Recogniser).map_or(self.stt.url.clone(), |proxy| format!("http://{}", proxy.addr));
        let remote = [("GLADIA_API_URL", &*recogniser), ("GLADIA_API_KEY", "drill")];
        let recogniser = if self.setup.has_local_recogniser { &[][..] } else { &remote };
        let settings = [recogniser, &ports, &role, &borrowed(&bus), self.setup.settings].concat();
        let dir = node.dir.path();
        node.started(match self.setup.disk_mib {
            Some(mebibytes) => Server::start_on_small_disk(dir, &settings, mebibytes).await,
            None if self.setup.has_local_recogniser => Server::start_with_local_recogniser(dir, &settings).await,
            None => Server::start_drill(dir, &settings).await,
        });
    }

    pub fn server(&self) -> Rc<Server> {
        self.ingest[0].server()
    }

    /// A node that ingests.
    pub fn ingest(&self, n: usize) -> Rc<Server> {
        self.ingest[n].server()
    }

    /// The data of the server.
    pub fn dir(&self) -> &Path {
        self.ingest[0].dir.path()
    }

    /// Where the server listens, or will listen again.
    pub fn http(&self) -> SocketAddr {
        self.ingest[0].http()
    }

    pub fn rtmp(&self) -> SocketAddr {
        self.rtmp_of(0)
    }

    /// Where a node that ingests takes publishers.
    pub fn rtmp_of(&self, n: usize) -> SocketAddr {
        self.ingest[n].rtmp()
    }

    pub fn pid(&self) -> Option<u32> {
        self.ingest[0].running().map(|server| server.pid())
    }

    /// Sends SIGTERM and waits for the end of every server; gives the exit code, the first that is not 0.
    pub async fn stop(&self) -> i32 {
        let mut code = 0;
        for node in self.ingest.iter().chain(&self.ws) {
            node.server().signal(Signal::SIGTERM);
            let of_node = self.ended(node).await;
            code = if code == 0 { of_node } else { code };
        }
        code
    }

    /// Waits for the server's end, gives its exit code, and starts it again with the same data and ports; `when_ended`
    /// is called in between.
    pub async fn start_again(&self, when_ended: impl FnOnce()) -> i32 {
        let code = self.ended(&self.ingest[0]).await;
        when_ended();
        let ports = self.ingest[0].next_ports();
        // A port may be somebody's for a moment.
        let is_free = |port: &String| std::net::TcpListener::bind(format!("127.0.0.1:{port}")).is_ok();
        let _ = within(PORTS_TAKEN, POLL, async || ports.iter().all(is_free)).await;
        self.start_ingest(0).await;
        code
    }

    /// Ends the pooler and starts it again.
    pub async fn restart_pooler(&self) {
        let mut pooler = self.pooler.take().expect("this world has one");
        pooler.restart().await;
        self.pooler.replace(Some(pooler));
    }

    /// The rows of a room, session by session in the order of their numbers.
    pub async fn stored(&self, slug: &str) -> Vec<Stored> {
        let sql = format!(
            "SELECT json_build_object('seq', seq, 'id', entry_id, 'text', coalesce(text, '')) \
             FROM transcripts WHERE slug = '{slug}' ORDER BY session_id, seq"
        );
        let rows = self.database.query(&sql).await;
        let parsed = rows.iter().map(|row| serde_json::from_str::<Value>(row).expect("JSON"));
        let stored = |row: Value| Stored {
            seq: row["seq"].as_u64().expect("a number"),
            entry_id: row["id"].as_str().expect("an id").into(),
            text: row["text"].as_str().expect("a text").into(),
        };
        parsed.map(stored).collect()
    }

    /// Of something that failed, what the servers have logged stays for a look at it.
    pub fn keep_log(&self, name: &str) {
        let name: String = name.chars().map(|c| if c.is_ascii_alphanumeric() { c } else { '-' }).collect();
        let path = std::env::temp_dir().join(format!("stenocast-drill-{name}.log"));
        if std::fs::write(&path, &*self.logs.borrow()).is_ok() {
            eprintln!("{name}: what the server logged is in {}", path.display());
        }
    }
}

async fn nats_servers(split: Split) -> nats::Cluster {
    match split {
        Split::Not | Split::Http => nats::Cluster { servers: Vec::new() },
        Split::Nats { servers: 1 } => nats::Cluster { servers: vec![Nats::start(Version::Newest).await] },
        Split::Nats { .. } => nats::Cluster::start(Version::Newest).await,
    }
}

fn borrowed<'a>(settings: &'a [(&'static str, String)]) -> Vec<(&'a str, &'a str)> {
    settings.iter().map(|(name, value)| (*name, &**value)).collect()
}
