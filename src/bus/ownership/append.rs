//! Writing the log of a room that this node owns, or believes to own.

use std::collections::HashSet;

use bytes::Bytes;
use bytestring::ByteString;
use serde::Deserialize;
use sha2::{Digest, Sha256};
use tokio::time::Instant;

use super::claim::Purpose;
use super::past::RoomPast;
use super::{Claim, ClaimError, LateBatch, OwnedRoom, Ownership};
use crate::bus::log_server::{Appended, Logged, Message, MessageKind, Position, ServerError, Topic};
use crate::bus::wire::{LogBatch, body};
use crate::bus::{Batch, Outcome};
use crate::transcript::{Entry, Slug};

/// Positions that are remembered of entries that the database may not have.
const MAX_UNSETTLED: usize = 4096;

impl Ownership {
    /// Brings a batch into its room's log, by whatever way there is now: as its owner, or by handing it to the owner.
    pub async fn append(&self, batch: &Batch) -> Outcome {
        let room = self.room(&batch.slug);
        let mut held = room.claim.lock().await;
        let session = *room.session.lock();
        if held.as_ref().is_none_or(|claim| claim.epoch != batch.epoch) && session == Some(batch.epoch) {
            if batch.is_fleeting() {
                return Outcome::Stored { last_seq: 0 };
            }
            match self.claim_locked(&room, &mut held, Purpose::Session(batch.epoch)).await {
                Ok(_) => {}
                Err(ClaimError::Superseded | ClaimError::Busy(_)) => {
                    self.lose(&room, &mut held, "a later session of the room goes on elsewhere");
                }
                Err(error) => return unclaimed(error),
            }
        }
        // A room that was claimed for leftovers has no session: their numbers are not to be relied on.
        let is_owned = held.as_ref().is_some_and(|claim| claim.epoch == batch.epoch)
            && !self.leftovers.lock().contains(&batch.epoch);
        if is_owned && let Some(outcome) = self.append_owned(&room, &mut held, batch).await {
            return outcome;
        }
        // It is not this node's, or the epoch is one that has a session nowhere.
        self.hand_on(&room, &mut held, batch).await
    }

    /// None: the room was lost.
    async fn append_owned(&self, room: &OwnedRoom, held: &mut Option<Claim>, batch: &Batch) -> Option<Outcome> {
        let claim = held.as_mut()?;
        if batch.is_fleeting() {
            self.tell_interims(batch);
            return Some(Outcome::Stored { last_seq: claim.stored_seq });
        }
        let expected = claim.stored_seq + 1;
        let (first, last) = match (first_seq(&batch.entries), last_seq(&batch.entries)) {
            (Some(first), Some(last)) => (first, last),
            _ => (expected, claim.stored_seq),
        };
        if first < expected {
            match self.are_others(&room.slug, batch).await {
                Ok(false) => {}
                Ok(true) => {
                    self.lose(room, held, "its numbers are those of other entries in the log");
                    return None;
                }
                Err(error) => return Some(Outcome::Unsure(error.to_string())),
            }
        }
        if first != expected && (first < expected || batch.begins != Some(first)) {
            return Some(Outcome::Refused { expected, why: format!("the log goes on with {expected}") });
        }
        let message = entries_message(room, claim, batch);
        let id = message.id.clone();
        match self.server.append(message, claim.position).await {
            Appended::Stored(position) => {
                self.stored_at(position);
                claim.stored(position, last);
                self.tell_interims(batch);
                Some(Outcome::Stored { last_seq: last })
            }
            Appended::Refused => self.refused(room, held, &id, last).await,
            other => Some(unstored(other)),
        }
    }

    /// The log has other entries under the numbers of these, which were given where nobody knew of them.
    async fn are_others(&self, room: &Slug, batch: &Batch) -> Result<bool, ServerError> {
        let mut past = RoomPast::default();
        past.read_on(&*self.server, room).await?;
        let Some(known) = past.epochs.get(&batch.epoch) else { return Ok(false) };
        let taken: HashSet<u64> = known.ids.values().copied().collect();
        let mut entries = batch.entries.iter().filter_map(|json| serde_json::from_str::<Numbered>(json).ok());
        Ok(entries.any(|Numbered { id, seq }| {
            let Some(seq) = seq else { return false };
            taken.contains(&seq) && known.ids.get(&id) != Some(&seq)
        }))
    }

    fn tell_interims(&self, batch: &Batch) {
        if !batch.interims.is_empty() {
            let interims = Batch { entries: Vec::new(), record: None, ..batch.clone() };
            let body = body(&interims, &[&interims.interims]);
            self.server.tell(Topic::Interims(batch.slug.clone()), Bytes::from(body));
        }
    }

    /// The room's last message is another one than was thought: ours, of which the answer was lost; another owner's; or an
    /// earlier one, when the log has lost its end. None: the room was lost.
    pub(super) async fn refused(
        &self,
        room: &OwnedRoom,
        held: &mut Option<Claim>,
        id: &str,
        last: u64,
    ) -> Option<Outcome> {
        let claim = held.as_mut()?;
        let head = match self.server.head(&room.slug).await {
            Ok(head) => head,
            Err(error) => return Some(Outcome::Unsure(error.to_string())),
        };
        match head {
            Some(head) if head.message.id == id => {
                self.stored_at(head.position);
                claim.stored(head.position, last);
                Some(Outcome::Stored { last_seq: last })
            }
            Some(head) if head.message.fence == claim.fence && head.position > claim.position => {
                self.stored_at(head.position);
                claim.is_at(&head);
                let expected = claim.stored_seq + 1;
                Some(Outcome::Refused { expected, why: format!("the log goes on with {expected}") })
            }
            Some(head) if head.message.fence != claim.fence && head.position > claim.position => {
                self.lose(room, held, "another node has taken it over");
                None
            }
            // Its end is gone: purged, aged, or lost by the server.
            _ => Some(self.own_again(room, held).await),
        }
    }

    /// The log does not reach up to where it did. Nothing can be said to be fenced by messages that are gone: the owner
    /// record is written anew, and what is missing is to be sent again.
    async fn own_again(&self, room: &OwnedRoom, held: &mut Option<Claim>) -> Outcome {
        let Some(claim) = held.as_mut() else { return Outcome::Unsure("the room was lost".to_owned()) };
        let mut past = RoomPast::default();
        if let Err(error) = past.read_on(&*self.server, &room.slug).await {
            return Outcome::Unsure(error.to_string());
        }
        match self.server.holder(&room.slug).await {
            Ok(Some(key)) if key.revision == claim.revision => {}
            // The server may have been made anew: then there is no holding either, and who holds it first has it.
            Ok(_) => {
                let epoch = claim.epoch;
                *held = None;
                tracing::error!(session = %room.slug, %epoch, "the room's log has lost its end");
                return Outcome::Unsure("the room's log has lost its end".to_owned());
            }
            Err(error) => return Outcome::Unsure(error.to_string()),
        }
        let known = past.epochs.get(&claim.epoch).map_or(0, |known| known.last_seq);
        // What is in the database needs no second place in the log.
        let last_seq = known.max(claim.settled_seq());
        let record = self.owner_record(claim.epoch, last_seq);
        let message = Message {
            room: room.slug.clone(),
            kind: MessageKind::Owner,
            fence: claim.fence.clone(),
            id: format!("owner:{}:again:{}", claim.fence, past.position),
            body: record.to_bytes(),
        };
        match self.server.append(message, past.position).await {
            Appended::Stored(position) => {
                tracing::error!(
                    session = %room.slug, epoch = %claim.epoch, last_seq, stored_seq = claim.stored_seq,
                    "the room's log had lost its end; it is written again"
                );
                claim.position = position;
                claim.stored_seq = last_seq;
                claim.unsettled.retain(|(_, seq)| *seq <= last_seq);
                Outcome::Refused { expected: last_seq + 1, why: "the log has lost its end".to_owned() }
            }
            Appended::Refused => Outcome::Unsure("the room's log changes".to_owned()),
            other => unstored(other),
        }
    }

    /// Writes the owner record once more.
    pub(super) async fn record_again(&self, room: &OwnedRoom, held: &mut Option<Claim>) {
        let Some(claim) = held.as_mut() else { return };
        let message = Message {
            room: room.slug.clone(),
            kind: MessageKind::Owner,
            fence: claim.fence.clone(),
            id: format!("owner:{}:again:{}", claim.fence, claim.position),
            body: self.owner_record(claim.epoch, claim.stored_seq).to_bytes(),
        };
        let id = message.id.clone();
        match self.server.append(message, claim.position).await {
            Appended::Stored(position) => {
                claim.position = claim.position.max(position);
                claim.recorded = Instant::now();
            }
            Appended::Refused => drop(self.refused(room, held, &id, 0).await),
            other => tracing::debug!(session = %room.slug, reason = ?other, "the owner record was not repeated"),
        }
    }

    /// Everything up to this position is in the database.
    pub async fn settled(&self, position: Position) {
        let rooms: Vec<_> = self.rooms.lock().values().cloned().collect();
        for room in rooms {
            if let Some(claim) = room.claim.lock().await.as_mut() {
                claim.settle(position);
            }
        }
    }
}

impl Claim {
    pub(super) fn stored(&mut self, position: Position, last: u64) {
        // A repetition may be answered with the place of the first one: the room's last message is never before ours.
        self.position = self.position.max(position);
        if last > self.stored_seq {
            self.stored_seq = last;
            self.unsettled.push_back((position, last));
            if self.unsettled.len() > MAX_UNSETTLED {
                self.unsettled.pop_front();
            }
        }
    }

    /// This one of ours is the last message.
    fn is_at(&mut self, head: &Logged) {
        self.position = head.position;
        // It may be of another epoch than its session's.
        self.late.clear();
        let batch = serde_json::from_slice::<LogBatch>(&head.message.body).ok();
        if let Some(batch) = batch.filter(|batch| batch.epoch == self.epoch) {
            let last = batch.transcripts.last().and_then(Entry::seq);
            self.stored(head.position, last.unwrap_or(0));
        }
    }

    fn settle(&mut self, position: Position) {
        // The last one stays: it says up to where all is settled.
        while self.unsettled.get(1).is_some_and(|(next, _)| *next <= position) {
            self.unsettled.pop_front();
        }
        if let Some(front) = self.unsettled.front_mut().filter(|(at, _)| *at <= position) {
            front.0 = 0;
        }
    }

    /// Every number up to it is in the database, as far as is known.
    fn settled_seq(&self) -> u64 {
        match self.unsettled.front() {
            None => self.stored_seq,
            Some((0, seq)) => *seq,
            Some((_, seq)) => seq.saturating_sub(1).min(self.stored_seq),
        }
    }
}

/// Names the content of a batch.
pub(super) fn digest(batch: &Batch) -> String {
    let mut hash = Sha256::new();
    for json in &batch.entries {
        hash.update(json.as_bytes());
        hash.update([0]);
    }
    hash.update(serde_json::to_vec(&batch.record).unwrap_or_default());
    hex::encode(&hash.finalize()[..12])
}

fn entries_message(room: &OwnedRoom, claim: &Claim, batch: &Batch) -> Message {
    let (first, last) = (first_seq(&batch.entries).unwrap_or(0), last_seq(&batch.entries).unwrap_or(0));
    Message {
        room: room.slug.clone(),
        kind: MessageKind::Entries,
        fence: claim.fence.clone(),
        id: format!("{}:{first}-{last}:{}", batch.epoch, digest(batch)),
        body: body(batch, &[&batch.entries]).into(),
    }
}

#[derive(Deserialize)]
struct Numbered {
    #[serde(default)]
    id: String,
    seq: Option<u64>,
}

fn seq_of(json: &ByteString) -> Option<u64> {
    serde_json::from_str::<Numbered>(json).ok()?.seq
}

fn first_seq(entries: &[ByteString]) -> Option<u64> {
    entries.first().and_then(seq_of)
}

pub(super) fn last_seq(entries: &[ByteString]) -> Option<u64> {
    entries.last().and_then(seq_of)
}

pub(super) fn unstored(appended: Appended) -> Outcome {
    match appended {
        Appended::Full(why) => Outcome::Full { retry_after: None, room: false, why },
        Appended::TooLarge => Outcome::TooLarge,
        Appended::Unsure(why) => Outcome::Unsure(why),
        Appended::Stored(_) | Appended::Refused => Outcome::Unsure("the room's log changes".to_owned()),
    }
}

pub(super) fn unclaimed(error: ClaimError) -> Outcome {
    let why = error.to_string();
    match error {
        ClaimError::Away(_) => Outcome::Unsure(why),
        ClaimError::Unusable(_) => Outcome::Incompatible(why),
        ClaimError::Busy(_) | ClaimError::Superseded | ClaimError::Contended => {
            Outcome::Full { retry_after: None, room: true, why }
        }
    }
}

impl LateBatch {
    /// What a batch says, without its numbers' meaning.
    pub(super) fn of(batch: &Batch) -> Result<Self, serde_json::Error> {
        let entries: Result<Vec<Entry>, _> = batch.entries.iter().map(|json| serde_json::from_str(json)).collect();
        Ok(Self { room: batch.slug.clone(), epoch: batch.epoch, entries: entries?, record: batch.record.clone() })
    }
}
