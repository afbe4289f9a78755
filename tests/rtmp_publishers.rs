//! Real publishers reach the decoder, and no sample is lost on the way; those that may not publish are told why.

mod support;

use stenocast::actors::rtmp_connection::{ClosePublisher, CloseReason};
use stenocast::actors::rtmp_listener::StopAccepting;
use stenocast::actors::supervision::Exit;
use stenocast::actors::supervision::Observe;
use stenocast::config::Secret;
use stenocast::rtmp::publish_key;
use support::rtmp::*;
use support::wait::until;

/// The session's PCM is what ffmpeg makes of the clip by itself.
async fn is_heard(server: &Server, slug: &str, clip_name: &str) {
    server.flushed(1).await;
    let wanted = reference(clip_name).await;
    let seen = server.seen.lock();
    let got = seen.sessions[slug].pcm();
    // The resampler's last sample depends on its rounding.
    assert!(got.len().abs_diff(wanted.len()) <= 1, "{} of {} samples", got.len(), wanted.len());
    assert_eq!(snr_db(&wanted, &got), f64::INFINITY);
    assert_eq!(server.metrics.decode_errors_total.get(), 0);
    assert_eq!(server.metrics.ffmpeg_starts_total.get(), 1);
    assert_eq!(server.metrics.ffmpeg_processes.get(), 0, "the child ends with its publisher");
    assert_eq!(seen.connection_exits, [(slug.to_owned(), Exit::Normal)]);
}

async fn ffmpeg_is_heard(clip_name: &str) {
    let server = Server::start(&[]);
    let output = publish_ffmpeg(&server.url("live/room-1"), clip_name).await;
    assert!(output.success, "{}", output.stderr);
    is_heard(&server, "room-1", clip_name).await;
}

#[actix::test]
async fn ffmpeg_with_what_livekit_egress_encodes() {
    ffmpeg_is_heard("audio_aac44s.flv").await;
}

#[actix::test]
async fn ffmpeg_at_48_khz() {
    ffmpeg_is_heard("audio_aac48s.flv").await;
}

#[actix::test]
async fn ffmpeg_with_he_aac() {
    ffmpeg_is_heard("audio_heaac48s.flv").await;
}

#[actix::test]
async fn ffmpeg_with_he_aac_v2() {
    ffmpeg_is_heard("audio_heaacv2.flv").await;
}

#[actix::test]
async fn ffmpeg_with_video() {
    ffmpeg_is_heard("av360_aac48s.flv").await;
}

/// Publishes with `sink` as LiveKit Egress (rtmp2sink) or OBS (librtmp) does.
/// `sync=true`: at the speed of the clip.
async fn publish_gstreamer(server: &Server, sink: &str, sync: &str, clip_name: &str, path: &str) {
    let source = format!("location={}", clip(clip_name).display());
    let location = format!("location={}", server.url(path));
    let mut arguments = vec!["-q", "filesrc", &source, "!", "flvdemux", "name=d", "d.audio", "!", "aacparse", "!"];
    arguments.extend(["flvmux", "streamable=true", "!", sink, &location, sync]);
    let output = run("gst-launch-1.0", &arguments).await;
    assert!(output.success, "{}", output.stderr);
}

async fn gstreamer_is_heard(sink: &str, sync: &str, clip_name: &str) {
    let server = Server::start(&[]);
    publish_gstreamer(&server, sink, sync, clip_name, "live/room-2").await;
    is_heard(&server, "room-2", clip_name).await;
}

#[actix::test]
async fn the_sink_of_livekit_egress() {
    gstreamer_is_heard("rtmp2sink", "sync=false", "audio_aac44s.flv").await;
}

/// librtmp never reads after publish, so its close is a reset, and its kernel throws away what is not yet sent: only a
/// live publisher, who has nothing unsent, is heard to the end. (No server can help that: any answer to it does it.)
#[actix::test]
async fn librtmp() {
    gstreamer_is_heard("rtmpsink", "sync=true", "audio_aac44s.flv").await;
}

/// The codecs of older encoders, as ffmpeg publishes them: their lengths are guessed from timestamps.
#[actix::test]
async fn codecs_other_than_aac() {
    let input = clip("audio_aac44s.flv").display().to_string();
    for (codec, rate) in [("libmp3lame", "44100"), ("pcm_alaw", "8000"), ("pcm_s16le", "44100"), ("libspeex", "16000")]
    {
        let server = Server::start(&[]);
        let url = server.url(&format!("live/{codec}"));
        let encode = ["-c:a", codec, "-ar", rate, "-ac", "1", "-t", "8", "-f", "flv", &url];
        let output = run("ffmpeg", &[&["-nostdin", "-v", "error", "-i", &input][..], &encode].concat()).await;
        assert!(output.success, "{}", output.stderr);
        server.flushed(1).await;
        let seen = server.seen.lock();
        let got = seen.sessions[codec].pcm();
        assert!(got.len().abs_diff(8 * 16_000) < 2_000, "{codec}: {} samples", got.len());
        assert!(got.iter().any(|s| s.unsigned_abs() > 3000), "{codec} is silent");
        assert!(seen.sessions[codec].chunks.lock().iter().all(|c| !c.inserted), "{codec}");
    }
}

/// ffmpeg is told `reason` and nothing is started for it.
async fn ffmpeg_is_refused(server: &Server, path: &str, reason: &str, label: &str) {
    let output = publish_ffmpeg(&server.url(path), "audio_heaacv2.flv").await;
    assert!(!output.success, "{path} was accepted");
    assert!(output.stderr.contains(reason), "{path}: {}", output.stderr);
    assert!(server.seen.lock().sessions.is_empty());
    assert!(server.metrics.rtmp_refused_total.with_label_values(&[label]).get() > 0, "{label}");
}

#[actix::test]
async fn strangers_are_told_what_is_wrong() {
    let server = Server::start(&[("RTMP_PUBLISH_KEY", "top")]);
    let other = publish_key(&Secret::new("top"), &slug("other"), None);
    ffmpeg_is_refused(&server, "live/demo", "publish key is required", "key_missing").await;
    ffmpeg_is_refused(&server, &format!("live/demo?key={other}"), "does not fit this room", "key_wrong").await;
    ffmpeg_is_refused(&server, &format!("live/demo?key={other}&exp=1"), "does not fit", "key_wrong").await;
}

#[actix::test]
async fn wrong_paths_are_told_the_right_one() {
    let server = Server::start(&[]);
    ffmpeg_is_refused(&server, "vod/demo", "publish to rtmp://host/live/", "app").await;
    ffmpeg_is_refused(&server, "live/a,b", "the character ','", "slug").await;
}

#[actix::test]
async fn the_registry_s_refusal_reaches_the_publisher() {
    let server = Server::start_with(&[], true);
    ffmpeg_is_refused(&server, "live/demo", "another encoder is publishing", "takeover_limit").await;
}

#[actix::test]
async fn a_key_in_the_stream_name_opens_the_room() {
    let server = Server::start(&[("RTMP_PUBLISH_KEY", "top")]);
    let key = publish_key(&Secret::new("top"), &slug("demo"), None);
    let output = publish_ffmpeg(&server.url(&format!("live/demo?key={key}")), "audio_heaacv2.flv").await;
    assert!(output.success, "{}", output.stderr);
    is_heard(&server, "demo", "audio_heaacv2.flv").await;
}

#[actix::test]
async fn livekit_egress_keeps_the_key() {
    let server = Server::start(&[("RTMP_PUBLISH_KEY", "top")]);
    let key = publish_key(&Secret::new("top"), &slug("demo"), None);
    let path = format!("live/demo?key={key}");
    publish_gstreamer(&server, "rtmp2sink", "sync=false", "audio_heaacv2.flv", &path).await;
    is_heard(&server, "demo", "audio_heaacv2.flv").await;
}

/// A live publisher: ffmpeg at the speed of the clip.
fn live_ffmpeg(url: &str) -> impl Future<Output = Output> + use<> {
    let (input, url) = (clip("audio_aac44s.flv").display().to_string(), url.to_owned());
    async move {
        let arguments = ["-nostdin", "-v", "error", "-re", "-i", &input, "-c", "copy", "-f", "flv", &url];
        run("ffmpeg", &arguments).await
    }
}

#[actix::test]
async fn a_displaced_publisher_is_closed_and_told() {
    let server = Server::start(&[]);
    let publisher = actix_rt::spawn(live_ffmpeg(&server.url("live/demo")));
    let heard = async || server.seen.lock().sessions.get("demo").is_some_and(|s| !s.chunks.lock().is_empty());
    until("the first chunk", heard).await;
    server.close("demo", ClosePublisher { reason: CloseReason::Displaced });
    assert!(!publisher.await.unwrap().success);
    server.flushed(1).await;
    let seen = server.seen.lock();
    assert_eq!(seen.connection_exits, [("demo".to_owned(), Exit::Normal)]);
    assert_eq!(server.metrics.rtmp_closed_total.with_label_values(&["displaced"]).get(), 1);
}

#[actix::test]
async fn a_connection_tells_what_it_carries() {
    let server = Server::start(&[]);
    let publisher = actix_rt::spawn(live_ffmpeg(&server.url("live/demo")));
    let connection = async || {
        let seen = server.seen.lock();
        let session = seen.sessions.get("demo")?;
        (!session.chunks.lock().is_empty()).then(|| (session.connection.clone().unwrap(), session.decoder.clone()))
    };
    let (connection, decoder) = until("the first chunk", connection).await;
    let value = serde_json::to_value(connection.send(Observe::default()).await.unwrap()).unwrap();
    assert_eq!(value["codec"], "AAC-LC 44100 Hz 2 channels");
    assert!(value["audioTags"].as_u64().unwrap() > 4, "{value}");
    assert!(value["peer"].as_str().unwrap().starts_with("127.0.0.1:"), "{value}");
    let value = serde_json::to_value(decoder.send(Observe::default()).await.unwrap()).unwrap();
    assert!(value["childPid"].is_u64() && value["receivedMs"].as_u64().unwrap() >= 100, "{value}");
    let value = serde_json::to_value(server.listener.send(Observe::default()).await.unwrap()).unwrap();
    assert_eq!(value["connections"], 1);

    // Draining: nobody new, but who publishes goes on until told.
    server.listener.send(StopAccepting).await.unwrap();
    let late = publish_ffmpeg(&server.url("live/late"), "audio_heaacv2.flv").await;
    assert!(!late.success);
    assert!(server.seen.lock().connection_exits.is_empty());
    server.close("demo", ClosePublisher { reason: CloseReason::Draining });
    publisher.await.unwrap();
    server.flushed(1).await;
}
