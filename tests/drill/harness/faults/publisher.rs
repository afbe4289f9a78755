//! The publisher and its socket.

use std::time::Duration;

use nix::sys::signal::Signal;
use rand::rngs::StdRng;
use rand::{RngCore, SeedableRng};

use crate::harness::rig::Rig;
use crate::harness::{Fault, LONG_GRACE, PLAIN, Recovery, When, lasts};
use crate::support::pace::Pace;
use crate::support::raw_publisher::{RawPublisher, Tag, aac_tags};

/// Something odd happens here, for two utterances, from silence to silence.
const ODD_MS: std::ops::Range<u32> = 4600..7000;
/// From the first of those times on.
const VIDEO_ALONE: Duration = Duration::from_secs(7);
const VIDEO_EVERY: Duration = Duration::from_millis(100);
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
                lasts(Duration::from_secs(2)).await;
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
        name: "publisher: 2.4 s of frames that nobody can decode",
        when: When::Before,
        gap: Some("decode_error"),
        proof: &["decode_errors_total "],
        inject: |rig| {
            Box::pin(async {
                let mut tags = aac_tags(&rig.victim().next_audio(rig.fault.markers)).await;
                let broken = tags.iter_mut().skip(1).filter(|tag| ODD_MS.contains(&tag.timestamp_ms));
                // Always the same bytes: of others a frame or two may decode into noise, and that is heard. The first
                // two say that it is AAC, and no header.
                let mut bytes = StdRng::seed_from_u64(1);
                broken.for_each(|tag| bytes.fill_bytes(&mut tag.body[2..]));
                play(rig, &tags, Duration::ZERO).await;
                Recovery::NextFinal
            })
        },
        ..PLAIN
    },
    Fault {
        name: "publisher: 7 s of video alone, its timestamps go on as if nothing had been",
        when: When::Before,
        gap: Some("publisher_lost"),
        inject: |rig| {
            Box::pin(async {
                let tags = aac_tags(&rig.victim().next_audio(rig.fault.markers)).await;
                play(rig, &tags, VIDEO_ALONE).await;
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
                lasts(Duration::from_secs(2)).await;
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

/// Publishes to the end, paced; at the first of the times above only video comes for so long.
async fn play(rig: &Rig, tags: &[Tag], video_alone: Duration) {
    let publisher = RawPublisher::publish(rig.server().rtmp, &rig.victim().slug).await;
    let mut publisher = publisher.unwrap_or_else(|said| panic!("the publish is refused: {said:?}"));
    let mut pace = Pace::begin();
    let mut video_left = video_alone;
    for tag in tags {
        while tag.timestamp_ms >= ODD_MS.start && !video_left.is_zero() {
            pace.reaches(tag.timestamp_ms).await;
            let is_heard = publisher.send_video(tag.timestamp_ms + (video_alone - video_left).as_millis() as u32).await;
            if !is_heard {
                return rig.note("the publisher was cut off between".into());
            }
            pace.begun += VIDEO_EVERY;
            video_left = video_left.saturating_sub(VIDEO_EVERY);
        }
        pace.reaches(tag.timestamp_ms).await;
        if !publisher.send(tag).await {
            return rig.note(format!("the publisher was cut off at {} ms", tag.timestamp_ms));
        }
    }
    publisher.vanish();
}

/// Publishes, breaks off and publishes again, all the time going on with the stream; the last one stays to its end.
async fn storm(rig: &Rig, tags: &[Tag]) {
    let (config, frames) = tags.split_first().expect("a configuration");
    let (rtmp, pace) = (rig.server().rtmp, Pace::begin());
    let mut left = frames.iter().peekable();
    for n in 0..STORM {
        let Ok(mut publisher) = RawPublisher::publish(rtmp, &rig.victim().slug).await else {
            rig.note(format!("publish {n} was refused"));
            continue;
        };
        let from = Tag { timestamp_ms: n * STORM_MS / STORM, ..config.clone() };
        publisher.send(&from).await;
        let until = if n + 1 == STORM { u32::MAX } else { (n + 1) * STORM_MS / STORM };
        while let Some(tag) = left.next_if(|tag| tag.timestamp_ms < until) {
            pace.reaches(tag.timestamp_ms).await;
            if !publisher.send(tag).await {
                rig.note(format!("publisher {n} was cut off"));
                break;
            }
        }
        publisher.vanish();
    }
}
