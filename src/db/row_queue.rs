//! The queue of rows that the `BatchWriter` reads.

use std::sync::Arc;

use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use tokio::sync::watch;

use crate::transcript::outbox::{Consumer, OutboxError, Stored};

/// The source of rows: the outbox, or a stand-in of a test.
pub trait RowQueue: Send + Sync + 'static {
    /// Changes to the index of the last row.
    fn watch(&self) -> watch::Receiver<u64>;
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
