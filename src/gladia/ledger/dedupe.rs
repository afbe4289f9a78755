//! Which words of a recogniser session are its own, and which another session or an earlier hearing has said already.
//!
//! After a reconnect or a replay the same audio is heard twice; a word is kept once.

use std::ops::Range;

use super::ranges::Ranges;
use super::stt_session::{Recognised, RecognisedWord, SttSession, wire_bytes};

/// What is left of an utterance after taking away what is not this session's to say. Positions are session offsets.
#[derive(Debug, Clone, PartialEq)]
pub struct OwnWords {
    pub span: Range<u64>,
    pub text: String,
    pub words: Vec<(RecognisedWord, Range<u64>)>,
}

impl SttSession {
    /// Takes away what an earlier or later session says, and of what was heard twice that which has text already: a word
    /// belongs to the side of its midpoint. None when nothing is left. `sent` bounds times that lie in the future,
    /// `has_text` says whether a position is in a final of this session.
    pub fn keep(&self, said: &Recognised, sent: u64, has_text: impl Fn(u64) -> bool) -> Option<OwnWords> {
        let whole = [RecognisedWord {
            word: said.text.clone(),
            start_s: said.start_s,
            end_s: said.end_s,
            confidence: said.confidence,
        }];
        let all: &[RecognisedWord] = if said.words.is_empty() { &whole } else { &said.words };
        // One utterance may run over a splice and hold the same words twice.
        let mut own = Ranges::default();
        let mut words = Vec::new();
        for word in all {
            let has_text = |at: u64| has_text(at) || own.contains(at);
            if let Some(span) = self.keep_word(word, sent, has_text) {
                own.insert(span.clone());
                words.push((word.clone(), span));
            }
        }
        if words.is_empty() || said.text.trim().is_empty() {
            return None;
        }
        let mut span = words[0].1.start..words.iter().map(|w| w.1.end).max().unwrap_or(0);
        let mut text = said.text.trim().to_owned();
        if words.len() == all.len() {
            let whole = self.range_of(said.start_s, said.end_s, sent);
            span = whole.start.min(span.start)..whole.end.max(span.end);
        } else {
            text = words.iter().map(|w| w.0.word.as_str()).collect::<String>().trim().to_owned();
        }
        let words = if said.words.is_empty() { Vec::new() } else { words };
        (!text.is_empty()).then_some(OwnWords { span, text, words })
    }

    fn keep_word(&self, word: &RecognisedWord, sent: u64, has_text: impl Fn(u64) -> bool) -> Option<Range<u64>> {
        let span = self.range_of(word.start_s, word.end_s, sent);
        let middle = span.start.midpoint(span.end);
        let last = self.splice_at(wire_bytes(word.end_s).saturating_sub(1));
        // The first hearing's text was lost or came already: the second says everything, in order.
        let is_echo = (1..self.splices.len()).any(|n| {
            let splice = &self.splices[n];
            (splice.session..splice.heard_until).contains(&middle) && (last < n || has_text(middle))
        });
        let is_other = middle < self.own_from
            || self.own_until.is_some_and(|until| middle >= until)
            || self.excluded.contains(middle);
        (!is_other && !is_echo).then_some(span)
    }
}
