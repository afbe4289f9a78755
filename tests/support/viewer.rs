//! A WebSocket viewer that is not ours: tungstenite.

use std::net::SocketAddr;

use futures_util::{SinkExt, StreamExt};
use serde_json::Value;
use tokio::net::TcpStream;
use tokio::time::Instant;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::client::IntoClientRequest;
use tokio_tungstenite::{MaybeTlsStream, WebSocketStream};

use super::app::{TestApp, viewer_token};
use super::wait::DEADLINE;

/// No test has a viewer that is told more.
const MOST_SEEN: usize = 5_000;

/// See the module.
pub struct Viewer {
    socket: WebSocketStream<MaybeTlsStream<TcpStream>>,
    pub hello: Value,
    /// Everything received after the hello, interims included.
    pub seen: Vec<Value>,
    /// Received pings; they are not in `seen`.
    pub pings: Vec<Value>,
    /// Close code, once the server has closed.
    pub closed: Option<u16>,
    /// What the server said beside the close code.
    pub close_reason: String,
}

impl Viewer {
    pub async fn join(app: &TestApp, slug: &str) -> Self {
        Self::connect(app.app.http_addr(), slug, "").await
    }

    /// `more` is added to the query, such as `&after=3&epoch=…`.
    pub async fn connect(http: SocketAddr, slug: &str, more: &str) -> Self {
        Self::connect_as(http, slug, more, &viewer_token(slug)).await
    }

    /// The same with a token of the caller.
    pub async fn connect_as(http: SocketAddr, slug: &str, more: &str, token: &str) -> Self {
        let url = format!("ws://{http}/api/realtime/transcribe?session={slug}{more}");
        let mut request = url.into_client_request().expect("a URL");
        let bearer = format!("Bearer {token}").parse().expect("a header value");
        request.headers_mut().insert("Authorization", bearer);
        let (socket, _) = tokio_tungstenite::connect_async(request).await.expect("the viewer is let in");
        let (hello, close_reason) = (Value::Null, String::new());
        let mut viewer = Self { socket, hello, seen: Vec::new(), pings: Vec::new(), closed: None, close_reason };
        viewer.hello = viewer.next().await.expect("a hello");
        assert_eq!(viewer.hello["type"], "hello");
        viewer
    }

    /// The next JSON message that is no ping; None when the server has closed.
    async fn next(&mut self) -> Option<Value> {
        loop {
            match self.receive().await {
                Some(message) if message["type"] == "ping" => self.pings.push(message),
                other => return other,
            }
        }
    }

    async fn receive(&mut self) -> Option<Value> {
        loop {
            let frame = tokio::time::timeout(DEADLINE, self.socket.next()).await;
            match frame.unwrap_or_else(|_| panic!("no message within {DEADLINE:?}; seen {:#?}", self.seen)) {
                Some(Ok(Message::Text(text))) => {
                    return Some(serde_json::from_str(&text).expect("JSON"));
                }
                Some(Ok(Message::Close(Some(frame)))) => {
                    (self.closed, self.close_reason) = (Some(frame.code.into()), frame.reason.to_string());
                }
                Some(Ok(_)) => {}
                Some(Err(_)) | None => return None,
            }
        }
    }

    pub async fn send(&mut self, message: &Value) {
        self.socket.send(Message::text(message.to_string())).await.expect("the server takes it");
    }

    /// Reads until the condition holds for what was seen.
    pub async fn until(&mut self, what: &str, condition: impl Fn(&[Value]) -> bool) {
        let deadline = Instant::now() + DEADLINE;
        while !condition(&self.seen) {
            let next = tokio::time::timeout_at(deadline, self.next()).await;
            match next.unwrap_or_else(|_| panic!("{what}: not within {DEADLINE:?}; seen {:#?}", self.seen)) {
                Some(message) => {
                    self.seen.push(message);
                    let floods = self.seen.len() > MOST_SEEN;
                    assert!(!floods, "{what}: a flood; the last {:#?}", &self.seen[MOST_SEEN - 3..]);
                }
                None => panic!("{what}: the server closed ({:?}); seen {:#?}", self.closed, self.seen),
            }
        }
    }

    /// Reads until a ping comes.
    pub async fn until_pinged(&mut self) {
        let before = self.pings.len();
        while self.pings.len() == before {
            match self.receive().await {
                Some(message) if message["type"] == "ping" => self.pings.push(message),
                Some(message) => self.seen.push(message),
                None => panic!("no ping: the server closed ({:?}); seen {:#?}", self.closed, self.seen),
            }
        }
    }

    /// Reads until the session has ended.
    pub async fn until_ended(&mut self) {
        self.until("the session's end", |seen| seen.iter().any(|m| m["status"] == "ended")).await;
    }

    /// Reads until the server closes.
    pub async fn until_closed(&mut self) {
        while let Some(message) = self.next().await {
            self.seen.push(message);
        }
    }

    pub fn finals(&self) -> Vec<String> {
        finals(&self.seen)
    }

    /// Sequence numbers in the order of arrival.
    pub fn seqs(&self) -> Vec<u64> {
        self.seen.iter().filter(|m| m["type"] != "hello").filter_map(|m| m["seq"].as_u64()).collect()
    }

    pub fn last_seq(&self) -> u64 {
        self.seqs().last().copied().unwrap_or(0)
    }
}

/// Texts of the finals.
pub fn finals(seen: &[Value]) -> Vec<String> {
    let finals = seen.iter().filter(|m| m["isFinal"] == true);
    finals.filter_map(|m| m["text"].as_str()).map(str::to_owned).collect()
}

/// Asserts that the numbers are first, first + 1, … without hole or duplicate.
pub fn assert_contiguous(seqs: &[u64], first: u64) {
    let expected: Vec<u64> = (first..first + seqs.len() as u64).collect();
    assert_eq!(seqs, expected, "no hole, no duplicate");
}
