//! The program as its users run it: help, faults of the configuration, ports in use, signals, secrets.

mod support;

use std::process::Stdio;
use std::time::Duration;

use support::app::{DEADLINE, KEY};
use support::stt::marker_service;
use support::viewer::Viewer;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, BufReader};
use tokio::process::{Child, Command};

fn program(args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_stenocast"));
    for setting in stenocast::config::SETTINGS {
        command.env_remove(setting.name);
    }
    command.args(args).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).kill_on_drop(true);
    command
}

/// Exit code and what it said on stderr.
async fn refused(mut command: Command) -> (i32, String) {
    let output = tokio::time::timeout(DEADLINE, command.output()).await.expect("it ends").expect("it runs");
    (output.status.code().unwrap_or(-1), String::from_utf8_lossy(&output.stderr).into_owned())
}

/// A running server and everything that it logs.
struct Running {
    child: Child,
    http: std::net::SocketAddr,
    rtmp: std::net::SocketAddr,
    log: BufReader<tokio::process::ChildStderr>,
    said: String,
}

impl Running {
    async fn start(dir: &std::path::Path, more: &[(&str, &str)]) -> Self {
        let mut command = program(&["serve"]);
        let values = support::app::settings(dir, more);
        command.envs(values).env("LOG_FORMAT", "json").env("RUST_LOG", "stenocast=debug");
        let mut child = command.spawn().expect("the program runs");
        let mut log = BufReader::new(child.stderr.take().expect("piped"));
        let mut said = String::new();
        let started = async {
            loop {
                let mut line = String::new();
                assert!(log.read_line(&mut line).await.unwrap() > 0, "it ended: {said}");
                said.push_str(&line);
                let Ok(event) = serde_json::from_str::<serde_json::Value>(&line) else { continue };
                if event["message"] == "server started" {
                    return event;
                }
            }
        };
        let event = tokio::time::timeout(DEADLINE, started).await.expect("it starts");
        let addr = |name: &str| event[name].as_str().and_then(|a| a.parse().ok()).expect("an address");
        Self { http: addr("http"), rtmp: addr("rtmp"), child, log, said }
    }

    fn signal(&self, signal: nix::sys::signal::Signal) {
        let pid = self.child.id().expect("it runs") as i32;
        nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), signal).unwrap();
    }

    /// Waits for the end: exit code and the whole log.
    async fn end(mut self) -> (i32, String) {
        let rest = async {
            self.log.read_to_string(&mut self.said).await.unwrap();
            self.child.wait().await.unwrap().code().unwrap_or(-1)
        };
        let code = tokio::time::timeout(DEADLINE, rest).await.expect("it stops");
        (code, self.said)
    }
}

#[tokio::test]
async fn help_reads_well() {
    for args in
        [&["--help"][..], &["serve", "--help"], &["stt", "--help"], &["token", "--help"], &["migrate", "--help"]]
    {
        let output = program(args).output().await.unwrap();
        assert!(output.status.success());
        let help = String::from_utf8_lossy(&output.stdout).into_owned();
        assert!(help.contains("Usage: stenocast"), "{help}");
    }
}

#[tokio::test]
async fn all_faults_of_the_configuration_are_reported_at_once() {
    let mut command = program(&["serve", "--audio-chunk-ms", "7"]);
    command.env("SERVER_MODE", "everything").env("PORT", "notaport").env("LIVEKIT_API_SECRET", "hush-hush");
    let (code, said) = refused(command).await;
    assert_eq!(code, 64);
    for part in
        ["SERVER_MODE is \"everything\"; allowed: both, rtmp, ws", "PORT is \"notaport\"", "20 to 1000", "--dev"]
    {
        assert!(said.contains(part), "{part} is not in {said}");
    }
    assert!(!said.contains("hush-hush"));
}

#[tokio::test]
async fn a_port_in_use_and_a_bad_directory_are_said_plainly() {
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let port = taken.local_addr().unwrap().port().to_string();
    let dir = tempfile::tempdir().unwrap();
    let mut command = program(&["serve"]);
    command.envs(support::app::settings(dir.path(), &[("PORT", &port)]));
    let (code, said) = refused(command).await;
    assert_eq!(code, 69, "{said}");
    assert!(said.contains(&port) && said.contains("PORT"), "{said}");

    let file = dir.path().join("a-file");
    std::fs::write(&file, "not a directory").unwrap();
    let mut command = program(&["serve"]);
    command.envs(support::app::settings(&file, &[]));
    let (code, said) = refused(command).await;
    assert_eq!(code, 64, "{said}");
    assert!(said.contains("a-file"), "{said}");
}

#[tokio::test]
async fn sigterm_closes_viewers_with_1001_and_keeps_secrets() {
    let stt = marker_service().await;
    let dir = tempfile::tempdir().unwrap();
    let key = ("GLADIA_API_KEY", "gladia-secret-key");
    let more = [
        ("GLADIA_API_URL", stt.url.as_str()),
        key,
        ("ADMIN_TOKEN", "admin-secret"),
        ("RTMP_PUBLISH_KEY", "publish-secret"),
    ];
    let server = Running::start(dir.path(), &more).await;
    let mut viewer = Viewer::connect(server.http, "demo", "").await;
    let unauthorised = get(server.http, "/metrics", None).await;
    assert_eq!(unauthorised.0, 401);
    let (status, metrics) = get(server.http, "/metrics", Some("admin-secret")).await;
    assert_eq!(status, 200);
    server.signal(nix::sys::signal::Signal::SIGTERM);
    viewer.until_closed().await;
    assert_eq!(viewer.closed, Some(1001));
    let (code, log) = server.end().await;
    assert_eq!(code, 0, "{log}");
    let token = support::app::viewer_token("demo");
    for secret in [key.1, "admin-secret", "publish-secret", KEY.1, &token] {
        assert!(!log.contains(secret), "a secret is in the log");
        assert!(!metrics.contains(secret), "a secret is in the metrics");
    }
}

#[tokio::test]
async fn a_second_signal_leaves_at_once() {
    let stt = marker_service().await;
    let dir = tempfile::tempdir().unwrap();
    let server = Running::start(dir.path(), &[("GLADIA_API_URL", &stt.url), ("SHUTDOWN_TIMEOUT_MS", "60000")]).await;
    // A half-open publisher and a viewer keep the stop busy; whichever signal comes first, the program ends.
    let _viewer = Viewer::connect(server.http, "demo", "").await;
    let _publisher = tokio::net::TcpStream::connect(server.rtmp).await.unwrap();
    server.signal(nix::sys::signal::Signal::SIGINT);
    server.signal(nix::sys::signal::Signal::SIGTERM);
    let (code, log) = server.end().await;
    assert!(code == 130 || code == 0, "{code}: {log}");
}

/// Status and body of a GET.
async fn get(http: std::net::SocketAddr, path: &str, bearer: Option<&str>) -> (u16, String) {
    use tokio::io::AsyncWriteExt;
    let mut socket = tokio::net::TcpStream::connect(http).await.unwrap();
    let auth = bearer.map(|b| format!("Authorization: Bearer {b}\r\n")).unwrap_or_default();
    let request = format!("GET {path} HTTP/1.1\r\nHost: test\r\n{auth}Connection: close\r\n\r\n");
    socket.write_all(request.as_bytes()).await.unwrap();
    let mut answer = String::new();
    tokio::time::timeout(Duration::from_secs(20), socket.read_to_string(&mut answer)).await.unwrap().unwrap();
    let status = answer.split(' ').nth(1).and_then(|s| s.parse().ok()).expect("a status");
    (status, answer)
}
