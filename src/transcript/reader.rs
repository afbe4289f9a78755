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

impl StoredTail {
    /// The part before number `seq`, as far as its newest entries go without a hole: rows that several nodes write come in
    /// any order.
    pub fn before(mut self, seq: u64) -> Self {
        self.recent.retain(|entry| entry.seq() < Some(seq));
        let reached = self.recent.first().and_then(Entry::seq).map(|first| {
            let numbered = (first..).zip(&self.recent);
            first + numbered.take_while(|(seq, entry)| entry.seq() == Some(*seq)).count() as u64 - 1
        });
        let known = self.known.iter().map(|(_, known)| *known).filter(|known| *known < seq).max();
        self.last_seq = reached.or(known).unwrap_or(0);
        self.known.retain(|(_, seq)| *seq <= self.last_seq);
        self.recent.retain(|entry| entry.seq() <= Some(self.last_seq));
        self.is_ended = matches!(self.recent.last(), Some(Entry::Status(change)) if change.status == Status::Ended);
        self
    }
}

/// Waits for a read of the store no longer than [`READ_TIMEOUT`]; a failure is logged.
pub async fn bounded<T>(read: impl Future<Output = Result<T, ReadError>>) -> Result<T, ReadError> {
    let answer = tokio::time::timeout(READ_TIMEOUT, read).await;
    let result = answer.unwrap_or_else(|_| Err(ReadError("no answer in time".into())));
    result.inspect_err(|error| tracing::warn!(%error, "transcripts could not be read"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::transcript::{Gap, GapReason};

    fn tail(seqs: &[u64]) -> StoredTail {
        let entry = |seq: &u64| {
            Entry::Gap(Gap {
                session: Slug::parse("demo").unwrap(),
                epoch: Epoch::nil(),
                seq: Some(*seq),
                id: seq.to_string(),
                start_ms: 0,
                end_ms: 1,
                reason: GapReason::PublisherLost,
                durable: true,
            })
        };
        let recent: Vec<_> = seqs.iter().map(entry).collect();
        let known = seqs.iter().map(|seq| (seq.to_string(), *seq)).collect();
        StoredTail { last_seq: seqs.last().copied().unwrap_or(0), known, recent, ..StoredTail::default() }
    }

    #[test]
    fn what_comes_after_a_hole_or_a_number_is_left_out() {
        for (stored, before, expected) in [
            (&[5, 6, 7, 8][..], 8, &[5, 6, 7][..]),
            (&[5, 6, 7, 8], 20, &[5, 6, 7, 8]),
            (&[5, 6, 8, 9], 20, &[5, 6]),
            (&[5, 6], 3, &[]),
            (&[], 1, &[]),
        ] {
            assert_eq!(tail(stored).before(before), tail(expected), "{stored:?} before {before}");
        }
    }

    #[test]
    fn of_older_entries_the_ids_tell() {
        let mut left = tail(&[1001, 1002]);
        left.known.extend([("a".into(), 7), ("b".into(), 8)]);
        let left = left.before(9);
        assert_eq!((left.last_seq, left.known.len(), left.recent.len()), (8, 2, 0));
    }
}
