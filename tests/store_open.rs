//! Opening the storage: what is said when it cannot be opened, and what there is in each mode.

use std::collections::HashMap;
use std::path::Path;
use std::sync::Arc;

use stenocast::config::Config;
use stenocast::db::{DATABASE_CONSUMER, Storage, StorageError};
use stenocast::metrics::Metrics;
use stenocast::transcript::outbox::OutboxError;
use stenocast::transcript::{Durability, Epoch, SessionRecord, Slug};

async fn open(dir: &Path, more: &[(&str, &str)]) -> Result<Storage, StorageError> {
    let given = [("DATA_DIR", dir.to_str().unwrap())];
    let values: HashMap<_, _> = given.iter().chain(more).map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect();
    Storage::open(&Config::load(&values, true).unwrap(), vec![], Arc::new(Metrics::new())).await
}

fn session() -> SessionRecord {
    SessionRecord::begun(Epoch::nil(), Slug::parse("demo").unwrap(), Default::default())
}

#[actix::test]
async fn an_unusable_data_directory_is_named() {
    let file = tempfile::NamedTempFile::new().unwrap();
    let error = open(file.path(), &[]).await.err().unwrap().to_string();
    assert!(error.contains(file.path().to_str().unwrap()), "{error}");
}

#[actix::test]
async fn an_unusable_database_file_is_named() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("no.db"), "this is no database, and long enough to be sure of that".repeat(99))
        .unwrap();
    let error = open(dir.path(), &[("DATABASE_URL", "sqlite://DATA_DIR/no.db")]).await.err().unwrap();
    assert!(matches!(error, StorageError::Store(_)), "{error}");
    assert!(error.to_string().contains("no.db"), "{error}");
}

#[actix::test]
async fn a_data_directory_belongs_to_one_process() {
    let dir = tempfile::tempdir().unwrap();
    let first = open(dir.path(), &[]).await.unwrap();
    let error = open(dir.path(), &[]).await.err().unwrap();
    assert!(matches!(error, StorageError::Outbox(OutboxError::Locked { .. })), "{error}");
    drop(first);
    open(dir.path(), &[]).await.unwrap();
}

#[actix::test]
async fn a_bad_database_url_is_a_fault_among_the_others_and_is_not_quoted() {
    let values = [
        ("DATABASE_URL", "postgres://u:s3cret@h/d?sslmode=s3cret"),
        ("PORT", "high"),
        ("RUST_LOG", "stenocast=loud"),
        ("GLADIA_LANGUAGES", "english,fr"),
        ("LIVEKIT_URL", "foo"),
    ];
    let values: HashMap<_, _> = values.map(|(k, v)| (k.to_owned(), v.to_owned())).into();
    let faults = Config::load_checked(&values, true, stenocast::db::check_postgres_url).unwrap_err();
    let text = faults.to_string();
    for part in ["verify-full", "PORT", "RUST_LOG", "english", "LIVEKIT_URL"] {
        assert!(text.contains(part), "{part}: {text}");
    }
    assert_eq!(faults.0.len(), 5, "{text}");
    assert!(!format!("{text} {faults:?}").contains("s3cret"), "{text}");
}

#[actix::test]
async fn an_ingest_node_has_an_outbox_and_no_database() {
    let dir = tempfile::tempdir().unwrap();
    let mode = [("SERVER_MODE", "rtmp"), ("WS_SERVER_URL", "http://ws:8080"), ("BROADCAST_TOKEN", "t")];
    let storage = open(dir.path(), &mode).await.unwrap();
    assert!(storage.store.is_none());
    assert!(matches!(storage.outbox.consumer(DATABASE_CONSUMER), Err(OutboxError::NoConsumer(_))));
    assert_eq!(storage.sink.save_session(session()).await, Durability::Outbox);
}
