//! The loss ledger and the bridge's state machine against a recogniser that may say anything in any order: no panic,
//! the ledger's invariant after every step, finals once and after their interims, and at the end every byte that came
//! is acknowledged or lost.
//!
//! Input: lines. A line of JSON is a message of the recogniser; the others are events, a letter and a number:
//! `a` audio of so many ms (`A`: speech, `i`: inserted silence), `j` the clock jumps by so many ms, `t` so many ms pass,
//! `o` the POST is answered (0: yes, else with that status), `c` the socket is open (0) or refused with that status,
//! `d` it closes with that code, `m` the recogniser moves, `k` a kill: the bridge goes on from its checkpoint.

#![no_main]

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use libfuzzer_sys::fuzz_target;
use stenocast::audio::PcmChunk;
use stenocast::config::Secret;
use stenocast::gladia::heard;
use stenocast::gladia::ledger::{Ledger, Limits, MemorySpool, ReplayBudget};
use stenocast::gladia::machine::{Input, Phase, RecogniserMessage, SttMachine};
use stenocast::gladia::policy::{Fault, Timing};
use stenocast::transcript::TranscriptEvent;
use tokio::time::Instant;

const BYTES_PER_MS: u64 = 32;
const MAX_LINES: usize = 200;
/// Of one line and of one input, so that each is fast.
const MAX_LINE_AUDIO_MS: u64 = 2_000;
const MAX_AUDIO_MS: u64 = 40_000;
const LIMITS: Limits = Limits { window: Duration::from_secs(10), max_utterance: Duration::from_secs(15) };

struct Bridge {
    ledger: Ledger,
    machine: SttMachine,
    budget: Arc<ReplayBudget>,
    now: Instant,
    clock_ms: u64,
    audio_left_ms: u64,
    sessions: u32,
    revision: u64,
    finals: HashSet<String>,
}

fn machine(ledger: &Ledger, now: Instant) -> SttMachine {
    let (stall, session_max) = (Duration::from_secs(15), Duration::from_secs(600));
    SttMachine::new(Timing::default(), stall, session_max, stenocast_fuzz::metrics(), ledger, now)
}

impl Bridge {
    fn new() -> Self {
        let now = Instant::now();
        let budget = Arc::new(ReplayBudget::new(256 << 10));
        let ledger = Ledger::new(LIMITS, Box::<MemorySpool>::default(), budget.clone());
        let machine = machine(&ledger, now);
        Self {
            ledger,
            machine,
            budget,
            now,
            clock_ms: 0,
            audio_left_ms: MAX_AUDIO_MS,
            sessions: 0,
            revision: 0,
            finals: HashSet::new(),
        }
    }

    fn line(&mut self, line: &str) {
        if line.starts_with('{') {
            let heard = heard::read(line.as_bytes()).map_or(RecogniserMessage::Other, |reading| reading.heard);
            return self.input(Input::Heard(heard));
        }
        let mut chars = line.chars();
        let Some(letter) = chars.next() else { return };
        let number: u64 = chars.as_str().trim().parse().unwrap_or(0);
        match letter {
            'a' => self.audio(number, 0, false),
            'A' => self.audio(number, 9000, false),
            'i' => self.audio(number, 0, true),
            'j' => self.clock_ms += number.min(86_400_000),
            't' => {
                self.now += Duration::from_millis(number.min(3_600_000));
                self.input(Input::Tick);
            }
            'o' if number == 0 => {
                self.sessions += 1;
                let session = (format!("session {}", self.sessions), Secret::new("ws://recogniser"));
                self.input(Input::Opened(Ok(session)));
            }
            'o' => self.input(Input::Opened(Err(Fault::from_status(number as u16, None, String::new())))),
            'c' if number == 0 => self.input(Input::Connected(Ok(()))),
            'c' => self.input(Input::Connected(Err(Fault::from_upgrade(number as u16)))),
            'd' => self.input(Input::Disconnected(Fault::Closed { code: number as u16 })),
            'm' => self.input(Input::EndpointMoved),
            'k' => self.restart(),
            _ => {}
        }
    }

    fn audio(&mut self, ms: u64, level: i16, inserted: bool) {
        let ms = ms.min(self.audio_left_ms).min(MAX_LINE_AUDIO_MS);
        self.audio_left_ms -= ms;
        let samples = (0..ms * 16).map(|n| if n % 2 == 0 { level } else { -level });
        let pcm: Vec<u8> = samples.flat_map(i16::to_le_bytes).collect();
        for piece in pcm.chunks(100 * BYTES_PER_MS as usize) {
            let pcm = bytes::Bytes::copy_from_slice(piece);
            self.ledger.push(self.now, PcmChunk { pcm, start_ms: self.clock_ms, inserted, arrived: self.now });
            self.clock_ms += piece.len() as u64 / BYTES_PER_MS;
        }
        self.input(Input::Tick);
    }

    /// As a process does that finds the checkpoint of one that was killed.
    fn restart(&mut self) {
        let json = serde_json::to_string(&self.ledger.checkpoint()).unwrap();
        let (image, end) = (serde_json::from_str(&json).unwrap(), self.ledger.end());
        let spool = Box::<MemorySpool>::default();
        self.ledger = Ledger::restore(self.now, image, LIMITS, spool, self.budget.clone());
        assert_eq!(self.ledger.end(), end, "a true image is taken for a damaged one");
        self.machine = machine(&self.ledger, self.now);
        self.revision = 0;
        self.after();
    }

    fn input(&mut self, input: Input) {
        self.machine.handle(&mut self.ledger, self.now, input);
        self.after();
    }

    /// The driver's part.
    fn after(&mut self) {
        while self.machine.revision() != self.revision {
            self.revision = self.machine.revision();
            match self.machine.phase() {
                Phase::AwaitingEndpoint => self.machine.handle(&mut self.ledger, self.now, Input::EndpointReady),
                Phase::AwaitingSlot => self.machine.handle(&mut self.ledger, self.now, Input::SlotGranted),
                _ => {}
            }
        }
        while let Some(out) = self.machine.outgoing(&mut self.ledger, self.now) {
            self.machine.sent(&mut self.ledger, self.now, &out);
        }
        while let Some(item) = self.ledger.delivered() {
            self.deliver(item);
        }
        assert_eq!(self.ledger.check(), Ok(()));
    }

    fn deliver(&mut self, item: TranscriptEvent) {
        match item {
            TranscriptEvent::Interim(u) => assert!(!self.finals.contains(&u.id), "an interim follows its final"),
            TranscriptEvent::Retracted { id } => assert!(!self.finals.contains(&id), "a final is taken back"),
            TranscriptEvent::Final(u) => {
                assert!(u.start_ms <= u.end_ms, "{} .. {}", u.start_ms, u.end_ms);
                assert!(!u.text.is_empty());
                self.ledger.published(&u.id);
                assert!(self.finals.insert(u.id), "a final comes twice");
            }
            TranscriptEvent::Gap { start_ms, end_ms, .. } => assert!(start_ms <= end_ms),
            TranscriptEvent::Status { .. } => {}
            TranscriptEvent::Translation(t) => {
                assert!(self.finals.contains(&t.of), "a translation comes before its final");
            }
        }
    }

    fn finish(mut self) {
        self.input(Input::Finish { deadline: self.now + Duration::from_secs(1) });
        self.now += Duration::from_secs(1);
        self.input(Input::Tick);
        assert_eq!(self.machine.phase(), Phase::Done);
        assert_eq!(self.ledger.in_flight_bytes(), 0);
        let account = self.ledger.account();
        // Each sum is rounded down to whole ms.
        let (come, gone) = (account.received_ms + account.inserted_ms, account.acknowledged_ms + account.lost_ms);
        assert!(come.abs_diff(gone) <= 2, "{account:?}");
        assert!(account.finalised_ms <= account.spoken_ms && account.coverage <= 1.0);
        drop(self.ledger);
        assert_eq!(self.budget.used_bytes(), 0, "replay memory is not given back");
    }
}

fuzz_target!(|data: &[u8]| {
    let text = String::from_utf8_lossy(data);
    let mut bridge = Bridge::new();
    for line in text.lines().take(MAX_LINES) {
        bridge.line(line);
    }
    bridge.finish();
});
