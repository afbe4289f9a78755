//! Pages that did not work under a path, behind HTTP Basic or behind a proxy that lets no WebSocket through; viewers
//! that gave up for good at somebody else's 401, 403, 404, 502 or login page.

use std::net::SocketAddr;
use std::sync::Arc;

use parking_lot::Mutex;
use serde_json::json;
use stenocast::transcript::Status;
use tokio::io::{AsyncReadExt, AsyncWriteExt, copy_bidirectional};
use tokio::net::{TcpListener, TcpStream};

use crate::support::browser::Browser;
use crate::support::chaos_proxy::ChaosProxy;
use crate::support::front::Front;
use crate::support::http::{TestServer, token};
use crate::support::js_client::JsClient;
use crate::support::wait::until;

const BASIC: &str = "auth_basic captions; auth_basic_user_file DIR/users;";
/// As in Safari, which sends no login with a WebSocket; a 401 would make Chromium forget its own.
const BASIC_WITHOUT_UPGRADES: &str = "auth_basic captions; auth_basic_user_file DIR/users; \
    location = /captions/api/realtime/transcribe { auth_basic off; return 403; }";
/// What most people begin with: HTTP/1.0, no upgrade.
const PLAIN: &str = "server { listen LISTEN; location /captions/ { proxy_pass http://UPSTREAM/; } }";
const UNSTRIPPED: &str = "server { listen LISTEN; location /captions { proxy_pass http://UPSTREAM; } }";
enum Proxy {
    Nginx(&'static str),
    DocumentedNginx(&'static str),
    DocumentedCaddy,
}

/// Each proxy, the login that it wants, where the page is opened, and whether `WebSockets` come through.
const FRONTS: [(Proxy, &str, &str, bool); 7] = [
    (Proxy::DocumentedNginx(""), "", "/captions/", true),
    (Proxy::DocumentedNginx(""), "", "/captions", true),
    (Proxy::DocumentedNginx(BASIC), "anna:secret@", "/captions/", true),
    (Proxy::DocumentedNginx(BASIC_WITHOUT_UPGRADES), "anna:secret@", "/captions/", false),
    (Proxy::Nginx(PLAIN), "", "/captions/", false),
    (Proxy::Nginx(UNSTRIPPED), "", "/captions", false),
    (Proxy::DocumentedCaddy, "", "/captions", true),
];

#[actix::test]
async fn the_page_works_behind_them() {
    for (n, (proxy, login, path, has_upgrades)) in FRONTS.iter().enumerate() {
        let server = TestServer::with(&[("BASE_PATH", "/captions"), ("WS_PING_MS", "500")]);
        let front = match proxy {
            Proxy::Nginx(http) => Front::nginx(server.addr, http),
            Proxy::DocumentedNginx(more) => Front::documented_nginx(server.addr, more),
            Proxy::DocumentedCaddy => Front::documented_caddy(server.addr),
        };
        let speech = server.begin("demo");
        speech.status(Status::Live);
        speech.say(1);
        let mut browser = Browser::start();
        let url = format!("http://{login}{}{path}?session=demo&token={}", front.addr, token("demo"));
        browser.act("goto", json!({"url": url})).await;
        let first = json!({"js": "document.querySelectorAll('#finals .line').length === 1"});
        if let Err(error) = browser.ask("wait", first).await {
            panic!("front {n}: {error}; {}", front.access_log());
        }
        browser.badge("live").await;
        assert_eq!(browser.eval("location.pathname").await, "/captions/", "{n}");
        let upgrades = server.state.metrics.http_requests_total.with_label_values(&["/api/realtime/transcribe", "101"]);
        let under =
            server.state.metrics.http_requests_total.with_label_values(&["/captions/api/realtime/transcribe", "101"]);
        assert_eq!(upgrades.get() + under.get() > 0, *has_upgrades, "{n}");
        // Live, not in one piece at the end; and after silence, too.
        for count in 2..=3 {
            speech.say(1);
            browser.wait(&format!("document.querySelectorAll('#finals .line').length === {count}")).await;
        }
        server.state.viewers.cut_all();
        speech.say(1);
        browser.wait("document.querySelectorAll('#finals .line').length === 4").await;
        browser.badge("live").await;
        assert_eq!(browser.seqs().await, [2, 3, 4, 5], "{n}");
        browser.no_problems().await;
        assert!(!front.access_log().contains("eyJ"), "no token in the log: {}", front.access_log());
        server.stop().await;
    }
}

/// Two states of a server that restarts: it refuses newcomers, then there is none.
#[actix::test]
async fn a_plain_event_source_survives_a_restart() {
    for (n, caddy) in [false, true].into_iter().enumerate() {
        let server = TestServer::start();
        let chaos = ChaosProxy::start(server.addr).await;
        let front = match caddy {
            true => Front::documented_caddy(chaos.addr),
            false => Front::documented_nginx(chaos.addr, ""),
        };
        let speech = server.begin("demo");
        speech.say(1);
        let mut browser = Browser::start();
        browser.act("goto", json!({"url": format!("http://{}/captions/", front.addr)})).await;
        let begin = format!(
            "void (() => {{ window.lines = []; window.opened = 0; const source = new EventSource('api/realtime/events?session=demo&token={}'); \
             window.source = source; source.onopen = () => window.opened++; source.onmessage = ({{ data }}) => {{ const entry = JSON.parse(data); \
             if (entry.id) window.lines.push(entry.seq); }}; }})()",
            token("demo")
        );
        browser.eval(&begin).await;
        browser.wait("window.lines.length === 1").await;
        server.refuse_newcomers();
        server.state.viewers.cut_all();
        let events = server.state.metrics.http_requests_total.with_label_values(&["/api/realtime/events", "200"]);
        until("asked while the server stops", async || events.get() >= 2).await;
        chaos.break_off();
        let refused = chaos.accepted();
        until("asked while it is away", async || chaos.accepted() >= refused + 2).await;
        assert_ne!(browser.eval("window.source.readyState").await, 2, "{n}: it has given up");
        server.admit_again();
        chaos.restore();
        speech.say(2);
        browser.wait("window.lines.length === 3").await;
        assert_eq!(browser.eval("window.lines").await, json!([1, 2, 3]));
        server.stop().await;
    }
}

/// Answers in the server's place, until it steps aside.
struct Impostor {
    addr: SocketAddr,
    answer: Arc<Mutex<Option<&'static str>>>,
    answered: Arc<Mutex<usize>>,
}

impl Impostor {
    async fn start(target: SocketAddr, answer: &'static str) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let addr = listener.local_addr().unwrap();
        let (answer, answered) = (Arc::new(Mutex::new(Some(answer))), Arc::new(Mutex::new(0)));
        let (says, counts) = (answer.clone(), answered.clone());
        actix::spawn(async move {
            while let Ok((mut client, _)) = listener.accept().await {
                let say = *says.lock();
                let counts = counts.clone();
                actix::spawn(async move {
                    let Some(answer) = say else {
                        let mut server = TcpStream::connect(target).await.unwrap();
                        let _ = copy_bidirectional(&mut client, &mut server).await;
                        return;
                    };
                    let _ = client.read(&mut [0; 4096]).await;
                    let _ = client.write_all(answer.as_bytes()).await;
                    *counts.lock() += 1;
                });
            }
        });
        Self { addr, answer, answered }
    }
}

/// What stands between a viewer and the server says this, and then does not any more.
const IMPOSTORS: [&str; 9] = [
    "HTTP/1.1 401 Unauthorized\r\nWWW-Authenticate: Basic realm=\"proxy\"\r\nConnection: close\r\n\r\n<html>Log in</html>",
    "HTTP/1.1 403 Forbidden\r\nContent-Type: text/html\r\nConnection: close\r\n\r\n<html>Checking your browser</html>",
    "HTTP/1.1 403 Forbidden\r\nContent-Type: application/json\r\nConnection: close\r\n\r\n{\"error\":\"forbidden\",\"message\":\"no\"}",
    "HTTP/1.1 404 Not Found\r\nConnection: close\r\n\r\n404 page not found\n",
    "HTTP/1.1 400 Bad Request\r\nConnection: close\r\n\r\n<center>nginx</center>",
    "HTTP/1.1 502 Bad Gateway\r\nConnection: close\r\n\r\n<center>nginx</center>",
    "HTTP/1.1 200 OK\r\nContent-Type: text/html\r\nConnection: close\r\n\r\n<html>Welcome to our hotel</html>",
    "HTTP/1.1 302 Found\r\nLocation: /login\r\nConnection: close\r\n\r\n",
    "no HTTP at all",
];

#[actix::test]
async fn what_somebody_else_says_is_a_reason_to_try_again() {
    let server = TestServer::start();
    let speech = server.begin("demo");
    speech.say(1);
    let mut viewers = Vec::new();
    for answer in IMPOSTORS {
        let impostor = Impostor::start(server.addr, answer).await;
        let options = json!({"session": "demo", "token": token("demo"), "url": format!("http://{}/", impostor.addr)});
        viewers.push((answer, impostor, JsClient::start(&options)));
    }
    for (answer, impostor, viewer) in &mut viewers {
        let state = viewer.until("state", |event| event["state"] != "connecting").await;
        assert_eq!(state["state"], "reconnecting", "{answer}: {state}");
        assert!(*impostor.answered.lock() >= 1, "{answer}");
        *impostor.answer.lock() = None;
    }
    for (answer, _, viewer) in &mut viewers {
        let last = viewer.until("final", |_| true).await;
        assert_eq!(last["seq"], 1, "{answer}");
    }
    // The server's own word counts, whoever carries it.
    for (token, status, word) in [(token("other"), 403, "another room"), ("x.y.z".to_owned(), 401, "token")] {
        let mut viewer = JsClient::start(&json!({"session": "demo", "token": token, "url": server.url("")}));
        let refused = viewer.state("refused").await;
        assert_eq!(refused["status"], status, "{refused}");
        assert!(refused["message"].as_str().unwrap().contains(word), "{refused}");
    }
    server.stop().await;
}
