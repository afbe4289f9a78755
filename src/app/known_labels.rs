//! The label values of metrics that the domains know beforehand.

use crate::actors::egress_controller;
use crate::actors::supervision::ChildKind;
use crate::livekit::api::ApiError;
use crate::metrics::{Labelled, Metrics};
use crate::rtmp::{Ignored, Reason};
use crate::transcript::GapReason;

/// Declares them all.
pub fn declare(metrics: &Metrics) {
    Metrics::declare(&[&metrics.audio_lost_seconds_total], GapReason::ALL.map(GapReason::as_str));
    Metrics::declare(&[&metrics.rtmp_ignored_total], Ignored::ALL.map(Ignored::as_str));
    Metrics::declare(&[&metrics.rtmp_closed_total], Reason::all().map(Reason::as_str));
    Metrics::declare(&[&metrics.livekit_api_errors_total], ApiError::LABELS);
    let starts: [&dyn Labelled; 2] = [&metrics.egress_starts_total, &metrics.track_egress_starts_total];
    Metrics::declare(&starts, ["started", "found"].into_iter().chain(ApiError::LABELS));
    Metrics::declare(&[&metrics.livekit_rooms_ignored_total], ["name", "pattern"]);
    Metrics::declare(&[&metrics.egress_restarts_total], egress_controller::RESTART_REASONS);
    let of_actors: [&dyn Labelled; 5] = [
        &metrics.actors_live,
        &metrics.actor_last_fault_timestamp_seconds,
        &metrics.actor_restarts_total,
        &metrics.actor_panics_total,
        &metrics.actor_escalations_total,
    ];
    Metrics::declare(&of_actors, ChildKind::ALL.map(ChildKind::as_str));
}
