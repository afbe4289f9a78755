//! What comes in broken, hostile or not at all costs its sender and nobody else, and is said plainly: through the real
//! server, with a session beside it that must not notice.

mod support;

use support::app::TestApp;
use support::chaos_proxy::ChaosProxy;
use support::postgres;
use support::publisher::{ffmpeg, marked_audio, publish, write_wav};
use support::rtmp_bytes as rtmp;
use support::stt::marker_service;
use support::viewer::{Viewer, assert_contiguous, finals};
use support::wait::{DEADLINE, until};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

const MARKERS: std::ops::RangeInclusive<u32> = 1..=6;

fn expected() -> Vec<String> {
    MARKERS.map(|n| format!("marker {n}")).collect()
}

fn audio(server: &TestApp) -> std::path::PathBuf {
    let path = server.dir.path().join("marked.wav");
    write_wav(&path, &marked_audio(MARKERS, 700));
    path
}

/// Sends the bytes and reads what the server says until it closes.
async fn exchange(mut socket: TcpStream, bytes: &[u8]) -> Vec<u8> {
    let _ = socket.write_all(bytes).await;
    let mut answer = Vec::new();
    // A reset is an end, too.
    let _ = tokio::time::timeout(DEADLINE, socket.read_to_end(&mut answer)).await.expect("the server closes");
    answer
}

#[actix::test]
async fn hostile_rtmp_bytes_do_not_disturb_another_session() {
    let stt = marker_service().await;
    let limits = [("RTMP_HANDSHAKE_TIMEOUT_MS", "2000"), ("RTMP_PUBLISH_TIMEOUT_MS", "2000")];
    let idle = [("RTMP_IDLE_TIMEOUT_MS", "8000"), ("GLADIA_API_URL", stt.url.as_str())];
    let server = TestApp::start(&[limits, idle].concat()).await;
    let mut viewer = Viewer::join(&server, "good").await;
    let publisher = ffmpeg(&audio(&server), &server.rtmp_url("good"), true);
    viewer.until("the first final", |seen| finals(seen).len() == 1).await;
    let deep_objects = [3, 0, 1, b'a'].repeat(20_000);
    let deep_arrays = [10, 0, 0, 0, 1].repeat(20_000);
    let attacks: Vec<Vec<u8>> = vec![
        rtmp::message(20, 0, &rtmp::text("x")),
        rtmp::message(20, 0, &[rtmp::text("connect"), deep_objects.clone()].concat()),
        rtmp::message(17, 0, &[vec![0], deep_arrays].concat()),
        [rtmp::publish("bad"), rtmp::message(18, 1, &[rtmp::text("@setDataFrame"), deep_objects].concat())].concat(),
        // A message of 16 MiB is announced.
        vec![3, 0, 0, 0, 0xFF, 0xFF, 0xFF, 20, 0, 0, 0, 0],
        // A continuation of nothing; chunk size 0; abort of a stream that is not there.
        vec![0xC5; 100],
        rtmp::message(1, 0, &[0; 4]),
        rtmp::message(1, 0, &[0x80, 0, 0, 0]),
        rtmp::message(2, 0, &[0xFF; 4]),
        (0..u8::MAX).cycle().take(100_000).collect(),
    ];
    for attack in &attacks {
        let socket = rtmp::handshake(server.app.rtmp_addr().unwrap()).await;
        exchange(socket, attack).await;
    }
    for garbage in [&b"GET / HTTP/1.1\r\n\r\n"[..], &[0; 5000], &[3], &[0x16, 3, 1, 2, 0]] {
        let socket = TcpStream::connect(server.app.rtmp_addr().unwrap()).await.unwrap();
        exchange(socket, garbage).await;
    }
    assert!(publisher.wait_with_output().await.unwrap().status.success(), "the publisher noticed");
    server.end("good").await;
    viewer.until_ended().await;
    assert_eq!(viewer.finals(), expected());
    assert_contiguous(&viewer.seqs(), 1);
    assert_eq!(server.app.metrics().lost_audio_ms(), 0);
    let metrics = server.app.metrics().encode();
    let panics = metrics.lines().filter(|line| line.starts_with("stenocast_actor_panics_total{"));
    let panics: Vec<_> = panics.filter(|line| !line.ends_with(" 0")).collect();
    assert_eq!(panics, Vec::<&str>::new());
    until("all connections are closed", async || server.app.metrics().rtmp_connections.get() == 0).await;
    server.stop().await;
}

#[actix::test]
async fn audio_that_nobody_decodes_is_refused_by_name_and_the_room_is_free_for_the_next() {
    let stt = marker_service().await;
    let server = TestApp::start(&[("GLADIA_API_URL", &stt.url)]).await;
    let mut viewer = Viewer::join(&server, "codec").await;
    let opus = [&[0x90][..], b"Opus", &[1, 2, 3]].concat();
    let socket = rtmp::handshake(server.app.rtmp_addr().unwrap()).await;
    let bytes = [rtmp::publish("codec"), rtmp::message(8, 1, &opus)].concat();
    let answer = String::from_utf8_lossy(&exchange(socket, &bytes).await).into_owned();
    assert!(answer.contains("NetStream.Publish.BadName"), "{answer}");
    assert!(answer.contains("audio codec opus is not supported"), "{answer}");
    let metrics = server.app.metrics();
    assert_eq!(metrics.unsupported_audio_total.with_label_values(&["opus"]).get(), 1);
    assert_eq!(metrics.ffmpeg_starts_total.get(), 0);
    publish(&audio(&server), &server.rtmp_url("codec"), false).await;
    server.end("codec").await;
    viewer.until_ended().await;
    assert_eq!(viewer.finals(), expected());
    server.stop().await;
}

#[actix::test]
async fn without_postgres_it_starts_degraded_spills_says_so_and_drains() {
    let stt = marker_service().await;
    let database = postgres::cluster().fresh_database().await;
    let proxy = ChaosProxy::start(database.addr).await;
    proxy.break_off();
    let url = database.url_at(proxy.addr);
    let server = TestApp::start(&[("GLADIA_API_URL", &stt.url), ("DATABASE_URL", &url)]).await;
    assert!(server.app.storage().degraded.is_some());
    assert_eq!(server.app.metrics().database_up.get(), 0);
    let health = get(&server, "/health", "").await;
    assert!(health.starts_with("HTTP/1.1 200"), "{health}");
    assert!(health.contains(r#""status":"degraded""#) && health.contains(r#""database":"down""#), "{health}");
    assert!(!health.contains("test-password"));

    let mut viewer = Viewer::join(&server, "spill").await;
    publish(&audio(&server), &server.rtmp_url("spill"), false).await;
    server.end("spill").await;
    viewer.until_ended().await;
    assert_eq!(viewer.finals(), expected(), "viewers do not wait for a database");
    assert!(viewer.seen.iter().all(|m| m["durable"] != false), "the outbox has them");
    let entries = viewer.last_seq() as i64;
    assert!(server.app.metrics().outbox_rows.get() >= entries);

    proxy.restore();
    until("the outbox is empty", async || server.app.metrics().outbox_rows.get() == 0).await;
    let rows = database.query("SELECT text FROM transcripts WHERE kind = 'final' ORDER BY seq").await;
    assert_eq!(rows, expected());
    let count = database.query("SELECT count(*) FROM transcripts").await;
    assert_eq!(count, [entries.to_string()], "every entry once");
    assert_eq!(server.app.metrics().database_up.get(), 1);
    server.stop().await;
}

#[actix::test]
async fn a_proxy_on_this_machine_does_not_make_strangers_operators() {
    let server = TestApp::start(&[("GLADIA_API_URL", "http://127.0.0.1:1")]).await;
    assert!(get(&server, "/metrics", "").await.starts_with("HTTP/1.1 200"));
    for header in ["X-Forwarded-For: 203.0.113.7\r\n", "Forwarded: for=203.0.113.7\r\n"] {
        let answer = get(&server, "/metrics", header).await;
        assert!(answer.starts_with("HTTP/1.1 403"), "{answer}");
    }
    server.stop().await;
}

async fn get(server: &TestApp, path: &str, header: &str) -> String {
    let mut socket = TcpStream::connect(server.app.http_addr()).await.unwrap();
    let request = format!("GET {path} HTTP/1.1\r\nHost: test\r\n{header}Connection: close\r\n\r\n");
    socket.write_all(request.as_bytes()).await.unwrap();
    let mut answer = String::new();
    socket.read_to_string(&mut answer).await.unwrap();
    answer
}
