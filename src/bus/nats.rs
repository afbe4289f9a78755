//! The log server on NATS `JetStream`: one stream of all rooms' logs, one bucket of who has which room.
//!
//! An append carries the position of the room's last message, and one leader checks and stores it in one step. A copy of
//! the log may lag, so what is decided upon is read from the leader.

mod follow;
mod holders;
mod link;
mod log;
mod message;
mod names;
mod streams;
mod talk;
mod work;

use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures_util::future::BoxFuture;
use futures_util::stream::{self, BoxStream};
use futures_util::{FutureExt, StreamExt};
use parking_lot::Mutex;
use tokio::sync::watch;
use tokio::task::JoinHandle;

use super::log_server::{
    Appended, Followed, Held, Link, LogServer, Logged, Message, Position, Question, ServerError, Topic, Unanswered,
    Work,
};
use crate::config::NatsConfig;
use crate::metrics::Metrics;
use crate::transcript::Slug;
use follow::Follower;
use link::Connection;

/// Longest wait for the first connection of a process.
const FIRST: Duration = Duration::from_secs(5);
/// The age up to which the database's position is given again.
const SETTLED_FOR: Duration = Duration::from_secs(1);

pub struct NatsServer {
    connection: Arc<Connection>,
    keeper: JoinHandle<()>,
    settled: Mutex<Option<(Instant, Position)>>,
}

impl NatsServer {
    /// Begins to connect, whether or not a server is there. `node` is how the server's operators see the connection.
    pub async fn start(config: NatsConfig, node: &str, metrics: Arc<Metrics>) -> Result<Self, ServerError> {
        let connection = Arc::new(Connection::open(config, node, metrics).await?);
        let keeper = tokio::spawn(connection.clone().keep());
        Ok(Self { connection, keeper, settled: Mutex::new(None) })
    }

    /// Waits for the first word about the server. `Away` is no reason not to start: it is tried again for ever.
    pub async fn ready(&self) -> Result<(), ServerError> {
        let mut link = self.link();
        let known = link.wait_for(|link| *link != Link::Connecting);
        let _ = tokio::time::timeout(FIRST, known).await;
        self.connection.check()
    }
}

impl Drop for NatsServer {
    fn drop(&mut self) {
        self.keeper.abort();
    }
}

impl LogServer for NatsServer {
    fn append(&self, message: Message, expected: Position) -> BoxFuture<'_, Appended> {
        self.connection.append(message, expected).boxed()
    }

    fn head(&self, room: &Slug) -> BoxFuture<'_, Result<Option<Logged>, ServerError>> {
        let room = room.clone();
        async move { self.connection.head(&room).await }.boxed()
    }

    fn read(&self, room: &Slug, after: Position, limit: usize) -> BoxFuture<'_, Result<Vec<Logged>, ServerError>> {
        let room = room.clone();
        async move { self.connection.read(&room, after, limit).await }.boxed()
    }

    fn follow(&self, after: Position) -> BoxStream<'static, Followed> {
        let follower = Follower::new(self.connection.clone(), after);
        stream::unfold(follower, |mut follower| async move { Some((follower.next().await, follower)) }).boxed()
    }

    fn settled(&self) -> BoxFuture<'_, Result<Position, ServerError>> {
        async {
            let known = self.settled.lock().filter(|(at, _)| at.elapsed() < SETTLED_FOR);
            if let Some((_, position)) = known {
                return Ok(position);
            }
            let position = self.connection.settled_now().await?;
            *self.settled.lock() = Some((Instant::now(), position));
            Ok(position)
        }
        .boxed()
    }

    fn work(&self, limit: usize) -> BoxFuture<'_, Result<Vec<Work>, ServerError>> {
        self.connection.work(limit).boxed()
    }

    fn tidy(&self) -> BoxFuture<'_, Result<f64, ServerError>> {
        self.connection.tidy().boxed()
    }

    fn holder(&self, room: &Slug) -> BoxFuture<'_, Result<Option<Held>, ServerError>> {
        let room = room.clone();
        async move { self.connection.holder(&room).await }.boxed()
    }

    fn hold(
        &self,
        room: &Slug,
        value: Bytes,
        revision: Option<u64>,
    ) -> BoxFuture<'_, Result<Option<u64>, ServerError>> {
        let room = room.clone();
        async move { self.connection.hold(&room, value, revision).await }.boxed()
    }

    fn let_go(&self, room: &Slug, revision: u64) -> BoxFuture<'_, Result<bool, ServerError>> {
        let room = room.clone();
        async move { self.connection.let_go(&room, revision).await }.boxed()
    }

    fn held(&self) -> BoxFuture<'_, Result<Vec<(Slug, Held)>, ServerError>> {
        self.connection.held().boxed()
    }

    fn ask(&self, node: &str, request: Bytes, within: Duration) -> BoxFuture<'_, Result<Bytes, Unanswered>> {
        let node = node.to_owned();
        async move { self.connection.ask(&node, request, within).await }.boxed()
    }

    fn questions(&self, node: &str) -> BoxStream<'static, Question> {
        self.connection.questions(node)
    }

    fn tell(&self, topic: Topic, body: Bytes) {
        self.connection.tell(&topic, body);
    }

    fn hear(&self, topic: Topic) -> BoxStream<'static, Bytes> {
        self.connection.hear(&topic)
    }

    fn link(&self) -> watch::Receiver<Link> {
        self.connection.health.link.subscribe()
    }
}
