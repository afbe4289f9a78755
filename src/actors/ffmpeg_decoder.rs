//! `FfmpegDecoder`: turns a publisher's audio tags into PCM chunks.
//!
//! Owns the running decoder. Takes tags from `core.tags`, keeps them in `core.decode` until their sound is out, and
//! pushes PCM into the ledger. Ends by a fault only: a decoder that dies, freezes or cannot be started. Its successor
//! finds all that is not out in `core.decode`. The decoder is started by the first tag, not before.

mod child_watch;
mod reporting;

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use actix::prelude::*;
use serde::Serialize;
use tokio::sync::{Notify, oneshot};
use tokio::time::{Instant, sleep};

use self::child_watch::{ChildWatch, WATCHDOG};
pub use self::reporting::give_up_waiting;
use self::reporting::{accept, announce_orphans, note_returns, report_failed, settle};
use super::rtmp_connection::Advise;
use super::session_core::SessionCore;
use super::supervision::{Lifeline, Observable, Observe};
use crate::allowance::Allowance;
use crate::audio::decoder::{Decoder, DecoderError, DecoderInput, DecoderOutput, Settings};
use crate::audio::process::Process;
use crate::audio::state::{Feed, RunStart};
use crate::audio::{BYTES_PER_SAMPLE, PcmChunk, SAMPLE_RATE};
use crate::transcript::GapReason;

/// Tags taken over and not yet out: 6 s of AAC. Beyond it they wait in the edge.
const MAX_WAITING_TAGS: usize = 256;
/// ffmpeg gives a tag's audio when it has the next; more than these waiting is work.
const USUAL_WAITING_TAGS: usize = 3;
/// Time between two words about decoders that wait for their turn.
const DEFERRED_SAID: Duration = Duration::from_secs(30);
const DEFERRED_ADVICE: &str = "the codec or the configuration of the audio changes too often: a decoder is started for each \
                               change, at most one a second, and what waits too long is lost; send one audio stream";

/// The publisher is gone: decode what is there to its last sample and end the child. Answers when the ledger has all.
#[derive(Debug, Clone, Copy, Message)]
#[rtype(result = "()")]
pub struct Flush;

/// The actor of a session that turns tags into PCM.
pub struct FfmpegDecoder {
    core: Arc<SessionCore>,
    sink: Sink,
    shared: Rc<Shared>,
    lifeline: Lifeline,
}

/// Takes chunks, in order.
pub type Sink = Rc<dyn Fn(PcmChunk)>;

/// State that the actor and its work share.
#[derive(Default)]
struct Shared {
    /// A tag has come, or a flush is wanted.
    work: Notify,
    /// Tags are out.
    room: Notify,
    flushers: RefCell<Vec<oneshot::Sender<()>>>,
    child: Cell<Option<u32>>,
    starts: Cell<u64>,
    received_samples: Cell<u64>,
    inserted_samples: Cell<u64>,
    last_pcm: Cell<Option<Instant>>,
}

impl FfmpegDecoder {
    /// On the calling arbiter, which is the session's.
    pub fn start(core: Arc<SessionCore>, lifeline: Lifeline) -> Addr<Self> {
        let ledger = core.clone();
        Self::start_into(core, Rc::new(move |chunk| ledger.push_pcm(chunk)), lifeline)
    }

    /// The same with another place for the chunks than the session's ledger.
    pub fn start_into(core: Arc<SessionCore>, sink: Sink, lifeline: Lifeline) -> Addr<Self> {
        Self { core, sink, shared: Rc::default(), lifeline }.start()
    }
}

impl Actor for FfmpegDecoder {
    type Context = Context<Self>;

    fn started(&mut self, ctx: &mut Self::Context) {
        self.lifeline.started();
        let work = Work {
            core: self.core.clone(),
            sink: self.sink.clone(),
            shared: self.shared.clone(),
            deferred_said: RefCell::new(Allowance::new(1, DEFERRED_SAID)),
        };
        let run = work.run::<Process>().into_actor(self).map(|error, actor, ctx| {
            tracing::warn!(session = %actor.core.slug, %error, "decoder failed");
            actor.lifeline.fail(error.to_string());
            ctx.stop();
        });
        ctx.spawn(run);
    }
}

impl Handler<Flush> for FfmpegDecoder {
    type Result = ResponseActFuture<Self, ()>;

    fn handle(&mut self, _: Flush, _: &mut Self::Context) -> Self::Result {
        let (done, flushed) = oneshot::channel();
        self.core.decode().want_flush();
        self.shared.flushers.borrow_mut().push(done);
        self.shared.work.notify_one();
        let answer = async move {
            if flushed.await.is_err() {
                // The actor is about to end, and this with it: the caller learns of that.
                std::future::pending::<()>().await;
            }
        };
        Box::pin(answer.into_actor(self))
    }
}

crate::stops_and_crashes!(FfmpegDecoder);

/// The state that `/metrics` shows.
#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct FfmpegDecoderState {
    pub generation: u64,
    pub codec: Option<&'static str>,
    pub child_pid: Option<u32>,
    pub child_starts: u64,
    pub tags_queued: usize,
    pub tags_waiting: usize,
    pub tags_ignored: u64,
    pub lag_ms: Option<i64>,
    pub received_ms: u64,
    pub inserted_ms: u64,
    pub last_pcm_ms_ago: Option<u64>,
}

impl Observable for FfmpegDecoder {
    type State = FfmpegDecoderState;
}

impl Handler<Observe<Self>> for FfmpegDecoder {
    type Result = MessageResult<Observe<Self>>;

    fn handle(&mut self, _: Observe<Self>, _: &mut Self::Context) -> Self::Result {
        let state = self.core.decode();
        let shared = &self.shared;
        let ms = |samples: u64| samples * 1000 / SAMPLE_RATE;
        MessageResult(FfmpegDecoderState {
            generation: self.lifeline.generation(),
            codec: state.codec(),
            child_pid: shared.child.get(),
            child_starts: shared.starts.get(),
            tags_queued: self.core.tags.len(),
            tags_waiting: state.waiting(),
            tags_ignored: state.ignored_tags(),
            lag_ms: state.lag_ms(),
            received_ms: ms(shared.received_samples.get()),
            inserted_ms: ms(shared.inserted_samples.get()),
            last_pcm_ms_ago: shared.last_pcm.get().map(|at| at.elapsed().as_millis() as u64),
        })
    }
}

/// The actor's work, as one future.
struct Work {
    core: Arc<SessionCore>,
    sink: Sink,
    shared: Rc<Shared>,
    deferred_said: RefCell<Allowance>,
}

impl Work {
    /// Ends by a fault only.
    async fn run<D: Decoder>(self) -> DecoderError {
        tokio::select! {
            error = self.decode::<D>() => error,
            never = self.take_tags() => match never {},
        }
    }

    /// Moves tags from the edge into the state. A tag leaves the edge when the state has it.
    async fn take_tags(&self) -> std::convert::Infallible {
        loop {
            while self.core.decode().waiting() >= MAX_WAITING_TAGS {
                self.shared.room.notified().await;
            }
            let settles_at_ms = self.core.decode().settles_at_ms();
            let patience = settles_at_ms.map(|at_ms| at_ms.saturating_sub(self.core.clock_ms()));
            tokio::select! {
                biased;
                tag = self.core.tags.peek(0) => {
                    accept(&self.core, &tag);
                    self.core.tags.pop();
                }
                () = sleep(Duration::from_millis(patience.unwrap_or(0))), if patience.is_some() => settle(&self.core),
            }
            self.shared.work.notify_one();
        }
    }

    /// One decoder after the other, one for each run of tags.
    async fn decode<D: Decoder>(&self) -> DecoderError {
        let settings =
            Settings { ffmpeg_path: self.core.config.audio.ffmpeg_path.clone(), metrics: self.core.metrics.clone() };
        loop {
            self.settle_flush();
            let Some(beginning) = self.core.decode().begin() else {
                self.shared.work.notified().await;
                continue;
            };
            self.afford_start().await;
            let mut decoder = match D::start(&settings, beginning.config.clone()).await {
                Ok(decoder) => decoder,
                Err(error @ (DecoderError::Missing(_) | DecoderError::Start(_))) => return error,
                Err(error) => {
                    self.child_died();
                    return error;
                }
            };
            self.shared.child.set(decoder.id());
            self.shared.starts.set(self.shared.starts.get() + 1);
            let result = self.decode_run(&mut decoder, &beginning).await;
            self.shared.child.set(None);
            if let Err(error) = result {
                self.child_died();
                return error;
            }
            self.run_ended(beginning.run);
        }
    }

    /// Waits until the budget of this stream allows another decoder.
    async fn afford_start(&self) {
        let now = Instant::now();
        let ready_at = self.core.decode().may_start_at(now);
        if ready_at > now {
            self.core.metrics.decoder_starts_deferred_total.inc();
            if self.deferred_said.borrow_mut().take(now) {
                tracing::warn!(session = %self.core.slug, "audio changes too often, decoders wait for their turn");
                if let Some(publisher) = self.core.presence().publisher() {
                    publisher.addr.do_send(Advise { text: DEFERRED_ADVICE });
                }
            }
            tokio::time::sleep_until(ready_at).await;
        }
        self.core.decode().note_start(Instant::now());
    }

    async fn decode_run<D: Decoder>(&self, decoder: &mut D, beginning: &RunStart) -> Result<(), DecoderError> {
        let (input, output) = decoder.split();
        let child = ChildWatch::new(beginning, decoder.complaints());
        let pipes = tokio::select! {
            result = async { tokio::try_join!(self.write(input, beginning, &child), self.read(output, beginning.run, &child)) } => result,
            error = self.watch(beginning.run, &child) => return Err(error),
        };
        // How it ended says more than the pipe that broke by it.
        decoder.ended().await?;
        pipes.map(|_| ())
    }

    async fn write(
        &self,
        mut input: impl DecoderInput,
        beginning: &RunStart,
        child: &ChildWatch,
    ) -> Result<(), DecoderError> {
        let mut seq = beginning.first_seq;
        loop {
            self.note_end_of_tags();
            let (feed, waiting) = {
                let state = self.core.decode();
                (state.feed(beginning, seq), state.waiting())
            };
            match feed {
                Feed::Tag(tag) => {
                    if waiting < USUAL_WAITING_TAGS {
                        child.stamp();
                    }
                    input.write(&tag).await?;
                    seq += 1;
                    child.fed.set(seq);
                }
                Feed::Wait => {
                    self.shared.work.notified().await;
                    if waiting < USUAL_WAITING_TAGS {
                        // What has come now was not there to be decoded before.
                        child.stamp();
                    }
                }
                Feed::End => {
                    child.closed.set(true);
                    child.stamp();
                    return Ok(());
                }
            }
        }
    }

    async fn read(&self, mut output: impl DecoderOutput, run: u64, child: &ChildWatch) -> Result<(), DecoderError> {
        while let Some(audio) = output.read().await? {
            child.pcm();
            self.shared.last_pcm.set(Some(Instant::now()));
            self.core.decode().decoded(run, &audio, child.complaints.frames());
            report_failed(&self.core);
            self.announce_pauses();
            self.push_chunks();
            self.shared.room.notify_one();
        }
        if child.closed.get() { Ok(()) } else { Err(DecoderError::Ended("its output ended early".to_owned())) }
    }

    async fn watch(&self, run: u64, child: &ChildWatch) -> DecoderError {
        loop {
            sleep(WATCHDOG).await;
            if let Some(answered) = child.only_complains() {
                self.core.decode().no_sound(run, child.complaints.frames(), answered);
                report_failed(&self.core);
                self.push_chunks();
                self.shared.room.notify_one();
            }
            let has_work = child.closed.get() || self.core.decode().waiting() >= USUAL_WAITING_TAGS;
            if has_work && child.idle_ms() > child.patience_ms() {
                return DecoderError::Frozen(child.patience_ms());
            }
        }
    }

    /// Gives ready chunks to the ledger. A chunk leaves the state when the ledger has it.
    fn push_chunks(&self) {
        loop {
            let Some(chunk) = self.core.decode().front_chunk() else { return };
            let samples = chunk.pcm.len() / BYTES_PER_SAMPLE;
            let shared = &self.shared;
            if chunk.inserted {
                shared.inserted_samples.set(shared.inserted_samples.get() + samples as u64);
            } else {
                self.core.metrics.decode_latency_seconds.observe(chunk.arrived.elapsed().as_secs_f64());
                shared.received_samples.set(shared.received_samples.get() + samples as u64);
            }
            (self.sink)(chunk);
            self.core.decode().pop_chunk();
        }
    }

    /// The publisher is still there and sent nothing for a while; its timestamps say that it had nothing to send.
    fn announce_pauses(&self) {
        loop {
            let Some(pause) = self.core.decode().pop_pause() else { return };
            self.core.announce_gap(pause.start_ms, pause.end_ms, GapReason::PublisherLost);
        }
    }

    fn run_ended(&self, run: u64) {
        self.core.decode().ended(run);
        report_failed(&self.core);
        self.announce_pauses();
        self.push_chunks();
        self.shared.room.notify_one();
    }

    fn child_died(&self) {
        let lost = self.core.decode().died();
        self.core.metrics.decode_errors_total.inc();
        if let Some(lost) = lost {
            tracing::error!(session = %self.core.slug, tags = lost.tags, "audio given up: no decoder gets through it");
            self.core.announce_undecoded(lost);
        }
    }

    fn note_end_of_tags(&self) {
        let mut state = self.core.decode();
        if state.is_flush_wanted() && self.core.tags.is_empty() {
            state.no_more_tags();
            drop(state);
            note_returns(&self.core);
        }
    }

    fn settle_flush(&self) {
        self.note_end_of_tags();
        if self.core.decode().finish_flush() {
            self.push_chunks();
            self.core.decode().end_orphans();
            announce_orphans(&self.core);
            report_failed(&self.core);
            for done in self.shared.flushers.borrow_mut().drain(..) {
                // Nobody may be waiting any more.
                let _ = done.send(());
            }
        }
    }
}
