//! What Gladia Live v2 says on the wire, in both directions: the bridge reads it, the local recogniser writes it.
//!
//! Source: Gladia's published OpenAPI schema and the behaviour of its SDKs (JS 2.1.0, Python 2.2.0). Reading is
//! tolerant (unknown keys and types are kept apart, not refused), writing is strict: Gladia's Python SDK drops a message
//! that lacks a key which the schema calls required, so those keys have no `skip_serializing_if`.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use bytes::Bytes;
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use serde_json::Value;

mod live;
mod payload;

pub use live::*;
pub use payload::*;

/// A frame over this closes the socket with 1009.
pub const MAX_FRAME_BYTES: usize = 1024 * 1024;
/// The SDKs resend buffered audio in frames of at most this.
pub const RESEND_FRAME_BYTES: usize = 512 * 1024;
/// Header of the only authentication there is.
pub const KEY_HEADER: &str = "x-gladia-key";
/// Close codes after which the same URL may be dialled again (the defaults of both SDKs).
pub const RESUMABLE_CLOSE_CODES: [std::ops::RangeInclusive<u16>; 2] = [1002..=4399, 4500..=9999];

/// True when a socket closed with `code` may be resumed on the same URL; 1000, 1001 and 4400-4499 are final.
pub fn is_resumable(code: u16) -> bool {
    RESUMABLE_CLOSE_CODES.iter().any(|range| range.contains(&code))
}

/// A client's message as text. Raw audio is better sent as a binary frame; both are understood by the server.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum ClientMessage {
    AudioChunk {
        data: AudioData,
    },
    /// No more audio; the rest of the text follows, then `end_session` and close 1000.
    StopRecording,
}

/// Base64 on the wire; empty is legal (a keep-alive).
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct AudioData {
    #[serde(with = "base64_bytes")]
    pub chunk: Bytes,
}

mod base64_bytes {
    use super::*;

    pub fn serialize<S: Serializer>(bytes: &Bytes, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&BASE64.encode(bytes))
    }

    pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Bytes, D::Error> {
        let text = String::deserialize(deserializer)?;
        BASE64.decode(text).map(Bytes::from).map_err(serde::de::Error::custom)
    }
}

/// One message of the server: the envelope and what is in it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ServerEnvelope {
    /// The `id` of the POST's answer.
    #[serde(default)]
    pub session_id: String,
    /// ISO 8601 with milliseconds, UTC.
    #[serde(default)]
    pub created_at: String,
    #[serde(flatten)]
    pub message: ServerMessage,
}

impl ServerEnvelope {
    /// Stamps `message` with the current time.
    pub fn now(session_id: impl Into<String>, message: ServerMessage) -> Self {
        Self { session_id: session_id.into(), created_at: timestamp(), message }
    }
}

/// The current time as Gladia writes it: "2026-11-22T11:46:27.201Z".
pub fn timestamp() -> String {
    chrono::Utc::now().to_rfc3339_opts(chrono::SecondsFormat::Millis, true)
}

/// Every message type of the schema, `error` (seen in clients, not in the schema) and whatever comes later.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case", remote = "Self")]
pub enum ServerMessage {
    /// Acknowledges audio.
    AudioChunk(Acknowledgment<AudioAck>),
    StopRecording(Acknowledgment<StopAck>),
    SpeechStart {
        data: SpeechTime,
    },
    SpeechEnd {
        data: SpeechTime,
    },
    Transcript {
        data: Transcript,
    },
    Translation(AddOn<Translation>),
    NamedEntityRecognition(AddOn<UtteranceResults>),
    SentimentAnalysis(AddOn<UtteranceResults>),
    PostTranscript {
        data: FullTranscript,
    },
    PostSummarization(AddOn<Summary>),
    PostFinalTranscript {
        data: Box<FinalResult>,
    },
    /// Happens at POST time; the SDKs synthesise it, a server does not send it on the socket.
    StartSession,
    StartRecording,
    EndRecording {
        data: Recorded,
    },
    EndSession,
    Error {
        #[serde(default)]
        data: Fault,
    },
    /// A type that this build does not know.
    #[serde(untagged, skip_deserializing)]
    Unknown(UnknownMessage),
}

/// The type names that [`ServerMessage`] reads; anything else is `Unknown`.
pub(super) const KNOWN_TYPES: [&str; 16] = [
    "audio_chunk",
    "stop_recording",
    "speech_start",
    "speech_end",
    "transcript",
    "translation",
    "named_entity_recognition",
    "sentiment_analysis",
    "post_transcript",
    "post_summarization",
    "post_final_transcript",
    "start_session",
    "start_recording",
    "end_recording",
    "end_session",
    "error",
];

impl Serialize for ServerMessage {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        Self::serialize(self, serializer)
    }
}

impl<'de> Deserialize<'de> for ServerMessage {
    // Not serde's `other`: that would lose the name, and an untagged fallback would hide a known type's bad shape.
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let value = Value::deserialize(deserializer)?;
        let kind = value.get("type").and_then(Value::as_str).ok_or_else(|| serde::de::Error::missing_field("type"))?;
        if !KNOWN_TYPES.contains(&kind) {
            return Ok(Self::Unknown(UnknownMessage { kind: kind.to_owned() }));
        }
        Self::deserialize(value).map_err(serde::de::Error::custom)
    }
}

impl ServerMessage {
    /// The wire's name of the type.
    pub fn kind(&self) -> &str {
        match self {
            Self::AudioChunk(_) => "audio_chunk",
            Self::StopRecording(_) => "stop_recording",
            Self::SpeechStart { .. } => "speech_start",
            Self::SpeechEnd { .. } => "speech_end",
            Self::Transcript { .. } => "transcript",
            Self::Translation(_) => "translation",
            Self::NamedEntityRecognition(_) => "named_entity_recognition",
            Self::SentimentAnalysis(_) => "sentiment_analysis",
            Self::PostTranscript { .. } => "post_transcript",
            Self::PostSummarization(_) => "post_summarization",
            Self::PostFinalTranscript { .. } => "post_final_transcript",
            Self::StartSession => "start_session",
            Self::StartRecording => "start_recording",
            Self::EndRecording { .. } => "end_recording",
            Self::EndSession => "end_session",
            Self::Error { .. } => "error",
            Self::Unknown(unknown) => &unknown.kind,
        }
    }
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct UnknownMessage {
    #[serde(rename = "type")]
    pub kind: String,
}

#[cfg(test)]
mod tests;
