//! The bridge's machine and ledger in virtual time against a recogniser that a test writes as a [`Remote`]: no socket and
//! no sleep, but the bytes of its messages. A step is 100 ms; a request and a message take one each.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use serde_json::{Value, json};
use stenocast::audio::PcmChunk;
use stenocast::config::Secret;
use stenocast::gladia::heard;
use stenocast::gladia::ledger::{Ledger, Limits, MemorySpool, ReplayBudget};
use stenocast::gladia::machine::{Input, Outgoing, Phase, RecogniserMessage, SttMachine};
use stenocast::gladia::policy::{Fault, Timing};
use stenocast::metrics::Metrics;
use stenocast::transcript::TranscriptEvent;
use tokio::time::Instant;

use super::marked_speech::{BYTES_PER_MS, Ear, Said, Script, word_ms, word_text};

pub const STEP_MS: u64 = 100;
const FRAME_BYTES: usize = (STEP_MS * BYTES_PER_MS) as usize;

/// What a recogniser does on its socket.
pub enum Say {
    Text(Vec<u8>),
    Close(u16),
}

impl From<Value> for Say {
    fn from(message: Value) -> Self {
        Self::Text(message.to_string().into_bytes())
    }
}

/// A recogniser; sessions count from 0.
pub trait Remote {
    fn post(&mut self) -> Result<(), Fault> {
        Ok(())
    }

    fn upgrade(&mut self, _session: usize) -> Result<(), Fault> {
        Ok(())
    }

    fn audio(&mut self, session: usize, pcm: &[u8]) -> Vec<Say>;

    fn stop(&mut self, session: usize) -> Vec<Say>;

    /// What it says by itself, once a step while it is connected to.
    fn idle(&mut self, _session: usize) -> Vec<Say> {
        Vec::new()
    }
}

/// See the module. Times are ms since the start.
pub struct Run<R> {
    pub remote: R,
    pub ledger: Ledger,
    pub machine: SttMachine,
    pub now_ms: u64,
    pub items: Vec<(u64, TranscriptEvent)>,
    pub posts: Vec<u64>,
    pub sessions: Vec<u64>,
    pub connections: Vec<u64>,
    /// Messages that were odd or no JSON.
    pub odd: usize,
    start: Instant,
    revision: u64,
    due: Vec<(usize, Say)>,
    /// Connection in use; 0 is none.
    connection: usize,
    pcm: Vec<u8>,
    pushed: usize,
}

impl<R: Remote> Run<R> {
    pub fn new(remote: R, script: &Script) -> Self {
        let limits = Limits { window: Duration::from_secs(600), max_utterance: Duration::from_secs(15) };
        let budget = Arc::new(ReplayBudget::new(u64::MAX));
        let ledger = Ledger::new(limits, Box::<MemorySpool>::default(), budget);
        let (start, long) = (Instant::now(), Duration::from_secs(10_000));
        let metrics = Arc::new(Metrics::new());
        let machine = SttMachine::new(Timing::default(), Duration::from_secs(15), long, metrics, &ledger, start);
        let mut pcm = script.pcm();
        pcm.resize(pcm.len().next_multiple_of(FRAME_BYTES), 0);
        Self {
            remote,
            ledger,
            machine,
            now_ms: 0,
            items: Vec::new(),
            posts: Vec::new(),
            sessions: Vec::new(),
            connections: Vec::new(),
            odd: 0,
            start,
            revision: 0,
            due: Vec::new(),
            connection: 0,
            pcm,
            pushed: 0,
        }
    }

    /// Publishes in real time until `until_ms`, or until all is said.
    pub fn speak(&mut self, until_ms: u64) {
        while self.pushed < self.pcm.len() && self.now_ms < until_ms {
            let pcm = Bytes::copy_from_slice(&self.pcm[self.pushed..self.pushed + FRAME_BYTES]);
            let start_ms = self.pushed as u64 / BYTES_PER_MS;
            self.pushed += FRAME_BYTES;
            self.now_ms += STEP_MS;
            let arrived = self.now();
            self.ledger.push(arrived, PcmChunk { pcm, start_ms, inserted: false, arrived });
            self.step();
        }
    }

    /// Lets time pass.
    pub fn wait(&mut self, ms: u64) {
        for _ in 0..ms / STEP_MS {
            self.now_ms += STEP_MS;
            self.step();
        }
    }

    /// Ends the stream; answers after how long all of it was home.
    pub fn finish(&mut self, most_ms: u64) -> u64 {
        let (began_ms, deadline) = (self.now_ms, self.now() + Duration::from_millis(most_ms));
        self.input(Input::Finish { deadline });
        while self.machine.phase() != Phase::Done {
            assert!(self.now_ms <= began_ms + most_ms + STEP_MS, "it does not end: {:?}", self.machine.phase());
            self.wait(STEP_MS);
        }
        self.deliver();
        self.now_ms - began_ms
    }

    fn now(&self) -> Instant {
        self.start + Duration::from_millis(self.now_ms)
    }

    fn input(&mut self, input: Input) {
        let now = self.now();
        self.machine.handle(&mut self.ledger, now, input);
    }

    fn step(&mut self) {
        let due = std::mem::take(&mut self.due);
        self.input(Input::Tick);
        for (connection, say) in due {
            if connection == self.connection {
                self.hear(say);
            }
            self.leave();
        }
        self.follow();
        self.send();
        self.deliver();
        assert_eq!(self.ledger.check(), Ok(()));
    }

    fn hear(&mut self, say: Say) {
        match say {
            Say::Text(text) => match heard::read(&text) {
                Ok(reading) => {
                    self.odd += usize::from(!reading.odd.fields().is_empty() || reading.kind == "unknown");
                    self.input(Input::Heard(reading.heard));
                }
                Err(_) => {
                    self.odd += 1;
                    self.input(Input::Heard(RecogniserMessage::Other));
                }
            },
            Say::Close(code) => {
                self.connection = 0;
                self.input(Input::Disconnected(Fault::Closed { code }));
            }
        }
    }

    fn leave(&mut self) {
        if !self.machine.is_connected() {
            self.connection = 0;
        }
    }

    /// One request a step.
    fn follow(&mut self) {
        self.leave();
        while self.machine.revision() != self.revision {
            self.revision = self.machine.revision();
            match self.machine.phase() {
                Phase::AwaitingEndpoint => self.input(Input::EndpointReady),
                Phase::AwaitingSlot => self.input(Input::SlotGranted),
                Phase::Opening => return self.open(),
                Phase::Connecting => return self.connect(),
                _ => {}
            }
        }
    }

    fn open(&mut self) {
        self.posts.push(self.now_ms);
        let answer = self.remote.post().map(|()| {
            let n = self.sessions.len();
            self.sessions.push(self.now_ms);
            (format!("session {n}"), Secret::new(n.to_string()))
        });
        self.input(Input::Opened(answer));
    }

    fn connect(&mut self) {
        self.connections.push(self.now_ms);
        let session = self.session();
        let answer = self.remote.upgrade(session);
        if answer.is_ok() {
            self.connection = self.connections.len();
        }
        self.input(Input::Connected(answer));
    }

    fn session(&self) -> usize {
        let url = self.ledger.session().expect("a session is in use").url;
        url.expose().parse().expect("its number")
    }

    fn send(&mut self) {
        let now = self.now();
        if self.connection != 0 {
            let session = self.session();
            let says = self.remote.idle(session);
            self.due.extend(says.into_iter().map(|say| (self.connection, say)));
        }
        while self.connection != 0 {
            let Some(out) = self.machine.outgoing(&mut self.ledger, now) else { return };
            self.machine.sent(&mut self.ledger, now, &out);
            let session = self.session();
            let says = match &out {
                Outgoing::Audio(pcm) => self.remote.audio(session, pcm),
                Outgoing::Stop => self.remote.stop(session),
                Outgoing::KeepAlive => Vec::new(),
            };
            self.due.extend(says.into_iter().map(|say| (self.connection, say)));
        }
    }

    fn deliver(&mut self) {
        while let Some(item) = self.ledger.delivered() {
            if let TranscriptEvent::Final(utterance) = &item {
                self.ledger.published(&utterance.id);
            }
            self.items.push((self.now_ms, item));
        }
    }

    /// The words of all finals, in their order.
    pub fn words(&self) -> Vec<String> {
        let finals = self.items.iter().filter_map(|(_, item)| match item {
            TranscriptEvent::Final(utterance) => Some(utterance.text.as_str()),
            _ => None,
        });
        finals.flat_map(str::split_whitespace).map(str::to_owned).collect()
    }

    pub fn gaps(&self) -> Vec<(u64, u64)> {
        let gaps = self.items.iter().filter_map(|(_, item)| match item {
            TranscriptEvent::Gap { start_ms, end_ms, .. } => Some((*start_ms, *end_ms)),
            _ => None,
        });
        gaps.collect()
    }

    pub fn statuses(&self) -> Vec<(u64, String)> {
        let told = self.items.iter().filter_map(|(at, item)| match item {
            TranscriptEvent::Status { status, reason, .. } => {
                Some((*at, format!("{}:{}", status.as_str(), reason.as_deref().unwrap_or(""))))
            }
            _ => None,
        });
        told.collect()
    }

    /// Words of the script that are neither in a final nor in a gap, or in two finals.
    pub fn unaccounted(&self, script: &Script) -> Vec<String> {
        let (words, gaps) = (self.words(), self.gaps());
        let is_lost = |at: u64| gaps.iter().any(|(start, end)| (*start..*end).contains(&at));
        let wrong = script.words.iter().filter(|(at, n)| {
            let said = words.iter().filter(|word| **word == word_text(*n)).count();
            said > 1 || (said == 0 && !is_lost(at + word_ms(*n) / 2))
        });
        wrong.map(|(at, n)| format!("{} at {at} ms", word_text(*n))).collect()
    }
}

/// Most of `times` within a minute.
pub fn most_in_a_minute(times: &[u64]) -> usize {
    let within = |from: &u64| times.iter().filter(|at| (*from..from + 60_000).contains(*at)).count();
    times.iter().map(within).max().unwrap_or(0)
}

/// A recogniser that hears marked speech and does what it should, except that each message passes `mangle`.
pub struct Honest<M> {
    pub ears: Vec<Ear>,
    pub mangle: M,
}

impl<M: FnMut(Value) -> Vec<u8>> Honest<M> {
    pub fn new(mangle: M) -> Self {
        Self { ears: Vec::new(), mangle }
    }

    fn ear(&mut self, session: usize) -> &mut Ear {
        if self.ears.len() <= session {
            self.ears.resize(session + 1, Ear::default());
        }
        &mut self.ears[session]
    }

    fn say(&mut self, messages: Vec<Value>) -> Vec<Say> {
        messages.into_iter().map(|message| Say::Text((self.mangle)(message))).collect()
    }
}

impl<M: FnMut(Value) -> Vec<u8>> Remote for Honest<M> {
    fn audio(&mut self, session: usize, pcm: &[u8]) -> Vec<Say> {
        let ear = self.ear(session);
        let start = ear.heard;
        let said = ear.hear(pcm);
        let mut messages = vec![acknowledgement(start, ear.heard)];
        messages.extend(said.iter().map(transcript));
        self.say(messages)
    }

    fn stop(&mut self, session: usize) -> Vec<Say> {
        let said = self.ear(session).stop();
        let mut messages = vec![stop_acknowledgement()];
        messages.extend(said.iter().map(transcript));
        messages.push(envelope("end_session", json!({})));
        let mut says = self.say(messages);
        says.push(Say::Close(1000));
        says
    }
}

pub fn envelope(kind: &str, fields: Value) -> Value {
    let mut message = json!({ "type": kind, "session_id": "4a39145c", "created_at": "2026-11-22T11:46:27.201Z" });
    for (name, value) in fields.as_object().expect("an object") {
        message[name] = value.clone();
    }
    message
}

pub fn acknowledgement(start: u64, end: u64) -> Value {
    let data = json!({ "byte_range": [start, end], "time_range": [seconds(start), seconds(end)] });
    envelope("audio_chunk", json!({ "acknowledged": true, "error": null, "data": data }))
}

pub fn stop_acknowledgement() -> Value {
    let data = json!({ "recording_duration": 1.5, "recording_left_to_process": 0.5 });
    envelope("stop_recording", json!({ "acknowledged": true, "error": null, "data": data }))
}

pub fn transcript(said: &Said) -> Value {
    let words = said.words.iter().map(|w| {
        let word = format!(" {}", word_text(w.n));
        json!({ "word": word, "start": seconds(w.start), "end": seconds(w.end), "confidence": 0.9 })
    });
    let words: Vec<_> = words.collect();
    let (first, last) = (said.words[0], said.words[said.words.len() - 1]);
    let utterance = json!({
        "text": said.text(), "start": seconds(first.start), "end": seconds(last.end), "language": "en",
        "confidence": 0.9, "channel": 0, "words": words,
    });
    envelope("transcript", json!({ "data": { "id": said.id, "is_final": said.is_final, "utterance": utterance } }))
}

pub fn seconds(bytes: u64) -> f64 {
    bytes as f64 / (BYTES_PER_MS * 1000) as f64
}
