//! Messages for the database: one consumer of all nodes together, so that each message is given to one of them.

use std::time::Duration;

use async_nats::Client;
use async_nats::jetstream::Message;
use async_nats::jetstream::consumer::{Consumer, pull};
use bytes::Bytes;
use futures_util::future::BoxFuture;
use futures_util::{FutureExt, StreamExt};

use super::link::{ANSWER, Connection};
use super::log::away;
use super::message::{Unreadable, delivered};
use super::names::DATABASE;
use crate::bus::log_server::{Receipt, ServerError, Work};

/// How long one request for a message lasts.
const REQUEST: Duration = Duration::from_secs(5);

type Database = Consumer<pull::Config>;

impl Connection {
    pub async fn work(&self, limit: usize) -> Result<Vec<Work>, ServerError> {
        if limit == 0 {
            return Ok(Vec::new());
        }
        self.check()?;
        let consumer: Database = self.log.get_consumer(DATABASE).await.map_err(|error| self.no_consumer(&error))?;
        loop {
            self.check()?;
            let mut work = Vec::new();
            let at_hand = consumer.fetch().max_messages(limit).messages().await.map_err(away)?;
            // A server that does not answer is not waited for; what it has given by then is of this node.
            tokio::time::timeout(ANSWER, self.collect(at_hand, &mut work)).await.unwrap_or(Ok(()))?;
            if !work.is_empty() {
                return Ok(work);
            }
            let next = consumer.batch().max_messages(1).expires(REQUEST).messages().await.map_err(away)?;
            tokio::select! {
                taken = self.collect(next, &mut work) => taken?,
                () = self.until_away() => {}
            }
            if !work.is_empty() {
                return Ok(work);
            }
        }
    }

    fn no_consumer(&self, error: &dyn std::fmt::Display) -> ServerError {
        self.doubt();
        away(error)
    }

    async fn collect(&self, mut batch: pull::Batch, work: &mut Vec<Work>) -> Result<(), ServerError> {
        while let Some(message) = batch.next().await {
            let message = message.map_err(|error| self.no_consumer(&error))?;
            work.extend(self.accept(&message)?);
        }
        Ok(())
    }

    fn accept(&self, message: &Message) -> Result<Option<Work>, ServerError> {
        let (Ok(info), Some(reply)) = (message.info(), message.reply.clone()) else { return Ok(None) };
        let receipt = Box::new(Ack { client: self.client.clone(), reply: reply.to_string(), is_done: false });
        match delivered(message, info.stream_sequence, info.published.unix_timestamp_nanos()) {
            Ok(logged) => Ok(Some(Work { logged, receipt })),
            Err(error @ Unreadable::Newer { .. }) => Err(self.unreadable(&error)),
            Err(error) => {
                tracing::error!(%error, "a message of the log is skipped");
                receipt.say(b"+TERM");
                Ok(None)
            }
        }
    }
}

/// The receipt of one delivery.
struct Ack {
    client: Client,
    reply: String,
    is_done: bool,
}

impl Ack {
    /// Says it if the client has room for it; otherwise the message comes again.
    fn say(&self, word: &'static [u8]) {
        let _ = self.client.publish(self.reply.clone(), Bytes::from_static(word)).now_or_never();
    }
}

impl Receipt for Ack {
    fn done(mut self: Box<Self>) -> BoxFuture<'static, ()> {
        self.is_done = true;
        Box::pin(async move {
            let _ = self.client.publish(self.reply.clone(), Bytes::from_static(b"+ACK")).await;
        })
    }

    fn is_in_work(&self) -> BoxFuture<'static, ()> {
        self.say(b"+WPI");
        Box::pin(std::future::ready(()))
    }
}

impl Drop for Ack {
    fn drop(&mut self) {
        if !self.is_done {
            // In nanoseconds.
            self.say(br#"-NAK {"delay": 2000000000}"#);
        }
    }
}
