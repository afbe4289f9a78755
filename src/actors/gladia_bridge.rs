//! GladiaBridge: sends a session's audio to the recogniser and brings its text back.

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
    /// When the last audio tag that it holds arrived.
    pub arrived: Instant,
}
use actix::prelude::*;
pub type SttSlots = std::sync::Arc<tokio::sync::Semaphore>;
#[derive(Clone)]
pub struct SttEndpoint {
    pub base_url: tokio::sync::watch::Receiver<Option<String>>,
    pub api_key: Option<crate::config::Secret>,
}
pub struct BridgeParams {
    pub core: std::sync::Arc<super::session_core::SessionCore>,
    pub endpoint: SttEndpoint,
    pub slots: SttSlots,
    pub lifeline: super::supervision::Lifeline,
}
#[derive(Message, Clone)]
#[rtype(result = "()")]
pub struct Finish {
    pub deadline: Instant,
}
pub struct GladiaBridge {
    p: BridgeParams,
}
impl GladiaBridge {
    pub fn start(p: BridgeParams) -> Addr<Self> {
        Actor::start(Self { p })
    }
}
impl Actor for GladiaBridge {
    type Context = Context<Self>;
    fn started(&mut self, _: &mut Self::Context) {
        self.p.lifeline.started()
    }
}
impl Handler<Finish> for GladiaBridge {
    type Result = ResponseFuture<()>;
    fn handle(&mut self, _: Finish, _: &mut Self::Context) -> Self::Result {
        Box::pin(async {})
    }
}
impl Handler<super::Observe> for GladiaBridge {
    type Result = MessageResult<super::Observe>;
    fn handle(&mut self, _: super::Observe, _: &mut Self::Context) -> Self::Result {
        MessageResult(serde_json::Value::Null)
    }
}
crate::stops_and_crashes!(GladiaBridge);
