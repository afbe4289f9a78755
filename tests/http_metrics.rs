//! /metrics, /health, CORS and the page's headers.

mod support;

use std::collections::{HashMap, HashSet};

use support::http::*;
use support::wait::until;

/// Checks the text format and gives the value of each series.
fn strict(text: &str) -> HashMap<String, f64> {
    let (mut helped, mut types, mut series) = (HashSet::new(), HashMap::new(), HashMap::new());
    for line in text.lines() {
        let mut words = line.splitn(4, ' ');
        match (words.next(), words.next()) {
            (Some("#"), Some("HELP")) => assert!(helped.insert(words.next().unwrap().to_owned()), "{line}"),
            (Some("#"), Some("TYPE")) => {
                let name = words.next().unwrap().to_owned();
                assert!(types.insert(name, words.next().unwrap().to_owned()).is_none(), "{line}");
            }
            _ => {
                let (key, value) = line.rsplit_once(' ').unwrap_or_else(|| panic!("{line}"));
                let name = key.split('{').next().unwrap();
                assert!(name.starts_with("stenocast_") && name.chars().all(|c| c.is_ascii_alphanumeric() || c == '_'));
                let family = ["_bucket", "_sum", "_count"].iter().find_map(|end| {
                    name.strip_suffix(end).filter(|base| types.get(*base).is_some_and(|t| t == "histogram"))
                });
                let family = family.unwrap_or(name);
                assert!(types.contains_key(family) && helped.contains(family), "{line}");
                assert!(series.insert(key.to_owned(), value.parse().unwrap()).is_none(), "twice: {key}");
            }
        }
    }
    series
}

#[actix::test]
async fn prometheus_text_is_strict_and_counts_what_happened() {
    let server = TestServer::start();
    let speech = server.begin("demo");
    let mut client = server.view("demo", "").await;
    client.next().await;
    speech.say(1);
    client.next().await;
    server.get("/api/sessions/demo/transcripts?limit=x", Some(&token("demo"))).await;
    server.get("/made/up/by/strangers", None).await;
    let (status, text) = server.get("/metrics", Some(ADMIN_TOKEN)).await;
    assert_eq!(status, 200);
    let series = strict(&text);
    assert_eq!(series["stenocast_ws_connections"], 1.0);
    assert_eq!(series["stenocast_ws_messages_sent_total"], 2.0);
    assert_eq!(series["stenocast_delivery_latency_seconds_count"], 1.0);
    assert_eq!(series["stenocast_edge_depth{edge=\"tags\"}"], 7.0);
    let requests = |route: &str, status: &str| {
        series[&format!("stenocast_http_requests_total{{route=\"{route}\",status=\"{status}\"}}")]
    };
    assert_eq!(requests("/api/realtime/transcribe", "101"), 1.0);
    assert_eq!(requests("/api/sessions/{slug}/transcripts", "400"), 1.0);
    assert_eq!(requests("unmatched", "404"), 1.0);
    assert!(!text.contains("demo"), "no label per room");
    let again = server.get("/metrics", Some(ADMIN_TOKEN)).await.1;
    assert_eq!(strict(&again)["stenocast_edge_depth{edge=\"tags\"}"], 7.0, "set, not added");
    server.stop().await;
}

#[actix::test]
async fn the_tree_is_json_on_request() {
    let server = TestServer::start();
    let (status, tree) = server.get_json("/metrics?format=json", Some(ADMIN_TOKEN)).await;
    let sessions = &tree["sessionRegistry"]["state"]["sessions"];
    assert_eq!((status, sessions[0]["session"].as_str()), (200, Some("demo")));
    let children = &sessions[0]["children"];
    assert!(children["transcriptRoom"]["state"].is_null(), "it does not live");
    assert_eq!(children["speakerTracker"]["state"], "no answer");
    assert!(children.get("gladiaBridge").is_none(), "nobody publishes there");
    let request = awc::Client::default().get(server.url("/metrics")).bearer_auth(ADMIN_TOKEN);
    let mut response = request.insert_header(("Accept", "text/html, application/json;q=0.9")).send().await.unwrap();
    assert!(response.json::<serde_json::Value>().await.unwrap()["batchWriter"].is_object());
    assert_eq!(server.get("/metrics?format=xml", Some(ADMIN_TOKEN)).await.0, 400);
    server.stop().await;
}

#[actix::test]
async fn metrics_are_for_operators() {
    let server = TestServer::start();
    for bearer in [None, Some("nonsense"), Some(BROADCAST_TOKEN), Some(&*room_admin("demo"))] {
        assert_eq!(server.get("/metrics", bearer).await.0, 401, "{bearer:?}");
    }
    server.stop().await;
    let open = TestServer::with(&[("ADMIN_TOKEN", "")]);
    assert_eq!(open.get("/metrics", None).await.0, 200, "loopback");
    open.stop().await;
}

#[actix::test]
async fn health_says_what_is_up() {
    let server = TestServer::start();
    let (status, health) = server.get_json("/health", None).await;
    assert_eq!((status, health["live"].as_bool(), health["ready"].as_bool()), (200, Some(true), Some(true)));
    assert_eq!((health["mode"].as_str(), health["database"].as_str()), (Some("both"), Some("up")));
    assert_eq!((health["queueSize"].as_i64(), health["recogniser"]["kind"].as_str()), (Some(0), Some("local")));
    server.store.set_down(true);
    let (status, health) = server.get_json("/health", None).await;
    assert_eq!((status, health["database"].as_str(), health["status"].as_str()), (200, Some("down"), Some("degraded")));
    // The database's own words are for operators.
    assert_eq!(health["reasons"][0], "the database takes no rows, they wait in the outbox");
    let (_, health) = server.get_json("/health", Some(ADMIN_TOKEN)).await;
    assert_eq!(health["reasons"][0], "the database takes no rows, they wait in the outbox: down");
    server.store.set_down(false);
    server.store.set_quarantined(2, Some("nein danke"));
    let (status, health) = server.get_json("/health", None).await;
    assert_eq!((status, health["status"].as_str(), health["quarantined"].as_u64()), (200, Some("degraded"), Some(2)));
    assert_eq!(health["reasons"][0], "2 row(s) in quarantine, see `stenocast quarantine list`");
    let (_, health) = server.get_json("/health", Some(ADMIN_TOKEN)).await;
    assert_eq!(health["reasons"][0], "2 row(s) in quarantine, see `stenocast quarantine list`: nein danke");
    server.store.set_quarantined(0, None);
    let (_, health) = server.get_json("/health", None).await;
    assert!(!health["reasons"].to_string().contains("quarantine"), "{health}");
    server.state.hung.store(true, std::sync::atomic::Ordering::Relaxed);
    let (status, health) = server.get_json("/health", None).await;
    assert_eq!((status, health["live"].as_bool()), (503, Some(false)));
    server.stop().await;
}

#[actix::test]
async fn an_ingest_node_has_no_viewers() {
    let server = TestServer::with(&[("SERVER_MODE", "rtmp"), ("WS_SERVER_URL", "http://x")]);
    assert_eq!(server.get("/health", None).await.0, 200);
    for path in ["/", "/api/realtime/transcribe", "/api/realtime/transcribe/reports"] {
        assert_eq!(server.get_json(path, None).await.0, 404, "{path}");
    }
    assert_eq!(server.get_json("/api/sessions", Some(ADMIN_TOKEN)).await.0, 200, "an operator sees what it ingests");
    server.stop().await;
}

#[actix::test]
async fn only_configured_origins_may_read() {
    let ask = async |server: &TestServer, origin: &'static str| {
        let request = awc::Client::default().get(server.url("/health")).insert_header(("Origin", origin));
        let response = request.send().await.unwrap();
        let allowed = response.headers().get("access-control-allow-origin");
        allowed.map(|value| value.to_str().unwrap().to_owned())
    };
    let closed = TestServer::start();
    assert_eq!(ask(&closed, "https://a.example").await, None);
    closed.stop().await;
    let server = TestServer::with(&[("CORS_ORIGINS", "https://a.example, https://b.example")]);
    assert_eq!(ask(&server, "https://b.example").await.as_deref(), Some("https://b.example"));
    assert_eq!(ask(&server, "https://c.example").await, None);
    let preflight = "OPTIONS /api/sessions HTTP/1.1\r\nHost: x\r\nConnection: close\r\nOrigin: https://a.example\r\n\
         Access-Control-Request-Method: GET\r\nAccess-Control-Request-Headers: authorization\r\n\r\n";
    let answer = server.raw(preflight).await;
    assert!(answer.starts_with("http/1.1 200") && answer.contains("access-control-allow-headers"), "{answer}");
    server.stop().await;
}

#[actix::test]
async fn the_page_has_its_security_headers_and_is_cached_by_tag() {
    let server = TestServer::start();
    for path in ["/", "/captions.css", "/captions.js", "/stenocast.js", "/favicon.svg"] {
        let response = awc::Client::default().get(server.url(path)).send().await.unwrap();
        assert_eq!(response.status(), 200, "{path}");
        let header = |name: &str| response.headers().get(name).unwrap().to_str().unwrap().to_owned();
        assert!(!header("content-security-policy").contains("unsafe"), "{path}");
        assert_eq!(
            (header("x-content-type-options"), header("referrer-policy")),
            ("nosniff".into(), "no-referrer".into())
        );
        let again = awc::Client::default().get(server.url(path)).insert_header(("If-None-Match", header("etag")));
        assert_eq!(again.send().await.unwrap().status(), 304, "{path}");
    }
    let (_, html) = server.get("/", None).await;
    assert!(!html.contains("<style") && !html.contains("onclick") && !html.contains("<script>"), "no inline code");
    server.stop().await;
}

/// Collects everything that is logged.
#[derive(Clone, Default)]
struct Lines(std::sync::Arc<parking_lot::Mutex<Vec<u8>>>);

impl std::io::Write for Lines {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().extend_from_slice(bytes);
        Ok(bytes.len())
    }
    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

#[actix::test]
async fn no_token_is_ever_logged() {
    let lines = Lines::default();
    let writer = lines.clone();
    let subscriber =
        tracing_subscriber::fmt().with_max_level(tracing::Level::TRACE).with_writer(move || writer.clone()).finish();
    // The whole process: HTTP workers are threads of their own. Other tests of this file only add lines.
    let _ = tracing::subscriber::set_global_default(subscriber);
    let server = TestServer::start();
    let (good, other) = (token("confidential-room"), token("other"));
    let mut client = server.view("confidential-room", "").await;
    client.next().await;
    client.send(format!(r#"{{"type":"auth","token":"{other}"}}"#)).await;
    client.next().await;
    server.get(&format!("/api/realtime/events?session=confidential-room&token={other}"), None).await;
    server.get("/api/sessions", Some(&good)).await;
    server.post(Some(&other), "{}").await;
    let speech = server.begin("confidential-room");
    // Only what is said while it is there counts as delivered to it.
    assert_eq!(client.next().await["type"], "hello");
    speech.say(1);
    // Of this test's viewer: no other has a room of this name.
    let is_told = |line: &str| line.contains("Transcript delivery latency") && line.contains("confidential-room");
    until("the log lines", async || String::from_utf8_lossy(&lines.0.lock()).lines().any(is_told)).await;
    let log = String::from_utf8_lossy(&lines.0.lock()).into_owned();
    assert!(log.contains("http request") && log.contains("totalLatencyFromGladiaMs"), "{log}");
    let signature = |token: &str| token.rsplit('.').next().unwrap().to_owned();
    for secret in [signature(&good), signature(&other), ADMIN_TOKEN.into(), BROADCAST_TOKEN.into(), SECRET.into()] {
        let ours = log.lines().filter(|line| line.contains("stenocast") || line.contains("actix"));
        let leaks: Vec<_> = ours.filter(|line| line.contains(&secret)).collect();
        assert!(leaks.is_empty(), "{leaks:?}");
    }
    server.stop().await;
}
