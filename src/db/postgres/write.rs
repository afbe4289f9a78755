//! Writing to Postgres: a batch is one statement, its columns are arrays.

use diesel::QueryableByName;
use diesel::sql_types::{Array, BigInt, Bool, Double, Jsonb, Nullable, Text, Timestamptz, Uuid};
use diesel_async::RunQueryDsl;

use super::connection::PgConnection;
use crate::db::StoreError;
use crate::db::rows::{SessionRow, TranscriptRow};
use crate::db::store::{BatchOutcome, Found, classify};

const INSERT_TRANSCRIPTS: &str = "\
INSERT INTO transcripts (session_id, seq, entry_id, kind, slug, revision, text, start_ms, end_ms, language, confidence, \
    speaker_identity, speaker_name, words, reason, status, \"timestamp\", decode_ms, stt_ms, server_ms, \
    durable, \"of\") \
SELECT * FROM UNNEST($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15, $16, $17, $18, $19, $20, $21, $22) \
ON CONFLICT DO NOTHING";

/// What is stored at the number and under the id of each row, in the order of the rows.
const FIND_TRANSCRIPTS: &str = "\
SELECT a.entry_id AS id_at_seq, b.seq AS seq_of_id \
FROM UNNEST($1, $2, $3) WITH ORDINALITY AS k (session_id, seq, entry_id, place) \
LEFT JOIN transcripts a ON a.session_id = k.session_id AND a.seq = k.seq \
LEFT JOIN transcripts b ON b.session_id = k.session_id AND b.entry_id = k.entry_id \
ORDER BY k.place";

const UPSERT_SESSIONS: &str = "\
INSERT INTO sessions (session_id, slug, started_at, ended_at, state, last_seq, language, received_ms, inserted_ms, \
    acknowledged_ms, spoken_ms, finalised_ms, lost_ms, losses, \
    decoded_ms, sent_ms, resent_ms) \
SELECT * FROM UNNEST($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15, $16, $17) \
ON CONFLICT (session_id) DO UPDATE SET \
    ended_at = coalesce(sessions.ended_at, excluded.ended_at), \
    state = CASE WHEN sessions.state = 'ended' THEN 'ended' ELSE excluded.state END, \
    last_seq = greatest(sessions.last_seq, excluded.last_seq), \
    language = coalesce(excluded.language, sessions.language), \
    received_ms = greatest(sessions.received_ms, excluded.received_ms), \
    inserted_ms = greatest(sessions.inserted_ms, excluded.inserted_ms), \
    acknowledged_ms = greatest(sessions.acknowledged_ms, excluded.acknowledged_ms), \
    spoken_ms = greatest(sessions.spoken_ms, excluded.spoken_ms), \
    finalised_ms = greatest(sessions.finalised_ms, excluded.finalised_ms), \
    lost_ms = greatest(sessions.lost_ms, excluded.lost_ms), \
    losses = excluded.losses, \
    decoded_ms = greatest(sessions.decoded_ms, excluded.decoded_ms), \
    sent_ms = greatest(sessions.sent_ms, excluded.sent_ms), \
    resent_ms = greatest(sessions.resent_ms, excluded.resent_ms)";

#[derive(QueryableByName)]
struct FoundRow {
    #[diesel(sql_type = Nullable<Text>)]
    id_at_seq: Option<String>,
    #[diesel(sql_type = Nullable<BigInt>)]
    seq_of_id: Option<i64>,
}

fn column<'r, R, T>(rows: &'r [R], value: impl Fn(&'r R) -> T) -> Vec<T> {
    rows.iter().map(value).collect()
}

pub async fn insert_rows(c: &mut PgConnection, rows: &[TranscriptRow]) -> Result<BatchOutcome, StoreError> {
    let inserted = diesel::sql_query(INSERT_TRANSCRIPTS)
        .bind::<Array<Uuid>, _>(column(rows, |r| r.session_id))
        .bind::<Array<BigInt>, _>(column(rows, |r| r.seq))
        .bind::<Array<Text>, _>(column(rows, |r| r.entry_id.as_str()))
        .bind::<Array<Text>, _>(column(rows, |r| r.kind.as_str()))
        .bind::<Array<Text>, _>(column(rows, |r| r.slug.as_str()))
        .bind::<Array<BigInt>, _>(column(rows, |r| r.revision))
        .bind::<Array<Nullable<Text>>, _>(column(rows, |r| r.text.as_deref()))
        .bind::<Array<Nullable<BigInt>>, _>(column(rows, |r| r.start_ms))
        .bind::<Array<Nullable<BigInt>>, _>(column(rows, |r| r.end_ms))
        .bind::<Array<Nullable<Text>>, _>(column(rows, |r| r.language.as_deref()))
        .bind::<Array<Nullable<Double>>, _>(column(rows, |r| r.confidence))
        .bind::<Array<Nullable<Text>>, _>(column(rows, |r| r.speaker_identity.as_deref()))
        .bind::<Array<Nullable<Text>>, _>(column(rows, |r| r.speaker_name.as_deref()))
        .bind::<Array<Nullable<Jsonb>>, _>(column(rows, |r| r.words.as_ref()))
        .bind::<Array<Nullable<Text>>, _>(column(rows, |r| r.reason.as_deref()))
        .bind::<Array<Nullable<Text>>, _>(column(rows, |r| r.status.as_deref()))
        .bind::<Array<Nullable<Timestamptz>>, _>(column(rows, |r| r.timestamp))
        .bind::<Array<Nullable<BigInt>>, _>(column(rows, |r| r.decode_ms))
        .bind::<Array<Nullable<BigInt>>, _>(column(rows, |r| r.stt_ms))
        .bind::<Array<Nullable<BigInt>>, _>(column(rows, |r| r.server_ms))
        .bind::<Array<Bool>, _>(column(rows, |r| r.durable))
        .bind::<Array<Nullable<Text>>, _>(column(rows, |r| r.of.as_deref()))
        .execute(c)
        .await?;
    if inserted == rows.len() {
        return Ok(BatchOutcome { inserted, ..BatchOutcome::default() });
    }
    let found = find_rows(c, rows).await?;
    // Nothing but a deletion in between can do this; the next attempt sees it clearly.
    classify(rows, inserted, found).map_err(|missing| StoreError::Unavailable(format!("{missing} rows vanished")))
}

async fn find_rows(c: &mut PgConnection, rows: &[TranscriptRow]) -> Result<Vec<Found>, StoreError> {
    let found: Vec<FoundRow> = diesel::sql_query(FIND_TRANSCRIPTS)
        .bind::<Array<Uuid>, _>(column(rows, |r| r.session_id))
        .bind::<Array<BigInt>, _>(column(rows, |r| r.seq))
        .bind::<Array<Text>, _>(column(rows, |r| r.entry_id.as_str()))
        .load(c)
        .await?;
    Ok(found.into_iter().map(|f| Found { id_at_seq: f.id_at_seq, seq_of_id: f.seq_of_id }).collect())
}

pub async fn upsert_sessions(c: &mut PgConnection, rows: &[SessionRow]) -> Result<(), StoreError> {
    diesel::sql_query(UPSERT_SESSIONS)
        .bind::<Array<Uuid>, _>(column(rows, |r| r.session_id))
        .bind::<Array<Text>, _>(column(rows, |r| r.slug.as_str()))
        .bind::<Array<Timestamptz>, _>(column(rows, |r| r.started_at))
        .bind::<Array<Nullable<Timestamptz>>, _>(column(rows, |r| r.ended_at))
        .bind::<Array<Text>, _>(column(rows, |r| r.state.as_str()))
        .bind::<Array<BigInt>, _>(column(rows, |r| r.last_seq))
        .bind::<Array<Nullable<Text>>, _>(column(rows, |r| r.language.as_deref()))
        .bind::<Array<BigInt>, _>(column(rows, |r| r.received_ms))
        .bind::<Array<BigInt>, _>(column(rows, |r| r.inserted_ms))
        .bind::<Array<BigInt>, _>(column(rows, |r| r.acknowledged_ms))
        .bind::<Array<BigInt>, _>(column(rows, |r| r.spoken_ms))
        .bind::<Array<BigInt>, _>(column(rows, |r| r.finalised_ms))
        .bind::<Array<BigInt>, _>(column(rows, |r| r.lost_ms))
        .bind::<Array<Jsonb>, _>(column(rows, |r| &r.losses))
        .bind::<Array<BigInt>, _>(column(rows, |r| r.decoded_ms))
        .bind::<Array<BigInt>, _>(column(rows, |r| r.sent_ms))
        .bind::<Array<BigInt>, _>(column(rows, |r| r.resent_ms))
        .execute(c)
        .await?;
    Ok(())
}
