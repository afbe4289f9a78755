//! RTMP ingest, without I/O where it can be: bytes in, events out.
//!
//! [`chunk`] reads chunks of strangers, [`amf`] looks at AMF0 before the library does, [`protocol`] is one connection
//! from the handshake to the end of its publish, [`target`] says who may publish what, [`connections`] counts, and
//! [`publisher`] is a connection with its socket, which can move to its session's arbiter.

pub mod amf;
pub mod chunk;
pub mod connections;
pub mod protocol;
pub mod publisher;
pub mod target;

pub use connections::{ConnectionGuard, Connections, TooMany};
pub use protocol::{Event, Protocol, ProtocolError, PublishRequest};
pub use publisher::{Publisher, Wire};
pub use target::{Target, TargetError, publish_key};
