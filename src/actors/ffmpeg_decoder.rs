//! FfmpegDecoder: turns a publisher's audio tags into PCM chunks.

use actix::Message;
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

/// The publisher is gone: decode what is there to its last sample and end the child. Answers when the ledger has all.
#[derive(Debug, Clone, Copy, Message)]
#[rtype(result = "()")]
pub struct Flush;
