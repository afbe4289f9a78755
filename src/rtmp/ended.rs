//! Ends of connections: one table says it to the encoder, to the operator and in metrics.

use std::collections::HashMap;
use std::fmt;
use std::io::ErrorKind;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use parking_lot::Mutex;
use tokio::time::Instant;

use super::chunk::ChunkError;
use super::event::Phase;
use super::protocol::ProtocolError;
use super::stranger::Stranger;
use crate::transcript::Slug;

/// Why a connection ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reason {
    // what came was no RTMP
    Tls,
    Http,
    EncryptedRtmp,
    ProxyProtocol,
    Handshake,
    // nothing came, or no more
    HandshakeTimeout,
    PublishTimeout,
    NoAudio,
    Idle,
    // what came was no publish that can be read
    Chunks,
    TooLong,
    Commands,
    Flood,
    Play,
    SecondPublish,
    UnsupportedAudio,
    // by order of the server
    Displaced,
    Draining,
    SessionEnded,
    // by the peer or the network
    Unpublished,
    Eof,
    Reset,
    Socket,
    // a fault of ours
    Server,
}

/// The name in the operator's log.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Level {
    Info,
    Warn,
}

/// A row of [`TABLE`].
struct Row {
    reason: Reason,
    label: &'static str,
    level: Level,
    /// The remedy; empty where the encoder knows, or cannot be told.
    help: &'static str,
}

const fn row(reason: Reason, label: &'static str, level: Level, help: &'static str) -> Row {
    Row { reason, label, level, help }
}

const TABLE: [Row; 24] = [
    row(Reason::Tls, "tls", Level::Info, "this port speaks plain RTMP: use rtmp://, not rtmps:// or https://"),
    row(Reason::Http, "http", Level::Info, "this port speaks RTMP: pages and API have the HTTP port"),
    row(Reason::EncryptedRtmp, "rtmpe", Level::Info, "rtmpe:// is not supported: use rtmp://"),
    row(Reason::ProxyProtocol, "proxy_protocol", Level::Info, "switch the PROXY protocol of the load balancer off"),
    row(Reason::Handshake, "handshake", Level::Info, "this port speaks RTMP: use rtmp://"),
    row(Reason::HandshakeTimeout, "handshake_timeout", Level::Info, ""),
    row(Reason::PublishTimeout, "publish_timeout", Level::Info, "send connect, createStream and publish"),
    row(Reason::NoAudio, "no_audio", Level::Info, "check that the encoder has an audio track"),
    row(Reason::Idle, "idle", Level::Info, "check the encoder and its network, then publish again"),
    row(Reason::Chunks, "protocol", Level::Info, "the bytes are no RTMP chunks any more: publish again"),
    row(Reason::TooLong, "too_long", Level::Info, "send shorter messages"),
    row(Reason::Commands, "command", Level::Info, "send commands as the RTMP specification has them"),
    row(Reason::Flood, "flood", Level::Info, "send audio, not commands"),
    row(Reason::Play, "play", Level::Info, "captions are read by WebSocket or SSE from the HTTP port"),
    row(Reason::SecondPublish, "second_publish", Level::Info, ""),
    row(Reason::UnsupportedAudio, "unsupported_audio", Level::Info, ""),
    row(Reason::Displaced, "displaced", Level::Info, "only one encoder can publish a room"),
    row(Reason::Draining, "draining", Level::Info, "connect again in a moment"),
    row(Reason::SessionEnded, "session_ended", Level::Info, "publish again to begin a new one"),
    row(Reason::Unpublished, "unpublished", Level::Info, ""),
    row(Reason::Eof, "eof", Level::Info, ""),
    row(Reason::Reset, "reset", Level::Info, ""),
    row(Reason::Socket, "socket", Level::Info, ""),
    row(Reason::Server, "server", Level::Warn, "this is a fault of the server: publish again"),
];

impl Reason {
    fn row(self) -> &'static Row {
        TABLE.iter().find(|row| row.reason == self).expect("every reason has a row")
    }

    /// The label in metrics.
    pub fn as_str(self) -> &'static str {
        self.row().label
    }

    pub fn all() -> impl Iterator<Item = Self> {
        TABLE.iter().map(|row| row.reason)
    }

    /// The end is not as it should be.
    pub fn is_fault(self) -> bool {
        use Reason::*;
        !matches!(self, Unpublished | Eof | Reset | Displaced | Draining | SessionEnded)
    }

    /// The peer is there and does not know it yet.
    pub fn is_announced(self) -> bool {
        !matches!(self, Self::Unpublished | Self::Eof | Self::Reset | Self::Socket)
    }
}

/// An end with its particulars.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ended {
    pub reason: Reason,
    /// The fact, in words.
    pub what: String,
}

impl Ended {
    pub fn new(reason: Reason, what: impl Into<String>) -> Self {
        Self { reason, what: what.into() }
    }
}

impl From<std::io::Error> for Ended {
    fn from(error: std::io::Error) -> Self {
        let reset = matches!(error.kind(), ErrorKind::ConnectionReset | ErrorKind::BrokenPipe);
        Self::new(if reset { Reason::Reset } else { Reason::Socket }, error.to_string())
    }
}

impl From<ProtocolError> for Ended {
    fn from(error: ProtocolError) -> Self {
        let reason = match &error {
            ProtocolError::Stranger(Stranger::Tls) => Reason::Tls,
            ProtocolError::Stranger(Stranger::Http) => Reason::Http,
            ProtocolError::Stranger(Stranger::EncryptedRtmp) => Reason::EncryptedRtmp,
            ProtocolError::Stranger(Stranger::ProxyProtocol) => Reason::ProxyProtocol,
            ProtocolError::Stranger(Stranger::Other(_)) | ProtocolError::Handshake => Reason::Handshake,
            ProtocolError::Chunk(ChunkError::TooLong { .. }) => Reason::TooLong,
            ProtocolError::Chunk(_) => Reason::Chunks,
            ProtocolError::Amf(_) => Reason::Commands,
            ProtocolError::TooManyCommands => Reason::Flood,
            ProtocolError::Play => Reason::Play,
            ProtocolError::SecondPublish => Reason::SecondPublish,
            ProtocolError::Library => Reason::Server,
        };
        Self::new(reason, error.to_string())
    }
}

/// The fact, and what to do about it.
impl fmt::Display for Ended {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.reason.row().help {
            "" => f.write_str(&self.what),
            help => write!(f, "{}; {help}", self.what),
        }
    }
}

/// Lines in the log of one address: so many at once, then one in each span.
const BURST: u32 = 30;
const SPAN: Duration = Duration::from_secs(2);
/// Addresses that are remembered.
const MAX_ADDRESSES: usize = 1024;

/// Writes one line for each end, and not too many for an address.
#[derive(Default)]
pub struct EndLog {
    addresses: Mutex<HashMap<IpAddr, Lines>>,
}

struct Lines {
    left: u32,
    refilled: Instant,
    suppressed: u64,
}

/// The circumstances of an end, besides its sentence.
pub struct Line<'a> {
    pub peer: SocketAddr,
    /// The stream whose publish was accepted.
    pub session: Option<&'a Slug>,
    pub phase: Phase,
    /// The label in metrics.
    pub reason: &'a str,
}

impl EndLog {
    /// The end of a connection, by itself or by us.
    pub fn ended(&self, line: &Line, ended: &Ended) {
        self.say(line, ended.reason.row().level, &ended.to_string());
    }

    /// A connection or a publish was not let in.
    pub fn refused(&self, line: &Line, why: &str) {
        self.say(line, Level::Info, why);
    }

    fn say(&self, line: &Line, level: Level, error: &str) {
        let Some(suppressed) = self.take(line.peer.ip(), Instant::now()) else { return };
        let Line { peer, session, phase, reason } = line;
        let (phase, session) = (phase.as_str(), session.map(tracing::field::display));
        match level {
            Level::Info => tracing::info!(%peer, session, phase, reason, error, suppressed, "rtmp connection ended"),
            Level::Warn => tracing::warn!(%peer, session, phase, reason, error, suppressed, "rtmp connection ended"),
        }
    }

    /// The lines of this address that were left out since its last one, when there may be another.
    fn take(&self, ip: IpAddr, now: Instant) -> Option<u64> {
        let mut addresses = self.addresses.lock();
        if addresses.len() >= MAX_ADDRESSES && !addresses.contains_key(&ip) {
            addresses.retain(|_, lines| now.duration_since(lines.refilled) < SPAN * BURST);
            if addresses.len() >= MAX_ADDRESSES {
                addresses.clear();
            }
        }
        let lines = addresses.entry(ip).or_insert(Lines { left: BURST, refilled: now, suppressed: 0 });
        let spans = (now.duration_since(lines.refilled).as_millis() / SPAN.as_millis()) as u32;
        if spans > 0 {
            lines.left = lines.left.saturating_add(spans).min(BURST);
            lines.refilled = now;
        }
        if lines.left == 0 {
            lines.suppressed += 1;
            return None;
        }
        lines.left -= 1;
        Some(std::mem::take(&mut lines.suppressed))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_reason_has_one_row_and_one_label() {
        let mut labels: Vec<_> = TABLE.iter().map(|row| row.label).collect();
        labels.sort_unstable();
        labels.dedup();
        assert_eq!(labels.len(), TABLE.len());
        // The compiler knows all of them: the last has the highest number.
        let missing = (0..=Reason::Server as usize).find(|n| !TABLE.iter().any(|row| row.reason as usize == *n));
        assert_eq!(missing, None);
    }

    #[test]
    fn an_address_has_so_many_lines_and_the_rest_is_counted() {
        let (log, now) = (EndLog::default(), Instant::now());
        let [one, other] = ["10.0.0.1", "10.0.0.2"].map(|ip| ip.parse().unwrap());
        for _ in 0..BURST {
            assert_eq!(log.take(one, now), Some(0));
        }
        assert_eq!((log.take(one, now), log.take(one, now)), (None, None));
        assert_eq!(log.take(other, now), Some(0));
        assert_eq!(log.take(one, now + SPAN), Some(2));
        assert_eq!(log.take(one, now + SPAN), None);
    }

    #[test]
    fn addresses_are_forgotten() {
        let (log, now) = (EndLog::default(), Instant::now());
        for n in 0..3 * MAX_ADDRESSES as u32 {
            log.take(IpAddr::V4(n.into()), now);
        }
        assert!(log.addresses.lock().len() <= MAX_ADDRESSES);
    }
}
