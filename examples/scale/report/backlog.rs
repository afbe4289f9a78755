//! The bus was away: how long its backlog takes to drain. A flow in steps of 100 ms, without chance.

use super::fleet::{Load, entry_bytes};
use super::units::{FOLLOWED, NATS_ONE, NATS_SYNC, NATS_THREE, ROW_CPU};
use super::{bytes, markdown, number};

const AWAY_S: f64 = 60.0;
/// After so long without an end, the backlog does not drain.
const MOST_S: f64 = 3600.0;
const STEP_S: f64 = 0.1;
/// A batch of one room's backlog.
const BATCH_BYTES: f64 = 262_144.0;

/// Work that waits at one stage, and the most that it does in a second.
struct Stage {
    waiting: f64,
    most: f64,
}

impl Stage {
    /// Gives what it has done.
    fn step(&mut self, came: f64) -> f64 {
        let done = (self.waiting + came).min(self.most * STEP_S);
        self.waiting += came - done;
        done
    }
}

/// Seconds from the bus's return until nothing waits at each stage: appended, shown at every ws node, stored.
fn drain(load: &Load, appends: f64) -> [Option<f64>; 3] {
    let live = load.finals();
    let of_room = (live / load.sessions * AWAY_S).max(1.0);
    // A room's backlog goes as few messages; its live entries are a message each.
    let in_message = of_room.min((BATCH_BYTES / entry_bytes()).floor());
    let mut bus = Stage { waiting: live * AWAY_S / in_message, most: appends };
    let mut node = Stage { waiting: 0.0, most: load.ws_spare_cores() * 1000.0 / FOLLOWED.value + live };
    let mut database = Stage { waiting: 0.0, most: 1e6 / ROW_CPU.value };
    let mut backlog = bus.waiting;
    let mut ends = [None; 3];
    let mut now_s = 0.0;
    while now_s < MOST_S && ends.contains(&None) {
        now_s += STEP_S;
        let done = bus.step(live * STEP_S);
        let old = done.min(backlog);
        backlog -= old;
        let entries = old * in_message + (done - old);
        database.step(entries);
        node.step(entries);
        let is_empty =
            [bus.waiting, bus.waiting + node.waiting, bus.waiting + database.waiting].map(|waiting| waiting < 1.0);
        for (end, is_empty) in ends.iter_mut().zip(is_empty) {
            *end = if is_empty { end.or(Some(now_s)) } else { None };
        }
    }
    ends
}

pub fn table(load: &Load) -> String {
    let backlog = load.finals() * AWAY_S;
    let row = |(what, unit): (&str, &super::units::Unit)| {
        let ends = drain(load, unit.value);
        let shown = ends.map(|end| end.map_or_else(|| "never".to_owned(), number));
        [vec![what.to_owned(), number(backlog), bytes(backlog * entry_bytes())], shown.to_vec()].concat()
    };
    let servers = [("one server", &NATS_ONE), ("one server, `always`", &NATS_SYNC), ("three servers", &NATS_THREE)];
    let columns = [
        "NATS away for 60 s",
        "entries that wait",
        "in the outboxes",
        "appended after s",
        "shown everywhere",
        "stored",
    ];
    let moved = load.sessions_of_node().min(load.sessions / load.ingest_nodes());
    let others = (load.ingest_nodes() - 1.0).max(1.0);
    let spare = load.cores - load.usable_cores();
    let start_s = moved * super::units::DECODER_START.value / 1000.0 / others / spare;
    format!(
        "{}\nAn ingest node that dies leaves {} sessions to {} others: their decoders take {} s to start there, on the cores kept free.\n",
        markdown(&columns, servers.map(row)),
        number(moved),
        number(others),
        number(start_s)
    )
}
