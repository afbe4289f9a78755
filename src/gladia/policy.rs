//! The tables: what can go wrong with the recogniser, what is done about it, and which status is published.

use std::time::Duration;

pub use crate::allowance::Allowance;
use crate::transcript::Status;

/// Delays before the same URL is dialled again. Source: Gladia's SDKs.
pub const RESUME_DELAYS_MS: &[u64] = &[0, 300, 600, 1200, 2000];
/// Failed resumes in a row after which a new session is begun.
pub const MAX_RESUMES: u32 = 5;
/// Delays before a new session, while none is healthy.
pub const RENEW_DELAYS_MS: &[u64] = &[0, 300, 600, 1200, 2000, 5000, 10_000, 30_000];
/// Delays after a refusal that somebody has to put right (key, payment, request).
pub const REFUSED_DELAYS_MS: &[u64] = &[15_000, 30_000, 60_000, 120_000, 300_000];
/// Delays after 429 without Retry-After.
pub const RATE_LIMITED_DELAYS_MS: &[u64] = &[1000, 2000, 5000, 10_000, 30_000];
/// Recogniser sessions of one stream: so many in a row ...
pub const SESSION_BURST: u32 = 10;
/// ... and then one in so long. Each may be billed: no minute has more than 12, whatever the recogniser does.
pub const SESSION_INTERVAL_MS: u64 = 30_000;
/// Connections to recogniser sessions, resumed ones included: so many in a row, then one in so long.
pub const CONNECTION_BURST: u32 = 30;
pub const CONNECTION_INTERVAL_MS: u64 = 2_000;
/// Messages of the recogniser: an acknowledgement for every 20 ms of audio and a backlog of the longest window fit in.
pub const MESSAGE_BURST: u32 = 40_000;
pub const MESSAGE_INTERVAL_MS: u64 = 5;
/// Finals: those of a backlog, then ten a second.
pub const FINAL_BURST: u32 = 2_000;
pub const FINAL_INTERVAL_MS: u64 = 100;
/// Changes of the published status.
pub const STATUS_BURST: u32 = 10;
pub const STATUS_INTERVAL_MS: u64 = 10_000;
/// Log lines about errors that the recogniser reports; more of them are counted alone.
pub const COMPLAINT_BURST: u32 = 10;
pub const COMPLAINT_INTERVAL_MS: u64 = 10_000;
/// Retry-After is capped at this.
const MAX_RETRY_AFTER: Duration = Duration::from_secs(300);

/// Every time span of the bridge. Tests scale them.
#[derive(Debug, Clone)]
pub struct Timing {
    /// How often time-outs are looked at.
    pub tick: Duration,
    /// Answer to the POST, or to the WebSocket upgrade.
    pub connect_timeout: Duration,
    /// Audio is on its way and no acknowledgement comes: the connection is half open.
    pub ack_timeout: Duration,
    /// Open for so long counts as healthy.
    pub healthy_after: Duration,
    /// A connection that lived shorter is not resumed at once.
    pub short_life: Duration,
    /// Nothing sent for so long: an empty chunk. The recogniser drops a connection after 30 s.
    pub keep_alive: Duration,
    /// A recogniser that is asked for the missing text, by `stop_recording`, and says nothing for so long has
    /// stalled.
    pub probe_timeout: Duration,
    /// After `stop_recording`, no text of the recogniser for so long without `end_session`.
    pub stop_timeout: Duration,
    /// The same without a final, whatever else it says: a recogniser may guess, or greet, for ever.
    pub stop_most: Duration,
    /// Longest wait between two attempts against a recogniser that stays silent.
    pub stall_most: Duration,
    /// A state shorter than this is not shown to viewers.
    pub settle: Duration,
    /// A connection that is down for so long is shown as degraded.
    pub degraded_after: Duration,
    /// Without audio for so long, nothing is said about the connection.
    pub audio_flows: Duration,
    /// Percentage applied to the delay tables.
    pub delay_percent: u32,
}

impl Default for Timing {
    fn default() -> Self {
        let ms = Duration::from_millis;
        Self {
            tick: ms(100),
            connect_timeout: ms(10_000),
            ack_timeout: ms(6_000),
            healthy_after: ms(5_000),
            short_life: ms(1_000),
            keep_alive: ms(20_000),
            probe_timeout: ms(5_000),
            stop_timeout: ms(15_000),
            stop_most: ms(60_000),
            stall_most: ms(300_000),
            settle: ms(1_000),
            degraded_after: ms(30_000),
            audio_flows: ms(3_000),
            delay_percent: 100,
        }
    }
}

impl Timing {
    /// All spans at `percent` of the default, for tests on real sockets.
    pub fn scaled(percent: u32) -> Self {
        let of = |span: Duration| span * percent / 100;
        let d = Self::default();
        Self {
            tick: of(d.tick).max(Duration::from_millis(2)),
            connect_timeout: of(d.connect_timeout),
            ack_timeout: of(d.ack_timeout),
            healthy_after: of(d.healthy_after),
            short_life: of(d.short_life),
            keep_alive: of(d.keep_alive),
            probe_timeout: of(d.probe_timeout),
            stop_timeout: of(d.stop_timeout),
            stop_most: of(d.stop_most),
            stall_most: of(d.stall_most),
            settle: of(d.settle),
            degraded_after: of(d.degraded_after),
            audio_flows: of(d.audio_flows),
            delay_percent: percent,
        }
    }

    /// `burst` times in a row, then once in `interval_ms`.
    pub fn allowance(&self, burst: u32, interval_ms: u64) -> Allowance {
        Allowance::new(burst, Duration::from_millis(interval_ms) * self.delay_percent / 100)
    }

    /// The `n`th delay (from 0) of a table; the last one goes on.
    pub fn delay(&self, table: &[u64], n: u32) -> Duration {
        let ms = table.get(n as usize).or(table.last()).copied().unwrap_or(0);
        Duration::from_millis(ms) * self.delay_percent / 100
    }
}

/// What can go wrong. Texts hold no URL, token or key.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Fault {
    #[error("the recogniser refused the API key (HTTP {status})")]
    Unauthorized { status: u16 },
    #[error("the recogniser asks for payment (HTTP 402)")]
    PaymentRequired,
    #[error("the recogniser is limiting the rate or the number of sessions (HTTP 429)")]
    RateLimited { retry_after: Option<Duration> },
    #[error("the recogniser's quota is used up")]
    QuotaExceeded,
    #[error("the recogniser refused the request (HTTP {status}): {message}")]
    BadRequest { status: u16, message: String },
    #[error("the recogniser is unavailable (HTTP {status})")]
    Unavailable { status: u16 },
    #[error("the recogniser cannot be reached: {0}")]
    Network(String),
    #[error("the recogniser did not answer in time")]
    Timeout,
    #[error("the recogniser does not keep to its protocol: {0}")]
    Protocol(String),
    #[error("the recogniser session is no longer there (HTTP {status})")]
    SessionGone { status: u16 },
    #[error("the recogniser closed the connection with code {code}")]
    Closed { code: u16 },
    #[error("audio is not acknowledged any more")]
    HalfOpen,
    #[error("audio is not acknowledged any more, while text comes")]
    Unacknowledged,
    #[error("speech goes to the recogniser and no text comes back")]
    Stalled,
    #[error("the recogniser has forgotten speech that it had acknowledged")]
    Forgotten,
    #[error("the recogniser said what cannot be read")]
    Unreadable,
    #[error("the recogniser says more than was spoken")]
    Flood,
    #[error("more recogniser sessions than their budget allows; the next one is waited for")]
    SessionBudget,
    #[error("audio was dropped from the replay window while it was being sent")]
    WindowOverflow,
    #[error("the recogniser did not end its session in time")]
    StopTimeout,
    #[error("the recogniser has moved to another address")]
    SttRestarted,
}

/// What is done about a fault.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reaction {
    /// Dial the same URL; acknowledged audio is not sent again.
    Resume,
    /// A new session, which hears everything again that has no final.
    Renew,
    /// As Renew, after a long wait: trying sooner would not help.
    Refused,
    /// As Renew, when the recogniser says so.
    RateLimited,
}

impl Fault {
    /// The fault that an HTTP answer to POST stands for.
    pub fn from_status(status: u16, retry_after: Option<Duration>, message: String) -> Self {
        match status {
            401 | 403 => Self::Unauthorized { status },
            402 => Self::PaymentRequired,
            429 => Self::RateLimited { retry_after: retry_after.map(|d| d.min(MAX_RETRY_AFTER)) },
            408 | 500..=599 => Self::Unavailable { status },
            200..=299 => Self::Protocol(format!("HTTP {status} without a session")),
            _ => Self::BadRequest { status, message },
        }
    }

    /// The fault that a refused WebSocket upgrade stands for.
    pub fn from_upgrade(status: u16) -> Self {
        match status {
            408 | 429 | 500..=599 => Self::Unavailable { status },
            _ => Self::SessionGone { status },
        }
    }

    /// The table. Close codes: 1002-4399 and 4500-9999 resume, 1000, 1001 and 4400-4499 do not (Gladia's SDKs).
    pub fn reaction(&self) -> Reaction {
        use Reaction::*;
        match self {
            Self::Unauthorized { .. } | Self::PaymentRequired | Self::QuotaExceeded | Self::BadRequest { .. } => {
                Refused
            }
            Self::SessionBudget => Refused,
            Self::RateLimited { .. } => RateLimited,
            Self::Unavailable { .. } | Self::Network(_) | Self::Timeout | Self::Protocol(_) => Resume,
            Self::HalfOpen | Self::WindowOverflow => Resume,
            Self::Closed { code } if crate::gladia::wire::is_resumable(*code) => Resume,
            Self::Closed { .. } | Self::SessionGone { .. } => Renew,
            // How much of the audio is in its count cannot be told any more.
            Self::Unacknowledged => Renew,
            Self::Stalled
            | Self::Forgotten
            | Self::Unreadable
            | Self::Flood
            | Self::StopTimeout
            | Self::SttRestarted => Renew,
        }
    }

    /// Gives the status for viewers while it lasts, with a machine-readable reason.
    pub fn status(&self) -> (Status, &'static str) {
        let status = match self {
            Self::Stalled => Status::Stalled,
            _ if matches!(self.reaction(), Reaction::Refused | Reaction::RateLimited) => Status::Degraded,
            _ => Status::Reconnecting,
        };
        (status, self.as_str())
    }

    /// The label in metrics and the reason in statuses.
    pub fn as_str(&self) -> &'static str {
        match self {
            Self::Unauthorized { .. } => "unauthorized",
            Self::PaymentRequired => "payment_required",
            Self::RateLimited { .. } => "rate_limited",
            Self::QuotaExceeded => "quota_exceeded",
            Self::BadRequest { .. } => "bad_request",
            Self::Unavailable { .. } => "stt_unavailable",
            Self::Network(_) => "network",
            Self::Timeout => "timeout",
            Self::Protocol(_) => "protocol",
            Self::SessionGone { .. } => "session_expired",
            Self::Closed { .. } => "stt_closed",
            Self::HalfOpen | Self::Unacknowledged => "no_acknowledgement",
            Self::Stalled => "stt_stalled",
            Self::Forgotten => "stt_forgot_audio",
            Self::Unreadable => "stt_unreadable",
            Self::Flood => "stt_flood",
            Self::SessionBudget => "session_budget",
            Self::WindowOverflow => "window_overflow",
            Self::StopTimeout => "stop_timeout",
            Self::SttRestarted => "stt_restarted",
        }
    }
}

#[cfg(test)]
mod tests {
    use tokio::time::Instant;

    use super::*;

    #[test]
    fn every_close_code_and_status_has_its_reaction() {
        use Reaction::*;
        let closes = [(1000, Renew), (1001, Renew), (1002, Resume), (1006, Resume), (1011, Resume), (4399, Resume)];
        let final_ones = [(4400, Renew), (4403, Renew), (4499, Renew), (4500, Resume), (9999, Resume)];
        for (code, reaction) in closes.into_iter().chain(final_ones) {
            assert_eq!(Fault::Closed { code }.reaction(), reaction, "{code}");
        }
        let posts =
            [(400, Refused), (401, Refused), (402, Refused), (403, Refused), (422, Refused), (429, RateLimited)];
        for (status, reaction) in posts.into_iter().chain([(500, Resume), (503, Resume)]) {
            assert_eq!(Fault::from_status(status, None, String::new()).reaction(), reaction, "{status}");
        }
        for (status, reaction) in [(401, Renew), (403, Renew), (404, Renew), (503, Resume), (429, Resume)] {
            assert_eq!(Fault::from_upgrade(status).reaction(), reaction, "{status}");
        }
        let patient = Fault::from_status(429, Some(Duration::from_secs(86_400)), String::new());
        assert_eq!(patient, Fault::RateLimited { retry_after: Some(MAX_RETRY_AFTER) });
    }

    #[test]
    fn an_allowance_bounds_every_minute() {
        let (start, ms) = (Instant::now(), Duration::from_millis);
        let mut allowance = Timing::default().allowance(SESSION_BURST, SESSION_INTERVAL_MS);
        let taken: Vec<u64> = (0..1_200_000).step_by(500).filter(|at| allowance.take(start + ms(*at))).collect();
        let most =
            taken.iter().map(|from| taken.iter().filter(|at| (*from..from + 60_000).contains(*at)).count()).max();
        assert_eq!(most, Some(11));
        assert_eq!(taken.len(), SESSION_BURST as usize + 1_200_000 / SESSION_INTERVAL_MS as usize - 1);
        let rested = start + ms(1_200_000) + ms(SESSION_INTERVAL_MS) * SESSION_BURST;
        assert!((0..SESSION_BURST).all(|_| allowance.take(rested)) && !allowance.take(rested));
    }

    #[test]
    fn the_last_delay_of_a_table_goes_on() {
        let timing = Timing::default();
        let delays: Vec<_> = (0..7).map(|n| timing.delay(RESUME_DELAYS_MS, n).as_millis()).collect();
        assert_eq!(delays, [0, 300, 600, 1200, 2000, 2000, 2000]);
    }
}
