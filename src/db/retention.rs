//! Deletes sessions and quarantine files that are older than `RETENTION_DAYS`.

use std::time::Duration;

use chrono::Utc;
use tokio::time::Instant;

use super::{Quarantine, Store};

/// Interval in which old sessions are looked for where rows are written,
pub const PURGE_INTERVAL: Duration = Duration::from_secs(3600);
/// and where none are: that wakes the database.
const IDLE_PURGE_INTERVAL: Duration = Duration::from_secs(24 * 3600);

/// The rule and when it was last followed.
pub struct Retention {
    /// None keeps everything.
    keep: Option<Duration>,
    store: Store,
    quarantine: Quarantine,
    purged: Option<Instant>,
}

impl Retention {
    pub fn new(keep: Option<Duration>, store: Store, quarantine: Quarantine) -> Self {
        Self { keep, store, quarantine, purged: None }
    }

    /// The work, when it is due: at the start, and then once in [`PURGE_INTERVAL`] if rows were written since.
    pub fn purge(&mut self, is_awake: bool) -> Option<impl Future<Output = ()> + use<>> {
        let keep = self.keep?;
        if !self.purged.is_none_or(|at| is_awake || at.elapsed() >= IDLE_PURGE_INTERVAL) {
            return None;
        }
        self.purged = Some(Instant::now());
        let (store, quarantine, before) = (self.store.clone(), self.quarantine.clone(), Utc::now() - keep);
        actix_rt::task::spawn_blocking(move || match quarantine.purge(before) {
            Ok(0) => {}
            Ok(files) => tracing::info!(files, "deleted quarantine files older than RETENTION_DAYS"),
            Err(error) => tracing::warn!(%error, "old quarantine files could not be deleted; trying again in an hour"),
        });
        Some(async move {
            match store.purge(before).await {
                Ok(0) => {}
                Ok(sessions) => tracing::info!(sessions, "deleted sessions older than RETENTION_DAYS"),
                Err(error) => tracing::warn!(%error, "old sessions could not be deleted; trying again in an hour"),
            }
        })
    }
}
