//! The contract of a decoder: tags of one run in, PCM16 at 16 kHz mono out.
//!
//! Input and output are two halves, so that a decoder with full buffers never keeps its reader waiting. The `process`
//! back end is [`super::process::Process`].

use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use bytes::Bytes;

use crate::metrics::Metrics;

/// A tag in its classic form, with its time since the decoder's begin.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Input {
    pub timestamp_ms: u32,
    pub body: Bytes,
}

/// Decoded audio, whole samples: mono, PCM16, 16 kHz.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Decoded {
    /// When it is heard, in ms since the decoder's begin, modulo 2^32. Rounded, and up to 2 ms early, since a resampler
    /// holds a little back.
    pub at_ms: u32,
    pub pcm: Bytes,
}

/// The complaints of a decoder so far. It tells a decoder that can do nothing with its input from a dead one.
#[derive(Debug, Default)]
pub struct Complaints {
    lines: AtomicU64,
    frames: AtomicU64,
}

impl Complaints {
    pub fn add(&self, is_of_frame: bool) {
        self.frames.fetch_add(u64::from(is_of_frame), Ordering::Relaxed);
        self.lines.fetch_add(1, Ordering::Relaxed);
    }

    /// All of them: a sign of life.
    pub fn lines(&self) -> u64 {
        self.lines.load(Ordering::Relaxed)
    }

    /// Frames said to be undecodable. A few give no sound without a word.
    pub fn frames(&self) -> u64 {
        self.frames.load(Ordering::Relaxed)
    }
}

/// The settings of every decoder of a session.
#[derive(Clone)]
pub struct Settings {
    pub ffmpeg_path: PathBuf,
    pub metrics: Arc<Metrics>,
}

#[derive(Debug, thiserror::Error)]
pub enum DecoderError {
    #[error("ffmpeg was not found as {0:?}: install it (Debian and Ubuntu: apt install ffmpeg) or set FFMPEG_PATH")]
    Missing(PathBuf),
    #[error("ffmpeg could not be started: {0}")]
    Start(io::Error),
    #[error("ffmpeg ended by itself: {0}")]
    Ended(String),
    #[error("ffmpeg brought no audio for {0} ms while tags went in")]
    Frozen(u64),
    #[error("a pipe of ffmpeg broke: {0}")]
    Pipe(#[from] io::Error),
}

/// A running decoder. Dropping it ends it at once.
pub trait Decoder: Sized {
    type Input: DecoderInput;
    type Output: DecoderOutput;

    /// `config`: the AAC sequence header.
    fn start(settings: &Settings, config: Option<Bytes>) -> impl Future<Output = Result<Self, DecoderError>>;

    /// Process id, where it is one.
    fn id(&self) -> Option<u32>;

    fn complaints(&self) -> Arc<Complaints>;

    /// Once.
    fn split(&mut self) -> (Self::Input, Self::Output);

    /// After the output's end: an error when that was not the end of the input, or not an orderly one. A decoder that
    /// has complained of frames may end as it likes.
    fn ended(&mut self) -> impl Future<Output = Result<(), DecoderError>>;
}

/// Dropping it tells the decoder that there is no more.
pub trait DecoderInput {
    /// Waits while the decoder takes no more.
    fn write(&mut self, input: &Input) -> impl Future<Output = io::Result<()>>;
}

pub trait DecoderOutput {
    /// The next audio. None: no more will come. Cancel-safe.
    fn read(&mut self) -> impl Future<Output = io::Result<Option<Decoded>>>;
}
