//! Frames that nobody can decode: encryption gone wrong, a codec that is not what the header says, damage on the way.
//! They count as lost, in frames, and a gap says where. A decoder that complains of them is not dead.

use std::ops::RangeInclusive;

use futures_util::future::join_all;
use serde_json::Value;

use crate::audio::{all_decoded, frames_ms, marked_tags, random_payload, send_in_time};
use crate::support::app::TestApp;
use crate::support::raw_publisher::{RawPublisher, Tag};
use crate::support::stt::marker_service;
use crate::support::viewer::{Viewer, assert_contiguous};

/// Which frames of 23 ms have random bytes, of a stream of some 11 s.
struct Input {
    name: &'static str,
    fails: fn(u64) -> bool,
    /// So many gaps say so.
    gaps: RangeInclusive<usize>,
    /// Markers that are heard whole, at least.
    heard: usize,
}

const INPUTS: &[Input] = &[
    Input { name: "in-the-middle", fails: |n| (150..356).contains(&n), gaps: 1..=1, heard: 4 },
    Input { name: "at-the-start", fails: |n| n < 100, gaps: 1..=2, heard: 6 },
    Input { name: "at-the-end", fails: |n| n >= 380, gaps: 1..=1, heard: 6 },
    Input { name: "one-of-fifty", fails: |n| n % 50 == 20, gaps: 1..=3, heard: 5 },
    Input { name: "only-one", fails: |n| n == 300, gaps: 1..=1, heard: 9 },
    Input { name: "every-other", fails: |n| n % 2 == 0, gaps: 1..=2, heard: 0 },
    Input { name: "all", fails: |_| true, gaps: 1..=2, heard: 0 },
];

#[actix::test]
async fn frames_that_give_no_sound_are_a_gap_and_counted_as_lost() {
    let stt = marker_service().await;
    let server = TestApp::start(&[("GLADIA_API_URL", &stt.url)]).await;
    let (config, frames) = marked_tags("anull").await;
    let broken = join_all(INPUTS.iter().map(|input| publish(&server, input, &config, &frames))).await;
    let (errors, broken) = (server.app.metrics().decode_errors_total.get(), broken.iter().sum::<u64>());
    assert!(errors.abs_diff(broken) <= broken / 10 + 8, "{errors} errors for {broken} frames");
    server.stop().await;
}

/// Publishes the frames with those of the input broken, and gives how many they were.
async fn publish(server: &TestApp, input: &Input, config: &Tag, frames: &[Tag]) -> u64 {
    let name = input.name;
    let mut viewer = Viewer::join(server, name).await;
    let broken: Vec<u64> = (0..frames.len() as u64).filter(|n| (input.fails)(*n)).collect();
    let break_some = |(n, tag): (u64, &Tag)| if (input.fails)(n) { random_payload(n, tag, 2) } else { tag.clone() };
    let sent: Vec<Tag> = (0..).zip(frames).map(break_some).collect();
    let mut publisher = RawPublisher::publish(server.app.rtmp_addr().unwrap(), name).await.expect("it may");
    assert!(publisher.send(config).await && send_in_time(&mut publisher, &sent).await, "{name} was cut off");
    publisher.vanish();
    let session = all_decoded(server, name).await;
    let decoder = &session["children"]["ffmpegDecoder"];
    assert_eq!(decoder["restarts"].as_u64().unwrap_or(0), 0, "{name}: nothing was wrong with the decoder");

    let ms = |name: &str| session["audio"][name].as_u64().unwrap_or_else(|| panic!("{name} in {session:#}"));
    let wanted = frames_ms(broken.len() as u64);
    // Random bytes are now and then a frame of noise, and what follows a broken frame may be spoilt with it.
    assert!(ms("lostMs").abs_diff(wanted) <= wanted / 10 + 60, "{name}: {} ms lost of {wanted}", ms("lostMs"));
    let received = frames_ms(frames.len() as u64);
    // Chunks are of whole milliseconds, and each hole ends one.
    assert!(
        ms("receivedMs").abs_diff(received) <= 100 + broken.len() as u64,
        "{name}: {} of {received} ms received",
        ms("receivedMs")
    );

    server.end(name).await;
    viewer.until_ended().await;
    assert_contiguous(&viewer.seqs(), 1);
    let gaps: Vec<&Value> = viewer.seen.iter().filter(|m| m["type"] == "gap").collect();
    assert!(input.gaps.contains(&gaps.len()), "{name}: {gaps:#?}");
    assert!(gaps.iter().all(|gap| gap["reason"] == "decode_error"), "{name}: {gaps:#?}");
    let (first, last) = (broken[0], broken[broken.len() - 1]);
    let span_ms = frames_ms(last + 1 - first);
    let (start_ms, end_ms) = (gaps[0]["startMs"].as_u64().unwrap(), gaps[gaps.len() - 1]["endMs"].as_u64().unwrap());
    assert!((end_ms - start_ms).abs_diff(span_ms) <= 150, "{name}: {start_ms} to {end_ms} for {span_ms} ms");
    let heard = viewer.finals().iter().filter(|text| !text.contains('?')).count();
    assert!(heard >= input.heard, "{name}: {:?}", viewer.finals());
    broken.len() as u64
}
