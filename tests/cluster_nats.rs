//! Many nodes over NATS: two that ingest, two that serve, one log; every node may die, and every publisher may move.

mod support;

use std::path::PathBuf;

use nix::sys::signal::Signal;
use serde_json::Value;
use support::nats::{Nats, Version};
use support::postgres::{self, Database};
use support::publisher::{ffmpeg, marked_audio, publish, write_wav};
use support::server::Server;
use support::stt::{Stt, marker_service};
use support::viewer::{Viewer, assert_contiguous, finals};
use support::wait::until;

const TOKEN: &str = "a-broadcast-token-of-many-nodes-0";
const PAUSE_MS: usize = 700;
/// A session whose publisher has moved, or whose node has died, is not over at once.
const GRACE: (&str, &str) = ("SESSION_GRACE_MS", "6000");

fn expected(markers: impl IntoIterator<Item = u32>) -> Vec<String> {
    markers.into_iter().map(|n| format!("marker {n}")).collect()
}

/// Two ingest nodes and two ws nodes as processes of their own, on one NATS server and one database.
struct World {
    stt: Stt,
    nats: Nats,
    database: Database,
    dir: tempfile::TempDir,
    ingest: [Option<Server>; 2],
    ws: [Option<Server>; 2],
}

impl World {
    async fn start(version: Version) -> Self {
        let (stt, nats) = (marker_service().await, Nats::start(version).await);
        let database = postgres::cluster().fresh_database().await;
        let dir = tempfile::tempdir().unwrap();
        let mut world = Self { stt, nats, database, dir, ingest: [None, None], ws: [None, None] };
        for n in 0..2 {
            world.start_ws(n).await;
            world.start_ingest(n).await;
        }
        world
    }

    async fn start_ws(&mut self, n: usize) {
        let (database, nats) = (self.database.url(), self.nats.url());
        let node = format!("ws-{n}");
        let settings = [
            ("SERVER_MODE", "ws"),
            ("BUS", "nats"),
            ("NATS_URL", &nats),
            ("NODE_ID", &node),
            ("BROADCAST_TOKEN", TOKEN),
            ("DATABASE_URL", &database),
        ];
        self.ws[n] = Some(Server::start_drill(&self.folder(&node), &settings).await);
    }

    async fn start_ingest(&mut self, n: usize) {
        let (nats, stt) = (self.nats.url(), self.stt.url.clone());
        let node = format!("ingest-{n}");
        let settings = [
            ("SERVER_MODE", "rtmp"),
            ("BUS", "nats"),
            ("NATS_URL", &nats),
            ("NODE_ID", &node),
            ("BROADCAST_TOKEN", TOKEN),
            ("GLADIA_API_URL", &stt),
            GRACE,
            ("NATS_LEASE_MS", "3000"),
        ];
        self.ingest[n] = Some(Server::start_drill(&self.folder(&node), &settings).await);
    }

    fn folder(&self, node: &str) -> PathBuf {
        let dir = self.dir.path().join(node);
        std::fs::create_dir_all(&dir).unwrap();
        dir
    }

    fn ingest(&self, n: usize) -> &Server {
        self.ingest[n].as_ref().expect("it runs")
    }

    fn ws(&self, n: usize) -> &Server {
        self.ws[n].as_ref().expect("it runs")
    }

    fn rtmp_url(&self, n: usize, slug: &str) -> String {
        format!("rtmp://{}/live/{slug}", self.ingest(n).rtmp)
    }

    async fn join(&self, n: usize, slug: &str) -> Viewer {
        Viewer::connect(self.ws(n).http, slug, "").await
    }

    fn audio(&self, name: &str, markers: std::ops::RangeInclusive<u32>) -> PathBuf {
        let path = self.dir.path().join(format!("{name}-{}-{}.wav", markers.start(), markers.end()));
        write_wav(&path, &marked_audio(markers, PAUSE_MS));
        path
    }

    /// The finals of the room's newest session in the database, in order of their numbers.
    async fn stored(&self, slug: &str) -> Vec<(u64, String)> {
        let sql = format!(
            "select t.seq || ' ' || t.text from transcripts t join sessions s using (session_id) \
             where s.slug = '{slug}' and t.kind = 'final' order by t.session_id, t.seq"
        );
        let rows = self.database.query(&sql).await;
        rows.iter()
            .filter_map(|row| row.split_once(' '))
            .map(|(n, text)| (n.parse().unwrap(), text.to_owned()))
            .collect()
    }

    async fn stored_finals(&self, slug: &str, count: usize) -> Vec<String> {
        let all = async || {
            let found = self.stored(slug).await;
            if found.len() >= count { Ok(found) } else { Err(format!("{found:?}")) }
        };
        until("every final is in the database", all).await.into_iter().map(|(_, text)| text).collect()
    }
}

/// What a viewer sees of an entry that must be the same on every node.
fn identities(viewer: &Viewer) -> Vec<(String, u64, String)> {
    let durable = viewer.seen.iter().filter(|m| m["seq"].is_u64() && m["type"] != "hello");
    let text = |m: &Value| m["text"].as_str().or(m["status"].as_str()).unwrap_or_default().to_owned();
    durable.map(|m| (m["epoch"].to_string(), m["seq"].as_u64().unwrap(), text(m))).collect()
}

fn has_finals(count: usize) -> impl Fn(&[Value]) -> bool {
    move |seen| finals(seen).len() >= count
}

#[actix::test]
async fn what_is_published_on_one_node_is_read_on_every_other_and_stored_once() {
    for (version, slug) in [(Version::Newest, "demo"), (Version::Debian, "a.b~c")] {
        let world = World::start(version).await;
        let (mut near, mut far) = (world.join(0, slug).await, world.join(1, slug).await);
        publish(&world.audio("said", 1..=5), &world.rtmp_url(0, slug), true).await;
        near.until_ended().await;
        far.until_ended().await;
        assert_eq!(near.finals(), expected(1..=5));
        assert_eq!(identities(&near), identities(&far), "the same numbers on both nodes");
        assert_contiguous(&far.seqs(), 1);
        let interims = near.seen.iter().filter(|m| m["isFinal"] == false).count();
        assert!(interims > 0, "interims take the same way");
        assert_eq!(world.stored_finals(slug, 5).await, expected(1..=5));
    }
}

#[actix::test]
async fn a_publisher_that_moves_to_another_node_in_mid_sentence_loses_nothing() {
    let world = World::start(Version::Newest).await;
    let (mut near, mut far) = (world.join(0, "demo").await, world.join(1, "demo").await);
    let mut first = ffmpeg(&world.audio("first", 1..=9), &world.rtmp_url(0, "demo"), true);
    near.until("three finals", has_finals(3)).await;
    first.start_kill().unwrap();
    publish(&world.audio("second", 21..=26), &world.rtmp_url(1, "demo"), true).await;
    near.until_ended().await;
    far.until_ended().await;
    let heard = near.finals();
    assert!(heard.starts_with(&expected(1..=3)) && heard.ends_with(&expected(21..=26)[1..]), "{heard:?}");
    assert_eq!(identities(&near), identities(&far));
    assert_contiguous(&near.seqs(), 1);
    let epochs: std::collections::HashSet<_> = identities(&near).into_iter().map(|(epoch, ..)| epoch).collect();
    assert_eq!(epochs.len(), 1, "one session, wherever its publisher is");
    assert_eq!(world.stored_finals("demo", heard.len()).await, heard);
    let tree = world.ingest(0).tree().await;
    assert_eq!(tree["forwarders"][0]["state"]["rowsLeft"], 0, "{tree}");
}

#[actix::test]
async fn a_second_encoder_at_another_node_displaces_the_first_one() {
    let world = World::start(Version::Newest).await;
    let mut near = world.join(0, "demo").await;
    let first = ffmpeg(&world.audio("first", 1..=20), &world.rtmp_url(0, "demo"), true);
    near.until("three finals", has_finals(3)).await;
    publish(&world.audio("second", 31..=34), &world.rtmp_url(1, "demo"), true).await;
    near.until_ended().await;
    let heard = near.finals();
    assert!(heard.starts_with(&expected(1..=3)) && heard.ends_with(&expected(32..=34)), "{heard:?}");
    assert!(!first.wait_with_output().await.unwrap().status.success(), "it was sent away");
    assert_contiguous(&near.seqs(), 1);
    assert_eq!(world.stored_finals("demo", heard.len()).await, heard);
}

#[actix::test]
async fn a_killed_ingest_node_loses_no_final_and_its_publisher_goes_on_at_the_other() {
    let mut world = World::start(Version::Newest).await;
    let (mut near, mut far) = (world.join(0, "demo").await, world.join(1, "demo").await);
    let first = ffmpeg(&world.audio("first", 1..=12), &world.rtmp_url(0, "demo"), true);
    near.until("four finals", has_finals(4)).await;
    world.ingest(0).signal(Signal::SIGKILL);
    let (_, log) = world.ingest[0].take().unwrap().end().await;
    assert!(log.contains("room owned by this node"));
    drop(first);
    publish(&world.audio("second", 41..=44), &world.rtmp_url(1, "demo"), true).await;
    world.start_ingest(0).await;
    near.until_ended().await;
    far.until_ended().await;
    let heard = near.finals();
    assert!(heard.starts_with(&expected(1..=4)) && heard.ends_with(&expected(42..=44)), "{heard:?}");
    assert_eq!(identities(&near), identities(&far));
    assert_contiguous(&near.seqs(), 1);
    assert_eq!(world.stored_finals("demo", heard.len()).await, heard);
    let gap = near.seen.iter().find(|m| m["type"] == "gap").expect("what was not heard is said");
    assert_eq!(gap["reason"], "process_restart");
}

#[actix::test]
async fn a_killed_ingest_node_whose_publisher_never_comes_back_leaves_no_session_open() {
    let mut world = World::start(Version::Newest).await;
    let mut near = world.join(0, "demo").await;
    let first = ffmpeg(&world.audio("first", 1..=12), &world.rtmp_url(0, "demo"), true);
    near.until("two finals", has_finals(2)).await;
    world.ingest(0).signal(Signal::SIGKILL);
    world.ingest[0].take().unwrap().end().await;
    drop(first);
    near.until_ended().await;
    assert!(near.finals().starts_with(&expected(1..=2)));
    assert_contiguous(&near.seqs(), 1);
    assert!(near.seen.iter().any(|m| m["type"] == "gap" && m["reason"] == "process_restart"), "{:?}", near.seen);
}

#[actix::test]
async fn a_frozen_ingest_node_that_wakes_up_writes_nothing_that_others_do_not_agree_with() {
    let world = World::start(Version::Newest).await;
    let (mut near, mut far) = (world.join(0, "demo").await, world.join(1, "demo").await);
    let first = ffmpeg(&world.audio("first", 1..=12), &world.rtmp_url(0, "demo"), true);
    near.until("three finals", has_finals(3)).await;
    world.ingest(0).signal(Signal::SIGSTOP);
    publish(&world.audio("second", 51..=54), &world.rtmp_url(1, "demo"), true).await;
    near.until("the other goes on", |seen| finals(seen).contains(&"marker 53".to_owned())).await;
    world.ingest(0).signal(Signal::SIGCONT);
    drop(first);
    near.until_ended().await;
    far.until_ended().await;
    assert_eq!(identities(&near), identities(&far));
    assert_contiguous(&near.seqs(), 1);
    let mut heard = near.finals();
    assert_eq!(world.stored_finals("demo", heard.len()).await, heard);
    let count = heard.len();
    heard.sort();
    heard.dedup();
    assert_eq!(heard.len(), count, "none twice");
    let lost = async || world.ingest(0).log().contains("room lost to another node");
    until("it has found out", lost).await;
}

#[actix::test]
async fn viewers_of_a_killed_ws_node_go_on_at_another_without_a_hole() {
    let mut world = World::start(Version::Newest).await;
    let (mut near, mut far) = (world.join(0, "demo").await, world.join(1, "demo").await);
    let publisher = ffmpeg(&world.audio("said", 1..=10), &world.rtmp_url(0, "demo"), true);
    near.until("three finals", has_finals(3)).await;
    world.ws(0).signal(Signal::SIGKILL);
    world.ws[0].take().unwrap().end().await;
    let more = format!("&after={}&epoch={}", near.last_seq(), near.hello["epoch"].as_str().unwrap_or_default());
    let epoch = near.seen.iter().find_map(|m| m["epoch"].as_str()).unwrap().to_owned();
    let more = if near.hello["epoch"].is_null() { format!("&after={}&epoch={epoch}", near.last_seq()) } else { more };
    let mut moved = Viewer::connect(world.ws(1).http, "demo", &more).await;
    assert_eq!(moved.hello["recovered"], true);
    assert!(publisher.wait_with_output().await.unwrap().status.success());
    world.start_ws(0).await;
    moved.until_ended().await;
    far.until_ended().await;
    let both: Vec<_> = identities(&near).into_iter().chain(identities(&moved)).collect();
    assert_eq!(both, identities(&far));
    assert_eq!(far.finals(), expected(1..=10));
    assert_eq!(world.stored_finals("demo", 10).await, expected(1..=10));
}

#[actix::test]
async fn a_log_server_that_is_killed_and_comes_back_costs_nothing() {
    let mut world = World::start(Version::Newest).await;
    let (mut near, mut far) = (world.join(0, "demo").await, world.join(1, "demo").await);
    let publisher = ffmpeg(&world.audio("said", 1..=12), &world.rtmp_url(0, "demo"), true);
    near.until("three finals", has_finals(3)).await;
    world.nats.kill();
    let waits = async || {
        let rows = world.ingest(0).tree().await["forwarders"][0]["state"]["rowsLeft"].as_u64().unwrap_or(0);
        if rows >= 3 { Ok(()) } else { Err(rows) }
    };
    until("finals wait in the outbox", waits).await;
    world.nats.start_again().await;
    assert!(publisher.wait_with_output().await.unwrap().status.success());
    near.until_ended().await;
    far.until_ended().await;
    assert_eq!(near.finals(), expected(1..=12));
    assert_eq!(identities(&near), identities(&far));
    assert_contiguous(&near.seqs(), 1);
    assert_eq!(world.stored_finals("demo", 12).await, expected(1..=12));
}
