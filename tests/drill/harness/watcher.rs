//! A viewer as a real one is: it reconnects by itself, with the last sequence number and epoch that it has seen.

use std::cell::RefCell;
use std::net::SocketAddr;
use std::rc::Rc;
use std::time::{Duration, Instant};

use chrono::{DateTime, Utc};
use futures_util::StreamExt;
use serde_json::Value;
use tokio::net::TcpStream;
use tokio_tungstenite::tungstenite::client::IntoClientRequest;
use tokio_tungstenite::tungstenite::{Error, Message};
use tokio_tungstenite::{MaybeTlsStream, WebSocketStream};

use super::lasts;
use crate::support::app::viewer_token;

/// Pause between two attempts.
const RETRY: Duration = Duration::from_millis(100);

/// What it has seen so far. Lives as long as somebody holds it.
#[derive(Default)]
pub struct Seen {
    /// Durable entries in the order of their arrival.
    pub entries: Vec<(Instant, Value)>,
    /// Of each final: from the recogniser's message to us, in ms.
    pub delays_ms: Vec<f64>,
    /// Order, holes and repetitions of sequence numbers, foreign entries, recoveries refused.
    pub problems: Vec<String>,
    pub epoch: Option<String>,
    pub last_seq: u64,
    pub hellos: usize,
}

pub type Shared = Rc<RefCell<Seen>>;

/// Watches a room from now on until the last other holder of the answer lets go. With several addresses, each end of a
/// connection leads to the next of them.
pub fn watch(nodes: &[SocketAddr], slug: &str) -> Shared {
    let seen = Shared::default();
    let (weak, slug, nodes) = (Rc::downgrade(&seen), slug.to_owned(), nodes.to_vec());
    actix_rt::spawn(async move {
        for http in nodes.iter().copied().cycle() {
            let Some(seen) = weak.upgrade() else { return };
            if let Ok(mut connection) = Connection::open(http, &slug, seen).await {
                while connection.next().await.is_ok() && connection.is_wanted() {}
            }
            lasts(RETRY).await;
        }
    });
    seen
}

/// One connection of a viewer.
pub struct Connection {
    socket: WebSocketStream<MaybeTlsStream<TcpStream>>,
    slug: String,
    resumes: bool,
    seen: Shared,
}

impl Connection {
    /// Goes on where the viewer stands; open once the hello is here.
    pub async fn open(http: SocketAddr, slug: &str, seen: Shared) -> Result<Self, Error> {
        let resume = seen.borrow().resume();
        let url = format!("ws://{http}/api/realtime/transcribe?session={slug}{resume}");
        let mut request = url.into_client_request()?;
        let bearer = format!("Bearer {}", viewer_token(slug)).parse().expect("a header value");
        request.headers_mut().insert("Authorization", bearer);
        let (socket, _) = tokio_tungstenite::connect_async(request).await?;
        let mut connection = Self { socket, slug: slug.into(), resumes: !resume.is_empty(), seen };
        connection.next().await?;
        Ok(connection)
    }

    /// Takes the next message; an error when there is none any more.
    pub async fn next(&mut self) -> Result<(), Error> {
        match self.socket.next().await {
            Some(Ok(Message::Text(text))) => {
                let value = serde_json::from_str(&text).expect("the server sends JSON");
                self.seen.borrow_mut().take(&self.slug, self.resumes, value);
                Ok(())
            }
            Some(message) => message.map(|_| ()),
            None => Err(Error::ConnectionClosed),
        }
    }

    /// Reads for some time.
    pub async fn read_for(&mut self, time: Duration) {
        let reading = async { while self.next().await.is_ok() {} };
        let _ = tokio::time::timeout(time, reading).await;
    }

    /// Reads to the session's end.
    pub async fn until_ended(mut self) {
        while !self.seen.borrow().has_status("ended") && self.next().await.is_ok() {}
    }

    /// Somebody looks at what it sees.
    fn is_wanted(&self) -> bool {
        Rc::strong_count(&self.seen) > 1
    }
}

impl Seen {
    pub fn resume(&self) -> String {
        let query = |epoch: &String| format!("&after={}&epoch={epoch}", self.last_seq);
        self.epoch.as_ref().map_or(String::new(), query)
    }

    pub fn take(&mut self, slug: &str, resumes: bool, value: Value) {
        if value["session"] != slug {
            self.problems.push(format!("an entry of another room: {value}"));
        }
        if value["type"] == "hello" {
            self.hellos += 1;
            if resumes && value["recovered"] != true {
                self.problems.push(format!("not recovered after seq {}: {value}", self.last_seq));
            }
            return;
        }
        // It numbers nothing: its seq is the log's last one.
        if value["type"] == "ping" {
            return;
        }
        let Some(seq) = value["seq"].as_u64() else { return };
        let epoch = value["epoch"].as_str().unwrap_or("").to_owned();
        if *self.epoch.get_or_insert(epoch.clone()) != epoch {
            self.problems.push(format!("a second epoch: {value}"));
        }
        if seq != self.last_seq + 1 {
            self.problems.push(format!("seq {seq} follows {}", self.last_seq));
        }
        self.last_seq = self.last_seq.max(seq);
        if value["isFinal"] == true
            && let Some(heard) = timestamp(&value)
        {
            self.delays_ms.push((Utc::now() - heard).num_microseconds().unwrap_or(0) as f64 / 1000.0);
        }
        self.entries.push((Instant::now(), value));
    }

    pub fn finals(&self) -> impl Iterator<Item = &(Instant, Value)> {
        self.entries.iter().filter(|(_, value)| value["isFinal"] == true)
    }

    /// What must be the same on every node: epoch, number, and what was said.
    pub fn identities(&self) -> Vec<[String; 4]> {
        let says = |value: &Value| ["epoch", "seq", "id", "text"].map(|field| value[field].to_string());
        self.entries.iter().map(|(_, value)| says(value)).collect()
    }

    pub fn gaps(&self) -> impl Iterator<Item = &Value> {
        self.entries.iter().map(|(_, value)| value).filter(|value| value["type"] == "gap")
    }

    pub fn has_status(&self, status: &str) -> bool {
        self.entries.iter().any(|(_, value)| value["status"] == status)
    }
}

/// When the recogniser's message reached the server.
pub fn timestamp(value: &Value) -> Option<DateTime<Utc>> {
    value["timestamp"].as_str()?.parse().ok()
}
