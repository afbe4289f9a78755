//! What nodes say to each other about rooms, and what stands under a room's name.

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use crate::transcript::checkpoint::Checkpoint;
use crate::transcript::{Entry, Epoch, Origin, SessionRecord, Slug};

/// The value under a room's name: who owns it, and what a successor needs if that one cannot be asked.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Holding {
    /// `NODE_ID`, for people.
    pub node: String,
    /// The process that is to be asked.
    pub instance: String,
    /// Whose outbox has the numbers that are not in the log yet: see [`super::Identity`].
    pub home: String,
    pub epoch: Epoch,
    /// The session's clock when this was written.
    #[serde(default)]
    pub clock_ms: Option<u64>,
    #[serde(default)]
    pub checkpoint: Option<Checkpoint>,
}

impl Holding {
    /// Nobody publishes: its lines are posted.
    pub fn is_of_third_parties(&self) -> bool {
        self.checkpoint.as_ref().is_some_and(|checkpoint| checkpoint.origin == Origin::Relay)
    }
}

/// The body of an owner record: from here on the room's log is this process's.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct OwnerRecord {
    pub node: String,
    pub instance: String,
    pub home: String,
    pub epoch: Epoch,
    /// The epoch's last number before this record.
    pub last_seq: u64,
}

/// Entries of an epoch that their writer may not number any more.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct LateBatch {
    pub room: Slug,
    pub epoch: Epoch,
    /// Their numbers mean nothing.
    pub entries: Vec<Entry>,
    #[serde(default)]
    pub record: Option<SessionRecord>,
}

/// News of a room of LiveKit that another node was told.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct RoomNews {
    pub room: Slug,
    /// LiveKit's id of it.
    pub sid: String,
    #[serde(default)]
    pub is_over: bool,
    /// Names of participants by identity.
    #[serde(default)]
    pub names: Vec<(String, String)>,
}

/// A question of one node to another.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "camelCase")]
pub enum NodeRequest {
    Ping,
    /// A publisher of the room is here; let go of it. `wants`: the epoch that the asker has begun already.
    Release {
        room: Slug,
        by: String,
        #[serde(default)]
        wants: Option<Epoch>,
    },
    /// Number these: the room is yours.
    Late(Box<LateBatch>),
    /// A third party's lines, for the session that is there. Their epoch means nothing.
    Post(Box<LateBatch>),
    /// The room's session is there.
    RoomNews(Box<RoomNews>),
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "camelCase")]
pub enum NodeAnswer {
    Pong,
    /// The room is free, and its session's state, if one was there.
    Released {
        handover: Option<Box<Handover>>,
    },
    /// It stays: why.
    Busy {
        why: String,
    },
    /// The room is not this node's.
    NotOwner,
    /// All of it is durable here or in the log.
    Taken,
    /// The session has the lines; the log's last number.
    Posted {
        accepted: usize,
        duplicates: usize,
        seq: u64,
    },
    /// The session does not take such lines from third parties.
    HasOrigin {
        expected: u64,
    },
    /// Not now.
    Unavailable {
        why: String,
    },
}

/// A session that goes on at another node.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Handover {
    /// The session's clock now.
    pub clock_ms: u64,
    /// Without the recogniser's session: the last words are still coming from it, to the old owner.
    pub checkpoint: Checkpoint,
}

/// A body that is written by a program like this one.
macro_rules! to_bytes {
    ($($what:ty),*) => {$(
        impl $what {
            pub fn to_bytes(&self) -> Bytes {
                serde_json::to_vec(self).expect("it has string keys and finite numbers").into()
            }
        }
    )*};
}

to_bytes!(Holding, OwnerRecord, NodeRequest, NodeAnswer);
