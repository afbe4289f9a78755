//! When which sign of life was seen on the recogniser's connection, and when the next one is due.

use std::time::Duration;

use tokio::time::Instant;

use super::super::policy::Timing;

/// Times of the present connection, and what is left of the one before it.
#[derive(Debug)]
pub(super) struct Liveness {
    opened_at: Option<Instant>,
    ack_due: Option<Instant>,
    last_ack: Option<Instant>,
    last_heard: Instant,
    /// As `last_heard`, for what brings the session nearer to its end.
    last_progress: Instant,
    last_final: Instant,
    last_out: Instant,
    stop_sent: Option<Instant>,
}

impl Liveness {
    pub fn new(now: Instant) -> Self {
        Self {
            opened_at: None,
            ack_due: None,
            last_ack: None,
            last_heard: now,
            last_progress: now,
            last_final: now,
            last_out: now,
            stop_sent: None,
        }
    }

    pub fn connected(&mut self, now: Instant) {
        self.opened_at = Some(now);
        self.stop_sent = None;
        self.last_out = now;
    }

    /// Gives the age of the connection.
    pub fn age(&self, now: Instant) -> Option<Duration> {
        self.opened_at.map(|at| now.saturating_duration_since(at))
    }

    /// As [`Self::age`], of a connection that is over.
    pub fn take_age(&mut self, now: Instant) -> Option<Duration> {
        let age = self.age(now);
        self.opened_at = None;
        age
    }

    pub fn heard(&mut self, now: Instant, is_progress: bool) {
        self.last_heard = now;
        if is_progress {
            self.last_progress = now;
        }
    }

    pub fn last_heard(&self) -> Instant {
        self.last_heard
    }

    pub fn final_came(&mut self, now: Instant) {
        self.last_final = now;
    }

    /// `is_more_due`: of what was sent, something is not acknowledged.
    pub fn acknowledged(&mut self, now: Instant, is_more_due: bool, timing: &Timing) {
        self.last_ack = Some(now);
        self.ack_due = (is_more_due || self.stop_sent.is_some()).then(|| now + timing.ack_timeout);
    }

    pub fn last_ack(&self) -> Option<Instant> {
        self.last_ack
    }

    /// Nothing is to be acknowledged any more.
    pub fn expects_no_ack(&mut self) {
        self.ack_due = None;
    }

    pub fn is_ack_overdue(&self, now: Instant) -> bool {
        self.ack_due.is_some_and(|due| now >= due)
    }

    /// It has said something within half of the time for an acknowledgement.
    pub fn talks(&self, now: Instant, timing: &Timing) -> bool {
        now.saturating_duration_since(self.last_heard) < timing.ack_timeout / 2
    }

    pub fn sent(&mut self, now: Instant) {
        self.last_out = now;
    }

    pub fn audio_sent(&mut self, now: Instant, timing: &Timing) {
        self.ack_due.get_or_insert(now + timing.ack_timeout);
    }

    pub fn stop_sent(&mut self, now: Instant, timing: &Timing) {
        self.stop_sent = Some(now);
        self.ack_due = Some(now + timing.ack_timeout);
    }

    pub fn is_stop_sent(&self) -> bool {
        self.stop_sent.is_some()
    }

    pub fn is_keep_alive_due(&self, now: Instant, timing: &Timing) -> bool {
        now.saturating_duration_since(self.last_out) >= timing.keep_alive
    }

    /// A session that was stopped goes on without coming nearer to its end.
    pub fn is_stop_overdue(&self, now: Instant, timing: &Timing) -> bool {
        let passed = |at: Instant| now.saturating_duration_since(at);
        self.stop_sent.is_some_and(|at| {
            passed(at.max(self.last_progress)) >= timing.stop_timeout
                || passed(at.max(self.last_final)) >= timing.stop_most
        })
    }

    /// A session that was asked for all that it has to say says nothing.
    pub fn is_probe_unanswered(&self, now: Instant, timing: &Timing) -> bool {
        let silent = |at: Instant| now.saturating_duration_since(at.max(self.last_progress));
        self.stop_sent.is_some_and(|at| silent(at) >= timing.probe_timeout)
    }
}
