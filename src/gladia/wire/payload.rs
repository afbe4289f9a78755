//! What the messages of the socket carry.

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

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
