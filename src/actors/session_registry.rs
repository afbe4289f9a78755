//! SessionRegistry: slug -> Session. Admits or refuses publishers and broadcasts.

use actix::Message;

use crate::log::{Entry, Slug};
use crate::rtmp::Publisher;

/// A connection wants to publish `slug`; its key was checked already.
#[derive(Message)]
#[rtype(result = "Result<(), (PublishRefusal, Box<Publisher>)>")]
pub struct Publish {
    pub slug: Slug,
    pub publisher: Box<Publisher>,
}

/// Why a publisher was not admitted. The text goes to the publisher.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum PublishRefusal {
    #[error("the server is stopping")]
    Draining,
    #[error("all {0} sessions are in use")]
    TooManySessions(usize),
    #[error("another encoder is publishing this stream; stop it first")]
    TakeoverLimit,
    #[error("the session could not be started")]
    Failed,
}

impl PublishRefusal {
    /// The label in metrics.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Draining => "draining",
            Self::TooManySessions(_) => "too_many_sessions",
            Self::TakeoverLimit => "takeover_limit",
            Self::Failed => "failed",
        }
    }
}

/// Entries from outside (POST broadcast), all of one slug. Answers when they are in the outbox.
#[derive(Message)]
#[rtype(result = "Result<BroadcastAck, BroadcastRefusal>")]
pub struct Broadcast {
    pub slug: Slug,
    pub entries: Vec<BroadcastEntry>,
}

/// An entry whose epoch and seq may be ours to give.
#[derive(Debug, Clone)]
pub struct BroadcastEntry {
    /// False when a third party left out epoch and seq: then those in `entry` mean nothing.
    pub numbered: bool,
    pub entry: Entry,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize)]
pub struct BroadcastAck {
    pub accepted: usize,
    pub duplicates: usize,
    /// Last sequence number of the log.
    pub seq: u64,
}

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BroadcastRefusal {
    /// A numbered entry left a hole.
    #[error("entry out of order; expected seq {expected}")]
    Hole { expected: u64 },
    /// The slug is published here (or by another node): its numbers are not the caller's to give.
    #[error("the session has an origin of its own; expected seq {expected}")]
    HasOrigin { expected: u64 },
    #[error("the server is stopping")]
    Draining,
    #[error("the session could not take the entries")]
    Unavailable,
}
