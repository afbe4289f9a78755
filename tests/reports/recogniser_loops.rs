//! Recognisers that would have us go round and round: each round opens a session, which is billed, or fills the log. Every
//! such loop has a bound (`gladia::policy`), and what nobody says is a gap in the end.

use serde_json::{Value, json};

use crate::support::marked_speech::{Ear, Script, word_text};
use crate::support::virtual_recogniser::{
    Honest, Remote, Run, Say, acknowledgement, envelope, most_in_a_minute, seconds, stop_acknowledgement, transcript,
};
use stenocast::gladia::policy::{
    CONNECTION_BURST, CONNECTION_INTERVAL_MS, FINAL_BURST, FINAL_INTERVAL_MS, Fault, SESSION_BURST,
    SESSION_INTERVAL_MS, STATUS_BURST, STATUS_INTERVAL_MS,
};

/// What a recogniser does wrong.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Trick {
    /// An interim for each piece of speech, and never a final; it ends its session properly.
    OnlyGuesses,
    /// The same, all the time.
    EndlessGuesses,
    /// It acknowledges, says nothing, and ends properly.
    Silent,
    /// It says text and never acknowledges.
    NoAcknowledgements,
    /// Each POST is taken, and the upgrade refused.
    RefusesUpgrades(u16),
    /// Every POST is answered so.
    RefusesPosts(u16),
    /// It closes so many bytes after the beginning of a connection, with this code.
    Closes(u64, u16),
    /// It says `end_session` unasked, so many bytes after the beginning.
    Ends(u64),
    /// A final for every frame, of nothing, each with an id of its own.
    FinalsForNothing,
    /// Every final has the same id and time.
    Repeats,
    /// The times of its finals are long ago, or far away.
    Times(f64),
    /// A thousand messages for every frame.
    Floods,
    /// Every final is unreadable.
    Gibberish,
}

struct Trickster {
    trick: Trick,
    sessions: Vec<(Ear, u64)>,
    count: u64,
}

impl Trickster {
    fn say(&mut self, session: usize, said: Vec<crate::support::marked_speech::Said>) -> Vec<Say> {
        let mut says = Vec::new();
        for said in said {
            let mut message = transcript(&said);
            match self.trick {
                Trick::OnlyGuesses | Trick::EndlessGuesses if said.is_final => continue,
                Trick::Silent | Trick::Floods => continue,
                Trick::Gibberish if said.is_final => message["data"]["utterance"] = Value::Null,
                Trick::Repeats => {
                    message["data"]["id"] = json!("00_00000000");
                    (message["data"]["utterance"]["start"], message["data"]["utterance"]["end"]) = (json!(0), json!(1));
                    message["data"]["utterance"]["words"] = json!([]);
                }
                Trick::Times(shift_s) => {
                    for name in ["start", "end"] {
                        message["data"]["utterance"][name] = json!(shift_s);
                    }
                    message["data"]["utterance"]["words"] = json!([]);
                }
                _ => {}
            }
            says.push(message.into());
        }
        let _ = session;
        says
    }
}

impl Remote for Trickster {
    fn post(&mut self) -> Result<(), Fault> {
        match self.trick {
            Trick::RefusesPosts(status) => Err(Fault::from_status(status, None, String::new())),
            _ => Ok(()),
        }
    }

    fn upgrade(&mut self, session: usize) -> Result<(), Fault> {
        self.sessions.resize(self.sessions.len().max(session + 1), (Ear::default(), 0));
        self.sessions[session].1 = 0;
        match self.trick {
            Trick::RefusesUpgrades(status) => Err(Fault::from_upgrade(status)),
            _ => Ok(()),
        }
    }

    fn audio(&mut self, session: usize, pcm: &[u8]) -> Vec<Say> {
        let (ear, received) = &mut self.sessions[session];
        let start = ear.heard;
        let said = ear.hear(pcm);
        let end = ear.heard;
        *received += pcm.len() as u64;
        let received = *received;
        let mut says = match self.trick {
            Trick::NoAcknowledgements => Vec::new(),
            _ => vec![acknowledgement(start, end).into()],
        };
        says.extend(self.say(session, said));
        self.count += 1;
        match self.trick {
            Trick::Closes(after, code) if received >= after => says.push(Say::Close(code)),
            Trick::Ends(after) if received >= after => {
                says.extend([envelope("end_session", json!({})).into(), Say::Close(1000)]);
            }
            Trick::EndlessGuesses => says.push(line(&format!("g{}", self.count / 20), false, end).into()),
            Trick::FinalsForNothing => says.extend((0..50).map(|n| {
                let id = format!("n{}.{n}", self.count);
                Say::from(line(&id, true, end))
            })),
            Trick::Floods => says.extend((0..1000).map(|n| line(&format!("f{n}"), false, end).into())),
            _ => {}
        }
        says
    }

    fn stop(&mut self, session: usize) -> Vec<Say> {
        let said = self.sessions[session].0.stop();
        let mut says = vec![stop_acknowledgement().into()];
        says.extend(self.say(session, said));
        says.extend([envelope("end_session", json!({})).into(), Say::Close(1000)]);
        says
    }
}

/// Something that nobody said, at the newest moment.
fn line(id: &str, is_final: bool, at: u64) -> Value {
    let utterance = json!({ "text": " nothing", "start": seconds(at), "end": seconds(at), "language": "en",
        "confidence": 1, "channel": 0, "words": [] });
    envelope("transcript", json!({ "data": { "id": id, "is_final": is_final, "utterance": utterance } }))
}

const TRICKS: &[Trick] = &[
    Trick::OnlyGuesses,
    Trick::EndlessGuesses,
    Trick::Silent,
    Trick::NoAcknowledgements,
    Trick::RefusesUpgrades(403),
    Trick::RefusesUpgrades(404),
    Trick::RefusesUpgrades(429),
    Trick::RefusesUpgrades(500),
    Trick::RefusesPosts(302),
    Trick::RefusesPosts(400),
    Trick::RefusesPosts(401),
    Trick::RefusesPosts(429),
    Trick::RefusesPosts(500),
    Trick::Closes(0, 1000),
    Trick::Closes(0, 1001),
    Trick::Closes(0, 1011),
    Trick::Closes(0, 4400),
    Trick::Closes(0, 4500),
    Trick::Closes(32_000, 1000),
    Trick::Closes(32_000, 1011),
    Trick::Closes(32_000, 4408),
    Trick::Closes(200_000, 4400),
    Trick::Closes(1_200_000, 4400),
    Trick::Ends(0),
    Trick::Ends(32_000),
    Trick::Ends(200_000),
    Trick::FinalsForNothing,
    Trick::Repeats,
    Trick::Times(0.0),
    Trick::Times(1e5),
    Trick::Times(1e300),
    Trick::Floods,
    Trick::Gibberish,
];

/// Two minutes: two words every four seconds.
fn script() -> Script {
    let mut script = Script::default();
    for _ in 0..30 {
        script.say(3200, 2, 100);
    }
    script.rest(1000);
    script
}

fn run(trick: Trick) -> Run<Trickster> {
    let mut run = Run::new(Trickster { trick, sessions: Vec::new(), count: 0 }, &script());
    run.speak(u64::MAX);
    run.finish(15_000);
    run
}

fn most(burst: u32, interval_ms: u64) -> usize {
    burst as usize + (60_000 / interval_ms) as usize
}

#[test]
fn no_recogniser_gets_more_than_its_budget() {
    let mut faults = Vec::new();
    for trick in TRICKS {
        let run = run(*trick);
        let statuses: Vec<u64> = run.statuses().iter().map(|(at, _)| *at).collect();
        let bounds = [
            ("sessions", &run.sessions, most(SESSION_BURST, SESSION_INTERVAL_MS)),
            ("POSTs", &run.posts, 40),
            ("connections", &run.connections, most(CONNECTION_BURST, CONNECTION_INTERVAL_MS)),
            ("statuses", &statuses, most(STATUS_BURST, STATUS_INTERVAL_MS)),
        ];
        for (what, times, bound) in bounds {
            let most = most_in_a_minute(times);
            if most > bound {
                faults.push(format!("{trick:?}: {most} {what} in a minute, allowed are {bound}"));
            }
        }
        let durable: Vec<u64> = run.items.iter().filter(|(_, item)| is_durable(item)).map(|(at, _)| *at).collect();
        if most_in_a_minute(&durable) > most(FINAL_BURST, FINAL_INTERVAL_MS) + 100 {
            faults.push(format!("{trick:?}: {} durable entries", durable.len()));
        }
        let account = run.ledger.account();
        if (account.received_ms, account.in_flight_ms) != (script().length_ms.next_multiple_of(100), 0) {
            faults.push(format!("{trick:?}: {account:?}"));
        }
    }
    assert!(faults.is_empty(), "{}", faults.join("\n"));
}

fn is_durable(item: &stenocast::transcript::TranscriptEvent) -> bool {
    use stenocast::transcript::TranscriptEvent;
    !matches!(item, TranscriptEvent::Interim(_) | TranscriptEvent::Retracted { .. })
}

#[test]
fn what_nobody_says_in_the_end_is_a_gap() {
    let nothing = [
        Trick::OnlyGuesses,
        Trick::EndlessGuesses,
        Trick::Silent,
        Trick::RefusesUpgrades(403),
        Trick::RefusesPosts(429),
        Trick::Gibberish,
        Trick::Floods,
    ];
    for trick in nothing {
        let run = run(trick);
        assert_eq!(run.unaccounted(&script()), [] as [&str; 0], "{trick:?} {:?}", run.gaps());
        assert_eq!(run.words().len(), 0, "{trick:?}");
    }
}

/// The end of a stream is what cost 665 sessions in 30 s.
#[test]
fn a_recogniser_that_only_guesses_gets_two_sessions_at_the_end() {
    let mut script = Script::default();
    script.say(700, 3, 60);
    script.rest(300);
    let mut run = Run::new(Trickster { trick: Trick::OnlyGuesses, sessions: Vec::new(), count: 0 }, &script);
    run.speak(u64::MAX);
    run.finish(15_000);
    assert_eq!(run.sessions.len(), 2);
    assert_eq!(run.unaccounted(&script), [] as [&str; 0], "{:?}", run.gaps());
    let guesses = run.items.iter().filter(|(_, item)| !is_durable(item)).count();
    assert!(guesses <= 8, "viewers see {guesses} guesses");
}

#[test]
fn a_spent_budget_is_told_and_a_recogniser_that_recovers_loses_nothing() {
    let script = script();
    let mut run = Run::new(
        Recovers { inner: Honest::new(|m: Value| m.to_string().into_bytes()), frames: Vec::new(), is_well: false },
        &script,
    );
    run.speak(80_000);
    let statuses = run.statuses();
    assert!(statuses.iter().any(|(_, status)| status == "degraded:session_budget"), "{statuses:?}");
    let before = run.sessions.len();
    run.remote.is_well = true;
    run.speak(u64::MAX);
    run.finish(60_000);
    let expected: Vec<_> = (0..script.words.len() as u64).map(word_text).collect();
    assert_eq!((run.words(), run.gaps()), (expected, vec![]));
    assert!(run.sessions.len() <= before + 1);
    assert!(run.statuses().last().is_some_and(|(_, status)| status.starts_with("live")), "{:?}", run.statuses());
}

/// Ends every session after six seconds, until it is well.
struct Recovers<M> {
    inner: Honest<M>,
    /// Of each session.
    frames: Vec<u32>,
    is_well: bool,
}

impl<M: FnMut(Value) -> Vec<u8>> Remote for Recovers<M> {
    fn audio(&mut self, session: usize, pcm: &[u8]) -> Vec<Say> {
        let mut says = self.inner.audio(session, pcm);
        self.frames.resize(self.frames.len().max(session + 1), 0);
        self.frames[session] += 1;
        if !self.is_well && self.frames[session] > 60 {
            says = vec![Say::Close(4400)];
        }
        says
    }

    fn stop(&mut self, session: usize) -> Vec<Say> {
        self.inner.stop(session)
    }
}
