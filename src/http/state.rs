//! What the handlers share, and the narrow view of the store that they read.

use std::future::Future;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use actix::Recipient;
use chrono::{DateTime, Utc};
use futures_util::future::BoxFuture;
use serde::Serialize;
use tokio::sync::watch;
use tokio::time::Instant;

use super::viewers::Viewers;
use crate::actors::Observe;
use crate::actors::root::Drill;
use crate::actors::session_registry::Broadcast;
use crate::config::Config;
use crate::livekit::token::TokenVerifier;
use crate::log::{Directory, Entry, Epoch, Slug, Status};
use crate::metrics::Metrics;
use crate::watchdog::Watched;

/// Longest wait for the database.
const READ_TIMEOUT: Duration = Duration::from_secs(10);

/// The store could not answer. The text may be shown to operators, not to viewers.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("the database could not be read: {0}")]
pub struct ReadError(pub String);

/// What HTTP reads from the database.
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

    /// What is known of the database and of what it has refused. Asks the database nothing: an idle one may sleep.
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

/// See the module. One per process, shared by the HTTP workers.
pub struct AppState {
    pub config: Arc<Config>,
    pub metrics: Arc<Metrics>,
    pub directory: Arc<Directory>,
    /// Takes the entries of POST broadcast.
    pub broadcast: Recipient<Broadcast>,
    /// Answers with the actor tree.
    pub observe: Recipient<Observe>,
    pub transcripts: Arc<dyn TranscriptReader>,
    /// True once new viewers and broadcasts are refused.
    pub draining: watch::Receiver<bool>,
    pub viewers: Arc<Viewers>,
    pub tokens: TokenVerifier,
    pub started: Instant,
    /// Takes orders to break things; None without `--drill`.
    pub drill: Option<Recipient<Drill>>,
    /// Set by the watchdog when a thread gave no sign of life.
    pub hung: Arc<AtomicBool>,
    /// Where each HTTP worker enters itself for the watchdog.
    pub watched: Option<Arc<Watched>>,
}

impl AppState {
    pub fn new(
        config: Arc<Config>,
        metrics: Arc<Metrics>,
        directory: Arc<Directory>,
        broadcast: Recipient<Broadcast>,
        observe: Recipient<Observe>,
        transcripts: Arc<dyn TranscriptReader>,
        draining: watch::Receiver<bool>,
    ) -> Self {
        let tokens = TokenVerifier::new(&config.auth.keys);
        let viewers = Arc::new(Viewers::new(config.viewers.ping, config.viewers.stall, metrics.clone()));
        let (started, hung) = (Instant::now(), Arc::new(AtomicBool::new(false)));
        Self {
            config,
            metrics,
            directory,
            broadcast,
            observe,
            transcripts,
            draining,
            viewers,
            tokens,
            started,
            drill: None,
            hung,
            watched: None,
        }
    }

    pub fn is_draining(&self) -> bool {
        *self.draining.borrow()
    }

    pub fn is_hung(&self) -> bool {
        self.hung.load(Ordering::Relaxed)
    }
}

/// Waits for a read of the store no longer than [`READ_TIMEOUT`]; a failure is logged.
pub async fn bounded<T>(read: impl Future<Output = Result<T, ReadError>>) -> Result<T, ReadError> {
    let answer = tokio::time::timeout(READ_TIMEOUT, read).await;
    let result = answer.unwrap_or_else(|_| Err(ReadError("no answer in time".into())));
    result.inspect_err(|error| tracing::warn!(%error, "transcripts could not be read"))
}
