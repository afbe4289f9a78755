//! Ownership of rooms in a cluster: which node writes a room's log, and how another one takes it over.
//!
//! The argument. An append is accepted only if the room's last message is the one that the writer knows of, and the log
//! server checks and stores that in one step. Whoever takes a room over appends an *owner record* first: it is now the
//! last message, so nothing that an earlier owner has decided on can be accepted after it, however late it arrives. What
//! was accepted before it, the new owner has read. The key under the room's name (the *holding*) only says who is to be
//! asked; it may be wrong without harm, and no clock decides anything.
//!
//! Numbers of an owner are provisional until the log server has them. An owner that finds out that it is one no more
//! hands what it has left to its successor, which numbers it anew: entries are known by their ids.
//!
//! Second line of defence: readers take a message only if its fence is that of the room's latest owner record.

mod append;
mod claim;
mod late;
mod messages;
mod news;
mod past;

use std::collections::{HashMap, HashSet, VecDeque};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::mpsc;
use tokio::time::Instant;
use uuid::Uuid;

pub use self::claim::{ClaimError, Claimed, Former};
pub use self::messages::{Handover, Holding, LateBatch, NodeAnswer, NodeRequest, OwnerRecord, RoomNews};
pub use self::past::{EpochPast, RoomPast};
use super::log_server::{Position, ServerError, SharedServer, Unanswered};
use crate::transcript::checkpoint::Checkpoint;
use crate::transcript::{Epoch, Slug};

/// Longest wait for another node's answer about a room.
const ASK_TIMEOUT: Duration = Duration::from_secs(1);
/// Interval in which an owner record is repeated, so that one is in the log whatever its age does to old messages.
const RECORD_INTERVAL: Duration = Duration::from_secs(3600);
/// Longest wait for an owner to make leftovers durable.
const LATE_TIMEOUT: Duration = Duration::from_secs(3);

/// A room is not this node's any more.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Lost {
    pub room: Slug,
    pub epoch: Epoch,
}

/// Who a node is to others.
#[derive(Debug, Clone)]
pub struct Identity {
    /// `NODE_ID`, for people.
    pub node: String,
    /// This process: a node that comes back is another one.
    pub instance: String,
    /// The outbox: a node that comes back has the same. Numbers that an epoch was given by another home mean nothing
    /// in this one.
    pub home: String,
}

impl Identity {
    pub fn new(node: &str, home: &str) -> Self {
        let instance = Uuid::now_v7().simple().to_string();
        Self { node: node.to_owned(), instance, home: home.to_owned() }
    }
}

/// The rooms of one node.
pub struct Ownership {
    server: SharedServer,
    me: Identity,
    rooms: Mutex<HashMap<Slug, Arc<OwnedRoom>>>,
    /// Epochs of which this node has entries that another owner is to number.
    leftovers: Mutex<HashSet<Epoch>>,
    /// Epochs with actors here: those of a room that is lost are still bringing their last words.
    alive: Mutex<HashSet<Epoch>>,
    /// Epochs that had a session here and may not be in the log as a whole.
    unfinished: Mutex<HashSet<Epoch>>,
    /// Last numbers that this node gave in epochs whose entries another owner has numbered then.
    handed_on: Mutex<HashMap<Epoch, u64>>,
    lost: mpsc::UnboundedSender<Lost>,
    /// Of the last message that this node has stored.
    last_position: AtomicU64,
}

/// A room that this node writes, wants to write, or has something left of.
struct OwnedRoom {
    slug: Slug,
    /// Held over an append, so that one is under way at a time.
    claim: tokio::sync::Mutex<Option<Claim>>,
    /// The epoch of the session that is here.
    session: Mutex<Option<Epoch>>,
}

/// The right to write a room's log, as far as this node knows.
struct Claim {
    epoch: Epoch,
    fence: String,
    /// Of the room's last message.
    position: Position,
    /// Last number of the epoch in the log.
    stored_seq: u64,
    /// When the owner record was last written.
    recorded: Instant,
    /// Revision of the holding.
    revision: u64,
    /// Positions and numbers of entries that the database may not have.
    unsettled: VecDeque<(Position, u64)>,
    /// What the log has of epochs that have a session nowhere, as far as it was looked up.
    late: HashMap<Epoch, EpochPast>,
}

fn home_name(home: &str) -> String {
    format!("home-{home}")
}

/// Says that another process lives whose outbox is a copy of this one: numbers of both would be taken for each other's.
pub async fn has_twin(server: &SharedServer, home: &str) -> bool {
    let ping = NodeRequest::Ping.to_bytes();
    server.ask(&home_name(home), ping, ASK_TIMEOUT).await.is_ok()
}

impl Ownership {
    /// Gives what is lost on the channel.
    pub fn new(server: SharedServer, me: Identity) -> (Arc<Self>, mpsc::UnboundedReceiver<Lost>) {
        let (lost, lost_rx) = mpsc::unbounded_channel();
        let ownership = Self {
            server,
            me,
            rooms: Mutex::default(),
            leftovers: Mutex::default(),
            alive: Mutex::default(),
            unfinished: Mutex::default(),
            handed_on: Mutex::default(),
            lost,
            last_position: AtomicU64::new(0),
        };
        (Arc::new(ownership), lost_rx)
    }

    /// The name under which this process is asked.
    pub fn instance(&self) -> &str {
        &self.me.instance
    }

    /// Rooms that this node writes, or has something left of.
    pub fn len(&self) -> usize {
        self.rooms.lock().len()
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Entries of this epoch are in this node's outbox, and their numbers are not to be relied on: it has no session here.
    pub fn has_leftovers(&self, epoch: Epoch) {
        self.leftovers.lock().insert(epoch);
    }

    /// The name under which every process on this outbox is asked: there must be one alone.
    pub fn home(&self) -> String {
        home_name(&self.me.home)
    }

    pub fn server(&self) -> &SharedServer {
        &self.server
    }

    /// Everything that this node has stored is at this position or before it.
    pub fn last_position(&self) -> Position {
        self.last_position.load(Ordering::Acquire)
    }

    fn stored_at(&self, position: Position) {
        self.last_position.fetch_max(position, Ordering::AcqRel);
    }

    fn room(&self, slug: &Slug) -> Arc<OwnedRoom> {
        let mut rooms = self.rooms.lock();
        let new = || {
            let (claim, session) = (tokio::sync::Mutex::default(), Mutex::default());
            Arc::new(OwnedRoom { slug: slug.clone(), claim, session })
        };
        rooms.entry(slug.clone()).or_insert_with(new).clone()
    }

    fn known_room(&self, slug: &Slug) -> Option<Arc<OwnedRoom>> {
        self.rooms.lock().get(slug).cloned()
    }

    /// A session of this epoch is here: what it says is numbered here, whether or not the log server answers.
    pub fn session_begins(&self, slug: &Slug, epoch: Epoch) {
        self.alive.lock().insert(epoch);
        self.unfinished.lock().insert(epoch);
        *self.room(slug).session.lock() = Some(epoch);
    }

    /// The session is over. The room is let go of once all of it is in the log: see [`Self::all_stored`].
    pub fn session_over(&self, slug: &Slug, epoch: Epoch) {
        if let Some(room) = self.known_room(slug) {
            let mut session = room.session.lock();
            if *session == Some(epoch) {
                *session = None;
            }
        }
    }

    /// No actor of this epoch's session is left here.
    pub fn session_gone(&self, epoch: Epoch) {
        self.alive.lock().remove(&epoch);
    }

    /// Epochs that this node has something left of, or had: none of those of which nobody says so any more.
    pub fn forget_leftovers(&self, is_waiting: &dyn Fn(Epoch) -> bool) {
        let alive = self.alive.lock();
        let is_left = |epoch: &Epoch| alive.contains(epoch) || is_waiting(*epoch);
        self.leftovers.lock().retain(is_left);
        self.unfinished.lock().retain(is_left);
    }

    /// The epoch of the session that is here and may write.
    pub fn session_of(&self, slug: &Slug) -> Option<Epoch> {
        self.known_room(slug).and_then(|room| *room.session.lock())
    }

    /// Nothing of this epoch is left to be stored. A room without a session is free for the next one.
    pub async fn all_stored(&self, slug: &Slug, epoch: Epoch) {
        self.leftovers.lock().remove(&epoch);
        self.unfinished.lock().remove(&epoch);
        let Some(room) = self.known_room(slug) else { return };
        let mut claim = room.claim.lock().await;
        let is_idle = room.session.lock().is_none() && claim.as_ref().is_none_or(|claim| claim.epoch == epoch);
        if !is_idle {
            return;
        }
        if let Some(Claim { revision, .. }) = claim.take() {
            match self.server.let_go(slug, revision).await {
                Ok(_) => {}
                // It is found to be over by whoever asks next.
                Err(error) => tracing::debug!(session = %slug, %error, "a room could not be let go of"),
            }
        }
        drop(claim);
        self.forget(&room);
    }

    /// A holding of this process: removed if nothing here needs it. An answer that was lost may have left it.
    pub async fn let_go_if_forgotten(&self, slug: &Slug, revision: u64) -> Result<(), ServerError> {
        let room = self.room(slug);
        let held = room.claim.lock().await;
        if held.is_none() && room.session.lock().is_none() {
            self.server.let_go(slug, revision).await?;
        }
        drop(held);
        self.forget(&room);
        Ok(())
    }

    fn forget(&self, room: &Arc<OwnedRoom>) {
        let mut rooms = self.rooms.lock();
        // Two: the table's and ours.
        if Arc::strong_count(room) <= 2 && room.session.lock().is_none() {
            rooms.remove(&room.slug);
        }
    }

    /// Tells the others that this node lives and where the session is. Every few seconds.
    pub async fn renew(&self, slug: &Slug, clock_ms: u64, checkpoint: Checkpoint) {
        let Some(room) = self.known_room(slug) else { return };
        let mut held = room.claim.lock().await;
        let Some(claim) = held.as_mut().filter(|claim| claim.epoch == checkpoint.epoch) else { return };
        let holding = self.holding(claim.epoch, Some(clock_ms), Some(checkpoint));
        match self.server.hold(slug, holding.to_bytes(), Some(claim.revision)).await {
            Ok(Some(revision)) => claim.revision = revision,
            Ok(None) => return self.look_at_holding(&room, &mut held).await,
            Err(error) => return tracing::debug!(session = %slug, %error, "the holding was not renewed"),
        }
        if claim.recorded.elapsed() >= RECORD_INTERVAL {
            self.record_again(&room, &mut held).await;
        }
    }

    /// The holding is not the one that was written last, as far as is known here: it is a renewal of ours of which the answer
    /// was lost, or another node's, or the log server has lost it.
    async fn look_at_holding(&self, room: &OwnedRoom, held: &mut Option<Claim>) {
        let key = match self.server.holder(&room.slug).await {
            Ok(key) => key,
            Err(error) => return tracing::debug!(session = %room.slug, %error, "the holding was not renewed"),
        };
        let Some(claim) = held.as_mut() else { return };
        // The room is claimed again with the next entry.
        let Some(key) = key else { return *held = None };
        let holding = serde_json::from_slice::<Holding>(&key.value).ok();
        if holding.is_some_and(|holding| holding.instance == self.me.instance) {
            claim.revision = key.revision;
        } else {
            self.lose(room, held, "another node holds it");
        }
    }

    /// Another node asks for the room: nothing is written from now on. None: it is not this node's.
    pub async fn release(&self, slug: &Slug) -> Option<Epoch> {
        let room = self.known_room(slug)?;
        let mut held = room.claim.lock().await;
        let epoch = held.as_ref().map(|claim| claim.epoch).or(*room.session.lock())?;
        self.lose(&room, &mut held, "another node has asked for it");
        Some(epoch)
    }

    /// What is not in the log yet is for another owner to number.
    fn lose(&self, room: &OwnedRoom, held: &mut Option<Claim>, why: &str) {
        let session = room.session.lock().take();
        let Some(epoch) = session.or(held.as_ref().map(|claim| claim.epoch)) else { return };
        *held = None;
        self.leftovers.lock().insert(epoch);
        tracing::warn!(session = %room.slug, %epoch, reason = why, "room lost to another node");
        if session.is_some() {
            // Nobody may be listening any more: the process is stopping.
            let _ = self.lost.send(Lost { room: room.slug.clone(), epoch });
        }
    }

    fn holding(&self, epoch: Epoch, clock_ms: Option<u64>, checkpoint: Option<Checkpoint>) -> Holding {
        let Identity { node, instance, home } = self.me.clone();
        Holding { node, instance, home, epoch, clock_ms, checkpoint }
    }

    /// Asks whoever holds a room.
    async fn ask(&self, instance: &str, request: &NodeRequest, within: Duration) -> Result<NodeAnswer, Unanswered> {
        let answer = self.server.ask(instance, request.to_bytes(), within).await?;
        serde_json::from_slice(&answer).map_err(|_| Unanswered::Late)
    }

    /// Asks whether a process is there.
    pub async fn is_there(&self, instance: &str) -> Result<bool, ServerError> {
        match self.ask(instance, &NodeRequest::Ping, ASK_TIMEOUT).await {
            Ok(_) => Ok(true),
            Err(Unanswered::Nobody | Unanswered::Late) => Ok(false),
            Err(Unanswered::Away(why)) => Err(ServerError::Away(why)),
        }
    }
}

#[cfg(test)]
mod tests;
