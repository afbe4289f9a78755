//! The life of one session: how its publishers behave, who watches it, and what is counted at its end.

use std::cell::RefCell;
use std::collections::BTreeSet;
use std::rc::Rc;
use std::time::{Duration, Instant};

use rand::Rng;
use rand::rngs::StdRng;

use super::restless;
use super::stage::Stage;
use crate::harness::lasts;
use crate::harness::room::Room;
use crate::harness::verdict::{Verdict, judge};
use crate::harness::watcher::Shared;
use crate::support::wait::within;

const POLL: Duration = Duration::from_millis(100);
/// Viewers besides the room's own, which stays connected.
const RESTLESS: usize = 2;
/// From its last publisher's end to its own end at every viewer, and from there to its last row.
const ENDING: Duration = Duration::from_secs(120);
/// A publish that is broken off so early was refused.
const AT_ITS_START_MS: u64 = 1000;
/// Markers of a publisher that comes again.
const COMES_AGAIN_WITH: u32 = 15;
/// Lives of sessions that begin one after another tell their numbers apart.
const NUMBERS: u32 = 7;

/// See the module.
pub struct Life {
    pub room: Rc<Room>,
    viewers: Vec<Shared>,
    /// Reasons of gaps that something has given it cause for.
    may: RefCell<BTreeSet<&'static str>>,
    /// The reason of a gap without which something was not told.
    must: Option<&'static str>,
}

/// How its publishers behave.
#[derive(Debug, Clone, Copy)]
enum Manner {
    PlaysToItsEnd,
    IsCutAndComesBack,
    IsCutForGood,
    IsTakenOver,
}

/// One session after another until the stage's time is over.
pub async fn lives(stage: &Rc<Stage>, slot: usize) {
    let mut draws = stage.draws(1000 + slot as u64);
    // They do not begin all at once.
    stage.pause(Duration::from_secs(4 * slot as u64)).await;
    while !stage.is_over() {
        let life = Life::begin(stage, "soak", None);
        life.play(stage, &mut draws).await;
        life.finish(stage).await;
        stage.pause(Duration::from_millis(draws.random_range(0..3000))).await;
    }
}

impl Life {
    pub fn begin(stage: &Stage, kind: &str, must: Option<&'static str>) -> Rc<Self> {
        let (n, http) = (stage.next_life(), stage.world.http());
        let room = Rc::new(Room::new(&[vec![http]], format!("{kind}-{n}"), 100 * (n % NUMBERS) + 101));
        let draws = |k| stage.draws(100_000 + u64::from(n) * 10 + k as u64);
        let viewers = (0..RESTLESS).map(|k| restless::watch(http, &room.slug, draws(k))).collect();
        let life = Rc::new(Self::of(room, viewers, must));
        stage.enter(&life);
        life
    }

    /// A session with these viewers besides its room's own, and the reason of the gap that it has to announce.
    pub fn of(room: Rc<Room>, viewers: Vec<Shared>, must: Option<&'static str>) -> Self {
        Self { room, viewers, may: must.into_iter().collect::<BTreeSet<_>>().into(), must }
    }

    /// From now on a gap of this reason is no surprise.
    pub fn may_have(&self, reason: &'static str) {
        self.may.borrow_mut().insert(reason);
    }

    async fn play(&self, stage: &Stage, draws: &mut StdRng) {
        let manner = [
            Manner::PlaysToItsEnd,
            Manner::PlaysToItsEnd,
            Manner::PlaysToItsEnd,
            Manner::IsCutAndComesBack,
            Manner::IsCutAndComesBack,
            Manner::IsCutForGood,
            Manner::IsTakenOver,
        ][draws.random_range(0..7)];
        // All draws come first: none depends on how busy the machine is.
        let (first, second) = (draws.random_range(15..=50), draws.random_range(10..=25));
        let plays = Duration::from_millis(draws.random_range(6000..16_000));
        let away = Duration::from_millis(draws.random_range(100..6000));
        self.publish(stage, first).await;
        match manner {
            Manner::PlaysToItsEnd => {}
            Manner::IsCutForGood => self.cut_after(stage, plays).await,
            Manner::IsCutAndComesBack => {
                self.cut_after(stage, plays).await;
                lasts(away).await;
                self.publish(stage, second).await;
            }
            Manner::IsTakenOver => {
                self.publishes_for(plays).await;
                let _no_restart = stage.process.read().await;
                if self.room.is_publishing() {
                    self.may_have("publisher_lost");
                    self.room.note_cut();
                    self.room.publish(stage.world.rtmp(), second);
                }
            }
        }
    }

    async fn publish(&self, stage: &Stage, markers: u32) {
        let _no_restart = stage.process.read().await;
        self.room.publish(stage.world.rtmp(), markers);
    }

    async fn cut_after(&self, stage: &Stage, plays: Duration) {
        self.publishes_for(plays).await;
        let _no_restart = stage.process.read().await;
        if self.room.is_publishing() {
            self.may_have("publisher_lost");
            self.room.cut().await;
        }
    }

    /// So long, or until its publisher has ended.
    async fn publishes_for(&self, length: Duration) {
        let _ = within(length, POLL, async || !self.room.is_publishing()).await;
    }

    /// Waits for the end of all that it is, and adds its counts to the others.
    pub async fn finish(&self, stage: &Stage) {
        self.published(stage).await;
        let all = || self.viewers.iter().chain([&self.room.seen]);
        let over = || self.room.is_publishing() || all().all(|seen| seen.borrow().has_status("ended"));
        loop {
            until(over).await;
            // A restart of the server may have brought its publisher back.
            if !self.room.is_publishing() {
                break;
            }
            self.published(stage).await;
        }
        let stored = self.rows(stage).await;
        let verdict = judge(&self.room, &stored);
        self.complaints(&verdict).into_iter().for_each(|problem| stage.note(problem));
        let seen = self.room.seen.borrow();
        let reconnects = all().map(|seen| seen.borrow().hellos.saturating_sub(1)).sum::<usize>();
        stage.tally.borrow_mut().add(verdict, &seen, stored.len(), reconnects);
    }

    /// All its viewers have seen the same, and gaps are where there was cause, and nowhere else.
    pub fn complaints(&self, verdict: &Verdict) -> Vec<String> {
        let slug = &self.room.slug;
        let mut problems = Vec::new();
        for seen in &self.viewers {
            let (seen, whole) = (seen.borrow(), self.room.seen.borrow());
            problems.extend(seen.problems.iter().map(|problem| format!("{slug}: a restless viewer: {problem}")));
            let same = |(a, b): (&(Instant, _), &(Instant, _))| a.1 == b.1;
            if seen.entries.len() != whole.entries.len() || !seen.entries.iter().zip(&whole.entries).all(same) {
                let (few, all) = (seen.entries.len(), whole.entries.len());
                problems
                    .push(format!("{slug}: a restless viewer saw {few} entries, not the same as the other's {all}"));
            }
        }
        let may = self.may.borrow();
        if verdict.gaps.keys().any(|reason| !may.contains(reason.as_str())) {
            problems.push(format!("{slug}: gaps {:?}, only {may:?} may be", verdict.gaps));
        }
        if self.must.is_some_and(|reason| !verdict.gaps.contains_key(reason)) {
            problems.push(format!("{slug}: no gap {:?} was announced", self.must));
        }
        problems
    }

    /// Waits for its publisher's own end. One that was refused at its start comes again, as encoders do.
    async fn published(&self, stage: &Stage) {
        loop {
            let _ = within(Duration::MAX, POLL, async || !self.room.is_publishing()).await;
            let sent_ms = self.room.latest_sent_ms();
            let Some(complaint) = self.room.published().await else { return };
            let _no_restart = stage.process.read().await;
            if sent_ms > AT_ITS_START_MS {
                return stage.note(format!("{complaint}, after {sent_ms} ms"));
            }
            stage.tally.borrow_mut().refused.push(complaint);
            self.room.note_cut();
            self.room.publish(stage.world.rtmp(), COMES_AGAIN_WITH);
        }
    }

    /// Its rows, once there are as many as entries were seen.
    async fn rows(&self, stage: &Stage) -> Vec<crate::harness::verdict::Stored> {
        let (mut stored, expected) = (Vec::new(), self.room.seen.borrow().entries.len());
        let are_enough = async || {
            let _undisturbed = stage.database.read().await;
            stored = stage.world.stored(&self.room.slug).await;
            stored.len() >= expected
        };
        let _ = within(ENDING, POLL, are_enough).await;
        stored
    }
}

/// Waits for a condition; what never comes shows in the counts.
async fn until(holds: impl Fn() -> bool) {
    let _ = within(ENDING, POLL, async || holds()).await;
}
