//! Promise 1 in virtual time: the bridge's machine and ledger against a recogniser that drops, forgets, repeats, delays
//! and refuses, over many seeds (`STENOCAST_SEEDS` says how many). Every word that was spoken is final exactly once, in
//! order, at its time; no byte is lost or counted twice. A failing seed replays exactly, with every event of it on
//! request: `STENOCAST_SEED`=<n> `STENOCAST_TRACE=1` cargo test --test `bridge_simulation` `every_word` -- --nocapture

mod support;

use std::cmp::Reverse;
use std::collections::{BinaryHeap, HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use stenocast::audio::PcmChunk;
use stenocast::config::Secret;
use stenocast::gladia::heard;
use stenocast::gladia::ledger::{Ledger, Limits, MemorySpool, Recognised, ReplayBudget};
use stenocast::gladia::machine::{Input, Outgoing, Phase, RecogniserMessage, SttMachine};
use stenocast::gladia::phase::TranslationHeard;
use stenocast::gladia::policy::{CONNECTION_BURST, CONNECTION_INTERVAL_MS, Fault, SESSION_BURST, Timing};
use stenocast::metrics::Metrics;
use stenocast::transcript::{TranscriptEvent, Utterance};
use support::marked_speech::{BYTES_PER_MS, Ear, Said, Script, word_ms, word_text};
use support::virtual_recogniser;
use tokio::time::Instant;

/// Where in time something may be, in ms of the session clock.
type Span = std::ops::RangeInclusive<u64>;

const CHUNK_MS: u64 = 100;
const DEFAULT_SEEDS: u64 = 400;
/// Fields of a transcript that may be null without a word less.
const NULLS: [&str; 8] = [
    "/data/utterance/language",
    "/data/utterance/confidence",
    "/data/utterance/channel",
    "/data/utterance/start",
    "/data/utterance/end",
    "/data/utterance/text",
    "/data/utterance/words/0/start",
    "/data/utterance/words/0/confidence",
];
const TRANSLATED_TO: &str = "fr";

/// What may go wrong in a run, each with its chance.
#[derive(Debug, Clone, Copy, Default)]
struct Faults {
    /// Per second of connection: it is cut, and both sides notice.
    cut: f64,
    /// Per second: it hangs, and only a time-out notices.
    hang: f64,
    /// Per second: closed by the recogniser with a code that ends the session.
    close_4xx: f64,
    /// Per connect: 403, the session is gone.
    gone: f64,
    /// Per connect: refused, or 503.
    unreachable: f64,
    /// Per POST: 429, 402 or 503.
    post: f64,
    /// Per cut: acknowledged audio without a final is forgotten.
    amnesia: f64,
    /// Per cut: messages that were due while nobody listened are lost (else they come after the resume).
    mute: f64,
    /// Per final: it comes twice.
    twice: f64,
    /// Per final: it comes after a later one.
    swapped: f64,
    /// Per connection: everything that the recogniser says comes up to 5 s late.
    slow: f64,
    /// Per second: the session acknowledges on, says nothing any more, and ends properly when it is told to. (Of two
    /// sessions in a row at most one: the second one that has nothing to say is believed.)
    stuck: f64,
    /// Per second: the bridge dies and a new one is started on the same ledger.
    panic: f64,
    /// Session length before a planned rollover.
    session_max_s: u64,
    /// Per second: the session ends by itself, properly, and says nothing more of what it has heard.
    quits: f64,
    /// Per second: nothing more is acknowledged on this connection, while text goes on.
    unacknowledged: f64,
    /// Per text: one of its fields is null.
    null: f64,
    /// Per final: it cannot be read, but for its times; the next session's can.
    unreadable: f64,
    /// Per final: it comes again under another id.
    renamed: f64,
    /// Per POST: refused by key, request or rate for a long time.
    refused: f64,
    /// Per session: it guesses and never finalises, and ends properly. (Of two in a row at most one.)
    guesses: f64,
    /// Per session: it never ends when it is told to, and sends heartbeats.
    greets: f64,
    /// Per resume: its counts and times begin at zero again.
    anew: f64,
    /// Per final: its translation never comes; those that do come up to 3 s later.
    untranslated: f64,
}

impl Faults {
    fn none() -> Self {
        Self { session_max_s: 10_000, ..Self::default() }
    }

    /// A mixture: each kind is in about half of the runs.
    fn random(rng: &mut StdRng) -> Self {
        let mut some = |most: f64| if rng.random_bool(0.5) { rng.random_range(0.0..most) } else { 0.0 };
        Self {
            cut: some(0.25),
            hang: some(0.05),
            close_4xx: some(0.08),
            gone: some(0.3),
            unreachable: some(0.5),
            post: some(0.5),
            amnesia: some(1.0),
            mute: some(1.0),
            twice: some(0.5),
            swapped: some(0.3),
            slow: some(0.5),
            stuck: some(0.05),
            panic: some(0.05),
            session_max_s: if some(1.0) > 0.5 { 12 } else { 10_000 },
            quits: some(0.05),
            unacknowledged: some(0.05),
            null: some(0.5),
            unreadable: some(0.1),
            renamed: some(0.3),
            refused: some(0.1),
            guesses: some(0.2),
            greets: some(0.2),
            anew: some(0.3),
            untranslated: some(0.5),
        }
    }
}

#[derive(Debug)]
enum Event {
    Publish(usize),
    Tick,
    Opened(u64),
    Connected(u64),
    ToServer(u64, Outgoing),
    ToClient(u64, RecogniserMessage),
    /// The server is done with a frame: it acknowledges it.
    Digested(u64, Bytes),
    Due(usize, RecogniserMessage),
    ServerCloses(u64, u16),
    Cut(u64, bool),
    ClientNotices(u64, Fault),
    /// A session that does not end is alive.
    Greet(usize),
    Commit(String),
    Finish,
}

/// A recogniser session on the server's side.
struct Session {
    ear: Ear,
    connection: Option<u64>,
    is_over: bool,
    stop_seen: bool,
    is_stuck: bool,
    /// The connection on which nothing is acknowledged.
    unacknowledged: u64,
    guesses_only: bool,
    greets_only: bool,
    /// Where its times and counts begin.
    base: u64,
    /// Finals that are still to be said; `end_session` waits for them.
    owed: usize,
    /// Said while nobody listened.
    pending: Vec<RecogniserMessage>,
}

struct Sim {
    rng: StdRng,
    faults: Faults,
    start: Instant,
    now_ms: u64,
    queue: BinaryHeap<Reverse<(u64, u64)>>,
    events: HashMap<u64, Event>,
    next_event: u64,
    ledger: Ledger,
    machine: SttMachine,
    metrics: Arc<Metrics>,
    revision: u64,
    chunks: Vec<PcmChunk>,
    sessions: Vec<Session>,
    /// Connection in use by the client; 0 = none. Numbers grow.
    connection: u64,
    next_connection: u64,
    to_server_at: u64,
    to_client_at: u64,
    /// Of the present connection.
    latency_ms: u64,
    is_calm: bool,
    finals: Vec<Utterance>,
    /// Words whose final could not be read once.
    unread: HashSet<u64>,
    /// Finals that have their translation.
    translated: HashSet<String>,
    begun: Vec<u64>,
    connects: Vec<u64>,
    open: HashSet<String>,
    statuses: Vec<String>,
    is_done: bool,
    is_traced: bool,
}

impl Sim {
    fn new(seed: u64, faults: Faults, chunks: Vec<PcmChunk>, start: Instant) -> Self {
        let limits = Limits { window: Duration::from_secs(600), max_utterance: Duration::from_secs(15) };
        let budget = Arc::new(ReplayBudget::new(u64::MAX));
        let mut ledger = Ledger::new(limits, Box::<MemorySpool>::default(), budget);
        ledger.expect_translations(&[TRANSLATED_TO.to_owned()]);
        let metrics = Arc::new(Metrics::new());
        let machine = machine(&faults, &metrics, &ledger, start);
        let mut sim = Self {
            rng: StdRng::seed_from_u64(seed),
            faults,
            start,
            now_ms: 0,
            queue: BinaryHeap::new(),
            events: HashMap::new(),
            next_event: 0,
            ledger,
            machine,
            metrics,
            revision: 0,
            chunks,
            sessions: Vec::new(),
            connection: 0,
            next_connection: 1,
            to_server_at: 0,
            to_client_at: 0,
            latency_ms: 40,
            is_calm: false,
            finals: Vec::new(),
            unread: HashSet::new(),
            translated: HashSet::new(),
            begun: Vec::new(),
            connects: Vec::new(),
            open: HashSet::new(),
            statuses: Vec::new(),
            is_done: false,
            is_traced: std::env::var_os("STENOCAST_TRACE").is_some(),
        };
        sim.at(0, Event::Tick);
        for n in 0..sim.chunks.len() {
            let due = sim.chunks[n].arrived.duration_since(start).as_millis() as u64;
            sim.at(due, Event::Publish(n));
        }
        let end = sim.chunks.last().map_or(0, |c| c.start_ms + CHUNK_MS);
        sim.at(end + 50, Event::Finish);
        sim
    }

    fn at(&mut self, ms: u64, event: Event) {
        self.next_event += 1;
        self.queue.push(Reverse((ms.max(self.now_ms), self.next_event)));
        self.events.insert(self.next_event, event);
    }

    fn after(&mut self, from: u64, to: u64, event: Event) {
        let delay = self.rng.random_range(from..=to);
        self.at(self.now_ms + delay, event);
    }

    fn chance(&mut self, p: f64) -> bool {
        !self.is_calm && self.rng.random_bool(p.clamp(0.0, 1.0))
    }

    fn now(&self) -> Instant {
        self.start + Duration::from_millis(self.now_ms)
    }

    fn run(&mut self) {
        while let Some(Reverse((ms, key))) = self.queue.pop() {
            assert!(ms < 3_600_000, "the run does not end");
            self.now_ms = ms;
            let event = self.events.remove(&key).expect("every key has its event");
            if self.is_traced && !matches!(event, Event::Publish(_) | Event::Tick | Event::ToServer(..)) {
                println!("{ms} {:?} {event:?}", self.machine.phase());
            }
            self.step(event);
            self.follow();
            self.deliver();
            assert_eq!(self.ledger.check(), Ok(()));
            if self.is_done {
                return;
            }
        }
    }

    fn input(&mut self, input: Input) {
        let now = self.now();
        self.machine.handle(&mut self.ledger, now, input);
    }

    fn step(&mut self, event: Event) {
        match event {
            Event::Publish(n) => {
                let (now, chunk) = (self.now(), self.chunks[n].clone());
                self.ledger.push(now, chunk);
                self.input(Input::Tick);
            }
            Event::Tick => {
                self.mischief();
                self.input(Input::Tick);
                self.at(self.now_ms + 100, Event::Tick);
            }
            Event::Opened(revision) if revision == self.revision => self.opened(),
            Event::Connected(revision) if revision == self.revision => self.connected(),
            Event::ToServer(connection, out) => self.server_receives(connection, out),
            Event::Digested(connection, pcm) => self.server_digests(connection, &pcm),
            Event::Due(session, heard) => self.server_says(session, heard),
            Event::ToClient(connection, heard) if connection == self.connection => self.input(Input::Heard(heard)),
            Event::ServerCloses(connection, code) => self.server_closes(connection, code),
            Event::Cut(connection, is_noticed) => self.cut(connection, is_noticed),
            Event::ClientNotices(connection, fault) if connection == self.connection => {
                self.connection = 0;
                self.input(Input::Disconnected(fault));
            }
            Event::Greet(n) => self.greet(n),
            Event::Commit(id) => self.ledger.published(&id),
            Event::Finish => {
                self.is_calm = true;
                let deadline = self.now() + Duration::from_secs(1800);
                self.input(Input::Finish { deadline });
            }
            // Of a connection or an attempt that is over.
            _ => {}
        }
    }

    /// Once each 100 ms.
    fn mischief(&mut self) {
        let faults = self.faults;
        if self.chance(faults.panic / 10.0) {
            self.machine = machine(&faults, &self.metrics, &self.ledger, self.now());
            self.client_leaves(false);
            self.revision = 0;
        }
        if self.connection == 0 {
            return;
        }
        let connection = self.connection;
        if self.chance(faults.stuck / 10.0)
            && let Some(n) = self.session_of(connection)
            && (n == 0 || !(self.sessions[n - 1].is_stuck || self.sessions[n - 1].guesses_only))
        {
            self.sessions[n].is_stuck = true;
        }
        if self.chance(faults.unacknowledged / 10.0)
            && let Some(n) = self.session_of(connection)
            && self.sessions[n].base == 0
        {
            self.sessions[n].unacknowledged = connection;
        }
        if self.chance(faults.quits / 10.0)
            && let Some(n) = self.session_of(connection)
        {
            self.server_says(n, RecogniserMessage::EndSession);
            self.sessions[n].is_over = true;
            self.server_closes(connection, 1000);
        }
        if self.chance(faults.cut / 10.0) {
            self.after(0, 50, Event::Cut(connection, true));
        }
        if self.chance(faults.hang / 10.0) {
            self.after(0, 50, Event::Cut(connection, false));
        }
        if self.chance(faults.close_4xx / 10.0) {
            let code = self.rng.random_range(4400..4500);
            self.after(0, 50, Event::ServerCloses(connection, code));
        }
    }

    /// The driver's part: keeps what runs in step with the machine's phase.
    fn follow(&mut self) {
        loop {
            if self.machine.revision() != self.revision {
                self.revision = self.machine.revision();
                if !self.machine.is_connected() {
                    self.client_leaves(self.machine.closes_normally());
                }
                match self.machine.phase() {
                    Phase::AwaitingEndpoint => self.input(Input::EndpointReady),
                    Phase::AwaitingSlot => self.input(Input::SlotGranted),
                    Phase::Opening => self.after(20, 300, Event::Opened(self.revision)),
                    Phase::Connecting => self.after(10, 150, Event::Connected(self.revision)),
                    Phase::Done => self.is_done = true,
                    _ => {}
                }
                continue;
            }
            let now = self.now();
            if self.connection == 0 {
                return;
            }
            let Some(out) = self.machine.outgoing(&mut self.ledger, now) else {
                return;
            };
            self.machine.sent(&mut self.ledger, now, &out);
            self.to_server_at = self.to_server_at.max(self.now_ms + self.rng.random_range(5..40));
            self.at(self.to_server_at, Event::ToServer(self.connection, out));
        }
    }

    fn deliver(&mut self) {
        while let Some(item) = self.ledger.delivered() {
            match item {
                TranscriptEvent::Interim(u) => {
                    assert!(!self.finals.iter().any(|f| f.id == u.id), "an interim follows its final");
                    self.open.insert(u.id);
                }
                TranscriptEvent::Retracted { id } => {
                    assert!(!self.finals.iter().any(|f| f.id == id), "{id} is taken back after its final");
                    self.open.remove(&id);
                }
                TranscriptEvent::Final(u) => {
                    if self.is_traced {
                        println!("{} FINAL {} {}..{} {}", self.now_ms, u.id, u.start_ms, u.end_ms, u.text);
                    }
                    self.open.remove(&u.id);
                    self.after(0, 30, Event::Commit(u.id.clone()));
                    self.finals.push(u);
                }
                TranscriptEvent::Gap { start_ms, end_ms, reason, .. } => {
                    panic!("a gap {start_ms}..{end_ms} ({reason:?}) although nothing was out of reach")
                }
                TranscriptEvent::Translation(t) => {
                    assert!(self.finals.iter().any(|f| f.id == t.of), "{t:?} is of no line");
                    assert!(self.translated.insert(t.of), "a line is translated twice");
                }
                TranscriptEvent::Status { status, reason, .. } => {
                    self.statuses.push(format!("{}:{}", status.as_str(), reason.unwrap_or_default()));
                }
            }
        }
    }

    fn opened(&mut self) {
        let (p, refused) = (self.faults.post, self.faults.refused);
        if self.chance(refused) {
            let fault = match self.rng.random_range(0..4) {
                0 => Fault::from_status(429, Some(Duration::from_secs(86_400)), String::new()),
                1 => Fault::from_status(401, None, String::new()),
                2 => Fault::from_status(422, None, "odd".into()),
                _ => Fault::Protocol("no session".into()),
            };
            return self.input(Input::Opened(Err(fault)));
        }
        if self.chance(p) {
            let fault = match self.rng.random_range(0..3) {
                0 => Fault::RateLimited { retry_after: Some(Duration::from_millis(700)) },
                1 => Fault::PaymentRequired,
                _ => Fault::Unavailable { status: 503 },
            };
            return self.input(Input::Opened(Err(fault)));
        }
        let n = self.sessions.len();
        let (guesses, greets) = (self.faults.guesses, self.faults.greets);
        let was_silent = self.sessions.last().is_some_and(|s| s.guesses_only || s.is_stuck);
        self.begun.push(self.now_ms);
        let guesses_only = self.chance(guesses) && !was_silent;
        let greets_only = self.chance(greets);
        self.sessions.push(Session {
            guesses_only,
            greets_only,
            base: 0,
            ear: Ear::default(),
            connection: None,
            is_over: false,
            stop_seen: false,
            is_stuck: false,
            unacknowledged: 0,
            owed: 0,
            pending: Vec::new(),
        });
        self.input(Input::Opened(Ok((format!("session {n}"), Secret::new(n.to_string())))));
    }

    fn connected(&mut self) {
        let (gone, unreachable) = (self.faults.gone, self.faults.unreachable);
        let url = self.ledger.session().expect("a session is being connected to").url;
        let n: usize = url.expose().parse().unwrap();
        if self.chance(unreachable) {
            return self.input(Input::Connected(Err(Fault::Network("refused".into()))));
        }
        if self.chance(gone) {
            self.sessions[n].is_over = true;
        }
        if self.sessions[n].is_over {
            return self.input(Input::Connected(Err(Fault::SessionGone { status: 403 })));
        }
        self.connects.push(self.now_ms);
        let anew = self.faults.anew;
        if self.sessions[n].ear.heard > 0 && self.chance(anew) {
            // What it says from now on is about the audio of this connection alone.
            let session = &mut self.sessions[n];
            session.ear.forget();
            session.base = session.ear.heard;
            session.owed -= session.pending.drain(..).filter(is_final).count();
        }
        self.connection = self.next_connection;
        self.next_connection += 1;
        (self.to_server_at, self.to_client_at) = (self.now_ms, self.now_ms);
        let slow = self.faults.slow;
        self.latency_ms = if self.chance(slow) { self.rng.random_range(40..5000) } else { 40 };
        let session = &mut self.sessions[n];
        session.connection = Some(self.connection);
        for late in std::mem::take(&mut session.pending) {
            self.server_says(n, late);
        }
        self.input(Input::Connected(Ok(())));
    }

    fn client_leaves(&mut self, politely: bool) {
        let connection = std::mem::take(&mut self.connection);
        if let Some(n) = self.session_of(connection) {
            self.hang_up(n);
            self.sessions[n].is_over |= politely;
        }
    }

    fn session_of(&self, connection: u64) -> Option<usize> {
        self.sessions.iter().position(|s| connection != 0 && s.connection == Some(connection))
    }

    fn server_receives(&mut self, connection: u64, out: Outgoing) {
        let Some(n) = self.session_of(connection) else {
            return;
        };
        match out {
            // Half of the frames count at once, the others are forgotten with the connection until acknowledged.
            Outgoing::Audio(pcm) if connection.is_multiple_of(2) => self.server_digests(connection, &pcm),
            Outgoing::Audio(pcm) => self.at(self.now_ms + 60, Event::Digested(connection, pcm)),
            Outgoing::KeepAlive => {}
            Outgoing::Stop if connection.is_multiple_of(2) => self.server_stops(n),
            Outgoing::Stop => self.at(self.now_ms + 60, Event::Digested(connection, Bytes::new())),
        }
    }

    fn server_digests(&mut self, connection: u64, pcm: &[u8]) {
        let Some(n) = self.session_of(connection) else {
            return;
        };
        if pcm.is_empty() {
            return self.server_stops(n);
        }
        let start = self.sessions[n].ear.heard;
        let said = self.sessions[n].ear.hear(pcm);
        let end = self.sessions[n].ear.heard;
        if self.sessions[n].unacknowledged != connection {
            let base = self.sessions[n].base;
            self.server_says(n, RecogniserMessage::Acknowledged { start: start - base, end: end - base });
        }
        self.server_recognised(n, said);
    }

    fn server_stops(&mut self, n: usize) {
        self.sessions[n].stop_seen = true;
        self.server_says(n, RecogniserMessage::StopAcknowledged);
        let said = self.sessions[n].ear.stop();
        self.server_recognised(n, said);
        if self.sessions[n].owed == 0 {
            self.ends_soon(n);
        }
    }

    fn ends_soon(&mut self, n: usize) {
        if self.sessions[n].greets_only {
            self.after(500, 1500, Event::Greet(n));
        } else {
            self.after(10, 300, Event::Due(n, RecogniserMessage::EndSession));
        }
    }

    fn greet(&mut self, n: usize) {
        if self.sessions[n].connection.is_some() {
            self.server_says(n, RecogniserMessage::Other);
            self.after(500, 1500, Event::Greet(n));
        }
    }

    /// What the bridge hears of it.
    fn heard_of(&mut self, n: usize, said: &Said) -> RecogniserMessage {
        let base = self.sessions[n].base;
        let mut said = said.clone();
        for word in &mut said.words {
            (word.start, word.end) = (word.start.saturating_sub(base), word.end.saturating_sub(base));
        }
        let (null, unreadable) = (self.faults.null, self.faults.unreadable);
        if said.is_final && self.chance(unreadable) && said.words.iter().all(|w| !self.unread.contains(&w.n)) {
            self.unread.extend(said.words.iter().map(|w| w.n));
            // Without times it is taken for the first speech that has no text, which out of order it may not be.
            let last = said.words[said.words.len() - 1];
            let [start_s, end_s] = [said.words[0].start, last.end].map(virtual_recogniser::seconds);
            return RecogniserMessage::Unreadable { is_final: true, start_s, end_s };
        }
        let mut message = virtual_recogniser::transcript(&said);
        if self.chance(null) {
            let path = NULLS[self.rng.random_range(0..NULLS.len())];
            *message.pointer_mut(path).expect("a field of a transcript") = serde_json::Value::Null;
        }
        heard::read(message.to_string().as_bytes()).expect("JSON").heard
    }

    fn server_recognised(&mut self, n: usize, said: Vec<Said>) {
        if self.sessions[n].is_stuck {
            return;
        }
        for said in said {
            let is_final = said.is_final;
            if is_final && self.sessions[n].guesses_only {
                continue;
            }
            let heard = self.heard_of(n, &said);
            if !is_final {
                self.after(10, 60, Event::Due(n, heard));
                continue;
            }
            self.sessions[n].owed += 1;
            let (twice, swapped) = (self.faults.twice, self.faults.swapped);
            let most = if self.chance(swapped) { 1500 } else { 250 };
            self.after(100, most, Event::Due(n, heard.clone()));
            let (renamed, untranslated) = (self.faults.renamed, self.faults.untranslated);
            if let RecogniserMessage::Text(text) = &heard {
                if self.chance(renamed) {
                    let again =
                        Recognised { id: format!("b{}", text.id), text: format!("{}.", text.text), ..text.clone() };
                    self.sessions[n].owed += 1;
                    self.after(1500, 3000, Event::Due(n, RecogniserMessage::Text(again)));
                }
                if !self.chance(untranslated) {
                    self.after(200, 3000, Event::Due(n, translation(text)));
                }
            }
            if self.chance(twice) {
                self.sessions[n].owed += 1;
                self.after(100, 3000, Event::Due(n, heard));
            }
        }
    }

    /// A message of the session is due now.
    fn server_says(&mut self, n: usize, heard: RecogniserMessage) {
        let session = &mut self.sessions[n];
        if session.is_over {
            return;
        }
        if is_final(&heard) {
            session.owed -= 1;
            if session.owed == 0 && session.stop_seen {
                self.ends_soon(n);
            }
        }
        let session = &mut self.sessions[n];
        let Some(connection) = session.connection else {
            let is_kept =
                is_final(&heard) || matches!(heard, RecogniserMessage::Text(_) | RecogniserMessage::EndSession);
            let mute = self.faults.mute;
            if is_kept && !self.chance(mute) {
                if is_final(&heard) {
                    self.sessions[n].owed += 1;
                }
                self.sessions[n].pending.push(heard);
            }
            return;
        };
        let latency_ms = self.rng.random_range(self.latency_ms / 2..self.latency_ms);
        self.to_client_at = self.to_client_at.max(self.now_ms + latency_ms);
        self.at(self.to_client_at, Event::ToClient(connection, heard));
    }

    fn server_closes(&mut self, connection: u64, code: u16) {
        let Some(n) = self.session_of(connection) else {
            return;
        };
        self.hang_up(n);
        self.sessions[n].is_over = true;
        self.to_client_at = self.to_client_at.max(self.now_ms + 10);
        self.at(self.to_client_at, Event::ClientNotices(connection, Fault::Closed { code }));
    }

    fn cut(&mut self, connection: u64, is_noticed: bool) {
        let Some(n) = self.session_of(connection) else {
            return;
        };
        self.hang_up(n);
        if is_noticed {
            // What was on its way to the client may arrive before the reset does, or not.
            let delay = self.rng.random_range(0..60);
            self.at(self.now_ms + delay, Event::ClientNotices(connection, Fault::Closed { code: 1006 }));
        }
    }

    fn hang_up(&mut self, n: usize) {
        self.sessions[n].connection = None;
        let amnesia = self.faults.amnesia;
        if self.chance(amnesia) {
            self.sessions[n].ear.forget();
        }
    }
}

fn machine(faults: &Faults, metrics: &Arc<Metrics>, ledger: &Ledger, now: Instant) -> SttMachine {
    let session_max = Duration::from_secs(faults.session_max_s);
    SttMachine::new(Timing::default(), Duration::from_secs(15), session_max, metrics.clone(), ledger, now)
}

fn is_final(heard: &RecogniserMessage) -> bool {
    matches!(heard, RecogniserMessage::Text(text) if text.is_final)
        || matches!(heard, RecogniserMessage::Unreadable { .. })
}

fn translation(of: &Recognised) -> RecogniserMessage {
    let (language, text) = (TRANSLATED_TO.to_owned(), of.text.to_uppercase());
    RecogniserMessage::Translation(TranslationHeard {
        id: of.id.clone(),
        language,
        text,
        start_s: of.start_s,
        end_s: of.end_s,
    })
}

/// A minute of speech in utterances, and its chunks with, now and then, a time in which nobody published.
fn speech(rng: &mut StdRng, start: Instant) -> (Vec<PcmChunk>, Vec<(Span, Span)>) {
    let mut script = Script::default();
    for _ in 0..rng.random_range(3..14) {
        let (pause, words) = (rng.random_range(450..3000), rng.random_range(1..9));
        script.say(pause, words, rng.random_range(0..200));
    }
    script.rest(500 + CHUNK_MS - script.length_ms % CHUNK_MS);
    let pcm = script.pcm();
    let mut shift_ms = rng.random_range(0..2000);
    let mut shifts = Vec::new();
    let mut chunks = Vec::new();
    for (n, piece) in pcm.chunks((CHUNK_MS * BYTES_PER_MS) as usize).enumerate() {
        if rng.random_bool(0.01) {
            shift_ms += rng.random_range(100..20_000);
        }
        shifts.push(shift_ms);
        let start_ms = n as u64 * CHUNK_MS + shift_ms;
        chunks.push(PcmChunk {
            pcm: Bytes::copy_from_slice(piece),
            start_ms,
            inserted: piece.iter().all(|b| *b == 0),
            arrived: start + Duration::from_millis(start_ms + CHUNK_MS),
        });
    }
    let clock = |ms: u64| ms + shifts[(ms / CHUNK_MS) as usize];
    // A cut may take away up to half of a word.
    let words = script.words.iter().map(|&(at, n)| {
        let middle = clock(at + word_ms(n) / 2);
        (clock(at)..=middle + 1, middle..=clock(at + word_ms(n) - 1) + 1)
    });
    let words = words.collect();
    (chunks, words)
}

fn check(seed: u64, faults: Faults) -> (u64, Vec<String>) {
    let start = Instant::now();
    let mut rng = StdRng::seed_from_u64(seed ^ 0x5eed);
    let (chunks, spoken) = speech(&mut rng, start);
    let pushed_ms = chunks.len() as u64 * CHUNK_MS;
    let mut sim = Sim::new(seed, faults, chunks, start);
    sim.run();
    let mut heard: Vec<_> = sim.finals.iter().flat_map(|f| f.words.iter().flatten()).collect();
    // A final waits ten seconds in silence for an earlier one, and goes first then: a recogniser that changes their order
    // and hangs in between, while nobody publishes, is not waited for longer.
    if faults.hang > 0.0 && faults.swapped > 0.0 {
        heard.sort_by_key(|word| word.start_ms);
    }
    let texts: Vec<_> = heard.iter().map(|w| w.word.clone()).collect();
    let expected: Vec<_> = (0..spoken.len() as u64).map(word_text).collect();
    assert_eq!(texts, expected, "words are not final exactly once and in order");
    for (n, (word, (start_ms, end_ms))) in heard.iter().zip(&spoken).enumerate() {
        assert!(start_ms.contains(&word.start_ms), "word {n} begins at {}, not in {start_ms:?}", word.start_ms);
        assert!(end_ms.contains(&word.end_ms), "word {n} ends at {}, not in {end_ms:?}", word.end_ms);
    }
    assert!(sim.open.is_empty(), "interims without an end: {:?}", sim.open);
    let account = sim.ledger.account();
    assert_eq!(account.received_ms + account.inserted_ms, pushed_ms);
    assert_eq!((account.acknowledged_ms, account.in_flight_ms, account.lost_ms), (pushed_ms, 0, 0));
    check_translations(&mut sim);
    let most = virtual_recogniser::most_in_a_minute(&sim.connects) as u64;
    assert!(most <= u64::from(CONNECTION_BURST) + 60_000 / CONNECTION_INTERVAL_MS, "{most} connections in a minute");
    let sessions = virtual_recogniser::most_in_a_minute(&sim.begun);
    assert!(sessions <= SESSION_BURST as usize + 2, "{sessions} sessions in a minute");
    let repeated = sim.statuses.windows(2).find(|w| w[0] == w[1]);
    assert_eq!(repeated, None, "{:?}", sim.statuses);
    (sim.machine.tally().sessions.into(), sim.statuses)
}

/// Each line has its translation, or is counted as without.
fn check_translations(sim: &mut Sim) {
    let metrics = Metrics::new();
    sim.ledger.report(&metrics);
    let missing = metrics.translations_total.with_label_values(&["missing"]).get() as usize;
    assert_eq!(sim.translated.len() + missing, sim.finals.len(), "translated, missing and all lines");
}

fn seeds() -> std::ops::Range<u64> {
    let from_env = |name: &str| std::env::var(name).ok().and_then(|v| v.parse().ok());
    match from_env("STENOCAST_SEED") {
        Some(seed) => seed..seed + 1,
        None => 0..from_env("STENOCAST_SEEDS").unwrap_or(DEFAULT_SEEDS),
    }
}

/// Runs all seeds on two threads and names every one that fails.
fn over_seeds(run: fn(u64)) {
    let failed: Vec<u64> = std::thread::scope(|scope| {
        let halves = [0, 1].map(|odd| {
            scope.spawn(move || {
                let mine = seeds().filter(move |s| s % 2 == odd || seeds().count() == 1);
                mine.filter(|&s| std::panic::catch_unwind(|| run(s)).is_err()).collect::<Vec<_>>()
            })
        });
        halves.into_iter().flat_map(|h| h.join().unwrap()).collect()
    });
    assert!(failed.is_empty(), "{} seeds fail: {:?}", failed.len(), &failed[..failed.len().min(20)]);
}

#[test]
fn an_undisturbed_run_uses_one_session_and_tells_viewers_nothing_but_live() {
    for seed in 0..20 {
        let (sessions, statuses) = check(seed, Faults::none());
        assert_eq!(sessions, 1);
        assert_eq!(statuses, ["live:recogniser_connected"]);
    }
}

#[test]
fn every_word_is_final_once_whatever_the_recogniser_does() {
    over_seeds(|seed| {
        let faults = Faults::random(&mut StdRng::seed_from_u64(seed));
        check(seed, faults);
    });
}

#[test]
fn sessions_that_end_unasked_or_stop_to_acknowledge_lose_nothing() {
    over_seeds(|seed| {
        check(seed, Faults { quits: 0.1, unacknowledged: 0.1, cut: 0.1, ..Faults::none() });
    });
}

#[test]
fn a_session_that_only_acknowledges_loses_nothing_even_when_it_ends_properly() {
    let sessions: u64 = (0..60).map(|seed| check(seed, Faults { stuck: 0.05, ..Faults::none() }).0).sum();
    assert!(sessions > 80, "some of 60 runs needed another session: {sessions}");
}

#[test]
fn each_oddity_of_a_recogniser_alone_loses_nothing() {
    let kinds = [
        ("null", Faults { null: 1.0, ..Faults::none() }),
        ("unreadable", Faults { unreadable: 0.5, ..Faults::none() }),
        ("renamed", Faults { renamed: 1.0, ..Faults::none() }),
        ("refused", Faults { refused: 0.7, session_max_s: 12, ..Faults::none() }),
        ("guesses", Faults { guesses: 1.0, ..Faults::none() }),
        ("greets", Faults { greets: 1.0, session_max_s: 12, ..Faults::none() }),
        ("anew", Faults { anew: 1.0, cut: 0.2, ..Faults::none() }),
        ("untranslated", Faults { untranslated: 0.5, close_4xx: 0.1, ..Faults::none() }),
    ];
    for (kind, faults) in kinds {
        for seed in 0..12 {
            let run = std::panic::catch_unwind(|| check(seed, faults));
            assert!(run.is_ok(), "{kind}, seed {seed}");
        }
    }
}
