//! What nodes say to each other beside entries. Times are ages: the clocks of two machines may differ by minutes.

use std::collections::BTreeMap;

use bytes::Bytes;
use bytestring::ByteString;
use chrono::{DateTime, SecondsFormat, Utc};
use serde::{Deserialize, Serialize};
use serde_json::json;

use super::Batch;
use crate::transcript::{Entry, Epoch, SessionRecord, Slug};

/// The version of what nodes say to each other, in a header of each request and answer.
pub const PROTOCOL: &str = "1";
pub const PROTOCOL_HEADER: &str = "stenocast-protocol";
/// Name of the node that sends, for the other side's log.
pub const NODE_HEADER: &str = "stenocast-node";
/// `reason` of a 409 that asks for another number of the same log.
pub const HOLE: &str = "hole";
/// Largest body of a post.
pub const MAX_POST_BYTES: usize = 1024 * 1024;
/// Most entries of a post.
pub const MAX_POST_ENTRIES: usize = 1000;

/// The answer to a poll for reports.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Reports {
    /// Number of the last report; the next poll names it.
    pub next: u64,
    pub reports: Vec<Report>,
    /// Viewers of each room that has any.
    pub viewers: BTreeMap<Slug, usize>,
}

/// Reports, and which node they are of.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct NodeReports {
    pub node: String,
    pub reports: Reports,
}

/// A viewer's report of voice activity.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Report {
    pub session: Slug,
    pub identity: String,
    #[serde(default)]
    pub name: Option<String>,
    pub active: bool,
    #[serde(default)]
    pub level: f32,
    /// Milliseconds since it was made.
    pub age_ms: u64,
    /// Who made it; a participant's word about itself counts more than what others say of it.
    pub viewer: String,
    /// It was measured on the participant's own track.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub is_track: bool,
}

impl NodeReports {
    pub fn to_bytes(&self) -> Bytes {
        serde_json::to_vec(self).expect("it has string keys and finite numbers").into()
    }
}

/// A part of one room's log, as it stands in a log server and in a post.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct LogBatch {
    pub session: Slug,
    pub epoch: Epoch,
    #[serde(default)]
    pub transcripts: Vec<Entry>,
    #[serde(default)]
    pub record: Option<SessionRecord>,
    #[serde(default)]
    pub begins: Option<u64>,
    /// By the sender's clock.
    #[serde(default)]
    pub sent_at: Option<DateTime<Utc>>,
}

/// Why a body is no part of a room's log.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BadBatch {
    #[error("{0}")]
    Json(String),
    #[error("it is of another room, or of several epochs")]
    Mixed,
}

impl LogBatch {
    /// Reads a batch of this room, and cleans its entries.
    pub fn parse(room: &Slug, body: &[u8]) -> Result<Self, BadBatch> {
        let mut batch: Self = serde_json::from_slice(body).map_err(|error| BadBatch::Json(error.to_string()))?;
        let is_of_it = |slug: &Slug, epoch: Epoch| slug == room && epoch == batch.epoch;
        let is_pure = is_of_it(&batch.session, batch.epoch)
            && batch.transcripts.iter().all(|entry| is_of_it(entry.session(), entry.epoch()))
            && batch.record.iter().all(|record| is_of_it(&record.slug, record.epoch));
        if !is_pure {
            return Err(BadBatch::Mixed);
        }
        batch.transcripts.iter_mut().for_each(Entry::clean);
        Ok(batch)
    }

    /// Numbers of its first and its last durable entry.
    pub fn numbers(&self) -> Option<(u64, u64)> {
        let mut numbers = self.transcripts.iter().filter_map(Entry::seq);
        let first = numbers.next()?;
        Some((first, numbers.next_back().unwrap_or(first)))
    }
}

/// The JSON of a batch. Its entries are JSON already.
pub fn body(batch: &Batch, entries: &[&[ByteString]]) -> String {
    let (slug, epoch) = (json!(batch.slug), json!(batch.epoch));
    let entries = entries.iter().flat_map(|part| part.iter()).map(|json| &**json).collect::<Vec<&str>>().join(",");
    let record = batch.record.as_ref().map_or(serde_json::Value::Null, |record| json!(record));
    let begins = json!(batch.begins);
    let now = Utc::now().to_rfc3339_opts(SecondsFormat::Millis, true);
    format!(
        r#"{{"session":{slug},"epoch":{epoch},"transcripts":[{entries}],"record":{record},"begins":{begins},"sentAt":"{now}"}}"#
    )
}

#[cfg(test)]
mod tests {
    use serde_json::Value;

    use super::*;

    #[test]
    fn a_body_is_json_with_the_entries_as_they_are() {
        let mut batch = Batch::new(Slug::parse("a.b~c").unwrap(), Epoch::nil());
        batch.entries = vec![r#"{"type":"gap"}"#.into(), r#"{"type":"status"}"#.into()];
        batch.begins = Some(3);
        let value: Value = serde_json::from_str(&body(&batch, &[&batch.entries])).unwrap();
        assert_eq!((&value["session"], &value["begins"]), (&json!("a.b~c"), &json!(3)));
        assert_eq!(value["transcripts"].as_array().unwrap().len(), 2);
        assert!(value["record"].is_null() && value["sentAt"].is_string());
    }
}
