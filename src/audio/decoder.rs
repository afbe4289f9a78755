//! What a decoder has to do: tags of one run in, PCM16 at 16 kHz mono out.
//!
//! Input and output are two halves, so that a decoder with full buffers never keeps its reader waiting. The `process`
//! back end is [`super::process::Process`].

use std::io;
use std::path::PathBuf;
use std::sync::Arc;

use bytes::{Bytes, BytesMut};

use crate::metrics::Metrics;

/// A tag in its classic form, with its time since the decoder's begin.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Input {
    pub timestamp_ms: u32,
    pub body: Bytes,
}

/// What every decoder of a session is started with.
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

    /// `config`: the AAC sequence header. `exact`: timestamps are true to the millisecond, so that frames that cannot
    /// be decoded are to be replaced by as much silence.
    fn start(
        settings: &Settings,
        config: Option<Bytes>,
        exact: bool,
    ) -> impl Future<Output = Result<Self, DecoderError>>;

    /// Process id, where it is one.
    fn id(&self) -> Option<u32>;

    /// Once.
    fn split(&mut self) -> (Self::Input, Self::Output);

    /// After the output's end: an error when that was not the end of the input.
    fn ended(&mut self) -> impl Future<Output = Result<(), DecoderError>>;
}

/// Dropping it tells the decoder that there is no more.
pub trait DecoderInput {
    /// Waits while the decoder takes no more.
    fn write(&mut self, input: &Input) -> impl Future<Output = io::Result<()>>;
}

pub trait DecoderOutput {
    /// Adds whole samples to `pcm`. 0: no more will come. Cancel-safe.
    fn read(&mut self, pcm: &mut BytesMut) -> impl Future<Output = io::Result<usize>>;
}
