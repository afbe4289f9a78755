//! Appends to the log, and reads of single rooms. Who decides about appends is asked, never a copy that may lag.

use std::time::{Duration, Instant};

use async_nats::jetstream::consumer::{AckPolicy, DeliverPolicy, PullConsumer, pull};
use async_nats::jetstream::context::PublishErrorKind;
use async_nats::jetstream::stream::RawMessageErrorKind;
use futures_util::StreamExt;

use super::link::{ANSWER, Connection};
use super::message::{delivered, outgoing, raw};
use super::names::{DATABASE, log_subject};
use super::streams::code;
use crate::bus::log_server::{Appended, Logged, Message, Position, ServerError};
use crate::transcript::Slug;

/// The codes of a refusal: another position was expected. A cluster has two.
pub const REFUSED: [u64; 2] = [10_071, 10_164];
/// No room: the stream's, the account's or the server's limit.
const FULL: [u64; 4] = [10_077, 10_023, 10_047, 10_122];
const TOO_LARGE: u64 = 10_054;
/// So many messages are read one by one; more are worth a consumer.
const ONE_BY_ONE: usize = 32;
/// Most messages that are asked for at a time.
const AT_A_TIME: usize = 200;
/// A consumer that nobody uses leaves the server after so long.
const LEAVES_AFTER: Duration = Duration::from_secs(5);
/// Time between two looks at a copy that lags.
const LOOK_AGAIN: Duration = Duration::from_millis(20);
/// From here on messages that are in the database leave the log.
const TIDY_FROM: f64 = 0.8;

pub fn away(error: impl std::fmt::Display) -> ServerError {
    ServerError::Away(error.to_string())
}

impl Connection {
    pub async fn append(&self, message: Message, expected: Position) -> Appended {
        if let Err(error) = self.check() {
            return Appended::Unsure(error.to_string());
        }
        let subject = log_subject(&message.room);
        let sent = async { self.js.send_publish(subject, outgoing(message, expected)).await?.await };
        let error = match sent.await {
            // A duplicate's position is that of the first time; the room's last message may be a later one.
            Ok(ack) => return Appended::Stored(ack.sequence.max(expected)),
            Err(error) => error,
        };
        match (error.kind(), code(&error)) {
            (PublishErrorKind::MaxPayloadExceeded, _) | (_, TOO_LARGE) => return Appended::TooLarge,
            (_, code) if REFUSED.contains(&code) => return Appended::Refused,
            (_, code) if FULL.contains(&code) => {
                self.health.count("full");
                let said = std::error::Error::source(&error).map_or_else(|| error.to_string(), ToString::to_string);
                return Appended::Full(said);
            }
            (PublishErrorKind::StreamNotFound, _) => self.doubt(),
            _ => {}
        }
        self.health.count("unsure");
        Appended::Unsure(error.to_string())
    }

    pub async fn head(&self, room: &Slug) -> Result<Option<Logged>, ServerError> {
        self.check()?;
        match self.log.get_last_raw_message_by_subject(&log_subject(room)).await {
            Ok(message) => raw(message).map(Some).map_err(|error| self.unreadable(&error)),
            Err(error) if error.kind() == RawMessageErrorKind::NoMessageFound => Ok(None),
            Err(error) => Err(away(error)),
        }
    }

    /// What is in the way of one room, or of everything.
    pub fn unreadable(&self, error: &super::message::Unreadable) -> ServerError {
        if let super::message::Unreadable::Newer { .. } = error {
            self.health.halt(error.to_string());
        }
        ServerError::Unusable(error.to_string())
    }

    pub async fn read(&self, room: &Slug, after: Position, limit: usize) -> Result<Vec<Logged>, ServerError> {
        let Some(head) = self.head(room).await? else { return Ok(Vec::new()) };
        let subject = log_subject(room);
        let (mut read, mut at) = (Vec::new(), after);
        while at < head.position && read.len() < limit.min(ONE_BY_ONE) {
            let next = self.log.raw_message_builder().sequence(at + 1).next_by_subject(&*subject).send();
            match next.await {
                Ok(message) => read.push(raw(message).map_err(|error| self.unreadable(&error))?),
                // Purged since.
                Err(error) if error.kind() == RawMessageErrorKind::NoMessageFound => return Ok(read),
                Err(error) => return Err(away(error)),
            }
            at = read.last().map_or(at, |message: &Logged| message.position);
        }
        if at < head.position && read.len() < limit {
            self.read_more(&subject, at, head.position, limit, &mut read).await?;
        }
        Ok(read)
    }

    /// Reads up to `until` by a consumer. It may be one of a copy that lags, so an early end is not believed.
    async fn read_more(
        &self,
        subject: &str,
        after: Position,
        until: Position,
        limit: usize,
        read: &mut Vec<Logged>,
    ) -> Result<(), ServerError> {
        let config = passing(subject, after, LEAVES_AFTER);
        let consumer: PullConsumer = self.log.create_consumer(config).await.map_err(away)?;
        let mut begun = Instant::now();
        while read.last().is_none_or(|last| last.position < until) && read.len() < limit {
            let wanted = (limit - read.len()).min(AT_A_TIME);
            let mut batch = consumer.fetch().max_messages(wanted).messages().await.map_err(away)?;
            let before = read.len();
            while let Some(message) = tokio::time::timeout(ANSWER, batch.next()).await.map_err(away)? {
                let message = message.map_err(away)?;
                let info = message.info().map_err(away)?;
                let logged = delivered(&message, info.stream_sequence, info.published.unix_timestamp_nanos());
                read.push(logged.map_err(|error| self.unreadable(&error))?);
            }
            if read.len() > before {
                begun = Instant::now();
                continue;
            }
            if begun.elapsed() > ANSWER {
                return Err(away("a copy of the log is behind its leader"));
            }
            tokio::time::sleep(LOOK_AGAIN).await;
        }
        let _ = self.log.delete_consumer(&consumer.cached_info().name).await;
        Ok(())
    }

    pub async fn settled_now(&self) -> Result<Position, ServerError> {
        self.check()?;
        let info = self.log.consumer_info(DATABASE).await.map_err(|error| {
            self.doubt();
            away(error)
        })?;
        Ok(info.ack_floor.stream_sequence)
    }

    pub async fn tidy(&self) -> Result<f64, ServerError> {
        let fullness = self.fullness().await?;
        if fullness < TIDY_FROM {
            return Ok(fullness);
        }
        let settled = self.settled_now().await?;
        if settled > 0 {
            self.log.purge().sequence(settled + 1).await.map_err(away)?;
        }
        self.fullness().await
    }

    async fn fullness(&self) -> Result<f64, ServerError> {
        self.check()?;
        let info = self.log.get_info().await.map_err(away)?;
        let share = |has: u64, most: i64| if most > 0 { has as f64 / most as f64 } else { 0.0 };
        // Ours has no limit of messages; an administrator may have given it one.
        let (bytes, messages) = (info.config.max_bytes, info.config.max_messages);
        Ok(share(info.state.bytes, bytes).max(share(info.state.messages, messages)))
    }
}

/// A consumer of one reader, in the server's memory, without acks.
pub fn passing(subject: &str, after: Position, leaves_after: Duration) -> pull::Config {
    pull::Config {
        filter_subject: subject.to_owned(),
        deliver_policy: DeliverPolicy::ByStartSequence { start_sequence: after + 1 },
        ack_policy: AckPolicy::None,
        memory_storage: true,
        num_replicas: 1,
        inactive_threshold: leaves_after,
        ..pull::Config::default()
    }
}
