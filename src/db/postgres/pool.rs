//! A few connections, made when needed and thrown away at the first doubt.

use std::sync::Arc;
use std::time::Duration;

use diesel_async::AsyncPgConnection;
use futures_util::future::BoxFuture;
use parking_lot::Mutex;
use tokio::sync::Semaphore;

use super::connect::Connector;
use crate::db::StoreError;

/// Longest time that a caller waits for one piece of work, beyond the server's own statement time-out.
const CALL_TIMEOUT: Duration = Duration::from_secs(15);

pub struct Pool {
    connector: Connector,
    idle: Mutex<Vec<AsyncPgConnection>>,
    permits: Semaphore,
}

impl Pool {
    pub fn new(connector: Connector, size: usize) -> Arc<Self> {
        Arc::new(Self { connector, idle: Mutex::default(), permits: Semaphore::new(size) })
    }

    /// Runs `work` on a connection. One that was idle may have died since: then `work` is repeated on a new one, so it
    /// must be idempotent.
    pub async fn run<T, F>(&self, work: F) -> Result<T, StoreError>
    where
        F: for<'c> Fn(&'c mut AsyncPgConnection) -> BoxFuture<'c, Result<T, StoreError>>,
    {
        let _permit = self.permits.acquire().await.expect("the semaphore is never closed");
        let idle = self.idle.lock().pop();
        if let Some(connection) = idle {
            match self.run_on(connection, &work).await {
                Err(error) if error.breaks_connection() => self.idle.lock().clear(),
                result => return result,
            }
        }
        let connection = self.connector.connect().await?;
        self.run_on(connection, &work).await
    }

    async fn run_on<T, F>(&self, mut connection: AsyncPgConnection, work: &F) -> Result<T, StoreError>
    where
        F: for<'c> Fn(&'c mut AsyncPgConnection) -> BoxFuture<'c, Result<T, StoreError>>,
    {
        let timed_out = |_| Err(StoreError::Unavailable(format!("no answer within {} s", CALL_TIMEOUT.as_secs())));
        let result = tokio::time::timeout(CALL_TIMEOUT, work(&mut connection)).await.unwrap_or_else(timed_out);
        if !result.as_ref().is_err_and(StoreError::breaks_connection) {
            self.idle.lock().push(connection);
        }
        result
    }

    /// A connection of its own, outside the pool.
    pub async fn direct(&self) -> Result<AsyncPgConnection, StoreError> {
        self.connector.connect().await
    }
}
