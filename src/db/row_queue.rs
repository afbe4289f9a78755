//! The queue of rows that the `BatchWriter` reads.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use parking_lot::Mutex;
use tokio::sync::watch;

use crate::transcript::outbox::{Consumer, OutboxError, Stored};

/// The source of rows: the outbox, the log server of a cluster, both, or a stand-in of a test.
pub trait RowQueue: Send + Sync + 'static {
    /// Changes to the index of the last row.
    fn watch(&self) -> watch::Receiver<u64>;
    /// Index of the last row.
    fn last(&self) -> u64 {
        *self.watch().borrow()
    }
    /// Index of the last row read.
    fn position(&self) -> u64;
    fn read(self: Arc<Self>, max: usize) -> BoxFuture<'static, Result<Vec<Stored>, OutboxError>>;
    /// Everything up to `index` is in the database.
    fn confirm(&self, index: u64);
}

impl RowQueue for Consumer {
    fn watch(&self) -> watch::Receiver<u64> {
        Consumer::watch(self)
    }
    fn position(&self) -> u64 {
        Consumer::position(self)
    }
    fn read(self: Arc<Self>, max: usize) -> BoxFuture<'static, Result<Vec<Stored>, OutboxError>> {
        async move { Consumer::read(&self, max).await }.boxed()
    }
    fn confirm(&self, index: u64) {
        Consumer::confirm(self, index);
    }
}

/// Two queues as one. Its indexes are the sums of theirs.
pub struct BothQueues {
    queues: [Arc<dyn RowQueue>; 2],
    last: watch::Sender<u64>,
    /// Positions of the two after each read that is not confirmed, with their sum.
    reads: Mutex<VecDeque<(u64, [u64; 2])>>,
    /// The one that is read first: a backlog of one does not hold up the other.
    second_first: AtomicBool,
}

impl BothQueues {
    /// Within a runtime.
    pub fn new(queues: [Arc<dyn RowQueue>; 2]) -> Arc<Self> {
        let both = Self { queues, last: watch::Sender::new(0), reads: Mutex::default(), second_first: false.into() };
        both.last.send_replace(both.last());
        let both = Arc::new(both);
        let weak = Arc::downgrade(&both);
        let [mut a, mut b] = [both.queues[0].watch(), both.queues[1].watch()];
        tokio::spawn(async move {
            loop {
                let result = tokio::select! {
                    result = a.changed() => result,
                    result = b.changed() => result,
                };
                // A queue that has closed gives no more, and what is in it comes after a restart.
                let (Ok(()), Some(both)) = (result, weak.upgrade()) else { return };
                both.last.send_replace(*a.borrow() + *b.borrow());
            }
        });
        both
    }

    fn positions(&self) -> [u64; 2] {
        [self.queues[0].position(), self.queues[1].position()]
    }

    async fn read_both(&self, max: usize) -> Result<Vec<Stored>, OutboxError> {
        let second_first = self.second_first.fetch_xor(true, Ordering::Relaxed);
        let order = if second_first { [1, 0] } else { [0, 1] };
        let (mut rows, mut fault) = (Vec::new(), None);
        for n in order {
            match self.queues[n].clone().read(max - rows.len()).await {
                Ok(more) => rows.extend(more),
                Err(error) => fault = Some(error),
            }
            if rows.len() >= max {
                break;
            }
        }
        let positions = self.positions();
        self.reads.lock().push_back((positions.iter().sum(), positions));
        match fault {
            Some(error) if rows.is_empty() => Err(error),
            _ => Ok(rows),
        }
    }
}

impl RowQueue for BothQueues {
    fn watch(&self) -> watch::Receiver<u64> {
        self.last.subscribe()
    }
    fn last(&self) -> u64 {
        self.queues.iter().map(|queue| queue.last()).sum()
    }
    fn position(&self) -> u64 {
        self.positions().iter().sum()
    }
    fn read(self: Arc<Self>, max: usize) -> BoxFuture<'static, Result<Vec<Stored>, OutboxError>> {
        async move { self.read_both(max).await }.boxed()
    }
    fn confirm(&self, index: u64) {
        let mut reads = self.reads.lock();
        let mut confirmed = None;
        while reads.front().is_some_and(|(sum, _)| *sum <= index) {
            confirmed = reads.pop_front().map(|(_, positions)| positions);
        }
        for (queue, position) in self.queues.iter().zip(confirmed.into_iter().flatten()) {
            queue.confirm(position);
        }
    }
}
