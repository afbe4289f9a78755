//! What a session knows of its audio between the publisher's tags and the PCM that is out.
//!
//! Every tag stays here until its last sample is out, so a decoder that dies loses nothing: its successor gets the
//! configuration, a few earlier tags to warm up on (what they sound like is thrown away) and then all tags that are
//! not out. Tags of one publisher and one configuration form a *run*, which one decoder decodes without a break.
//! AAC frames have a known length and other codecs' own headers tell theirs, so their place is exact to the sample. A tag
//! that cannot be read is as long as its predecessor; only before the first that can, the distance of two timestamps is a
//! guess.

use std::collections::VecDeque;

use bytes::Bytes;

use self::failing::Failing;
pub use self::failing::Trouble;
use self::intake::Cut;
use super::aac::AacConfig;
use super::chunker::Chunker;
use super::clock::{Before, Clock, Stamp};
use super::decoder::Input;
use super::overlap::Overlap;
use super::run::{Retained, Run};
use super::tag::{self, TagKind};
use super::{SAMPLE_RATE, SAMPLES_PER_MS};
use crate::audio::{AudioTag, PcmChunk};

/// Tags kept after their sound is out.
const HISTORY_TAGS: usize = 24;
/// An AAC frame overlaps its predecessor, and the resampler looks back a little. MP3 needs more where frames are small.
const PRIMING_TAGS: usize = 2;
/// A publisher that sends nothing for less pauses for no time worth telling.
const LEAST_PAUSE_MS: u64 = 1000;
/// Configurations have two to seven bytes; one that describes its channels one by one has some more.
const MAX_KEPT_CONFIG_BYTES: usize = 256;
/// Decoders that may die over the same tags before these are given up.
const MAX_DEATHS: u32 = 3;

mod emission;
mod failing;
mod intake;

/// The audio of a session from the publishers' tags to PCM with its place in time.
#[derive(Debug)]
pub struct DecodeState {
    chunker: Chunker,
    tags: VecDeque<Retained>,
    /// First tag whose audio has not all been emitted, by its index.
    first: usize,
    next_seq: u64,
    /// The run that new tags belong to.
    run: Option<Run>,
    next_run: u64,
    /// End of the last tag, and how far PCM is out, both on the decoders' count: samples since the session began.
    accepted: u64,
    out: u64,
    /// Of the present decoder: samples that were out before.
    repeated: u64,
    /// Time of the tags that are here.
    clock: Clock,
    /// The first tag that waits for the clock's verdict.
    held: Option<Held>,
    /// What a publisher that comes back may send again.
    overlap: Overlap,
    /// The next audio is the first of a publisher that goes on where another was lost.
    is_return: bool,
    /// The newest publisher whose first audio has its place in time.
    placed: u64,
    returns: VecDeque<Return>,
    counts: Counts,
    cut: Cut,
    /// Decoders that died without bringing anything.
    deaths: u32,
    flush: Option<Flush>,
    ignored_tags: u64,
    /// Frames that come without a configuration, and those that came and are to be announced.
    orphans: Option<Lost>,
    losses: VecDeque<Lost>,
    /// Whose audio is out, and the time up to which audio was announced as lost.
    heard: Option<u64>,
    announced_ms: u64,
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

/// A publisher goes on where another was lost: what is missing between them, on the session clock. None: nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Return {
    pub missing: Option<Pause>,
}

/// Tags from `seq` on wait for the clock's verdict; session time was at `end_ms` before them.
#[derive(Debug, Clone, Copy)]
struct Held {
    seq: u64,
    end_ms: u64,
}

/// Counts of what came out of decoders, in samples.
#[derive(Debug, Default)]
struct Counts {
    decoded: u64,
    /// Out before, by a decoder's predecessor.
    repeated: u64,
    /// Silence in the place of frames at the end that brought nothing.
    padded: u64,
    /// Of tags that came twice: never decoded, and not told yet.
    skipped: u64,
}

/// The place at which a new decoder begins.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RunStart {
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
            clock: Clock::default(),
            held: None,
            overlap: Overlap::default(),
            is_return: false,
            placed: 0,
            returns: VecDeque::new(),
            counts: Counts::default(),
            cut: Cut::default(),
            deaths: 0,
            flush: None,
            ignored_tags: 0,
            orphans: None,
            losses: VecDeque::new(),
            heard: None,
            announced_ms: 0,
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
        }
    }

    fn begin_run(&mut self, run: Run) {
        self.settle();
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
        if self.overlap.is_double(tag.timestamp_ms, &body) {
            self.counts.skipped += u64::from(run.length) * SAMPLE_RATE / u64::from(run.rate);
            return;
        }
        self.overlap.note(tag.timestamp_ms, &body);
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
        run.end += u64::from(run.length);
        let end_ms = self.clock.end_ms();
        let verdict = self.clock.accept(Stamp { timestamp_ms: tag.timestamp_ms, arrived_ms, length });
        if let Some(before) = verdict.held {
            self.release(before);
        }
        retained.before = verdict.this;
        if verdict.is_held {
            self.held.get_or_insert(Held { seq: retained.seq, end_ms });
        } else {
            self.placed = tag.publisher;
            self.judge_return(verdict.this, end_ms);
        }
        self.next_seq += 1;
        self.accepted = retained.ends();
        self.tags.push_back(retained);
    }

    /// What `before` says of the first tag that was held is what was waited for.
    fn release(&mut self, before: Before) {
        let Some(held) = self.held.take() else { return };
        if let Some(tag) = self.tags.iter_mut().find(|tag| tag.seq == held.seq) {
            tag.before = before;
            self.placed = tag.publisher;
        }
        self.judge_return(before, held.end_ms);
    }

    /// The first audio of a publisher that goes on where another was lost: session time was at `end_ms`.
    fn judge_return(&mut self, before: Before, end_ms: u64) {
        if !std::mem::take(&mut self.is_return) {
            return;
        }
        let back_ms = match before {
            Before::Silence(samples) => end_ms + samples / SAMPLES_PER_MS,
            Before::Segment(at_ms) if at_ms >= end_ms + LEAST_PAUSE_MS => at_ms,
            _ => end_ms,
        };
        let missing = (back_ms > end_ms).then_some(Pause { start_ms: end_ms, end_ms: back_ms });
        self.returns.push_back(Return { missing });
    }

    /// Tags that are held wait no longer.
    pub fn settle(&mut self) {
        if let Some(before) = self.clock.settle() {
            self.release(before);
        }
    }

    /// When it is time to [`Self::settle`], on the session clock.
    pub fn settles_at_ms(&self) -> Option<u64> {
        self.clock.settles_at_ms()
    }

    /// The next return to be told, without what was told before.
    pub fn pop_return(&mut self) -> Option<Return> {
        let missing = self.returns.pop_front()?.missing;
        let unannounced = missing.map(|missing| Pause { start_ms: missing.start_ms.max(self.announced_ms), ..missing });
        Some(Return { missing: unannounced.filter(|missing| missing.start_ms < missing.end_ms) })
    }

    /// The newest publisher whose first audio has its place in time; it is clear what was missing before it.
    pub fn placed(&self) -> u64 {
        self.placed
    }

    /// Samples of tags that came twice, since the last call.
    pub fn take_skipped(&mut self) -> u64 {
        std::mem::take(&mut self.counts.skipped)
    }

    /// When the sound at `session_ms` was captured, on the session clock; None where nothing was heard.
    pub fn captured_ms(&self, session_ms: u64) -> Option<i64> {
        self.clock.captured_ms(session_ms)
    }

    /// By how much the newest audio is later than its place in session time.
    pub fn lag_ms(&self) -> Option<i64> {
        self.clock.lag_ms()
    }

    /// Tags that may be decoded and are not wholly out.
    pub fn waiting(&self) -> usize {
        let held = self.held.map_or(0, |held| self.next_seq - held.seq) as usize;
        self.tags.len() - self.first - held
    }

    /// What a new decoder is to begin with, when there is something to decode.
    pub fn begin(&mut self) -> Option<RunStart> {
        let wanted = self.tags.get(self.first).filter(|tag| self.may_go(tag.seq))?;
        let latest = self.first.saturating_sub(self.priming_tags());
        // Of the tags that may come first, one that begins on a sample of the output: the resampler then computes the
        // very samples that its predecessor would have.
        let of_run = |index: &usize| self.tags[*index].run == wanted.run;
        let oldest = (0..=self.first).find(of_run)?;
        let index = (oldest..=latest.max(oldest)).rev().min_by_key(|index| self.tags[*index].phase())?;
        let tag = &self.tags[index];
        self.repeated = self.out.saturating_sub(tag.starts());
        self.failing.begin(tag.starts());
        Some(RunStart { run: tag.run, config: tag.config.clone(), first_seq: tag.seq, origin_units: tag.at })
    }

    /// Tags before the first that is not out, to warm up a decoder for it.
    fn priming_tags(&self) -> usize {
        let mut missing = self.tags.get(self.first).map_or(0, |tag| tag::reservoir_bytes(&tag.body));
        let is_wanted = |(count, tag): &(usize, &Retained)| {
            let is_wanted = *count < PRIMING_TAGS || missing > 0;
            missing = missing.saturating_sub(tag.body.len());
            is_wanted
        };
        (0..).zip(self.tags.range(..self.first).rev()).take_while(is_wanted).count()
    }

    fn may_go(&self, seq: u64) -> bool {
        self.held.is_none_or(|held| seq < held.seq)
    }

    /// The tag `seq` for the decoder that began with `beginning`.
    pub fn feed(&self, beginning: &RunStart, seq: u64) -> Feed {
        let oldest = self.tags.front().map_or(self.next_seq, |tag| tag.seq);
        match seq.checked_sub(oldest).and_then(|index| self.tags.get(index as usize)) {
            Some(tag) if tag.run == beginning.run && !self.may_go(tag.seq) => Feed::Wait,
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

    /// A decoder died. When it is the third that brought nothing for these tags, they are given up.
    pub fn died(&mut self) -> Option<Lost> {
        self.deaths += 1;
        if self.deaths < MAX_DEATHS { None } else { self.give_up() }
    }

    /// Nobody will decode the tags that wait. Gives the time that they would have filled; what comes next follows it.
    pub fn give_up(&mut self) -> Option<Lost> {
        self.settle();
        let first = self.tags.get(self.first)?;
        let tags = self.waiting();
        let begins = if let Before::Segment(at_ms) = first.before { at_ms } else { 0 };
        let start_ms = self.chunker.end_ms().max(begins);
        let length_ms = self.accepted.saturating_sub(self.out).div_ceil(SAMPLES_PER_MS);
        let arrived_ms = self.tags.back().map_or(0, |tag| tag.arrived_ms);
        let end_ms = arrived_ms.max(start_ms + length_ms);
        self.chunker.segment(end_ms);
        self.clock.give_up(end_ms);
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
        self.begin_run(Run { id: blank.id, begin: blank.begin, end: 0, ..old });
    }

    /// The publisher is gone: somebody waits for its last sample. Call [`Self::no_more_tags`] when all of its tags are
    /// here. A decoder's successor finds the wish here.
    pub fn want_flush(&mut self) {
        self.flush = Some(Flush::Wanted);
    }

    /// All tags of a gone publisher are here: its run ends with the last of them.
    pub fn no_more_tags(&mut self) {
        if self.flush == Some(Flush::Wanted) {
            self.settle();
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
