//! Real NATS servers with `JetStream` in folders of their own, gone with the values. `scripts/nats.sh` installs them.

use std::fs::File;
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use stenocast::config::{Config, NatsConfig};

use super::wait::until;

/// Which of the two installed programs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Version {
    /// The one that scripts/nats.lock pins.
    Newest,
    /// The oldest that is supported.
    Debian,
}

impl Version {
    fn program(self) -> PathBuf {
        let name = match self {
            Self::Newest => "new",
            Self::Debian => "debian",
        };
        let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("target/nats").join(name).join("nats-server");
        assert!(path.exists(), "{} is missing: scripts/nats.sh installs it", path.display());
        path
    }
}

/// One server; a restart keeps its port and its store.
pub struct Nats {
    pub addr: SocketAddr,
    version: Version,
    /// Beyond the port and the store.
    args: Vec<String>,
    child: Child,
    dir: tempfile::TempDir,
}

impl Nats {
    pub async fn start(version: Version) -> Self {
        Self::start_with(version, &[]).await
    }

    /// The same with more arguments.
    pub async fn start_with(version: Version, args: &[&str]) -> Self {
        let server = Self::spawn(version, free_port(), args.iter().map(|&arg| arg.to_owned()).collect());
        server.until_ready().await;
        server
    }

    fn spawn(version: Version, addr: SocketAddr, args: Vec<String>) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let child = run(version, addr, &args, &dir);
        Self { addr, version, args, child, dir }
    }

    pub fn url(&self) -> String {
        format!("nats://{}", self.addr)
    }

    /// Everything that it has logged since its last start.
    pub fn log(&self) -> String {
        std::fs::read_to_string(self.dir.path().join("log")).unwrap_or_default()
    }

    /// Ends it by `kill -9`.
    pub fn kill(&mut self) {
        self.child.kill().expect("our child");
        self.child.wait().expect("our child");
    }

    /// Ends it as an operator does.
    pub async fn stop(&mut self) {
        self.signal(Signal::SIGTERM);
        until("NATS stops", async || self.child.try_wait().expect("our child").is_some()).await;
    }

    /// Starts it on the same port and store, where it was killed.
    pub async fn start_again(&mut self) {
        self.child = run(self.version, self.addr, &self.args, &self.dir);
        self.until_ready().await;
    }

    /// The same with a store that holds nothing.
    pub async fn start_empty(&mut self) {
        self.dir = tempfile::tempdir().unwrap();
        self.start_again().await;
    }

    /// Starts it with further arguments, on the same port and store, where it was killed; the next start has them no more.
    pub async fn start_once_with(&mut self, more: &[&str]) {
        let args: Vec<_> = self.args.iter().cloned().chain(more.iter().map(|&arg| arg.to_owned())).collect();
        self.child = run(self.version, self.addr, &args, &self.dir);
        self.until_ready().await;
    }

    /// It tells its clients that it will go, and takes no new ones (SIGUSR2).
    pub async fn lame_duck(&self) {
        self.signal(Signal::SIGUSR2);
        self.until_logged("lame duck mode").await;
    }

    pub async fn until_logged(&self, text: &str) {
        until("NATS logs it", async || if self.log().contains(text) { Ok(()) } else { Err(self.log()) }).await;
    }

    /// It is there and does nothing.
    pub async fn freeze(&self) {
        self.signal(Signal::SIGSTOP);
        let stat = format!("/proc/{}/stat", self.child.id());
        until("NATS stands still", async || std::fs::read_to_string(&stat).unwrap().contains(") T ")).await;
    }

    pub fn thaw(&self) {
        self.signal(Signal::SIGCONT);
    }

    fn signal(&self, signal: Signal) {
        kill(Pid::from_raw(self.child.id() as i32), signal).expect("our child");
    }

    async fn until_ready(&self) {
        until("NATS starts", async || match self.log() {
            said if said.contains("Server is ready") && TcpStream::connect(self.addr).is_ok() => Ok(()),
            said => Err(said),
        })
        .await;
    }
}

impl Drop for Nats {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Servers that elect leaders among them.
pub struct Cluster {
    pub servers: Vec<Nats>,
}

impl Cluster {
    /// Three of them.
    pub async fn start(version: Version) -> Self {
        let routes: Vec<_> = (0..3).map(|_| free_port()).collect();
        let all = routes.iter().map(|addr| format!("nats://{addr}")).collect::<Vec<_>>().join(",");
        let of = |(n, route): (usize, &SocketAddr)| {
            let own =
                ["--cluster_name", "c", "--cluster", &format!("nats://{route}"), "--routes", &all, "-n", &name(n)];
            Nats::spawn(version, free_port(), own.map(str::to_owned).to_vec())
        };
        let cluster = Self { servers: routes.iter().enumerate().map(of).collect() };
        for server in &cluster.servers {
            server.until_ready().await;
        }
        let elects = |server: &Nats| server.log().contains("metadata leader");
        let logs = || cluster.servers.iter().map(Nats::log).collect::<Vec<_>>().join("\n");
        until("the cluster elects", async || if cluster.servers.iter().all(elects) { Ok(()) } else { Err(logs()) })
            .await;
        cluster
    }

    pub fn urls(&self) -> String {
        self.servers.iter().map(Nats::url).collect::<Vec<_>>().join(",")
    }

    /// The server that leads a stream.
    pub async fn leader(&mut self, stream: &str) -> &mut Nats {
        let urls: Vec<_> = self.servers.iter().map(Nats::url).collect();
        let client = async_nats::connect(urls).await.expect("the cluster is there");
        let stream = async_nats::jetstream::new(client).get_stream(stream).await.expect("the cluster answers");
        let leader = stream.cached_info().cluster.as_ref().and_then(|cluster| cluster.leader.clone());
        let leader = leader.expect("a leader");
        let n = (0..self.servers.len()).find(|n| name(*n) == leader).expect("a server of the cluster");
        &mut self.servers[n]
    }
}

fn name(n: usize) -> String {
    format!("n{n}")
}

/// The settings of a node, as they are read from its environment.
pub fn config(urls: &str, more: &[(&str, &str)]) -> NatsConfig {
    let base = [("NATS_URL", urls), ("NATS_MAX_BYTES", "64MiB")];
    let values = base.iter().chain(more).map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
    Config::load(&values, true).unwrap().split.nats
}

fn free_port() -> SocketAddr {
    TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap().local_addr().unwrap()
}

fn run(version: Version, addr: SocketAddr, args: &[String], dir: &tempfile::TempDir) -> Child {
    let log = File::create(dir.path().join("log")).unwrap();
    let mut command = Command::new(version.program());
    command.arg("-a").arg(addr.ip().to_string()).arg("-p").arg(addr.port().to_string());
    command.arg("-js").arg("-sd").arg(dir.path().join("store")).args(args);
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(log).spawn().expect("target/nats has a program")
}
