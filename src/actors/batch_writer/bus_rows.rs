//! Rows that wait in the log server of a cluster, fetched a little ahead. All nodes with a database share them.
//!
//! A message is done with once all of its rows are in the database. One that is held for longer is said to be in work,
//! so that no other node is given it. While the database takes no rows, no more are fetched than are held already.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use futures_util::FutureExt;
use futures_util::future::{BoxFuture, join_all};
use parking_lot::Mutex;
use tokio::sync::watch;
use tokio::time::Instant;

use crate::actors::supervision::backoff;
use crate::bus::log_server::{Logged, MessageKind, Receipt, SharedServer, Work};
use crate::bus::wire::LogBatch;
use crate::db::RowQueue;
use crate::metrics::Metrics;
use crate::transcript::Entry;
use crate::transcript::outbox::{OutboxError, Record, RecordError, Stored, Undecodable};

/// Messages that are held at most.
const MAX_HELD: usize = 500;
/// Messages fetched at a time.
const FETCH: usize = 100;
const PAUSE_FIRST: Duration = Duration::from_millis(200);
const PAUSE_MOST: Duration = Duration::from_secs(5);
/// A message that is held for so long is said to be in work, and again each time.
const IN_WORK: Duration = Duration::from_secs(10);
/// Interval in which the log server makes room for new messages.
const TIDY: Duration = Duration::from_secs(5);
/// The same while hardly anything of it is left: whoever appends waits.
const TIDY_SOON: Duration = Duration::from_millis(500);
/// From so full on, of 1.
const HARDLY_ANY_LEFT: f64 = 0.8;

/// A queue of rows over the log server's work. It outlives its reader.
pub struct BusRows {
    state: Mutex<State>,
    last: watch::Sender<u64>,
    /// How many messages are held.
    held: watch::Sender<usize>,
}

#[derive(Default)]
struct State {
    /// Rows that are not in the database, in order.
    rows: VecDeque<Stored>,
    messages: VecDeque<Held>,
    /// Index of the last row that was read.
    position: u64,
    confirmed: u64,
}

/// A message that has rows in the queue.
struct Held {
    last_index: u64,
    receipt: Box<dyn Receipt>,
    told: Instant,
}

impl BusRows {
    /// Fetches until the queue is dropped. Within a runtime.
    pub fn start(server: SharedServer, metrics: Arc<Metrics>) -> Arc<Self> {
        let rows = Self { state: Mutex::default(), last: watch::Sender::new(0), held: watch::Sender::new(0) };
        let rows = Arc::new(rows);
        tokio::spawn(fetch(rows.clone(), server.clone()).map(drop));
        tokio::spawn(keep(rows.clone()));
        tokio::spawn(tidy(rows.held.subscribe(), server, metrics));
        rows
    }

    /// A reader that begins anew starts after the last confirmed row.
    pub fn rewind(&self) {
        let mut state = self.state.lock();
        state.position = state.confirmed;
    }

    fn add(&self, work: Work) {
        let Work { logged, receipt } = work;
        let mut state = self.state.lock();
        let last = *self.last.borrow();
        let rows: Vec<_> = (last + 1..).zip(rows_of(&logged)).map(|(index, record)| Stored { index, record }).collect();
        let Some(last_index) = rows.last().map(|row| row.index) else {
            drop(state);
            tokio::spawn(receipt.done());
            return;
        };
        state.rows.extend(rows);
        state.messages.push_back(Held { last_index, receipt, told: Instant::now() });
        self.held.send_replace(state.messages.len());
        drop(state);
        self.last.send_replace(last_index);
    }
}

/// The rows of a message: its entries, and the session's row. None of an owner's record.
fn rows_of(logged: &Logged) -> Vec<Result<Record, Undecodable>> {
    let message = &logged.message;
    if message.kind == MessageKind::Owner {
        return Vec::new();
    }
    match LogBatch::parse(&message.room, &message.body) {
        Ok(batch) => {
            let record = batch.record.map(|record| Record::Session(Arc::new(record)));
            let durable = batch.transcripts.into_iter().filter(|entry: &Entry| !entry.is_interim());
            let entries = durable.map(|entry| Record::Entry(Arc::new(entry)));
            record.into_iter().chain(entries).map(Ok).collect()
        }
        Err(error) => {
            let reason = RecordError::Json(error.to_string());
            tracing::error!(session = %message.room, position = logged.position, %error, "a message of the log is unreadable");
            vec![Err(Undecodable { reason, payload: message.body.to_vec() })]
        }
    }
}

/// Fetches ahead. None: the queue is gone.
async fn fetch(rows: Arc<BusRows>, server: SharedServer) -> Option<()> {
    let mut held = rows.held.subscribe();
    let rows = Arc::downgrade(&rows);
    let mut failures = 0;
    loop {
        let free = MAX_HELD - *held.wait_for(|held| *held < MAX_HELD).await.ok()?;
        match server.work(free.min(FETCH)).await {
            Ok(found) => {
                failures = 0;
                let rows = rows.upgrade()?;
                found.into_iter().for_each(|work| rows.add(work));
            }
            Err(error) => {
                if failures == 0 {
                    tracing::warn!(%error, "no rows can be fetched from the log server; they wait there");
                }
                tokio::time::sleep(backoff(PAUSE_FIRST, PAUSE_MOST, failures)).await;
                failures += 1;
                rows.upgrade()?;
            }
        }
    }
}

/// Says of what is held that it is in work.
async fn keep(rows: Arc<BusRows>) {
    let rows = Arc::downgrade(&rows);
    let mut interval = tokio::time::interval(IN_WORK / 2);
    loop {
        interval.tick().await;
        let Some(rows) = rows.upgrade() else { return };
        let told: Vec<_> = {
            let mut state = rows.state.lock();
            let old = state.messages.iter_mut().filter(|held| held.told.elapsed() >= IN_WORK);
            old.map(|held| {
                held.told = Instant::now();
                held.receipt.is_in_work()
            })
            .collect()
        };
        drop(rows);
        join_all(told).await;
    }
}

async fn tidy(held: watch::Receiver<usize>, server: SharedServer, metrics: Arc<Metrics>) {
    let mut pause = TIDY_SOON;
    // An error: the queue is gone.
    while held.has_changed().is_ok() {
        tokio::time::sleep(pause).await;
        pause = TIDY;
        match server.tidy().await {
            Ok(fullness) => {
                metrics.bus_log_fullness.set(fullness);
                if fullness >= HARDLY_ANY_LEFT {
                    pause = TIDY_SOON;
                }
            }
            Err(error) => tracing::debug!(%error, "the log server was not tidied"),
        }
    }
}

impl RowQueue for BusRows {
    fn watch(&self) -> watch::Receiver<u64> {
        self.last.subscribe()
    }

    fn position(&self) -> u64 {
        self.state.lock().position
    }

    fn read(self: Arc<Self>, max: usize) -> BoxFuture<'static, Result<Vec<Stored>, OutboxError>> {
        let mut state = self.state.lock();
        let skip = (state.position - state.confirmed) as usize;
        let rows: Vec<_> = state.rows.iter().skip(skip).take(max).cloned().collect();
        state.position += rows.len() as u64;
        async move { Ok(rows) }.boxed()
    }

    fn confirm(&self, index: u64) {
        let mut state = self.state.lock();
        while state.rows.front().is_some_and(|row| row.index <= index) {
            state.rows.pop_front();
            state.confirmed += 1;
        }
        while state.messages.front().is_some_and(|held| held.last_index <= index) {
            if let Some(held) = state.messages.pop_front() {
                tokio::spawn(held.receipt.done());
            }
        }
        self.held.send_replace(state.messages.len());
    }
}
