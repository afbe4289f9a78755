//! Becoming a room's owner: the holding first, then the room's past, then the owner record.

use chrono::{DateTime, Utc};
use tokio::time::Instant;
use uuid::{Builder, Uuid};

use super::messages::{Handover, Holding, NodeAnswer, NodeRequest, OwnerRecord};
use super::past::{EpochPast, RoomPast};
use super::{ASK_TIMEOUT, Claim, Identity, OwnedRoom, Ownership};
use crate::bus::log_server::{Appended, Held, Logged, Message, MessageKind, ServerError, Unanswered};
use crate::bus::wire::LogBatch;
use crate::transcript::checkpoint::Checkpoint;
use crate::transcript::{Entry, Epoch, SessionState, Slug, Status};

/// Tries when somebody else is quicker.
const TRIES: usize = 8;

/// Why a room is not this node's.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ClaimError {
    /// It may be, once the log server answers.
    #[error("the log server is away: {0}")]
    Away(String),
    #[error("{0}")]
    Unusable(String),
    /// Its owner does not let go of it.
    #[error("{0}")]
    Busy(String),
    /// A later session of the room goes on elsewhere.
    #[error("a later session of the room goes on")]
    Superseded,
    #[error("other nodes were quicker")]
    Contended,
}

impl From<ServerError> for ClaimError {
    fn from(error: ServerError) -> Self {
        match error {
            ServerError::Away(why) => Self::Away(why),
            ServerError::Unusable(why) => Self::Unusable(why),
        }
    }
}

/// The right to write a room's log under this epoch.
#[derive(Debug, Clone)]
pub struct Claimed {
    pub epoch: Epoch,
    /// The epoch goes on: what is known of it.
    pub former: Option<Former>,
}

/// A session that another process, or an earlier one of this node, has begun.
#[derive(Debug, Clone)]
pub struct Former {
    pub past: EpochPast,
    /// The session's clock now, where anybody knows it.
    pub clock_ms: Option<u64>,
    /// Its owner is alive: its last words are still coming.
    pub is_handed_over: bool,
    pub checkpoint: Option<Checkpoint>,
}

/// What a claim is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Purpose {
    /// A publisher whose session is to go on, or to begin.
    Publisher,
    /// A session whose node is gone is to go on, as long as the holding is of this revision: nobody else has taken it.
    Orphan(u64),
    /// A session that has begun here while nobody was asked.
    Session(Epoch),
    /// Entries that are left of an epoch; nobody else is there to take them.
    Leftovers(Epoch),
}

/// What whoever held the room has left.
#[derive(Default)]
struct Predecessor {
    holding: Option<(Holding, DateTime<Utc>)>,
    handover: Option<Handover>,
}

impl Ownership {
    /// Makes the room this node's, for a publisher that has come. Its session goes on under the epoch in the answer.
    pub async fn claim(&self, slug: &Slug) -> Result<Claimed, ClaimError> {
        let room = self.room(slug);
        let mut held = room.claim.lock().await;
        let claimed = self.claim_locked(&room, &mut held, Purpose::Publisher).await?;
        *room.session.lock() = Some(claimed.epoch);
        Ok(claimed)
    }

    /// Makes the room this node's, for lines that were posted here. None: its session is here already.
    pub async fn claim_for_lines(&self, slug: &Slug) -> Result<Option<Claimed>, ClaimError> {
        let room = self.room(slug);
        let mut held = room.claim.lock().await;
        if room.session.lock().is_some() {
            return Ok(None);
        }
        let claimed = self.claim_locked(&room, &mut held, Purpose::Publisher).await?;
        *room.session.lock() = Some(claimed.epoch);
        Ok(Some(claimed))
    }

    /// A session that an earlier process of this node has left goes on, if no other node has it.
    pub async fn reclaim(&self, slug: &Slug, epoch: Epoch) -> Result<Claimed, ClaimError> {
        let room = self.room(slug);
        let mut held = room.claim.lock().await;
        *room.session.lock() = Some(epoch);
        let claimed = self.claim_locked(&room, &mut held, Purpose::Session(epoch)).await;
        if let Err(ClaimError::Superseded | ClaimError::Busy(_)) = &claimed {
            *room.session.lock() = None;
            self.leftovers.lock().insert(epoch);
        }
        claimed
    }

    /// Takes over a room whose owner is gone, if its holding is still this one. None: nothing goes on there; it is free now.
    pub async fn adopt(&self, slug: &Slug, revision: u64) -> Result<Option<Claimed>, ClaimError> {
        let room = self.room(slug);
        let mut held = room.claim.lock().await;
        if held.is_some() || room.session.lock().is_some() {
            return Err(ClaimError::Contended);
        }
        let mut past = RoomPast::default();
        past.read_on(&*self.server, slug).await?;
        let open = past.owner.as_ref().map(|owner| owner.epoch);
        let is_over = |epoch: Epoch| past.epochs.get(&epoch).is_none_or(|known| known.is_ended || known.last_seq == 0);
        if open.is_none_or(is_over) {
            self.server.let_go(slug, revision).await?;
            return Ok(None);
        }
        let claimed = self.claim_locked(&room, &mut held, Purpose::Orphan(revision)).await?;
        *room.session.lock() = Some(claimed.epoch);
        Ok(Some(claimed))
    }

    pub(super) async fn claim_locked(
        &self,
        room: &OwnedRoom,
        held: &mut Option<Claim>,
        purpose: Purpose,
    ) -> Result<Claimed, ClaimError> {
        for _ in 0..TRIES {
            let key = self.server.holder(&room.slug).await?;
            let predecessor = self.ask_predecessor(room, key.as_ref(), purpose).await?;
            let checkpoint = predecessor.handover.as_ref().map(|handover| handover.checkpoint.clone());
            let last = predecessor.holding.as_ref().map(|(holding, _)| holding);
            let epoch = match purpose {
                Purpose::Session(epoch) | Purpose::Leftovers(epoch) => epoch,
                Purpose::Publisher | Purpose::Orphan(_) => last.map_or_else(Uuid::nil, |holding| holding.epoch),
            };
            // Should this node die now, its successor needs what it would have needed.
            let checkpoint = checkpoint.or_else(|| last.and_then(|holding| holding.checkpoint.clone()));
            let mine = self.holding(epoch, last.and_then(|holding| holding.clock_ms), checkpoint);
            let revision = key.map(|key| key.revision);
            if let Some(revision) = self.server.hold(&room.slug, mine.to_bytes(), revision).await? {
                return self.write_owner_record(room, held, purpose, revision, predecessor).await;
            }
        }
        Err(ClaimError::Contended)
    }

    async fn ask_predecessor(
        &self,
        room: &OwnedRoom,
        key: Option<&Held>,
        purpose: Purpose,
    ) -> Result<Predecessor, ClaimError> {
        if let Purpose::Orphan(revision) = purpose
            && key.is_none_or(|key| key.revision != revision)
        {
            return Err(ClaimError::Contended);
        }
        let Some(key) = key else { return Ok(Predecessor::default()) };
        // What cannot be read was written by nobody who could be asked.
        let Ok(holding) = serde_json::from_slice::<Holding>(&key.value) else { return Ok(Predecessor::default()) };
        let mut predecessor = Predecessor::default();
        if holding.instance != self.me.instance {
            let wants = match purpose {
                Purpose::Publisher | Purpose::Orphan(_) => None,
                // It has been taken over, whether or not that node lives.
                Purpose::Session(epoch) if holding.epoch == epoch && holding.home != self.me.home => {
                    return Err(ClaimError::Superseded);
                }
                Purpose::Session(epoch) => Some(epoch),
                Purpose::Leftovers(_) => return Err(ClaimError::Busy(format!("{} owns it", holding.node))),
            };
            let request = NodeRequest::Release { room: room.slug.clone(), by: self.me.node.clone(), wants };
            match self.ask(&holding.instance, &request, ASK_TIMEOUT).await {
                Ok(NodeAnswer::Released { handover }) => predecessor.handover = handover.map(|handover| *handover),
                Ok(NodeAnswer::Busy { why }) => return Err(ClaimError::Busy(why)),
                Err(Unanswered::Away(why)) => return Err(ClaimError::Away(why)),
                // Dead, frozen, or without the room: what it may still write is refused from the owner record on.
                Ok(_) | Err(Unanswered::Nobody | Unanswered::Late) => {}
            }
        }
        predecessor.holding = Some((holding, key.at));
        Ok(predecessor)
    }

    async fn write_owner_record(
        &self,
        room: &OwnedRoom,
        held: &mut Option<Claim>,
        purpose: Purpose,
        revision: u64,
        predecessor: Predecessor,
    ) -> Result<Claimed, ClaimError> {
        let fence = format!("{}:{revision}", self.me.instance);
        let mut past = RoomPast::default();
        let is_free = purpose == Purpose::Publisher && predecessor.holding.is_none();
        let end = if is_free { self.server.head(&room.slug).await?.filter(ends_log) } else { None };
        if let Some(end) = &end {
            // Nothing goes on: its past is of no interest.
            past.take(end);
        }
        for _ in 0..TRIES {
            past.read_on(&*self.server, &room.slug).await?;
            let (epoch, abandoned) = self.choose(purpose, &past)?;
            let known = past.epochs.get(&epoch);
            let last_seq = known.map_or(0, |known| known.last_seq);
            let record = self.owner_record(epoch, last_seq);
            let message = Message {
                room: room.slug.clone(),
                kind: MessageKind::Owner,
                fence: fence.clone(),
                id: format!("owner:{fence}:{}:{epoch}:{last_seq}", past.position),
                body: record.to_bytes(),
            };
            match self.server.append(message, past.position).await {
                Appended::Stored(position) => {
                    let former = match purpose {
                        Purpose::Publisher | Purpose::Orphan(_) => known.cloned().map(|past| (past, predecessor)),
                        Purpose::Session(_) => known.cloned().map(|past| (past, Predecessor::default())),
                        Purpose::Leftovers(_) => None,
                    };
                    let claim = Claim {
                        epoch,
                        fence,
                        position,
                        stored_seq: last_seq,
                        recorded: Instant::now(),
                        revision,
                        unsettled: Default::default(),
                        late: past.epochs.into_iter().filter(|(other, _)| *other != epoch && end.is_none()).collect(),
                    };
                    *held = Some(claim);
                    tracing::info!(session = %room.slug, %epoch, last_seq, position, "room owned by this node");
                    if let Some(abandoned) = abandoned {
                        self.end_abandoned(room, held, abandoned).await;
                    }
                    if held.is_none() {
                        return Err(ClaimError::Contended);
                    }
                    return Ok(Claimed { epoch, former: self.former(room, former).await });
                }
                // Written to meanwhile, or by us: then it is read, and followed by another.
                Appended::Refused | Appended::Unsure(_) => {
                    let key = self.server.holder(&room.slug).await?;
                    if key.is_none_or(|key| key.revision != revision) {
                        return Err(ClaimError::Contended);
                    }
                }
                Appended::Full(why) => return Err(ClaimError::Away(why)),
                Appended::TooLarge => return Err(ClaimError::Unusable("an owner record is too large".to_owned())),
            }
        }
        Err(ClaimError::Contended)
    }

    /// The epoch to write under, and one that nobody goes on with and that has not been ended.
    fn choose(&self, purpose: Purpose, past: &RoomPast) -> Result<(Epoch, Option<Epoch>), ClaimError> {
        let (owned, latest) = (past.owner.as_ref().map(|owner| owner.epoch), past.latest());
        // One of which nothing was said has not begun for anybody.
        let is_open = |epoch: &Epoch| past.epochs.get(epoch).is_some_and(|known| !known.is_ended && known.last_seq > 0);
        match purpose {
            Purpose::Leftovers(epoch) => Ok((epoch, None)),
            Purpose::Session(mine) if past.is_at_home(mine, &self.me.home) == Some(false) => {
                Err(ClaimError::Superseded)
            }
            Purpose::Session(mine) => match latest.filter(|latest| *latest > mine && is_open(latest)) {
                Some(_) => Err(ClaimError::Superseded),
                None => Ok((mine, owned.filter(|owned| *owned != mine && is_open(owned)))),
            },
            Purpose::Publisher | Purpose::Orphan(_) => {
                let open = owned.filter(is_open);
                let is_clean =
                    |open: &Epoch| past.is_at_home(*open, &self.me.home) != Some(true) && self.is_clean(*open, past);
                let goes_on = open.filter(|open| latest == Some(*open) && is_clean(open));
                Ok(match goes_on {
                    Some(epoch) => (epoch, None),
                    None => (new_epoch_after(latest), open),
                })
            }
        }
    }

    /// No number that this node has given in the epoch, in its outbox or on its way from there, will be given again.
    fn is_clean(&self, epoch: Epoch, past: &RoomPast) -> bool {
        let last = past.epochs.get(&epoch).map_or(0, |known| known.last_seq);
        let is_behind = self.handed_on.lock().get(&epoch).is_some_and(|handed_on| *handed_on > last);
        !is_behind && !self.leftovers.lock().contains(&epoch) && !self.unfinished.lock().contains(&epoch)
    }

    pub(super) fn owner_record(&self, epoch: Epoch, last_seq: u64) -> OwnerRecord {
        let Identity { node, instance, home } = self.me.clone();
        OwnerRecord { node, instance, home, epoch, last_seq }
    }

    async fn former(&self, room: &OwnedRoom, former: Option<(EpochPast, Predecessor)>) -> Option<Former> {
        let (past, Predecessor { holding, handover }) = former?;
        if let Some(Handover { clock_ms, checkpoint }) = handover {
            let (clock_ms, checkpoint) = (Some(clock_ms), Some(checkpoint));
            return Some(Former { past, clock_ms, is_handed_over: true, checkpoint });
        }
        let Some((holding, written)) = holding else {
            return Some(Former { past, clock_ms: None, is_handed_over: false, checkpoint: None });
        };
        // Both times are the server's: no node's clock is believed.
        let now = self.server.head(&room.slug).await.ok().flatten().map_or(written, |head| head.at);
        let since = (now - written).num_milliseconds().max(0) as u64;
        let clock_ms = holding.clock_ms.map(|clock_ms| clock_ms + since);
        Some(Former { past, clock_ms, is_handed_over: false, checkpoint: holding.checkpoint })
    }
}

/// The room's last session is over.
fn ends_log(head: &Logged) -> bool {
    if head.message.kind != MessageKind::Entries {
        return false;
    }
    serde_json::from_slice::<LogBatch>(&head.message.body).is_ok_and(|batch| {
        let is_end = |entry: &Entry| matches!(entry, Entry::Status(change) if change.status == Status::Ended);
        batch.transcripts.iter().any(is_end) || batch.record.is_some_and(|record| record.state == SessionState::Ended)
    })
}

/// A new epoch that is later than every other, whatever this node's clock says.
fn new_epoch_after(latest: Option<Epoch>) -> Epoch {
    let now = Uuid::now_v7();
    match latest.filter(|latest| now <= *latest) {
        None => now,
        Some(latest) => {
            let millis = (latest.as_u128() >> 80) as u64;
            Builder::from_unix_timestamp_millis(millis + 1, &rand::random()).into_uuid()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_new_epoch_is_later_than_those_of_nodes_whose_clocks_are_ahead() {
        let ahead = Builder::from_unix_timestamp_millis(u64::from(u32::MAX) * 1000, &[7; 10]).into_uuid();
        let next = new_epoch_after(Some(ahead));
        assert!(next > ahead && next.get_version_num() == 7, "{next}");
        assert!(new_epoch_after(Some(next)) > next);
        assert!(new_epoch_after(None) < ahead);
    }
}
