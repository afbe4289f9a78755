//! One RTMP connection from the handshake to the end of its publish: bytes in, events and answers out.
//!
//! A connection has one publish, so all audio on it is that publish's, whatever message stream it names. What is odd
//! but harmless is answered or ignored ([`Ignored`]); what ends a connection has a sentence for its encoder.
//! `rml_rtmp` does the handshake, and calls to it are caught, so that a panic in it costs this connection only.

use std::panic::{AssertUnwindSafe, catch_unwind};

use bytes::BytesMut;
use rml_rtmp::handshake::{Handshake, HandshakeProcessResult, PeerType};

use super::amf::{AmfError, Command, Value};
use super::answers::{self, Level};
use super::chunk::{ChunkError, ChunkReader, Message, kind, number};
use super::event::{Event, Phase, PublishRequest, without_query};
use super::ignored::Ignored;
use super::stranger::{RTMP_VERSION, Stranger};

/// C0, C1 and C2 (specification 5.2).
const HANDSHAKE_BYTES: usize = 1 + 1536 + 1536;
/// LiveKit Egress gives up for good at its first disconnect when nothing has been acknowledged before.
/// See [`Protocol::caught_up`].
const ACK_EVERY_BYTES: u64 = 64 << 10;
/// The least window of a peer's own that is followed: an acknowledgement has 16 bytes.
const MIN_PEER_WINDOW: u64 = 1000;
/// Commands that need no media beside them; real clients send fewer than ten.
const COMMAND_BURST: u64 = 512;
/// As many bytes of other messages allow one command more.
const BYTES_PER_COMMAND: u64 = 256;
/// Message streams whose publish was refused; a client that goes on asking is refused with its connection.
const MAX_REFUSED_STREAMS: usize = 8;
const PING_REQUEST: u16 = 6;

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ProtocolError {
    #[error(transparent)]
    Stranger(#[from] Stranger),
    #[error("the RTMP handshake cannot be read")]
    Handshake,
    #[error(transparent)]
    Chunk(#[from] ChunkError),
    #[error(transparent)]
    Amf(#[from] AmfError),
    #[error("more than {COMMAND_BURST} commands and hardly any media")]
    TooManyCommands,
    #[error("this server takes publishers only; there is nothing to play")]
    Play,
    #[error("a second publish on one connection; open a connection for each room")]
    SecondPublish,
    #[error("the server failed in the handshake")]
    Library,
}

/// The server's side of one RTMP connection, without I/O.
pub struct Protocol {
    /// Until it is done: the handshake and how many bytes of it are missing.
    handshake: Option<(Box<Handshake>, usize)>,
    stranger: Option<Stranger>,
    reader: ChunkReader,
    output: Vec<u8>,
    /// After the handshake.
    received: u64,
    acknowledged: u64,
    /// The peer asked for an acknowledgement at least every so many bytes.
    peer_window: u64,
    commands: u64,
    command_bytes: u64,
    connect: Option<Connect>,
    /// Message streams made for the client: 1 to this.
    created: u32,
    publish: Publish,
    refused_streams: Vec<u32>,
}

/// The client's words about where it connects to.
#[derive(Default, Clone)]
struct Connect {
    app: String,
    tc_url: String,
}

#[derive(Clone, PartialEq, Eq)]
enum Publish {
    No,
    Asked { stream_id: u32, name: String },
    Accepted { stream_id: u32, name: String },
}

impl Default for Protocol {
    fn default() -> Self {
        Self {
            handshake: Some((Box::new(Handshake::new(PeerType::Server)), HANDSHAKE_BYTES)),
            stranger: None,
            reader: ChunkReader::default(),
            output: Vec::new(),
            received: 0,
            acknowledged: 0,
            peer_window: u64::MAX,
            commands: 0,
            command_bytes: 0,
            connect: None,
            created: 0,
            publish: Publish::No,
            refused_streams: Vec::new(),
        }
    }
}

impl Protocol {
    /// Takes bytes from the front of `input` up to the next event. `None`: more bytes are needed. After an error the
    /// connection is of no use; what [`Self::take_output`] then holds may still be sent.
    pub fn next(&mut self, input: &mut BytesMut) -> Result<Option<Event>, ProtocolError> {
        self.shake_hands(input)?;
        if !self.is_handshaken() {
            return Ok(None);
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
        self.handshake.is_none()
    }

    pub fn phase(&self) -> Phase {
        match (&self.handshake, &self.connect, &self.publish) {
            (Some(_), ..) => Phase::Handshake,
            (None, _, Publish::Accepted { .. }) => Phase::Streaming,
            (None, None, _) => Phase::Connect,
            (None, Some(_), _) => Phase::Publish,
        }
    }

    /// Bytes that [`Self::take_output`] holds.
    pub fn output_bytes(&self) -> usize {
        self.output.len()
    }

    /// Bytes for the peer, in order.
    pub fn take_output(&mut self) -> Vec<u8> {
        std::mem::take(&mut self.output)
    }

    /// The publish may begin.
    pub fn accept(&mut self) {
        let Publish::Asked { stream_id, name } = std::mem::replace(&mut self.publish, Publish::No) else { return };
        self.publish_started(stream_id);
        self.publish = Publish::Accepted { stream_id, name };
        self.acknowledge();
    }

    fn publish_started(&mut self, stream_id: u32) {
        self.output.extend(answers::stream_begin(stream_id));
        let started = answers::on_status(stream_id, Level::Status, "NetStream.Publish.Start", "publishing");
        self.output.extend(started);
    }

    /// Tells the peer, whatever it has asked, that it is not to go on. Then close the connection.
    pub fn refuse(&mut self, reason: &str) {
        if !self.is_handshaken() {
            return self.output.extend(self.stranger.map(|stranger| stranger.answer(reason)).unwrap_or_default());
        }
        let (stream_id, code) = match self.publish {
            Publish::No if self.connect.is_none() => (0, "NetConnection.Connect.Rejected"),
            Publish::No => (0, "NetStream.Publish.BadName"),
            Publish::Asked { stream_id, .. } | Publish::Accepted { stream_id, .. } => {
                (stream_id, "NetStream.Publish.BadName")
            }
        };
        self.output.extend(answers::on_status(stream_id, Level::Error, code, reason));
    }

    /// Tells the publisher that something is wrong with what it sends; its publish goes on.
    pub fn warn(&mut self, text: &str) {
        if let Publish::Accepted { stream_id, .. } = self.publish {
            self.output.extend(answers::on_status(stream_id, Level::Warning, "NetStream.Publish.BadAudio", text));
        }
    }

    fn shake_hands(&mut self, input: &mut BytesMut) -> Result<(), ProtocolError> {
        let Some((handshake, missing)) = &mut self.handshake else { return Ok(()) };
        if *missing == HANDSHAKE_BYTES && !input.is_empty() {
            self.stranger = Stranger::of(input);
            match self.stranger {
                Some(stranger) => return Err(stranger.into()),
                // Whose first byte is no RTMP waits for a few more.
                None if input[0] != RTMP_VERSION => return Ok(()),
                None => {}
            }
        }
        let part = input.split_to(input.len().min(*missing));
        *missing -= part.len();
        let result = catch_unwind(AssertUnwindSafe(|| handshake.process_bytes(&part)));
        match result.map_err(|_| ProtocolError::Library)?.map_err(|_| ProtocolError::Handshake)? {
            HandshakeProcessResult::InProgress { response_bytes } => self.output.extend(response_bytes),
            HandshakeProcessResult::Completed { response_bytes, .. } => {
                self.output.extend(response_bytes);
                self.output.extend(answers::greeting());
                self.handshake = None;
            }
        }
        Ok(())
    }

    fn message(&mut self, message: Message) -> Result<Option<Event>, ProtocolError> {
        match message {
            Message::Audio { stream_id, timestamp_ms, body } => Ok(Some(match self.publish {
                Publish::Accepted { .. } if self.refused_streams.contains(&stream_id) => {
                    Event::Ignored(Ignored::ForeignAudio)
                }
                Publish::Accepted { .. } => Event::Audio { timestamp_ms, body },
                _ => Event::Ignored(Ignored::EarlyAudio),
            })),
            Message::Unfinished { .. } => Ok(Some(Event::Ignored(Ignored::UnfinishedMessage))),
            Message::Control { kind: kind::COMMAND_AMF0, stream_id, payload } => self.command(stream_id, &payload),
            // AMF0 in an AMF3 command, behind a zero. Some leave the zero out.
            Message::Control { kind: kind::COMMAND_AMF3, stream_id, payload } => {
                self.command(stream_id, payload.strip_prefix(&[0]).unwrap_or(&payload))
            }
            Message::Control { kind: kind::WINDOW_SIZE, payload, .. } => {
                if let Ok(window) = number(kind::WINDOW_SIZE, &payload) {
                    self.peer_window = u64::from(window).max(MIN_PEER_WINDOW);
                }
                Ok(None)
            }
            Message::Control { kind: kind::USER_CONTROL, payload, .. } => {
                if let Some((event, data)) = payload.split_first_chunk()
                    && u16::from_be_bytes(*event) == PING_REQUEST
                {
                    self.output.extend(answers::pong(data));
                }
                Ok(None)
            }
            Message::Control { .. } => Ok(None),
        }
    }

    fn command(&mut self, stream_id: u32, payload: &[u8]) -> Result<Option<Event>, ProtocolError> {
        self.commands += 1;
        self.command_bytes += payload.len() as u64;
        let media_bytes = self.received.saturating_sub(self.command_bytes);
        if self.commands > COMMAND_BURST + media_bytes / BYTES_PER_COMMAND {
            return Err(ProtocolError::TooManyCommands);
        }
        let Some(command) = Command::read(payload)? else {
            return Ok(Some(Event::Ignored(Ignored::UnreadableCommand)));
        };
        match command.name.as_str() {
            "connect" => self.connect(&command),
            "createStream" => {
                self.created = self.created.saturating_add(1);
                self.output.extend(answers::stream_created(command.transaction, self.created));
            }
            "releaseStream" => self.done(&command),
            "FCPublish" => {
                self.done(&command);
                if command.transaction != 0.0 {
                    self.output.extend(answers::fc_publish(command.transaction));
                }
            }
            // publish(false) is how Flash's NetStream ends one.
            "publish" if self.publish != Publish::No && command.arguments.first() == Some(&Value::Other) => {
                return Ok(Some(self.unpublished(stream_id)));
            }
            "publish" => return self.publish(stream_id, &command),
            "play" | "play2" => return self.play(stream_id),
            "FCUnpublish" | "deleteStream" | "closeStream" if self.is_goodbye(stream_id, &command) => {
                return Ok(Some(self.unpublished(stream_id)));
            }
            // _checkbw and others: no client waits for an answer.
            _ => {}
        }
        Ok(None)
    }

    /// GStreamer's rtmp2sink asks with transaction 0, which wants no answer.
    fn done(&mut self, command: &Command) {
        if command.transaction != 0.0 {
            self.output.extend(answers::done(command.transaction));
        }
    }

    /// Whether the application is the right one is said at publish, where clients show the reason.
    fn connect(&mut self, command: &Command) {
        let text = |name| command.property(name).unwrap_or_default().to_owned();
        let encoding = command.object.iter().find_map(|(name, value)| match value {
            Value::Number(number) if name == "objectEncoding" => Some(*number),
            _ => None,
        });
        self.output.extend(answers::connected(command.transaction, encoding.unwrap_or(0.0)));
        self.connect = Some(Connect { app: text("app"), tc_url: text("tcUrl") });
    }

    /// Its type (live, record, append) makes no difference here.
    fn publish(&mut self, stream_id: u32, command: &Command) -> Result<Option<Event>, ProtocolError> {
        let name = command.arguments.iter().find_map(|value| match value {
            Value::Text(name) => Some(name.clone()),
            Value::Number(number) => Some(number.to_string()),
            _ => None,
        });
        let name = name.unwrap_or_default();
        match &self.publish {
            Publish::No => {}
            Publish::Asked { name: present, .. } | Publish::Accepted { name: present, .. } if *present == name => {
                self.publish_started(stream_id);
                return Ok(None);
            }
            _ => return self.refuse_second(stream_id),
        }
        self.publish = Publish::Asked { stream_id, name: name.clone() };
        let Connect { app, tc_url } = self.connect.clone().unwrap_or_default();
        Ok(Some(Event::Publish(PublishRequest { app, name, tc_url })))
    }

    /// The publish that there is goes on.
    fn refuse_second(&mut self, stream_id: u32) -> Result<Option<Event>, ProtocolError> {
        let reason = ProtocolError::SecondPublish.to_string();
        self.output.extend(answers::on_status(stream_id, Level::Error, "NetStream.Publish.BadName", &reason));
        let ours = matches!(self.publish, Publish::Accepted { stream_id: ours, .. } if ours == stream_id);
        if !ours && !self.refused_streams.contains(&stream_id) {
            if self.refused_streams.len() == MAX_REFUSED_STREAMS {
                return Err(ProtocolError::SecondPublish);
            }
            self.refused_streams.push(stream_id);
        }
        Ok(Some(Event::Ignored(Ignored::SecondPublish)))
    }

    fn play(&mut self, stream_id: u32) -> Result<Option<Event>, ProtocolError> {
        let reason = ProtocolError::Play.to_string();
        self.output.extend(answers::on_status(stream_id, Level::Error, "NetStream.Play.Failed", &reason));
        match self.publish {
            Publish::No => Err(ProtocolError::Play),
            _ => Ok(Some(Event::Ignored(Ignored::Play))),
        }
    }

    fn unpublished(&mut self, stream_id: u32) -> Event {
        let said = "the publish has ended; connect again for another";
        self.output.extend(answers::on_status(stream_id, Level::Status, "NetStream.Unpublish.Success", said));
        Event::Unpublished
    }

    /// It ends the publish whatever it says: GStreamer's deleteStream carries the name where the number belongs, and
    /// others a wrong one. Only another stream of several that were made is left out, and another name in `FCUnpublish`.
    fn is_goodbye(&self, stream_id: u32, command: &Command) -> bool {
        let (Publish::Asked { stream_id: ours, name } | Publish::Accepted { stream_id: ours, name }) = &self.publish
        else {
            return false;
        };
        let ours = *ours;
        let meant = match (command.name.as_str(), command.arguments.first()) {
            ("deleteStream", Some(Value::Number(number))) => *number,
            ("closeStream", _) => f64::from(stream_id),
            ("FCUnpublish", Some(Value::Text(other))) => return without_query(other) == without_query(name),
            _ => return true,
        };
        let is_made = |id: f64| (1..=self.created).contains(&(id as u32));
        !(is_made(meant) && is_made(f64::from(ours)) && meant as u32 != ours)
    }

    /// All that the peer has sent so far was read: the moment to acknowledge it. Earlier would do harm: a publisher
    /// that pushes a file and closes with our acknowledgement unread resets the connection, and what is still in its
    /// send buffer is lost.
    pub fn caught_up(&mut self) {
        if matches!(self.publish, Publish::Accepted { .. }) {
            self.acknowledge_if_due(ack_every(self.received));
        }
    }

    fn acknowledge_if_due(&mut self, every_bytes: u64) {
        if self.received - self.acknowledged >= every_bytes {
            self.acknowledge();
        }
    }

    fn acknowledge(&mut self) {
        self.acknowledged = self.received;
        self.output.extend(answers::acknowledgement(self.received));
    }
}

/// Often at first, then ever less: a publisher that never reads (librtmp) has room for so many acknowledgements and no
/// more, and a full socket ends the connection.
fn ack_every(received: u64) -> u64 {
    (received / 64).clamp(ACK_EVERY_BYTES, u64::from(answers::WINDOW_BYTES))
}

#[cfg(test)]
mod tests;
