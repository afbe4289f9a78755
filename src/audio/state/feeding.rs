//! Feeds a decoder: the tags of one run, from a few before the first that is not out.

use bytes::Bytes;

use super::{DecodeState, Retained};
use crate::audio::decoder::Input;
use crate::audio::tag;

/// An AAC frame overlaps its predecessor, and the resampler looks back a little. MP3 needs more where frames are small.
const PRIMING_TAGS: usize = 2;

/// The place at which a new decoder begins.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RunStart {
    pub run: u64,
    /// AAC sequence header, to be sent first.
    pub config: Option<Bytes>,
    /// The first tag to feed.
    pub first_seq: u64,
    pub(super) origin_units: u64,
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
    /// The start of a new decoder, when there is something to decode.
    pub fn begin(&mut self) -> Option<RunStart> {
        let wanted = self.tags.get(self.first).filter(|tag| self.may_go(tag.seq))?;
        let latest = self.first.saturating_sub(self.priming_tags());
        // Of the tags that may come first, one that begins on a sample of the output: the resampler then computes the
        // very samples that its predecessor would have.
        let of_run = |index: &usize| self.tags[*index].run == wanted.run;
        let oldest = (0..=self.first).find(of_run)?;
        let index = (oldest..=latest.max(oldest)).rev().min_by_key(|index| self.tags[*index].phase())?;
        let tag = &self.tags[index];
        self.output.decoder_begins(tag.starts());
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
}
