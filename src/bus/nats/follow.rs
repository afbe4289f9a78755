//! The follower of all rooms: a consumer of its own, made anew after the last position on every doubt and every connect.

use std::sync::Arc;
use std::time::Duration;

use async_nats::jetstream::Message;
use async_nats::jetstream::consumer::{PullConsumer, pull};
use async_nats::jetstream::stream::Info;
use chrono::{DateTime, Utc};
use futures_util::StreamExt;
use tokio::sync::watch;

use super::link::Connection;
use super::log::{away, passing};
use super::message::{Unreadable, delivered, time};
use super::names::LOG_SUBJECTS;
use crate::bus::log_server::{Followed, Position, ServerError};

/// The server says so often that it is there.
const HEARTBEAT: Duration = Duration::from_secs(1);
/// How long one request for messages lasts.
const REQUEST: Duration = Duration::from_secs(10);
const LEAVES_AFTER: Duration = Duration::from_secs(10);
const LOOK_AGAIN: Duration = Duration::from_millis(200);
/// A leader that was elected just now may not have read its whole log yet.
const IS_SHORT_FOR: Duration = Duration::from_secs(2);

pub struct Follower {
    connection: Arc<Connection>,
    connects: watch::Receiver<u32>,
    position: Position,
    /// When the message at `position` was written: another one in its place tells of a lost end.
    written: Option<DateTime<Utc>>,
    /// When the stream was made.
    made: Option<i128>,
    open: Option<Open>,
}

struct Open {
    messages: pull::Stream,
    /// Number of the last delivery.
    last: u64,
}

impl Follower {
    pub fn new(connection: Arc<Connection>, after: Position) -> Self {
        let connects = connection.health.connects.subscribe();
        Self { connection, connects, position: after, written: None, made: None, open: None }
    }

    pub async fn next(&mut self) -> Followed {
        loop {
            let Some(open) = &mut self.open else {
                match self.reopen().await {
                    Ok(None) => {}
                    Ok(Some(position)) => return self.reset(position),
                    Err(error) => {
                        tracing::debug!(%error, "the log is not to be followed; it is tried again");
                        tokio::time::sleep(LOOK_AGAIN).await;
                    }
                }
                continue;
            };
            let next = tokio::select! {
                biased;
                _ = self.connects.changed() => None,
                next = open.messages.next() => next.and_then(Result::ok),
            };
            let Some(message) = next else {
                self.open = None;
                continue;
            };
            if let Some(followed) = self.take(&message) {
                return followed;
            }
        }
    }

    /// The message, if it is the next one; after anything else the consumer is made anew.
    fn take(&mut self, message: &Message) -> Option<Followed> {
        let open = self.open.take();
        let (mut open, info) = (open?, message.info().ok()?);
        if info.consumer_sequence != open.last + 1 {
            return None;
        }
        open.last = info.consumer_sequence;
        let (position, at) = (info.stream_sequence, info.published.unix_timestamp_nanos());
        let logged = match delivered(message, position, at) {
            Ok(logged) => Some(Followed::Message(logged)),
            Err(error @ Unreadable::Newer { .. }) => {
                self.connection.health.halt(error.to_string());
                return None;
            }
            Err(error) => {
                tracing::error!(%error, "a message of the log is skipped");
                None
            }
        };
        (self.position, self.written, self.open) = (position, Some(time(at)), Some(open));
        logged
    }

    fn reset(&mut self, position: Position) -> Followed {
        tracing::warn!(from = self.position, to = position, "the log of NATS was made anew or has lost its end");
        self.connection.health.count("reset");
        (self.position, self.written) = (position, None);
        Followed::Reset(position)
    }

    /// Makes the consumer; gives a position where the log is not what it was.
    async fn reopen(&mut self) -> Result<Option<Position>, ServerError> {
        self.connection.until_up().await;
        self.connects.borrow_and_update();
        self.connection.check()?;
        let log = &self.connection.log;
        let info = log.get_info().await.map_err(|error| {
            self.connection.doubt();
            away(error)
        })?;
        let made = info.created.unix_timestamp_nanos();
        if self.made.replace(made).is_some_and(|before| before != made) {
            return Ok(Some(0));
        }
        if let Some(position) = self.lost_end(info).await? {
            return Ok(Some(position));
        }
        let config = passing(LOG_SUBJECTS, self.position, LEAVES_AFTER);
        let consumer: PullConsumer = log.create_consumer(config).await.map_err(away)?;
        let messages = consumer.stream().heartbeat(HEARTBEAT).expires(REQUEST).messages().await.map_err(away)?;
        self.open = Some(Open { messages, last: 0 });
        Ok(None)
    }

    /// The position before which the log is as it was; None: all of it is.
    async fn lost_end(&self, mut info: Info) -> Result<Option<Position>, ServerError> {
        let log = &self.connection.log;
        if info.state.last_sequence < self.position {
            tokio::time::sleep(IS_SHORT_FOR).await;
            info = log.get_info().await.map_err(away)?;
        }
        if info.state.last_sequence < self.position {
            return Ok(Some(info.state.last_sequence));
        }
        let Some(written) = self.written else { return Ok(None) };
        // Not to be had any more is no contradiction: it was purged.
        let there = log.get_raw_message(self.position).await.ok();
        let is_other = there.is_some_and(|there| time(there.time.unix_timestamp_nanos()) != written);
        Ok(is_other.then(|| info.state.first_sequence.saturating_sub(1)))
    }
}
