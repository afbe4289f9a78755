//! The programs of `examples/`, run as their readers run them: each line once, over the death of the server.

mod support;

use std::net::SocketAddr;
use std::path::Path;
use std::process::Stdio;

use nix::sys::signal::Signal;
use support::app::viewer_token;
use support::server::{Server, request};
use support::wait::{DEADLINE, until};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader, Lines};
use tokio::process::{Child, ChildStdin, ChildStdout, Command};

const BROADCAST_TOKEN: &str = "broadcast-token-of-the-examples";
const LINES: [&str; 4] = ["One.", "Two — zwei, 二.", "Three.", "\"Four\", & five."];

struct Example {
    name: &'static str,
    child: Child,
    input: Option<ChildStdin>,
    lines: Lines<BufReader<ChildStdout>>,
}

impl Example {
    fn start(program: &str, name: &'static str, http: SocketAddr, more: &[&str], secret: (&str, &str)) -> Self {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("examples").join(name);
        let mut command = Command::new(program);
        command.arg(path).arg(format!("http://{http}")).args(more).env(secret.0, secret.1).env("PYTHONUTF8", "1");
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).kill_on_drop(true);
        let mut child = command.spawn().unwrap_or_else(|e| panic!("{program}: {e}; scripts/setup.sh test installs it"));
        let lines = BufReader::new(child.stdout.take().unwrap()).lines();
        Self { name, input: child.stdin.take(), child, lines }
    }

    async fn say(&mut self, line: &str) {
        let input = self.input.as_mut().expect("it still reads");
        input.write_all(format!("{line}\n").as_bytes()).await.unwrap();
    }

    async fn hears(&mut self, expected: &str) {
        let line = tokio::time::timeout(DEADLINE, self.lines.next_line()).await;
        let line = line.unwrap_or_else(|_| panic!("{}: nothing came, {expected:?} was due", self.name)).unwrap();
        assert!(line.as_deref().is_some_and(|l| l.ends_with(expected)), "{}: {line:?}, not {expected:?}", self.name);
    }
}

/// A viewer knocks before the room is there; it is counted once its connection stands.
async fn until_watched(http: SocketAddr, viewers: usize) {
    let are_there = async || {
        let metrics = request(http, "GET", "/metrics", "").await.unwrap().1;
        let count = metrics.lines().find_map(|line| line.strip_prefix("stenocast_ws_connections "));
        if count.and_then(|n| n.trim().parse::<usize>().ok()) == Some(viewers) { Ok(()) } else { Err(metrics) }
    };
    until(&format!("{viewers} viewers come"), are_there).await;
}

#[tokio::test]
async fn posted_lines_reach_both_viewers_once_although_the_server_is_killed() {
    let dir = tempfile::tempdir().unwrap();
    // No recogniser is asked: the text comes by POST.
    let settings = [("BROADCAST_TOKEN", BROADCAST_TOKEN), ("GLADIA_API_URL", "http://127.0.0.1:9")];
    let server = Server::start(dir.path(), &settings).await;
    let http = server.http;
    let token = viewer_token("demo");
    let mut node = Example::start("node", "viewer.mjs", http, &["demo"], ("TOKEN", &token));
    let mut python = Example::start("python3", "viewer.py", http, &["demo"], ("TOKEN", &token));
    let mut poster =
        Example::start("python3", "post.py", http, &["demo", "anna"], ("BROADCAST_TOKEN", BROADCAST_TOKEN));
    until_watched(http, 2).await;
    for line in &LINES[..2] {
        poster.say(line).await;
        for example in [&mut poster, &mut node, &mut python] {
            example.hears(line).await;
        }
    }
    server.signal(Signal::SIGKILL);
    server.end().await;
    // Said to a server that is not there.
    poster.say(LINES[2]).await;
    let port = http.port().to_string();
    let server = Server::start(dir.path(), &[settings[0], settings[1], ("PORT", &port)]).await;
    poster.say(LINES[3]).await;
    for line in &LINES[2..] {
        for example in [&mut poster, &mut node, &mut python] {
            example.hears(line).await;
        }
    }
    drop(poster.input.take());
    assert!(poster.child.wait().await.unwrap().success());
    drop(server);
}

#[tokio::test]
async fn a_refusal_is_said_and_ends_a_viewer() {
    let dir = tempfile::tempdir().unwrap();
    let server = Server::start(dir.path(), &[]).await;
    for (program, name) in [("node", "viewer.mjs"), ("python3", "viewer.py")] {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("examples").join(name);
        let mut command = Command::new(program);
        command.arg(path).arg(format!("http://{}", server.http)).arg("demo").env("TOKEN", viewer_token("another"));
        let mut child = command.stderr(Stdio::piped()).kill_on_drop(true).spawn().unwrap();
        let mut said = String::new();
        let mut stderr = child.stderr.take().unwrap();
        let status = tokio::time::timeout(DEADLINE, async {
            stderr.read_to_string(&mut said).await.unwrap();
            child.wait().await.unwrap()
        });
        let status = status.await.unwrap_or_else(|_| panic!("{name} does not end"));
        assert!(!status.success() && said.contains("refused"), "{name}: {status} {said}");
    }
}
