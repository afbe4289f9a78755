//! Opens everything that keeps entries: the outbox, the database behind it, and the sink in front of both.

use std::sync::Arc;
use std::time::Duration;

use super::error::StoreError;
use super::postgres::PostgresBackend;
use super::quarantine::{Quarantine, QuarantineSummary};
use super::runtime::DbRuntime;
use super::sink::DurableSink;
use super::sqlite::SqliteBackend;
use super::store::{Backend, Store};
use crate::config::{Config, DatabaseUrl, StoreConfig};
use crate::metrics::Metrics;
use crate::transcript::outbox::{Outbox, OutboxError, OutboxOptions, Recovery};

/// Name of the `BatchWriter`'s place in the outbox.
pub const DATABASE_CONSUMER: &str = "database";
/// Longest wait for Postgres at the start; then the server begins without it.
const START_TIMEOUT: Duration = Duration::from_secs(8);

/// The outbox, the database behind it, and what was wrong with that at the start.
pub struct Storage {
    /// None where the mode has no database.
    pub store: Option<Store>,
    pub outbox: Outbox,
    /// Coerces to `Arc<dyn EntrySink>`.
    pub sink: Arc<DurableSink>,
    pub quarantine: Quarantine,
    pub recovery: Recovery,
    /// The database did not answer at the start; its rows wait in the outbox.
    pub degraded: Option<StoreError>,
}

/// Why the server cannot keep anything, so does not start.
#[derive(Debug, thiserror::Error)]
pub enum StorageError {
    #[error(transparent)]
    Outbox(#[from] OutboxError),
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error("cannot start the database threads: {0}")]
    Runtime(std::io::Error),
}

impl Storage {
    /// With a database where the mode serves viewers. `forward_targets` are further consumers of the outbox: one
    /// for each node that a split ingest node sends to.
    pub async fn open(
        config: &Config,
        forward_targets: Vec<String>,
        metrics: Arc<Metrics>,
    ) -> Result<Self, StorageError> {
        let mut consumers = forward_targets;
        let store = if config.server.mode.serves() {
            consumers.push(DATABASE_CONSUMER.to_owned());
            Some(open_store(&config.store)?)
        } else {
            None
        };
        let data_dir = &config.server.data_dir;
        let options = OutboxOptions::new(data_dir, &config.store, consumers);
        let (outbox, recovery) = Outbox::open(options, metrics.clone())?;
        let degraded = match &store {
            Some(store) => first_contact(store, &metrics).await?,
            None => None,
        };
        let sink = Arc::new(DurableSink::new(outbox.clone(), store.clone()));
        let quarantine = Quarantine::new(data_dir);
        tell_of(&quarantine);
        Ok(Self { store, outbox, sink, quarantine, recovery, degraded })
    }
}

/// Rows that a process before this one has set aside.
fn tell_of(quarantine: &Quarantine) {
    match quarantine.summary() {
        Ok(QuarantineSummary { rows: 0, .. }) => {}
        Ok(QuarantineSummary { rows, reason }) => {
            tracing::warn!(rows, reason, "rows are in quarantine; `stenocast quarantine list` shows them");
        }
        Err(error) => tracing::warn!(%error, dir = %quarantine.dir().display(), "the quarantine cannot be read"),
    }
}

/// Connects to nothing yet.
pub fn open_store(config: &StoreConfig) -> Result<Store, StorageError> {
    if let (true, DatabaseUrl::Sqlite(path)) = (config.is_url_empty, &config.database) {
        tracing::warn!(path = %path.display(), "DATABASE_URL is set and empty; rows go to SQLite");
    }
    let backend: Arc<dyn Backend> = match &config.database {
        DatabaseUrl::Sqlite(path) => Arc::new(SqliteBackend::new(path, config.pool)),
        DatabaseUrl::Postgres(url) => Arc::new(PostgresBackend::new(url, config.pool)?),
    };
    Ok(Store::new(backend, DbRuntime::start().map_err(StorageError::Runtime)?))
}

/// Runs the migrations. A file that cannot be opened is a fault; a server that does not answer may come back.
async fn first_contact(store: &Store, metrics: &Metrics) -> Result<Option<StoreError>, StorageError> {
    let timed_out = |_| Err(StoreError::Unavailable(format!("no answer within {} s", START_TIMEOUT.as_secs())));
    let result = tokio::time::timeout(START_TIMEOUT, store.migrate()).await.unwrap_or_else(timed_out);
    metrics.database_up.set(i64::from(result.is_ok()));
    match result {
        Ok(()) => {
            tracing::info!(backend = store.backend_name(), place = store.place(), "database is ready: rows go there");
            Ok(None)
        }
        Err(error) if store.backend_name() == "sqlite" => Err(error.into()),
        Err(error) => {
            store.note_writing(Err(error.to_string()));
            let place = store.place();
            tracing::error!(%error, place, "database takes no rows yet; starting without it, they wait in the outbox");
            Ok(Some(error))
        }
    }
}
