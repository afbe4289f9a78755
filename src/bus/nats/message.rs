//! A log message as NATS keeps it: the room in the subject, the rest in headers.

use async_nats::HeaderMap;
use async_nats::jetstream::message::{PublishMessage, StreamMessage};
use bytes::Bytes;
use chrono::{DateTime, Utc};

use super::names::{FENCE, KIND, LOG, PROTO, header, room_of_log, unescape};
use crate::bus::log_server::{Logged, Message, MessageKind, Position};

/// The version of messages that this program writes and reads.
const VERSION: &str = "1";

/// Why a message of the log cannot be read.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum Unreadable {
    /// A newer program has written it.
    #[error(
        "message {position} of the log has version {version} of the protocol and this program reads {VERSION}: update this node"
    )]
    Newer { position: Position, version: String },
    /// No stenocast has written it.
    #[error(
        "message {position} of the log, on {subject}, is of no stenocast; to remove it: nats stream rmm {LOG} {position}"
    )]
    Foreign { position: Position, subject: String },
}

/// The message on its way, with the position that it expects before it.
pub fn outgoing(message: Message, expected: Position) -> PublishMessage {
    let kind = match message.kind {
        MessageKind::Owner => "owner",
        MessageKind::Entries => "entries",
    };
    PublishMessage::build()
        .payload(message.body)
        .message_id(header(&message.id))
        .expected_stream(LOG)
        .expected_last_subject_sequence(expected)
        .header(FENCE, header(&message.fence))
        .header(KIND, kind)
        .header(PROTO, VERSION)
}

/// A message as a consumer gives it.
pub fn delivered(message: &async_nats::jetstream::Message, position: Position, at: i128) -> Result<Logged, Unreadable> {
    let none = HeaderMap::new();
    let headers = message.headers.as_ref().unwrap_or(&none);
    incoming(&message.subject, headers, message.payload.clone(), position, at)
}

/// A message as the stream's leader gives it.
pub fn raw(message: StreamMessage) -> Result<Logged, Unreadable> {
    let at = message.time.unix_timestamp_nanos();
    incoming(&message.subject, &message.headers, message.payload, message.sequence, at)
}

/// A server's time, in nanoseconds of Unix time.
pub fn time(nanos: i128) -> DateTime<Utc> {
    DateTime::from_timestamp_nanos(nanos.try_into().unwrap_or(i64::MAX))
}

fn incoming(subject: &str, headers: &HeaderMap, body: Bytes, position: u64, at: i128) -> Result<Logged, Unreadable> {
    let text = |name: &str| headers.get(name).map(async_nats::HeaderValue::as_str);
    let foreign = || Unreadable::Foreign { position, subject: subject.to_owned() };
    let version = text(PROTO).ok_or_else(foreign)?;
    if version != VERSION {
        return Err(Unreadable::Newer { position, version: version.to_owned() });
    }
    let kind = match text(KIND) {
        Some("owner") => MessageKind::Owner,
        Some("entries") => MessageKind::Entries,
        _ => return Err(foreign()),
    };
    let field = |name: &str| text(name).and_then(unescape).ok_or_else(foreign);
    let message = Message {
        room: room_of_log(subject).ok_or_else(foreign)?,
        kind,
        fence: field(FENCE)?,
        id: field("Nats-Msg-Id")?,
        body,
    };
    Ok(Logged { position, at: time(at), message })
}
