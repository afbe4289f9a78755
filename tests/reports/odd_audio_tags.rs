//! Audio tags that are odd in the middle of a healthy publish: the first track goes on to its last frame. A codec that
//! really changes is followed.
//!
//! Reports: OBS with several audio tracks (Enhanced RTMP multitrack), timestamps refined by a `ModEx` packet, relays
//! that mix in a tag of another codec, sequence headers cut to one byte, encoders that end a sequence and go on.

use tokio::io::AsyncWriteExt;

use crate::support::rtmp::{Server, tags};
use crate::support::rtmp_bytes::{handshake, message_at, publish};
use crate::support::wait::until;
use stenocast::actors::supervision::Exit;

const CLIP: &str = "audio_aac44s.flv";
const FRAMES: usize = 20;

/// What comes between frames, in hex; how often it is counted, and as what.
const ODD: [(&str, &str, Option<&str>); 14] = [
    ("second-track", "95016d703461012100", Some("side_track")),
    ("second-track-header", "95006d703461011210", Some("side_track")),
    ("many-tracks", "95116d7034610100000221000200000121", Some("side_track")),
    ("many-codecs", "95214f70757301000001ff", Some("side_track")),
    ("sequence-end", "926d703461", None),
    ("channel-layout", "946d7034610102", None),
    ("mod-ex-cut-short", "9702", None),
    ("opus", "914f707573ff", Some("stray_codec")),
    ("a-law", "72d5d5d5d5", Some("stray_codec")),
    ("reserved-format", "c000", Some("stray_codec")),
    ("header-of-one-byte", "af0012", Some("bad_config")),
    ("header-of-no-byte", "af00", None),
    ("header-of-aac-eld", "af00f8e640", Some("bad_config")),
    ("unknown-aac-packet", "af07ff", None),
];

fn clip() -> Vec<(u32, Vec<u8>)> {
    tags(CLIP).into_iter().take(1 + FRAMES).map(|(time, body)| (time as u32, body.to_vec())).collect()
}

/// Samples at 16 kHz in so many AAC frames at 44.1 kHz.
fn samples(frames: usize) -> usize {
    (frames as f64 * 1024.0 * 16_000.0 / 44_100.0).round() as usize
}

/// Publishes the tags; gives the samples that were heard.
async fn heard(server: &Server, room: &'static str, tags: &[(u32, Vec<u8>)], ends_before: usize) -> usize {
    let mut socket = handshake(server.address).await;
    socket.write_all(&publish(room)).await.unwrap();
    until(room, async || server.seen.lock().sessions.contains_key(room)).await;
    let bytes: Vec<u8> = tags.iter().flat_map(|(time, body)| message_at(*time, 8, 1, body)).collect();
    socket.write_all(&bytes).await.unwrap();
    socket.shutdown().await.unwrap();
    server.flushed(ends_before + 1).await;
    let seen = server.seen.lock();
    assert_eq!(seen.connection_exits.last(), Some(&(room.to_owned(), Exit::Normal)));
    seen.sessions[room].pcm().len()
}

#[actix::test]
async fn the_first_track_goes_on() {
    let server = Server::start(&[]);
    for (n, (room, odd, kind)) in ODD.into_iter().enumerate() {
        let odd = hex::decode(odd).unwrap();
        let between = |(time, body): (u32, Vec<u8>)| [(time, body), (time, odd.clone())];
        let tags: Vec<_> = clip().into_iter().flat_map(between).collect();
        let ignored = || {
            let kinds = ["side_track", "stray_codec", "bad_config"];
            kinds.map(|kind| server.metrics.rtmp_ignored_total.with_label_values(&[kind]).get())
        };
        let before = ignored();
        let got = heard(&server, room, &tags, n).await;
        assert!(got.abs_diff(samples(FRAMES)) <= 1, "{room}: {got} samples");
        let wanted =
            ["side_track", "stray_codec", "bad_config"].map(|k| if kind == Some(k) { 1 + FRAMES as u64 } else { 0 });
        assert_eq!([0, 1, 2].map(|n| ignored()[n] - before[n]), wanted, "{room}");
    }
}

#[actix::test]
async fn frames_behind_a_modifier_are_heard() {
    let server = Server::start(&[]);
    // A nanosecond offset of three bytes before each packet of enhanced AAC.
    let wrapped = |(time, body): (u32, Vec<u8>)| {
        let packet = [&[0x97, 2, 0, 1, 2, body[1]][..], b"mp4a", &body[2..]].concat();
        (time, packet)
    };
    let tags: Vec<_> = clip().into_iter().map(wrapped).collect();
    let got = heard(&server, "mod-ex", &tags, 0).await;
    assert!(got.abs_diff(samples(FRAMES)) <= 1, "{got} samples");
}

#[actix::test]
async fn a_codec_that_really_changes_is_followed() {
    let server = Server::start(&[]);
    let mut tags = clip();
    let end = tags.last().unwrap().0 + 23;
    // 25 tags of 20 ms of A-law at 8 kHz, then AAC again.
    tags.extend((0..25).map(|n| (end + n * 20, [&[0x72][..], &[0x55; 160]].concat())));
    tags.extend(clip().into_iter().map(|(time, body)| (end + 500 + time, body)));
    let got = heard(&server, "change", &tags, 0).await;
    let wanted = 2 * samples(FRAMES) + 25 * 320;
    assert!(got.abs_diff(wanted) <= 64, "{got} of {wanted} samples");
}
