//! A throwaway Postgres cluster, started once per test binary and gone with it, however it ends.

use std::io::Write;
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, chown};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU32, Ordering};

use tokio_postgres::NoTls;

use super::wait::until_blocking;

const INSTALL: &str = "these tests need Postgres 15 or newer and openssl: apt-get install postgresql openssl";
pub const USER: &str = "stenocast";
pub const PASSWORD: &str = "test-password";

/// Ends when the test process does: its standard input closes, and a shell that waits for that stops the server.
const WATCHDOG: &str = r#"
"$1/postgres" -D "$2" -p "$3" -c listen_addresses=127.0.0.1 -c unix_socket_directories= -c fsync=off \
    -c full_page_writes=off -c max_connections=200 -c shared_buffers=16MB \
    -c ssl=on -c ssl_cert_file=server.crt -c ssl_key_file=server.key >"$2/server.log" 2>&1 &
server=$!
read -r _
kill -INT $server
wait $server
rm -rf "$2"
"#;

pub struct Cluster {
    pub addr: SocketAddr,
    dir: PathBuf,
    /// Its standard input stays open as long as this process lives.
    _watchdog: Child,
}

/// An empty database of its own for each test.
pub struct Database {
    pub name: String,
    pub addr: SocketAddr,
}

pub fn cluster() -> &'static Cluster {
    // A start that failed is not tried again by every test.
    static CLUSTER: OnceLock<Option<Cluster>> = OnceLock::new();
    let cluster = CLUSTER.get_or_init(|| std::panic::catch_unwind(start).ok());
    cluster.as_ref().expect("the Postgres cluster did not start; the first test to need it says why")
}

impl Cluster {
    /// The server's own certificate, made out to `localhost`.
    pub fn certificate(&self) -> PathBuf {
        self.dir.join("server.crt")
    }

    pub async fn fresh_database(&self) -> Database {
        static NEXT: AtomicU32 = AtomicU32::new(1);
        let name = format!("test_{}", NEXT.fetch_add(1, Ordering::Relaxed));
        execute(self.addr, "postgres", &format!("CREATE DATABASE {name}")).await;
        Database { name, addr: self.addr }
    }
}

impl Database {
    pub fn url(&self) -> String {
        self.url_at(self.addr)
    }

    /// The same database behind another address, such as a proxy's.
    pub fn url_at(&self, addr: SocketAddr) -> String {
        format!("postgres://{USER}:{PASSWORD}@{addr}/{}?sslmode=disable", self.name)
    }

    /// Past every proxy, like all that follow.
    pub async fn connect(&self) -> tokio_postgres::Client {
        connect(self.addr, &self.name).await
    }

    pub async fn execute(&self, sql: &str) {
        execute(self.addr, &self.name, sql).await;
    }

    /// The first column of each row as text.
    pub async fn query(&self, sql: &str) -> Vec<String> {
        let client = connect(self.addr, &self.name).await;
        let messages = client.simple_query(sql).await.unwrap();
        let text = |m| match m {
            tokio_postgres::SimpleQueryMessage::Row(row) => Some(row.get(0).unwrap_or("").to_owned()),
            _ => None,
        };
        messages.into_iter().filter_map(text).collect()
    }

    /// Ends the sessions of everybody else.
    pub async fn disconnect_all(&self) {
        let sql = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity \
                   WHERE datname = current_database() AND pid <> pg_backend_pid()";
        self.execute(sql).await;
    }
}

async fn execute(addr: SocketAddr, database: &str, sql: &str) {
    connect(addr, database).await.batch_execute(sql).await.unwrap();
}

async fn connect(addr: SocketAddr, database: &str) -> tokio_postgres::Client {
    let url = format!("postgres://{USER}:{PASSWORD}@{addr}/{database}?sslmode=disable");
    let (client, connection) = tokio_postgres::connect(&url, NoTls).await.unwrap();
    tokio::spawn(connection);
    client
}

fn start() -> Cluster {
    // Between the choice of a port and its use it may be taken.
    std::iter::repeat_with(try_start).take(5).flatten().next().expect("a free port for Postgres")
}

fn try_start() -> Option<Cluster> {
    let bin = find_binaries();
    let owner = owner();
    let dir =
        std::env::temp_dir().join(format!("stenocast-postgres-{}-{:08x}", std::process::id(), rand::random::<u32>()));
    std::fs::DirBuilder::new().mode(0o700).create(&dir).unwrap();
    let password_file = dir.with_extension("password");
    writeln!(std::fs::File::create(&password_file).unwrap(), "{PASSWORD}").unwrap();
    if let Some((uid, gid)) = owner {
        chown(&dir, Some(uid), Some(gid)).unwrap();
        chown(&password_file, Some(uid), Some(gid)).unwrap();
    }
    let mut initdb = command(&bin.join("initdb"), owner);
    initdb.arg("-D").arg(&dir).arg("--pwfile").arg(&password_file);
    run(initdb.args(["-U", USER, "-A", "scram-sha-256", "-E", "UTF8", "--locale=C", "--no-sync"]));
    std::fs::remove_file(&password_file).unwrap();
    make_certificate(&dir, owner);

    let port = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap().local_addr().unwrap().port();
    let mut watchdog = command(Path::new("/bin/sh"), owner);
    watchdog.args(["-c", WATCHDOG, "watchdog"]).arg(&bin).arg(&dir).arg(port.to_string());
    let watchdog = watchdog.stdin(Stdio::piped()).process_group(0).spawn().expect(INSTALL);
    let is_ready = is_ready(&dir);
    let cluster = Cluster { addr: (Ipv4Addr::LOCALHOST, port).into(), dir, _watchdog: watchdog };
    is_ready.then_some(cluster)
}

/// Waits for the server; false when somebody else has taken its port meanwhile.
fn is_ready(dir: &Path) -> bool {
    let log = dir.join("server.log");
    until_blocking("Postgres starts", || {
        let said = std::fs::read_to_string(&log).unwrap_or_default();
        match () {
            () if said.contains("ready to accept connections") => Ok(true),
            () if said.contains("could not create any TCP/IP sockets") => Ok(false),
            () => Err(said),
        }
    })
}

fn make_certificate(dir: &Path, owner: Option<(u32, u32)>) {
    let mut openssl = command(Path::new("openssl"), owner);
    openssl
        .current_dir(dir)
        .args("req -x509 -nodes -days 30 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1".split(' '));
    openssl.args(["-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost"]);
    openssl.args(["-addext", "basicConstraints=critical,CA:FALSE", "-keyout", "server.key", "-out", "server.crt"]);
    run(&mut openssl);
}

pub fn command(program: &Path, owner: Option<(u32, u32)>) -> Command {
    let mut command = Command::new(program);
    command.current_dir("/");
    if let Some((uid, gid)) = owner {
        command.uid(uid).gid(gid);
    }
    command
}

fn run(command: &mut Command) {
    let output = command.output().unwrap_or_else(|e| panic!("{command:?}: {e}; {INSTALL}"));
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{command:?} failed: {errors}; {INSTALL}");
}

/// `initdb` on the PATH, or the newest version where Debian puts it.
fn find_binaries() -> PathBuf {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let mut dirs: Vec<PathBuf> = std::env::split_paths(&path).collect();
    let mut versions: Vec<(u32, PathBuf)> = std::fs::read_dir("/usr/lib/postgresql")
        .into_iter()
        .flatten()
        .filter_map(|d| d.ok()?.file_name().to_str()?.parse().ok())
        .map(|version| (version, PathBuf::from(format!("/usr/lib/postgresql/{version}/bin"))))
        .collect();
    versions.sort();
    dirs.extend(versions.into_iter().rev().map(|(_, dir)| dir));
    dirs.into_iter().find(|d| d.join("initdb").exists() && d.join("postgres").exists()).expect(INSTALL)
}

/// Postgres refuses to run as root: then it runs as `postgres`, or as `nobody`.
pub fn owner() -> Option<(u32, u32)> {
    if std::fs::metadata("/proc/self").unwrap().uid() != 0 {
        return None;
    }
    let passwd = std::fs::read_to_string("/etc/passwd").unwrap();
    let find = |name: &str| {
        let line = passwd.lines().find(|l| l.split(':').next() == Some(name))?;
        let mut fields = line.split(':').skip(2);
        Some((fields.next()?.parse().ok()?, fields.next()?.parse().ok()?))
    };
    Some(find("postgres").or_else(|| find("nobody")).expect("a user that may run Postgres: postgres or nobody"))
}
