//! Records of the outbox: log entries and session rows, versioned.
//!
//! `version(1) kind(1) epoch(16) seq(8, LE) json`: the fixed part lets a scan pick an epoch's records without parsing
//! JSON.

use std::sync::Arc;

use crate::transcript::{Entry, Epoch, SessionRecord};

const VERSION: u8 = 1;
const KIND_ENTRY: u8 = b'E';
const KIND_SESSION: u8 = b'S';
const PREFIX_BYTES: usize = 26;

/// One thing that must reach the database.
#[derive(Debug, Clone, PartialEq)]
pub enum Record {
    Entry(Arc<Entry>),
    Session(Arc<SessionRecord>),
}

/// The fixed part of a record.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Prefix {
    pub epoch: Epoch,
    /// The entry's sequence number; None for a session row.
    pub seq: Option<u64>,
}

/// Why bytes are not a record of this version.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RecordError {
    #[error("an interim has no sequence number and is never stored")]
    Interim,
    #[error("the record has {0} bytes, fewer than its fixed part of {PREFIX_BYTES}")]
    Short(usize),
    #[error("the record has version {0}; this program reads version {VERSION}")]
    Version(u8),
    #[error("the record has the unknown kind {0}")]
    Kind(u8),
    #[error("the record's JSON is not readable: {0}")]
    Json(String),
}

impl Record {
    pub fn prefix(&self) -> Prefix {
        match self {
            Self::Entry(entry) => Prefix { epoch: entry.epoch(), seq: entry.seq() },
            Self::Session(session) => Prefix { epoch: session.epoch, seq: None },
        }
    }

    pub fn encode(&self) -> Result<Vec<u8>, RecordError> {
        let (kind, seq, json) = match self {
            Self::Entry(entry) if entry.is_interim() => return Err(RecordError::Interim),
            Self::Entry(entry) => {
                (KIND_ENTRY, entry.seq().ok_or(RecordError::Interim)?, serde_json::to_vec(entry.as_ref()))
            }
            Self::Session(session) => (KIND_SESSION, 0, serde_json::to_vec(session.as_ref())),
        };
        let json = json.map_err(|e| RecordError::Json(e.to_string()))?;
        let mut bytes = Vec::with_capacity(PREFIX_BYTES + json.len());
        bytes.extend_from_slice(&[VERSION, kind]);
        bytes.extend_from_slice(self.prefix().epoch.as_bytes());
        bytes.extend_from_slice(&seq.to_le_bytes());
        bytes.extend_from_slice(&json);
        Ok(bytes)
    }

    pub fn decode(bytes: &[u8]) -> Result<Self, RecordError> {
        peek(bytes)?;
        let json = &bytes[PREFIX_BYTES..];
        let fault = |e: serde_json::Error| RecordError::Json(e.to_string());
        match bytes[1] {
            KIND_ENTRY => Ok(Self::Entry(Arc::new(serde_json::from_slice(json).map_err(fault)?))),
            _ => Ok(Self::Session(Arc::new(serde_json::from_slice(json).map_err(fault)?))),
        }
    }
}

/// Reads the fixed part alone.
pub fn peek(bytes: &[u8]) -> Result<Prefix, RecordError> {
    if bytes.len() < PREFIX_BYTES {
        return Err(RecordError::Short(bytes.len()));
    }
    if bytes[0] != VERSION {
        return Err(RecordError::Version(bytes[0]));
    }
    let epoch = Epoch::from_slice(&bytes[2..18]).expect("16 bytes");
    let seq = u64::from_le_bytes(bytes[18..26].try_into().expect("8 bytes"));
    match bytes[1] {
        KIND_ENTRY => Ok(Prefix { epoch, seq: Some(seq) }),
        KIND_SESSION => Ok(Prefix { epoch, seq: None }),
        other => Err(RecordError::Kind(other)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry() -> Entry {
        serde_json::from_str(
            r#"{"type":"gap","session":"demo","epoch":"0193b3f0-0000-7000-8000-000000000001","seq":43,"id":"g","startMs":9000,"endMs":12000,"reason":"stt_unavailable"}"#,
        )
        .unwrap()
    }

    #[test]
    fn a_record_is_read_back_as_it_was() {
        let record = Record::Entry(Arc::new(entry()));
        let bytes = record.encode().unwrap();
        assert_eq!(peek(&bytes).unwrap(), record.prefix());
        assert_eq!(Record::decode(&bytes).unwrap(), record);
    }

    #[test]
    fn what_another_version_wrote_is_refused_with_its_version() {
        let mut bytes = Record::Entry(Arc::new(entry())).encode().unwrap();
        bytes[0] = 9;
        assert_eq!(Record::decode(&bytes), Err(RecordError::Version(9)));
        assert_eq!(Record::decode(&bytes[..20]), Err(RecordError::Short(20)));
    }
}
