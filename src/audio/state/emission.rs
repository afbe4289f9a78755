//! A decoder's output, put in its place: after its predecessor, with the silence or the pause that belongs before
//! it.

use tokio::time::Instant;

use super::{Before, DecodeState, HISTORY_TAGS, Pause};
use crate::audio::BYTES_PER_SAMPLE;

impl DecodeState {
    /// The next audio of the present decoder, whole samples.
    pub(super) fn pcm(&mut self, run: u64, pcm: &[u8]) {
        self.output.decoded(pcm);
        self.place(run, pcm);
        debug_assert_eq!(self.check(), Ok(()));
    }

    fn place(&mut self, run: u64, pcm: &[u8]) {
        let mut pcm = self.output.unheard(pcm);
        if !pcm.is_empty() {
            // What a decoder repeats to warm up is no progress.
            self.starts.progress();
        }
        while !pcm.is_empty() {
            let Some((_, arrived, ends)) = self.open_tag(run) else { return self.surplus(run, pcm) };
            pcm = self.output.audio(pcm, ends, arrived);
            if self.output.end() >= ends {
                self.advance();
            }
        }
    }

    /// The tag that is next to be out, after what belongs before it: its publisher, arrival and end.
    pub(super) fn open_tag(&mut self, run: u64) -> Option<(u64, Instant, u64)> {
        let tag = self.tags.get_mut(self.first).filter(|tag| tag.run == run)?;
        let before = match self.output.end() >= tag.starts() {
            true => std::mem::replace(&mut tag.before, Before::Nothing),
            false => Before::Nothing,
        };
        let (publisher, arrived, ends) = (tag.publisher, tag.arrived, tag.ends());
        match before {
            Before::Nothing => {}
            Before::Silence(samples) => self.output.silence(samples, arrived),
            Before::Segment(at_ms) => self.segment(publisher, at_ms),
            Before::Back(samples) => self.output.back(samples),
        }
        self.heard = Some(publisher);
        Some((publisher, arrived, ends))
    }

    /// Session time goes on at `at_ms`.
    pub(super) fn segment(&mut self, publisher: u64, at_ms: u64) {
        // The time between two publishers is the session's to tell.
        if self.heard == Some(publisher) {
            self.announcements.pause(self.output.end_ms(), at_ms);
        }
        self.output.segment(at_ms);
    }

    /// Audio up to this time was announced as lost before it came here: it is no pause.
    pub fn announced_until(&mut self, ms: u64) {
        self.announcements.raise(ms);
    }

    /// The next time to be announced in which a publisher paused.
    pub fn pop_pause(&mut self) -> Option<Pause> {
        self.announcements.pop_pause()
    }

    /// More audio than the tags announced: it is heard all the same.
    pub(super) fn surplus(&mut self, run: u64, pcm: &[u8]) {
        let last = self.first.checked_sub(1).and_then(|index| self.tags.get(index)).filter(|tag| tag.run == run);
        let arrived = last.map_or_else(Instant::now, |tag| tag.arrived);
        self.output.surplus(pcm, arrived);
        self.clock.is_longer((pcm.len() / BYTES_PER_SAMPLE) as u64);
    }

    /// The invariant: every sample that came out of a decoder is in exactly one chunk, or was so before (a decoder repeats
    /// what warms it up).
    pub fn check(&self) -> Result<(), String> {
        self.output.check()
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
        let missing = ends.saturating_sub(self.output.end());
        self.output.decoder_ended();
        if exact {
            let silence = self.output.pad(missing);
            self.place(run, &silence);
        }
        self.first = self.tags.iter().position(|tag| tag.run > run).unwrap_or(self.tags.len());
        self.tags.drain(..self.first);
        self.first = 0;
        self.output.skip_to(ends);
        self.output.flush();
        if exact { missing } else { 0 }
    }
}
