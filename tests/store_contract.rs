//! What every database must do the same way: one suite, run against SQLite and against Postgres.

mod support;

use std::sync::Arc;

use chrono::{DateTime, TimeDelta, Utc};
use diesel::connection::SimpleConnection;
use diesel::{Connection, SqliteConnection};
use proptest::prelude::*;
use proptest::strategy::ValueTree;
use proptest::test_runner::TestRunner;
use stenocast::config::{DatabaseUrl, Secret, StoreConfig};
use stenocast::db::delivery::deliver;
use stenocast::db::{BatchOutcome, Conflict, SessionFilter, SessionRow, Store, StoreError, TranscriptRow, open_store};
use stenocast::transcript::outbox::{Record, Stored};
use stenocast::transcript::{
    AudioAccount, Entry, Epoch, Gap, GapReason, Latency, SessionRecord, SessionState, Slug, Speaker, Status,
    StatusChange, Transcript, Translation, Word,
};
use support::postgres::cluster;
use support::wait::until;

struct Fixture {
    url: DatabaseUrl,
    store: Store,
    _dir: tempfile::TempDir,
}

impl Fixture {
    async fn sqlite() -> Self {
        let dir = tempfile::tempdir().unwrap();
        Self::new(DatabaseUrl::Sqlite(dir.path().join("new/directory/stenocast.db")), dir)
    }

    async fn postgres() -> Self {
        let database = cluster().fresh_database().await;
        Self::new(DatabaseUrl::Postgres(Secret::new(database.url())), tempfile::tempdir().unwrap())
    }

    fn new(url: DatabaseUrl, dir: tempfile::TempDir) -> Self {
        Self { store: open(&url), url, _dir: dir }
    }

    /// `file` is a path under the backend's directory of migrations.
    async fn run_migration(&self, file: &str) {
        let of = |backend| format!("{}/migrations/{backend}/{file}", env!("CARGO_MANIFEST_DIR"));
        match &self.url {
            DatabaseUrl::Sqlite(path) => {
                let sql = std::fs::read_to_string(of("sqlite")).unwrap();
                let mut connection = SqliteConnection::establish(path.to_str().unwrap()).unwrap();
                connection.immediate_transaction(|c| c.batch_execute(&sql)).unwrap();
            }
            DatabaseUrl::Postgres(url) => {
                let sql = std::fs::read_to_string(of("postgres")).unwrap();
                let (client, connection) = tokio_postgres::connect(url.expose(), tokio_postgres::NoTls).await.unwrap();
                tokio::spawn(connection);
                client.batch_execute(&sql).await.unwrap();
            }
        }
    }
}

fn open(url: &DatabaseUrl) -> Store {
    let defaults = stenocast::config::Config::load(&Default::default(), true).unwrap().store;
    open_store(&StoreConfig { database: url.clone(), ..defaults }).unwrap()
}

macro_rules! contract {
    ($($name:ident)+) => {
        mod sqlite {
            $(#[tokio::test] async fn $name() { super::$name(super::Fixture::sqlite().await).await })+
        }
        mod postgres {
            $(#[tokio::test] async fn $name() { super::$name(super::Fixture::postgres().await).await })+
        }
    };
}

contract! {
    migrations_go_up_and_down_and_up
    going_back_before_translations_leaves_no_hole
    two_processes_may_migrate_at_once
    every_entry_comes_back_as_it_was
    a_batch_may_be_repeated
    another_entry_with_the_same_number_is_an_alarm
    a_refused_row_is_found_and_the_others_are_stored
    sessions_are_merged_and_listed
    old_sessions_go_with_their_entries
    a_large_batch_is_stored_whole
    dropped_futures_do_no_harm
}

const EPOCH: Epoch = Epoch::from_u128(0x0193_b3f0_0000_7000_8000_0000_0000_0001);

fn slug() -> Slug {
    Slug::parse("demo").unwrap()
}

fn line(seq: u64, id: &str, text: &str) -> Entry {
    Entry::Transcript(Transcript {
        session: slug(),
        epoch: EPOCH,
        seq: Some(seq),
        id: id.into(),
        is_final: true,
        revision: 3,
        text: text.into(),
        start_ms: 1000,
        end_ms: 1900,
        language: Some("en".into()),
        confidence: Some(0.97),
        speaker: None,
        words: None,
        timestamp: DateTime::UNIX_EPOCH,
        latency: Latency::default(),
        durable: true,
    })
}

fn lines(seqs: std::ops::RangeInclusive<u64>) -> Vec<Entry> {
    seqs.map(|seq| line(seq, &format!("u{seq}"), "Hello world.")).collect()
}

async fn insert(store: &Store, entries: &[Entry]) -> Result<BatchOutcome, StoreError> {
    store.insert_batch(entries.iter().map(|e| TranscriptRow::new(e).unwrap()).collect()).await
}

fn outcome(inserted: usize, duplicates: usize) -> BatchOutcome {
    BatchOutcome { inserted, duplicates, conflicts: vec![] }
}

async fn migrations_go_up_and_down_and_up(f: Fixture) {
    f.store.migrate().await.unwrap();
    let version = f.store.schema_version().await.unwrap();
    assert_eq!(version.as_deref(), Some("20261128000000"));
    f.store.migrate().await.unwrap();
    insert(&f.store, &lines(1..=3)).await.unwrap();
    f.store.revert().await.unwrap();
    assert_eq!(f.store.schema_version().await.unwrap(), None);
    let error = insert(&f.store, &lines(1..=3)).await.unwrap_err();
    assert!(matches!(error, StoreError::Unavailable(_)), "rows must wait for their table: {error}");
    f.store.migrate().await.unwrap();
    assert_eq!(f.store.schema_version().await.unwrap(), version);
    assert_eq!(insert(&f.store, &lines(1..=3)).await, Ok(outcome(3, 0)));
}

/// A translation has no place in an older program's table; its number stays, as the status that held then.
async fn going_back_before_translations_leaves_no_hole(f: Fixture) {
    let status = |seq, status| {
        Entry::Status(StatusChange {
            session: slug(),
            epoch: EPOCH,
            seq: Some(seq),
            id: format!("s{seq}"),
            status,
            reason: None,
            durable: true,
        })
    };
    let translation = Entry::Translation(Translation {
        session: slug(),
        epoch: EPOCH,
        seq: Some(3),
        id: "u2:fr".into(),
        of: "u2".into(),
        language: "fr".into(),
        text: "Bonjour.".into(),
        start_ms: 0,
        end_ms: 900,
        durable: true,
    });
    let entries = [status(1, Status::Degraded), line(2, "u2", "Hello."), translation, status(4, Status::Ended)];
    insert(&f.store, &entries).await.unwrap();
    assert_eq!(f.store.transcripts(EPOCH, 0, 10).await.unwrap(), entries);
    f.run_migration("2026-11-28-000000_translations/down.sql").await;
    f.run_migration("2026-11-28-000000_translations/up.sql").await;
    let [first, second, mut instead, last] = entries;
    instead = Entry::Status(StatusChange {
        session: slug(),
        epoch: EPOCH,
        seq: instead.seq(),
        id: instead.id().to_owned(),
        status: Status::Degraded,
        reason: Some("translation".into()),
        durable: true,
    });
    assert_eq!(f.store.transcripts(EPOCH, 0, 10).await.unwrap(), [first, second, instead, last]);
}

async fn two_processes_may_migrate_at_once(f: Fixture) {
    let stores: Vec<Store> = (0..4).map(|_| open(&f.url)).collect();
    let results = futures_util::future::join_all(stores.iter().map(stenocast::db::Store::migrate)).await;
    assert_eq!(results, [Ok(()), Ok(()), Ok(()), Ok(())]);
    assert_eq!(insert(&f.store, &lines(1..=1)).await, Ok(outcome(1, 0)));
}

/// SQLite does not wait its busy time-out for the switch of a new file to WAL: the first of two fails the second.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn many_processes_may_create_one_sqlite_file() {
    for round in 0..60 {
        let dir = tempfile::tempdir().unwrap();
        let url = DatabaseUrl::Sqlite(dir.path().join("stenocast.db"));
        let stores: Vec<Store> = (0..8).map(|_| open(&url)).collect();
        let results = futures_util::future::join_all(stores.iter().map(stenocast::db::Store::migrate)).await;
        assert!(results.iter().all(Result::is_ok), "round {round}: {results:?}");
    }
}

/// Text as people write it: everything but NUL.
fn any_text() -> impl Strategy<Value = String> {
    prop_oneof!["[^\0]{0,40}", Just("Ünïcödé 漢字 😀 \u{202e}rtl\u{202c} \"quoted\" \\ \n\t'; --".to_owned())]
}

/// Up to 15 digits, as recognisers send it: these survive being written in decimal by any program.
fn any_confidence() -> impl Strategy<Value = Option<f64>> {
    prop::option::of((0u64..=1_000_000_000_000_000).prop_map(|n| n as f64 / 1e15))
}

fn any_words() -> impl Strategy<Value = Option<Vec<Word>>> {
    let word = (any_text(), any::<u32>(), any::<u32>(), any_confidence()).prop_map(|(word, start, end, confidence)| {
        Word { word, start_ms: start.into(), end_ms: end.into(), confidence }
    });
    prop::option::of(prop::collection::vec(word, 0..5))
}

fn any_latency() -> impl Strategy<Value = Latency> {
    let ms = || prop::option::of(0u64..1 << 40);
    (ms(), ms(), ms()).prop_map(|(decode_ms, stt_ms, server_ms)| Latency { decode_ms, stt_ms, server_ms })
}

fn any_entry() -> impl Strategy<Value = Entry> {
    let speaker = prop::option::of(
        (any_text(), prop::option::of(any_text())).prop_map(|(identity, name)| Speaker { identity, name }),
    );
    let place = (0..i64::MAX as u64, 0..i64::MAX as u64, any::<u32>());
    let time = 0i64..4_102_444_800_000;
    let said = (any_text(), prop::option::of(any_text()), any_confidence(), speaker, any_words());
    let transcript = (place, time, said, any_latency(), any::<bool>()).prop_map(
        |((start_ms, end_ms, revision), time, (text, language, confidence, speaker, words), latency, durable)| {
            Entry::Transcript(Transcript {
                session: slug(),
                epoch: EPOCH,
                seq: None,
                id: String::new(),
                is_final: true,
                revision,
                text,
                start_ms,
                end_ms,
                language,
                confidence,
                speaker,
                words,
                timestamp: DateTime::from_timestamp_millis(time).unwrap(),
                latency,
                durable,
            })
        },
    );
    let reason = prop::sample::select(GapReason::ALL.to_vec());
    let gap = (any::<u32>(), any::<u32>(), reason).prop_map(|(start, end, reason)| {
        let (start_ms, end_ms) = (start.into(), end.into());
        Entry::Gap(Gap {
            session: slug(),
            epoch: EPOCH,
            seq: None,
            id: String::new(),
            start_ms,
            end_ms,
            reason,
            durable: true,
        })
    });
    let statuses = [
        Status::Live,
        Status::Waiting,
        Status::Reconnecting,
        Status::CatchingUp,
        Status::Stalled,
        Status::Degraded,
        Status::Suspended,
        Status::Ended,
    ];
    let status = prop::sample::select(statuses.to_vec());
    let change = (status, prop::option::of(any_text())).prop_map(|(status, reason)| {
        Entry::Status(StatusChange {
            session: slug(),
            epoch: EPOCH,
            seq: None,
            id: String::new(),
            status,
            reason,
            durable: true,
        })
    });
    let translated = (any_text(), any::<u32>(), any_text(), any_text());
    let translation = translated.prop_map(|(of, start, language, text)| {
        Entry::Translation(Translation {
            session: slug(),
            epoch: EPOCH,
            seq: None,
            id: String::new(),
            of,
            language,
            text,
            start_ms: start.into(),
            end_ms: u64::from(start) + 1,
            durable: true,
        })
    });
    prop_oneof![4 => transcript, 1 => gap, 1 => change, 1 => translation]
}

fn with_id(mut entry: Entry, id: String) -> Entry {
    match &mut entry {
        Entry::Transcript(e) => e.id = id,
        Entry::Gap(e) => e.id = id,
        Entry::Status(e) => e.id = id,
        Entry::Translation(e) => e.id = id,
    }
    entry
}

async fn every_entry_comes_back_as_it_was(f: Fixture) {
    let mut runner = TestRunner::deterministic();
    let entries: Vec<Entry> = (1..=400)
        .map(|seq| {
            let mut entry = any_entry().new_tree(&mut runner).unwrap().current();
            entry.set_seq(seq);
            with_id(entry, format!("id {seq} é"))
        })
        .collect();
    assert_eq!(insert(&f.store, &entries).await, Ok(outcome(400, 0)));
    let found = f.store.transcripts(EPOCH, 0, 1000).await.unwrap();
    assert_eq!(found.len(), entries.len());
    for (found, entry) in found.iter().zip(&entries) {
        assert_eq!(found.to_json(), entry.to_json());
    }
    let page = f.store.transcripts(EPOCH, 397, 2).await.unwrap();
    assert_eq!(page, entries[397..399]);
    assert_eq!(f.store.transcripts(Epoch::nil(), 0, 10).await.unwrap(), []);
    assert_eq!(f.store.last_seq(EPOCH).await, Ok(Some(400)));
    assert_eq!(f.store.last_seq(Epoch::nil()).await, Ok(None));
    let ids = f.store.entry_ids(EPOCH, 397, 399).await.unwrap();
    assert_eq!(ids, [("id 398 é".to_owned(), 398), ("id 399 é".to_owned(), 399)]);
    assert_eq!(f.store.entry_ids(EPOCH, 400, 400).await, Ok(vec![]));
}

async fn a_batch_may_be_repeated(f: Fixture) {
    assert_eq!(insert(&f.store, &[]).await, Ok(outcome(0, 0)));
    assert_eq!(insert(&f.store, &lines(1..=5)).await, Ok(outcome(5, 0)));
    assert_eq!(insert(&f.store, &lines(1..=5)).await, Ok(outcome(0, 5)));
    assert_eq!(insert(&f.store, &lines(4..=8)).await, Ok(outcome(3, 2)));
    // Twice in one batch.
    assert_eq!(insert(&f.store, &[lines(9..=10), lines(9..=10)].concat()).await, Ok(outcome(2, 2)));
    // The same entry under another number is not stored a second time, and an alarm: viewers have seen both.
    let conflicts = vec![Conflict { position: 0, stored_entry_id: "u3".into(), stored_seq: 3 }];
    let found = insert(&f.store, &[line(99, "u3", "again")]).await;
    assert_eq!(found, Ok(BatchOutcome { inserted: 0, duplicates: 0, conflicts }));
    assert_eq!(f.store.transcripts(EPOCH, 0, 100).await.unwrap(), lines(1..=10));
}

async fn another_entry_with_the_same_number_is_an_alarm(f: Fixture) {
    insert(&f.store, &lines(1..=3)).await.unwrap();
    let batch = [line(2, "intruder", "another text"), line(3, "u3", "Hello world."), line(4, "u4", "new")];
    let found = insert(&f.store, &batch).await.unwrap();
    let conflicts = vec![Conflict { position: 0, stored_entry_id: "u2".into(), stored_seq: 2 }];
    assert_eq!(found, BatchOutcome { inserted: 1, duplicates: 1, conflicts });
    // Both new, in one batch: one of them wins, the other is reported.
    let found = insert(&f.store, &[line(5, "a", "a"), line(5, "b", "b")]).await.unwrap();
    assert_eq!((found.inserted, found.duplicates, found.conflicts.len()), (1, 0, 1));
    let stored = f.store.transcripts(EPOCH, 1, 1).await.unwrap();
    assert_eq!(stored, lines(2..=2), "the first entry stays");
}

async fn a_refused_row_is_found_and_the_others_are_stored(f: Fixture) {
    let nul = line(3, "u3", "a\0b");
    let zero = line(0, "zero", "the numbers begin with 1");
    let error = insert(&f.store, &[line(1, "u1", "good"), nul.clone()]).await.unwrap_err();
    assert!(matches!(error, StoreError::Rejected(_)), "{error}");
    assert_eq!(f.store.last_seq(EPOCH).await, Ok(None), "all or nothing");

    let mut entries = lines(1..=10);
    entries[2] = nul;
    entries[7] = zero;
    entries.push(line(i64::MAX as u64 + 1, "huge", "beyond bigint"));
    let stored = |(index, entry): (u64, &Entry)| Stored { index, record: Ok(Record::Entry(Arc::new(entry.clone()))) };
    let mut batch: Vec<Stored> = (1..).zip(&entries).map(stored).collect();
    batch.push(Stored {
        index: 12,
        record: Ok(Record::Session(Arc::new(SessionRecord::begun(EPOCH, slug(), DateTime::UNIX_EPOCH)))),
    });
    let delivery = deliver(&f.store, &batch).await.unwrap();
    let refused: Vec<u64> = delivery.refused.iter().map(|r| r.index).collect();
    assert_eq!((delivery.inserted, delivery.sessions), (8, 1));
    assert_eq!(refused, [11, 3, 8], "{:?}", delivery.refused);
    let seqs: Vec<_> = f.store.transcripts(EPOCH, 0, 100).await.unwrap().iter().map(|e| e.seq().unwrap()).collect();
    assert_eq!(seqs, [1, 2, 4, 5, 6, 7, 9, 10]);
    assert!(f.store.session(EPOCH).await.unwrap().is_some());
}

fn millis(ms: i64) -> DateTime<Utc> {
    DateTime::from_timestamp_millis(ms).unwrap()
}

/// As `Uuid::now_v7` at that millisecond would.
fn epoch_at(ms: u64) -> Epoch {
    uuid::Builder::from_unix_timestamp_millis(ms, &[7; 10]).into_uuid()
}

async fn sessions_are_merged_and_listed(f: Fixture) {
    let epoch = epoch_at(1_700_000_000_000);
    let begun = SessionRecord::begun(epoch, slug(), millis(1_700_000_000_123));
    f.store.upsert_session(&begun).await.unwrap();
    assert_eq!(f.store.session(epoch).await, Ok(Some(begun.clone())));

    let mut later = begun.clone();
    later.state = SessionState::Suspended;
    later.last_seq = 7;
    later.language = Some("en".into());
    later.audio = AudioAccount {
        received_ms: 5000,
        decoded_ms: 4900,
        inserted_ms: 1000,
        sent_ms: 5900,
        resent_ms: 700,
        acknowledged_ms: 5800,
        spoken_ms: 3000,
        finalised_ms: 2900,
        lost_ms: 100,
    };
    later.losses.insert("publisher_lost".into(), 100);
    f.store.upsert_session(&later).await.unwrap();
    assert_eq!(f.store.session(epoch).await, Ok(Some(later.clone())));
    // An older record that is replayed takes nothing back.
    let mut older = SessionRecord { last_seq: 3, language: Some("fr".into()), ..begun.clone() };
    older.losses.insert("publisher_lost".into(), 40);
    f.store.upsert_sessions([&later, &older].map(|r| SessionRow::new(r).unwrap()).into()).await.unwrap();
    for record in [&older, &begun] {
        f.store.upsert_session(record).await.unwrap();
        assert_eq!(f.store.session(epoch).await, Ok(Some(later.clone())));
    }

    let end = millis(1_700_000_900_000);
    assert_eq!(f.store.end_session(epoch, end).await, Ok(true));
    assert_eq!(f.store.end_session(epoch, millis(0)).await, Ok(false), "it has ended before");
    f.store.upsert_session(&later).await.unwrap();
    let ended = f.store.session(epoch).await.unwrap().unwrap();
    assert_eq!((ended.state, ended.ended_at), (SessionState::Ended, Some(end)));

    let other = Slug::parse("other").unwrap();
    for n in 1..=5 {
        let slug = if n % 2 == 0 { other.clone() } else { slug() };
        let record = SessionRecord::begun(epoch_at(1_700_000_000_000 + n), slug, millis(0));
        f.store.upsert_session(&record).await.unwrap();
    }
    let epochs = async |filter| {
        let found = f.store.sessions(filter).await.unwrap();
        found.into_iter().map(|s| s.epoch.get_timestamp().unwrap().to_unix().1 / 1_000_000).collect::<Vec<_>>()
    };
    assert_eq!(epochs(SessionFilter { limit: 3, ..Default::default() }).await, [5, 4, 3]);
    let before = Some(epoch_at(1_700_000_000_003));
    assert_eq!(epochs(SessionFilter { limit: 9, before, ..Default::default() }).await, [2, 1, 0]);
    assert_eq!(epochs(SessionFilter { limit: 9, slug: Some(other.clone()), before }).await, [2]);
    assert_eq!(f.store.latest_session(&other).await.unwrap().unwrap().epoch, epoch_at(1_700_000_000_004));
    assert_eq!(f.store.latest_session(&Slug::parse("none").unwrap()).await, Ok(None));
    // Entries tell the last number better than a session row that is written now and then.
    f.store.upsert_session(&SessionRecord::begun(EPOCH, slug(), millis(0))).await.unwrap();
    insert(&f.store, &lines(1..=4)).await.unwrap();
    assert_eq!(f.store.session(EPOCH).await.unwrap().unwrap().last_seq, 4);
}

async fn old_sessions_go_with_their_entries(f: Fixture) {
    let now = Utc::now();
    let mut old = SessionRecord::begun(EPOCH, slug(), now - TimeDelta::days(9));
    old.state = SessionState::Ended;
    old.ended_at = Some(now - TimeDelta::days(8));
    f.store.upsert_session(&old).await.unwrap();
    insert(&f.store, &lines(1..=4)).await.unwrap();
    for n in 0..250 {
        f.store.upsert_session(&SessionRecord { epoch: epoch_at(n), ..old.clone() }).await.unwrap();
    }
    let live = SessionRecord::begun(epoch_at(900), slug(), now - TimeDelta::days(9));
    let recent = SessionRecord { epoch: epoch_at(901), ended_at: Some(now - TimeDelta::days(6)), ..old.clone() };
    f.store.upsert_session(&live).await.unwrap();
    f.store.upsert_session(&recent).await.unwrap();
    assert_eq!(f.store.purge(now - TimeDelta::days(7)).await, Ok(251));
    let left = f.store.sessions(SessionFilter { limit: 9, ..Default::default() }).await.unwrap();
    assert_eq!(left.iter().map(|s| s.epoch).collect::<Vec<_>>(), [recent.epoch, live.epoch]);
    assert_eq!(f.store.transcripts(EPOCH, 0, 9).await.unwrap(), []);
    // Without an end, the row's own age and that of its lines count.
    assert_eq!(f.store.purge(now + TimeDelta::days(1)).await, Ok(2));
}

async fn a_large_batch_is_stored_whole(f: Fixture) {
    let entries = lines(1..=10_000);
    assert_eq!(insert(&f.store, &entries).await, Ok(outcome(10_000, 0)));
    assert_eq!(insert(&f.store, &entries).await, Ok(outcome(0, 10_000)));
    assert_eq!(f.store.transcripts(EPOCH, 9_990, 100).await.unwrap(), entries[9_990..]);
}

/// On a runtime of one thread a dropped query must neither panic nor take the process down, nor lose its rows.
async fn dropped_futures_do_no_harm(f: Fixture) {
    f.store.migrate().await.unwrap();
    for seq in 1..=100 {
        let entries = lines(seq..=seq);
        let begun = insert(&f.store, &entries);
        let _ = tokio::time::timeout(std::time::Duration::from_micros(seq * 7), begun).await;
    }
    assert_eq!(insert(&f.store, &lines(101..=101)).await, Ok(outcome(1, 0)));
    let all = lines(1..=101);
    let has_all = async || f.store.transcripts(EPOCH, 0, 1000).await.unwrap() == all;
    until("work that was begun ends", has_all).await;
    f.store.ping().await.unwrap();
}
