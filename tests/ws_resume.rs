//! A viewer gets each entry once and in order, over reconnects and epochs, or is told plainly that it cannot.

mod support;

use std::collections::BTreeMap;

use serde_json::Value;
use stenocast::transcript::{Epoch, Status};
use support::http::*;
use support::wait::until;

fn text<'a>(value: &'a Value, name: &str) -> &'a str {
    value[name].as_str().unwrap_or_else(|| panic!("{name} in {value}"))
}

#[actix::test]
async fn a_reconnecting_viewer_has_no_hole_and_no_duplicate() {
    let server = TestServer::start();
    let speech = server.begin("demo");
    let mut steady = server.view("demo", "").await;
    let mut restless = server.view("demo", "").await;
    assert_eq!(text(&steady.next().await, "type"), "hello");
    restless.next().await;
    let mut seen = Vec::new();
    for _ in 0..20 {
        speech.say(7);
        speech.interim("open", "half a");
        seen.extend(restless.seqs(5).await);
        drop(restless);
        speech.say(3);
        let last = seen.last().copied().unwrap_or(0);
        restless = server.view("demo", &format!("&after={last}&epoch={}", speech.epoch())).await;
        let hello = restless.next().await;
        assert_eq!((&hello["recovered"], hello["seq"].as_u64()), (&true.into(), Some(speech.log.last_seq())));
    }
    seen.extend(restless.seqs(200 - seen.len()).await);
    let all: Vec<u64> = (1..=200).collect();
    assert_eq!(seen, all);
    assert_eq!(steady.seqs(200).await, all);
    server.stop().await;
}

#[actix::test]
async fn hello_and_entries_have_the_fields_of_the_contract() {
    let server = TestServer::start();
    let speech = server.begin("demo");
    speech.status(Status::Live);
    let mut client = server.view("demo", "").await;
    let hello = client.next().await;
    let expected = serde_json::json!({"type": "hello", "session": "demo", "epoch": speech.epoch(), "seq": 1,
        "recovered": true, "status": "live", "protocol": 1, "pingMs": 15000});
    assert_eq!(hello, expected);
    assert_eq!(text(&client.next().await, "status"), "live");
    speech.interim("a", "half");
    let interim = client.next().await;
    assert_eq!((&interim["seq"], &interim["isFinal"], text(&interim, "id")), (&Value::Null, &false.into(), "a"));
    speech.publish(speech.line("a", Some(2), "half a line"));
    let last = client.next().await;
    assert_eq!((last["seq"].as_u64(), &last["isFinal"], text(&last, "id")), (Some(2), &true.into(), "a"));
    assert_eq!(server.state.metrics.delivery_latency_seconds.get_sample_count(), 2);
    server.stop().await;
}

#[actix::test]
async fn a_waiting_room_fills_when_the_publisher_comes() {
    let server = TestServer::start();
    let mut client = server.view("demo", "").await;
    let hello = client.next().await;
    assert_eq!((&hello["epoch"], text(&hello, "status"), &hello["recovered"]), (&Value::Null, "waiting", &true.into()));
    let first = server.begin("demo");
    let hello = client.next().await;
    assert_eq!(text(&hello, "epoch"), first.epoch().to_string());
    first.say(2);
    assert_eq!(client.seqs(2).await, [1, 2]);
    first.end();
    assert_eq!(text(&client.next().await, "status"), "ended");
    let second = server.begin("demo");
    let hello = client.next().await;
    assert_eq!((text(&hello, "epoch"), &hello["recovered"]), (&*second.epoch().to_string(), &true.into()));
    second.say(1);
    assert_eq!(client.seqs(1).await, [1]);
    server.stop().await;
}

#[actix::test]
async fn an_old_epoch_is_read_to_its_end_before_the_new_one() {
    let server = TestServer::start();
    let old = server.begin("demo");
    old.say(5);
    old.end();
    let between = server.begin("demo");
    between.say(1);
    between.end();
    let new = server.begin("demo");
    new.say(2);
    let mut client = server.view("demo", &format!("&after=3&epoch={}", old.epoch())).await;
    let mut heard: Vec<(Epoch, Option<u64>)> = Vec::new();
    for _ in 0..10 {
        let message = client.next().await;
        let hello = text(&message, "type") == "hello";
        assert!(!hello || message["recovered"] == true);
        let seq = message["seq"].as_u64().filter(|_| !hello);
        heard.push((text(&message, "epoch").parse().unwrap(), seq));
    }
    let expected = [
        (&old, vec![None, Some(4), Some(5), Some(6)]),
        (&between, vec![None, Some(1), Some(2)]),
        (&new, vec![None, Some(1), Some(2)]),
    ];
    let expected: Vec<_> =
        expected.into_iter().flat_map(|(s, seqs)| seqs.into_iter().map(|seq| (s.epoch(), seq))).collect();
    assert_eq!(heard, expected);
    server.stop().await;
}

#[actix::test]
async fn an_epoch_that_is_only_in_the_database_is_read_from_there() {
    let server = TestServer::start();
    let epochs: Vec<_> = (0..5)
        .map(|_| {
            let speech = server.begin("demo");
            speech.say(300);
            speech.end();
            speech.epoch()
        })
        .collect();
    let mut client = server.view("demo", &format!("&after=10&epoch={}", epochs[0])).await;
    let hello = client.next().await;
    assert_eq!((text(&hello, "epoch"), &hello["recovered"]), (&*epochs[0].to_string(), &true.into()));
    assert_eq!(client.seqs(291).await, (11..=301).collect::<Vec<_>>());
    let hello = client.next().await;
    assert_eq!((text(&hello, "type"), text(&hello, "epoch")), ("hello", &*epochs[4].to_string()));
    server.stop().await;
}

#[actix::test]
async fn entries_older_than_the_ring_are_joined_from_the_database() {
    let server = TestServer::with(&[("ROOM_HISTORY", "50")]);
    let speech = server.begin("demo");
    speech.say(1000);
    let mut client = server.view("demo", &format!("&after=0&epoch={}", speech.epoch())).await;
    assert_eq!(client.next().await["recovered"], true);
    assert_eq!(client.seqs(500).await, (1..=500).collect::<Vec<_>>());
    speech.say(20);
    assert_eq!(client.seqs(520).await, (501..=1020).collect::<Vec<_>>());
    server.stop().await;
}

#[actix::test]
async fn a_database_lost_in_the_middle_of_a_recovery_closes_1011_and_the_client_goes_on() {
    let server = TestServer::with(&[("ROOM_HISTORY", "50")]);
    let speech = server.begin("demo");
    speech.say(1000);
    server.store.allow_pages(3);
    let mut client = server.view("demo", &format!("&after=0&epoch={}", speech.epoch())).await;
    assert_eq!(client.next().await["recovered"], true);
    let mut seen = Vec::new();
    let close = loop {
        match client.next_or_close().await {
            Ok(entry) => seen.push(entry["seq"].as_u64().unwrap()),
            Err(close) => break close.expect("a close frame"),
        }
    };
    assert_eq!(u16::from(close.code), 1011);
    assert_eq!(seen, (1..=400).collect::<Vec<_>>());
    server.store.allow_pages(u64::MAX);
    let mut client = server.view("demo", &format!("&after=400&epoch={}", speech.epoch())).await;
    assert_eq!(client.next().await["recovered"], true);
    assert_eq!(client.seqs(600).await, (401..=1000).collect::<Vec<_>>());
    server.stop().await;
}

#[actix::test]
async fn what_cannot_be_recovered_is_said() {
    let server = TestServer::with(&[("ROOM_HISTORY", "50")]);
    let speech = server.begin("demo");
    speech.say(100);
    let unrecovered = async |query: String| {
        let mut client = server.view("demo", &query).await;
        let hello = client.next().await;
        assert_eq!((&hello["recovered"], hello["seq"].as_u64()), (&false.into(), Some(100)), "{query}");
        assert_eq!(client.seqs(50).await, (51..=100).collect::<Vec<_>>(), "{query}");
    };
    // A fresh viewer has the newest of a long session.
    unrecovered(String::new()).await;
    // Ahead of the log; an epoch that never was; another room's epoch.
    unrecovered(format!("&after=101&epoch={}", speech.epoch())).await;
    unrecovered(format!("&after=3&epoch={}", Epoch::now_v7())).await;
    let other = server.begin("other");
    other.say(5);
    unrecovered(format!("&after=3&epoch={}", other.epoch())).await;
    // The database has a hole, lags behind the ring, is away.
    let resume = format!("&after=10&epoch={}", speech.epoch());
    server.store.forget(speech.epoch(), |seq| seq == 50);
    unrecovered(resume.clone()).await;
    server.store.forget(speech.epoch(), |seq| seq == 11);
    unrecovered(resume.clone()).await;
    server.store.set_down(true);
    unrecovered(resume).await;
    server.stop().await;
}

#[actix::test]
async fn a_fresh_viewer_of_a_short_session_has_all_of_it() {
    let server = TestServer::start();
    let speech = server.begin("demo");
    speech.say(10);
    let mut client = server.view("demo", "").await;
    assert_eq!(client.next().await["recovered"], true);
    assert_eq!(client.seqs(10).await, (1..=10).collect::<Vec<_>>());
    server.stop().await;
}

#[actix::test]
async fn twenty_rooms_hear_only_themselves() {
    let server = TestServer::start();
    let rooms: Vec<String> = (0..20).map(|n| format!("room-{n}")).collect();
    let mut clients = BTreeMap::new();
    for room in &rooms {
        clients.insert(room, server.view(room, "").await);
    }
    let speeches: Vec<_> = rooms.iter().map(|room| server.begin(room)).collect();
    for _ in 0..50 {
        speeches.iter().for_each(|speech| speech.say(1));
    }
    for (room, client) in &mut clients {
        let mut seqs = Vec::new();
        while seqs.len() < 50 {
            let message = client.next().await;
            assert_eq!(text(&message, "session"), *room);
            if text(&message, "type") == "transcript" {
                seqs.push(message["seq"].as_u64().unwrap());
            }
        }
        assert_eq!(seqs, (1..=50).collect::<Vec<_>>());
    }
    server.stop().await;
}

#[actix::test]
async fn draining_delivers_the_rest_and_closes_1001_with_the_last_seq() {
    let server = TestServer::start();
    let speech = server.begin("demo");
    let mut client = server.view("demo", "").await;
    let mut waiting = server.view("empty", "").await;
    client.next().await;
    speech.say(41);
    server.state.viewers.close_all();
    assert_eq!(client.seqs(41).await.last(), Some(&41));
    let close = client.closed().await;
    assert_eq!((u16::from(close.code), close.reason.as_str()), (1001, "last seq 41"));
    assert_eq!(u16::from(waiting.closed().await.code), 1001);
    until("all viewers gone", async || server.state.viewers.is_empty()).await;
    assert_eq!(server.state.metrics.ws_connections.get(), 0);
    server.stop().await;
}

#[actix::test]
async fn a_room_that_is_replaced_without_an_end_closes_1012() {
    let server = TestServer::start();
    let speech = server.begin("demo");
    speech.say(1);
    let mut client = server.view("demo", "").await;
    assert_eq!(client.seqs(2).await, [1, 1], "hello and the entry");
    server.begin("demo");
    speech.say(2);
    assert_eq!(client.seqs(1).await, [2], "its session may still be saying its last words");
    speech.log.close();
    assert_eq!(u16::from(client.closed().await.code), 1012);
    server.stop().await;
}

/// It would read a log that has an end before it for ever, and its worker nothing else.
#[actix::test]
async fn a_viewer_beyond_the_end_of_another_nodes_log_is_told_so() {
    let server = TestServer::start();
    let first = server.begin_mirror("demo");
    first.say(2);
    // It may be that the others are further, until the log has ended here, too.
    let ahead = format!("&after=999&epoch={}", first.epoch());
    let mut early = server.view("demo", &ahead).await;
    assert_eq!(early.next().await["recovered"], true);
    first.end();
    let mut late = server.view("demo", &ahead).await;
    let hello = late.next().await;
    assert_eq!((&hello["recovered"], &hello["status"]), (&false.into(), &"ended".into()));
    assert_eq!(late.seqs(3).await, [1, 2, 3], "what there is");
    let second = server.begin_mirror("demo");
    for client in [&mut early, &mut late] {
        assert_eq!(text(&client.next().await, "epoch"), second.epoch().to_string());
    }
    server.stop().await;
}
