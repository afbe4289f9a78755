//! `Forwarder`: brings what is in the outbox to one ws node, room by room. There is one for each `WS_SERVER_URL`.
//!
//! Owns: its target's place in the outbox, and a sender for each room. Receives no entries: it reads rows from the outbox to
//! know what must arrive, and the rooms' logs to have it at once. Sends batches by its bus, and brings back who speaks and
//! who watches there. What it holds can be lost: a successor goes on after the last confirmed row, and entries are known
//! by their ids. A target that is away costs the others nothing; its rows wait in the outbox. Ends on `Shutdown` only.

mod backlog;
mod reports;
mod room;
mod target;

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use actix::prelude::*;
use futures_util::future::LocalBoxFuture;
use futures_util::stream::{self, FuturesUnordered};
use futures_util::{Stream, StreamExt};
use serde::Serialize;
use tokio::sync::{Notify, oneshot};

use self::backlog::Backlog;
use self::room::RoomSender;
use self::target::{Target, TargetState};
use super::batch_writer::Flush;
use super::supervision::{Lifeline, Observable, Observe};
use crate::bus::Bus;
use crate::metrics::Metrics;
use crate::transcript::outbox::{Consumer, Outbox, Record, Stored};
use crate::transcript::{Directory, Epoch, Slug};

/// Rows taken from the outbox at a time.
const READ_ROWS: usize = 256;
/// Interval in which rooms that have no row in the outbox are found, and pause after an outbox that cannot be read.
const SWEEP: Duration = Duration::from_secs(1);
/// Part of `OUTBOX_MAX_BYTES` past which a target that is behind the others is not waited for.
const CROWDED: f64 = 0.9;

/// The parts of a `Forwarder`. After a restart, give it a new consumer: it goes on after the last confirmed row.
pub struct ForwarderParams {
    /// Base URL of the ws node.
    pub url: String,
    pub queue: Consumer,
    pub outbox: Outbox,
    pub max_outbox_bytes: u64,
    pub directory: Arc<Directory>,
    pub metrics: Arc<Metrics>,
}

/// Makes the way to the target, on the forwarder's own thread.
pub type MakeBus = Box<dyn FnOnce() -> Rc<dyn Bus> + Send>;

/// Brings the outbox to one ws node.
pub struct Forwarder {
    shared: Rc<Shared>,
    lifeline: Lifeline,
}

/// State that the actor, its senders and its poll share.
struct Shared {
    params: ForwarderParams,
    bus: Rc<dyn Bus>,
    target: Target,
    backlog: RefCell<Backlog>,
    /// Something was stored, or a flush is wanted.
    progress: Notify,
    flushers: RefCell<Vec<(u64, oneshot::Sender<()>)>>,
    /// Every row up to here is stored at the target.
    confirmed: Cell<u64>,
    /// Every row up to here is let go of.
    left: Cell<u64>,
    senders: Cell<usize>,
}

impl Forwarder {
    pub fn start(arbiter: &ArbiterHandle, params: ForwarderParams, bus: MakeBus, lifeline: Lifeline) -> Addr<Self> {
        Self::start_in_arbiter(arbiter, move |_| {
            let after = params.queue.position();
            let shared = Shared {
                bus: bus(),
                target: Target::new(params.url.clone()),
                backlog: RefCell::new(Backlog::new(after)),
                progress: Notify::new(),
                flushers: RefCell::default(),
                confirmed: after.into(),
                left: after.into(),
                senders: 0.into(),
                params,
            };
            Self { shared: Rc::new(shared), lifeline }
        })
    }
}

impl Actor for Forwarder {
    type Context = Context<Self>;

    fn started(&mut self, ctx: &mut Self::Context) {
        self.lifeline.started();
        ctx.spawn(run(self.shared.clone()).into_actor(self));
        ctx.spawn(reports::poll(self.shared.clone()).into_actor(self));
    }
}

/// Waits until everything that is in the outbox now is stored at the target, or for `deadline`; answers how many rows
/// are left.
impl Handler<Flush> for Forwarder {
    type Result = ResponseFuture<u64>;

    fn handle(&mut self, flush: Flush, _: &mut Self::Context) -> Self::Result {
        let shared = self.shared.clone();
        Box::pin(async move {
            let last = shared.params.outbox.stats().last_index;
            let (done, flushed) = oneshot::channel();
            shared.flushers.borrow_mut().push((last, done));
            shared.progress.notify_one();
            let _ = tokio::time::timeout(flush.deadline, flushed).await;
            last.saturating_sub(shared.confirmed.get())
        })
    }
}

crate::stops_and_crashes!(Forwarder);

/// The state that `/metrics` shows.
#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct ForwarderState {
    pub generation: u64,
    pub url: String,
    pub state: &'static str,
    pub fault: Option<String>,
    /// Rows of the outbox that are not stored there.
    pub rows_left: u64,
    pub rooms: usize,
}

impl Observable for Forwarder {
    type State = ForwarderState;
}

impl Handler<Observe<Self>> for Forwarder {
    type Result = MessageResult<Observe<Self>>;

    fn handle(&mut self, _: Observe<Self>, _: &mut Self::Context) -> Self::Result {
        let shared = &self.shared;
        MessageResult(ForwarderState {
            generation: self.lifeline.generation(),
            url: shared.target.url.clone(),
            state: shared.target.state().as_str(),
            fault: shared.target.fault(),
            rows_left: shared.rows_left(),
            rooms: shared.senders.get(),
        })
    }
}

impl Shared {
    fn rows_left(&self) -> u64 {
        self.params.outbox.stats().last_index.saturating_sub(self.confirmed.get())
    }

    fn is_crowded(&self) -> bool {
        let bytes = self.params.outbox.stats().bytes;
        bytes as f64 > self.params.max_outbox_bytes as f64 * CROWDED
    }

    /// Confirms what is stored without a hole before it.
    fn confirm(&self) {
        let confirmable = self.backlog.borrow().confirmable();
        if confirmable > self.confirmed.get() {
            self.confirmed.set(confirmable);
        }
        // A log server that loses what it has confirmed is given it again, as long as there is room for it here.
        let may_leave = if self.is_crowded() { confirmable } else { self.bus.may_leave(confirmable) };
        if may_leave > self.left.get() {
            self.left.set(may_leave);
            self.params.queue.confirm(may_leave);
        }
        let rows = self.params.metrics.forward_queue_rows.with_label_values(&[&self.target.url]);
        rows.set(self.rows_left() as i64);
        for (_, done) in self.flushers.borrow_mut().extract_if(.., |(wanted, _)| *wanted <= confirmable) {
            // Nobody may be waiting any more.
            let _ = done.send(());
        }
    }

    /// The outbox is almost full, and it is this target that is furthest behind and takes nothing: it is not to stop the
    /// others.
    fn give_up_if_crowded(&self) {
        let params = &self.params;
        let stats = params.outbox.stats();
        let Some((least, furthest)) = params.outbox.confirmed_range().filter(|_| self.is_crowded()) else { return };
        let confirmed = self.confirmed.get();
        let until = confirmed + (furthest.saturating_sub(confirmed)).div_ceil(2);
        if until <= confirmed || least < confirmed || self.target.state() == TargetState::Up {
            return;
        }
        self.backlog.borrow_mut().give_up(until);
        let rows = until - confirmed;
        params.metrics.forward_rows_given_up_total.with_label_values(&[&self.target.url]).inc_by(rows);
        tracing::error!(
            target_url = self.target.url,
            rows,
            outbox_bytes = stats.bytes,
            "the outbox is almost full: rows are given up for a ws node that is behind the others"
        );
        self.confirmed.set(until);
        self.left.set(until);
        params.queue.confirm(until);
        self.progress.notify_one();
    }
}

/// The actor's work, as one future: what must arrive is read, and each room with something to send has a sender.
async fn run(shared: Rc<Shared>) {
    let mut senders = Senders { shared: shared.clone(), running: FuturesUnordered::new(), wakes: HashMap::new() };
    let rows = rows_of(shared.clone());
    tokio::pin!(rows);
    let mut sweep = tokio::time::interval(SWEEP);
    loop {
        tokio::select! {
            Some(epoch) = senders.running.next() => senders.ended(epoch),
            () = shared.progress.notified() => shared.confirm(),
            rows = rows.next() => match rows {
                Some(rows) => senders.note(&rows),
                // The outbox has closed; what is in it comes after the restart.
                None => return,
            },
            _ = sweep.tick() => senders.sweep(),
        }
        shared.senders.set(senders.wakes.len());
    }
}

/// The rows of the outbox, as they come. A read that has begun is not given up: its rows would count as read.
fn rows_of(shared: Rc<Shared>) -> impl Stream<Item = Vec<Stored>> {
    let mut appended = shared.params.queue.watch();
    appended.mark_changed();
    stream::unfold((shared, appended), |(shared, mut appended)| async move {
        loop {
            appended.changed().await.ok()?;
            match shared.params.queue.read(READ_ROWS).await {
                Ok(rows) if rows.is_empty() => {}
                Ok(rows) => {
                    if rows.len() == READ_ROWS {
                        appended.mark_changed();
                    }
                    return Some((rows, (shared, appended)));
                }
                Err(error) => {
                    tracing::error!(%error, "the outbox cannot be read");
                    appended.mark_changed();
                    tokio::time::sleep(SWEEP).await;
                }
            }
        }
    })
}

/// The rooms' senders.
struct Senders {
    shared: Rc<Shared>,
    running: FuturesUnordered<LocalBoxFuture<'static, Epoch>>,
    wakes: HashMap<Epoch, Rc<Notify>>,
}

impl Senders {
    fn note(&mut self, rows: &[Stored]) {
        for row in rows {
            let mut backlog = self.shared.backlog.borrow_mut();
            match &row.record {
                Ok(Record::Entry(entry)) => {
                    let seq = entry.seq().unwrap_or(0);
                    backlog.note_entry(row.index, entry.session(), entry.epoch(), seq);
                }
                Ok(Record::Session(record)) => backlog.note_record(row.index, record),
                Err(unreadable) => {
                    tracing::error!(index = row.index, error = %unreadable.reason, "a row of the outbox is unreadable");
                    backlog.note_nothing(row.index);
                }
            }
        }
        for epoch in rows.iter().filter_map(|row| Some(row.record.as_ref().ok()?.prefix().epoch)) {
            match self.wakes.get(&epoch) {
                Some(wake) => wake.notify_one(),
                None => self.begin_if_open(epoch),
            }
        }
        self.shared.confirm();
    }

    fn begin(&mut self, slug: Slug, epoch: Epoch, after: u64) {
        let sender = RoomSender::new(self.shared.clone(), slug.clone(), epoch, after);
        self.wakes.insert(epoch, sender.wake.clone());
        let bus = self.shared.bus.clone();
        self.running.push(Box::pin(async move {
            sender.run().await;
            bus.finished(slug, epoch).await;
            epoch
        }));
    }

    fn ended(&mut self, epoch: Epoch) {
        self.wakes.remove(&epoch);
        self.begin_if_open(epoch);
    }

    fn begin_if_open(&mut self, epoch: Epoch) {
        let slug = {
            let backlog = self.shared.backlog.borrow();
            backlog.get(epoch).filter(|room| !room.is_done()).map(|room| room.slug.clone())
        };
        if let Some(slug) = slug {
            self.begin(slug, epoch, 0);
        }
    }

    /// Sessions that have no row in the outbox are found in the directory.
    fn sweep(&mut self) {
        for room in self.shared.params.directory.rooms() {
            let live = room.current().filter(|log| !log.is_closed() && !self.wakes.contains_key(&log.epoch()));
            let Some(log) = live else { continue };
            // In this order: what is in the log by now was in the outbox before, and if every row there was noted and none of
            // this log waits, its entries have arrived.
            let after = log.last_seq();
            let is_read = self.shared.backlog.borrow().read() >= self.shared.params.outbox.stats().last_index;
            if is_read {
                self.begin(room.slug().clone(), log.epoch(), after);
            }
        }
        let wakes = &self.wakes;
        let is_read = self.shared.backlog.borrow().read() >= self.shared.params.outbox.stats().last_index;
        if is_read {
            let backlog = self.shared.backlog.borrow();
            let is_open = |epoch| backlog.get(epoch).is_some_and(|room| !room.is_done());
            self.shared.bus.is_read(&|epoch| wakes.contains_key(&epoch) || is_open(epoch));
        }
        self.shared.backlog.borrow_mut().tidy(|epoch| wakes.contains_key(&epoch));
        self.shared.give_up_if_crowded();
        self.shared.confirm();
    }
}

#[cfg(test)]
mod tests;
