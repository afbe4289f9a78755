//! SessionRegistry: slug -> Session. Admits or refuses publishers and broadcasts, and restarts sessions.
//!
//! Owns: nothing that its death would lose; the table of sessions is a [`Sessions`] that it borrows from its parent.
//! Receives: [`Publish`], [`Broadcast`], ends of sessions, the order to drain. Ends when told.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use actix::prelude::*;
use futures_util::future::join_all;
use parking_lot::Mutex;
use serde_json::{Value, json};
use tokio::time::Instant;

use super::services::{LeftBehind, Services, SessionEnd};
use super::session::{Attach, CrashChild, End, Session, Superseded};
use super::session_core::{Beginning, SessionCore};
use super::supervision::{ChildDown, ChildKind, Decision, Lifeline, Restarts};
use super::{Observe, Shutdown};
use crate::log::checkpoint::Origin;
use crate::log::{Entry, Epoch, Slug, Status};
use crate::rtmp::Publisher;

const OBSERVE_TIMEOUT: Duration = Duration::from_millis(700);

/// Pause before the sessions of a dead registry are started anew.
const ORPHAN_DELAY: Duration = Duration::from_millis(200);

/// Between two looks for rooms that nobody uses any more; their logs are megabytes.
const SWEEP_INTERVAL: Duration = Duration::from_secs(30);

/// A connection wants to publish `slug`; its key was checked already.
#[derive(Message)]
#[rtype(result = "Result<(), (PublishRefusal, Box<Publisher>)>")]
pub struct Publish {
    pub slug: Slug,
    pub publisher: Box<Publisher>,
}

/// Why a publisher was not admitted. The text goes to the publisher.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum PublishRefusal {
    #[error("the server is stopping")]
    Draining,
    #[error("all {0} sessions are in use")]
    TooManySessions(usize),
    #[error("another encoder is publishing this stream; stop it first")]
    TakeoverLimit,
    /// The session that was found is ending: the next one takes the publisher.
    #[error("the session is ending")]
    Ending,
    #[error("the session could not be started")]
    Failed,
}

impl PublishRefusal {
    /// The label in metrics.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Draining => "draining",
            Self::TooManySessions(_) => "too_many_sessions",
            Self::TakeoverLimit => "takeover_limit",
            Self::Ending => "ending",
            Self::Failed => "failed",
        }
    }
}

/// Entries from outside (POST broadcast), all of one slug. Answers when they are in the outbox.
#[derive(Message)]
#[rtype(result = "Result<BroadcastAck, BroadcastRefusal>")]
pub struct Broadcast {
    pub slug: Slug,
    pub entries: Vec<BroadcastEntry>,
}

/// An entry whose epoch and seq may be ours to give.
#[derive(Debug, Clone)]
pub struct BroadcastEntry {
    /// False when a third party left out epoch and seq: then those in `entry` mean nothing.
    pub numbered: bool,
    pub entry: Entry,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize)]
pub struct BroadcastAck {
    pub accepted: usize,
    pub duplicates: usize,
    /// Last sequence number of the log.
    pub seq: u64,
}

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BroadcastRefusal {
    /// A numbered entry left a hole.
    #[error("entry out of order; expected seq {expected}")]
    Hole { expected: u64 },
    /// The slug is published here (or by another node): its numbers are not the caller's to give.
    #[error("the session has an origin of its own; expected seq {expected}")]
    HasOrigin { expected: u64 },
    /// The log has its `ended` entry: nothing may follow it.
    #[error("the session has ended with seq {}", expected - 1)]
    Ended { expected: u64 },
    #[error("the epoch is that of another session's log")]
    OtherSlug,
    #[error("all {0} sessions are in use")]
    TooManySessions(usize),
    #[error("the server is stopping")]
    Draining,
    #[error("the session could not take the entries")]
    Unavailable,
}

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
    pub beginning: Beginning,
}

/// Crashes one actor of a session, to prove that it is repaired. False when there is no such session.
#[derive(Message)]
#[rtype(result = "bool")]
pub struct CrashActor {
    pub slug: Slug,
    pub kind: ChildKind,
}

/// A broadcast of a log that has no session here, with what the store knows of that log.
#[derive(Message)]
#[rtype(result = "Result<BroadcastAck, BroadcastRefusal>")]
struct BeginMirror {
    epoch: Epoch,
    left: LeftBehind,
    broadcast: Broadcast,
}

/// Who takes a broadcast.
enum Target {
    Session(Addr<Session>),
    /// One that has to begin: a mirror of this epoch, or a relay. The slug's present session ends for it.
    Begin(Option<Epoch>),
    /// None: it is of an epoch that a later one has followed. What is repeated is known, anything else is refused.
    Past(Epoch, BroadcastRefusal),
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
}

impl Table {
    fn of_generation(&mut self, generation: u64) -> Option<&mut SessionRecord> {
        self.by_slug.values_mut().chain(&mut self.ending).find(|record| record.generation == generation)
    }

    fn forget(&mut self, generation: u64) {
        self.by_slug.retain(|_, record| record.generation != generation);
        self.ending.retain(|record| record.generation != generation);
    }
}

struct SessionRecord {
    addr: Addr<Session>,
    core: Arc<SessionCore>,
    generation: u64,
    started: Instant,
    restarts: Restarts,
    /// It died and will be started again.
    is_restart_due: bool,
    arbiter: usize,
}

/// See the module.
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
        core: &Arc<SessionCore>,
        arbiter: usize,
        generation: u64,
        ctx: &mut Context<Self>,
    ) -> Addr<Session> {
        let metrics = self.services.metrics.clone();
        let parent = ctx.address().recipient();
        let lifeline = Lifeline::new(parent, ChildKind::Session, generation, metrics);
        let registry = ctx.address().recipient();
        let services = self.services.clone();
        Session::start_on(&self.arbiters[arbiter], core.clone(), services, registry, lifeline)
    }

    fn begin(&self, slug: Slug, beginning: Beginning, ctx: &mut Context<Self>) -> Addr<Session> {
        let core = Arc::new(self.services.new_core(slug.clone(), beginning));
        if core.origin != Origin::Ingest {
            // Somebody speaks, or nobody would have posted; of a mirror, its own entries tell from now on.
            core.log.assume(Status::Live);
        }
        self.services.directory.get_or_create(&slug).set_current(core.log.clone());
        self.services.session_started(&core);
        let metrics = &self.services.metrics;
        metrics.sessions_total.inc();
        tracing::info!(session = %slug, epoch = %core.epoch, origin = core.origin.as_str(), "session begins");
        let mut table = self.sessions.table.lock();
        table.generation += 1;
        let generation = table.generation;
        let arbiter = self.least_loaded(&table);
        let addr = self.spawn_actor(&core, arbiter, generation, ctx);
        let restarts = Restarts::new(ChildKind::Session.policy());
        let started = Instant::now();
        let record =
            SessionRecord { addr: addr.clone(), core, generation, started, restarts, is_restart_due: false, arbiter };
        table.by_slug.insert(slug, record);
        metrics.sessions_active.set(table.by_slug.len() as i64);
        addr
    }

    fn find(&self, slug: &Slug) -> Option<(Addr<Session>, Arc<SessionCore>)> {
        let table = self.sessions.table.lock();
        table.by_slug.get(slug).map(|r| (r.addr.clone(), r.core.clone()))
    }

    /// The epoch is that of another slug's session.
    fn is_elsewhere(&self, slug: &Slug, epoch: Epoch) -> bool {
        let table = self.sessions.table.lock();
        table.by_slug.values().chain(&table.ending).any(|r| r.core.epoch == epoch && r.core.slug != *slug)
    }

    /// A log of another node that a newer one of the same slug has followed: its last entries may still come.
    fn find_followed(&self, slug: &Slug, epoch: Epoch) -> Option<Addr<Session>> {
        let table = self.sessions.table.lock();
        let is_it = |r: &&SessionRecord| {
            let is_open = r.addr.connected() && !r.core.log.is_closed();
            is_open && (&r.core.slug, r.core.epoch, r.core.origin) == (slug, epoch, Origin::Mirror)
        };
        table.ending.iter().find(is_it).map(|r| r.addr.clone())
    }

    fn admit(&self, slug: &Slug, ctx: &mut Context<Self>) -> Result<Addr<Session>, PublishRefusal> {
        if self.sessions.table.lock().draining {
            return Err(PublishRefusal::Draining);
        }
        match self.find(slug) {
            Some((addr, core)) if core.origin == Origin::Ingest => return Ok(addr),
            // A publisher here outranks relayed lines: their epoch ends, the publisher's begins.
            Some((addr, core)) => self.supersede(&addr, &core),
            None => {}
        }
        if let Some(most) = self.is_full() {
            return Err(PublishRefusal::TooManySessions(most));
        }
        Ok(self.begin(slug.clone(), Beginning::default(), ctx))
    }

    /// MAX_SESSIONS, when there are so many.
    fn is_full(&self) -> Option<usize> {
        let most = self.services.config.rtmp.max_sessions;
        (self.sessions.table.lock().by_slug.len() >= most).then_some(most)
    }

    fn supersede(&self, addr: &Addr<Session>, core: &SessionCore) {
        if core.origin == Origin::Mirror {
            addr.do_send(Superseded);
        } else {
            let deadline = Instant::now() + self.services.config.core.shutdown_timeout;
            addr.do_send(End { reason: "superseded".into(), deadline, suspend: false });
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

    /// Who takes a broadcast. Changes nothing.
    fn broadcast_target(&self, broadcast: &Broadcast) -> Result<Target, BroadcastRefusal> {
        if self.sessions.table.lock().draining {
            return Err(BroadcastRefusal::Draining);
        }
        let slug = &broadcast.slug;
        let epoch = broadcast.entries.iter().find(|e| e.numbered).map(|e| e.entry.epoch());
        let Some((addr, core)) = self.find(slug) else {
            return match self.is_full() {
                Some(most) => Err(BroadcastRefusal::TooManySessions(most)),
                None => Ok(Target::Begin(epoch)),
            };
        };
        let has_origin = Err(BroadcastRefusal::HasOrigin { expected: core.log.last_seq() + 1 });
        match (core.origin, epoch) {
            // Third parties may add lines to it; what its status is, it says itself.
            (Origin::Ingest, None) if broadcast.entries.iter().any(|e| matches!(e.entry, Entry::Status(_))) => {
                has_origin
            }
            (Origin::Ingest, None) => Ok(Target::Session(addr)),
            (Origin::Ingest, Some(_)) => has_origin,
            (Origin::Relay, None) if core.log.is_closed() => Ok(Target::Begin(None)),
            (Origin::Relay, None) => Ok(Target::Session(addr)),
            (Origin::Relay, Some(epoch)) if epoch == core.epoch => has_origin,
            // An origin outranks third parties, whenever it began.
            (Origin::Relay, Some(epoch)) => Ok(Target::Begin(Some(epoch))),
            (Origin::Mirror, None) if core.log.status() == Status::Ended => Ok(Target::Begin(None)),
            (Origin::Mirror, None) => has_origin,
            (Origin::Mirror, Some(epoch)) if epoch == core.epoch && !core.log.is_closed() => Ok(Target::Session(addr)),
            // Epochs are UUIDv7: a greater one is later.
            (Origin::Mirror, Some(epoch)) if epoch > core.epoch => Ok(Target::Begin(Some(epoch))),
            (Origin::Mirror, Some(epoch)) => match (self.find_followed(slug, epoch), has_origin) {
                (Some(addr), _) => Ok(Target::Session(addr)),
                (None, Err(refusal)) => Ok(Target::Past(epoch, refusal)),
                (None, Ok(target)) => Ok(target),
            },
        }
    }

    /// Begins the session that a broadcast needs, on what is left of an earlier life of its log.
    fn begin_for(&self, slug: &Slug, epoch: Option<Epoch>, left: LeftBehind, ctx: &mut Context<Self>) -> Addr<Session> {
        if let Some((addr, core)) = self.find(slug) {
            self.supersede(&addr, &core);
        }
        let origin = if epoch.is_some() { Origin::Mirror } else { Origin::Relay };
        let LeftBehind { last_seq, known, .. } = left;
        self.begin(slug.clone(), Beginning { origin, epoch, last_seq, known, ..Beginning::default() }, ctx)
    }

    fn session_down(&mut self, down: &ChildDown, ctx: &mut Context<Self>) {
        let mut table = self.sessions.table.lock();
        let Some(record) = table.of_generation(down.generation) else { return };
        let slug = record.core.slug.clone();
        let decision = record.restarts.decide(&down.exit, record.started.elapsed(), Instant::now());
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
                if let Some(publisher) = record.core.publisher.lock().take() {
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
        record.addr = self.spawn_actor(&record.core, record.arbiter, generation, ctx);
        record.generation = generation;
        record.is_restart_due = false;
        record.started = Instant::now();
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
            all.map(|record| (record.generation, record.addr.clone())).collect()
        };
        for (generation, session) in orphans {
            session.do_send(Shutdown);
            // Later, so that the old life has let go of the session's edges.
            ctx.run_later(ORPHAN_DELAY, move |this, ctx| this.restart(generation, ctx));
        }
    }
}

impl Handler<Publish> for SessionRegistry {
    type Result = ResponseFuture<Result<(), (PublishRefusal, Box<Publisher>)>>;

    fn handle(&mut self, Publish { slug, publisher }: Publish, ctx: &mut Self::Context) -> Self::Result {
        match self.admit(&slug, ctx) {
            Err(refusal) => Box::pin(async move { Err((refusal, publisher)) }),
            Ok(session) => {
                let registry = ctx.address();
                Box::pin(async move {
                    // A session that dies with the publisher in its mailbox has closed its socket: nothing is left to
                    // refuse.
                    match session.send(Attach(publisher)).await.unwrap_or(Ok(())) {
                        // It has told us so, before this answer: now the slug is free.
                        Err((PublishRefusal::Ending, publisher)) => {
                            registry.send(Publish { slug, publisher }).await.unwrap_or(Ok(()))
                        }
                        answer => answer,
                    }
                })
            }
        }
    }
}

impl Handler<Broadcast> for SessionRegistry {
    type Result = ResponseFuture<Result<BroadcastAck, BroadcastRefusal>>;

    fn handle(&mut self, broadcast: Broadcast, ctx: &mut Self::Context) -> Self::Result {
        let session = match self.broadcast_target(&broadcast) {
            Err(refusal) => return Box::pin(async move { Err(refusal) }),
            Ok(Target::Session(session)) => session,
            Ok(Target::Begin(None)) => self.begin_for(&broadcast.slug, None, LeftBehind::default(), ctx),
            Ok(Target::Begin(Some(epoch))) => return look_back(&self.services, ctx.address(), epoch, broadcast),
            Ok(Target::Past(epoch, refusal)) => {
                let left = self.services.left_behind(epoch);
                return Box::pin(async move {
                    let left = left.await.unwrap_or_default();
                    repeated(&left, &broadcast).map_err(|ended| if left.is_ended { ended } else { refusal })
                });
            }
        };
        Box::pin(async move { session.send(broadcast).await.unwrap_or(Err(BroadcastRefusal::Unavailable)) })
    }
}

/// This node may have had the log before: its end is in the database and the outbox.
fn look_back(
    services: &Services,
    registry: Addr<SessionRegistry>,
    epoch: Epoch,
    broadcast: Broadcast,
) -> ResponseFuture<Result<BroadcastAck, BroadcastRefusal>> {
    let left = services.left_behind(epoch);
    Box::pin(async move {
        let is_beginning = broadcast.entries.iter().find_map(|e| e.entry.seq()) == Some(1);
        let left = match left.await {
            Ok(left) => left,
            // What a log begins with needs no past: should the database have it, it skips it.
            Err(_) if is_beginning => LeftBehind::default(),
            Err(error) => {
                tracing::warn!(session = %broadcast.slug, %epoch, %error, "the log's end could not be looked up");
                return Err(BroadcastRefusal::Unavailable);
            }
        };
        if left.slug.as_ref().is_some_and(|slug| *slug != broadcast.slug) {
            return Err(BroadcastRefusal::OtherSlug);
        }
        // A log that ended here takes nothing new; what is repeated is known.
        if left.is_ended {
            return repeated(&left, &broadcast);
        }
        let begin = BeginMirror { epoch, left, broadcast };
        registry.send(begin).await.unwrap_or(Err(BroadcastRefusal::Unavailable))
    })
}

fn repeated(left: &LeftBehind, broadcast: &Broadcast) -> Result<BroadcastAck, BroadcastRefusal> {
    let is_known = |e: &BroadcastEntry| left.known.iter().any(|(id, _)| id == e.entry.id());
    if broadcast.entries.iter().all(is_known) {
        Ok(BroadcastAck { accepted: 0, duplicates: broadcast.entries.len(), seq: left.last_seq })
    } else {
        Err(BroadcastRefusal::Ended { expected: left.last_seq + 1 })
    }
}

/// The log's first new entry, where it cannot follow what is left of it: nobody's session ends for that.
fn is_hole(left: &LeftBehind, broadcast: &Broadcast) -> bool {
    let is_known = |e: &&BroadcastEntry| left.known.iter().any(|(id, _)| id == e.entry.id());
    let new = broadcast.entries.iter().filter(|e| e.entry.seq().is_some()).find(|e| !is_known(e));
    new.is_some_and(|e| e.entry.seq() != Some(left.last_seq + 1))
}

impl Handler<BeginMirror> for SessionRegistry {
    type Result = ResponseFuture<Result<BroadcastAck, BroadcastRefusal>>;

    fn handle(&mut self, BeginMirror { epoch, left, broadcast }: BeginMirror, ctx: &mut Self::Context) -> Self::Result {
        // Another post may have been quicker.
        let session = match self.broadcast_target(&broadcast) {
            Err(refusal) => return Box::pin(async move { Err(refusal) }),
            Ok(Target::Session(session)) => session,
            Ok(Target::Past(_, refusal)) => return Box::pin(async move { Err(refusal) }),
            Ok(Target::Begin(_)) if is_hole(&left, &broadcast) => {
                let expected = left.last_seq + 1;
                return Box::pin(async move { Err(BroadcastRefusal::Hole { expected }) });
            }
            Ok(Target::Begin(_)) if self.is_elsewhere(&broadcast.slug, epoch) => {
                return Box::pin(async { Err(BroadcastRefusal::OtherSlug) });
            }
            Ok(Target::Begin(_)) => self.begin_for(&broadcast.slug, Some(epoch), left, ctx),
        };
        Box::pin(async move { session.send(broadcast).await.unwrap_or(Err(BroadcastRefusal::Unavailable)) })
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
        let order = End { reason: end.reason, deadline: end.deadline, suspend: false };
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
        let order = End { reason: "server_stopping".into(), deadline: drain.deadline, suspend: true };
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

impl Handler<Observe> for SessionRegistry {
    type Result = ResponseFuture<Value>;

    fn handle(&mut self, _: Observe, _: &mut Self::Context) -> Self::Result {
        let mut sessions: Vec<(Slug, Addr<Session>, u64)> = {
            let table = self.sessions.table.lock();
            let all = table.by_slug.values().chain(&table.ending);
            all.map(|r| (r.core.slug.clone(), r.addr.clone(), r.restarts.total())).collect()
        };
        sessions.sort_by(|a, b| a.0.cmp(&b.0));
        let generation = self.lifeline.generation();
        let arbiters = self.arbiters.len();
        Box::pin(async move {
            let ask = |(slug, addr, restarts): (Slug, Addr<Session>, u64)| async move {
                let answer = tokio::time::timeout(OBSERVE_TIMEOUT, addr.send(Observe)).await;
                let mut state = match answer {
                    Ok(Ok(state)) => state,
                    _ => json!({ "session": slug, "state": "no answer" }),
                };
                state["restarts"] = json!(restarts);
                state
            };
            let states = join_all(sessions.into_iter().map(ask)).await;
            json!({ "generation": generation, "arbiters": arbiters, "active": states.len(), "sessions": states })
        })
    }
}

crate::stops_and_crashes!(SessionRegistry);

#[cfg(test)]
mod tests {
    use super::*;
    use crate::actors::services::testing::services;
    use crate::log::StatusChange;

    struct Parent;
    impl Actor for Parent {
        type Context = Context<Self>;
    }
    impl Handler<ChildDown> for Parent {
        type Result = ();
        fn handle(&mut self, _: ChildDown, _: &mut Self::Context) {}
    }

    fn registry(services: &Arc<Services>) -> Addr<SessionRegistry> {
        let parent = Parent.start().recipient();
        let lifeline = Lifeline::new(parent, ChildKind::SessionRegistry, 1, services.metrics.clone());
        let arbiters = Arc::new(vec![Arbiter::current()]);
        SessionRegistry::start(Arc::default(), services.clone(), arbiters, lifeline)
    }

    fn adopted(epoch: u128) -> AdoptSession {
        let beginning =
            Beginning { epoch: Some(Epoch::from_u128(epoch)), clock_ms: Some(1000), ..Beginning::default() };
        AdoptSession { slug: Slug::parse("demo").unwrap(), beginning }
    }

    #[actix::test]
    async fn rooms_that_nobody_uses_are_forgotten() {
        tokio::time::pause();
        let services = services(&[("SESSION_GRACE_MS", "1000")]);
        let registry = registry(&services);
        for n in 0..100 {
            services.directory.get_or_create(&Slug::parse(&format!("looked-at-{n}")).unwrap());
        }
        registry.send(adopted(1)).await.unwrap();
        assert_eq!(services.directory.len(), 101);
        // The session's grace period is over, too.
        tokio::time::sleep(SWEEP_INTERVAL * 4).await;
        assert_eq!(services.directory.len(), 0);
        assert_eq!(services.metrics.sessions_active.get(), 0);
    }

    #[actix::test]
    async fn of_two_epochs_that_a_process_has_left_the_later_one_goes_on() {
        let services = services(&[]);
        let registry = registry(&services);
        for epoch in [1, 2, 1] {
            registry.send(adopted(epoch)).await.unwrap();
        }
        let room = services.directory.get(&Slug::parse("demo").unwrap()).unwrap();
        assert_eq!(room.current().unwrap().epoch(), Epoch::from_u128(2));
        let old = room.log_of(Epoch::from_u128(1)).unwrap();
        let mut changes = old.watch();
        let ended = async {
            while old.status() != crate::log::Status::Ended {
                changes.changed().await.unwrap();
            }
        };
        tokio::time::timeout(Duration::from_secs(30), ended).await.expect("the earlier one ends");
    }

    fn mirrored(epoch: u128, seq: u64) -> Broadcast {
        let slug = Slug::parse("demo").unwrap();
        let change = StatusChange {
            session: slug.clone(),
            epoch: Epoch::from_u128(epoch),
            seq: Some(seq),
            id: format!("{epoch}-{seq}"),
            status: Status::Live,
            reason: None,
            durable: true,
        };
        Broadcast { slug, entries: vec![BroadcastEntry { numbered: true, entry: Entry::Status(change) }] }
    }

    #[actix::test]
    async fn a_mirror_is_let_go_of_when_nobody_writes_and_nobody_watches() {
        tokio::time::pause();
        let services = services(&[]);
        let registry = registry(&services);
        registry.send(mirrored(1, 1)).await.unwrap().unwrap();
        let room = services.directory.get(&Slug::parse("demo").unwrap()).unwrap();
        let log = room.current().unwrap();
        let viewer = room.enter(1);
        tokio::time::sleep(Duration::from_secs(2000)).await;
        assert!(!log.is_closed(), "somebody watches");
        drop(viewer);
        tokio::time::sleep(Duration::from_secs(1300)).await;
        assert!(log.is_closed() && services.metrics.sessions_active.get() == 0);
        assert_eq!(log.last_seq(), 1, "nothing of ours is in it");
        // Whoever has read it to its end finds that it goes on.
        assert!(room.log_after(log.epoch()).is_none());
        registry.send(mirrored(1, 1)).await.unwrap().unwrap();
        let again = room.log_after(log.epoch()).expect("the same epoch");
        assert!(again.epoch() == log.epoch() && !Arc::ptr_eq(&again, &log));
    }

    #[actix::test]
    async fn a_mirror_whose_successor_is_here_is_not_waited_for_long() {
        tokio::time::pause();
        let services = services(&[]);
        let registry = registry(&services);
        registry.send(mirrored(1, 1)).await.unwrap().unwrap();
        registry.send(mirrored(2, 1)).await.unwrap().unwrap();
        let room = services.directory.get(&Slug::parse("demo").unwrap()).unwrap();
        let _viewer = room.enter(1);
        let first = room.log_of(Epoch::from_u128(1)).unwrap();
        tokio::time::sleep(Duration::from_secs(20)).await;
        assert_eq!(registry.send(mirrored(1, 2)).await.unwrap().unwrap().seq, 2);
        tokio::time::sleep(Duration::from_secs(20)).await;
        assert!(!first.is_closed());
        tokio::time::sleep(Duration::from_secs(20)).await;
        assert!(first.is_closed() && !room.current().unwrap().is_closed());
        let refused = registry.send(mirrored(1, 3)).await.unwrap();
        assert_eq!(refused, Err(BroadcastRefusal::HasOrigin { expected: 2 }), "the later log's");
    }
}
