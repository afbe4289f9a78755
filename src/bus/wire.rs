//! What nodes say to each other beside entries. Times are ages: the clocks of two machines may differ by minutes.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::transcript::Slug;

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
}
