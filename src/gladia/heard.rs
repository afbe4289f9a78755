//! From what the recogniser writes to what the machine needs to know, whatever a field looks like: a final is never lost
//! for its language, its confidence, or the time of one of its words.
//!
//! | what is odd | becomes |
//! |---|---|
//! | `id` | one made of the start time |
//! | `type` | a transcript, if that is what it holds |
//! | `is_final` | a guess; if it never becomes final it is heard again, then a gap |
//! | `text` | the words; without words: heard again, then a gap |
//! | `start`, `end` | those of the words, else of the first speech without text ([`Recognised`] has NaN) |
//! | a word's times | those of its neighbours |
//! | a word's text, `words` | no words |
//! | `language`, `confidence`, `speaker` | null |
//! | `byte_range` of an acknowledgement | what `time_range` says; without both it is none |

use serde_json::Value;

use super::ledger::{Recognised, RecognisedWord};
use super::lenient::{self, Odd, field, flag, fraction, number, optional, part, required, text};
use super::phase::{RecogniserMessage, Refusal, TranslationHeard};
use super::wire::KNOWN_TYPES;

/// No recogniser session has audio at such a time, in seconds: eleven days.
const MAX_TIME_S: f64 = 1e6;
/// A word may begin or end so much outside its utterance, in seconds.
const WORD_SLACK_S: f64 = 2.0;
const BYTES_PER_S: f64 = 32_000.0;

/// One message.
#[derive(Debug, PartialEq)]
pub struct Reading {
    /// The wire's name of its type, `unknown` for one that this build does not know.
    pub kind: &'static str,
    pub heard: RecogniserMessage,
    pub odd: Odd,
}

/// Reads a message; the error is why it is no JSON.
pub fn read(bytes: &[u8]) -> Result<Reading, serde_json::Error> {
    let mut odd = Odd::default();
    let value = lenient::parse(bytes, &mut odd)?;
    let kind = kind_of(&value, &mut odd);
    let heard = match kind {
        "audio_chunk" => acknowledgement(&value, &mut odd),
        "stop_recording" => RecogniserMessage::StopAcknowledged,
        "transcript" => transcript(&value, &mut odd),
        "translation" => translation(&value, &mut odd),
        "end_session" => RecogniserMessage::EndSession,
        "error" => RecogniserMessage::Reported(fault_of(part(&value, "data"))),
        _ => RecogniserMessage::Other,
    };
    Ok(Reading { kind, heard, odd })
}

fn kind_of(value: &Value, odd: &mut Odd) -> &'static str {
    let name = field(value, "type").and_then(Value::as_str).unwrap_or("");
    match KNOWN_TYPES.iter().find(|known| known.eq_ignore_ascii_case(name.trim())) {
        Some(known) => known,
        None if is_transcript(part(value, "data"), name) => {
            odd.note("type");
            "transcript"
        }
        None => "unknown",
    }
}

/// What has another name and is one all the same.
fn is_transcript(data: &Value, name: &str) -> bool {
    let has = |name| field(data, name).is_some();
    has("utterance") && (name.is_empty() || (has("is_final") && has("id")))
}

fn acknowledgement(value: &Value, odd: &mut Odd) -> RecogniserMessage {
    let data = part(value, "data");
    let range = |name, scale: f64| {
        let ends = field(data, name)?.as_array()?;
        let [start, end] = [ends.first()?, ends.get(1)?].map(|end| number(end).map(|n| (n * scale).round()));
        let (start, end) = (start?, end?);
        (0.0 <= start && start <= end && end <= MAX_TIME_S * BYTES_PER_S).then_some((start as u64, end as u64))
    };
    let bytes = range("byte_range", 1.0);
    let range = bytes.or_else(|| range("time_range", BYTES_PER_S).map(|(start, end)| (start & !1, end & !1)));
    let is_refused = field(value, "error").is_some();
    match (field(value, "acknowledged").and_then(flag).unwrap_or(!is_refused), range) {
        (false, _) => RecogniserMessage::Refused(refusal(fault_of(value))),
        (true, Some((start, end))) => {
            if bytes.is_none() {
                odd.note("byte_range");
            }
            RecogniserMessage::Acknowledged { start, end }
        }
        // Without data it is about an empty chunk.
        (true, None) if field(value, "data").is_none() => RecogniserMessage::Other,
        (true, None) => {
            odd.note("byte_range");
            RecogniserMessage::Other
        }
    }
}

/// The protocol has no code for a quota that is used up; the text alone names it.
fn refusal(message: String) -> Refusal {
    if message.to_lowercase().contains("quota") { Refusal::Quota } else { Refusal::Other(message) }
}

/// What a message says of an error: `error.message`, `message`, or `error` itself.
fn fault_of(value: &Value) -> String {
    let inner = part(value, "error");
    let message = field(inner, "message").or_else(|| field(value, "error")).and_then(text);
    message.unwrap_or_default().chars().filter(|c| !c.is_control()).take(200).collect()
}

fn transcript(value: &Value, odd: &mut Odd) -> RecogniserMessage {
    let data = part(value, "data");
    let utterance = part(data, "utterance");
    let said = Said::of(utterance, odd);
    let is_final = required(data, "is_final", odd, flag);
    let id = required(data, "id", odd, lenient::id).unwrap_or_else(|| said.id());
    match said.text {
        Some(text) => RecogniserMessage::Text(Recognised {
            id,
            is_final: is_final.unwrap_or(false),
            is_doubtful: is_final.is_none(),
            text,
            start_s: said.start_s,
            end_s: said.end_s,
            language: optional(utterance, "language", odd, language_or_none).flatten(),
            confidence: optional(utterance, "confidence", odd, fraction),
            voice: optional(utterance, "speaker", odd, voice),
            words: said.words,
        }),
        None if is_final == Some(false) => RecogniserMessage::Other,
        None => {
            RecogniserMessage::Unreadable { is_final: is_final.is_some(), start_s: said.start_s, end_s: said.end_s }
        }
    }
}

/// A whole number from 0 on.
fn voice(value: &Value) -> Option<u32> {
    let number = number(value).filter(|number| number.fract() == 0.0)?;
    (0.0..=f64::from(u32::MAX)).contains(&number).then_some(number as u32)
}

/// An empty code says that none is known.
fn language_or_none(value: &Value) -> Option<Option<String>> {
    match value.as_str() {
        Some("") => Some(None),
        _ => lenient::language(value).map(Some),
    }
}

fn translation(value: &Value, odd: &mut Odd) -> RecogniserMessage {
    if field(value, "data").is_none() {
        return RecogniserMessage::TranslationFailed(fault_of(value));
    }
    let data = part(value, "data");
    let translated = part(data, "translated_utterance");
    let original = Said::of(part(data, "utterance"), &mut Odd::default());
    let language = optional(data, "target_language", odd, lenient::language);
    let language = language.or_else(|| optional(translated, "language", odd, lenient::language));
    let id = required(data, "utterance_id", odd, lenient::id).unwrap_or_default();
    let text = Said::of(translated, &mut Odd::default()).text;
    match (language, text) {
        (Some(language), Some(text)) => RecogniserMessage::Translation(TranslationHeard {
            id,
            language,
            text: text.trim().to_owned(),
            start_s: original.start_s,
            end_s: original.end_s,
        }),
        (language, text) => {
            odd.note(if text.is_none() { "translated_utterance.text" } else { "target_language" });
            RecogniserMessage::TranslationFailed(format!("it cannot be read (language {language:?})"))
        }
    }
}

/// The words of an utterance and their times; NaN is a time that nothing tells.
struct Said {
    /// None when nothing can be read of it.
    text: Option<String>,
    start_s: f64,
    end_s: f64,
    words: Vec<RecognisedWord>,
}

impl Said {
    fn of(utterance: &Value, odd: &mut Odd) -> Self {
        let mut words = words(utterance, odd);
        let known = |time: f64| Some(time).filter(|time| !time.is_nan());
        let first = words.iter().find_map(|word| known(word.start_s));
        let last = words.iter().rev().find_map(|word| known(word.end_s));
        let start_s = required(utterance, "start", odd, time).or(first).unwrap_or(f64::NAN);
        let end_s = required(utterance, "end", odd, time).filter(|end| is_not_before(*end, start_s));
        let end_s = end_s.or_else(|| {
            odd.note("end");
            last.filter(|end| is_not_before(*end, start_s))
        });
        let end_s = end_s.unwrap_or(f64::NAN);
        let is_better = |text: &Value| text.as_str().is_some_and(|text| !text.trim().is_empty());
        let said = field(utterance, "text").filter(|text| is_better(text) || words.is_empty()).and_then(text);
        let joined = || words.iter().map(|word| word.word.as_str()).collect::<String>();
        let text = said.map(std::borrow::Cow::into_owned).or_else(|| {
            odd.note("text");
            (!words.is_empty()).then(joined)
        });
        if !fill_times(&mut words, start_s, end_s, odd) {
            words.clear();
        }
        Self { text, start_s, end_s, words }
    }

    /// The id of an utterance that has none.
    fn id(&self) -> String {
        if self.start_s.is_nan() {
            "untimed".to_owned()
        } else {
            format!("t{}", (self.start_s * 1000.0).round() as u64)
        }
    }
}

/// True, too, where one of them is not known.
fn is_not_before(end_s: f64, start_s: f64) -> bool {
    start_s.is_nan() || end_s >= start_s
}

fn time(value: &Value) -> Option<f64> {
    number(value).filter(|time| (0.0..=MAX_TIME_S).contains(time))
}

/// The words, with NaN for times that cannot be read; none at all when one of them has no text.
fn words(utterance: &Value, odd: &mut Odd) -> Vec<RecognisedWord> {
    let Some(list) = optional(utterance, "words", odd, Value::as_array) else { return Vec::new() };
    let one = |word: &Value| {
        let (start, end) = (field(word, "start").and_then(time), field(word, "end").and_then(time));
        Some(RecognisedWord {
            word: field(word, "word").and_then(text)?.into_owned(),
            start_s: start.unwrap_or(f64::NAN),
            end_s: end.unwrap_or(f64::NAN),
            confidence: field(word, "confidence").and_then(fraction),
        })
    };
    let words: Option<Vec<_>> = list.iter().map(one).collect();
    words.unwrap_or_else(|| {
        odd.note("words.word");
        Vec::new()
    })
}

/// Gives a word without a time, or with one far from its utterance, that of its neighbours. False when nothing tells.
fn fill_times(words: &mut [RecognisedWord], start_s: f64, end_s: f64, odd: &mut Odd) -> bool {
    let is_far = |time: f64| time < start_s - WORD_SLACK_S || time > end_s + WORD_SLACK_S;
    for word in words.iter_mut() {
        for time in [&mut word.start_s, &mut word.end_s] {
            if time.is_nan() || is_far(*time) {
                odd.note("words.start");
                *time = f64::NAN;
            }
        }
    }
    let mut before = start_s;
    for n in 0..words.len() {
        let after = words[n + 1..].iter().map(|word| word.start_s).find(|time| !time.is_nan()).unwrap_or(end_s);
        let word = &mut words[n];
        if word.start_s.is_nan() {
            word.start_s = before;
        }
        if word.end_s.is_nan() || word.end_s < word.start_s {
            word.end_s = after.max(word.start_s);
        }
        before = word.end_s;
    }
    words.iter().all(|word| !word.start_s.is_nan() && !word.end_s.is_nan())
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn audio_is_refused_for_a_quota_or_for_another_reason() {
        let heard = |error: Value| {
            let message = json!({"type": "audio_chunk", "acknowledged": false, "error": error, "data": null});
            read(message.to_string().as_bytes()).unwrap().heard
        };
        for message in ["Quota exceeded", "you are over your QUOTA", "monthly quota: 0 h left"] {
            assert_eq!(heard(json!({"message": message})), RecogniserMessage::Refused(Refusal::Quota), "{message}");
        }
        for (error, why) in [(json!({"message": "bad frame"}), "bad frame"), (json!("too\nlong"), "toolong")] {
            assert_eq!(heard(error), RecogniserMessage::Refused(Refusal::Other(why.to_owned())));
        }
    }
}
