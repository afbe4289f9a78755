//! Log servers that break the promise that everything stands on, to see that the check sees it.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use futures_util::stream::BoxStream;
use stenocast::bus::log_server::{
    Answer, Appended, Followed, Held, Link, LogServer, Logged, Message, MessageKind, Position, Question, Topic,
    Unanswered, Work,
};
use stenocast::bus::memory::MemoryClient;
use stenocast::transcript::Slug;
use tokio::sync::watch;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Broken {
    /// Appends are stored whatever they expect.
    NoFence,
    /// A room is taken over without an owner record.
    NoOwnerRecord,
}

pub struct BrokenServer {
    pub inner: Arc<MemoryClient>,
    pub broken: Broken,
}

impl BrokenServer {
    async fn append_anyhow(&self, message: Message) -> Appended {
        match self.inner.head(&message.room).await {
            Ok(head) => self.inner.append(message, head.map_or(0, |head| head.position)).await,
            Err(error) => Appended::Unsure(error.to_string()),
        }
    }
}

impl LogServer for BrokenServer {
    fn append(&self, message: Message, expected: Position) -> BoxFuture<'_, Appended> {
        match self.broken {
            Broken::NoFence => self.append_anyhow(message).boxed(),
            Broken::NoOwnerRecord if message.kind == MessageKind::Owner && expected > 0 => {
                async move { Appended::Stored(expected) }.boxed()
            }
            Broken::NoOwnerRecord => self.inner.append(message, expected),
        }
    }

    fn head(&self, room: &Slug) -> Answer<'_, Option<Logged>> {
        self.inner.head(room)
    }

    fn read(&self, room: &Slug, after: Position, limit: usize) -> Answer<'_, Vec<Logged>> {
        self.inner.read(room, after, limit)
    }

    fn follow(&self, after: Position) -> BoxStream<'static, Followed> {
        self.inner.follow(after)
    }

    fn settled(&self) -> Answer<'_, Position> {
        self.inner.settled()
    }

    fn work(&self, limit: usize) -> Answer<'_, Vec<Work>> {
        self.inner.work(limit)
    }

    fn tidy(&self) -> Answer<'_, f64> {
        self.inner.tidy()
    }

    fn holder(&self, room: &Slug) -> Answer<'_, Option<Held>> {
        self.inner.holder(room)
    }

    fn hold(&self, room: &Slug, value: Bytes, revision: Option<u64>) -> Answer<'_, Option<u64>> {
        self.inner.hold(room, value, revision)
    }

    fn let_go(&self, room: &Slug, revision: u64) -> Answer<'_, bool> {
        self.inner.let_go(room, revision)
    }

    fn held(&self) -> Answer<'_, Vec<(Slug, Held)>> {
        self.inner.held()
    }

    fn ask(&self, node: &str, request: Bytes, within: Duration) -> BoxFuture<'_, Result<Bytes, Unanswered>> {
        self.inner.ask(node, request, within)
    }

    fn questions(&self, node: &str) -> BoxStream<'static, Question> {
        self.inner.questions(node)
    }

    fn tell(&self, topic: Topic, body: Bytes) {
        self.inner.tell(topic, body);
    }

    fn hear(&self, topic: Topic) -> BoxStream<'static, Bytes> {
        self.inner.hear(topic)
    }

    fn link(&self) -> watch::Receiver<Link> {
        self.inner.link()
    }
}
