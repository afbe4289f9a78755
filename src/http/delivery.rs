//! Counts and times what goes to one viewer.

use std::sync::Arc;

use chrono::{SecondsFormat, Utc};

use crate::log::{Slug, Stamp};
use crate::metrics::Metrics;

/// A posted line may carry any time: that of an archive says nothing about delivery.
const MEANINGFUL_MS: f64 = 60_000.0;

/// See the module.
pub struct Delivery {
    metrics: Arc<Metrics>,
    slug: Slug,
}

impl Delivery {
    pub fn new(metrics: &Arc<Metrics>, slug: &Slug) -> Self {
        Self { metrics: metrics.clone(), slug: slug.clone() }
    }

    /// A message is about to be written to the socket. `stamp` is there for live transcripts.
    pub fn sent(&self, stamp: Option<Stamp>) {
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
        tracing::debug!(
            session = %self.slug,
            httpLatencyMs = stamp.shown.elapsed().as_secs_f64() * 1000.0,
            totalLatencyFromGladiaMs = total_ms,
            timestamp = %now.to_rfc3339_opts(SecondsFormat::Millis, true),
            "Transcript delivery latency"
        );
    }
}
