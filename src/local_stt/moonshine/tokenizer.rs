//! Moonshine's `tokenizer.bin`: token id -> bytes.

use std::ops::Range;

use super::super::engine::Word;

/// U+2581 marks the start of a word.
const WORD_START: &str = "\u{2581}";
const BOS: i64 = 1;
const EOS: i64 = 2;

/// One word and where its tokens are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Piece {
    pub text: String,
    pub tokens: Range<usize>,
}

pub struct Tokenizer {
    pieces: Vec<Vec<u8>>,
}

impl Tokenizer {
    /// The file is a row of pieces, each after its length: one byte, or two (low 7 bits first) when it is 128 or more.
    pub fn parse(bytes: &[u8]) -> Result<Self, String> {
        let mut pieces = Vec::new();
        let mut rest = bytes;
        while let Some((&first, tail)) = rest.split_first() {
            let (length, tail) = match (first, tail.split_first()) {
                (0..128, _) => (first as usize, tail),
                (_, Some((&high, tail))) => (high as usize * 128 + first as usize - 128, tail),
                (_, None) => return Err("ends within a length".into()),
            };
            if tail.len() < length {
                return Err(format!("token {} is cut short", pieces.len()));
            }
            let (piece, tail) = tail.split_at(length);
            pieces.push(decode_byte_token(piece));
            rest = tail;
        }
        if pieces.len() <= EOS as usize {
            return Err("holds no tokens".into());
        }
        Ok(Self { pieces })
    }

    pub fn begins_word(&self, token: i64) -> bool {
        self.pieces.get(token as usize).is_some_and(|piece| piece.starts_with(WORD_START.as_bytes()))
    }

    /// The words that `tokens` make.
    pub fn pieces(&self, tokens: &[i64]) -> Vec<Piece> {
        let mut groups: Vec<(Vec<u8>, Range<usize>)> = Vec::new();
        for (at, &token) in tokens.iter().enumerate() {
            let Some(piece) = self.pieces.get(token as usize).filter(|_| token != BOS && token != EOS) else {
                continue;
            };
            match groups.last_mut() {
                Some((bytes, range)) if !self.begins_word(token) => {
                    bytes.extend(piece);
                    range.end = at + 1;
                }
                _ => groups.push((piece.clone(), at..at + 1)),
            }
        }
        let pieces = groups.into_iter().map(|(bytes, tokens)| Piece {
            text: String::from_utf8_lossy(&bytes).replace(WORD_START, "").trim().to_owned(),
            tokens,
        });
        pieces.filter(|piece| !piece.text.is_empty()).collect()
    }

    /// A word's confidence is the geometric mean of its tokens' probabilities.
    pub fn words(&self, tokens: &[i64], log_probs: &[f32]) -> Vec<Word> {
        let word = |Piece { text, tokens }| Word {
            word: text,
            confidence: confidence(&log_probs[tokens]),
            ..Default::default()
        };
        self.pieces(&tokens[..tokens.len().min(log_probs.len())]).into_iter().map(word).collect()
    }
}

/// exp of the mean log-probability, rounded to a thousandth.
pub fn confidence(log_probs: &[f32]) -> f64 {
    let mean = log_probs.iter().map(|&p| f64::from(p)).sum::<f64>() / log_probs.len().max(1) as f64;
    (mean.exp() * 1000.0).round().clamp(0.0, 1000.0) / 1000.0
}

/// "<0xE2>" stands for that byte.
fn decode_byte_token(piece: &[u8]) -> Vec<u8> {
    let byte = std::str::from_utf8(piece).ok().and_then(|text| {
        let digits = text.strip_prefix("<0x")?.strip_suffix('>')?;
        u8::from_str_radix(digits, 16).ok().filter(|_| digits.len() == 2)
    });
    byte.map_or_else(|| piece.to_vec(), |b| vec![b])
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(pieces: &[&str]) -> Vec<u8> {
        let mut bytes = Vec::new();
        for piece in pieces {
            let n = piece.len();
            match n {
                0..128 => bytes.push(n as u8),
                _ => bytes.extend([(n % 128 + 128) as u8, (n / 128) as u8]),
            }
            bytes.extend(piece.as_bytes());
        }
        bytes
    }

    #[test]
    fn tokens_become_words() {
        let long = "x".repeat(300);
        let tokens =
            Tokenizer::parse(&file(&["", "<s>", "</s>", "▁Hel", "lo", "▁wor", "ld", ".", "<0xC3>", "<0xA9>", &long]));
        let tokens = tokens.unwrap();
        assert_eq!(tokens.pieces[10].len(), 300);
        let words = tokens.words(&[1, 3, 4, 5, 6, 7, 8, 9, 2], &[0.0, -0.1, -0.3, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0]);
        assert_eq!(words.iter().map(|w| w.word.as_str()).collect::<Vec<_>>(), ["Hello", "world.é"]);
        assert_eq!(words[0].confidence, 0.819);
        assert_eq!(tokens.words(&[99], &[0.0]), vec![]);
    }

    #[test]
    fn a_truncated_file_is_refused() {
        assert!(Tokenizer::parse(&[]).is_err());
        assert!(Tokenizer::parse(&[5, b'a']).is_err());
        assert!(Tokenizer::parse(&[200]).is_err());
    }
}
