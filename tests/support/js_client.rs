//! The client module of `web/`, run by Node.

use std::process::Stdio;

use serde_json::Value;
use tempfile::TempDir;
use tokio::io::{AsyncBufReadExt, BufReader, Lines};
use tokio::process::{Child, ChildStdout, Command};

use super::wait::DEADLINE;

const RUNNER: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/support/client.mjs");

/// Ends when dropped.
pub struct JsClient {
    lines: Lines<BufReader<ChildStdout>>,
    _node: Child,
    _dir: TempDir,
}

impl JsClient {
    /// `options` as its constructor takes them; `renewed` are the tokens that `renew` gives, one after the other.
    pub fn start(options: &Value) -> Self {
        Self::with(options, true)
    }

    pub fn without_web_socket(options: &Value) -> Self {
        Self::with(options, false)
    }

    fn with(options: &Value, has_web_socket: bool) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let module = dir.path().join("stenocast.mjs");
        std::fs::write(&module, include_str!("../../web/stenocast.js")).unwrap();
        let mut node = Command::new("node");
        node.arg(if has_web_socket { "--experimental-websocket" } else { "--no-experimental-websocket" });
        node.arg(RUNNER).arg(&module).arg(options.to_string()).stdout(Stdio::piped()).kill_on_drop(true);
        let mut node = node.spawn().expect("node is needed; run `apt-get install nodejs npm` (Node 20 or newer)");
        let lines = BufReader::new(node.stdout.take().unwrap()).lines();
        Self { lines, _node: node, _dir: dir }
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
