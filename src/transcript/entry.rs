//! The entries of a transcript log, as they go over the wire.
//!
//! These are finals, gaps, status changes and translations (durable, with a
//! sequence number) and interims (without one). Field names and values are the public contract.

use chrono::{DateTime, SecondsFormat, Utc};
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::slug::Slug;

/// One life of a slug. A UUIDv7, so epochs sort by start time; it is also the session's id in the database.
pub type Epoch = Uuid;

/// Longest text of one entry, in bytes.
pub const MAX_TEXT_BYTES: usize = 16 * 1024;

/// One line of a session's log, as viewers receive it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum Entry {
    Transcript(Transcript),
    Gap(Gap),
    Status(StatusChange),
    Translation(Translation),
}

/// A recognised utterance. `seq` is null while it is an interim.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Transcript {
    pub session: Slug,
    pub epoch: Epoch,
    pub seq: Option<u64>,
    /// The same for every interim of an utterance and for its final.
    pub id: String,
    pub is_final: bool,
    /// 1 for the first interim of an utterance, one more with each update.
    #[serde(default)]
    pub revision: u32,
    pub text: String,
    /// Milliseconds since the session's start.
    pub start_ms: u64,
    pub end_ms: u64,
    /// ISO 639-1 code, or null when the recogniser did not say.
    #[serde(default)]
    pub language: Option<String>,
    /// 0..=1, or null when unknown.
    #[serde(default)]
    pub confidence: Option<f64>,
    #[serde(default)]
    pub speaker: Option<Speaker>,
    #[serde(default)]
    pub words: Option<Vec<Word>>,
    /// When the recogniser's message reached this server.
    #[serde(with = "iso_millis", default = "Utc::now")]
    pub timestamp: DateTime<Utc>,
    #[serde(default)]
    pub latency: Latency,
    /// Written only when false: the entry could be stored neither in the outbox nor in the database.
    #[serde(default = "yes", skip_serializing_if = "is_true")]
    pub durable: bool,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Speaker {
    pub identity: String,
    #[serde(default)]
    pub name: Option<String>,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Word {
    pub word: String,
    pub start_ms: u64,
    pub end_ms: u64,
    #[serde(default)]
    pub confidence: Option<f64>,
}

/// Time by stage, in milliseconds; null where it is not known.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Latency {
    /// From the arrival of the last audio tag of a chunk to the decoded chunk.
    pub decode_ms: Option<u64>,
    /// From sending the last chunk of the utterance's audio to the recogniser's message.
    pub stt_ms: Option<u64>,
    /// From the recogniser's message to the broadcast.
    pub server_ms: Option<u64>,
}

/// Audio that will never become text, with the reason.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Gap {
    pub session: Slug,
    pub epoch: Epoch,
    pub seq: Option<u64>,
    pub id: String,
    pub start_ms: u64,
    pub end_ms: u64,
    pub reason: GapReason,
    #[serde(default = "yes", skip_serializing_if = "is_true")]
    pub durable: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum GapReason {
    SttUnavailable,
    WindowOverflow,
    ProcessRestart,
    DecodeError,
    PublisherLost,
}

impl GapReason {
    pub const ALL: [Self; 5] =
        [Self::SttUnavailable, Self::WindowOverflow, Self::ProcessRestart, Self::DecodeError, Self::PublisherLost];

    pub fn as_str(self) -> &'static str {
        match self {
            Self::SttUnavailable => "stt_unavailable",
            Self::WindowOverflow => "window_overflow",
            Self::ProcessRestart => "process_restart",
            Self::DecodeError => "decode_error",
            Self::PublisherLost => "publisher_lost",
        }
    }
}

/// The session's state changed.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct StatusChange {
    pub session: Slug,
    pub epoch: Epoch,
    pub seq: Option<u64>,
    pub id: String,
    pub status: Status,
    #[serde(default)]
    pub reason: Option<String>,
    #[serde(default = "yes", skip_serializing_if = "is_true")]
    pub durable: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Status {
    Live,
    Waiting,
    Reconnecting,
    CatchingUp,
    Stalled,
    Degraded,
    Suspended,
    Ended,
}

impl Status {
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Live => "live",
            Self::Waiting => "waiting",
            Self::Reconnecting => "reconnecting",
            Self::CatchingUp => "catching_up",
            Self::Stalled => "stalled",
            Self::Degraded => "degraded",
            Self::Suspended => "suspended",
            Self::Ended => "ended",
        }
    }
}

/// A final in another language.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Translation {
    pub session: Slug,
    pub epoch: Epoch,
    pub seq: Option<u64>,
    /// Of a recogniser's: `{of}:{language}`.
    pub id: String,
    /// Id of the final.
    pub of: String,
    /// Target language, as the recogniser names it: an ISO 639-1 code.
    pub language: String,
    pub text: String,
    /// Those of the final.
    pub start_ms: u64,
    pub end_ms: u64,
    #[serde(default = "yes", skip_serializing_if = "is_true")]
    pub durable: bool,
}

/// Kind of an entry's row in the database.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Kind {
    Final,
    Gap,
    Status,
    Translation,
}

impl Kind {
    pub const ALL: [Self; 4] = [Self::Final, Self::Gap, Self::Status, Self::Translation];

    pub fn as_str(self) -> &'static str {
        match self {
            Self::Final => "final",
            Self::Gap => "gap",
            Self::Status => "status",
            Self::Translation => "translation",
        }
    }
}

impl Entry {
    pub fn session(&self) -> &Slug {
        match self {
            Self::Transcript(e) => &e.session,
            Self::Gap(e) => &e.session,
            Self::Status(e) => &e.session,
            Self::Translation(e) => &e.session,
        }
    }

    pub fn epoch(&self) -> Epoch {
        match self {
            Self::Transcript(e) => e.epoch,
            Self::Gap(e) => e.epoch,
            Self::Status(e) => e.epoch,
            Self::Translation(e) => e.epoch,
        }
    }

    /// None for an interim.
    pub fn seq(&self) -> Option<u64> {
        match self {
            Self::Transcript(e) => e.seq,
            Self::Gap(e) => e.seq,
            Self::Status(e) => e.seq,
            Self::Translation(e) => e.seq,
        }
    }

    pub fn set_seq(&mut self, seq: u64) {
        match self {
            Self::Transcript(e) => e.seq = Some(seq),
            Self::Gap(e) => e.seq = Some(seq),
            Self::Status(e) => e.seq = Some(seq),
            Self::Translation(e) => e.seq = Some(seq),
        }
    }

    /// Makes the entry one of this epoch.
    pub fn set_epoch(&mut self, epoch: Epoch) {
        match self {
            Self::Transcript(e) => e.epoch = epoch,
            Self::Gap(e) => e.epoch = epoch,
            Self::Status(e) => e.epoch = epoch,
            Self::Translation(e) => e.epoch = epoch,
        }
    }

    pub fn id(&self) -> &str {
        match self {
            Self::Transcript(e) => &e.id,
            Self::Gap(e) => &e.id,
            Self::Status(e) => &e.id,
            Self::Translation(e) => &e.id,
        }
    }

    pub fn set_durable(&mut self, durable: bool) {
        match self {
            Self::Transcript(e) => e.durable = durable,
            Self::Gap(e) => e.durable = durable,
            Self::Status(e) => e.durable = durable,
            Self::Translation(e) => e.durable = durable,
        }
    }

    pub fn kind(&self) -> Kind {
        match self {
            Self::Transcript(_) => Kind::Final,
            Self::Gap(_) => Kind::Gap,
            Self::Status(_) => Kind::Status,
            Self::Translation(_) => Kind::Translation,
        }
    }

    pub fn is_interim(&self) -> bool {
        matches!(self, Self::Transcript(t) if !t.is_final)
    }

    /// The entry as viewers receive it. Serialised once and shared by all of them.
    pub fn to_json(&self) -> bytestring::ByteString {
        serde_json::to_string(self).expect("an entry has string keys and finite numbers").into()
    }
}

fn yes() -> bool {
    true
}

fn is_true(flag: &bool) -> bool {
    *flag
}

/// ISO 8601 in UTC with milliseconds, as the contract shows it.
mod iso_millis {
    use super::*;
    use serde::{Deserializer, Serializer};

    pub fn serialize<S: Serializer>(at: &DateTime<Utc>, s: S) -> Result<S::Ok, S::Error> {
        s.serialize_str(&at.to_rfc3339_opts(SecondsFormat::Millis, true))
    }

    pub fn deserialize<'de, D: Deserializer<'de>>(d: D) -> Result<DateTime<Utc>, D::Error> {
        DateTime::<Utc>::deserialize(d)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_final_has_the_fields_of_the_contract() {
        let json = r#"{"type":"transcript","session":"demo","epoch":"0193b3f0-0000-7000-8000-000000000001","seq":42,"id":"a","isFinal":true,"revision":3,"text":"Hello world.","startMs":188,"endMs":1284,"language":"en","confidence":0.97,"speaker":{"identity":"anna","name":"Anna"},"words":[{"word":"Hello","startMs":188,"endMs":735,"confidence":0.99}],"timestamp":"2026-11-22T12:00:00.123Z","latency":{"decodeMs":21,"sttMs":410,"serverMs":1}}"#;
        let entry: Entry = serde_json::from_str(json).unwrap();
        assert_eq!(entry.to_json(), json);
    }

    #[test]
    fn gap_status_and_translation_have_the_fields_of_the_contract() {
        for json in [
            r#"{"type":"gap","session":"demo","epoch":"0193b3f0-0000-7000-8000-000000000001","seq":43,"id":"g","startMs":9000,"endMs":12000,"reason":"stt_unavailable"}"#,
            r#"{"type":"status","session":"demo","epoch":"0193b3f0-0000-7000-8000-000000000001","seq":44,"id":"s","status":"live","reason":"publisher connected"}"#,
            r#"{"type":"gap","session":"demo","epoch":"0193b3f0-0000-7000-8000-000000000001","seq":43,"id":"g","startMs":9000,"endMs":12000,"reason":"publisher_lost","durable":false}"#,
            r#"{"type":"translation","session":"demo","epoch":"0193b3f0-0000-7000-8000-000000000001","seq":45,"id":"a:fr","of":"a","language":"fr","text":"Bonjour le monde.","startMs":188,"endMs":1284}"#,
        ] {
            let entry: Entry = serde_json::from_str(json).unwrap();
            assert_eq!(entry.to_json(), json);
        }
    }
}
