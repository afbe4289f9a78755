//! One RTMP connection from the handshake to the end of its publish: bytes in, events and answers out.
//!
//! `rml_rtmp` does the handshake, reads AMF and keeps the session's state, but never sees bytes of a stranger before
//! [`super::chunk`] and [`super::amf`] have: it gets one checked command at a time, as a single chunk. Calls to it
//! are caught, so that a panic in it costs this connection only.

use std::fmt;
use std::panic::{AssertUnwindSafe, catch_unwind};

use bytes::{Bytes, BytesMut};
use rml_amf0::Amf0Value;
use rml_rtmp::handshake::{Handshake, HandshakeProcessResult, PeerType};
use rml_rtmp::messages::{MessagePayload, RtmpMessage};
use rml_rtmp::sessions::{ServerSession, ServerSessionConfig, ServerSessionEvent, ServerSessionResult};
use rml_rtmp::time::RtmpTimestamp;

use super::amf::{self, AmfError};
use super::chunk::{ChunkError, ChunkReader, Message, kind, number};

/// C0, C1 and C2 (specification 5.2).
const HANDSHAKE_BYTES: usize = 1 + 1536 + 1536;
/// We announce large chunks, so that our answers are single ones.
const OUR_CHUNK_BYTES: u32 = 65_536;
const WINDOW_BYTES: u32 = 2_500_000;
/// LiveKit Egress gives up for good at its first disconnect when nothing has been acknowledged before.
/// See [`Protocol::caught_up`].
const ACK_EVERY_BYTES: u64 = 64 << 10;
/// Commands of one connection; real clients send fewer than ten.
const MAX_COMMANDS: usize = 256;
const CSID_CONTROL: u8 = 2;
const CSID_COMMAND: u8 = 3;
/// `rml_rtmp` compresses headers on 2 to 6 against its own messages; ours keep off.
const CSID_STATUS: u8 = 8;
const PING_REQUEST: u16 = 6;
const PING_RESPONSE: u16 = 7;

/// What a connection wants, or brings.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// Answer with [`Protocol::accept`] or [`Protocol::refuse`] before the next call of [`Protocol::next`].
    Publish(PublishRequest),
    /// One audio tag of the accepted publish.
    Audio { timestamp_ms: u64, body: Bytes },
    /// The publisher said goodbye.
    Unpublished,
}

#[derive(Clone, PartialEq, Eq)]
pub struct PublishRequest {
    /// Both as sent, queries included: they may hold a key.
    pub app: String,
    pub name: String,
}

impl fmt::Debug for PublishRequest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let without_query = |text: &str| text.split('?').next().unwrap_or_default().to_owned();
        let (app, name) = (without_query(&self.app), without_query(&self.name));
        f.debug_struct("PublishRequest").field("app", &app).field("name", &name).finish()
    }
}

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ProtocolError {
    #[error("not an RTMP handshake")]
    Handshake,
    #[error(transparent)]
    Chunk(#[from] ChunkError),
    #[error(transparent)]
    Amf(#[from] AmfError),
    #[error("more than {MAX_COMMANDS} commands")]
    TooManyCommands,
    #[error("this server takes publishers only; there is nothing to play")]
    Play,
    #[error("a second publish on one connection")]
    SecondPublish,
    #[error("the command {0} is not understood")]
    Command(&'static str),
    #[error("the RTMP library gave up")]
    Library,
}

/// See the module.
pub struct Protocol {
    phase: Phase,
    reader: ChunkReader,
    output: Vec<u8>,
    /// After the handshake.
    received: u64,
    acknowledged: u64,
    /// The peer asked for an acknowledgement at least every so many bytes.
    peer_window: u64,
    commands: usize,
    app: String,
    publish: Publish,
}

enum Phase {
    Handshake { handshake: Box<Handshake>, missing: usize },
    Session(Box<ServerSession>),
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Publish {
    No,
    Asked { request_id: u32, stream_id: u32 },
    Accepted { stream_id: u32 },
}

impl Default for Protocol {
    fn default() -> Self {
        let handshake = Box::new(Handshake::new(PeerType::Server));
        Self {
            phase: Phase::Handshake { handshake, missing: HANDSHAKE_BYTES },
            reader: ChunkReader::default(),
            output: Vec::new(),
            received: 0,
            acknowledged: 0,
            peer_window: u64::MAX,
            commands: 0,
            app: String::new(),
            publish: Publish::No,
        }
    }
}

impl Protocol {
    /// Takes bytes from the front of `input` up to the next event. `None`: more bytes are needed. After an error the
    /// connection is of no use; what [`Self::take_output`] then holds may still be sent.
    pub fn next(&mut self, input: &mut BytesMut) -> Result<Option<Event>, ProtocolError> {
        if !self.is_handshaken() {
            self.shake_hands(input)?;
            if !self.is_handshaken() {
                return Ok(None);
            }
        }
        loop {
            let before = input.len();
            let message = self.reader.next(input);
            self.received += (before - input.len()) as u64;
            self.acknowledge_if_due(self.peer_window);
            let Some(message) = message? else { return Ok(None) };
            if let Some(event) = self.message(message)? {
                return Ok(Some(event));
            }
        }
    }

    pub fn is_handshaken(&self) -> bool {
        matches!(self.phase, Phase::Session(_))
    }

    /// Bytes for the peer, in order.
    pub fn take_output(&mut self) -> Vec<u8> {
        std::mem::take(&mut self.output)
    }

    /// The publish may begin.
    pub fn accept(&mut self) -> Result<(), ProtocolError> {
        let Publish::Asked { request_id, stream_id } = self.publish else { return Ok(()) };
        self.session(|session| session.accept_request(request_id))?;
        self.publish = Publish::Accepted { stream_id };
        self.acknowledge();
        Ok(())
    }

    /// Tells the publisher, asked or accepted, that it is not to go on. Then close the connection.
    pub fn refuse(&mut self, reason: &str) {
        let stream_id = match self.publish {
            Publish::No => 0,
            Publish::Asked { stream_id, .. } | Publish::Accepted { stream_id } => stream_id,
        };
        self.status(stream_id, "NetStream.Publish.BadName", reason);
    }

    fn shake_hands(&mut self, input: &mut BytesMut) -> Result<(), ProtocolError> {
        let Phase::Handshake { handshake, missing } = &mut self.phase else { return Ok(()) };
        let part = input.split_to(input.len().min(*missing));
        *missing -= part.len();
        let result = guarded(|| handshake.process_bytes(&part))?.map_err(|_| ProtocolError::Handshake)?;
        match result {
            HandshakeProcessResult::InProgress { response_bytes } => self.output.extend(response_bytes),
            HandshakeProcessResult::Completed { response_bytes, .. } => {
                self.output.extend(response_bytes);
                self.begin_session()?;
            }
        }
        Ok(())
    }

    fn begin_session(&mut self) -> Result<(), ProtocolError> {
        let mut config = ServerSessionConfig::new();
        config.chunk_size = OUR_CHUNK_BYTES;
        config.window_ack_size = WINDOW_BYTES;
        config.peer_bandwidth = WINDOW_BYTES;
        let (session, answers) = guarded(|| ServerSession::new(config))?.map_err(|_| ProtocolError::Library)?;
        self.phase = Phase::Session(Box::new(session));
        self.collect(answers);
        // What we hand to it comes in single chunks.
        let single = chunk(CSID_CONTROL, kind::SET_CHUNK_SIZE, 0, &OUR_CHUNK_BYTES.to_be_bytes());
        self.session(|session| session.handle_input(&single))?;
        Ok(())
    }

    fn message(&mut self, message: Message) -> Result<Option<Event>, ProtocolError> {
        match message {
            Message::Audio { stream_id, timestamp_ms, body } => {
                let ours = self.publish == Publish::Accepted { stream_id };
                Ok(ours.then_some(Event::Audio { timestamp_ms, body }))
            }
            Message::Control { kind: kind::COMMAND_AMF0, stream_id, payload } => self.command(stream_id, payload),
            // Some Flash-era encoders wrap AMF0 in an AMF3 command, behind a zero.
            Message::Control { kind: kind::COMMAND_AMF3, stream_id, payload } => {
                let inner = if payload.first() == Some(&0) { payload.slice(1..) } else { payload };
                self.command(stream_id, inner)
            }
            Message::Control { kind: kind::WINDOW_SIZE, payload, .. } => {
                self.peer_window = u64::from(number(kind::WINDOW_SIZE, &payload)?.max(1));
                Ok(None)
            }
            Message::Control { kind: kind::USER_CONTROL, payload, .. } => {
                self.user_control(&payload);
                Ok(None)
            }
            Message::Control { .. } => Ok(None),
        }
    }

    fn user_control(&mut self, payload: &[u8]) {
        if let Some((event, data)) = payload.split_first_chunk::<2>()
            && u16::from_be_bytes(*event) == PING_REQUEST
        {
            let answer = [&PING_RESPONSE.to_be_bytes()[..], data].concat();
            self.output.extend(chunk(CSID_CONTROL, kind::USER_CONTROL, 0, &answer));
        }
    }

    fn command(&mut self, stream_id: u32, payload: Bytes) -> Result<Option<Event>, ProtocolError> {
        self.commands += 1;
        if self.commands > MAX_COMMANDS {
            return Err(ProtocolError::TooManyCommands);
        }
        // With fewer than name, transaction and object, `rml_rtmp` panics; no client means anything by it.
        if amf::check(&payload)? < 3 {
            return Ok(None);
        }
        let whole = chunk(CSID_COMMAND, kind::COMMAND_AMF0, stream_id, &payload);
        match command_name(payload)?.as_str() {
            "connect" if self.app.is_empty() => self.connect(&whole),
            "createStream" => self.session(|session| session.handle_input(&whole)).map(|_| None),
            "publish" => self.publish(stream_id, &whole),
            // GStreamer's deleteStream carries the name where the number belongs, so it counts whatever it says.
            "FCUnpublish" | "deleteStream" | "closeStream" if self.publish != Publish::No => {
                Ok(Some(Event::Unpublished))
            }
            "play" | "play2" => {
                self.status(stream_id, "NetStream.Play.Failed", &ProtocolError::Play.to_string());
                Err(ProtocolError::Play)
            }
            // releaseStream, FCPublish, _checkbw and others: no client waits for an answer.
            _ => Ok(None),
        }
    }

    fn connect(&mut self, whole: &[u8]) -> Result<Option<Event>, ProtocolError> {
        for event in self.session(|session| session.handle_input(whole))? {
            if let ServerSessionEvent::ConnectionRequested { request_id, app_name } = event {
                // Whether the application is the right one is said at publish, where clients show the reason.
                self.session(|session| session.accept_request(request_id))?;
                self.app = app_name;
                return Ok(None);
            }
        }
        Err(ProtocolError::Command("connect"))
    }

    fn publish(&mut self, stream_id: u32, whole: &[u8]) -> Result<Option<Event>, ProtocolError> {
        if self.publish != Publish::No {
            return Err(ProtocolError::SecondPublish);
        }
        for event in self.session(|session| session.handle_input(whole))? {
            if let ServerSessionEvent::PublishStreamRequested { request_id, app_name, stream_key, .. } = event {
                self.publish = Publish::Asked { request_id, stream_id };
                return Ok(Some(Event::Publish(PublishRequest { app: app_name, name: stream_key })));
            }
        }
        Err(ProtocolError::Command("publish"))
    }

    /// Runs the library, keeps its answers, gives its events.
    fn session<E>(
        &mut self,
        call: impl FnOnce(&mut ServerSession) -> Result<Vec<ServerSessionResult>, E>,
    ) -> Result<Vec<ServerSessionEvent>, ProtocolError> {
        let Phase::Session(session) = &mut self.phase else { return Ok(Vec::new()) };
        let results = guarded(|| call(session))?.map_err(|_| ProtocolError::Library)?;
        Ok(self.collect(results))
    }

    fn collect(&mut self, results: Vec<ServerSessionResult>) -> Vec<ServerSessionEvent> {
        let mut events = Vec::new();
        for result in results {
            match result {
                ServerSessionResult::OutboundResponse(packet) => self.output.extend(packet.bytes),
                ServerSessionResult::RaisedEvent(event) => events.push(event),
                ServerSessionResult::UnhandleableMessageReceived(_) => {}
            }
        }
        events
    }

    /// All that the peer has sent so far was read: the moment to acknowledge it. Earlier would do harm: a publisher
    /// that pushes a file and closes with our acknowledgement unread resets the connection, and what is still in its
    /// send buffer is lost.
    pub fn caught_up(&mut self) {
        if matches!(self.publish, Publish::Accepted { .. }) {
            self.acknowledge_if_due(ACK_EVERY_BYTES);
        }
    }

    fn acknowledge_if_due(&mut self, every_bytes: u64) {
        if self.received - self.acknowledged >= every_bytes {
            self.acknowledge();
        }
    }

    /// The number is the running total (specification 5.4.3), wrapping at 2^32.
    fn acknowledge(&mut self) {
        self.acknowledged = self.received;
        let total = (self.received as u32).to_be_bytes();
        self.output.extend(chunk(CSID_CONTROL, kind::ACKNOWLEDGEMENT, 0, &total));
    }

    /// onStatus of level error (specification 7.2.2).
    fn status(&mut self, stream_id: u32, code: &str, description: &str) {
        let text = |text: &str| Amf0Value::Utf8String(text.to_owned());
        let object = [("level", "error"), ("code", code), ("description", description)];
        let object = object.into_iter().map(|(name, value)| (name.to_owned(), text(value))).collect();
        let values = [text("onStatus"), Amf0Value::Number(0.0), Amf0Value::Null, Amf0Value::Object(object)];
        let payload = rml_amf0::serialize(&values.to_vec()).unwrap_or_default();
        self.output.extend(chunk(CSID_STATUS, kind::COMMAND_AMF0, stream_id, &payload));
    }
}

/// A message as one chunk with a full header and timestamp 0. `payload` is shorter than our chunk size.
fn chunk(csid: u8, kind: u8, stream_id: u32, payload: &[u8]) -> Vec<u8> {
    let length = (payload.len() as u32).to_be_bytes();
    let mut bytes = vec![csid, 0, 0, 0, length[1], length[2], length[3], kind];
    bytes.extend(stream_id.to_le_bytes());
    bytes.extend(payload);
    bytes
}

/// `payload` has passed [`amf::check`].
fn command_name(payload: Bytes) -> Result<String, ProtocolError> {
    let message = MessagePayload {
        timestamp: RtmpTimestamp::new(0),
        type_id: kind::COMMAND_AMF0,
        message_stream_id: 0,
        data: payload,
    };
    match guarded(|| message.to_rtmp_message())? {
        Ok(RtmpMessage::Amf0Command { command_name, .. }) => Ok(command_name),
        _ => Err(ProtocolError::Library),
    }
}

/// The second belt: the first is that nothing reaches the library unchecked.
fn guarded<T>(call: impl FnOnce() -> T) -> Result<T, ProtocolError> {
    catch_unwind(AssertUnwindSafe(call)).map_err(|_| ProtocolError::Library)
}

#[cfg(test)]
mod tests;
