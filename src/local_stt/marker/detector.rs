//! Finds tones in audio, reads them as keys, and keys as markers. Pure: samples in, events out.

use std::f64::consts::TAU;

use super::super::engine::{Event, SAMPLE_RATE, SAMPLES_PER_MS, StreamParams, Utterance, Word};
use super::{COLUMNS_HZ, DAMAGED, GAP_MS, KEYS, ROWS_HZ, check_digit};

/// The grid of all times: 2 ms.
const BLOCK: usize = 2 * SAMPLES_PER_MS;
/// Root mean square under which all is quiet, whatever came before.
const QUIET: f64 = 0.01;
/// A tone is at least this share of the loudest of its marker.
const RELATIVE_QUIET: f64 = 0.25;
/// Quiet that ends a tone, in blocks.
const TONE_END: usize = 5;
/// Shortest and longest tone, ms.
const TONE_RANGE_MS: std::ops::RangeInclusive<usize> = 40..=110;
/// The middle of a tone, which is what is looked at.
const LOOK: usize = 40 * SAMPLES_PER_MS;
/// Share of the energy that must be in the two strongest tones.
const PURITY: f64 = 0.6;
/// The quiet between two tones of a marker must not end it, whatever a client asks for.
const MIN_END_SILENCE_MS: usize = 3 * GAP_MS;
/// Something that is no key.
const NOISE: char = '?';

#[derive(Debug, Clone, Copy)]
struct Key {
    key: char,
    from: usize,
    to: usize,
}

/// Hears the marker tones of tests in a stream. Positions are samples from the stream's start.
pub struct Detector {
    end_silence: usize,
    max_length: usize,
    interims: bool,
    position: usize,
    /// Samples that do not fill a block yet.
    rest: Vec<i16>,
    peak: f64,
    tone: Option<Tone>,
    keys: Vec<Key>,
    next_segment: u32,
    events: Vec<Event>,
}

#[derive(Default)]
struct Tone {
    from: usize,
    /// End of its last loud block.
    to: usize,
    quiet_blocks: usize,
    samples: Vec<i16>,
}

impl Detector {
    pub fn new(params: StreamParams) -> Self {
        Self {
            end_silence: params.end_silence_ms.max(MIN_END_SILENCE_MS) * SAMPLES_PER_MS,
            max_length: params.max_segment_ms * SAMPLES_PER_MS,
            interims: params.interims,
            position: 0,
            rest: Vec::new(),
            peak: 0.0,
            tone: None,
            keys: Vec::new(),
            next_segment: 0,
            events: Vec::new(),
        }
    }

    pub fn take_events(&mut self) -> Vec<Event> {
        std::mem::take(&mut self.events)
    }

    pub fn push(&mut self, samples: &[i16]) {
        self.rest.extend_from_slice(samples);
        let rest = std::mem::take(&mut self.rest);
        let blocks = rest.chunks_exact(BLOCK);
        self.rest = blocks.remainder().to_vec();
        blocks.for_each(|block| self.block(block));
    }

    pub fn finish(&mut self) {
        if let Some(tone) = self.tone.take() {
            self.tone_ended(tone);
        }
        self.close();
    }

    fn block(&mut self, block: &[i16]) {
        let from = self.position;
        self.position += BLOCK;
        let level = rms(block);
        let loud = level >= QUIET.max(RELATIVE_QUIET * self.peak);
        match (&mut self.tone, loud) {
            (None, false) => self.quiet(),
            (None, true) => {
                self.peak = self.peak.max(level);
                self.tone = Some(Tone { from, to: self.position, quiet_blocks: 0, samples: block.to_vec() });
            }
            (Some(tone), true) => {
                self.peak = self.peak.max(level);
                tone.to = self.position;
                tone.quiet_blocks = 0;
                tone.extend(block);
            }
            (Some(tone), false) => {
                tone.quiet_blocks += 1;
                tone.extend(block);
                if tone.quiet_blocks == TONE_END {
                    let tone = std::mem::take(tone);
                    self.tone = None;
                    self.tone_ended(tone);
                }
            }
        }
    }

    fn quiet(&mut self) {
        let Some(last) = self.keys.last() else { return };
        if self.position - last.to >= self.end_silence {
            self.close();
        }
    }

    fn tone_ended(&mut self, tone: Tone) {
        let key = Key { key: tone.key(), from: tone.from, to: tone.to };
        let complete = self.keys.last().is_some_and(|k| k.key == '#');
        let too_long = self.keys.first().is_some_and(|k| key.to - k.from > self.max_length);
        if complete || too_long || (key.key == '*' && !self.keys.is_empty()) {
            self.close();
        }
        if self.keys.is_empty() {
            self.events.push(Event::SpeechStart { at_ms: ms(key.from) });
        }
        self.keys.push(key);
        if self.interims && key.key.is_ascii_digit() {
            self.guess();
        }
    }

    /// All digits but the last, which may be the check digit.
    fn guess(&mut self) {
        let Some(digits) = self.keys.get(1..self.keys.len() - 1) else { return };
        if self.keys[0].key == '*' && !digits.is_empty() && digits.iter().all(|k| k.key.is_ascii_digit()) {
            let end = self.keys[self.keys.len() - 1];
            let text: String = digits.iter().map(|k| k.key).collect();
            let guess = self.utterance(text, end.to, 1.0);
            self.events.push(Event::Interim(guess));
        }
    }

    /// The marker is over, one way or the other.
    fn close(&mut self) {
        let (Some(&first), Some(&last)) = (self.keys.first(), self.keys.last()) else { return };
        self.events.push(Event::SpeechEnd { at_ms: ms(last.to) });
        let event = match self.read() {
            Some(number) => Event::Final(self.utterance(number, last.to, 1.0)),
            None if self.keys.iter().all(|k| k.key == NOISE) => {
                Event::Empty { segment: self.next_segment, start_ms: ms(first.from), end_ms: ms(last.to) }
            }
            None => Event::Final(self.utterance("?".to_owned(), last.to, 0.5)),
        };
        debug_assert!(!matches!(&event, Event::Final(u) if u.text.contains('?') && u.text != DAMAGED));
        self.events.push(event);
        self.next_segment += 1;
        self.keys.clear();
        self.peak = 0.0;
    }

    fn read(&self) -> Option<String> {
        let keys: String = self.keys.iter().map(|k| k.key).collect();
        let inner = keys.strip_prefix('*')?.strip_suffix('#')?;
        let (digits, check) = inner.split_at_checked(inner.len().checked_sub(1)?)?;
        let good = !digits.is_empty() && inner.bytes().all(|b| b.is_ascii_digit());
        (good && check == check_digit(digits).to_string()).then(|| digits.to_owned())
    }

    fn utterance(&self, number: String, to: usize, confidence: f64) -> Utterance {
        let (start_ms, end_ms) = (ms(self.keys[0].from), ms(to));
        let split_ms = ms(self.keys.get(1).map_or(to, |k| k.from)).min(end_ms);
        let text = format!("marker {number}");
        let words = vec![
            Word { word: "marker".to_owned(), start_ms, end_ms: ms(self.keys[0].to), confidence },
            Word { word: number, start_ms: split_ms, end_ms, confidence },
        ];
        Utterance { segment: self.next_segment, text, start_ms, end_ms, confidence, words }
    }
}

impl Tone {
    /// Long noise is not kept.
    fn extend(&mut self, block: &[i16]) {
        if self.samples.len() <= 2 * TONE_RANGE_MS.end() * SAMPLES_PER_MS {
            self.samples.extend_from_slice(block);
        }
    }

    fn key(&self) -> char {
        let length = self.to - self.from;
        if !TONE_RANGE_MS.contains(&(length / SAMPLES_PER_MS)) {
            return NOISE;
        }
        let begin = length.saturating_sub(LOOK) / 2;
        let look = &self.samples[begin..(begin + LOOK).min(length)];
        let total = look.iter().map(|&s| f64::from(s).powi(2)).sum::<f64>() * look.len() as f64 / 2.0;
        let strongest = |tones: &[f64]| {
            let powers = tones.iter().map(|&hz| power(look, hz)).enumerate();
            powers.max_by(|a, b| a.1.total_cmp(&b.1)).unwrap_or_default()
        };
        let ((row, row_power), (column, column_power)) = (strongest(&ROWS_HZ), strongest(&COLUMNS_HZ));
        if row_power + column_power < PURITY * total { NOISE } else { KEYS[row][column] }
    }
}

/// Goertzel's algorithm: the power of one frequency; a pure tone has `energy * samples / 2`.
fn power(samples: &[i16], hz: f64) -> f64 {
    let coefficient = 2.0 * (TAU * hz / SAMPLE_RATE as f64).cos();
    let (mut s1, mut s2) = (0.0, 0.0);
    for &sample in samples {
        (s1, s2) = (f64::from(sample) + coefficient * s1 - s2, s1);
    }
    s1 * s1 + s2 * s2 - coefficient * s1 * s2
}

fn rms(block: &[i16]) -> f64 {
    let sum: f64 = block.iter().map(|&s| (f64::from(s) / 32768.0).powi(2)).sum();
    (sum / block.len() as f64).sqrt()
}

fn ms(samples: usize) -> u64 {
    (samples / SAMPLES_PER_MS) as u64
}
