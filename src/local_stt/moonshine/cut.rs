//! Which words belong to which side of a forced cut. Pure: texts in, counts out.
//!
//! A segment that is cut while speech goes on is decoded three times: up to the present moment (the whole), up to the
//! cut, and up to a place a little before it. The whole heard the words on both sides of the cut in full; the two shorter
//! ones only say how many of its words had been said by then. The next segment hears the audio from the earlier place on
//! with the words between the two places forced at its beginning: it begins after a word, whatever the cut fell into, and
//! a word that was truly said twice is twice in the whole.

use std::ops::Range;

use super::model::{Decoded, Heard};
use super::tokenizer::{Piece, Tokenizer};

/// Cost of one word in the place of another; of a word too many, or one too few, it is 1.
const OTHER_WORD: f32 = 1.5;

/// Words that the next segment may leave out, or say again, at its beginning.
const SLIP: usize = 3;

/// Tells the segment after a cut what the one before it has heard.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Lead {
    /// The words of its audio before the cut, forced at its beginning; without any, it begins at the cut.
    pub tokens: Vec<i64>,
    /// Words heard past the cut already.
    pub tail: Decoded,
}

/// Tokens of the whole.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Split {
    /// Words of the cut segment itself.
    pub own: Range<usize>,
    /// Audio that the next one is given: the end of `own`, or nothing when the audio before the cut is no help to it.
    pub lead: Range<usize>,
}

/// `heard` has two stops: where the next segment's audio begins, and the cut. The first `led` tokens belong to the segment
/// before this one.
pub fn split(heard: &Heard, led: usize, tokenizer: &Tokenizer) -> Split {
    let whole = tokenizer.pieces(&heard.whole.tokens);
    let said =
        |stop: usize| heard.until.get(stop).map_or(0, |part| words_said(&tokenizer.pieces(&part.tokens), &whole));
    let end = |words: usize| words.checked_sub(1).map_or(0, |last| whole[last].tokens.end);
    let cut = end(said(1)).max(led);
    Split { own: led..cut, lead: end(said(0)).min(cut)..cut }
}

/// The words `own` of a segment with this `lead`. A slip at the beginning shows where the tail's words are found a little
/// later, or earlier: words left out come from the tail, words of the lead that are said again go.
pub fn mended(own: Decoded, lead: &Lead, tokenizer: &Tokenizer) -> Decoded {
    let loose = own.tokens.iter().take_while(|&&t| !lead.tokens.is_empty() && !tokenizer.begins_word(t)).count();
    let own = own.part(loose..own.tokens.len());
    let (said, known) = (tokenizer.pieces(&own.tokens), tokenizer.pieces(&lead.tail.tokens));
    match slip(&words(&said), &words(&known), &words(&tokenizer.pieces(&lead.tokens))) {
        Some(Slip::LeftOut(count)) => lead.tail.part(0..known[count].tokens.start).then(own),
        Some(Slip::Again(count)) => own.part(said[count].tokens.start..own.tokens.len()),
        None => own,
    }
}

#[derive(Debug, PartialEq)]
enum Slip {
    LeftOut(usize),
    Again(usize),
}

fn slip(said: &[Vec<char>], known: &[Vec<char>], lead: &[Vec<char>]) -> Option<Slip> {
    // The last word heard may be half a word. Two words in a row are no chance.
    let known = &known[..known.len().saturating_sub(1)];
    let found = |there: &[Vec<char>], at: usize, two: &[Vec<char>]| {
        two.len() >= 2 && there.get(at..at + 2).is_some_and(|words| words == &two[..2])
    };
    if said.first()? == known.first()? {
        return None;
    }
    let left_out = (1..=SLIP).find(|&at| found(known, at, said)).map(Slip::LeftOut);
    let again = (1..=SLIP).find(|&at| found(said, at, known) && lead.ends_with(&said[..at])).map(Slip::Again);
    left_out.or(again)
}

/// Counts the words of `whole` that had been said where `part` ends: those that `part` resembles most.
pub fn words_said(part: &[Piece], whole: &[Piece]) -> usize {
    let (part, whole) = (words(part), words(whole));
    let mut costs: Vec<f32> = (0..=whole.len()).map(|skipped| skipped as f32).collect();
    for word in &part {
        let mut diagonal = std::mem::replace(&mut costs[0], 0.0);
        costs[0] = diagonal + 1.0;
        for (j, known) in whole.iter().enumerate() {
            let changed = diagonal + difference(word, known);
            diagonal = costs[j + 1];
            costs[j + 1] = changed.min(diagonal + 1.0).min(costs[j] + 1.0);
        }
    }
    let best = costs.iter().copied().fold(f32::INFINITY, f32::min);
    costs.iter().rposition(|&cost| cost <= best).unwrap_or(0)
}

/// Letters and digits in lower case.
fn words(pieces: &[Piece]) -> Vec<Vec<char>> {
    let letters = |piece: &Piece| piece.text.to_lowercase().chars().filter(|c| c.is_alphanumeric()).collect();
    pieces.iter().map(letters).collect()
}

/// 0.0 for the same word, up to [`OTHER_WORD`] for one that shares no letter: "respect" is close to "respectable".
fn difference(a: &[char], b: &[char]) -> f32 {
    if a == b {
        return 0.0;
    }
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, x) in a.iter().enumerate() {
        let mut diagonal = std::mem::replace(&mut row[0], i + 1);
        for (j, y) in b.iter().enumerate() {
            let changed = diagonal + usize::from(x != y);
            diagonal = row[j + 1];
            row[j + 1] = changed.min(diagonal + 1).min(row[j] + 1);
        }
    }
    OTHER_WORD * row[b.len()] as f32 / a.len().max(b.len()) as f32
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pieces(text: &str) -> Vec<Piece> {
        text.split_whitespace().map(|word| Piece { text: word.to_owned(), tokens: 0..0 }).collect()
    }

    #[test]
    fn a_slip_at_the_beginning_is_seen_and_nothing_else_is() {
        let cases = [
            ("He might even have", "ill-disposed. He might even", "is to be", Some(Slip::LeftOut(1))),
            ("still more respectable than he was", "more respectable than he", "been made still", Some(Slip::Again(1))),
            // Both say the same; the tail ends in half a word, or is a guess that came to nothing.
            ("respectable than he was", "respectable than he w", "still more", None),
            ("disposed he was", "dis", "be ill", None),
            ("It was the age of foolishness", "It was the age of wisdom", "age of wisdom", None),
            ("authorities insisted on", "that some of its noisy", "present period", None),
            // Truly said twice.
            ("no no no go", "no no no", "no no", None),
            ("made still more", "still more respect", "he was", None),
            ("", "one two three", "", None),
            ("one two three", "", "", None),
        ];
        for (said, known, lead, expected) in cases {
            let [s, k, l] = [said, known, lead].map(|text| words(&pieces(text)));
            assert_eq!(slip(&s, &k, &l), expected, "{lead:?} | {said:?}, known {known:?}");
        }
    }

    #[test]
    fn the_words_said_so_far_are_counted() {
        let cases = [
            ("", "one two", 0),
            ("One, two.", "one two three", 2),
            ("made still more respect", "made still more respectable than he was", 4),
            ("made still more", "made still more respectable than he was", 3),
            // Heard a little differently, or with a word too many, or one too few.
            ("he was not an ill posed", "He was not an ill-disposed young man", 5),
            ("It was the best of the times", "it was the best of times, it was", 6),
            ("no no no", "no no no no no", 3),
            ("it was the age of wisdom", "it was the age of wisdom it was the age of foolishness", 6),
            ("one two three", "one two", 2),
            ("completely other words", "", 0),
        ];
        for (part, whole, expected) in cases {
            assert_eq!(words_said(&pieces(part), &pieces(whole)), expected, "{part:?} of {whole:?}");
        }
    }
}
