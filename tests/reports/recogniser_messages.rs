//! Recognisers whose messages are not quite as the schema has them: a null where a field may be missing, a number as
//! text, a field left out. The words arrive, or it is counted and warned of, and their audio becomes a gap.

use serde_json::{Value, json};

use crate::support::marked_speech::{Script, word_text};
use crate::support::virtual_recogniser::{Honest, Run, most_in_a_minute};
use stenocast::gladia::policy::SESSION_BURST;

/// Fields of each type of message; a number is a place in a list. Those after the bar decide nothing: no word may be
/// lost for them, however odd they are.
const FIELDS: &[(&str, &str, &str)] = &[
    (
        "transcript",
        "type data data.id data.is_final data.utterance data.utterance.text data.utterance.start data.utterance.end",
        "session_id created_at data.utterance.language data.utterance.confidence data.utterance.channel \
         data.utterance.words data.utterance.words.0 data.utterance.words.0.word data.utterance.words.0.start \
         data.utterance.words.0.end data.utterance.words.0.confidence data.utterance.words.1.end extra data.extra",
    ),
    (
        "audio_chunk",
        "type acknowledged error data data.byte_range data.byte_range.0 data.byte_range.1",
        "session_id created_at data.time_range data.time_range.0 data.time_range.1 extra data.extra",
    ),
    (
        "stop_recording",
        "",
        "type acknowledged error data data.recording_duration data.recording_left_to_process session_id created_at extra",
    ),
    ("end_session", "", "type session_id created_at data extra"),
];

/// What stands in a field's place; `\u{1}` is what stood there, as text. Some are no JSON.
const PLACES: &[&str] = &[
    "null",
    "true",
    "7",
    "-5",
    "1e300",
    "1e999",
    "NaN",
    "-Infinity",
    "\"\"",
    "\"xyzzy\"",
    "\"\\ud83d\"",
    "[]",
    "{}",
    "[null]",
    "\"\u{1}\"",
    "absent",
];

type Mangle = Box<dyn FnMut(Value) -> Vec<u8>>;

/// Which messages of the type are odd.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Which {
    All,
    /// Interims alone; for other types the first half.
    Some,
    /// One, in the middle: the second final, else the 20th.
    One,
}

fn script() -> Script {
    let mut script = Script::default();
    for words in [3, 4, 2] {
        script.say(700, words, 60);
    }
    script.rest(900);
    script
}

/// The message with `path` replaced by `place`.
fn changed(message: &Value, path: &str, place: &str) -> Vec<u8> {
    const MARK: &str = "\u{2}mark";
    let mut message = message.clone();
    let (parent, name) = path.rsplit_once('.').unwrap_or(("", path));
    let pointer = if parent.is_empty() { String::new() } else { format!("/{}", parent.replace('.', "/")) };
    let Some(parent) = message.pointer_mut(&pointer) else { return message.to_string().into_bytes() };
    let before = match parent {
        Value::Array(items) => {
            let n: usize = name.parse().expect("a place in a list");
            match items.get_mut(n) {
                Some(_) if place == "absent" => items.remove(n),
                Some(slot) => std::mem::replace(slot, json!(MARK)),
                None => Value::Null,
            }
        }
        Value::Object(fields) if place == "absent" => fields.remove(name).unwrap_or_default(),
        parent => std::mem::replace(&mut parent[name], json!(MARK)),
    };
    let before = before.as_str().map_or(before.to_string(), str::to_owned);
    let place = if place == "\"\u{1}\"" { json!(before).to_string() } else { place.to_owned() };
    message.to_string().replace(&json!(MARK).to_string(), &place).into_bytes()
}

fn run(kind: &str, path: &str, place: &str, which: Which) -> Run<Honest<Mangle>> {
    let mut seen = 0;
    let (kind, path, place) = (kind.to_owned(), path.to_owned(), place.to_owned());
    let mangle = move |message: Value| {
        if message["type"] != kind.as_str() {
            return message.to_string().into_bytes();
        }
        let is_final = message["data"]["is_final"] == true;
        seen += usize::from(is_final || kind != "transcript");
        let is_odd = match which {
            Which::All => true,
            Which::Some if kind == "transcript" => !is_final,
            Which::Some => seen < 40,
            Which::One if kind == "transcript" => is_final && seen == 2,
            Which::One => seen == 20,
        };
        if is_odd { changed(&message, &path, &place) } else { message.to_string().into_bytes() }
    };
    let mut run = Run::new(Honest::new(Box::new(mangle) as Mangle), &script());
    run.speak(u64::MAX);
    run.finish(60_000);
    run
}

/// What the schema allows, too, and says something else.
fn is_another_meaning(path: &str, place: &str) -> bool {
    let is_text = place.starts_with('"') && !matches!(place, "\"\"" | "\"\u{1}\"");
    (path == "data.is_final" && place == "true") || (path == "data.utterance.text" && is_text)
}

#[test]
fn every_field_of_a_transcript_may_be_odd() {
    assert!(fields_may_be_odd(&FIELDS[..1]) > 700, "most are heard whole");
}

#[test]
fn every_field_of_the_other_messages_may_be_odd() {
    assert!(fields_may_be_odd(&FIELDS[1..]) > 500, "most are heard whole");
}

/// Answers how many runs were heard whole.
fn fields_may_be_odd(fields: &[(&str, &str, &str)]) -> usize {
    let (script, mut faults, mut whole) = (script(), Vec::new(), 0);
    let expected: Vec<_> = (0..script.words.len() as u64).map(word_text).collect();
    for (kind, decisive, others) in fields {
        let decisive = decisive.split_whitespace().map(|path| (path, true));
        for (path, is_decisive) in decisive.chain(others.split_whitespace().map(|path| (path, false))) {
            for (place, which) in PLACES.iter().flat_map(|p| [Which::All, Which::Some, Which::One].map(|w| (p, w))) {
                if is_another_meaning(path, place) || (which == Which::Some && *kind != "transcript") {
                    continue;
                }
                let run = run(kind, path, place, which);
                let words = run.words();
                let what = format!("{kind} {path} = {place:?} ({which:?})");
                whole += usize::from(words == expected);
                let unaccounted = run.unaccounted(&script);
                if !unaccounted.is_empty() {
                    faults.push(format!("{what}: neither said once nor announced: {unaccounted:?}; said {words:?}"));
                }
                if words != expected && run.odd == 0 {
                    faults.push(format!("{what}: not counted; said {words:?}"));
                }
                if !is_decisive && words != expected {
                    faults.push(format!("{what}: said {words:?}, gaps {:?}", run.gaps()));
                }
                if most_in_a_minute(&run.sessions) > SESSION_BURST as usize + 2 {
                    faults.push(format!("{what}: {} sessions", run.sessions.len()));
                }
            }
        }
    }
    assert!(faults.is_empty(), "{} faults:\n{}", faults.len(), faults.join("\n"));
    whole
}

#[test]
fn one_final_that_cannot_be_read_costs_itself_alone() {
    let script = script();
    let run = run("transcript", "data.utterance", "null", Which::One);
    assert_eq!(run.words().len(), script.words.len(), "another session hears it again");
    assert_eq!((run.sessions.len(), run.gaps().len()), (2, 0));
}

#[test]
fn finals_without_ids_of_their_own_are_all_shown() {
    let script = script();
    for place in ["absent", "null", "\"\"", "7", "\"same\"", "[]"] {
        let run = run("transcript", "data.id", place, Which::All);
        assert_eq!(run.words().len(), script.words.len(), "{place}: {:?}", run.words());
        assert_eq!(run.sessions.len(), 1, "{place}");
    }
}

#[test]
fn finals_without_times_are_shown_once() {
    let script = script();
    for (path, place) in [("start", "null"), ("end", "null"), ("start", "\"x\""), ("end", "-1"), ("start", "1e300")] {
        let run = run("transcript", &format!("data.utterance.{path}"), place, Which::All);
        assert_eq!(run.words().len(), script.words.len(), "{path} {place}: {:?}", run.words());
        assert_eq!(run.gaps(), [], "{path} {place}");
    }
}
