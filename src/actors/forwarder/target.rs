//! The node that a `Forwarder` sends to, as far as all rooms share it: whether it answers, and who may try.
//!
//! While it does not answer, one room at a time tries, at growing intervals; the others wait for its success. So a node
//! that comes back meets one request, and a token that is refused is not tried by every room.

use std::cell::{Cell, RefCell};
use std::time::Duration;

use tokio::sync::{Notify, Semaphore, SemaphorePermit};
use tokio::time::Instant;

use crate::actors::supervision::backoff;
use crate::bus::Outcome;
use crate::metrics::Metrics;

/// Requests under way at a time.
const MAX_IN_FLIGHT: usize = 64;
const BACKOFF_FIRST: Duration = Duration::from_millis(50);
const BACKOFF_MOST: Duration = Duration::from_secs(5);
/// Pause after a refusal that only a person can end.
const REFUSED_PAUSE: Duration = Duration::from_secs(15);

/// What is known of the node.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TargetState {
    /// Nothing was sent yet.
    Unknown,
    Up,
    Down,
    /// Our token is not accepted there.
    Denied,
    /// It does not understand us.
    Incompatible,
}

impl TargetState {
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Unknown => "unknown",
            Self::Up => "up",
            Self::Down => "down",
            Self::Denied => "denied",
            Self::Incompatible => "incompatible",
        }
    }
}

pub(super) struct Target {
    pub url: String,
    state: Cell<TargetState>,
    fault: RefCell<Option<String>>,
    failures: Cell<u32>,
    retry_at: Cell<Option<Instant>>,
    is_probing: Cell<bool>,
    changed: Notify,
    in_flight: Semaphore,
}

/// The right to one request.
pub(super) struct Turn<'a> {
    target: &'a Target,
    is_probe: bool,
    _permit: SemaphorePermit<'a>,
}

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        if self.is_probe {
            self.target.is_probing.set(false);
            self.target.changed.notify_waiters();
        }
    }
}

impl Target {
    pub fn new(url: String) -> Self {
        Self {
            url,
            state: Cell::new(TargetState::Unknown),
            fault: RefCell::new(None),
            failures: Cell::new(0),
            retry_at: Cell::new(None),
            is_probing: Cell::new(false),
            changed: Notify::new(),
            in_flight: Semaphore::new(MAX_IN_FLIGHT),
        }
    }

    pub fn state(&self) -> TargetState {
        self.state.get()
    }

    pub fn fault(&self) -> Option<String> {
        self.fault.borrow().clone()
    }

    /// Waits for one's turn.
    pub async fn turn(&self) -> Turn<'_> {
        loop {
            let Some(retry_at) = self.retry_at.get() else {
                let permit = self.in_flight.acquire().await.expect("the semaphore is never closed");
                if self.retry_at.get().is_none() {
                    return Turn { target: self, is_probe: false, _permit: permit };
                }
                continue;
            };
            let changed = self.changed.notified();
            tokio::pin!(changed);
            changed.as_mut().enable();
            if !self.is_probing.get() && retry_at <= Instant::now() {
                let permit = self.in_flight.acquire().await.expect("the semaphore is never closed");
                if !self.is_probing.replace(true) {
                    return Turn { target: self, is_probe: true, _permit: permit };
                }
                continue;
            }
            let pause = retry_at.max(Instant::now() + Duration::from_millis(1));
            match self.is_probing.get() {
                true => changed.await,
                false => tokio::select! {
                    () = changed => {}
                    () = tokio::time::sleep_until(pause) => {}
                },
            }
        }
    }

    /// It took something.
    pub fn is_up(&self, metrics: &Metrics) {
        if self.state.replace(TargetState::Up) != TargetState::Up {
            tracing::info!(target_url = self.url, "ws node takes entries");
            metrics.forward_target_up.with_label_values(&[&self.url]).set(1);
        }
        self.failures.set(0);
        self.fault.take();
        if self.retry_at.take().is_some() {
            self.changed.notify_waiters();
        }
    }

    /// It did not answer, or said that it cannot now, or refuses us until a person changes something. A connection that was
    /// kept may have been closed on the other side at the moment of the post: one failure alone says nothing.
    pub fn failed_by(&self, outcome: &Outcome, metrics: &Metrics) {
        if let (Outcome::Unsure(why), TargetState::Up, 0) = (outcome, self.state.get(), self.failures.get()) {
            self.failures.set(1);
            tracing::debug!(
                target_url = self.url,
                error = why,
                "a post to a ws node failed; it is tried again at once"
            );
            return;
        }
        let growing = backoff(BACKOFF_FIRST, BACKOFF_MOST, self.failures.get());
        match outcome {
            Outcome::Full { retry_after, why, .. } => {
                let pause = retry_after.map_or(growing, |after| after.min(BACKOFF_MOST));
                self.failed(TargetState::Down, why, pause, metrics);
            }
            Outcome::Unsure(why) => self.failed(TargetState::Down, why, growing, metrics),
            Outcome::Denied(why) => self.failed(TargetState::Denied, why, REFUSED_PAUSE, metrics),
            Outcome::Incompatible(why) => self.failed(TargetState::Incompatible, why, REFUSED_PAUSE, metrics),
            Outcome::Stored { .. } | Outcome::Refused { .. } | Outcome::Foreign(_) | Outcome::TooLarge => {
                self.is_up(metrics);
            }
        }
    }

    fn failed(&self, state: TargetState, why: &str, pause: Duration, metrics: &Metrics) {
        metrics.forward_target_up.with_label_values(&[&self.url]).set(0);
        let is_new = self.state.replace(state) != state;
        match state {
            TargetState::Denied | TargetState::Incompatible if is_new => {
                tracing::error!(target_url = self.url, error = why, "ws node refuses entries; they wait in the outbox");
            }
            _ if is_new => {
                tracing::warn!(target_url = self.url, error = why, "ws node takes no entries; they wait in the outbox");
            }
            _ => tracing::debug!(target_url = self.url, error = why, "ws node still takes no entries"),
        }
        self.fault.replace(Some(why.to_owned()));
        // Rooms that were under way at the same time fail together: the pause grows once for them.
        let now = Instant::now();
        if self.retry_at.get().is_none_or(|at| at <= now) {
            self.failures.set(self.failures.get() + 1);
            self.retry_at.set(Some(now + pause.mul_f64(rand::random_range(0.75..1.0))));
        }
        self.changed.notify_waiters();
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_node_that_does_not_answer_is_tried_by_one_room_at_a_time() {
        let (target, metrics) = (Target::new("http://ws-1".into()), Metrics::new());
        target.is_up(&metrics);
        target.failed_by(&Outcome::Unsure("closed while idle".into()), &metrics);
        assert_eq!(target.state(), TargetState::Up, "that happens");
        drop(target.turn().await);
        target.failed_by(&Outcome::Unsure("no connection".into()), &metrics);
        assert!(target.turn().now_or_never().is_none(), "it has to wait");
        tokio::time::advance(2 * BACKOFF_FIRST).await;
        let probe = target.turn().await;
        assert!(target.turn().now_or_never().is_none(), "one tries already");
        target.is_up(&metrics);
        drop(probe);
        let (first, second) = tokio::join!(target.turn(), target.turn());
        drop((first, second));
        assert_eq!((target.state(), target.fault()), (TargetState::Up, None));
    }

    #[tokio::test(start_paused = true)]
    async fn a_probe_that_is_given_up_lets_the_next_one_try() {
        let (target, metrics) = (Target::new("http://ws-1".into()), Metrics::new());
        target.failed_by(&Outcome::Denied("401".into()), &metrics);
        tokio::time::advance(REFUSED_PAUSE).await;
        drop(target.turn().await);
        assert!(target.turn().now_or_never().is_some());
    }
}
