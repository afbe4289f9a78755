//! A publisher's tags, read and put into runs: tags of one publisher and one configuration.

use bytes::Bytes;

use super::{Config, DecodeState, Lost};
use crate::audio::aac::AacConfig;
use crate::audio::length::Mpeg;
use crate::audio::run::Run;
use crate::audio::tag::{self, Length, TagKind, Unsupported};
use crate::audio::{AudioTag, adts};

/// Longest distance of two tags that may be the first one's length, where the codec does not say.
const MAX_GUESSED_MS: u64 = 250;
const FIRST_GUESS_MS: u64 = 20;

/// The cut of the newest publisher's MP3 into tags.
#[derive(Debug, Default)]
pub(super) struct Cut {
    publisher: u64,
    mpeg: Mpeg,
}

impl Cut {
    fn of(&mut self, publisher: u64) -> &mut Mpeg {
        if self.publisher != publisher {
            *self = Self { publisher, mpeg: Mpeg::default() };
        }
        &mut self.mpeg
    }
}

impl DecodeState {
    /// Takes a tag over from its publisher. `arrived_ms` is its arrival on the session clock.
    pub fn accept(&mut self, tag: &AudioTag, arrived_ms: u64) -> Result<(), Unsupported> {
        let Some(body) = tag::normalise(tag.body.clone())? else { return Ok(()) };
        self.failing.tag_of(tag.publisher);
        match tag::inspect(&body)? {
            None => self.ignored_tags += 1,
            Some(TagKind::Config(aac)) => self.configure(tag.publisher, Config { body, aac }),
            Some(TagKind::AacFrame) => self.aac_frame(tag, body, arrived_ms),
            Some(TagKind::Adts(aac)) => self.adts_frames(tag, &body, aac, arrived_ms),
            Some(TagKind::Other { codec, length }) => match tag::frames(&body) {
                Some(frames) => self.frames(tag, frames, codec, arrived_ms),
                None => self.other(tag, body, codec, length, arrived_ms),
            },
        }
        Ok(())
    }

    /// A tag that was parted, since the decoder takes one frame at a time.
    pub(super) fn frames(
        &mut self,
        tag: &AudioTag,
        frames: Vec<(Bytes, Length)>,
        codec: &'static str,
        arrived_ms: u64,
    ) {
        let mut timestamp_ms = tag.timestamp_ms;
        for (body, length) in frames {
            self.other(&AudioTag { timestamp_ms, ..tag.clone() }, body, codec, length, arrived_ms);
            timestamp_ms += length.ms();
        }
    }

    pub(super) fn configure(&mut self, publisher: u64, config: Config) {
        self.known_config.set(config.clone());
        let Config { body, aac } = config;
        let (rate, length, codec) = (aac.rate, aac.frame_samples, aac.name());
        if let Some(run) = self.run.as_mut().filter(|run| run.config.as_ref() == Some(&body)) {
            run.successor = (run.publisher != publisher).then_some(publisher);
            return;
        }
        let format = body[0];
        self.change_publisher(publisher);
        self.begin_run(Run {
            publisher,
            format,
            config: Some(body),
            rate,
            length,
            exact: true,
            codec,
            ..self.blank_run()
        });
    }

    pub(super) fn aac_frame(&mut self, tag: &AudioTag, body: Bytes, arrived_ms: u64) {
        match &self.run {
            Some(run) if run.publisher == tag.publisher && run.config.is_some() => self.retain(tag, body, arrived_ms),
            Some(run) if run.successor == Some(tag.publisher) => {
                self.succeed(tag, arrived_ms);
                self.retain(tag, body, arrived_ms);
            }
            // Whatever an old publisher says after its successor has spoken is for nobody.
            Some(run) if run.publisher > tag.publisher => self.orphan(arrived_ms),
            // An app that comes back after a reset may think that its header was said.
            _ => match self.known_config.assume() {
                Some(config) => {
                    self.configure(tag.publisher, config);
                    self.aac_frame(tag, body, arrived_ms);
                }
                None => self.orphan(arrived_ms),
            },
        }
    }

    /// Frames that bring their configuration in a header of their own. What a sequence header says beyond it counts.
    pub(super) fn adts_frames(&mut self, tag: &AudioTag, body: &Bytes, aac: AacConfig, arrived_ms: u64) {
        let known = self.run.as_ref().filter(|run| run.publisher == tag.publisher).and(self.known_config.get());
        if !known.is_some_and(|config| config.aac.is_core_of(&aac)) {
            self.configure(tag.publisher, Config { body: aac.sequence_header(), aac });
        }
        for (n, frame) in (0..).zip(adts::frames(body)) {
            let later_ms = n * u64::from(aac.frame_samples) * 1000 / u64::from(aac.rate);
            let tag = AudioTag { timestamp_ms: tag.timestamp_ms + later_ms, ..tag.clone() };
            self.aac_frame(&tag, frame, arrived_ms);
        }
    }

    /// Without its configuration nobody can decode a frame.
    pub(super) fn orphan(&mut self, arrived_ms: u64) {
        self.ignored_tags += 1;
        let is_known = self.failing.unconfigured;
        self.failing.unconfigured |= self.announcements.orphan(arrived_ms, self.output.end_ms(), is_known);
    }

    /// No more of them come for now.
    pub fn end_orphans(&mut self) {
        self.announcements.end_orphans();
    }

    /// The next frames to be announced that came without a configuration.
    pub fn pop_loss(&mut self) -> Option<Lost> {
        self.announcements.pop_loss()
    }

    /// An encoder that was cut off and has come back goes on where it was: then so does its run, without a seam.
    pub(super) fn succeed(&mut self, tag: &AudioTag, arrived_ms: u64) {
        let goes_on = self.clock.goes_on(tag.timestamp_ms, arrived_ms);
        if goes_on {
            self.overlap.begin();
            self.is_return = true;
        } else {
            self.change_publisher(tag.publisher);
        }
        let Some(run) = &mut self.run else { return };
        (run.publisher, run.successor) = (tag.publisher, None);
        if !goes_on || self.flush.is_some() {
            self.renew_run();
        }
    }

    /// What comes next has nothing to do with what came before, if it is another publisher's.
    pub(super) fn change_publisher(&mut self, publisher: u64) {
        if self.run.as_ref().is_some_and(|run| run.publisher != publisher) {
            self.settle();
            self.clock.forget_publisher();
            self.overlap.clear();
            self.is_return = false;
        }
    }

    pub(super) fn other(&mut self, tag: &AudioTag, body: Bytes, codec: &'static str, length: Length, arrived_ms: u64) {
        let format = body[0];
        let length = tag::length_after(&body, self.cut.of(tag.publisher)).unwrap_or(length);
        let (rate, count, exact) = match length {
            Length::Samples { count, rate } => (rate, count, true),
            Length::Unknown => self.unread_length(tag, format),
        };
        match &self.run {
            Some(run) if (run.format, run.rate) == (format, rate) && run.publisher == tag.publisher => {}
            Some(run) if (run.format, run.rate) == (format, rate) && run.publisher < tag.publisher => {
                self.succeed(tag, arrived_ms);
            }
            _ => {
                let publisher = tag.publisher;
                self.change_publisher(publisher);
                let run = Run { publisher, format, rate, exact, codec, ..self.blank_run() };
                self.begin_run(run);
            }
        }
        self.run.as_mut().expect("begun just now or before").length = count;
        self.retain(tag, body, arrived_ms);
    }

    /// Rate and length of a tag that cannot be read, and whether they are known: it is as long as its predecessor.
    pub(super) fn unread_length(&self, tag: &AudioTag, format: u8) -> (u32, u32, bool) {
        let is_predecessor = |run: &&Run| run.exact && run.format == format && run.publisher <= tag.publisher;
        match self.run.as_ref().filter(is_predecessor) {
            Some(run) => (run.rate, run.length, true),
            None => (1000, self.guessed_length(tag), false),
        }
    }

    /// In ms, where no tag could be read.
    pub(super) fn guessed_length(&self, tag: &AudioTag) -> u32 {
        let distance = self.clock.last_timestamp_ms().map_or(0, |last| tag.timestamp_ms.saturating_sub(last));
        let last = self.run.as_ref().filter(|run| run.rate == 1000).map_or(FIRST_GUESS_MS as u32, |run| run.length);
        if (1..=MAX_GUESSED_MS).contains(&distance) { distance as u32 } else { last }
    }
}
