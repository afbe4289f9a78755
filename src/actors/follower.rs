//! `Follower`: shows what the other nodes of a cluster have written into the log server.
//!
//! Owns: its place in the log, and a lane for each room in it. Follows the log from where the database has everything, so
//! a mirror that begins from the database joins without a hole. Sends what comes to the registry, as [`Broadcast`]s, room
//! by room in order and the rooms side by side; brings interims of rooms that are watched here, tells the others who speaks
//! and watches here, and tells viewers when the log server is away. What it holds can be lost: a successor begins where the
//! database is, and repetitions are known by their ids. Ends on `Shutdown` only.

mod interims;
mod lane;
mod link;
mod reports;

use std::cell::Cell;
use std::collections::{HashMap, HashSet};
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use actix::prelude::*;
use futures_util::StreamExt;
use futures_util::future::LocalBoxFuture;
use futures_util::stream::FuturesUnordered;
use serde::Serialize;
use tokio::sync::{Semaphore, watch};
use tokio::time::Instant;

use self::lane::Lane;
use super::session_registry::Broadcast;
use super::supervision::{Lifeline, Observable, Observe, backoff};
use crate::bus::ReportRing;
use crate::bus::log_server::{Followed, Link, Position, SharedServer};
use crate::metrics::Metrics;
use crate::transcript::{Directory, Slug};

const PAUSE_FIRST: Duration = Duration::from_millis(100);
const PAUSE_MOST: Duration = Duration::from_secs(5);
/// Interval in which rooms that are watched are found.
const SWEEP: Duration = Duration::from_secs(1);
/// A room in which nothing has been said for so long is forgotten; its owner repeats its record more often.
const FORGET: Duration = Duration::from_secs(24 * 60 * 60);
/// Rooms that read from the log server at a time, because they are behind.
const MAX_READS: usize = 4;

/// The parts of a `Follower`.
pub struct FollowerParams {
    pub server: SharedServer,
    /// Name of this node, in what it tells the others.
    pub node: String,
    /// Takes the entries, like those of posts.
    pub registry: Recipient<Broadcast>,
    pub directory: Arc<Directory>,
    pub reports: Arc<ReportRing>,
    pub metrics: Arc<Metrics>,
    /// Is told once every room that somebody owned at the start is here.
    pub caught_up: Arc<watch::Sender<bool>>,
}

/// Brings the log server's log to the rooms of this node.
pub struct Follower {
    shared: Rc<Shared>,
    lifeline: Lifeline,
}

/// State that the actor and its parts share.
struct Shared {
    params: FollowerParams,
    reads: Semaphore,
    /// Of the last step that was followed.
    position: Cell<Position>,
    /// Of messages that wait in all lanes.
    queued_bytes: Cell<usize>,
    rooms: Cell<usize>,
    working: Cell<usize>,
}

impl Follower {
    pub fn start(arbiter: &ArbiterHandle, params: FollowerParams, lifeline: Lifeline) -> Addr<Self> {
        Self::start_in_arbiter(arbiter, move |_| {
            let reads = Semaphore::new(MAX_READS);
            let (position, queued_bytes, rooms, working) = (0.into(), 0.into(), 0.into(), 0.into());
            let shared = Rc::new(Shared { params, reads, position, queued_bytes, rooms, working });
            Self { shared, lifeline }
        })
    }
}

impl Actor for Follower {
    type Context = Context<Self>;

    fn started(&mut self, ctx: &mut Self::Context) {
        self.lifeline.started();
        ctx.spawn(run(self.shared.clone()).into_actor(self));
        ctx.spawn(interims::hear(self.shared.clone()).into_actor(self));
        ctx.spawn(reports::tell(self.shared.clone()).into_actor(self));
        ctx.spawn(link::tell_viewers(self.shared.clone()).into_actor(self));
    }
}

crate::stops_and_crashes!(Follower);

/// The state that `/metrics` shows.
#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct FollowerState {
    pub generation: u64,
    pub link: &'static str,
    pub fault: Option<String>,
    /// In the log, over all rooms.
    pub position: u64,
    pub rooms: usize,
    /// Rooms with something that is not shown yet.
    pub working: usize,
    pub queued_bytes: usize,
}

impl Observable for Follower {
    type State = FollowerState;
}

impl Handler<Observe<Self>> for Follower {
    type Result = MessageResult<Observe<Self>>;

    fn handle(&mut self, _: Observe<Self>, _: &mut Self::Context) -> Self::Result {
        let shared = &self.shared;
        let link = shared.params.server.link().borrow().clone();
        MessageResult(FollowerState {
            generation: self.lifeline.generation(),
            link: link.as_str(),
            fault: if let Link::Away(why) = link { Some(why) } else { None },
            position: shared.position.get(),
            rooms: shared.rooms.get(),
            working: shared.working.get(),
            queued_bytes: shared.queued_bytes.get(),
        })
    }
}

/// The actor's work: each message goes to its room's lane, and each lane with something to do has a future.
async fn run(shared: Rc<Shared>) {
    let mut after = settled(&shared).await;
    let mut lanes = Lanes::new(shared.clone(), after);
    lanes.want_owned().await;
    let mut sweep = tokio::time::interval(SWEEP);
    loop {
        let mut followed = shared.params.server.follow(after);
        loop {
            tokio::select! {
                Some(slug) = lanes.running.next() => lanes.rested(&slug),
                step = followed.next() => match step {
                    Some(step) => after = lanes.take(step),
                    None => break,
                },
                _ = sweep.tick() => lanes.sweep(),
            }
            shared.position.set(after);
            shared.rooms.set(lanes.all.len());
            shared.working.set(lanes.running.len());
            if lanes.running.is_empty() {
                shared.params.caught_up.send_if_modified(|told| !std::mem::replace(told, true));
            }
        }
        // It should have no end.
        tracing::error!(position = after, "the log server's stream has ended, following it anew");
        tokio::time::sleep(PAUSE_MOST).await;
    }
}

/// The position from which the database may lack something.
async fn settled(shared: &Shared) -> Position {
    let mut failures = 0;
    loop {
        match shared.params.server.settled().await {
            Ok(position) => {
                tracing::info!(position, "following the log server");
                return position;
            }
            Err(error) => {
                if failures == 0 {
                    tracing::warn!(%error, "the log server cannot be followed yet");
                }
                tokio::time::sleep(backoff(PAUSE_FIRST, PAUSE_MOST, failures)).await;
                failures += 1;
            }
        }
    }
}

/// The lanes of all rooms.
struct Lanes {
    shared: Rc<Shared>,
    /// Where the following began.
    begun: Position,
    all: HashMap<Slug, Rc<Lane>>,
    running: FuturesUnordered<LocalBoxFuture<'static, Slug>>,
    /// Rooms that are watched and have no log here, of which the log server was asked.
    asked: HashSet<Slug>,
}

impl Lanes {
    fn new(shared: Rc<Shared>, begun: Position) -> Self {
        Self { shared, begun, all: HashMap::new(), running: FuturesUnordered::new(), asked: HashSet::new() }
    }

    /// Takes the next step of the log; gives the position after it.
    fn take(&mut self, step: Followed) -> Position {
        match step {
            Followed::Message(logged) => {
                let position = logged.position;
                let lane = self.lane(&logged.message.room);
                lane.push(logged);
                self.wake(&lane);
                position
            }
            Followed::Reset(position) => {
                self.begun = position;
                tracing::error!(position, "the log server's log is another one, or has lost its end; going on with it");
                for lane in self.all.values() {
                    lane.reset(position);
                }
                position
            }
        }
    }

    fn lane(&mut self, slug: &Slug) -> Rc<Lane> {
        if let Some(lane) = self.all.get(slug) {
            return lane.clone();
        }
        let lane = Rc::new(Lane::new(slug.clone(), self.shared.clone(), self.begun));
        self.all.insert(slug.clone(), lane.clone());
        lane
    }

    fn wake(&self, lane: &Rc<Lane>) {
        if !lane.is_running.replace(true) {
            let lane = lane.clone();
            self.running.push(Box::pin(async move {
                lane.run().await;
                lane.slug.clone()
            }));
        }
    }

    fn rested(&self, slug: &Slug) {
        if let Some(lane) = self.all.get(slug) {
            lane.is_running.set(false);
            if lane.has_work() {
                self.wake(lane);
            }
        }
    }

    /// A room in which nobody has spoken since the database has everything is there all the same.
    async fn want_owned(&mut self) {
        match self.shared.params.server.held().await {
            Ok(owned) => owned.iter().for_each(|(slug, _)| self.want(slug)),
            Err(error) => tracing::warn!(%error, "rooms are shown when somebody speaks there or watches"),
        }
    }

    fn want(&mut self, slug: &Slug) {
        let lane = self.lane(slug);
        lane.is_wanted.set(true);
        self.wake(&lane);
    }

    /// Whoever comes to a room in which nobody speaks just now is shown its log, too.
    fn sweep(&mut self) {
        let mut waiting = HashSet::new();
        for room in self.shared.params.directory.rooms() {
            let has_log = room.current().is_some_and(|log| !log.is_closed());
            if room.viewers() > 0 && !has_log {
                waiting.insert(room.slug().clone());
            }
        }
        let asked = std::mem::replace(&mut self.asked, waiting.clone());
        for slug in waiting.difference(&asked) {
            self.want(slug);
        }
        let now = Instant::now();
        self.all.retain(|_, lane| lane.is_running.get() || now.duration_since(lane.last_used.get()) < FORGET);
    }
}

#[cfg(test)]
mod tests;
