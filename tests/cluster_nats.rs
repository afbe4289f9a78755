//! Many nodes over NATS: two that ingest, two that serve, one log; every node may die, and every publisher may move.

mod support;

use nix::sys::signal::Signal;
use serde_json::{Value, json};
use support::cluster::{Cluster, identities};
use support::nats::Version;
use support::publisher::{ffmpeg, publish};
use support::server::request_as;
use support::stt::{Stt, marker_service};
use support::viewer::{Viewer, assert_contiguous, finals};
use support::wait::until;

fn expected(markers: impl IntoIterator<Item = u32>) -> Vec<String> {
    markers.into_iter().map(|n| format!("marker {n}")).collect()
}

async fn cluster() -> (Stt, Cluster) {
    let stt = marker_service().await;
    let cluster = Cluster::start(Version::Newest, &stt.url).await;
    (stt, cluster)
}

fn has_finals(count: usize) -> impl Fn(&[Value]) -> bool {
    move |seen| finals(seen).len() >= count
}

#[actix::test]
async fn what_is_published_on_one_node_is_read_on_every_other_and_stored_once() {
    for (version, slug) in [(Version::Newest, "demo"), (Version::Debian, "a.b~c")] {
        let stt = marker_service().await;
        let world = Cluster::start(version, &stt.url).await;
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
    let (_stt, world) = cluster().await;
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
    assert_eq!(world.rows_left(0).await, 0, "its last words are at the other node");
}

#[actix::test]
async fn a_second_encoder_at_another_node_displaces_the_first_one() {
    let (_stt, world) = cluster().await;
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
    let (_stt, mut world) = cluster().await;
    let (mut near, mut far) = (world.join(0, "demo").await, world.join(1, "demo").await);
    let first = ffmpeg(&world.audio("first", 1..=12), &world.rtmp_url(0, "demo"), true);
    near.until("four finals", has_finals(4)).await;
    world.kill_ingest(0).await;
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
    let (_stt, mut world) = cluster().await;
    let mut near = world.join(0, "demo").await;
    let first = ffmpeg(&world.audio("first", 1..=12), &world.rtmp_url(0, "demo"), true);
    near.until("two finals", has_finals(2)).await;
    world.kill_ingest(0).await;
    drop(first);
    near.until_ended().await;
    assert!(near.finals().starts_with(&expected(1..=2)));
    assert_contiguous(&near.seqs(), 1);
    assert!(near.seen.iter().any(|m| m["type"] == "gap" && m["reason"] == "process_restart"), "{:?}", near.seen);
}

#[actix::test]
async fn a_frozen_ingest_node_that_wakes_up_writes_nothing_that_others_do_not_agree_with() {
    let (_stt, world) = cluster().await;
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
    let (_stt, mut world) = cluster().await;
    let (mut near, mut far) = (world.join(0, "demo").await, world.join(1, "demo").await);
    let publisher = ffmpeg(&world.audio("said", 1..=10), &world.rtmp_url(0, "demo"), true);
    near.until("three finals", has_finals(3)).await;
    world.kill_ws(0).await;
    let mut moved = Viewer::connect(world.ws(1).http, "demo", &Cluster::resume(&near)).await;
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
    let (_stt, mut world) = cluster().await;
    let (mut near, mut far) = (world.join(0, "demo").await, world.join(1, "demo").await);
    let publisher = ffmpeg(&world.audio("said", 1..=12), &world.rtmp_url(0, "demo"), true);
    near.until("three finals", has_finals(3)).await;
    world.nats.kill();
    let waits = async || {
        let rows = world.rows_left(0).await;
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

#[actix::test]
async fn a_publisher_that_comes_while_the_log_server_is_away_is_heard() {
    let (_stt, mut world) = cluster().await;
    world.nats.kill();
    let publisher = ffmpeg(&world.audio("said", 1..=8), &world.rtmp_url(0, "demo"), true);
    let waits = async || {
        let rows = world.rows_left(0).await;
        if rows >= 4 { Ok(()) } else { Err(rows) }
    };
    until("finals wait in the outbox", waits).await;
    let not_ready = async || {
        let health = support::server::health(world.ws(0).http).await.expect("it answers");
        if health["status"] == "bus_away" { Ok(()) } else { Err(health.to_string()) }
    };
    until("the ws node says that it is not ready", not_ready).await;
    world.nats.start_again().await;
    let mut near = world.join(0, "demo").await;
    assert!(publisher.wait_with_output().await.unwrap().status.success());
    near.until_ended().await;
    assert!(near.finals().ends_with(&expected(5..=8)), "{:?}", near.finals());
    assert_eq!(world.stored_finals("demo", 8).await, expected(1..=8));
}

#[actix::test]
async fn both_services_are_restarted_node_by_node_and_nothing_is_lost() {
    let (_stt, mut world) = cluster().await;
    let mut far = world.join(1, "demo").await;
    let publisher = ffmpeg(&world.audio("first", 1..=8), &world.rtmp_url(0, "demo"), true);
    far.until("two finals", has_finals(2)).await;
    world.restart_ws(0).await;
    far.until("two more", has_finals(4)).await;
    world.restart_ingest(0).await;
    assert!(!publisher.wait_with_output().await.unwrap().status.success(), "it was sent away");
    publish(&world.audio("second", 61..=63), &world.rtmp_url(1, "demo"), true).await;
    world.restart_ingest(1).await;
    publish(&world.audio("third", 71..=73), &world.rtmp_url(0, "demo"), true).await;
    let mut near = world.join(0, "demo").await;
    far.until_ended().await;
    near.until_ended().await;
    let heard = far.finals();
    assert!(heard.starts_with(&expected(1..=4)) && heard.ends_with(&expected(71..=73)), "{heard:?}");
    assert!(heard.join(" ").contains(&expected(61..=63).join(" ")), "{heard:?}");
    assert_contiguous(&far.seqs(), 1);
    assert_eq!(world.stored_finals("demo", heard.len()).await, heard);
}

/// A line of a third party, posted to a ws node.
async fn post(world: &Cluster, n: usize, slug: &str, id: &str) -> (u16, Value) {
    let line = json!({"type": "transcript", "id": id, "isFinal": true, "text": id, "startMs": 0, "endMs": 1});
    let body = json!({"session": slug, "transcript": line}).to_string();
    let path = "/api/realtime/transcribe/broadcast";
    let posted = request_as(world.ws(n).http, support::cluster::TOKEN, "POST", path, &body).await;
    let (status, answer) = posted.expect("it answers");
    let json = answer.split_once("\r\n\r\n").map_or("", |(_, json)| json);
    (status, serde_json::from_str(json).unwrap_or_default())
}

#[actix::test]
async fn lines_of_third_parties_have_one_order_whichever_node_they_are_posted_to() {
    let (_stt, mut world) = cluster().await;
    let (mut near, mut far) = (world.join(0, "desk").await, world.join(1, "desk").await);
    for n in 0..6 {
        let (status, answer) = post(&world, n % 2, "desk", &format!("line {n}")).await;
        assert_eq!((status, &answer["accepted"]), (202, &json!(1)), "{answer}");
    }
    assert_eq!(post(&world, 1, "desk", "line 2").await.1["duplicates"], 1);
    near.until("every line", has_finals(6)).await;
    world.kill_ws(0).await;
    let taken = async || {
        let (status, answer) = post(&world, 1, "desk", "line 6").await;
        if status == 202 { Ok(()) } else { Err(format!("{status} {answer}")) }
    };
    until("the other node goes on with the room", taken).await;
    far.until("the next line", has_finals(7)).await;
    let lines: Vec<_> = (0..7).map(|n| format!("line {n}")).collect();
    assert_eq!(far.finals(), lines);
    assert!(identities(&far).starts_with(&identities(&near)), "{:?} {:?}", identities(&near), identities(&far));
    assert_contiguous(&far.seqs(), 1);
    assert_eq!(world.stored_finals("desk", 7).await, lines);
}

#[actix::test]
async fn a_publisher_outranks_third_parties_wherever_both_are() {
    let (_stt, world) = cluster().await;
    let mut far = world.join(1, "desk").await;
    assert_eq!(post(&world, 0, "desk", "before").await.0, 202);
    let publisher = ffmpeg(&world.audio("said", 1..=5), &world.rtmp_url(0, "desk"), true);
    far.until_ended().await;
    assert_eq!(far.finals(), ["before"]);
    far.until("a final", |seen| finals(seen).contains(&"marker 2".to_owned())).await;
    let (status, answer) = post(&world, 1, "desk", "beside").await;
    assert_eq!(status, 202, "{answer}");
    assert!(publisher.wait_with_output().await.unwrap().status.success());
    far.until("the end of the second session", |seen| seen.iter().filter(|m| m["status"] == "ended").count() == 2)
        .await;
    let mut heard = far.finals();
    heard.retain(|line| line != "beside");
    assert_eq!(heard, [vec!["before".to_owned()], expected(1..=5)].concat());
    assert_eq!(world.stored_finals("desk", 7).await, far.finals());
}

#[actix::test]
async fn a_ws_node_shows_more_rooms_than_one_node_may_have_sessions() {
    const ROOMS: usize = 12;
    let (_stt, mut world) = cluster().await;
    const ADMIN: &str = "an-admin-token-of-many-rooms-0";
    let few = [("MAX_SESSIONS", "4"), ("ADMIN_TOKEN", ADMIN)];
    world.restart_ws_with(1, &few).await;
    let mut viewers = Vec::new();
    for n in 0..ROOMS {
        let slug = format!("desk-{n}");
        assert_eq!(post(&world, 0, &slug, "said").await.0, 202);
        viewers.push(world.join(1, &slug).await);
        viewers[n].until("the line", has_finals(1)).await;
    }
    let (_, list) = request_as(world.ws(1).http, ADMIN, "GET", "/api/sessions", "").await.unwrap();
    assert!((0..ROOMS).all(|n| list.contains(&format!("\"desk-{n}\""))), "{list}");
}
