//! What one viewer, one entry and one session cost the program, for docs/SCALE.md. Not a test:
//! `make build && STENOCAST_BIN=target/release/stenocast cargo test --test unit_costs -- --ignored --nocapture`.
//!
//! CPU is that of the server's process alone (user and system), so what its viewers and encoders use does not count, and a
//! machine that others use as well changes it little.

#[path = "../examples/scale/report/sample.rs"]
mod sample;
mod support;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use bytestring::ByteString;
use futures_util::future::join_all;
use futures_util::{StreamExt, stream};
use stenocast::bus::{Batch, wire};
use stenocast::transcript::{Entry, Epoch, Slug};
use support::app::viewer_token;
use support::pace::Pace;
use support::postgres;
use support::publisher::{ffmpeg, marked_audio, write_wav};
use support::server::Server;
use support::stt::marker_service;
use support::wait::until;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

const TOKEN: &str = "broadcast-token-of-a-measurement";
const VIEWERS: usize = 2000;
const AT_A_TIME: usize = 50;
const DELIVERIES: u64 = 40;
const ROOMS: usize = 1000;
const ROUNDS: u64 = 20;
const SESSIONS: usize = 20;
const WINDOW_MS: u64 = 20_000;

/// CPU of a process so far, in ms.
fn cpu_ms(pid: u32) -> f64 {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).expect("it runs");
    let fields: Vec<&str> = stat.rsplit(')').next().expect("fields").split_whitespace().collect();
    let ticks: u64 = fields[11].parse::<u64>().expect("user time") + fields[12].parse::<u64>().expect("system time");
    ticks as f64 * 10.0
}

/// Audio of publishers that a server has received, in seconds.
async fn received_s(server: &Server) -> f64 {
    let metrics = support::server::request(server.http, "GET", "/metrics", "").await.expect("it answers").1;
    let value = metrics.lines().find_map(|line| line.strip_prefix("stenocast_audio_received_seconds_total "));
    value.expect("a line").trim().parse().expect("a number")
}

/// Proportional memory of a process, in KiB.
fn memory_kib(pid: u32) -> f64 {
    let rollup = std::fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).expect("it runs");
    let line = rollup.lines().find_map(|line| line.strip_prefix("Pss:")).expect("a line");
    line.trim().trim_end_matches(" kB").parse().expect("a number")
}

fn children(pid: u32) -> Vec<u32> {
    let stat = |path: &Path| std::fs::read_to_string(path.join("stat")).ok();
    let is_child = |stat: &String| {
        stat.rsplit(')').next().and_then(|rest| rest.split_whitespace().nth(1)) == Some(&pid.to_string())
    };
    let entries = std::fs::read_dir("/proc").expect("/proc").flatten();
    let processes = entries.filter_map(|entry| Some((entry.file_name().to_str()?.parse().ok()?, entry.path())));
    processes
        .filter(|(_, path): &(u32, PathBuf)| stat(path).as_ref().is_some_and(is_child))
        .map(|(pid, _)| pid)
        .collect()
}

async fn ws_node(dir: &Path, more: &[(&str, &str)]) -> Server {
    let settings = [("SERVER_MODE", "ws"), ("BROADCAST_TOKEN", TOKEN), ("RUST_LOG", "info"), ("MAX_SESSIONS", "5000")];
    Server::start(dir, &[&settings, more].concat()).await
}

fn json(entry: &Entry) -> ByteString {
    serde_json::to_string(entry).expect("plain fields").into()
}

/// Posts numbered entries, as a node that numbers them does.
async fn post(client: &awc::Client, server: &Server, room: &str, epoch: Epoch, seqs: impl Iterator<Item = u64>) {
    let entries = seqs.map(|seq| json(&sample::final_entry(room, epoch, seq))).collect();
    post_entries(client, server, room, epoch, entries).await;
}

async fn post_entries(client: &awc::Client, server: &Server, room: &str, epoch: Epoch, entries: Vec<ByteString>) {
    let batch = Batch::new(Slug::parse(room).expect("a plain name"), epoch);
    let body = wire::body(&batch, &[&entries]);
    let url = format!("http://{}/api/realtime/transcribe/broadcast", server.http);
    let request = client.post(url).bearer_auth(TOKEN).insert_header((wire::PROTOCOL_HEADER, wire::PROTOCOL));
    let mut answer = request.content_type("application/json").send_body(body).await.expect("it answers");
    let said = answer.body().await.expect("a body");
    assert_eq!(answer.status(), 202, "{said:?}");
}

/// Opens a WebSocket that resumes, reads the hello, and counts the bytes that come after it.
async fn view(server: &Server, epoch: Epoch, after: u64, bytes: Arc<AtomicUsize>) -> tokio::task::JoinHandle<()> {
    let mut socket = TcpStream::connect(server.http).await.expect("it listens");
    let path =
        format!("/api/realtime/transcribe?session=demo&after={after}&epoch={epoch}&token={}", viewer_token("demo"));
    let head = format!(
        "GET {path} HTTP/1.1\r\nHost: test\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
    );
    socket.write_all(head.as_bytes()).await.expect("written");
    let mut read = Vec::new();
    while !read.windows(14).any(|part| part == b"\"type\":\"hello\"") {
        assert!(socket.read_buf(&mut read).await.expect("read") > 0, "{}", String::from_utf8_lossy(&read));
    }
    tokio::spawn(async move {
        let mut buffer = vec![0; 1 << 16];
        while let Ok(length @ 1..) = socket.read(&mut buffer).await {
            bytes.fetch_add(length, Ordering::Relaxed);
        }
    })
}

#[actix_rt::test]
#[ignore = "a measurement"]
async fn viewers() {
    nix::sys::resource::setrlimit(nix::sys::resource::Resource::RLIMIT_NOFILE, 8192, 8192).expect("8192 open files");
    let (dir, epoch, client) = (tempfile::tempdir().unwrap(), Epoch::now_v7(), awc::Client::default());
    let server = ws_node(dir.path(), &[]).await;
    post(&client, &server, "demo", epoch, 1..=20).await;
    let (bytes, pid) = (Arc::new(AtomicUsize::new(0)), server.pid());
    let open =
        |count| stream::iter(0..count).map(|_| view(&server, epoch, 20, bytes.clone())).buffer_unordered(AT_A_TIME);
    let mut readers: Vec<_> = open(200).collect().await;
    let (cpu, memory) = (cpu_ms(pid), memory_kib(pid));
    readers.extend(open(VIEWERS).collect::<Vec<_>>().await);
    println!("join: {:.3} ms of CPU each, resumed with nothing missed", (cpu_ms(pid) - cpu) / VIEWERS as f64);
    println!("viewer: {:.1} KiB each", (memory_kib(pid) - memory) / VIEWERS as f64);
    let length = json(&sample::final_entry("demo", epoch, 21)).len();
    // With its frame's head of four bytes.
    let round = (VIEWERS + 200) * (length + 4);
    let (cpu, before) = (cpu_ms(pid), bytes.load(Ordering::Relaxed));
    for seq in 21..21 + DELIVERIES {
        post(&client, &server, "demo", epoch, seq..=seq).await;
        let due = before + round * (seq - 20) as usize * 9 / 10;
        until("every viewer has the entry", async || bytes.load(Ordering::Relaxed) >= due).await;
    }
    let deliveries = DELIVERIES as f64 * (VIEWERS + 200) as f64;
    println!("delivery: {:.2} µs of CPU each", (cpu_ms(pid) - cpu) * 1000.0 / deliveries);
    readers.iter().for_each(tokio::task::JoinHandle::abort);
}

async fn follow(name: &str, more: &[(&str, &str)]) -> (tempfile::TempDir, Server) {
    let (dir, client) = (tempfile::tempdir().unwrap(), awc::Client::default());
    let server = ws_node(dir.path(), more).await;
    let rooms: Vec<_> = (0..ROOMS).map(|n| (format!("room-{n}"), Epoch::now_v7())).collect();
    let pid = server.pid();
    let round = async |seq: u64| {
        let posts = rooms.iter().map(|(room, epoch)| post(&client, &server, room, *epoch, seq..=seq));
        stream::iter(posts).buffer_unordered(8).collect::<Vec<_>>().await;
    };
    let memory = memory_kib(pid);
    round(1).await;
    let (cpu, begun) = (cpu_ms(pid), memory_kib(pid));
    for seq in 2..=1 + ROUNDS {
        round(seq).await;
    }
    let stored = async || support::server::health(server.http).await.is_ok_and(|health| health["outboxRows"] == 0);
    until("every row is stored", stored).await;
    let entries = ROUNDS as f64 * ROOMS as f64;
    println!("{name}: entry of another node, nobody watches: {:.3} ms of CPU", (cpu_ms(pid) - cpu) / entries);
    println!("{name}: mirror {:.1} KiB each", (begun - memory) / ROOMS as f64);
    println!("{name}: kept entry {:.2} KiB each", (memory_kib(pid) - begun) / entries);
    let cpu = cpu_ms(pid);
    for seq in 0..ROUNDS {
        let interim = |room: &str, epoch| vec![json(&sample::interim(room, epoch, ROUNDS + 2 + seq))];
        let posts =
            rooms.iter().map(|(room, epoch)| post_entries(&client, &server, room, *epoch, interim(room, *epoch)));
        stream::iter(posts).buffer_unordered(8).collect::<Vec<_>>().await;
    }
    println!("{name}: interim of another node, nobody watches: {:.3} ms of CPU", (cpu_ms(pid) - cpu) / entries);
    (dir, server)
}

#[actix_rt::test]
#[ignore = "a measurement"]
async fn entries_of_other_nodes() {
    let (dir, _server) = follow("SQLite", &[]).await;
    let entries = (1 + ROUNDS) as f64 * ROOMS as f64;
    let length = |name: &str| std::fs::metadata(dir.path().join(name)).map_or(0, |file| file.len()) as f64;
    println!("SQLite: {:.0} bytes a row", length("stenocast.db") / entries);
    let database = postgres::cluster().fresh_database().await;
    let (_dir, _server) = follow("Postgres", &[("DATABASE_URL", &database.url())]).await;
    let sizes = "SELECT (pg_total_relation_size('transcripts') / (SELECT count(*) FROM transcripts))::text";
    println!("Postgres: {} bytes a row, with its indexes", database.query(sizes).await[0]);
}

#[actix_rt::test]
#[ignore = "a measurement"]
async fn sessions() {
    let stt = marker_service().await;
    let (ws_dir, dir) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let ws = ws_node(ws_dir.path(), &[]).await;
    let url = format!("http://{}", ws.http);
    let settings = [("SERVER_MODE", "rtmp"), ("BROADCAST_TOKEN", TOKEN), ("WS_SERVER_URL", &url)];
    let stt_settings = [("GLADIA_API_URL", stt.url.as_str()), ("RUST_LOG", "info"), ("GLADIA_MAX_SESSIONS", "100")];
    let ingest = Server::start(dir.path(), &[&settings[..], &stt_settings[..]].concat()).await;
    let (pid, idle) = (ingest.pid(), memory_kib(ingest.pid()));
    let file = dir.path().join("marked.wav");
    write_wav(&file, &marked_audio(1..=120, 600));
    let publishers: Vec<_> =
        (0..SESSIONS).map(|n| ffmpeg(&file, &format!("rtmp://{}/live/room-{n}", ingest.rtmp), true)).collect();
    until("every session has its decoder", async || children(pid).len() >= SESSIONS).await;
    let warm = Pace::begin();
    warm.reaches(5000_u64).await;
    let before: Vec<_> = children(pid).into_iter().map(|pid| (pid, cpu_ms(pid))).collect();
    let (cpu, received, pace) = (cpu_ms(pid), received_s(&ingest).await, Pace::begin());
    pace.reaches(WINDOW_MS).await;
    let seconds = received_s(&ingest).await - received;
    println!("sessions: {SESSIONS}, {seconds:.0} s of audio in {:.1} s", pace.begun.elapsed().as_secs_f64());
    println!("session: {:.2} ms of CPU for a second of it, without its decoder", (cpu_ms(pid) - cpu) / seconds);
    println!("session: {:.0} KiB without its decoder", (memory_kib(pid) - idle) / SESSIONS as f64);
    // One that has been replaced meanwhile does not count.
    let alive = children(pid);
    let stayed: Vec<_> = before.into_iter().filter(|(pid, _)| alive.contains(pid)).collect();
    let used: f64 = stayed.iter().map(|(pid, before)| cpu_ms(*pid) - before).sum();
    let of_all = stayed.len() as f64 / SESSIONS as f64;
    println!("decoder: {:.2} ms of CPU for a second of audio", used / (seconds * of_all));
    let memory: f64 = stayed.iter().map(|(pid, _)| memory_kib(*pid)).sum();
    println!("decoder: {:.0} KiB (proportional)", memory / stayed.len() as f64);
    drop(join_all(publishers.into_iter().map(|mut publisher| async move { publisher.kill().await })).await);
}
