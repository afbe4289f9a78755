//! What a session owns and its actors borrow. A child that panics costs a mailbox of wake-ups, never data: audio waits
//! in the ledger, tags and recogniser results in edges, published lines in the log.

use std::sync::Arc;

use chrono::{DateTime, Utc};
use parking_lot::Mutex;
use tokio::sync::Notify;
use tokio::time::Instant;
use uuid::Uuid;

use super::edge::Edge;
use super::ffmpeg_decoder::AudioTag;
use super::gladia_bridge::PcmChunk;
use super::transcript_room::RoomInput;
use crate::audio::DecodeState;
use crate::config::Config;
use crate::gladia::ledger::{FileSpool, Ledger, Limits, ReplayBudget};
use crate::log::{Epoch, Slug, TranscriptLog};
use crate::metrics::Metrics;

/// Tags between RtmpConnection and FfmpegDecoder: about 23 s of AAC at 44.1 kHz. Past it, TCP pushes back.
pub const TAG_CAPACITY: usize = 1000;
/// Results between GladiaBridge and TranscriptRoom.
pub const ROOM_CAPACITY: usize = 256;

/// See the module.
pub struct SessionCore {
    pub slug: Slug,
    pub epoch: Epoch,
    pub started_at: DateTime<Utc>,
    /// Zero of the session clock: `startMs` and `endMs` count from here.
    pub started: Instant,
    /// RtmpConnection -> FfmpegDecoder.
    pub tags: Edge<AudioTag>,
    /// Tags that are not yet out as PCM, and what is known of their time.
    pub decode: Mutex<DecodeState>,
    /// FfmpegDecoder -> GladiaBridge: every PCM byte with its offset, until its text is final.
    pub ledger: Mutex<Ledger>,
    /// Notified after each [`Self::push_pcm`].
    pub pcm_ready: Notify,
    /// GladiaBridge -> TranscriptRoom.
    pub room: Edge<RoomInput>,
    /// TranscriptRoom -> viewers.
    pub log: Arc<TranscriptLog>,
    pub config: Arc<Config>,
    pub metrics: Arc<Metrics>,
}

impl SessionCore {
    /// A session with a replay budget of its own. For several sessions use [`Self::with_budget`].
    pub fn new(slug: Slug, config: Arc<Config>, metrics: Arc<Metrics>) -> Self {
        let budget = Arc::new(ReplayBudget::new(config.stt.replay_max_bytes));
        Self::with_budget(slug, config, metrics, budget)
    }

    /// `budget` is the process's: REPLAY_MAX_BYTES over all sessions.
    pub fn with_budget(slug: Slug, config: Arc<Config>, metrics: Arc<Metrics>, budget: Arc<ReplayBudget>) -> Self {
        let epoch = Uuid::now_v7();
        let spool = FileSpool::new(config.core.data_dir.join("spool").join(epoch.to_string()));
        let ledger = Ledger::new(Limits::from(&config.stt), Box::new(spool), budget);
        let viewers = &config.viewers;
        let log = TranscriptLog::new(slug.clone(), epoch, 0, viewers.history, viewers.history_bytes);
        Self {
            slug,
            epoch,
            started_at: Utc::now(),
            started: Instant::now(),
            tags: Edge::new(TAG_CAPACITY),
            decode: Mutex::new(DecodeState::new(config.audio.chunk_ms)),
            ledger: Mutex::new(ledger),
            pcm_ready: Notify::new(),
            room: Edge::new(ROOM_CAPACITY),
            log: Arc::new(log),
            config,
            metrics,
        }
    }

    /// Milliseconds since the session's start.
    pub fn clock_ms(&self) -> u64 {
        self.started.elapsed().as_millis() as u64
    }

    /// Takes decoded audio into the ledger and wakes the bridge.
    pub fn push_pcm(&self, chunk: PcmChunk) {
        let mut ledger = self.ledger.lock();
        ledger.push(Instant::now(), chunk);
        ledger.report(&self.metrics);
        drop(ledger);
        self.pcm_ready.notify_one();
    }
}
