//! Translations that come late, early, twice, without a field, or of a line that nobody has seen.

use std::collections::HashSet;

use serde_json::{Value, json};
use stenocast::metrics::Metrics;
use stenocast::transcript::{TranscriptEvent, Translated};

use crate::support::marked_speech::{Script, word_text};
use crate::support::virtual_recogniser::{Honest, Remote, Run, Say, envelope};

const LANGUAGES: [&str; 2] = ["fr", "de"];

/// When the translations of a final come.
#[derive(Debug, Clone, Copy, PartialEq)]
enum When {
    After,
    Before,
    Twice,
    /// With the messages of the fifth frame after it.
    Late,
    /// Those of an utterance that was never said.
    OfNothing,
    /// The final itself does not come.
    WithoutFinal,
}

type Mangle = fn(Value) -> Vec<u8>;

struct Translating {
    inner: Honest<Mangle>,
    when: When,
    /// Makes a translation odd.
    change: fn(&mut Value),
    late: Vec<(usize, Say)>,
    /// Frames of each session, and where it is closed.
    frames: usize,
    closes_at: &'static [usize],
}

fn plain(message: Value) -> Vec<u8> {
    message.to_string().into_bytes()
}

impl Translating {
    fn new(when: When) -> Self {
        let inner = Honest::new(plain as Mangle);
        Self { inner, when, change: |_| {}, late: Vec::new(), frames: 0, closes_at: &[] }
    }

    fn translated(&mut self, says: Vec<Say>) -> Vec<Say> {
        let mut all = Vec::new();
        for say in says {
            let Say::Text(text) = &say else {
                all.extend(std::mem::take(&mut self.late).into_iter().map(|(_, late)| late));
                all.push(say);
                continue;
            };
            let message: Value = serde_json::from_slice(text).unwrap();
            if message["data"]["is_final"] != true {
                all.push(say);
                continue;
            }
            let of = if self.when == When::OfNothing { json!("77_7") } else { message["data"]["id"].clone() };
            let translations: Vec<Value> = LANGUAGES.iter().map(|to| self.translation(&message, &of, to)).collect();
            let again = translations.clone();
            let mut says = translations.into_iter().map(Say::from);
            match self.when {
                When::Before => all.extend(says.chain([say])),
                When::Late => {
                    all.push(say);
                    self.late.extend(says.map(|say| (self.frames + 5, say)));
                }
                When::WithoutFinal => all.extend(says.by_ref()),
                When::Twice => all.extend([say].into_iter().chain(says).chain(again.into_iter().map(Say::from))),
                When::After | When::OfNothing => all.extend([say].into_iter().chain(says)),
            }
        }
        all
    }

    fn translation(&self, message: &Value, of: &Value, to: &str) -> Value {
        let utterance = message["data"]["utterance"].clone();
        let mut translated = utterance.clone();
        (translated["text"], translated["language"]) = (json!(text_of(&utterance, to)), json!(to));
        translated["words"] = json!([{ "word": text_of(&utterance, to), "start": 0, "end": 1, "confidence": 1 }]);
        let data = json!({ "utterance_id": of, "utterance": utterance, "original_language": "en",
            "target_language": to, "translated_utterance": translated });
        let mut message = envelope("translation", json!({ "error": null, "data": data }));
        (self.change)(&mut message);
        message
    }
}

fn text_of(utterance: &Value, to: &str) -> String {
    format!(" {}", utterance["text"].as_str().unwrap().trim().replace('w', &format!("{to}-w")))
}

impl Remote for Translating {
    fn audio(&mut self, session: usize, pcm: &[u8]) -> Vec<Say> {
        self.frames += 1;
        let says = self.inner.audio(session, pcm);
        let mut says = self.translated(says);
        let (due, late) = std::mem::take(&mut self.late).into_iter().partition(|(at, _)| *at <= self.frames);
        self.late = late;
        let due: Vec<(usize, Say)> = due;
        says.extend(due.into_iter().map(|(_, say)| say));
        if self.closes_at.contains(&self.frames) {
            self.late.clear();
            says.push(Say::Close(4400));
        }
        says
    }

    fn stop(&mut self, session: usize) -> Vec<Say> {
        let says = self.inner.stop(session);
        self.translated(says)
    }
}

fn script() -> Script {
    let mut script = Script::default();
    for words in [2, 3, 1, 2] {
        script.say(600, words, 60);
    }
    script.rest(1500);
    script
}

fn run(remote: Translating) -> Run<Translating> {
    let mut run = Run::new(remote, &script());
    run.speak(u64::MAX);
    run.finish(60_000);
    run
}

fn translations(run: &Run<Translating>) -> Vec<Translated> {
    let some = run.items.iter().filter_map(|(_, item)| match item {
        TranscriptEvent::Translation(translated) => Some(translated.clone()),
        _ => None,
    });
    some.collect()
}

/// Each follows its final, has its times and its words.
fn assert_of_their_finals(run: &Run<Translating>, what: &str) {
    let mut finals = Vec::new();
    for (_, item) in &run.items {
        match item {
            TranscriptEvent::Final(utterance) => finals.push(utterance),
            TranscriptEvent::Translation(t) => {
                let of = finals.iter().find(|f| f.id == t.of).unwrap_or_else(|| panic!("{what}: {t:?} has no final"));
                assert_eq!((t.start_ms, t.end_ms), (of.start_ms, of.end_ms), "{what}");
                assert_eq!(t.text, of.text.replace('w', &format!("{}-w", t.language)), "{what}");
            }
            _ => {}
        }
    }
}

#[test]
fn translations_follow_their_finals_whenever_they_come() {
    for when in [When::After, When::Before, When::Late] {
        let run = run(Translating::new(when));
        assert_of_their_finals(&run, &format!("{when:?}"));
        let got: Vec<_> = translations(&run).into_iter().map(|t| (t.of, t.language)).collect();
        let ids = ["1.00_00000000", "1.00_00000001", "1.00_00000002", "1.00_00000003"];
        let expected: HashSet<_> =
            ids.iter().flat_map(|of| LANGUAGES.map(|to| ((*of).to_owned(), to.to_owned()))).collect();
        assert_eq!((got.len(), got.into_iter().collect::<HashSet<_>>()), (8, expected), "{when:?}");
    }
    // The room knows an id that it has had: `{of}:{language}`.
    assert_of_their_finals(&run(Translating::new(When::Twice)), "twice");
}

#[test]
fn what_another_session_hears_again_is_not_translated_twice() {
    for closes_at in [&[14][..], &[20, 26], &[11, 22, 33], &[30]] {
        let run = run(Translating { closes_at, ..Translating::new(When::After) });
        assert!(run.sessions.len() > 1, "{closes_at:?}");
        let expected: Vec<_> = (0..script().words.len() as u64).map(word_text).collect();
        assert_eq!(run.words(), expected, "{closes_at:?}");
        let got: Vec<_> = translations(&run).into_iter().map(|t| (t.of, t.language)).collect();
        assert_eq!(got.iter().collect::<HashSet<_>>().len(), got.len(), "{closes_at:?}: {got:?}");
        assert_eq!(got.len() % 2, 0, "{closes_at:?}: {got:?}");
    }
}

#[test]
fn those_of_lines_that_nobody_has_seen_are_dropped_and_counted() {
    for when in [When::OfNothing, When::WithoutFinal] {
        let mut run = run(Translating::new(when));
        assert_eq!(translations(&run), [], "{when:?}");
        let metrics = Metrics::new();
        run.ledger.report(&metrics);
        let dropped = metrics.translations_total.with_label_values(&["dropped"]).get();
        assert!(dropped >= 8, "{when:?}: {dropped}");
    }
}

#[test]
fn those_that_a_broken_session_owes_are_counted() {
    let remote = Translating { closes_at: &[14], ..Translating::new(When::Late) };
    let mut run = Run::new(remote, &script());
    run.ledger.expect_translations(&LANGUAGES.map(str::to_owned));
    run.speak(u64::MAX);
    run.finish(60_000);
    let metrics = Metrics::new();
    run.ledger.report(&metrics);
    let missing = metrics.translations_total.with_label_values(&["missing"]).get();
    let finals = run.items.iter().filter(|(_, item)| matches!(item, TranscriptEvent::Final(_))).count();
    assert_eq!(translations(&run).len() as u64 + missing, 2 * finals as u64);
    assert!(missing > 0, "the first final's were on their way");
}

#[test]
fn none_is_owed_in_the_language_of_the_line_or_after_a_failure() {
    let failure: fn(&mut Value) = |m| (m["data"], m["error"]) = (Value::Null, json!({ "message": "no" }));
    for (targets, change, expected) in [
        (&["fr", "de", "en"][..], (|_: &mut Value| {}) as fn(&mut Value), 0),
        (&["fr", "de"], failure, 0),
        (&["fr", "de", "ru"], |_| {}, 4),
    ] {
        let mut run = Run::new(Translating { change, ..Translating::new(When::After) }, &script());
        run.ledger.expect_translations(&targets.iter().map(|to| (*to).to_owned()).collect::<Vec<_>>());
        run.speak(u64::MAX);
        run.finish(60_000);
        let metrics = Metrics::new();
        run.ledger.report(&metrics);
        let missing = metrics.translations_total.with_label_values(&["missing"]).get();
        assert_eq!(missing, expected, "{targets:?}");
    }
}

#[test]
fn an_odd_field_costs_a_translation_at_most() {
    type Change = fn(&mut Value);
    let changes: [(&str, Change, usize); 9] = [
        ("no target language: that of the text", |m| m["data"]["target_language"] = Value::Null, 8),
        ("no utterance", |m| m["data"]["utterance"] = Value::Null, 8),
        ("no id: the times", |m| m["data"]["utterance_id"] = Value::Null, 8),
        ("no text: the words", |m| m["data"]["translated_utterance"]["text"] = Value::Null, 8),
        ("times as text", |m| m["data"]["utterance"]["start"] = json!("x"), 8),
        ("no original language", |m| m["data"]["original_language"] = json!(7), 8),
        (
            "neither language",
            |m| {
                (m["data"]["target_language"], m["data"]["translated_utterance"]["language"]) = (json!([]), json!(""));
            },
            0,
        ),
        ("a failure", |m| (m["data"], m["error"]) = (Value::Null, json!({ "message": "no" })), 0),
        ("nothing at all", |m| m["data"] = json!("xyzzy"), 0),
    ];
    for (what, change, expected) in changes {
        let run = run(Translating { change, ..Translating::new(When::After) });
        assert_eq!(translations(&run).len(), expected, "{what}");
        assert_eq!(run.words().len(), script().words.len(), "{what}: no line is lost for its translation");
        assert_eq!((run.sessions.len(), run.gaps()), (1, vec![]), "{what}");
    }
}
