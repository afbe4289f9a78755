//! What Gladia Live v2 says on the wire, in both directions: the bridge reads it, the local recogniser writes it.
//!
//! Source: Gladia's published OpenAPI schema and the behaviour of its SDKs (JS 2.1.0, Python 2.2.0). Reading is
//! tolerant (unknown keys and types are kept apart, not refused), writing is strict: Gladia's Python SDK drops a message
//! that lacks a key which the schema calls required, so those keys have no `skip_serializing_if`.

use std::fmt;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use bytes::Bytes;
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use serde_json::{Map, Value};

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

/// Body of `POST /v2/live`. Every field is optional; `{}` is valid. Defaults are the server's.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct LiveRequest {
    /// "wav/pcm", "wav/alaw" or "wav/ulaw": raw samples.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub encoding: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub bit_depth: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub sample_rate: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub channels: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub model: Option<String>,
    /// Seconds of silence that close an utterance, 0.01..10.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub endpointing: Option<f64>,
    /// Seconds, 5..60.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub maximum_duration_without_endpointing: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub custom_metadata: Option<Map<String, Value>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub language_config: Option<LanguageConfig>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pre_processing: Option<PreProcessing>,
    /// Add-ons (vocabulary, translation, ...): passed through as they are.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub realtime_processing: Option<Map<String, Value>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub post_processing: Option<Map<String, Value>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub messages_config: Option<MessagesConfig>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub callback: Option<bool>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub callback_config: Option<Map<String, Value>>,
    /// Keys that the schema does not know; clients send some, and they are tolerated.
    #[serde(flatten)]
    pub extra: Map<String, Value>,
}

/// Exactly one language = forced; several or none = detected among them.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct LanguageConfig {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub languages: Option<Vec<String>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub code_switching: Option<bool>,
}

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct PreProcessing {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub audio_enhancer: Option<bool>,
    /// 0..1, default 0.6.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub speech_threshold: Option<f64>,
}

/// Which messages the socket carries. The methods give the server's defaults for the WebSocket.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct MessagesConfig {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub receive_partial_transcripts: Option<bool>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub receive_final_transcripts: Option<bool>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub receive_speech_events: Option<bool>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub receive_pre_processing_events: Option<bool>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub receive_realtime_processing_events: Option<bool>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub receive_post_processing_events: Option<bool>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub receive_acknowledgments: Option<bool>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub receive_errors: Option<bool>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub receive_lifecycle_events: Option<bool>,
}

impl MessagesConfig {
    /// Whether this configuration lets `message` through to the socket.
    pub fn allows(&self, message: &ServerMessage) -> bool {
        use ServerMessage as M;
        let (choice, default) = match message {
            M::Transcript { data } if data.is_final => (self.receive_final_transcripts, true),
            M::Transcript { .. } => (self.receive_partial_transcripts, false),
            M::SpeechStart { .. } | M::SpeechEnd { .. } => (self.receive_speech_events, true),
            M::Translation(_) | M::NamedEntityRecognition(_) | M::SentimentAnalysis(_) => {
                (self.receive_realtime_processing_events, true)
            }
            M::PostTranscript { .. } | M::PostSummarization(_) | M::PostFinalTranscript { .. } => {
                (self.receive_post_processing_events, true)
            }
            M::AudioChunk(_) | M::StopRecording(_) => (self.receive_acknowledgments, true),
            M::StartSession | M::StartRecording | M::EndRecording { .. } | M::EndSession => {
                (self.receive_lifecycle_events, false)
            }
            M::Error { .. } => (self.receive_errors, true),
            M::Unknown(_) => (None, true),
        };
        choice.unwrap_or(default)
    }
}

/// The 201 answer of `POST /v2/live`. `url` holds the session's token, so Debug leaves it out.
#[derive(Clone, PartialEq, Serialize, Deserialize)]
pub struct LiveReply {
    pub id: String,
    #[serde(default)]
    pub created_at: String,
    /// Absolute ws(s) URL with an opaque token in its query.
    pub url: String,
}

impl fmt::Debug for LiveReply {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("LiveReply").field("id", &self.id).finish_non_exhaustive()
    }
}

/// The one shape of every HTTP error. All keys default on reading: proxies in between answer differently.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct ErrorBody {
    pub timestamp: String,
    pub path: String,
    pub request_id: String,
    #[serde(rename = "statusCode")]
    pub status_code: u16,
    #[serde(deserialize_with = "text_or_list")]
    pub message: String,
    /// On 400 only.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub validation_errors: Option<Vec<String>>,
}

/// NestJS writes `message` as a string or as a list of strings.
fn text_or_list<'de, D: Deserializer<'de>>(deserializer: D) -> Result<String, D::Error> {
    Ok(match Value::deserialize(deserializer)? {
        Value::String(text) => text,
        Value::Array(items) => items.iter().filter_map(Value::as_str).collect::<Vec<_>>().join("; "),
        Value::Null => String::new(),
        other => other.to_string(),
    })
}

/// What a client writes as text. Raw audio is better sent as a binary frame; both are understood by the server.
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
const KNOWN_TYPES: [&str; 16] = [
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

/// `acknowledged: false` comes with an error and no data.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Acknowledgment<T> {
    pub acknowledged: bool,
    #[serde(default)]
    pub error: Option<Fault>,
    #[serde(default = "none")]
    pub data: Option<T>,
}

fn none<T>() -> Option<T> {
    None
}

impl<T> Acknowledgment<T> {
    pub fn ok(data: T) -> Self {
        Self { acknowledged: true, error: None, data: Some(data) }
    }

    pub fn refused(message: impl Into<String>) -> Self {
        Self { acknowledged: false, error: Some(Fault { message: message.into() }), data: None }
    }
}

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Fault {
    pub message: String,
}

/// Positions in the whole session, across reconnects: half-open `[start, end)`.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct AudioAck {
    /// Bytes of decoded audio.
    pub byte_range: [u64; 2],
    /// Seconds of audio.
    pub time_range: [f64; 2],
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct StopAck {
    /// Seconds.
    pub recording_duration: f64,
    /// Seconds.
    pub recording_left_to_process: f64,
}

#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct SpeechTime {
    /// Seconds of audio from the session's start.
    pub time: f64,
    #[serde(default)]
    pub channel: u32,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Transcript {
    /// Opaque; an interim and the final of one utterance share it.
    pub id: String,
    pub is_final: bool,
    pub utterance: Utterance,
}

/// `text` and each word begin with a space, so that they can be joined; trim for display. Times are seconds.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Utterance {
    pub text: String,
    pub start: f64,
    pub end: f64,
    #[serde(default)]
    pub language: String,
    #[serde(default)]
    pub confidence: f64,
    #[serde(default)]
    pub channel: u32,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub speaker: Option<u32>,
    #[serde(default)]
    pub words: Vec<Word>,
}

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Word {
    pub word: String,
    pub start: f64,
    pub end: f64,
    #[serde(default)]
    pub confidence: f64,
}

/// Result of an add-on, or its error without data.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct AddOn<T> {
    #[serde(default)]
    pub error: Option<Fault>,
    #[serde(default = "none")]
    pub data: Option<T>,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Translation {
    pub utterance_id: String,
    pub utterance: Utterance,
    pub original_language: String,
    pub target_language: String,
    pub translated_utterance: Utterance,
}

/// Named entities or sentiments of one utterance; the results stay as Gladia writes them.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct UtteranceResults {
    pub utterance_id: String,
    pub utterance: Utterance,
    #[serde(default)]
    pub results: Vec<Value>,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Summary {
    pub results: String,
}

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct FullTranscript {
    pub full_transcript: String,
    pub languages: Vec<String>,
    pub utterances: Vec<Utterance>,
    /// `sentences`, `subtitles`: only when asked for.
    #[serde(flatten)]
    pub extra: Map<String, Value>,
}

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct FinalResult {
    pub metadata: ResultMetadata,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub transcription: Option<FullTranscript>,
    /// Add-ons: `summarization`, `translation`, ...
    #[serde(flatten)]
    pub add_ons: Map<String, Value>,
}

/// Seconds, except the count.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct ResultMetadata {
    pub audio_duration: f64,
    pub number_of_distinct_channels: u32,
    pub billing_time: f64,
    pub transcription_time: f64,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Recorded {
    /// Seconds.
    pub recording_duration: f64,
}

#[cfg(test)]
mod tests;
