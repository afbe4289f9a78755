//! A connection with its socket: [`Connection`] while it runs on an arbiter, [`Publisher`] while it moves to another.

use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::BytesMut;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;

use super::connections::ConnectionGuard;
use super::ended::{Ended, Line};
use super::event::{Event, Phase};
use super::ignored::Ignored;
use super::protocol::{Protocol, ProtocolError};
use crate::metrics::Metrics;
use crate::transcript::Slug;

/// One read at most. Audio is copied out of the buffer, video is skipped in it.
const READ_BYTES: usize = 32 << 10;
/// Answers that a peer has not taken yet: an acknowledgement has 16 bytes. So many are written before more is read.
const MANY_UNSENT_BYTES: usize = 64 << 10;
const MAX_UNSENT_BYTES: usize = 256 << 10;
/// Time that a refused or finished peer may take to read the last status and close.
const GOODBYE: Duration = Duration::from_secs(2);

/// A connection that waits for the answer to its publish. It can move to another arbiter: a tokio socket would die
/// with the one that it was made on, so the socket travels as a plain one.
pub struct PendingPublish {
    socket: std::net::TcpStream,
    state: State,
}

/// A connection on its arbiter.
pub struct Connection {
    socket: TcpStream,
    state: State,
}

struct State {
    protocol: Protocol,
    /// Read, but not yet understood.
    input: BytesMut,
    /// Answers that are not yet written.
    unsent: BytesMut,
    /// Bytes read.
    received: u64,
    peer: SocketAddr,
    metrics: Arc<Metrics>,
    /// Kinds of what was ignored so far.
    ignored: Vec<Ignored>,
    /// The connection counts for as long as this lives.
    guard: ConnectionGuard,
}

impl State {
    fn say_refused(&self, reason: &'static str, why: &str) {
        let line = Line { peer: self.peer, session: None, phase: self.protocol.phase(), reason };
        self.guard.ends().refused(&line, why);
    }
}

impl PendingPublish {
    /// As [`Connection::say_refused`].
    pub fn say_refused(&self, reason: &'static str, why: &str) {
        self.state.say_refused(reason, why);
    }

    pub fn peer(&self) -> SocketAddr {
        self.state.peer
    }

    /// Onto this arbiter. Needs its tokio runtime.
    pub fn into_connection(self) -> io::Result<Connection> {
        Ok(Connection { socket: TcpStream::from_std(self.socket)?, state: self.state })
    }

    /// Tells the peer why it may not publish, and closes. Needs a tokio runtime.
    pub async fn refuse(self: Box<Self>, reason: &str) {
        let peer = self.peer();
        match self.into_connection() {
            Ok(wire) => wire.refuse(reason).await,
            Err(error) => tracing::debug!(%peer, %error, "rtmp socket lost before its refusal"),
        }
    }
}

impl fmt::Debug for PendingPublish {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PendingPublish").field("peer", &self.state.peer).finish_non_exhaustive()
    }
}

impl Connection {
    pub fn new(socket: TcpStream, peer: SocketAddr, guard: ConnectionGuard, metrics: Arc<Metrics>) -> Self {
        let state = State {
            protocol: Protocol::default(),
            input: BytesMut::new(),
            unsent: BytesMut::new(),
            received: 0,
            peer,
            metrics,
            ignored: Vec::new(),
            guard,
        };
        Self { socket, state }
    }

    pub fn into_pending(self) -> io::Result<PendingPublish> {
        Ok(PendingPublish { socket: self.socket.into_std()?, state: self.state })
    }

    pub fn peer(&self) -> SocketAddr {
        self.state.peer
    }

    pub fn phase(&self) -> Phase {
        self.state.protocol.phase()
    }

    /// Tells the operator how it ended.
    pub fn say_ended(&self, session: Option<&Slug>, ended: &Ended) {
        let line = Line { peer: self.peer(), session, phase: self.phase(), reason: ended.reason.as_str() };
        self.state.guard.ends().ended(&line, ended);
    }

    /// Tells the operator that its publish was refused. `reason` is the label in metrics.
    pub fn say_refused(&self, reason: &'static str, why: &str) {
        self.state.say_refused(reason, why);
    }

    pub fn received_bytes(&self) -> u64 {
        self.state.received
    }

    pub fn is_handshaken(&self) -> bool {
        self.state.protocol.is_handshaken()
    }

    /// Lets the publish begin; see [`Protocol::accept`].
    pub fn accept(&mut self) {
        self.state.protocol.accept();
    }

    /// The next event in what was read already. What is ignored is counted here.
    pub fn next_event(&mut self) -> Result<Option<Event>, ProtocolError> {
        loop {
            match self.state.protocol.next(&mut self.state.input)? {
                Some(Event::Ignored(what)) => self.ignore(what),
                event => return Ok(event),
            }
        }
    }

    /// Counts what is not used, and says so once a connection.
    pub fn ignore(&mut self, what: Ignored) {
        let state = &mut self.state;
        state.metrics.rtmp_ignored_total.with_label_values(&[what.as_str()]).inc();
        if !state.ignored.contains(&what) {
            state.ignored.push(what);
            tracing::info!(peer = %state.peer, kind = what.as_str(), "ignored from now on: {}", what.sentence());
        }
    }

    /// Writes what can be written and reads once. False at the end of the stream. Cancel-safe.
    ///
    /// A publisher that never reads (librtmp) is read all the same: what it does not take is kept, up to a limit.
    pub async fn exchange(&mut self) -> io::Result<bool> {
        let state = &mut self.state;
        state.input.reserve(READ_BYTES);
        if state.unsent.len() + state.protocol.output_bytes() < MANY_UNSENT_BYTES {
            match self.socket.try_read_buf(&mut state.input) {
                Ok(count) => {
                    let open = self.count(count);
                    // A publisher faster than we read must not keep the arbiter to itself.
                    tokio::task::yield_now().await;
                    return Ok(open);
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => state.protocol.caught_up(),
                Err(error) => return Err(error),
            }
        }
        state.unsent.extend_from_slice(&state.protocol.take_output());
        if state.unsent.len() > MAX_UNSENT_BYTES {
            return Err(io::Error::other("the peer does not read its answers"));
        }
        loop {
            let (mut reading, mut writing) = self.socket.split();
            tokio::select! {
                biased;
                written = writing.write_buf(&mut state.unsent), if !state.unsent.is_empty() => {
                    if written? == 0 {
                        return Ok(false);
                    }
                }
                read = reading.read_buf(&mut state.input) => {
                    let count = read?;
                    return Ok(self.count(count));
                }
            }
        }
    }

    fn count(&mut self, read: usize) -> bool {
        self.state.received += read as u64;
        self.state.metrics.rtmp_bytes_received_total.inc_by(read as u64);
        read > 0
    }

    /// Tells the peer that something is wrong with its audio. It is sent with the next exchange.
    pub fn warn(&mut self, text: &str) {
        self.state.protocol.warn(text);
    }

    /// Tells the peer why its publish ends, and closes.
    pub async fn refuse(mut self, reason: &str) {
        self.state.protocol.refuse(reason);
        self.close().await;
    }

    /// After an unpublish the peer is about to close: let it, or its sink reports "connection closed remotely"
    /// (GStreamer's rtmp2sink, LiveKit Egress's own).
    pub async fn let_go(mut self) {
        let unsent = self.state.protocol.take_output();
        self.state.unsent.extend_from_slice(&unsent);
        let goodbye = async {
            self.socket.write_all_buf(&mut self.state.unsent).await?;
            let mut rest = [0; 4096];
            while self.socket.read(&mut rest).await? > 0 {}
            Ok::<_, io::Error>(())
        };
        let _ = timeout(GOODBYE, goodbye).await;
    }

    /// Sends the last answers and waits a moment for the peer to close. A socket closed with unread input is reset,
    /// and the peer may then never see them.
    pub async fn close(mut self) {
        self.state.unsent.extend_from_slice(&self.state.protocol.take_output());
        let goodbye = async {
            self.socket.write_all_buf(&mut self.state.unsent).await?;
            self.socket.shutdown().await?;
            let mut rest = [0; 4096];
            while self.socket.read(&mut rest).await? > 0 {}
            Ok::<_, io::Error>(())
        };
        // Whatever comes of it, the connection ends here.
        let _ = timeout(GOODBYE, goodbye).await;
    }
}
