//! Entries whose writer may not number them any more: they are handed to the room's owner, who does.

use chrono::Utc;

use super::append::{digest, last_seq, unclaimed, unstored};
use super::claim::Purpose;
use super::messages::{Holding, LateBatch, NodeAnswer, NodeRequest};
use super::past::RoomPast;
use super::{Claim, LATE_TIMEOUT, OwnedRoom, Ownership};
use crate::bus::log_server::{Appended, Message, MessageKind, Unanswered};
use crate::bus::{Batch, Outcome, wire};
use crate::transcript::{Entry, Epoch, SessionRecord, SessionState, Slug, Status, StatusChange};

/// The outcome of a late append.
enum Late {
    Stored,
    Not(Outcome),
    /// The room is not this node's any more.
    Lost,
}

impl Ownership {
    /// Brings a batch into the log of a room that has another owner, or another session.
    pub(super) async fn hand_on(&self, room: &OwnedRoom, held: &mut Option<Claim>, batch: &Batch) -> Outcome {
        let stored = Outcome::Stored { last_seq: batch.entries.len() as u64 };
        if batch.is_fleeting() {
            return stored;
        }
        self.leftovers.lock().insert(batch.epoch);
        if let Some(last) = last_seq(&batch.entries) {
            let mut handed_on = self.handed_on.lock();
            let known = handed_on.entry(batch.epoch).or_default();
            *known = last.max(*known);
        }
        let late = match LateBatch::of(batch) {
            Ok(late) => late,
            Err(error) => return Outcome::Incompatible(format!("an entry of our own is unreadable: {error}")),
        };
        if held.is_none() {
            let owner = match self.server.holder(&room.slug).await {
                Ok(key) => key.and_then(|key| serde_json::from_slice::<Holding>(&key.value).ok()),
                Err(error) => return Outcome::Unsure(error.to_string()),
            };
            match owner.filter(|owner| owner.instance != self.me.instance) {
                Some(owner) => return self.hand_to(&owner, late).await,
                None => match self.claim_locked(room, held, Purpose::Leftovers(batch.epoch)).await {
                    Ok(_) => {}
                    Err(error) => return unclaimed(error),
                },
            }
        }
        match self.append_late(room, held, late).await {
            Late::Stored => stored,
            Late::Not(outcome) => outcome,
            Late::Lost => Outcome::Unsure("the room has another owner now".to_owned()),
        }
    }

    async fn hand_to(&self, owner: &Holding, late: LateBatch) -> Outcome {
        let (room, entries) = (late.room.clone(), late.entries.len());
        let later = |why: String| Outcome::Full { retry_after: None, room: true, why };
        match self.ask(&owner.instance, &NodeRequest::Late(Box::new(late)), LATE_TIMEOUT).await {
            Ok(NodeAnswer::Taken) => {
                tracing::info!(session = %room, entries, node = owner.node, "entries were handed to the room's owner");
                Outcome::Stored { last_seq: entries as u64 }
            }
            Ok(NodeAnswer::Unavailable { why }) => later(why),
            Ok(_) => later(format!("{} does not own the room any more", owner.node)),
            Err(Unanswered::Away(why)) => Outcome::Unsure(why),
            // Whoever adopts its rooms will take them.
            Err(error) => later(format!("{} owns the room: {error}", owner.node)),
        }
    }

    /// Another node's leftovers of an epoch that has no session here. None: the room is not this node's.
    pub async fn take_late(&self, late: LateBatch) -> Option<Outcome> {
        let room = self.known_room(&late.room)?;
        let mut held = room.claim.lock().await;
        held.as_ref()?;
        match self.append_late(&room, &mut held, late).await {
            Late::Stored => Some(Outcome::Stored { last_seq: 0 }),
            Late::Not(outcome) => Some(outcome),
            Late::Lost => None,
        }
    }

    /// Hands a third party's lines to the node whose session they are for. None: there is no such node.
    pub async fn post(&self, room: &Slug, entries: Vec<Entry>) -> Result<Option<NodeAnswer>, Unanswered> {
        let key = self.server.holder(room).await.map_err(|error| Unanswered::Away(error.to_string()))?;
        let owner = key.and_then(|key| serde_json::from_slice::<Holding>(&key.value).ok());
        let Some(owner) = owner.filter(|owner| owner.instance != self.me.instance) else { return Ok(None) };
        let lines = LateBatch { room: room.clone(), epoch: owner.epoch, entries, record: None };
        match self.ask(&owner.instance, &NodeRequest::Post(Box::new(lines)), LATE_TIMEOUT).await {
            // Lines of third parties go on wherever they are posted next.
            Err(Unanswered::Nobody) if owner.is_of_third_parties() => Ok(None),
            answer => answer.map(Some),
        }
    }

    /// Numbers what the log does not have yet after the epoch's last entry.
    async fn append_late(&self, room: &OwnedRoom, held: &mut Option<Claim>, late: LateBatch) -> Late {
        let Some(claim) = held.as_mut() else { return Late::Lost };
        let LateBatch { epoch, entries, record, .. } = late;
        if epoch == claim.epoch || !claim.late.contains_key(&epoch) {
            let mut past = RoomPast::default();
            if let Err(error) = past.read_on(&*self.server, &room.slug).await {
                return Late::Not(Outcome::Unsure(error.to_string()));
            }
            claim.late.insert(epoch, past.epochs.remove(&epoch).unwrap_or_default());
        }
        let known = &claim.late[&epoch];
        let is_open_here = epoch == claim.epoch && room.session.lock().is_some();
        let mut seq = known.last_seq;
        let mut new = Vec::new();
        for mut entry in entries {
            if entry.is_interim() || known.ids.contains_key(entry.id()) {
                continue;
            }
            // Each gets a number, so that those that its writer gave are behind the log's; but what that one says of its own
            // state is no news of a log that has ended.
            if let Entry::Status(change) = &mut entry
                && known.is_ended
            {
                change.status = Status::Ended;
            }
            seq += 1;
            entry.set_seq(seq);
            new.push(entry);
        }
        let record = record.filter(|record| !is_open_here && is_news(record, known.is_ended, seq));
        if new.is_empty() && record.is_none() {
            return Late::Stored;
        }
        let record = record.map(|record| SessionRecord { last_seq: seq, ..record });
        let batch =
            Batch { entries: new.iter().map(Entry::to_json).collect(), record, ..Batch::new(room.slug.clone(), epoch) };
        let message = Message {
            room: room.slug.clone(),
            kind: MessageKind::Entries,
            fence: claim.fence.clone(),
            id: format!("{epoch}:late:{}-{seq}:{}:{}", known.last_seq + 1, claim.position, digest(&batch)),
            body: wire::body(&batch, &[&batch.entries]).into(),
        };
        let id = message.id.clone();
        let appended = self.server.append(message, claim.position).await;
        let is_stored = match appended {
            Appended::Stored(position) => {
                self.stored_at(position);
                claim.position = claim.position.max(position);
                true
            }
            Appended::Refused => match self.refused(room, held, &id, 0).await {
                Some(Outcome::Stored { .. }) => true,
                Some(_) => false,
                None => return Late::Lost,
            },
            other => {
                // It may be in the log, or may still come into it.
                claim.late.remove(&epoch);
                return Late::Not(unstored(other));
            }
        };
        let Some(claim) = held.as_mut() else { return Late::Lost };
        if !is_stored {
            // Read anew at the next try.
            claim.late.remove(&epoch);
            return Late::Not(Outcome::Unsure("the room's log has moved on".to_owned()));
        }
        let known = claim.late.entry(epoch).or_default();
        for entry in new {
            let seq = entry.seq().unwrap_or(0);
            known.add(entry, seq);
        }
        known.is_ended |= batch.record.is_some_and(|record| record.state == SessionState::Ended);
        if epoch == claim.epoch {
            claim.stored_seq = claim.stored_seq.max(seq);
            // The numbers that its session's rows have in the outbox are given away.
            self.leftovers.lock().insert(epoch);
        }
        Late::Stored
    }

    /// Nobody goes on with this epoch.
    pub(super) async fn end_abandoned(&self, room: &OwnedRoom, held: &mut Option<Claim>, epoch: Epoch) {
        let ended = ended_status(&room.slug, epoch);
        let late = LateBatch { room: room.slug.clone(), epoch, entries: vec![ended], record: None };
        if let Late::Not(outcome) = self.append_late(room, held, late).await {
            tracing::warn!(session = %room.slug, %epoch, reason = ?outcome, "an abandoned session could not be ended");
        }
    }
}

fn is_news(record: &SessionRecord, is_ended: bool, seq: u64) -> bool {
    record.state == SessionState::Ended && (!is_ended || record.last_seq <= seq)
}

fn ended_status(slug: &Slug, epoch: Epoch) -> Entry {
    let at = Utc::now().timestamp_millis();
    Entry::Status(StatusChange {
        session: slug.clone(),
        epoch,
        seq: None,
        id: format!("superseded-{at}"),
        status: Status::Ended,
        reason: Some("superseded".to_owned()),
        durable: true,
    })
}
