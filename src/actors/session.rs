//! Session: the supervisor of one slug's life.
//!
//! Owns: the children of one session and their restart budgets; the data is in [`SessionCore`]. Receives: publishers,
//! ends of children, the order to end. Sends: status lines into the log. Ends when the grace period after the last
//! publisher is over, when it is told to, or, with its parent repairing it, by a panic.

mod children;
mod ending;
mod handing_over;
mod publishing;
mod repair;
pub mod state;

use std::collections::VecDeque;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use actix::prelude::*;
use tokio::sync::oneshot;
use tokio::time::Instant;

use children::Children;
use repair::FrozenCheck;

pub use handing_over::HandOver;

use super::rtmp_connection::Adopt;
use super::services::Services;
use super::session_core::SessionCore;
use super::session_registry::{Broadcast, BroadcastAck, BroadcastRefusal, PublishRefusal, SessionEnding};
use super::supervision::{ChildDown, ChildKind, Lifeline};
use super::{Crash, Shutdown};
use crate::rtmp::PendingPublish;
use crate::transcript::GapReason;
use crate::transcript::Origin;

/// Longest wait for the decoder's last samples.
const FLUSH_TIMEOUT: Duration = Duration::from_secs(5);
const FROZEN_CHECK: Duration = Duration::from_secs(1);
/// Interval in which other nodes are told that a session lives.
const RENEW_INTERVAL: Duration = Duration::from_secs(3);

/// A publisher for this session. Given back when refused.
#[derive(Message)]
#[rtype(result = "Result<(), (PublishRefusal, Box<PendingPublish>)>")]
pub struct Attach(pub Box<PendingPublish>);

/// Ends the session: the last words are recognised, delivered and stored first, as far as the deadline allows.
#[derive(Debug, Clone, Message)]
#[rtype(result = "()")]
pub struct End {
    pub reason: String,
    pub deadline: Instant,
    pub then: Then,
}

/// What becomes of the epoch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Then {
    /// It is over.
    Over,
    /// The process stops; it goes on after a restart.
    Suspended,
    /// It goes on at another node, which numbers what is still to come.
    GoesOnElsewhere,
}

/// A newer log of the origin has followed this mirrored one, whose last entries may still be on their way.
#[derive(Debug, Clone, Copy, Message)]
#[rtype(result = "()")]
pub struct Superseded;

/// Crashes one child, to prove that it is repaired.
#[derive(Debug, Clone, Copy, Message)]
#[rtype(result = "()")]
pub struct CrashChild(pub ChildKind);

/// The supervisor of one slug's life.
pub struct Session {
    core: Arc<SessionCore>,
    services: Arc<Services>,
    registry: Recipient<SessionEnding>,
    children: Rc<Children>,
    phase: Phase,
    takeovers: VecDeque<Instant>,
    /// Waits for the last words of the publisher before it.
    newcomer: Option<(Box<PendingPublish>, Answer)>,
    is_superseded: bool,
    /// Viewers were told that there is no publisher; a new log begins so.
    is_waiting_announced: bool,
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

impl Phase {
    fn as_str(self) -> &'static str {
        match self {
            Self::Waiting => "waiting",
            Self::Live => "live",
            Self::Ending => "ending",
        }
    }
}

impl Session {
    /// Starts the session on the given arbiter. The lifeline was made by the parent.
    pub fn start_on(
        arbiter: &ArbiterHandle,
        core: Arc<SessionCore>,
        services: Arc<Services>,
        registry: Recipient<SessionEnding>,
        lifeline: Lifeline,
    ) -> Addr<Self> {
        Self::start_in_arbiter(arbiter, move |_| {
            let now = Instant::now();
            Self {
                core,
                services,
                registry,
                children: Rc::new(Children::new()),
                phase: Phase::Waiting,
                takeovers: VecDeque::new(),
                newcomer: None,
                is_superseded: false,
                is_waiting_announced: true,
                grace: None,
                rebuilds: 0,
                degraded: false,
                frozen: [FrozenCheck { popped: 0, since: now }, FrozenCheck { popped: 0, since: now }],
                enders: Vec::new(),
                lifeline,
            }
        })
    }
}

type AttachResult = Result<(), (PublishRefusal, Box<PendingPublish>)>;
/// To a publisher that waits to be attached.
type Answer = oneshot::Sender<AttachResult>;

impl Actor for Session {
    type Context = Context<Self>;

    fn started(&mut self, ctx: &mut Self::Context) {
        self.lifeline.started();
        for kind in self.kinds() {
            self.start_child(kind, ctx);
        }
        let adopted = self.core.presence().publisher().map(|p| (p.addr.clone(), p.generation));
        if let Some((publisher, generation)) = adopted {
            let metrics = self.core.metrics.clone();
            let parent = ctx.address().recipient();
            let lifeline = Lifeline::new(parent, ChildKind::RtmpConnection, generation, metrics);
            self.phase = Phase::Live;
            publisher.do_send(Adopt { lifeline });
            self.is_waiting_announced = false;
            self.announce_away_later(ctx);
        } else {
            let away = self.core.presence().away();
            if away.is_some_and(|away| away.reason == GapReason::ProcessRestart) {
                self.core.announce_status(self.resting_status(), "process_restarted");
            }
            self.start_grace(ctx);
        }
        ctx.run_interval(FROZEN_CHECK, Session::check_frozen);
        ctx.run_interval(Duration::from_secs(1), |this, _| this.services.checkpoint(&this.core));
        self.services.renew(&self.core);
        ctx.run_interval(RENEW_INTERVAL, |this, _| this.services.renew(&this.core));
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
    type Result = ResponseFuture<AttachResult>;

    fn handle(&mut self, Attach(publisher): Attach, ctx: &mut Self::Context) -> Self::Result {
        let (answer, attached) = oneshot::channel();
        self.attach_when_clear(publisher, answer, ctx);
        // A session that dies has dropped the publisher, and with it its socket: nothing is left to refuse.
        Box::pin(async move { attached.await.unwrap_or(Ok(())) })
    }
}

impl Handler<Broadcast> for Session {
    type Result = ResponseActFuture<Self, Result<BroadcastAck, BroadcastRefusal>>;

    fn handle(&mut self, broadcast: Broadcast, ctx: &mut Self::Context) -> Self::Result {
        if self.core.origin != Origin::Ingest && self.phase != Phase::Ending {
            self.start_grace(ctx);
        }
        let room = self.children.room.addr();
        let taken = async move {
            let room = room.ok_or(BroadcastRefusal::Unavailable)?;
            room.send(broadcast).await.unwrap_or(Err(BroadcastRefusal::Unavailable))
        };
        Box::pin(taken.into_actor(self).map(|answer, this, ctx| {
            if this.core.origin != Origin::Ingest && this.core.log.is_closed() {
                let end = End { reason: "ended_by_its_source".into(), deadline: Instant::now(), then: Then::Over };
                this.end(end, ctx);
            }
            answer
        }))
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

impl Handler<Superseded> for Session {
    type Result = ();

    fn handle(&mut self, _: Superseded, ctx: &mut Self::Context) {
        self.is_superseded = true;
        if self.phase != Phase::Ending {
            self.start_grace(ctx);
        }
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
        match kind {
            ChildKind::RtmpConnection => {
                if let Some(publisher) = self.core.presence().publisher() {
                    publisher.addr.do_send(Crash);
                }
            }
            _ => match self.children.get(kind) {
                Some(child) => child.crash(),
                None => panic!("crash requested"),
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::repair::CALM;
    use super::*;
    use crate::actors::services::testing::services;
    use crate::actors::session_core::SessionSeed;
    use crate::actors::supervision::testing::Parent;
    use crate::audio::{AudioTag, PcmChunk};
    use crate::transcript::Status;
    use crate::transcript::{Cursor, Entry, Item, Read, Slug};
    use bytes::Bytes;

    impl Handler<SessionEnding> for Parent {
        type Result = ();
        fn handle(&mut self, _: SessionEnding, _: &mut Self::Context) {}
    }

    fn session(services: &Arc<Services>) -> (Arc<SessionCore>, Addr<Session>) {
        session_from(services, SessionSeed::default())
    }

    fn session_from(services: &Arc<Services>, beginning: SessionSeed) -> (Arc<SessionCore>, Addr<Session>) {
        let core = Arc::new(services.new_core(Slug::parse("demo").unwrap(), beginning));
        let (parent, _) = Parent::start();
        let lifeline = Lifeline::new(parent.clone().recipient(), ChildKind::Session, 1, services.metrics.clone());
        let arbiter = Arbiter::current();
        let session = Session::start_on(&arbiter, core.clone(), services.clone(), parent.recipient(), lifeline);
        (core, session)
    }

    /// 20 ms of G.711 a tag, as they come.
    async fn talk(core: &SessionCore, tags: u64) {
        for n in 0..tags {
            let body = Bytes::from([&[0x82][..], &[0xD5; 160]].concat());
            core.tags.push(AudioTag { publisher: 1, timestamp_ms: n * 20, body, arrived: Instant::now() }).await;
            tokio::time::advance(Duration::from_millis(20)).await;
        }
    }

    async fn end_within(session: &Addr<Session>, seconds: u64, suspend: bool) {
        let then = if suspend { Then::Suspended } else { Then::Over };
        let deadline = Instant::now() + Duration::from_secs(seconds);
        session.send(End { reason: "test".into(), deadline, then }).await.unwrap();
    }

    fn gaps(core: &SessionCore) -> Vec<(GapReason, u64, u64)> {
        let Read::Items(items) = core.log.read(&mut Cursor::after(0), usize::MAX) else {
            panic!("all are in the ring")
        };
        let gap = |item: &Item| match serde_json::from_str(&item.json).unwrap() {
            Entry::Gap(gap) => Some((gap.reason, gap.start_ms, gap.end_ms)),
            _ => None,
        };
        items.iter().filter_map(gap).collect()
    }

    #[actix::test]
    async fn what_waits_for_a_decoder_when_a_session_ends_is_announced_and_counted() {
        tokio::time::pause();
        for suspend in [false, true] {
            let services = services(&[("SESSION_GRACE_MS", "86400000"), ("FFMPEG_PATH", "/nonexistent/ffmpeg")]);
            let (core, session) = session(&services);
            let begun_ms = core.clock_ms();
            // More than a decoder that does not come takes over.
            talk(&core, 600).await;
            let ended_ms = core.clock_ms();
            end_within(&session, 20, suspend).await;
            let gaps = gaps(&core);
            let [(GapReason::DecodeError, start_ms, end_ms)] = gaps[..] else { panic!("{gaps:?}") };
            assert!(start_ms.abs_diff(begun_ms) < 50 && end_ms.abs_diff(ended_ms) < 50, "{gaps:?}");
            let account = core.ledger().account();
            assert_eq!((account.received_ms, account.lost_ms), (end_ms - start_ms, end_ms - start_ms));
        }
    }

    #[actix::test]
    async fn an_adopted_session_that_nobody_comes_back_to_tells_what_its_process_may_have_heard() {
        tokio::time::pause();
        let services = services(&[("SESSION_GRACE_MS", "86400000")]);
        for was_publishing in [true, false] {
            let started_at = Some(chrono::Utc::now() - Duration::from_secs(10));
            let clock_ms = Some(8000);
            let beginning = SessionSeed { started_at, clock_ms, was_publishing, ..SessionSeed::default() };
            let (core, session) = session_from(&services, beginning);
            end_within(&session, 10, false).await;
            match gaps(&core)[..] {
                [] => assert!(!was_publishing),
                [(GapReason::ProcessRestart, 8000, 10_000..11_000)] => assert!(was_publishing),
                ref other => panic!("{other:?}"),
            }
        }
    }

    #[actix::test]
    async fn audio_is_announced_when_no_bridge_is_there_to_finish() {
        tokio::time::pause();
        let services = services(&[("SESSION_GRACE_MS", "86400000")]);
        let (core, session) = session(&services);
        let pcm = Bytes::from(vec![0; 32_000]);
        core.push_pcm(PcmChunk { pcm, start_ms: 100, inserted: false, arrived: Instant::now() });
        let escalations = || services.metrics.actor_escalations_total.with_label_values(&["gladia_bridge"]).get();
        while escalations() == 0 {
            crash(&session, ChildKind::GladiaBridge).await;
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        end_within(&session, 10, false).await;
        assert_eq!(gaps(&core), [(GapReason::SttUnavailable, 100, 1100)]);
        assert_eq!(core.log.status(), Status::Ended);
    }

    #[actix::test]
    async fn a_relayed_session_ends_when_nothing_is_posted_for_ten_minutes() {
        tokio::time::pause();
        let services = services(&[]);
        let relay = SessionSeed { origin: Origin::Relay, ..SessionSeed::default() };
        let (core, session) = session_from(&services, relay);
        tokio::time::sleep(Duration::from_secs(9 * 60)).await;
        let post = Broadcast::new(core.slug.clone(), Vec::new());
        session.send(post).await.unwrap().unwrap();
        tokio::time::sleep(Duration::from_secs(9 * 60)).await;
        assert_ne!(core.log.status(), Status::Ended, "a post keeps it");
        tokio::time::sleep(Duration::from_secs(2 * 60)).await;
        assert_eq!(core.log.status(), Status::Ended);
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
        tokio::time::sleep(ChildKind::FfmpegDecoder.policy().rebuild_first).await;
        assert_eq!(core.log.status(), Status::Degraded);
        crash(&session, ChildKind::FfmpegDecoder).await;
        tokio::time::sleep(CALM * 3).await;
        assert_eq!(core.log.status(), Status::Waiting, "there is no publisher");
    }
}
