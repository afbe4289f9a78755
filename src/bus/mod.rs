//! The bus: how a session's log gets from the node that numbers it to the nodes that show and store it.
//!
//! [`Bus::append`] is all that the rest of the program knows of one. A batch is of one room, in order; whoever appends
//! has one batch of a room under way at a time, and repeats it until the answer is clear: entries are known by their
//! epoch and id, so a repetition is harmless.

pub mod cluster;
pub mod http;
pub mod link;
pub mod log_server;
pub mod log_sink;
pub mod memory;
pub mod nats;
pub mod ownership;
pub mod reports;
pub mod wire;

pub use reports::ReportRing;

use std::time::Duration;

use bytestring::ByteString;
use futures_util::FutureExt;
use futures_util::future::LocalBoxFuture;

use crate::transcript::{Epoch, SessionRecord, Slug};

/// What is to be said of one room: entries as viewers read them, in order.
#[derive(Debug, Clone)]
pub struct Batch {
    pub slug: Slug,
    pub epoch: Epoch,
    /// Durable entries, each with the number after the one before it.
    pub entries: Vec<ByteString>,
    /// The newest interims: one attempt, no number.
    pub interims: Vec<ByteString>,
    /// The session's row, where it has changed.
    pub record: Option<SessionRecord>,
    /// Numbers below this one are not to be had from this node any more: the log begins here for whoever lacks them.
    pub begins: Option<u64>,
}

impl Batch {
    pub fn new(slug: Slug, epoch: Epoch) -> Self {
        Self { slug, epoch, entries: Vec::new(), interims: Vec::new(), record: None, begins: None }
    }

    /// Nothing of it has to be repeated.
    pub fn is_fleeting(&self) -> bool {
        self.entries.is_empty() && self.record.is_none()
    }

    pub fn is_empty(&self) -> bool {
        self.is_fleeting() && self.interims.is_empty()
    }
}

/// The answer to an append.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// All of it is where it survives a crash of the other side; the log's last number there.
    Stored { last_seq: u64 },
    /// The numbers do not follow: the other side wants this one of this log next.
    Refused { expected: u64, why: String },
    /// The room has another origin there, or its log has ended: nothing of this one is taken.
    Foreign(String),
    /// Not now. It says when, or leaves it to us; `room`: only this room is meant.
    Full { retry_after: Option<Duration>, room: bool, why: String },
    /// It may have been stored or not.
    Unsure(String),
    /// The batch is more than the other side takes at once.
    TooLarge,
    /// The token is not accepted.
    Denied(String),
    /// The other side does not understand: it is another version, or no stenocast at all.
    Incompatible(String),
}

impl Outcome {
    /// The label in metrics.
    pub fn as_str(&self) -> &'static str {
        match self {
            Self::Stored { .. } => "stored",
            Self::Refused { .. } => "refused",
            Self::Foreign(_) => "foreign",
            Self::Full { .. } => "full",
            Self::Unsure(_) => "unsure",
            Self::TooLarge => "too_large",
            Self::Denied(_) => "denied",
            Self::Incompatible(_) => "incompatible",
        }
    }

    /// The other side works; what it says is about this room alone.
    pub fn is_of_room(&self) -> bool {
        matches!(
            self,
            Self::Stored { .. }
                | Self::Refused { .. }
                | Self::Foreign(_)
                | Self::TooLarge
                | Self::Full { room: true, .. }
        )
    }
}

/// One way to the other nodes. Bound to the thread that it was made on.
pub trait Bus {
    fn append<'a>(&'a self, batch: &'a Batch) -> LocalBoxFuture<'a, Outcome>;

    /// Who speaks and who watches there, after the report `after`. Waits for news for a while.
    fn reports(&self, after: u64) -> LocalBoxFuture<'_, Result<wire::NodeReports, Outcome>>;

    /// Nothing of a session that is over is left to be sent.
    fn finished(&self, _: Slug, _: Epoch) -> LocalBoxFuture<'_, ()> {
        std::future::ready(()).boxed_local()
    }

    /// Everything that is in the outbox has been read; `is_waiting`: rows of this session are not stored yet.
    fn is_read(&self, _is_waiting: &dyn Fn(Epoch) -> bool) {}

    /// Up to which row the outbox may be let go of, of those that are stored up to `stored`.
    fn may_leave(&self, stored: u64) -> u64 {
        stored
    }
}
