//! Stereo of which a plain mono mix makes silence or worse: swapped wires, a microphone out of phase, a dead channel.

use futures_util::future::join_all;

use crate::audio::{marked_tags, markers, send_in_time};
use crate::support::app::TestApp;
use crate::support::raw_publisher::RawPublisher;
use crate::support::stt::marker_service;
use crate::support::viewer::Viewer;

/// ffmpeg filters that make the input of marked speech.
const INPUTS: &[(&str, &str)] = &[
    ("inverted", "pan=stereo|FL=FL|FR=-1*FL"),
    ("inverted-left", "pan=stereo|FL=-1*FL|FR=FL"),
    ("inverted-and-quieter", "pan=stereo|FL=FL|FR=-0.6*FL"),
    (
        "inverted-for-a-while",
        "aeval=exprs=val(0)|val(1)*if(between(t\\,3\\,7)\\,-1\\,1):c=same,aformat=channel_layouts=stereo",
    ),
    ("left-only", "pan=stereo|FL=FL|FR=0*FL"),
    ("right-only", "pan=stereo|FL=0*FL|FR=FL"),
    ("mono", "pan=mono|FC=FL"),
    ("five-channels", "pan=5.1|FC=FL|FL=0.3*FL|FR=0.3*FL"),
    ("five-channels-inverted-front", "pan=5.1|FL=FL|FR=-1*FL"),
];

#[actix::test]
async fn every_marker_is_heard_however_the_channels_stand() {
    let stt = marker_service().await;
    let server = TestApp::start(&[("GLADIA_API_URL", &stt.url)]).await;
    join_all(INPUTS.iter().map(async |(name, filter)| {
        let (config, frames) = marked_tags(filter).await;
        let mut viewer = Viewer::join(&server, name).await;
        let mut publisher = RawPublisher::publish(server.app.rtmp_addr().unwrap(), name).await.expect("it may");
        assert!(publisher.send(&config).await && send_in_time(&mut publisher, &frames).await);
        publisher.vanish();
        server.end(name).await;
        viewer.until_ended().await;
        assert_eq!(viewer.finals(), markers(), "{name}");
    }))
    .await;
    let metrics = server.app.metrics();
    assert_eq!(metrics.lost_audio_ms(), 0);
    // Three of 10 s, one with 4 s of it, and one of the front of five channels.
    let cancelled_s = metrics.audio_channels_cancel_seconds_total.get();
    assert!((30.0..60.0).contains(&cancelled_s), "{cancelled_s} s");
    server.stop().await;
}
