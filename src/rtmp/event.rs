//! Events of a connection, and its phases.

use std::fmt;

use bytes::Bytes;

use super::ignored::Ignored;

/// Something that a connection wants, or brings.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// Answer with `accept` or `refuse` of [`super::Protocol`] before the next call of its `next`.
    Publish(PublishRequest),
    /// One audio tag of the accepted publish.
    Audio { timestamp_ms: u64, body: Bytes },
    /// Something that costs nothing but a count.
    Ignored(Ignored),
    /// The publisher said goodbye.
    Unpublished,
}

/// All as sent, queries included: they may hold a key.
#[derive(Clone, PartialEq, Eq)]
pub struct PublishRequest {
    pub app: String,
    pub name: String,
    /// Some clients leave a query here and nowhere else.
    pub tc_url: String,
}

impl fmt::Debug for PublishRequest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (app, name) = (without_query(&self.app), without_query(&self.name));
        f.debug_struct("PublishRequest").field("app", &app).field("name", &name).finish_non_exhaustive()
    }
}

/// Of an application or a stream name.
pub(super) fn without_query(text: &str) -> &str {
    text.split('?').next().unwrap_or_default()
}

/// The phase of a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Phase {
    Handshake,
    /// The handshake is done; connect is to come.
    Connect,
    /// Connected; publish is to come.
    Publish,
    /// Publish was asked.
    Streaming,
}

impl Phase {
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Handshake => "handshake",
            Self::Connect => "connect",
            Self::Publish => "publish",
            Self::Streaming => "streaming",
        }
    }
}
