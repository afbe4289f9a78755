//! Real publishers: ffmpeg and GStreamer, and the audio that they publish.

use std::path::{Path, PathBuf};
use std::process::Stdio;

use tokio::process::{Child, Command};

/// Samples a millisecond of the audio that tests make.
const SAMPLES_PER_MS: usize = 16;

/// Writes PCM16 mono 16 kHz as a WAV file.
pub fn write_wav(path: &Path, samples: &[i16]) {
    let spec = hound::WavSpec {
        channels: 1,
        sample_rate: 16_000,
        bits_per_sample: 16,
        sample_format: hound::SampleFormat::Int,
    };
    let mut writer = hound::WavWriter::create(path, spec).expect("the file can be made");
    for sample in samples {
        writer.write_sample(*sample).expect("the sample can be written");
    }
    writer.finalize().expect("the file can be finished");
}

/// Marked utterances with pauses between: what the marker engine answers as "marker N".
pub fn marked_audio(numbers: impl IntoIterator<Item = u32>, pause_ms: usize) -> Vec<i16> {
    let mut samples = Vec::new();
    for number in numbers {
        samples.extend(stenocast::local_stt::marker::synthesise(number));
        samples.resize(samples.len() + pause_ms * SAMPLES_PER_MS, 0);
    }
    samples
}

/// A speech clip of the fixtures.
pub fn clip(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/speech").join(name)
}

/// Starts an ffmpeg that publishes the file as AAC 44.1 kHz stereo; `paced` as fast as it is spoken.
pub fn ffmpeg(file: &Path, url: &str, paced: bool) -> Child {
    spawn(&mut ffmpeg_command(file, url, paced))
}

/// The same, paced, writing down ten times a second how far it is: see [`sent_ms`].
pub fn ffmpeg_reporting(file: &Path, url: &str, report: &Path) -> Child {
    spawn(ffmpeg_command(file, url, true).args(["-stats_period", "0.1", "-progress"]).arg(report))
}

/// So much audio an ffmpeg has sent, by its own report.
pub fn sent_ms(report: &Path) -> Option<u64> {
    let text = std::fs::read_to_string(report).ok()?;
    let last = text.lines().rev().find_map(|line| line.strip_prefix("out_time_us="))?;
    Some(last.trim().parse::<u64>().ok()? / 1000)
}

fn ffmpeg_command(file: &Path, url: &str, paced: bool) -> Command {
    let mut command = Command::new("ffmpeg");
    command.args(["-hide_banner", "-loglevel", "error"]);
    if paced {
        command.arg("-re");
    }
    command.arg("-i").arg(file);
    command.args(["-c:a", "aac", "-b:a", "128k", "-ar", "44100", "-ac", "2", "-f", "flv", url]);
    command.stdin(Stdio::null()).stderr(Stdio::piped()).kill_on_drop(true);
    command
}

fn spawn(ffmpeg: &mut Command) -> Child {
    ffmpeg.spawn().expect("ffmpeg is installed (apt-get install ffmpeg)")
}

/// Publishes the file to its end.
pub async fn publish(file: &Path, url: &str, paced: bool) {
    let output = ffmpeg(file, url, paced).wait_with_output().await.expect("ffmpeg runs");
    assert!(output.status.success(), "ffmpeg: {}", String::from_utf8_lossy(&output.stderr));
}

/// Publishes as LiveKit Egress does: GStreamer's flvmux and rtmp2sink.
pub async fn publish_with_gstreamer(file: &Path, url: &str) {
    gstreamer(file, &format!("rtmp2sink async-connect=false sync=false location={url}")).await;
}

/// Publishes through librtmp, as OBS does, at the speed of the audio.
pub async fn publish_with_librtmp(file: &Path, url: &str) {
    gstreamer(file, &format!("rtmpsink sync=true location={url}")).await;
}

async fn gstreamer(file: &Path, sink: &str) {
    let pipeline = format!(
        "filesrc location={} ! wavparse ! audioconvert ! audioresample ! audio/x-raw,rate=44100,channels=2 ! \
         avenc_aac bitrate=128000 ! aacparse ! flvmux streamable=true ! {sink}",
        file.display()
    );
    let output = Command::new("gst-launch-1.0")
        .arg("-q")
        .args(pipeline.split_whitespace())
        .stdin(Stdio::null())
        .kill_on_drop(true)
        .output()
        .await
        .expect("GStreamer is installed (apt-get install gstreamer1.0-tools gstreamer1.0-plugins-bad)");
    assert!(output.status.success(), "gst-launch: {}", String::from_utf8_lossy(&output.stderr));
}
