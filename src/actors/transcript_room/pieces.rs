//! Cuts a line where its speaker changes. Pure.
//!
//! The pieces are the line's words and text, in order and whole. The first keeps its id, so an interim with that id is
//! replaced by it, and a translation refers to it; the others are `{id}.2`, `{id}.3` and so on.

use crate::actors::speaker_tracker::LabelledWords;
use crate::transcript::{Speaker, Utterance, Word};

/// A line has so many pieces at most.
const MAX_PIECES: usize = 64;

/// A line of one speaker, or of an unknown one.
pub(super) type Piece = (Utterance, Option<Speaker>);

/// The id of the `n`th piece, counted from 1.
pub(super) fn piece_id(id: &str, n: usize) -> String {
    if n < 2 { id.to_owned() } else { format!("{id}.{n}") }
}

/// Cuts a line. One that cannot be cut, since its text does not hold its words, is whole; several speakers are none then.
pub(super) fn cut(line: Utterance, mut labels: Vec<LabelledWords>) -> Vec<Piece> {
    keep_punctuation(line.words.as_deref().unwrap_or_default(), &mut labels);
    let texts = match (labels.len(), &line.words) {
        (2..=MAX_PIECES, Some(words)) => texts(&line.text, words, &labels),
        _ => None,
    };
    let Some(texts) = texts else {
        let mut speakers = labels.into_iter().map(|label| label.speaker);
        let first = speakers.next().flatten();
        let is_one = speakers.all(|other| other == first);
        return vec![(line, first.filter(|_| is_one))];
    };
    let last = labels.len() - 1;
    let mut words = line.words.clone().unwrap_or_default().into_iter();
    let piece = |(n, (label, text)): (usize, (LabelledWords, String))| {
        let words: Vec<Word> = words.by_ref().take(label.words.len()).collect();
        let (first_ms, last_ms) = (words.first().map(|w| w.start_ms), words.iter().map(|w| w.end_ms).max());
        let start_ms = if n == 0 { line.start_ms } else { first_ms.unwrap_or(line.start_ms) };
        let end_ms = if n == last { line.end_ms } else { last_ms.unwrap_or(line.end_ms) };
        let piece = Utterance {
            id: piece_id(&line.id, n + 1),
            text,
            start_ms,
            end_ms: end_ms.max(start_ms),
            confidence: mean_confidence(&words).or(line.confidence),
            words: Some(words),
            ..line.clone()
        };
        (piece, label.speaker)
    };
    labels.into_iter().zip(texts).enumerate().map(piece).collect()
}

/// A mark that stands as a word of its own belongs to the word before it.
fn keep_punctuation(words: &[Word], labels: &mut Vec<LabelledWords>) {
    for n in 1..labels.len() {
        let is_mark = |at: usize| words.get(at).is_some_and(|word| !word.word.contains(char::is_alphanumeric));
        while labels[n].words.start < labels[n].words.end && is_mark(labels[n].words.start) {
            labels[n].words.start += 1;
            labels[n - 1].words.end = labels[n].words.start;
        }
    }
    labels.retain(|label| !label.words.is_empty());
}

/// The text of each piece; None where the text does not hold the words, one after the other.
fn texts(text: &str, words: &[Word], labels: &[LabelledWords]) -> Option<Vec<String>> {
    // Of each word: where what belongs to it begins, which may be before it.
    let mut begins = Vec::with_capacity(words.len());
    let mut end = 0;
    for Word { word, .. } in words {
        let between = &text[end..];
        let found = between.find(word.as_str()).filter(|_| !word.is_empty())?;
        if between[..found].contains(char::is_alphanumeric) {
            return None;
        }
        let space = between[..found].char_indices().rfind(|(_, c)| c.is_whitespace());
        begins.push(end + space.map_or(found, |(at, c)| at + c.len_utf8()));
        end += found + word.len();
    }
    let begin = |n: usize| if n == 0 { 0 } else { begins.get(n).copied().unwrap_or(text.len()) };
    let piece = |label: &LabelledWords| {
        let piece = text[begin(label.words.start)..begin(label.words.end)].trim();
        (!piece.is_empty()).then(|| piece.to_owned())
    };
    labels.iter().map(piece).collect()
}

fn mean_confidence(words: &[Word]) -> Option<f64> {
    let known: Vec<f64> = words.iter().filter_map(|word| word.confidence).collect();
    (!known.is_empty()).then(|| known.iter().sum::<f64>() / known.len() as f64)
}

#[cfg(test)]
mod tests {
    use chrono::Utc;
    use tokio::time::Instant;

    use super::*;

    fn line(text: &str, words: &[&str]) -> Utterance {
        let word = |(n, word): (u64, &&str)| Word {
            word: (*word).to_owned(),
            start_ms: 1000 + n * 100,
            end_ms: 1080 + n * 100,
            confidence: Some(0.5),
        };
        Utterance {
            id: "1.a".into(),
            text: text.into(),
            start_ms: 990,
            end_ms: 2000,
            language: Some("en".into()),
            confidence: Some(0.9),
            words: Some((0..).zip(words).map(word).collect()),
            voice: None,
            received_at: Utc::now(),
            received: Instant::now(),
            decode_ms: None,
            stt_ms: None,
        }
    }

    fn labels(ends: &[(usize, Option<&str>)]) -> Vec<LabelledWords> {
        let mut start = 0;
        let label = |(end, who): &(usize, Option<&str>)| {
            let words = std::mem::replace(&mut start, *end)..*end;
            LabelledWords { words, speaker: who.map(|who| Speaker { identity: who.to_owned(), name: None }) }
        };
        ends.iter().map(label).collect()
    }

    fn told(pieces: &[Piece]) -> Vec<(&str, &str, u64, u64, Option<&str>)> {
        pieces
            .iter()
            .map(|(u, speaker)| {
                (u.id.as_str(), u.text.as_str(), u.start_ms, u.end_ms, speaker.as_ref().map(|s| s.identity.as_str()))
            })
            .collect()
    }

    #[test]
    fn pieces_are_the_whole_line_in_order() {
        let words = ["Are", "you", "there?", "Yes,", "I", "am."];
        let whole = line("Are you there? \"Yes, I am.\"", &words);
        let pieces = cut(whole, labels(&[(3, Some("anna")), (6, Some("ben"))]));
        assert_eq!(
            told(&pieces),
            [("1.a", "Are you there?", 990, 1280, Some("anna")), ("1.a.2", "\"Yes, I am.\"", 1300, 2000, Some("ben"))]
        );
        assert_eq!(pieces.iter().map(|(u, _)| u.words.as_ref().unwrap().len()).collect::<Vec<_>>(), [3, 3]);
        assert_eq!(pieces[1].0.confidence, Some(0.5));
        let marks = ["Ready", "?", "Yes", "."];
        let pieces = cut(line("Ready? Yes.", &marks), labels(&[(1, Some("anna")), (4, Some("ben"))]));
        assert_eq!(pieces.iter().map(|(u, _)| u.text.as_str()).collect::<Vec<_>>(), ["Ready?", "Yes."]);
        let pieces = cut(line("你好吗我好", &["你好", "吗", "我好"]), labels(&[(2, Some("anna")), (3, Some("ben"))]));
        assert_eq!(pieces.iter().map(|(u, _)| u.text.as_str()).collect::<Vec<_>>(), ["你好吗", "我好"]);
    }

    #[test]
    fn a_line_that_cannot_be_cut_has_one_speaker_or_none() {
        let cut_in_two = || labels(&[(1, Some("anna")), (2, Some("ben"))]);
        for text in ["something else", "one and two", "two one", ""] {
            assert_eq!(told(&cut(line(text, &["one", "two"]), cut_in_two())), [("1.a", text, 990, 2000, None)]);
        }
        let whole = cut(line("one two", &["one", "two"]), labels(&[(2, Some("anna"))]));
        assert_eq!(told(&whole), [("1.a", "one two", 990, 2000, Some("anna"))]);
        assert_eq!(told(&cut(line("one two", &["one", "two"]), Vec::new()))[0].4, None, "the tracker did not answer");
    }
}
