//! How connections end: the encoder is told in a sentence that helps, the operator reads one line with peer, phase and
//! reason, and a metric counts it by reason.
//!
//! Reports: "connection closed" with nothing in any log, rtmps:// and browsers on the RTMP port, a load balancer's
//! PROXY header, players, keys pasted into the wrong field, encoders that are cut without a word.

use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::support::rtmp::Server;
use crate::support::rtmp_bytes::{connect, handshake, message, text};
use crate::support::server::Server as Program;
use crate::support::wait::{DEADLINE, until};

const NULL: &[u8] = &[5];
const NUMBER: &[u8] = &[0, 0x40, 0, 0, 0, 0, 0, 0, 0];

/// What a peer sends, whether behind a handshake, and what comes of it.
struct Case {
    what: &'static str,
    shakes_hands: bool,
    bytes: Vec<u8>,
    told: &'static str,
    /// Label of `rtmp_closed_total`, or of `rtmp_refused_total` where the publish was asked and refused.
    reason: &'static str,
    is_refusal: bool,
}

fn say(stream: u8, name: &str, values: &[&[u8]]) -> Vec<u8> {
    message(20, stream, &[&text(name)[..], NUMBER, &values.concat()].concat())
}

fn publish(app: Option<&str>, name: &str) -> Vec<u8> {
    let app = app.map(|app| [&[0, 3][..], b"app", &text(app)].concat()).unwrap_or_default();
    let object = [&[3][..], &app, &[0, 0, 9]].concat();
    let begin = [say(0, "connect", &[&object]), say(0, "createStream", &[NULL])].concat();
    [begin, say(1, "publish", &[NULL, &text(name), &text("live")])].concat()
}

fn cases() -> Vec<Case> {
    let stranger = |what, bytes: &[u8], told, reason| Case {
        what,
        shakes_hands: false,
        bytes: bytes.to_vec(),
        told,
        reason,
        is_refusal: false,
    };
    let ends =
        |what, bytes: Vec<u8>, told, reason| Case { what, shakes_hands: true, bytes, told, reason, is_refusal: false };
    let refused = |what, bytes: Vec<u8>, told, reason| Case { is_refusal: true, ..ends(what, bytes, told, reason) };
    let after = |bytes: Vec<u8>| [publish(Some("live"), "room"), bytes].concat();
    let deep = [&text("x")[..], &[3, 0, 1, b'a'].repeat(2000)].concat();
    let many = |range: std::ops::Range<u8>| -> Vec<u8> {
        range.flat_map(|stream| say(stream, "publish", &[NULL, &text("other"), &text("live")])).collect()
    };
    vec![
        stranger("TLS", b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", "\x15\x03\x01", "tls"),
        stranger("a browser", b"GET /live/room HTTP/1.1\r\nHost: x\r\n\r\n", "this port speaks RTMP", "http"),
        stranger("RTMPT", b"POST /open/1 HTTP/1.1\r\nHost: x\r\n\r\n", "HTTP/1.1 400", "http"),
        stranger("RTMPE", &[6; 1537], "", "rtmpe"),
        stranger("a balancer", b"PROXY TCP4 10.0.0.1 10.0.0.2 5 6\r\n\x03", "", "proxy_protocol"),
        stranger("SSH", b"SSH-2.0-OpenSSH_9.2\r\n", "", "handshake"),
        ends("a player", [connect(), say(1, "play", &[NULL, &text("room")])].concat(), "nothing to play", "play"),
        ends("a chunk of no message", vec![0xC5; 40], "the bytes are no RTMP chunks", "protocol"),
        ends("chunk size 0", message(1, 0, &[0; 4]), "chunk size 0; 1 to 2147483647 bytes", "protocol"),
        ends("nested AMF0", message(20, 0, &deep), "nested more than 16 deep", "command"),
        ends("a flood", say(0, "createStream", &[NULL]).repeat(1000), "512 commands", "flood"),
        ends("a flood later", after(say(0, "_checkbw", &[NULL]).repeat(1000)), "send audio, not commands", "flood"),
        ends("a long command", vec![3, 0, 0, 0, 0xFF, 0xFF, 0xFF, 20, 0, 0, 0, 0], "at most 65536", "too_long"),
        ends(
            "a long audio tag",
            after(vec![3, 0, 0, 0, 0xFF, 0xFF, 0xFF, 8, 1, 0, 0, 0]),
            "at most 262144",
            "too_long",
        ),
        ends("rooms without end", after(many(2..40)), "a connection for each room", "second_publish"),
        ends("Opus", after(message(8, 1, b"\x90Opus\x01")), "opus is not supported; send AAC", "unsupported_audio"),
        refused("no app", publish(None, "room"), "publish to rtmp://host/live/<room>", "app"),
        refused("another app", publish(Some("vod"), "room"), "publish to rtmp://host/live/<room>", "app"),
        refused("nested", publish(Some("live/a"), "room"), "a room's name has no slash", "app"),
        refused("no connect", say(1, "publish", &[NULL, &text("room")]), "publish to rtmp://host/live/<room>", "app"),
        refused("empty key", publish(Some("live"), ""), "the room name is empty", "slug"),
        refused("a key for another server", publish(Some("live"), "a b"), "only A-Z a-z 0-9", "slug"),
        refused("no name at all", [connect(), say(1, "publish", &[])].concat(), "the room name is empty", "slug"),
    ]
}

/// Everything up to the end of the connection.
async fn rest(mut socket: TcpStream) -> Vec<u8> {
    let mut bytes = Vec::new();
    // A reset is an end, too.
    let _ = tokio::time::timeout(DEADLINE, socket.read_to_end(&mut bytes)).await.expect("the server closes");
    bytes
}

async fn send(server: std::net::SocketAddr, case: &Case) -> Vec<u8> {
    let mut socket = match case.shakes_hands {
        true => handshake(server).await,
        false => TcpStream::connect(server).await.unwrap(),
    };
    let _ = socket.write_all(&case.bytes).await;
    rest(socket).await
}

fn contains(bytes: &[u8], text: &str) -> bool {
    text.is_empty() || bytes.windows(text.len()).any(|part| part == text.as_bytes())
}

#[actix::test]
async fn each_is_told_and_counted_by_its_reason() {
    let server = Server::start(&[]);
    for case in cases() {
        let series =
            if case.is_refusal { &server.metrics.rtmp_refused_total } else { &server.metrics.rtmp_closed_total };
        let counter = series.with_label_values(&[case.reason]);
        let before = counter.get();
        let answer = send(server.address, &case).await;
        assert!(contains(&answer, case.told), "{}: {}", case.what, String::from_utf8_lossy(&answer));
        until(case.what, async || counter.get() == before + 1).await;
    }
}

/// The lines of the log about ends.
fn ends(server: &Program) -> Vec<Value> {
    let events = server.log().lines().filter_map(|line| serde_json::from_str(line).ok()).collect::<Vec<Value>>();
    events.into_iter().filter(|event| event["message"] == "rtmp connection ended").collect()
}

#[actix::test]
async fn each_is_one_line_for_the_operator_and_a_flood_of_them_is_cut() {
    let dir = tempfile::tempdir().unwrap();
    let server = Program::start(dir.path(), &[("RTMP_HANDSHAKE_TIMEOUT_MS", "3000")]).await;
    let cases = cases();
    for (n, case) in cases.iter().enumerate() {
        send(server.rtmp, case).await;
        let line = until(case.what, async || ends(&server).get(n).cloned()).await;
        assert_eq!((&line["level"], &line["reason"]), (&json!("INFO"), &json!(case.reason)), "{}: {line}", case.what);
        assert!(line["peer"].as_str().unwrap().starts_with("127.0.0.1:") && line["phase"].is_string(), "{line}");
    }
    // Who connects and says nothing.
    rest(TcpStream::connect(server.rtmp).await.unwrap()).await;
    let line = until("a silent peer", async || ends(&server).get(cases.len()).cloned()).await;
    assert_eq!((&line["phase"], &line["error"]), (&json!("handshake"), &json!("no RTMP handshake within 3000 ms")));
    // Nothing is left out of the count: what is not written is said with a later line.
    let left_out = || ends(&server).iter().filter_map(|line| line["suppressed"].as_u64()).sum::<u64>() as usize;
    let mut opened = 0;
    let flood = async || {
        drop(TcpStream::connect(server.rtmp).await.unwrap());
        opened += 1;
        left_out() > 0
    };
    until("a flood is cut", flood).await;
    let lines = ends(&server).len() - cases.len() - 1;
    assert!(lines + left_out() <= opened && lines < opened, "{lines} lines for {opened} connections");
}

/// It is read all the same, up to a limit; waiting for it would end it as one that sends nothing.
#[actix::test]
async fn a_peer_that_reads_no_answers_is_told_apart_from_one_that_sends_nothing() {
    let server = Server::start(&[]);
    let mut socket = handshake(server.address).await;
    socket.write_all(&publish(Some("live"), "room")).await.unwrap();
    let pings = message(4, 0, &[0, 6, 0, 0, 0, 1]).repeat(1000);
    let flood = async { while socket.write_all(&pings).await.is_ok() {} };
    tokio::time::timeout(DEADLINE, flood).await.expect("the server closes");
    assert_eq!(server.metrics.rtmp_closed_total.with_label_values(&["socket"]).get(), 1);
}
