//! A real PgBouncer before a database of [`super::postgres`], gone with the value.

use std::fmt::Write;
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::os::unix::fs::{PermissionsExt, chown};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use tokio_postgres::NoTls;

use super::postgres::{Database, PASSWORD, USER, command, owner};
use super::wait::until;

const INSTALL: &str = "these tests need PgBouncer: apt-get install pgbouncer";

pub struct PgBouncer {
    pub addr: SocketAddr,
    database: String,
    child: Child,
    ini: PathBuf,
    dir: tempfile::TempDir,
}

impl PgBouncer {
    /// In transaction mode, with so many server connections for all.
    pub async fn start(database: &Database, server_connections: u32) -> Self {
        Self::start_with(database, &[("default_pool_size", &server_connections.to_string())]).await
    }

    /// The same with more lines of pgbouncer.ini.
    pub async fn start_with(database: &Database, more: &[(&str, &str)]) -> Self {
        let port = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap().local_addr().unwrap().port();
        let dir = tempfile::tempdir().unwrap();
        let (users, ini) = (dir.path().join("users.txt"), dir.path().join("pgbouncer.ini"));
        std::fs::write(&users, format!("\"{USER}\" \"{PASSWORD}\"\n")).unwrap();
        let mut text = format!("[databases]\n* = host={} port={}\n", database.addr.ip(), database.addr.port());
        let defaults = [
            ("listen_addr", "127.0.0.1"),
            ("listen_port", &port.to_string()),
            ("unix_socket_dir", ""),
            ("auth_type", "scram-sha-256"),
            ("auth_file", users.to_str().unwrap()),
            ("admin_users", USER),
            ("pool_mode", "transaction"),
            ("server_login_retry", "1"),
        ];
        text += "[pgbouncer]\n";
        for (name, value) in defaults.iter().chain(more) {
            writeln!(text, "{name} = {value}").unwrap();
        }
        std::fs::write(&ini, text).unwrap();
        if let Some((uid, gid)) = owner() {
            for path in [dir.path(), &users, &ini] {
                chown(path, Some(uid), Some(gid)).unwrap();
                std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o700)).unwrap();
            }
        }
        let (addr, database) = ((Ipv4Addr::LOCALHOST, port).into(), database.name.clone());
        let this = Self { addr, database, child: spawn(dir.path(), &ini), ini, dir };
        this.until_ready().await;
        this
    }

    /// Killed and started again on the same port; every connection of either side is gone.
    pub async fn restart(&mut self) {
        self.child.kill().expect("our child");
        self.child.wait().expect("our child");
        self.child = spawn(self.dir.path(), &self.ini);
        self.until_ready().await;
    }

    async fn until_ready(&self) {
        let log = || std::fs::read_to_string(self.dir.path().join("log")).unwrap_or_default();
        until("PgBouncer starts", async || self.try_connect("pgbouncer").await.map_err(|_| log())).await;
    }

    /// For a program behind the pooler.
    pub fn url(&self) -> String {
        format!("postgres://{USER}:{PASSWORD}@{}/{}?sslmode=disable", self.addr, self.database)
    }

    /// A neighbour: another program behind the same pooler.
    pub async fn connect(&self) -> tokio_postgres::Client {
        self.try_connect(&self.database).await.unwrap()
    }

    /// PAUSE, RESUME, KILL, … on its console.
    pub async fn order(&self, sql: &str) {
        self.try_connect("pgbouncer").await.unwrap().simple_query(sql).await.unwrap();
    }

    async fn try_connect(&self, database: &str) -> Result<tokio_postgres::Client, tokio_postgres::Error> {
        let url = format!("postgres://{USER}:{PASSWORD}@{}/{database}?sslmode=disable", self.addr);
        let (client, connection) = tokio_postgres::connect(&url, NoTls).await?;
        tokio::spawn(connection);
        Ok(client)
    }
}

impl Drop for PgBouncer {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn spawn(dir: &Path, ini: &Path) -> Child {
    let mut command: Command = command(&binary(), owner());
    let log = std::fs::File::create(dir.join("log")).unwrap();
    command.arg(ini).stdin(Stdio::null()).stdout(Stdio::null()).stderr(log).spawn().expect(INSTALL)
}

fn binary() -> std::path::PathBuf {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let mut places: Vec<_> = std::env::split_paths(&path).collect();
    places.push("/usr/sbin".into());
    places.into_iter().map(|dir| dir.join("pgbouncer")).find(|path| path.exists()).expect(INSTALL)
}
