//! Reading of stored logs, whatever stores them.

use std::future::Future;
use std::time::Duration;

use chrono::{DateTime, Utc};
use futures_util::future::BoxFuture;
use serde::Serialize;

use super::entry::{Entry, Epoch, Status};
use super::slug::Slug;

/// Longest wait for the database.
const READ_TIMEOUT: Duration = Duration::from_secs(10);

/// The store could not answer. The text may be shown to operators, not to viewers.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("the database could not be read: {0}")]
pub struct ReadError(pub String);

/// Reads stored logs.
pub trait TranscriptReader: Send + Sync {
    /// Durable entries of `epoch` with a sequence number above `after`, ascending, at most `limit`.
    fn transcripts(&self, epoch: Epoch, after: u64, limit: usize) -> BoxFuture<'static, Result<Vec<Entry>, ReadError>>;

    /// Sessions, newest first, at most `limit`; of one slug and before an epoch where given.
    fn sessions(
        &self,
        slug: Option<Slug>,
        before: Option<Epoch>,
        limit: usize,
    ) -> BoxFuture<'static, Result<Vec<SessionInfo>, ReadError>>;

    fn session(&self, epoch: Epoch) -> BoxFuture<'static, Result<Option<SessionInfo>, ReadError>>;

    /// The newest session of `slug`.
    fn latest_session(&self, slug: Slug) -> BoxFuture<'static, Result<Option<SessionInfo>, ReadError>>;

    /// State of the database and of what it has refused. Asks the database nothing: an idle one may sleep.
    fn storage(&self) -> BoxFuture<'static, StorageState>;
}

/// See [`TranscriptReader::storage`].
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct StorageState {
    /// Why the database takes no rows, or gave no answer when it was last asked.
    pub fault: Option<String>,
    /// Rows in quarantine.
    pub quarantined: u64,
    /// The reason of the newest.
    pub quarantine_reason: Option<String>,
}

/// One life of a slug.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct SessionInfo {
    pub session: Slug,
    pub epoch: Epoch,
    pub started_at: DateTime<Utc>,
    pub ended_at: Option<DateTime<Utc>>,
    pub status: Status,
    /// Last sequence number.
    pub seq: u64,
}

/// The end of a log that is in the database and the outbox.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct StoredTail {
    /// The slug whose log it is; None where there is none yet.
    pub slug: Option<Slug>,
    pub last_seq: u64,
    /// Its last entry is `ended`.
    pub is_ended: bool,
    /// Ids of the newest entries with their seq, as many as a log remembers.
    pub known: Vec<(String, u64)>,
    /// The newest of them whole, in order.
    pub recent: Vec<Entry>,
}

/// Waits for a read of the store no longer than [`READ_TIMEOUT`]; a failure is logged.
pub async fn bounded<T>(read: impl Future<Output = Result<T, ReadError>>) -> Result<T, ReadError> {
    let answer = tokio::time::timeout(READ_TIMEOUT, read).await;
    let result = answer.unwrap_or_else(|_| Err(ReadError("no answer in time".into())));
    result.inspect_err(|error| tracing::warn!(%error, "transcripts could not be read"))
}
