//! What comes out of a decoder, put in its place: after its predecessor, with the silence or the pause that belongs before
//! it.

use tokio::time::Instant;

use super::{Before, DecodeState, HISTORY_TAGS, LEAST_PAUSE_MS, Pause};
use crate::audio::BYTES_PER_SAMPLE;

impl DecodeState {
    /// The next audio of the present decoder, whole samples.
    pub(super) fn pcm(&mut self, run: u64, pcm: &[u8]) {
        self.counts.decoded += (pcm.len() / BYTES_PER_SAMPLE) as u64;
        self.place(run, pcm);
        debug_assert_eq!(self.check(), Ok(()));
    }

    pub(super) fn place(&mut self, run: u64, mut pcm: &[u8]) {
        let repeated = (self.repeated as usize * BYTES_PER_SAMPLE).min(pcm.len());
        self.repeated -= (repeated / BYTES_PER_SAMPLE) as u64;
        self.counts.repeated += (repeated / BYTES_PER_SAMPLE) as u64;
        pcm = &pcm[repeated..];
        if !pcm.is_empty() {
            // What a decoder repeats to warm up is no progress.
            self.deaths = 0;
        }
        while !pcm.is_empty() {
            let Some((_, arrived, ends)) = self.open_tag(run) else { return self.surplus(run, pcm) };
            let room = ends.saturating_sub(self.out) as usize * BYTES_PER_SAMPLE;
            let (now, later) = pcm.split_at(room.min(pcm.len()));
            self.chunker.audio(now, arrived);
            self.out += (now.len() / BYTES_PER_SAMPLE) as u64;
            pcm = later;
            if self.out >= ends {
                self.advance();
            }
        }
    }

    /// The tag that is next to be out, after what belongs before it: its publisher, arrival and end.
    pub(super) fn open_tag(&mut self, run: u64) -> Option<(u64, Instant, u64)> {
        let tag = self.tags.get_mut(self.first).filter(|tag| tag.run == run)?;
        let before = match self.out >= tag.starts() {
            true => std::mem::replace(&mut tag.before, Before::Nothing),
            false => Before::Nothing,
        };
        let (publisher, arrived, ends) = (tag.publisher, tag.arrived, tag.ends());
        match before {
            Before::Nothing => {}
            Before::Silence(samples) => self.chunker.silence(samples, arrived),
            Before::Segment(at_ms) => self.segment(publisher, at_ms),
            Before::Back(samples) => self.chunker.back(samples),
        }
        self.heard = Some(publisher);
        Some((publisher, arrived, ends))
    }

    /// Session time goes on at `at_ms`.
    pub(super) fn segment(&mut self, publisher: u64, at_ms: u64) {
        let start_ms = self.chunker.end_ms().max(self.announced_ms);
        // The time between two publishers is the session's to tell.
        if self.heard == Some(publisher) && at_ms >= start_ms + LEAST_PAUSE_MS {
            self.pauses.push_back(Pause { start_ms, end_ms: at_ms });
        }
        self.chunker.segment(at_ms);
    }

    /// Audio up to this time was announced as lost before it came here: it is no pause.
    pub fn announced_until(&mut self, ms: u64) {
        self.announced_ms = self.announced_ms.max(ms);
    }

    /// The next time to be announced in which a publisher paused.
    pub fn pop_pause(&mut self) -> Option<Pause> {
        self.pauses.pop_front()
    }

    /// More audio than the tags announced: it is heard all the same.
    pub(super) fn surplus(&mut self, run: u64, pcm: &[u8]) {
        let last = self.first.checked_sub(1).and_then(|index| self.tags.get(index)).filter(|tag| tag.run == run);
        let arrived = last.map_or_else(Instant::now, |tag| tag.arrived);
        self.chunker.audio(pcm, arrived);
        self.clock.is_longer((pcm.len() / BYTES_PER_SAMPLE) as u64);
    }

    /// The invariant: every sample that came out of a decoder is in exactly one chunk, or was so before (a decoder repeats
    /// what warms it up).
    pub fn check(&self) -> Result<(), String> {
        let counts = &self.counts;
        let (come, gone) = (counts.decoded + counts.padded, counts.repeated + self.chunker.heard());
        if come != gone {
            return Err(format!("{come} samples were decoded, and {gone} are accounted for: {counts:?}"));
        }
        self.chunker.check()
    }

    pub(super) fn advance(&mut self) {
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
            self.counts.padded += missing;
            self.place(run, &vec![0; missing as usize * BYTES_PER_SAMPLE]);
        }
        self.first = self.tags.iter().position(|tag| tag.run > run).unwrap_or(self.tags.len());
        self.tags.drain(..self.first);
        self.first = 0;
        self.out = self.out.max(ends);
        self.chunker.flush();
        if exact { missing } else { 0 }
    }
}
