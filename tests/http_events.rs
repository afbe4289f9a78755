//! The same feed as Server-Sent Events, with resume by Last-Event-ID.

mod support;

use futures_util::StreamExt;
use serde_json::Value;
use support::http::*;
use support::wait::{DEADLINE, until};

struct Events {
    stream: awc::ClientResponse<actix_http_decompress::Payload>,
    buffer: String,
}

/// One event: its id, name and data.
#[derive(Debug)]
struct Event {
    id: Option<String>,
    name: Option<String>,
    data: Value,
}

mod actix_http_decompress {
    pub type Payload = actix_web::dev::Decompress<actix_web::dev::Payload>;
}

impl Events {
    async fn open(server: &TestServer, query: &str, last_event_id: Option<&str>) -> Result<Self, u16> {
        let mut request = awc::Client::default().get(server.url(&format!("/api/realtime/events?{query}")));
        if let Some(id) = last_event_id {
            request = request.insert_header(("Last-Event-ID", id));
        }
        let stream = request.send().await.unwrap();
        if stream.status() != 200 {
            return Err(stream.status().as_u16());
        }
        assert_eq!(stream.headers().get("content-type").unwrap(), "text/event-stream; charset=utf-8");
        Ok(Self { stream, buffer: String::new() })
    }

    /// The next block of lines, or None at the end.
    async fn block(&mut self) -> Option<String> {
        loop {
            if let Some(end) = self.buffer.find("\n\n") {
                return Some(self.buffer.drain(..end + 2).collect());
            }
            let chunk = tokio::time::timeout(DEADLINE, self.stream.next()).await.expect("an event in time");
            self.buffer.push_str(std::str::from_utf8(&chunk?.unwrap()).unwrap());
        }
    }

    async fn next(&mut self) -> Option<Event> {
        loop {
            let block = self.block().await?;
            let field = |name: &str| {
                let mut values = block.lines().filter_map(|line| line.strip_prefix(name)?.strip_prefix(": "));
                values.next().map(str::to_owned)
            };
            if let Some(data) = field("data") {
                let data = serde_json::from_str(&data).unwrap();
                return Some(Event { id: field("id"), name: field("event"), data });
            }
        }
    }
}

#[actix::test]
async fn events_resume_after_the_last_id() {
    let server = TestServer::start();
    let speech = server.begin("demo");
    speech.say(3);
    let query = format!("session=demo&token={}", token("demo"));
    let mut events = Events::open(&server, &query, None).await.unwrap();
    let hello = events.next().await.unwrap();
    assert_eq!((hello.id, hello.data["type"].as_str()), (None, Some("hello")));
    let mut last = String::new();
    for seq in 1..=3 {
        let event = events.next().await.unwrap();
        last = event.id.unwrap();
        assert_eq!(last, format!("{}:{seq}", speech.epoch()));
    }
    speech.interim("open", "half");
    assert_eq!(events.next().await.unwrap().id, None, "an interim is no place to resume from");
    drop(events);
    speech.say(2);
    // The header knows better than the query that the page was opened with.
    let mut events = Events::open(&server, &format!("{query}&after=0"), Some(&last)).await.unwrap();
    assert_eq!(events.next().await.unwrap().data["recovered"], true);
    for seq in 4..=5 {
        assert_eq!(events.next().await.unwrap().data["seq"], seq);
    }
    server.stop().await;
}

#[actix::test]
async fn refusals_are_those_of_the_websocket() {
    let server = TestServer::start();
    let good = token("demo");
    for (query, id, status) in [
        (format!("session=a/b&token={good}"), None, 400),
        (format!("session=demo&token={good}"), Some("nonsense"), 400),
        ("session=demo".into(), None, 401),
        (format!("session=other&token={good}"), None, 403),
    ] {
        assert_eq!(Events::open(&server, &query, id).await.err(), Some(status), "{query}");
    }
    server.stop().await;
}

#[actix::test]
async fn a_quiet_stream_is_kept_alive_and_the_end_is_said() {
    let server = TestServer::with(&[("WS_PING_MS", "100")]);
    let query = format!("session=demo&token={}", token("demo"));
    let mut events = Events::open(&server, &query, None).await.unwrap();
    let retry = events.block().await.unwrap();
    let ms: u32 = retry.strip_prefix("retry: ").unwrap().trim().parse().unwrap();
    assert!((1000..=3000).contains(&ms), "{retry}");
    assert_eq!(events.next().await.unwrap().data["status"], "waiting");
    let ping = events.next().await.unwrap();
    assert_eq!((ping.id, ping.data["type"].as_str(), &ping.data["seq"]), (None, Some("ping"), &0.into()));
    server.state.viewers.close_all();
    let end = events.next().await.unwrap();
    assert_eq!((end.name.as_deref(), end.data["code"].as_u64()), (Some("close"), Some(1001)));
    assert!(events.next().await.is_none());
    until("gone", async || server.state.viewers.is_empty()).await;
    server.stop().await;
}
