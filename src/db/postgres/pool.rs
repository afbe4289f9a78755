//! A few connections, made when needed and thrown away at the first doubt, or when nothing has needed them for a while.

use std::sync::{Arc, Weak};
use std::time::Duration;

use futures_util::future::BoxFuture;
use parking_lot::Mutex;
use tokio::sync::{Semaphore, SemaphorePermit};
use tokio::time::Instant;

use super::connect::Connector;
use super::connection::PgConnection;
use crate::db::StoreError;

/// Longest time that a caller waits for one piece of work, beyond the server's own statement time-out.
const CALL_TIMEOUT: Duration = Duration::from_secs(15);

pub struct Pool {
    pub connector: Connector,
    shelf: Mutex<Shelf>,
    permits: Semaphore,
}

#[derive(Default)]
struct Shelf {
    idle: Vec<Idle>,
    /// Somebody closes them in time.
    is_watched: bool,
}

struct Idle {
    connection: PgConnection,
    since: Instant,
}

impl Pool {
    /// At most `size` connections, or fewer where the URL says so.
    pub fn new(connector: Connector, size: usize) -> Arc<Self> {
        let size = connector.connection_limit.map_or(size, |limit| limit.min(size));
        Arc::new(Self { connector, shelf: Mutex::default(), permits: Semaphore::new(size) })
    }

    /// Runs `work` in a transaction. A connection that was idle may have died since: then `work` is repeated on a new one,
    /// so it must be idempotent.
    pub async fn run<T, F>(self: &Arc<Self>, work: F) -> Result<T, StoreError>
    where
        F: for<'c> Fn(&'c mut PgConnection) -> BoxFuture<'c, Result<T, StoreError>>,
    {
        let _permit = self.permit().await?;
        let idle = self.shelf.lock().idle.pop();
        if let Some(Idle { connection, .. }) = idle {
            match self.run_on(connection, &work).await {
                Err(error) if error.breaks_connection() => self.forget(),
                result => return result,
            }
        }
        let connection = self.connector.connect().await?;
        self.run_on(connection, &work).await
    }

    async fn run_on<T, F>(self: &Arc<Self>, mut connection: PgConnection, work: &F) -> Result<T, StoreError>
    where
        F: for<'c> Fn(&'c mut PgConnection) -> BoxFuture<'c, Result<T, StoreError>>,
    {
        let timed_out = |_| Err(StoreError::Unavailable(format!("no answer within {} s", CALL_TIMEOUT.as_secs())));
        let transaction = connection.transaction(&self.connector.settings, work);
        let result = tokio::time::timeout(CALL_TIMEOUT, transaction).await.unwrap_or_else(timed_out);
        if !result.as_ref().is_err_and(StoreError::breaks_connection) {
            self.keep(connection);
        }
        result
    }

    async fn permit(&self) -> Result<SemaphorePermit<'_>, StoreError> {
        let permit = self.permits.acquire();
        let permit = match self.connector.pool_timeout {
            Some(limit) => tokio::time::timeout(limit, permit).await.map_err(|_| {
                StoreError::Unavailable(format!("no connection of the pool was free within {} s", limit.as_secs()))
            })?,
            None => permit.await,
        };
        Ok(permit.expect("the semaphore is never closed"))
    }

    fn keep(self: &Arc<Self>, connection: PgConnection) {
        let mut shelf = self.shelf.lock();
        shelf.idle.push(Idle { connection, since: Instant::now() });
        if !std::mem::replace(&mut shelf.is_watched, true) {
            tokio::spawn(close_idle(Arc::downgrade(self)));
        }
    }

    /// Lets go of every connection: the next call opens a new one.
    pub fn forget(&self) {
        self.shelf.lock().idle.clear();
    }

    /// A connection of its own, outside the pool.
    pub async fn direct(&self) -> Result<PgConnection, StoreError> {
        self.connector.connect().await
    }
}

/// Ends when there is none left.
async fn close_idle(pool: Weak<Pool>) {
    loop {
        let Some(limit) = pool.upgrade().map(|pool| pool.connector.idle_timeout) else { return };
        tokio::time::sleep(limit / 2).await;
        let Some(pool) = pool.upgrade() else { return };
        let mut shelf = pool.shelf.lock();
        shelf.idle.retain(|one| one.since.elapsed() < limit);
        if shelf.idle.is_empty() {
            shelf.is_watched = false;
            return;
        }
    }
}
