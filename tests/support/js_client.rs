//! The client module of `web/`, run by Node.

use std::path::Path;
use std::process::Stdio;

use serde_json::Value;
use tempfile::TempDir;
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader, Lines};
use tokio::process::{Child, ChildStdin, ChildStdout, Command};

use super::wait::DEADLINE;

const RUNNER: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/support/client.mjs");
const SPEAKER: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/support/livekit_speaker.mjs");

/// Ends when dropped.
pub struct JsClient {
    lines: Lines<BufReader<ChildStdout>>,
    commands: Option<ChildStdin>,
    _node: Child,
    _dir: TempDir,
}

impl JsClient {
    /// `options` as its constructor takes them; `renewed` is what `renew` gives, one after the other: a token,
    /// null, or `{"error": …}` for one that fails.
    pub fn start(options: &Value) -> Self {
        Self::with(options, true)
    }

    pub fn without_web_socket(options: &Value) -> Self {
        Self::with(options, false)
    }

    /// A participant of a call, with the `Room` of this livekit-client; it obeys [`Self::order`].
    pub fn in_a_call(livekit_client: &Path, options: &Value) -> Self {
        Self::run(&["--experimental-websocket".as_ref(), SPEAKER.as_ref()], Some(livekit_client), options)
    }

    fn with(options: &Value, has_web_socket: bool) -> Self {
        let web_socket = if has_web_socket { "--experimental-websocket" } else { "--no-experimental-websocket" };
        Self::run(&[web_socket.as_ref(), RUNNER.as_ref()], None, options)
    }

    fn run(program: &[&Path], more: Option<&Path>, options: &Value) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let module = dir.path().join("stenocast.mjs");
        std::fs::write(&module, include_str!("../../web/stenocast.js")).unwrap();
        let mut node = Command::new("node");
        node.args(program).arg(&module).args(more).arg(options.to_string());
        node.stdin(Stdio::piped()).stdout(Stdio::piped()).kill_on_drop(true);
        let mut node = node.spawn().expect("node is needed; run `apt-get install nodejs npm` (Node 20 or newer)");
        let lines = BufReader::new(node.stdout.take().unwrap()).lines();
        Self { lines, commands: node.stdin.take(), _node: node, _dir: dir }
    }

    /// One line on its stdin.
    pub async fn order(&mut self, command: Value) {
        let commands = self.commands.as_mut().expect("it takes orders");
        commands.write_all(format!("{command}\n").as_bytes()).await.unwrap();
    }

    pub async fn next(&mut self) -> Value {
        let line = tokio::time::timeout(DEADLINE, self.lines.next_line()).await.expect("an event in time");
        serde_json::from_str(&line.unwrap().expect("the client lives")).unwrap()
    }

    /// Reads until an event of this name for which `predicate` holds.
    pub async fn until(&mut self, event: &str, predicate: impl Fn(&Value) -> bool) -> Value {
        loop {
            let next = self.next().await;
            if next["event"] == event && predicate(&next) {
                return next;
            }
        }
    }

    pub async fn state(&mut self, state: &str) -> Value {
        self.until("state", |event| event["state"] == state).await
    }
}
