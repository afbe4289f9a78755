//! What nodes say to each other without anybody keeping it.

use std::time::Duration;

use async_nats::client::RequestErrorKind;
use async_nats::{Message, Request};
use bytes::Bytes;
use futures_util::stream::{self, BoxStream};
use futures_util::{FutureExt, StreamExt};

use super::link::Connection;
use super::names::{node_subject, topic_subject};
use crate::bus::log_server::{Question, Topic, Unanswered};

impl Connection {
    pub async fn ask(&self, node: &str, request: Bytes, within: Duration) -> Result<Bytes, Unanswered> {
        self.check().map_err(|error| Unanswered::Away(error.to_string()))?;
        let request = Request::new().payload(request).timeout(Some(within));
        // The library's limit does not count the wait for its own queue.
        let answer = tokio::time::timeout(within, self.client.send_request(node_subject(node), request));
        match answer.await {
            Ok(Ok(answer)) => Ok(answer.payload),
            Ok(Err(error)) if error.kind() == RequestErrorKind::NoResponders => Err(Unanswered::Nobody),
            Ok(Err(error)) if error.kind() != RequestErrorKind::TimedOut => Err(Unanswered::Away(error.to_string())),
            _ => Err(Unanswered::Late),
        }
    }

    pub fn questions(&self, node: &str) -> BoxStream<'static, Question> {
        let client = self.client.clone();
        let question = move |message: Message| {
            let (client, reply) = (client.clone(), message.reply?);
            // An answer that does not fit into the client's queue is late anyway.
            let answer = move |body: Bytes| drop(client.publish(reply, body).now_or_never());
            Some(Question { request: message.payload, answer: Box::new(answer) })
        };
        self.subscribe(node_subject(node)).filter_map(move |message| std::future::ready(question(message))).boxed()
    }

    /// Says nothing while the server is away: the client would keep it and say it late.
    pub fn tell(&self, topic: &Topic, body: Bytes) {
        if self.check().is_ok() {
            let _ = self.client.publish(topic_subject(topic), body).now_or_never();
        }
    }

    pub fn hear(&self, topic: &Topic) -> BoxStream<'static, Bytes> {
        self.subscribe(topic_subject(topic)).map(|message| message.payload).boxed()
    }

    /// Begins at once where the client's queue has room for it. The library subscribes again after each connect, and not any
    /// more once this is dropped.
    fn subscribe(&self, subject: String) -> BoxStream<'static, Message> {
        let client = self.client.clone();
        let mut asked = Box::pin(async move { client.subscribe(subject).await.ok() });
        let now = asked.as_mut().now_or_never();
        let subscriber = async move {
            match now {
                Some(subscriber) => subscriber,
                None => asked.await,
            }
        };
        stream::once(subscriber).filter_map(std::future::ready).flatten().chain(stream::pending()).boxed()
    }
}
