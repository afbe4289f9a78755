//! What one row runs on: its own server process, recogniser, database, proxy, sessions and viewers.

use std::cell::RefCell;
use std::rc::Rc;
use std::time::{Duration, Instant};

use chrono::Utc;
use nix::sys::signal::Signal;
use serde_json::{Value, json};
use stenocast::stt::marker;

use super::report::Row;
use super::room::{PERIOD_MS, Room};
use super::verdict::{Stored, Verdict, judge};
use super::watcher::timestamp;
use super::{Fault, Recovery, When};
use crate::support::chaos_proxy::ChaosProxy;
use crate::support::postgres::{Database, cluster};
use crate::support::publisher::write_wav;
use crate::support::server::{Server, health, request};
use crate::support::stt::{Stt, marker_service};

/// Longest time of a whole row.
pub const ROW_DEADLINE: Duration = Duration::from_secs(240);
/// Longest wait for one thing.
const DEADLINE: Duration = Duration::from_secs(90);
const POLL: Duration = Duration::from_millis(50);
/// Finals of the victim before the fault.
const SPEAKING: usize = 3;
/// Attempts to get the same ports again after a restart.
const RESTARTS: u32 = 20;

/// What every server of a drill is told; a row's own settings come after.
const SETTINGS: &[(&str, &str)] = &[("SESSION_GRACE_MS", "4000"), ("DECODER", "auto")];

/// See the module.
pub struct Rig {
    pub fault: Fault,
    pub stt: Stt,
    pub database: Database,
    /// Between the server and the database.
    pub proxy: ChaosProxy,
    pub dir: tempfile::TempDir,
    scratch: tempfile::TempDir,
    server: RefCell<Option<Rc<Server>>>,
    /// The victim and the bystanders.
    pub rooms: Vec<Room>,
    problems: RefCell<Vec<String>>,
}

impl Rig {
    /// The whole row.
    pub async fn drill(fault: Fault) -> Row {
        let mut rig = Self::start(fault).await;
        rig.rooms = (0..=fault.bystanders).map(|n| rig.room(n)).collect();
        let bystanders = &rig.rooms[1..];
        bystanders.iter().for_each(|room| rig.publish(room, fault.markers));
        if fault.when == When::Speaking {
            rig.publish(rig.victim(), fault.markers);
            rig.until("the victim speaks", || rig.victim().seen.borrow().finals().count() >= SPEAKING).await;
        }
        let struck = Utc::now();
        let recovery = match (fault.inject)(&rig).await {
            Recovery::Took(took) => Some(took),
            Recovery::Never => None,
            Recovery::NextFinal => {
                rig.until("the victim speaks again", || rig.next_final(struck).is_some()).await;
                rig.next_final(struck)
            }
        };
        rig.finish(recovery).await
    }

    async fn start(fault: Fault) -> Self {
        let stt = marker_service().await;
        let database = cluster().fresh_database().await;
        let proxy = ChaosProxy::start(database.addr).await;
        let temporary = || tempfile::tempdir().expect("a temporary directory");
        let rig = Self {
            fault,
            stt,
            database,
            proxy,
            dir: temporary(),
            scratch: temporary(),
            server: RefCell::default(),
            rooms: Vec::new(),
            problems: RefCell::default(),
        };
        rig.boot(("0".into(), "0".into())).await;
        rig
    }

    async fn boot(&self, (http, rtmp): (String, String)) {
        let url = self.database.url_at(self.proxy.addr);
        let own = [("DATABASE_URL", &*url), ("PORT", &*http), ("RTMP_PORT", &*rtmp)];
        let remote = [("GLADIA_API_URL", &*self.stt.url), ("GLADIA_API_KEY", "drill")];
        let recogniser = if self.fault.has_local_recogniser { &[][..] } else { &remote };
        let settings = [SETTINGS, recogniser, &own, self.fault.settings].concat();
        let server = match self.fault.disk_mib {
            Some(mebibytes) => Server::start_on_small_disk(self.dir.path(), &settings, mebibytes).await,
            None if self.fault.has_local_recogniser => {
                Server::start_with_local_recogniser(self.dir.path(), &settings).await
            }
            None => Server::start_drill(self.dir.path(), &settings).await,
        };
        self.server.replace(Some(Rc::new(server)));
    }

    fn room(&self, n: usize) -> Room {
        let slug = if n == 0 { "victim".into() } else { format!("bystander-{n}") };
        Room::new(self.server().http, slug, 100 * n as u32 + 101)
    }

    pub fn server(&self) -> Rc<Server> {
        self.server.borrow().clone().expect("the server runs")
    }

    fn take_server(&self) -> Server {
        let server = self.server.take().expect("the server runs");
        Rc::into_inner(server).expect("nobody asks it anything now")
    }

    pub fn victim(&self) -> &Room {
        &self.rooms[0]
    }

    pub fn publish(&self, room: &Room, markers: u32) {
        room.publish(self.scratch.path(), self.server().rtmp, markers);
    }

    /// Ends the server by a signal, gives its exit code, and starts it again: see [`Self::start_again`].
    pub async fn restart(&self, signal: Signal) -> i32 {
        self.server().signal(signal);
        self.rooms.iter().for_each(Room::note_cut);
        self.start_again().await
    }

    /// Waits for the server's end, gives its exit code, and starts it again with the same data and ports; then every
    /// encoder comes back, as encoders do.
    pub async fn start_again(&self) -> i32 {
        let server = self.take_server();
        let ports = (server.http.port().to_string(), server.rtmp.port().to_string());
        let (code, _) = server.end().await;
        // Those that were not cut before are cut by it.
        self.rooms.iter().for_each(Room::note_cut);
        for _ in 0..RESTARTS {
            // The port may be somebody's for a moment.
            let free = [&ports.0, &ports.1]
                .iter()
                .all(|port| std::net::TcpListener::bind(format!("127.0.0.1:{port}")).is_ok());
            if free {
                break;
            }
            tokio::time::sleep(POLL).await;
        }
        self.boot(ports).await;
        for room in &self.rooms {
            room.end_publishers().await;
            self.publish(room, self.fault.markers);
        }
        code
    }

    /// Switches a fault of the victim's recogniser session; `order` as in src/stt/service/faults.rs.
    pub async fn victims_recogniser(&self, mut order: Value) {
        let session = self.server().session("victim").await;
        let id = &session["children"]["gladiaBridge"]["state"]["sttSession"];
        assert!(id.is_string(), "the victim has a recogniser session: {session}");
        order["session"] = id.clone();
        assert_eq!(self.stt.fault(order).await, 1, "the victim's recogniser session was reached");
    }

    /// Switches a fault of whatever comes next at the recogniser.
    pub async fn recogniser(&self, order: Value) {
        self.stt.fault(order).await;
    }

    /// Crashes an actor, of the victim where it is one of a session's.
    pub async fn crash(&self, actor: &str) {
        self.server().drill(json!({ "crash": actor, "session": "victim" })).await;
    }

    pub fn note(&self, problem: String) {
        self.problems.borrow_mut().push(problem);
    }

    /// Waits for a condition; one that never holds is noted, and the row goes on to show what it has cost.
    pub async fn until(&self, what: &str, holds: impl Fn() -> bool) -> Duration {
        let begun = Instant::now();
        while !holds() {
            if begun.elapsed() > DEADLINE {
                self.note(format!("{what}: not within {DEADLINE:?}"));
                break;
            }
            tokio::time::sleep(POLL).await;
        }
        begun.elapsed()
    }

    /// Waits until the victim's viewer is told.
    pub async fn until_told(&self, status: &str) {
        self.until(&format!("the status {status}"), || self.victim().seen.borrow().has_status(status)).await;
    }

    /// Waits until `/health` answers with this status.
    pub async fn until_health(&self, wanted: u16) {
        let (begun, http) = (Instant::now(), self.server().http);
        while !request(http, "GET", "/health", "").await.is_ok_and(|(status, _)| status == wanted) {
            if begun.elapsed() > DEADLINE {
                return self.note(format!("/health never answered {wanted}"));
            }
            tokio::time::sleep(POLL).await;
        }
    }

    /// The recogniser session that the victim has now, and how many there have been.
    pub async fn victims_session(&self) -> (Value, Value) {
        let session = self.server().session("victim").await;
        let state = &session["children"]["gladiaBridge"]["state"];
        (state["sttSession"].clone(), state["tally"]["sessions"].clone())
    }

    /// Where a publisher without ffmpeg is to take its audio from: the next `count` markers of the victim.
    pub fn next_audio(&self, count: u32) -> std::path::PathBuf {
        let first = self.victim().note_publisher(count);
        let file = self.scratch.path().join(format!("raw-{first}.wav"));
        write_wav(&file, &marker::track(first, count, PERIOD_MS as usize));
        file
    }

    /// Waits until a number that `/health` shows is zero.
    pub async fn until_zero(&self, field: &str) -> Duration {
        let begun = Instant::now();
        let http = self.server().http;
        loop {
            let health = health(http).await.unwrap_or_default();
            if health[field] == 0 {
                return begun.elapsed();
            }
            if begun.elapsed() > DEADLINE {
                self.note(format!("{field} does not get zero: {health}"));
                return begun.elapsed();
            }
            tokio::time::sleep(POLL).await;
        }
    }

    /// Waits until so many viewers are connected, or fewer; gives what is left.
    pub async fn viewers_down_to(&self, most: usize) -> usize {
        let begun = Instant::now();
        let http = self.server().http;
        loop {
            let viewers = health(http).await.unwrap_or_default()["viewers"].as_u64().unwrap_or(u64::MAX) as usize;
            if viewers <= most || begun.elapsed() > DEADLINE {
                return viewers;
            }
            tokio::time::sleep(POLL).await;
        }
    }

    /// From `struck` to the arrival of the victim's first final that the recogniser has said since.
    fn next_final(&self, struck: chrono::DateTime<Utc>) -> Option<Duration> {
        let seen = self.victim().seen.borrow();
        let (at, _) = seen.finals().find(|(_, value)| timestamp(value).is_some_and(|heard| heard > struck))?;
        (Utc::now() - struck).to_std().ok()?.checked_sub(at.elapsed())
    }

    /// Lets every stream and session come to its end, stops the server and compares.
    async fn finish(self, recovery: Option<Duration>) -> Row {
        for room in &self.rooms {
            if let Some(complaint) = room.published().await {
                self.note(complaint);
            }
        }
        for room in &self.rooms {
            self.until(&format!("the end of {}", room.slug), || room.seen.borrow().has_status("ended")).await;
        }
        self.until_zero("outboxRows").await;
        self.prove().await;
        let server = self.take_server();
        server.signal(Signal::SIGTERM);
        let (code, log) = server.end().await;
        if code != 0 {
            self.note(format!("the stop's exit code is {code}"));
        }
        let mut row = Row { name: self.fault.name.into(), recovery, ..Row::default() };
        for room in &self.rooms {
            self.add(room, &mut row).await;
        }
        let lost = self.database.query("SELECT coalesce(sum(lost_ms), 0) FROM sessions").await;
        row.audio_lost_ms = lost[0].parse().expect("a number");
        if self.fault.gap.is_none() && row.audio_lost_ms > 0 {
            self.note(format!("{} ms of audio lost", row.audio_lost_ms));
        }
        if let Some(status) = self.fault.status.filter(|status| !self.victim().seen.borrow().has_status(status)) {
            self.note(format!("viewers were never told {status}"));
        }
        if !self.fault.hits_all {
            row.others_p99_ms = self.others_p99_ms();
        }
        row.problems.extend(self.problems.take());
        keep_log(&row, &log);
        row
    }

    /// A fault that has not struck proves nothing.
    async fn prove(&self) {
        let http = self.server().http;
        let metrics = request(http, "GET", "/metrics", "").await.map(|(_, text)| text).unwrap_or_default();
        for proof in self.fault.proof {
            let series = metrics.lines().filter_map(|line| line.strip_prefix("stenocast_")?.strip_prefix(proof));
            let total: f64 = series.filter_map(|rest| rest.rsplit(' ').next()?.parse::<f64>().ok()).sum();
            if total == 0.0 {
                self.note(format!("the fault has not struck: {proof} is zero"));
            }
        }
    }

    async fn add(&self, room: &Room, row: &mut Row) {
        let Verdict { expected, lost, duplicated, rows_lost, in_holes, gaps, problems } =
            judge(room, &self.stored(&room.slug).await);
        row.finals_expected += expected;
        row.finals_lost += lost;
        row.finals_duplicated += duplicated;
        row.rows_lost += rows_lost;
        row.in_holes += in_holes;
        row.problems.extend(problems);
        let is_hit = self.fault.hits_all || room.slug == "victim";
        let announced = self.fault.gap.filter(|_| is_hit);
        if gaps.keys().any(|reason| Some(reason.as_str()) != announced) {
            row.problems.push(format!("{}: gaps {gaps:?}, only {announced:?} may be", room.slug));
        }
        if announced.is_some_and(|reason| !gaps.contains_key(reason)) {
            row.problems.push(format!("{}: no gap {announced:?} was announced", room.slug));
        }
        if room.slug == "victim" {
            row.gaps = gaps.iter().map(|(reason, n)| format!("{n} {reason}")).collect::<Vec<_>>().join(", ");
        }
    }

    async fn stored(&self, slug: &str) -> Vec<Stored> {
        let sql = format!(
            "SELECT json_build_object('seq', seq, 'id', entry_id, 'text', coalesce(text, '')) \
             FROM transcripts WHERE slug = '{slug}' ORDER BY session_id, seq"
        );
        let rows = self.database.query(&sql).await;
        let parsed = rows.iter().map(|row| serde_json::from_str::<Value>(row).expect("JSON"));
        let stored = |row: Value| Stored {
            seq: row["seq"].as_u64().expect("a number"),
            entry_id: row["id"].as_str().expect("an id").into(),
            text: row["text"].as_str().expect("a text").into(),
        };
        parsed.map(stored).collect()
    }

    /// The worst of the other sessions' p99: with a few dozen finals each, that is their slowest.
    fn others_p99_ms(&self) -> Option<f64> {
        let p99 = |room: &Room| {
            let mut delays = room.seen.borrow().delays_ms.clone();
            delays.sort_by(f64::total_cmp);
            delays.get((delays.len() * 99).div_ceil(100).saturating_sub(1)).copied()
        };
        self.rooms[1..].iter().filter_map(p99).max_by(f64::total_cmp)
    }
}

/// Of a failed row, the server's log stays for a look at it.
fn keep_log(row: &Row, log: &str) {
    if row.passed() {
        return;
    }
    let name: String = row.name.chars().map(|c| if c.is_ascii_alphanumeric() { c } else { '-' }).collect();
    let path = std::env::temp_dir().join(format!("stenocast-drill-{name}.log"));
    if std::fs::write(&path, log).is_ok() {
        eprintln!("{}: the server's log is {}", row.name, path.display());
    }
}
