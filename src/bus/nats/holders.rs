//! Who has which room: one key a room in a bucket. Nothing in it expires.

use async_nats::jetstream::message::{PublishMessage, StreamMessage};
use async_nats::jetstream::stream::RawMessageErrorKind;
use bytes::Bytes;
use futures_util::{StreamExt, TryStreamExt, stream};

use super::link::Connection;
use super::log::{REFUSED, away};
use super::message::time;
use super::names::{ROOMS, ROOMS_SUBJECTS, holder_subject, room_of_holder};
use super::streams::code;
use crate::bus::log_server::{Held, ServerError};
use crate::transcript::Slug;

/// Keys that are read at a time.
const AT_A_TIME: usize = 32;

impl Connection {
    pub async fn holder(&self, room: &Slug) -> Result<Option<Held>, ServerError> {
        let last = self.last_write(room).await?;
        Ok(last.filter(|message| !is_marker(message)).map(|message| Held {
            value: message.payload,
            revision: message.sequence,
            at: time(message.time.unix_timestamp_nanos()),
        }))
    }

    async fn last_write(&self, room: &Slug) -> Result<Option<StreamMessage>, ServerError> {
        self.check()?;
        match self.rooms.get_last_raw_message_by_subject(&holder_subject(room)).await {
            Ok(message) => Ok(Some(message)),
            Err(error) if error.kind() == RawMessageErrorKind::NoMessageFound => Ok(None),
            Err(error) => Err(away(error)),
        }
    }

    pub async fn hold(&self, room: &Slug, value: Bytes, revision: Option<u64>) -> Result<Option<u64>, ServerError> {
        self.check()?;
        let written = self.write(room, value.clone(), revision.unwrap_or(0)).await?;
        if written.is_some() || revision.is_some() {
            return Ok(written);
        }
        // A tool of NATS has removed the key: it leaves a marker, which has a revision.
        match self.last_write(room).await? {
            Some(last) if is_marker(&last) => self.write(room, value, last.sequence).await,
            _ => Ok(None),
        }
    }

    async fn write(&self, room: &Slug, value: Bytes, revision: u64) -> Result<Option<u64>, ServerError> {
        let message = PublishMessage::build().payload(value).expected_stream(ROOMS);
        let message = message.expected_last_subject_sequence(revision);
        let sent = async { self.js.send_publish(holder_subject(room), message).await?.await };
        match sent.await {
            Ok(ack) => Ok(Some(ack.sequence)),
            Err(error) if REFUSED.contains(&code(&error)) => Ok(None),
            Err(error) => Err(away(error)),
        }
    }

    /// Removes the message itself, so that nothing of the room is left. Its number is that of no other write.
    pub async fn let_go(&self, room: &Slug, revision: u64) -> Result<bool, ServerError> {
        if self.holder(room).await?.is_none_or(|held| held.revision != revision) {
            return Ok(false);
        }
        let Err(error) = self.rooms.delete_message(revision).await else { return Ok(true) };
        match self.holder(room).await? {
            None => Ok(true),
            Some(held) if held.revision == revision => Err(away(error)),
            Some(_) => Ok(false),
        }
    }

    pub async fn held(&self) -> Result<Vec<(Slug, Held)>, ServerError> {
        self.check()?;
        let subjects = self.rooms.info_with_subjects(ROOMS_SUBJECTS).await.map_err(away)?;
        let subjects: Vec<(String, usize)> = subjects.try_collect().await.map_err(away)?;
        let rooms = subjects.into_iter().filter_map(|(subject, _)| room_of_holder(&subject));
        let read = |room: Slug| async move { Ok((self.holder(&room).await?, room)) };
        let held: Vec<_> = stream::iter(rooms.map(read)).buffer_unordered(AT_A_TIME).try_collect().await?;
        Ok(held.into_iter().filter_map(|(held, room)| Some((room, held?))).collect())
    }
}

/// A removed key, as the tools of NATS leave it.
fn is_marker(message: &StreamMessage) -> bool {
    message.headers.get("KV-Operation").is_some()
}
