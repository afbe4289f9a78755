//! `make cluster-demo`: two ingest nodes, two ws nodes, NATS and Postgres on this machine. Real speech goes to two rooms, a
//! publisher moves, nodes are killed, and a table says what was lost: nothing. Then what each hop adds, in one run.

#[path = "../tests/support/mod.rs"]
mod support;

use std::cell::{Cell, RefCell};
use std::collections::{BTreeSet, HashSet};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use chrono::{DateTime, Utc};
use serde_json::Value;
use support::cluster::{Cluster, TOKEN, identities};
use support::nats::{Nats, Version};
use support::publisher::{clip, ffmpeg, marked_audio, write_wav};
use support::server::{Server, health};
use support::stt::marker_service;
use support::viewer::{Viewer, finals};
use support::wait::until;

/// What each encoder says, in the order in which they come.
const FIRST: &[&str] = &["goforward", "librivox_0870", "librivox_0880"];
const SECOND: &[&str] = &["librivox_0890", "cards_001"];
const THIRD: &[&str] = &["cards_002", "goforward"];
const PAUSE_SAMPLES: usize = 16_000;
const ROOMS: [&str; 2] = ["town-hall", "studio"];
/// Finals of each topology whose way is timed.
const TIMED: usize = 30;
const MODEL_PATIENCE: Duration = Duration::from_secs(60);
const MODEL_POLL: Duration = Duration::from_millis(200);

fn main() {
    let is_whole = actix_rt::System::new().block_on(async {
        let is_whole = demo().await;
        hops().await;
        is_whole
    });
    if !is_whole {
        println!("the demo did not go as it should");
        std::process::exit(1);
    }
}

fn say(begun: Instant, what: &str) {
    println!("{:>6.1} s  {what}", begun.elapsed().as_secs_f64());
}

/// True when nothing was lost.
async fn demo() -> bool {
    let begun = Instant::now();
    say(begun, "starting NATS, Postgres, two ingest nodes and two ws nodes");
    let nats = Nats::start(Version::Newest).await;
    let url = nats.url();
    let mut cluster = Cluster::start_on(nats, &url, &[("STT_THREADS", "1")]).await;
    for n in 0..2 {
        recogniser_ready(cluster.ingest(n)).await;
    }
    say(begun, "ready; a viewer of each room at each ws node, speech to both rooms at ingest-0");
    let mut ends = Vec::new();
    for room in ROOMS {
        ends.push((room, cluster.join(0, room).await, cluster.join(1, room).await));
    }
    let speech = |name: &str, clips: &[&str]| speech(&cluster, name, clips);
    let (first, second, third) = (speech("first", FIRST), speech("second", SECOND), speech("third", THIRD));
    let mut encoders: Vec<_> = ROOMS.map(|room| ffmpeg(&first, &cluster.rtmp_url(0, room), true)).into();
    for (room, _, far) in &mut ends {
        listen(begun, room, far, 2).await;
    }
    say(begun, ">> town-hall's publisher moves to ingest-1 in mid sentence");
    let _ = encoders.remove(0).start_kill();
    encoders.insert(0, ffmpeg(&second, &cluster.rtmp_url(1, ROOMS[0]), true));
    listen(begun, ROOMS[0], &mut ends[0].2, 2).await;
    say(begun, ">> kill -9 of ws-0: its viewers go on at ws-1 with epoch and seq");
    for (_, near, far) in &mut ends {
        let last = far.last_seq();
        near.until("it has seen what the other has", |seen| seen.iter().any(|m| m["seq"].as_u64() >= Some(last))).await;
    }
    cluster.kill_ws(0).await;
    let mut logs = Vec::new();
    let mut before = Vec::new();
    for (room, near, _) in &mut ends {
        let query = Cluster::resume(near);
        before.push(identities(near));
        *near = Viewer::connect(cluster.ws(1).http, room, &query).await;
        assert_eq!(near.hello["recovered"], true, "{}", near.hello);
    }
    cluster.start_ws(0).await;
    say(begun, ">> kill -9 of ingest-0: the publishers go on at ingest-1, and it is started again");
    logs.push(cluster.ingest(0).log());
    cluster.kill_ingest(0).await;
    let encoders: Vec<_> = encoders.into_iter().map(stop).collect();
    drop(encoders);
    let mut encoders: Vec<_> = ROOMS.map(|room| ffmpeg(&third, &cluster.rtmp_url(1, room), true)).into();
    cluster.start_ingest(0).await;
    for (room, _, far) in &mut ends {
        listen(begun, room, far, 1).await;
    }
    for encoder in &mut encoders {
        let _ = encoder.wait().await;
    }
    for (_, near, far) in &mut ends {
        near.until_ended().await;
        far.until_ended().await;
    }
    say(begun, "both sessions have ended\n");
    logs.extend((0..2).map(|n| cluster.ingest(n).log()));
    table(&cluster, &ends, &before, &heard(&logs)).await
}

fn stop(mut encoder: tokio::process::Child) {
    let _ = encoder.start_kill();
}

async fn recogniser_ready(node: &Server) {
    let is_up = async || {
        let health = health(node.http).await.map_err(|error| error.to_string())?;
        if health["recogniser"]["state"] == "up" { Ok(()) } else { Err(health.to_string()) }
    };
    let loaded = support::wait::within(MODEL_PATIENCE, MODEL_POLL, is_up).await;
    assert!(loaded.is_ok(), "the speech model is not loaded: {loaded:?}");
}

/// Bundled clips in a row, with a second between them.
fn speech(cluster: &Cluster, name: &str, clips: &[&str]) -> PathBuf {
    let mut samples: Vec<i16> = Vec::new();
    for name in clips {
        let mut wav = hound::WavReader::open(clip(&format!("{name}.wav"))).expect("a bundled clip");
        samples.extend(wav.samples::<i16>().map(|sample| sample.expect("PCM16")));
        samples.resize(samples.len() + PAUSE_SAMPLES, 0);
    }
    let path = cluster.dir.path().join(format!("{name}.wav"));
    write_wav(&path, &samples);
    path
}

/// Prints so many more finals of a room as its viewer receives them.
async fn listen(begun: Instant, room: &str, viewer: &mut Viewer, more: usize) {
    let known = viewer.finals().len();
    let printed = Cell::new(known);
    viewer
        .until("more is said", |seen| {
            let heard = finals(seen);
            for line in &heard[printed.replace(heard.len())..] {
                say(begun, &format!("   [{room}] {line}"));
            }
            heard.len() >= known + more
        })
        .await;
}

/// Epoch and id of every final that the recognisers have given any node, by the nodes' own logs.
fn heard(logs: &[String]) -> HashSet<(String, String)> {
    let events = logs.iter().flat_map(|log| log.lines()).filter_map(|line| serde_json::from_str::<Value>(line).ok());
    let received = events.filter(|event| event["message"] == "Transcript received from Gladia");
    let field = |event: &Value, name: &str| event[name].as_str().unwrap_or_default().to_owned();
    received.map(|event| (field(&event, "epoch"), field(&event, "id"))).collect()
}

async fn table(
    cluster: &Cluster,
    ends: &[(&str, Viewer, Viewer)],
    before: &[Vec<(String, u64, String)>],
    heard: &HashSet<(String, String)>,
) -> bool {
    println!("room        entries  finals  rows  gaps  lost  duplicated  both viewers see the same");
    let mut is_whole = true;
    let mut in_database = 0;
    for ((room, near, far), before) in ends.iter().zip(before) {
        let entries = identities(far);
        let last = entries.iter().map(|(_, seq, _)| *seq).max().unwrap_or(0);
        let numbers: BTreeSet<u64> = entries.iter().map(|(_, seq, _)| *seq).collect();
        let sql =
            format!("select entry_id from transcripts join sessions using (session_id) where sessions.slug = '{room}'");
        let all_stored = async || {
            let rows = cluster.database.query(&sql).await;
            if rows.len() >= entries.len() { Ok(rows) } else { Err(format!("{} rows", rows.len())) }
        };
        let rows = until("every row is in the database", all_stored).await;
        let distinct: HashSet<&String> = rows.iter().collect();
        let ids: Vec<&str> = far.seen.iter().filter(|m| m["seq"].is_u64()).filter_map(|m| m["id"].as_str()).collect();
        let epoch = far.seen.iter().find_map(|m| m["epoch"].as_str()).unwrap_or_default();
        let unseen = heard.iter().filter(|(of, id)| of == epoch && !ids.contains(&id.as_str())).count();
        let lost = (last as usize - numbers.len()) + unseen + entries.len().saturating_sub(distinct.len());
        let duplicated = entries.len() - numbers.len() + rows.len() - distinct.len();
        let gaps = far.seen.iter().filter(|m| m["type"] == "gap").count();
        let both: Vec<_> = before.iter().cloned().chain(identities(near)).collect();
        let is_same = both == entries;
        in_database += rows.len();
        println!(
            "{room:<11} {:>7} {:>7} {:>5} {gaps:>5} {lost:>5} {duplicated:>11}  {}",
            entries.len(),
            far.finals().len(),
            rows.len(),
            if is_same { "yes" } else { "NO" }
        );
        is_whole &= lost == 0 && duplicated == 0 && is_same;
    }
    println!("finals that a recogniser has given any node: {}; rows in the database: {in_database}\n", heard.len());
    is_whole
}

/// Recogniser's message to a viewer, in one process, over HTTP and over NATS, at the same time.
async fn hops() {
    let (stt, dir) = (marker_service().await, tempfile::tempdir().expect("a temporary directory"));
    let wav = dir.path().join("marked.wav");
    write_wav(&wav, &marked_audio(1..=TIMED as u32 + 1, 400));
    let folder = |name: &str| {
        let path = dir.path().join(name);
        std::fs::create_dir_all(&path).expect("a folder");
        path
    };
    let stt = ("GLADIA_API_URL", stt.url.as_str());
    let token = ("BROADCAST_TOKEN", TOKEN);
    let both = Server::start(&folder("both"), &[stt]).await;
    let http_ws = Server::start(&folder("http-ws"), &[("SERVER_MODE", "ws"), token]).await;
    let target = format!("http://{}", http_ws.http);
    let http = [("SERVER_MODE", "rtmp"), ("WS_SERVER_URL", target.as_str()), stt, token];
    let http_ingest = Server::start(&folder("http-ingest"), &http).await;
    let nats = Nats::start(Version::Newest).await;
    let url = nats.url();
    let bus = [("BUS", "nats"), ("NATS_URL", url.as_str()), token];
    let nats_ws = Server::start(&folder("nats-ws"), &[&bus[..], &[("SERVER_MODE", "ws")]].concat()).await;
    let nats_ingest =
        Server::start(&folder("nats-ingest"), &[&bus[..], &[("SERVER_MODE", "rtmp"), stt]].concat()).await;
    let (alone, over_http, over_nats) = tokio::join!(
        delays_ms(&both, &both, &wav),
        delays_ms(&http_ingest, &http_ws, &wav),
        delays_ms(&nats_ingest, &nats_ws, &wav),
    );
    println!("recogniser's message -> viewer, {TIMED} finals each, at the same time:");
    let base = quantile(&alone, 0.5);
    for (name, delays) in [("one process", &alone), ("over HTTP", &over_http), ("over NATS", &over_nats)] {
        let (p50, p95) = (quantile(delays, 0.5), quantile(delays, 0.95));
        println!("{name:<12} p50 {p50:>5.2} ms, p95 {p95:>5.2} ms   added p50 {:>+5.2} ms", p50 - base);
    }
}

/// Of each final, from the recogniser's message at one node to a viewer of another, which share a clock.
async fn delays_ms(ingest: &Server, ws: &Server, wav: &Path) -> Vec<f64> {
    let mut viewer = Viewer::connect(ws.http, "hop", "").await;
    let _encoder = ffmpeg(wav, &format!("rtmp://{}/live/hop", ingest.rtmp), true);
    let (delays, looked_at) = (RefCell::new(Vec::new()), Cell::new(0));
    viewer
        .until("every final", |seen| {
            let now = Utc::now();
            let new = seen[looked_at.replace(seen.len())..].iter().filter(|m| m["isFinal"] == true);
            let times = new.filter_map(|m| m["timestamp"].as_str()?.parse::<DateTime<Utc>>().ok());
            delays.borrow_mut().extend(times.map(|at| (now - at).num_microseconds().unwrap_or(0) as f64 / 1000.0));
            delays.borrow().len() >= TIMED
        })
        .await;
    delays.take()
}

fn quantile(values: &[f64], quantile: f64) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    sorted[((sorted.len() - 1) as f64 * quantile).round() as usize]
}
