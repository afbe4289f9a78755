//! Migrations of a SQLite file: ours alone, and only where no other program's tables are.

use std::collections::BTreeSet;

use diesel::migration::MigrationSource;
use diesel::prelude::*;
use diesel::sql_types::Text;
use diesel::sqlite::Sqlite;
use diesel_migrations::{EmbeddedMigrations, MigrationHarness, embed_migrations};

use super::schema::{sessions, transcripts};
use crate::db::error::StoreError;
use crate::db::rows::{SessionRow, TranscriptRow};

const MIGRATIONS: EmbeddedMigrations = embed_migrations!("migrations/sqlite");
/// Advice where another program's tables are in the way.
const REMEDY: &str = "give this program a file of its own: DATABASE_URL=sqlite:///path/stenocast.db";
const FIND_TABLES: &str = "SELECT name FROM sqlite_master WHERE type IN ('table', 'view') AND name IN ('sessions', 'transcripts') ORDER BY name";

#[derive(QueryableByName)]
struct Name {
    #[diesel(sql_type = Text)]
    name: String,
}

/// An immediate transaction is the lock against another process that does the same.
pub(super) fn run_migrations(connection: &mut SqliteConnection) -> Result<(), StoreError> {
    let run = |c: &mut SqliteConnection| {
        refuse_foreign_tables(c)?;
        c.run_pending_migrations(MIGRATIONS).map_err(Boxed)?;
        read_nothing(c).map_err(|e| {
            let why = format!("the migrations are on record as run, and yet the tables are not ours: {e}; {REMEDY}");
            Boxed(why.into())
        })
    };
    connection.immediate_transaction(run).map_err(|e| StoreError::Migration(e.0.to_string()))
}

/// The migrations may be on record, and their tables gone or another program's.
fn read_nothing(c: &mut SqliteConnection) -> QueryResult<()> {
    let sessions = sessions::table.select(SessionRow::sqlite_columns()).limit(0);
    let transcripts = transcripts::table.select(TranscriptRow::sqlite_columns()).limit(0);
    let _: Vec<SessionRow> = sessions.load(c)?;
    transcripts.load::<TranscriptRow>(c).map(drop)
}

fn refuse_foreign_tables(c: &mut SqliteConnection) -> Result<(), Boxed> {
    let applied = applied(c)?;
    let found: Vec<Name> = diesel::sql_query(FIND_TABLES).load(c)?;
    if !applied.is_empty() || found.is_empty() {
        return Ok(());
    }
    let names: Vec<_> = found.into_iter().map(|one| one.name).collect();
    Err(Boxed(format!("the file has another program's {}; {REMEDY}", names.join(" and ")).into()))
}

/// Answers which of our versions were run. Others in the same table are other programs'.
pub(super) fn applied(c: &mut SqliteConnection) -> Result<BTreeSet<String>, Boxed> {
    let migrations = MigrationSource::<Sqlite>::migrations(&MIGRATIONS).map_err(Boxed)?;
    let ours: BTreeSet<String> = migrations.iter().map(|m| m.name().version().to_string()).collect();
    let all: BTreeSet<String> = c.applied_migrations().map_err(Boxed)?.into_iter().map(|v| v.to_string()).collect();
    Ok(all.intersection(&ours).cloned().collect())
}

/// Takes back ours alone.
pub(super) fn revert_migrations(c: &mut SqliteConnection) -> Result<(), Boxed> {
    let applied = applied(c)?;
    let mut migrations = MigrationSource::<Sqlite>::migrations(&MIGRATIONS).map_err(Boxed)?;
    migrations.retain(|m| applied.contains(&m.name().version().to_string()));
    migrations.sort_unstable_by(|a, b| b.name().version().cmp(&a.name().version()));
    migrations.iter().try_for_each(|m| c.revert_migration(m.as_ref()).map(drop).map_err(Boxed))
}

/// diesel's transaction wants an error that its own converts into.
pub(super) struct Boxed(pub Box<dyn std::error::Error + Send + Sync>);

impl From<diesel::result::Error> for Boxed {
    fn from(error: diesel::result::Error) -> Self {
        Self(Box::new(error))
    }
}
