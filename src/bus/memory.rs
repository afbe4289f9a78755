//! A log server inside this process, for a whole cluster in one process: tests and simulations.
//!
//! Each node has a connection of its own, which can be cut, stalled and made to lose what is on it. It answers as `NATS`
//! does in what the trait leaves open: a call that has timed out may be carried out later, an answer may be lost, a
//! repetition is refused or known by its id. Its time is tokio's, so that a paused clock moves it.

mod log;
mod network;
mod talk;
mod work;

use std::collections::HashMap;
use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use chrono::{DateTime, Utc};
use futures_util::future::BoxFuture;
use futures_util::stream::{self, BoxStream};
use futures_util::{FutureExt, StreamExt};
use parking_lot::Mutex;
use tokio::sync::{oneshot, watch};
use tokio::time::Instant;

use self::log::Log;
use self::network::{ANSWER, Wire};
pub use self::network::{Call, Journey};
use self::talk::Talk;
use self::work::Queue;
use super::log_server::{
    Answer, Appended, Followed, Held, Link, LogServer, Logged, Message, Position, Question, ServerError, Topic,
    Unanswered, Work,
};
use crate::transcript::Slug;

/// The server's clock when it starts, in Unix seconds.
const STARTED_AT: i64 = 1_800_000_000;

/// The server, and what can be done to it.
#[derive(Clone)]
pub struct MemoryServer {
    shared: Arc<Shared>,
}

struct Shared {
    state: Mutex<State>,
    /// Counts changes.
    changes: watch::Sender<u64>,
    started: Instant,
}

#[derive(Default)]
struct State {
    log: Log,
    queue: Queue,
    talk: Talk,
    holders: HashMap<Slug, Held>,
    /// Of the last write of a holder.
    revision: u64,
}

impl Shared {
    /// Changes what followers and writers wait for.
    fn change<T>(&self, change: impl FnOnce(&mut State) -> T) -> T {
        let changed = change(&mut self.state.lock());
        self.changes.send_modify(|count| *count += 1);
        changed
    }

    fn carry_out<T>(&self, call: Call, what: impl FnOnce(&mut State) -> T) -> T {
        match call {
            Call::Append => self.change(what),
            Call::Hold | Call::Ask | Call::Other => what(&mut self.state.lock()),
        }
    }

    fn clock(&self) -> DateTime<Utc> {
        let started = DateTime::from_timestamp(STARTED_AT, 0).expect("a time within the calendar");
        started + self.started.elapsed()
    }
}

impl Default for MemoryServer {
    fn default() -> Self {
        Self::new()
    }
}

impl MemoryServer {
    pub fn new() -> Self {
        let (changes, started) = (watch::Sender::new(0), Instant::now());
        Self { shared: Arc::new(Shared { state: Mutex::default(), changes, started }) }
    }

    /// A connection of its own.
    pub fn connect(&self) -> Arc<MemoryClient> {
        Arc::new(MemoryClient { shared: self.shared.clone(), wire: Arc::new(Wire::new()) })
    }

    /// A repetition within two minutes is answered as stored, whatever it expects: as `NATS` before 2.12 does.
    pub fn know_repetitions_first(&self) {
        self.shared.change(|state| state.log.is_id_first = true);
    }

    /// Keeps at most so many bytes from now on; None: any number.
    pub fn set_capacity(&self, bytes: Option<usize>) {
        self.shared.change(|state| state.log.capacity = bytes);
    }

    /// Loses the last messages, as a crash without a flush does.
    pub fn lose_end(&self, count: usize) {
        self.shared.change(|state| {
            let kept = state.log.lose_end(count);
            state.queue.lose_end(kept);
        });
    }

    /// Loses everything.
    pub fn make_anew(&self) {
        self.lose_end(usize::MAX);
        self.shared.change(|state| {
            state.holders.clear();
            state.revision = 0;
        });
    }

    /// Removes a room's messages, as their age does.
    pub fn purge(&self, room: &Slug) {
        self.shared.change(|state| state.log.purge(room));
    }

    /// Everything that is in the log.
    pub fn messages(&self) -> Vec<Logged> {
        self.shared.state.lock().log.all().cloned().collect()
    }
}

/// One node's connection to a [`MemoryServer`], and what can be done to it.
pub struct MemoryClient {
    shared: Arc<Shared>,
    wire: Arc<Wire>,
}

impl MemoryClient {
    /// Cuts the connection, so that both sides know. What is on its way is lost.
    pub fn cut(&self) {
        self.wire.cut();
    }

    /// Lets nothing through, and nobody know. What is on its way arrives when this is over.
    pub fn stall(&self) {
        self.wire.stall();
    }

    pub fn mend(&self) {
        self.wire.mend();
    }

    /// Leaves questions to this node unanswered.
    pub fn freeze(&self) {
        self.wire.freeze(true);
    }

    /// Gives the node the questions that have come meanwhile.
    pub fn thaw(&self) {
        self.wire.freeze(false);
    }

    /// Loses the answers to the next appends, which are carried out.
    pub fn lose_answers(&self, count: usize) {
        self.wire.next_appends(count, Journey { back: None, ..Journey::default() });
    }

    /// Delays the answers to the next appends, which are carried out at once.
    pub fn delay_answers(&self, count: usize, time: Duration) {
        self.wire.next_appends(count, Journey { back: Some(time), ..Journey::default() });
    }

    /// Delays the next appends; from two seconds on nobody waits for them any more.
    pub fn delay_appends(&self, count: usize, time: Duration) {
        self.wire.next_appends(count, Journey { there: Some(time), ..Journey::default() });
    }

    /// Decides about each call from now on, but for appends that were disposed of otherwise.
    pub fn set_fate(&self, fate: impl FnMut(Call) -> Journey + Send + 'static) {
        self.wire.set_fate(Box::new(fate));
    }

    /// Carries a call to the server and its answer back.
    async fn call<T: Send + 'static>(
        &self,
        call: Call,
        carry_out: impl FnOnce(&mut State) -> T + Send + 'static,
    ) -> Result<T, ServerError> {
        let away = |why: &str| ServerError::Away(why.to_owned());
        if self.wire.is_cut() {
            return Err(away("the connection is cut"));
        }
        let (journey, shared, wire) = (self.wire.journey(call), self.shared.clone(), self.wire.clone());
        let way = async move {
            if !wire.pass(journey.there).await {
                return None;
            }
            let answer = shared.carry_out(call, carry_out);
            wire.pass(journey.back).await.then_some(answer)
        };
        match tokio::time::timeout(ANSWER, self.on_its_way(way)).await {
            Ok(Some(answer)) => Ok(answer),
            Ok(None) => Err(away("the connection was lost")),
            Err(_) => Err(away("no answer in time")),
        }
    }

    /// What goes on when nobody waits for it any more. A way without a wait is gone at once.
    async fn on_its_way<T: Send + 'static>(&self, way: impl Future<Output = T> + Send + 'static) -> T {
        let mut way = Box::pin(way);
        if let Some(answer) = way.as_mut().now_or_never() {
            return answer;
        }
        let (sender, answer) = oneshot::channel();
        tokio::spawn(async move {
            let _ = sender.send(way.await);
        });
        match answer.await {
            Ok(answer) => answer,
            // The runtime stops.
            Err(_) => std::future::pending().await,
        }
    }
}

impl LogServer for MemoryClient {
    fn append(&self, message: Message, expected: Position) -> BoxFuture<'_, Appended> {
        let shared = self.shared.clone();
        let append = move |state: &mut State| state.log.append(message, expected, Instant::now(), shared.clock());
        async move {
            match self.call(Call::Append, append).await {
                Ok(appended) => appended,
                Err(error) => Appended::Unsure(error.to_string()),
            }
        }
        .boxed()
    }

    fn head(&self, room: &Slug) -> Answer<'_, Option<Logged>> {
        let room = room.clone();
        self.call(Call::Other, move |state| state.log.head(&room).cloned()).boxed()
    }

    fn read(&self, room: &Slug, after: Position, limit: usize) -> Answer<'_, Vec<Logged>> {
        let room = room.clone();
        self.call(Call::Other, move |state| state.log.read(&room, after, limit)).boxed()
    }

    fn follow(&self, after: Position) -> BoxStream<'static, Followed> {
        let (shared, wire) = (self.shared.clone(), self.wire.clone());
        let place = shared.state.lock().log.place(after);
        let changes = shared.changes.subscribe();
        let next = |(shared, wire, mut place, mut changes): (Arc<Shared>, Arc<Wire>, _, watch::Receiver<u64>)| async {
            loop {
                wire.until_up().await;
                changes.borrow_and_update();
                let step = shared.state.lock().log.step(&mut place);
                if let Some(step) = step {
                    return Some((step, (shared, wire, place, changes)));
                }
                changes.changed().await.ok()?;
            }
        };
        stream::unfold((shared, wire, place, changes), next).boxed()
    }

    fn settled(&self) -> Answer<'_, Position> {
        self.call(Call::Other, |state| state.queue.settled(&state.log)).boxed()
    }

    fn work(&self, limit: usize) -> Answer<'_, Vec<Work>> {
        self.take_work(limit).boxed()
    }

    fn tidy(&self) -> Answer<'_, f64> {
        self.call(Call::Other, |state| state.log.tidy(state.queue.settled(&state.log))).boxed()
    }

    fn holder(&self, room: &Slug) -> Answer<'_, Option<Held>> {
        let room = room.clone();
        self.call(Call::Other, move |state| state.holders.get(&room).cloned()).boxed()
    }

    fn hold(&self, room: &Slug, value: Bytes, revision: Option<u64>) -> Answer<'_, Option<u64>> {
        let (room, shared) = (room.clone(), self.shared.clone());
        let hold = move |state: &mut State| {
            if state.holders.get(&room).map(|held| held.revision) != revision {
                return None;
            }
            state.revision += 1;
            state.holders.insert(room, Held { value, revision: state.revision, at: shared.clock() });
            Some(state.revision)
        };
        self.call(Call::Hold, hold).boxed()
    }

    fn let_go(&self, room: &Slug, revision: u64) -> Answer<'_, bool> {
        let room = room.clone();
        let let_go = move |state: &mut State| {
            let is_mine = state.holders.get(&room).is_some_and(|held| held.revision == revision);
            is_mine && state.holders.remove(&room).is_some()
        };
        self.call(Call::Hold, let_go).boxed()
    }

    fn held(&self) -> Answer<'_, Vec<(Slug, Held)>> {
        let held = |state: &mut State| {
            let mut held: Vec<_> = state.holders.iter().map(|(room, held)| (room.clone(), held.clone())).collect();
            held.sort_by(|(a, _), (b, _)| a.cmp(b));
            held
        };
        self.call(Call::Other, held).boxed()
    }

    fn ask(&self, node: &str, request: Bytes, within: Duration) -> BoxFuture<'_, Result<Bytes, Unanswered>> {
        let node = node.to_owned();
        async move { self.ask_node(&node, request, within).await }.boxed()
    }

    fn questions(&self, node: &str) -> BoxStream<'static, Question> {
        self.listen_as(node)
    }

    fn tell(&self, topic: Topic, body: Bytes) {
        if self.wire.is_up() {
            self.shared.change(|state| state.talk.tell(&topic, &body));
        }
    }

    fn hear(&self, topic: Topic) -> BoxStream<'static, Bytes> {
        self.listen_to(topic)
    }

    fn link(&self) -> watch::Receiver<Link> {
        self.wire.link.subscribe()
    }
}
