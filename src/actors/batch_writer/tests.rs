//! The actor under a paused clock, with a queue and a database of memory.

mod cluster;

use std::collections::VecDeque;

use chrono::{DateTime, Utc};
use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use parking_lot::Mutex;
use tokio::sync::{mpsc, watch};

use super::*;
use crate::actors::Shutdown;
use crate::actors::supervision::Observe;
use crate::actors::supervision::testing::Parent;
use crate::actors::supervision::{ChildDown, ChildKind, Exit};
use crate::config::{Config, Fsync};
use crate::db::{Backend, BatchOutcome, DbRuntime, SessionFilter, SessionRow, StoreError, TranscriptRow};
use crate::transcript::outbox::{OutboxError, Record};
use crate::transcript::{Entry, Epoch, Gap, GapReason, Slug};

fn stored(index: u64) -> Stored {
    let gap = Gap {
        session: Slug::parse("demo").unwrap(),
        epoch: Epoch::nil(),
        seq: Some(index),
        id: format!("g{index}"),
        start_ms: 0,
        end_ms: 1,
        reason: GapReason::PublisherLost,
        durable: true,
    };
    Stored { index, record: Ok(Record::Entry(Arc::new(Entry::Gap(gap)))) }
}

struct MemoryQueue {
    last: watch::Sender<u64>,
    position: Mutex<u64>,
    confirmed: Mutex<Vec<u64>>,
}

impl MemoryQueue {
    fn append(&self, rows: u64) {
        self.last.send_modify(|last| *last += rows);
    }
}

impl RowQueue for MemoryQueue {
    fn watch(&self) -> watch::Receiver<u64> {
        self.last.subscribe()
    }
    fn position(&self) -> u64 {
        *self.position.lock()
    }
    fn read(self: Arc<Self>, max: usize) -> BoxFuture<'static, Result<Vec<Stored>, OutboxError>> {
        let mut position = self.position.lock();
        let upto = (*self.last.borrow()).min(*position + max as u64);
        let rows = (*position + 1..=upto).map(stored).collect();
        *position = upto;
        async move { Ok(rows) }.boxed()
    }
    fn confirm(&self, index: u64) {
        self.confirmed.lock().push(index);
    }
}

/// Keeps the numbers of the rows of each accepted batch.
#[derive(Default)]
struct MemoryBackend {
    batches: Mutex<Vec<(Duration, Vec<i64>)>>,
    faults: Mutex<VecDeque<StoreError>>,
    down: Mutex<Option<StoreError>>,
    refused_seqs: Vec<i64>,
    statement: Duration,
    begun: Mutex<Option<Instant>>,
    pings: Mutex<usize>,
    purges: Mutex<usize>,
}

type Answer<'a, T> = BoxFuture<'a, Result<T, StoreError>>;

fn not_used<T: Send + 'static>() -> Answer<'static, T> {
    async { Err(StoreError::Internal("not used here".into())) }.boxed()
}

impl Backend for MemoryBackend {
    fn name(&self) -> &'static str {
        "memory"
    }
    fn place(&self) -> String {
        "here".into()
    }
    fn ping(&self) -> Answer<'_, ()> {
        *self.pings.lock() += 1;
        let result = self.down.lock().clone().map_or(Ok(()), Err);
        async move { result }.boxed()
    }
    fn insert_batch(&self, rows: Arc<[TranscriptRow]>) -> Answer<'_, BatchOutcome> {
        async move {
            tokio::time::sleep(self.statement).await;
            if let Some(fault) = self.faults.lock().pop_front().or(self.down.lock().clone()) {
                return Err(fault);
            }
            let seqs: Vec<i64> = rows.iter().map(|r| r.seq).collect();
            if seqs.iter().any(|s| self.refused_seqs.contains(s)) {
                return Err(StoreError::Rejected("no".into()));
            }
            let inserted = seqs.len();
            let since = self.begun.lock().expect("set by the fixture").elapsed();
            self.batches.lock().push((since, seqs));
            Ok(BatchOutcome { inserted, ..BatchOutcome::default() })
        }
        .boxed()
    }
    fn upsert_sessions(&self, _: Arc<[SessionRow]>) -> Answer<'_, ()> {
        async { Ok(()) }.boxed()
    }
    fn migrate(&self) -> Answer<'_, ()> {
        not_used()
    }
    fn revert(&self) -> Answer<'_, ()> {
        not_used()
    }
    fn schema_version(&self) -> Answer<'_, Option<String>> {
        not_used()
    }
    fn end_session(&self, _: Epoch, _: DateTime<Utc>) -> Answer<'_, bool> {
        not_used()
    }
    fn write_canary(&self) -> Answer<'_, ()> {
        not_used()
    }
    fn session(&self, _: Epoch) -> Answer<'_, Option<SessionRow>> {
        not_used()
    }
    fn sessions(&self, _: SessionFilter) -> Answer<'_, Vec<SessionRow>> {
        not_used()
    }
    fn transcripts(&self, _: Epoch, _: i64, _: i64) -> Answer<'_, Vec<TranscriptRow>> {
        not_used()
    }
    fn entry_ids(&self, _: Epoch, _: i64, _: i64) -> Answer<'_, Vec<(String, i64)>> {
        not_used()
    }
    fn last_seq(&self, _: Epoch) -> Answer<'_, Option<i64>> {
        not_used()
    }
    fn purge(&self, _: DateTime<Utc>) -> Answer<'_, u64> {
        *self.purges.lock() += 1;
        async { Ok(0) }.boxed()
    }
}

struct Fixture {
    store: Store,
    queue: Arc<MemoryQueue>,
    backend: Arc<MemoryBackend>,
    metrics: Arc<Metrics>,
    writer: Addr<BatchWriter>,
    dir: tempfile::TempDir,
    downs: mpsc::UnboundedReceiver<ChildDown>,
    _parent: Addr<Parent>,
}

fn start(backend: MemoryBackend) -> Fixture {
    start_with(backend, |_| {})
}

fn start_with(backend: MemoryBackend, change: impl FnOnce(&mut StoreConfig)) -> Fixture {
    tokio::time::pause();
    *backend.begun.lock() = Some(Instant::now());
    let dir = tempfile::tempdir().unwrap();
    let queue =
        Arc::new(MemoryQueue { last: watch::Sender::new(0), position: Mutex::new(0), confirmed: Mutex::default() });
    let backend = Arc::new(backend);
    let metrics = Arc::new(Metrics::new());
    let (parent, downs) = Parent::start();
    let defaults = Config::load(&Default::default(), true).unwrap().store;
    let mut config = StoreConfig { fsync: Fsync::Interval, ..defaults };
    change(&mut config);
    let store = Store::new(backend.clone(), DbRuntime::current());
    let writer = BatchWriter::new(BatchWriterParams {
        queue: queue.clone(),
        store: store.clone(),
        quarantine: Quarantine::new(dir.path()),
        config,
        metrics: metrics.clone(),
        lifeline: Lifeline::new(parent.clone().recipient(), ChildKind::BatchWriter, 1, metrics.clone()),
    });
    Fixture { store, queue, backend, metrics, writer: writer.start(), dir, downs, _parent: parent }
}

impl Drop for Fixture {
    fn drop(&mut self) {
        while let Ok(down) = self.downs.try_recv() {
            assert!(down.exit == Exit::Normal || std::thread::panicking(), "{:?}", down.exit);
        }
    }
}

impl Fixture {
    async fn after(&self, millis: u64) {
        tokio::time::sleep(Duration::from_millis(millis)).await;
    }
    /// Milliseconds since the start and number of rows of each batch. tokio's clock has steps of a millisecond, and a
    /// wait of none takes one: times are compared with a tolerance of that.
    fn assert_batches(&self, expected: &[(u128, usize)]) {
        let batches = self.backend.batches.lock();
        let found: Vec<_> = batches.iter().map(|(at, seqs)| (at.as_millis(), seqs.len())).collect();
        let same = |(f, e): (&(u128, usize), &(u128, usize))| f.1 == e.1 && f.0.abs_diff(e.0) <= 5;
        assert!(found.len() == expected.len() && found.iter().zip(expected).all(same), "{found:?}, not {expected:?}");
    }
    /// All rows in the order of writing.
    fn rows(&self) -> Vec<i64> {
        self.backend.batches.lock().iter().flat_map(|(_, seqs)| seqs.clone()).collect()
    }
    fn flushes(&self, trigger: &str) -> u64 {
        self.metrics.batch_flushes_total.with_label_values(&[trigger]).get()
    }
    async fn observe(&self) -> serde_json::Value {
        serde_json::to_value(self.writer.send(Observe::default()).await.unwrap()).unwrap()
    }
}

#[actix::test]
async fn rows_wait_for_the_interval_after_the_first_of_them() {
    let f = start(MemoryBackend::default());
    f.after(1000).await;
    f.queue.append(1);
    f.after(200).await;
    f.queue.append(2);
    f.after(95).await;
    f.assert_batches(&[]);
    f.after(10).await;
    f.assert_batches(&[(1300, 3)]);
    f.after(1000).await;
    // Nothing more to write, no empty batch.
    f.assert_batches(&[(1300, 3)]);
    assert_eq!((f.flushes("timeout"), f.flushes("size")), (1, 0));
    assert_eq!(*f.queue.confirmed.lock(), [3]);
}

#[actix::test]
async fn a_full_batch_is_written_at_once_and_its_timer_is_void() {
    let f = start(MemoryBackend::default());
    f.queue.append(1);
    f.after(250).await;
    f.queue.append(249);
    f.after(20).await;
    f.assert_batches(&[(250, 100), (250, 100)]);
    // The other 50 wait for their own interval, not for what is left of the first row's.
    f.after(270).await;
    f.assert_batches(&[(250, 100), (250, 100)]);
    f.after(30).await;
    f.assert_batches(&[(250, 100), (250, 100), (550, 50)]);
    assert_eq!((f.flushes("timeout"), f.flushes("size")), (1, 2));
    assert_eq!(f.rows(), (1..=250).collect::<Vec<_>>());
}

#[actix::test]
async fn one_statement_is_in_flight_at_a_time() {
    let f = start(MemoryBackend { statement: Duration::from_millis(500), ..Default::default() });
    f.queue.append(100);
    f.after(10).await;
    f.queue.append(5);
    assert_eq!(f.observe().await["inFlight"], true);
    f.after(470).await;
    f.assert_batches(&[]);
    f.after(1000).await;
    // The five had waited longer than the interval when the first statement ended.
    f.assert_batches(&[(500, 100), (1000, 5)]);
}

#[actix::test]
async fn flush_writes_at_once_and_says_what_is_left() {
    let f = start(MemoryBackend::default());
    assert_eq!(f.writer.send(Flush { deadline: Duration::from_secs(5) }).await.unwrap(), 0);
    f.queue.append(130);
    let left = f.writer.send(Flush { deadline: Duration::from_secs(5) }).await.unwrap();
    assert_eq!(left, 0);
    f.assert_batches(&[(0, 100), (0, 30)]);
    assert_eq!((f.flushes("size"), f.flushes("flush"), f.flushes("timeout")), (1, 1, 0));
    *f.backend.down.lock() = Some(StoreError::Unavailable("gone".into()));
    f.queue.append(7);
    let begun = Instant::now();
    let left = f.writer.send(Flush { deadline: Duration::from_secs(5) }).await.unwrap();
    assert_eq!((left, begun.elapsed().as_secs()), (7, 5));
}

#[actix::test]
async fn a_dead_database_costs_time_but_no_row_and_no_order() {
    let f = start(MemoryBackend::default());
    *f.backend.down.lock() = Some(StoreError::Unavailable("gone".into()));
    f.queue.append(250);
    f.after(60_000).await;
    let seen = f.observe().await;
    f.assert_batches(&[]);
    assert_eq!(seen["pending"], 250);
    assert_eq!((seen["databaseUp"].as_bool(), f.metrics.database_up.get()), (Some(false), 0));
    assert!(seen["lastError"].as_str().unwrap().contains("gone"));
    // 0.1, 0.2, … 3.2 s, then every 5 s.
    let failures = seen["failures"].as_u64().unwrap();
    assert!((16..=18).contains(&failures), "{failures} attempts in a minute");
    *f.backend.down.lock() = None;
    f.after(5_400).await;
    assert_eq!(f.rows(), (1..=250).collect::<Vec<_>>());
    let seen = f.observe().await;
    assert_eq!((seen["pending"].as_u64(), seen["databaseUp"].as_bool()), (Some(0), Some(true)));
    assert_eq!(seen["failures"], 0);
}

#[actix::test]
async fn a_refused_row_goes_to_quarantine_and_the_others_are_stored() {
    let f = start(MemoryBackend { refused_seqs: vec![17, 64], ..Default::default() });
    f.queue.append(100);
    let left = f.writer.send(Flush { deadline: Duration::from_secs(5) }).await.unwrap();
    assert_eq!(left, 0);
    let expected: Vec<i64> = (1..=100).filter(|s| ![17, 64].contains(s)).collect();
    assert_eq!(f.rows(), expected, "in order, without the refused");
    let file = std::fs::read_dir(f.dir.path().join("quarantine")).unwrap().next().unwrap().unwrap().path();
    let text = std::fs::read_to_string(file).unwrap();
    let ids: Vec<String> = text
        .lines()
        .map(|l| serde_json::from_str::<serde_json::Value>(l).unwrap()["refused"]["record"]["id"].to_string())
        .collect();
    assert_eq!(ids, ["\"g17\"", "\"g64\""]);
    assert_eq!(f.metrics.batch_rows_total.with_label_values(&["quarantined"]).get(), 2);
    assert_eq!(f.metrics.batch_rows_total.with_label_values(&["inserted"]).get(), 98);
}

#[actix::test]
async fn a_fault_in_mid_bisection_repeats_the_batch() {
    let f = start(MemoryBackend { refused_seqs: vec![2], ..Default::default() });
    f.backend.faults.lock().extend([
        StoreError::Rejected("no".into()),
        StoreError::Unavailable("cut".into()),
        StoreError::ReadOnly("standby".into()),
    ]);
    f.queue.append(4);
    f.after(1000).await;
    assert_eq!(f.rows(), [1, 3, 4]);
    assert_eq!(*f.queue.confirmed.lock(), [4]);
    assert_eq!(f.observe().await["totals"]["quarantined"], 1);
}

/// A serverless database suspends when nobody asks it anything.
#[actix::test]
async fn an_idle_database_is_left_alone() {
    let f = start_with(MemoryBackend::default(), |config| config.retention = Some(Duration::from_secs(86_400)));
    f.after(1000).await;
    assert_eq!((*f.backend.pings.lock(), *f.backend.purges.lock()), (0, 1), "old sessions are looked for at the start");
    f.after(23 * 3_600_000).await;
    assert_eq!((*f.backend.pings.lock(), *f.backend.purges.lock()), (0, 1));
    // Where rows are written it is awake anyway.
    f.queue.append(1);
    f.after(3_600_000).await;
    assert_eq!(*f.backend.purges.lock(), 2);
    f.after(23 * 3_600_000).await;
    assert_eq!(*f.backend.purges.lock(), 2);
    f.after(2 * 3_600_000).await;
    assert_eq!((*f.backend.pings.lock(), *f.backend.purges.lock()), (0, 3), "RETENTION_DAYS is a promise in days");
}

#[actix::test]
async fn a_database_that_was_away_is_asked_until_it_is_back() {
    let f = start(MemoryBackend::default());
    *f.backend.down.lock() = Some(StoreError::Unavailable("gone".into()));
    // Somebody reads, and it is not there.
    assert!(f.store.ping().await.is_err());
    f.after(50_000).await;
    assert_eq!(f.observe().await["databaseUp"], false);
    *f.backend.down.lock() = None;
    f.after(20_000).await;
    assert_eq!((f.observe().await["databaseUp"].as_bool(), f.store.fault()), (Some(true), None));
    let asked = *f.backend.pings.lock();
    f.after(3_600_000).await;
    assert_eq!(*f.backend.pings.lock(), asked);
}

#[actix::test]
async fn the_queue_is_measured() {
    let f = start(MemoryBackend { statement: Duration::from_secs(1), ..Default::default() });
    f.queue.append(1500);
    f.after(10).await;
    assert_eq!(f.metrics.batch_queue_size.get(), 1500);
    f.after(20_000).await;
    assert_eq!(f.metrics.batch_queue_size.get(), 0);
    f.writer.send(Shutdown).await.unwrap();
}
