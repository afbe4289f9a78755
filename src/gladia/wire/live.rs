//! `POST /v2/live`: what is asked for, and the answers.

use std::fmt;

use serde::{Deserialize, Deserializer, Serialize};
use serde_json::{Map, Value};

use super::ServerMessage;

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
