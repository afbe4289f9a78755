//! The recogniser and the way to it. The faults are those of `src/local_stt/service/faults.rs`, of the victim's session
//! alone.

use serde_json::json;
use std::time::Duration;

use crate::harness::{Fault, PLAIN, Recovery, lasts};

/// A row whose fault is one order for the victim's recogniser session.
macro_rules! order {
    ($order:tt) => {
        |rig| {
            Box::pin(async {
                rig.victims_recogniser(json!($order)).await;
                Recovery::NextFinal
            })
        }
    };
}

/// The recogniser has forgotten the session, and POSTs for a new one are refused.
macro_rules! refused {
    ($refusal:tt) => {
        |rig| {
            Box::pin(async {
                rig.recogniser(json!({ "refuse_posts": $refusal })).await;
                rig.victims_recogniser(json!({"forget": true})).await;
                Recovery::NextFinal
            })
        }
    };
}

pub const FAULTS: &[Fault] = &[
    Fault {
        name: "Gladia: socket reset",
        proof: &["stt_resumes_total "],
        quick: true,
        inject: order!({"reset": true}),
        ..PLAIN
    },
    Fault {
        name: "Gladia: half-open socket",
        proof: &[r#"stt_faults_total{fault="no_acknowledgement"}"#],
        markers: 16,
        inject: order!({"half_open": true}),
        ..PLAIN
    },
    Fault {
        name: "Gladia: reset with audio not acknowledged",
        proof: &["stt_resumes_total "],
        inject: |rig| {
            Box::pin(async {
                rig.victims_recogniser(json!({"delay_acks_ms": 1500})).await;
                lasts(Duration::from_millis(2500)).await;
                rig.victims_recogniser(json!({"reset": true, "delay_acks_ms": 0})).await;
                Recovery::NextFinal
            })
        },
        ..PLAIN
    },
    Fault {
        name: "Gladia: reset, acknowledgements lost",
        proof: &["stt_resumes_total "],
        inject: |rig| {
            Box::pin(async {
                rig.victims_recogniser(json!({"lose_acks": true})).await;
                lasts(Duration::from_millis(2500)).await;
                rig.victims_recogniser(json!({"reset": true, "lose_acks": false})).await;
                Recovery::NextFinal
            })
        },
        ..PLAIN
    },
    Fault {
        name: "Gladia: close 4408",
        proof: &["stt_replays_total "],
        quick: true,
        inject: order!({"close": 4408}),
        ..PLAIN
    },
    Fault {
        name: "Gladia: 403 on reconnect",
        proof: &[r#"stt_faults_total{fault="session_expired"}"#, "stt_replays_total "],
        quick: true,
        inject: order!({"forget": true}),
        ..PLAIN
    },
    Fault {
        name: "Gladia: 429 x 6",
        proof: &[r#"stt_faults_total{fault="rate_limited"}"#],
        markers: 18,
        status: Some("degraded"),
        inject: refused!({"status": 429, "times": 6, "retry_after": 1}),
        ..PLAIN
    },
    Fault {
        name: "Gladia: 402",
        proof: &[r#"stt_faults_total{fault="payment_required"}"#],
        markers: 22,
        status: Some("degraded"),
        inject: refused!({"status": 402, "times": 1}),
        ..PLAIN
    },
    Fault {
        name: "Gladia: 503 x 3 on POST",
        proof: &[r#"stt_faults_total{fault="stt_unavailable"}"#],
        markers: 12,
        inject: refused!({"status": 503, "times": 3}),
        ..PLAIN
    },
    Fault { name: "Gladia: stall 5 s", markers: 14, inject: order!({"stall_results_ms": 5000}), ..PLAIN },
    Fault {
        name: "Gladia: stall 60 s",
        proof: &["stt_stalls_total "],
        markers: 66,
        status: Some("stalled"),
        // Whatever session it opens meanwhile says nothing either.
        inject: |rig| {
            Box::pin(async {
                let end = std::time::Instant::now() + Duration::from_secs(60);
                let mut stalled = json!(null);
                while let Some(left) = end.checked_duration_since(std::time::Instant::now()) {
                    let (session, _) = rig.victims_session().await;
                    if session.is_string() && session != stalled {
                        let ms = left.as_millis() as u64;
                        rig.recogniser(json!({"session": session, "stall_results_ms": ms})).await;
                        stalled = session;
                    }
                    lasts(Duration::from_millis(50)).await;
                }
                Recovery::NextFinal
            })
        },
        ..PLAIN
    },
    Fault {
        name: "Gladia: duplicated and late finals",
        inject: order!({"duplicate_finals": true, "late_finals_ms": 1500}),
        ..PLAIN
    },
    Fault {
        name: "Gladia: interims and never a final",
        markers: 30,
        proof: &["stt_replays_total "],
        inject: order!({"withhold_finals": true}),
        ..PLAIN
    },
    Fault { name: "Gladia: finals out of order", inject: order!({"reorder_finals": true}), ..PLAIN },
    Fault {
        name: "Gladia: session cap reached unexpectedly",
        proof: &["stt_replays_total "],
        markers: 12,
        inject: order!({"session_cap_s": 7.0}),
        ..PLAIN
    },
    Fault {
        name: "Gladia: session cap, planned rollover (scaled: every 6 s)",
        alone: true,
        proof: &["stt_replays_total "],
        markers: 16,
        settings: &[("GLADIA_SESSION_MAX_S", "6")],
        ..PLAIN
    },
];
