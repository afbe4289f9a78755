//! The ear: one thread that listens to all streams in turn and hands speech to the inference threads.
//!
//! Voice detection costs 0.5 % of a core per stream, so one thread is enough for far more streams than inference is.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::sync::atomic::AtomicUsize;
use std::sync::mpsc::{Receiver, TryRecvError};

use tokio::sync::mpsc::UnboundedSender;

use super::super::engine::{Event, SAMPLES_PER_MS, StreamParams};
use super::model::Heard;
use super::scheduler::{Job, Scheduler};
use super::stream::{FIRST_INTERIM_MS, Stream};
use super::tokenizer::Tokenizer;
use super::vad::Vad;

/// Interims are at least [`FIRST_INTERIM_MS`] apart, at most this far, ms of audio ...
const INTERIM_PERIOD_MAX_MS: u64 = 2000;
/// ... and in between this many times the usual lag of an interim: a busy machine guesses less often.
const INTERIM_LAG_FACTOR: u64 = 10;
/// Weight of the newest lag in the usual one: 1 in so many.
const LAG_SMOOTHING: u64 = 8;
/// A final that waited longer than this is worth a line in the log, ms.
const LATE_FINAL_MS: u64 = 5000;
/// A stream that catches up is listened to in pieces, so that the others are not kept waiting.
pub const PIECE: usize = 500 * SAMPLES_PER_MS;

/// A message to the ear.
pub enum ToEar {
    Open { id: u64, params: StreamParams, events: UnboundedSender<Event>, backlog: Arc<AtomicUsize> },
    Audio { id: u64, samples: Vec<i16> },
    Finish { id: u64 },
    Abandon { id: u64 },
    Decoded { job: Job, outcome: Result<Heard, String> },
    End,
}

/// Listens to all streams in turn and hands their speech to the inference threads.
pub struct Ear {
    vad: Vad,
    tokenizer: Tokenizer,
    scheduler: Arc<Scheduler>,
    inbox: Receiver<ToEar>,
    streams: HashMap<u64, Stream>,
    /// Streams with audio to listen to, each once.
    ready: VecDeque<u64>,
    usual_lag_ms: u64,
}

impl Ear {
    pub fn new(vad: Vad, tokenizer: Tokenizer, scheduler: Arc<Scheduler>, inbox: Receiver<ToEar>) -> Self {
        Self { vad, tokenizer, scheduler, inbox, streams: HashMap::new(), ready: VecDeque::new(), usual_lag_ms: 0 }
    }

    /// Works until the engine is dropped.
    pub fn run(mut self) {
        loop {
            let message = if self.ready.is_empty() {
                self.inbox.recv().map_err(|_| TryRecvError::Disconnected)
            } else {
                self.inbox.try_recv()
            };
            match message {
                Ok(ToEar::End) | Err(TryRecvError::Disconnected) => return,
                Ok(message) => self.take(message),
                Err(TryRecvError::Empty) => self.listen(),
            }
        }
    }

    fn take(&mut self, message: ToEar) {
        match message {
            ToEar::Open { id, params, events, backlog } => match self.vad.state() {
                Ok(state) => drop(self.streams.insert(id, Stream::new(id, params, events, backlog, state))),
                Err(error) => {
                    tracing::error!(%error, "voice detection could not be started");
                    let _ = events.send(Event::Finished);
                }
            },
            ToEar::Audio { id, samples } => {
                let Some(stream) = self.streams.get_mut(&id) else { return };
                stream.append(&samples);
                self.make_ready(id);
            }
            ToEar::Finish { id } => {
                let Some(stream) = self.streams.get_mut(&id) else { return };
                stream.finishing = true;
                self.make_ready(id);
            }
            ToEar::Abandon { id } => {
                self.streams.remove(&id);
                self.scheduler.forget(id);
            }
            ToEar::Decoded { job, outcome } => self.decoded(job, outcome),
            ToEar::End => {}
        }
    }

    fn make_ready(&mut self, id: u64) {
        if !self.ready.contains(&id) {
            self.ready.push_back(id);
        }
    }

    /// Listens to one piece of the stream whose turn it is.
    fn listen(&mut self) {
        let Some(id) = self.ready.pop_front() else { return };
        let Some(stream) = self.streams.get_mut(&id) else { return };
        let period_ms = (INTERIM_LAG_FACTOR * self.usual_lag_ms).clamp(FIRST_INTERIM_MS, INTERIM_PERIOD_MAX_MS);
        let period = period_ms as usize * SAMPLES_PER_MS;
        if let Err(error) = stream.listen(&mut self.vad, &self.scheduler, PIECE, period) {
            tracing::error!(%error, "voice detection failed; the piece counts as speech");
        }
        if stream.unheard() {
            self.ready.push_back(id);
        }
    }

    fn decoded(&mut self, job: Job, outcome: Result<Heard, String>) {
        let lag_ms = job.queued.elapsed().as_millis() as u64;
        if job.is_final && lag_ms > LATE_FINAL_MS {
            tracing::warn!(lag_ms, "final was late: more sessions than the inference threads can serve");
        } else if !job.is_final {
            self.usual_lag_ms = (self.usual_lag_ms * (LAG_SMOOTHING - 1) + lag_ms) / LAG_SMOOTHING;
        }
        if let Some(stream) = self.streams.get_mut(&job.stream) {
            stream.decoded(&job, outcome, &self.tokenizer, &self.scheduler);
        }
    }
}
