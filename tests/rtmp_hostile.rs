//! What strangers send costs their own connection and nothing else.

mod support;

use stenocast::actors::supervision::Exit;
use stenocast::actors::supervision::Observe;
use support::pace::Pace;
use support::rtmp::*;
use support::rtmp_bytes::{connect, handshake, message, publish, text};
use support::wait::{DEADLINE, until};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

/// Everything up to the end of the connection.
async fn rest(mut socket: TcpStream) -> Vec<u8> {
    let mut bytes = Vec::new();
    // A reset is an end, too.
    let _ = tokio::time::timeout(DEADLINE, socket.read_to_end(&mut bytes)).await.expect("the server closes");
    bytes
}

fn contains(bytes: &[u8], text: &str) -> bool {
    bytes.windows(text.len()).any(|part| part == text.as_bytes())
}

#[actix::test]
async fn hostile_bytes_leave_the_others_alone() {
    let server = Server::start(&[]);
    let (clip_name, url) = ("audio_aac44s.flv", server.url("live/good"));
    let publisher = actix_rt::spawn(async move { publish_ffmpeg(&url, clip_name).await });
    let deep = [3, 0, 1, b'a'].repeat(2000);
    let attacks: Vec<Vec<u8>> = vec![
        message(20, 0, &text("x")),
        message(20, 0, &deep),
        message(17, 0, &deep),
        [publish("bad"), message(18, 1, &text("@setDataFrame")), vec![0xFF; 4000]].concat(),
        vec![3, 0, 0, 0, 0xFF, 0xFF, 0xFF, 20, 0, 0, 0, 0],
        vec![0xC5; 100],
        message(1, 0, &[0; 4]),
        (0..u8::MAX).cycle().take(100_000).collect(),
    ];
    for attack in &attacks {
        let mut socket = handshake(server.address).await;
        let _ = socket.write_all(attack).await;
        let _ = socket.shutdown().await;
        rest(socket).await;
    }
    for garbage in [&b"GET / HTTP/1.1\r\n\r\n"[..], &[0; 5000], &[3], &[]] {
        let mut socket = TcpStream::connect(server.address).await.unwrap();
        let _ = socket.write_all(garbage).await;
        let _ = socket.shutdown().await;
        rest(socket).await;
    }
    assert!(publisher.await.unwrap().success);
    let good = || server.seen.lock().connection_exits.iter().any(|(s, e)| s == "good" && *e == Exit::Normal);
    until("the good publisher's end", async || good()).await;
    let ends = server.seen.lock().connection_exits.len();
    server.flushed(ends).await;
    // The resampler's last sample depends on its rounding.
    let heard = server.seen.lock().sessions["good"].pcm().len();
    assert!(heard.abs_diff(reference_length(clip_name)) <= 1, "{heard} samples");
    assert!(server.seen.lock().decoder_exits.is_empty());
    until("all connections are closed", async || server.metrics.rtmp_connections.get() == 0).await;
    assert_eq!(
        serde_json::to_value(server.listener.send(Observe::default()).await.unwrap()).unwrap()["accepting"],
        true
    );
}

/// 517 frames of 1024 samples at 44.1 kHz.
fn reference_length(clip_name: &str) -> usize {
    ((tags(clip_name).len() - 1) as f64 * 1024.0 * 16_000.0 / 44_100.0).round() as usize
}

#[actix::test]
async fn a_pipelining_client_is_served_as_any_other() {
    let server = Server::start(&[]);
    let mut socket = TcpStream::connect(server.address).await.unwrap();
    let mut hello = vec![1; 1 + 1536 + 1536];
    hello[0] = 3;
    socket.write_all(&[hello, publish("pipe")].concat()).await.unwrap();
    until("the publish", async || server.seen.lock().sessions.contains_key("pipe")).await;
    socket.shutdown().await.unwrap();
    assert!(contains(&rest(socket).await, "NetStream.Publish.Start"));
    server.flushed(1).await;
    assert_eq!(server.seen.lock().connection_exits, [("pipe".to_owned(), Exit::Normal)]);
}

/// Its one connection was closed for this reason, which is a fault of the publisher's.
fn closed_for(server: &Server, label: &str) {
    assert_eq!(server.metrics.rtmp_closed_total.with_label_values(&[label]).get(), 1, "{label}");
    let exits = server.seen.lock().connection_exits.clone();
    assert!(exits.iter().all(|(_, exit)| matches!(exit, Exit::Failed(_))), "{exits:?}");
}

#[actix::test]
async fn who_says_nothing_is_not_waited_for() {
    // One limit at a time, and room for the others: a busy machine is late for all of them.
    let server = Server::start(&[("RTMP_HANDSHAKE_TIMEOUT_MS", "300")]);
    rest(TcpStream::connect(server.address).await.unwrap()).await;
    closed_for(&server, "handshake_timeout");

    let server = Server::start(&[("RTMP_PUBLISH_TIMEOUT_MS", "300")]);
    let mut socket = handshake(server.address).await;
    socket.write_all(&connect()).await.unwrap();
    rest(socket).await;
    closed_for(&server, "publish_timeout");

    let server = Server::start(&[("RTMP_IDLE_TIMEOUT_MS", "300")]);
    let mut socket = handshake(server.address).await;
    socket.write_all(&publish("idle")).await.unwrap();
    assert!(contains(&rest(socket).await, "sent nothing for 300 ms"));
    closed_for(&server, "idle");

    // Video alone keeps the socket busy, but it is no publisher of ours.
    let server = Server::start(&[("RTMP_FIRST_AUDIO_TIMEOUT_MS", "300")]);
    let mut socket = handshake(server.address).await;
    socket.write_all(&publish("mute")).await.unwrap();
    let (mut reading, mut writing) = socket.into_split();
    let video = actix_rt::spawn(async move {
        let pace = Pace::begin();
        for n in 1u64.. {
            if writing.write_all(&message(9, 1, &[7; 100])).await.is_err() {
                break;
            }
            pace.reaches(n * 20).await;
        }
    });
    let mut answer = Vec::new();
    let _ = tokio::time::timeout(DEADLINE, reading.read_to_end(&mut answer)).await.expect("the server closes");
    assert!(contains(&answer, "no audio within 300 ms"));
    closed_for(&server, "no_audio");
    video.abort();
}

#[actix::test]
async fn audio_that_nobody_decodes_is_refused_by_name() {
    let server = Server::start(&[]);
    let opus = [&[0x90][..], b"Opus", &[1, 2, 3]].concat();
    let eld = [0xAF, 0, 0xF8, 0xE6, 0x40].to_vec();
    for (name, body, word, label) in
        [("opus", opus, "audio codec opus is not supported", "opus"), ("eld", eld, "object type 39", "aac-eld")]
    {
        let mut socket = handshake(server.address).await;
        socket.write_all(&[publish(name), message(8, 1, &body)].concat()).await.unwrap();
        let answer = rest(socket).await;
        assert!(contains(&answer, "NetStream.Publish.BadName") && contains(&answer, word), "{name}");
        assert_eq!(server.metrics.unsupported_audio_total.with_label_values(&[label]).get(), 1);
    }
    assert_eq!(server.metrics.ffmpeg_starts_total.get(), 0);
}

#[actix::test]
async fn connections_are_limited_by_address() {
    let server = Server::start(&[("RTMP_MAX_PER_IP", "3")]);
    let mut open = Vec::new();
    for _ in 0..3 {
        open.push(handshake(server.address).await);
    }
    assert!(rest(TcpStream::connect(server.address).await.unwrap()).await.is_empty());
    let refused = server.metrics.rtmp_refused_total.with_label_values(&["connections_per_ip"]);
    assert_eq!(refused.get(), 1);
    open.pop();
    until("the place is free", async || server.metrics.rtmp_connections.get() == 2).await;
    handshake(server.address).await;
}
