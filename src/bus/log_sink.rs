//! The sink of sessions whose lines are shown by the node that numbers them: nobody sees a line before the log has it.
//!
//! These are the sessions of third parties at nodes with viewers. An ingest node has no viewers, so its numbers may be
//! provisional until its forwarder has brought them into the log; here they may not.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::future::BoxFuture;
use tokio::sync::{mpsc, oneshot};
use tokio::time::Instant;

use super::log_server::Topic;
use super::ownership::Ownership;
use super::{Batch, Outcome, wire};
use crate::transcript::{Durability, Entry, EntrySink, Epoch, Slug};

/// Most entries of an append.
const MAX_ENTRIES: usize = 200;
/// Entries that were told to be stored nowhere and are tried again with those after them.
const MAX_PENDING: usize = 1000;
/// Longest wait of an entry for the log: whoever has posted it is waiting, too.
const PATIENCE: Duration = Duration::from_secs(3);
const PAUSE: Duration = Duration::from_millis(50);

type Waiting = (Arc<Entry>, oneshot::Sender<Durability>);

/// Appends the entries of one session to its room's log.
pub struct LogSink {
    ownership: Arc<Ownership>,
    slug: Slug,
    epoch: Epoch,
    queue: mpsc::UnboundedSender<Waiting>,
}

impl LogSink {
    /// Its work ends with it. Call it within an actix runtime.
    pub fn start(ownership: Arc<Ownership>, slug: Slug, epoch: Epoch) -> Self {
        let (queue, waiting) = mpsc::unbounded_channel();
        let writer = Writer {
            ownership: ownership.clone(),
            slug: slug.clone(),
            epoch,
            pending: Vec::new(),
            most: MAX_ENTRIES,
            begins: None,
        };
        actix_rt::spawn(writer.run(waiting));
        Self { ownership, slug, epoch, queue }
    }
}

impl EntrySink for LogSink {
    fn append(&self, entry: Arc<Entry>) -> BoxFuture<'static, Durability> {
        let (done, stored) = oneshot::channel();
        let queued = self.queue.send((entry, done));
        Box::pin(async move {
            match queued {
                Ok(()) => stored.await.unwrap_or(Durability::Nowhere),
                Err(_) => Durability::Nowhere,
            }
        })
    }

    fn show(&self, interim: &Entry) {
        let batch = Batch::new(self.slug.clone(), self.epoch);
        let body = wire::body(&batch, &[&[interim.to_json()]]);
        self.ownership.server().tell(Topic::Interims(self.slug.clone()), Bytes::from(body));
    }
}

struct Writer {
    ownership: Arc<Ownership>,
    slug: Slug,
    epoch: Epoch,
    /// Entries with a number that the log does not have, in order: it takes none after them before it has these.
    pending: Vec<Arc<Entry>>,
    /// Most entries that the log server takes at once.
    most: usize,
    /// The number after one that the log will never have.
    begins: Option<u64>,
}

impl Writer {
    async fn run(mut self, mut waiting: mpsc::UnboundedReceiver<Waiting>) {
        while let Some(first) = waiting.recv().await {
            let mut new = vec![first];
            while let Some(next) = (new.len() < MAX_ENTRIES).then(|| waiting.try_recv().ok()).flatten() {
                new.push(next);
            }
            for (entry, _) in &new {
                // One that is posted again to be made durable is among them already.
                if self.pending.iter().all(|one| one.id() != entry.id()) {
                    self.pending.push(entry.clone());
                }
            }
            self.pending.sort_by_key(|entry| entry.seq());
            let is_stored = self.store().await;
            let durability = if is_stored { Durability::Outbox } else { Durability::Nowhere };
            for (_, done) in new {
                // The room may have died; its successor hands the entry over again.
                let _ = done.send(durability);
            }
            if self.pending.len() > MAX_PENDING {
                tracing::error!(session = %self.slug, entries = self.pending.len(), "the log takes no lines; they are given up");
                self.pending.clear();
            }
        }
    }

    /// True when everything that was pending is in the log.
    async fn store(&mut self) -> bool {
        let deadline = Instant::now() + PATIENCE;
        while !self.pending.is_empty() {
            let entries = self.pending.iter().take(self.most).map(|entry| entry.to_json()).collect();
            let batch = Batch { entries, begins: self.begins, ..Batch::new(self.slug.clone(), self.epoch) };
            let appended = tokio::time::timeout_at(deadline, self.ownership.append(&batch)).await;
            let Ok(outcome) = appended else { return false };
            // In a room that is another node's now, lines have other numbers than here: who posted them posts them there.
            if self.ownership.session_of(&self.slug) != Some(self.epoch) {
                return false;
            }
            match outcome {
                Outcome::Stored { .. } => {
                    self.pending.drain(..batch.entries.len());
                    (self.most, self.begins) = (MAX_ENTRIES, None);
                }
                Outcome::TooLarge if batch.entries.len() > 1 => self.most = batch.entries.len() / 2,
                Outcome::TooLarge => {
                    let refused = self.pending.remove(0);
                    self.begins = refused.seq().map(|seq| seq + 1);
                    let bytes = batch.entries.first().map_or(0, |json| json.len());
                    tracing::error!(session = %self.slug, id = refused.id(), bytes, "a line is too large for the log server; it is not stored");
                    return false;
                }
                Outcome::Refused { expected, .. } => {
                    let before = self.pending.len();
                    self.pending.retain(|entry| entry.seq() >= Some(expected));
                    if self.pending.len() == before {
                        tracing::error!(session = %self.slug, expected, "lines before these are gone");
                        return false;
                    }
                }
                other if Instant::now() >= deadline => {
                    tracing::warn!(session = %self.slug, reason = ?other, "lines could not be brought into the log");
                    return false;
                }
                _ => tokio::time::sleep(PAUSE).await,
            }
        }
        true
    }
}
