//! The server's process and its actors.

use nix::sys::signal::Signal;
use serde_json::json;

use crate::harness::{Fault, LONG_GRACE, PLAIN, Recovery};

/// A panic in one actor of the victim (or of the process). What it hits is repaired; nobody else notices.
macro_rules! panic_in {
    ($name:literal, $actor:literal) => {
        Fault {
            name: $name,
            proof: &[concat!("actor_panics_total{kind=\"", $actor, "\"}")],
            inject: |rig| {
                Box::pin(async {
                    rig.crash($actor).await;
                    Recovery::NextFinal
                })
            },
            ..PLAIN
        }
    };
}

pub const FAULTS: &[Fault] = &[
    Fault {
        name: "server: kill -9 under load",
        quick: true,
        bystanders: 5,
        hits_all: true,
        settings: &[LONG_GRACE],
        gap: Some("process_restart"),
        inject: |rig| {
            Box::pin(async {
                rig.restart(Signal::SIGKILL).await;
                Recovery::NextFinal
            })
        },
        ..PLAIN
    },
    Fault {
        name: "server: kill -9 twice in a row",
        bystanders: 5,
        hits_all: true,
        settings: &[LONG_GRACE],
        gap: Some("process_restart"),
        inject: |rig| {
            Box::pin(async {
                rig.restart(Signal::SIGKILL).await;
                // Before any encoder is back.
                for room in &rig.rooms {
                    room.end_publishers().await;
                }
                rig.restart(Signal::SIGKILL).await;
                Recovery::NextFinal
            })
        },
        ..PLAIN
    },
    Fault {
        name: "server: SIGTERM under load",
        quick: true,
        bystanders: 5,
        hits_all: true,
        settings: &[LONG_GRACE],
        gap: Some("process_restart"),
        status: Some("suspended"),
        inject: |rig| {
            Box::pin(async {
                rig.restart_in_order().await;
                Recovery::NextFinal
            })
        },
        ..PLAIN
    },
    Fault {
        name: "session thread hung for good (health 503, exit 70, restart)",
        bystanders: 5,
        markers: 22,
        hits_all: true,
        settings: &[LONG_GRACE],
        gap: Some("process_restart"),
        inject: |rig| {
            Box::pin(async {
                rig.server().drill(json!({ "hogMs": 600_000 })).await;
                rig.until_health(503).await;
                let code = rig.start_again().await;
                if code != 70 {
                    rig.note(format!("the watchdog's exit code is {code}"));
                }
                Recovery::NextFinal
            })
        },
        ..PLAIN
    },
    Fault {
        name: "local recogniser: kill -9",
        has_local_recogniser: true,
        proof: &["stt_process_restarts_total "],
        inject: |rig| {
            Box::pin(async {
                let tree = rig.server().tree().await;
                let pid = tree["sttProcess"]["state"]["pid"].as_i64().expect("a running child");
                let pid = nix::unistd::Pid::from_raw(pid as i32);
                nix::sys::signal::kill(pid, Signal::SIGKILL).expect("the server's child");
                Recovery::NextFinal
            })
        },
        // It is everybody's recogniser.
        hits_all: true,
        ..PLAIN
    },
    Fault { has_local_recogniser: true, hits_all: true, ..panic_in!("panic: SttProcess", "stt_process") },
    panic_in!("panic: RtmpListener", "rtmp_listener"),
    panic_in!("panic: WsClient", "ws_client"),
    panic_in!("panic: TranscriptRoom", "transcript_room"),
    panic_in!("panic: SpeakerTracker", "speaker_tracker"),
    Fault { quick: true, ..panic_in!("panic: GladiaBridge", "gladia_bridge") },
    panic_in!("panic: FfmpegDecoder", "ffmpeg_decoder"),
    panic_in!("panic: Session", "session"),
    panic_in!("panic: SessionRegistry", "session_registry"),
    panic_in!("panic: BatchWriter", "batch_writer"),
    Fault {
        name: "panic: RtmpConnection, the encoder comes back",
        proof: &[r#"actor_panics_total{kind="rtmp_connection"}"#],
        settings: &[LONG_GRACE],
        gap: Some("publisher_lost"),
        inject: |rig| {
            Box::pin(async {
                rig.victim().note_cut();
                rig.crash("rtmp_connection").await;
                rig.until_told("waiting").await;
                rig.victim().end_publishers().await;
                rig.publish(rig.victim(), rig.fault.markers);
                Recovery::NextFinal
            })
        },
        ..PLAIN
    },
];
