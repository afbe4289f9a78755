//! The publisher and its socket.

use std::time::Duration;

use nix::sys::signal::Signal;

use crate::harness::rig::Rig;
use crate::harness::{Fault, LONG_GRACE, PLAIN, Recovery, When};
use crate::support::raw_publisher::{RawPublisher, Tag, aac_tags};

/// As LiveKit Egress was seen to do.
const STORM: u32 = 34;
const STORM_MS: u32 = 8000;

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
        name: "reconnect storm, 34 publishes in 8 s",
        when: When::Before,
        inject: |rig| {
            Box::pin(async {
                let tags = aac_tags(&rig.victim().next_audio(rig.fault.markers)).await;
                storm(rig, &tags).await;
                if rig.victims_session().await.1 != 1 {
                    rig.note("the storm cost a recogniser session".into());
                }
                Recovery::NextFinal
            })
        },
        ..PLAIN
    },
    Fault {
        name: "half-open publisher, taken over",
        proof: &["rtmp_takeovers_total "],
        gap: Some("publisher_lost"),
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

/// Publishes, breaks off and publishes again, all the time going on with the stream; the last one stays to its end.
async fn storm(rig: &Rig, tags: &[Tag]) {
    let (config, frames) = tags.split_first().expect("a configuration");
    let (rtmp, begun) = (rig.server().rtmp, tokio::time::Instant::now());
    let mut left = frames.iter().peekable();
    for n in 0..STORM {
        let mut publisher = match RawPublisher::publish(rtmp, &rig.victim().slug).await {
            Ok(publisher) => publisher,
            Err(_) => {
                rig.note(format!("publish {n} was refused"));
                continue;
            }
        };
        let from = Tag { timestamp_ms: n * STORM_MS / STORM, ..config.clone() };
        publisher.send(&from).await;
        let until = if n + 1 == STORM { u32::MAX } else { (n + 1) * STORM_MS / STORM };
        while let Some(tag) = left.next_if(|tag| tag.timestamp_ms < until) {
            tokio::time::sleep_until(begun + Duration::from_millis(tag.timestamp_ms.into())).await;
            if !publisher.send(tag).await {
                rig.note(format!("publisher {n} was cut off"));
                break;
            }
        }
        publisher.vanish();
    }
}
