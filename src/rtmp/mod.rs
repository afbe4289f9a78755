//! RTMP ingest, without I/O where it can be: bytes in, events out.
//!
//! [`chunk`] reads chunks of strangers, [`amf`] their commands, [`protocol`] is one connection from the handshake to the
//! end of its publish, [`answers`] are the server's own words, [`ignored`] lists what is odd and harmless, [`target`]
//! says who may publish what, [`connections`] counts, and [`publisher`] is a connection with its socket, which can move
//! to its session's arbiter.

pub mod amf;
pub mod answers;
pub mod chunk;
pub mod connections;
pub mod ignored;
pub mod protocol;
pub mod publisher;
pub mod target;

pub use connections::{ConnectionGuard, Connections, TooMany};
pub use ignored::Ignored;
pub use protocol::{Event, Phase, Protocol, ProtocolError, PublishRequest};
pub use publisher::{Publisher, Wire};
pub use target::{Target, TargetError, publish_key};
