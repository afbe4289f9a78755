//! The program as a child process, and what the tests ask it by HTTP.

use std::net::SocketAddr;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use serde_json::Value;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::process::{Child, Command};

use super::app::settings;
use super::wait::{DEADLINE, until};

/// Patience of the client; a server that hangs is a fault that some tests make.
const HTTP_TIMEOUT: Duration = Duration::from_secs(20);

/// The program that is tested: the one built with the tests, or another build of it at `STENOCAST_BIN`.
fn executable() -> PathBuf {
    std::env::var_os("STENOCAST_BIN").map_or_else(|| env!("CARGO_BIN_EXE_stenocast").into(), PathBuf::from)
}

/// The program without any setting of this environment.
pub fn program(args: &[&str]) -> Command {
    clean(Command::new(executable()), args)
}

fn clean(mut command: Command, args: &[&str]) -> Command {
    for setting in stenocast::config::SETTINGS {
        command.env_remove(setting.name);
    }
    command.args(args).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).kill_on_drop(true);
    command
}

/// A running server; what it logs goes to a file, so that it never waits for us.
pub struct Server {
    child: Child,
    pub http: SocketAddr,
    pub rtmp: SocketAddr,
    log: tempfile::NamedTempFile,
}

impl Server {
    /// `serve` on free ports, with the settings of [`settings`] and `more`.
    pub async fn start(dir: &Path, more: &[(&str, &str)]) -> Self {
        Self::spawn(program(&["serve"]), dir, more).await
    }

    /// The same with `POST /drill`.
    pub async fn start_drill(dir: &Path, more: &[(&str, &str)]) -> Self {
        Self::spawn(program(&["serve", "--drill"]), dir, more).await
    }

    /// The same with a local recogniser of its own, which answers to markers.
    pub async fn start_with_local_recogniser(dir: &Path, more: &[(&str, &str)]) -> Self {
        Self::spawn(program(&["serve", "--drill", "--drill-engine", "marker"]), dir, more).await
    }

    /// The same with a disk of its own for its data, which can be filled: see [`Self::inside`].
    pub async fn start_on_small_disk(dir: &Path, more: &[(&str, &str)], mebibytes: u32) -> Self {
        let mut unshare = Command::new("unshare");
        let mount = format!("mount -t tmpfs -o size={mebibytes}m tmpfs \"$DATA_DIR\" && exec \"$0\" serve --drill");
        // Root needs no user namespace, everybody else does.
        let is_root = std::fs::metadata("/proc/self").is_ok_and(|process| process.uid() == 0);
        let user: &[&str] = if is_root { &[] } else { &["--map-root-user"] };
        unshare.arg("--mount").args(user);
        let mut unshare = clean(unshare, &["sh", "-c", &mount]);
        unshare.arg(executable());
        Self::spawn(unshare, dir, more).await
    }

    async fn spawn(mut command: Command, dir: &Path, more: &[(&str, &str)]) -> Self {
        let log = tempfile::NamedTempFile::new().expect("a temporary file");
        command.env("LOG_FORMAT", "json").env("RUST_LOG", "stenocast=debug").envs(settings(dir, more));
        command.stderr(log.reopen().expect("a temporary file")).stdout(Stdio::null());
        let mut child = command.spawn().expect("the program runs");
        let started = async || {
            let said = std::fs::read_to_string(log.path()).expect("the log");
            let mut events = said.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
            let event = events.find(|event| event["message"] == "server started");
            let ended = child.try_wait().expect("our child");
            assert!(event.is_some() || ended.is_none(), "it does not start: {ended:?} {said}");
            event.ok_or(said)
        };
        let event = until("the server starts", started).await;
        let addr = |name: &str| event[name].as_str().and_then(|a| a.parse().ok());
        // A ws node has no RTMP port.
        let rtmp = addr("rtmp").unwrap_or_else(|| ([127, 0, 0, 1], 0).into());
        Self { http: addr("http").expect("an address"), rtmp, child, log }
    }

    pub fn pid(&self) -> u32 {
        self.child.id().expect("it runs")
    }

    pub fn signal(&self, signal: nix::sys::signal::Signal) {
        nix::sys::signal::kill(nix::unistd::Pid::from_raw(self.pid() as i32), signal).unwrap();
    }

    /// A path as the server sees it, with its own mounts.
    pub fn inside(&self, path: &Path) -> std::path::PathBuf {
        let path = path.strip_prefix("/").expect("an absolute path");
        Path::new("/proc").join(self.pid().to_string()).join("root").join(path)
    }

    /// Everything that it has logged.
    pub fn log(&self) -> String {
        std::fs::read_to_string(self.log.path()).expect("the log")
    }

    /// Waits for the end: exit code and the whole log.
    pub async fn end(mut self) -> (i32, String) {
        let status = tokio::time::timeout(DEADLINE, self.child.wait()).await;
        let status = status.unwrap_or_else(|_| panic!("it does not stop: {}", self.log())).expect("our child");
        (status.code().unwrap_or(-1), self.log())
    }

    /// The actor tree.
    pub async fn tree(&self) -> Value {
        json_of(&request(self.http, "GET", "/metrics?format=json", "").await.expect("it answers").1)
    }

    /// The state of one session, or null.
    pub async fn session(&self, slug: &str) -> Value {
        let tree = self.tree().await;
        let sessions = tree["sessionRegistry"]["state"]["sessions"].as_array().cloned().unwrap_or_default();
        sessions.into_iter().find(|s| s["session"] == slug).unwrap_or(Value::Null)
    }

    /// `POST /drill`.
    pub async fn drill(&self, order: Value) {
        let (status, answer) = request(self.http, "POST", "/drill", &order.to_string()).await.expect("it answers");
        assert!(status == 200 && json_of(&answer)["done"] == true, "{order}: {answer}");
    }
}

fn json_of(answer: &str) -> Value {
    let body = answer.split_once("\r\n\r\n").map_or("", |(_, body)| body);
    serde_json::from_str(body).unwrap_or_else(|e| panic!("no JSON ({e}): {answer}"))
}

/// Status and whole answer of a request.
pub async fn request(http: SocketAddr, method: &str, path: &str, body: &str) -> std::io::Result<(u16, String)> {
    request_as(http, "", method, path, body).await
}

/// The same with a bearer token.
pub async fn request_as(
    http: SocketAddr,
    token: &str,
    method: &str,
    path: &str,
    body: &str,
) -> std::io::Result<(u16, String)> {
    let bearer = if token.is_empty() { String::new() } else { format!("Authorization: Bearer {token}\r\n") };
    let exchange = async {
        let mut socket = TcpStream::connect(http).await?;
        let request = format!(
            "{method} {path} HTTP/1.0\r\nHost: test\r\n{bearer}Content-Type: application/json\r\nContent-Length: {}\r\n\r\n{body}",
            body.len()
        );
        socket.write_all(request.as_bytes()).await?;
        let mut answer = String::new();
        socket.read_to_string(&mut answer).await?;
        Ok::<_, std::io::Error>(answer)
    };
    let answer = tokio::time::timeout(HTTP_TIMEOUT, exchange).await.unwrap_or_else(|e| Err(e.into()))?;
    let status = answer.split(' ').nth(1).and_then(|s| s.parse().ok());
    Ok((status.unwrap_or(0), answer))
}

/// The `/health` page.
pub async fn health(http: SocketAddr) -> std::io::Result<Value> {
    Ok(json_of(&request(http, "GET", "/health", "").await?.1))
}
