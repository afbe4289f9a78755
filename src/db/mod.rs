//! The database: one small interface ([`Store`]) over Postgres and embedded SQLite, and the sink that makes an entry
//! durable. SQL is nowhere else.

pub mod batching;
mod columns;
pub mod delivery;
mod error;
pub mod postgres;
mod quarantine;
pub mod retention;
mod row_queue;
mod rows;
mod runtime;
mod sink;
pub mod sqlite;
mod storage;
mod store;
mod types;

pub use error::StoreError;
pub use postgres::check_url as check_postgres_url;
pub use quarantine::{Kept, Quarantine, QuarantineSummary, Refusal, Refused};
pub use row_queue::{BothQueues, RowQueue};
pub use rows::{RowError, SessionRow, TranscriptRow};
pub use runtime::DbRuntime;
pub use sink::DurableSink;
pub use storage::{DATABASE_CONSUMER, Storage, StorageError, open_store};
pub use store::{Backend, BatchOutcome, Conflict, SessionFilter, Store};

/// Puts a good row into both tables, in either dialect; to be rolled back.
const CANARY: &str = "\
INSERT INTO sessions (session_id, slug, started_at, state)
    VALUES ('ffffffff-ffff-ffff-ffff-ffffffffffff', 'canary', '1970-01-01T00:00:00Z', 'ended');
INSERT INTO transcripts (session_id, seq, entry_id, kind, slug, text)
    VALUES ('ffffffff-ffff-ffff-ffff-ffffffffffff', 1, 'canary', 'final', 'canary', 'canary');";
