//! `BatchWriter`: brings what is in the outbox into the database, in order, batch by batch.
//!
//! Owns the database's place in the outbox. Receives no rows: it is woken when some were appended, reads them from the
//! outbox and confirms them there once they are committed, so its memory is one batch and its death costs nothing but
//! a repetition. A database that does not answer is tried again with back-off for ever; a row that it will never take
//! goes to quarantine. A database without rows to write is left alone, so that a serverless one may suspend. Ends on
//! `Shutdown` only.

pub mod bus_rows;
mod state;

use std::sync::Arc;
use std::time::Duration;

use actix::prelude::*;
use futures_util::stream;
use serde::Serialize;
use tokio::sync::oneshot;
use tokio::time::Instant;

pub use self::state::BatchWriterState;
use super::supervision::{Lifeline, backoff};
use crate::config::StoreConfig;
use crate::db::batching::{Batching, Next, Trigger};
use crate::db::delivery::{Delivery, deliver};
use crate::db::retention::{PURGE_INTERVAL, Retention};
use crate::db::{Quarantine, Refusal, RowQueue, Store};
use crate::metrics::Metrics;
use crate::transcript::outbox::Stored;

const BACKOFF_FIRST: Duration = Duration::from_millis(100);
const BACKOFF_MOST: Duration = Duration::from_secs(5);
/// Interval in which the quarantine is counted, and a database that was away is asked again.
const CHECK_INTERVAL: Duration = Duration::from_secs(15);

/// The parts of a `BatchWriter`. After a restart, give it a new queue: it goes on after the last confirmed row.
pub struct BatchWriterParams {
    pub queue: Arc<dyn RowQueue>,
    pub store: Store,
    pub quarantine: Quarantine,
    pub config: StoreConfig,
    pub metrics: Arc<Metrics>,
    pub lifeline: Lifeline,
}

/// Brings rows from the outbox to the database, in batches.
pub struct BatchWriter {
    params: BatchWriterParams,
    batching: Batching,
    confirmed: u64,
    /// A batch is on its way.
    in_flight: bool,
    /// A batch that failed, and when it is tried again.
    held: Option<(Arc<[Stored]>, Instant)>,
    failures: u32,
    timer: Option<(Instant, SpawnHandle)>,
    flushes: Vec<PendingFlush>,
    /// `MAX_QUEUE_SIZE` is exceeded, and that was said.
    crowded: bool,
    database_up: Option<bool>,
    last_error: Option<String>,
    totals: Totals,
    retention: Retention,
    /// Rows were written since old ones were last looked for.
    is_awake: bool,
}

/// Rows since the actor began.
#[derive(Debug, Clone, Copy, Default, Serialize)]
pub struct Totals {
    pub inserted: u64,
    pub duplicates: u64,
    pub sessions: u64,
    pub quarantined: u64,
    pub conflicts: u64,
}

struct PendingFlush {
    /// Complete when everything up to here is confirmed.
    target: u64,
    deadline: Instant,
    reply: oneshot::Sender<u64>,
}

/// Writes everything that is in the outbox now, waiting at most `deadline`. Answers how many rows are left in it.
#[derive(Debug, Clone, Copy, Message)]
#[rtype(result = "u64")]
pub struct Flush {
    pub deadline: Duration,
}

/// Rows were appended, up to this index.
struct Appended(u64);

impl BatchWriter {
    pub fn new(params: BatchWriterParams) -> Self {
        let position = params.queue.position();
        let config = &params.config;
        let retention = Retention::new(config.retention, params.store.clone(), params.quarantine.clone());
        Self {
            batching: Batching::new(config.max_batch_size, config.flush_interval, position),
            confirmed: position,
            params,
            in_flight: false,
            held: None,
            failures: 0,
            timer: None,
            flushes: Vec::new(),
            crowded: false,
            database_up: None,
            last_error: None,
            totals: Totals::default(),
            retention,
            is_awake: false,
        }
    }

    /// Rows that are not in the database yet.
    fn rows_left(&self) -> u64 {
        self.params.queue.last().saturating_sub(self.confirmed)
    }

    /// Begins what is due, or sets the timer for it. Called after every event, so a timer carries no meaning itself.
    fn proceed(&mut self, ctx: &mut Context<Self>) {
        self.measure();
        if self.in_flight {
            return;
        }
        let now = Instant::now();
        match &self.held {
            Some((batch, at)) if *at <= now => {
                let batch = batch.clone();
                self.held = None;
                self.write(ctx, batch);
            }
            Some((_, at)) => self.wake_at(*at, ctx),
            None => match self.batching.next(!self.flushes.is_empty(), now) {
                Next::Write(trigger) => self.take_batch(trigger, ctx),
                Next::WaitUntil(at) => self.wake_at(at, ctx),
                Next::Idle => {}
            },
        }
    }

    fn wake_at(&mut self, at: Instant, ctx: &mut Context<Self>) {
        if let Some((set, handle)) = self.timer.take() {
            if set == at {
                self.timer = Some((set, handle));
                return;
            }
            ctx.cancel_future(handle);
        }
        let delay = at.saturating_duration_since(Instant::now());
        let wake = |actor: &mut Self, ctx: &mut Context<Self>| {
            actor.timer = None;
            actor.proceed(ctx);
        };
        self.timer = Some((at, ctx.run_later(delay, wake)));
    }

    fn take_batch(&mut self, trigger: Trigger, ctx: &mut Context<Self>) {
        self.in_flight = true;
        self.params.metrics.batch_flushes_total.with_label_values(&[trigger.as_str()]).inc();
        let queue = self.params.queue.clone();
        let read = queue.read(self.params.config.max_batch_size).into_actor(self);
        ctx.spawn(read.map(|result, actor, ctx| {
            actor.in_flight = false;
            actor.batching.took(actor.params.queue.position());
            match result {
                Ok(batch) => actor.write(ctx, batch.into()),
                Err(error) => actor.hold(Arc::from([]), error.to_string(), ctx),
            }
        }));
    }

    fn write(&mut self, ctx: &mut Context<Self>, batch: Arc<[Stored]>) {
        self.in_flight = true;
        let store = self.params.store.clone();
        let quarantine = self.params.quarantine.clone();
        let begun = Instant::now();
        let work = {
            let batch = batch.clone();
            async move {
                let delivery = deliver(&store, &batch).await?;
                quarantine.set_aside(&delivery.refused).await;
                Ok(delivery)
            }
        };
        ctx.spawn(work.into_actor(self).map(move |result: Result<Delivery, crate::db::StoreError>, actor, ctx| {
            actor.in_flight = false;
            match result {
                Ok(delivery) => actor.done(&batch, &delivery, begun.elapsed(), ctx),
                Err(error) => actor.hold(batch, error.to_string(), ctx),
            }
        }));
    }

    fn done(&mut self, batch: &[Stored], delivery: &Delivery, took: Duration, ctx: &mut Context<Self>) {
        let position = self.params.queue.position();
        self.params.queue.confirm(position);
        self.confirmed = self.confirmed.max(position);
        self.failures = 0;
        if !batch.is_empty() {
            self.note_database(Ok(()));
            self.is_awake = true;
            self.params.metrics.batch_write_seconds.observe(took.as_secs_f64());
        }
        self.count(delivery);
        if !delivery.refused.is_empty() {
            self.count_quarantine(ctx);
        }
        self.answer_flushes();
        self.proceed(ctx);
    }

    /// Those that are complete, and those that have waited long enough.
    fn answer_flushes(&mut self) {
        let (confirmed, left, now) = (self.confirmed, self.rows_left(), Instant::now());
        for flush in self.flushes.extract_if(.., |f| f.target <= confirmed || f.deadline <= now) {
            let _ = flush.reply.send(left);
        }
    }

    fn count(&mut self, delivery: &Delivery) {
        let of = |refusal| delivery.refused.iter().filter(|r| r.refusal == refusal).count() as u64;
        let conflicts = of(Refusal::Conflict);
        let quarantined = delivery.refused.len() as u64 - conflicts;
        self.totals.inserted += delivery.inserted as u64;
        self.totals.duplicates += delivery.duplicates as u64;
        self.totals.sessions += delivery.sessions as u64;
        self.totals.conflicts += conflicts;
        self.totals.quarantined += quarantined;
        let rows = &self.params.metrics.batch_rows_total;
        rows.with_label_values(&["inserted"]).inc_by(delivery.inserted as u64);
        rows.with_label_values(&["duplicate"]).inc_by(delivery.duplicates as u64);
        rows.with_label_values(&["conflict"]).inc_by(conflicts);
        rows.with_label_values(&["quarantined"]).inc_by(quarantined);
    }

    /// The batch could not be written now: it is tried again as it is.
    fn hold(&mut self, batch: Arc<[Stored]>, error: String, ctx: &mut Context<Self>) {
        let delay = backoff(BACKOFF_FIRST, BACKOFF_MOST, self.failures);
        self.failures += 1;
        self.note_database(Err(error));
        self.held = Some((batch, Instant::now() + delay));
        self.proceed(ctx);
    }

    /// Says once that the database went, and once that it came back.
    fn note_database(&mut self, result: Result<(), String>) {
        let up = result.is_ok();
        self.params.metrics.database_up.set(i64::from(up));
        self.params.store.note_writing(result.clone());
        match result {
            Err(error) => {
                if self.database_up != Some(false) {
                    self.params.metrics.connection_errors_total.with_label_values(&["database"]).inc();
                    tracing::warn!(error, rows = self.rows_left(), "database takes no rows; they wait in the outbox");
                }
                self.last_error = Some(error);
            }
            Ok(()) if self.database_up == Some(false) => {
                tracing::info!(rows = self.rows_left(), "database is back; writing what waited");
            }
            Ok(()) => {}
        }
        self.database_up = Some(up);
    }

    fn measure(&mut self) {
        let (rows, limit) = (self.rows_left(), self.params.config.max_queue_size as u64);
        self.params.metrics.batch_queue_size.set(rows as i64);
        if rows > limit && !self.crowded {
            self.crowded = true;
            tracing::warn!(rows, limit, "more rows wait for the database than MAX_QUEUE_SIZE");
        } else if rows <= limit / 2 && self.crowded {
            self.crowded = false;
            tracing::info!(rows, limit, "the rows that waited for the database have been written");
        }
    }

    /// Asks a database that was away. One that is idle is not asked.
    fn check(&mut self, ctx: &mut Context<Self>) {
        self.count_quarantine(ctx);
        if self.in_flight || self.held.is_some() || self.params.store.fault().is_none() {
            return;
        }
        let store = self.params.store.clone();
        ctx.spawn(async move { store.ping().await }.into_actor(self).map(|result, actor, _| {
            // An answer that was overtaken by a batch tells nothing new.
            if !actor.in_flight && actor.held.is_none() {
                actor.note_database(result.map_err(|e| e.to_string()));
            }
        }));
    }

    fn count_quarantine(&self, ctx: &mut Context<Self>) {
        let quarantine = self.params.quarantine.clone();
        let counted = actix_rt::task::spawn_blocking(move || quarantine.summary());
        ctx.spawn(counted.into_actor(self).map(|result, actor, _| {
            if let Ok(Ok(summary)) = result {
                actor.params.metrics.quarantine_rows.set(summary.rows as i64);
            }
        }));
    }

    /// Deletes what is older than `RETENTION_DAYS`, when that is due.
    fn purge(&mut self, ctx: &mut Context<Self>) {
        if let Some(work) = self.retention.purge(self.is_awake) {
            self.is_awake = false;
            ctx.spawn(work.into_actor(self));
        }
    }
}

impl Actor for BatchWriter {
    type Context = Context<Self>;

    fn started(&mut self, ctx: &mut Self::Context) {
        self.params.lifeline.started();
        let appended = stream::unfold((self.params.queue.watch(), true), |(mut watch, first)| async move {
            if !first {
                watch.changed().await.ok()?;
            }
            let last = *watch.borrow_and_update();
            Some((Appended(last), (watch, false)))
        });
        ctx.add_stream(appended);
        self.database_up = Some(self.params.store.fault().is_none());
        self.check(ctx);
        ctx.run_interval(CHECK_INTERVAL, Self::check);
        self.purge(ctx);
        ctx.run_interval(PURGE_INTERVAL, Self::purge);
    }
}

impl StreamHandler<Appended> for BatchWriter {
    fn handle(&mut self, Appended(last): Appended, ctx: &mut Self::Context) {
        self.batching.arrived(last, Instant::now());
        self.proceed(ctx);
    }

    fn finished(&mut self, _: &mut Self::Context) {
        // The outbox has closed; what is in it comes after the restart.
    }
}

impl Handler<Flush> for BatchWriter {
    type Result = ResponseFuture<u64>;

    fn handle(&mut self, flush: Flush, ctx: &mut Self::Context) -> Self::Result {
        // The outbox may know of rows whose wake-up has not come yet.
        let last = self.params.queue.last();
        self.batching.arrived(last, Instant::now());
        if self.rows_left() == 0 {
            return Box::pin(async { 0 });
        }
        let (reply, answer) = oneshot::channel();
        self.flushes.push(PendingFlush { target: last, deadline: Instant::now() + flush.deadline, reply });
        if let Some((_, at)) = &mut self.held {
            *at = Instant::now();
        }
        ctx.run_later(flush.deadline, |actor, _| actor.answer_flushes());
        self.proceed(ctx);
        Box::pin(async move { answer.await.unwrap_or(u64::MAX) })
    }
}

crate::stops_and_crashes!(BatchWriter);

#[cfg(test)]
mod tests;
