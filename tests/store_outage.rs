//! Promise 1 at the database: whatever happens to it, no row is lost, none is doubled, and their order is kept.
//! Postgres behind a proxy that fails on command; rows go the whole way: sink, outbox, `BatchWriter`, database.

mod support;

use std::collections::HashMap;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use actix::prelude::*;
use stenocast::actors::Shutdown;
use stenocast::actors::batch_writer::{BatchWriter, BatchWriterParams, Flush};
use stenocast::actors::supervision::Observe;
use stenocast::actors::supervision::{ChildKind, Lifeline};
use stenocast::config::Config;
use stenocast::db::{DATABASE_CONSUMER, Storage, StoreError};
use stenocast::metrics::Metrics;
use stenocast::transcript::{
    Durability, Entry, EntrySink, Epoch, SessionRecord, SessionState, Slug, Status, StatusChange,
};
use support::chaos_proxy::ChaosProxy;
use support::parent::Parent;
use support::postgres::{Database, cluster};
use support::wait::{DEADLINE, until};

const EPOCH: Epoch = Epoch::from_u128(0x0193_b3f0_0000_7000_8000_0000_0000_0001);

struct Server {
    storage: Storage,
    writer: Addr<BatchWriter>,
    metrics: Arc<Metrics>,
    sent: u64,
    _parent: Addr<Parent>,
}

fn config(dir: &Path, url: &str, more: &[(&str, &str)]) -> Config {
    let mut values: HashMap<String, String> =
        [("DATA_DIR", dir.to_str().unwrap()), ("DATABASE_URL", url), ("FLUSH_INTERVAL_MS", "20")]
            .iter()
            .chain(more)
            .map(|(k, v)| ((*k).to_owned(), (*v).to_owned()))
            .collect();
    values.retain(|_, v| !v.is_empty());
    Config::load(&values, true).unwrap()
}

impl Server {
    async fn start(config: &Config) -> Self {
        let metrics = Arc::new(Metrics::new());
        let storage = Storage::open(config, vec![], metrics.clone()).await.unwrap();
        let (parent, _) = Parent::start();
        let writer = BatchWriter::new(BatchWriterParams {
            queue: Arc::new(storage.outbox.consumer(DATABASE_CONSUMER).unwrap()),
            store: storage.store.clone().unwrap(),
            quarantine: storage.quarantine.clone(),
            config: config.store.clone(),
            metrics: metrics.clone(),
            lifeline: Lifeline::new(parent.clone().recipient(), ChildKind::BatchWriter, 1, metrics.clone()),
        })
        .start();
        let sent = storage.recovery.last_seq.get(&EPOCH).copied().unwrap_or(0);
        Self { storage, writer, metrics, sent, _parent: parent }
    }

    /// Publishes `count` more entries, as a room does: one after the other.
    async fn say(&mut self, count: u64) -> Durability {
        let mut durability = Durability::Outbox;
        for _ in 0..count {
            self.sent += 1;
            durability = self.storage.sink.append(Arc::new(entry(self.sent))).await;
        }
        durability
    }

    async fn observe(&self) -> serde_json::Value {
        serde_json::to_value(self.writer.send(Observe::default()).await.unwrap()).unwrap()
    }

    async fn until(&self, what: &str, holds: impl Fn(&serde_json::Value) -> bool) {
        let answer = async || {
            let seen = self.observe().await;
            if holds(&seen) { Ok(()) } else { Err(seen) }
        };
        until(what, answer).await;
    }

    async fn until_drained(&self) {
        self.until("drained", |seen| self.has_all(seen)).await;
    }

    async fn is_drained(&self) -> bool {
        self.has_all(&self.observe().await)
    }

    /// All that was said so far is in the database.
    fn has_all(&self, seen: &serde_json::Value) -> bool {
        seen["pending"] == 0 && seen["confirmedIndex"].as_u64() >= Some(self.sent)
    }

    async fn until_down(&self) {
        self.until("down", |seen| seen["databaseUp"] == false && seen["failures"].as_u64() > Some(0)).await;
    }

    /// As a crash would, but in order: nothing is flushed.
    async fn stop(self) {
        self.writer.send(Shutdown).await.unwrap();
    }
}

fn entry(seq: u64) -> Entry {
    Entry::Status(StatusChange {
        session: Slug::parse("demo").unwrap(),
        epoch: EPOCH,
        seq: Some(seq),
        id: format!("entry-{seq}"),
        status: Status::Live,
        reason: Some("x".repeat(200)),
        durable: true,
    })
}

/// Every entry once, and written in the order of their numbers.
async fn assert_complete(database: &Database, entries: u64) {
    let stored = database.query("SELECT seq || ' ' || entry_id FROM transcripts ORDER BY seq").await;
    let expected: Vec<String> = (1..=entries).map(|seq| format!("{seq} entry-{seq}")).collect();
    assert_eq!(stored.len(), expected.len());
    assert_eq!(stored, expected);
    // xmin is the writing transaction: later batches have later ones.
    let disorder = "SELECT count(*) FROM transcripts a JOIN transcripts b ON b.seq = a.seq + 1 \
                    WHERE b.xmin::text::bigint < a.xmin::text::bigint";
    assert_eq!(database.query(disorder).await, ["0"]);
}

#[actix::test]
async fn a_database_that_goes_away_and_comes_back() {
    let (database, dir) = (cluster().fresh_database().await, tempfile::tempdir().unwrap());
    let proxy = ChaosProxy::start(database.addr).await;
    let mut server = Server::start(&config(dir.path(), &database.url_at(proxy.addr), &[])).await;
    server.say(50).await;
    server.until_drained().await;
    proxy.break_off();
    assert_eq!(server.say(700).await, Durability::Outbox, "a dead database blocks nobody");
    server.until_down().await;
    assert_eq!(server.metrics.database_up.get(), 0);
    assert_eq!(server.metrics.outbox_rows.get(), 700);
    assert!(server.observe().await["lastError"].is_string());
    proxy.restore();
    server.say(50).await;
    server.until_drained().await;
    assert_complete(&database, 800).await;
    assert_eq!(server.metrics.batch_rows_total.with_label_values(&["quarantined"]).get(), 0);
    assert_eq!(server.metrics.database_up.get(), 1);
    server.stop().await;
}

#[actix::test]
async fn connections_cut_in_the_middle_of_statements_and_of_answers() {
    let (database, dir) = (cluster().fresh_database().await, tempfile::tempdir().unwrap());
    let proxy = ChaosProxy::start(database.addr).await;
    let mut server = Server::start(&config(dir.path(), &database.url_at(proxy.addr), &[])).await;
    for round in 0..12_i64 {
        // Somewhere in the connection's start, in the statement, or in the answer after the commit.
        if round % 2 == 0 {
            proxy.cut_after_sent(200 + round * 1500);
        } else {
            proxy.cut_after_answered(1 + round * 7);
        }
        server.say(100).await;
        server.until_drained().await;
    }
    assert!(proxy.cuts() >= 6, "{} cuts", proxy.cuts());
    assert_complete(&database, 1200).await;
    server.stop().await;
}

#[actix::test]
async fn sessions_of_the_server_ended_by_an_administrator() {
    let (database, dir) = (cluster().fresh_database().await, tempfile::tempdir().unwrap());
    let mut server = Server::start(&config(dir.path(), &database.url(), &[])).await;
    for _ in 0..5 {
        server.say(60).await;
        database.disconnect_all().await;
        server.say(60).await;
        server.until_drained().await;
    }
    assert_complete(&database, 600).await;
    server.stop().await;
}

#[actix::test]
async fn a_database_that_turns_read_only() {
    let (database, dir) = (cluster().fresh_database().await, tempfile::tempdir().unwrap());
    let mut server = Server::start(&config(dir.path(), &database.url(), &[])).await;
    server.say(10).await;
    server.until_drained().await;
    database.execute(&format!("ALTER DATABASE {} SET default_transaction_read_only = on", database.name)).await;
    database.disconnect_all().await;
    server.say(150).await;
    server.until_down().await;
    server.until("told why", |seen| seen["lastError"].as_str().is_some_and(|e| e.contains("read-only"))).await;
    let heal = format!(
        "SET transaction_read_only = off; ALTER DATABASE {} RESET default_transaction_read_only",
        database.name
    );
    database.execute(&heal).await;
    database.disconnect_all().await;
    server.until_drained().await;
    assert_complete(&database, 160).await;
    assert_eq!(
        std::fs::read_dir(dir.path()).unwrap().filter(|f| f.as_ref().unwrap().file_name() == "quarantine").count(),
        0
    );
    server.stop().await;
}

#[actix::test]
async fn a_slow_database_gets_one_statement_at_a_time() {
    let (database, dir) = (cluster().fresh_database().await, tempfile::tempdir().unwrap());
    let proxy = ChaosProxy::start(database.addr).await;
    let mut server =
        Server::start(&config(dir.path(), &database.url_at(proxy.addr), &[("MAX_BATCH_SIZE", "50")])).await;
    server.say(1).await;
    server.until_drained().await;
    proxy.delay_answers(Duration::from_millis(100));
    server.say(500).await;
    let peak = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND state = 'active' \
                AND backend_type = 'client backend' AND pid <> pg_backend_pid()";
    while !server.is_drained().await {
        let active: usize = database.query(peak).await[0].parse().unwrap();
        assert!(active <= 1, "{active} statements at a time");
    }
    assert_complete(&database, 501).await;
    let sizes = database.query("SELECT count(*) FROM transcripts GROUP BY xmin").await;
    assert!(sizes.iter().all(|n| n.parse::<u32>().unwrap() <= 50), "{sizes:?}");
    server.stop().await;
}

#[actix::test]
async fn rows_of_a_killed_process_arrive_after_its_restart() {
    let (database, dir) = (cluster().fresh_database().await, tempfile::tempdir().unwrap());
    let proxy = ChaosProxy::start(database.addr).await;
    let config = config(dir.path(), &database.url_at(proxy.addr), &[]);
    let mut server = Server::start(&config).await;
    server.say(30).await;
    server.until_drained().await;
    proxy.break_off();
    server.say(120).await;
    let left = server.writer.send(Flush { deadline: Duration::from_millis(300) }).await.unwrap();
    assert_eq!(left, 120, "a stop says what it leaves behind");
    server.stop().await;

    // The database is still away: the next process starts without it, and says so.
    let mut server = Server::start(&config).await;
    assert!(server.storage.degraded.is_some());
    assert_eq!(server.storage.recovery.unconfirmed, 120);
    assert_eq!(server.storage.recovery.last_seq[&EPOCH], 150);
    let tail = server.storage.outbox.tail(EPOCH, 148, 100).await.unwrap();
    assert_eq!(tail.iter().map(|e| e.seq().unwrap()).collect::<Vec<_>>(), [149, 150]);
    server.say(50).await;
    proxy.restore();
    server.until_drained().await;
    assert_complete(&database, 200).await;
    server.stop().await;
}

/// The first start ever, and Postgres is away: the tables are made when it comes, before the first batch.
#[actix::test]
async fn migrations_wait_for_the_database_too() {
    let (database, dir) = (cluster().fresh_database().await, tempfile::tempdir().unwrap());
    let proxy = ChaosProxy::start(database.addr).await;
    proxy.break_off();
    let mut server = Server::start(&config(dir.path(), &database.url_at(proxy.addr), &[])).await;
    assert!(matches!(server.storage.degraded, Some(StoreError::Unavailable(_))), "{:?}", server.storage.degraded);
    server.say(20).await;
    server.until_down().await;
    proxy.restore();
    server.until_drained().await;
    assert_complete(&database, 20).await;
    server.stop().await;
}

#[actix::test]
async fn sessions_travel_with_their_entries() {
    let (database, dir) = (cluster().fresh_database().await, tempfile::tempdir().unwrap());
    let proxy = ChaosProxy::start(database.addr).await;
    let mut server = Server::start(&config(dir.path(), &database.url_at(proxy.addr), &[])).await;
    proxy.break_off();
    let begun = SessionRecord::begun(EPOCH, Slug::parse("demo").unwrap(), chrono::DateTime::UNIX_EPOCH);
    assert_eq!(server.storage.sink.save_session(begun.clone()).await, Durability::Outbox);
    server.say(5).await;
    let ended = SessionRecord { state: SessionState::Ended, last_seq: 5, ended_at: Some(begun.started_at), ..begun };
    server.storage.sink.save_session(ended.clone()).await;
    proxy.restore();
    server.until("drained", |seen| seen["pending"] == 0).await;
    assert_eq!(server.storage.store.as_ref().unwrap().session(EPOCH).await, Ok(Some(ended)));
    assert_complete(&database, 5).await;
    server.stop().await;
}

/// Disk full: rows go straight to the database; the database gone as well: the room is told, and nothing hangs.
#[actix::test]
async fn a_full_disk_goes_round_the_outbox() {
    let (database, dir) = (cluster().fresh_database().await, tempfile::tempdir().unwrap());
    let proxy = ChaosProxy::start(database.addr).await;
    let config = config(dir.path(), &database.url_at(proxy.addr), &[("OUTBOX_MAX_BYTES", "16KiB")]);
    let mut server = Server::start(&config).await;
    proxy.break_off();
    let mut in_outbox = 0;
    let full = loop {
        match server.say(1).await {
            Durability::Outbox => in_outbox += 1,
            other => break other,
        }
        assert!(in_outbox < 1000, "the outbox never filled");
    };
    assert_eq!(full, Durability::Nowhere, "neither the outbox nor the database is there for that one");
    server.sent -= 1;
    proxy.restore();
    server.writer.send(Shutdown).await.unwrap();
    // Nobody empties the outbox now, but the database is there.
    assert_eq!(server.say(10).await, Durability::Database);
    let stored = database.query("SELECT count(*) FROM transcripts WHERE seq > 0").await;
    assert!(stored[0].parse::<u64>().unwrap() >= 10);
    let sent = server.sent;
    drop(server);
    // The next process empties it, and everything is there once.
    let mut server = Server::start(&config).await;
    server.until("drained", |seen| seen["pending"] == 0).await;
    server.sent = sent;
    assert_eq!(server.say(1).await, Durability::Outbox, "space has come back");
    server.until("drained", |seen| seen["pending"] == 0).await;
    let stored = database.query("SELECT seq FROM transcripts ORDER BY seq").await;
    assert_eq!(stored, (1..=sent + 1).map(|n| n.to_string()).collect::<Vec<_>>());
    server.stop().await;
}

/// SQLite is behind the same path.
#[actix::test]
async fn the_embedded_database_takes_the_same_way() {
    let dir = tempfile::tempdir().unwrap();
    let config = config(dir.path(), "", &[]);
    let mut server = Server::start(&config).await;
    server.say(250).await;
    let left = server.writer.send(Flush { deadline: DEADLINE }).await.unwrap();
    assert_eq!(left, 0);
    let stored = server.storage.store.as_ref().unwrap().transcripts(EPOCH, 0, 1000).await.unwrap();
    assert_eq!(stored, (1..=250).map(entry).collect::<Vec<_>>());
    assert_eq!(server.metrics.batch_rows_total.with_label_values(&["duplicate"]).get(), 0);
    server.stop().await;
}

/// A proxy that accepts and says nothing: only its clients' own patience ends that.
#[actix::test]
async fn a_database_that_accepts_and_stays_silent_holds_nobody_up_and_is_used_when_it_answers() {
    use stenocast::db::postgres::PostgresBackend;
    use stenocast::db::{Store, StoreError};
    let silent = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url =
        stenocast::config::Secret::new(format!("postgres://u:p@{}/d?sslmode=disable", silent.local_addr().unwrap()));
    let held = tokio::spawn(async move {
        let mut sockets = Vec::new();
        while let Ok((socket, _)) = silent.accept().await {
            sockets.push(socket);
        }
    });
    let store =
        Store::new(Arc::new(PostgresBackend::new(&url, 1).unwrap()), stenocast::db::DbRuntime::start().unwrap());
    let asked = tokio::time::Instant::now();
    let answer = tokio::time::timeout(DEADLINE, store.ping()).await.expect("it gives up");
    assert!(matches!(answer, Err(StoreError::Unavailable(_))), "{answer:?}");
    assert!(asked.elapsed() < std::time::Duration::from_secs(30));
    held.abort();
}
