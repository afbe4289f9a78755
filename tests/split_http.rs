//! Two services over HTTP: what is published on an ingest node is read, stored and resumed on ws nodes.

mod support;

use std::path::PathBuf;
use std::time::Duration;

use serde_json::{Value, json};
use stenocast::transcript::{Epoch, Slug};
use support::app::TestApp;
use support::chaos_proxy::ChaosProxy;
use support::postgres;
use support::publisher::{ffmpeg, marked_audio, publish, write_wav};
use support::stt::marker_service;
use support::viewer::{Viewer, assert_contiguous};
use support::wait::until;

const TOKEN: &str = "a-broadcast-token-of-two-nodes-0";
const PAUSE_MS: usize = 700;

fn expected(markers: impl IntoIterator<Item = u32>) -> Vec<String> {
    markers.into_iter().map(|n| format!("marker {n}")).collect()
}

fn audio(server: &TestApp, markers: std::ops::RangeInclusive<u32>) -> PathBuf {
    let path = server.dir.path().join(format!("marked-{}-{}.wav", markers.start(), markers.end()));
    write_wav(&path, &marked_audio(markers, PAUSE_MS));
    path
}

async fn ws_node(more: &[(&str, &str)]) -> TestApp {
    TestApp::start(&[&[("SERVER_MODE", "ws"), ("BROADCAST_TOKEN", TOKEN)], more].concat()).await
}

/// An ingest node that sends to these.
async fn ingest_node(stt: &str, targets: &str, more: &[(&str, &str)]) -> TestApp {
    TestApp::start(&ingest_settings(stt, targets, more)).await
}

fn ingest_settings<'a>(stt: &'a str, targets: &'a str, more: &[(&'a str, &'a str)]) -> Vec<(&'a str, &'a str)> {
    let settings =
        [("SERVER_MODE", "rtmp"), ("BROADCAST_TOKEN", TOKEN), ("WS_SERVER_URL", targets), ("GLADIA_API_URL", stt)];
    [&settings[..], more].concat()
}

fn url(server: &TestApp) -> String {
    format!("http://{}", server.app.http_addr())
}

async fn nothing_waits(ingest: &TestApp) {
    let arrived = async || {
        let forwarders = ingest.tree().await["forwarders"].take();
        let all = forwarders.as_array().expect("it has some");
        if all.iter().all(|one| one["state"]["rowsLeft"] == 0) { Ok(()) } else { Err(forwarders) }
    };
    until("every row has arrived", arrived).await;
}

async fn state_of_target(ingest: &TestApp) -> String {
    ingest.tree().await["forwarders"][0]["state"]["state"].as_str().unwrap_or("gone").to_owned()
}

/// What a viewer sees of an entry that must be the same on every node.
fn identities(viewer: &Viewer) -> Vec<(String, u64, String)> {
    let durable = viewer.seen.iter().filter(|m| m["seq"].is_u64() && m["type"] != "hello");
    let text = |m: &Value| m["text"].as_str().or(m["status"].as_str()).unwrap_or_default().to_owned();
    durable.map(|m| (m["epoch"].to_string(), m["seq"].as_u64().unwrap(), text(m))).collect()
}

#[actix::test]
async fn what_is_published_here_is_read_and_stored_there() {
    let stt = marker_service().await;
    let ws = ws_node(&[]).await;
    let ingest = ingest_node(&stt.url, &url(&ws), &[]).await;
    let mut viewer = Viewer::join(&ws, "demo").await;
    publish(&audio(&ingest, 1..=4), &ingest.rtmp_url("demo"), true).await;
    ingest.end("demo").await;
    viewer.until_ended().await;
    assert_eq!(viewer.finals(), expected(1..=4));
    assert_contiguous(&viewer.seqs(), 1);
    assert_eq!(ws.stored_finals("demo").await, expected(1..=4));
    nothing_waits(&ingest).await;
    // The row says what the ingest node knows of the audio.
    let slug = Slug::parse("demo").unwrap();
    let store = ws.app.storage().store.clone().expect("a ws node has a database");
    until("the row of a session that has ended", async || {
        let row = store.latest_session(&slug).await.unwrap().expect("its row");
        row.audio.received_ms > 0 && row.ended_at.is_some()
    })
    .await;
    assert!(ingest.app.storage().store.is_none(), "an ingest node has no database");
    assert!(ingest.app.metrics().forward_latency_seconds.get_sample_count() > 0);
    ingest.stop().await;
    ws.stop().await;
}

#[actix::test]
async fn in_one_process_there_is_no_hop() {
    let stt = marker_service().await;
    let server = TestApp::start(&[("GLADIA_API_URL", &stt.url)]).await;
    publish(&audio(&server, 1..=2), &server.rtmp_url("demo"), false).await;
    server.end("demo").await;
    assert!(server.tree().await["forwarders"].is_null());
    let text = server.app.metrics().encode();
    let posts = text.lines().filter(|line| line.starts_with("stenocast_forward_posts_total{"));
    assert!(posts.clone().count() > 0 && posts.clone().all(|line| line.ends_with(" 0")), "{posts:?}");
    assert!(text.lines().all(|line| !line.contains("broadcast_entries_total{result=\"accepted\"} 1")));
    server.stop().await;
}

#[actix::test]
async fn two_ws_nodes_of_which_one_is_away_show_the_same_in_the_end() {
    let stt = marker_service().await;
    let database = postgres::cluster().fresh_database().await;
    let (first, second) =
        (ws_node(&[("DATABASE_URL", &database.url())]).await, ws_node(&[("DATABASE_URL", &database.url())]).await);
    let proxy = ChaosProxy::start(second.app.http_addr()).await;
    let targets = format!("{},http://{}", url(&first), proxy.addr);
    let ingest = ingest_node(&stt.url, &targets, &[]).await;
    let (mut near, mut far) = (Viewer::join(&first, "demo").await, Viewer::join(&second, "demo").await);
    let publisher = ffmpeg(&audio(&ingest, 1..=8), &ingest.rtmp_url("demo"), true);
    far.until("a final there", |seen| !support::viewer::finals(seen).is_empty()).await;
    proxy.break_off();
    near.until("the others go on", |seen| support::viewer::finals(seen).len() >= 5).await;
    assert!(far.finals().len() < 5, "it is away");
    proxy.restore();
    assert!(publisher.wait_with_output().await.unwrap().status.success());
    ingest.end("demo").await;
    near.until_ended().await;
    far.until_ended().await;
    assert_eq!(near.finals(), expected(1..=8));
    assert_eq!(identities(&near), identities(&far), "the same numbers, without holes");
    assert_contiguous(&far.seqs(), 1);
    nothing_waits(&ingest).await;
    assert_eq!(first.stored_finals("demo").await, expected(1..=8));
    assert_eq!(second.stored_finals("demo").await, expected(1..=8), "both write into one database, once each");
    for server in [ingest, first, second] {
        server.stop().await;
    }
}

#[actix::test]
async fn a_viewer_resumes_at_another_ws_node_and_after_its_restart() {
    let stt = marker_service().await;
    let (first, second) = (ws_node(&[]).await, ws_node(&[]).await);
    let targets = format!("{},{}", url(&first), url(&second));
    let ingest = ingest_node(&stt.url, &targets, &[]).await;
    let mut viewer = Viewer::join(&first, "demo").await;
    let publisher = ffmpeg(&audio(&ingest, 1..=9), &ingest.rtmp_url("demo"), true);
    viewer.until("two finals", |seen| support::viewer::finals(seen).len() >= 2).await;
    let epoch = viewer.seen.last().unwrap()["epoch"].as_str().unwrap().to_owned();
    let more = format!("&after={}&epoch={epoch}", viewer.last_seq());
    // Though that node may be a little behind this one.
    let mut moved = Viewer::connect(second.app.http_addr(), "demo", &more).await;
    assert_eq!(moved.hello["recovered"], true);
    moved.until("two more", |seen| support::viewer::finals(seen).len() >= 2).await;
    // The node restarts, on its directory: what was said meanwhile comes.
    let last = moved.last_seq();
    let port = second.app.http_addr().port().to_string();
    let dir = second.stop().await;
    let same = [("SERVER_MODE", "ws"), ("BROADCAST_TOKEN", TOKEN), ("PORT", &port)];
    let second = TestApp::start_in(dir, &same).await;
    assert!(publisher.wait_with_output().await.unwrap().status.success());
    ingest.end("demo").await;
    let mut again = Viewer::connect(second.app.http_addr(), "demo", &format!("&after={last}&epoch={epoch}")).await;
    again.until_ended().await;
    let texts: Vec<String> = [viewer.finals(), moved.finals(), again.finals()].concat();
    let seqs = [viewer.seqs(), moved.seqs(), again.seqs()].concat();
    assert_contiguous(&seqs, 1);
    assert_eq!(texts, expected(1..=9));
    for server in [ingest, first, second] {
        server.stop().await;
    }
}

#[actix::test]
async fn what_waits_for_a_node_that_is_away_survives_a_restart_of_the_ingest_node() {
    let stt = marker_service().await;
    let ws = ws_node(&[]).await;
    let proxy = ChaosProxy::start(ws.app.http_addr()).await;
    proxy.break_off();
    let target = format!("http://{}", proxy.addr);
    let ingest = ingest_node(&stt.url, &target, &[("SHUTDOWN_TIMEOUT_MS", "2000")]).await;
    publish(&audio(&ingest, 1..=3), &ingest.rtmp_url("first"), false).await;
    ingest.end("first").await;
    publish(&audio(&ingest, 4..=5), &ingest.rtmp_url("second"), false).await;
    ingest.session_until("second", "its finals are numbered", |s| s["seq"].as_u64() >= Some(3)).await;
    assert_eq!(state_of_target(&ingest).await, "down");
    let dir = ingest.stop().await;
    proxy.restore();
    let ingest = TestApp::start_in(dir, &ingest_settings(&stt.url, &target, &[])).await;
    ingest.end("second").await;
    nothing_waits(&ingest).await;
    assert_eq!(ws.stored_finals("first").await, expected(1..=3));
    assert_eq!(ws.stored_finals("second").await, expected(4..=5));
    ingest.stop().await;
    ws.stop().await;
}

#[actix::test]
async fn a_forwarder_that_dies_loses_and_repeats_nothing() {
    let stt = marker_service().await;
    let ws = ws_node(&[]).await;
    let ingest = ingest_node(&stt.url, &url(&ws), &[]).await;
    let mut viewer = Viewer::join(&ws, "demo").await;
    let publisher = ffmpeg(&audio(&ingest, 1..=6), &ingest.rtmp_url("demo"), true);
    for n in 1..=2 {
        viewer.until("finals", |seen| support::viewer::finals(seen).len() >= 2 * n).await;
        let kind = stenocast::actors::supervision::ChildKind::Forwarder;
        let crash = stenocast::actors::root::Drill::Crash { slug: None, kind };
        assert!(ingest.app.root().send(crash).await.unwrap());
        until("it lives again", async || ingest.tree().await["forwarders"][0]["restarts"] == n).await;
    }
    assert!(publisher.wait_with_output().await.unwrap().status.success());
    ingest.end("demo").await;
    viewer.until_ended().await;
    assert_eq!(viewer.finals(), expected(1..=6));
    assert_contiguous(&viewer.seqs(), 1);
    assert_eq!(ws.stored_finals("demo").await, expected(1..=6));
    ingest.stop().await;
    ws.stop().await;
}

#[actix::test]
async fn a_ws_node_behind_tls_is_trusted_by_the_authority_that_is_named() {
    let stt = marker_service().await;
    let ws = ws_node(&[]).await;
    let dir = tempfile::tempdir().unwrap();
    support::certificates::make(dir.path());
    let path = |name: &str| dir.path().join(name).to_str().expect("a UTF-8 path").to_owned();
    let tls = format!("ssl_certificate {}; ssl_certificate_key {};", path("ws.pem"), path("ws.key"));
    let proxy = "location / { proxy_pass http://UPSTREAM; proxy_http_version 1.1; proxy_read_timeout 60s; }";
    let http = format!("server {{ listen LISTEN ssl; {tls} client_max_body_size 2m; {proxy} }}");
    let front = support::front::Front::nginx(ws.app.http_addr(), &http);
    let url = format!("https://{}", front.addr);
    let stranger = ingest_node(&stt.url, &url, &[]).await;
    until("it is not trusted", async || state_of_target(&stranger).await == "down").await;
    let fault = stranger.tree().await["forwarders"][0]["state"]["fault"].to_string();
    assert!(fault.contains("certificate"), "{fault}");
    stranger.stop().await;
    let ingest = ingest_node(&stt.url, &url, &[("CA_FILE", &path("ca.pem"))]).await;
    publish(&audio(&ingest, 1..=3), &ingest.rtmp_url("demo"), false).await;
    ingest.end("demo").await;
    nothing_waits(&ingest).await;
    assert_eq!(ws.stored_finals("demo").await, expected(1..=3));
    ingest.stop().await;
    ws.stop().await;
}

#[actix::test]
async fn a_wrong_token_is_loud_and_does_not_hammer() {
    let stt = marker_service().await;
    let ws = TestApp::start(&[("SERVER_MODE", "ws"), ("BROADCAST_TOKEN", "another-token-than-the-sender-has")]).await;
    let ingest = ingest_node(&stt.url, &url(&ws), &[]).await;
    publish(&audio(&ingest, 1..=6), &ingest.rtmp_url("demo"), false).await;
    ingest.session_until("demo", "finals", |s| s["seq"].as_u64() >= Some(4)).await;
    assert_eq!(state_of_target(&ingest).await, "denied");
    let fault = ingest.tree().await["forwarders"][0]["state"]["fault"].to_string();
    assert!(fault.contains("401") && !fault.contains(TOKEN), "{fault}");
    let denied = ingest.app.metrics().forward_posts_total.with_label_values(&["denied"]).get();
    assert!(denied <= 2, "{denied} posts");
    let health: Value =
        awc::Client::new().get(format!("{}/health", url(&ingest))).send().await.unwrap().json().await.unwrap();
    assert_eq!((&health["status"], &health["mode"]), (&json!("degraded"), &json!("rtmp")), "{health}");
    assert!(health["reasons"].to_string().contains("wait for it in the outbox"), "{health}");
    ingest.stop().await;
    ws.stop().await;
}

#[actix::test]
async fn speakers_and_viewers_of_a_ws_node_are_known_at_the_ingest_node() {
    let stt = marker_service().await;
    let ws = ws_node(&[]).await;
    let ingest = ingest_node(&stt.url, &url(&ws), &[]).await;
    let mut viewer = Viewer::join(&ws, "talk").await;
    let mut browser = Viewer::join(&ws, "talk").await;
    let publisher = ffmpeg(&audio(&ingest, 1..=5), &ingest.rtmp_url("talk"), true);
    viewer.until("the session", |seen| seen.iter().any(|m| m["status"] == "live")).await;
    let speaking = actix_rt::spawn(async move {
        let mut often = tokio::time::interval(Duration::from_millis(200));
        loop {
            often.tick().await;
            let speakers = json!([{"identity": "tester", "name": "Tess", "level": 0.8}]);
            browser.send(&json!({"type": "active_speakers", "speakers": speakers})).await;
        }
    });
    let room = ingest.app.directory().get(&Slug::parse("talk").unwrap()).expect("a session is there");
    until("both viewers are known", async || room.viewers_anywhere() == 2).await;
    assert!(publisher.wait_with_output().await.unwrap().status.success());
    speaking.abort();
    ingest.end("talk").await;
    viewer.until_ended().await;
    let speakers: Vec<_> = viewer.seen.iter().filter(|m| m["isFinal"] == true).map(|m| &m["speaker"]).collect();
    assert_eq!(speakers.len(), 5);
    assert!(speakers[1..].iter().all(|s| s["name"] == "Tess"), "{speakers:?}");
    drop(viewer);
    until("nobody watches any more", async || room.viewers_anywhere() == 0).await;
    ingest.stop().await;
    ws.stop().await;
}

#[actix::test]
async fn another_version_of_the_protocol_is_named_and_changes_nothing() {
    let ws = ws_node(&[]).await;
    let post = awc::Client::new().post(format!("{}/api/realtime/transcribe/broadcast", url(&ws)));
    let line = json!({"id": "a", "text": "a", "isFinal": true, "startMs": 0, "endMs": 1});
    let body = json!({"session": "demo", "transcripts": [line]});
    let sent = post.bearer_auth(TOKEN).insert_header(("stenocast-protocol", "2")).send_json(&body).await;
    let mut answer = sent.unwrap();
    let body: Value = answer.json().await.unwrap();
    assert_eq!((answer.status().as_u16(), &body["error"]["code"]), (400, &json!("protocol_version")), "{body}");
    assert!(ws.session("demo").await.is_null());
    ws.stop().await;
}

/// What an ingest node that has lost its own past says: the rest is taken, and what is missing is no secret.
#[actix::test]
async fn a_log_whose_beginning_is_lost_goes_on_where_its_origin_says() {
    let ws = ws_node(&[]).await;
    let epoch = Epoch::now_v7();
    let line = |seq: u64| {
        let id = format!("l{seq}");
        json!({"epoch": epoch, "seq": seq, "id": id, "text": id, "isFinal": true, "startMs": seq, "endMs": seq + 1})
    };
    let post = async |body: Value| {
        let post = awc::Client::new().post(format!("{}/api/realtime/transcribe/broadcast", url(&ws)));
        let mut answer = post.bearer_auth(TOKEN).send_json(&body).await.unwrap();
        (answer.status().as_u16(), answer.json::<Value>().await.unwrap())
    };
    let (status, answer) = post(json!({"session": "demo", "transcripts": [line(5)]})).await;
    assert_eq!((status, &answer["expected"]), (409, &json!(1)));
    let (status, answer) = post(json!({"session": "demo", "transcripts": [line(5), line(6)], "begins": 5})).await;
    assert_eq!((status, &answer["seq"]), (202, &json!(6)), "{answer}");
    let (status, answer) = post(json!({"session": "demo", "transcripts": [line(9)], "begins": 9})).await;
    assert_eq!((status, &answer["seq"]), (202, &json!(9)), "{answer}");
    let (status, answer) = post(json!({"session": "demo", "transcripts": [line(9), line(10)], "begins": 9})).await;
    assert_eq!((status, &answer["duplicates"], &answer["seq"]), (202, &json!(1), &json!(10)), "{answer}");
    assert_eq!(ws.stored_finals("demo").await, ["l5", "l6", "l9", "l10"]);
    ws.stop().await;
}

/// Of two sessions of a room that both ended while a ws node was away, the later one may arrive first.
#[actix::test]
async fn the_log_before_the_present_one_is_taken_late() {
    let ws = ws_node(&[]).await;
    let (first, second) = (Epoch::now_v7(), Epoch::now_v7());
    let line = |epoch: Epoch, seq: u64| {
        let id = format!("{epoch}-{seq}");
        json!({"epoch": epoch, "seq": seq, "id": id, "text": id, "isFinal": true, "startMs": seq, "endMs": seq + 1})
    };
    let ended = json!({"type": "status", "status": "ended", "epoch": first, "seq": 3, "id": "end"});
    let post = async |entries: Vec<Value>| {
        let post = awc::Client::new().post(format!("{}/api/realtime/transcribe/broadcast", url(&ws)));
        let body = json!({"session": "demo", "transcripts": entries});
        let mut answer = post.bearer_auth(TOKEN).send_json(&body).await.unwrap();
        (answer.status().as_u16(), answer.json::<Value>().await.unwrap())
    };
    let mut viewer = Viewer::join(&ws, "demo").await;
    assert_eq!(post(vec![line(second, 1)]).await.0, 202);
    assert_eq!(post(vec![line(first, 1), line(first, 2)]).await.0, 202);
    assert_eq!(ws.session("demo").await["epoch"], json!(second), "the present one stays");
    assert_eq!(post(vec![ended]).await.0, 202);
    assert_eq!(post(vec![line(second, 2)]).await.0, 202);
    viewer.until("the present log", |seen| seen.iter().any(|m| m["epoch"] == json!(second) && m["seq"] == 2)).await;
    let store = ws.app.storage().store.clone().unwrap();
    until("both are stored", async || {
        let stored = async |epoch| store.transcripts(epoch, 0, 10).await.unwrap().len();
        (stored(first).await, stored(second).await) == (3, 2)
    })
    .await;
    assert_eq!(post(vec![line(first, 1)]).await.1["duplicates"], 1, "a repetition is no fault");
    ws.stop().await;
}
