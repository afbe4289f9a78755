//! A bounded queue between two actors of one session that outlives both.
//!
//! A panic drops an actor with its mailbox, so nothing that must not be lost travels in one. An `Edge` belongs to the
//! session: the writer waits when it is full, the reader looks at an item, finishes its work and only then removes it.
//! An actor that dies in between leaves the item for its successor. One writer, one reader.

use std::collections::VecDeque;

use std::sync::atomic::{AtomicU64, Ordering};

use parking_lot::Mutex;
use tokio::sync::Notify;
use tokio::time::Instant;

/// A bounded at-least-once queue between two actors: peek, then pop.
pub struct Edge<T> {
    queue: Mutex<VecDeque<T>>,
    capacity: usize,
    readable: Notify,
    writable: Notify,
    popped: AtomicU64,
    last_push: Mutex<Option<Instant>>,
}

impl<T: Clone> Edge<T> {
    pub fn new(capacity: usize) -> Self {
        Self {
            queue: Mutex::new(VecDeque::new()),
            capacity: capacity.max(1),
            readable: Notify::new(),
            writable: Notify::new(),
            popped: AtomicU64::new(0),
            last_push: Mutex::new(None),
        }
    }

    /// Adds an item, waiting for room. Cancel-safe: a dropped future has added nothing.
    pub async fn push(&self, item: T) {
        loop {
            {
                let mut queue = self.queue.lock();
                if queue.len() < self.capacity {
                    queue.push_back(item);
                    break;
                }
            }
            self.writable.notified().await;
        }
        self.pushed();
    }

    /// Adds an item at once, or gives it back when the queue is full.
    pub fn try_push(&self, item: T) -> Result<(), T> {
        let mut queue = self.queue.lock();
        if queue.len() >= self.capacity {
            return Err(item);
        }
        queue.push_back(item);
        drop(queue);
        self.pushed();
        Ok(())
    }

    /// Adds an item whatever the length. For control entries that are few by nature.
    pub fn push_unbounded(&self, item: T) {
        self.queue.lock().push_back(item);
        self.pushed();
    }

    /// The item at `index` from the front, waiting until it is there. It stays in the queue.
    pub async fn peek(&self, index: usize) -> T {
        loop {
            if let Some(item) = self.queue.lock().get(index) {
                return item.clone();
            }
            self.readable.notified().await;
        }
    }

    /// Removes the front item.
    pub fn pop(&self) -> Option<T> {
        let item = self.queue.lock().pop_front();
        self.popped.fetch_add(1, Ordering::Relaxed);
        self.writable.notify_one();
        item
    }

    /// Makes room: removes the oldest item that need not be kept. If several kept items
    /// lead the queue, the oldest of them goes.
    pub fn shed(&self, is_kept: impl Fn(&T) -> bool) -> Option<T> {
        let mut queue = self.queue.lock();
        let item = match queue.iter().position(|item| !is_kept(item)) {
            Some(first @ 0..=1) => queue.remove(first),
            _ => queue.pop_front(),
        };
        drop(queue);
        self.popped.fetch_add(1, Ordering::Relaxed);
        self.writable.notify_one();
        item
    }

    /// Does an item like this wait?
    pub fn any(&self, is_it: impl FnMut(&T) -> bool) -> bool {
        self.queue.lock().iter().any(is_it)
    }

    pub fn len(&self) -> usize {
        self.queue.lock().len()
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    pub fn capacity(&self) -> usize {
        self.capacity
    }

    /// Items removed so far: a filled edge whose number stands still has a frozen reader.
    pub fn popped(&self) -> u64 {
        self.popped.load(Ordering::Relaxed)
    }

    /// Time of the writer's last addition.
    pub fn last_push(&self) -> Option<Instant> {
        *self.last_push.lock()
    }

    fn pushed(&self) {
        *self.last_push.lock() = Some(Instant::now());
        self.readable.notify_one();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;

    #[tokio::test]
    async fn the_writer_waits_and_order_is_kept() {
        let edge = Arc::new(Edge::new(2));
        let writer = edge.clone();
        let task = tokio::spawn(async move {
            for n in 0..100 {
                writer.push(n).await;
            }
        });
        for n in 0..100 {
            assert_eq!(edge.peek(0).await, n);
            assert!(edge.len() <= 2);
            edge.pop();
        }
        task.await.unwrap();
    }

    #[tokio::test]
    async fn what_is_kept_outlives_what_came_after_it() {
        let edge = Edge::new(9);
        for item in ["A", "a", "a", "B", "C", "c"] {
            edge.push(item).await;
        }
        let is_kept = |item: &&str| item.chars().all(char::is_uppercase);
        let shed: Vec<_> = std::iter::from_fn(|| edge.shed(is_kept)).collect();
        assert_eq!(shed, ["a", "a", "A", "B", "c", "C"]);
    }

    #[tokio::test]
    async fn an_item_looked_at_stays_for_the_next_reader() {
        let edge = Edge::new(4);
        edge.push("a").await;
        edge.push("b").await;
        assert_eq!(edge.peek(1).await, "b");
        assert_eq!(edge.peek(0).await, "a");
        assert_eq!(edge.len(), 2);
        assert_eq!(edge.pop(), Some("a"));
        assert_eq!(edge.try_push("c"), Ok(()));
    }
}
