//! Latency and loss on the way: what a reset takes with it there, and what comes late.

use std::time::Duration;

use serde_json::json;

use crate::harness::rig::Rig;
use crate::harness::{Fault, LONG_GRACE, Leg, PLAIN, Recovery, lasts};

/// From a final to the middle of the next utterance.
const INTO_SPEECH: Duration = Duration::from_millis(500);
const VIEWER_CUTS: usize = 3;

pub const FAULTS: &[Fault] = &[
    Fault {
        name: "Gladia at 80 ms: socket reset in speech",
        quick: true,
        far: &[Leg::Recogniser],
        proof: &["stt_resumes_total "],
        inject: |rig| Box::pin(reset_in_speech(rig)),
        ..PLAIN
    },
    Fault {
        name: "Gladia at 80 ms: reset, acknowledgements lost",
        far: &[Leg::Recogniser],
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
        name: "Gladia at 80 ms, 1 % of writes 500 ms late: socket reset in speech",
        far: &[Leg::Recogniser],
        late_per_mille: 10,
        proof: &["stt_resumes_total "],
        inject: |rig| Box::pin(reset_in_speech(rig)),
        ..PLAIN
    },
    Fault {
        name: "Gladia at 80 ms: every connection cut, what is on its way lost",
        far: &[Leg::Recogniser],
        hits_all: true,
        proof: &["stt_resumes_total "],
        inject: |rig| {
            Box::pin(async {
                lasts(INTO_SPEECH).await;
                rig.world.leg(Leg::Recogniser).expect("it is far away").cut();
                Recovery::NextFinal
            })
        },
        ..PLAIN
    },
    Fault {
        name: "publisher at 80 ms: cut, back after 2 s",
        far: &[Leg::Publisher],
        settings: &[LONG_GRACE],
        gap: Some("publisher_lost"),
        inject: |rig| {
            Box::pin(async {
                rig.victim().note_cut();
                rig.world.leg(Leg::Publisher).expect("it is far away").cut();
                lasts(Duration::from_secs(2)).await;
                rig.victim().end_publishers().await;
                rig.publish(rig.victim(), rig.fault.markers);
                Recovery::NextFinal
            })
        },
        ..PLAIN
    },
    Fault {
        name: "publisher at 80 ms, 1 % of writes 500 ms late",
        far: &[Leg::Publisher],
        late_per_mille: 10,
        markers: 16,
        ..PLAIN
    },
    Fault {
        name: "viewer at 80 ms: connection cut three times",
        far: &[Leg::Viewer],
        markers: 12,
        inject: |rig| {
            Box::pin(async {
                for _ in 0..VIEWER_CUTS {
                    let hellos = rig.victim().seen.borrow().hellos;
                    rig.world.leg(Leg::Viewer).expect("it is far away").cut();
                    rig.until("the viewer is back", || rig.victim().seen.borrow().hellos > hellos).await;
                }
                Recovery::NextFinal
            })
        },
        ..PLAIN
    },
];

async fn reset_in_speech(rig: &Rig) -> Recovery {
    lasts(INTO_SPEECH).await;
    rig.victims_recogniser(json!({"reset": true})).await;
    Recovery::NextFinal
}
