//! The state of the whole tree that `/metrics` shows.

use actix::prelude::*;
use serde::Serialize;

use super::{OBSERVE_TIMEOUT, Root};
use crate::actors::batch_writer::BatchWriterState;
use crate::actors::egress_controller::EgressControllerState;
use crate::actors::follower::FollowerState;
use crate::actors::forwarder::ForwarderState;
use crate::actors::room_keeper::RoomKeeperState;
use crate::actors::rtmp_listener::RtmpListenerState;
use crate::actors::session_registry::SessionRegistryState;
use crate::actors::stt_process::SttProcessState;
use crate::actors::supervision::{ChildState, Observable, Observe};

/// The state of the whole tree that `/metrics` shows.
#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct RootState {
    pub session_registry: ChildState<SessionRegistryState>,
    pub batch_writer: ChildState<BatchWriterState>,
    /// None without a local recogniser.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub stt_process: Option<ChildState<SttProcessState>>,
    /// None where nobody publishes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rtmp_listener: Option<ChildState<RtmpListenerState>>,
    /// None on a node that sends to no other.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub forwarders: Vec<ChildState<ForwarderState>>,
    /// None where no rooms are shared.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub room_keeper: Option<ChildState<RoomKeeperState>>,
    /// None without a log server, or viewers.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub follower: Option<ChildState<FollowerState>>,
    /// None without `LIVEKIT_URL`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub egress_controller: Option<ChildState<EgressControllerState>>,
}

impl Observable for Root {
    type State = RootState;
}

impl Handler<Observe<Self>> for Root {
    type Result = ResponseFuture<RootState>;

    fn handle(&mut self, _: Observe<Self>, _: &mut Self::Context) -> Self::Result {
        let registry = self.registry.observe(OBSERVE_TIMEOUT);
        let writer = self.batch_writer.observe(OBSERVE_TIMEOUT);
        let stt = self.stt_process.observe(OBSERVE_TIMEOUT);
        let listener = self.rtmp_listener.observe(OBSERVE_TIMEOUT);
        let (has_stt, has_listener) = (self.params.stt_process.is_some(), self.rtmp_listener.generation() > 0);
        let forwarders = self.forwarders.observe(OBSERVE_TIMEOUT);
        let has_keeper = self.room_keeper.generation() > 0;
        let keeper = self.room_keeper.observe(OBSERVE_TIMEOUT);
        let (follower, is_following) = (self.follower.observe(OBSERVE_TIMEOUT), self.is_following());
        let egress = self.egress_controller.observe(OBSERVE_TIMEOUT);
        let has_livekit = self.params.services.livekit.is_some();
        Box::pin(async move {
            let (session_registry, batch_writer, stt, listener, forwarders, keeper, follower, egress) =
                tokio::join!(registry, writer, stt, listener, forwarders, keeper, follower, egress);
            RootState {
                session_registry,
                batch_writer,
                stt_process: has_stt.then_some(stt),
                rtmp_listener: has_listener.then_some(listener),
                forwarders,
                room_keeper: has_keeper.then_some(keeper),
                follower: is_following.then_some(follower),
                egress_controller: has_livekit.then_some(egress),
            }
        })
    }
}
