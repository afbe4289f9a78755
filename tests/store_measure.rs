//! How fast the storage is here. Not a test: `cargo test --release --test store_measure -- --ignored --nocapture`.

mod support;

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use stenocast::config::{Config, DatabaseUrl, Fsync, Secret, StoreConfig};
use stenocast::db::{Store, TranscriptRow, open_store};
use stenocast::metrics::Metrics;
use stenocast::transcript::outbox::{Outbox, OutboxOptions, Record};
use stenocast::transcript::{Entry, Epoch, Latency, Slug, Transcript, Word};

const APPENDS: u64 = 5000;
const ROWS: u64 = 20_000;

fn entry(seq: u64) -> Entry {
    let word = |n: u64| Word { word: "hello".into(), start_ms: n, end_ms: n + 1, confidence: Some(0.97) };
    Entry::Transcript(Transcript {
        session: Slug::parse("demo").unwrap(),
        epoch: Epoch::from_u128(1),
        seq: Some(seq),
        id: format!("utterance-{seq}"),
        is_final: true,
        revision: 4,
        text: "And so my fellow Americans ask not what your country can do for you".into(),
        start_ms: seq,
        end_ms: seq + 1000,
        language: Some("en".into()),
        confidence: Some(0.97),
        speaker: None,
        words: Some((0..14).map(word).collect()),
        timestamp: Default::default(),
        latency: Latency::default(),
        durable: true,
    })
}

fn outbox(dir: &Path, fsync: Fsync) -> Outbox {
    let options = OutboxOptions {
        data_dir: dir.to_owned(),
        fsync,
        fsync_interval: Duration::from_millis(100),
        max_bytes: 1 << 30,
        segment_bytes: 8 << 20,
        consumers: vec!["database".to_owned()],
    };
    Outbox::open(options, Arc::new(Metrics::new())).unwrap().0
}

fn print_latencies(what: &str, mut took: Vec<Duration>) {
    took.sort();
    let at = |part: f64| took[(took.len() as f64 * part) as usize].as_secs_f64() * 1000.0;
    println!("{what}: p50 {:.3} ms, p99 {:.3} ms, p99.9 {:.3} ms", at(0.5), at(0.99), at(0.999));
}

#[tokio::test]
#[ignore = "a measurement"]
async fn outbox_appends() {
    for (name, fsync) in [("interval", Fsync::Interval), ("always", Fsync::Always)] {
        let dir = tempfile::tempdir().unwrap();
        let outbox = outbox(dir.path(), fsync);
        let mut took = Vec::new();
        for seq in 1..=APPENDS {
            let begun = Instant::now();
            outbox.append(&Record::Entry(Arc::new(entry(seq)))).await.unwrap();
            took.push(begun.elapsed());
        }
        print_latencies(&format!("append, one room, fsync {name}"), took);
        let bytes = outbox.stats().bytes / APPENDS;
        let begun = Instant::now();
        drop(outbox);
        let closed = begun.elapsed();
        let begun = Instant::now();
        let (_, recovery) = {
            let opened = self::outbox(dir.path(), fsync);
            (opened, begun.elapsed())
        };
        println!("  {bytes} bytes each; close {closed:?}, recovery of {APPENDS} records {recovery:?}");
    }
    let dir = tempfile::tempdir().unwrap();
    let outbox = outbox(dir.path(), Fsync::Interval);
    let begun = Instant::now();
    let appends: Vec<_> = (1..=ROWS).map(|seq| outbox.append(&Record::Entry(Arc::new(entry(seq))))).collect();
    for append in appends {
        append.await.unwrap();
    }
    println!("appends at once: {:.0} per second", ROWS as f64 / begun.elapsed().as_secs_f64());
    let consumer = outbox.consumer("database").unwrap();
    let begun = Instant::now();
    let mut read = 0;
    while read < ROWS {
        read += consumer.read(100).await.unwrap().len() as u64;
    }
    println!("reads by 100: {:.0} per second", ROWS as f64 / begun.elapsed().as_secs_f64());
}

async fn insert_by(store: &Store, name: &str, batch: u64, from: u64) {
    let mut took = Vec::new();
    let begun = Instant::now();
    for first in (from..from + ROWS / 100 * batch.min(100)).step_by(batch as usize) {
        let rows: Arc<[TranscriptRow]> =
            (first..first + batch).map(|seq| TranscriptRow::new(&entry(seq)).unwrap()).collect();
        let one = Instant::now();
        store.insert_batch(rows).await.unwrap();
        took.push(one.elapsed());
    }
    let rows = took.len() as f64 * batch as f64;
    println!("{name}, batches of {batch}: {:.0} rows per second", rows / begun.elapsed().as_secs_f64());
    print_latencies("  one batch", took);
}

#[tokio::test]
#[ignore = "a measurement"]
async fn database_batches() {
    let dir = tempfile::tempdir().unwrap();
    let postgres = support::postgres::cluster().fresh_database().await;
    let urls = [
        ("SQLite", DatabaseUrl::Sqlite(dir.path().join("m.db"))),
        ("Postgres (fsync off)", DatabaseUrl::Postgres(Secret::new(postgres.url()))),
    ];
    for (name, database) in urls {
        let defaults = Config::load(&Default::default(), true).unwrap().store;
        let store = open_store(&StoreConfig { database, ..defaults }).unwrap();
        store.migrate().await.unwrap();
        insert_by(&store, name, 1, 1).await;
        insert_by(&store, name, 100, 1_000_000).await;
    }
}
