//! Makes the entries of rooms durable: in the outbox; where that fails, the database itself; else nowhere.

use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use futures_util::FutureExt;
use futures_util::future::BoxFuture;

use super::error::StoreError;
use super::rows::TranscriptRow;
use super::store::Store;
use crate::transcript::outbox::{Outbox, OutboxError, Record};
use crate::transcript::{Durability, Entry, EntrySink, SessionRecord};

/// Longest wait of an entry for the database when the outbox does not take it: viewers are waiting for it.
const FALLBACK_TIMEOUT: Duration = Duration::from_secs(1);

/// Appends in the order of the calls. Without a store (`SERVER_MODE=rtmp`) there is no way round a full disk.
#[derive(Clone)]
pub struct DurableSink {
    outbox: Outbox,
    store: Option<Store>,
}

impl DurableSink {
    pub fn new(outbox: Outbox, store: Option<Store>) -> Self {
        Self { outbox, store }
    }

    /// A session has begun, changed or ended. In order with the entries; a dropped future does not undo it.
    pub fn save_session(&self, session: SessionRecord) -> BoxFuture<'static, Durability> {
        self.put(Record::Session(Arc::new(session)))
    }

    fn put(&self, record: Record) -> BoxFuture<'static, Durability> {
        // Queued here and now, before the future is polled.
        let appended = self.outbox.append(&record);
        self.settle(record, appended)
    }

    fn settle(
        &self,
        record: Record,
        appended: impl Future<Output = Result<u64, OutboxError>> + Send + 'static,
    ) -> BoxFuture<'static, Durability> {
        let store = self.store.clone();
        async move {
            if appended.await.is_ok() {
                return Durability::Outbox;
            }
            match fall_back(store, record).await {
                Ok(()) => Durability::Database,
                Err(error) => {
                    tracing::error!(%error, "an entry could be stored neither in the outbox nor in the database");
                    Durability::Nowhere
                }
            }
        }
        .boxed()
    }
}

impl EntrySink for DurableSink {
    fn append(&self, entry: Arc<Entry>) -> BoxFuture<'static, Durability> {
        self.put(Record::Entry(entry))
    }

    fn append_all(&self, entries: Vec<Arc<Entry>>) -> Vec<BoxFuture<'static, Durability>> {
        let records: Vec<_> = entries.into_iter().map(Record::Entry).collect();
        let appended = self.outbox.append_all(&records);
        records.into_iter().zip(appended).map(|(record, appended)| self.settle(record, appended)).collect()
    }
}

async fn fall_back(store: Option<Store>, record: Record) -> Result<(), StoreError> {
    let store = store.ok_or_else(|| StoreError::Unavailable("this node has none".to_owned()))?;
    match record {
        Record::Entry(entry) => {
            let row = TranscriptRow::new(&entry).map_err(|e| StoreError::Rejected(e.to_string()))?;
            let outcome = in_time(store.insert_batch([row].into())).await?;
            match outcome.conflicts.first() {
                Some(conflict) => {
                    Err(StoreError::Rejected(format!("its number is taken by entry {}", conflict.stored_entry_id)))
                }
                None => Ok(()),
            }
        }
        Record::Session(session) => in_time(store.upsert_session(&session)).await,
    }
}

async fn in_time<T>(work: impl Future<Output = Result<T, StoreError>>) -> Result<T, StoreError> {
    let late = |_| Err(StoreError::Unavailable(format!("no answer within {} s", FALLBACK_TIMEOUT.as_secs())));
    tokio::time::timeout(FALLBACK_TIMEOUT, work).await.unwrap_or_else(late)
}
