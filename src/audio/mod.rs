//! Audio without actors: tags of publishers in, PCM16 at 16 kHz mono with true times out.
//!
//! [`tag`] reads the head of an FLV audio tag, [`aac`] its configuration, [`clock`] turns timestamps into silence and
//! segments, [`chunker`] cuts PCM, [`state`] keeps every tag until its sound is out, [`flv`] frames tags for a
//! decoder, and [`decoder`] is what decodes: `process`, an ffmpeg child.

pub mod aac;
pub mod chunker;
pub mod clock;
pub mod decoder;
pub mod flv;
pub mod process;
mod run;
pub mod state;
pub mod tag;

pub use state::DecodeState;

/// PCM16 at 16 kHz mono, throughout.
pub const SAMPLE_RATE: u64 = 16_000;
pub const SAMPLES_PER_MS: u64 = SAMPLE_RATE / 1000;
pub const BYTES_PER_SAMPLE: usize = 2;
