//! Frames that give no sound.
//!
//! A decoder says nothing of the frame that it cannot decode but a line of text; what it says reliably is the time of
//! each piece of sound. So a piece that comes later than it should tells that the tags before it failed, and how many.
//! While no sound comes at all, the lines tell. A failed tag is silence of its length, counted as lost.

use tokio::time::Instant;

use super::{Before, DecodeState, Lost, Retained};
use crate::audio::decoder::Decoded;
use crate::audio::failed_frames::Holes;
use crate::audio::{BYTES_PER_SAMPLE, SAMPLES_PER_MS};

/// Times are rounded to the millisecond on the way: sound may be so much later than it should.
const ROUNDING: u64 = 2 * SAMPLES_PER_MS;
/// The same where lengths are guessed.
const GUESS_TOLERANCE: u64 = 100 * SAMPLES_PER_MS;

/// Trouble with its audio that a publisher has to know of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Trouble {
    /// AAC frames, and nothing that says what they are.
    Unconfigured,
    /// Frames that give no sound.
    Undecodable,
}

impl Trouble {
    /// Of the status that viewers see.
    pub fn reason(self) -> &'static str {
        match self {
            Self::Unconfigured => "audio_without_configuration",
            Self::Undecodable => "audio_undecodable",
        }
    }

    /// To the encoder's operator.
    pub fn advice(self) -> &'static str {
        match self {
            Self::Unconfigured => {
                "the audio cannot be decoded: AAC frames came without their configuration; send the AAC sequence \
                 header (AudioSpecificConfig) first, or frames with ADTS headers"
            }
            Self::Undecodable => {
                "the audio cannot be decoded: none of the frames gives sound; check that they fit the AAC sequence \
                 header (object type, rate, channels) and are not encrypted, and publish anew"
            }
        }
    }
}

/// Finds the tags that gave no sound.
#[derive(Debug, Default)]
pub(super) struct Failing {
    /// Of the present decoder: where its first and its next sample belong, on the decoders' count.
    begun: u64,
    next: u64,
    /// Tags that it has failed, and frames that it has complained of.
    tags: u64,
    complaints: u64,
    /// Pieces of sound that it has brought, and samples of tags that were given up before one could tell.
    sounds: u64,
    presumed: u64,
    holes: Holes,
    failed_tags: u64,
    failed_samples: u64,
    /// Silence that was a little too long, since chunks begin at whole milliseconds.
    excess: u64,
    /// The publisher whose sound was heard last.
    sounded: Option<u64>,
    /// Publisher of the last tags, and whether they lack their configuration.
    publisher: Option<u64>,
    pub unconfigured: bool,
    announced: Option<Trouble>,
}

impl Failing {
    /// A new decoder's first sample belongs here.
    pub fn begin(&mut self, at: u64) {
        *self = Self { begun: at, next: at, tags: 0, complaints: 0, sounds: 0, presumed: 0, ..std::mem::take(self) };
    }

    /// Frames that it has complained of and that are not failed yet.
    fn complained(&self) -> u64 {
        self.complaints.saturating_sub(self.tags)
    }

    /// A tag of this publisher has come.
    pub fn tag_of(&mut self, publisher: u64) {
        if self.publisher.replace(publisher) != Some(publisher) {
            self.unconfigured = false;
        }
    }
}

impl DecodeState {
    /// Sound of the present decoder, which has complained of so many frames.
    pub fn decoded(&mut self, run: u64, audio: &Decoded, complaints: u64) {
        self.failing.complaints = complaints;
        self.find_failed(run, audio.at_ms);
        self.failing.sounds += 1;
        self.failing.next += (audio.pcm.len() / BYTES_PER_SAMPLE) as u64;
        let end = self.output.end();
        self.pcm(run, &audio.pcm);
        if self.output.end() > end {
            self.failing.sounded = self.heard;
            self.failing.holes.sound(self.output.end_ms());
        }
    }

    /// No sound comes, and the decoder has complained of so many frames. It has answered for all tags before
    /// `answered`.
    pub fn no_sound(&mut self, run: u64, complaints: u64, answered: u64) {
        self.failing.complaints = complaints;
        let complained = self.failing.complained();
        let Some(index) = self.next_tag(run) else { return };
        let silent = answered.saturating_sub(self.tags[index].seq);
        self.failing.presumed += self.fail(run, complained.max(silent), u64::MAX);
    }

    /// The decoder has ended: what is not out has failed. Where lengths are guessed, only a decoder that was never heard
    /// has failed more than it says.
    pub(super) fn fail_rest(&mut self, run: u64, exact: bool) {
        let is_known = exact || self.failing.sounds == 0;
        let most = if is_known { u64::MAX } else { self.failing.complained() };
        self.fail(run, most, u64::MAX);
    }

    /// Frames that failed and whole ms of audio that is lost with them, since the last call.
    pub fn take_failed(&mut self) -> (u64, u64) {
        let ms = self.failing.failed_samples / SAMPLES_PER_MS;
        self.failing.failed_samples %= SAMPLES_PER_MS;
        (std::mem::take(&mut self.failing.failed_tags), ms)
    }

    /// The next hole to be told. Its audio is counted by [`Self::take_failed`].
    pub fn pop_hole(&mut self) -> Option<Lost> {
        self.failing.holes.pop()
    }

    /// No more audio comes for now: all holes are told.
    pub fn end_holes(&mut self) {
        self.failing.holes.end();
    }

    /// A change of what publisher and viewers are to know; None in it: all is well again.
    pub fn trouble_change(&mut self) -> Option<Option<Trouble>> {
        let trouble = if self.failing.unconfigured {
            Some(Trouble::Unconfigured)
        } else {
            self.failing.holes.is_trouble().then_some(Trouble::Undecodable)
        };
        (std::mem::replace(&mut self.failing.announced, trouble) != trouble).then_some(trouble)
    }

    /// The next sound is `at_ms` after the decoder's begin.
    fn find_failed(&mut self, run: u64, at_ms: u32) {
        let Some(exact) = self.next_tag(run).map(|index| self.tags[index].exact) else { return };
        let expected_ms = ((self.failing.next - self.failing.begun) / SAMPLES_PER_MS) as u32;
        let late_ms = i64::from(at_ms.wrapping_sub(expected_ms) as i32);
        let samples = late_ms.unsigned_abs() * SAMPLES_PER_MS;
        let presumed = std::mem::take(&mut self.failing.presumed);
        let tolerance = if exact { ROUNDING } else { GUESS_TOLERANCE };
        if late_ms > 0 && samples > tolerance {
            self.fail(run, u64::MAX, samples);
        } else if late_ms < 0 && samples > tolerance && self.is_whole_tag(run, samples) {
            // It was given up already, or there is more sound than its tags told.
            let samples = samples.min(self.failing.next - self.failing.begun);
            self.failing.next -= samples;
            self.output.repeats(samples.min(presumed));
        }
    }

    fn is_whole_tag(&self, run: u64, samples: u64) -> bool {
        self.next_tag(run).is_some_and(|index| samples + ROUNDING >= length(&self.tags[index]))
    }

    /// Index of the tag that the decoder's next sample belongs to. (A resampler holds a few back.)
    fn next_tag(&self, run: u64) -> Option<usize> {
        self.tags.iter().position(|tag| tag.run == run && self.failing.next + length(tag) / 2 < tag.ends())
    }

    /// The decoder's next tags have failed: at most so many, and at most as many as fill so many samples. Gives the
    /// samples that they fill.
    fn fail(&mut self, run: u64, most_tags: u64, most_samples: u64) -> u64 {
        let (mut tags, mut samples) = (0, 0);
        let first = self.next_tag(run).unwrap_or(self.tags.len());
        for tag in self.tags.iter().skip(first).take_while(|tag| tag.run == run) {
            let is_missing = most_samples.saturating_sub(samples) > length(tag) / 2;
            if tags == most_tags || !is_missing {
                break;
            }
            (tags, samples) = (tags + 1, samples + length(tag));
        }
        if tags > 0 {
            self.failing.next += samples;
            self.failing.tags += tags;
            self.starts.progress();
            self.fill(run, samples, tags);
        }
        samples
    }

    /// Silence in the place of sound, for which so many tags failed.
    fn fill(&mut self, run: u64, mut samples: u64, tags: u64) {
        samples -= self.output.pass_over(samples);
        if samples > 0 {
            self.failing.failed_tags += tags;
            self.failing.failed_samples += samples;
        }
        let mut tags = tags as usize;
        while samples > 0 {
            let Some((publisher, arrived, _)) = self.open_tag(run) else { return };
            let silent = self.step(run, samples);
            samples -= silent;
            let start_ms = self.output.end_ms();
            self.silence(silent, arrived);
            let is_first = self.failing.sounded != Some(publisher);
            self.failing.holes.fail(start_ms, self.output.end_ms(), std::mem::take(&mut tags), is_first);
        }
    }

    /// Goes on by at most so many samples, as far as one tag follows the other without anything between. Gives how many.
    fn step(&mut self, run: u64, samples: u64) -> u64 {
        let mut stepped = 0;
        while let Some(tag) = self.tags.get(self.first).filter(|tag| tag.run == run) {
            let ends = tag.ends();
            if stepped == samples || (stepped > 0 && tag.before != Before::Nothing) {
                break;
            }
            stepped += self.output.step(samples - stepped, ends);
            if self.output.end() >= ends {
                self.advance();
            }
        }
        stepped
    }

    /// Silence that ends at a whole millisecond, as chunks begin; on the whole as long as wanted.
    fn silence(&mut self, samples: u64, arrived: Instant) {
        let position = self.output.position();
        let end = (position + samples.saturating_sub(self.failing.excess)).next_multiple_of(SAMPLES_PER_MS);
        self.failing.excess = self.failing.excess + (end - position) - samples;
        self.output.silence(end - position, arrived);
    }
}

fn length(tag: &Retained) -> u64 {
    tag.ends() - tag.starts()
}
