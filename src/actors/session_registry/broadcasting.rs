//! Who takes the entries of a POST broadcast: a session that is here, one that begins for them, or nobody.

use std::collections::HashSet;

use actix::prelude::*;

use super::SessionRegistry;
use crate::actors::services::Services;
use crate::actors::session::Session;
use crate::actors::session_core::SessionSeed;
use crate::transcript::Origin;
use crate::transcript::{Entry, Epoch, ReadError, SessionRecord, Slug, Status, StoredTail};

/// Entries from outside (POST broadcast), all of one slug. Answers when they are in the outbox.
#[derive(Debug, Clone, Message)]
#[rtype(result = "Result<BroadcastAck, BroadcastRefusal>")]
pub struct Broadcast {
    pub slug: Slug,
    pub entries: Vec<BroadcastEntry>,
    pub from_origin: FromOrigin,
}

/// What the node that numbers a log says beside its entries.
#[derive(Debug, Clone, Default)]
pub struct FromOrigin {
    /// The session's row, as that node keeps it.
    pub record: Option<SessionRecord>,
    /// Numbers below this one are not to be had any more.
    pub begins: Option<u64>,
    /// How much later our clock is than that node's, in ms.
    pub clock_offset_ms: Option<i64>,
}

impl Broadcast {
    /// Entries and nothing beside them.
    pub fn new(slug: Slug, entries: Vec<BroadcastEntry>) -> Self {
        Self { slug, entries, from_origin: FromOrigin::default() }
    }

    /// The number that the first of the entries which are not `known` may begin with, though it leaves a hole.
    pub fn may_begin_at(&self, seq: u64) -> bool {
        self.from_origin.begins == Some(seq)
    }
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

/// A broadcast of a log that has no session here, with what the store knows of that log.
#[derive(Message)]
#[rtype(result = "Result<BroadcastAck, BroadcastRefusal>")]
struct BeginMirror {
    epoch: Epoch,
    left: StoredTail,
    /// The store has all of the entries.
    is_known: bool,
    broadcast: Broadcast,
}

/// The session that takes a broadcast.
enum Target {
    Session(Addr<Session>),
    /// One that has to begin: a mirror of this epoch, or a relay. The slug's present session ends for it.
    Begin(Option<Epoch>),
    /// A mirror of an epoch that a later one has followed already: its last entries come late.
    BeginLate(Epoch),
}

impl SessionRegistry {
    /// Finds who takes a broadcast. Changes nothing. Each session that begins may leave one that is ending: posts with ever
    /// later epochs are to wait while there are as many of those as sessions are allowed.
    fn broadcast_target(&self, broadcast: &Broadcast) -> Result<Target, BroadcastRefusal> {
        let target = self.target_of(broadcast)?;
        let most = self.services.config.rtmp.max_sessions;
        match target {
            Target::Begin(Some(_)) | Target::BeginLate(_) if self.services.follows(Origin::Mirror) => Ok(target),
            Target::Begin(_) | Target::BeginLate(_) if self.sessions.table.lock().ending.len() >= most => {
                Err(BroadcastRefusal::TooManySessions(most))
            }
            target => Ok(target),
        }
    }

    fn target_of(&self, broadcast: &Broadcast) -> Result<Target, BroadcastRefusal> {
        if self.sessions.table.lock().draining {
            return Err(BroadcastRefusal::Draining);
        }
        let slug = &broadcast.slug;
        let epoch = broadcast.entries.iter().find(|e| e.numbered).map(|e| e.entry.epoch());
        let Some((addr, core)) = self.find(slug) else {
            let is_bounded = epoch.is_none() || !self.services.follows(Origin::Mirror);
            return match self.is_full().filter(|_| is_bounded) {
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
            // In a cluster, the epochs of a room follow each other wherever they began.
            (Origin::Relay, Some(epoch)) if epoch < core.epoch && self.services.log_server.is_some() => {
                Ok(self.target_in_the_past(slug, epoch))
            }
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
            (Origin::Mirror, Some(epoch)) => Ok(self.target_in_the_past(slug, epoch)),
        }
    }

    /// Takes entries of an epoch that a later one has followed.
    fn target_in_the_past(&self, slug: &Slug, epoch: Epoch) -> Target {
        match self.find_followed(slug, epoch) {
            Some(addr) => Target::Session(addr),
            None => Target::BeginLate(epoch),
        }
    }

    /// Begins the session that a broadcast needs, on what is left of an earlier life of its log. One that a later epoch has
    /// followed begins beside that.
    fn begin_for(
        &self,
        broadcast: &Broadcast,
        epoch: Option<Epoch>,
        left: StoredTail,
        is_late: bool,
        ctx: &mut Context<Self>,
    ) -> Addr<Session> {
        let slug = &broadcast.slug;
        if let Some((addr, core)) = self.find(slug).filter(|_| !is_late) {
            self.supersede(&addr, &core);
        }
        let origin = if epoch.is_some() { Origin::Mirror } else { Origin::Relay };
        let started_at = broadcast.from_origin.record.as_ref().map(|record| record.started_at);
        let StoredTail { last_seq, known, recent, .. } = left;
        // As at its origin before that had said the first word of it.
        let says_itself = last_seq == 0 && matches!(broadcast.entries.first(), Some(first) if is_first_status(first));
        let status = says_itself.then_some(Status::Waiting);
        let seed = SessionSeed { origin, epoch, started_at, last_seq, known, recent, status, ..SessionSeed::default() };
        if is_late { self.begin_late(slug.clone(), seed, ctx) } else { self.begin(slug.clone(), seed, ctx) }
    }

    /// The last number of a log that has ended here and has all of the entries: it may be this node's own, which comes
    /// back from the log server.
    fn ended_with(&self, epoch: Epoch, broadcast: &Broadcast) -> Option<u64> {
        let log = self.services.directory.get(&broadcast.slug)?.log_of(epoch)?;
        let has_all = || broadcast.entries.iter().all(|entry| log.seq_of(entry.entry.id()).is_some());
        (log.is_closed() && log.status() == Status::Ended && has_all()).then(|| log.last_seq())
    }

    /// The epoch is that of another slug's session.
    fn is_elsewhere(&self, slug: &Slug, epoch: Epoch) -> bool {
        let table = self.sessions.table.lock();
        table.by_slug.values().chain(&table.ending).any(|r| r.core.epoch == epoch && r.core.slug != *slug)
    }

    /// A log of another node that a newer one of the same slug has followed: its last entries may still come.
    fn find_followed(&self, slug: &Slug, epoch: Epoch) -> Option<Addr<Session>> {
        let table = self.sessions.table.lock();
        let is_it = |r: &&super::SessionRecord| {
            let is_open = r.addr.connected() && !r.core.log.is_closed();
            is_open && (&r.core.slug, r.core.epoch, r.core.origin) == (slug, epoch, Origin::Mirror)
        };
        table.ending.iter().find(is_it).map(|r| r.addr.clone())
    }
}

impl Handler<Broadcast> for SessionRegistry {
    type Result = ResponseFuture<Result<BroadcastAck, BroadcastRefusal>>;

    fn handle(&mut self, broadcast: Broadcast, ctx: &mut Self::Context) -> Self::Result {
        if broadcast.entries.is_empty() {
            return self.keep_record(broadcast);
        }
        match self.may_be_for_another_node(&broadcast) {
            true => self.ask_owner(broadcast, ctx),
            false => self.take(broadcast, ctx),
        }
    }
}

impl SessionRegistry {
    /// Takes entries for a session here.
    pub(super) fn take(
        &mut self,
        broadcast: Broadcast,
        ctx: &mut Context<Self>,
    ) -> ResponseFuture<Result<BroadcastAck, BroadcastRefusal>> {
        let session = match self.broadcast_target(&broadcast) {
            Err(refusal) => return Box::pin(async move { Err(refusal) }),
            Ok(Target::Session(session)) => session,
            Ok(Target::Begin(None)) => self.begin_for(&broadcast, None, StoredTail::default(), false, ctx),
            Ok(Target::Begin(Some(epoch)) | Target::BeginLate(epoch)) => {
                if let Some(seq) = self.ended_with(epoch, &broadcast) {
                    let ack = BroadcastAck { accepted: 0, duplicates: broadcast.entries.len(), seq };
                    return Box::pin(async move { Ok(ack) });
                }
                return look_back(&self.services, ctx.address(), epoch, broadcast);
            }
        };
        self.hand_over(session, broadcast)
    }

    /// Gives the entries to their session, and the session's row, which is queued before them as at its origin, to storage.
    fn hand_over(
        &self,
        session: Addr<Session>,
        broadcast: Broadcast,
    ) -> ResponseFuture<Result<BroadcastAck, BroadcastRefusal>> {
        let kept = self.keep_record(Broadcast { entries: Vec::new(), ..broadcast.clone() });
        Box::pin(async move {
            kept.await?;
            session.send(broadcast).await.unwrap_or(Err(BroadcastRefusal::Unavailable))
        })
    }

    /// A session's row, as its origin keeps it.
    fn keep_record(&self, broadcast: Broadcast) -> ResponseFuture<Result<BroadcastAck, BroadcastRefusal>> {
        let kept = broadcast.from_origin.record.map(|record| {
            let seq = record.last_seq;
            (seq, self.services.recorder.keep(record))
        });
        Box::pin(async move {
            let Some((seq, kept)) = kept else { return Ok(BroadcastAck { accepted: 0, duplicates: 0, seq: 0 }) };
            let ack = BroadcastAck { accepted: 0, duplicates: 0, seq };
            if kept.await { Ok(ack) } else { Err(BroadcastRefusal::Unavailable) }
        })
    }
}

/// This node may have had the log before: its end is in the database and the outbox.
fn look_back(
    services: &Services,
    registry: Addr<SessionRegistry>,
    epoch: Epoch,
    broadcast: Broadcast,
) -> ResponseFuture<Result<BroadcastAck, BroadcastRefusal>> {
    let left = services.stored_tail(epoch);
    let is_in_log = services.log_server.is_some();
    Box::pin(async move {
        let first = broadcast.entries.iter().find_map(|e| e.entry.seq());
        let left = match left.await {
            Ok(left) => left,
            // What a log begins with needs no past: should the database have it, it skips it. What a log server has is read
            // from there.
            Err(_) if first == Some(1) || is_in_log => StoredTail::default(),
            Err(error) => return Err(unreadable(&broadcast, epoch, &error)),
        };
        if left.slug.as_ref().is_some_and(|slug| *slug != broadcast.slug) {
            return Err(BroadcastRefusal::OtherSlug);
        }
        let is_known = unknown(&left, &broadcast).is_empty();
        // A log that ended here takes nothing new; what is repeated is known.
        if left.is_ended && (is_known || !is_in_log) {
            return repeated(&left, &broadcast);
        }
        // Its rows may be in the database already, and those before them not yet.
        let left = match first.filter(|_| is_in_log) {
            Some(first) => left.before(first),
            None => left,
        };
        if left.is_ended {
            return repeated(&left, &broadcast);
        }
        let begin = BeginMirror { epoch, left, is_known, broadcast };
        registry.send(begin).await.unwrap_or(Err(BroadcastRefusal::Unavailable))
    })
}

/// A log that begins with what its status is.
fn is_first_status(entry: &BroadcastEntry) -> bool {
    matches!(&entry.entry, Entry::Status(change) if change.seq == Some(1))
}

/// The sender keeps its entries and asks again.
fn unreadable(broadcast: &Broadcast, epoch: Epoch, error: &ReadError) -> BroadcastRefusal {
    tracing::warn!(session = %broadcast.slug, %epoch, %error, "the log's end could not be looked up");
    BroadcastRefusal::Unavailable
}

/// Ids of the broadcast that the log does not have.
fn unknown<'a>(left: &StoredTail, broadcast: &'a Broadcast) -> HashSet<&'a str> {
    let mut ids: HashSet<&str> = broadcast.entries.iter().map(|e| e.entry.id()).collect();
    for (id, _) in &left.known {
        ids.remove(id.as_str());
    }
    ids
}

fn repeated(left: &StoredTail, broadcast: &Broadcast) -> Result<BroadcastAck, BroadcastRefusal> {
    if unknown(left, broadcast).is_empty() {
        Ok(BroadcastAck { accepted: 0, duplicates: broadcast.entries.len(), seq: left.last_seq })
    } else {
        Err(BroadcastRefusal::Ended { expected: left.last_seq + 1 })
    }
}

/// The log's first new entry, where it cannot follow what is left of it: nobody's session ends for that.
fn is_hole(left: &StoredTail, broadcast: &Broadcast) -> bool {
    let unknown = unknown(left, broadcast);
    let is_new = |e: &&BroadcastEntry| e.entry.seq().is_some() && unknown.contains(e.entry.id());
    let new = broadcast.entries.iter().find(is_new).and_then(|e| e.entry.seq());
    new.is_some_and(|seq| seq != left.last_seq + 1 && !broadcast.may_begin_at(seq))
}

impl Handler<BeginMirror> for SessionRegistry {
    type Result = ResponseFuture<Result<BroadcastAck, BroadcastRefusal>>;

    fn handle(&mut self, begin: BeginMirror, ctx: &mut Self::Context) -> Self::Result {
        let BeginMirror { epoch, left, is_known, broadcast } = begin;
        // Another post may have been quicker.
        let target = self.broadcast_target(&broadcast).and_then(|target| match target {
            Target::Session(_) => Ok(target),
            _ if is_hole(&left, &broadcast) => Err(BroadcastRefusal::Hole { expected: left.last_seq + 1 }),
            _ if self.is_elsewhere(&broadcast.slug, epoch) => Err(BroadcastRefusal::OtherSlug),
            _ => Ok(target),
        });
        let session = match target {
            Err(refusal) => return Box::pin(async move { Err(refusal) }),
            Ok(Target::Session(session)) => session,
            // A repetition needs no session.
            Ok(Target::BeginLate(_)) if is_known => {
                let ack = BroadcastAck { accepted: 0, duplicates: broadcast.entries.len(), seq: left.last_seq };
                return Box::pin(async move { Ok(ack) });
            }
            Ok(target) => {
                let is_late = matches!(target, Target::BeginLate(_));
                self.begin_for(&broadcast, Some(epoch), left, is_late, ctx)
            }
        };
        self.hand_over(session, broadcast)
    }
}
