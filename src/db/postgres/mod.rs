//! Postgres through diesel-async: a small pool for rows, and a direct connection for migrations.

mod connect;
mod pool;
pub mod schema;
mod tls;
mod write;

use std::sync::Arc;

use chrono::{DateTime, Utc};
use diesel::migration::MigrationSource;
use diesel::pg::Pg;
use diesel::prelude::*;
use diesel::result::Error as DieselError;
use diesel::sql_types::Timestamptz;
use diesel_async::async_connection_wrapper::AsyncConnectionWrapper;
use diesel_async::{AsyncConnection, AsyncPgConnection, RunQueryDsl, SimpleAsyncConnection};
use diesel_migrations::{EmbeddedMigrations, MigrationHarness, embed_migrations};
use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use tokio::sync::OnceCell;

use super::error::StoreError;
use super::rows::{SessionRow, TranscriptRow};
use super::store::{Backend, BatchOutcome, SessionFilter, clamp};
use super::types::{DbTime, DbUuid};
use crate::config::Secret;
use crate::log::Epoch;
use connect::Connector;
use pool::Pool;
use schema::{sessions, transcripts};

const MIGRATIONS: EmbeddedMigrations = embed_migrations!("migrations/postgres");
/// Held by the process that migrates, to the end of its transaction: that works through a pooler, too. The number is
/// arbitrary ("steno" in ASCII).
const LOCK: &str = "SET LOCAL statement_timeout = 0; SET LOCAL lock_timeout = 60000; \
                    SELECT pg_advisory_xact_lock(495874074223)";
/// One that never got its end (its node is gone) is as old as its last line. A few at a time: the statement has a
/// time-out.
const PURGE: &str = "\
WITH old AS (SELECT session_id FROM sessions s WHERE ended_at < $1 \
    OR (ended_at IS NULL AND created_at < $1 AND NOT EXISTS \
        (SELECT 1 FROM transcripts t WHERE t.session_id = s.session_id AND t.created_at >= $1)) LIMIT 5), \
gone AS (DELETE FROM transcripts t USING old WHERE t.session_id = old.session_id) \
DELETE FROM sessions s USING old WHERE s.session_id = old.session_id";

/// What is wrong with a DATABASE_URL, without a word of it.
pub fn check_url(url: &Secret) -> Result<(), StoreError> {
    Connector::new(url).map(drop)
}

/// See the module.
pub struct PostgresBackend {
    pool: Arc<Pool>,
    migrated: OnceCell<()>,
}

type Connection = AsyncConnectionWrapper<AsyncPgConnection>;
type BoxError = Box<dyn std::error::Error + Send + Sync>;

impl PostgresBackend {
    /// Connects to nothing yet. Err: the URL is no URL.
    pub fn new(url: &Secret, pool: usize) -> Result<Self, StoreError> {
        Ok(Self { pool: Pool::new(Connector::new(url)?, pool), migrated: OnceCell::new() })
    }

    /// Runs `work`, which may be repeated, on a connection of a database whose tables are up to date.
    fn run<'a, T, F>(&'a self, work: F) -> BoxFuture<'a, Result<T, StoreError>>
    where
        T: Send + 'static,
        F: for<'c> Fn(&'c mut AsyncPgConnection) -> BoxFuture<'c, Result<T, StoreError>> + Send + Sync + 'a,
    {
        async move {
            self.migrated.get_or_try_init(|| self.bring_up_to_date()).await?;
            self.pool.run(work).await
        }
        .boxed()
    }

    /// Where somebody else has run the migrations, no right to do so is needed.
    async fn bring_up_to_date(&self) -> Result<(), StoreError> {
        let newest = newest_migration()?;
        let mut connection = self.pool.direct().await?;
        match applied_migration(&mut connection).await {
            Ok(applied) if applied >= Some(newest) => Ok(()),
            _ => self.run_migrations(migrate_up).await,
        }
    }

    /// In one transaction: all or nothing, and one process at a time.
    async fn run_migrations(&self, work: fn(&mut Connection) -> Result<(), BoxError>) -> Result<(), StoreError> {
        let connection = self.pool.direct().await?;
        let task = move || {
            let mut connection = Connection::from(connection);
            diesel::Connection::transaction(&mut connection, |c| {
                diesel::connection::SimpleConnection::batch_execute(c, LOCK)?;
                work(c).map_err(MigrationFault::Other)
            })
        };
        match tokio::task::spawn_blocking(task).await {
            Ok(Ok(())) => Ok(()),
            Ok(Err(MigrationFault::Diesel(error))) => Err(match StoreError::from(error) {
                StoreError::Refused(why) | StoreError::Rejected(why) => StoreError::Migration(why),
                other => other,
            }),
            Ok(Err(MigrationFault::Other(error))) => Err(StoreError::Migration(error.to_string())),
            Err(panic) => Err(StoreError::Internal(panic.to_string())),
        }
    }
}

fn newest_migration() -> Result<String, StoreError> {
    let fault = |e: BoxError| StoreError::Migration(e.to_string());
    let migrations = MigrationSource::<Pg>::migrations(&MIGRATIONS).map_err(fault)?;
    let versions = migrations.iter().map(|m| m.name().version().to_string());
    Ok(versions.max().expect("there is a migration"))
}

/// Version of the newest migration that was run; an error where there is no such table.
async fn applied_migration(c: &mut AsyncPgConnection) -> Result<Option<String>, StoreError> {
    #[derive(QueryableByName)]
    struct Version {
        #[diesel(sql_type = diesel::sql_types::Text)]
        version: String,
    }
    let query = diesel::sql_query("SELECT version FROM __diesel_schema_migrations ORDER BY version DESC LIMIT 1");
    let newest: Option<Version> = query.get_result(c).await.optional()?;
    Ok(newest.map(|v| v.version))
}

fn migrate_up(c: &mut Connection) -> Result<(), BoxError> {
    c.run_pending_migrations(MIGRATIONS).map(drop)
}

fn migrate_down(c: &mut Connection) -> Result<(), BoxError> {
    c.revert_all_migrations(MIGRATIONS).map(drop)
}

enum MigrationFault {
    Diesel(DieselError),
    Other(BoxError),
}

impl From<DieselError> for MigrationFault {
    fn from(error: DieselError) -> Self {
        Self::Diesel(error)
    }
}

impl Backend for PostgresBackend {
    fn name(&self) -> &'static str {
        "postgres"
    }

    fn migrate(&self) -> BoxFuture<'_, Result<(), StoreError>> {
        async {
            self.bring_up_to_date().await?;
            let _ = self.migrated.set(());
            Ok(())
        }
        .boxed()
    }

    fn revert(&self) -> BoxFuture<'_, Result<(), StoreError>> {
        self.run_migrations(migrate_down).boxed()
    }

    fn schema_version(&self) -> BoxFuture<'_, Result<Option<String>, StoreError>> {
        self.run(|c| async { applied_migration(c).await }.boxed())
    }

    fn ping(&self) -> BoxFuture<'_, Result<(), StoreError>> {
        self.run(|c| async { Ok(c.batch_execute("SELECT 1").await?) }.boxed())
    }

    fn insert_batch(&self, rows: Arc<[TranscriptRow]>) -> BoxFuture<'_, Result<BatchOutcome, StoreError>> {
        self.run(move |c| {
            let rows = rows.clone();
            async move { write::insert_rows(c, &rows).await }.boxed()
        })
    }

    fn upsert_sessions(&self, rows: Arc<[SessionRow]>) -> BoxFuture<'_, Result<(), StoreError>> {
        self.run(move |c| {
            let rows = rows.clone();
            async move { write::upsert_sessions(c, &rows).await }.boxed()
        })
    }

    fn end_session(&self, epoch: Epoch, ended_at: DateTime<Utc>) -> BoxFuture<'_, Result<bool, StoreError>> {
        self.run(move |c| {
            let open = sessions::table.filter(sessions::session_id.eq(DbUuid(epoch)).and(sessions::state.ne("ended")));
            let ended = (sessions::state.eq("ended"), sessions::ended_at.eq(DbTime(ended_at)));
            async move { Ok(diesel::update(open).set(ended).execute(c).await? > 0) }.boxed()
        })
    }

    fn write_canary(&self) -> BoxFuture<'_, Result<(), StoreError>> {
        self.run(|c| {
            async move {
                let result = c
                    .transaction::<(), DieselError, _>(async |c| {
                        c.batch_execute(super::CANARY).await?;
                        Err(DieselError::RollbackTransaction)
                    })
                    .await;
                result.or_else(|e| if e == DieselError::RollbackTransaction { Ok(()) } else { Err(e.into()) })
            }
            .boxed()
        })
    }

    fn session(&self, epoch: Epoch) -> BoxFuture<'_, Result<Option<SessionRow>, StoreError>> {
        self.run(move |c| {
            let query = sessions::table.filter(sessions::session_id.eq(DbUuid(epoch)));
            let query = query.select(super::session_columns!(schema));
            async move { Ok(query.first(c).await.optional()?) }.boxed()
        })
    }

    fn sessions(&self, filter: SessionFilter) -> BoxFuture<'_, Result<Vec<SessionRow>, StoreError>> {
        self.run(move |c| {
            let mut query = sessions::table.select(super::session_columns!(schema)).into_boxed();
            if let Some(slug) = &filter.slug {
                query = query.filter(sessions::slug.eq(slug.as_str().to_owned()));
            }
            if let Some(before) = filter.before {
                query = query.filter(sessions::session_id.lt(DbUuid(before)));
            }
            let query = query.order(sessions::session_id.desc()).limit(clamp(filter.limit as u64));
            async move { Ok(query.load(c).await?) }.boxed()
        })
    }

    fn transcripts(
        &self,
        epoch: Epoch,
        after: i64,
        limit: i64,
    ) -> BoxFuture<'_, Result<Vec<TranscriptRow>, StoreError>> {
        self.run(move |c| {
            let later = transcripts::session_id.eq(DbUuid(epoch)).and(transcripts::seq.gt(after));
            let query = transcripts::table.filter(later).order(transcripts::seq).limit(limit);
            let query = query.select(super::transcript_columns!(schema));
            async move { Ok(query.load(c).await?) }.boxed()
        })
    }

    fn entry_ids(&self, epoch: Epoch, after: i64, last: i64) -> BoxFuture<'_, Result<Vec<(String, i64)>, StoreError>> {
        self.run(move |c| {
            let some = transcripts::seq.gt(after).and(transcripts::seq.le(last));
            let query = transcripts::table.filter(transcripts::session_id.eq(DbUuid(epoch)).and(some));
            let query = query.order(transcripts::seq).select((transcripts::entry_id, transcripts::seq));
            async move { Ok(query.load(c).await?) }.boxed()
        })
    }

    fn last_seq(&self, epoch: Epoch) -> BoxFuture<'_, Result<Option<i64>, StoreError>> {
        self.run(move |c| {
            let query = transcripts::table.filter(transcripts::session_id.eq(DbUuid(epoch)));
            let query = query.select(diesel::dsl::max(transcripts::seq));
            async move { Ok(query.first(c).await?) }.boxed()
        })
    }

    fn purge(&self, ended_before: DateTime<Utc>) -> BoxFuture<'_, Result<u64, StoreError>> {
        self.run(move |c| {
            async move {
                let mut purged = 0;
                loop {
                    let query = diesel::sql_query(PURGE).bind::<Timestamptz, _>(DbTime(ended_before));
                    match query.execute(c).await? {
                        0 => return Ok(purged),
                        some => purged += some as u64,
                    }
                }
            }
            .boxed()
        })
    }
}
