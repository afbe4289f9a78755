//! A server process, with what it keeps over its restarts.

use std::cell::{Cell, RefCell};
use std::net::SocketAddr;
use std::rc::Rc;

use crate::support::chaos_proxy::ChaosProxy;
use crate::support::server::Server;

/// See the module.
pub struct Node {
    pub name: String,
    pub dir: tempfile::TempDir,
    server: RefCell<Option<Rc<Server>>>,
    /// Those for HTTP and RTMP.
    ports: Cell<Option<(SocketAddr, SocketAddr)>>,
    /// The way that entries take: to this ws node, or between this node and NATS.
    way: RefCell<Option<Rc<ChaosProxy>>>,
}

impl Node {
    pub fn new(name: String) -> Self {
        Self {
            name,
            dir: tempfile::tempdir().expect("a temporary directory"),
            server: RefCell::default(),
            ports: Cell::default(),
            way: RefCell::default(),
        }
    }

    pub fn server(&self) -> Rc<Server> {
        self.running().expect("it runs")
    }

    pub fn running(&self) -> Option<Rc<Server>> {
        self.server.borrow().clone()
    }

    /// Where it listens, or will listen again.
    pub fn http(&self) -> SocketAddr {
        self.ports.get().expect("it has been started").0
    }

    pub fn rtmp(&self) -> SocketAddr {
        self.ports.get().expect("it has been started").1
    }

    /// The ports that its next process is told: those of the last one, or any.
    pub fn next_ports(&self) -> [String; 2] {
        let (http, rtmp) = self.ports.get().map_or((0, 0), |(http, rtmp)| (http.port(), rtmp.port()));
        [http, rtmp].map(|port| port.to_string())
    }

    pub fn started(&self, server: Server) {
        self.ports.set(Some((server.http, server.rtmp)));
        self.server.replace(Some(Rc::new(server)));
    }

    /// Waits for its end; gives its exit code, and what it has logged.
    pub async fn ended(&self) -> (i32, String) {
        let server = self.server.take().expect("it runs");
        let server = Rc::into_inner(server).expect("nobody asks it anything now");
        server.end().await
    }

    pub fn way(&self) -> Option<Rc<ChaosProxy>> {
        self.way.borrow().clone()
    }

    pub fn set_way(&self, proxy: Rc<ChaosProxy>) {
        self.way.replace(Some(proxy));
    }
}
