//! Nobody gets in without a token for the room, and every refusal comes before the upgrade with its reason.

mod support;

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde_json::json;
use support::http::*;
use support::wait::until;

fn exp(offset_s: i64) -> i64 {
    chrono::Utc::now().timestamp() + offset_s
}

async fn refused(server: &TestServer, query: &str, headers: &[(&'static str, &str)]) -> (u16, String) {
    let refusal = Client::open(ws_request(server, query, headers)).await.err().expect("a refusal");
    for secret in [SECRET, "eyJ"] {
        assert!(!refusal.message.contains(secret), "{}", refusal.message);
    }
    (refusal.status, refusal.code)
}

#[actix::test]
async fn bad_requests_are_400() {
    let server = TestServer::start();
    let good = token("demo");
    for query in [
        format!("token={good}"),
        format!("session=&token={good}"),
        format!("session=a%2Fb&token={good}"),
        format!("session=..&token={good}"),
        format!("session={}&token={good}", "x".repeat(129)),
        format!("session=demo&token={good}&after=-1"),
        format!("session=demo&token={good}&after=x"),
        format!("session=demo&token={good}&after=99999999999999999999"),
        format!("session=demo&token={good}&after=1&epoch=nonsense"),
    ] {
        assert_eq!(refused(&server, &query, &[]).await.0, 400, "{query}");
    }
    assert!(server.state.directory.is_empty(), "a refusal makes no room");
    server.stop().await;
}

#[actix::test]
async fn tokens_that_prove_nothing_are_401() {
    let server = TestServer::start();
    let video = json!({"roomJoin": true, "room": "demo"});
    let none = {
        let part = |value: serde_json::Value| URL_SAFE_NO_PAD.encode(value.to_string());
        let claims = json!({"iss": KEY, "sub": "anna", "exp": exp(60), "video": video});
        format!("{}.{}.", part(json!({"alg": "none"})), part(claims))
    };
    let cases = [
        ("token_missing", String::new()),
        ("token_invalid", "nonsense".into()),
        ("token_invalid", none),
        ("token_invalid", token_with("wrong", json!({"iss": KEY, "sub": "anna", "exp": exp(60), "video": video}))),
        ("token_invalid", token_with(SECRET, json!({"iss": "other", "sub": "anna", "exp": exp(60), "video": video}))),
        ("token_invalid", token_with(SECRET, json!({"iss": KEY, "sub": "anna", "video": video}))),
        ("token_invalid", token_with(SECRET, json!({"iss": KEY, "sub": "", "exp": exp(60), "video": video}))),
        (
            "token_invalid",
            token_with(SECRET, json!({"iss": KEY, "sub": "a", "exp": exp(600), "nbf": exp(90), "video": video})),
        ),
        ("token_expired", token_with(SECRET, json!({"iss": KEY, "sub": "anna", "exp": exp(-61), "video": video}))),
    ];
    for (code, token) in cases {
        let refusal = refused(&server, &format!("session=demo&token={token}"), &[]).await;
        assert_eq!(refusal, (401, code.to_owned()), "{token}");
    }
    server.stop().await;
}

#[actix::test]
async fn tokens_that_do_not_allow_it_are_403() {
    let server = TestServer::start();
    let with = |video| token_with(SECRET, json!({"iss": KEY, "sub": "anna", "exp": exp(60), "video": video}));
    for token in [
        token("other"),
        with(json!({"roomJoin": true})),
        with(json!({"room": "demo"})),
        with(json!({"roomAdmin": true, "room": "demo"})),
        with(json!({"roomJoin": true, "room": "demo", "canSubscribe": false})),
    ] {
        assert_eq!(refused(&server, &format!("session=demo&token={token}"), &[]).await.0, 403);
    }
    server.stop().await;
}

#[actix::test]
async fn the_first_of_header_subprotocol_and_query_counts() {
    let server = TestServer::start();
    let (good, bad) = (token("demo"), token("other"));
    let bearer = |token: &str| format!("Bearer {token}");
    let protocol = |token: &str| format!("stenocast.v1, bearer.{token}");
    // (header, subprotocol, query) -> admitted
    for (header, subprotocol, query, admitted) in [
        (Some(&good), Some(&bad), Some(&bad), true),
        (Some(&bad), Some(&good), Some(&good), false),
        (None, Some(&good), Some(&bad), true),
        (None, Some(&bad), Some(&good), false),
        (None, None, Some(&good), true),
        (None, None, Some(&bad), false),
    ] {
        let header = header.map(|token| bearer(token));
        let subprotocol = subprotocol.map(|token| protocol(token));
        let query = query.map_or("session=demo".into(), |token| format!("session=demo&token={token}"));
        let headers: Vec<_> = [("authorization", &header), ("sec-websocket-protocol", &subprotocol)]
            .into_iter()
            .filter_map(|(name, value)| Some((name, value.as_deref()?)))
            .collect();
        match Client::open(ws_request(&server, &query, &headers)).await {
            Ok(client) => {
                assert!(admitted, "{headers:?}");
                let selected = client.response.headers().get("sec-websocket-protocol");
                assert_eq!(selected.is_some(), subprotocol.is_some());
                assert!(selected.is_none_or(|value| value == "stenocast.v1"));
            }
            Err(refusal) => assert!(!admitted && refusal.status == 403, "{refusal:?}"),
        }
    }
    server.stop().await;
}

#[actix::test]
async fn too_many_are_429_and_make_room_when_they_leave() {
    let server = TestServer::with(&[("WS_MAX_CLIENTS", "3"), ("WS_MAX_PER_SESSION", "2")]);
    let ask = |room: &str| ws_request(&server, &format!("session={room}&token={}", token(room)), &[]);
    let first = server.view("a", "").await;
    let _second = server.view("a", "").await;
    assert_eq!(Client::open(ask("a")).await.err().unwrap().status, 429, "the room is full");
    let _third = server.view("b", "").await;
    assert_eq!(Client::open(ask("c")).await.err().unwrap().status, 429, "the server is full");
    assert_eq!(server.state.viewers.len(), 3, "refusals leave nothing behind");
    drop(first);
    until("the first to leave", async || server.state.viewers.len() == 2).await;
    let _fourth = server.view("a", "").await;
    let refused = server.state.metrics.ws_refused_total.with_label_values(&["429"]).get();
    assert_eq!(refused, 2);
    server.stop().await;
}

#[actix::test]
async fn a_draining_server_refuses_with_503() {
    let server = TestServer::start();
    server.refuse_newcomers();
    let query = format!("session=demo&token={}", token("demo"));
    assert_eq!(refused(&server, &query, &[]).await, (503, "draining".into()));
    // A browser's EventSource would give up for good at a 503.
    let (status, events) = server.get(&format!("/api/realtime/events?{query}"), None).await;
    assert!(status == 200 && events.starts_with("retry: ") && events.contains("\"code\":1001"), "{status}: {events}");
    assert_eq!(server.post(Some(BROADCAST_TOKEN), "{}").await.0, 503);
    assert_eq!(server.get("/health", None).await.0, 503);
    server.stop().await;
}

#[actix::test]
async fn a_plain_get_is_told_to_upgrade() {
    let server = TestServer::start();
    let path = format!("/api/realtime/transcribe?session=demo&token={}", token("demo"));
    let answer = server.raw(&format!("GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")).await;
    assert!(answer.starts_with("http/1.1 426") && answer.contains("upgrade: websocket"), "{answer}");
    assert!(answer.contains("upgrade_required"), "{answer}");
    until("nobody counted", async || server.state.viewers.is_empty()).await;
    server.stop().await;
}
