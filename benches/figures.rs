//! Figures of the whole server: `make bench`, or one of them with `cargo bench --bench figures -- fanout`.
//!
//! Counts are asserted; times are printed.

#[path = "../tests/support/mod.rs"]
mod support;

use std::cell::{Cell, RefCell};
use std::time::Instant;

use futures_util::future::join_all;
use serde_json::Value;
use support::app::TestApp;
use support::publisher::{marked_audio, publish, write_wav};
use support::stt::marker_service;
use support::viewer::Viewer;
use support::wait::until;

const VIEWERS: usize = 200;
const HOP_ROUNDS: usize = 4;
const CYCLES: usize = 200;
const WARM_UP_CYCLES: usize = 20;

fn main() {
    let wanted: Vec<String> = std::env::args().skip(1).filter(|a| !a.starts_with('-')).collect();
    let chosen = |name: &str| wanted.is_empty() || wanted.iter().any(|w| w == name);
    actix_rt::System::new().block_on(async {
        if chosen("fanout") {
            fanout().await;
        }
        if chosen("hop") {
            hop().await;
        }
        if chosen("churn") {
            churn().await;
        }
    });
}

/// What the way to a ws node adds: recogniser's message to a viewer, in one process and over HTTP, in turns.
async fn hop() {
    let (mut alone, mut split) = (Vec::new(), Vec::new());
    for _ in 0..HOP_ROUNDS {
        let stt = marker_service().await;
        let server = TestApp::start(&[("GLADIA_API_URL", &stt.url)]).await;
        alone.extend(delays_ms(&server, &server).await);
        server.stop().await;
        let token = ("BROADCAST_TOKEN", "a-token-of-nodes-in-a-benchmark");
        let ws = TestApp::start(&[("SERVER_MODE", "ws"), token]).await;
        let url = format!("http://{}", ws.app.http_addr());
        let settings = [("SERVER_MODE", "rtmp"), token, ("WS_SERVER_URL", &url), ("GLADIA_API_URL", &stt.url)];
        let ingest = TestApp::start(&settings).await;
        split.extend(delays_ms(&ingest, &ws).await);
        ingest.stop().await;
        ws.stop().await;
    }
    let (alone, split) = (median(alone), median(split));
    println!(
        "hop: recogniser message -> viewer p50 {alone:.1} ms in one process, {split:.1} ms over HTTP: +{:.1} ms",
        split - alone
    );
}

/// Of each final, from the recogniser's message at one node to a viewer of another, which share a clock.
async fn delays_ms(ingest: &TestApp, ws: &TestApp) -> Vec<f64> {
    let file = ingest.dir.path().join("marked.wav");
    write_wav(&file, &marked_audio(1..=12, 400));
    let mut viewer = Viewer::join(ws, "hop").await;
    let (delays, looked_at) = (RefCell::new(Vec::new()), Cell::new(0));
    let note = |seen: &[Value]| {
        let now = chrono::Utc::now();
        let finals = seen[looked_at.replace(seen.len())..].iter().filter(|m| m["isFinal"] == true);
        let times = finals.filter_map(|m| m["timestamp"].as_str()?.parse::<chrono::DateTime<chrono::Utc>>().ok());
        delays.borrow_mut().extend(times.map(|time| (now - time).num_microseconds().unwrap_or(0) as f64 / 1000.0));
    };
    let url = ingest.rtmp_url("hop");
    let publishing = publish(&file, &url, true);
    let watching = viewer.until("every final", |seen| {
        note(seen);
        delays.borrow().len() >= 11
    });
    tokio::join!(publishing, watching);
    ingest.end("hop").await;
    delays.take()
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

/// Recogniser message to the viewers' sockets, and decoding, with many viewers of one room.
async fn fanout() {
    let stt = marker_service().await;
    let server = TestApp::start(&[("GLADIA_API_URL", &stt.url)]).await;
    let file = server.dir.path().join("marked.wav");
    write_wav(&file, &marked_audio(1..=15, 500));
    let mut viewers = join_all((0..VIEWERS).map(|_| Viewer::join(&server, "fanout"))).await;
    publish(&file, &server.rtmp_url("fanout"), true).await;
    server.end("fanout").await;
    join_all(viewers.iter_mut().map(Viewer::until_ended)).await;
    for viewer in &viewers {
        assert_eq!(viewer.finals(), viewers[0].finals());
    }
    let metrics = server.app.metrics();
    let delivery = quantile_ms(&metrics.encode(), "delivery_latency_seconds", 0.99);
    let decode = quantile_ms(&metrics.encode(), "decode_latency_seconds", 0.99);
    let messages = metrics.ws_messages_sent_total.get();
    println!("fanout: {VIEWERS} viewers, {messages} messages, recogniser message -> socket p99 <= {delivery} ms");
    println!("decode: last tag of a chunk -> chunk p99 <= {decode} ms");
    server.stop().await;
}

/// Publish and unpublish over and over: processes, descriptors and memory stay where they were.
async fn churn() {
    let stt = marker_service().await;
    let server = TestApp::start(&[("GLADIA_API_URL", &stt.url), ("SESSION_GRACE_MS", "0")]).await;
    let file = server.dir.path().join("marked.wav");
    write_wav(&file, &marked_audio([7], 300));
    let begun = Instant::now();
    let (mut before, mut half_way) = (Usage::default(), Usage::default());
    for cycle in 0..WARM_UP_CYCLES + CYCLES {
        if cycle == WARM_UP_CYCLES {
            before = Usage::settled(&server).await;
        }
        if cycle == WARM_UP_CYCLES + CYCLES / 2 {
            half_way = Usage::settled(&server).await;
        }
        let slug = format!("churn-{cycle}");
        publish(&file, &server.rtmp_url(&slug), false).await;
        server.session_until(&slug, "the session is over", serde_json::Value::is_null).await;
    }
    let after = Usage::settled(&server).await;
    let grown_kib = |from: &Usage, to: &Usage| to.resident_kib as i64 - from.resident_kib as i64;
    let (first, second) = (grown_kib(&before, &half_way), grown_kib(&half_way, &after));
    println!(
        "churn: {CYCLES} publish/unpublish cycles in {:.0} s; processes {} -> {}, descriptors {} -> {}, memory {first:+} KiB in the first half, {second:+} KiB in the second",
        begun.elapsed().as_secs_f64(),
        before.children,
        after.children,
        before.descriptors,
        after.descriptors,
    );
    assert_eq!(after.children, before.children, "child processes");
    assert!(after.descriptors <= before.descriptors, "descriptors {} -> {}", before.descriptors, after.descriptors);
    server.stop().await;
}

#[derive(Default)]
struct Usage {
    children: usize,
    descriptors: usize,
    resident_kib: usize,
}

impl Usage {
    /// Once no session is left and no child runs.
    async fn settled(server: &TestApp) -> Self {
        let metrics = server.app.metrics();
        let is_idle = async || metrics.sessions_active.get() == 0 && metrics.ffmpeg_processes.get() == 0;
        until("no session and no child is left", is_idle).await;
        let pid = std::process::id();
        let children = std::fs::read_to_string(format!("/proc/self/task/{pid}/children")).unwrap_or_default();
        let statm = std::fs::read_to_string("/proc/self/statm").unwrap_or_default();
        let pages: usize = statm.split(' ').nth(1).and_then(|p| p.parse().ok()).unwrap_or(0);
        Self {
            children: children.split_whitespace().count(),
            descriptors: std::fs::read_dir("/proc/self/fd").map_or(0, Iterator::count),
            resident_kib: pages * 4,
        }
    }
}

/// Upper border of the histogram's bucket that holds the quantile, in ms.
fn quantile_ms(metrics: &str, name: &str, quantile: f64) -> f64 {
    let prefix = format!("stenocast_{name}_bucket{{le=\"");
    let buckets: Vec<(f64, f64)> = metrics
        .lines()
        .filter_map(|line| {
            let (le, count) = line.strip_prefix(&prefix)?.split_once("\"} ")?;
            Some((le.parse().unwrap_or(f64::INFINITY), count.parse().ok()?))
        })
        .collect();
    let total = buckets.last().map_or(0.0, |(_, count)| *count);
    let bucket = buckets.iter().find(|(_, count)| *count >= total * quantile);
    bucket.map_or(f64::NAN, |(le, _)| le * 1000.0)
}
