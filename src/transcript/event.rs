//! Events of a session's actors, before they have a number: results of the recogniser, gaps, changes of status.

use chrono::{DateTime, Utc};
use tokio::time::Instant;
use uuid::Uuid;

use super::entry::{GapReason, Speaker, Status, Word};

/// A result of the recogniser, or something to be said about the session, in order.
#[derive(Debug, Clone)]
pub enum TranscriptEvent {
    /// The recogniser's present guess of an open utterance.
    Interim(Utterance),
    /// The recogniser took an open utterance back: it will never have a final.
    Retracted {
        id: String,
    },
    Final(Utterance),
    /// Audio that will never become text. `id` makes a repeated announcement harmless.
    Gap {
        id: String,
        start_ms: u64,
        end_ms: u64,
        reason: GapReason,
    },
    Status {
        id: String,
        status: Status,
        reason: Option<String>,
    },
    /// A final in another language; it follows its final.
    Translation(Translated),
}

impl TranscriptEvent {
    /// There is no text for this time. Both its ends are in the id: a repetition is harmless, and another gap that begins
    /// at the same moment is not taken for one.
    pub fn gap(start_ms: u64, end_ms: u64, reason: GapReason) -> Self {
        Self::Gap { id: format!("{}-{start_ms}-{end_ms}", reason.as_str()), start_ms, end_ms, reason }
    }

    /// The session's status from now on, each time a change of its own.
    pub fn status(status: Status, reason: &str) -> Self {
        let id = Uuid::now_v7().simple().to_string();
        Self::Status { id, status, reason: Some(reason.to_owned()) }
    }
}

/// See [`TranscriptEvent::Translation`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Translated {
    /// Id of the final.
    pub of: String,
    pub language: String,
    pub text: String,
    pub start_ms: u64,
    pub end_ms: u64,
}

/// One utterance in session time, with ids that are unique in the epoch.
#[derive(Debug, Clone)]
pub struct Utterance {
    /// The same for all interims and the final of an utterance.
    pub id: String,
    pub text: String,
    pub start_ms: u64,
    pub end_ms: u64,
    pub language: Option<String>,
    pub confidence: Option<f64>,
    pub words: Option<Vec<Word>>,
    pub voice: Option<NumberedVoice>,
    /// When the recogniser's message reached us.
    pub received_at: DateTime<Utc>,
    pub received: Instant,
    /// Arrival of the last audio tag of the utterance to its PCM chunk.
    pub decode_ms: Option<u64>,
    /// Sending the last audio of the utterance to the recogniser's message.
    pub stt_ms: Option<u64>,
}

/// A voice that a recogniser tells from others, by a number of its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct NumberedVoice {
    /// Counts the recogniser sessions of the epoch: in another one the same number is another voice.
    pub session: u32,
    pub number: u32,
}

impl NumberedVoice {
    const PREFIX: &str = "speaker-";

    /// What viewers are told: a number, and no name.
    pub fn speaker(self) -> Speaker {
        let identity = match self {
            Self { session: 0 | 1, number } => format!("{}{number}", Self::PREFIX),
            Self { session, number } => format!("{}{session}.{number}", Self::PREFIX),
        };
        Speaker { identity, name: None }
    }

    /// An identity that [`Self::speaker`] has made.
    pub fn is_identity(identity: &str) -> bool {
        let number = identity.strip_prefix(Self::PREFIX);
        number.is_some_and(|number| !number.is_empty() && number.chars().all(|c| c.is_ascii_digit() || c == '.'))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_voice_is_its_number_in_its_recogniser_session() {
        let identity = |session, number| NumberedVoice { session, number }.speaker().identity;
        assert_eq!([identity(1, 0), identity(1, 3), identity(2, 3)], ["speaker-0", "speaker-3", "speaker-2.3"]);
        assert!(["speaker-0", "speaker-2.3"].iter().all(|identity| NumberedVoice::is_identity(identity)));
        assert!(["anna", "speaker-", "speaker-x"].iter().all(|identity| !NumberedVoice::is_identity(identity)));
    }
}
