//! Audio without actors: tags of publishers in, PCM16 at 16 kHz mono with true times out.
//!
//! [`tag`] reads the head of an FLV audio tag, [`aac`] its configuration, [`adts`] frames that carry their own, [`length`]
//! how long those of older codecs are; [`clock`] turns timestamps and arrival into session time, [`chunker`] cuts PCM,
//! [`state`] keeps every tag until its sound is out, [`holes`] says what is told of frames without sound, [`flv`] frames
//! tags for a decoder, and [`decoder`] is what decodes: `process`, an ffmpeg child, whose output [`smjpeg`] takes apart and
//! [`downmix`] makes mono. [`loudness`] and [`voice`] tell when somebody speaks.

pub mod aac;
mod adts;
mod audio_tag;
pub mod chunker;
pub mod clock;
pub mod decoder;
pub mod downmix;
pub mod failed_frames;
pub mod flv;
mod length;
pub mod loudness;
mod overlap;
mod pcm;
pub mod process;
mod run;
pub mod smjpeg;
pub mod state;
pub mod tag;
pub mod track;
pub mod voice;

pub use audio_tag::AudioTag;
pub use pcm::PcmChunk;
pub use state::DecodeState;

/// PCM16 at 16 kHz mono, throughout.
pub const SAMPLE_RATE: u64 = 16_000;
pub const SAMPLES_PER_MS: u64 = SAMPLE_RATE / 1000;
pub const BYTES_PER_SAMPLE: usize = 2;
