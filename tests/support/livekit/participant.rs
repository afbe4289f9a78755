//! LiveKit's own client for Node as a participant of the fake.

use std::process::Stdio;

use serde_json::{Value, json};
use stenocast::config::Secret;
use stenocast::livekit::token::sign;
use tokio::io::{AsyncBufReadExt, BufReader, Lines};
use tokio::process::{Child, ChildStdout, Command};

use super::super::app::KEY;
use super::super::npm;
use super::super::wait::DEADLINE;
use super::FakeLiveKit;

/// A token as an application mints it.
pub fn token(room: &str, identity: &str) -> String {
    let exp = chrono::Utc::now().timestamp() + 600;
    let video = json!({"roomJoin": true, "room": room, "canPublish": true, "canSubscribe": true});
    let claims = json!({"iss": KEY.0, "sub": identity, "name": identity.to_uppercase(), "exp": exp, "video": video});
    sign(&claims, &Secret::new(KEY.1))
}

/// `@livekit/rtc-node`, unchanged. Ends when dropped.
pub struct NodeParticipant {
    lines: Lines<BufReader<ChildStdout>>,
    _node: Child,
}

impl NodeParticipant {
    /// Joins a room and waits until it is in.
    pub async fn join(livekit: &FakeLiveKit, room: &str, identity: &str) -> Self {
        let place = npm::install("livekit-rtc");
        let mut node = Command::new("node");
        node.args(["participant.mjs", &livekit.url(), &token(room, identity)]).current_dir(place);
        node.stdin(Stdio::piped()).stdout(Stdio::piped()).kill_on_drop(true);
        let mut node = node.spawn().expect("node is needed; run `apt-get install nodejs npm` (Node 20 or newer)");
        let lines = BufReader::new(node.stdout.take().unwrap()).lines();
        let mut participant = Self { lines, _node: node };
        participant.until("joined", |_| true).await;
        participant
    }

    /// Reads until an event of this name for which `predicate` holds.
    pub async fn until(&mut self, event: &str, predicate: impl Fn(&Value) -> bool) -> Value {
        loop {
            let line = tokio::time::timeout(DEADLINE, self.lines.next_line()).await;
            let line = line.unwrap_or_else(|_| panic!("no {event} in time")).unwrap().expect("the participant lives");
            // The library's own log goes to the same place.
            let Ok(next) = serde_json::from_str::<Value>(&line) else { continue };
            if next["event"] == event && predicate(&next) {
                return next;
            }
        }
    }
}
