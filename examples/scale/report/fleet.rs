//! Arithmetic over the unit costs: nodes, flows, rows, limits.

use stenocast::bus::{Batch, wire};
use stenocast::transcript::{Entry, Epoch, Slug};

use super::units::*;
use super::{bytes, markdown, number, sample};

const MS: f64 = 1000.0;
const KIB: f64 = 1024.0;
const GIB: f64 = KIB * KIB * KIB;
const DAY_S: f64 = 86_400.0;

/// The load, and the machines that bear it.
pub struct Load {
    pub sessions: f64,
    pub viewers: f64,
    /// Cores and memory of a node.
    pub cores: f64,
    pub gib: f64,
    pub seed: u64,
}

impl Default for Load {
    fn default() -> Self {
        Self { sessions: 10_000.0, viewers: 1_000_000.0, cores: 8.0, gib: 16.0, seed: 11 }
    }
}

impl Load {
    pub fn usable_cores(&self) -> f64 {
        self.cores * BUSY.value
    }

    fn usable_bytes(&self) -> f64 {
        self.gib * GIB * BUSY.value
    }

    pub fn finals(&self) -> f64 {
        self.sessions * FINALS.value
    }

    fn interims(&self) -> f64 {
        self.sessions * INTERIMS.value
    }

    fn sessions_by_cpu(&self) -> f64 {
        (self.usable_cores() * MS / (SESSION.value + DECODER.value)).floor()
    }

    fn sessions_by_memory(&self) -> f64 {
        (self.usable_bytes() / KIB / (SESSION_MEMORY.value + DECODER_MEMORY.value)).floor()
    }

    pub fn sessions_of_node(&self) -> f64 {
        self.sessions_by_cpu().min(self.sessions_by_memory())
    }

    pub fn ingest_nodes(&self) -> f64 {
        (self.sessions / self.sessions_of_node()).ceil()
    }

    /// Nodes with viewers, so many that one may be away.
    pub fn ws_nodes(&self) -> f64 {
        (self.viewers / WS_CLIENTS.value).ceil() + 1.0
    }

    /// Rooms that a ws node has viewers of, when a room's viewers are on `spread` of the nodes, or anywhere.
    fn watched(&self, spread: Option<f64>) -> f64 {
        let nodes = self.ws_nodes();
        let share = match spread {
            Some(of_room) => of_room.min(nodes) / nodes,
            None => 1.0 - (1.0 - 1.0 / nodes).powf(self.viewers / self.sessions),
        };
        self.sessions * share
    }

    /// Cores that a ws node uses: following all rooms, the interims of those that are watched there, its viewers.
    fn ws_use(&self, spread: Option<f64>) -> [f64; 3] {
        let of_viewer = (FINALS.value + INTERIMS.value) * DELIVERY.value / 1e6;
        [
            self.finals() * FOLLOWED.value / MS,
            self.watched(spread) * INTERIMS.value * FOLLOWED_INTERIM.value / MS,
            self.viewers / self.ws_nodes() * of_viewer,
        ]
    }

    /// Cores that a ws node has left, where the balancer goes by the room.
    pub fn ws_spare_cores(&self) -> f64 {
        (self.usable_cores() - self.ws_use(Some(AFFINITY.value)).iter().sum::<f64>()).max(0.1)
    }

    fn ws_bytes(&self, history: f64) -> f64 {
        let rooms = self.sessions * (MIRROR.value + history * KEPT.value);
        (rooms + self.viewers / self.ws_nodes() * VIEWER.value) * KIB
    }
}

fn json(entry: &Entry) -> String {
    serde_json::to_string(entry).expect("plain fields")
}

/// Bytes of a final, of an interim, and of a final's message in the bus.
fn sizes() -> [f64; 3] {
    let (room, epoch) = ("standup-2026-11-28", Epoch::max());
    let entry = json(&sample::final_entry(room, epoch, 42));
    let batch = Batch::new(Slug::parse(room).expect("a plain name"), epoch);
    let message = wire::body(&batch, &[&[entry.as_str().into()]]).len() as f64 + HEADERS.value;
    [entry.len() as f64, json(&sample::interim(room, epoch, 42)).len() as f64, message]
}

pub fn entry_bytes() -> f64 {
    sizes()[0]
}

pub fn weights() -> String {
    let [entry, interim, message] = sizes();
    let of_viewer = FINALS.value * entry + INTERIMS.value * interim;
    let rows = [
        ("a final of 11 words, with their times", bytes(entry)),
        ("an interim of 6 words", bytes(interim)),
        ("a final's message in NATS", bytes(message)),
        ("to one viewer, a second", bytes(of_viewer)),
    ];
    markdown(&["message", "weight"], rows.map(|(what, weight)| vec![what.to_owned(), weight]))
}

pub fn nodes(load: &Load) -> String {
    let fits = |used: f64, has: f64| {
        format!("{} of {}{}", number(used), number(has), if used > has { ": does not fit" } else { "" })
    };
    let row =
        |part: &str, carries: String, nodes: f64, used: String| vec![part.to_owned(), carries, number(nodes), used];
    let ingest = format!(
        "{} sessions (CPU; memory would do for {})",
        number(load.sessions_by_cpu()),
        number(load.sessions_by_memory())
    );
    let viewers = format!("{} viewers (`WS_MAX_CLIENTS`), one node spare", number(WS_CLIENTS.value));
    let cpu = |spread| {
        let used = load.ws_use(spread);
        let parts = used.map(number);
        format!(
            "cores: {} (following {}, interims {}, viewers {})",
            fits(used.iter().sum(), load.usable_cores()),
            parts[0],
            parts[1],
            parts[2]
        )
    };
    let memory =
        |history: &Unit| format!("GiB: {}", fits(load.ws_bytes(history.value) / GIB, load.usable_bytes() / GIB));
    let [entry, interim, _] = sizes();
    let out = load.viewers / load.ws_nodes() * (FINALS.value * entry + INTERIMS.value * interim) * 8.0 / 1e9;
    let rows = [
        row(
            "ingest",
            ingest,
            load.ingest_nodes(),
            format!("{} sessions each", number(load.sessions / load.ingest_nodes())),
        ),
        row(
            "recogniser, Gladia",
            format!("{} sessions an account", number(GLADIA.value)),
            (load.sessions / GLADIA.value).ceil(),
            "accounts, or a contract".into(),
        ),
        row(
            "recogniser, local",
            format!("{} sessions a thread", number(LOCAL.value)),
            (load.sessions / LOCAL.value).ceil(),
            "threads".into(),
        ),
        row("ws, a room's viewers anywhere", viewers.clone(), load.ws_nodes(), cpu(None)),
        row("ws, the balancer goes by the room", viewers, load.ws_nodes(), cpu(Some(AFFINITY.value))),
        row("ws, `ROOM_HISTORY=1000`", "all rooms".into(), load.ws_nodes(), memory(&HISTORY)),
        row("ws, `ROOM_HISTORY=100`", "all rooms".into(), load.ws_nodes(), memory(&HISTORY_LOW)),
        row("ws, to its viewers", String::new(), load.ws_nodes(), format!("{} Gbit/s before TLS", number(out))),
    ];
    markdown(&["part", "one carries", "how many", "used of one"], rows)
}

pub fn bus(load: &Load) -> String {
    let [entry, interim, message] = sizes();
    let interim_message = interim + HEADERS.value;
    let nodes = load.ws_nodes();
    let (anywhere, by_room) = (load.watched(None) * nodes / load.sessions, AFFINITY.value.min(nodes));
    let row = |what: &str, messages: f64, each: f64, of: String| {
        vec![what.to_owned(), number(messages), bytes(messages * each), of]
    };
    let share = |unit: &Unit| format!("{} %", number(load.finals() / unit.value * 100.0));
    let appends = format!(
        "{} of one server, {} with `always`, {} of three",
        share(&NATS_ONE),
        share(&NATS_SYNC),
        share(&NATS_THREE)
    );
    let rows = [
        row(
            "`BUS=http`: ingest to ws nodes, entries",
            load.finals() * nodes,
            entry,
            "each node is sent each entry".into(),
        ),
        row("NATS: appends", load.finals(), message, appends),
        row("NATS: to one follower", load.finals(), message, share(&NATS_FOLLOW)),
        row("NATS: to all followers", load.finals() * nodes, message, format!("{} followers", number(nodes))),
        row("NATS: interims in", load.interims(), interim_message, String::new()),
        row(
            "NATS: interims out, viewers anywhere",
            load.interims() * anywhere,
            interim_message,
            format!("{} nodes a room", number(anywhere)),
        ),
        row(
            "NATS: interims out, by the room",
            load.interims() * by_room,
            interim_message,
            format!("{} nodes a room", number(by_room)),
        ),
    ];
    let full_s = NATS_BYTES.value / (load.finals() * message);
    let full = format!(
        "The log grows by {} a day. `NATS_MAX_BYTES=8GiB` holds {} minutes of it: so long may the database be away before NATS is full and the outboxes take over.\n",
        bytes(load.finals() * message * DAY_S),
        number(full_s / 60.0)
    );
    format!("{}\n{full}", markdown(&["flow", "messages a second", "bytes a second", "that is"], rows))
}

pub fn database(load: &Load) -> String {
    let rows_a_day = load.finals() * DAY_S;
    let rows = [
        ("rows a second", number(load.finals())),
        ("rows a day", number(rows_a_day)),
        ("a day's partition", bytes(rows_a_day * ROW.value)),
        ("30 days", bytes(rows_a_day * ROW.value * 30.0)),
        ("statements a second, 100 rows each", number(load.finals() / 100.0)),
        ("cores of Postgres for the rows", number(load.finals() * ROW_CPU.value / 1e6)),
    ];
    markdown(&["Postgres", "value"], rows.map(|(what, value)| vec![what.to_owned(), value]))
}

pub fn limits(load: &Load) -> String {
    let by_cpu = |of_session: f64| load.usable_cores() * MS / of_session;
    let by_memory = |history: &Unit| load.usable_bytes() / KIB / (MIRROR.value + history.value * KEPT.value);
    let (following, interims) = (FINALS.value * FOLLOWED.value, INTERIMS.value * FOLLOWED_INTERIM.value);
    let mut limits = [
        ("the recogniser's account", GLADIA.value, "a larger one, and `GLADIA_MAX_SESSIONS`"),
        (
            "the local recogniser beside an ingest node",
            LOCAL.value * (load.cores - 1.0),
            "`stenocast stt` on machines of its own, by `GLADIA_API_URL`",
        ),
        ("CPU of one ingest node: its decoders", load.sessions_by_cpu(), "more ingest nodes"),
        ("memory of each ws node, `ROOM_HISTORY=1000`", by_memory(&HISTORY), "`ROOM_HISTORY=100` there"),
        (
            "memory of each ws node, `ROOM_HISTORY=100`",
            by_memory(&HISTORY_LOW),
            "clusters side by side, or mirrors for watched rooms alone (needs code)",
        ),
        (
            "CPU of each ws node, viewers of all rooms on it",
            by_cpu(following + interims),
            "a balancer that goes by the room",
        ),
        (
            "CPU of each ws node, following alone",
            by_cpu(following),
            "clusters side by side, or a follower for watched rooms alone (needs code)",
        ),
        (
            "NATS, one server, `sync_interval: always`",
            NATS_SYNC.value / FINALS.value,
            "three servers with separate power",
        ),
        ("NATS, three servers", NATS_THREE.value / FINALS.value, "clusters side by side"),
        ("what one follower reads", NATS_FOLLOW.value / FINALS.value, "clusters side by side"),
        ("one core of Postgres", 1e6 / ROW_CPU.value / FINALS.value, "more cores; then a database for each cluster"),
    ];
    limits.sort_by(|a, b| a.1.total_cmp(&b.1));
    let row =
        |(what, sessions, way): (&str, f64, &str)| vec![what.to_owned(), number(sessions.floor()), way.to_owned()];
    markdown(&["what is full", "at so many sessions", "then"], limits.map(row))
}
