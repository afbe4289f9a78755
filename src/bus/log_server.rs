//! The log server: what the cluster needs of `JetStream`, so that another one could be used instead.
//!
//! It keeps one log of messages over all rooms. An append names the position of the room's last message that the writer
//! knows of, and is refused when there is a later one: that alone decides who may write (see [`super::ownership`]).
//! Positions mean something to nodes only; viewers never see them.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use chrono::{DateTime, Utc};
use futures_util::future::BoxFuture;
use futures_util::stream::BoxStream;
use tokio::sync::watch;

use crate::transcript::Slug;

/// Place of a message in the server's log, counted over all rooms; 0 is before the first.
pub type Position = u64;

/// The meaning of a message's body.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MessageKind {
    /// A node has become the room's owner: an [`super::ownership::OwnerRecord`].
    Owner,
    /// A [`super::wire::LogBatch`].
    Entries,
}

/// A message on its way into a room's log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Message {
    pub room: Slug,
    pub kind: MessageKind,
    /// The claim under which it is written: readers check it against the room's latest owner record.
    pub fence: String,
    /// Names the content, so that a repetition is known.
    pub id: String,
    pub body: Bytes,
}

/// A message of the log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Logged {
    pub position: Position,
    /// By the server's clock.
    pub at: DateTime<Utc>,
    pub message: Message,
}

/// The answer to an append.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Appended {
    Stored(Position),
    /// The room's last message is not the one that was named. It may be this message itself, when an earlier answer
    /// was lost: whoever is refused reads the head.
    Refused,
    /// The server keeps as much as it may.
    Full(String),
    /// More than the server takes in one message.
    TooLarge,
    /// It may be stored, or may still be.
    Unsure(String),
}

/// Why the server was not to be asked.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ServerError {
    /// It does not answer; it may be back.
    #[error("{0}")]
    Away(String),
    /// It cannot be used as it is: too old, or with settings of somebody else. A person has to see to it.
    #[error("{0}")]
    Unusable(String),
}

/// A value that is kept under a room's name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Held {
    pub value: Bytes,
    /// Changes with each write.
    pub revision: u64,
    /// When it was written, by the server's clock.
    pub at: DateTime<Utc>,
}

/// Why a node has not answered.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Unanswered {
    /// No such node is connected.
    #[error("it is not there")]
    Nobody,
    /// It is connected and has not answered in time: it may be frozen, or cut off.
    #[error("no answer in time")]
    Late,
    #[error("the server is away: {0}")]
    Away(String),
}

/// A question of another node.
pub struct Question {
    pub request: Bytes,
    /// Sends the answer; never blocks.
    pub answer: Box<dyn FnOnce(Bytes) + Send>,
}

/// Messages that nobody keeps.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Topic {
    /// The interims of one room.
    Interims(Slug),
    /// Who speaks and who watches at the nodes with viewers.
    Reports,
}

/// A message that waits for the database, and what says that it has arrived there.
pub struct Work {
    pub logged: Logged,
    pub receipt: Box<dyn Receipt>,
}

/// Dropped without a word, its message comes again, to this node or another one, after a while.
pub trait Receipt: Send {
    /// It is in the database.
    fn done(self: Box<Self>) -> BoxFuture<'static, ()>;
    /// It is still being worked on: not to be given to another node yet.
    fn is_in_work(&self) -> BoxFuture<'static, ()>;
}

/// What the connection to the server is like.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum Link {
    #[default]
    Connecting,
    Up,
    Away(String),
}

impl Link {
    pub fn is_up(&self) -> bool {
        matches!(self, Self::Up)
    }

    pub fn as_str(&self) -> &'static str {
        match self {
            Self::Connecting => "connecting",
            Self::Up => "up",
            Self::Away(_) => "away",
        }
    }
}

/// One step of a follower.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Followed {
    Message(Logged),
    /// The log is not the one that it was: it was made anew, or has lost its end. Positions begin after this one.
    Reset(Position),
}

/// The answer to a question of the server.
pub type Answer<'a, T> = BoxFuture<'a, Result<T, ServerError>>;

/// One log server. Every call comes back by itself, with an error when the server is away; nothing is queued for later
/// without being said.
pub trait LogServer: Send + Sync + 'static {
    /// Appends to the room's log if its last message is at `expected` (0: there is none).
    fn append(&self, message: Message, expected: Position) -> BoxFuture<'_, Appended>;

    /// The last message of a room, from whoever decides about appends.
    fn head(&self, room: &Slug) -> Answer<'_, Option<Logged>>;

    /// The messages of one room after `after`, the oldest `limit`, in order. An empty answer means that there are no more.
    fn read(&self, room: &Slug, after: Position, limit: usize) -> Answer<'_, Vec<Logged>>;

    /// All rooms' messages after a position, in order, without a hole and without end; it goes on over reconnects.
    fn follow(&self, after: Position) -> BoxStream<'static, Followed>;

    /// The position up to which every message is in the database.
    fn settled(&self) -> Answer<'_, Position>;

    /// Messages for the database. Those that this call gives are this node's until their receipts are gone. Waits for the
    /// first, not for more; at most `limit`.
    fn work(&self, limit: usize) -> Answer<'_, Vec<Work>>;

    /// Makes room for new messages: those that are in the database may go. Gives how full the log is, of 1.
    fn tidy(&self) -> Answer<'_, f64>;

    /// The value under a room's name.
    fn holder(&self, room: &Slug) -> Answer<'_, Option<Held>>;

    /// Writes it, if its revision is still this one (None: if there is none). Gives the new revision; None: somebody was
    /// quicker.
    fn hold(&self, room: &Slug, value: Bytes, revision: Option<u64>) -> Answer<'_, Option<u64>>;

    /// Removes it, if its revision is still this one.
    fn let_go(&self, room: &Slug, revision: u64) -> Answer<'_, bool>;

    /// All rooms that have a value.
    fn held(&self) -> Answer<'_, Vec<(Slug, Held)>>;

    /// Asks another node.
    fn ask(&self, node: &str, request: Bytes, within: Duration) -> BoxFuture<'_, Result<Bytes, Unanswered>>;

    /// Questions to the node of this name, without end.
    fn questions(&self, node: &str) -> BoxStream<'static, Question>;

    /// Sends to whoever listens now; forgotten while the server is away.
    fn tell(&self, topic: Topic, body: Bytes);

    /// What is told from now on, without end.
    fn hear(&self, topic: Topic) -> BoxStream<'static, Bytes>;

    fn link(&self) -> watch::Receiver<Link>;
}

/// A server that everybody shares.
pub type SharedServer = Arc<dyn LogServer>;
