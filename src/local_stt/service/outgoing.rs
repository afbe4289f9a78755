//! The way from a session to its client: what is wanted, when it is due, and what waits while nobody is connected.

use std::collections::VecDeque;
use std::time::Duration;

use actix::Recipient;
use bytestring::ByteString;
use tokio::time::Instant;

use super::breaker::Breaker;
use super::faults::Lasting;
use super::socket::ToSocket;
use crate::gladia::wire::{MessagesConfig, ServerEnvelope, ServerMessage};

/// Messages kept for a client that is away; the oldest go first.
const MAX_PENDING: usize = 4096;

/// A client's connection as its session sees it.
pub struct Connection {
    pub number: u64,
    pub socket: Recipient<ToSocket>,
    pub breaker: Option<Breaker>,
}

impl Connection {
    pub fn reset(&self) {
        match &self.breaker {
            Some(breaker) => breaker.reset(),
            None => drop(self.socket.try_send(ToSocket::Close(1011, "reset"))),
        }
    }
}

/// The messages of a session to its client, with those that wait while nobody is connected.
pub struct Outgoing {
    session: String,
    config: MessagesConfig,
    pub connection: Option<Connection>,
    pending: VecDeque<ByteString>,
    /// All results sent, for GET.
    pub log: Vec<String>,
    /// Messages that are not due yet, in order of time.
    held: VecDeque<(Instant, ServerMessage)>,
    stalled_until: Option<Instant>,
    /// A final that waits to change places with the next.
    swapped: Option<ServerMessage>,
}

impl Outgoing {
    pub fn new(session: String, config: MessagesConfig) -> Self {
        Self {
            session,
            config,
            connection: None,
            pending: VecDeque::new(),
            log: Vec::new(),
            held: VecDeque::new(),
            stalled_until: None,
            swapped: None,
        }
    }

    /// Attaches a client and gives it what it has missed.
    pub fn attach(&mut self, connection: Connection) {
        for text in self.pending.drain(..) {
            connection.socket.do_send(ToSocket::Text(text));
        }
        self.connection = Some(connection);
    }

    /// Results wait so long from now on; none lets those go that wait.
    pub fn stall(&mut self, duration: Duration) {
        let now = Instant::now();
        self.stalled_until = Some(now + duration);
        if duration.is_zero() {
            self.held.iter_mut().for_each(|(due, _)| *due = now);
        }
    }

    /// Takes a result on its way, faults and all.
    pub fn result(&mut self, message: ServerMessage, faults: &Lasting) {
        let is_final = matches!(&message, ServerMessage::Transcript { data } if data.is_final);
        if !is_final {
            return self.hold(message, Duration::ZERO);
        }
        if faults.withhold_finals {
            return;
        }
        let late = Duration::from_millis(faults.late_finals_ms);
        let mut due = vec![message];
        if faults.reorder_finals {
            match self.swapped.take() {
                Some(earlier) => due.push(earlier),
                None => {
                    self.swapped = due.pop();
                    return;
                }
            }
        }
        for message in due {
            if faults.duplicate_finals {
                self.hold(message.clone(), late);
            }
            self.hold(message, late);
        }
    }

    /// Takes a message that must follow everything before it (the end of a session).
    pub fn last(&mut self, message: ServerMessage, faults: &Lasting) {
        if let Some(swapped) = self.swapped.take() {
            self.hold(swapped, Duration::from_millis(faults.late_finals_ms));
        }
        let last = self.held.back().map_or(Duration::ZERO, |(due, _)| due.saturating_duration_since(Instant::now()));
        self.hold(message, last);
    }

    fn hold(&mut self, message: ServerMessage, delay: Duration) {
        let now = Instant::now();
        let due = (now + delay).max(self.stalled_until.unwrap_or(now));
        if due <= now && self.held.is_empty() {
            return self.now(message);
        }
        let at = self.held.partition_point(|(other, _)| *other <= due);
        self.held.insert(at, (due, message));
    }

    /// Sends what is due; when to call again.
    pub fn release(&mut self) -> Option<Instant> {
        while let Some((due, _)) = self.held.front() {
            if *due > Instant::now() {
                return Some(*due);
            }
            if let Some((_, message)) = self.held.pop_front() {
                self.now(message);
            }
        }
        None
    }

    /// Sends at once, or keeps it for later when nobody is there.
    pub fn now(&mut self, message: ServerMessage) {
        if !self.config.allows(&message) {
            return;
        }
        let fleeting = match &message {
            ServerMessage::AudioChunk(_) | ServerMessage::StopRecording(_) => true,
            ServerMessage::Transcript { data } => !data.is_final,
            _ => false,
        };
        let text = serde_json::to_string(&ServerEnvelope::now(&self.session, message)).expect("plain data");
        if !fleeting {
            self.log.push(text.clone());
        }
        match &self.connection {
            Some(connection) => send(connection, text.into()),
            None if fleeting => {}
            None => {
                self.pending.push_back(text.into());
                if self.pending.len() > MAX_PENDING {
                    self.pending.pop_front();
                }
            }
        }
    }

    /// Nothing is on its way any more.
    pub fn is_empty(&self) -> bool {
        self.held.is_empty()
    }

    /// Something waits for a client to come back.
    pub fn undelivered(&self) -> bool {
        !self.pending.is_empty()
    }
}

fn send(connection: &Connection, text: ByteString) {
    use actix::prelude::SendError;
    if let Err(SendError::Full(_)) = connection.socket.try_send(ToSocket::Text(text)) {
        tracing::warn!("client does not read; connection reset");
        connection.reset();
    }
}
