//! Stopping a server, in one ordered function: doors, publishers, sessions, viewers, rows, HTTP, threads.

use std::time::Duration;

use actix::prelude::*;
use tokio::time::Instant;

use super::{App, CLOSE_TIMEOUT};
use crate::actors::Shutdown;
use crate::actors::batch_writer::Flush;
use crate::actors::rtmp_listener::StopAccepting;
use crate::actors::session_registry::DrainAll;

/// Kept back from the sessions' share of the shutdown time, for what comes after them.
const AFTER_SESSIONS: Duration = Duration::from_secs(4);

/// The rest that a stop has left.
#[derive(Debug, Clone, Copy)]
pub struct ShutdownReport {
    /// Rows that the database has not confirmed; they are in the outbox.
    pub rows_left: u64,
    /// No thread uses `DATA_DIR` any more: another server may start on it.
    pub is_released: bool,
    pub elapsed: Duration,
}

impl App {
    /// Stops in order: doors, publishers, sessions, viewers, rows, HTTP, threads.
    pub async fn shutdown(self) -> ShutdownReport {
        let begun = Instant::now();
        let deadline = begun + self.config.server.shutdown_timeout;
        self.draining.send_replace(true);
        let _ = self.root.send(StopAccepting).await;
        let share = self.config.server.shutdown_timeout / 4;
        let sessions_by = deadline - AFTER_SESSIONS.min(share * 2);
        let drained = self.root.send(DrainAll { deadline: sessions_by });
        if tokio::time::timeout_at(sessions_by + Duration::from_millis(500), drained).await.is_err() {
            tracing::warn!("not every session finished in time; the outbox and checkpoints hold what is left");
        }
        self.viewers.close_all();
        let closed = async {
            while !self.viewers.is_empty() {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        };
        let _ = tokio::time::timeout_at(deadline.min(Instant::now() + CLOSE_TIMEOUT.min(share)), closed).await;
        let left = deadline.saturating_duration_since(Instant::now()).max(Duration::from_millis(500));
        let flushed = self.root.send(Flush { deadline: left });
        let rows_left = match tokio::time::timeout(left + Duration::from_millis(100), flushed).await {
            Ok(Ok(left)) => left,
            _ => self.metrics.outbox_rows.get().max(0) as u64,
        };
        self.server.stop(false).await;
        let _ = self.root.send(Shutdown).await;
        for arbiter in &self.arbiters {
            arbiter.stop();
        }
        let are_joined = join(self.arbiters);
        self.checkpoints.flush();
        let _ = self.storage.outbox.sync().await;
        // The server's end does not wait for its workers, which hold on to the storage.
        let workers = async {
            while self.http_state.strong_count() > 0 {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        let are_gone = tokio::time::timeout(CLOSE_TIMEOUT, workers).await.is_ok();
        ShutdownReport { rows_left, is_released: are_joined && are_gone, elapsed: begun.elapsed() }
    }
}

/// Waits for the arbiters' threads; a hung one does not hold up the exit, and makes this false.
fn join(arbiters: Vec<Arbiter>) -> bool {
    let (done, wait) = std::sync::mpsc::channel();
    std::thread::spawn(move || {
        for arbiter in arbiters {
            let _ = arbiter.join();
        }
        let _ = done.send(());
    });
    wait.recv_timeout(CLOSE_TIMEOUT).is_ok()
}
