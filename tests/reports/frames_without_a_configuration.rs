//! AAC whose configuration does not come first: in a header of each frame (ADTS), once upon a time, or never.

use futures_util::future::join_all;
use tokio::time::Instant;

use crate::audio::{MARKERS, frames_ms, marked_tags, markers, send_in_time};
use crate::support::app::TestApp;
use crate::support::pace::Pace;
use crate::support::raw_publisher::{RawPublisher, Tag};
use crate::support::stt::marker_service;
use crate::support::viewer::Viewer;
use crate::support::wait::DEADLINE;

/// A header of seven bytes (nine with a checksum) before each frame: AAC-LC, 44.1 kHz, stereo.
fn adts(frame: &[u8], checksum: bool) -> Vec<u8> {
    let length = frame.len() + if checksum { 9 } else { 7 };
    let mut bytes = vec![0xFF, 0xF0 | u8::from(!checksum), 0x50, 0x80 | (length >> 11) as u8];
    bytes.extend([(length >> 3) as u8, (length << 5) as u8 | 0x1F, 0xFC]);
    bytes.extend(checksum.then_some([0, 0]).into_iter().flatten());
    bytes.extend(frame);
    bytes
}

/// How frames are put into tags; whether and as what a sequence header comes first.
struct Input {
    name: &'static str,
    frames_in_a_tag: usize,
    checksum: bool,
    header: Header,
}

enum Header {
    No,
    /// The AudioSpecificConfig, as it should be.
    Right,
    /// An ADTS header in the place of the AudioSpecificConfig.
    Adts,
}

const WITH_HEADERS_OF_THEIR_OWN: &[Input] = &[
    Input { name: "adts", frames_in_a_tag: 1, checksum: false, header: Header::No },
    Input { name: "adts-checksum", frames_in_a_tag: 1, checksum: true, header: Header::No },
    Input { name: "adts-pairs", frames_in_a_tag: 2, checksum: false, header: Header::No },
    Input { name: "adts-and-header", frames_in_a_tag: 1, checksum: false, header: Header::Right },
    Input { name: "adts-as-header", frames_in_a_tag: 1, checksum: false, header: Header::Adts },
];

#[actix::test]
async fn frames_with_headers_of_their_own_are_heard() {
    let stt = marker_service().await;
    let server = TestApp::start(&[("GLADIA_API_URL", &stt.url)]).await;
    let (config, frames) = marked_tags("anull").await;
    join_all(WITH_HEADERS_OF_THEIR_OWN.iter().map(async |input| {
        let mut viewer = Viewer::join(&server, input.name).await;
        let mut publisher = RawPublisher::publish(server.app.rtmp_addr().unwrap(), input.name).await.expect("it may");
        let header = match input.header {
            Header::No => None,
            Header::Right => Some(config.body.clone()),
            Header::Adts => Some([&[0xAF, 0], &adts(&[], false)[..]].concat()),
        };
        if let Some(body) = header {
            assert!(publisher.send(&Tag { timestamp_ms: 0, body }).await);
        }
        let tag = |group: &[Tag]| {
            let frames: Vec<u8> = group.iter().flat_map(|tag| adts(&tag.body[2..], input.checksum)).collect();
            Tag { timestamp_ms: group[0].timestamp_ms, body: [&[0xAF, 1], &frames[..]].concat() }
        };
        let tags: Vec<Tag> = frames.chunks(input.frames_in_a_tag).map(tag).collect();
        assert!(send_in_time(&mut publisher, &tags).await, "{} was cut off", input.name);
        publisher.vanish();
        server.end(input.name).await;
        viewer.until_ended().await;
        assert_eq!(viewer.finals(), markers(), "{}", input.name);
        assert!(viewer.seen.iter().all(|m| m["type"] != "gap"), "{}: {:#?}", input.name, viewer.seen);
    }))
    .await;
    assert_eq!(server.app.metrics().lost_audio_ms(), 0);
    server.stop().await;
}

/// Sends frames until the condition holds; they are sent again from the begin when they are over.
async fn send_until(publisher: &mut RawPublisher, frames: &[Tag], what: &str, is_so: impl Fn(&RawPublisher) -> bool) {
    let pace = Pace::begin();
    for n in 0.. {
        if is_so(publisher) {
            return;
        }
        assert!(pace.begun.elapsed() < DEADLINE, "not within {DEADLINE:?}: {what}");
        let (tag, timestamp_ms) = (&frames[n % frames.len()], frames_ms(n as u64) as u32);
        pace.reaches(timestamp_ms).await;
        assert!(publisher.send(&Tag { timestamp_ms, body: tag.body.clone() }).await, "it was cut off");
    }
}

#[actix::test]
async fn bare_frames_without_any_header_are_told_to_encoder_and_viewers() {
    let stt = marker_service().await;
    let server = TestApp::start(&[("GLADIA_API_URL", &stt.url)]).await;
    let (config, frames) = marked_tags("anull").await;
    let mut viewer = Viewer::join(&server, "bare").await;
    let mut publisher = RawPublisher::publish(server.app.rtmp_addr().unwrap(), "bare").await.expect("it may");
    let begun = Instant::now();
    send_until(&mut publisher, &frames, "the encoder is told", |p| p.was_told("send the AAC sequence header")).await;
    // 1.5 s of audio; the rest is the machine's.
    assert!(begun.elapsed().as_secs() < 10, "{:?}", begun.elapsed());
    assert!(publisher.was_told("NetStream.Publish.BadAudio") && publisher.was_told("warning"));
    let degraded = |seen: &[serde_json::Value]| {
        let status = seen.iter().any(|m| m["status"] == "degraded" && m["reason"] == "audio_without_configuration");
        status && seen.iter().any(|m| m["type"] == "gap" && m["reason"] == "decode_error")
    };
    viewer.until("viewers are told", degraded).await;

    // It goes on as soon as the header comes.
    assert!(publisher.send(&config).await && send_in_time(&mut publisher, &frames).await);
    publisher.vanish();
    server.end("bare").await;
    viewer.until_ended().await;
    assert_eq!(viewer.finals(), markers());
    let live = viewer.seen.iter().position(|m| m["status"] == "live" && m["reason"] == "audio_decodes");
    let said = viewer.seen.iter().position(|m| m["isFinal"] == true);
    assert!(live.is_some() && live < said, "{:#?}", viewer.seen);
    server.stop().await;
}

/// It may come back without its header, in the same process or in the next.
#[actix::test]
async fn an_app_that_does_not_say_its_header_again_is_heard() {
    let stt = marker_service().await;
    let settings = [("GLADIA_API_URL", &*stt.url)];
    let mut server = TestApp::start(&settings).await;
    let (config, frames) = marked_tags("anull").await;
    let mut publisher = RawPublisher::publish(server.app.rtmp_addr().unwrap(), "reset").await.expect("it may");
    assert!(publisher.send(&config).await);
    for is_restarted in [false, true] {
        assert!(send_in_time(&mut publisher, &frames).await);
        publisher.vanish();
        server.session_until("reset", "it is gone", |s| s["children"]["rtmpConnection"].is_null()).await;
        if is_restarted {
            server = TestApp::start_in(server.stop().await, &settings).await;
        }
        publisher = RawPublisher::publish(server.app.rtmp_addr().unwrap(), "reset").await.expect("it may");
    }
    assert!(send_in_time(&mut publisher, &frames).await);
    publisher.vanish();
    server.end("reset").await;
    let thrice: Vec<String> = (0..3).flat_map(|_| markers()).collect();
    assert_eq!(server.stored_finals("reset").await, thrice);
    server.stop().await;
}

/// What it sends is not what it said the last time.
#[actix::test]
async fn an_assumed_configuration_that_does_not_fit_is_told_of() {
    let stt = marker_service().await;
    let server = TestApp::start(&[("GLADIA_API_URL", &stt.url)]).await;
    let (config, frames) = marked_tags("anull").await;
    let mut viewer = Viewer::join(&server, "changed").await;
    let rtmp = server.app.rtmp_addr().unwrap();
    let mut publisher = RawPublisher::publish(rtmp, "changed").await.expect("it may");
    assert!(publisher.send(&config).await && send_in_time(&mut publisher, &frames).await);
    publisher.vanish();
    server.session_until("changed", "it is gone", |s| s["children"]["rtmpConnection"].is_null()).await;
    let mut publisher = RawPublisher::publish(rtmp, "changed").await.expect("it may");
    let foreign: Vec<Tag> = (0..).zip(&frames).map(|(n, tag)| crate::audio::random_payload(n, tag, 2)).collect();
    send_until(&mut publisher, &foreign, "the encoder is told", |p| p.was_told("none of the frames gives sound")).await;
    let told = |seen: &[serde_json::Value]| {
        let status = seen.iter().any(|m| m["status"] == "degraded" && m["reason"] == "audio_undecodable");
        status && seen.iter().any(|m| m["type"] == "gap" && m["reason"] == "decode_error")
    };
    viewer.until("viewers are told", told).await;
    assert_eq!(viewer.finals().len(), MARKERS.count());
    publisher.vanish();
    server.stop().await;
}
