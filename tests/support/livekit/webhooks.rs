//! Webhooks as a LiveKit server sends them: signed without "Bearer", spaces here and there, camelCase, zero values left
//! out, in order, and again when they were not taken.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use parking_lot::Mutex;
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use stenocast::livekit::token::sign;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::mpsc;

use super::super::pace::Pace;
use super::{Server, Task};

/// Tries of one webhook.
const TRIES: usize = 5;
const BACKOFF_MS: u64 = 200;
const TIMEOUT: Duration = Duration::from_secs(10);

/// A webhook as it goes over the wire.
#[derive(Clone, Debug)]
pub struct Webhook {
    pub body: String,
    pub authorization: String,
}

#[derive(Default)]
pub struct Webhooks {
    targets: Mutex<Vec<(mpsc::UnboundedSender<Webhook>, Task)>>,
    /// As if the network lost them.
    pub are_lost: AtomicBool,
    pub sent: AtomicUsize,
    last: Mutex<Vec<Webhook>>,
}

impl Webhooks {
    pub fn send_to(&self, urls: &[String]) {
        let start = |url: &String| {
            let (sender, receiver) = mpsc::unbounded_channel();
            (sender, Task(tokio::spawn(deliver(url.clone(), receiver))))
        };
        *self.targets.lock() = urls.iter().map(start).collect();
    }

    pub fn send(&self, server: &Server, event: &str, parts: Value) {
        let webhook = make(server, event, parts);
        self.last.lock().push(webhook.clone());
        self.sent.fetch_add(1, Ordering::Relaxed);
        if !self.are_lost.load(Ordering::Relaxed) {
            self.targets.lock().iter().for_each(|(target, _)| drop(target.send(webhook.clone())));
        }
    }

    /// Everything that was sent, or lost.
    pub fn all(&self) -> Vec<Webhook> {
        self.last.lock().clone()
    }
}

/// An event with the parts that it has.
pub fn make(server: &Server, event: &str, parts: Value) -> Webhook {
    let mut fields = vec![("event".to_owned(), json!(event))];
    fields.extend(parts.as_object().cloned().unwrap_or_default());
    fields.push(("id".to_owned(), json!(server.id("EV"))));
    fields.push(("createdAt".to_owned(), json!(chrono::Utc::now().timestamp().to_string())));
    // A build of LiveKit writes them or does not; who verifies must not care.
    let comma = if rand::random() { ", " } else { "," };
    let fields: Vec<String> = fields.iter().map(|(name, value)| format!("{}:{value}", json!(name))).collect();
    let body = format!("{{{}}}", fields.join(comma));
    let authorization = authorization(server, body.as_bytes());
    Webhook { body, authorization }
}

pub fn authorization(server: &Server, body: &[u8]) -> String {
    let (key, secret) = server.keys.signer();
    let now = chrono::Utc::now().timestamp();
    let digest = STANDARD.encode(Sha256::digest(body));
    sign(&json!({"iss": key, "exp": now + 300, "nbf": now, "sha256": digest}), &secret)
}

async fn deliver(url: String, mut webhooks: mpsc::UnboundedReceiver<Webhook>) {
    let (addr, path) = url.strip_prefix("http://").and_then(|rest| rest.split_once('/')).expect("an http URL");
    let addr: SocketAddr = addr.parse().expect("an address");
    while let Some(webhook) = webhooks.recv().await {
        for n in 0..TRIES {
            if matches!(post(addr, &format!("/{path}"), &webhook).await, Ok(status) if status < 500) {
                break;
            }
            Pace::begin().reaches(BACKOFF_MS << n).await;
        }
    }
}

/// Posts it once and gives the status.
pub async fn post(addr: SocketAddr, path: &str, webhook: &Webhook) -> std::io::Result<u16> {
    let exchange = async {
        let mut socket = TcpStream::connect(addr).await?;
        let head = format!(
            "POST {path} HTTP/1.1\r\nHost: {addr}\r\nUser-Agent: Go-http-client/1.1\r\nContent-Length: {}\r\n\
             Authorization: {}\r\nContent-Type: application/webhook+json\r\nConnection: close\r\n\r\n",
            webhook.body.len(),
            webhook.authorization,
        );
        socket.write_all(head.as_bytes()).await?;
        socket.write_all(webhook.body.as_bytes()).await?;
        let mut answer = String::new();
        socket.read_to_string(&mut answer).await?;
        Ok::<_, std::io::Error>(answer.split(' ').nth(1).and_then(|status| status.parse().ok()).unwrap_or(0))
    };
    tokio::time::timeout(TIMEOUT, exchange).await.unwrap_or_else(|late| Err(late.into()))
}
