//! Word error rate: edits (substitutions, insertions, deletions) per word of the known text.

/// Edits and reference words.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct WordErrors {
    pub edits: usize,
    pub words: usize,
}

impl WordErrors {
    /// In percent; 0 for an empty reference.
    pub fn percent(self) -> f64 {
        if self.words == 0 { 0.0 } else { 100.0 * self.edits as f64 / self.words as f64 }
    }
}

/// Compares after lower-casing, dropping punctuation and writing small numbers as words.
pub fn word_errors(reference: &str, heard: &str) -> WordErrors {
    let reference = words(reference);
    let heard = words(heard);
    let mut row: Vec<usize> = (0..=heard.len()).collect();
    for (i, expected) in reference.iter().enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, word) in heard.iter().enumerate() {
            let substitution = diagonal + usize::from(expected != word);
            diagonal = row[j + 1];
            row[j + 1] = substitution.min(row[j] + 1).min(diagonal + 1);
        }
    }
    WordErrors { edits: row[heard.len()], words: reference.len() }
}

fn words(text: &str) -> Vec<String> {
    let text = text.to_lowercase().replace("mr.", "mister");
    let plain = text.replace(|c: char| !c.is_alphanumeric() && c != '\'', " ");
    plain.split_whitespace().map(|word| number_word(word).to_owned()).collect()
}

fn number_word(word: &str) -> &str {
    const NUMBERS: [&str; 11] = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten"];
    word.parse::<usize>().ok().and_then(|n| NUMBERS.get(n).copied()).unwrap_or(word)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn edits_are_counted_per_reference_word() {
        assert_eq!(word_errors("go forward ten meters", "Go forward, 10 meters."), WordErrors { edits: 0, words: 4 });
        assert_eq!(word_errors("a b c d", "a x c"), WordErrors { edits: 2, words: 4 });
        assert_eq!(word_errors("a", "a b"), WordErrors { edits: 1, words: 1 });
        assert_eq!(word_errors("a b", ""), WordErrors { edits: 2, words: 2 });
        assert_eq!(word_errors("a b c d", "a x c").percent(), 50.0);
    }
}
