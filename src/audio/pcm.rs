//! Decoded audio on its way from the decoder to the recogniser.

use bytes::Bytes;
use tokio::time::Instant;

/// Decoded audio: PCM16 little endian, 16 kHz, mono (32 bytes a millisecond).
#[derive(Debug, Clone)]
pub struct PcmChunk {
    pub pcm: Bytes,
    /// Session clock of its first sample. Never before the end of the chunk before it.
    pub start_ms: u64,
    /// Silence that we made, not audio that a publisher sent.
    pub inserted: bool,
    /// Arrival of the last audio tag in it.
    pub arrived: Instant,
}
