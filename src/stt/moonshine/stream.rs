//! One stream in the ear: its audio, its open segment, and its finals in order.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Instant;

use tokio::sync::mpsc::UnboundedSender;

use super::super::engine::{Event, SAMPLES_PER_MS, StreamParams, Utterance, spread};
use super::model::Decoded;
use super::scheduler::{Job, Scheduler};
use super::segmenter::{Decision, Segment, Segmenter};
use super::tokenizer::{Tokenizer, confidence};
use super::vad::{Vad, VadState, WINDOW};

/// The first guess of a segment comes when it is this long, pre-roll included; the later ones as the machine allows.
pub const FIRST_INTERIM_MS: u64 = 500;
/// Less audio than this is not worth a guess.
const INTERIM_MIN: usize = 400 * SAMPLES_PER_MS;
/// Tokens at the end of what two guesses agree on that may still change.
const UNSTABLE_TOKENS: usize = 2;

/// See the module. Positions are samples from the stream's start.
pub struct Stream {
    id: u64,
    interims: bool,
    events: UnboundedSender<Event>,
    backlog: Arc<AtomicUsize>,
    settled: usize,
    vad: VadState,
    segmenter: Segmenter,
    /// Audio from position `audio_from`; the part before `heard` has been through voice detection.
    audio: Vec<i16>,
    audio_from: usize,
    heard: usize,
    guess: Guess,
    /// Finals being recognised, or recognised but behind one that is not.
    pending: BTreeMap<u32, Pending>,
    pub finishing: bool,
    finished: bool,
    said_so: bool,
}

/// What is known of the open segment's text.
#[derive(Default)]
struct Guess {
    segment: u32,
    asked_at: usize,
    previous: Vec<i64>,
    agreed: Vec<i64>,
}

struct Pending {
    segment: Segment,
    done: Option<Event>,
}

impl Stream {
    pub fn new(
        id: u64,
        params: StreamParams,
        events: UnboundedSender<Event>,
        backlog: Arc<AtomicUsize>,
        vad: VadState,
    ) -> Self {
        Self {
            id,
            interims: params.interims,
            events,
            backlog,
            settled: 0,
            vad,
            segmenter: Segmenter::new(params),
            audio: Vec::new(),
            audio_from: 0,
            heard: 0,
            guess: Guess::default(),
            pending: BTreeMap::new(),
            finishing: false,
            finished: false,
            said_so: false,
        }
    }

    pub fn append(&mut self, samples: &[i16]) {
        self.audio.extend_from_slice(samples);
    }

    fn end(&self) -> usize {
        self.audio_from + self.audio.len()
    }

    /// True while there is a whole window, or an end, to be dealt with.
    pub fn unheard(&self) -> bool {
        self.end() - self.heard >= WINDOW || (self.finishing && !self.finished)
    }

    /// Takes at most `limit` samples through voice detection and asks for what follows from it.
    pub fn listen(
        &mut self,
        vad: &mut Vad,
        scheduler: &Scheduler,
        limit: usize,
        interim_period: usize,
    ) -> ort::Result<()> {
        let stop = self.end().min(self.heard + limit);
        let mut result = Ok(());
        while self.heard + WINDOW <= stop {
            let at = self.heard - self.audio_from;
            let probability = vad.probability(&mut self.vad, &self.audio[at..at + WINDOW]);
            self.heard += WINDOW;
            // Text from noise is better than a hole.
            let decision = self.segmenter.push(*probability.as_ref().unwrap_or(&1.0));
            result = result.and(probability.map(drop));
            if let Some(decision) = decision {
                self.act(decision, scheduler);
            }
        }
        self.ask_for_guess(scheduler, interim_period);
        if self.finishing && !self.finished && self.end() - self.heard < WINDOW {
            self.finish(scheduler);
        }
        self.settle();
        result
    }

    fn act(&mut self, decision: Decision, scheduler: &Scheduler) {
        match decision {
            Decision::Started(segment) => {
                self.guess = Guess { segment: segment.index, asked_at: segment.from, ..Guess::default() };
                self.emit(Event::SpeechStart { at_ms: ms(segment.voice_from) });
            }
            Decision::Closed { segment, pause } => {
                if pause {
                    self.emit(Event::SpeechEnd { at_ms: ms(segment.voice_to) });
                } else {
                    self.guess = Guess { segment: segment.index + 1, asked_at: segment.to, ..Guess::default() };
                }
                self.close(segment, scheduler);
            }
        }
    }

    fn close(&mut self, segment: Segment, scheduler: &Scheduler) {
        scheduler.submit(self.job(segment, true));
        self.pending.insert(segment.index, Pending { segment, done: None });
    }

    fn job(&self, segment: Segment, is_final: bool) -> Job {
        let samples = self.audio[segment.from - self.audio_from..segment.to - self.audio_from].to_vec();
        let prefix = if is_final { Vec::new() } else { self.guess.agreed.clone() };
        Job { stream: self.id, segment: segment.index, is_final, samples, prefix, queued: Instant::now() }
    }

    fn ask_for_guess(&mut self, scheduler: &Scheduler, period: usize) {
        let Some(open) = self.segmenter.open().filter(|_| self.interims) else { return };
        let first = self.guess.asked_at <= open.from;
        let period = if first { FIRST_INTERIM_MS as usize * SAMPLES_PER_MS } else { period };
        if open.to - open.from < INTERIM_MIN || open.to.saturating_sub(self.guess.asked_at) < period {
            return;
        }
        self.guess.asked_at = open.to;
        scheduler.submit(self.job(open, false));
    }

    fn finish(&mut self, scheduler: &Scheduler) {
        self.finished = true;
        self.heard = self.end();
        if let Some(segment) = self.segmenter.finish(self.end()) {
            self.emit(Event::SpeechEnd { at_ms: ms(segment.voice_to) });
            self.close(segment, scheduler);
        }
    }

    /// An inference thread has answered.
    pub fn decoded(&mut self, job: &Job, outcome: Result<Decoded, String>, tokenizer: &Tokenizer) {
        match outcome {
            Ok(decoded) if job.is_final => self.decoded_final(job.segment, &decoded, tokenizer),
            Ok(decoded) => self.decoded_guess(job, decoded, tokenizer),
            Err(why) => {
                tracing::error!(error = %why, is_final = job.is_final, "inference failed");
                if let Some(pending) = self.pending.get_mut(&job.segment).filter(|_| job.is_final) {
                    pending.done = Some(Event::Failed { segment: job.segment, why });
                }
            }
        }
        self.release();
        self.settle();
    }

    fn decoded_final(&mut self, index: u32, decoded: &Decoded, tokenizer: &Tokenizer) {
        let Some(pending) = self.pending.get_mut(&index) else { return };
        let (start_ms, end_ms) = (ms(pending.segment.voice_from), ms(pending.segment.voice_to));
        let utterance = utterance(index, start_ms, end_ms, decoded, tokenizer);
        pending.done = Some(utterance.map_or(Event::Empty { segment: index, start_ms, end_ms }, Event::Final));
    }

    fn decoded_guess(&mut self, job: &Job, decoded: Decoded, tokenizer: &Tokenizer) {
        let Some(open) = self.segmenter.open().filter(|s| s.index == job.segment) else { return };
        if self.guess.segment != job.segment {
            return;
        }
        let same = decoded.tokens.iter().zip(&self.guess.previous).take_while(|(a, b)| a == b).count();
        let agreed = same.saturating_sub(UNSTABLE_TOKENS);
        if agreed > self.guess.agreed.len() {
            self.guess.agreed = decoded.tokens[..agreed].to_vec();
        }
        if let Some(guess) = utterance(open.index, ms(open.voice_from), ms(open.voice_to), &decoded, tokenizer) {
            self.emit(Event::Interim(guess));
        }
        self.guess.previous = decoded.tokens;
    }

    /// Sends the finals whose turn it is: in the order of the audio, whatever thread was faster.
    fn release(&mut self) {
        while self.pending.first_key_value().is_some_and(|(_, p)| p.done.is_some()) {
            if let Some((_, Pending { done: Some(event), .. })) = self.pending.pop_first() {
                self.emit(event);
            }
        }
    }

    fn emit(&self, event: Event) {
        // The receiver is gone when the session is; the stream follows it soon.
        let _ = self.events.send(event);
    }

    /// Gives back audio that nothing needs any more, tells the writer so, and at last that all is done.
    fn settle(&mut self) {
        let waiting = self.pending.values().map(|p| p.segment.from).min();
        let settled = waiting.unwrap_or(usize::MAX).min(self.heard);
        self.backlog.fetch_sub(settled.saturating_sub(self.settled), Ordering::Relaxed);
        self.settled = settled.max(self.settled);
        let keep = self.segmenter.keep_from().min(self.heard);
        let spare = keep.saturating_sub(self.audio_from);
        // Moving memory for every window would cost more than it frees.
        if spare > self.audio.len() / 2 {
            self.audio.drain(..spare);
            self.audio_from = keep;
            self.audio.shrink_to(2 * self.audio.len());
        }
        if self.finished && self.pending.is_empty() && !std::mem::replace(&mut self.said_so, true) {
            self.emit(Event::Finished);
        }
    }
}

fn ms(samples: usize) -> u64 {
    (samples / SAMPLES_PER_MS) as u64
}

/// `None` when there is no word in it.
fn utterance(segment: u32, start_ms: u64, end_ms: u64, decoded: &Decoded, tokenizer: &Tokenizer) -> Option<Utterance> {
    let mut words = tokenizer.words(&decoded.tokens, &decoded.log_probs);
    if words.is_empty() {
        return None;
    }
    spread(&mut words, start_ms, end_ms);
    let text = words.iter().map(|w| w.word.as_str()).collect::<Vec<_>>().join(" ");
    Some(Utterance { segment, text, start_ms, end_ms, confidence: confidence(&decoded.log_probs), words })
}
