//! Who is said to be speaking, on its way from a viewer or an observer to the session.

use actix::Message;
use tokio::time::Instant;

/// A report of one participant's voice activity.
#[derive(Debug, Clone, PartialEq, Message)]
#[rtype(result = "()")]
pub struct SpeakerUpdate {
    pub identity: String,
    pub name: Option<String>,
    pub active: bool,
    /// 0..=1, 0 when unknown.
    pub level: f32,
    pub at: Instant,
    /// The source of the report.
    pub source: SpeakerSource,
}

/// Source of a report; a participant's word about itself counts more than what others say of it.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum SpeakerSource {
    /// A viewer with this identity.
    Viewer(String),
    /// A LiveKit observer of this server.
    Observer,
    /// A track of its own per participant: exact.
    Track,
}
