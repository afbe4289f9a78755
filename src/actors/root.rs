//! Root: the top of the tree. Restarts the permanent actors and is the fixed address that the outside knows.
//!
//! Owns: `SessionRegistry`, `BatchWriter`, `SttProcess`, `RtmpListener`, the `Forwarder`s, the `Follower`, `RoomKeeper`,
//! `EgressController`. Receives: [`Publish`] from the RTMP listener,
//! [`Broadcast`] and [`Observe`] from HTTP, and passes them on to the living registry. Ends when told.

mod database;
mod drill;
mod egress_controller;
mod follower;
mod forwarders;
mod room_keeper;
mod state;

use std::sync::Arc;
use std::time::Duration;

use actix::prelude::*;
use tokio::sync::watch;

pub use self::drill::Drill;
use self::forwarders::Forwarders;
pub use self::forwarders::targets;
pub use self::state::RootState;
use super::Shutdown;
use super::batch_writer::bus_rows::BusRows;
use super::batch_writer::{BatchWriter, Flush};
use super::egress_controller::{EgressController, Webhooks};
use super::follower::Follower;
use super::room_keeper::{LostRooms, RoomKeeper};
use super::rtmp_listener::{RtmpListener, StopAccepting};
use super::services::Services;
use super::session_registry::{
    AdoptClaimed, AdoptSession, Broadcast, BroadcastAck, BroadcastRefusal, DrainAll, EndSession, Publish,
    PublishRefusal, SessionRegistry, Sessions,
};
use super::stt_process::{SttCommand, SttProcess};
use super::supervision::{ChildDown, ChildKind, Decision, Lifeline, Supervised};
use crate::db::Storage;
use crate::rtmp::{Connections, PendingPublish};

/// See `supervision::observe`: each level waits for less than the one above it.
const OBSERVE_TIMEOUT: Duration = Duration::from_secs(1);
/// Longest wait for the recogniser's process to be gone.
const STT_SHUTDOWN_TIMEOUT: Duration = Duration::from_secs(1);

/// Publishers may come: everything that they need is there.
#[derive(Debug, Clone, Copy, Message)]
#[rtype(result = "()")]
pub struct OpenDoors;

/// The parts of the permanent actors.
pub struct RootParams {
    pub services: Arc<Services>,
    pub storage: Arc<Storage>,
    pub arbiters: Arc<Vec<ArbiterHandle>>,
    /// None where no local recogniser is wanted.
    pub stt_process: Option<(SttCommand, watch::Sender<Option<String>>)>,
    /// None where nobody publishes.
    pub rtmp: Option<std::net::TcpListener>,
    /// Trusted certificate authorities, for ws nodes with https.
    pub tls: Arc<rustls::ClientConfig>,
    /// Of [`Services::ownership`].
    pub lost_rooms: Option<LostRooms>,
    /// Of the HTTP server's inbox.
    pub webhooks: Webhooks,
}

/// The top of the actor tree.
pub struct Root {
    params: RootParams,
    sessions: Arc<Sessions>,
    registry: Supervised<SessionRegistry>,
    batch_writer: Supervised<BatchWriter>,
    /// Rows for the database that wait in the log server; they outlive the writer.
    bus_rows: Option<Arc<BusRows>>,
    stt_process: Supervised<SttProcess>,
    rtmp_listener: Supervised<RtmpListener>,
    /// One for each ws node that this one sends to.
    forwarders: Forwarders,
    room_keeper: Supervised<RoomKeeper>,
    /// Where the log server's log is shown.
    follower: Supervised<Follower>,
    egress_controller: Supervised<EgressController>,
    connections: Arc<Connections>,
    stopping: bool,
}

impl Root {
    pub fn start(params: RootParams) -> Addr<Self> {
        let (limits, metrics) = (&params.services.config.rtmp, params.services.metrics.clone());
        let connections = Connections::new(limits.max_connections, limits.max_per_ip, metrics.clone());
        let server = params.services.log_server.clone().filter(|_| params.storage.store.is_some());
        let bus_rows = server.map(|server| BusRows::start(server, metrics));
        Actor::start(Self {
            params,
            bus_rows,
            connections,
            rtmp_listener: Supervised::new(ChildKind::RtmpListener),
            sessions: Arc::new(Sessions::default()),
            registry: Supervised::new(ChildKind::SessionRegistry),
            batch_writer: Supervised::new(ChildKind::BatchWriter),
            stt_process: Supervised::new(ChildKind::SttProcess),
            forwarders: Forwarders::default(),
            room_keeper: Supervised::new(ChildKind::RoomKeeper),
            follower: Supervised::new(ChildKind::Follower),
            egress_controller: Supervised::new(ChildKind::EgressController),
            stopping: false,
        })
    }

    fn start_child(&mut self, kind: ChildKind, ctx: &mut Context<Self>) {
        let (parent, metrics) = (ctx.address().recipient(), self.params.services.metrics.clone());
        let lifeline = match kind {
            ChildKind::SessionRegistry => self.registry.begin(parent, &metrics),
            ChildKind::BatchWriter => self.batch_writer.begin(parent, &metrics),
            ChildKind::RtmpListener => self.rtmp_listener.begin(parent, &metrics),
            ChildKind::RoomKeeper => self.room_keeper.begin(parent, &metrics),
            ChildKind::Follower => self.follower.begin(parent, &metrics),
            ChildKind::EgressController => self.egress_controller.begin(parent, &metrics),
            _ => self.stt_process.begin(parent, &metrics),
        };
        match kind {
            ChildKind::SessionRegistry => {
                let (services, arbiters) = (self.params.services.clone(), self.params.arbiters.clone());
                let registry = SessionRegistry::start(self.sessions.clone(), services, arbiters, lifeline);
                self.registry.runs_at(Some(registry));
            }
            ChildKind::BatchWriter => {
                let writer = self.start_batch_writer(lifeline);
                self.batch_writer.runs_at(writer);
            }
            ChildKind::SttProcess => {
                if let Some((command, url)) = &self.params.stt_process {
                    let metrics = self.params.services.metrics.clone();
                    let process = SttProcess::new(command.clone(), url.clone(), metrics).supervised(lifeline);
                    self.stt_process.runs_at(Some(process.start()));
                }
            }
            ChildKind::RtmpListener => {
                let listener = self.start_rtmp_listener(lifeline, ctx);
                self.rtmp_listener.runs_at(listener);
            }
            ChildKind::RoomKeeper => {
                let keeper = self.start_room_keeper(lifeline, ctx);
                self.room_keeper.runs_at(keeper);
            }
            ChildKind::Follower => self.start_follower(lifeline, ctx),
            ChildKind::EgressController => self.start_egress_controller(lifeline, ctx),
            _ => {}
        }
    }
}

impl Root {
    /// None where nobody publishes. Its lifeline reports a failure of its own.
    fn start_rtmp_listener(&self, mut lifeline: Lifeline, ctx: &Context<Self>) -> Option<Addr<RtmpListener>> {
        let socket = match self.params.rtmp.as_ref()?.try_clone() {
            Ok(socket) => socket,
            Err(error) => {
                lifeline.fail(error.to_string());
                return None;
            }
        };
        let services = &self.params.services;
        let (config, metrics) = (services.config.clone(), services.metrics.clone());
        let registry = ctx.address().recipient();
        let listener = RtmpListener::new(socket, self.connections.clone(), config, metrics, registry);
        Some(listener.telling(ctx.address().recipient()).supervised(lifeline).start())
    }
}

impl Actor for Root {
    type Context = Context<Self>;

    fn started(&mut self, ctx: &mut Self::Context) {
        if self.params.storage.store.is_some() {
            self.start_child(ChildKind::BatchWriter, ctx);
        }
        if self.params.stt_process.is_some() {
            self.start_child(ChildKind::SttProcess, ctx);
        }
        self.start_child(ChildKind::SessionRegistry, ctx);
        self.start_forwarders(ctx);
        if self.params.services.ownership.is_some() {
            self.start_child(ChildKind::RoomKeeper, ctx);
        }
        if self.is_following() {
            self.start_child(ChildKind::Follower, ctx);
        }
        self.start_child(ChildKind::EgressController, ctx);
    }
}

/// The doors, once what is behind them is there.
impl Handler<OpenDoors> for Root {
    type Result = ();

    fn handle(&mut self, _: OpenDoors, ctx: &mut Self::Context) {
        if self.params.rtmp.is_some() && self.rtmp_listener.generation() == 0 {
            self.start_child(ChildKind::RtmpListener, ctx);
        }
    }
}

/// No listener is started again after it.
impl Handler<StopAccepting> for Root {
    type Result = ();

    fn handle(&mut self, stop: StopAccepting, _: &mut Self::Context) {
        self.params.rtmp = None;
        if let Some(listener) = self.rtmp_listener.addr() {
            listener.do_send(stop);
        }
    }
}

impl Handler<ChildDown> for Root {
    type Result = ();

    fn handle(&mut self, down: ChildDown, ctx: &mut Self::Context) {
        if self.stopping {
            return;
        }
        let kind = down.kind;
        if kind == ChildKind::Forwarder {
            return self.forwarder_down(&down, ctx);
        }
        let decision = match kind {
            ChildKind::SessionRegistry => self.registry.decide(&down),
            ChildKind::BatchWriter => self.batch_writer.decide(&down),
            ChildKind::SttProcess => self.stt_process.decide(&down),
            ChildKind::RtmpListener => self.rtmp_listener.decide(&down),
            ChildKind::RoomKeeper => self.room_keeper.decide(&down),
            ChildKind::Follower => self.follower.decide(&down),
            ChildKind::EgressController => self.egress_controller.decide(&down),
            _ => None,
        };
        if let Some(delay) = self.restart_delay(&down, decision) {
            ctx.run_later(delay, move |this, ctx| this.start_child(kind, ctx));
        }
    }
}

impl Root {
    /// The pause before a permanent actor lives again. None: it is not to.
    fn restart_delay(&self, down: &ChildDown, decision: Option<Decision>) -> Option<Duration> {
        let (kind, metrics) = (down.kind, &self.params.services.metrics);
        let delay = match decision? {
            Decision::Ended => return None,
            Decision::Restart(delay) => delay,
            Decision::Escalate => {
                metrics.actor_escalations_total.with_label_values(&[kind.as_str()]).inc();
                kind.policy().rebuild_first
            }
        };
        let delay_ms = delay.as_millis() as u64;
        tracing::error!(actor = kind.as_str(), exit = %down.exit, delay_ms, "permanent actor restarts");
        metrics.actor_restarts_total.with_label_values(&[kind.as_str()]).inc();
        Some(delay)
    }
}

impl Handler<Publish> for Root {
    type Result = ResponseFuture<Result<(), (PublishRefusal, Box<PendingPublish>)>>;

    fn handle(&mut self, publish: Publish, _: &mut Self::Context) -> Self::Result {
        match self.registry.addr().filter(Addr::connected) {
            Some(registry) => Box::pin(async move { registry.send(publish).await.unwrap_or(Ok(())) }),
            None => Box::pin(async move { Err((PublishRefusal::Restarting, publish.publisher)) }),
        }
    }
}

impl Handler<Broadcast> for Root {
    type Result = ResponseFuture<Result<BroadcastAck, BroadcastRefusal>>;

    fn handle(&mut self, broadcast: Broadcast, _: &mut Self::Context) -> Self::Result {
        let registry = self.registry.addr();
        Box::pin(async move {
            let registry = registry.ok_or(BroadcastRefusal::Unavailable)?;
            registry.send(broadcast).await.unwrap_or(Err(BroadcastRefusal::Unavailable))
        })
    }
}

/// Passes a message to the registry; a registry that is being restarted answers with the default.
macro_rules! forward_to_registry {
    ($($message:ty => $answer:ty),+) => {$(
        impl Handler<$message> for Root {
            type Result = ResponseFuture<$answer>;

            fn handle(&mut self, message: $message, _: &mut Self::Context) -> Self::Result {
                let registry = self.registry.addr();
                Box::pin(async move {
                    let Some(registry) = registry else { return Default::default() };
                    registry.send(message).await.unwrap_or_default()
                })
            }
        }
    )+};
}

forward_to_registry!(EndSession => bool, DrainAll => (), AdoptSession => (), AdoptClaimed => ());

/// Writes what is pending; answers with the rows that are left in the outbox.
impl Handler<Flush> for Root {
    type Result = ResponseFuture<u64>;

    fn handle(&mut self, flush: Flush, _: &mut Self::Context) -> Self::Result {
        let writer = self.batch_writer.addr();
        let forwarded = self.forwarders.flush(flush);
        Box::pin(async move {
            let written = async {
                let Some(writer) = writer else { return 0 };
                writer.send(flush).await.unwrap_or_default()
            };
            let (written, forwarded) = tokio::join!(written, forwarded);
            written.max(forwarded)
        })
    }
}

/// Answers when the recogniser's process is gone.
impl Handler<Shutdown> for Root {
    type Result = ResponseActFuture<Self, ()>;

    fn handle(&mut self, _: Shutdown, _: &mut Self::Context) -> Self::Result {
        self.stopping = true;
        stop(self.rtmp_listener.give_up());
        stop(self.registry.give_up());
        stop(self.batch_writer.give_up());
        self.forwarders.stop();
        stop(self.room_keeper.give_up());
        stop(self.follower.give_up());
        stop(self.egress_controller.give_up());
        let stt = self.stt_process.give_up();
        let gone = async move {
            if let Some(stt) = stt {
                let _ = tokio::time::timeout(STT_SHUTDOWN_TIMEOUT, stt.send(Shutdown)).await;
            }
        };
        Box::pin(gone.into_actor(self).map(|_, _, ctx| ctx.stop()))
    }
}

fn stop<A>(actor: Option<Addr<A>>)
where
    A: Actor<Context = Context<A>> + Handler<Shutdown>,
{
    if let Some(actor) = actor {
        actor.do_send(Shutdown);
    }
}
