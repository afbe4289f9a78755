//! The `process` decoder: an ffmpeg child that reads FLV and writes PCM with its times, on pipes.
//!
//! The flags were measured: with these the first PCM comes 0.1 s after the first tag and each tag's audio one tag
//! later. `-fflags nobuffer` is left out on purpose: on a pipe it adds two frames of delay and loses the first.
//! ffmpeg adds and removes nothing by timestamps; a frame that it cannot decode is missing in its output, and the time
//! of the next packet shows it.

use std::io;
use std::process::Stdio;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::process::{Child, ChildStderr, ChildStdin, ChildStdout, Command};
use tokio::time::timeout;

use super::SAMPLE_RATE;
use super::decoder::{Complaints, Decoded, Decoder, DecoderError, DecoderInput, DecoderOutput, Input, Settings};
use super::downmix::Downmix;
use super::{flv, smjpeg};
use crate::metrics::Metrics;

#[rustfmt::skip]
const INPUT_FLAGS: &[&str] = &[
    "-hide_banner", "-nostdin", "-loglevel", "repeat+error", "-flags", "low_delay", "-probesize", "32",
    "-analyzeduration", "0", "-threads", "1", "-max_error_rate", "1", "-f", "flv", "-i", "pipe:0", "-vn",
];
/// Two channels for [`Downmix`]: ffmpeg's own mono mix, of whatever channels there are, and half of left less right
/// (silence where there is no left and right).
const MID_AND_SIDE: &str = "asplit[a][b];\
    [a]aformat=sample_fmts=s16:sample_rates=16000:channel_layouts=mono[mid];\
    [b]pan=mono|c0=0.5*FL-0.5*FR,aformat=sample_fmts=s16:sample_rates=16000:channel_layouts=mono[side];\
    [mid][side]amerge";
#[rustfmt::skip]
const OUTPUT_FLAGS: &[&str] = &[
    "-af", MID_AND_SIDE, "-c:a", "pcm_s16le", "-avoid_negative_ts", "disabled", "-f", "smjpeg", "-flush_packets", "1",
    "pipe:1",
];
const READ_BYTES: usize = 16 << 10;
/// From the end of its output to the end of the child.
const EXIT_TIME: Duration = Duration::from_secs(2);
/// A broken stream can write a line per frame.
const MAX_STDERR_LINE_BYTES: u64 = 4096;

/// Looks for the program as the shell would.
pub fn is_installed(program: &std::path::Path) -> bool {
    if program.components().count() > 1 {
        return program.is_file();
    }
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path).any(|dir| dir.join(program).is_file())
}

/// A decoder that is an ffmpeg child.
pub struct Process {
    child: Child,
    pipes: Option<(ChildStdin, ChildStdout)>,
    complaints: Arc<Complaints>,
    metrics: Arc<Metrics>,
}

impl Decoder for Process {
    type Input = FlvInput;
    type Output = PcmOutput;

    async fn start(settings: &Settings, config: Option<Bytes>) -> Result<Self, DecoderError> {
        let path = settings.ffmpeg_path.clone();
        let mut command = Command::new(&path);
        command.args(INPUT_FLAGS).args(OUTPUT_FLAGS);
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).kill_on_drop(true);
        // Out of the terminal's group: Ctrl-C is for us, and the child ends when its input does.
        command.process_group(0);
        // Forking a large process takes milliseconds, which an arbiter does not have. (So no PR_SET_PDEATHSIG: it
        // would fire when the pool's thread retires. An orphan's pipes are closed, and that ends it.)
        let spawned = tokio::task::spawn_blocking(move || command.spawn()).await;
        let mut child = match spawned {
            Ok(Ok(child)) => child,
            Ok(Err(error)) if error.kind() == io::ErrorKind::NotFound => return Err(DecoderError::Missing(path)),
            Ok(Err(error)) => return Err(DecoderError::Start(error)),
            Err(join) => return Err(DecoderError::Start(io::Error::other(join))),
        };
        let metrics = settings.metrics.clone();
        metrics.ffmpeg_starts_total.inc();
        metrics.ffmpeg_processes.inc();
        let pipes = child.stdin.take().zip(child.stdout.take());
        let complaints = Arc::new(Complaints::default());
        if let Some(stderr) = child.stderr.take() {
            actix_rt::spawn(drain_errors(stderr, complaints.clone()));
        }
        let mut process = Self { child, pipes, complaints, metrics };
        process.send_head(config).await?;
        Ok(process)
    }

    fn id(&self) -> Option<u32> {
        self.child.id()
    }

    fn complaints(&self) -> Arc<Complaints> {
        self.complaints.clone()
    }

    fn split(&mut self) -> (FlvInput, PcmOutput) {
        let (stdin, stdout) = self.pipes.take().expect("split is called once");
        let (reader, downmix) = (smjpeg::Reader::default(), Downmix::default());
        (FlvInput { stdin }, PcmOutput { stdout, reader, downmix, metrics: self.metrics.clone(), is_told: false })
    }

    async fn ended(&mut self) -> Result<(), DecoderError> {
        match timeout(EXIT_TIME, self.child.wait()).await {
            Ok(Ok(status)) if status.success() => Ok(()),
            // One that found no frame at all in its input ends with an error. So does one that never understood us, but
            // that one does not speak of frames.
            Ok(Ok(status)) if status.code().is_some() && self.complaints.frames() > 0 => Ok(()),
            Ok(Ok(status)) => Err(DecoderError::Ended(status.to_string())),
            Ok(Err(error)) => Err(error.into()),
            Err(_) => Err(DecoderError::Ended("its output is closed, but it lives".to_owned())),
        }
    }
}

impl Process {
    async fn send_head(&mut self, config: Option<Bytes>) -> Result<(), DecoderError> {
        let (stdin, _) = self.pipes.as_mut().ok_or_else(|| DecoderError::Start(io::Error::other("no pipes")))?;
        stdin.write_all(&flv::HEADER).await?;
        if let Some(config) = config {
            stdin.write_all(&flv::audio_tag(0, &config)).await?;
        }
        Ok(())
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.metrics.ffmpeg_processes.dec();
    }
}

/// Writes tags as FLV.
pub struct FlvInput {
    stdin: ChildStdin,
}

impl DecoderInput for FlvInput {
    async fn write(&mut self, input: &Input) -> io::Result<()> {
        self.stdin.write_all(&flv::audio_tag(input.timestamp_ms, &input.body)).await
    }
}

/// Reads packets and mixes them down.
pub struct PcmOutput {
    stdout: ChildStdout,
    reader: smjpeg::Reader,
    downmix: Downmix,
    metrics: Arc<Metrics>,
    /// That its channels cancel each other out is in the log.
    is_told: bool,
}

impl DecoderOutput for PcmOutput {
    async fn read(&mut self) -> io::Result<Option<Decoded>> {
        loop {
            if let Some(packet) = self.reader.packet()? {
                return Ok(Some(Decoded { at_ms: packet.at_ms, pcm: self.mix(&packet.samples) }));
            }
            self.reader.buffer.reserve(READ_BYTES);
            if self.stdout.read_buf(&mut self.reader.buffer).await? == 0 {
                return Ok(None);
            }
        }
    }
}

impl PcmOutput {
    fn mix(&mut self, samples: &[u8]) -> Bytes {
        let before = self.downmix.cancelled_samples();
        let pcm = self.downmix.mix(samples);
        let cancelled = self.downmix.cancelled_samples() - before;
        self.metrics.audio_channels_cancel_seconds_total.inc_by(cancelled as f64 / SAMPLE_RATE as f64);
        if cancelled > 0 && !std::mem::replace(&mut self.is_told, true) {
            tracing::warn!(
                "the left and the right channel cancel each other out (one of them is inverted): the louder one is heard"
            );
        }
        pcm
    }
}

/// Texts of ffmpeg about a frame that it cannot decode: until 6.0, and since. Of one frame, one line has one of these.
const DECODE_ERRORS: [&str; 3] =
    ["Error while decoding stream", "Error submitting packet to decoder", "Decoding error:"];

fn is_decode_error(line: &str) -> bool {
    DECODE_ERRORS.iter().any(|words| line.contains(words))
}

/// Counts and logs what the child complains about, so that its pipe never fills.
async fn drain_errors(stderr: ChildStderr, complaints: Arc<Complaints>) {
    let mut reader = BufReader::new(stderr);
    let mut line = Vec::new();
    loop {
        line.clear();
        match (&mut reader).take(MAX_STDERR_LINE_BYTES).read_until(b'\n', &mut line).await {
            Ok(0) | Err(_) => return,
            Ok(_) => {
                let text = String::from_utf8_lossy(&line);
                complaints.add(is_decode_error(&text));
                tracing::debug!(line = text.trim_end(), "ffmpeg");
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn broken_frames_are_counted_whichever_ffmpeg_says_so() {
        for line in [
            "Error while decoding stream #0:0: Invalid data found when processing input",
            "[aist#0:0/aac @ 0x55] Error submitting packet to decoder: Invalid data found when processing input",
            "[aist#0:0/aac @ 0x55] [dec:aac @ 0x56] Decoding error: Invalid data found when processing input",
        ] {
            assert!(is_decode_error(line), "{line}");
        }
        for line in ["[aac @ 0x55] Reserved bit set.", "[mp3float @ 0x55] Error while decoding MPEG audio frame."] {
            assert!(!is_decode_error(line), "{line}");
        }
    }
}
