//! What nodes say to each other without anybody keeping it.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::StreamExt;
use futures_util::stream::{self, BoxStream};
use parking_lot::Mutex;
use tokio::sync::{mpsc, oneshot};
use tokio::time::Instant;

use super::network::{Call, Wire};
use super::{MemoryClient, Shared};
use crate::bus::log_server::{Question, Topic, Unanswered};

/// Who listens to what.
#[derive(Default)]
pub struct Talk {
    nodes: HashMap<String, Vec<Listener<Question>>>,
    topics: HashMap<Topic, Vec<Listener<Bytes>>>,
}

struct Listener<T> {
    wire: Arc<Wire>,
    sender: mpsc::UnboundedSender<T>,
}

impl<T> Listener<T> {
    /// It reads, as far as the server can know.
    fn is_there(&self) -> bool {
        !self.sender.is_closed() && !self.wire.is_cut()
    }
}

type Slot = Arc<Mutex<Option<oneshot::Sender<Bytes>>>>;

impl Talk {
    fn ask(&mut self, node: &str, request: &Bytes, slot: &Slot) -> Result<(), Unanswered> {
        let listeners = self.nodes.get_mut(node).ok_or(Unanswered::Nobody)?;
        listeners.retain(|listener| !listener.sender.is_closed());
        let mut there = listeners.iter().filter(|listener| listener.is_there()).peekable();
        there.peek().ok_or(Unanswered::Nobody)?;
        for listener in there {
            let (slot, wire) = (slot.clone(), listener.wire.clone());
            let answer = move |answer: Bytes| {
                if let Some(asker) = slot.lock().take().filter(|_| wire.is_up()) {
                    let _ = asker.send(answer);
                }
            };
            let _ = listener.sender.send(Question { request: request.clone(), answer: Box::new(answer) });
        }
        Ok(())
    }

    pub fn tell(&mut self, topic: &Topic, body: &Bytes) {
        let Some(listeners) = self.topics.get_mut(topic) else { return };
        listeners.retain(|listener| !listener.sender.is_closed());
        for listener in listeners.iter().filter(|listener| listener.wire.is_up()) {
            let _ = listener.sender.send(body.clone());
        }
    }
}

impl MemoryClient {
    pub(super) async fn ask_node(&self, node: &str, request: Bytes, within: Duration) -> Result<Bytes, Unanswered> {
        let away = || Err(Unanswered::Away("the connection is cut".to_owned()));
        if self.wire.is_cut() {
            return away();
        }
        let deadline = Instant::now() + within;
        let journey = self.wire.journey(Call::Ask);
        let (sender, answer) = oneshot::channel();
        let (shared, wire, node) = (self.shared.clone(), self.wire.clone(), node.to_owned());
        let asked = async move {
            if !wire.pass(journey.there).await {
                return std::future::pending().await;
            }
            shared
                .carry_out(Call::Ask, |state| state.talk.ask(&node, &request, &Arc::new(Mutex::new(Some(sender)))))?;
            // Nobody answers a question that was dropped.
            let Ok(answer) = answer.await else { return std::future::pending().await };
            if !wire.pass(journey.back).await {
                return std::future::pending().await;
            }
            Ok(answer)
        };
        match tokio::time::timeout_at(deadline, self.on_its_way(asked)).await {
            Ok(answer) => answer,
            Err(_) if self.wire.is_cut() => away(),
            Err(_) => Err(Unanswered::Late),
        }
    }

    pub(super) fn listen_as(&self, node: &str) -> BoxStream<'static, Question> {
        let node = node.to_owned();
        let questions = listen(&self.wire, &self.shared, |talk, listener| {
            talk.nodes.entry(node).or_default().push(listener);
        });
        let wire = self.wire.clone();
        questions
            .then(move |question| {
                let wire = wire.clone();
                async move {
                    wire.until_thawed().await;
                    question
                }
            })
            .boxed()
    }

    pub(super) fn listen_to(&self, topic: Topic) -> BoxStream<'static, Bytes> {
        listen(&self.wire, &self.shared, |talk, listener| talk.topics.entry(topic).or_default().push(listener))
    }
}

/// Begins at once, and ends only by being dropped.
fn listen<T: Send + 'static>(
    wire: &Arc<Wire>,
    shared: &Shared,
    add: impl FnOnce(&mut Talk, Listener<T>),
) -> BoxStream<'static, T> {
    let (sender, receiver) = mpsc::unbounded_channel();
    shared.change(|state| add(&mut state.talk, Listener { wire: wire.clone(), sender }));
    let wire = wire.clone();
    let heard = stream::unfold((receiver, wire), |(mut receiver, wire)| async move {
        let heard = receiver.recv().await?;
        wire.until_up().await;
        Some((heard, (receiver, wire)))
    });
    heard.chain(stream::pending()).boxed()
}
