//! Session: the supervisor of one slug's life.
//!
//! Owns: the children of one session and their restart budgets; the data is in [`SessionCore`]. Receives: publishers,
//! ends of children, the order to end. Sends: status lines into the log. Ends when the grace period after the last
//! publisher is over, when it is told to, or, with its parent repairing it, by a panic.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use actix::dev::ToEnvelope;
use actix::prelude::*;
use bytes::Bytes;
use serde_json::{Value, json};
use tokio::sync::oneshot;
use tokio::time::Instant;

use super::ffmpeg_decoder::{FfmpegDecoder, Flush};
use super::gladia_bridge::{BridgeParams, Finish, GladiaBridge, PcmChunk};
use super::rtmp_connection::{Adopt, ClosePublisher, CloseReason, RtmpConnection};
use super::services::Services;
use super::session_core::{PublisherLink, SessionCore};
use super::session_registry::{Broadcast, BroadcastAck, BroadcastRefusal, PublishRefusal, SessionEnding};
use super::speaker_tracker::SpeakerTracker;
use super::supervision::{ChildDown, ChildKind, Decision, Exit, Lifeline, Restarts};
use super::transcript_room::{Drain, RoomInput, TranscriptRoom};
use super::{Crash, Observe, Shutdown};
use crate::log::{GapReason, Status};
use crate::rtmp::Publisher;

/// Takeovers of a publisher that is still sending, within [`TAKEOVER_PERIOD`].
const MAX_TAKEOVERS: usize = 3;
const TAKEOVER_PERIOD: Duration = Duration::from_secs(30);
/// A publisher whose last audio is younger than this is "still sending".
const STILL_SENDING: Duration = Duration::from_secs(2);
/// Silence sent after a lost publisher, so that its last words become final.
const CLOSING_SILENCE_MS: u64 = 1000;
/// Longest wait for the decoder's last samples.
const FLUSH_TIMEOUT: Duration = Duration::from_secs(5);
/// Longest wait for the recogniser's last finals when a session ends by itself.
const END_TIMEOUT: Duration = Duration::from_secs(30);
/// Pause before a child that did not answer, because it is being restarted, is asked again.
const ASK_AGAIN: Duration = Duration::from_millis(20);
/// Pause before the children are rebuilt after an exhausted budget.
const REBUILD_DELAY: Duration = Duration::from_secs(5);
/// Pause before a bridge that has exhausted its budget is tried again.
const BRIDGE_RETRY: Duration = Duration::from_secs(30);
/// A reader that takes nothing from a filled edge for so long is frozen.
const FROZEN_AFTER: Duration = Duration::from_secs(10);
/// All children alive for so long after a rebuild: the session is not degraded any more.
const CALM: Duration = Duration::from_secs(10);
const FROZEN_CHECK: Duration = Duration::from_secs(1);
/// A relayed session without any entry for so long ends.
const RELAY_IDLE: Duration = Duration::from_secs(600);
const OBSERVE_TIMEOUT: Duration = Duration::from_millis(200);

/// Where a session's entries come from, hence which children it has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Origin {
    /// A publisher here: all five children.
    Ingest,
    /// POST broadcast: the room and the tracker alone.
    Relay,
}

/// A publisher for this session. Given back when refused.
#[derive(Message)]
#[rtype(result = "Result<(), (PublishRefusal, Box<Publisher>)>")]
pub struct Attach(pub Box<Publisher>);

/// Ends the session: the last words are recognised, delivered and stored first, as far as the deadline allows.
#[derive(Debug, Clone, Message)]
#[rtype(result = "()")]
pub struct End {
    pub reason: String,
    pub deadline: Instant,
    /// True at process stop: the epoch goes on after a restart.
    pub suspend: bool,
}

/// Crashes one child, to prove that it is repaired.
#[derive(Debug, Clone, Copy, Message)]
#[rtype(result = "()")]
pub struct CrashChild(pub ChildKind);

/// See the module.
pub struct Session {
    core: Arc<SessionCore>,
    origin: Origin,
    services: Arc<Services>,
    registry: Recipient<SessionEnding>,
    children: Rc<Children>,
    phase: Phase,
    takeovers: VecDeque<Instant>,
    grace: Option<SpawnHandle>,
    rebuilds: u32,
    degraded: bool,
    frozen: [FrozenCheck; 2],
    enders: Vec<oneshot::Sender<()>>,
    lifeline: Lifeline,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    Waiting,
    Live,
    Ending,
}

/// The four children that are restarted. Dropped with the session, panics included, and then they stop too; the
/// publisher's connection is not among them: it is adopted by the next session actor.
struct Children {
    room: Child<TranscriptRoom>,
    tracker: Child<SpeakerTracker>,
    bridge: Child<GladiaBridge>,
    decoder: Child<FfmpegDecoder>,
}

struct Child<A: Actor> {
    addr: RefCell<Option<Addr<A>>>,
    record: RefCell<Record>,
}

struct Record {
    generation: u64,
    started: Instant,
    restarts: Restarts,
}

/// Watches one edge: items wait and none is taken.
struct FrozenCheck {
    popped: u64,
    since: Instant,
}

impl<A: Actor> Child<A> {
    fn new(kind: ChildKind) -> Self {
        let record = Record { generation: 0, started: Instant::now(), restarts: Restarts::new(kind.policy()) };
        Self { addr: RefCell::new(None), record: RefCell::new(record) }
    }
}

impl<A> Child<A>
where
    A: Actor<Context = Context<A>> + Handler<Shutdown>,
{
    fn stop(&self) {
        if let Some(addr) = self.addr.borrow_mut().take() {
            addr.do_send(Shutdown);
        }
    }

    /// Asks until the child answers; it may be restarted meanwhile. False when the deadline has passed.
    async fn ask<M>(&self, message: M, deadline: Instant) -> bool
    where
        M: Message + Clone + Send + 'static,
        M::Result: Send,
        A: Handler<M>,
        A::Context: ToEnvelope<A, M>,
    {
        while Instant::now() < deadline {
            let addr = self.addr.borrow().clone();
            if let Some(addr) = addr {
                match tokio::time::timeout_at(deadline, addr.send(message.clone())).await {
                    Ok(Ok(_)) => return true,
                    Ok(Err(_)) => {}
                    Err(_) => return false,
                }
            }
            tokio::time::sleep(ASK_AGAIN).await;
        }
        false
    }

    async fn observe(&self) -> Value
    where
        A: Handler<Observe>,
        A::Context: ToEnvelope<A, Observe>,
    {
        let (restarts, last_fault) = {
            let record = self.record.borrow();
            (record.restarts.total(), record.restarts.last_fault().map(str::to_owned))
        };
        let addr = self.addr.borrow().clone();
        let state = match addr {
            None => Value::Null,
            Some(addr) => match tokio::time::timeout(OBSERVE_TIMEOUT, addr.send(Observe)).await {
                Ok(Ok(state)) => state,
                Ok(Err(_)) => Value::Null,
                Err(_) => json!("no answer"),
            },
        };
        json!({ "restarts": restarts, "lastFault": last_fault, "state": state })
    }
}

impl Drop for Children {
    fn drop(&mut self) {
        self.decoder.stop();
        self.bridge.stop();
        self.tracker.stop();
        self.room.stop();
    }
}

impl Session {
    /// Starts the session on the given arbiter. The lifeline was made by the parent.
    pub fn start_on(
        arbiter: &ArbiterHandle,
        core: Arc<SessionCore>,
        origin: Origin,
        services: Arc<Services>,
        registry: Recipient<SessionEnding>,
        lifeline: Lifeline,
    ) -> Addr<Self> {
        Self::start_in_arbiter(arbiter, move |_| {
            let now = Instant::now();
            Self {
                core,
                origin,
                services,
                registry,
                children: Rc::new(Children {
                    room: Child::new(ChildKind::TranscriptRoom),
                    tracker: Child::new(ChildKind::SpeakerTracker),
                    bridge: Child::new(ChildKind::GladiaBridge),
                    decoder: Child::new(ChildKind::FfmpegDecoder),
                }),
                phase: Phase::Waiting,
                takeovers: VecDeque::new(),
                grace: None,
                rebuilds: 0,
                degraded: false,
                frozen: [FrozenCheck { popped: 0, since: now }, FrozenCheck { popped: 0, since: now }],
                enders: Vec::new(),
                lifeline,
            }
        })
    }

    /// Downstream first, so that nobody speaks to somebody who is not there.
    fn kinds(&self) -> &'static [ChildKind] {
        match self.origin {
            Origin::Ingest => &[
                ChildKind::TranscriptRoom,
                ChildKind::SpeakerTracker,
                ChildKind::GladiaBridge,
                ChildKind::FfmpegDecoder,
            ],
            Origin::Relay => &[ChildKind::TranscriptRoom, ChildKind::SpeakerTracker],
        }
    }

    fn record(&self, kind: ChildKind) -> Option<&RefCell<Record>> {
        match kind {
            ChildKind::TranscriptRoom => Some(&self.children.room.record),
            ChildKind::SpeakerTracker => Some(&self.children.tracker.record),
            ChildKind::GladiaBridge => Some(&self.children.bridge.record),
            ChildKind::FfmpegDecoder => Some(&self.children.decoder.record),
            _ => None,
        }
    }

    fn start_child(&mut self, kind: ChildKind, ctx: &mut Context<Self>) {
        let Some(record) = self.record(kind) else { return };
        let generation = {
            let mut record = record.borrow_mut();
            record.generation += 1;
            record.started = Instant::now();
            record.generation
        };
        let parent = ctx.address().recipient();
        let lifeline = Lifeline::new(parent, kind, generation, self.core.metrics.clone());
        let core = self.core.clone();
        let children = &self.children;
        match kind {
            ChildKind::TranscriptRoom => {
                let room = TranscriptRoom::start(core, self.services.sink.clone(), lifeline);
                children.room.addr.replace(Some(room));
            }
            ChildKind::SpeakerTracker => {
                let tracker = SpeakerTracker::start(core, lifeline);
                self.connect_tracker(&tracker);
                self.children.tracker.addr.replace(Some(tracker));
            }
            ChildKind::GladiaBridge => {
                let params = BridgeParams {
                    core,
                    endpoint: self.services.stt.clone(),
                    slots: self.services.stt_slots.clone(),
                    lifeline,
                };
                children.bridge.addr.replace(Some(GladiaBridge::start(params)));
            }
            ChildKind::FfmpegDecoder => {
                children.decoder.addr.replace(Some(FfmpegDecoder::start(core, lifeline)));
            }
            _ => {}
        }
    }

    /// The room asks it for labels; viewers report to it.
    fn connect_tracker(&self, tracker: &Addr<SpeakerTracker>) {
        *self.core.tracker.lock() = Some(tracker.clone());
        let tracker = tracker.clone();
        let room = self.services.directory.get_or_create(&self.core.slug);
        // A full mailbox drops the report: a newer one follows.
        room.set_speaker_sink(Some(Arc::new(move |update| {
            let _ = tracker.try_send(update);
        })));
    }

    fn stop_child(&self, kind: ChildKind) {
        if let Some(record) = self.record(kind) {
            // The end of this life is expected: its ChildDown is an old generation's.
            record.borrow_mut().generation += 1;
        }
        match kind {
            ChildKind::TranscriptRoom => self.children.room.stop(),
            ChildKind::SpeakerTracker => self.children.tracker.stop(),
            ChildKind::GladiaBridge => self.children.bridge.stop(),
            ChildKind::FfmpegDecoder => self.children.decoder.stop(),
            _ => {}
        }
    }

    fn child_down(&mut self, down: ChildDown, ctx: &mut Context<Self>) {
        let kind = down.kind;
        let Some(record) = self.record(kind) else { return };
        let decision = {
            let mut record = record.borrow_mut();
            if record.generation != down.generation {
                return;
            }
            let lived = record.started.elapsed();
            record.restarts.decide(&down.exit, lived, Instant::now())
        };
        self.stop_child(kind);
        let session = &self.core.slug;
        match decision {
            Decision::Ended => tracing::debug!(%session, child = kind.as_str(), "child ended"),
            Decision::Restart(delay) => {
                let delay_ms = delay.as_millis() as u64;
                tracing::warn!(%session, child = kind.as_str(), exit = %down.exit, delay_ms, "child restarts");
                self.core.metrics.actor_restarts_total.with_label_values(&[kind.as_str()]).inc();
                let due = self.generation(kind);
                ctx.run_later(delay, move |this, ctx| this.start_if_due(kind, due, ctx));
            }
            Decision::Escalate => self.escalate(kind, &down.exit, ctx),
        }
    }

    /// A budget is exhausted: rebuild everything downstream of the publisher, whose socket stays.
    fn escalate(&mut self, kind: ChildKind, exit: &Exit, ctx: &mut Context<Self>) {
        let alone: &'static [ChildKind] = &[ChildKind::GladiaBridge];
        let rebuilt = if kind == ChildKind::GladiaBridge { alone } else { self.kinds() };
        let base = if kind == ChildKind::GladiaBridge { BRIDGE_RETRY } else { REBUILD_DELAY };
        let delay = super::supervision::backoff(base, BRIDGE_RETRY.max(base), self.rebuilds);
        self.rebuilds += 1;
        let session = &self.core.slug;
        let delay_s = delay.as_secs();
        tracing::error!(%session, child = kind.as_str(), %exit, delay_s, "restart budget exhausted, session degraded");
        self.core.metrics.actor_escalations_total.with_label_values(&[kind.as_str()]).inc();
        for kind in rebuilt.iter().rev() {
            self.stop_child(*kind);
        }
        let due: Vec<_> = rebuilt.iter().map(|kind| (*kind, self.generation(*kind))).collect();
        self.degraded = true;
        self.say(Status::Degraded, &format!("{}_failing", kind.as_str()));
        ctx.run_later(delay, move |this, ctx| {
            for (kind, due) in due {
                if let Some(record) = this.record(kind) {
                    record.borrow_mut().restarts.reset();
                }
                this.start_if_due(kind, due, ctx);
            }
            ctx.run_later(CALM, |this, ctx| this.recovered(ctx));
        });
    }

    /// Asks again until all children have lived through [`CALM`].
    fn recovered(&mut self, ctx: &mut Context<Self>) {
        if !self.degraded || self.phase == Phase::Ending {
            return;
        }
        let now = Instant::now();
        let calm = |kind: &ChildKind| {
            self.is_running(*kind) && self.record(*kind).is_some_and(|r| r.borrow().restarts.is_calm(now, CALM))
        };
        if !self.kinds().iter().all(calm) {
            ctx.run_later(CALM, |this, ctx| this.recovered(ctx));
            return;
        }
        self.degraded = false;
        self.rebuilds = 0;
        let status = if self.phase == Phase::Live { Status::Live } else { Status::Waiting };
        self.say(status, "recovered");
    }

    fn generation(&self, kind: ChildKind) -> u64 {
        self.record(kind).map_or(0, |record| record.borrow().generation)
    }

    fn is_running(&self, kind: ChildKind) -> bool {
        match kind {
            ChildKind::TranscriptRoom => self.children.room.addr.borrow().is_some(),
            ChildKind::SpeakerTracker => self.children.tracker.addr.borrow().is_some(),
            ChildKind::GladiaBridge => self.children.bridge.addr.borrow().is_some(),
            ChildKind::FfmpegDecoder => self.children.decoder.addr.borrow().is_some(),
            _ => false,
        }
    }

    /// Unless somebody else has stopped or started it since: two readers of one edge would lose items.
    fn start_if_due(&mut self, kind: ChildKind, due: u64, ctx: &mut Context<Self>) {
        if self.generation(kind) == due && !self.is_running(kind) {
            self.start_child(kind, ctx);
        }
    }

    fn check_frozen(&mut self, ctx: &mut Context<Self>) {
        let edges = [
            (ChildKind::FfmpegDecoder, self.core.tags.len(), self.core.tags.popped()),
            (ChildKind::TranscriptRoom, self.core.room.len(), self.core.room.popped()),
        ];
        let running = edges.map(|(kind, ..)| self.is_running(kind));
        for ((check, (kind, waiting, popped)), running) in self.frozen.iter_mut().zip(edges).zip(running) {
            // A child that waits for its restart is not frozen.
            if waiting == 0 || popped != check.popped || !running {
                *check = FrozenCheck { popped, since: Instant::now() };
            }
            if check.since.elapsed() >= FROZEN_AFTER {
                check.since = Instant::now();
                let generation = match kind {
                    ChildKind::FfmpegDecoder => self.children.decoder.record.borrow().generation,
                    _ => self.children.room.record.borrow().generation,
                };
                ctx.notify(ChildDown { kind, generation, exit: Exit::Frozen });
            }
        }
    }

    /// Adds a status line to the log.
    fn say(&self, status: Status, reason: &str) {
        let id = uuid::Uuid::now_v7().simple().to_string();
        self.core.room.push_unbounded(RoomInput::Status { id, status, reason: Some(reason.to_owned()) });
    }

    fn attach(&mut self, publisher: Box<Publisher>, ctx: &mut Context<Self>) -> AttachResult {
        if self.phase == Phase::Ending || self.origin == Origin::Relay {
            return Err((PublishRefusal::Ending, publisher));
        }
        let displaced = self.core.publisher.lock().is_some();
        if displaced && self.core.tags.last_push().is_some_and(|at| at.elapsed() < STILL_SENDING) {
            while self.takeovers.front().is_some_and(|at| at.elapsed() >= TAKEOVER_PERIOD) {
                self.takeovers.pop_front();
            }
            if self.takeovers.len() >= MAX_TAKEOVERS {
                return Err((PublishRefusal::TakeoverLimit, publisher));
            }
            self.takeovers.push_back(Instant::now());
        }
        if let Some(old) = self.core.publisher.lock().take() {
            self.core.metrics.rtmp_takeovers_total.inc();
            old.addr.do_send(ClosePublisher { reason: CloseReason::Displaced });
        }
        let generation = self.core.publisher_generation.fetch_add(1, Ordering::Relaxed) + 1;
        let metrics = self.core.metrics.clone();
        let lifeline = Lifeline::new(ctx.address().recipient(), ChildKind::RtmpConnection, generation, metrics);
        let addr = RtmpConnection::start(publisher, self.core.clone(), generation, lifeline);
        *self.core.publisher.lock() = Some(PublisherLink { addr, generation });
        self.publisher_here(ctx);
        Ok(())
    }

    fn publisher_here(&mut self, ctx: &mut Context<Self>) {
        if let Some(grace) = self.grace.take() {
            ctx.cancel_future(grace);
        }
        let away = self.core.away.lock().take();
        if let Some((start_ms, reason)) = away {
            let id = format!("{}-{start_ms}", reason.as_str());
            let end_ms = self.core.clock_ms().max(start_ms);
            self.core.room.push_unbounded(RoomInput::Gap { id, start_ms, end_ms, reason });
        }
        if self.phase != Phase::Live {
            self.phase = Phase::Live;
            self.say(Status::Live, "publisher_connected");
        }
    }

    fn publisher_down(&mut self, down: ChildDown, ctx: &mut Context<Self>) {
        if down.generation != self.publisher_generation() || self.phase == Phase::Ending {
            return;
        }
        self.core.publisher.lock().take();
        tracing::info!(session = %self.core.slug, exit = %down.exit, "publisher gone");
        self.phase = Phase::Waiting;
        *self.core.away.lock() = Some((self.core.clock_ms(), GapReason::PublisherLost));
        self.say(Status::Waiting, "publisher_lost");
        let (core, children) = (self.core.clone(), self.children.clone());
        let generation = self.publisher_generation();
        let flush = async move { children.decoder.ask(Flush, Instant::now() + FLUSH_TIMEOUT).await };
        ctx.spawn(flush.into_actor(self).map(move |_, this, _| {
            if this.publisher_generation() == generation {
                push_silence(&core);
            }
        }));
        self.start_grace(ctx);
    }

    fn publisher_generation(&self) -> u64 {
        self.core.publisher_generation.load(Ordering::Relaxed)
    }

    fn start_grace(&mut self, ctx: &mut Context<Self>) {
        let grace = match self.origin {
            Origin::Ingest => self.core.config.rtmp.grace,
            Origin::Relay => RELAY_IDLE,
        };
        if let Some(old) = self.grace.take() {
            ctx.cancel_future(old);
        }
        self.grace = Some(ctx.run_later(grace, |this, ctx| {
            let deadline = Instant::now() + END_TIMEOUT;
            this.end(End { reason: "grace_period_over".into(), deadline, suspend: false }, ctx);
        }));
    }

    fn end(&mut self, end: End, ctx: &mut Context<Self>) {
        if self.phase == Phase::Ending {
            return;
        }
        self.phase = Phase::Ending;
        tracing::info!(session = %self.core.slug, reason = %end.reason, suspend = end.suspend, "session ends");
        self.registry.do_send(SessionEnding { slug: self.core.slug.clone(), epoch: self.core.epoch });
        let finish = finish(self.core.clone(), self.children.clone(), self.origin, end.clone());
        ctx.spawn(finish.into_actor(self).map(move |_, this, ctx| this.ended(&end, ctx)));
    }

    fn ended(&mut self, end: &End, ctx: &mut Context<Self>) {
        self.core.log.close();
        self.services.session_ended(&self.core, end.suspend);
        let audio = self.core.ledger.lock().account();
        tracing::info!(
            session = %self.core.slug, lastSeq = self.core.log.last_seq(), receivedMs = audio.received_ms,
            finalisedMs = audio.finalised_ms, lostMs = audio.lost_ms, "session ended"
        );
        for kind in self.kinds().iter().rev() {
            self.stop_child(*kind);
        }
        for waiting in self.enders.drain(..) {
            let _ = waiting.send(());
        }
        ctx.stop();
    }
}

/// The order of an end: publisher, decoder, recogniser, room, last status, room.
async fn finish(core: Arc<SessionCore>, children: Rc<Children>, origin: Origin, end: End) {
    let publisher = core.publisher.lock().take();
    if origin == Origin::Ingest {
        if let Some(publisher) = publisher {
            let reason = if end.suspend { CloseReason::Draining } else { CloseReason::SessionEnded };
            let close = publisher.addr.send(ClosePublisher { reason });
            let _ = tokio::time::timeout(FLUSH_TIMEOUT, close).await;
        }
        // Also after a publisher that has left by itself: its last samples may still be in the decoder.
        children.decoder.ask(Flush, end.deadline.min(Instant::now() + FLUSH_TIMEOUT)).await;
        let slack = Duration::from_millis(500);
        let deadline = end.deadline.checked_sub(slack).unwrap_or(end.deadline);
        if !children.bridge.ask(Finish { deadline }, deadline + slack / 2).await {
            tracing::warn!(session = %core.slug, "the recogniser did not finish in time");
        }
    }
    drain_room(&core, &children, end.deadline).await;
    let status = if end.suspend { Status::Suspended } else { Status::Ended };
    let id = uuid::Uuid::now_v7().simple().to_string();
    core.room.push_unbounded(RoomInput::Status { id, status, reason: Some(end.reason) });
    drain_room(&core, &children, end.deadline + Duration::from_millis(200)).await;
}

/// A room that dies while it drains answers too early: what counts is the empty edge.
async fn drain_room(core: &SessionCore, children: &Children, deadline: Instant) {
    while children.room.ask(Drain, deadline).await && !core.room.is_empty() {
        tokio::time::sleep(ASK_AGAIN).await;
    }
}

fn push_silence(core: &SessionCore) {
    let chunk_ms = core.config.audio.chunk_ms;
    for _ in 0..CLOSING_SILENCE_MS / chunk_ms {
        let start_ms = core.ledger.lock().end_clock_ms();
        let pcm = Bytes::from(vec![0; chunk_ms as usize * 32]);
        core.push_pcm(PcmChunk { pcm, start_ms, inserted: true, arrived: Instant::now() });
    }
}

type AttachResult = Result<(), (PublishRefusal, Box<Publisher>)>;

impl Actor for Session {
    type Context = Context<Self>;

    fn started(&mut self, ctx: &mut Self::Context) {
        self.lifeline.started();
        for kind in self.kinds() {
            self.start_child(*kind, ctx);
        }
        let adopted = self.core.publisher.lock().as_ref().map(|p| (p.addr.clone(), p.generation));
        if let Some((publisher, generation)) = adopted {
            let metrics = self.core.metrics.clone();
            let parent = ctx.address().recipient();
            let lifeline = Lifeline::new(parent, ChildKind::RtmpConnection, generation, metrics);
            self.phase = Phase::Live;
            publisher.do_send(Adopt { lifeline });
        } else {
            let away = *self.core.away.lock();
            if matches!(away, Some((_, GapReason::ProcessRestart))) {
                self.say(Status::Waiting, "process_restarted");
            }
            self.start_grace(ctx);
        }
        ctx.run_interval(FROZEN_CHECK, |this, ctx| this.check_frozen(ctx));
        ctx.run_interval(Duration::from_secs(1), |this, _| this.services.checkpoint(&this.core));
    }
}

impl Handler<ChildDown> for Session {
    type Result = ();

    fn handle(&mut self, down: ChildDown, ctx: &mut Self::Context) {
        if down.kind == ChildKind::RtmpConnection {
            self.publisher_down(down, ctx);
        } else {
            self.child_down(down, ctx);
        }
    }
}

impl Handler<Attach> for Session {
    type Result = AttachResult;

    fn handle(&mut self, Attach(publisher): Attach, ctx: &mut Self::Context) -> Self::Result {
        self.attach(publisher, ctx)
    }
}

impl Handler<Broadcast> for Session {
    type Result = ResponseFuture<Result<BroadcastAck, BroadcastRefusal>>;

    fn handle(&mut self, broadcast: Broadcast, ctx: &mut Self::Context) -> Self::Result {
        if self.origin == Origin::Relay && self.phase != Phase::Ending {
            self.start_grace(ctx);
        }
        let room = self.children.room.addr.borrow().clone();
        Box::pin(async move {
            let room = room.ok_or(BroadcastRefusal::Unavailable)?;
            room.send(broadcast).await.unwrap_or(Err(BroadcastRefusal::Unavailable))
        })
    }
}

impl Handler<End> for Session {
    type Result = ResponseFuture<()>;

    fn handle(&mut self, end: End, ctx: &mut Self::Context) -> Self::Result {
        let (done, wait) = oneshot::channel();
        self.enders.push(done);
        self.end(end, ctx);
        Box::pin(async move {
            let _ = wait.await;
        })
    }
}

/// The registry that started it is gone and its successor starts this session anew; the publisher is adopted.
impl Handler<Shutdown> for Session {
    type Result = ();

    fn handle(&mut self, _: Shutdown, ctx: &mut Self::Context) {
        ctx.stop();
    }
}

impl Handler<CrashChild> for Session {
    type Result = ();

    fn handle(&mut self, CrashChild(kind): CrashChild, _: &mut Self::Context) {
        fn crash<A: Actor<Context = Context<A>> + Handler<Crash>>(addr: &RefCell<Option<Addr<A>>>) {
            if let Some(addr) = &*addr.borrow() {
                addr.do_send(Crash);
            }
        }
        match kind {
            ChildKind::TranscriptRoom => crash(&self.children.room.addr),
            ChildKind::SpeakerTracker => crash(&self.children.tracker.addr),
            ChildKind::GladiaBridge => crash(&self.children.bridge.addr),
            ChildKind::FfmpegDecoder => crash(&self.children.decoder.addr),
            ChildKind::RtmpConnection => {
                if let Some(publisher) = &*self.core.publisher.lock() {
                    publisher.addr.do_send(Crash);
                }
            }
            _ => panic!("crash requested"),
        }
    }
}

impl Handler<Observe> for Session {
    type Result = ResponseFuture<Value>;

    fn handle(&mut self, _: Observe, _: &mut Self::Context) -> Self::Result {
        let (core, children, origin) = (self.core.clone(), self.children.clone(), self.origin);
        let phase = format!("{:?}", self.phase).to_lowercase();
        let viewers = self.services.directory.get(&core.slug).map_or(0, |room| room.viewers());
        let (generation, degraded, rebuilds) = (self.lifeline.generation(), self.degraded, self.rebuilds);
        Box::pin(async move {
            let publisher = core.publisher.lock().as_ref().map(|p| p.addr.clone());
            let publisher = match publisher {
                None => Value::Null,
                Some(addr) => match tokio::time::timeout(OBSERVE_TIMEOUT, addr.send(Observe)).await {
                    Ok(Ok(state)) => state,
                    _ => json!("no answer"),
                },
            };
            let mut tree = json!({
                "transcriptRoom": children.room.observe().await,
                "speakerTracker": children.tracker.observe().await,
            });
            if origin == Origin::Ingest {
                tree["gladiaBridge"] = children.bridge.observe().await;
                tree["ffmpegDecoder"] = children.decoder.observe().await;
                tree["rtmpConnection"] = publisher;
            }
            let audio = core.ledger.lock().account();
            json!({
                "session": core.slug,
                "epoch": core.epoch,
                "origin": format!("{origin:?}").to_lowercase(),
                "phase": phase,
                "status": core.log.status(),
                "startedAt": core.started_at,
                "uptimeMs": core.clock_ms(),
                "generation": generation,
                "degraded": degraded,
                "rebuilds": rebuilds,
                "viewers": viewers,
                "seq": core.log.last_seq(),
                "edges": { "tags": core.tags.len(), "room": core.room.len() },
                "audio": audio,
                "children": tree,
            })
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::actors::ffmpeg_decoder::AudioTag;
    use crate::actors::services::testing::services;
    use crate::actors::session_core::Beginning;
    use crate::log::Slug;

    /// Takes what a session tells its parent.
    struct Parent;
    impl Actor for Parent {
        type Context = Context<Self>;
    }
    impl Handler<ChildDown> for Parent {
        type Result = ();
        fn handle(&mut self, _: ChildDown, _: &mut Self::Context) {}
    }
    impl Handler<SessionEnding> for Parent {
        type Result = ();
        fn handle(&mut self, _: SessionEnding, _: &mut Self::Context) {}
    }

    fn session(services: &Arc<Services>) -> (Arc<SessionCore>, Addr<Session>) {
        let core = Arc::new(services.new_core(Slug::parse("demo").unwrap(), Beginning::default()));
        let parent = Parent.start();
        let lifeline = Lifeline::new(parent.clone().recipient(), ChildKind::Session, 1, services.metrics.clone());
        let arbiter = Arbiter::current();
        let session =
            Session::start_on(&arbiter, core.clone(), Origin::Ingest, services.clone(), parent.recipient(), lifeline);
        (core, session)
    }

    async fn crash(session: &Addr<Session>, kind: ChildKind) {
        session.send(CrashChild(kind)).await.unwrap();
        tokio::time::sleep(Duration::from_millis(1)).await;
    }

    #[actix::test]
    async fn there_is_never_a_second_child_of_a_kind() {
        tokio::time::pause();
        let services = services(&[("SESSION_GRACE_MS", "86400000"), ("FFMPEG_PATH", "/nonexistent/ffmpeg")]);
        let (core, session) = session(&services);
        let live = |kind: ChildKind| services.metrics.actors_live.with_label_values(&[kind.as_str()]).get();
        for n in 0..6000 {
            // Audio waits all the time, and the decoder dies by far too often.
            let body = Bytes::from_static(&[0xAF, 1, 0]);
            let _ = core.tags.try_push(AudioTag { publisher: 1, timestamp_ms: n, body, arrived: Instant::now() });
            crash(&session, ChildKind::FfmpegDecoder).await;
            if n % 500 == 499 {
                crash(&session, ChildKind::TranscriptRoom).await;
            }
            for kind in [ChildKind::FfmpegDecoder, ChildKind::TranscriptRoom, ChildKind::GladiaBridge] {
                assert!(live(kind) <= 1, "{} of {} at step {n}", live(kind), kind.as_str());
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        let escalations = services.metrics.actor_escalations_total.with_label_values(&["ffmpeg_decoder"]).get();
        assert!(escalations >= 3, "{escalations}");
    }

    #[actix::test]
    async fn a_session_is_degraded_until_its_children_have_been_calm() {
        tokio::time::pause();
        let services = services(&[("SESSION_GRACE_MS", "86400000")]);
        let (core, session) = session(&services);
        // An old restart of another child does not matter.
        crash(&session, ChildKind::SpeakerTracker).await;
        tokio::time::sleep(Duration::from_secs(60)).await;
        for _ in 0..4 {
            crash(&session, ChildKind::TranscriptRoom).await;
            tokio::time::sleep(Duration::from_secs(1)).await;
        }
        tokio::time::sleep(REBUILD_DELAY).await;
        assert_eq!(core.log.status(), Status::Degraded);
        crash(&session, ChildKind::FfmpegDecoder).await;
        tokio::time::sleep(CALM * 3).await;
        assert_eq!(core.log.status(), Status::Waiting, "there is no publisher");
    }
}
