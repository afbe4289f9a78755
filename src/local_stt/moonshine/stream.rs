//! One stream in the ear: its audio, its open segment, and its finals in order.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Instant;

use tokio::sync::mpsc::UnboundedSender;

use super::super::engine::{Event, SAMPLES_PER_MS, StreamParams, Utterance, spread};
use super::cut::{self, Lead};
use super::model::{Decoded, Heard};
use super::scheduler::{Job, Scheduler};
use super::segmenter::{Decision, Segment, Segmenter};
use super::tokenizer::{Tokenizer, confidence};
use super::vad::{Vad, VadState, WINDOW};

/// The first guess of a segment comes when it is this long, pre-roll included; the later ones as the machine allows.
pub const FIRST_INTERIM_MS: u64 = 500;
/// Less audio than this is not worth a guess.
const INTERIM_MIN: usize = 400 * SAMPLES_PER_MS;
/// A segment with so much voice that repeats only the words it was given is asked again without them.
const WORDLESS_VOICE: usize = 600 * SAMPLES_PER_MS;
/// Tokens at the end of what two guesses agree on that may still change.
const UNSTABLE_TOKENS: usize = 2;

/// One audio stream through the engine: its segments and what was said of them. Positions are samples from the stream's start.
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

/// The present text of the open segment.
#[derive(Default)]
struct Guess {
    segment: u32,
    asked_at: usize,
    /// Unknown while the segment that was cut before it is being recognised.
    lead: Option<Lead>,
    previous: Vec<i64>,
    agreed: Vec<i64>,
}

struct Pending {
    segment: Segment,
    /// For a forced cut: how far its audio goes on, and where that of the next segment begins.
    cut: Option<(usize, usize)>,
    /// As in [`Guess`].
    lead: Option<Lead>,
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
            let window = &self.audio[at..at + WINDOW];
            let probability = vad.probability(&mut self.vad, window);
            self.heard += WINDOW;
            // Text from noise is better than a hole.
            let decision = self.segmenter.push(*probability.as_ref().unwrap_or(&1.0), window);
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
                self.expect(segment, Some(Lead::default()));
                self.emit(Event::SpeechStart { at_ms: ms(segment.voice_from) });
            }
            Decision::Closed(segment) => {
                self.emit(Event::SpeechEnd { at_ms: ms(segment.voice_to) });
                self.close(segment, None, scheduler);
            }
            Decision::Cut { segment, heard_to, next } => {
                self.close(segment, Some((heard_to, next.lead_from)), scheduler);
                // What has no voice has no words to give.
                self.expect(next, (!segment.has_voice()).then(Lead::default));
            }
        }
    }

    fn expect(&mut self, segment: Segment, lead: Option<Lead>) {
        self.guess = Guess { segment: segment.index, asked_at: segment.from, lead, ..Guess::default() };
    }

    fn close(&mut self, segment: Segment, cut: Option<(usize, usize)>, scheduler: &Scheduler) {
        let lead = self.guess.lead.take();
        let done = (!segment.has_voice()).then(|| empty(&segment));
        self.pending.insert(segment.index, Pending { segment, cut, lead, done });
        self.ask_for_final(segment.index, scheduler);
        self.release();
    }

    /// Unless it must wait for the segment before it.
    fn ask_for_final(&self, index: u32, scheduler: &Scheduler) {
        let Some(Pending { segment, cut, lead: Some(lead), done: None }) = self.pending.get(&index) else { return };
        let to = cut.map_or(segment.to, |(heard_to, _)| heard_to);
        let mut job = self.job(Segment { to, ..*segment }, lead, &lead.tokens, true);
        if let Some((_, next_from)) = *cut {
            let from = to - job.samples.len();
            job.stops = vec![next_from - from, segment.to - from];
        }
        scheduler.submit(job);
    }

    /// The audio of the lead's words precedes the segment's own.
    fn job(&self, segment: Segment, lead: &Lead, prefix: &[i64], is_final: bool) -> Job {
        let from = if lead.tokens.is_empty() { segment.from } else { segment.lead_from };
        let samples = self.audio[from - self.audio_from..segment.to - self.audio_from].to_vec();
        let (prefix, stops) = (prefix.to_vec(), Vec::new());
        Job { stream: self.id, segment: segment.index, is_final, samples, prefix, stops, queued: Instant::now() }
    }

    fn ask_for_guess(&mut self, scheduler: &Scheduler, period: usize) {
        let Some(open) = self.segmenter.open().filter(|open| self.interims && open.has_voice()) else { return };
        let Some(lead) = &self.guess.lead else { return };
        let first = self.guess.asked_at <= open.from;
        let period = if first { FIRST_INTERIM_MS as usize * SAMPLES_PER_MS } else { period };
        if open.to - open.from < INTERIM_MIN || open.to.saturating_sub(self.guess.asked_at) < period {
            return;
        }
        scheduler.submit(self.job(open, lead, &self.guess.agreed, false));
        self.guess.asked_at = open.to;
    }

    fn finish(&mut self, scheduler: &Scheduler) {
        self.finished = true;
        self.heard = self.end();
        if let Some(segment) = self.segmenter.finish(self.end()) {
            self.emit(Event::SpeechEnd { at_ms: ms(segment.voice_to) });
            self.close(segment, None, scheduler);
        }
    }

    /// An inference thread has answered.
    pub fn decoded(&mut self, job: &Job, outcome: Result<Heard, String>, tokenizer: &Tokenizer, scheduler: &Scheduler) {
        match outcome {
            Ok(heard) if job.is_final => self.decoded_final(job, heard, tokenizer, scheduler),
            Ok(heard) => self.decoded_guess(job, heard.whole, tokenizer),
            Err(why) => {
                tracing::error!(error = %why, is_final = job.is_final, "inference failed");
                if let Some(pending) = self.pending.get_mut(&job.segment).filter(|_| job.is_final) {
                    pending.done = Some(Event::Failed { segment: job.segment, why });
                    self.release();
                    self.give_lead(job.segment + 1, Lead::default(), tokenizer, scheduler);
                }
            }
        }
        self.settle();
    }

    fn decoded_final(&mut self, job: &Job, heard: Heard, tokenizer: &Tokenizer, scheduler: &Scheduler) {
        let Some(pending) = self.pending.get_mut(&job.segment) else { return };
        let (segment, lead) = (pending.segment, pending.lead.clone().unwrap_or_default());
        let (whole, led) = (&heard.whole, lead.tokens.len());
        let cut = pending.cut.map(|_| cut::split(&heard, led, tokenizer));
        let own = cut.as_ref().map_or(led..whole.tokens.len(), |split| split.own.clone());
        let said = utterance(&segment, &cut::mended(whole.part(own), &lead, tokenizer), tokenizer);
        if said.is_none() && led > 0 && segment.voice_to.saturating_sub(segment.from) >= WORDLESS_VOICE {
            pending.lead = Some(Lead::default());
            return self.ask_for_final(job.segment, scheduler);
        }
        pending.done = Some(said.map_or_else(|| empty(&segment), Event::Final));
        self.release();
        if let Some(cut::Split { own, lead }) = cut {
            let tail = whole.part(own.end..whole.tokens.len());
            let next = Lead { tokens: whole.tokens[lead].to_vec(), tail };
            self.give_lead(job.segment + 1, next, tokenizer, scheduler);
        }
    }

    /// The segment after a forced cut can be recognised now. What was heard past the cut is its first guess.
    fn give_lead(&mut self, index: u32, lead: Lead, tokenizer: &Tokenizer, scheduler: &Scheduler) {
        if let Some(pending) = self.pending.get_mut(&index) {
            if pending.lead.is_none() {
                pending.lead = Some(lead);
                self.ask_for_final(index, scheduler);
            }
            return;
        }
        let Some(open) = self.segmenter.open().filter(|s| s.index == index && self.guess.lead.is_none()) else {
            return;
        };
        let guess = utterance(&open, &cut::mended(lead.tail.clone(), &lead, tokenizer), tokenizer);
        if let Some(guess) = guess.filter(|_| self.interims && open.has_voice()) {
            self.emit(Event::Interim(guess));
        }
        self.guess.previous = [&lead.tokens[..], &lead.tail.tokens].concat();
        self.guess.agreed = lead.tokens.clone();
        self.guess.lead = Some(lead);
    }

    fn decoded_guess(&mut self, job: &Job, decoded: Decoded, tokenizer: &Tokenizer) {
        let Some(open) = self.segmenter.open().filter(|s| s.index == job.segment) else { return };
        let Some(lead) = self.guess.lead.as_ref().filter(|_| self.guess.segment == job.segment) else { return };
        let own = cut::mended(decoded.part(lead.tokens.len()..decoded.tokens.len()), lead, tokenizer);
        let same = decoded.tokens.iter().zip(&self.guess.previous).take_while(|(a, b)| a == b).count();
        let agreed = same.saturating_sub(UNSTABLE_TOKENS);
        if agreed > self.guess.agreed.len() {
            self.guess.agreed = decoded.tokens[..agreed].to_vec();
        }
        if let Some(guess) = utterance(&open, &own, tokenizer) {
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
        let unasked = self.pending.values().filter(|p| p.done.is_none()).map(|p| p.segment.lead_from).min();
        let keep = self.segmenter.keep_from().min(self.heard).min(unasked.unwrap_or(usize::MAX));
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

fn empty(segment: &Segment) -> Event {
    let (start_ms, end_ms) = (ms(segment.voice_from), ms(segment.voice_to.max(segment.voice_from)));
    Event::Empty { segment: segment.index, start_ms, end_ms }
}

/// `None` when there is no word in it.
fn utterance(segment: &Segment, decoded: &Decoded, tokenizer: &Tokenizer) -> Option<Utterance> {
    let mut words = tokenizer.words(&decoded.tokens, &decoded.log_probs);
    if words.is_empty() {
        return None;
    }
    let (start_ms, end_ms) = (ms(segment.voice_from), ms(segment.voice_to.max(segment.voice_from)));
    spread(&mut words, start_ms, end_ms);
    let text = words.iter().map(|w| w.word.as_str()).collect::<Vec<_>>().join(" ");
    let confidence = confidence(&decoded.log_probs);
    Some(Utterance { segment: segment.index, text, start_ms, end_ms, confidence, words })
}
