//! Writing to Postgres: a batch is one statement, its columns are arrays.

use std::sync::LazyLock;

use diesel::QueryableByName;
use diesel::sql_types::{Array, BigInt, Nullable, Text, Uuid};
use diesel_async::RunQueryDsl;

use super::connection::PgConnection;
use crate::db::StoreError;
use crate::db::columns;
use crate::db::rows::{SessionRow, TranscriptRow};
use crate::db::store::{BatchOutcome, Found, classify};

static INSERT_TRANSCRIPTS: LazyLock<String> = LazyLock::new(|| {
    format!(
        "INSERT INTO transcripts ({}) SELECT * FROM UNNEST({}) ON CONFLICT DO NOTHING",
        columns::names(TranscriptRow::COLUMNS),
        columns::arrays(TranscriptRow::COLUMNS),
    )
});

static UPSERT_SESSIONS: LazyLock<String> = LazyLock::new(|| {
    format!(
        "INSERT INTO sessions ({}) SELECT * FROM UNNEST({}) ON CONFLICT (session_id) DO UPDATE SET {}",
        columns::names(SessionRow::COLUMNS),
        columns::arrays(SessionRow::COLUMNS),
        columns::updates("sessions", SessionRow::COLUMNS, "greatest"),
    )
});

/// Finds what is stored at the number and under the id of each row, in the order of the rows.
const FIND_TRANSCRIPTS: &str = "\
SELECT a.entry_id AS id_at_seq, b.seq AS seq_of_id \
FROM UNNEST($1, $2, $3) WITH ORDINALITY AS k (session_id, seq, entry_id, place) \
LEFT JOIN transcripts a ON a.session_id = k.session_id AND a.seq = k.seq \
LEFT JOIN transcripts b ON b.session_id = k.session_id AND b.entry_id = k.entry_id \
ORDER BY k.place";

#[derive(QueryableByName)]
struct FoundRow {
    #[diesel(sql_type = Nullable<Text>)]
    id_at_seq: Option<String>,
    #[diesel(sql_type = Nullable<BigInt>)]
    seq_of_id: Option<i64>,
}

pub async fn insert_rows(c: &mut PgConnection, rows: &[TranscriptRow]) -> Result<BatchOutcome, StoreError> {
    let query = diesel::sql_query(INSERT_TRANSCRIPTS.as_str()).into_boxed();
    let inserted = TranscriptRow::bind_arrays(rows, query).execute(c).await?;
    if inserted == rows.len() {
        return Ok(BatchOutcome { inserted, ..BatchOutcome::default() });
    }
    let found = find_rows(c, rows).await?;
    // Nothing but a deletion in between can do this; the next attempt sees it clearly.
    classify(rows, inserted, found).map_err(|missing| StoreError::Unavailable(format!("{missing} rows vanished")))
}

async fn find_rows(c: &mut PgConnection, rows: &[TranscriptRow]) -> Result<Vec<Found>, StoreError> {
    let found: Vec<FoundRow> = diesel::sql_query(FIND_TRANSCRIPTS)
        .bind::<Array<Uuid>, _>(rows.iter().map(|row| row.session_id).collect::<Vec<_>>())
        .bind::<Array<BigInt>, _>(rows.iter().map(|row| row.seq).collect::<Vec<_>>())
        .bind::<Array<Text>, _>(rows.iter().map(|row| row.entry_id.as_str()).collect::<Vec<_>>())
        .load(c)
        .await?;
    Ok(found.into_iter().map(|f| Found { id_at_seq: f.id_at_seq, seq_of_id: f.seq_of_id }).collect())
}

pub async fn upsert_sessions(c: &mut PgConnection, rows: &[SessionRow]) -> Result<(), StoreError> {
    let query = diesel::sql_query(UPSERT_SESSIONS.as_str()).into_boxed();
    SessionRow::bind_arrays(rows, query).execute(c).await?;
    Ok(())
}
