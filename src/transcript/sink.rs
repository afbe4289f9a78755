//! The place where a `TranscriptRoom` makes an entry durable before anybody sees it.

use std::sync::Arc;

use futures_util::future::BoxFuture;

use super::entry::Entry;

/// The place in which an entry is safe once its append has returned.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Durability {
    /// In the outbox: survives `kill -9`, will reach the database.
    Outbox,
    /// The outbox could not take it (disk full); it is in the database.
    Database,
    /// Neither could take it. It is delivered with `"durable":false`.
    Nowhere,
}

/// Appends in the order of the calls. A dropped future does not undo the append.
pub trait EntrySink: Send + Sync {
    fn append(&self, entry: Arc<Entry>) -> BoxFuture<'static, Durability>;

    /// Appends entries that belong together, if it can all of them or none.
    fn append_all(&self, entries: Vec<Arc<Entry>>) -> Vec<BoxFuture<'static, Durability>> {
        entries.into_iter().map(|entry| self.append(entry)).collect()
    }

    /// An interim of a third party is shown here; whoever else has viewers of the room is told.
    fn show(&self, _interim: &Entry) {}
}

/// Of entries that the log server of a cluster has already: nodes with a database take the rows from there.
pub struct AlreadyDurable;

impl EntrySink for AlreadyDurable {
    fn append(&self, _: Arc<Entry>) -> BoxFuture<'static, Durability> {
        Box::pin(std::future::ready(Durability::Outbox))
    }
}
