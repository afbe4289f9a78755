//! LiveKit's own server SDK, run by Node: see `tests/sdk/livekit/server.mjs`.

use std::process::Stdio;

use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader, Lines};
use tokio::process::{Child, ChildStdin, ChildStdout, Command};

use super::super::app::KEY;
use super::super::npm;
use super::super::wait::DEADLINE;

/// Ends when dropped.
pub struct ServerSdk {
    input: ChildStdin,
    lines: Lines<BufReader<ChildStdout>>,
    _node: Child,
}

impl ServerSdk {
    pub fn start(url: &str) -> Self {
        let mut node = Command::new("node");
        node.args(["server.mjs", url, KEY.0, KEY.1]).current_dir(npm::install("livekit"));
        node.stdin(Stdio::piped()).stdout(Stdio::piped()).kill_on_drop(true);
        let mut node = node.spawn().expect("node is needed; run `apt-get install nodejs npm` (Node 20 or newer)");
        let lines = BufReader::new(node.stdout.take().expect("a pipe")).lines();
        Self { input: node.stdin.take().expect("a pipe"), lines, _node: node }
    }

    /// The answer, or what it throws.
    pub async fn order(&mut self, order: &str, mut given: Value) -> Result<Value, String> {
        given["order"] = json!(order);
        self.input.write_all(format!("{given}\n").as_bytes()).await.expect("node reads");
        let line = tokio::time::timeout(DEADLINE, self.lines.next_line()).await.expect("an answer in time");
        let answer: Value = serde_json::from_str(&line.expect("node lives").expect("a line")).expect("JSON");
        match answer["error"].as_str() {
            Some(error) => Err(error.to_owned()),
            None => Ok(answer["answer"].clone()),
        }
    }
}
