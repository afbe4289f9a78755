//! A run: the tags of one publisher in one configuration, decoded by one decoder without a break.

use bytes::Bytes;
use tokio::time::Instant;

use super::SAMPLE_RATE;
use super::clock::Before;

/// Tags of one publisher and one configuration, which one decoder decodes without a break.
#[derive(Debug)]
pub(super) struct Run {
    pub id: u64,
    pub publisher: u64,
    /// A later publisher with the same configuration: it continues the run if its first tag does.
    pub successor: Option<u64>,
    /// First byte of its tags.
    pub format: u8,
    pub config: Option<Bytes>,
    /// Units of `end`, in Hz.
    pub rate: u32,
    /// Length of a tag, in units.
    pub length: u32,
    pub exact: bool,
    pub codec: &'static str,
    /// End of its last tag, in units since its begin.
    pub end: u64,
    /// Its begin on the decoders' count.
    pub begin: u64,
}

/// A tag that is kept, and its place.
#[derive(Debug)]
pub(super) struct Retained {
    pub seq: u64,
    pub run: u64,
    pub publisher: u64,
    /// The run's configuration, rate and begin.
    pub config: Option<Bytes>,
    pub rate: u32,
    pub begin: u64,
    pub exact: bool,
    /// In the run's units.
    pub at: u64,
    pub length: u32,
    pub body: Bytes,
    pub before: Before,
    pub arrived: Instant,
    pub arrived_ms: u64,
}

impl Retained {
    /// Its first and its next tag's first sample, on the decoders' count.
    pub fn starts(&self) -> u64 {
        self.begin + scaled(self.at, self.rate)
    }

    pub fn ends(&self) -> u64 {
        self.begin + scaled(self.at + u64::from(self.length), self.rate)
    }

    /// Distance of its begin from a sample of the output, in parts of a unit.
    pub fn phase(&self) -> u64 {
        let rate = u64::from(self.rate);
        let phase = self.at * SAMPLE_RATE % rate;
        phase.min(rate - phase)
    }
}

/// Rounded as ffmpeg's resampler does at the end of a stream.
fn scaled(units: u64, rate: u32) -> u64 {
    (units * SAMPLE_RATE + u64::from(rate) / 2) / u64::from(rate)
}
