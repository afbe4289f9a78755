//! The store interface: what the server wants of a database, whichever it is.

use std::future::Future;
use std::sync::Arc;

use chrono::{DateTime, Utc};
use futures_util::future::BoxFuture;
use parking_lot::Mutex;

use super::error::StoreError;
use super::rows::{SessionRow, TranscriptRow};
use super::runtime::DbRuntime;
use crate::transcript::{Entry, Epoch, SessionRecord, Slug};

/// Cheap to clone. Every call runs on the database runtime; its future is safe to drop.
#[derive(Clone)]
pub struct Store {
    backend: Arc<dyn Backend>,
    runtime: DbRuntime,
    faults: Arc<Mutex<Faults>>,
}

/// The known faults of the database, without asking it: an idle one is left alone.
#[derive(Default)]
struct Faults {
    /// The last call's.
    calling: Option<StoreError>,
    /// The `BatchWriter`'s, until its rows are taken.
    writing: Option<String>,
}

/// The outcome of a batch: `inserted + duplicates + conflicts.len()` rows in all.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct BatchOutcome {
    pub inserted: usize,
    /// Rows whose entry was there already.
    pub duplicates: usize,
    pub conflicts: Vec<Conflict>,
}

/// A row that was not stored, because its number belongs to another entry, or its id to another number. Two writers gave
/// out the same ones: this must never happen, and never pass in silence.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Conflict {
    /// Place in the batch.
    pub position: usize,
    pub stored_entry_id: String,
    pub stored_seq: i64,
}

/// A choice of sessions, newest first.
#[derive(Debug, Clone, Default)]
pub struct SessionFilter {
    pub slug: Option<Slug>,
    /// Only sessions that began before this one: the last of the page before.
    pub before: Option<Epoch>,
    /// 0 means no row at all.
    pub limit: usize,
}

type Answer<'a, T> = BoxFuture<'a, Result<T, StoreError>>;

/// One database. Calls come on the database runtime.
pub trait Backend: Send + Sync + 'static {
    /// `sqlite` or `postgres`.
    fn name(&self) -> &'static str;
    /// The place of the database, without a secret.
    fn place(&self) -> String;
    /// Brings the tables to this program's version; the other calls do it too where it has not been done.
    fn migrate(&self) -> Answer<'_, ()>;
    /// Takes every migration back. For tests and operators.
    fn revert(&self) -> Answer<'_, ()>;
    /// Version of the newest migration that was run.
    fn schema_version(&self) -> Answer<'_, Option<String>>;
    fn ping(&self) -> Answer<'_, ()>;
    /// Lets go of open connections: the next call opens a new one.
    fn forget_connections(&self) {}
    fn insert_batch(&self, rows: Arc<[TranscriptRow]>) -> Answer<'_, BatchOutcome>;
    /// At most one row per session.
    fn upsert_sessions(&self, rows: Arc<[SessionRow]>) -> Answer<'_, ()>;
    fn end_session(&self, epoch: Epoch, ended_at: DateTime<Utc>) -> Answer<'_, bool>;
    /// Writes a good row to each table and takes it back: does the database take rows at all?
    fn write_canary(&self) -> Answer<'_, ()>;
    fn session(&self, epoch: Epoch) -> Answer<'_, Option<SessionRow>>;
    fn sessions(&self, filter: SessionFilter) -> Answer<'_, Vec<SessionRow>>;
    fn transcripts(&self, epoch: Epoch, after: i64, limit: i64) -> Answer<'_, Vec<TranscriptRow>>;
    /// The ids of the entries numbered above `after`, up to `last`, ascending.
    fn entry_ids(&self, epoch: Epoch, after: i64, last: i64) -> Answer<'_, Vec<(String, i64)>>;
    fn last_seq(&self, epoch: Epoch) -> Answer<'_, Option<i64>>;
    fn purge(&self, ended_before: DateTime<Utc>) -> Answer<'_, u64>;
}

impl Store {
    pub fn new(backend: Arc<dyn Backend>, runtime: DbRuntime) -> Self {
        Self { backend, runtime, faults: Arc::default() }
    }

    /// Answers what is wrong with the database as far as is known; asks nothing.
    pub fn fault(&self) -> Option<String> {
        let faults = self.faults.lock();
        faults.writing.clone().or_else(|| faults.calling.as_ref().map(StoreError::to_string))
    }

    /// The `BatchWriter`'s word on whether rows are taken.
    pub fn note_writing(&self, result: Result<(), String>) {
        self.faults.lock().writing = result.err();
    }

    /// The place where the rows go, without a secret.
    pub fn place(&self) -> String {
        self.backend.place()
    }

    pub fn backend_name(&self) -> &'static str {
        self.backend.name()
    }

    pub fn runtime(&self) -> &DbRuntime {
        &self.runtime
    }

    fn call<T, F>(&self, work: F) -> impl Future<Output = Result<T, StoreError>> + Send + use<T, F>
    where
        T: Send + 'static,
        F: FnOnce(&dyn Backend) -> BoxFuture<'_, Result<T, StoreError>> + Send + 'static,
    {
        let (backend, faults) = (self.backend.clone(), self.faults.clone());
        self.runtime.run(async move {
            let result = work(backend.as_ref()).await;
            // A row that is refused, or not readable, says that the database is there.
            let fault =
                result.as_ref().err().filter(|e| !matches!(e, StoreError::Rejected(_) | StoreError::Unreadable(_)));
            faults.lock().calling = fault.cloned();
            result
        })
    }

    pub async fn migrate(&self) -> Result<(), StoreError> {
        self.call(|b| b.migrate()).await
    }

    pub async fn revert(&self) -> Result<(), StoreError> {
        self.call(|b| b.revert()).await
    }

    pub async fn schema_version(&self) -> Result<Option<String>, StoreError> {
        self.call(|b| b.schema_version()).await
    }

    pub async fn ping(&self) -> Result<(), StoreError> {
        self.call(|b| b.ping()).await
    }

    /// Lets go of open connections: one that was used before may be at fault itself.
    pub fn forget_connections(&self) {
        self.backend.forget_connections();
    }

    /// Stores the rows with one statement; rows that are there already do no harm. An error means that none was
    /// stored, or that the answer was lost: repeat it.
    pub async fn insert_batch(&self, rows: Arc<[TranscriptRow]>) -> Result<BatchOutcome, StoreError> {
        if rows.is_empty() {
            return Ok(BatchOutcome::default());
        }
        self.call(move |b| Box::pin(async move { judge(b, b.insert_batch(rows).await).await })).await
    }

    /// Stores session rows, the newest of each session; counters never fall and an ended session stays ended.
    pub async fn upsert_sessions(&self, rows: Vec<SessionRow>) -> Result<(), StoreError> {
        let rows = newest_of_each(rows);
        if rows.is_empty() {
            return Ok(());
        }
        self.call(move |b| Box::pin(async move { judge(b, b.upsert_sessions(rows).await).await })).await
    }

    pub async fn upsert_session(&self, record: &SessionRecord) -> Result<(), StoreError> {
        let row = SessionRow::new(record).map_err(|e| StoreError::Rejected(e.to_string()))?;
        self.upsert_sessions(vec![row]).await
    }

    /// False when there is no such session, or it has ended before.
    pub async fn end_session(&self, epoch: Epoch, ended_at: DateTime<Utc>) -> Result<bool, StoreError> {
        self.call(move |b| b.end_session(epoch, ended_at)).await
    }

    pub async fn session(&self, epoch: Epoch) -> Result<Option<SessionRecord>, StoreError> {
        self.call(move |b| b.session(epoch)).await?.map(record).transpose()
    }

    pub async fn sessions(&self, filter: SessionFilter) -> Result<Vec<SessionRecord>, StoreError> {
        self.call(move |b| b.sessions(filter)).await?.into_iter().map(record).collect()
    }

    pub async fn latest_session(&self, slug: &Slug) -> Result<Option<SessionRecord>, StoreError> {
        let filter = SessionFilter { slug: Some(slug.clone()), before: None, limit: 1 };
        Ok(self.sessions(filter).await?.pop())
    }

    /// The entries numbered above `after`, ascending, at most `limit`.
    pub async fn transcripts(&self, epoch: Epoch, after: u64, limit: usize) -> Result<Vec<Entry>, StoreError> {
        let (after, limit) = (clamp(after), clamp(limit as u64));
        let rows = self.call(move |b| b.transcripts(epoch, after, limit)).await?;
        rows.into_iter().map(|r| r.into_entry().map_err(|e| StoreError::Unreadable(e.to_string()))).collect()
    }

    /// Ids and numbers of the entries numbered above `after`, up to `last`, ascending.
    pub async fn entry_ids(&self, epoch: Epoch, after: u64, last: u64) -> Result<Vec<(String, u64)>, StoreError> {
        if after >= last {
            return Ok(Vec::new());
        }
        let (after, last) = (clamp(after), clamp(last));
        let found = self.call(move |b| b.entry_ids(epoch, after, last)).await?;
        Ok(found.into_iter().filter_map(|(id, seq)| Some((id, u64::try_from(seq).ok()?))).collect())
    }

    /// Highest number stored of a session; None when there is no entry.
    pub async fn last_seq(&self, epoch: Epoch) -> Result<Option<u64>, StoreError> {
        let last = self.call(move |b| b.last_seq(epoch)).await?;
        Ok(last.and_then(|seq| u64::try_from(seq).ok()))
    }

    /// Deletes sessions that ended before, with their entries. Answers how many sessions.
    pub async fn purge(&self, ended_before: DateTime<Utc>) -> Result<u64, StoreError> {
        self.call(move |b| b.purge(ended_before)).await
    }
}

/// An error that does not tell whether the rows are at fault is put to the proof: if a good row is taken, they are.
async fn judge<T>(backend: &dyn Backend, result: Result<T, StoreError>) -> Result<T, StoreError> {
    let Err(StoreError::Refused(reason)) = result else {
        return result;
    };
    match backend.write_canary().await {
        Ok(()) => Err(StoreError::Rejected(reason)),
        Err(StoreError::ReadOnly(why)) => Err(StoreError::ReadOnly(why)),
        Err(_) => Err(StoreError::Unavailable(reason)),
    }
}

fn newest_of_each(rows: Vec<SessionRow>) -> Arc<[SessionRow]> {
    let mut newest: Vec<SessionRow> = Vec::with_capacity(rows.len());
    for row in rows {
        match newest.iter_mut().find(|r| r.session_id == row.session_id) {
            // Rows of several nodes come in any order.
            Some(other) if other.last_seq > row.last_seq && row.ended_at.is_none() => {}
            Some(other) => *other = row,
            None => newest.push(row),
        }
    }
    newest.into()
}

fn record(row: SessionRow) -> Result<SessionRecord, StoreError> {
    row.into_record().map_err(|e| StoreError::Unreadable(e.to_string()))
}

pub(super) fn clamp(n: u64) -> i64 {
    i64::try_from(n).unwrap_or(i64::MAX)
}

/// The rows of the database at the number and under the id of one row of a batch.
#[derive(Debug, Clone, Default)]
pub(super) struct Found {
    pub id_at_seq: Option<String>,
    pub seq_of_id: Option<i64>,
}

/// Sorts a batch that was not inserted whole. Err: how many rows are not there at all.
pub(super) fn classify(rows: &[TranscriptRow], inserted: usize, found: Vec<Found>) -> Result<BatchOutcome, usize> {
    let mut outcome = BatchOutcome { inserted, ..BatchOutcome::default() };
    let mut missing = 0;
    for (position, (row, found)) in rows.iter().zip(found).enumerate() {
        match (found.id_at_seq, found.seq_of_id) {
            (Some(id), _) if id == row.entry_id => {}
            (Some(stored_entry_id), _) => {
                outcome.conflicts.push(Conflict { position, stored_entry_id, stored_seq: row.seq });
            }
            (None, Some(stored_seq)) => {
                outcome.conflicts.push(Conflict { position, stored_entry_id: row.entry_id.clone(), stored_seq });
            }
            (None, None) => missing += 1,
        }
    }
    if missing > 0 {
        return Err(missing);
    }
    outcome.duplicates = rows.len().saturating_sub(inserted + outcome.conflicts.len());
    Ok(outcome)
}
