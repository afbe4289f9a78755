//! Promise: lines that come by POST broadcast keep their order, their numbers and their identity over restarts, and
//! what another node numbers stays that node's.

mod support;

use serde_json::{Value, json};
use stenocast::transcript::{Epoch, Slug};
use support::app::TestApp;
use support::publisher::{ffmpeg, marked_audio, write_wav};
use support::server::request_as;
use support::stt::marker_service;
use support::viewer::{Viewer, assert_contiguous};

const TOKEN: &str = "broadcast-secret";
const SETTINGS: &[(&str, &str)] = &[("SERVER_MODE", "ws"), ("BROADCAST_TOKEN", TOKEN)];

/// A line of a third party.
fn line(id: &str) -> Value {
    json!({"id": id, "isFinal": true, "text": format!("text of {id}"), "startMs": 0, "endMs": 900})
}

/// The same, numbered by its origin.
fn numbered(epoch: Epoch, seq: u64) -> Value {
    let mut line = line(&format!("{epoch}-{seq}"));
    (line["epoch"], line["seq"]) = (json!(epoch), json!(seq));
    line
}

fn ended(epoch: Epoch, seq: u64) -> Value {
    json!({"type": "status", "status": "ended", "id": format!("end-{epoch}"), "epoch": epoch, "seq": seq})
}

async fn post(server: &TestApp, slug: &str, lines: &[Value]) -> (u16, Value) {
    let body = json!({"session": slug, "transcripts": lines}).to_string();
    let path = "/api/realtime/transcribe/broadcast";
    let (status, answer) = request_as(server.app.http_addr(), TOKEN, "POST", path, &body).await.expect("it answers");
    let body = answer.split_once("\r\n\r\n").map_or("", |(_, body)| body);
    (status, serde_json::from_str(body).expect("JSON"))
}

fn ack(accepted: u64, duplicates: u64, seq: u64) -> (u16, Value) {
    (202, json!({"accepted": accepted, "duplicates": duplicates, "seq": seq}))
}

async fn stored_seqs(server: &TestApp, slug: &str) -> Vec<u64> {
    let entries = server.app.stored_entries(&Slug::parse(slug).unwrap()).await.expect("the database answers");
    entries.iter().filter_map(stenocast::transcript::Entry::seq).collect()
}

#[actix::test]
async fn what_another_node_numbers_is_not_for_third_parties() {
    let server = TestApp::start(SETTINGS).await;
    let epoch = Epoch::now_v7();
    assert_eq!(post(&server, "demo", &[numbered(epoch, 1), numbered(epoch, 2)]).await, ack(2, 0, 2));
    let (status, answer) = post(&server, "demo", &[line("mine")]).await;
    assert_eq!((status, &answer["expected"]), (409, &json!(3)), "{answer}");
    let (status, answer) = post(&server, "demo", &[numbered(epoch, 4)]).await;
    assert_eq!((status, &answer["expected"]), (409, &json!(3)), "{answer}");
    // Where this node numbers, nobody else does; an origin of its own outranks it.
    assert_eq!(post(&server, "talk", &[line("a")]).await, ack(1, 0, 1));
    let ours = server.session("talk").await["epoch"].as_str().unwrap().parse().unwrap();
    let (status, answer) = post(&server, "talk", &[numbered(ours, 2)]).await;
    assert_eq!((status, &answer["expected"]), (409, &json!(2)), "{answer}");
    let (status, answer) = post(&server, "talk", &[numbered(epoch, 1)]).await;
    assert_eq!(status, 422, "that is demo's: {answer}");
    let epoch = Epoch::now_v7();
    assert_eq!(post(&server, "talk", &[numbered(epoch, 1)]).await, ack(1, 0, 1));
    assert_eq!(server.session("talk").await["epoch"], json!(epoch));
    server.stop().await;
}

#[actix::test]
async fn a_mirrored_log_goes_on_after_restarts_and_nothing_is_added_to_it() {
    let server = TestApp::start(SETTINGS).await;
    let epoch = Epoch::now_v7();
    let lines = |seqs: std::ops::RangeInclusive<u64>| seqs.map(|seq| numbered(epoch, seq)).collect::<Vec<_>>();
    assert_eq!(post(&server, "demo", &lines(1..=3)).await, ack(3, 0, 3));
    let dir = server.stop().await;
    let server = TestApp::start_in(dir, SETTINGS).await;
    assert_eq!(stored_seqs(&server, "demo").await, [1, 2, 3], "no status of ours");
    let mut viewer = Viewer::connect(server.app.http_addr(), "demo", &format!("&after=2&epoch={epoch}")).await;
    assert_eq!((&viewer.hello["recovered"], &viewer.hello["seq"]), (&json!(true), &json!(3)));
    assert_eq!(post(&server, "demo", &lines(3..=4)).await, ack(1, 1, 4));
    viewer.until("what was missed and what is new", |seen| seen.len() == 2).await;
    assert_eq!(viewer.seqs(), [3, 4]);
    // Without a checkpoint the log's end is found in the database and the outbox.
    let dir = server.stop().await;
    std::fs::remove_dir_all(dir.path().join("sessions")).unwrap();
    let server = TestApp::start_in(dir, SETTINGS).await;
    let (status, answer) = post(&server, "demo", &lines(6..=6)).await;
    assert_eq!((status, &answer["expected"]), (409, &json!(5)), "{answer}");
    assert_eq!(post(&server, "demo", &lines(4..=5)).await, ack(1, 1, 5));
    assert_eq!(stored_seqs(&server, "demo").await, [1, 2, 3, 4, 5]);
    server.stop().await;
}

#[actix::test]
async fn what_was_posted_before_a_restart_is_known_after_it_however_much_it_is() {
    let server = TestApp::start(SETTINGS).await;
    let lines: Vec<Value> = (1..=1000).map(|n| line(&format!("l{n}"))).collect();
    let epoch = Epoch::now_v7();
    let numbered: Vec<Value> = (1..=1010).map(|seq| numbered(epoch, seq)).collect();
    assert_eq!(post(&server, "talk", &lines).await, ack(1000, 0, 1000));
    assert_eq!(post(&server, "demo", &numbered[..1000]).await, ack(1000, 0, 1000));
    assert_eq!(post(&server, "demo", &numbered[1000..]).await, ack(10, 0, 1010));
    let dir = server.stop().await;
    let server = TestApp::start_in(dir, SETTINGS).await;
    // Our own `suspended` and `live` are numbers 1001 and 1002.
    assert_eq!(post(&server, "talk", &lines).await, ack(0, 1000, 1002));
    assert_eq!(post(&server, "demo", &numbered[..1000]).await, ack(0, 1000, 1010));
    assert_contiguous(&stored_seqs(&server, "talk").await, 1);
    server.stop().await;
}

#[actix::test]
async fn a_viewer_that_comes_after_a_restart_is_shown_what_was_said_before() {
    let server = TestApp::start(SETTINGS).await;
    assert_eq!(post(&server, "talk", &[line("a"), line("b")]).await, ack(2, 0, 2));
    let dir = server.stop().await;
    let server = TestApp::start_in(dir, SETTINGS).await;
    server.session_until("talk", "it goes on", |s| s["seq"] == 4).await;
    let mut viewer = Viewer::connect(server.app.http_addr(), "talk", "").await;
    assert_eq!(
        (&viewer.hello["recovered"], &viewer.hello["status"]),
        (&json!(true), &json!("live")),
        "nobody is waited for"
    );
    viewer.until("all of it", |seen| seen.iter().any(|m| m["seq"] == 4)).await;
    assert_contiguous(&viewer.seqs(), 1);
    server.stop().await;
}

#[actix::test]
async fn a_post_is_of_one_epoch() {
    let server = TestApp::start(SETTINGS).await;
    let (first, second) = (Epoch::now_v7(), Epoch::now_v7());
    let (status, answer) = post(&server, "demo", &[numbered(first, 1), numbered(second, 2)]).await;
    assert_eq!(status, 422, "{answer}");
    assert!(answer.to_string().contains("transcripts[1].epoch"), "{answer}");
    assert!(server.session("demo").await.is_null(), "nothing was begun for it");
    server.stop().await;
}

#[actix::test]
async fn the_last_lines_of_a_log_may_come_after_the_first_of_the_next() {
    let server = TestApp::start(SETTINGS).await;
    let (first, second) = (Epoch::now_v7(), Epoch::now_v7());
    let mut viewer = Viewer::join(&server, "demo").await;
    assert_eq!(post(&server, "demo", &[numbered(first, 1)]).await, ack(1, 0, 1));
    assert_eq!(post(&server, "demo", &[numbered(second, 1)]).await, ack(1, 0, 1));
    assert_eq!(post(&server, "demo", &[numbered(first, 2), ended(first, 3)]).await, ack(2, 0, 3));
    let (status, answer) = post(&server, "demo", &[numbered(first, 4)]).await;
    assert_eq!((status, &answer["expected"]), (409, &json!(4)), "{answer}");
    assert_eq!(post(&server, "demo", &[ended(first, 3)]).await, ack(0, 1, 3), "a repetition is no fault");
    assert_eq!(post(&server, "demo", &[numbered(second, 2)]).await, ack(1, 0, 2));
    viewer.until("both logs", |seen| seen.iter().filter(|m| m["epoch"] == json!(second)).count() == 3).await;
    let of = |epoch: Epoch| {
        let entries = viewer.seen.iter().filter(move |m| m["epoch"] == json!(epoch) && m["type"] != "hello");
        entries.filter_map(|m| m["seq"].as_u64()).collect::<Vec<_>>()
    };
    assert_eq!((of(first), of(second)), (vec![1, 2, 3], vec![1, 2]));
    server.stop().await;
}

#[actix::test]
async fn a_relayed_session_goes_on_after_a_restart_and_begins_anew_after_its_end() {
    let server = TestApp::start(SETTINGS).await;
    assert_eq!(post(&server, "talk", &[line("a"), line("b")]).await, ack(2, 0, 2));
    let epoch = server.session("talk").await["epoch"].clone();
    let dir = server.stop().await;
    let server = TestApp::start_in(dir, SETTINGS).await;
    assert_eq!(server.session("talk").await["origin"], "relay");
    // Between them is our own `suspended`.
    assert_eq!(post(&server, "talk", &[line("b"), line("c")]).await, ack(1, 1, 5));
    assert_eq!(server.session("talk").await["epoch"], epoch);
    assert_contiguous(&stored_seqs(&server, "talk").await, 1);
    let end = json!({"type": "status", "status": "ended", "id": "end"});
    assert_eq!(post(&server, "talk", &[end]).await, ack(1, 0, 6));
    server.session_until("talk", "its session is over", Value::is_null).await;
    assert_contiguous(&stored_seqs(&server, "talk").await, 1);
    assert_eq!(post(&server, "talk", &[line("d")]).await, ack(1, 0, 1));
    assert_ne!(server.session("talk").await["epoch"], epoch);
    server.stop().await;
}

#[actix::test]
async fn a_refused_post_changes_nothing() {
    let server = TestApp::start(SETTINGS).await;
    let (first, second) = (Epoch::now_v7(), Epoch::now_v7());
    assert_eq!(post(&server, "demo", &[numbered(first, 1)]).await, ack(1, 0, 1));
    let (status, answer) = post(&server, "demo", &[numbered(second, 5)]).await;
    assert_eq!((status, &answer["expected"]), (409, &json!(1)), "{answer}");
    assert_eq!(server.session("demo").await["epoch"], json!(first), "it goes on");
    assert_eq!(post(&server, "demo", &[numbered(first, 2)]).await, ack(1, 0, 2));
    // Not even another room's epoch can be taken.
    let (status, answer) = post(&server, "other", &[numbered(first, 1)]).await;
    assert_eq!(status, 422, "{answer}");
    let (status, answer) = post(&server, "demo", &[numbered(Epoch::new_v4(), 1)]).await;
    assert_eq!(status, 422, "a random epoch has no place in time: {answer}");
    server.stop().await;
}

#[actix::test]
async fn a_third_party_cannot_end_what_is_published_here() {
    let stt = marker_service().await;
    let server = TestApp::start(&[("GLADIA_API_URL", &stt.url), ("BROADCAST_TOKEN", TOKEN)]).await;
    let mut viewer = Viewer::join(&server, "live").await;
    let file = server.dir.path().join("marked.wav");
    write_wav(&file, &marked_audio(1..=4, 700));
    let publisher = ffmpeg(&file, &server.rtmp_url("live"), true);
    viewer.until("a final", |seen| !support::viewer::finals(seen).is_empty()).await;
    let end = json!({"type": "status", "status": "ended", "id": "end"});
    let (status, answer) = post(&server, "live", &[end]).await;
    assert_eq!(status, 409, "{answer}");
    assert_eq!(post(&server, "live", &[line("a note")]).await.0, 202, "lines are welcome");
    assert!(publisher.wait_with_output().await.unwrap().status.success());
    server.end("live").await;
    viewer.until_ended().await;
    let markers: Vec<_> = viewer.finals().into_iter().filter(|text| text.starts_with("marker")).collect();
    assert_eq!(markers, ["marker 1", "marker 2", "marker 3", "marker 4"]);
    server.stop().await;
}

#[actix::test]
async fn a_log_that_has_ended_takes_repetitions_and_nothing_new() {
    let server = TestApp::start(SETTINGS).await;
    let epoch = Epoch::now_v7();
    let lines = [numbered(epoch, 1), ended(epoch, 2)];
    assert_eq!(post(&server, "demo", &lines).await, ack(2, 0, 2));
    server.session_until("demo", "its session is over", Value::is_null).await;
    assert_eq!(post(&server, "demo", &lines).await, ack(0, 2, 2));
    let (status, answer) = post(&server, "demo", &[numbered(epoch, 3)]).await;
    assert_eq!((status, &answer["expected"]), (409, &json!(3)), "{answer}");
    assert!(server.session("demo").await.is_null());
    assert_eq!(stored_seqs(&server, "demo").await, [1, 2]);
    server.stop().await;
}

/// Each epoch follows the one before it, which stays a while for its last entries.
#[actix::test]
async fn ever_later_epochs_of_one_slug_begin_no_more_sessions_than_are_allowed() {
    let server = TestApp::start(&[SETTINGS, &[("MAX_SESSIONS", "3")]].concat()).await;
    let mut answers = Vec::new();
    for _ in 0..6 {
        let epoch = Epoch::now_v7();
        answers.push(post(&server, "demo", &[numbered(epoch, 1)]).await.0);
    }
    assert_eq!(answers, [202, 202, 202, 202, 503, 503], "one that lives, and three that are ending");
    assert_eq!(server.app.metrics().sessions_total.get(), 4);
    server.stop().await;
}

#[actix::test]
async fn broadcasts_begin_no_more_sessions_than_are_allowed() {
    let server = TestApp::start(&[SETTINGS, &[("MAX_SESSIONS", "1")]].concat()).await;
    assert_eq!(post(&server, "one", &[line("a")]).await.0, 202);
    let (status, answer) = post(&server, "two", &[line("a")]).await;
    assert_eq!((status, &answer["error"]["code"]), (503, &json!("too_many_sessions")), "{answer}");
    assert_eq!(post(&server, "one", &[line("b")]).await.0, 202);
    server.stop().await;
}
