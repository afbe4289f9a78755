//! What sessions live in: a server process, a recogniser, a database, and the proxies between them.

use std::cell::{Cell, RefCell};
use std::net::SocketAddr;
use std::rc::Rc;
use std::time::Duration;

use nix::sys::signal::Signal;
use serde_json::Value;

use super::Leg;
use super::rig::POLL;
use super::verdict::Stored;
use crate::support::chaos_proxy::ChaosProxy;
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
    pub settings: &'static [(&'static str, &'static str)],
    /// A disk of its own for `DATA_DIR`.
    pub disk_mib: Option<u32>,
    /// The server runs the recogniser itself, as a child process.
    pub has_local_recogniser: bool,
    pub far: &'static [Leg],
    pub late_per_mille: u64,
    /// The database is behind PgBouncer in transaction mode.
    pub pooled: bool,
    /// Nodes that show what this server ingests; without any it does so itself.
    pub ws_nodes: usize,
}

/// A node that shows what another ingests.
struct WsNode {
    dir: tempfile::TempDir,
    server: RefCell<Option<Rc<Server>>>,
    http: Cell<Option<SocketAddr>>,
    /// Between the ingest node and this one.
    proxy: RefCell<Option<Rc<ChaosProxy>>>,
}

/// What nodes know each other by.
const NODES_TOKEN: &str = "the-token-of-the-drills-nodes-0";

/// See the module.
pub struct World {
    setup: Setup,
    pub stt: Stt,
    pub database: Database,
    /// Between the server and the database, or its pooler.
    pub proxy: ChaosProxy,
    pooler: RefCell<Option<PgBouncer>>,
    /// Before what is far away.
    legs: RefCell<Vec<(Leg, Rc<ChaosProxy>)>>,
    pub dir: tempfile::TempDir,
    server: RefCell<Option<Rc<Server>>>,
    ports: Cell<Option<(SocketAddr, SocketAddr)>>,
    ws_nodes: Vec<WsNode>,
    /// What servers that have ended have logged.
    logs: RefCell<String>,
}

impl WsNode {
    fn new() -> Self {
        Self {
            dir: tempfile::tempdir().expect("a temporary directory"),
            server: RefCell::default(),
            http: Cell::default(),
            proxy: RefCell::default(),
        }
    }
}

impl World {
    pub async fn start(setup: Setup) -> Self {
        let database = cluster().fresh_database().await;
        let pooler = match setup.pooled {
            true => Some(PgBouncer::start(&database, POOLED_CONNECTIONS).await),
            false => None,
        };
        let world = Self {
            setup,
            stt: marker_service().await,
            proxy: ChaosProxy::start(pooler.as_ref().map_or(database.addr, |pooler| pooler.addr)).await,
            pooler: pooler.into(),
            database,
            legs: RefCell::default(),
            dir: tempfile::tempdir().expect("a temporary directory"),
            server: RefCell::default(),
            ports: Cell::default(),
            ws_nodes: (0..setup.ws_nodes).map(|_| WsNode::new()).collect(),
            logs: RefCell::default(),
        };
        world.place(Leg::Recogniser, world.stt.service.addr()).await;
        for n in 0..setup.ws_nodes {
            world.start_ws_node(n).await;
        }
        world.boot(("0".into(), "0".into())).await;
        // A server that is started again has the same ports.
        world.place(Leg::Publisher, world.rtmp()).await;
        world.place(Leg::Viewer, world.http()).await;
        world
    }

    /// Puts something far away, if this world has it there.
    async fn place(&self, leg: Leg, target: SocketAddr) {
        if self.setup.far.contains(&leg) {
            let proxy = ChaosProxy::start(target).await;
            proxy.round_trip(ROUND_TRIP);
            proxy.late_writes(self.setup.late_per_mille, LATE);
            self.legs.borrow_mut().push((leg, Rc::new(proxy)));
        }
    }

    /// The way to what is far away.
    pub fn leg(&self, leg: Leg) -> Option<Rc<ChaosProxy>> {
        self.legs.borrow().iter().find(|(of, _)| *of == leg).map(|(_, proxy)| proxy.clone())
    }

    /// Where the victim's publisher or viewer connects.
    pub fn at(&self, leg: Leg) -> SocketAddr {
        self.leg(leg).map_or(if leg == Leg::Publisher { self.rtmp() } else { self.http() }, |proxy| proxy.addr)
    }

    /// Where the viewers of the room of this number connect.
    pub fn viewers_at(&self, room: usize) -> SocketAddr {
        match self.ws_nodes.len() {
            0 if room == 0 => self.at(Leg::Viewer),
            0 => self.http(),
            nodes => self.ws_nodes[room % nodes].http.get().expect("it has been started"),
        }
    }

    /// Starts a ws node, with the data and the port that it had before.
    pub async fn start_ws_node(&self, n: usize) {
        let node = &self.ws_nodes[n];
        let url = self.database.url_at(self.proxy.addr);
        let port = node.http.get().map_or(0, |http| http.port()).to_string();
        let settings = [
            ("SERVER_MODE", "ws"),
            ("BROADCAST_TOKEN", NODES_TOKEN),
            ("DATABASE_URL", &*url),
            ("PORT", &*port),
            ("NODE_ID", "ws"),
        ];
        let server = Server::start_drill(node.dir.path(), &settings).await;
        if node.http.replace(Some(server.http)).is_none() {
            node.proxy.replace(Some(Rc::new(ChaosProxy::start(server.http).await)));
        }
        node.server.replace(Some(Rc::new(server)));
    }

    /// Ends a ws node by a signal; gives its exit code.
    pub async fn end_ws_node(&self, n: usize, signal: Signal) -> i32 {
        let server = self.ws_nodes[n].server.take().expect("it runs");
        server.signal(signal);
        let server = Rc::into_inner(server).expect("nobody asks it anything now");
        let (code, log) = server.end().await;
        self.logs.borrow_mut().push_str(&log);
        code
    }

    /// The way from the ingest node to a ws node.
    pub fn between_nodes(&self, n: usize) -> Rc<ChaosProxy> {
        self.ws_nodes[n].proxy.borrow().clone().expect("it has been started")
    }

    /// Addresses of all servers that run.
    pub fn servers(&self) -> Vec<SocketAddr> {
        let ws = self.ws_nodes.iter().filter_map(|node| node.server.borrow().as_ref().map(|server| server.http));
        ws.chain(self.server.borrow().as_ref().map(|server| server.http)).collect()
    }

    async fn boot(&self, (http, rtmp): (String, String)) {
        let url = self.database.url_at(self.proxy.addr);
        let targets = self.ws_nodes.iter().filter_map(|node| node.proxy.borrow().clone());
        let targets = targets.map(|proxy| format!("http://{}", proxy.addr)).collect::<Vec<_>>().join(",");
        let split = [
            ("SERVER_MODE", "rtmp"),
            ("WS_SERVER_URL", &*targets),
            ("BROADCAST_TOKEN", NODES_TOKEN),
            ("NODE_ID", "in"),
        ];
        let split = if self.ws_nodes.is_empty() { &[][..] } else { &split };
        let own = [&[("DATABASE_URL", &*url), ("PORT", &*http), ("RTMP_PORT", &*rtmp)], split].concat();
        let recogniser =
            self.leg(Leg::Recogniser).map_or(self.stt.url.clone(), |proxy| format!("http://{}", proxy.addr));
        let remote = [("GLADIA_API_URL", &*recogniser), ("GLADIA_API_KEY", "drill")];
        let recogniser = if self.setup.has_local_recogniser { &[][..] } else { &remote };
        let settings = [recogniser, &own, self.setup.settings].concat();
        let server = match self.setup.disk_mib {
            Some(mebibytes) => Server::start_on_small_disk(self.dir.path(), &settings, mebibytes).await,
            None if self.setup.has_local_recogniser => {
                Server::start_with_local_recogniser(self.dir.path(), &settings).await
            }
            None => Server::start_drill(self.dir.path(), &settings).await,
        };
        self.ports.set(Some((server.http, server.rtmp)));
        self.server.replace(Some(Rc::new(server)));
    }

    pub fn server(&self) -> Rc<Server> {
        self.server.borrow().clone().expect("the server runs")
    }

    /// Where the server listens, or will listen again.
    pub fn http(&self) -> SocketAddr {
        self.ports.get().expect("it has been started").0
    }

    pub fn rtmp(&self) -> SocketAddr {
        self.ports.get().expect("it has been started").1
    }

    pub fn pid(&self) -> Option<u32> {
        self.server.borrow().as_ref().map(|server| server.pid())
    }

    /// Waits for the server's end; gives its exit code.
    pub async fn server_ended(&self) -> i32 {
        let server = self.server.take().expect("the server runs");
        let server = Rc::into_inner(server).expect("nobody asks it anything now");
        let (code, log) = server.end().await;
        self.logs.borrow_mut().push_str(&log);
        code
    }

    /// Sends SIGTERM and waits for the end of every server; gives the exit code, the first that is not 0.
    pub async fn stop(&self) -> i32 {
        self.server().signal(Signal::SIGTERM);
        let mut code = self.server_ended().await;
        for n in 0..self.ws_nodes.len() {
            let of_node = self.end_ws_node(n, Signal::SIGTERM).await;
            code = if code == 0 { of_node } else { code };
        }
        code
    }

    /// Waits for the server's end, gives its exit code, and starts it again with the same data and ports; `when_ended`
    /// is called in between.
    pub async fn start_again(&self, when_ended: impl FnOnce()) -> i32 {
        let ports = (self.http().port().to_string(), self.rtmp().port().to_string());
        let code = self.server_ended().await;
        when_ended();
        // A port may be somebody's for a moment.
        let is_free = |port: &String| std::net::TcpListener::bind(format!("127.0.0.1:{port}")).is_ok();
        let _ = within(PORTS_TAKEN, POLL, async || is_free(&ports.0) && is_free(&ports.1)).await;
        self.boot(ports).await;
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
