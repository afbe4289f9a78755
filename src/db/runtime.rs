//! The one tokio runtime that all database work runs on.
//!
//! On actix's single-thread runtime a cancelled query panics, and a panic while one is in flight aborts the process.
//! Here a caller holds nothing but a join handle: dropping it leaves the work to finish by itself.

use std::future::Future;
use std::io;
use std::sync::Arc;

use tokio::runtime::{Builder, Handle, Runtime};

use super::error::StoreError;

const THREADS: usize = 2;

/// Cheap to clone; ends in the background with its last clone.
#[derive(Clone)]
pub struct DbRuntime {
    handle: Handle,
    _owned: Option<Arc<Owned>>,
}

struct Owned(Option<Runtime>);

impl DbRuntime {
    pub fn start() -> io::Result<Self> {
        let runtime =
            Builder::new_multi_thread().worker_threads(THREADS).thread_name("database").enable_all().build()?;
        Ok(Self { handle: runtime.handle().clone(), _owned: Some(Arc::new(Owned(Some(runtime)))) })
    }

    /// Work runs on the caller's runtime, so that a paused clock governs it.
    #[cfg(test)]
    pub fn current() -> Self {
        Self { handle: Handle::current(), _owned: None }
    }

    pub fn handle(&self) -> &Handle {
        &self.handle
    }

    /// Starts the work at once; it goes on when the returned future is dropped.
    pub fn run<T, F>(&self, work: F) -> impl Future<Output = Result<T, StoreError>> + Send + use<T, F>
    where
        T: Send + 'static,
        F: Future<Output = Result<T, StoreError>> + Send + 'static,
    {
        let task = self.handle.spawn(work);
        async move { task.await.unwrap_or_else(|e| Err(StoreError::Internal(e.to_string()))) }
    }
}

impl Drop for Owned {
    fn drop(&mut self) {
        // A plain drop would block, which tokio forbids within another runtime.
        if let Some(runtime) = self.0.take() {
            runtime.shutdown_background();
        }
    }
}
