//! RTMP ingest, without I/O where it can be: bytes in, events out.
//!
//! [`chunk`] reads chunks of strangers, [`amf`] their commands, [`protocol`] is one connection from the handshake to the
//! end of its publish, [`answers`] are the server's own words, [`ignored`] lists what is odd and harmless, [`target`]
//! says who may publish what, [`connections`] counts, [`ended`] says how a connection ends and [`stranger`] who never
//! spoke RTMP, and [`publisher`] is a connection with its socket, which can move to its session's arbiter.

pub mod amf;
pub mod answers;
pub mod chunk;
pub mod connections;
pub mod ended;
pub mod event;
pub mod ignored;
pub mod protocol;
mod publish_key;
pub mod publisher;
pub mod stranger;
pub mod target;

pub use connections::{ConnectionGuard, Connections, TooMany};
pub use ended::{Ended, Reason};
pub use event::{Event, Phase, PublishRequest};
pub use ignored::Ignored;
pub use protocol::{Protocol, ProtocolError};
pub use publish_key::publish_key;
pub use publisher::{Connection, PendingPublish};
pub use target::{Target, TargetError};
