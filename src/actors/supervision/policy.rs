//! The restart policy of every supervised actor, as data.

use std::time::Duration;

/// The kind of an actor. The label in metrics and logs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum ChildKind {
    BatchWriter,
    SessionRegistry,
    SttProcess,
    RtmpListener,
    Forwarder,
    RoomKeeper,
    Follower,
    EgressController,
    Session,
    TranscriptRoom,
    SpeakerTracker,
    GladiaBridge,
    FfmpegDecoder,
    RtmpConnection,
    RoomParticipant,
    RoomCaptions,
    WsClient,
    TrackActivity,
}

impl ChildKind {
    pub const ALL: [Self; 18] = [
        Self::BatchWriter,
        Self::SessionRegistry,
        Self::SttProcess,
        Self::RtmpListener,
        Self::Forwarder,
        Self::RoomKeeper,
        Self::Follower,
        Self::EgressController,
        Self::Session,
        Self::TranscriptRoom,
        Self::SpeakerTracker,
        Self::GladiaBridge,
        Self::FfmpegDecoder,
        Self::RtmpConnection,
        Self::RoomParticipant,
        Self::RoomCaptions,
        Self::WsClient,
        Self::TrackActivity,
    ];

    pub fn as_str(self) -> &'static str {
        match self {
            Self::BatchWriter => "batch_writer",
            Self::SessionRegistry => "session_registry",
            Self::SttProcess => "stt_process",
            Self::RtmpListener => "rtmp_listener",
            Self::Forwarder => "forwarder",
            Self::RoomKeeper => "room_keeper",
            Self::Follower => "follower",
            Self::EgressController => "egress_controller",
            Self::Session => "session",
            Self::TranscriptRoom => "transcript_room",
            Self::SpeakerTracker => "speaker_tracker",
            Self::GladiaBridge => "gladia_bridge",
            Self::FfmpegDecoder => "ffmpeg_decoder",
            Self::RtmpConnection => "rtmp_connection",
            Self::RoomParticipant => "room_participant",
            Self::RoomCaptions => "room_captions",
            Self::WsClient => "ws_client",
            Self::TrackActivity => "track_activity",
        }
    }

    /// The row of the table.
    pub fn policy(self) -> Policy {
        use Restart::*;
        use Scope::*;
        match self {
            Self::BatchWriter => Policy::new(Permanent, 5, 60, Alone, 10, 10),
            Self::SessionRegistry => Policy::new(Permanent, 3, 60, Alone, 10, 10),
            Self::SttProcess => Policy::new(Permanent, 5, 60, Alone, 10, 10),
            Self::RtmpListener => Policy::new(Permanent, 5, 60, Alone, 10, 10),
            Self::Forwarder => Policy::new(Permanent, 5, 60, Alone, 10, 10),
            Self::RoomKeeper => Policy::new(Permanent, 5, 60, Alone, 10, 10),
            Self::Follower => Policy::new(Permanent, 5, 60, Alone, 10, 10),
            Self::EgressController => Policy::new(Permanent, 5, 60, Alone, 10, 10),
            Self::Session => Policy::new(Transient, 3, 300, Nothing, 0, 0),
            Self::TranscriptRoom => Policy::new(Permanent, 3, 60, Siblings, 5, 30),
            Self::SpeakerTracker => Policy::new(Transient, 10, 60, Siblings, 5, 30),
            Self::GladiaBridge => Policy::new(Transient, 10, 120, Alone, 30, 30),
            Self::FfmpegDecoder => Policy::new(Transient, 5, 30, Siblings, 5, 30),
            Self::RoomParticipant => Policy::new(Transient, 5, 60, Alone, 30, 300).beside(),
            Self::RoomCaptions => Policy::new(Transient, 5, 60, Alone, 30, 300).beside(),
            Self::RtmpConnection | Self::WsClient | Self::TrackActivity => Policy::new(Temporary, 0, 1, Nothing, 0, 0),
        }
    }
}

/// The rule for starting a child again (OTP's words).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Restart {
    /// Always.
    Permanent,
    /// Only after a fault.
    Transient,
    /// Never.
    Temporary,
}

/// The part of the tree that is built anew after an exhausted budget.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Scope {
    /// The child itself.
    Alone,
    /// All children of its parent; a publisher's connection stays.
    Siblings,
    /// Nothing: the parent gives it up.
    Nothing,
}

/// `intensity` restarts within `period` are allowed; one more escalates to the parent, which builds `rebuilds` anew after
/// `rebuild_first`, twice as long each time, up to `rebuild_most`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Policy {
    pub restart: Restart,
    pub intensity: usize,
    pub period: Duration,
    pub backoff_first: Duration,
    pub backoff_most: Duration,
    pub rebuilds: Scope,
    pub rebuild_first: Duration,
    pub rebuild_most: Duration,
    /// Its parent does its work without it: an exhausted budget is no reason to call the parent degraded.
    pub is_beside: bool,
}

impl Policy {
    const fn new(
        restart: Restart,
        intensity: usize,
        period_s: u64,
        rebuilds: Scope,
        rebuild_first_s: u64,
        rebuild_most_s: u64,
    ) -> Self {
        Self {
            restart,
            intensity,
            period: Duration::from_secs(period_s),
            backoff_first: Duration::from_millis(100),
            backoff_most: Duration::from_secs(5),
            rebuilds,
            rebuild_first: Duration::from_secs(rebuild_first_s),
            rebuild_most: Duration::from_secs(rebuild_most_s),
            is_beside: false,
        }
    }

    const fn beside(self) -> Self {
        Self { is_beside: true, ..self }
    }
}
