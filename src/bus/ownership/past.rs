//! What a room's log holds, read from its messages in order.

use std::collections::{HashMap, VecDeque};

use chrono::{DateTime, Utc};

use super::messages::OwnerRecord;
use crate::bus::log_server::{LogServer, Logged, MessageKind, Position, ServerError};
use crate::bus::wire::LogBatch;
use crate::transcript::transcript_log::MAX_KNOWN_IDS;
use crate::transcript::{Entry, Epoch, SessionState, Slug, Status};

/// Messages read at a time.
const PAGE: usize = 256;
/// Newest entries of an epoch that are kept whole.
const RECENT: usize = 1000;

/// A room's log up to `position`.
#[derive(Debug, Clone, Default)]
pub struct RoomPast {
    pub position: Position,
    /// When the last message was written, by the server's clock.
    pub at: Option<DateTime<Utc>>,
    /// The latest owner record.
    pub owner: Option<OwnerRecord>,
    fence: Option<String>,
    /// Who has owned each epoch last, or was the room's owner when its last entries were numbered.
    homes: HashMap<Epoch, String>,
    pub epochs: HashMap<Epoch, EpochPast>,
}

/// What the log holds of one epoch.
#[derive(Debug, Clone, Default)]
pub struct EpochPast {
    pub last_seq: u64,
    pub ids: HashMap<String, u64>,
    pub recent: VecDeque<Entry>,
    pub is_ended: bool,
    pub started_at: Option<DateTime<Utc>>,
}

impl RoomPast {
    /// Reads on to the end.
    pub async fn read_on(&mut self, server: &dyn LogServer, room: &Slug) -> Result<(), ServerError> {
        loop {
            let page = server.read(room, self.position, PAGE).await?;
            if page.is_empty() {
                return Ok(());
            }
            page.iter().for_each(|logged| self.take(logged));
        }
    }

    /// Takes the next message.
    pub fn take(&mut self, logged: &Logged) {
        self.position = logged.position;
        self.at = Some(logged.at);
        let message = &logged.message;
        match message.kind {
            MessageKind::Owner => {
                self.fence = Some(message.fence.clone());
                self.owner = serde_json::from_slice(&message.body).ok().or(self.owner.take());
                if let Some(owner) = &self.owner {
                    self.homes.insert(owner.epoch, owner.home.clone());
                    let epoch = self.epochs.entry(owner.epoch).or_default();
                    epoch.last_seq = epoch.last_seq.max(owner.last_seq);
                }
            }
            // Written by somebody who was not the owner: nobody takes it.
            MessageKind::Entries if self.fence.as_ref().is_some_and(|fence| *fence != message.fence) => {}
            MessageKind::Entries => match serde_json::from_slice::<LogBatch>(&message.body) {
                Ok(batch) => {
                    if let Some(owner) = &self.owner {
                        self.homes.insert(batch.epoch, owner.home.clone());
                    }
                    self.epochs.entry(batch.epoch).or_default().take(batch);
                }
                Err(error) => {
                    tracing::error!(session = %message.room, position = logged.position, %error, "a message of the log is unreadable");
                }
            },
        }
    }

    /// Its numbers were given by this home last.
    pub fn is_at_home(&self, epoch: Epoch, home: &str) -> Option<bool> {
        self.homes.get(&epoch).map(|last| last == home)
    }

    /// The latest of all.
    pub fn latest(&self) -> Option<Epoch> {
        self.epochs.keys().max().copied()
    }
}

impl EpochPast {
    fn take(&mut self, batch: LogBatch) {
        for entry in batch.transcripts {
            let Some(seq) = entry.seq() else { continue };
            self.add(entry, seq);
        }
        if let Some(record) = batch.record {
            self.started_at = Some(record.started_at);
            self.is_ended |= record.state == SessionState::Ended;
        }
    }

    pub(super) fn add(&mut self, entry: Entry, seq: u64) {
        self.last_seq = self.last_seq.max(seq);
        self.is_ended |= matches!(&entry, Entry::Status(change) if change.status == Status::Ended);
        if self.ids.len() < MAX_KNOWN_IDS {
            self.ids.insert(entry.id().to_owned(), seq);
        }
        self.recent.push_back(entry);
        if self.recent.len() > RECENT {
            self.recent.pop_front();
        }
    }
}
