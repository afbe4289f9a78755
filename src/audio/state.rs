//! A session's audio between the publisher's tags and the PCM that is out.
//!
//! Every tag stays here until its last sample is out, so a decoder that dies loses nothing: its successor gets the
//! configuration, a few earlier tags to warm up on (what they sound like is thrown away) and then all tags that are
//! not out. Tags of one publisher and one configuration form a *run*, which one decoder decodes without a break.
//! AAC frames have a known length and other codecs' own headers tell theirs, so their place is exact to the sample. A tag
//! that cannot be read is as long as its predecessor; only before the first that can, the distance of two timestamps is a
//! guess.

use std::collections::VecDeque;

use bytes::Bytes;
use tokio::time::Instant;

use self::announcements::Announcements;
use self::failing::Failing;
pub use self::failing::Trouble;
pub use self::feeding::{Feed, RunStart};
use self::intake::Cut;
use self::known_config::{Config, KnownConfig};
use self::output::Output;
use self::starts::Starts;
use super::clock::{Before, Clock, Stamp};
use super::overlap::Overlap;
use super::run::{Retained, Run};
use super::tag::{self, TagKind};
use super::{SAMPLE_RATE, SAMPLES_PER_MS};
use crate::audio::{AudioTag, PcmChunk};

/// Tags kept after their sound is out.
const HISTORY_TAGS: usize = 24;
/// A publisher that sends nothing for less pauses for no time worth telling.
const LEAST_PAUSE_MS: u64 = 1000;

mod announcements;
mod emission;
mod failing;
mod feeding;
mod intake;
mod known_config;
mod output;
mod starts;

/// The audio of a session from the publishers' tags to PCM with its place in time.
#[derive(Debug)]
pub struct DecodeState {
    tags: VecDeque<Retained>,
    /// First tag whose audio has not all been emitted, by its index.
    first: usize,
    next_seq: u64,
    /// The run that new tags belong to.
    run: Option<Run>,
    next_run: u64,
    /// End of the last tag on the decoders' count: samples since the session began.
    accepted: u64,
    output: Output,
    starts: Starts,
    /// Time of the tags that are here.
    clock: Clock,
    /// The first tag that waits for the clock's verdict.
    held: Option<Held>,
    /// Audio that a publisher that comes back may send again, and samples of it that came twice and are not told yet.
    overlap: Overlap,
    skipped: u64,
    /// The next audio is the first of a publisher that goes on where another was lost.
    is_return: bool,
    /// The newest publisher whose first audio has its place in time.
    placed: u64,
    /// The publisher whose audio came out last.
    heard: Option<u64>,
    cut: Cut,
    known_config: KnownConfig,
    flush: Option<Flush>,
    ignored_tags: u64,
    announcements: Announcements,
    failing: Failing,
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

impl DecodeState {
    pub fn new(chunk_ms: u64) -> Self {
        Self {
            tags: VecDeque::new(),
            first: 0,
            next_seq: 0,
            run: None,
            next_run: 0,
            accepted: 0,
            output: Output::new(chunk_ms),
            starts: Starts::default(),
            clock: Clock::default(),
            held: None,
            overlap: Overlap::default(),
            skipped: 0,
            is_return: false,
            placed: 0,
            heard: None,
            cut: Cut::default(),
            known_config: KnownConfig::default(),
            flush: None,
            ignored_tags: 0,
            announcements: Announcements::default(),
            failing: Failing::default(),
        }
    }

    /// The configuration that an earlier process knew: the body of a sequence header. Others are ignored.
    pub fn assume(&mut self, body: Bytes) {
        if let Ok(Some(TagKind::Config(aac))) = tag::inspect(&body) {
            self.known_config.set(Config { body, aac });
        }
    }

    /// The body of the sequence header that came last, unless it is absurdly long.
    pub fn last_config(&self) -> Option<&Bytes> {
        self.known_config.body()
    }

    /// True once after audio without a configuration was taken to have that of the session.
    pub fn take_assumed(&mut self) -> bool {
        self.known_config.take_assumed()
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
            self.skipped += u64::from(run.length) * SAMPLE_RATE / u64::from(run.rate);
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

    /// The verdict `before` on the first tag that was held is what the others waited for.
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
        self.announcements.publisher_returned(missing);
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
        self.announcements.pop_return()
    }

    /// The newest publisher whose first audio has its place in time; it is clear what was missing before it.
    pub fn placed(&self) -> u64 {
        self.placed
    }

    /// Samples of tags that came twice, since the last call.
    pub fn take_skipped(&mut self) -> u64 {
        std::mem::take(&mut self.skipped)
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

    /// Gives when the budget of this stream allows another decoder: `now` at the earliest.
    pub fn may_start_at(&self, now: Instant) -> Instant {
        self.starts.ready_at(now)
    }

    /// Takes a decoder's start out of the budget.
    pub fn note_start(&mut self, now: Instant) {
        self.starts.spend(now);
    }

    /// A decoder died. When it is the third that brought nothing for these tags, they are given up.
    pub fn died(&mut self) -> Option<Lost> {
        if self.starts.died() { self.give_up() } else { None }
    }

    /// Nobody will decode the tags that wait. Gives the time that they would have filled; what comes next follows it.
    pub fn give_up(&mut self) -> Option<Lost> {
        self.settle();
        let first = self.tags.get(self.first)?;
        let tags = self.waiting();
        let begins = if let Before::Segment(at_ms) = first.before { at_ms } else { 0 };
        let start_ms = self.output.end_ms().max(begins);
        let length_ms = self.accepted.saturating_sub(self.output.end()).div_ceil(SAMPLES_PER_MS);
        let arrived_ms = self.tags.back().map_or(0, |tag| tag.arrived_ms);
        let end_ms = arrived_ms.max(start_ms + length_ms);
        self.output.segment(end_ms);
        self.clock.give_up(end_ms);
        self.starts.progress();
        self.tags.clear();
        self.first = 0;
        self.output.skip_to(self.accepted);
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
            Some(Flush::Until(end)) if self.output.end() >= end => {
                self.output.flush();
                self.end_holes();
                self.flush = None;
                true
            }
            _ => false,
        }
    }

    /// The oldest chunk that is ready. Remove it with [`Self::pop_chunk`] when the ledger has it.
    pub fn front_chunk(&self) -> Option<PcmChunk> {
        self.output.front()
    }

    pub fn pop_chunk(&mut self) {
        self.output.pop();
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
