//! The drill's judge and the soak's: each finds what is lost, doubled, not stored, or grown.

use std::rc::Rc;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::harness::room::{PERIOD_MS, Room, Run};
use crate::harness::verdict::{Stored, Verdict, judge};
use crate::harness::watcher::{Seen, Shared};
use crate::soak::Quarter;
use crate::soak::balance::{Tally, compare_with_database, stored_tail};
use crate::soak::life::Life;
use crate::soak::usage::{Usage, growth};
use crate::support::chaos_proxy::ChaosProxy;
use crate::support::postgres::cluster;

/// A final of marker `number` that was said where it belongs.
fn said(seq: u64, number: u32) -> Value {
    let start_ms = u64::from(number - 101) * PERIOD_MS;
    json!({"type": "transcript", "session": "victim", "epoch": "e", "seq": seq, "id": format!("id-{seq}"),
        "isFinal": true, "text": format!("marker {number}"), "startMs": start_ms, "endMs": start_ms + 600})
}

/// Four markers were published; what is counted when these entries were seen, and of them all but `not_stored`.
fn counted(entries: &[Value], not_stored: &[u64]) -> [usize; 4] {
    let room = Room::offline("victim");
    room.note_run(Run::new(101, 4));
    for entry in entries {
        room.seen.borrow_mut().take("victim", false, entry.clone());
    }
    let row = |entry: &Value| Stored {
        seq: entry["seq"].as_u64().unwrap(),
        entry_id: entry["id"].as_str().unwrap().into(),
        text: entry["text"].as_str().unwrap_or("").into(),
    };
    let stored: Vec<Stored> = entries.iter().map(row).filter(|row| !not_stored.contains(&row.seq)).collect();
    let verdict = judge(&room, &stored);
    [verdict.lost, verdict.duplicated, verdict.rows_lost, verdict.in_holes]
}

#[test]
fn the_drill_finds_what_is_lost_doubled_and_not_stored() {
    let all: Vec<Value> = (1..=4).map(|n| said(n, n as u32 + 100)).collect();
    assert_eq!(counted(&all, &[]), [0, 0, 0, 0]);
    assert_eq!(counted(&all[..3], &[]), [1, 0, 0, 0], "the last one is lost");
    assert_eq!(counted(&[], &[]), [4, 0, 0, 0], "everything is lost");
    let twice = [all.clone(), vec![said(5, 104)]].concat();
    assert_eq!(counted(&twice, &[]), [0, 2, 0, 0], "doubled for the viewer and in the rows");
    assert_eq!(counted(&all, &[2]), [0, 0, 2, 0], "not stored, and a hole among the rows");
    let half = |seq, text| {
        let mut half = said(seq, 104);
        half["text"] = json!(text);
        half
    };
    let split = |first, second| [&all[..3], &[half(4, first), half(5, second)]].concat();
    assert_eq!(counted(&split("marker", "104"), &[]), [0, 0, 0, 0], "its words are in two finals");
    assert_eq!(counted(&split("marker", "105"), &[]), [1, 0, 0, 0], "another number");
    assert_eq!(counted(&split("104", "marker"), &[]), [1, 0, 0, 0], "in the wrong order");
    let gap = |start_ms, end_ms| {
        json!({"type": "gap", "session": "victim", "epoch": "e", "seq": 3, "id": "gap", "reason": "process_restart",
            "startMs": start_ms, "endMs": end_ms})
    };
    let with = |gap: Value| [all[0].clone(), all[1].clone(), gap, said(4, 104)];
    assert_eq!(counted(&with(gap(2000, 3500)), &[]), [0, 0, 0, 1], "a hole that was announced");
    assert_eq!(counted(&with(gap(0, 100)), &[]), [1, 0, 0, 0], "a hole elsewhere excuses nothing");
}

#[test]
fn the_drill_finds_viewers_that_have_seen_something_else() {
    let problems = |by_other: &[Value]| {
        let mut room = Room::offline("victim");
        room.others.push(Shared::default());
        let take = |seen: &Shared, entry: &Value| seen.borrow_mut().take("victim", false, entry.clone());
        [said(1, 101), said(2, 102)].iter().for_each(|entry| take(&room.seen, entry));
        by_other.iter().for_each(|entry| take(&room.others[0], entry));
        judge(&room, &[]).problems.into_iter().filter(|problem| problem.contains("viewer 2")).count()
    };
    assert_eq!(problems(&[said(1, 101), said(2, 102)]), 0);
    assert_eq!(problems(&[said(1, 101)]), 1, "it has seen less");
    assert_eq!(problems(&[said(1, 101), said(2, 103)]), 1, "another text");
    assert_eq!(problems(&[said(2, 102)]), 2, "a hole, and less");
    let mut later = said(2, 102);
    later["epoch"] = json!("f");
    assert_eq!(problems(&[said(1, 101), later]), 2, "a second epoch");
}

#[test]
fn a_publisher_of_which_nothing_was_heard_is_excused_by_gaps_that_leave_it_no_room() {
    let (begun, cut) = (Instant::now() - Duration::from_secs(20), Some(Instant::now() - Duration::from_secs(10)));
    let room = Room::offline("victim");
    room.note_run(Run { begun, cut, ..Run::new(101, 4) });
    room.note_run(Run { begun, ..Run::new(201, 1) });
    let later = json!({"type": "transcript", "session": "victim", "epoch": "e", "seq": 2, "id": "later",
        "isFinal": true, "text": "marker 201", "startMs": 9000, "endMs": 9600});
    let lost = |start_ms, end_ms| {
        let gap = json!({"type": "gap", "session": "victim", "epoch": "e", "seq": 1, "id": "gap",
            "reason": "process_restart", "startMs": start_ms, "endMs": end_ms});
        room.seen.replace(Seen::default());
        [gap, later.clone()].into_iter().for_each(|entry| room.seen.borrow_mut().take("victim", false, entry));
        let verdict = judge(&room, &[]);
        (verdict.lost, verdict.in_holes)
    };
    assert_eq!(lost(100, 8900), (0, 4), "the gap covers all that was before");
    assert_eq!(lost(1000, 8900), (1, 3), "one may have been before the gap");
    assert_eq!(lost(100, 8000), (1, 3), "or after it");
    assert_eq!(lost(3000, 6000), (4, 0), "there is room for all");
}

/// What a soak adds up when nothing is wrong.
fn balanced() -> Tally {
    let mut tally = Tally { sessions_begun: 1, ..Tally::default() };
    let verdict = Verdict { expected: 10, heard: 8, in_holes: 2, ..Verdict::default() };
    let mut seen = Seen::default();
    (1..=4).for_each(|n| seen.take("victim", false, said(n, 100 + n as u32)));
    tally.add(verdict, &seen, 4, 3);
    tally.account(&account(70, 20, 10), &json!("victim"));
    tally.struck("socket reset", true);
    tally
}

fn account(acknowledged: u64, in_flight: u64, lost: u64) -> Value {
    json!({"received": 90, "inserted": 10, "acknowledged": acknowledged, "inFlight": in_flight, "lost": lost})
}

#[test]
fn a_soak_that_balances_has_no_problem_and_each_imbalance_is_one() {
    assert_eq!(balanced().imbalance(), Vec::<String>::new());
    type Breaks = fn(&mut Tally);
    let broken: &[(&str, Breaks)] = &[
        ("neither heard nor in a gap", |tally| tally.heard -= 1),
        ("neither heard nor in a gap", |tally| tally.in_gaps += 1),
        ("came twice", |tally| tally.duplicated = 1),
        ("rows are missing", |tally| tally.rows_lost = 1),
        ("entries were seen", |tally| tally.rows += 1),
        ("came to an end", |tally| tally.sessions_begun += 1),
        ("publishes were refused", |tally| tally.refused.push("input/output error".into())),
        ("no viewer reconnected", |tally| tally.reconnects = 0),
        ("no account", |tally| tally.accounts = 0),
        ("does not add up", |tally| tally.account(&account(70, 20, 9), &json!("victim"))),
        ("of 2 faults drawn 1 struck", |tally| tally.struck("socket reset", false)),
        ("of 0 faults drawn 0 struck", |tally| tally.faults.clear()),
        ("second epoch", |tally| tally.problems.push("a second epoch".into())),
    ];
    for (sign, breaks) in broken {
        let mut tally = balanced();
        breaks(&mut tally);
        let problems = tally.imbalance();
        assert!(problems.len() == 1 && problems[0].contains(sign), "{sign}: {problems:?}");
    }
    assert!(!Tally::default().imbalance().is_empty(), "a soak in which nothing happens proves nothing");
}

#[test]
fn a_soak_compares_viewers_and_gaps() {
    let gap = |reason: &str| json!({"type": "gap", "session": "victim", "epoch": "e", "seq": 2, "id": "gap", "reason": reason});
    let seen = |entries: &[Value]| {
        let seen = Shared::default();
        entries.iter().for_each(|entry| seen.borrow_mut().take("victim", false, entry.clone()));
        seen
    };
    let complaints = |by_all: &[Value], by_one: &[Value], must: Option<&'static str>, may: &[&'static str]| {
        let room = Rc::new(Room::offline("victim"));
        by_all.iter().for_each(|entry| room.seen.borrow_mut().take("victim", false, entry.clone()));
        let verdict = judge(&room, &[]);
        let life = Life::of(room, vec![seen(by_one)], must);
        may.iter().for_each(|reason| life.may_have(reason));
        life.complaints(&verdict).len()
    };
    let (plain, cut) = ([said(1, 101), said(2, 102)], [said(1, 101), gap("publisher_lost")]);
    assert_eq!(complaints(&plain, &plain, None, &[]), 0);
    assert_eq!(complaints(&plain, &plain[..1], None, &[]), 1, "it has seen less");
    assert_eq!(complaints(&plain, &[said(1, 101), said(2, 103)], None, &[]), 1, "it has seen something else");
    assert_eq!(complaints(&plain, &[said(2, 102)], None, &[]), 2, "a hole, and less");
    assert_eq!(complaints(&cut, &cut, None, &[]), 1, "a gap without cause");
    assert_eq!(complaints(&cut, &cut, None, &["publisher_lost"]), 0);
    assert_eq!(complaints(&cut, &cut, Some("publisher_lost"), &[]), 0);
    assert_eq!(complaints(&plain, &plain, Some("publisher_lost"), &[]), 1, "no gap where one must be");
}

#[tokio::test]
async fn a_soak_finds_what_the_database_and_the_disk_have_too_much_or_too_little() {
    let database = cluster().fresh_database().await;
    let tables = "CREATE TABLE sessions (session_id int, slug text, state text, received_ms int, inserted_ms int, \
                  acknowledged_ms int, lost_ms int); CREATE TABLE transcripts (session_id int, kind text); \
                  INSERT INTO sessions VALUES (1, 'a', 'ended', 900, 100, 1000, 0), (2, 'b', 'ended', 900, 100, 700, 300); \
                  INSERT INTO transcripts VALUES (1, 'final'), (2, 'gap')";
    database.execute(tables).await;
    let problems = async || compare_with_database(&database, 2, 2).await;
    assert_eq!(problems().await, Vec::<String>::new());
    let breaks = [
        (
            "1 rows of transcripts",
            "DELETE FROM transcripts WHERE session_id = 1",
            "INSERT INTO transcripts VALUES (1, 'final')",
        ),
        (
            "without an end: a is live",
            "UPDATE sessions SET state = 'live' WHERE slug = 'a'",
            "UPDATE sessions SET state = 'ended'",
        ),
        ("does not add up", "UPDATE sessions SET received_ms = 910", "UPDATE sessions SET received_ms = 900"),
        (
            "without a gap, b",
            "UPDATE transcripts SET kind = 'final'",
            "UPDATE transcripts SET kind = 'gap' WHERE session_id = 2",
        ),
        (
            "3 rows of sessions",
            "INSERT INTO sessions VALUES (3, 'c', 'ended', 0, 0, 0, 0)",
            "DELETE FROM sessions WHERE slug = 'c'",
        ),
    ];
    for (sign, breaks, mends) in breaks {
        database.execute(breaks).await;
        let found = problems().await;
        assert!(!found.is_empty() && found.iter().all(|problem| problem.contains(sign)), "{sign}: {found:?}");
        database.execute(mends).await;
        assert_eq!(problems().await, Vec::<String>::new(), "mended");
    }
    let dir = tempfile::tempdir().unwrap();
    assert_eq!(stored_tail(dir.path()), Vec::<String>::new());
    std::fs::create_dir(dir.path().join("spool")).unwrap();
    std::fs::write(dir.path().join("spool/1.pcm"), "").unwrap();
    assert_eq!(stored_tail(dir.path()).len(), 1);
}

#[test]
fn a_soak_finds_what_grows() {
    let usage = |resident_kib, descriptors, threads, children| Usage {
        resident_kib,
        proportional_kib: resident_kib - 1000,
        descriptors,
        threads,
        children,
    };
    let quarter = |load, quiet| Quarter { load, quiet };
    let before = quarter(usage(200_000, 100, 20, 5), usage(150_000, 50, 16, 0));
    let grown = |load, quiet| growth(&before, &quarter(load, quiet));
    assert_eq!(grown(before.load, before.quiet), Vec::<String>::new());
    assert_eq!(grown(usage(215_000, 110, 22, 7), usage(160_000, 54, 17, 0)), Vec::<String>::new(), "noise");
    let signs =
        |problems: Vec<String>| problems.iter().map(|p| p.split(':').next().unwrap().to_owned()).collect::<Vec<_>>();
    let memory = ["resident memory (KiB) under load", "proportional memory (KiB) under load"];
    assert_eq!(signs(grown(usage(225_000, 100, 20, 5), before.quiet)), memory);
    assert_eq!(signs(grown(before.load, usage(150_000, 55, 16, 0))), ["descriptors at rest"]);
    assert_eq!(signs(grown(before.load, usage(150_000, 50, 18, 0))), ["threads at rest"]);
    assert_eq!(signs(grown(before.load, usage(150_000, 50, 16, 1))), ["child processes at rest"]);
    assert!(!growth(&Quarter::default(), &Quarter::default()).is_empty(), "nothing was measured");
}

#[tokio::test]
async fn what_is_far_away_takes_its_time_keeps_its_order_and_arrives_before_the_end() {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    const ROUND_TRIP: Duration = Duration::from_millis(80);
    const LATE: Duration = Duration::from_millis(100);
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let proxy = ChaosProxy::start(listener.local_addr().unwrap()).await;
    proxy.round_trip(ROUND_TRIP);
    tokio::spawn(async move {
        while let Ok((mut socket, _)) = listener.accept().await {
            let mut asked = [0; 1];
            socket.read_exact(&mut asked).await.unwrap();
            for n in 0..200 {
                socket.write_all(&[n]).await.unwrap();
                tokio::task::yield_now().await;
            }
        }
    });
    let exchange = async || {
        let mut socket = tokio::net::TcpStream::connect(proxy.addr).await.unwrap();
        let (begun, mut answer) = (Instant::now(), Vec::new());
        socket.write_all(b"?").await.unwrap();
        socket.read_to_end(&mut answer).await.unwrap();
        assert_eq!(answer, (0..200).collect::<Vec<u8>>(), "all of it, in order, although the server has closed");
        begun.elapsed()
    };
    assert!(exchange().await >= ROUND_TRIP);
    assert_eq!(proxy.late(), 0);
    proxy.late_writes(1000, LATE);
    assert!(exchange().await >= ROUND_TRIP + LATE, "every write is late");
    assert!(proxy.late() > 0);
}
