//! Every promise at once, briefly: the quick rows of the fault drill. `make drill` runs the whole table.

#[path = "../benches/drill/harness/mod.rs"]
mod harness;
mod support;

use std::time::Instant;

use harness::room::{Room, Run};
use harness::verdict::{Stored, judge};
use serde_json::{Value, json};

/// Rows at a time: two minutes in all on two cores.
const AT_A_TIME: usize = 4;

#[test]
fn faults_cost_no_final_and_no_row() {
    let faults = harness::faults::all().into_iter().filter(|fault| fault.quick).collect();
    let rows = harness::run(faults, AT_A_TIME);
    harness::report::print(&rows);
    let failed: Vec<&str> = rows.iter().filter(|row| !row.passed()).map(|row| row.name.as_str()).collect();
    assert!(failed.is_empty(), "{failed:?}");
}

/// A final of marker `number` that was said where it belongs.
fn said(seq: u64, number: u32) -> Value {
    let start_ms = u64::from(number - 101) * harness::room::PERIOD_MS;
    json!({"type": "transcript", "session": "victim", "epoch": "e", "seq": seq, "id": format!("id-{seq}"),
        "isFinal": true, "text": format!("marker {number}"), "startMs": start_ms, "endMs": start_ms + 600})
}

/// Four markers were published; what is counted when these entries were seen, and of them all but `not_stored`.
fn counted(entries: &[Value], not_stored: &[u64]) -> [usize; 4] {
    let room = Room::offline("victim");
    room.note_run(Run { first: 101, count: 4, begun: Instant::now(), cut: None, child: None });
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
    let gap = |start_ms, end_ms| {
        json!({"type": "gap", "session": "victim", "epoch": "e", "seq": 3, "id": "gap", "reason": "process_restart",
            "startMs": start_ms, "endMs": end_ms})
    };
    let with = |gap: Value| [all[0].clone(), all[1].clone(), gap, said(4, 104)];
    assert_eq!(counted(&with(gap(2000, 3500)), &[]), [0, 0, 0, 1], "a hole that was announced");
    assert_eq!(counted(&with(gap(0, 100)), &[]), [1, 0, 0, 0], "a hole elsewhere excuses nothing");
}
