//! Counts and times what goes to one viewer.

use std::sync::Arc;

use chrono::{SecondsFormat, Utc};

use crate::metrics::Metrics;
use crate::transcript::{Epoch, Room, Stamp};

/// A posted line may carry any time: that of an archive says nothing about delivery.
const MEANINGFUL_MS: f64 = 60_000.0;

/// A level is part of a line's static description, so it cannot be a variable.
macro_rules! latency_line {
    ($level:ident, $delivery:ident, $stamp:ident, $total_ms:ident, $now:ident) => {
        tracing::event!(
            tracing::Level::$level,
            session = %$delivery.room.slug(),
            httpLatencyMs = $stamp.shown.elapsed().as_secs_f64() * 1000.0,
            totalLatencyFromGladiaMs = $total_ms,
            timestamp = %$now.to_rfc3339_opts(SecondsFormat::Millis, true),
            "Transcript delivery latency"
        )
    };
}

/// Measures the delivery of entries to one viewer.
pub struct Delivery {
    metrics: Arc<Metrics>,
    room: Arc<Room>,
}

impl Delivery {
    pub fn new(metrics: &Arc<Metrics>, room: &Arc<Room>) -> Self {
        Self { metrics: metrics.clone(), room: room.clone() }
    }

    /// A message is about to be written to the socket. `stamp` is there for live transcripts, `number` for finals.
    pub fn sent(&self, stamp: Option<Stamp>, number: Option<(Epoch, u64)>) {
        self.metrics.ws_messages_sent_total.inc();
        let Some(stamp) = stamp else {
            return;
        };
        let now = Utc::now();
        // Broadcasts carry a clock of another machine: a negative time counts as 0.
        let total_ms = now.signed_duration_since(stamp.received).num_microseconds().unwrap_or(0).max(0) as f64 / 1000.0;
        if total_ms < MEANINGFUL_MS {
            self.metrics.delivery_latency_seconds.observe(total_ms / 1000.0);
        }
        // A final's first delivery is worth a line; a thousand viewers of it are not worth a thousand.
        if number.is_some_and(|(epoch, seq)| self.room.is_first_delivery(epoch, seq)) {
            latency_line!(INFO, self, stamp, total_ms, now);
        } else {
            latency_line!(DEBUG, self, stamp, total_ms, now);
        }
    }
}
