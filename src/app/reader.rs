//! Reads stored logs for HTTP: the database, and behind it the outbox for rows that the database does not have yet.

use futures_util::FutureExt;
use futures_util::future::BoxFuture;

use crate::db::{Quarantine, QuarantineSummary, SessionFilter, Storage, Store, StoreError};
use crate::transcript::outbox::Outbox;
use crate::transcript::session_record::{SessionRecord, SessionState};
use crate::transcript::transcript_log::MAX_KNOWN_IDS;
use crate::transcript::{
    Entry, Epoch, ReadError, SessionInfo, Slug, Status, StorageState, StoredTail, TranscriptReader,
};

/// Newest entries of a log that the session that goes on with it has whole: a viewer that joins is shown them. Of older
/// ones it knows the ids, because whoever posts may repeat what was stored long ago.
const REMEMBERED: u64 = 1000;

/// Reads stored logs from the database and the outbox.
pub struct Reader {
    store: Option<Store>,
    outbox: Outbox,
    quarantine: Quarantine,
}

impl Reader {
    pub fn new(storage: &Storage) -> Self {
        let (store, outbox) = (storage.store.clone(), storage.outbox.clone());
        Self { store, outbox, quarantine: storage.quarantine.clone() }
    }

    /// The end of a log, in the database or the outbox.
    pub async fn stored_tail(&self, epoch: Epoch) -> Result<StoredTail, ReadError> {
        let stored = match &self.store {
            Some(store) => store.last_seq(epoch).await.map_err(read_error)?.unwrap_or(0),
            None => 0,
        };
        let last_seq = stored.saturating_sub(REMEMBERED);
        let known = match &self.store {
            Some(store) => {
                let after = stored.saturating_sub(MAX_KNOWN_IDS as u64);
                store.entry_ids(epoch, after, last_seq).await.map_err(read_error)?
            }
            None => Vec::new(),
        };
        let mut left = StoredTail { last_seq, known, ..StoredTail::default() };
        loop {
            let page = self.transcripts(epoch, left.last_seq, REMEMBERED as usize).await?;
            let Some(last) = page.last().and_then(Entry::seq) else { break };
            left.last_seq = last;
            left.slug = page.last().map(|entry| entry.session().clone());
            left.is_ended = is_ended(&page);
            left.known.extend(ids(&page));
            left.recent.extend(page);
            let surplus = left.recent.len().saturating_sub(REMEMBERED as usize);
            left.recent.drain(..surplus);
        }
        // A row that the database has refused, in the middle of them, does not give its number away again.
        left.last_seq = left.last_seq.max(stored);
        Ok(left)
    }

    /// Its rows that are in the outbox alone, from shortly before `next_seq`.
    pub async fn left_in_outbox(&self, epoch: Epoch, next_seq: u64) -> StoredTail {
        let after = next_seq.saturating_sub(REMEMBERED);
        let found = self.outbox.tail(epoch, after, 2 * REMEMBERED as usize).await.unwrap_or_default();
        let recent: Vec<Entry> = found.iter().map(|entry| (**entry).clone()).collect();
        let known: Vec<_> = ids(&recent).collect();
        let last_seq = known.iter().map(|(_, seq)| *seq).max().unwrap_or(0);
        StoredTail { last_seq, known, is_ended: is_ended(&recent), recent, ..StoredTail::default() }
    }

    fn store(&self) -> Result<Store, ReadError> {
        self.store.clone().ok_or_else(|| ReadError("this node has no database".into()))
    }
}

impl TranscriptReader for Reader {
    fn transcripts(&self, epoch: Epoch, after: u64, limit: usize) -> BoxFuture<'static, Result<Vec<Entry>, ReadError>> {
        let (store, outbox) = (self.store.clone(), self.outbox.clone());
        async move {
            let stored = match &store {
                Some(store) => store.transcripts(epoch, after, limit).await.map_err(read_error),
                None => Ok(Vec::new()),
            };
            let mut entries = stored.as_deref().unwrap_or_default().to_vec();
            let mut last = entries.last().and_then(Entry::seq).unwrap_or(after);
            if entries.len() < limit {
                let tail = outbox.tail(epoch, last, limit - entries.len()).await;
                for entry in tail.map_err(|e| ReadError(e.to_string()))? {
                    // Only what joins without a hole: the rest would look complete and not be.
                    if entry.seq() == Some(last + 1) {
                        last += 1;
                        entries.push((*entry).clone());
                    }
                }
            }
            if entries.is_empty() { stored } else { Ok(entries) }
        }
        .boxed()
    }

    fn sessions(
        &self,
        slug: Option<Slug>,
        before: Option<Epoch>,
        limit: usize,
    ) -> BoxFuture<'static, Result<Vec<SessionInfo>, ReadError>> {
        let store = self.store.clone();
        async move {
            // A node without a database lists what it has in memory.
            let Some(store) = store else { return Ok(Vec::new()) };
            let found = store.sessions(SessionFilter { slug, before, limit }).await.map_err(read_error)?;
            Ok(found.into_iter().map(info).collect())
        }
        .boxed()
    }

    fn session(&self, epoch: Epoch) -> BoxFuture<'static, Result<Option<SessionInfo>, ReadError>> {
        let store = self.store();
        async move { Ok(store?.session(epoch).await.map_err(read_error)?.map(info)) }.boxed()
    }

    fn latest_session(&self, slug: Slug) -> BoxFuture<'static, Result<Option<SessionInfo>, ReadError>> {
        let store = self.store();
        async move { Ok(store?.latest_session(&slug).await.map_err(read_error)?.map(info)) }.boxed()
    }

    fn storage(&self) -> BoxFuture<'static, StorageState> {
        let fault = self.store.as_ref().and_then(Store::fault);
        let quarantine = self.quarantine.clone();
        async move {
            let counted = tokio::task::spawn_blocking(move || quarantine.summary()).await;
            let QuarantineSummary { rows, reason } = counted.ok().and_then(Result::ok).unwrap_or_default();
            StorageState { fault, quarantined: rows, quarantine_reason: reason }
        }
        .boxed()
    }
}

fn ids(entries: &[Entry]) -> impl Iterator<Item = (String, u64)> {
    entries.iter().filter_map(|entry| Some((entry.id().to_owned(), entry.seq()?)))
}

/// The last of these entries ends the log.
fn is_ended(entries: &[Entry]) -> bool {
    matches!(entries.last(), Some(Entry::Status(change)) if change.status == Status::Ended)
}

fn read_error(error: StoreError) -> ReadError {
    ReadError(error.to_string())
}

fn info(record: SessionRecord) -> SessionInfo {
    let status = match record.state {
        SessionState::Live => Status::Live,
        SessionState::Suspended => Status::Suspended,
        SessionState::Ended => Status::Ended,
    };
    SessionInfo {
        session: record.slug,
        epoch: record.epoch,
        started_at: record.started_at,
        ended_at: record.ended_at,
        status,
        seq: record.last_seq,
    }
}
