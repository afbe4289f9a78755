//! A viewer that does not read, breaks the protocol or sends too much costs itself alone.

mod support;

use std::io::ErrorKind;
use std::sync::Arc;

use parking_lot::Mutex;
use serde_json::json;
use stenocast::transcript::{SpeakerSource, SpeakerUpdate};
use support::http::*;
use support::wait::{DEADLINE, until};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpSocket, TcpStream};
use tokio_tungstenite::tungstenite::Message;

/// A WebSocket by hand: the bytes after the upgrade are the test's.
async fn raw_socket(server: &TestServer, receive_buffer: Option<u32>) -> TcpStream {
    let socket = TcpSocket::new_v4().unwrap();
    if let Some(bytes) = receive_buffer {
        socket.set_recv_buffer_size(bytes).unwrap();
    }
    let mut stream = socket.connect(server.addr).await.unwrap();
    let request = format!(
        "GET /api/realtime/transcribe?session=demo&token={} HTTP/1.1\r\nHost: x\r\nConnection: upgrade\r\n\
         Upgrade: websocket\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n",
        token("demo")
    );
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut head = [0; 12];
    stream.read_exact(&mut head).await.unwrap();
    assert_eq!(&head, b"HTTP/1.1 101");
    stream
}

/// Reads until the server ends the connection; gives the bytes.
async fn read_to_end(stream: &mut TcpStream) -> Vec<u8> {
    let mut bytes = Vec::new();
    match tokio::time::timeout(DEADLINE, stream.read_to_end(&mut bytes)).await.expect("an end in time") {
        Ok(_) => bytes,
        Err(error) if error.kind() == ErrorKind::ConnectionReset => bytes,
        Err(error) => panic!("{error}"),
    }
}

fn resident_mib() -> f64 {
    let statm = std::fs::read_to_string("/proc/self/statm").unwrap();
    statm.split(' ').nth(1).unwrap().parse::<f64>().unwrap() * 4096.0 / 1048576.0
}

#[actix::test]
async fn viewers_that_never_read_are_cut_and_cost_no_memory() {
    // A healthy one must not look stuck because the machine is busy.
    let settings = [("WS_STALL_MS", "4000"), ("WS_PING_MS", "1000"), ("ROOM_HISTORY_BYTES", "1MiB")];
    let server = TestServer::with(&settings);
    let speech = server.begin("demo");
    let mut good = server.view("demo", "").await;
    good.next().await;
    let mut stuck = Vec::new();
    for _ in 0..20 {
        stuck.push(raw_socket(&server, Some(4096)).await);
    }
    until("all admitted", async || server.state.viewers.len() == 21).await;
    let before = resident_mib();
    let text = "x".repeat(2000);
    let mut said = 0u64;
    // 10 MB for each of them, as fast as the good one reads.
    while said < 5000 {
        for _ in 0..50 {
            said += 1;
            speech.publish_to_log_only(speech.line(&format!("u{said}"), Some(said), &text));
        }
        assert_eq!(good.seqs(50).await.last(), Some(&said));
    }
    let grown = resident_mib() - before;
    assert!(grown < 40.0, "20 stuck viewers of 10 MB each cost {grown:.1} MiB");
    // The good one goes on reading, or it would not answer pings.
    tokio::select! {
        () = until("the stuck ones cut", async || server.state.viewers.len() == 1) => {}
        said = good.next_or_close() => panic!("nothing is said, and the good one is not closed: {said:?}"),
    }
    speech.publish_to_log_only(speech.line("last", Some(said + 1), "last"));
    assert_eq!(good.seqs(1).await, [said + 1]);
    server.stop().await;
}

#[actix::test]
async fn a_viewer_cut_from_outside_is_counted() {
    // Its own ping timer would need a minute, and does not run anyway.
    let server = TestServer::with(&[("WS_STALL_MS", "300"), ("WS_PING_MS", "60000")]);
    let speech = server.begin("demo");
    let stuck = raw_socket(&server, Some(4096)).await;
    until("admitted", async || server.state.viewers.len() == 1).await;
    let text = "x".repeat(16_000);
    for n in 1..=1000 {
        speech.publish_to_log_only(speech.line(&format!("u{n}"), Some(n), &text));
        if server.state.viewers.is_empty() {
            break;
        }
        tokio::task::yield_now().await;
    }
    until("cut", async || server.state.viewers.is_empty()).await;
    assert_eq!(server.state.metrics.ws_closed_total.with_label_values(&["stalled"]).get(), 1);
    drop(stuck);
    server.stop().await;
}

#[actix::test]
async fn an_unmasked_frame_ends_the_connection() {
    let server = TestServer::start();
    let mut stream = raw_socket(&server, None).await;
    stream.write_all(&[0x81, 0x02, b'h', b'i']).await.unwrap();
    let bytes = read_to_end(&mut stream).await;
    assert!(bytes.windows(4).any(|w| w == [0x88, 0x1c, 0x03, 0xea]), "close frame 1002");
    until("gone", async || server.state.viewers.is_empty()).await;
    assert_eq!(server.state.metrics.ws_closed_total.with_label_values(&["1002"]).get(), 1, "one error, not a spin");
    server.stop().await;
}

#[actix::test]
async fn frames_that_are_too_large_end_the_connection() {
    let server = TestServer::start();
    let mut client = server.view("demo", "").await;
    client.next().await;
    client.send_raw(Message::text("x".repeat(16 * 1024 + 1))).await.unwrap();
    assert_eq!(u16::from(client.closed().await.code), 1009);
    // A frame that declares 1 TiB: refused long before it is whole. What still comes while the server lingers for the
    // peer to close (1 s) is read and thrown away.
    let before = resident_mib();
    let mut stream = raw_socket(&server, None).await;
    let mut header = vec![0x82, 0xff];
    header.extend_from_slice(&(1u64 << 40).to_be_bytes());
    header.extend_from_slice(&[0; 4]);
    stream.write_all(&header).await.unwrap();
    let flood = async { while stream.write_all(&[0; 65536]).await.is_ok() {} };
    tokio::time::timeout(DEADLINE, flood).await.expect("an end of the connection");
    let grown = resident_mib() - before;
    assert!(grown < 20.0, "the frame cost {grown:.1} MiB");
    assert_eq!(server.state.metrics.ws_closed_total.with_label_values(&["1009"]).get(), 2);
    until("gone", async || server.state.viewers.is_empty()).await;
    server.stop().await;
}

#[actix::test]
async fn nonsense_is_answered_and_a_flood_is_closed() {
    let server = TestServer::start();
    let mut client = server.view("demo", "").await;
    client.next().await;
    for bad in ["{", r#"{"type":"shout"}"#, r#"{"type":"active_speakers","speakers":[{"identity":""}]}"#] {
        client.send(bad).await;
        let answer = client.next().await;
        assert_eq!((answer["type"].as_str(), answer["code"].as_str()), (Some("error"), Some("bad_message")));
    }
    client.send_raw(Message::binary(vec![1, 2, 3])).await.unwrap();
    assert_eq!(client.next().await["code"], "bad_message");
    assert_eq!(server.state.metrics.ws_bad_messages_total.get(), 4);
    for _ in 0..200 {
        if client.send_raw(Message::text(r#"{"type":"active_speakers","speakers":[]}"#)).await.is_err() {
            break;
        }
    }
    assert_eq!(u16::from(client.closed().await.code), 1008);
    server.stop().await;
}

#[actix::test]
async fn speaker_reports_reach_the_room_with_their_source() {
    let server = TestServer::start();
    let heard: Arc<Mutex<Vec<SpeakerUpdate>>> = Arc::default();
    let sink = heard.clone();
    server.room("demo").set_speaker_sink(Some(Arc::new(move |update| sink.lock().push(update))));
    let mut client =
        Client::open(ws_request(&server, &format!("session=demo&token={}", room_admin("demo")), &[])).await.unwrap();
    client.next().await;
    let report = |speakers| json!({"type": "active_speakers", "at": 1, "speakers": speakers}).to_string();
    client.send(report(json!([{"identity": "anna", "level": 0.5}, {"identity": "ben", "level": 0.25}]))).await;
    client.send(report(json!([{"identity": "ben"}]))).await;
    until("four reports", async || heard.lock().len() == 4).await;
    let got: Vec<_> = heard.lock().iter().map(|u| (u.identity.clone(), u.name.clone(), u.active, u.level)).collect();
    let expected = [
        ("anna".to_owned(), None, true, 0.5),
        ("ben".to_owned(), None, true, 0.25),
        ("ben".to_owned(), None, true, 0.0),
        ("anna".to_owned(), None, false, 0.0),
    ];
    assert_eq!(got, expected);
    assert!(heard.lock().iter().all(|u| u.source == SpeakerSource::Viewer("boss".into())));
    server.stop().await;
}

/// Browsers send whom they hear, too; what they say of others is left out, and no error.
#[actix::test]
async fn nobody_speaks_for_others_without_being_a_rooms_admin() {
    let server = TestServer::start();
    let heard: Arc<Mutex<Vec<SpeakerUpdate>>> = Arc::default();
    let sink = heard.clone();
    server.room("demo").set_speaker_sink(Some(Arc::new(move |update| sink.lock().push(update))));
    let mut client = server.view("demo", "").await;
    client.next().await;
    let many: Vec<_> = (0..62).map(|n| json!({"identity": format!("p{n}"), "level": 1.0, "name": "Mallory"})).collect();
    let speakers = |more: &[serde_json::Value]| {
        let all = [many.as_slice(), more].concat();
        json!({"type": "active_speakers", "speakers": all}).to_string()
    };
    client.send(speakers(&[json!({"identity": "anna", "level": 0.5}), json!({"identity": "ANNA"})])).await;
    client.send(speakers(&[])).await;
    client.send(json!({"type": "active_speakers", "speakers": [{"identity": "anna", "level": 1e9}]}).to_string()).await;
    assert_eq!(client.next().await["code"], "bad_message", "an absurd level is refused");
    let anna = |name: Option<&str>, active| ("anna".to_owned(), name.map(str::to_owned), active);
    let got: Vec<_> = heard.lock().iter().map(|u| (u.identity.clone(), u.name.clone(), u.active)).collect();
    assert_eq!(got, [anna(Some("Anna"), true), anna(Some("Anna"), false)]);
    assert_eq!(server.state.metrics.speaker_reports_ignored_total.get(), 63 + 62);
    for _ in 0..1000 {
        if client.send_raw(Message::text(speakers(&[]))).await.is_err() {
            break;
        }
    }
    let closed = || server.state.metrics.ws_closed_total.with_label_values(&["1008"]).get();
    until("a thousand a second are too many", async || closed() == 1).await;
    assert_eq!(heard.lock().len(), 2);
    server.stop().await;
}

#[actix::test]
async fn an_expired_token_closes_4001_unless_it_was_renewed() {
    let server = TestServer::start();
    let speech = server.begin("demo");
    let exp = |ms: i64| (chrono::Utc::now().timestamp_millis() + ms).div_euclid(1000);
    let short = || {
        let video = json!({"roomJoin": true, "room": "demo"});
        token_with(SECRET, json!({"iss": KEY, "sub": "anna", "exp": exp(5000), "video": video}))
    };
    let query = |token: String| format!("session=demo&token={token}");
    let mut expiring = Client::open(ws_request(&server, &query(short()), &[])).await.unwrap();
    let mut renewing = Client::open(ws_request(&server, &query(short()), &[])).await.unwrap();
    expiring.next().await;
    renewing.next().await;
    for bad in [token("other"), token_of("ben", "demo"), "nonsense".to_owned()] {
        renewing.send(json!({"type": "auth", "token": bad}).to_string()).await;
        assert_eq!(renewing.next().await["code"], "token_refused");
    }
    renewing.send(json!({"type": "auth", "token": token("demo")}).to_string()).await;
    assert_eq!(u16::from(expiring.closed().await.code), 4001);
    speech.say(1);
    assert_eq!(renewing.seqs(1).await, [1]);
    server.stop().await;
}

#[actix::test]
async fn a_silent_viewer_is_let_go() {
    let server = TestServer::with(&[("WS_PING_MS", "100"), ("WS_STALL_MS", "60000")]);
    // Its 101 is the proof that it was there.
    let stream = raw_socket(&server, None).await;
    until("gone", async || server.state.viewers.is_empty()).await;
    assert_eq!(server.state.metrics.ws_closed_total.with_label_values(&["silent"]).get(), 1);
    drop(stream);
    server.stop().await;
}

#[actix::test]
async fn a_viewer_far_behind_the_ring_is_told_to_resume() {
    let server = TestServer::with(&[("ROOM_HISTORY", "10"), ("WS_STALL_MS", "60000"), ("WORKERS", "1")]);
    let speech = server.begin("demo");
    let mut client = server.view("demo", "").await;
    client.next().await;
    // Not read meanwhile: the socket fills, then the ring moves on.
    let text = "x".repeat(16_000);
    let mut last = 0;
    for n in 1..=2000 {
        speech.publish_to_log_only(speech.line(&format!("u{n}"), Some(n), &text));
        tokio::task::yield_now().await;
    }
    let close = loop {
        match client.next_or_close().await {
            Ok(entry) => {
                let seq = entry["seq"].as_u64().unwrap();
                assert_eq!(seq, last + 1, "no hole before the close");
                last = seq;
            }
            Err(close) => break close.expect("a close frame"),
        }
    };
    assert_eq!(u16::from(close.code), 4008);
    assert!(last < 2000);
    server.stop().await;
}
