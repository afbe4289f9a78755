//! What browsers, proxies, scripts and monitoring send to the HTTP port, which is right or nearly right: fragments, tokens
//! as they stand in a header, methods of probes, numbers of JavaScript.

use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::support::http::{BROADCAST_TOKEN, Client, TestServer, token, ws_request};
use crate::support::wait::{DEADLINE, until};

const FIN: u8 = 0x80;
const CONTINUATION: u8 = 0;
const TEXT: u8 = 1;
const BINARY: u8 = 2;
const PING: u8 = 9;
/// A message that the server answers.
const ASK: &[u8] = br#"{"type":"ping"}"#;

enum Answer {
    Ping,
    Error,
    Close(u16),
}

/// Frames of a viewer, and what the server says to them.
fn conversations() -> Vec<(&'static str, Vec<Vec<u8>>, Answer)> {
    let text = |part: &[u8]| frame(TEXT, part);
    let more = |part: &[u8]| frame(CONTINUATION, part);
    let last = |part: &[u8]| frame(FIN | CONTINUATION, part);
    let bytewise = || {
        let parts = ASK.iter().enumerate().map(|(n, byte)| frame(if n == 0 { TEXT } else { CONTINUATION }, &[*byte]));
        parts.chain([last(b"")]).collect()
    };
    let many = || {
        let parts = (0..1000).map(|_| more(b" "));
        [text(b"")].into_iter().chain(parts).chain([last(ASK)]).collect()
    };
    let rsv = || {
        let mut odd = frame(FIN | TEXT, ASK);
        odd[0] |= 0x40;
        vec![odd]
    };
    let unmasked = || vec![[&[FIN | TEXT, ASK.len() as u8], ASK].concat()];
    vec![
        ("whole", vec![frame(FIN | TEXT, ASK)], Answer::Ping),
        ("two parts", vec![text(&ASK[..7]), last(&ASK[7..])], Answer::Ping),
        ("a byte a frame", bytewise(), Answer::Ping),
        ("a thousand parts", many(), Answer::Ping),
        ("empty parts", vec![text(b""), more(b""), more(ASK), last(b"")], Answer::Ping),
        ("a ping in between", vec![text(&ASK[..3]), frame(FIN | PING, b"x"), last(&ASK[3..])], Answer::Ping),
        ("parts that say nothing", vec![text(b"{"), last(b"}")], Answer::Error),
        ("binary", vec![frame(FIN | BINARY, ASK)], Answer::Error),
        ("binary in parts", vec![frame(BINARY, ASK), last(b"")], Answer::Error),
        ("no UTF-8", vec![frame(FIN | TEXT, b"\xff\xfe")], Answer::Close(1007)),
        ("a torn character", vec![frame(FIN | TEXT, b"\xe2\x82")], Answer::Close(1007)),
        ("no UTF-8 in parts", vec![text(b"\"\xe2"), last(b"\"")], Answer::Close(1007)),
        ("a surrogate", vec![frame(FIN | TEXT, b"\xed\xa0\x80")], Answer::Close(1007)),
        ("too big", vec![frame(FIN | TEXT, &[b'x'; 16 * 1024 + 1])], Answer::Close(1009)),
        ("too big in parts", vec![text(&[b'x'; 16_000]), last(&[b'x'; 385])], Answer::Close(1009)),
        (
            "parts without end",
            (0..30_000).map(|n| if n == 0 { text(b"") } else { more(b"") }).collect(),
            Answer::Close(1009),
        ),
        ("unmasked", unmasked(), Answer::Close(1002)),
        ("reserved bits", rsv(), Answer::Close(1002)),
        ("an unknown opcode", vec![frame(FIN | 3, ASK)], Answer::Close(1002)),
        ("a part without a first one", vec![last(ASK)], Answer::Close(1002)),
        ("a text within a text", vec![text(b"{"), frame(FIN | TEXT, ASK)], Answer::Close(1002)),
        ("a ping in parts", vec![frame(PING, b"x")], Answer::Close(1002)),
        ("a long ping", vec![frame(FIN | PING, &[0; 126])], Answer::Close(1002)),
    ]
}

/// A masked frame.
fn frame(head: u8, payload: &[u8]) -> Vec<u8> {
    let mut bytes = vec![head];
    match payload.len() {
        n @ 0..=125 => bytes.push(0x80 | n as u8),
        n => {
            bytes.push(0x80 | 126);
            bytes.extend_from_slice(&(n as u16).to_be_bytes());
        }
    }
    let mask = [1, 2, 3, 4];
    bytes.extend_from_slice(&mask);
    bytes.extend(payload.iter().zip(mask.iter().cycle()).map(|(byte, mask)| byte ^ mask));
    bytes
}

/// A WebSocket by hand, behind its hello.
async fn open(server: &TestServer) -> TcpStream {
    let mut stream = TcpStream::connect(server.addr).await.unwrap();
    let request = format!(
        "GET /api/realtime/transcribe?session=demo&token={} HTTP/1.1\r\nHost: x\r\nConnection: keep-alive, Upgrade\r\n\
         Upgrade: websocket\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\
         Sec-WebSocket-Extensions: permessage-deflate; client_max_window_bits\r\nOrigin: null\r\n\
         Sec-WebSocket-Protocol: other\r\nSec-WebSocket-Protocol: stenocast.v1\r\n\r\n",
        token("demo")
    );
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(stream.read_u8().await.unwrap());
    }
    let head = String::from_utf8(head).unwrap().to_lowercase();
    assert!(head.starts_with("http/1.1 101") && !head.contains("sec-websocket-extensions"), "{head}");
    assert!(head.contains("sec-websocket-protocol: stenocast.v1"), "of the second line: {head}");
    let (_, hello) = read_frame(&mut stream, "hello").await;
    assert!(hello.starts_with(b"{\"type\":\"hello\""));
    stream
}

/// Opcode and payload of the next frame that is no ping or pong.
async fn read_frame(stream: &mut (impl AsyncReadExt + Unpin), name: &str) -> (u8, Vec<u8>) {
    let read = async {
        loop {
            let opcode = stream.read_u8().await.unwrap() & 0x0f;
            let length = match stream.read_u8().await.unwrap() {
                126 => stream.read_u16().await.unwrap().into(),
                length => usize::from(length),
            };
            let mut payload = vec![0; length];
            stream.read_exact(&mut payload).await.unwrap();
            if opcode <= 8 {
                return (opcode, payload);
            }
        }
    };
    tokio::time::timeout(DEADLINE, read).await.unwrap_or_else(|_| panic!("{name}: no answer"))
}

#[actix::test]
async fn messages_in_one_frame_or_many_are_understood_or_refused_by_the_book() {
    let server = TestServer::start();
    for (name, frames, answer) in conversations() {
        let mut stream = open(&server).await;
        let (mut reads, mut writes) = stream.split();
        // A server that has had enough closes while the rest is still being sent.
        let bytes = frames.concat();
        let send = async { writes.write_all(&bytes).await.unwrap_or(()) };
        let ((), (opcode, payload)) = tokio::join!(send, read_frame(&mut reads, name));
        match answer {
            Answer::Close(code) => {
                assert_eq!((opcode, payload.get(..2)), (8, Some(&code.to_be_bytes()[..])), "{name}: {payload:?}");
            }
            Answer::Ping | Answer::Error => {
                let message: Value = serde_json::from_slice(&payload).unwrap_or_else(|_| panic!("{name}: {payload:?}"));
                let expected = if matches!(answer, Answer::Ping) { "ping" } else { "error" };
                assert_eq!(message["type"], expected, "{name}");
            }
        }
    }
    until("gone", async || server.state.viewers.is_empty()).await;
    server.stop().await;
}

#[actix::test]
async fn queries_and_tokens_as_people_write_them_are_read() {
    let server = TestServer::start();
    let speech = server.begin("demo");
    speech.say(3);
    let (good, other) = (token("demo"), token("other"));
    let epoch = speech.epoch().to_string();
    let upper = epoch.to_uppercase();
    // (query, status; for an admitted one whether it is recovered and the first number that comes)
    for (query, expected) in [
        (format!("session=demo&token={good}"), Ok((true, 1))),
        (format!("session=demo&token=Bearer%20{good}"), Ok((true, 1))),
        (format!("session=demo&token=bearer+{good}"), Ok((true, 1))),
        (format!("session=demo&token=%20{good}%0A"), Ok((true, 1))),
        (format!("session=demo&token=&token={good}"), Ok((true, 1))),
        (format!("session=demo&session=other&token={good}&token={other}"), Ok((true, 1))),
        (format!("&&session=demo&after=&epoch=&token={good}&unknown"), Ok((true, 1))),
        (format!("session=d%65mo&token={good}&after=2"), Ok((true, 3))),
        (format!("session=demo&token={good}&after=1&epoch={upper}"), Ok((true, 2))),
        (format!("session=demo&token={good}&after=99&epoch={epoch}"), Ok((false, 1))),
        (format!("session=demo&token={good}&after=-1"), Err(400)),
        (format!("session=demo&token={good}&after=1.5"), Err(400)),
        (format!("session=demo&token={good}&epoch=latest"), Err(400)),
        (format!("session=demo%2Fx&token={good}"), Err(400)),
        ("session=demo&token=Bearer".to_owned(), Err(401)),
        ("session=demo".to_owned(), Err(401)),
        (format!("session=demo&token={other}"), Err(403)),
    ] {
        match (Client::open(ws_request(&server, &query, &[])).await, expected) {
            (Ok(mut client), Ok((recovered, first))) => {
                assert_eq!(client.next().await["recovered"], recovered, "{query}");
                assert_eq!(client.next().await["seq"], first, "{query}");
            }
            (Err(refusal), Err(status)) => assert_eq!(refusal.status, status, "{query}: {}", refusal.message),
            (opened, expected) => panic!("{query}: {expected:?}, admitted: {}", opened.is_ok()),
        }
    }
    for protocols in [format!("stenocast.v1, bearer.{good}"), format!("bearer.{good},stenocast.v1")] {
        let mut request = ws_request(&server, "session=demo", &[("authorization", "Basic dXNlcjpwYXNz")]);
        request.headers_mut().insert("sec-websocket-protocol", protocols.parse().unwrap());
        let mut client = Client::open(request).await.unwrap();
        assert_eq!(client.response.headers()["sec-websocket-protocol"], "stenocast.v1");
        client.next().await;
    }
    server.stop().await;
}

#[actix::test]
async fn probes_proxies_and_old_clients_are_answered() {
    let server = TestServer::with(&[("BASE_PATH", "captions/")]);
    let rest = "Host: x\r\nConnection: close\r\n\r\n";
    // (request line, status, a header)
    for (line, status, header) in [
        ("GET /health HTTP/1.0", "200 ok", ""),
        ("GET //health HTTP/1.1", "200 ok", ""),
        ("GET /health/ HTTP/1.1", "200 ok", ""),
        ("GET /captions/health HTTP/1.1", "200 ok", ""),
        ("GET /captions//health/ HTTP/1.1", "200 ok", ""),
        ("HEAD /health HTTP/1.1", "200 ok", ""),
        ("HEAD / HTTP/1.0", "200 ok", "content-type: text/html"),
        ("GET /captions/ HTTP/1.1", "200 ok", "content-type: text/html"),
        ("GET /captions/captions.js HTTP/1.1", "200 ok", "content-type: text/javascript"),
        ("GET /captions?session=demo HTTP/1.1", "308 ", "location: /captions/?session=demo"),
        ("GET /captionsx HTTP/1.1", "404 ", ""),
        ("HEAD /api/realtime/events HTTP/1.1", "405 ", "allow: get\r\n"),
        ("POST /api/realtime/transcribe HTTP/1.1", "405 ", "allow: get\r\n"),
        ("DELETE /api/sessions HTTP/1.1", "405 ", "allow: get, head"),
        ("PUT / HTTP/1.1", "405 ", "allow: get, head"),
        ("GET /api/realtime/transcribe/broadcast HTTP/1.1", "405 ", "allow: post"),
        ("GET /drill HTTP/1.1", "405 ", "allow: post"),
        ("OPTIONS /api/sessions HTTP/1.1", "204 ", "allow: get, head"),
        ("GET /api/realtime/transcribe?session=demo HTTP/1.1", "401 ", "www-authenticate: bearer"),
        ("TRACE /health HTTP/1.1", "405 ", "allow: get, head"),
    ] {
        let answer = server.raw(&format!("{line}\r\n{rest}")).await;
        let first = answer.lines().next().unwrap_or_default();
        assert!(
            first.split_once(' ').is_some_and(|(_, rest)| format!("{rest} ").starts_with(status)),
            "{line}: {answer}"
        );
        assert!(answer.contains(header), "{line}: {answer}");
        assert!(!line.starts_with("HEAD") || answer.ends_with("\r\n\r\n"), "{line}: {answer}");
    }
    server.stop().await;
}

#[actix::test]
async fn a_configured_origin_may_send_the_headers_of_its_tracing() {
    let server = TestServer::with(&[("CORS_ORIGINS", "https://app.example")]);
    let preflight = |origin: &str, headers: &str| {
        format!(
            "OPTIONS /api/realtime/events HTTP/1.1\r\nHost: x\r\nConnection: close\r\nOrigin: {origin}\r\n\
             Access-Control-Request-Method: GET\r\nAccess-Control-Request-Headers: {headers}\r\n\r\n"
        )
    };
    for header in
        ["authorization", "traceparent", "tracestate", "baggage", "sentry-trace", "x-request-id", "x-b3-traceid"]
    {
        let answer = server.raw(&preflight("https://app.example", &format!("authorization,{header}"))).await;
        assert!(answer.starts_with("http/1.1 200"), "{header}: {answer}");
        let allowed = answer.lines().find_map(|line| line.strip_prefix("access-control-allow-headers: ")).unwrap();
        assert!(allowed.split(',').any(|one| one.trim() == header), "{header}: {answer}");
        assert!(answer.contains("access-control-allow-origin: https://app.example"), "{answer}");
    }
    for origin in ["null", "https://evil.example", "https://app.example.evil", "http://app.example"] {
        let answer = server.raw(&preflight(origin, "authorization")).await;
        assert!(!answer.contains("access-control-allow-origin"), "{origin}: {answer}");
    }
    server.stop().await;
    let closed = TestServer::start();
    let answer = closed.raw(&preflight("https://app.example", "authorization")).await;
    assert!(answer.starts_with("http/1.1 204") && !answer.contains("access-control"), "{answer}");
    closed.stop().await;
}

#[actix::test]
async fn a_whole_number_is_one_however_it_is_written() {
    let server = TestServer::start();
    for (number, taken) in [
        ("508", true),
        ("508.0", true),
        ("5e2", true),
        ("5.08E2", true),
        ("-0", true),
        ("0.0", true),
        ("9007199254740991", true),
        ("508.5", false),
        ("-1", false),
        ("-1.0", false),
        ("1e300", false),
        ("9007199254740993", false),
        ("\"508\"", false),
        ("true", false),
    ] {
        let body = format!(
            r#"{{"session":"demo","transcript":{{"id":"a","isFinal":true,"text":"x","startMs":{number},"endMs":9007199254740991}}}}"#
        );
        let (status, answer) = server.post(Some(BROADCAST_TOKEN), body).await;
        assert_eq!(status, if taken { 202 } else { 422 }, "{number}: {answer}");
        if number == "508.5" {
            let message = answer["error"]["message"].as_str().unwrap();
            assert!(message.contains("transcript.startMs") && message.contains("508.5"), "{message}");
        }
    }
    let mut client = server.view("demo", "").await;
    client.next().await;
    for report in [
        r#"{"type":"active_speakers","at":1.7e12,"speakers":[{"identity":"anna","level":1,"name":null}]}"#,
        r#"{"type":"active_speakers","at":null,"speakers":[{"identity":"anna","level":null}]}"#,
        r#"{"type":"active_speakers","at":1700000000000.5,"speakers":[{"identity":"anna","level":1e0}]}"#,
    ] {
        client.send(report).await;
    }
    client.send(json!({"type": "ping"}).to_string()).await;
    assert_eq!(client.next_or_ping().await.unwrap()["type"], "ping", "no report was complained about");
    server.stop().await;
}
