//! The way from a session's bytes to its engine: positions, what is acknowledged and what is not yet.

use std::collections::VecDeque;
use std::time::Duration;

use bytes::Bytes;
use tokio::time::Instant;

use super::super::audio::{Format, Reader};
use super::super::engine::EngineStream;
use super::recording::Recording;
use crate::gladia::wire::AudioAck;

/// Passes a session's bytes to its engine and counts what is acknowledged.
pub struct Intake {
    format: Format,
    reader: Reader,
    /// One per channel.
    pub streams: Vec<Box<dyn EngineStream>>,
    /// Bytes taken over all connections. It never goes down.
    acknowledged: u64,
    /// Came, and is taken later (a fault): forgotten when the connection ends.
    waiting: VecDeque<(Instant, Bytes)>,
    recording: Option<Recording>,
}

impl Intake {
    pub fn new(format: Format, keep_audio: bool) -> Self {
        let recording = keep_audio.then(|| Recording::create(format)).and_then(|made| {
            made.map_err(|error| tracing::warn!(%error, "audio cannot be kept: no temporary file")).ok()
        });
        let reader = Reader::new(format);
        Self { format, reader, streams: Vec::new(), acknowledged: 0, waiting: VecDeque::new(), recording }
    }

    fn seconds(&self, bytes: u64) -> f64 {
        let exact = bytes as f64 / self.format.bytes_per_second() as f64;
        (exact * 1e6).round() / 1e6
    }

    /// Seconds of audio taken.
    pub fn duration(&self) -> f64 {
        self.seconds(self.acknowledged)
    }

    /// Takes audio for good.
    pub fn take(&mut self, bytes: &[u8]) -> AudioAck {
        let start = self.acknowledged;
        self.acknowledged += bytes.len() as u64;
        if let Some(recording) = &mut self.recording
            && let Err(error) = recording.append(bytes)
        {
            tracing::warn!(%error, "audio is kept no longer: the temporary file cannot be written");
            self.recording = None;
        }
        for (stream, samples) in self.streams.iter_mut().zip(self.reader.read(bytes)) {
            stream.push(&samples);
        }
        let end = self.acknowledged;
        AudioAck { byte_range: [start, end], time_range: [self.seconds(start), self.seconds(end)] }
    }

    /// Puts audio off; what is put off already stays in front of it.
    pub fn put_off(&mut self, bytes: Bytes, delay: Duration) {
        self.waiting.push_back((Instant::now() + delay, bytes));
    }

    pub fn is_waiting(&self) -> bool {
        !self.waiting.is_empty()
    }

    /// The next piece that was put off and is due (or any, with `all`), else when it will be.
    pub fn due(&mut self, all: bool) -> Result<Bytes, Option<Instant>> {
        match self.waiting.front() {
            None => Err(None),
            Some((due, _)) if !all && *due > Instant::now() => Err(Some(*due)),
            Some(_) => self.waiting.pop_front().map(|(_, bytes)| bytes).ok_or(None),
        }
    }

    /// The connection is over.
    pub fn forget_waiting(&mut self) {
        self.waiting.clear();
    }

    /// Samples that the engine is behind.
    pub fn backlog(&self) -> usize {
        self.streams.iter().map(|s| s.backlog()).max().unwrap_or(0)
    }

    pub fn finish(&mut self) {
        self.streams.iter_mut().for_each(|s| s.finish());
    }

    pub fn take_recording(&mut self) -> Option<Recording> {
        self.recording.take()
    }
}
