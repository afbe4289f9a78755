//! One peer connection, without I/O: descriptions and candidates in and out, datagrams in and out.
//!
//! Its contract: after any call that takes something, [`Peer::drain`] is called; it gives what is to be sent and says
//! when [`Peer::tick`] is due.

use std::net::{IpAddr, SocketAddr};
use std::time::Instant;

use str0m::change::{SdpAnswer, SdpOffer, SdpPendingOffer};
use str0m::channel::{ChannelConfig, ChannelId, Reliability};
use str0m::net::{Protocol, Receive};
use str0m::{Candidate, Event, IceConnectionState, Input, Output, Rtc, RtcConfig};

use super::crypto;
use crate::livekit::wire::number;

/// The channel for what must arrive, and the one for what need not.
pub const RELIABLE: &str = "_reliable";
const LOSSY: &str = "_lossy";
/// Candidates that wait for the description they belong to, and all that are looked at.
const MAX_CANDIDATES: usize = 64;

/// Why a peer connection cannot go on.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PeerError {
    #[error("the server's session description cannot be used: {0}")]
    Description(String),
    #[error("WebRTC failed: {0}")]
    Rtc(String),
}

impl PeerError {
    fn rtc(error: impl ToString) -> Self {
        Self::Rtc(error.to_string().chars().take(200).collect())
    }

    fn description(error: impl ToString) -> Self {
        Self::Description(error.to_string().chars().take(200).collect())
    }
}

/// Bytes to be sent by UDP.
#[derive(Debug, PartialEq, Eq)]
pub struct Datagram {
    pub to: SocketAddr,
    pub bytes: Vec<u8>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PeerEvent {
    /// ICE and DTLS are done.
    Connected,
    Disconnected,
    /// [`Peer::send`] can be used.
    ChannelOpen,
}

/// One of a participant's two connections.
pub struct Peer {
    /// Tens of kilobytes, which futures that hold it would copy.
    rtc: Box<Rtc>,
    target: i32,
    /// Of the socket, whatever its address.
    port: u16,
    locals: Vec<IpAddr>,
    is_described: bool,
    waiting: Vec<Candidate>,
    candidates: usize,
    pending: Option<SdpPendingOffer>,
    reliable: Option<ChannelId>,
    is_open: bool,
    is_connected: bool,
}

impl Peer {
    /// The connection that the server offers, by which it would send media.
    pub fn subscriber(port: u16) -> Self {
        Self::new(number::SUBSCRIBER, port)
    }

    /// The connection that we offer, by which data goes into the room; with its offer.
    pub fn publisher(port: u16) -> Result<(Self, String), PeerError> {
        let mut peer = Self::new(number::PUBLISHER, port);
        let mut changes = peer.rtc.sdp_api();
        let channel = |label: &str, reliability| ChannelConfig {
            label: label.to_owned(),
            ordered: true,
            reliability,
            ..ChannelConfig::default()
        };
        let reliable = changes.add_channel_with_config(channel(RELIABLE, Reliability::Reliable));
        // The server waits for both.
        changes.add_channel_with_config(channel(LOSSY, Reliability::MaxRetransmits { retransmits: 0 }));
        let (offer, pending) = changes.apply().ok_or_else(|| PeerError::rtc("a channel is no change"))?;
        peer.reliable = Some(reliable);
        peer.pending = Some(pending);
        Ok((peer, offer.to_sdp_string()))
    }

    fn new(target: i32, port: u16) -> Self {
        let mut config = RtcConfig::new().set_crypto_provider(crypto::provider());
        if let Some(certificate) = crypto::certificate() {
            config = config.set_dtls_cert(certificate);
        }
        let rtc = Box::new(config.clear_codecs().enable_opus(true, true).build(Instant::now()));
        Self {
            rtc,
            target,
            port,
            locals: Vec::new(),
            is_described: false,
            waiting: Vec::new(),
            candidates: 0,
            pending: None,
            reliable: None,
            is_open: false,
            is_connected: false,
        }
    }

    /// `number::SUBSCRIBER` or `number::PUBLISHER`.
    pub fn target(&self) -> i32 {
        self.target
    }

    pub fn is_connected(&self) -> bool {
        self.is_connected
    }

    /// Answers the server's offer, its first or a later one.
    pub fn answer(&mut self, offer: &str) -> Result<String, PeerError> {
        let offer = SdpOffer::from_sdp_string(offer).map_err(PeerError::description)?;
        let answer = self.rtc.sdp_api().accept_offer(offer).map_err(PeerError::description)?;
        self.described();
        Ok(answer.to_sdp_string())
    }

    /// Takes the server's answer to our offer.
    pub fn accept(&mut self, answer: &str) -> Result<(), PeerError> {
        let Some(pending) = self.pending.take() else { return Ok(()) };
        let answer = SdpAnswer::from_sdp_string(answer).map_err(PeerError::description)?;
        self.rtc.sdp_api().accept_answer(pending, answer).map_err(PeerError::description)?;
        self.described();
        Ok(())
    }

    fn described(&mut self) {
        self.is_described = true;
        for candidate in std::mem::take(&mut self.waiting) {
            self.rtc.add_remote_candidate(candidate);
        }
    }

    /// Takes a candidate of the server's. Only UDP over IPv4 is tried. Answers with a candidate of ours to tell the server,
    /// when it is a new one.
    pub fn remote_candidate(
        &mut self,
        candidate: &str,
        local_towards: impl FnOnce(SocketAddr) -> Option<IpAddr>,
    ) -> Option<String> {
        let candidate = Candidate::from_sdp_string(candidate).ok()?;
        let is_usable = candidate.proto() == Protocol::Udp && candidate.addr().is_ipv4();
        if !is_usable || self.candidates >= MAX_CANDIDATES {
            return None;
        }
        self.candidates += 1;
        let ours = local_towards(candidate.addr()).and_then(|ip| self.add_local(ip));
        if self.is_described {
            self.rtc.add_remote_candidate(candidate);
        } else {
            self.waiting.push(candidate);
        }
        ours
    }

    fn add_local(&mut self, ip: IpAddr) -> Option<String> {
        if self.locals.contains(&ip) {
            return None;
        }
        self.locals.push(ip);
        let candidate = Candidate::host(SocketAddr::new(ip, self.port), Protocol::Udp).ok()?;
        self.rtc.add_local_candidate(candidate).map(Candidate::to_sdp_string)
    }

    /// Takes a datagram if it is this connection's.
    pub fn receive(&mut self, from: SocketAddr, to: IpAddr, bytes: &[u8]) -> Result<bool, PeerError> {
        let to = SocketAddr::new(to, self.port);
        let Ok(received) = Receive::new(Protocol::Udp, from, to, bytes) else { return Ok(false) };
        let input = Input::Receive(Instant::now(), received);
        if !self.rtc.accepts(&input) {
            return Ok(false);
        }
        self.rtc.handle_input(input).map_err(PeerError::rtc)?;
        Ok(true)
    }

    /// Time has passed.
    pub fn tick(&mut self) -> Result<(), PeerError> {
        self.rtc.handle_input(Input::Timeout(Instant::now())).map_err(PeerError::rtc)
    }

    /// Takes out everything that is to be sent or known; answers when [`Self::tick`] is due.
    pub fn drain(&mut self, datagrams: &mut Vec<Datagram>, events: &mut Vec<PeerEvent>) -> Result<Instant, PeerError> {
        loop {
            match self.rtc.poll_output().map_err(PeerError::rtc)? {
                Output::Timeout(at) => return Ok(at),
                Output::Transmit(sent) => {
                    datagrams.push(Datagram { to: sent.destination, bytes: sent.contents.to_vec() });
                }
                Output::Event(event) => events.extend(self.understand(&event)),
            }
        }
    }

    fn understand(&mut self, event: &Event) -> Option<PeerEvent> {
        match event {
            Event::Connected => {
                self.is_connected = true;
                Some(PeerEvent::Connected)
            }
            Event::IceConnectionStateChange(IceConnectionState::Disconnected) | Event::Closed => {
                (self.is_connected, self.is_open) = (false, false);
                Some(PeerEvent::Disconnected)
            }
            Event::ChannelOpen(id, _) if Some(*id) == self.reliable => {
                self.is_open = true;
                Some(PeerEvent::ChannelOpen)
            }
            Event::ChannelClose(id) if Some(*id) == self.reliable => {
                self.is_open = false;
                Some(PeerEvent::Disconnected)
            }
            _ => None,
        }
    }

    /// The reliable channel is open.
    pub fn is_open(&self) -> bool {
        self.is_open
    }

    /// Bytes that wait in the reliable channel.
    pub fn buffered(&mut self) -> usize {
        let Some(id) = self.reliable else { return 0 };
        self.rtc.channel(id).map_or(0, |mut channel| channel.buffered_amount())
    }

    /// Sends one message on the reliable channel. False when it takes no more for now.
    pub fn send(&mut self, message: &[u8]) -> Result<bool, PeerError> {
        let Some(id) = self.reliable.filter(|_| self.is_open) else { return Ok(false) };
        let Some(mut channel) = self.rtc.channel(id) else { return Ok(false) };
        channel.write(true, message).map_err(PeerError::rtc)
    }

    /// Says goodbye; what it has to say comes with the next [`Self::drain`].
    pub fn close(&mut self) {
        // It is over either way.
        let _ = self.rtc.close();
    }
}

/// What a datagram of a peer connection holds, by its first bytes (RFC 7983 and RFC 5761).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Content {
    Media,
    /// Reports about media.
    Reports,
    /// ICE or DTLS.
    Connection,
}

impl Content {
    pub fn of(datagram: &[u8]) -> Self {
        match datagram {
            [128..=191, 192..=223, ..] => Self::Reports,
            [128..=191, ..] => Self::Media,
            _ => Self::Connection,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HERE: IpAddr = IpAddr::V4(std::net::Ipv4Addr::LOCALHOST);

    #[test]
    fn media_is_told_from_what_keeps_the_connection() {
        assert_eq!(Content::of(&[0x80, 111, 0]), Content::Media);
        assert_eq!(Content::of(&[0x90, 0x80 | 111, 0]), Content::Media);
        assert_eq!(Content::of(&[0x80, 200, 0]), Content::Reports);
        assert_eq!(Content::of(&[22, 254, 253]), Content::Connection);
        assert_eq!(Content::of(&[0, 1, 0]), Content::Connection);
        assert_eq!(Content::of(&[]), Content::Connection);
    }

    #[test]
    fn candidates_that_cannot_be_used_are_left_out_and_have_an_end() {
        let mut peer = Peer::subscriber(5000);
        let mut take = |candidate: &str| peer.remote_candidate(candidate, |_| Some(HERE));
        for odd in [
            "",
            "candidate:",
            "candidate:1 1 tcp 1671430143 10.0.0.1 7881 typ host tcptype passive",
            "candidate:1 1 udp 2130706431 fe80::1 7882 typ host",
            "candidate:1 1 udp 2130706431 nowhere.local 7882 typ host",
        ] {
            assert_eq!(take(odd), None, "{odd}");
        }
        let ours = take("candidate:1 1 udp 2130706431 127.0.0.1 7882 typ host").unwrap();
        assert!(ours.contains(" 127.0.0.1 5000 typ host"), "{ours}");
        for n in 0..500 {
            assert_eq!(take(&format!("candidate:1 1 udp 2130706431 127.0.0.1 {} typ host", 8000 + n)), None);
        }
        assert_eq!(peer.waiting.len(), MAX_CANDIDATES);
    }

    #[test]
    fn a_description_that_is_none_is_refused_with_its_reason() {
        let mut peer = Peer::subscriber(5000);
        for sdp in ["", "v=0", "hello", "v=0\r\no=- 1 2 IN IP4 127.0.0.1\r\ns=-\r\nt=0 0\r\n"] {
            assert!(matches!(peer.answer(sdp), Err(PeerError::Description(_))), "{sdp}");
        }
        let (mut publisher, offer) = Peer::publisher(5000).unwrap();
        assert!(offer.contains("m=application"), "{offer}");
        assert!(publisher.accept("no answer").is_err());
        assert_eq!(publisher.accept("no answer"), Ok(()), "there is no offer any more");
    }

    #[test]
    fn datagrams_of_strangers_are_not_taken() {
        let mut peer = Peer::subscriber(5000);
        let from: SocketAddr = "127.0.0.1:9".parse().unwrap();
        for bytes in [&b""[..], b"GET / HTTP/1.1", &[0; 20], &[22, 254, 253, 0, 0], &[255; 1500]] {
            assert_eq!(peer.receive(from, HERE, bytes), Ok(false));
        }
        assert_eq!(peer.send(b"x"), Ok(false));
    }
}
