//! The keeper of this node's rooms, where several nodes share a log server.

use actix::prelude::*;

use super::Root;
use crate::actors::room_keeper::{RoomKeeper, RoomKeeperParams};
use crate::actors::session_registry::{BroadcastAck, BroadcastRefusal, HandOverRoom, TakeLate, TakePost};
use crate::actors::supervision::Lifeline;

impl Root {
    /// None where no rooms are shared.
    pub(super) fn start_room_keeper(&self, lifeline: Lifeline, ctx: &Context<Self>) -> Option<Addr<RoomKeeper>> {
        let services = &self.params.services;
        let params = RoomKeeperParams {
            ownership: services.ownership.clone()?,
            lost: self.params.lost_rooms.clone()?,
            services: services.clone(),
            hand_over: ctx.address().recipient(),
            take_late: ctx.address().recipient(),
            take_post: ctx.address().recipient(),
            adopt: ctx.address().recipient(),
            news: ctx.address().recipient(),
        };
        Some(RoomKeeper::start(params, lifeline))
    }
}

/// Passes a message to the registry; one that is being restarted has no session to speak of.
macro_rules! ask_registry {
    ($($message:ty => $answer:ty, $without:expr);+) => {$(
        impl Handler<$message> for Root {
            type Result = ResponseFuture<$answer>;

            fn handle(&mut self, message: $message, _: &mut Self::Context) -> Self::Result {
                let registry = self.registry.addr();
                Box::pin(async move {
                    match registry {
                        Some(registry) => registry.send(message).await.unwrap_or($without),
                        None => $without,
                    }
                })
            }
        }
    )+};
}

ask_registry!(
    HandOverRoom => Result<Option<crate::bus::ownership::Handover>, String>, Ok(None);
    TakeLate => Option<Result<(), BroadcastRefusal>>, None;
    TakePost => Option<Result<BroadcastAck, BroadcastRefusal>>, None
);
