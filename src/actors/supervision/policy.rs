//! The restart policy of every supervised actor, as data.

use std::time::Duration;

/// What kind of actor. The label in metrics and logs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum ChildKind {
    BatchWriter,
    SessionRegistry,
    SttProcess,
    RtmpListener,
    Session,
    TranscriptRoom,
    SpeakerTracker,
    GladiaBridge,
    FfmpegDecoder,
    RtmpConnection,
    Forwarder,
    WsClient,
}

impl ChildKind {
    pub const ALL: [Self; 12] = [
        Self::BatchWriter,
        Self::SessionRegistry,
        Self::SttProcess,
        Self::RtmpListener,
        Self::Session,
        Self::TranscriptRoom,
        Self::SpeakerTracker,
        Self::GladiaBridge,
        Self::FfmpegDecoder,
        Self::RtmpConnection,
        Self::Forwarder,
        Self::WsClient,
    ];

    pub fn as_str(self) -> &'static str {
        match self {
            Self::BatchWriter => "batch_writer",
            Self::SessionRegistry => "session_registry",
            Self::SttProcess => "stt_process",
            Self::RtmpListener => "rtmp_listener",
            Self::Session => "session",
            Self::TranscriptRoom => "transcript_room",
            Self::SpeakerTracker => "speaker_tracker",
            Self::GladiaBridge => "gladia_bridge",
            Self::FfmpegDecoder => "ffmpeg_decoder",
            Self::RtmpConnection => "rtmp_connection",
            Self::Forwarder => "forwarder",
            Self::WsClient => "ws_client",
        }
    }

    pub fn policy(self) -> Policy {
        use Restart::*;
        match self {
            Self::BatchWriter => Policy::new(Permanent, 5, 60),
            Self::SessionRegistry => Policy::new(Permanent, 3, 60),
            Self::SttProcess => Policy::new(Permanent, 5, 60),
            Self::RtmpListener => Policy::new(Permanent, 5, 60),
            Self::Session => Policy::new(Transient, 3, 300),
            Self::TranscriptRoom => Policy::new(Permanent, 3, 60),
            Self::SpeakerTracker => Policy::new(Transient, 10, 60),
            Self::GladiaBridge => Policy::new(Transient, 10, 120),
            Self::FfmpegDecoder => Policy::new(Transient, 5, 30),
            Self::Forwarder => Policy::new(Permanent, 5, 60),
            Self::RtmpConnection | Self::WsClient => Policy::new(Temporary, 0, 1),
        }
    }
}

/// When a child that has ended is started again (OTP's words).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Restart {
    /// Always.
    Permanent,
    /// Only after a fault.
    Transient,
    /// Never.
    Temporary,
}

/// `intensity` restarts within `period` are allowed; one more escalates to the parent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Policy {
    pub restart: Restart,
    pub intensity: usize,
    pub period: Duration,
    pub backoff_first: Duration,
    pub backoff_most: Duration,
}

impl Policy {
    const fn new(restart: Restart, intensity: usize, period_s: u64) -> Self {
        Self {
            restart,
            intensity,
            period: Duration::from_secs(period_s),
            backoff_first: Duration::from_millis(100),
            backoff_most: Duration::from_secs(5),
        }
    }
}
