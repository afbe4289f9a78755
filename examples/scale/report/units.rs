//! The costs that everything else is computed from: each with its source. Change a figure here, and run
//! `UPDATE_DOCS=1 cargo test --test house scale`.

use super::{markdown, number};

/// One figure.
pub struct Unit {
    pub what: &'static str,
    pub value: f64,
    pub unit: &'static str,
    pub source: &'static str,
}

const fn unit(what: &'static str, value: f64, unit: &'static str, source: &'static str) -> Unit {
    Unit { what, value, unit, source }
}

const COSTS: &str = "`tests/unit_costs.rs`";
const SETTING: &str = "default of the setting";
const NATS: &str = "tried once, NATS 2.15.1 on two shared cores";

pub const SESSION: Unit = unit("a second of a session at an ingest node, without its decoder", 3.7, "ms of CPU", COSTS);
pub const DECODER: Unit =
    unit("a second of audio in its decoder (AAC, 44.1 kHz, stereo)", 13.8, "ms of CPU", "docs/DECISIONS.md");
pub const SESSION_MEMORY: Unit = unit("a session at an ingest node, without its decoder", 900.0, "KiB", COSTS);
pub const DECODER_MEMORY: Unit = unit("its decoder", 14_100.0, "KiB", COSTS);
pub const DECODER_START: Unit = unit("start of a decoder", 100.0, "ms of CPU", "docs/DECISIONS.md");
pub const FOLLOWED: Unit =
    unit("an entry of another node at a ws node: posted, mirrored, stored", 0.52, "ms of CPU", COSTS);
pub const FOLLOWED_INTERIM: Unit = unit("an interim of another node at a ws node", 0.26, "ms of CPU", COSTS);
pub const MIRROR: Unit = unit("a room that a ws node mirrors", 29.0, "KiB", COSTS);
pub const KEPT: Unit = unit("an entry in the memory of a room", 3.1, "KiB", COSTS);
pub const DELIVERY: Unit = unit("a message to a viewer", 13.6, "µs of CPU", COSTS);
pub const JOIN: Unit =
    unit("a viewer that comes back with nothing missed, token checked, no TLS", 0.11, "ms of CPU", COSTS);
pub const VIEWER: Unit = unit("a connected viewer", 16.3, "KiB", COSTS);
pub const ROW: Unit = unit("a row of `transcripts` in Postgres, with its indexes", 1789.0, "bytes", COSTS);
pub const ROW_CPU: Unit =
    unit("a row in Postgres, in batches of 100", 43.0, "µs of CPU", "tried once, 200,000 rows, Postgres 15");
pub const NATS_ONE: Unit = unit("appends to one NATS server", 37_000.0, "a second", NATS);
pub const NATS_SYNC: Unit = unit("the same with `sync_interval: always`", 2900.0, "a second", NATS);
pub const NATS_THREE: Unit = unit("appends to three servers", 23_000.0, "a second", NATS);
pub const NATS_FOLLOW: Unit = unit("messages that one follower reads", 27_500.0, "a second", NATS);

pub const MEASURED: &[&Unit] = &[
    &SESSION,
    &DECODER,
    &SESSION_MEMORY,
    &DECODER_MEMORY,
    &DECODER_START,
    &FOLLOWED,
    &FOLLOWED_INTERIM,
    &MIRROR,
    &KEPT,
    &DELIVERY,
    &JOIN,
    &VIEWER,
    &ROW,
    &ROW_CPU,
    &NATS_ONE,
    &NATS_SYNC,
    &NATS_THREE,
    &NATS_FOLLOW,
];

pub const FINALS: Unit = unit("finals of a session", 0.25, "a second", "one in 4 s: speech all day long");
pub const INTERIMS: Unit =
    unit("interims of a session", 1.2, "a second", "one in 0.5 s of speech, which is 60 % of the time");
pub const BUSY: Unit =
    unit("of a node's cores and memory that may be in use", 0.6, "", "the rest is for faults and peaks");
pub const WS_CLIENTS: Unit = unit("viewers of one ws node (`WS_MAX_CLIENTS`)", 20_000.0, "", SETTING);
pub const HISTORY: Unit = unit("entries of a room in memory (`ROOM_HISTORY`)", 1000.0, "", SETTING);
pub const HISTORY_LOW: Unit =
    unit("the same on ws nodes of a large fleet", 100.0, "", "a choice: older ones come from the database");
pub const MAX_SESSIONS: Unit = unit("sessions of one process (`MAX_SESSIONS`)", 500.0, "", SETTING);
pub const GLADIA: Unit = unit("recogniser sessions of one account (`GLADIA_MAX_SESSIONS`)", 30.0, "", SETTING);
pub const LOCAL: Unit = unit("sessions of the local recogniser for each inference thread", 8.0, "", SETTING);
pub const AFFINITY: Unit =
    unit("ws nodes that a room's viewers are on, where the balancer goes by the room", 2.0, "", "a choice");
pub const NATS_BYTES: Unit = unit("the log in NATS (`NATS_MAX_BYTES`)", 8.589_934_592e9, "bytes", SETTING);
pub const HEADERS: Unit = unit("subject and headers of a message in NATS", 400.0, "bytes", "estimate");

pub const TLS: Unit = unit("a TLS handshake at the proxy", 2.0, "ms of CPU", "estimate; full, without resumption");

pub const ASSUMED: &[&Unit] = &[
    &FINALS,
    &INTERIMS,
    &BUSY,
    &WS_CLIENTS,
    &HISTORY,
    &HISTORY_LOW,
    &MAX_SESSIONS,
    &GLADIA,
    &LOCAL,
    &AFFINITY,
    &NATS_BYTES,
    &HEADERS,
    &TLS,
];

pub fn table(units: &[&Unit]) -> String {
    let value = |unit: &Unit| format!("{} {}", number(unit.value), unit.unit).trim().to_owned();
    let row = |unit: &&Unit| vec![unit.what.to_owned(), value(unit), unit.source.to_owned()];
    markdown(&["of", "value", "source"], units.iter().map(row))
}
