//! Who gives the entries of a session their numbers.

use serde::{Deserialize, Serialize};

/// Source of a session's entries, hence which actors it has and who numbers its log.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Origin {
    /// A publisher here.
    #[default]
    Ingest,
    /// POST broadcast without numbers: a third party speaks, this node numbers.
    Relay,
    /// POST broadcast with numbers: another node's log, of which this is a copy. Nothing is added to it here.
    Mirror,
}

impl Origin {
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Ingest => "ingest",
            Self::Relay => "relay",
            Self::Mirror => "mirror",
        }
    }
}
