//! The words of the bridge's machine: where it stands, what happens to it, what it sends.

use bytes::Bytes;
use serde::Serialize;
use tokio::time::Instant;

use super::ledger::Recognised;
use super::policy::Fault;
use crate::config::Secret;

/// The phase of the machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Phase {
    /// No audio yet, or none that is not dealt with.
    Idle,
    /// The recogniser has no address yet.
    AwaitingEndpoint,
    /// All of the account's sessions are in use.
    AwaitingSlot,
    /// POST is under way.
    Opening,
    /// The WebSocket is being opened.
    Connecting,
    Streaming,
    /// No more audio for this session: `stop_recording`, then its last text.
    Stopping,
    /// After a fault; then the same session goes on.
    WaitingToResume {
        until: Instant,
    },
    /// After a fault; then a new session begins.
    WaitingToRenew {
        until: Instant,
    },
    /// Finished: nothing more will be sent or come.
    Done,
}

impl Phase {
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Idle => "idle",
            Self::AwaitingEndpoint => "awaiting_endpoint",
            Self::AwaitingSlot => "awaiting_slot",
            Self::Opening => "opening",
            Self::Connecting => "connecting",
            Self::Streaming => "streaming",
            Self::Stopping => "stopping",
            Self::WaitingToResume { .. } => "waiting_to_resume",
            Self::WaitingToRenew { .. } => "waiting_to_renew",
            Self::Done => "done",
        }
    }
}

/// An event for the machine.
#[derive(Debug)]
pub enum Input {
    Tick,
    EndpointReady,
    /// The recogniser's address is another one: its sessions are gone.
    EndpointMoved,
    SlotGranted,
    Opened(Result<(String, Secret), Fault>),
    Connected(Result<(), Fault>),
    Heard(RecogniserMessage),
    Disconnected(Fault),
    /// Bring everything home until then.
    Finish {
        deadline: Instant,
    },
}

/// A message of the recogniser, as far as it matters here.
#[derive(Debug, Clone, PartialEq)]
pub enum RecogniserMessage {
    Acknowledged {
        start: u64,
        end: u64,
    },
    /// Audio that it does not take.
    Refused(Refusal),
    Text(Recognised),
    /// A final that cannot be read (or what may be one: `is_final` false); its times in seconds, NaN where they cannot be, either.
    Unreadable {
        is_final: bool,
        start_s: f64,
        end_s: f64,
    },
    Translation(TranslationHeard),
    /// Why there is none.
    TranslationFailed(String),
    StopAcknowledged,
    EndSession,
    /// An error that it reports and that ends nothing.
    Reported(String),
    /// A sign of life.
    Other,
}

impl RecogniserMessage {
    /// It brings the end of the session nearer; greetings and heartbeats do not.
    pub fn is_progress(&self) -> bool {
        !matches!(self, Self::Reported(_) | Self::Other)
    }
}

/// The reason for which a recogniser takes no audio.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Refusal {
    /// The account's quota is used up: somebody has to put that right.
    Quota,
    /// Anything else, in the recogniser's words.
    Other(String),
}

/// A translation of the utterance `id` (empty: of the one at its time), as the recogniser gives it.
#[derive(Debug, Clone, PartialEq)]
pub struct TranslationHeard {
    pub id: String,
    pub language: String,
    pub text: String,
    /// Of the utterance, in seconds of the recogniser's session; NaN where it is not said.
    pub start_s: f64,
    pub end_s: f64,
}

/// The next thing to send.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outgoing {
    Audio(Bytes),
    KeepAlive,
    Stop,
}

/// Counters and the last fault, for `Observe`.
#[derive(Debug, Clone, Default, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Counters {
    pub sessions: u32,
    pub resumes: u32,
    pub replays: u32,
    pub stalls: u32,
    pub rollovers: u32,
    pub faults: u32,
    pub last_fault: Option<String>,
}
