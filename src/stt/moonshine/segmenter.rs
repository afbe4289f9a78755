//! Where speech begins, ends and is cut. Pure: voice probabilities in, decisions out; positions are samples.

use std::collections::VecDeque;

use super::super::engine::{SAMPLES_PER_MS, StreamParams};
use super::vad::WINDOW;

/// A window with at least this probability is a hit.
const HIT: f32 = 0.5;
/// Within speech, a window down to this still counts as voice.
const VOICE: f32 = 0.35;
/// Consecutive hits that begin a segment.
const HITS_TO_START: usize = 3;
/// Audio kept from before the first hit.
const PRE_ROLL: usize = 320 * SAMPLES_PER_MS;
/// Audio kept after the last voice.
const POST_ROLL: usize = 200 * SAMPLES_PER_MS;
/// A forced cut goes to the quietest window of this last stretch.
const CUT_SEARCH: usize = 2000 * SAMPLES_PER_MS;

/// A closed or growing piece of audio with speech in it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Segment {
    pub index: u32,
    /// Audio to recognise.
    pub from: usize,
    pub to: usize,
    /// Where the voice itself is.
    pub voice_from: usize,
    pub voice_to: usize,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Decision {
    Started(Segment),
    /// `pause` is false for a forced cut: speech goes on in the next segment.
    Closed {
        segment: Segment,
        pause: bool,
    },
}

/// See the module.
pub struct Segmenter {
    end_silence: usize,
    max_length: usize,
    position: usize,
    hits: usize,
    next_index: u32,
    /// No segment reaches back before this.
    floor: usize,
    open: Option<Segment>,
    /// (end of window, probability) of the last [`CUT_SEARCH`].
    recent: VecDeque<(usize, f32)>,
}

impl Segmenter {
    pub fn new(params: StreamParams) -> Self {
        Self {
            end_silence: params.end_silence_ms * SAMPLES_PER_MS,
            max_length: params.max_segment_ms * SAMPLES_PER_MS,
            position: 0,
            hits: 0,
            next_index: 0,
            floor: 0,
            open: None,
            recent: VecDeque::new(),
        }
    }

    /// The open segment up to the present position.
    pub fn open(&self) -> Option<Segment> {
        self.open.map(|segment| Segment { to: self.position, ..segment })
    }

    /// Audio before this is needed no more.
    pub fn keep_from(&self) -> usize {
        self.open.map_or(self.position.saturating_sub(PRE_ROLL + HITS_TO_START * WINDOW), |s| s.from).max(self.floor)
    }

    /// Takes the probability of the next window.
    pub fn push(&mut self, probability: f32) -> Option<Decision> {
        self.position += WINDOW;
        self.recent.push_back((self.position, probability));
        while self.recent.front().is_some_and(|&(end, _)| end + CUT_SEARCH <= self.position) {
            self.recent.pop_front();
        }
        match self.open {
            None => self.listen(probability).map(Decision::Started),
            Some(segment) => self.follow(segment, probability),
        }
    }

    /// Closes what is open; `end` is the true end of the audio, past the last whole window.
    pub fn finish(&mut self, end: usize) -> Option<Segment> {
        let segment = self.open.take()?;
        self.floor = end;
        Some(Segment { to: end.min(segment.voice_to + POST_ROLL).max(segment.voice_to), ..segment })
    }

    fn listen(&mut self, probability: f32) -> Option<Segment> {
        self.hits = if probability >= HIT { self.hits + 1 } else { 0 };
        if self.hits < HITS_TO_START {
            return None;
        }
        let voice_from = self.position - self.hits * WINDOW;
        let from = voice_from.saturating_sub(PRE_ROLL).max(self.floor);
        Some(self.begin(from, voice_from))
    }

    fn begin(&mut self, from: usize, voice_from: usize) -> Segment {
        let segment = Segment { index: self.next_index, from, to: self.position, voice_from, voice_to: self.position };
        self.next_index += 1;
        self.open = Some(segment);
        segment
    }

    fn follow(&mut self, mut segment: Segment, probability: f32) -> Option<Decision> {
        if probability >= VOICE {
            segment.voice_to = self.position;
            self.open = Some(segment);
        }
        if self.position - segment.voice_to >= self.end_silence {
            self.open = None;
            self.hits = 0;
            let to = (segment.voice_to + POST_ROLL).min(self.position);
            self.floor = to;
            return Some(Decision::Closed { segment: Segment { to, ..segment }, pause: true });
        }
        if self.position - segment.from < self.max_length {
            return None;
        }
        let cut = self.quietest_after(segment.from + self.max_length / 2);
        self.floor = cut;
        let voice_to = segment.voice_to;
        self.begin(cut, cut);
        if let Some(open) = &mut self.open {
            open.voice_to = voice_to.max(cut);
        }
        Some(Decision::Closed { segment: Segment { to: cut, voice_to: voice_to.min(cut), ..segment }, pause: false })
    }

    fn quietest_after(&self, earliest: usize) -> usize {
        let candidates = self.recent.iter().filter(|(end, _)| *end > earliest);
        candidates.min_by(|a, b| a.1.total_cmp(&b.1)).map_or(self.position, |&(end, _)| end - WINDOW / 2)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PARAMS: StreamParams = StreamParams { end_silence_ms: 480, max_segment_ms: 5000, interims: true };

    fn run(segmenter: &mut Segmenter, probabilities: impl IntoIterator<Item = f32>) -> Vec<Decision> {
        probabilities.into_iter().filter_map(|p| segmenter.push(p)).collect()
    }

    fn windows(probability: f32, count: usize) -> impl Iterator<Item = f32> {
        std::iter::repeat_n(probability, count)
    }

    #[test]
    fn speech_begins_after_three_hits_with_pre_roll_and_ends_after_silence() {
        let mut segmenter = Segmenter::new(PARAMS);
        let decisions = run(&mut segmenter, windows(0.0, 20).chain(windows(0.9, 10)).chain(windows(0.1, 20)));
        let [Decision::Started(started), Decision::Closed { segment, pause: true }] = decisions[..] else {
            panic!("{decisions:?}")
        };
        assert_eq!((started.from, started.voice_from), (20 * WINDOW - PRE_ROLL, 20 * WINDOW));
        assert_eq!((segment.voice_to, segment.to), (30 * WINDOW, 30 * WINDOW + POST_ROLL));
        assert_eq!(segmenter.open(), None);
        // The next segment does not take again what this one had.
        let next = run(&mut segmenter, windows(0.9, 3));
        let [Decision::Started(next)] = next[..] else { panic!("{next:?}") };
        assert_eq!(next.index, 1);
        assert!(next.from >= segment.to);
    }

    #[test]
    fn two_hits_are_noise() {
        let mut segmenter = Segmenter::new(PARAMS);
        assert_eq!(run(&mut segmenter, [0.9, 0.9, 0.2].repeat(50)), vec![]);
        assert!(segmenter.keep_from() > 0);
    }

    #[test]
    fn endless_speech_is_cut_at_the_quietest_place_and_loses_nothing() {
        let mut segmenter = Segmenter::new(PARAMS);
        let speech = windows(0.9, 130).chain([0.5]).chain(windows(0.9, 100));
        let decisions = run(&mut segmenter, speech);
        let [Decision::Started(first), Decision::Closed { segment, pause: false }] = decisions[..] else {
            panic!("{decisions:?}")
        };
        assert_eq!(segment.to, 131 * WINDOW - WINDOW / 2);
        assert_eq!(segment.from, first.from);
        let open = segmenter.open().unwrap();
        assert_eq!((open.index, open.from), (1, segment.to));
        let end = 231 * WINDOW + 100;
        let last = segmenter.finish(end).unwrap();
        assert_eq!(last.to, end);
    }

    #[test]
    fn finishing_in_silence_gives_nothing() {
        let mut segmenter = Segmenter::new(PARAMS);
        run(&mut segmenter, windows(0.0, 10));
        assert_eq!(segmenter.finish(10 * WINDOW), None);
    }
}
