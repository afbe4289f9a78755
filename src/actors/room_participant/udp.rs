//! The peer connections of a room's participant, each with a UDP socket of its own: a server may have one port for
//! everything, and by its addresses alone a datagram must belong to one connection.

use std::collections::HashMap;
use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::time::Duration;

use tokio::net::UdpSocket;
use tokio::time::Instant;

use crate::livekit::rtc::peer::Content;
use crate::livekit::rtc::{Datagram, Peer, PeerError, PeerEvent};
use crate::livekit::wire::number;

/// Datagrams are not longer on any path that WebRTC uses.
const MAX_DATAGRAM_BYTES: usize = 2000;
/// Addresses of the server whose route is remembered.
const MAX_ROUTES: usize = 256;
/// Nothing is due.
const LATER: Duration = Duration::from_secs(3600);

/// Why UDP is given up for a connection.
#[derive(Debug, thiserror::Error)]
pub(super) enum UdpError {
    #[error("no UDP socket: {0}")]
    Socket(#[from] io::Error),
    #[error(transparent)]
    Peer(#[from] PeerError),
}

/// See the module.
pub(super) struct Udp {
    subscriber: Way,
    publisher: Option<Way>,
    routes: HashMap<IpAddr, Option<IpAddr>>,
    pub(super) media_bytes: u64,
}

/// One connection and its socket.
struct Way {
    socket: UdpSocket,
    peer: Peer,
    due: Instant,
    buffer: Box<[u8; MAX_DATAGRAM_BYTES]>,
}

/// A datagram has come on a way, or something is due there.
enum Woken {
    Received(usize, SocketAddr),
    Due,
}

impl Way {
    fn new(socket: UdpSocket, peer: Peer) -> Self {
        Self { socket, peer, due: Instant::now(), buffer: Box::new([0; MAX_DATAGRAM_BYTES]) }
    }

    /// Can be dropped at any time.
    async fn woken(&mut self) -> Woken {
        loop {
            tokio::select! {
                received = self.socket.recv_from(&mut self.buffer[..]) => match received {
                    Ok((length, from)) => return Woken::Received(length, from),
                    // What an earlier datagram has met: a port that nobody listens at.
                    Err(_) => tokio::task::yield_now().await,
                },
                () = tokio::time::sleep_until(self.due) => return Woken::Due,
            }
        }
    }

    fn flush(&mut self, happened: &mut Vec<(i32, PeerEvent)>) -> Result<(), PeerError> {
        let (mut datagrams, mut events) = (Vec::new(), Vec::new());
        let due = self.peer.drain(&mut datagrams, &mut events)?;
        self.due = Instant::from_std(due).min(Instant::now() + LATER);
        happened.extend(events.into_iter().map(|event| (self.peer.target(), event)));
        for Datagram { to, bytes } in datagrams {
            // A datagram that finds the way full is lost, as on the way.
            let _ = self.socket.try_send_to(&bytes, to);
        }
        Ok(())
    }
}

async fn socket() -> io::Result<(UdpSocket, u16)> {
    let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)).await?;
    let port = socket.local_addr()?.port();
    Ok((socket, port))
}

impl Udp {
    /// With the offer of the connection by which captions go out, if they do.
    pub(super) async fn open(publishes: bool) -> Result<(Self, Option<String>), UdpError> {
        let (socket_in, port) = socket().await?;
        let subscriber = Way::new(socket_in, Peer::subscriber(port));
        let mut publisher = None;
        let mut offer = None;
        if publishes {
            let (socket_out, port) = socket().await?;
            let (peer, description) = Peer::publisher(port)?;
            publisher = Some(Way::new(socket_out, peer));
            offer = Some(description);
        }
        Ok((Self { subscriber, publisher, routes: HashMap::new(), media_bytes: 0 }, offer))
    }

    pub(super) fn answer(&mut self, offer: &str) -> Result<String, UdpError> {
        Ok(self.subscriber.peer.answer(offer)?)
    }

    pub(super) fn accept(&mut self, answer: &str) -> Result<(), UdpError> {
        match &mut self.publisher {
            Some(way) => Ok(way.peer.accept(answer)?),
            None => Ok(()),
        }
    }

    /// Answers with a candidate of ours that the server should know.
    pub(super) fn candidate(&mut self, target: i32, candidate: &str) -> Option<String> {
        let way = match target {
            number::SUBSCRIBER => &mut self.subscriber,
            _ => self.publisher.as_mut()?,
        };
        let routes = &mut self.routes;
        way.peer.remote_candidate(candidate, |remote| route(routes, remote.ip()))
    }

    /// Waits for a datagram or for a moment that is due, and deals with it. Can be dropped at any time.
    pub(super) async fn step(&mut self) -> Result<(), UdpError> {
        let (is_subscriber, woken) = tokio::select! {
            woken = self.subscriber.woken() => (true, woken),
            woken = woken_of(&mut self.publisher) => (false, woken),
        };
        let way = match &mut self.publisher {
            Some(publisher) if !is_subscriber => publisher,
            _ => &mut self.subscriber,
        };
        match woken {
            Woken::Due => way.peer.tick()?,
            Woken::Received(length, from) => {
                let bytes = &way.buffer[..length];
                match Content::of(bytes) {
                    Content::Media => self.media_bytes += length as u64,
                    Content::Reports => {}
                    Content::Connection => {
                        let Some(to) = route(&mut self.routes, from.ip()) else { return Ok(()) };
                        way.peer.receive(from, to, bytes)?;
                    }
                }
            }
        }
        Ok(())
    }

    /// Sends what is to be sent, and gives what has happened, each with its target. After every other call.
    pub(super) fn flush(&mut self) -> Result<Vec<(i32, PeerEvent)>, UdpError> {
        let mut happened = Vec::new();
        self.subscriber.flush(&mut happened)?;
        if let Some(way) = &mut self.publisher {
            way.flush(&mut happened)?;
        }
        Ok(happened)
    }

    pub(super) fn is_connected(&self) -> bool {
        self.subscriber.peer.is_connected()
    }

    /// The channel of captions, once it is open.
    pub(super) fn channel(&mut self) -> Option<&mut Peer> {
        self.publisher.as_mut().map(|way| &mut way.peer).filter(|peer| peer.is_open())
    }

    pub(super) fn close(&mut self) {
        self.subscriber.peer.close();
        self.publisher.iter_mut().for_each(|way| way.peer.close());
        let _ = self.flush();
    }
}

async fn woken_of(way: &mut Option<Way>) -> Woken {
    match way {
        Some(way) => way.woken().await,
        None => std::future::pending().await,
    }
}

/// Our address on the way to `remote`.
fn route(routes: &mut HashMap<IpAddr, Option<IpAddr>>, remote: IpAddr) -> Option<IpAddr> {
    if routes.len() >= MAX_ROUTES && !routes.contains_key(&remote) {
        routes.clear();
    }
    *routes.entry(remote).or_insert_with(|| {
        // Nothing is sent: the system looks up its table.
        let socket = std::net::UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)).ok()?;
        socket.connect((remote, 9)).ok()?;
        Some(socket.local_addr().ok()?.ip())
    })
}
