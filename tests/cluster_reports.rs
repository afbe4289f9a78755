//! What users of clusters have reported of other software, tried on this one: log servers that come back empty, streams and
//! consumers that an administrator deletes, data folders that were copied.

mod support;

use async_nats::jetstream;
use async_nats::jetstream::consumer::{FromConsumer, pull};
use serde_json::Value;
use support::cluster::{Cluster, identities};
use support::nats::Version;
use support::publisher::{ffmpeg, publish};
use support::server::program;
use support::stt::{Stt, marker_service};
use support::viewer::{Viewer, assert_contiguous, finals};

const MARKERS: u32 = 12;

fn expected() -> Vec<String> {
    (1..=MARKERS).map(|n| format!("marker {n}")).collect()
}

fn has_finals(count: usize) -> impl Fn(&[Value]) -> bool {
    move |seen| finals(seen).len() >= count
}

/// Speech to one room while `trouble` happens; every final is shown at both ws nodes and stored, once and in order.
async fn nothing_is_lost(trouble: impl AsyncFnOnce(&mut Cluster)) {
    let stt: Stt = marker_service().await;
    let mut cluster = Cluster::start(Version::Newest, &stt.url).await;
    let (mut near, mut far) = (cluster.join(0, "demo").await, cluster.join(1, "demo").await);
    let publisher = ffmpeg(&cluster.audio("said", 1..=MARKERS), &cluster.rtmp_url(0, "demo"), true);
    near.until("three finals", has_finals(3)).await;
    trouble(&mut cluster).await;
    assert!(publisher.wait_with_output().await.unwrap().status.success());
    let ended: [&mut Viewer; 2] = [&mut near, &mut far];
    for viewer in ended {
        viewer.until_ended().await;
        assert_eq!(viewer.finals(), expected());
        assert_contiguous(&viewer.seqs(), 1);
    }
    assert_eq!(identities(&near), identities(&far));
    assert_eq!(cluster.stored_finals("demo", MARKERS as usize).await, expected());
}

async fn admin(cluster: &Cluster) -> jetstream::Context {
    jetstream::new(async_nats::connect(cluster.nats.url()).await.expect("NATS is there"))
}

/// A pod without a volume (kyma-project/kyma#13609).
#[actix::test]
async fn a_log_server_that_comes_back_empty_is_given_everything_again() {
    nothing_is_lost(async |cluster| {
        cluster.nats.kill();
        cluster.nats.start_empty().await;
    })
    .await;
}

/// nats-io/nats.node#570: an administrator, or a clean-up script, deletes what it does not know.
#[actix::test]
async fn the_database_s_consumer_may_be_deleted() {
    nothing_is_lost(async |cluster| {
        let stream = admin(cluster).await.get_stream("SC_LOG").await.unwrap();
        stream.delete_consumer("db").await.unwrap();
    })
    .await;
}

#[actix::test]
async fn the_log_may_be_deleted() {
    nothing_is_lost(async |cluster| {
        admin(cluster).await.delete_stream("SC_LOG").await.unwrap();
    })
    .await;
}

#[actix::test]
async fn the_log_may_be_purged() {
    nothing_is_lost(async |cluster| {
        let stream = admin(cluster).await.get_stream("SC_LOG").await.unwrap();
        stream.purge().await.unwrap();
    })
    .await;
}

#[actix::test]
async fn the_holdings_may_be_deleted() {
    nothing_is_lost(async |cluster| {
        admin(cluster).await.delete_stream("KV_SC_ROOM").await.unwrap();
    })
    .await;
}

/// nats-io/nats.py#868: a server that is about to go says so, and takes no new clients.
#[actix::test]
async fn a_log_server_may_be_a_lame_duck_first() {
    nothing_is_lost(async |cluster| {
        cluster.nats.lame_duck().await;
        cluster.nats.kill();
        cluster.nats.start_again().await;
    })
    .await;
}

/// nats-io/nats.go#499, nats-io/nats.net.v1#282: whoever changes the password there first locks the nodes out for a while.
#[actix::test]
async fn a_log_server_may_ask_for_another_password_for_a_while() {
    nothing_is_lost(async |cluster| {
        cluster.nats.kill();
        cluster.nats.start_once_with(&["--user", "node", "--pass", "new"]).await;
        cluster.nats.until_logged("authentication error").await;
        cluster.nats.kill();
        cluster.nats.start_again().await;
    })
    .await;
}

/// nats-io/nats-server#2488, #4736: a consumer with another limit than it was made with.
#[actix::test]
async fn the_database_s_consumer_may_be_narrowed() {
    nothing_is_lost(async |cluster| {
        let stream = admin(cluster).await.get_stream("SC_LOG").await.unwrap();
        let consumer = stream.get_consumer::<pull::Config>("db").await.unwrap();
        let mut config = pull::Config::try_from_consumer_config(consumer.cached_info().config.clone()).unwrap();
        config.max_ack_pending = 1;
        stream.update_consumer(config).await.unwrap();
    })
    .await;
}

/// nats-io/nats-server#4112 and its kind: limits that were set by hand, far too small.
#[actix::test]
async fn the_log_may_have_room_for_eight_messages() {
    nothing_is_lost(async |cluster| {
        let context = admin(cluster).await;
        let mut config = context.get_stream("SC_LOG").await.unwrap().cached_info().config.clone();
        config.max_messages = 8;
        context.update_stream(config).await.unwrap();
    })
    .await;
}

/// cloudamqp/lavinmq#1023: a data folder that was copied, or is part of an image, gives two nodes one identity.
#[actix::test]
async fn a_copied_data_folder_is_refused() {
    let stt = marker_service().await;
    let cluster = Cluster::start(Version::Newest, &stt.url).await;
    let (original, copy) = (cluster.dir.path().join("ingest-0"), cluster.dir.path().join("copy"));
    std::fs::create_dir_all(&copy).unwrap();
    std::fs::copy(original.join("home"), copy.join("home")).unwrap();
    let url = cluster.nats.url();
    let settings = [("SERVER_MODE", "rtmp"), ("BUS", "nats"), ("NATS_URL", &url), ("GLADIA_API_URL", &stt.url)];
    let token = [("BROADCAST_TOKEN", support::cluster::TOKEN)];
    let settings = support::app::settings(&copy, &[&settings[..], &token].concat());
    let output = program(&["serve"]).envs(settings).output().await.unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(69), "{said}");
    assert!(said.contains("another node is running on a copy of"), "{said}");
}

/// The clocks of two machines differ by minutes; the node whose clock is behind takes a session over.
#[actix::test]
async fn clocks_that_differ_change_neither_order_nor_times() {
    let stt = marker_service().await;
    let mut cluster = Cluster::start(Version::Newest, &stt.url).await;
    let library = faketime();
    let clock = [("LD_PRELOAD", library.as_str()), ("FAKETIME", "-10m"), ("FAKETIME_DONT_FAKE_MONOTONIC", "1")];
    cluster.start_ingest_with(1, &clock).await;
    let (mut near, mut far) = (cluster.join(0, "demo").await, cluster.join(1, "demo").await);
    let mut first = ffmpeg(&cluster.audio("first", 1..=9), &cluster.rtmp_url(0, "demo"), true);
    near.until("three finals", has_finals(3)).await;
    first.start_kill().unwrap();
    publish(&cluster.audio("second", 21..=24), &cluster.rtmp_url(1, "demo"), true).await;
    near.until_ended().await;
    far.until_ended().await;
    assert_contiguous(&near.seqs(), 1);
    assert_eq!(identities(&near), identities(&far));
    let heard = near.finals();
    assert!(heard.ends_with(&(22..=24).map(|n| format!("marker {n}")).collect::<Vec<_>>()), "{heard:?}");
    assert_eq!(cluster.stored_finals("demo", heard.len()).await, heard);
    let starts: Vec<u64> =
        near.seen.iter().filter(|m| m["isFinal"] == true).filter_map(|m| m["startMs"].as_u64()).collect();
    assert!(starts.windows(2).all(|pair| pair[0] < pair[1]), "session time goes on: {starts:?}");
    assert!(*starts.last().unwrap() < 60_000, "and does not jump: {starts:?}");
    // The next session begins on the node whose clock is behind, and is the later one all the same.
    publish(&cluster.audio("third", 31..=33), &cluster.rtmp_url(1, "demo"), true).await;
    far.until("the next session", |seen| finals(seen).contains(&"marker 33".to_owned())).await;
}

/// The library of Debian's package `faketime`.
fn faketime() -> String {
    let found =
        std::fs::read_dir("/usr/lib").unwrap().flatten().map(|dir| dir.path().join("faketime/libfaketimeMT.so.1"));
    let mut found = found.filter(|path| path.exists());
    found.next().expect("faketime is installed (scripts/setup.sh test)").display().to_string()
}
