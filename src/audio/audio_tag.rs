//! Audio as it comes from a publisher, before anything is known of what is in it.

use bytes::Bytes;
use tokio::time::Instant;

/// One FLV audio tag body, as the publisher sent it.
#[derive(Debug, Clone)]
pub struct AudioTag {
    /// Which publisher connection of the session; it grows. A new one starts a new clock segment.
    pub publisher: u64,
    /// RTMP timestamp in ms, unwrapped (it does not fall back to 0 after 2^32 ms).
    pub timestamp_ms: u64,
    /// The tag's body: format byte, AAC packet type where it is AAC, payload.
    pub body: Bytes,
    pub arrived: Instant,
}
