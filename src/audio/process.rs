//! The `process` decoder: an ffmpeg child that reads FLV and writes PCM, on pipes.
//!
//! The flags were measured: with these the first PCM comes 0.1 s after the first tag and each tag's audio one tag
//! later. `-fflags nobuffer` is left out on purpose: on a pipe it adds two frames of delay and loses the first.
//! `aresample=async` puts silence where a frame could not be decoded, by the exact timestamps that we give.

use std::io;
use std::process::Stdio;
use std::sync::Arc;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::process::{Child, ChildStderr, ChildStdin, ChildStdout, Command};
use tokio::time::timeout;

use super::BYTES_PER_SAMPLE;
use super::decoder::{Decoder, DecoderError, DecoderInput, DecoderOutput, Input, Settings};
use super::flv;
use crate::metrics::Metrics;

#[rustfmt::skip]
const INPUT_FLAGS: &[&str] = &[
    "-hide_banner", "-nostdin", "-loglevel", "error", "-flags", "low_delay", "-probesize", "32",
    "-analyzeduration", "0", "-threads", "1", "-f", "flv", "-i", "pipe:0", "-vn",
];
#[rustfmt::skip]
const OUTPUT_FLAGS: &[&str] =
    &["-f", "s16le", "-ar", "16000", "-ac", "1", "-flush_packets", "1", "pipe:1"];
/// Below the length of a frame (21 ms), far above the rounding of timestamps.
const EXACT_FILTER: &str = "aresample=async=1:min_hard_comp=0.01:first_pts=0";
/// Timestamps of publishers jitter.
const GUESSED_FILTER: &str = "aresample=async=1:min_hard_comp=0.1:first_pts=0";
const READ_BYTES: usize = 16 << 10;
/// From the end of its output to the end of the child.
const EXIT_TIME: Duration = Duration::from_secs(2);
/// A broken stream can write a line per frame.
const MAX_STDERR_LINE_BYTES: u64 = 4096;

/// Whether the program can be found, as the shell would look for it.
pub fn is_installed(program: &std::path::Path) -> bool {
    if program.components().count() > 1 {
        return program.is_file();
    }
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path).any(|dir| dir.join(program).is_file())
}

/// See the module.
pub struct Process {
    child: Child,
    pipes: Option<(ChildStdin, ChildStdout)>,
    metrics: Arc<Metrics>,
}

impl Decoder for Process {
    type Input = FlvInput;
    type Output = PcmOutput;

    async fn start(settings: &Settings, config: Option<Bytes>, exact: bool) -> Result<Self, DecoderError> {
        let path = settings.ffmpeg_path.clone();
        let mut command = Command::new(&path);
        command.args(INPUT_FLAGS).args(["-af", if exact { EXACT_FILTER } else { GUESSED_FILTER }]).args(OUTPUT_FLAGS);
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
        if let Some(stderr) = child.stderr.take() {
            actix_rt::spawn(drain_errors(stderr, metrics.clone()));
        }
        let mut process = Self { child, pipes, metrics };
        process.send_head(config).await?;
        Ok(process)
    }

    fn id(&self) -> Option<u32> {
        self.child.id()
    }

    fn split(&mut self) -> (FlvInput, PcmOutput) {
        let (stdin, stdout) = self.pipes.take().expect("split is called once");
        (FlvInput { stdin }, PcmOutput { stdout, buffer: BytesMut::new() })
    }

    async fn ended(&mut self) -> Result<(), DecoderError> {
        match timeout(EXIT_TIME, self.child.wait()).await {
            Ok(Ok(status)) if status.success() => Ok(()),
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

/// Reads PCM, whole samples at a time.
pub struct PcmOutput {
    stdout: ChildStdout,
    /// Half a sample at most, between two reads.
    buffer: BytesMut,
}

impl DecoderOutput for PcmOutput {
    async fn read(&mut self, pcm: &mut BytesMut) -> io::Result<usize> {
        loop {
            self.buffer.reserve(READ_BYTES);
            let count = self.stdout.read_buf(&mut self.buffer).await?;
            let whole = self.buffer.len() / BYTES_PER_SAMPLE * BYTES_PER_SAMPLE;
            pcm.extend_from_slice(&self.buffer.split_to(whole));
            if whole > 0 || count == 0 {
                return Ok(whole);
            }
        }
    }
}

/// What ffmpeg says of a frame that it cannot decode: until 6.0, and since. Of one frame, one line has one of these.
const DECODE_ERRORS: [&str; 3] = ["Error while decoding", "Error submitting packet to decoder", "Decoding error:"];

fn is_decode_error(line: &str) -> bool {
    DECODE_ERRORS.iter().any(|words| line.contains(words))
}

/// Counts and logs what the child complains about, so that its pipe never fills.
async fn drain_errors(stderr: ChildStderr, metrics: Arc<Metrics>) {
    let mut reader = BufReader::new(stderr);
    let mut line = Vec::new();
    loop {
        line.clear();
        match (&mut reader).take(MAX_STDERR_LINE_BYTES).read_until(b'\n', &mut line).await {
            Ok(0) | Err(_) => return,
            Ok(_) => {
                let text = String::from_utf8_lossy(&line);
                if is_decode_error(&text) {
                    metrics.decode_errors_total.inc();
                }
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
        assert!(!is_decode_error("[aac @ 0x55] Reserved bit set."));
    }
}
