//! What a session knows of its audio between the publisher's tags and the PCM that is out.
//!
//! Every tag stays here until its last sample is out, so a decoder that dies loses nothing: its successor gets the
//! configuration, a few earlier tags to warm up on (what they sound like is thrown away) and then all tags that are
//! not out. Tags of one publisher and one configuration form a *run*, which one decoder decodes without a break.
//! AAC frames have a known length, so their place is exact to the sample; for other codecs timestamps decide.

use std::collections::VecDeque;

use bytes::Bytes;
use tokio::time::Instant;

use self::failing::Failing;
pub use self::failing::Trouble;
use super::aac::AacConfig;
use super::adts;
use super::chunker::Chunker;
use super::clock::{Before, Clock};
use super::decoder::Input;
use super::run::{Retained, Run};
use super::tag::{self, Length, TagKind, Unsupported};
use super::{BYTES_PER_SAMPLE, SAMPLES_PER_MS};
use crate::actors::ffmpeg_decoder::AudioTag;
use crate::actors::gladia_bridge::PcmChunk;

/// Tags kept after their sound is out.
const HISTORY_TAGS: usize = 24;
/// An AAC frame overlaps its predecessor, and the resampler looks back a little.
const PRIMING_TAGS: usize = 2;
/// Longest distance of two tags that may be the first one's length, where the codec does not say.
const MAX_GUESSED_MS: u64 = 250;
const FIRST_GUESS_MS: u64 = 20;
/// Longest distance of two tags between which nothing is missing: an AAC frame has at most 128 ms (HE, 16 kHz).
pub const CONTINUES_MS: u64 = 150;
/// A publisher that sends nothing for less pauses for no time worth telling.
const LEAST_PAUSE_MS: u64 = 1000;
/// About the length of an AAC frame of unknown configuration.
const ORPHAN_MS: u64 = 23;
/// Frames without a configuration for so long are told at once: their publisher does not know.
const FIRST_ORPHANS_MS: u64 = 1500;
/// A long loss is announced in pieces.
const ORPHANS_PIECE_MS: u64 = 30_000;
/// Configurations have two to seven bytes; one that describes its channels one by one has some more.
const MAX_KEPT_CONFIG_BYTES: usize = 256;
/// Decoders that may die over the same tags before these are given up.
const MAX_DEATHS: u32 = 3;

mod failing;

/// See the module.
#[derive(Debug)]
pub struct DecodeState {
    chunker: Chunker,
    tags: VecDeque<Retained>,
    /// Index in `tags` of the first that is not wholly out.
    first: usize,
    next_seq: u64,
    /// What new tags belong to.
    run: Option<Run>,
    next_run: u64,
    /// End of the last tag, and how far PCM is out, both on the decoders' count: samples since the session began.
    accepted: u64,
    out: u64,
    /// Of the present decoder: samples that were out before.
    repeated: u64,
    /// Of the present tag: samples that are too much.
    skip: u64,
    /// Decoders that died without bringing anything.
    deaths: u32,
    flush: Option<Flush>,
    ignored_tags: u64,
    /// Frames that come without a configuration, and those that came and are to be announced.
    orphans: Option<Lost>,
    losses: VecDeque<Lost>,
    /// Whose audio is out, and the time up to which audio was announced as lost.
    heard: Option<u64>,
    told_ms: u64,
    pauses: VecDeque<Pause>,
    failing: Failing,
    /// The AAC configuration that came last, of any publisher.
    last_config: Option<Config>,
    /// It was taken for a publisher that sent none.
    is_assumed: bool,
}

/// An AAC configuration.
#[derive(Debug, Clone)]
struct Config {
    /// The sequence header.
    body: Bytes,
    aac: AacConfig,
}

/// The publisher is gone, and somebody waits for its last sample.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Flush {
    /// Tags may still be on their way here.
    Wanted,
    /// All tags are here; done when so much is out.
    Until(u64),
}

/// Audio that was given up, on the session clock.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Lost {
    pub start_ms: u64,
    pub end_ms: u64,
    pub tags: usize,
}

/// Time in which a publisher that stayed sent nothing, on the session clock.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Pause {
    pub start_ms: u64,
    pub end_ms: u64,
}

/// What a new decoder begins with.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Beginning {
    pub run: u64,
    /// AAC sequence header, to be sent first.
    pub config: Option<Bytes>,
    /// The first tag to feed.
    pub first_seq: u64,
    origin_units: u64,
}

/// The next thing to feed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Feed {
    Tag(Input),
    /// Nothing for now.
    Wait,
    /// The run is over.
    End,
}

impl DecodeState {
    pub fn new(chunk_ms: u64) -> Self {
        Self {
            chunker: Chunker::new(chunk_ms),
            tags: VecDeque::new(),
            first: 0,
            next_seq: 0,
            run: None,
            next_run: 0,
            accepted: 0,
            out: 0,
            repeated: 0,
            skip: 0,
            deaths: 0,
            flush: None,
            ignored_tags: 0,
            orphans: None,
            losses: VecDeque::new(),
            heard: None,
            told_ms: 0,
            pauses: VecDeque::new(),
            failing: Failing::default(),
            last_config: None,
            is_assumed: false,
        }
    }

    /// The configuration that an earlier process knew: the body of a sequence header. Others are ignored.
    pub fn assume(&mut self, body: Bytes) {
        if let Ok(Some(TagKind::Config(aac))) = tag::inspect(&body) {
            self.last_config = Some(Config { body, aac });
        }
    }

    /// The body of the sequence header that came last, unless it is absurdly long.
    pub fn last_config(&self) -> Option<&Bytes> {
        self.last_config.as_ref().map(|config| &config.body).filter(|body| body.len() <= MAX_KEPT_CONFIG_BYTES)
    }

    /// True once after audio without a configuration was taken to have that of the session.
    pub fn take_assumed(&mut self) -> bool {
        std::mem::take(&mut self.is_assumed)
    }

    /// Takes a tag over from its publisher. `arrived_ms` is its arrival on the session clock.
    pub fn accept(&mut self, tag: &AudioTag, arrived_ms: u64) -> Result<(), Unsupported> {
        let Some(body) = tag::normalise(tag.body.clone())? else { return Ok(()) };
        self.failing.tag_of(tag.publisher);
        match tag::inspect(&body)? {
            None => self.ignored_tags += 1,
            Some(TagKind::Config(aac)) => self.configure(tag.publisher, Config { body, aac }),
            Some(TagKind::AacFrame) => self.aac_frame(tag, body, arrived_ms),
            Some(TagKind::Adts(aac)) => self.adts_frames(tag, &body, aac, arrived_ms),
            Some(TagKind::Other { codec, length }) => self.other(tag, body, codec, length, arrived_ms),
        }
        Ok(())
    }

    fn configure(&mut self, publisher: u64, config: Config) {
        self.last_config = Some(config.clone());
        let Config { body, aac } = config;
        let (rate, length, codec) = (aac.rate, aac.frame_samples, aac.name());
        if let Some(run) = self.run.as_mut().filter(|run| run.config.as_ref() == Some(&body)) {
            run.successor = (run.publisher != publisher).then_some(publisher);
            return;
        }
        let format = body[0];
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

    fn aac_frame(&mut self, tag: &AudioTag, body: Bytes, arrived_ms: u64) {
        match &self.run {
            Some(run) if run.publisher == tag.publisher && run.config.is_some() => self.retain(tag, body, arrived_ms),
            Some(run) if run.successor == Some(tag.publisher) => {
                self.succeed(tag);
                self.retain(tag, body, arrived_ms);
            }
            // Whatever an old publisher says after its successor has spoken is for nobody.
            Some(run) if run.publisher > tag.publisher => self.orphan(arrived_ms),
            _ => match self.last_config.clone() {
                // An app that comes back after a reset may think that its header was said.
                Some(config) => {
                    self.is_assumed = true;
                    self.configure(tag.publisher, config);
                    self.aac_frame(tag, body, arrived_ms);
                }
                None => self.orphan(arrived_ms),
            },
        }
    }

    /// Frames that bring their configuration in a header of their own. What a sequence header says beyond it counts.
    fn adts_frames(&mut self, tag: &AudioTag, body: &Bytes, aac: AacConfig, arrived_ms: u64) {
        let known = self.run.as_ref().filter(|run| run.publisher == tag.publisher).and(self.last_config.as_ref());
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
    fn orphan(&mut self, arrived_ms: u64) {
        self.ignored_tags += 1;
        let start_ms = arrived_ms.max(self.chunker.end_ms());
        let orphans = self.orphans.get_or_insert(Lost { start_ms, end_ms: start_ms, tags: 0 });
        orphans.end_ms = orphans.end_ms.max(arrived_ms + ORPHAN_MS);
        orphans.tags += 1;
        let piece_ms = if self.failing.unconfigured { ORPHANS_PIECE_MS } else { FIRST_ORPHANS_MS };
        if orphans.end_ms >= orphans.start_ms + piece_ms {
            self.failing.unconfigured = true;
            self.end_orphans();
        }
    }

    /// No more of them come for now.
    pub fn end_orphans(&mut self) {
        if let Some(lost) = self.orphans.take() {
            self.told_until(lost.end_ms);
            self.losses.push_back(lost);
        }
    }

    /// The next frames to be announced that came without a configuration.
    pub fn pop_loss(&mut self) -> Option<Lost> {
        self.losses.pop_front()
    }

    /// An encoder that was cut off and has come back goes on where it was: then so does its run, without a seam.
    fn succeed(&mut self, tag: &AudioTag) {
        let Some(run) = &mut self.run else { return };
        (run.publisher, run.successor) = (tag.publisher, None);
        let last = run.clock.last_timestamp_ms();
        let continues = last.is_some_and(|last| (last + 1..=last + CONTINUES_MS).contains(&tag.timestamp_ms));
        if !continues || self.flush.is_some() {
            self.renew_run();
        }
    }

    fn other(&mut self, tag: &AudioTag, body: Bytes, codec: &'static str, length: Length, arrived_ms: u64) {
        let format = body[0];
        let (rate, count, exact) = match length {
            Length::Samples { count, rate } => (rate, count, true),
            Length::Unknown => (1000, FIRST_GUESS_MS as u32, false),
        };
        let same = |run: &Run| (run.publisher, run.format, run.rate) == (tag.publisher, format, rate);
        if !self.run.as_ref().is_some_and(same) {
            let publisher = tag.publisher;
            self.begin_run(Run {
                publisher,
                format,
                config: None,
                rate,
                length: count,
                exact,
                codec,
                ..self.blank_run()
            });
        }
        let run = self.run.as_mut().expect("begun just now or before");
        if exact {
            run.length = count;
        } else if let Some(last) = run.clock.last_timestamp_ms() {
            // The distance of two tags is the length of the first.
            let distance = tag.timestamp_ms.saturating_sub(last);
            if (1..=MAX_GUESSED_MS).contains(&distance) {
                run.end = run.end - u64::from(run.length) + distance;
                run.length = distance as u32;
                if let Some(tag) = self.tags.back_mut().filter(|tag| tag.run == run.id) {
                    tag.length = run.length;
                }
            }
        }
        self.retain(tag, body, arrived_ms);
    }

    fn blank_run(&self) -> Run {
        Run {
            id: self.next_run,
            publisher: 0,
            successor: None,
            format: 0,
            config: None,
            rate: 1,
            length: 0,
            exact: true,
            codec: "",
            end: 0,
            begin: self.accepted,
            clock: Clock::default(),
        }
    }

    fn begin_run(&mut self, run: Run) {
        if self.flush == Some(Flush::Wanted) {
            // A new publisher is here before the wait for the old one's end is over.
            self.flush = Some(Flush::Until(self.accepted));
        }
        self.next_run += 1;
        self.run = Some(run);
    }

    fn retain(&mut self, tag: &AudioTag, body: Bytes, arrived_ms: u64) {
        self.end_orphans();
        self.failing.unconfigured = false;
        let run = self.run.as_mut().expect("the caller has begun one");
        let mut retained = Retained {
            seq: self.next_seq,
            run: run.id,
            publisher: tag.publisher,
            config: run.config.clone(),
            rate: run.rate,
            begin: run.begin,
            exact: run.exact,
            at: run.end,
            length: run.length,
            body,
            before: Before::Nothing,
            arrived: tag.arrived,
            arrived_ms,
        };
        let length = retained.ends() - retained.starts();
        retained.before = run.clock.accept(tag.timestamp_ms, retained.starts(), length);
        run.end += u64::from(run.length);
        self.next_seq += 1;
        self.accepted = retained.ends();
        self.tags.push_back(retained);
    }

    /// Tags that are not wholly out.
    pub fn waiting(&self) -> usize {
        self.tags.len() - self.first
    }

    /// What a new decoder is to begin with, when there is something to decode.
    pub fn begin(&mut self) -> Option<Beginning> {
        let wanted = self.tags.get(self.first)?;
        let latest = self.first.saturating_sub(PRIMING_TAGS);
        // Of the tags that may come first, one that begins on a sample of the output: the resampler then computes the
        // very samples that its predecessor would have.
        let of_run = |index: &usize| self.tags[*index].run == wanted.run;
        let oldest = (0..=self.first).find(of_run)?;
        let index = (oldest..=latest.max(oldest)).rev().min_by_key(|index| self.tags[*index].phase())?;
        let tag = &self.tags[index];
        self.repeated = self.out.saturating_sub(tag.starts());
        self.failing.begin(tag.starts());
        Some(Beginning { run: tag.run, config: tag.config.clone(), first_seq: tag.seq, origin_units: tag.at })
    }

    /// The tag `seq` for the decoder that began with `beginning`.
    pub fn feed(&self, beginning: &Beginning, seq: u64) -> Feed {
        let oldest = self.tags.front().map_or(self.next_seq, |tag| tag.seq);
        match seq.checked_sub(oldest).and_then(|index| self.tags.get(index as usize)) {
            Some(tag) if tag.run == beginning.run => {
                let units = tag.at - beginning.origin_units;
                let rate = u64::from(tag.rate);
                let timestamp_ms = ((units * 1000 + rate / 2) / rate) as u32;
                Feed::Tag(Input { timestamp_ms, body: tag.body.clone() })
            }
            Some(_) => Feed::End,
            None if self.run.as_ref().is_none_or(|run| run.id != beginning.run) => Feed::End,
            None => Feed::Wait,
        }
    }

    /// The next audio of the present decoder, whole samples.
    fn pcm(&mut self, run: u64, mut pcm: &[u8]) {
        let repeated = (self.repeated as usize * BYTES_PER_SAMPLE).min(pcm.len());
        self.repeated -= (repeated / BYTES_PER_SAMPLE) as u64;
        pcm = &pcm[repeated..];
        if !pcm.is_empty() {
            // What a decoder repeats to warm up is no progress.
            self.deaths = 0;
        }
        while !pcm.is_empty() {
            let Some((_, arrived, ends)) = self.open_tag(run) else { return self.surplus(run, pcm) };
            let room = ends.saturating_sub(self.out) as usize * BYTES_PER_SAMPLE;
            let (now, later) = pcm.split_at(room.min(pcm.len()));
            let skipped = now.len().min(self.skip as usize * BYTES_PER_SAMPLE);
            self.skip -= (skipped / BYTES_PER_SAMPLE) as u64;
            self.chunker.audio(&now[skipped..], arrived);
            self.out += (now.len() / BYTES_PER_SAMPLE) as u64;
            pcm = later;
            if self.out >= ends {
                self.advance();
            }
        }
    }

    /// The tag that is next to be out, after what belongs before it: its publisher, arrival and end.
    fn open_tag(&mut self, run: u64) -> Option<(u64, Instant, u64)> {
        let tag = self.tags.get_mut(self.first).filter(|tag| tag.run == run)?;
        let before = match self.out >= tag.starts() {
            true => std::mem::replace(&mut tag.before, Before::Nothing),
            false => Before::Nothing,
        };
        let (publisher, arrived, arrived_ms, ends) = (tag.publisher, tag.arrived, tag.arrived_ms, tag.ends());
        match before {
            Before::Nothing => {}
            Before::Silence(samples) => self.chunker.silence(samples, arrived),
            Before::Skip(samples) => self.skip = samples,
            Before::Segment => self.segment(publisher, arrived_ms),
        }
        self.heard = Some(publisher);
        Some((publisher, arrived, ends))
    }

    /// The timestamps begin anew, at what was heard at `arrived_ms`.
    fn segment(&mut self, publisher: u64, arrived_ms: u64) {
        let start_ms = self.chunker.end_ms().max(self.told_ms);
        // The time between two publishers is the session's to tell.
        if self.heard == Some(publisher) && arrived_ms >= start_ms + LEAST_PAUSE_MS {
            self.pauses.push_back(Pause { start_ms, end_ms: arrived_ms });
        }
        self.chunker.segment(arrived_ms);
    }

    /// Audio up to this time was announced as lost before it came here: it is no pause.
    pub fn told_until(&mut self, ms: u64) {
        self.told_ms = self.told_ms.max(ms);
    }

    /// The next time to be announced in which a publisher paused.
    pub fn pop_pause(&mut self) -> Option<Pause> {
        self.pauses.pop_front()
    }

    /// More audio than the tags announced: rounding where their lengths are known, true audio where they were guessed.
    fn surplus(&mut self, run: u64, pcm: &[u8]) {
        if let Some(last) = self.first.checked_sub(1).and_then(|index| self.tags.get(index))
            && last.run == run
            && !last.exact
        {
            self.chunker.audio(pcm, last.arrived);
        }
    }

    fn advance(&mut self) {
        self.skip = 0;
        self.first += 1;
        while self.first > HISTORY_TAGS {
            self.tags.pop_front();
            self.first -= 1;
        }
    }

    /// The decoder of `run` has brought its last sample. Tags that it owes have failed; a few samples that are missing
    /// beside them are rounding, and become silence so that the length is right. Gives how many.
    pub fn ended(&mut self, run: u64) -> u64 {
        let last = self.tags.iter().rev().find(|tag| tag.run == run);
        let Some((ends, exact)) = last.map(|tag| (tag.ends(), tag.exact)) else { return 0 };
        self.fail_rest(run, exact);
        let missing = ends.saturating_sub(self.out);
        self.repeated = 0;
        if exact {
            self.pcm(run, &vec![0; missing as usize * BYTES_PER_SAMPLE]);
        }
        self.first = self.tags.iter().position(|tag| tag.run > run).unwrap_or(self.tags.len());
        self.tags.drain(..self.first);
        self.first = 0;
        self.out = self.out.max(ends);
        self.chunker.flush();
        if exact { missing } else { 0 }
    }

    /// A decoder died. When it is the third that brought nothing for these tags, they are given up.
    pub fn died(&mut self) -> Option<Lost> {
        self.deaths += 1;
        if self.deaths < MAX_DEATHS { None } else { self.give_up() }
    }

    /// Nobody will decode the tags that wait. Gives the time that they would have filled; what comes next follows it.
    pub fn give_up(&mut self) -> Option<Lost> {
        let first = self.tags.get(self.first)?;
        let tags = self.waiting();
        let begins = if first.before == Before::Segment { first.arrived_ms } else { 0 };
        let start_ms = self.chunker.end_ms().max(begins);
        let length_ms = self.accepted.saturating_sub(self.out).div_ceil(SAMPLES_PER_MS);
        let arrived_ms = self.tags.back().map_or(0, |tag| tag.arrived_ms);
        let end_ms = arrived_ms.max(start_ms + length_ms);
        self.chunker.segment(end_ms);
        self.deaths = 0;
        self.tags.clear();
        self.first = 0;
        self.out = self.accepted;
        self.renew_run();
        Some(Lost { start_ms, end_ms, tags })
    }

    /// What comes next belongs to a new run, with the configuration of the present one until another comes.
    fn renew_run(&mut self) {
        let Some(old) = self.run.take() else { return };
        let blank = self.blank_run();
        self.begin_run(Run { id: blank.id, begin: blank.begin, end: 0, clock: Clock::default(), ..old });
    }

    /// The publisher is gone: somebody waits for its last sample. Call [`Self::no_more_tags`] when all of its tags are
    /// here. A decoder's successor finds the wish here.
    pub fn want_flush(&mut self) {
        self.flush = Some(Flush::Wanted);
    }

    /// All tags of a gone publisher are here: its run ends with the last of them.
    pub fn no_more_tags(&mut self) {
        if self.flush == Some(Flush::Wanted) {
            self.flush = Some(Flush::Until(self.accepted));
            self.renew_run();
        }
    }

    pub fn is_flush_wanted(&self) -> bool {
        self.flush.is_some()
    }

    /// True once, when no decoder runs and everything wanted is out.
    pub fn finish_flush(&mut self) -> bool {
        match self.flush {
            Some(Flush::Until(end)) if self.out >= end => {
                self.chunker.flush();
                self.end_holes();
                self.flush = None;
                true
            }
            _ => false,
        }
    }

    /// The oldest chunk that is ready. Remove it with [`Self::pop_chunk`] when the ledger has it.
    pub fn front_chunk(&self) -> Option<PcmChunk> {
        self.chunker.front().cloned()
    }

    pub fn pop_chunk(&mut self) {
        self.chunker.pop();
    }

    /// Codec of the newest tags.
    pub fn codec(&self) -> Option<&'static str> {
        self.run.as_ref().map(|run| run.codec)
    }

    /// Tags without anything to decode in them.
    pub fn ignored_tags(&self) -> u64 {
        self.ignored_tags
    }
}

#[cfg(test)]
mod tests;
