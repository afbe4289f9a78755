//! Reads a log as viewers' nodes do, and says what is wrong with it.

use std::collections::{BTreeMap, BTreeSet};

use stenocast::bus::log_server::{Logged, MessageKind};
use stenocast::bus::ownership::OwnerRecord;
use stenocast::bus::wire::LogBatch;
use stenocast::transcript::{Epoch, Slug};

/// One room, as far as it was read.
#[derive(Default)]
struct Room {
    fence: Option<String>,
    last: BTreeMap<Epoch, u64>,
}

/// Entries that were read, of all rooms.
#[derive(Default)]
pub struct Reader {
    rooms: BTreeMap<Slug, Room>,
    pub read: BTreeSet<(Slug, Epoch, String)>,
    pub owners: usize,
    /// Messages of somebody who was not the owner.
    pub foreign: usize,
}

impl Reader {
    pub fn of(log: &[Logged]) -> Result<Self, String> {
        let mut reader = Self::default();
        for logged in log {
            reader.take(logged).map_err(|fault| format!("at {}: {fault}", logged.position))?;
        }
        Ok(reader)
    }

    fn take(&mut self, logged: &Logged) -> Result<(), String> {
        let message = &logged.message;
        let room = self.rooms.entry(message.room.clone()).or_default();
        if message.kind == MessageKind::Owner {
            let owner: OwnerRecord = serde_json::from_slice(&message.body).map_err(|e| e.to_string())?;
            let last = room.last.get(&owner.epoch).copied().unwrap_or(0);
            if owner.last_seq != last {
                return Err(format!(
                    "the owner record says {} and the log of {} has {last}",
                    owner.last_seq, owner.epoch
                ));
            }
            room.fence = Some(message.fence.clone());
            self.owners += 1;
            return Ok(());
        }
        if room.fence.as_ref() != Some(&message.fence) {
            self.foreign += 1;
            return Ok(());
        }
        let batch = LogBatch::parse(&message.room, &message.body).map_err(|e| e.to_string())?;
        for entry in &batch.transcripts {
            let (epoch, seq) = (entry.epoch(), entry.seq().ok_or("an entry without a number")?);
            let last = room.last.entry(epoch).or_default();
            if seq != *last + 1 {
                return Err(format!("{seq} of {epoch} follows {last}, {}", entry.id()));
            }
            *last = seq;
            if !self.read.insert((message.room.clone(), epoch, entry.id().to_owned())) {
                return Err(format!("{} of {epoch} comes twice", entry.id()));
            }
        }
        Ok(())
    }
}
