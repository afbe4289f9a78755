//! Beginnings, ends and cuts of speech. Pure: windows and their voice probabilities in, decisions out; positions are
//! samples.

use std::collections::VecDeque;

use super::super::engine::{SAMPLES_PER_MS, StreamParams};
use super::energy::Energy;
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
/// A forced cut goes to the quietest place of this last stretch ...
const CUT_SEARCH: usize = 2500 * SAMPLES_PER_MS;
/// ... but not into the very last of it: whether a place is quiet shows only when it is over.
const CUT_MARGIN: usize = 100 * SAMPLES_PER_MS;
/// The segment after a forced cut hears at least and at most so much of the audio before it.
const LEAD_MIN: usize = 300 * SAMPLES_PER_MS;
const LEAD_MAX: usize = 1500 * SAMPLES_PER_MS;

/// A closed or growing piece of audio with speech in it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Segment {
    pub index: u32,
    /// Audio to recognise begins here; up to `from` it belongs to the segment before this one.
    pub lead_from: usize,
    /// The segment's own audio.
    pub from: usize,
    pub to: usize,
    /// Span of the voice itself.
    pub voice_from: usize,
    pub voice_to: usize,
    /// Windows of its own that are hits; fewer than begin a segment are none (the end of a cut word).
    pub hits: usize,
}

impl Segment {
    pub fn has_voice(&self) -> bool {
        self.hits >= HITS_TO_START
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Decision {
    Started(Segment),
    /// By a pause.
    Closed(Segment),
    /// Speech goes on in `next`. What has been heard up to `heard_to`, past the cut, helps to understand it.
    Cut {
        segment: Segment,
        heard_to: usize,
        next: Segment,
    },
}

/// Cuts a stream into segments by voice, pause and length.
pub struct Segmenter {
    end_silence: usize,
    max_length: usize,
    position: usize,
    hits: usize,
    next_index: u32,
    /// No segment's own audio reaches back before this.
    floor: usize,
    open: Option<Segment>,
    energy: Energy,
    /// Probabilities of the last [`CUT_SEARCH`], the newest last.
    recent: VecDeque<f32>,
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
            energy: Energy::new(CUT_SEARCH + LEAD_MAX + WINDOW),
            recent: VecDeque::new(),
        }
    }

    /// The open segment up to the present position.
    pub fn open(&self) -> Option<Segment> {
        self.open.map(|segment| Segment { to: self.position, ..segment })
    }

    /// Audio before this is needed no more.
    pub fn keep_from(&self) -> usize {
        let spare = || self.position.saturating_sub(PRE_ROLL + HITS_TO_START * WINDOW).max(self.floor);
        self.open.map_or_else(spare, |segment| segment.lead_from)
    }

    /// Takes the next window and the probability that it is voice.
    pub fn push(&mut self, probability: f32, window: &[i16]) -> Option<Decision> {
        self.position += WINDOW;
        self.energy.push(window);
        self.recent.push_back(probability);
        if self.recent.len() > CUT_SEARCH / WINDOW {
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
        Some(Segment { to: end.min(segment.voice_to + POST_ROLL).max(segment.voice_to).max(segment.from), ..segment })
    }

    fn listen(&mut self, probability: f32) -> Option<Segment> {
        self.hits = if probability >= HIT { self.hits + 1 } else { 0 };
        if self.hits < HITS_TO_START {
            return None;
        }
        let voice_from = self.position - self.hits * WINDOW;
        let from = voice_from.saturating_sub(PRE_ROLL).max(self.floor);
        let segment = Segment {
            index: self.next_index,
            lead_from: from,
            from,
            to: self.position,
            voice_from,
            voice_to: self.position,
            hits: self.hits,
        };
        Some(self.begin(segment))
    }

    fn begin(&mut self, segment: Segment) -> Segment {
        self.next_index = segment.index + 1;
        self.open = Some(segment);
        segment
    }

    fn follow(&mut self, mut segment: Segment, probability: f32) -> Option<Decision> {
        segment.hits += usize::from(probability >= HIT);
        if probability >= VOICE {
            segment.voice_to = self.position;
        }
        self.open = Some(segment);
        if self.position - segment.voice_to >= self.end_silence {
            self.open = None;
            self.hits = 0;
            let to = (segment.voice_to + POST_ROLL).min(self.position).max(segment.from);
            self.floor = to;
            return Some(Decision::Closed(Segment { to, ..segment }));
        }
        (self.position - segment.from >= self.max_length).then(|| self.cut(segment))
    }

    fn cut(&mut self, segment: Segment) -> Decision {
        let earliest = (segment.from + self.max_length / 2).max(self.position.saturating_sub(CUT_SEARCH));
        let cut = self.energy.quietest(earliest..self.position - CUT_MARGIN).unwrap_or(self.position);
        let lead = cut.saturating_sub(LEAD_MAX).max(segment.from)..cut.saturating_sub(LEAD_MIN);
        self.floor = cut;
        let after = (self.position - cut) / WINDOW;
        let next = Segment {
            index: self.next_index,
            lead_from: self.energy.quietest(lead).unwrap_or(cut),
            from: cut,
            to: self.position,
            voice_from: cut,
            voice_to: segment.voice_to,
            hits: self.recent.iter().rev().take(after).filter(|&&probability| probability >= HIT).count(),
        };
        self.begin(next);
        let voice_to = segment.voice_to.min(cut);
        Decision::Cut { segment: Segment { to: cut, voice_to, ..segment }, heard_to: self.position, next }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PARAMS: StreamParams = StreamParams { end_silence_ms: 480, max_segment_ms: 5000, interims: true };

    /// Windows are as loud as they are voice.
    fn run(segmenter: &mut Segmenter, probabilities: impl IntoIterator<Item = f32>) -> Vec<Decision> {
        let window = |p: f32| [(p * 10_000.0) as i16; WINDOW];
        probabilities.into_iter().filter_map(|p| segmenter.push(p, &window(p))).collect()
    }

    fn windows(probability: f32, count: usize) -> impl Iterator<Item = f32> {
        std::iter::repeat_n(probability, count)
    }

    #[test]
    fn speech_begins_after_three_hits_with_pre_roll_and_ends_after_silence() {
        let mut segmenter = Segmenter::new(PARAMS);
        let decisions = run(&mut segmenter, windows(0.0, 20).chain(windows(0.9, 10)).chain(windows(0.1, 20)));
        let [Decision::Started(started), Decision::Closed(segment)] = decisions[..] else { panic!("{decisions:?}") };
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
        // Voice all along, a pause of 128 ms in it.
        let mut decisions = run(&mut segmenter, windows(0.9, 120));
        let quiet = |segmenter: &mut Segmenter| segmenter.push(0.9, &[10; WINDOW]);
        decisions.extend((0..4).filter_map(|_| quiet(&mut segmenter)));
        decisions.extend(run(&mut segmenter, windows(0.9, 100)));
        let [Decision::Started(first), Decision::Cut { segment, heard_to, next }] = decisions[..] else {
            panic!("{decisions:?}")
        };
        assert!(segment.to.abs_diff(122 * WINDOW) <= WINDOW, "{segment:?}");
        assert_eq!(
            (segment.from, heard_to),
            (first.from, PARAMS.max_segment_ms * SAMPLES_PER_MS / WINDOW * WINDOW + WINDOW)
        );
        assert_eq!((next.index, next.from, next.voice_from), (1, segment.to, segment.to));
        assert!((LEAD_MIN..=LEAD_MAX).contains(&(next.from - next.lead_from)), "{next:?}");
        assert!(next.has_voice() && segmenter.keep_from() <= next.lead_from);
        let end = 224 * WINDOW + 100;
        let last = segmenter.finish(end).unwrap();
        assert_eq!((last.index, last.from, last.to), (1, segment.to, end));
    }

    #[test]
    fn a_pause_under_way_at_the_limit_leaves_a_segment_without_voice() {
        let mut segmenter = Segmenter::new(PARAMS);
        let decisions = run(&mut segmenter, windows(0.9, 150).chain(windows(0.0, 40)).chain(windows(0.9, 10)));
        let [_, Decision::Cut { segment, .. }, Decision::Closed(rest), Decision::Started(next)] = decisions[..] else {
            panic!("{decisions:?}")
        };
        assert!(segment.to >= 150 * WINDOW && segment.voice_to == 150 * WINDOW, "{segment:?}");
        assert!(!rest.has_voice() && rest.voice_to == 150 * WINDOW, "{rest:?}");
        // The pause is as long as any other.
        assert_eq!((next.index, next.voice_from), (2, 190 * WINDOW));
    }

    #[test]
    fn finishing_in_silence_gives_nothing() {
        let mut segmenter = Segmenter::new(PARAMS);
        run(&mut segmenter, windows(0.0, 10));
        assert_eq!(segmenter.finish(10 * WINDOW), None);
    }
}
