//! SQLite, embedded: one writing connection, some reading ones, all on blocking threads of the database runtime.
//!
//! WAL lets readers and the writer go on side by side. `synchronous=FULL`, because a batch that was confirmed leaves
//! the outbox: at one transaction per batch its cost (about 0.3 ms) does not matter.

mod migrations;
pub mod schema;

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, LazyLock};
use std::thread;
use std::time::{Duration, Instant};

use chrono::{DateTime, Utc};
use diesel::connection::SimpleConnection;
use diesel::prelude::*;
use diesel::result::Error as DieselError;
use diesel::sql_types::{BigInt, Text};
use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use parking_lot::Mutex;
use tokio::sync::Semaphore;

use self::migrations::{applied, revert_migrations, run_migrations};
use super::columns;
use super::error::StoreError;
use super::rows::{SessionRow, TranscriptRow};
use super::store::{Backend, BatchOutcome, Found, SessionFilter, clamp, classify};
use super::types::{DbTime, DbUuid};
use crate::transcript::Epoch;
use schema::{sessions, transcripts};

const WRITER_PRAGMAS: &str = "PRAGMA busy_timeout = 5000; PRAGMA synchronous = FULL;";
const READER_PRAGMAS: &str = "PRAGMA busy_timeout = 5000; PRAGMA query_only = ON;";
/// Longest wait for another process when a file is switched to WAL, and the pause between two attempts.
const WAL_TIMEOUT: Duration = Duration::from_secs(5);
const WAL_RETRY: Duration = Duration::from_millis(5);
/// Rows of one statement: SQLite takes at most 32,766 values in one, and a row has 22.
const STATEMENT_ROWS: usize = 1000;
/// Sessions deleted in one transaction.
const PURGE_SESSIONS: i64 = 100;

static UPSERT_SESSION: LazyLock<String> = LazyLock::new(|| {
    format!(
        "INSERT INTO sessions ({}) VALUES {} ON CONFLICT (session_id) DO UPDATE SET {}",
        columns::names(SessionRow::COLUMNS),
        columns::values(SessionRow::COLUMNS, 1),
        columns::updates("sessions", SessionRow::COLUMNS, "max"),
    )
});

/// A SQLite file, its writing connection and its reading ones.
pub struct SqliteBackend {
    path: PathBuf,
    writer: Arc<Mutex<Option<SqliteConnection>>>,
    readers: Arc<Mutex<Vec<SqliteConnection>>>,
    reading: Arc<Semaphore>,
    /// The tables were brought up to date.
    migrated: Arc<AtomicBool>,
}

impl SqliteBackend {
    /// Opens nothing yet. `pool` is the number of reading connections.
    pub fn new(path: &Path, pool: usize) -> Self {
        Self {
            path: path.to_owned(),
            writer: Arc::default(),
            readers: Arc::default(),
            reading: Arc::new(Semaphore::new(pool)),
            migrated: Arc::default(),
        }
    }

    /// Runs `work` on the writing connection, whose tables are up to date.
    fn write<T, F>(&self, work: F) -> BoxFuture<'static, Result<T, StoreError>>
    where
        T: Send + 'static,
        F: FnOnce(&mut SqliteConnection) -> Result<T, StoreError> + Send + 'static,
    {
        let (writer, path, migrated) = (self.writer.clone(), self.path.clone(), self.migrated.clone());
        let task = move || {
            let mut slot = writer.lock();
            if slot.is_none() {
                let mut connection = open(&path, WRITER_PRAGMAS)?;
                switch_to_wal(&mut connection).map_err(|e| unavailable(&path, &e))?;
                run_migrations(&mut connection)?;
                migrated.store(true, Ordering::Release);
                *slot = Some(connection);
            }
            let result = work(slot.as_mut().expect("it was just opened"));
            if result.as_ref().is_err_and(StoreError::breaks_connection) {
                *slot = None;
            }
            result
        };
        blocking(task).boxed()
    }

    fn read<T, F>(&self, work: F) -> BoxFuture<'static, Result<T, StoreError>>
    where
        T: Send + 'static,
        F: FnOnce(&mut SqliteConnection) -> Result<T, StoreError> + Send + 'static,
    {
        let (readers, reading, path) = (self.readers.clone(), self.reading.clone(), self.path.clone());
        let ready = (!self.migrated.load(Ordering::Acquire)).then(|| self.write(|_| Ok(())));
        async move {
            if let Some(ready) = ready {
                ready.await?;
            }
            let _permit = reading.acquire().await.expect("the semaphore is never closed");
            blocking(move || {
                let idle = readers.lock().pop();
                let mut connection = idle.map_or_else(|| open(&path, READER_PRAGMAS), Ok)?;
                let result = work(&mut connection)?;
                readers.lock().push(connection);
                Ok(result)
            })
            .await
        }
        .boxed()
    }
}

async fn blocking<T, F>(task: F) -> Result<T, StoreError>
where
    T: Send + 'static,
    F: FnOnce() -> Result<T, StoreError> + Send + 'static,
{
    tokio::task::spawn_blocking(task).await.unwrap_or_else(|e| Err(StoreError::Internal(e.to_string())))
}

fn open(path: &Path, pragmas: &str) -> Result<SqliteConnection, StoreError> {
    if let Some(dir) = path.parent().filter(|d| !d.as_os_str().is_empty()) {
        std::fs::create_dir_all(dir).map_err(|e| unavailable(path, &e))?;
    }
    let mut connection = SqliteConnection::establish(&path.to_string_lossy()).map_err(|e| unavailable(path, &e))?;
    connection.batch_execute(pragmas).map_err(|e| unavailable(path, &e))?;
    Ok(connection)
}

fn unavailable(path: &Path, error: &dyn std::fmt::Display) -> StoreError {
    StoreError::Unavailable(format!("{}: {error}", path.display()))
}

/// SQLite reads the file's mode under a lock that it then widens, and answers "database is locked" at once, whatever
/// the busy time-out, where two do so (<https://sqlite.org/c3ref/busy_handler.html>). With its lock let go, it may try again.
fn switch_to_wal(connection: &mut SqliteConnection) -> QueryResult<()> {
    let give_up = Instant::now() + WAL_TIMEOUT;
    loop {
        match connection.batch_execute("PRAGMA journal_mode = WAL") {
            Err(e) if e.to_string().contains("is locked") && Instant::now() < give_up => thread::sleep(WAL_RETRY),
            result => return result,
        }
    }
}

fn insert_rows(c: &mut SqliteConnection, rows: &[TranscriptRow]) -> Result<BatchOutcome, StoreError> {
    let mut inserted = 0;
    for part in rows.chunks(STATEMENT_ROWS) {
        inserted += insert_or_ignore(c, part)?;
    }
    if inserted == rows.len() {
        return Ok(BatchOutcome { inserted, ..BatchOutcome::default() });
    }
    let found = rows.iter().map(|row| find(c, row)).collect::<Result<_, _>>()?;
    // `OR IGNORE` passes over rows that violate a constraint, too.
    classify(rows, inserted, found)
        .map_err(|missing| StoreError::Rejected(format!("{missing} of {} rows violate a constraint", rows.len())))
}

fn find(c: &mut SqliteConnection, row: &TranscriptRow) -> Result<Found, StoreError> {
    let of_session = transcripts::table.filter(transcripts::session_id.eq(row.session_id));
    let at_seq = of_session.filter(transcripts::seq.eq(row.seq)).select(transcripts::entry_id);
    let of_id = of_session.filter(transcripts::entry_id.eq(&row.entry_id)).select(transcripts::seq);
    Ok(Found { id_at_seq: at_seq.first(c).optional()?, seq_of_id: of_id.first(c).optional()? })
}

fn upsert_session(c: &mut SqliteConnection, row: &SessionRow) -> QueryResult<usize> {
    row.bind(diesel::sql_query(UPSERT_SESSION.as_str()).into_boxed()).execute(c)
}

/// Inserts the rows by one statement; those that are there already, or violate a constraint, are passed over.
fn insert_or_ignore(c: &mut SqliteConnection, rows: &[TranscriptRow]) -> QueryResult<usize> {
    let (names, values) = (columns::names(TranscriptRow::COLUMNS), columns::values(TranscriptRow::COLUMNS, rows.len()));
    let query = diesel::sql_query(format!("INSERT OR IGNORE INTO transcripts ({names}) VALUES {values}"));
    rows.iter().fold(query.into_boxed(), |query, row| row.bind(query)).execute(c)
}

/// Finds old sessions. One that never got its end (its node is gone) is as old as its last line.
const FIND_OLD: &str = "\
SELECT session_id FROM sessions s WHERE ended_at < ? \
OR (ended_at IS NULL AND created_at < ? AND NOT EXISTS \
    (SELECT 1 FROM transcripts t WHERE t.session_id = s.session_id AND t.created_at >= ?)) LIMIT ?";

#[derive(QueryableByName)]
struct Old {
    #[diesel(sql_type = Text)]
    session_id: DbUuid,
}

/// Deletes up to [`PURGE_SESSIONS`] sessions.
fn purge_some(c: &mut SqliteConnection, ended_before: DbTime) -> QueryResult<usize> {
    c.immediate_transaction(|c| {
        let found: Vec<Old> = diesel::sql_query(FIND_OLD)
            .bind::<Text, _>(ended_before)
            .bind::<Text, _>(ended_before)
            .bind::<Text, _>(ended_before)
            .bind::<BigInt, _>(PURGE_SESSIONS)
            .load(c)?;
        let old: Vec<DbUuid> = found.into_iter().map(|one| one.session_id).collect();
        diesel::delete(transcripts::table.filter(transcripts::session_id.eq_any(&old))).execute(c)?;
        diesel::delete(sessions::table.filter(sessions::session_id.eq_any(&old))).execute(c)
    })
}

impl Backend for SqliteBackend {
    fn name(&self) -> &'static str {
        "sqlite"
    }

    fn place(&self) -> String {
        self.path.display().to_string()
    }

    fn migrate(&self) -> BoxFuture<'_, Result<(), StoreError>> {
        self.write(run_migrations)
    }

    fn revert(&self) -> BoxFuture<'_, Result<(), StoreError>> {
        self.write(|c| revert_migrations(c).map_err(|e| StoreError::Migration(e.0.to_string())))
    }

    fn schema_version(&self) -> BoxFuture<'_, Result<Option<String>, StoreError>> {
        self.write(|c| {
            let versions = applied(c).map_err(|e| StoreError::Migration(e.0.to_string()))?;
            Ok(versions.into_iter().next_back())
        })
    }

    fn ping(&self) -> BoxFuture<'_, Result<(), StoreError>> {
        self.write(|c| Ok(c.batch_execute("SELECT 1")?))
    }

    fn insert_batch(&self, rows: Arc<[TranscriptRow]>) -> BoxFuture<'_, Result<BatchOutcome, StoreError>> {
        self.write(move |c| c.immediate_transaction(|c| insert_rows(c, &rows)))
    }

    fn upsert_sessions(&self, rows: Arc<[SessionRow]>) -> BoxFuture<'_, Result<(), StoreError>> {
        self.write(move |c| {
            c.immediate_transaction(|c| rows.iter().try_for_each(|row| upsert_session(c, row).map(drop)))?;
            Ok(())
        })
    }

    fn end_session(&self, epoch: Epoch, ended_at: DateTime<Utc>) -> BoxFuture<'_, Result<bool, StoreError>> {
        self.write(move |c| {
            let open = sessions::table.filter(sessions::session_id.eq(DbUuid(epoch)).and(sessions::state.ne("ended")));
            let ended = (sessions::state.eq("ended"), sessions::ended_at.eq(DbTime(ended_at)));
            Ok(diesel::update(open).set(ended).execute(c)? > 0)
        })
    }

    fn write_canary(&self) -> BoxFuture<'_, Result<(), StoreError>> {
        self.write(|c| {
            let result = c.immediate_transaction::<(), _, _>(|c| {
                c.batch_execute(super::CANARY)?;
                Err(DieselError::RollbackTransaction)
            });
            result.or_else(|e| if e == DieselError::RollbackTransaction { Ok(()) } else { Err(e.into()) })
        })
    }

    fn session(&self, epoch: Epoch) -> BoxFuture<'_, Result<Option<SessionRow>, StoreError>> {
        self.read(move |c| {
            let query = sessions::table.filter(sessions::session_id.eq(DbUuid(epoch)));
            Ok(query.select(SessionRow::sqlite_columns()).first(c).optional()?)
        })
    }

    fn sessions(&self, filter: SessionFilter) -> BoxFuture<'_, Result<Vec<SessionRow>, StoreError>> {
        self.read(move |c| {
            let mut query = sessions::table.select(SessionRow::sqlite_columns()).into_boxed();
            if let Some(slug) = &filter.slug {
                query = query.filter(sessions::slug.eq(slug.as_str()));
            }
            if let Some(before) = filter.before {
                query = query.filter(sessions::session_id.lt(DbUuid(before)));
            }
            Ok(query.order(sessions::session_id.desc()).limit(clamp(filter.limit as u64)).load(c)?)
        })
    }

    fn transcripts(
        &self,
        epoch: Epoch,
        after: i64,
        limit: i64,
    ) -> BoxFuture<'_, Result<Vec<TranscriptRow>, StoreError>> {
        self.read(move |c| {
            let later = transcripts::session_id.eq(DbUuid(epoch)).and(transcripts::seq.gt(after));
            let query = transcripts::table.filter(later).order(transcripts::seq).limit(limit);
            Ok(query.select(TranscriptRow::sqlite_columns()).load(c)?)
        })
    }

    fn entry_ids(&self, epoch: Epoch, after: i64, last: i64) -> BoxFuture<'_, Result<Vec<(String, i64)>, StoreError>> {
        self.read(move |c| {
            let some = transcripts::seq.gt(after).and(transcripts::seq.le(last));
            let query = transcripts::table.filter(transcripts::session_id.eq(DbUuid(epoch)).and(some));
            let query = query.order(transcripts::seq).select((transcripts::entry_id, transcripts::seq));
            Ok(query.load(c)?)
        })
    }

    fn last_seq(&self, epoch: Epoch) -> BoxFuture<'_, Result<Option<i64>, StoreError>> {
        self.read(move |c| {
            let query = transcripts::table.filter(transcripts::session_id.eq(DbUuid(epoch)));
            Ok(query.select(diesel::dsl::max(transcripts::seq)).first(c)?)
        })
    }

    fn purge(&self, ended_before: DateTime<Utc>) -> BoxFuture<'_, Result<u64, StoreError>> {
        self.write(move |c| {
            let mut purged = 0;
            loop {
                match purge_some(c, DbTime(ended_before))? {
                    0 => return Ok(purged),
                    some => purged += some as u64,
                }
            }
        })
    }
}
