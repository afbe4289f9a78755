//! A session as the database keeps it. It travels through the outbox like an entry, so that it survives what they do.

use std::collections::BTreeMap;

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};

use super::entry::Epoch;
use super::slug::Slug;

/// One row of table `sessions`. A later record of an epoch replaces an earlier one; the counters only grow, and an
/// ended session stays ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct SessionRecord {
    pub epoch: Epoch,
    pub slug: Slug,
    pub started_at: DateTime<Utc>,
    /// None while it is live or suspended.
    #[serde(default)]
    pub ended_at: Option<DateTime<Utc>>,
    pub state: SessionState,
    /// Last sequence number; 0 before the first.
    #[serde(default)]
    pub last_seq: u64,
    /// ISO 639-1 code of the latest final, where the recogniser said one.
    #[serde(default)]
    pub language: Option<String>,
    #[serde(default)]
    pub audio: AudioAccount,
    /// Lost audio in milliseconds by gap reason.
    #[serde(default)]
    pub losses: BTreeMap<String, u64>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum SessionState {
    Live,
    Suspended,
    Ended,
}

impl SessionState {
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Live => "live",
            Self::Suspended => "suspended",
            Self::Ended => "ended",
        }
    }

    pub fn parse(text: &str) -> Option<Self> {
        [Self::Live, Self::Suspended, Self::Ended].into_iter().find(|s| s.as_str() == text)
    }
}

/// The account of a session's audio, in milliseconds of audio.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct AudioAccount {
    pub received_ms: u64,
    pub decoded_ms: u64,
    pub inserted_ms: u64,
    pub sent_ms: u64,
    pub resent_ms: u64,
    pub acknowledged_ms: u64,
    pub spoken_ms: u64,
    pub finalised_ms: u64,
    pub lost_ms: u64,
}

impl SessionRecord {
    /// A session that has just begun.
    pub fn begun(epoch: Epoch, slug: Slug, started_at: DateTime<Utc>) -> Self {
        Self {
            epoch,
            slug,
            started_at,
            ended_at: None,
            state: SessionState::Live,
            last_seq: 0,
            language: None,
            audio: AudioAccount::default(),
            losses: BTreeMap::new(),
        }
    }
}
