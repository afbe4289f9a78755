//! Habits of live recognisers that people have met in others' clients: each input is one of them, and every word is said
//! once all the same, in a session or two.

use serde_json::{Value, json};

use crate::support::marked_speech::{Script, word_text};
use crate::support::virtual_recogniser::{Honest, Remote, Run, Say, acknowledgement, envelope};

/// What it does beside hearing well.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Habit {
    /// Messages that keep the connection alive, and no end of the session after it was told to stop.
    GreetsForEver(&'static str),
    /// The same with a guess that never becomes final.
    GuessesForEver,
    /// Speech events without end, and no final of what was open at the stop.
    NoFinalAtTheStop,
    /// Each final comes again under another id.
    SecondId,
    /// And again with capitals and full stops.
    FormattedAgain,
    /// The times of a resumed connection begin at zero again; so do its acknowledgements.
    CountsAnew,
    /// Only the texts' times begin again.
    TimesAnew,
    /// The words' times count from the beginning of their utterance.
    WordsOfTheirUtterance,
    /// Times are milliseconds.
    Milliseconds,
    /// Messages of a session that is over, and again `end_session`.
    TalksAfterTheEnd,
    /// An error for each frame, which ends nothing.
    Complains,
    /// An acknowledgement for bytes that it had acknowledged, again and again.
    AcknowledgesTwice,
    /// Texts before the acknowledgement of their audio.
    TextFirst,
    /// What is no text of a JSON message.
    Noise(&'static [u8]),
    /// Every utterance in a language of its own, named as people name it.
    Languages,
    /// Every final ends where the next begins, to the millisecond.
    Touching,
    /// Text with joiners, marks that turn the direction, and emoji.
    Scripts,
}

const HABITS: &[Habit] = &[
    Habit::GreetsForEver(r#"{"type":"ping"}"#),
    Habit::GreetsForEver(r#"{"type":"speech_start","data":{"time":1.0,"channel":0}}"#),
    Habit::GreetsForEver(r#"{"type":"error","data":{"message":"internal"}}"#),
    Habit::GreetsForEver("pong"),
    Habit::GuessesForEver,
    Habit::NoFinalAtTheStop,
    Habit::SecondId,
    Habit::FormattedAgain,
    Habit::CountsAnew,
    Habit::TimesAnew,
    Habit::WordsOfTheirUtterance,
    Habit::Milliseconds,
    Habit::TalksAfterTheEnd,
    Habit::Complains,
    Habit::AcknowledgesTwice,
    Habit::TextFirst,
    Habit::Noise(b"pong"),
    Habit::Noise(b""),
    Habit::Noise(b"<html><body>502 Bad Gateway</body></html>"),
    Habit::Noise(b"\xff\xfe\x00\x01"),
    Habit::Noise(b"[]"),
    Habit::Noise(b"null"),
    Habit::Noise(br#"{"type":null}"#),
    Habit::Noise(br#"{"type":"transcript"}"#),
    Habit::Languages,
    Habit::Touching,
    Habit::Scripts,
];
/// The connection is cut after so many frames, once, where the habit is about that.
const CUT_AT: usize = 22;

type Mangle = fn(Value) -> Vec<u8>;

struct Someone {
    habit: Habit,
    inner: Honest<Mangle>,
    frames: usize,
    /// Since the connection began, in bytes of the session's count.
    began: u64,
    is_stopped: bool,
}

impl Someone {
    fn new(habit: Habit) -> Self {
        let plain: Mangle = |message| message.to_string().into_bytes();
        Self { habit, inner: Honest::new(plain), frames: 0, began: 0, is_stopped: false }
    }

    fn heard(&self, session: usize) -> u64 {
        self.inner.ears.get(session).map_or(0, |ear| ear.heard)
    }

    fn change(&self, says: Vec<Say>) -> Vec<Say> {
        let mut all = Vec::new();
        for say in says {
            let Say::Text(text) = &say else {
                all.push(say);
                continue;
            };
            let mut message: Value = serde_json::from_slice(text).unwrap();
            let is_final = message["data"]["is_final"] == true;
            self.change_one(&mut message);
            let copy = message.clone();
            all.push(message.into());
            if is_final && matches!(self.habit, Habit::SecondId | Habit::FormattedAgain) {
                all.push(self.again(copy).into());
            }
        }
        all
    }

    fn again(&self, mut message: Value) -> Value {
        let id = message["data"]["id"].as_str().unwrap().to_owned();
        message["data"]["id"] = json!(format!("b{id}"));
        if self.habit == Habit::FormattedAgain {
            let text = message["data"]["utterance"]["text"].as_str().unwrap().trim().replace(' ', ", ");
            message["data"]["utterance"]["text"] = json!(format!("{}.", text.to_uppercase()));
        }
        message
    }

    fn change_one(&self, message: &mut Value) {
        let began_s = self.began as f64 / 32_000.0;
        let shift = |value: &mut Value, by: &dyn Fn(f64) -> f64| {
            if let Some(number) = value.as_f64() {
                *value = json!(by(number));
            }
        };
        let utterance = &mut message["data"]["utterance"];
        match self.habit {
            Habit::CountsAnew | Habit::TimesAnew | Habit::Milliseconds if utterance.is_object() => {
                let by = |t: f64| if self.habit == Habit::Milliseconds { t * 1000.0 } else { (t - began_s).max(0.0) };
                let words = utterance["words"].as_array().unwrap().len();
                for name in ["start", "end"] {
                    shift(&mut utterance[name], &by);
                    (0..words).for_each(|n| shift(&mut utterance["words"][n][name], &by));
                }
            }
            Habit::WordsOfTheirUtterance if utterance.is_object() => {
                let start = utterance["start"].as_f64().unwrap();
                for word in utterance["words"].as_array_mut().unwrap() {
                    shift(&mut word["start"], &|t| t - start);
                    shift(&mut word["end"], &|t| t - start);
                }
            }
            Habit::Languages if utterance.is_object() => {
                let names = [json!("English"), json!("en-US"), json!(null), json!(["en", "ru"]), json!("")];
                utterance["language"] = names[self.frames % names.len()].clone();
            }
            Habit::Scripts if utterance.is_object() => {
                let text = utterance["text"].as_str().unwrap().to_owned();
                utterance["text"] = json!(format!("{text} \u{202e}שלום\u{202c} 👩‍👩‍👧 \u{feff}ไทย"));
            }
            Habit::Touching if utterance.is_object() => {
                let end = utterance["end"].as_f64().unwrap();
                utterance["end"] = json!(end + 0.4);
            }
            Habit::CountsAnew if message["type"] == "audio_chunk" => {
                for n in 0..2 {
                    let at = message["data"]["byte_range"][n].as_u64().unwrap() - self.began;
                    message["data"]["byte_range"][n] = json!(at);
                    message["data"]["time_range"][n] = json!(at as f64 / 32_000.0);
                }
            }
            _ => {}
        }
    }
}

impl Remote for Someone {
    fn upgrade(&mut self, session: usize) -> Result<(), stenocast::gladia::policy::Fault> {
        self.began = self.heard(session);
        self.is_stopped = false;
        Ok(())
    }

    fn audio(&mut self, session: usize, pcm: &[u8]) -> Vec<Say> {
        self.frames += 1;
        let says = self.inner.audio(session, pcm);
        let mut says = self.change(says);
        let heard = self.heard(session);
        match self.habit {
            Habit::CountsAnew | Habit::TimesAnew if self.frames == CUT_AT => says.push(Say::Close(1011)),
            Habit::Complains => says.push(envelope("error", json!({ "data": { "message": "no model" } })).into()),
            Habit::AcknowledgesTwice => says.push(acknowledgement(heard - pcm.len() as u64, heard).into()),
            Habit::TextFirst => says.reverse(),
            Habit::Noise(bytes) => says.push(Say::Text(bytes.to_vec())),
            _ => {}
        }
        says
    }

    fn stop(&mut self, session: usize) -> Vec<Say> {
        self.is_stopped = true;
        let mut says = self.inner.stop(session);
        match self.habit {
            Habit::GreetsForEver(_) | Habit::GuessesForEver if session == 0 => says.truncate(says.len() - 2),
            Habit::NoFinalAtTheStop if session == 0 => says.truncate(1),
            Habit::TalksAfterTheEnd => {
                let again = says[says.len() - 2..].iter().map(|say| match say {
                    Say::Text(text) => Say::Text(text.clone()),
                    Say::Close(code) => Say::Close(*code),
                });
                let again: Vec<Say> = again.collect();
                let at = says.len() - 1;
                says.insert(at, envelope("post_transcript", json!({ "data": null })).into());
                says.extend(again);
            }
            _ => {}
        }
        self.change(says)
    }

    fn idle(&mut self, session: usize) -> Vec<Say> {
        let is_odd = self.is_stopped && session == 0;
        match self.habit {
            Habit::GreetsForEver(text) if is_odd => vec![Say::Text(text.as_bytes().to_vec())],
            Habit::NoFinalAtTheStop if is_odd => {
                vec![envelope("speech_end", json!({ "data": { "time": 1.0, "channel": 0 } })).into()]
            }
            Habit::GuessesForEver if is_odd => {
                let utterance = json!({ "text": " perhaps", "start": 0.1, "end": 0.2, "words": [] });
                let data = json!({ "id": "guess", "is_final": false, "utterance": utterance });
                vec![envelope("transcript", json!({ "data": data })).into()]
            }
            _ => Vec::new(),
        }
    }
}

fn script() -> Script {
    let mut script = Script::default();
    for words in [2, 3, 4, 2] {
        script.say(500, words, 60);
    }
    script
}

/// The words of the finals without what a habit puts between them.
fn words(run: &Run<Someone>) -> Vec<String> {
    let bare = |word: &String| word.trim_matches(|c: char| !c.is_ascii_alphanumeric()).to_lowercase();
    run.words().iter().map(bare).filter(|word| word.starts_with('w')).collect()
}

#[test]
fn every_word_is_said_once_whatever_the_habit() {
    let (script, mut faults) = (script(), Vec::new());
    let expected: Vec<_> = (0..script.words.len() as u64).map(word_text).collect();
    for habit in HABITS {
        let mut run = Run::new(Someone::new(*habit), &script);
        run.speak(u64::MAX);
        let took_ms = run.finish(180_000);
        let said = words(&run);
        if said != expected || !run.gaps().is_empty() {
            faults.push(format!("{habit:?}: said {said:?}, gaps {:?}", run.gaps()));
        }
        if run.sessions.len() > 3 || took_ms > 100_000 {
            faults.push(format!("{habit:?}: {} sessions, {took_ms} ms to the end", run.sessions.len()));
        }
    }
    assert!(faults.is_empty(), "{} habits:\n{}", faults.len(), faults.join("\n"));
}
