//! What one fault strikes: sessions with their publishers and viewers, in a world of their own or a shared one.

use std::cell::RefCell;
use std::rc::Rc;
use std::time::{Duration, Instant};

use chrono::Utc;
use nix::sys::signal::Signal;
use serde_json::{Value, json};

use super::report::Row;
use super::room::Room;
use super::verdict::{Verdict, judge};
use super::watcher::timestamp;
use super::world::{NODES_TOKEN, Setup, World};
use super::{Fault, Recovery, When};
use crate::support::server::{Server, health, request, request_as};
use crate::support::wait::within;

/// Longest time of a whole row.
pub const ROW_DEADLINE: Duration = Duration::from_secs(240);
/// Longest wait for one thing, on a machine that rows share with their encoders.
const PATIENCE: Duration = Duration::from_secs(90);
pub const POLL: Duration = Duration::from_millis(50);
/// Length of a third party's lines.
const LINE_BYTES: usize = 16_000;
/// Finals of the victim before the fault.
const SPEAKING: usize = 3;

/// What every server of a drill is told; a row's own settings come after.
const SETTINGS: &[(&str, &str)] = &[("SESSION_GRACE_MS", "4000"), ("DECODER", "auto")];

/// See the module.
pub struct Rig {
    pub fault: Fault,
    pub world: Rc<World>,
    /// The victim and the bystanders.
    pub rooms: Vec<Rc<Room>>,
    problems: RefCell<Vec<String>>,
}

impl Rig {
    pub fn new(fault: Fault, world: Rc<World>, rooms: Vec<Rc<Room>>) -> Self {
        Self { fault, world, rooms, problems: RefCell::default() }
    }

    /// The whole row, in a world of its own.
    pub async fn drill(fault: Fault) -> Row {
        // As long as the process lives: a row's own settings are made from two tables.
        let settings: &'static [_] = Vec::leak([SETTINGS, fault.settings].concat());
        let Fault { disk_mib, has_local_recogniser, far, late_per_mille, pooled, split, .. } = fault;
        let setup = Setup { settings, disk_mib, has_local_recogniser, far, late_per_mille, pooled, split };
        let world = Rc::new(World::start(setup).await);
        let room = |n: usize| {
            let slug = if n == 0 { "victim".to_owned() } else { format!("bystander-{n}") };
            Rc::new(Room::new(&world.viewers_at(n), slug, 100 * n as u32 + 101))
        };
        let rig = Self::new(fault, world.clone(), (0..=fault.bystanders).map(room).collect());
        rig.rooms[1..].iter().for_each(|room| rig.publish(room, fault.markers));
        rig.speak().await;
        let recovery = rig.strike().await;
        rig.finish(recovery).await
    }

    /// The victim publishes, unless the fault is to strike before that.
    pub async fn speak(&self) {
        if self.fault.when == When::Speaking {
            self.publish(self.victim(), self.fault.markers);
            self.until("the victim speaks", || self.victim().seen.borrow().finals().count() >= SPEAKING).await;
        }
    }

    /// The fault strikes; gives the time until it is mended.
    pub async fn strike(&self) -> Option<Duration> {
        let struck = Utc::now();
        match (self.fault.inject)(self).await {
            Recovery::Took(took) => Some(took),
            Recovery::Never => None,
            Recovery::NextFinal => {
                self.until("the victim speaks again", || self.next_final(struck).is_some()).await;
                self.next_final(struck)
            }
        }
    }

    pub fn server(&self) -> Rc<Server> {
        self.world.server()
    }

    pub fn victim(&self) -> &Room {
        &self.rooms[0]
    }

    pub fn publish(&self, room: &Room, markers: u32) {
        let n = self.rooms.iter().position(|other| other.slug == room.slug).expect("a room of this rig");
        room.publish(self.world.publisher_at(n), markers);
    }

    /// The victim's publisher is cut off, and publishes at this node from now on.
    pub async fn move_publisher(&self, ingest: usize, markers: u32) {
        self.victim().cut().await;
        self.victim().publish(self.world.rtmp_of(ingest), markers);
    }

    /// Ends the server by a signal, gives its exit code, and starts it again: see [`Self::start_again`].
    pub async fn restart(&self, signal: Signal) -> i32 {
        self.server().signal(signal);
        self.rooms.iter().for_each(|room| room.note_cut());
        self.start_again().await
    }

    /// Stops the server as an operator does and starts it again: see [`Self::start_again`].
    pub async fn restart_in_order(&self) {
        let code = self.restart(Signal::SIGTERM).await;
        if code != 0 {
            self.note(format!("SIGTERM's exit code is {code}"));
        }
    }

    /// Waits for the server's end, gives its exit code, and starts it again with the same data and ports; then every
    /// encoder comes back, as encoders do.
    pub async fn start_again(&self) -> i32 {
        // Those that were not cut before are cut by its end.
        let code = self.world.start_again(|| self.rooms.iter().for_each(|room| room.note_cut())).await;
        for room in &self.rooms {
            room.end_publishers().await;
            self.publish(room, self.fault.markers);
        }
        code
    }

    /// A third party posts lines into the victim's room, so many bytes of them.
    pub async fn post_lines(&self, bytes: usize) {
        let (http, text) = (self.world.servers()[0], "x".repeat(LINE_BYTES));
        for n in 0..bytes / LINE_BYTES {
            let line = json!({"id": format!("filler-{n}"), "isFinal": true, "text": text, "startMs": n, "endMs": n});
            let post = json!({"session": self.victim().slug, "transcript": line}).to_string();
            let answer = request_as(http, NODES_TOKEN, "POST", "/api/realtime/transcribe/broadcast", &post).await;
            assert!(matches!(answer, Ok((202, _))), "a third party's line is taken: {answer:?}");
        }
    }

    /// Switches a fault of the victim's recogniser session; `order` as in `src/local_stt/service/faults.rs`.
    pub async fn victims_recogniser(&self, mut order: Value) {
        let session = self.server().session(&self.victim().slug).await;
        let id = &session["children"]["gladiaBridge"]["state"]["sttSession"];
        assert!(id.is_string(), "the victim has a recogniser session: {session}");
        order["session"] = id.clone();
        assert_eq!(self.world.stt.fault(order).await, 1, "the victim's recogniser session was reached");
    }

    /// Switches a fault of whatever comes next at the recogniser.
    pub async fn recogniser(&self, order: Value) {
        self.world.stt.fault(order).await;
    }

    /// Crashes an actor, of the victim where it is one of a session's.
    pub async fn crash(&self, actor: &str) {
        self.server().drill(json!({ "crash": actor, "session": self.victim().slug })).await;
    }

    pub fn note(&self, problem: String) {
        self.problems.borrow_mut().push(problem);
    }

    /// What was noted so far.
    pub fn take_problems(&self) -> Vec<String> {
        self.problems.take()
    }

    /// Waits for a condition; one that never holds is noted, and the row goes on to show what it has cost.
    pub async fn until(&self, what: &str, holds: impl Fn() -> bool) -> Duration {
        let begun = Instant::now();
        if within(PATIENCE, POLL, async || holds()).await.is_err() {
            self.note(format!("{what}: not within {PATIENCE:?}"));
        }
        begun.elapsed()
    }

    /// Waits until the victim's viewer is told.
    pub async fn until_told(&self, status: &str) {
        self.until(&format!("the status {status}"), || self.victim().seen.borrow().has_status(status)).await;
    }

    /// Waits until `/health` answers with this status.
    pub async fn until_health(&self, wanted: u16) {
        let http = self.server().http;
        let answers = async || request(http, "GET", "/health", "").await.is_ok_and(|(status, _)| status == wanted);
        if within(PATIENCE, POLL, answers).await.is_err() {
            self.note(format!("/health never answered {wanted}"));
        }
    }

    /// The recogniser session that the victim has now, and how many there have been.
    pub async fn victims_session(&self) -> (Value, Value) {
        let session = self.server().session(&self.victim().slug).await;
        let state = &session["children"]["gladiaBridge"]["state"];
        (state["sttSession"].clone(), state["tally"]["sessions"].clone())
    }

    /// Waits until a number that `/health` shows is zero.
    pub async fn until_zero(&self, field: &str) -> Duration {
        let begun = Instant::now();
        // What an ingest node has let go of is at its ws nodes: they are looked at after it.
        for http in self.world.servers().into_iter().rev() {
            let is_zero = async || {
                let health = health(http).await.unwrap_or_default();
                if health[field] == 0 { Ok(()) } else { Err(health) }
            };
            if let Err(health) = within(PATIENCE, POLL, is_zero).await {
                self.note(format!("{field} does not get zero: {health}"));
            }
        }
        begun.elapsed()
    }

    /// Waits until so many viewers are connected, or fewer; gives what is left.
    pub async fn viewers_down_to(&self, most: usize) -> usize {
        let (http, mut left) = (self.server().http, usize::MAX);
        let are_few = async || {
            left = health(http).await.unwrap_or_default()["viewers"].as_u64().unwrap_or(u64::MAX) as usize;
            left <= most
        };
        let _ = within(PATIENCE, POLL, are_few).await;
        left
    }

    /// From `struck` to the arrival of the victim's first final that the recogniser has said since.
    fn next_final(&self, struck: chrono::DateTime<Utc>) -> Option<Duration> {
        let seen = self.victim().seen.borrow();
        // A fault may have put finals into the log itself.
        let is_spoken = |value: &Value| value["text"].as_str().is_some_and(|text| text.contains("marker"));
        let is_next = |value: &Value| is_spoken(value) && timestamp(value).is_some_and(|heard| heard > struck);
        let (at, _) = seen.finals().find(|(_, value)| is_next(value))?;
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
            self.until(&format!("the end of {}", room.slug), || room.has_ended()).await;
        }
        self.until_zero("outboxRows").await;
        self.prove().await;
        let late = self.fault.far.iter().flat_map(|leg| self.world.legs_of(*leg)).map(|leg| leg.late()).sum::<usize>();
        if self.fault.late_per_mille > 0 && late == 0 {
            self.note("no write came late".into());
        }
        let code = self.world.stop().await;
        if code != 0 {
            self.note(format!("the stop's exit code is {code}"));
        }
        let mut row = Row { name: self.fault.name.into(), recovery, ..Row::default() };
        for room in &self.rooms {
            self.add(room, &mut row).await;
        }
        let lost = self.world.database.query("SELECT coalesce(sum(lost_ms), 0) FROM sessions").await;
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
        row.problems.extend(self.take_problems());
        if !row.passed() {
            self.world.keep_log(&row.name);
        }
        row
    }

    /// A fault that has not struck proves nothing.
    async fn prove(&self) {
        let mut metrics = String::new();
        for http in self.world.servers() {
            metrics.push_str(&request(http, "GET", "/metrics", "").await.map(|(_, text)| text).unwrap_or_default());
        }
        for proof in self.fault.proof {
            let series = metrics.lines().filter_map(|line| line.strip_prefix("stenocast_")?.strip_prefix(proof));
            let total: f64 = series.filter_map(|rest| rest.rsplit(' ').next()?.parse::<f64>().ok()).sum();
            if total == 0.0 {
                self.note(format!("the fault has not struck: {proof} is zero"));
            }
        }
    }

    async fn add(&self, room: &Room, row: &mut Row) {
        let Verdict { expected, lost, duplicated, rows_lost, in_holes, gaps, problems, .. } =
            judge(room, &self.world.stored(&room.slug).await);
        row.finals_expected += expected;
        row.finals_lost += lost;
        row.finals_duplicated += duplicated;
        row.rows_lost += rows_lost;
        row.in_holes += in_holes;
        row.problems.extend(problems);
        let is_hit = self.fault.hits_all || room.slug == self.victim().slug;
        let announced = self.fault.gap.filter(|_| is_hit);
        if gaps.keys().any(|reason| Some(reason.as_str()) != announced) {
            row.problems.push(format!("{}: gaps {gaps:?}, only {announced:?} may be", room.slug));
        }
        if announced.is_some_and(|reason| !gaps.contains_key(reason)) {
            row.problems.push(format!("{}: no gap {announced:?} was announced", room.slug));
        }
        if room.slug == self.victim().slug {
            row.gaps = gaps.iter().map(|(reason, n)| format!("{n} {reason}")).collect::<Vec<_>>().join(", ");
        }
    }

    /// The worst of the other sessions' p99: with a few dozen finals each, that is their slowest.
    fn others_p99_ms(&self) -> Option<f64> {
        let p99 = |room: &Rc<Room>| {
            let mut delays = room.seen.borrow().delays_ms.clone();
            delays.sort_by(f64::total_cmp);
            delays.get((delays.len() * 99).div_ceil(100).saturating_sub(1)).copied()
        };
        self.rooms[1..].iter().filter_map(p99).max_by(f64::total_cmp)
    }
}
