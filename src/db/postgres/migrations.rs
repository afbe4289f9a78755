//! Brings the tables to this program's version, beside whatever else there is in the database.

use std::collections::BTreeSet;

use diesel::migration::MigrationSource;
use diesel::pg::Pg;
use diesel::prelude::*;
use diesel::result::Error as DieselError;
use diesel::sql_types::{Array, Nullable, Text};
use diesel_async::RunQueryDsl;
use diesel_async::async_connection_wrapper::AsyncConnectionWrapper;
use diesel_migrations::{EmbeddedMigrations, MigrationHarness, embed_migrations};

use super::connection::PgConnection;
use super::fault::Fault;
use super::pool::Pool;
use super::schema::{sessions, transcripts};
use crate::db::{SessionRow, StoreError, TranscriptRow};

const MIGRATIONS: EmbeddedMigrations = embed_migrations!("migrations/postgres");
/// Held by the process that migrates, to the end of its transaction: that works through a pooler, too. The number is
/// arbitrary ("steno" in ASCII).
const LOCK: &str = "SELECT pg_advisory_xact_lock(495874074223);";
const LIMITS: &str = "SET LOCAL statement_timeout = 0; SET LOCAL lock_timeout = 60000;";
/// Asks what there is: our schema's name (null: none), which of our tables are in it, and the versions that were run.
const INSPECT: &str = "\
SELECT current_schema()::text AS schema, \
    array(SELECT c.relname::text FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace \
        WHERE n.nspname = current_schema() AND c.relkind IN ('r', 'p', 'v', 'm', 'f') \
        AND c.relname IN ('sessions', 'transcripts') ORDER BY 1) AS tables, \
    to_regclass('__diesel_schema_migrations')::text AS history";

type Wrapped = AsyncConnectionWrapper<PgConnection>;
type BoxError = Box<dyn std::error::Error + Send + Sync>;

#[derive(QueryableByName)]
struct Inspection {
    #[diesel(sql_type = Nullable<Text>)]
    schema: Option<String>,
    #[diesel(sql_type = Array<Text>)]
    tables: Vec<String>,
    #[diesel(sql_type = Nullable<Text>)]
    history: Option<String>,
}

#[derive(QueryableByName)]
struct Version {
    #[diesel(sql_type = Text)]
    version: String,
}

/// Brings the tables up to date. Where somebody else has run the migrations, no right to do so is needed.
pub async fn up(pool: &Pool) -> Result<(), StoreError> {
    let (inspection, applied) = inspect(pool).await?;
    if ours()?.iter().all(|version| applied.contains(version)) {
        return verify(pool).await;
    }
    if applied.is_empty() && !inspection.tables.is_empty() {
        return Err(StoreError::Migration(foreign_tables(&inspection)));
    }
    run(pool, |c| c.run_pending_migrations(MIGRATIONS).map(drop)).await?;
    verify(pool).await
}

/// Takes back ours alone.
pub async fn down(pool: &Pool) -> Result<(), StoreError> {
    run(pool, |c| {
        let applied: BTreeSet<_> = c.applied_migrations()?.into_iter().map(|v| v.to_string()).collect();
        let mut migrations = MigrationSource::<Pg>::migrations(&MIGRATIONS)?;
        migrations.retain(|m| applied.contains(&m.name().version().to_string()));
        migrations.sort_unstable_by(|a, b| b.name().version().cmp(&a.name().version()));
        migrations.iter().try_for_each(|m| c.revert_migration(m.as_ref()).map(drop))
    })
    .await
}

/// The newest of our versions that was run.
pub async fn version(pool: &Pool) -> Result<Option<String>, StoreError> {
    Ok(inspect(pool).await?.1.into_iter().next_back())
}

fn ours() -> Result<BTreeSet<String>, StoreError> {
    let fault = |e: BoxError| StoreError::Migration(e.to_string());
    let migrations = MigrationSource::<Pg>::migrations(&MIGRATIONS).map_err(fault)?;
    Ok(migrations.iter().map(|m| m.name().version().to_string()).collect())
}

/// Answers what there is, and which of our versions were run. Others in the same table are other programs'.
async fn inspect(pool: &Pool) -> Result<(Inspection, BTreeSet<String>), StoreError> {
    let mut connection = pool.direct().await?;
    let (inspection, all) = connection.transaction(&pool.connector.settings, look).await?;
    Ok((inspection, all.intersection(&ours()?).cloned().collect()))
}

async fn look(c: &mut PgConnection) -> Result<(Inspection, BTreeSet<String>), StoreError> {
    let inspection: Inspection = diesel::sql_query(INSPECT).get_result(c).await?;
    let versions: Vec<Version> = match inspection.history {
        Some(_) => diesel::sql_query("SELECT version FROM __diesel_schema_migrations").load(c).await?,
        None => Vec::new(),
    };
    Ok((inspection, versions.into_iter().map(|v| v.version).collect()))
}

/// The migrations may be on record, and their tables gone or another program's.
async fn verify(pool: &Pool) -> Result<(), StoreError> {
    let mut connection = pool.direct().await?;
    let read = connection.transaction(&pool.connector.settings, read_nothing).await;
    let may_read = !connection.last_fault().is_some_and(Fault::is_missing_right);
    read.map_err(|error| match error {
        StoreError::Refused(why) if !may_read => {
            StoreError::Migration(format!("{why}; grant the role SELECT, INSERT, UPDATE and DELETE on our tables"))
        }
        StoreError::Refused(why) => StoreError::Migration(format!(
            "the migrations are on record as run, and yet the tables are not ours: {why}; {REMEDY}, or remove our \
             versions from __diesel_schema_migrations"
        )),
        other => other,
    })
}

async fn read_nothing(c: &mut PgConnection) -> Result<(), StoreError> {
    let sessions = sessions::table.select(SessionRow::postgres_columns()).limit(0);
    let _: Vec<SessionRow> = sessions.load(c).await?;
    let transcripts = transcripts::table.select(TranscriptRow::postgres_columns()).limit(0);
    let _: Vec<TranscriptRow> = transcripts.load(c).await?;
    Ok(())
}

const REMEDY: &str =
    "give this program a schema of its own: DATABASE_URL=…?schema=stenocast (it is made when there is none)";

fn foreign_tables(found: &Inspection) -> String {
    let schema = found.schema.as_deref().unwrap_or_default();
    format!("schema {schema:?} has another program's {}; {REMEDY}", found.tables.join(" and "))
}

/// In one transaction: all or nothing, and one process at a time.
async fn run(pool: &Pool, work: fn(&mut Wrapped) -> Result<(), BoxError>) -> Result<(), StoreError> {
    let connection = pool.direct().await?;
    let begin = format!("{LIMITS} {} {LOCK}", pool.connector.asked_settings);
    let schema = pool.connector.schema.clone();
    let task = move || {
        let mut connection = Wrapped::from(connection);
        let result = diesel::Connection::transaction(&mut connection, |c| {
            diesel::connection::SimpleConnection::batch_execute(c, &begin)?;
            if let Some(schema) = schema {
                make_schema(c, &schema)?;
            }
            work(c).map_err(Failure)
        });
        result.map_err(|failure| explain(&failure, &connection))
    };
    tokio::task::spawn_blocking(task).await.unwrap_or_else(|panic| Err(StoreError::Internal(panic.to_string())))
}

/// Only where there is none: the right to make one is asked for even where there is.
fn make_schema(c: &mut Wrapped, name: &str) -> Result<(), DieselError> {
    let query = diesel::sql_query("SELECT nspname::text AS version FROM pg_catalog.pg_namespace WHERE nspname = $1");
    let found: Vec<Version> = diesel::RunQueryDsl::load(query.bind::<Text, _>(name), c)?;
    if found.is_empty() {
        let sql = format!("CREATE SCHEMA \"{}\"", name.replace('"', "\"\""));
        diesel::connection::SimpleConnection::batch_execute(c, &sql)?;
    }
    Ok(())
}

fn explain(failure: &Failure, connection: &PgConnection) -> StoreError {
    let Some(fault) = connection.last_fault() else {
        return StoreError::Migration(failure.0.to_string());
    };
    let hint = if fault.is_missing_right() { format!("; grant the role CREATE, or {REMEDY}") } else { String::new() };
    match StoreError::from(fault.clone()) {
        StoreError::Refused(why) | StoreError::Rejected(why) => StoreError::Migration(format!("{why}{hint}")),
        other => other,
    }
}

struct Failure(BoxError);

impl From<DieselError> for Failure {
    fn from(error: DieselError) -> Self {
        Self(Box::new(error))
    }
}
