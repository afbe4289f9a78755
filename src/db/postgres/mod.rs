//! Postgres through diesel-async: a small pool for rows, and a direct connection for migrations.

mod connect;
mod connection;
mod fault;
mod migrations;
mod pool;
pub mod schema;
mod tls;
mod url;
mod write;

use std::sync::Arc;

use chrono::{DateTime, Utc};
use diesel::prelude::*;
use diesel::sql_types::Timestamptz;
use diesel_async::{RunQueryDsl, SimpleAsyncConnection};
use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use tokio::sync::OnceCell;

use super::error::StoreError;
use super::rows::{SessionRow, TranscriptRow};
use super::store::{Backend, BatchOutcome, SessionFilter, clamp};
use super::types::{DbTime, DbUuid};
use crate::config::Secret;
use crate::transcript::Epoch;
use connect::Connector;
use connection::PgConnection;
pub use fault::Fault;
use pool::Pool;
use schema::{sessions, transcripts};

/// Deletes old sessions. One that never got its end (its node is gone) is as old as its last line. A few at a time: the
/// statement has a time-out.
const PURGE: &str = "\
WITH old AS (SELECT session_id FROM sessions s WHERE ended_at < $1 \
    OR (ended_at IS NULL AND created_at < $1 AND NOT EXISTS \
        (SELECT 1 FROM transcripts t WHERE t.session_id = s.session_id AND t.created_at >= $1)) LIMIT 5), \
gone AS (DELETE FROM transcripts t USING old WHERE t.session_id = old.session_id) \
DELETE FROM sessions s USING old WHERE s.session_id = old.session_id";

/// Says what is wrong with a `DATABASE_URL`, without a word of it.
pub fn check_url(url: &Secret) -> Result<(), String> {
    Connector::new(url).map(drop).map_err(|error| error.to_string())
}

/// A Postgres database and the pool of connections to it.
pub struct PostgresBackend {
    pool: Arc<Pool>,
    migrated: OnceCell<()>,
}

impl PostgresBackend {
    /// Connects to nothing yet. Err: the URL is no URL.
    pub fn new(url: &Secret, pool: usize) -> Result<Self, StoreError> {
        let connector = Connector::new(url)?;
        for note in &connector.notes {
            tracing::info!(note, "a parameter of DATABASE_URL");
        }
        Ok(Self { pool: Pool::new(connector, pool), migrated: OnceCell::new() })
    }

    /// Runs `work`, which may be repeated, on a connection of a database whose tables are up to date.
    fn run<'a, T, F>(&'a self, work: F) -> BoxFuture<'a, Result<T, StoreError>>
    where
        T: Send + 'static,
        F: for<'c> Fn(&'c mut PgConnection) -> BoxFuture<'c, Result<T, StoreError>> + Send + Sync + 'a,
    {
        async move {
            self.migrated.get_or_try_init(|| migrations::up(&self.pool)).await?;
            self.pool.run(work).await
        }
        .boxed()
    }
}

impl Backend for PostgresBackend {
    fn name(&self) -> &'static str {
        "postgres"
    }

    fn place(&self) -> String {
        self.pool.connector.to_string()
    }

    fn migrate(&self) -> BoxFuture<'_, Result<(), StoreError>> {
        async {
            migrations::up(&self.pool).await?;
            let _ = self.migrated.set(());
            Ok(())
        }
        .boxed()
    }

    fn revert(&self) -> BoxFuture<'_, Result<(), StoreError>> {
        migrations::down(&self.pool).boxed()
    }

    fn schema_version(&self) -> BoxFuture<'_, Result<Option<String>, StoreError>> {
        migrations::version(&self.pool).boxed()
    }

    fn ping(&self) -> BoxFuture<'_, Result<(), StoreError>> {
        self.run(|c| async { Ok(c.batch_execute("SELECT 1").await?) }.boxed())
    }

    fn forget_connections(&self) {
        self.pool.forget();
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
            let sql = format!("SAVEPOINT canary; {} ROLLBACK TO SAVEPOINT canary", super::CANARY);
            async move { Ok(c.batch_execute(&sql).await?) }.boxed()
        })
    }

    fn session(&self, epoch: Epoch) -> BoxFuture<'_, Result<Option<SessionRow>, StoreError>> {
        self.run(move |c| {
            let query = sessions::table.filter(sessions::session_id.eq(DbUuid(epoch)));
            let query = query.select(SessionRow::postgres_columns());
            async move { Ok(query.first(c).await.optional()?) }.boxed()
        })
    }

    fn sessions(&self, filter: SessionFilter) -> BoxFuture<'_, Result<Vec<SessionRow>, StoreError>> {
        self.run(move |c| {
            let mut query = sessions::table.select(SessionRow::postgres_columns()).into_boxed();
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
            let query = query.select(TranscriptRow::postgres_columns());
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
