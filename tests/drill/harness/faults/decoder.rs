//! The beginning of a stream, and its decoder.

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::json;

use crate::harness::rig::Rig;
use crate::harness::{Fault, PLAIN, Recovery, When};

pub const FAULTS: &[Fault] = &[
    Fault {
        name: "start of stream, recogniser refuses the first 2 POSTs",
        quick: true,
        proof: &[r#"stt_faults_total{fault="stt_unavailable"}"#],
        when: When::Before,
        inject: |rig| {
            Box::pin(async {
                // The bystanders have their recogniser sessions by now: only the victim's POSTs are left to refuse.
                rig.until("the bystanders speak", || {
                    rig.rooms[1..].iter().all(|r| r.seen.borrow().finals().count() > 0)
                })
                .await;
                rig.recogniser(json!({"refuse_posts": {"status": 503, "times": 2}})).await;
                rig.publish(rig.victim(), rig.fault.markers);
                Recovery::NextFinal
            })
        },
        ..PLAIN
    },
    Fault {
        name: "ffmpeg child: kill -9",
        quick: true,
        settings: &[("DECODER", "process")],
        proof: &[r#"actor_restarts_total{kind="ffmpeg_decoder"}"#],
        inject: |rig| {
            Box::pin(async {
                signal_child(rig, Signal::SIGKILL).await;
                Recovery::NextFinal
            })
        },
        ..PLAIN
    },
    Fault {
        name: "ffmpeg child: SIGSTOP",
        settings: &[("DECODER", "process")],
        proof: &[r#"actor_restarts_total{kind="ffmpeg_decoder"}"#],
        markers: 20,
        inject: |rig| {
            Box::pin(async {
                signal_child(rig, Signal::SIGSTOP).await;
                Recovery::NextFinal
            })
        },
        ..PLAIN
    },
];

async fn signal_child(rig: &Rig, signal: Signal) {
    let session = rig.server().session(&rig.victim().slug).await;
    let pid = session["children"]["ffmpegDecoder"]["state"]["childPid"].as_i64();
    kill(Pid::from_raw(pid.expect("the decoder's child") as i32), signal).expect("it runs");
}
