//! The publisher and its socket.

use std::time::Duration;

use nix::sys::signal::Signal;

use crate::harness::{Fault, LONG_GRACE, PLAIN, Recovery};

pub const FAULTS: &[Fault] = &[
    Fault {
        name: "publisher cut, back after 2 s",
        quick: true,
        settings: &[LONG_GRACE],
        gap: Some("publisher_lost"),
        inject: |rig| {
            Box::pin(async {
                rig.victim().cut().await;
                tokio::time::sleep(Duration::from_secs(2)).await;
                rig.publish(rig.victim(), rig.fault.markers);
                Recovery::NextFinal
            })
        },
        ..PLAIN
    },
    Fault {
        name: "publisher cut for good",
        inject: |rig| {
            Box::pin(async {
                rig.victim().cut().await;
                rig.until_told("ended").await;
                Recovery::Never
            })
        },
        ..PLAIN
    },
    Fault {
        name: "takeover by a second publisher",
        proof: &["rtmp_takeovers_total "],
        inject: |rig| {
            Box::pin(async {
                rig.victim().note_cut();
                rig.publish(rig.victim(), rig.fault.markers);
                Recovery::NextFinal
            })
        },
        ..PLAIN
    },
    Fault {
        name: "half-open publisher, taken over",
        proof: &["rtmp_takeovers_total "],
        inject: |rig| {
            Box::pin(async {
                rig.victim().signal(Signal::SIGSTOP);
                rig.victim().note_cut();
                tokio::time::sleep(Duration::from_secs(2)).await;
                rig.publish(rig.victim(), rig.fault.markers);
                Recovery::NextFinal
            })
        },
        ..PLAIN
    },
    Fault {
        name: "half-open publisher, timed out, back later",
        settings: &[LONG_GRACE, ("RTMP_IDLE_TIMEOUT_MS", "2000")],
        gap: Some("publisher_lost"),
        inject: |rig| {
            Box::pin(async {
                rig.victim().signal(Signal::SIGSTOP);
                rig.victim().note_cut();
                rig.until_told("waiting").await;
                rig.victim().end_publishers().await;
                rig.publish(rig.victim(), rig.fault.markers);
                Recovery::NextFinal
            })
        },
        ..PLAIN
    },
];
