//! The server's process and its actors.

use nix::sys::signal::Signal;

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
        name: "server: SIGTERM under load",
        quick: true,
        bystanders: 5,
        hits_all: true,
        settings: &[LONG_GRACE],
        gap: Some("process_restart"),
        status: Some("suspended"),
        inject: |rig| {
            Box::pin(async {
                let code = rig.restart(Signal::SIGTERM).await;
                if code != 0 {
                    rig.note(format!("SIGTERM's exit code is {code}"));
                }
                Recovery::NextFinal
            })
        },
        ..PLAIN
    },
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
