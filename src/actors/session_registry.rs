//! `SessionRegistry`: slug -> Session. Admits or refuses publishers and broadcasts, and restarts sessions.
//!
//! Owns: nothing that its death would lose; the table of sessions is a [`Sessions`] that it borrows from its parent.
//! Receives: [`Publish`], [`Broadcast`], ends of sessions, the order to drain. Ends when told.

mod broadcasting;
mod livekit;
mod publishing;
mod state;
mod taking_over;
mod third_parties;

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use actix::prelude::*;
use futures_util::future::join_all;
use parking_lot::Mutex;
use tokio::sync::oneshot;
use tokio::time::Instant;

use super::Shutdown;
use super::services::{Services, SessionEnd};
use super::session::{CrashChild, End, Session, Superseded, Then};
use super::session_core::{SessionCore, SessionSeed};
use super::supervision::{ChildDown, ChildKind, Decision, Lifeline, Supervised};
use crate::transcript::{Entry, Epoch, Origin, Slug, Status};

pub use state::{SessionAnswer, SessionRegistryState, SessionState};

pub use broadcasting::{Broadcast, BroadcastAck, BroadcastEntry, BroadcastRefusal, FromOrigin};
pub use livekit::{ExplainWaiting, NameInSession, SessionHere, SessionsHere};
pub use publishing::{Publish, PublishRefusal};
pub use taking_over::{AdoptClaimed, HandOverRoom, TakeLate};
pub use third_parties::TakePost;

/// Pause before the sessions of a dead registry are started anew.
const ORPHAN_DELAY: Duration = Duration::from_millis(200);

/// Between two looks for rooms that nobody uses any more; their logs are megabytes.
const SWEEP_INTERVAL: Duration = Duration::from_secs(30);

/// From a session: it takes no more publishers. A new one of the same slug may begin beside it.
#[derive(Message)]
#[rtype(result = "()")]
pub struct SessionEnding {
    pub slug: Slug,
    pub epoch: Epoch,
}

/// Ends one session now (an operator's or LiveKit's word). False when there is none.
#[derive(Message)]
#[rtype(result = "bool")]
pub struct EndSession {
    pub slug: Slug,
    pub reason: String,
    pub deadline: Instant,
}

/// Refuse publishers and broadcasts from now on; suspend every session. Answers when all have finished.
#[derive(Debug, Clone, Copy, Message)]
#[rtype(result = "()")]
pub struct DrainAll {
    pub deadline: Instant,
}

/// A session of a previous process goes on under its epoch.
#[derive(Message)]
#[rtype(result = "()")]
pub struct AdoptSession {
    pub slug: Slug,
    pub beginning: SessionSeed,
}

/// Crashes one actor of a session, to prove that it is repaired. False when there is no such session.
#[derive(Message)]
#[rtype(result = "bool")]
pub struct CrashActor {
    pub slug: Slug,
    pub kind: ChildKind,
}

/// The table of sessions; it outlives the registry actor.
#[derive(Default)]
pub struct Sessions {
    table: Mutex<Table>,
}

#[derive(Default)]
struct Table {
    by_slug: HashMap<Slug, SessionRecord>,
    /// Draining sessions whose slug may be in use again.
    ending: Vec<SessionRecord>,
    generation: u64,
    draining: bool,
    /// Rooms that are being claimed for a publisher; others wait for the outcome.
    claiming: HashMap<Slug, Vec<oneshot::Sender<()>>>,
}

impl Table {
    fn of_generation(&mut self, generation: u64) -> Option<&mut SessionRecord> {
        self.by_slug.values_mut().chain(&mut self.ending).find(|record| record.actor.generation() == generation)
    }

    fn forget(&mut self, generation: u64) {
        self.by_slug.retain(|_, record| record.actor.generation() != generation);
        self.ending.retain(|record| record.actor.generation() != generation);
    }
}

struct SessionRecord {
    /// Counts its generations with all sessions: a report of an end names one of them.
    actor: Supervised<Session>,
    /// Its present life, or the last one.
    addr: Addr<Session>,
    core: Arc<SessionCore>,
    /// It died and will be started again.
    is_restart_due: bool,
    arbiter: usize,
}

/// The actor that finds, begins and restarts sessions.
pub struct SessionRegistry {
    sessions: Arc<Sessions>,
    services: Arc<Services>,
    arbiters: Arc<Vec<ArbiterHandle>>,
    lifeline: Lifeline,
}

impl SessionRegistry {
    pub fn start(
        sessions: Arc<Sessions>,
        services: Arc<Services>,
        arbiters: Arc<Vec<ArbiterHandle>>,
        lifeline: Lifeline,
    ) -> Addr<Self> {
        Actor::start(Self { sessions, services, arbiters, lifeline })
    }

    /// The arbiter with the fewest sessions.
    fn least_loaded(&self, table: &Table) -> usize {
        let load = |n: usize| table.by_slug.values().chain(&table.ending).filter(|r| r.arbiter == n).count();
        (0..self.arbiters.len()).min_by_key(|n| load(*n)).unwrap_or(0)
    }

    fn spawn_actor(
        &self,
        actor: &mut Supervised<Session>,
        core: &Arc<SessionCore>,
        arbiter: usize,
        generation: u64,
        ctx: &mut Context<Self>,
    ) -> Addr<Session> {
        let lifeline = actor.begin_as(generation, ctx.address().recipient(), &self.services.metrics);
        let (registry, services) = (ctx.address().recipient(), self.services.clone());
        let addr = Session::start_on(&self.arbiters[arbiter], core.clone(), services, registry, lifeline);
        actor.runs_at(Some(addr.clone()));
        addr
    }

    fn begin(&self, slug: Slug, beginning: SessionSeed, ctx: &mut Context<Self>) -> Addr<Session> {
        let core = self.new_core(slug, beginning);
        if let Some(ownership) = self.services.ownership.as_ref().filter(|_| core.origin != Origin::Mirror) {
            ownership.session_begins(&core.slug, core.epoch);
        }
        self.services.directory.get_or_create(&core.slug).set_current(core.log.clone());
        let record = self.start_session(core, ctx);
        let addr = record.addr.clone();
        let mut table = self.sessions.table.lock();
        table.by_slug.insert(record.core.slug.clone(), record);
        self.services.metrics.sessions_active.set(table.by_slug.len() as i64);
        addr
    }

    /// Begins a mirror of a log that a later one has followed already.
    fn begin_late(&self, slug: Slug, beginning: SessionSeed, ctx: &mut Context<Self>) -> Addr<Session> {
        let core = self.new_core(slug, beginning);
        self.services.directory.get_or_create(&core.slug).add_followed(core.log.clone());
        let record = self.start_session(core, ctx);
        let addr = record.addr.clone();
        addr.do_send(Superseded);
        self.sessions.table.lock().ending.push(record);
        addr
    }

    fn new_core(&self, slug: Slug, beginning: SessionSeed) -> Arc<SessionCore> {
        let status = match beginning.origin {
            Origin::Ingest => None,
            // Somebody speaks, or nobody would have posted.
            Origin::Relay => Some(Status::Live),
            // Its own entries tell from now on.
            Origin::Mirror => beginning.status.or_else(|| last_status(&beginning.recent)).or(Some(Status::Live)),
        };
        let core = self.services.new_core(slug, beginning);
        if let Some(status) = status {
            core.log.assume(status);
        }
        Arc::new(core)
    }

    fn start_session(&self, core: Arc<SessionCore>, ctx: &mut Context<Self>) -> SessionRecord {
        self.services.session_started(&core);
        self.services.metrics.sessions_total.inc();
        tracing::info!(session = %core.slug, epoch = %core.epoch, origin = core.origin.as_str(), "session begins");
        let mut table = self.sessions.table.lock();
        table.generation += 1;
        let generation = table.generation;
        let arbiter = self.least_loaded(&table);
        drop(table);
        let mut actor = Supervised::new(ChildKind::Session);
        let addr = self.spawn_actor(&mut actor, &core, arbiter, generation, ctx);
        SessionRecord { actor, addr, core, is_restart_due: false, arbiter }
    }

    fn find(&self, slug: &Slug) -> Option<(Addr<Session>, Arc<SessionCore>)> {
        let table = self.sessions.table.lock();
        table.by_slug.get(slug).map(|r| (r.addr.clone(), r.core.clone()))
    }

    /// `MAX_SESSIONS`, when there are so many. What a cluster's log has is bounded by the nodes that write it.
    fn is_full(&self) -> Option<usize> {
        let most = self.services.config.rtmp.max_sessions;
        let counts = |record: &&SessionRecord| !self.services.follows(record.core.origin);
        (self.sessions.table.lock().by_slug.values().filter(counts).count() >= most).then_some(most)
    }

    fn supersede(&self, addr: &Addr<Session>, core: &SessionCore) {
        if core.origin == Origin::Mirror {
            addr.do_send(Superseded);
        } else {
            let deadline = Instant::now() + self.services.config.server.shutdown_timeout;
            addr.do_send(End { reason: "superseded".into(), deadline, then: Then::Over });
        }
        self.retire(&core.slug, None);
    }

    /// Frees the slug; the session goes on ending beside a new one.
    fn retire(&self, slug: &Slug, epoch: Option<Epoch>) {
        let mut table = self.sessions.table.lock();
        let matches = table.by_slug.get(slug).is_some_and(|r| epoch.is_none_or(|e| r.core.epoch == e));
        if matches && let Some(record) = table.by_slug.remove(slug) {
            table.ending.push(record);
        }
        self.services.metrics.sessions_active.set(table.by_slug.len() as i64);
    }

    fn session_down(&mut self, down: &ChildDown, ctx: &mut Context<Self>) {
        let mut table = self.sessions.table.lock();
        let Some(record) = table.of_generation(down.generation) else { return };
        let slug = record.core.slug.clone();
        let Some(decision) = record.actor.decide(down) else { return };
        match decision {
            Decision::Restart(delay) => {
                tracing::warn!(session = %slug, exit = %down.exit, "session restarts");
                self.services.metrics.actor_restarts_total.with_label_values(&["session"]).inc();
                record.is_restart_due = true;
                let generation = down.generation;
                ctx.run_later(delay, move |this, ctx| this.restart(generation, ctx));
            }
            Decision::Ended | Decision::Escalate => {
                if decision == Decision::Escalate {
                    tracing::error!(session = %slug, exit = %down.exit, "session given up");
                    self.services.metrics.actor_escalations_total.with_label_values(&["session"]).inc();
                    self.services.session_ended(&record.core, SessionEnd::Suspended);
                }
                record.core.log.close();
                let publisher = record.core.presence().left();
                if let Some(publisher) = publisher {
                    publisher.addr.do_send(Shutdown);
                }
                table.forget(down.generation);
            }
        }
        self.services.metrics.sessions_active.set(table.by_slug.len() as i64);
    }

    /// Forgets rooms without session and viewer, and ended sessions whose end an earlier life of this actor has missed.
    fn sweep(&self) {
        self.services.directory.sweep();
        self.sessions.table.lock().ending.retain(|record| record.addr.connected() || record.is_restart_due);
    }

    /// Also one that was ending: what it has heard is still to be said.
    fn restart(&mut self, old: u64, ctx: &mut Context<Self>) {
        let mut table = self.sessions.table.lock();
        table.generation += 1;
        let generation = table.generation;
        let Some(record) = table.of_generation(old) else { return };
        record.addr = self.spawn_actor(&mut record.actor, &record.core, record.arbiter, generation, ctx);
        record.is_restart_due = false;
    }
}

impl Actor for SessionRegistry {
    type Context = Context<Self>;

    fn started(&mut self, ctx: &mut Self::Context) {
        self.lifeline.started();
        ctx.run_interval(SWEEP_INTERVAL, |this, _| this.sweep());
        // Sessions of an earlier life of this actor report to an address that is gone: adopt them by restarting.
        let orphans: Vec<(u64, Addr<Session>)> = {
            let table = self.sessions.table.lock();
            let all = table.by_slug.values().chain(&table.ending);
            all.map(|record| (record.actor.generation(), record.addr.clone())).collect()
        };
        for (generation, session) in orphans {
            session.do_send(Shutdown);
            // Later, so that the old life has let go of the session's edges.
            ctx.run_later(ORPHAN_DELAY, move |this, ctx| this.restart(generation, ctx));
        }
    }
}

impl Handler<AdoptSession> for SessionRegistry {
    type Result = ();

    fn handle(&mut self, adopt: AdoptSession, ctx: &mut Self::Context) {
        match self.find(&adopt.slug) {
            Some((_, core)) if adopt.beginning.epoch.is_none_or(|epoch| epoch <= core.epoch) => return,
            // The earlier epoch was ending when its process died: it ends now, and the later one goes on.
            Some((addr, core)) => self.supersede(&addr, &core),
            None => {}
        }
        self.begin(adopt.slug, adopt.beginning, ctx);
    }
}

impl Handler<SessionEnding> for SessionRegistry {
    type Result = ();

    fn handle(&mut self, ending: SessionEnding, _: &mut Self::Context) {
        self.retire(&ending.slug, Some(ending.epoch));
    }
}

impl Handler<EndSession> for SessionRegistry {
    type Result = ResponseFuture<bool>;

    fn handle(&mut self, end: EndSession, _: &mut Self::Context) -> Self::Result {
        let Some((session, _)) = self.find(&end.slug) else { return Box::pin(async { false }) };
        let order = End { reason: end.reason, deadline: end.deadline, then: Then::Over };
        Box::pin(async move { session.send(order).await.is_ok() })
    }
}

impl Handler<DrainAll> for SessionRegistry {
    type Result = ResponseFuture<()>;

    fn handle(&mut self, drain: DrainAll, _: &mut Self::Context) -> Self::Result {
        let sessions: Vec<Addr<Session>> = {
            let mut table = self.sessions.table.lock();
            table.draining = true;
            table.by_slug.values().chain(&table.ending).map(|r| r.addr.clone()).collect()
        };
        let order = End { reason: "server_stopping".into(), deadline: drain.deadline, then: Then::Suspended };
        let ends = sessions.into_iter().map(move |s| s.send(order.clone()));
        Box::pin(async move {
            join_all(ends).await;
        })
    }
}

impl Handler<CrashActor> for SessionRegistry {
    type Result = bool;

    fn handle(&mut self, crash: CrashActor, _: &mut Self::Context) -> bool {
        let Some((session, _)) = self.find(&crash.slug) else { return false };
        session.do_send(CrashChild(crash.kind));
        true
    }
}

impl Handler<ChildDown> for SessionRegistry {
    type Result = ();

    fn handle(&mut self, down: ChildDown, ctx: &mut Self::Context) {
        self.session_down(&down, ctx);
    }
}

crate::stops_and_crashes!(SessionRegistry);

/// What the newest of these entries that says a status says.
fn last_status(entries: &[Entry]) -> Option<Status> {
    entries.iter().rev().find_map(|entry| if let Entry::Status(change) = entry { Some(change.status) } else { None })
}

#[cfg(test)]
mod tests;
