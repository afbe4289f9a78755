//! The real engine: Silero finds speech, Moonshine tiny-en turns it into English text.
//!
//! ```text
//! push -> [ear thread: VAD, segments of all streams] -> scheduler -> [inference threads] -> ear -> events
//! ```
//! Moonshine is no streaming model, but its cost grows with the audio's length, so the open segment is simply decoded
//! again and again while it grows (interims), and once more when it is closed (final). Speech without a pause is cut where
//! it is quietest, and the next segment hears a little from before the cut (`cut` says how each word is said once).

mod cut;
mod ear;
mod energy;
mod model;
mod runtime;
mod scheduler;
mod segmenter;
mod stream;
mod tokenizer;
mod vad;

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::mpsc;
use std::thread::JoinHandle;

use tokio::sync::mpsc::UnboundedSender;

use self::ear::{Ear, ToEar};
use self::model::Model;
use self::scheduler::Scheduler;
use self::tokenizer::Tokenizer;
use self::vad::Vad;
use super::engine::{About, Engine, EngineStream, Event, Load, StreamParams};
use super::models::{ModelDir, ModelError, TOKENIZER};

/// The engine for speech: its models and its worker threads. Dropping it ends its threads.
pub struct Moonshine {
    model: &'static str,
    threads: usize,
    ear: mpsc::Sender<ToEar>,
    ear_thread: JoinHandle<()>,
    scheduler: Arc<Scheduler>,
    next_stream: AtomicU64,
}

impl Moonshine {
    /// Checks and loads the models (about 1 s) and starts `threads` inference threads and the ear.
    pub fn load(model_dir: &Path, threads: usize) -> Result<Self, ModelError> {
        let models = ModelDir::open(model_dir)?;
        let path = models.path(TOKENIZER);
        let bytes = std::fs::read(&path).map_err(|source| ModelError::Read { path: path.clone(), source })?;
        let tokenizer = Tokenizer::parse(&bytes).map_err(|why| ModelError::Invalid { path, why })?;
        let scheduler = Arc::new(Scheduler::default());
        let (ear, to_ear) = mpsc::channel();
        let vad = Vad::load(&models)?;
        for index in 0..threads {
            spawn_worker(index, Model::load(&models)?, scheduler.clone(), ear.clone());
        }
        let ear_loop = Ear::new(vad, tokenizer, scheduler.clone(), to_ear);
        let ear_thread = spawn("stt-ear", move || ear_loop.run());
        Ok(Self { model: models.name(), threads, ear, ear_thread, scheduler, next_stream: AtomicU64::new(0) })
    }
}

fn spawn(name: &str, work: impl FnOnce() + Send + 'static) -> JoinHandle<()> {
    std::thread::Builder::new().name(name.to_owned()).spawn(work).expect("a thread can be started at start-up")
}

fn spawn_worker(index: usize, mut model: Model, scheduler: Arc<Scheduler>, ear: mpsc::Sender<ToEar>) {
    let work = move || {
        while let Some(job) = scheduler.next(index) {
            // A thread that dies would leave its sessions waiting for ever.
            let recognise = || model.recognise(&job.samples, &job.prefix, &job.stops).map_err(|e| e.to_string());
            let outcome =
                catch_unwind(AssertUnwindSafe(recognise)).unwrap_or_else(|_| Err("inference panicked".to_owned()));
            scheduler.done(index);
            if ear.send(ToEar::Decoded { job, outcome }).is_err() {
                return;
            }
        }
    };
    spawn(&format!("stt-infer-{index}"), work);
}

impl Drop for Moonshine {
    fn drop(&mut self) {
        self.scheduler.close();
        let _ = self.ear.send(ToEar::End);
    }
}

impl Engine for Moonshine {
    fn about(&self) -> About {
        About {
            engine: "moonshine",
            model: self.model.to_owned(),
            language: "en",
            threads: self.threads,
            exact_endpointing: false,
        }
    }

    fn open(&self, params: StreamParams, events: UnboundedSender<Event>) -> Box<dyn EngineStream> {
        let id = self.next_stream.fetch_add(1, Ordering::Relaxed);
        let backlog = Arc::new(AtomicUsize::new(0));
        let _ = self.ear.send(ToEar::Open { id, params, events, backlog: backlog.clone() });
        Box::new(Handle { id, ear: self.ear.clone(), backlog })
    }

    fn load(&self) -> Load {
        let load = self.scheduler.load(self.threads);
        Load { broken: load.broken || self.ear_thread.is_finished(), ..load }
    }
}

struct Handle {
    id: u64,
    ear: mpsc::Sender<ToEar>,
    /// Samples pushed and not yet settled; the ear subtracts.
    backlog: Arc<AtomicUsize>,
}

impl EngineStream for Handle {
    fn push(&mut self, samples: &[i16]) {
        self.backlog.fetch_add(samples.len(), Ordering::Relaxed);
        let _ = self.ear.send(ToEar::Audio { id: self.id, samples: samples.to_vec() });
    }

    fn finish(&mut self) {
        let _ = self.ear.send(ToEar::Finish { id: self.id });
    }

    fn backlog(&self) -> usize {
        self.backlog.load(Ordering::Relaxed)
    }
}

impl Drop for Handle {
    fn drop(&mut self) {
        let _ = self.ear.send(ToEar::Abandon { id: self.id });
    }
}
