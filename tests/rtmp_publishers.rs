//! Real publishers reach the decoder, and no sample is lost on the way.

#[path = "support/rtmp.rs"]
mod support;

use support::*;

/// Publishes with ffmpeg and compares with what ffmpeg makes of the file by itself.
async fn ffmpeg_is_heard(clip_name: &str, least_snr_db: f64) {
    let server = Server::start(&[]);
    let output = publish_ffmpeg(&server.url("live/room-1"), clip_name).await;
    assert!(output.success, "{}", output.stderr);
    server.flushed(1).await;
    let wanted = reference(clip_name).await;
    let seen = server.seen.lock();
    let got = seen.sessions["room-1"].pcm();
    // The resampler's last sample depends on its rounding.
    assert!(got.len().abs_diff(wanted.len()) <= 1, "{} of {}", got.len(), wanted.len());
    assert!(snr_db(&wanted, &got) >= least_snr_db, "{}", snr_db(&wanted, &got));
    assert_eq!(server.metrics.decode_errors_total.get(), 0);
    assert_eq!(server.metrics.ffmpeg_starts_total.get(), 1);
}

#[actix::test]
async fn ffmpeg_aac_44_100_stereo() {
    ffmpeg_is_heard("audio_aac44s.flv", f64::INFINITY).await;
}
#[actix::test]
async fn ffmpeg_aac_48_000_stereo() {
    ffmpeg_is_heard("audio_aac48s.flv", f64::INFINITY).await;
}
#[actix::test]
async fn ffmpeg_he_aac() {
    ffmpeg_is_heard("audio_heaac48s.flv", f64::INFINITY).await;
}
#[actix::test]
async fn ffmpeg_he_aac_v2() {
    ffmpeg_is_heard("audio_heaacv2.flv", f64::INFINITY).await;
}
#[actix::test]
async fn ffmpeg_with_video() {
    ffmpeg_is_heard("av360_aac48s.flv", f64::INFINITY).await;
}
