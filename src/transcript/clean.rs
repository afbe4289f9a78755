//! The one gate for strings that come from outside: a token's name, a recogniser's text, a post's reason.
//!
//! Every entry passes it ([`Entry::clean`]) before it is numbered, so neither a viewer, nor the outbox, nor the database
//! ever meets a NUL (which Postgres refuses in `text`, SQLSTATE 22021), another control character, or a string without
//! end. Cleaning twice changes nothing, so a log that was cleaned where it began stays the same on every node.

use std::borrow::Cow;

use sha2::{Digest, Sha256};

use super::entry::{Entry, MAX_TEXT_BYTES, Word};

/// Longest id, identity, name, language or word, in bytes.
pub const MAX_NAME_BYTES: usize = 256;
/// Longest reason of a status, in bytes.
pub const MAX_REASON_BYTES: usize = 1024;
/// Most words of one transcript.
pub const MAX_WORDS: usize = 4096;
/// Hex digits that keep two ids apart which look the same when they are clean.
const DIGEST_CHARS: usize = 16;

/// Spoken or written text: control characters are left out, those that part words become a space, and what is longer
/// than `most` bytes is cut between two characters.
pub fn text(raw: &str, most: usize) -> Cow<'_, str> {
    if raw.len() <= most && !raw.contains(char::is_control) {
        return Cow::Borrowed(raw);
    }
    let mut clean = String::with_capacity(raw.len().min(most));
    for c in raw.chars() {
        let kept = match c {
            '\t' | '\n' | '\r' | '\u{b}' | '\u{c}' | '\u{85}' => ' ',
            c if c.is_control() => continue,
            c => c,
        };
        if clean.len() + kept.len_utf8() > most {
            break;
        }
        clean.push(kept);
    }
    Cow::Owned(clean)
}

/// A name, a language or a word: like [`text`], without space around it.
pub fn name(raw: &str) -> Cow<'_, str> {
    match text(raw, MAX_NAME_BYTES) {
        Cow::Borrowed(clean) => Cow::Borrowed(clean.trim()),
        Cow::Owned(clean) => Cow::Owned(clean.trim().to_owned()),
    }
}

/// An id. Two ids that differ stay different: one that had to be changed ends with a digest of what it was.
pub fn id(raw: &str) -> Cow<'_, str> {
    if raw.len() <= MAX_NAME_BYTES && !raw.contains(char::is_control) {
        return Cow::Borrowed(raw);
    }
    let digest = hex::encode(Sha256::digest(raw.as_bytes()));
    let readable = text(raw, MAX_NAME_BYTES - DIGEST_CHARS - 1);
    Cow::Owned(format!("{readable}~{}", &digest[..DIGEST_CHARS]))
}

impl Entry {
    /// Cleans every string that came from outside, in place. A text that had to be cut is logged.
    pub fn clean(&mut self) {
        match self {
            Self::Transcript(line) => {
                tidy(&mut line.id, id);
                if line.text.len() > MAX_TEXT_BYTES {
                    let (session, bytes) = (&line.session, line.text.len());
                    tracing::warn!(%session, id = line.id, bytes, limit = MAX_TEXT_BYTES, "text of a line cut");
                }
                tidy(&mut line.text, |raw| text(raw, MAX_TEXT_BYTES));
                line.language = line.language.take().map(|raw| name(&raw).into_owned()).filter(|code| !code.is_empty());
                if let Some(speaker) = &mut line.speaker {
                    tidy(&mut speaker.identity, id);
                    speaker.name = speaker.name.take().map(|raw| name(&raw).into_owned()).filter(|n| !n.is_empty());
                }
                if let Some(words) = &mut line.words {
                    words.truncate(MAX_WORDS);
                    words.iter_mut().for_each(|Word { word, .. }| tidy(word, |raw| text(raw, MAX_NAME_BYTES)));
                }
            }
            Self::Gap(gap) => tidy(&mut gap.id, id),
            Self::Status(change) => {
                tidy(&mut change.id, id);
                change.reason = change.reason.take().map(|raw| text(&raw, MAX_REASON_BYTES).into_owned());
            }
            Self::Translation(line) => {
                tidy(&mut line.id, id);
                tidy(&mut line.of, id);
                tidy(&mut line.language, name);
                tidy(&mut line.text, |raw| text(raw, MAX_TEXT_BYTES));
            }
        }
    }
}

/// Allocates only where something has to change.
fn tidy(field: &mut String, clean: impl Fn(&str) -> Cow<'_, str>) {
    let changed = match clean(field) {
        Cow::Borrowed(same) if same.len() == field.len() => None,
        other => Some(other.into_owned()),
    };
    if let Some(changed) = changed {
        *field = changed;
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    fn line(changes: serde_json::Value) -> Entry {
        let mut line = json!({"type": "transcript", "session": "demo", "epoch": "0193b3f0-0000-7000-8000-000000000001",
            "seq": 1, "id": "a", "isFinal": true, "text": "Hello.", "startMs": 0, "endMs": 1});
        for (field, value) in changes.as_object().expect("an object") {
            line[field] = value.clone();
        }
        serde_json::from_value(line).expect("an entry")
    }

    #[test]
    fn every_string_of_an_entry_is_cleaned() {
        let odd = "a\0b\u{7}c\u{9b}d\ne";
        let mut entry = line(json!({"text": odd, "language": odd, "speaker": {"identity": "x\0", "name": odd},
            "words": [{"word": odd, "startMs": 0, "endMs": 1}]}));
        entry.clean();
        let Entry::Transcript(line) = &entry else { panic!("a transcript") };
        let speaker = line.speaker.as_ref().expect("kept");
        assert_eq!(line.text, "abcd e");
        assert_eq!(line.language.as_deref(), Some("abcd e"));
        assert_eq!(speaker.name.as_deref(), Some("abcd e"));
        assert!(speaker.identity.starts_with("x~"), "{}", speaker.identity);
        assert_eq!(line.words.as_ref().expect("kept")[0].word, "abcd e");
        assert!(!entry.to_json().contains("\\u00"));
        let mut translation: Entry = serde_json::from_value(json!({"type": "translation", "session": "demo", "seq": 1,
            "epoch": "0193b3f0-0000-7000-8000-000000000001", "id": odd, "of": odd, "language": odd, "text": odd,
            "startMs": 0, "endMs": 1}))
        .expect("an entry");
        translation.clean();
        assert!(!translation.to_json().contains("\\u00"), "{}", translation.to_json());
        let mut status: Entry = serde_json::from_value(json!({"type": "status", "session": "demo", "id": "s\u{1}",
            "epoch": "0193b3f0-0000-7000-8000-000000000001", "seq": 1, "status": "live", "reason": odd}))
        .expect("an entry");
        status.clean();
        assert!(!status.to_json().contains("\\u00"), "{}", status.to_json());
    }

    #[test]
    fn ids_that_differ_stay_different() {
        let long = "x".repeat(400);
        let ids = ["a", "a\0", "a\u{1}", "a\u{1}\0", &long, &format!("{long}y")];
        let clean: std::collections::HashSet<_> = ids.iter().map(|raw| id(raw)).collect();
        assert_eq!(clean.len(), ids.len());
        assert!(clean.iter().all(|id| id.len() <= MAX_NAME_BYTES));
    }

    #[test]
    fn what_is_clean_already_is_not_touched() {
        let mut entry = line(json!({"text": "Grüße, 世界 👋🏽 \u{200f}שלום", "language": "de"}));
        let before = entry.to_json();
        entry.clean();
        assert_eq!(entry.to_json(), before);
    }

    #[test]
    fn text_is_cut_between_two_characters() {
        let long = "é".repeat(MAX_TEXT_BYTES);
        let cut = text(&long, MAX_TEXT_BYTES);
        assert_eq!(cut.len(), MAX_TEXT_BYTES);
        assert!(cut.chars().all(|c| c == 'é'));
    }

    proptest! {
        #[test]
        fn cleaning_twice_changes_nothing(raw in any::<String>(), most in 1usize..64) {
            let clean = text(&raw, most).into_owned();
            prop_assert!(clean.len() <= most && !clean.contains(char::is_control));
            prop_assert_eq!(text(&clean, most).into_owned(), clean.clone());
            let (n, i) = (name(&raw).into_owned(), id(&raw).into_owned());
            prop_assert_eq!(name(&n).into_owned(), n.clone());
            prop_assert_eq!(id(&i).into_owned(), i);
        }
    }
}
