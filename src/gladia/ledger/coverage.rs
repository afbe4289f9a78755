//! Which audio is speech, and which of it has text.
//!
//! The invariant: what is published was delivered, and so was what waits to be published. A piece of speech is missing only
//! where it is long enough to bring text and is not the tail of what has text.

use std::collections::HashMap;
use std::ops::Range;

use super::bytes;
use super::ranges::Ranges;
use super::speech::SpeechDetector;

/// Sound shorter than this may go without text.
const LEAST_SPEECH_MS: u64 = 180;
/// So may the sound right after a final: recognisers cut words tighter than the speech detector cuts speech.
const TAIL_MS: u64 = 200;

/// Speech by energy, beside the spans of finals.
#[derive(Debug, Default)]
pub(super) struct Coverage {
    detector: SpeechDetector,
    spoken: Ranges,
    /// Spans of finals that are on their way to the room, in it, or published.
    delivered: Ranges,
    /// Spans of published finals.
    published: Ranges,
    /// Finals that the room has not published, by id.
    unpublished: HashMap<String, Range<u64>>,
}

impl Coverage {
    /// That of a process that takes over: everything up to `published_until` is published, and `missing` is the speech after
    /// it.
    pub fn restored(published_until: u64, missing: impl IntoIterator<Item = Range<u64>>) -> Self {
        let mut coverage = Self::default();
        coverage.conclude(0..published_until);
        for span in missing {
            coverage.spoken.insert(span);
        }
        coverage
    }

    /// Takes audio that begins at `offset`; answers how many bytes of speech are new.
    pub fn feed(&mut self, offset: u64, pcm: &[u8]) -> u64 {
        self.detector.feed(offset, pcm, &mut self.spoken)
    }

    pub fn spoken(&self) -> &Ranges {
        &self.spoken
    }

    pub fn delivered(&self) -> &Ranges {
        &self.delivered
    }

    pub fn published(&self) -> &Ranges {
        &self.published
    }

    /// A final goes to the room.
    pub fn deliver(&mut self, id: String, span: Range<u64>) {
        self.delivered.insert(span.clone());
        self.unpublished.insert(id, span);
    }

    /// The room has published a final; answers its span, the first time.
    pub fn publish(&mut self, id: &str) -> Option<Range<u64>> {
        let span = self.unpublished.remove(id)?;
        self.published.insert(span.clone());
        Some(span)
    }

    /// No text of it will come.
    pub fn conclude(&mut self, span: Range<u64>) {
        self.delivered.insert(span.clone());
        self.published.insert(span);
    }

    pub fn is_unpublished(&self, id: &str) -> bool {
        self.unpublished.contains_key(id)
    }

    /// Where the earliest final begins that is not published.
    pub fn first_unpublished(&self) -> Option<u64> {
        self.unpublished.values().map(|span| span.start).min()
    }

    /// First speech of some length in `span` that begins before `before` and is not in `finals`.
    pub fn missing_speech(&self, span: Range<u64>, before: u64, finals: &Ranges) -> Option<u64> {
        self.missing_pieces(span, finals).into_iter().map(|piece| piece.start).filter(|start| *start < before).min()
    }

    /// Speech of some length in `span` that is not in `finals`.
    pub fn missing_pieces(&self, span: Range<u64>, finals: &Ranges) -> Vec<Range<u64>> {
        if span.is_empty() {
            return Vec::new();
        }
        let missing = self.spoken.within(&span).flat_map(|speech| finals.missing(&speech));
        let pieces = missing.filter_map(|piece| {
            let is_tail = piece.start > 0 && finals.contains(piece.start - 1);
            let start = piece.start + if is_tail { bytes(TAIL_MS) } else { 0 };
            (start + bytes(LEAST_SPEECH_MS) <= piece.end).then_some(start..piece.end)
        });
        pieces.collect()
    }

    /// The end of the speech that lies at `at`, none beyond `upto`; None where nobody speaks before that.
    pub fn speech_end(&self, at: u64, upto: u64) -> Option<u64> {
        self.spoken.within(&(at..upto)).next().map(|speech| speech.end)
    }

    /// Gives the length of the silence before `at`, `most` at most.
    pub fn silence_before(&self, at: u64, most: u64) -> u64 {
        let recent = at.saturating_sub(most)..at;
        at - self.spoken.within(&recent).last().map_or(recent.start, |speech| speech.end)
    }

    pub fn forget_before(&mut self, at: u64) {
        for ranges in [&mut self.spoken, &mut self.delivered, &mut self.published] {
            ranges.forget_before(at);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spoken(spans: &[Range<u64>]) -> Coverage {
        let ms = |span: &Range<u64>| bytes(span.start)..bytes(span.end);
        Coverage::restored(0, spans.iter().map(ms))
    }

    fn pieces(coverage: &Coverage) -> Vec<Range<u64>> {
        let missing = coverage.missing_pieces(0..bytes(100_000), coverage.delivered());
        missing.into_iter().map(|piece| piece.start / bytes(1)..piece.end / bytes(1)).collect()
    }

    #[test]
    fn a_cough_and_the_tail_of_a_final_are_not_missing() {
        let mut coverage = spoken(&[0..179, 1000..3000, 5000..5180]);
        assert_eq!(pieces(&coverage), [1000..3000, 5000..5180]);
        coverage.deliver("a".into(), bytes(900)..bytes(2620));
        assert_eq!(pieces(&coverage), [2820..3000, 5000..5180], "200 ms after a final are its tail");
        coverage.deliver("b".into(), bytes(2620)..bytes(2621));
        assert_eq!(pieces(&coverage).len(), 1, "and then it is too short");
    }

    #[test]
    fn a_final_is_published_once_and_only_after_it_was_delivered() {
        let mut coverage = spoken(&[]);
        assert_eq!(coverage.publish("a"), None);
        coverage.deliver("b".into(), 300..400);
        coverage.deliver("a".into(), 100..200);
        assert_eq!((coverage.first_unpublished(), coverage.published().end()), (Some(100), None));
        assert_eq!(coverage.publish("a"), Some(100..200));
        assert_eq!(coverage.publish("a"), None, "the room may say so twice");
        assert_eq!((coverage.first_unpublished(), coverage.is_unpublished("b")), (Some(300), true));
        assert_eq!(coverage.published().missing(&(0..400)), [0..100, 200..400]);
        assert!(coverage.published().within(&(0..400)).all(|span| coverage.delivered().missing(&span).is_empty()));
    }

    #[test]
    fn silence_is_measured_from_the_last_speech_as_far_as_is_asked() {
        let coverage = spoken(&[100..200, 1000..1500]);
        let silence_ms = |at, most| coverage.silence_before(bytes(at), bytes(most)) / bytes(1);
        assert_eq!([silence_ms(1700, 10_000), silence_ms(1400, 10_000), silence_ms(1700, 150)], [200, 0, 150]);
        assert_eq!(coverage.speech_end(bytes(300), bytes(1200)), Some(bytes(1200)));
        assert_eq!(coverage.speech_end(bytes(300), bytes(900)), None);
    }
}
