//! Messages for the database: one queue of all nodes together.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::BoxFuture;
use tokio::time::Instant;

use super::log::Log;
use super::network::Wire;
use super::{MemoryClient, Shared};
use crate::bus::log_server::{Logged, Position, Receipt, ServerError, Work};

/// A message of which nothing is heard for so long is given to somebody else.
const REDELIVERY: Duration = Duration::from_secs(30);
/// So long is waited with one that was let go of.
const LET_GO: Duration = Duration::from_secs(2);

#[derive(Default)]
pub struct Queue {
    /// Everything up to it is done.
    floor: Position,
    /// Done beyond the floor.
    done: BTreeSet<Position>,
    given: BTreeMap<Position, Given>,
    deliveries: u64,
}

struct Given {
    delivery: u64,
    until: Instant,
}

impl Queue {
    fn take(&mut self, log: &Log, now: Instant, limit: usize) -> Vec<(Logged, u64)> {
        let mut taken = Vec::new();
        for logged in log.after(self.floor) {
            let position = logged.position;
            let is_given = self.given.get(&position).is_some_and(|given| given.until > now);
            if self.done.contains(&position) || is_given {
                continue;
            }
            if taken.len() == limit {
                break;
            }
            self.deliveries += 1;
            self.given.insert(position, Given { delivery: self.deliveries, until: now + REDELIVERY });
            taken.push((logged.clone(), self.deliveries));
        }
        taken
    }

    /// When a message may be given again.
    fn next_at(&self) -> Option<Instant> {
        self.given.values().map(|given| given.until).min()
    }

    fn done(&mut self, position: Position, log: &Log) {
        self.given.remove(&position);
        if position > self.floor {
            self.done.insert(position);
        }
        while let Some(next) = log.after(self.floor).next().filter(|next| self.done.contains(&next.position)) {
            self.floor = next.position;
        }
        self.done = self.done.split_off(&(self.floor + 1));
    }

    /// The delivery is not to be repeated before `until`, if it is the last one.
    fn put_off(&mut self, position: Position, delivery: u64, until: Instant) {
        if let Some(given) = self.given.get_mut(&position).filter(|given| given.delivery == delivery) {
            given.until = until;
        }
    }

    /// What is not in the log any more is waited for by nobody.
    pub fn settled(&mut self, log: &Log) -> Position {
        self.floor = self.floor.max(log.begins_after());
        self.given = self.given.split_off(&(self.floor + 1));
        self.floor
    }

    /// The log ends here now.
    pub fn lose_end(&mut self, kept: Position) {
        self.floor = self.floor.min(kept);
        self.done.split_off(&(kept + 1));
        self.given.split_off(&(kept + 1));
    }
}

impl MemoryClient {
    pub(super) async fn take_work(&self, limit: usize) -> Result<Vec<Work>, ServerError> {
        if limit == 0 {
            return Ok(Vec::new());
        }
        let mut changes = self.shared.changes.subscribe();
        loop {
            changes.borrow_and_update();
            let take = move |state: &mut super::State| {
                let taken = state.queue.take(&state.log, Instant::now(), limit);
                (taken, state.queue.next_at())
            };
            let (taken, next_at) = self.call(super::Call::Other, take).await?;
            if !taken.is_empty() {
                return Ok(taken.into_iter().map(|(logged, delivery)| self.work_of(logged, delivery)).collect());
            }
            let again = async {
                match next_at {
                    Some(at) => tokio::time::sleep_until(at).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                _ = changes.changed() => {}
                () = again => {}
                () = self.wire.until_cut() => {}
            }
        }
    }

    fn work_of(&self, logged: Logged, delivery: u64) -> Work {
        let (position, shared, wire) = (logged.position, self.shared.clone(), self.wire.clone());
        Work { logged, receipt: Box::new(Delivery { position, delivery, shared, wire, is_done: false }) }
    }
}

/// The receipt of one delivery. What it says while its node is cut off is lost.
struct Delivery {
    position: Position,
    delivery: u64,
    shared: Arc<Shared>,
    wire: Arc<Wire>,
    is_done: bool,
}

impl Delivery {
    fn put_off(&self, time: Duration) {
        if self.wire.is_up() {
            let (position, delivery) = (self.position, self.delivery);
            self.shared.change(|state| state.queue.put_off(position, delivery, Instant::now() + time));
        }
    }
}

impl Receipt for Delivery {
    fn done(mut self: Box<Self>) -> BoxFuture<'static, ()> {
        self.is_done = true;
        if self.wire.is_up() {
            self.shared.change(|state| state.queue.done(self.position, &state.log));
        }
        Box::pin(std::future::ready(()))
    }

    fn is_in_work(&self) -> BoxFuture<'static, ()> {
        self.put_off(REDELIVERY);
        Box::pin(std::future::ready(()))
    }
}

impl Drop for Delivery {
    fn drop(&mut self) {
        if !self.is_done {
            self.put_off(LET_GO);
        }
    }
}
