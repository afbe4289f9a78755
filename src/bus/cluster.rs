//! The bus over a log server: batches go into the rooms' logs, under the rules of [`Ownership`].

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::LocalBoxFuture;
use futures_util::stream::BoxStream;
use futures_util::{FutureExt, StreamExt};
use tokio::sync::watch;

use super::log_server::{Link, Position, Topic};
use super::ownership::Ownership;
use super::wire::NodeReports;
use super::{Batch, Bus, Outcome};
use crate::transcript::{Epoch, Slug};

/// Interval in which the log server is asked how far the database is.
const SETTLE_INTERVAL: Duration = Duration::from_secs(2);
/// Steps that wait for the database.
const MAX_STEPS: usize = 10_000;

/// The rooms' logs on a log server, for one forwarder.
pub struct ClusterBus {
    ownership: Arc<Ownership>,
    link: watch::Receiver<Link>,
    reports: Rc<tokio::sync::Mutex<BoxStream<'static, bytes::Bytes>>>,
    /// What the database has.
    settled: Rc<Cell<Position>>,
    /// Rows up to an index of the outbox are in the log up to a position.
    steps: RefCell<VecDeque<(u64, Position)>>,
    /// Rows up to it are in the database.
    left_behind: Cell<u64>,
    asking: actix_rt::task::JoinHandle<()>,
}

impl ClusterBus {
    pub fn new(ownership: Arc<Ownership>) -> Self {
        let server = ownership.server().clone();
        let settled = Rc::new(Cell::new(0));
        let reports = Rc::new(tokio::sync::Mutex::new(server.hear(Topic::Reports)));
        let asking = actix_rt::spawn(ask_how_far(ownership.clone(), settled.clone()));
        Self {
            link: server.link(),
            ownership,
            reports,
            settled,
            steps: RefCell::default(),
            left_behind: Cell::new(0),
            asking,
        }
    }
}

impl Drop for ClusterBus {
    fn drop(&mut self) {
        self.asking.abort();
    }
}

async fn ask_how_far(ownership: Arc<Ownership>, settled: Rc<Cell<Position>>) {
    loop {
        tokio::time::sleep(SETTLE_INTERVAL).await;
        match ownership.server().settled().await {
            Ok(position) if position > settled.get() => {
                settled.set(position);
                ownership.settled(position).await;
            }
            Ok(_) => {}
            Err(error) => tracing::debug!(%error, "how far the database is could not be asked"),
        }
    }
}

impl Bus for ClusterBus {
    fn append<'a>(&'a self, batch: &'a Batch) -> LocalBoxFuture<'a, Outcome> {
        self.ownership.append(batch).boxed_local()
    }

    fn reports(&self, _: u64) -> LocalBoxFuture<'_, Result<NodeReports, Outcome>> {
        let (reports, mut link) = (self.reports.clone(), self.link.clone());
        async move {
            let mut reports = reports.lock().await;
            loop {
                let away = link.wait_for(|link| matches!(link, Link::Away(_)));
                let report = tokio::select! {
                    report = reports.next() => report,
                    Ok(away) = away => {
                        return Err(Outcome::Unsure(match &*away { Link::Away(why) => why.clone(), _ => String::new() }));
                    }
                };
                match report.map(|report| serde_json::from_slice(&report)) {
                    Some(Ok(report)) => return Ok(report),
                    Some(Err(error)) => tracing::debug!(%error, "a report of another node is unreadable"),
                    None => return Err(Outcome::Unsure("the reports have ended".to_owned())),
                }
            }
        }
        .boxed_local()
    }

    fn finished(&self, slug: Slug, epoch: Epoch) -> LocalBoxFuture<'_, ()> {
        async move { self.ownership.all_stored(&slug, epoch).await }.boxed_local()
    }

    fn is_read(&self, is_waiting: &dyn Fn(Epoch) -> bool) {
        self.ownership.forget_leftovers(is_waiting);
    }

    fn may_leave(&self, stored: u64) -> u64 {
        let mut steps = self.steps.borrow_mut();
        let position = self.ownership.last_position();
        let last = steps.back().map_or(self.left_behind.get(), |(index, _)| *index);
        if stored > last {
            if steps.len() >= MAX_STEPS {
                steps.pop_back();
            }
            steps.push_back((stored, position));
        }
        while let Some((index, _)) = steps.front().filter(|(_, at)| *at <= self.settled.get()) {
            self.left_behind.set(*index);
            steps.pop_front();
        }
        self.left_behind.get()
    }
}
