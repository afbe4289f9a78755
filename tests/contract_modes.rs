//! The contract with viewers and third parties holds word for word, however ingest and viewers' nodes are joined: each
//! script is played in one process, over HTTP and over NATS, and must be told the same.

mod support;

use std::time::Duration;

use serde_json::{Value, json};
use support::http::Client;
use support::modes::*;
use support::publisher::{ffmpeg, publish};
use support::viewer::{Viewer, assert_contiguous, finals};
use support::wait::until;
use tokio_tungstenite::tungstenite::client::IntoClientRequest;

const PAUSE_MS: usize = 700;
/// Long enough for a final to come before the next word, on a busy machine too.
const LONG_PAUSE_MS: usize = 3000;

/// What is durable of what a viewer has seen.
fn durable(viewer: &Viewer) -> Vec<Value> {
    let is_durable = |m: &&Value| m["seq"].is_u64() && m["type"] != "hello";
    viewer.seen.iter().filter(is_durable).cloned().collect()
}

/// The fields of the interims, and what must hold for each run of them: none has a number, revisions rise, and those
/// before a final have its id.
fn interims(viewer: &Viewer) -> Value {
    let mut last: Option<&Value> = None;
    let mut shapes = Vec::new();
    for message in viewer.seen.iter().filter(|m| m["type"] == "transcript") {
        let same = last.filter(|last| last["id"] == message["id"]);
        if let Some(last) = same {
            assert!(message["revision"].as_u64() > last["revision"].as_u64(), "{last} before {message}");
        }
        if message["isFinal"] == false {
            assert!(message["seq"].is_null(), "{message}");
            let shape: Vec<_> = message.as_object().expect("an object").keys().cloned().collect();
            if !shapes.contains(&shape) {
                shapes.push(shape);
            }
            last = Some(message);
        } else {
            last = None;
        }
    }
    json!(shapes)
}

fn names(value: &Value) -> Vec<&String> {
    value.as_object().expect("an object").keys().collect()
}

/// A session's row with nothing of its account but what is zero.
fn which_are_zero(mut row: Value) -> Value {
    for (_, ms) in row["audio"].as_object_mut().expect("an account") {
        *ms = json!(*ms == json!(0));
    }
    row
}

/// A hello from the first moment of a session, which may be before or after its first entry.
fn begun(hello: &Value) -> Value {
    let mut hello = hello.clone();
    let (seq, status) = (hello["seq"].take(), hello["status"].take());
    assert!(status == if seq == json!(0) { "waiting" } else { "live" }, "{status} with {seq}");
    hello
}

fn is_live(seen: &[Value]) -> bool {
    seen.iter().any(|m| m["status"] == "live" && m["type"] == "status")
}

fn line(id: &str) -> Value {
    json!({"id": id, "isFinal": true, "text": format!("text of {id}"), "startMs": 0, "endMs": 900})
}

fn speakers() -> Value {
    let speakers = json!([{"identity": "tester", "name": "Tess", "level": 0.8}]);
    json!({"type": "active_speakers", "speakers": speakers})
}

#[actix::test]
async fn a_session_from_before_its_publisher_to_its_rows() {
    same_in_all_modes(&[("GLADIA_TRANSLATE_TO", "fr,de")], async |world| {
        let mut plain = Plain::default();
        let mut early = world.join("demo", "").await;
        let mut browser = world.join("demo", "").await;
        let publisher = ffmpeg(&world.audio(1..=5, PAUSE_MS), &world.rtmp_url("demo"), true);
        early.until("the session", is_live).await;
        let speaking = actix_rt::spawn(async move {
            let mut often = tokio::time::interval(Duration::from_millis(200));
            loop {
                often.tick().await;
                browser.send(&speakers()).await;
            }
        });
        early.until("two finals", |seen| finals(seen).len() >= 2).await;
        let mut late = world.join("demo", "").await;
        late.until("what was said", |seen| finals(seen).len() >= 2).await;
        let (_, mut listed) = world.ask(ADMIN_TOKEN, "GET", "/api/sessions", "").await;
        let (status, page) = world.ask(ADMIN_TOKEN, "GET", "/api/sessions/demo/transcripts?limit=3", "").await;
        assert!(publisher.wait_with_output().await.expect("ffmpeg").status.success());
        world.ingest().end("demo").await;
        early.until_ended().await;
        late.until_ended().await;
        speaking.abort();
        let (row, rows) = world.rows("demo").await;
        let (_, after) = world.ask(ADMIN_TOKEN, "GET", "/api/sessions", "").await;
        let (_, all) = world.ask(ADMIN_TOKEN, "GET", "/api/sessions/demo/transcripts?kind=final,translation", "").await;

        let mut log = durable(&early);
        assert_contiguous(&early.seqs(), 1);
        assert_eq!(log, durable(&late), "all viewers have the same");
        let rows: Vec<Value> = rows.iter().map(|row| serde_json::from_str(&row.to_json()).expect("JSON")).collect();
        assert_eq!(log, rows, "and so has the database");
        // The first report may come after the first words; that a session goes on and has more numbers, too.
        let first = log.iter_mut().find(|m| m["isFinal"] == true).expect("a final");
        first["speaker"] = Value::Null;
        for listed in listed["sessions"].as_array_mut().expect("sessions") {
            assert!(listed["seq"].as_u64() >= Some(2), "{listed}");
            listed["seq"] = json!("a number");
        }
        let hellos: Vec<_> = early.seen.iter().filter(|m| m["type"] == "hello").map(begun).collect();
        let numbers: Vec<_> = all["entries"].as_array().expect("entries").iter().map(|entry| &entry["seq"]).collect();
        let mut during = late.hello.clone();
        during["seq"] = json!("a number");
        let page: Vec<Value> = page["entries"].as_array().expect("entries").clone();
        assert_eq!(page.len(), 3);
        let log = plain.all(&log);
        json!({
            "before": plain.of(&early.hello),
            "hello": plain.all(&hellos),
            "during": plain.of(&during),
            "log": log,
            "interims": interims(&early),
            "live": plain.of(&listed),
            "page": (status, page.len()),
            "row": plain.of(&which_are_zero(row)),
            "listed": plain.of(&after),
            "all": numbers,
        })
    })
    .await;
}

#[actix::test]
async fn a_publisher_that_breaks_off_and_comes_back() {
    same_in_all_modes(&[], async |world| {
        let mut plain = Plain::default();
        let mut viewer = world.join("demo", "").await;
        let mut publisher = ffmpeg(&world.audio(1..=4, LONG_PAUSE_MS), &world.rtmp_url("demo"), true);
        viewer.until("two finals", |seen| finals(seen).len() == 2).await;
        publisher.start_kill().expect("our child");
        viewer.until("nobody publishes", |seen| seen.iter().any(|m| m["status"] == "waiting" && m["seq"] != 0)).await;
        let waiting = world.join("demo", "").await;
        publish(&world.audio(11..=12, PAUSE_MS), &world.rtmp_url("demo"), true).await;
        viewer.until("its words", |seen| finals(seen).len() == 4).await;
        world.ingest().end("demo").await;
        viewer.until_ended().await;
        assert_contiguous(&viewer.seqs(), 1);
        let (row, _) = world.rows("demo").await;
        let log = plain.all(&durable(&viewer));
        json!({"log": log, "waiting": plain.of(&waiting.hello), "losses": names(&row["losses"])})
    })
    .await;
}

#[actix::test]
async fn a_recogniser_that_breaks_off() {
    same_in_all_modes(&[], async |world| {
        let mut plain = Plain::default();
        let mut viewer = world.join("demo", "").await;
        let publisher = ffmpeg(&world.audio(1..=4, LONG_PAUSE_MS), &world.rtmp_url("demo"), true);
        viewer.until("a final", |seen| finals(seen).len() == 1).await;
        world.stt.fault(json!({"refuse_upgrades": {"status": 503, "times": 2}})).await;
        world.stt.drop_sockets().await;
        viewer.until("the next one", |seen| finals(seen).len() == 2).await;
        world.stt.fault(json!({"forget": true})).await;
        assert!(publisher.wait_with_output().await.expect("ffmpeg").status.success());
        world.ingest().end("demo").await;
        viewer.until_ended().await;
        assert_contiguous(&viewer.seqs(), 1);
        json!({"log": plain.all(&durable(&viewer)), "interims": interims(&viewer)})
    })
    .await;
}

#[actix::test]
async fn an_ingest_side_that_is_restarted() {
    same_in_all_modes(&[], async |world| {
        let mut plain = Plain::default();
        let mut viewer = world.join("demo", "").await;
        let publisher = ffmpeg(&world.audio(1..=4, LONG_PAUSE_MS), &world.rtmp_url("demo"), true);
        viewer.until("two finals", |seen| finals(seen).len() == 2).await;
        world.restart_ingest().await;
        drop(publisher);
        viewer.until("it is suspended", |seen| seen.iter().any(|m| m["status"] == "suspended")).await;
        let mut log = durable(&viewer);
        let mut again = world.join("demo", &after(&log[log.len() - 1])).await;
        assert_eq!(again.hello["recovered"], true);
        publish(&world.audio(11..=12, PAUSE_MS), &world.rtmp_url("demo"), true).await;
        world.ingest().end("demo").await;
        again.until_ended().await;
        log.extend(durable(&again));
        let (row, rows) = world.rows("demo").await;
        assert_eq!(rows.len(), log.len());
        let log = plain.all(&log);
        json!({"log": log, "losses": names(&row["losses"])})
    })
    .await;
}

#[actix::test]
async fn viewers_resume_over_websocket_and_events() {
    same_in_all_modes(&[("ROOM_HISTORY", "4")], async |world| {
        let mut plain = Plain::default();
        let mut steady = world.join("demo", "").await;
        publish(&world.audio(1..=3, PAUSE_MS), &world.rtmp_url("demo"), false).await;
        world.ingest().end("demo").await;
        steady.until_ended().await;
        let first = durable(&steady);
        let shown = world.join("demo", "").await;
        let second = ffmpeg(&world.audio(11..=20, PAUSE_MS), &world.rtmp_url("demo"), true);
        steady.until("five finals of the next", |seen| finals(seen).len() == 8).await;
        let both = durable(&steady);
        let mut told = vec![plain.all(&both), plain.of(&shown.hello)];
        // Of the present session.
        let last = &both[both.len() - 1];
        let mut resumed = world.join("demo", &after(&both[first.len() + 1])).await;
        resumed.until("all of it", |seen| seen.iter().any(|m| m["seq"] == last["seq"])).await;
        told.push(json!(resumed.hello["recovered"]));
        told.push(plain.all(&durable(&resumed)[..both.len() - first.len() - 2]));
        // Of the one before it.
        let mut resumed = world.join("demo", &after(&first[1])).await;
        let is_last = |m: &Value| m["epoch"] == last["epoch"] && m["seq"] == last["seq"] && m["type"] != "hello";
        resumed.until("both", |seen| seen.iter().any(is_last)).await;
        told.push(plain.of(&resumed.hello));
        told.push(plain.all(&durable(&resumed)[..both.len() - 2]));
        let hello = resumed.seen.iter().find(|m| m["type"] == "hello").expect("of the next session");
        told.push(json!((&hello["recovered"], &hello["status"])));
        let id = format!("{}:2", epoch_of(&first[1]));
        let events = events(world.http(), "demo", Some(&id), is_last).await;
        let kept: Vec<_> = events.iter().filter(|m| m["seq"].is_u64() && m["type"] != "hello").collect();
        assert_eq!(kept.len(), both.len() - 2);
        told.push(plain.all(kept));
        // What there is no place for.
        for more in [
            format!("&after=1&epoch={}", uuid::Uuid::now_v7()),
            format!("&after=999&epoch={}", epoch_of(&first[0])),
            "&after=1".to_owned(),
            String::new(),
        ] {
            let hello = world.join("demo", &more).await.hello;
            told.push(json!((&hello["recovered"], &hello["status"], plain.of(&json!({"epoch": hello["epoch"]})))));
        }
        drop(second);
        json!(told)
    })
    .await;
}

#[actix::test]
async fn pings_tokens_refusals_and_the_end_of_the_serving_node() {
    same_in_all_modes(&[("WS_PING_MS", "2000"), ("WS_MAX_PER_SESSION", "3")], async |world| {
        let mut plain = Plain::default();
        let mut told = Vec::new();
        let mut viewer = world.join("demo", "").await;
        viewer.until_pinged().await;
        told.push(plain.of(&viewer.pings[0]));
        let publisher = ffmpeg(&world.audio(1..=8, LONG_PAUSE_MS), &world.rtmp_url("demo"), true);
        viewer.until("a final", |seen| finals(seen).len() == 1).await;
        let last = durable(&viewer).last().cloned().expect("an entry");
        viewer.until_pinged().await;
        let ping = viewer.pings.last().expect("a ping");
        assert_eq!((&ping["epoch"], &ping["seq"]), (&last["epoch"], &last["seq"]));
        told.push(plain.of(ping));
        viewer.send(&json!({"type": "nonsense"})).await;
        viewer.send(&json!({"type": "auth", "token": "nonsense"})).await;
        viewer.until("two errors", |seen| seen.iter().filter(|m| m["type"] == "error").count() == 2).await;
        told.push(plain.all(viewer.seen.iter().filter(|m| m["type"] == "error")));
        let good = world.serving().token("demo");
        let mut watching = Vec::new();
        for _ in 0..2 {
            watching.push(world.join("demo", "").await);
        }
        for (query, token) in [
            ("session=a%2Fb".to_owned(), good.clone()),
            ("session=demo&after=x".to_owned(), good.clone()),
            ("session=demo".to_owned(), "nonsense".to_owned()),
            ("session=other".to_owned(), good.clone()),
            ("session=demo".to_owned(), good.clone()),
        ] {
            let url = format!("ws://{}/api/realtime/transcribe?{query}&token={token}", world.http());
            let refusal = Client::open(url.into_client_request().expect("a request"))
                .await
                .err()
                .unwrap_or_else(|| panic!("{query} was let in with {token}"));
            told.push(json!((refusal.status, refusal.code)));
        }
        drop(watching);
        let expiring = token_until("demo", chrono::Utc::now().timestamp() + 2);
        let mut expiring = Viewer::connect_as(world.http(), "demo", "", &expiring).await;
        expiring.until_closed().await;
        told.push(json!((expiring.closed, expiring.close_reason)));
        let last = durable(&viewer).last().cloned();
        futures_util::join!(world.stop_serving(), viewer.until_closed());
        let close = (viewer.closed, durable(&viewer).last().map(|last| format!("last seq {}", last["seq"])));
        assert_eq!(close, (Some(1001), Some(viewer.close_reason.clone())));
        assert!(last.is_some());
        drop(publisher);
        json!(told)
    })
    .await;
}

#[actix::test]
async fn third_parties_in_a_room_of_their_own() {
    same_in_all_modes(&[], async |world| {
        let mut plain = Plain::default();
        let mut told = Vec::new();
        let mut viewer = world.join("talk", "").await;
        told.push(plain.of(&viewer.hello));
        told.push(json!(world.post("talk", &[line("a"), line("b"), line("a")]).await));
        told.push(json!(world.post("talk", &[line("b"), line("c")]).await));
        let interim = json!({"id": "d", "isFinal": false, "text": "half", "startMs": 900, "endMs": 950});
        told.push(json!(world.post("talk", &[interim]).await));
        let translation = json!({"type": "translation", "id": "c:fr", "of": "c", "language": "fr", "text": "texte",
            "startMs": 0, "endMs": 900});
        let gap = json!({"type": "gap", "id": "g", "startMs": 900, "endMs": 1900, "reason": "publisher_lost"});
        let degraded = json!({"type": "status", "id": "s", "status": "degraded", "reason": "mine"});
        told.push(json!(world.post("talk", &[translation, gap, degraded]).await));
        let full = json!({"id": "d", "isFinal": true, "text": "half a line", "startMs": 900, "endMs": 1900,
            "language": "en", "confidence": 0.5, "speaker": {"identity": "anna", "name": "Anna"},
            "words": [{"word": "half", "startMs": 900, "endMs": 950, "confidence": 0.5}],
            "timestamp": "2026-11-22T12:00:00.123Z"});
        told.push(json!(world.post("talk", &[full]).await));
        viewer.until("all of it", |seen| seen.iter().any(|m| m["id"] == "d" && m["isFinal"] == true)).await;
        told.push(plain.all(viewer.seen.iter().filter(|m| m["isFinal"] == false)));
        let (_, page) = world.ask(ADMIN_TOKEN, "GET", "/api/sessions/talk/transcripts", "").await;
        assert_eq!(page["entries"], json!(durable(&viewer)));
        // Its numbers are known here, and are nobody else's.
        let epoch = epoch_of(&durable(&viewer)[0]);
        let mut numbered = line("n");
        (numbered["epoch"], numbered["seq"]) = (json!(epoch), json!(8));
        told.push(json!(world.post("talk", &[numbered]).await));
        for (token, body) in [
            (BROADCAST_TOKEN, "{".to_owned()),
            (BROADCAST_TOKEN, json!({"session": "talk", "transcript": {"id": "x"}}).to_string()),
            (BROADCAST_TOKEN, json!({"session": "a/b", "transcript": line("x")}).to_string()),
            (BROADCAST_TOKEN, format!("{{\"pad\":\"{}\"}}", "x".repeat(1 << 20))),
            ("nonsense", json!({"session": "talk", "transcript": line("x")}).to_string()),
            (&*world.serving().token("talk"), json!({"session": "talk", "transcript": line("x")}).to_string()),
        ] {
            told.push(json!(world.ask(token, "POST", BROADCAST, &body).await));
        }
        told.push(plain.of(&world.ask(ADMIN_TOKEN, "GET", "/api/sessions", "").await.1));
        let end = json!({"type": "status", "status": "ended", "id": "end"});
        told.push(json!(world.post("talk", &[end]).await));
        viewer.until_ended().await;
        let next = async || {
            let (status, answer) = world.post("talk", &[line("a")]).await;
            if (status, &answer["seq"]) == (202, &json!(1)) { Ok(answer) } else { Err(answer.to_string()) }
        };
        told.push(until("the next session", next).await);
        viewer.until("it", |seen| seen.iter().filter(|m| m["id"] == "a").count() == 2).await;
        told.push(plain.all(&durable(&viewer)));
        let (_, page) = world.ask(ADMIN_TOKEN, "GET", "/api/sessions?session=talk", "").await;
        told.push(plain.of(&page));
        json!(told)
    })
    .await;
}

#[actix::test]
async fn third_parties_in_a_room_that_is_published() {
    let script = async |world: &mut World| {
        let mut plain = Plain::default();
        let mut told = Vec::new();
        let mut viewer = world.join("demo", "").await;
        assert_eq!(world.post("demo", &[line("a"), line("b")]).await.0, 202);
        viewer.until("both", |seen| seen.iter().any(|m| m["id"] == "b")).await;
        // A publisher comes to the room of a third party.
        publish(&world.audio(1..=2, PAUSE_MS), &world.rtmp_url("demo"), true).await;
        viewer.until("its words", |seen| seen.iter().any(|m| m["text"] == "marker 2" && m["isFinal"] == true)).await;
        viewer.until("it is gone", |seen| seen.iter().any(|m| m["status"] == "waiting" && m["type"] == "status")).await;
        let log = durable(&viewer);
        let seq = log[log.len() - 1]["seq"].as_u64().expect("a number");
        let post = async |lines: Vec<Value>| world.post("demo", &lines).await;
        let tell = |(status, mut answer): (u16, Value)| {
            if let Some(number) = ["seq", "expected"].into_iter().find(|name| answer[*name].is_u64()) {
                answer[number] = json!(answer[number].as_u64().map(|n| n - seq));
            }
            let code = &answer["error"]["code"];
            json!([status, answer["accepted"], answer["duplicates"], answer["seq"], answer["expected"], code])
        };
        told.push(tell(post(vec![line("c"), line("c")]).await));
        told.push(tell(post(vec![line("c"), line("d")]).await));
        let end = json!({"type": "status", "status": "ended", "id": "end"});
        told.push(tell(post(vec![end]).await));
        let interim = json!({"id": "e", "isFinal": false, "text": "half", "startMs": 900, "endMs": 950});
        told.push(tell(post(vec![interim]).await));
        let gap = json!({"type": "gap", "id": "g", "startMs": 900, "endMs": 1900, "reason": "publisher_lost"});
        let translation = json!({"type": "translation", "id": "d:fr", "of": "d", "language": "fr", "text": "texte",
            "startMs": 0, "endMs": 900});
        told.push(tell(post(vec![gap, translation]).await));
        viewer.until("all of it", |seen| seen.iter().any(|m| m["id"] == "d:fr")).await;
        let shown: Vec<_> = viewer.seen.iter().filter(|m| m["id"] == "e").cloned().collect();
        told.push(plain.all(&shown));
        world.ingest().end("demo").await;
        viewer.until("the end", |seen| seen.iter().any(|m| m["reason"] == "test_over")).await;
        told.push(plain.all(&durable(&viewer)));
        let (_, listed) = world.ask(ADMIN_TOKEN, "GET", "/api/sessions", "").await;
        told.push(plain.of(&listed));
        // After its end the room is anybody's again.
        told.push(json!(world.post("demo", &[line("z")]).await));
        json!(told)
    };
    same_in(&[Mode::Both, Mode::Nats], &[], script).await;
}

/// Nobody is asked there who might: the contract says 409.
#[actix::test]
async fn third_parties_in_a_room_that_is_published_over_http() {
    let world = World::start(Mode::Http, &[]).await;
    let mut viewer = world.join("demo", "").await;
    assert_eq!(world.post("demo", &[line("a")]).await.0, 202);
    publish(&world.audio(1..=1, PAUSE_MS), &world.rtmp_url("demo"), true).await;
    viewer.until("it is gone", |seen| seen.iter().any(|m| m["status"] == "waiting" && m["type"] == "status")).await;
    let seq = durable(&viewer).last().and_then(|last| last["seq"].as_u64()).expect("a number");
    for lines in [vec![line("b")], vec![json!({"type": "status", "status": "ended", "id": "end"})]] {
        let (status, answer) = world.post("demo", &lines).await;
        let told = (status, &answer["expected"], &answer["reason"]);
        assert_eq!(told, (409, &json!(seq + 1), &json!("has_origin")), "{answer}");
    }
    world.ingest().end("demo").await;
    viewer.until("the end", |seen| seen.iter().any(|m| m["reason"] == "test_over")).await;
    assert_eq!(world.post("demo", &[line("b")]).await.1["seq"], 1, "after its end the room is anybody's again");
    world.stop().await;
}

#[actix::test]
async fn health_and_metrics_have_the_same_names() {
    same_in_all_modes(&[], async |world| {
        let (status, mut health) = world.ask("", "GET", "/health", "").await;
        let bus = health.as_object_mut().expect("an object").remove("bus");
        assert_eq!(bus, (world.mode == Mode::Nats).then(|| json!("up")));
        let mut told =
            json!({"health": (status, names(&health), &health["status"], &health["ready"], &health["database"])});
        let metrics = async |http| {
            let (status, text) = ask(http, ADMIN_TOKEN, "GET", "/metrics", "").await;
            assert_eq!(status, 200);
            let text = text.as_str().expect("text").to_owned();
            let names: Vec<_> =
                text.lines().filter_map(|line| line.strip_prefix("# TYPE ").map(str::to_owned)).collect();
            names
        };
        let mut all = metrics(world.http()).await;
        all.extend(metrics(world.ingest().app.http_addr()).await);
        // Of the hop itself, some have no value without one.
        all.retain(|name| !name.starts_with("stenocast_forward_"));
        all.sort();
        all.dedup();
        told["metrics"] = json!(all);
        told["refused"] = json!(world.ask("nonsense", "GET", "/metrics", "").await);
        told
    })
    .await;
}

/// In one process it is the ingest side, too: see [`an_ingest_side_that_is_restarted`].
#[actix::test]
async fn a_serving_side_that_is_restarted() {
    let script = async |world: &mut World| {
        let mut plain = Plain::default();
        let mut viewer = world.join("demo", "").await;
        publish(&world.audio(1..=2, PAUSE_MS), &world.rtmp_url("demo"), true).await;
        viewer.until("nobody publishes", |seen| seen.iter().any(|m| m["reason"] == "publisher_lost")).await;
        let log = durable(&viewer);
        let (first, last) = (&log[0], &log[log.len() - 1]);
        let store = world.serving().app.storage().store.clone().expect("a database");
        // More may have been said since it was looked at.
        until("its rows", async || store.last_seq(epoch_of(last)).await.unwrap() >= last["seq"].as_u64()).await;
        world.restart_serving().await;
        let (_, listed) = world.ask(ADMIN_TOKEN, "GET", "/api/sessions", "").await;
        let page = world.ask(ADMIN_TOKEN, "GET", "/api/sessions/demo/transcripts", "").await;
        let mut resumed = world.join("demo", &after(first)).await;
        let mut new = world.join("demo", "").await;
        let hellos = json!([plain.of(&resumed.hello), plain.of(&new.hello)]);
        world.ingest().end("demo").await;
        resumed.until_ended().await;
        new.until_ended().await;
        let told = (durable(&resumed), durable(&new));
        assert_eq!(told.0, told.1[1..]);
        json!({"log": plain.all(&told.1), "hellos": hellos, "listed": plain.of(&listed), "page": plain.of(&page.1)})
    };
    same_in(&[Mode::Http, Mode::Nats], &[], script).await;
}
