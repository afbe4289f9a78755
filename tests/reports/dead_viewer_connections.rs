//! Half-open sockets behind proxies, laptops that sleep, phones that come back from the background: a caption page showed
//! "Live" for hours, because a browser hides the protocol's pings from scripts.

use std::sync::Arc;
use std::time::Duration;

use futures_util::{SinkExt, StreamExt};
use parking_lot::Mutex;
use serde_json::{Value, json};
use stenocast::transcript::Status;
use tokio::net::{TcpListener, TcpStream};
use tokio::time::Instant;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::client::IntoClientRequest;
use tokio_tungstenite::tungstenite::handshake::server::{Request, Response};
use tokio_tungstenite::tungstenite::http::HeaderValue;

use crate::support::browser::Browser;
use crate::support::chaos_proxy::ChaosProxy;
use crate::support::http::{Client, KEY, SECRET, TestServer, token, token_with};
use crate::support::js_client::JsClient;
use crate::support::pace::Pace;
use crate::support::wait::until;

const PING_MS: u64 = 300;
const EPOCH: &str = "0193b3f0-0000-7000-8000-000000000001";

#[actix::test]
async fn a_quiet_connection_says_that_it_lives_and_where_the_log_is() {
    let server = TestServer::with(&[("WS_PING_MS", "300")]);
    let mut client = server.view("demo", "").await;
    assert_eq!(client.next().await["pingMs"], 300);
    let ping = client.next_or_ping().await.unwrap();
    assert_eq!(
        [&ping["type"], &ping["session"], &ping["epoch"], &ping["seq"]],
        [&json!("ping"), &json!("demo"), &Value::Null, &json!(0)]
    );
    let speech = server.begin("demo");
    speech.status(Status::Live);
    speech.say(2);
    assert_eq!(client.next().await["epoch"], json!(speech.epoch()), "a hello");
    assert_eq!(client.seqs(3).await, [1, 2, 3]);
    for _ in 0..3 {
        let ping = client.next_or_ping().await.unwrap();
        assert_eq!((&ping["epoch"], &ping["seq"]), (&json!(speech.epoch()), &json!(3)));
        let timestamp = ping["timestamp"].as_str().unwrap();
        assert!(chrono::DateTime::parse_from_rfc3339(timestamp).is_ok() && timestamp.ends_with('Z'), "{timestamp}");
    }
    speech.end();
    assert_eq!(client.seqs(1).await, [4]);
    assert_eq!(client.next_or_ping().await.unwrap()["seq"], 4, "of the log that has ended, too");
    // Whoever has slept asks, and does not wait.
    client.send(r#"{"type":"ping"}"#).await;
    assert_eq!(client.next_or_ping().await.unwrap()["type"], "ping");
    server.stop().await;
}

#[actix::test]
async fn nothing_is_added_while_words_come() {
    let server = TestServer::with(&[("WS_PING_MS", "2000")]);
    let speech = server.begin("demo");
    let mut client = server.view("demo", "").await;
    client.next().await;
    let pace = Pace::begin();
    let mut longest = Duration::ZERO;
    for at_ms in (50..=4500u64).step_by(50) {
        let said = Instant::now();
        speech.say(1);
        assert_eq!(client.next_or_ping().await.unwrap()["type"], "transcript");
        pace.reaches(at_ms).await;
        longest = longest.max(said.elapsed());
    }
    assert!(longest < Duration::from_secs(2), "the machine was too busy for this test");
    server.stop().await;
}

/// A viewer whose connection goes dead in silence: the page, and the client module over either transport.
#[actix::test]
async fn the_page_notices_a_dead_connection_and_misses_nothing() {
    let server = TestServer::with(&[("WS_PING_MS", "500")]);
    let proxy = ChaosProxy::start(server.addr).await;
    let speech = server.begin("demo");
    speech.status(Status::Live);
    let mut browser = Browser::start();
    let url = format!("http://{}/?session=demo&token={}", proxy.addr, token("demo"));
    browser.act("goto", json!({"url": url})).await;
    browser.badge("live").await;
    speech.say(2);
    browser.wait("document.querySelectorAll('#finals .line').length === 2").await;
    for round in 1..=2 {
        proxy.freeze();
        speech.say(2);
        browser.wait(&format!("document.querySelectorAll('#finals .line').length === {}", 2 + 2 * round)).await;
        browser.badge("live").await;
    }
    assert_eq!(browser.seqs().await, [2, 3, 4, 5, 6, 7], "each once");
    // Nobody answers at all for a while.
    proxy.break_off();
    browser.badge("reconnecting").await;
    speech.say(1);
    proxy.restore();
    browser.wait("document.querySelectorAll('#finals .line').length === 7").await;
    browser.badge("live").await;
    server.stop().await;
}

/// What a browser tells a page that was asleep. The next ping would be due in a minute.
const AWAKE: [&str; 3] = [
    "void window.dispatchEvent(new Event('online'))",
    "void document.dispatchEvent(new Event('visibilitychange'))",
    "void window.dispatchEvent(new PageTransitionEvent('pageshow', { persisted: true }))",
];

#[actix::test]
async fn a_page_that_wakes_up_asks_whether_it_is_still_connected() {
    let server = TestServer::with(&[("WS_PING_MS", "60000")]);
    let proxy = ChaosProxy::start(server.addr).await;
    let speech = server.begin("demo");
    speech.status(Status::Live);
    let mut browser = Browser::start();
    let url = format!("http://{}/?session=demo&token={}", proxy.addr, token("demo"));
    browser.act("goto", json!({"url": url})).await;
    browser.badge("live").await;
    let upgrades = server.state.metrics.http_requests_total.with_label_values(&["/api/realtime/transcribe", "101"]);
    for (n, event) in (1..).zip(AWAKE) {
        // A connection that lives is left alone.
        browser.eval(event).await;
        speech.say(1);
        browser.wait(&format!("document.querySelectorAll('#finals .line').length === {}", 2 * n - 1)).await;
        assert_eq!(upgrades.get(), n, "{event}");
        proxy.freeze();
        speech.say(1);
        // Events that come in a burst count once a second.
        let again = format!("({event}, document.querySelectorAll('#finals .line').length === {})", 2 * n);
        browser.wait(&again).await;
        browser.badge("live").await;
    }
    server.stop().await;
}

#[actix::test]
async fn the_client_notices_over_either_transport() {
    for has_web_socket in [true, false] {
        let server = TestServer::with(&[("WS_PING_MS", "300")]);
        let proxy = ChaosProxy::start(server.addr).await;
        let speech = server.begin("demo");
        let options = json!({"session": "demo", "token": token("demo"), "url": format!("http://{}", proxy.addr)});
        let mut client = match has_web_socket {
            true => JsClient::start(&options),
            false => JsClient::without_web_socket(&options),
        };
        speech.say(1);
        client.until("final", |e| e["seq"] == 1).await;
        proxy.freeze();
        speech.say(2);
        let dead = client.state("reconnecting").await;
        assert_eq!(dead["reason"], "nothing came for too long");
        for seq in [2, 3] {
            assert_eq!(client.until("final", |_| true).await["seq"], seq);
        }
        server.stop().await;
    }
}

/// A server of the test's own: what each connection asked for, and what it is told.
struct FakeServer {
    url: String,
    asked: Arc<Mutex<Vec<String>>>,
}

type Socket = WebSocketStream<TcpStream>;

impl FakeServer {
    /// `talk` serves the n-th connection.
    async fn start<F: Future<Output = ()> + 'static>(talk: impl Fn(usize, Socket) -> F + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let asked: Arc<Mutex<Vec<String>>> = Arc::default();
        let log = asked.clone();
        actix::spawn(async move {
            for n in 1.. {
                let (stream, _) = listener.accept().await.unwrap();
                let mut query = String::new();
                #[allow(clippy::result_large_err, reason = "tungstenite's")]
                let upgrade = |request: &Request, mut response: Response| {
                    query = request.uri().query().unwrap_or_default().to_owned();
                    let protocol = HeaderValue::from_static("stenocast.v1");
                    response.headers_mut().insert("sec-websocket-protocol", protocol);
                    Ok(response)
                };
                let Ok(socket) = tokio_tungstenite::accept_hdr_async(stream, upgrade).await else { continue };
                log.lock().push(query);
                actix::spawn(talk(n, socket));
            }
        });
        Self { url, asked }
    }

    fn client(&self) -> JsClient {
        JsClient::start(&json!({"session": "demo", "token": token("demo"), "url": self.url}))
    }
}

async fn say(socket: &mut Socket, message: Value) -> bool {
    socket.send(Message::text(message.to_string())).await.is_ok()
}

fn hello(seq: u64) -> Value {
    json!({"type": "hello", "session": "demo", "epoch": EPOCH, "seq": seq, "recovered": true, "status": "live",
        "protocol": 1, "pingMs": PING_MS})
}

fn line(seq: u64) -> Value {
    json!({"type": "transcript", "session": "demo", "epoch": EPOCH, "seq": seq, "id": format!("u{seq}"), "isFinal": true,
        "revision": 1, "text": format!("line {seq}"), "startMs": 0, "endMs": 1})
}

async fn ping_for_ever(socket: &mut Socket, seq: u64) {
    let ping =
        json!({"type": "ping", "session": "demo", "epoch": EPOCH, "seq": seq, "timestamp": "2026-11-22T12:00:15.000Z"});
    while say(socket, ping.clone()).await {
        if let Ok(None | Some(Err(_))) = tokio::time::timeout(Duration::from_millis(PING_MS), socket.next()).await {
            return;
        }
    }
}

#[actix::test]
async fn a_client_that_is_behind_a_ping_asks_again_for_what_it_misses() {
    let server = FakeServer::start(|n, mut socket| async move {
        say(&mut socket, hello(3)).await;
        let lines = if n == 1 { 1..=1 } else { 2..=3 };
        for seq in lines {
            say(&mut socket, line(seq)).await;
        }
        ping_for_ever(&mut socket, 3).await;
    })
    .await;
    let mut client = server.client();
    for seq in 1..=3 {
        assert_eq!(client.until("final", |_| true).await["seq"], seq);
    }
    assert_eq!(server.asked.lock().len(), 2);
    assert!(server.asked.lock()[1].contains(&format!("epoch={EPOCH}&after=1")), "{:?}", server.asked.lock());
}

/// The server does not have them any more: that is no reason to ask for ever.
#[actix::test]
async fn a_client_asks_once_for_what_is_not_to_be_had() {
    let pings = Arc::new(Mutex::new(0));
    let seen = pings.clone();
    let server = FakeServer::start(move |_, mut socket| {
        let seen = seen.clone();
        async move {
            say(&mut socket, hello(3)).await;
            say(&mut socket, line(1)).await;
            let pace = Pace::begin();
            for n in 1..=100 {
                *seen.lock() += 1;
                let ping = json!({"type": "ping", "session": "demo", "epoch": EPOCH, "seq": 3});
                if !say(&mut socket, ping).await {
                    return;
                }
                pace.reaches(n * PING_MS).await;
            }
        }
    })
    .await;
    let client = server.client();
    until("many pings", async || *pings.lock() >= 20).await;
    assert_eq!(server.asked.lock().len(), 2);
    drop(client);
}

/// Connections that are taken and closed at once, or never answered: the client comes back, and not in a tight loop.
#[actix::test]
async fn a_server_that_hangs_up_at_once_is_not_stormed() {
    let server = FakeServer::start(|_, mut socket| async move {
        say(&mut socket, hello(0)).await;
        let _ = socket.close(None).await;
    })
    .await;
    let mut client = server.client();
    let mut delays = Vec::new();
    for _ in 0..4 {
        delays.push(client.state("reconnecting").await["delayMs"].as_u64().unwrap());
    }
    for (delay, most) in delays.iter().zip([1000, 2000, 4000, 8000]) {
        assert!((most / 4..=most).contains(delay), "{delays:?}");
    }
}

#[actix::test]
async fn a_token_that_has_expired_is_said_or_renewed() {
    let server = TestServer::start();
    server.begin("demo").say(1);
    let exp = |s: i64| (chrono::Utc::now() + chrono::Duration::seconds(s)).timestamp();
    let short = |s| {
        let claims = json!({"iss": KEY, "sub": "anna", "exp": exp(s),
            "video": {"roomJoin": true, "room": "demo"}});
        token_with(SECRET, claims)
    };
    let options = |token: String| json!({"session": "demo", "token": token, "url": server.url("")});
    for expired in [short(-3600), format!("Bearer {}\n", short(-3600))] {
        let mut client = JsClient::start(&options(expired.clone()));
        let refused = client.state("refused").await;
        assert!(refused["message"].as_str().unwrap().contains("expired"), "{refused}");
        let mut renewing = options(expired);
        renewing["renewed"] = json!([short(-3600), token("demo")]);
        let mut client = JsClient::start(&renewing);
        client.until("final", |e| e["seq"] == 1).await;
        // Right after a sleep nobody can be reached: no reason to give up. No token at all is one.
        renewing["renewed"] = json!([{"error": "fetch failed"}, {"error": "fetch failed"}, token("demo")]);
        let mut client = JsClient::start(&renewing);
        for _ in 0..2 {
            client.until("state", |e| e["message"].as_str().is_some_and(|m| m.contains("fetch failed"))).await;
        }
        client.until("final", |e| e["seq"] == 1).await;
        renewing["renewed"] = json!([null]);
        JsClient::start(&renewing).state("refused").await;
    }
    server.stop().await;
}

/// A page that waits for the end of its token is cut off for nothing; by server-sent events it cannot be helped, and the
/// newer token is there when it comes back.
#[actix::test]
async fn a_token_is_renewed_before_it_ends() {
    let server = TestServer::start();
    let speech = server.begin("demo");
    let video = json!({"roomJoin": true, "room": "demo"});
    let claims = json!({"iss": KEY, "sub": "anna", "exp": chrono::Utc::now().timestamp() + 6, "video": video});
    let short = token_with(SECRET, claims);
    let options = json!({"session": "demo", "token": short, "url": server.url(""), "renewed": [token("demo")]});
    let uri = format!("ws://{}/api/realtime/transcribe?session=demo&token={short}", server.addr);
    let mut cut_off = Client::open(uri.into_client_request().unwrap()).await.unwrap();
    let mut by_socket = JsClient::start(&options);
    let mut by_events = JsClient::without_web_socket(&options);
    by_socket.state("open").await;
    by_events.state("open").await;
    cut_off.next().await;
    assert_eq!(u16::from(cut_off.closed().await.code), 4001);
    by_events.state("reconnecting").await;
    by_events.state("open").await;
    speech.say(1);
    by_events.until("final", |event| event["seq"] == 1).await;
    let after = by_socket.next().await;
    assert_eq!(after["event"], "hello", "{after}");
    let after = by_socket.next().await;
    assert_eq!(after["event"], "final", "its connection stays: {after}");
    assert_eq!(server.state.viewers.len(), 2);
    server.stop().await;
}
