//! Lines of third parties for rooms whose session is at another node of the cluster.

use actix::prelude::*;

use super::{Broadcast, BroadcastAck, BroadcastEntry, BroadcastRefusal, SessionRegistry};
use crate::bus::log_server::Unanswered;
use crate::bus::ownership::{LateBatch, NodeAnswer};
use crate::transcript::Origin;

type Taken = Result<BroadcastAck, BroadcastRefusal>;

/// Lines that another node was given, for a session that is here. None: there is none.
#[derive(Debug, Clone, Message)]
#[rtype(result = "Option<Result<BroadcastAck, BroadcastRefusal>>")]
pub struct TakePost(pub LateBatch);

/// Lines for a room that no other node has a session of.
#[derive(Message)]
#[rtype(result = "Result<BroadcastAck, BroadcastRefusal>")]
struct TakeHere(Broadcast);

impl SessionRegistry {
    /// Somebody else may have the session that is to number them.
    pub(super) fn may_be_for_another_node(&self, broadcast: &Broadcast) -> bool {
        let is_cluster = self.services.ownership.is_some() && !self.sessions.table.lock().draining;
        let is_third_party = !broadcast.entries.is_empty() && broadcast.entries.iter().all(|entry| !entry.numbered);
        is_cluster && is_third_party && self.find(&broadcast.slug).is_none_or(|(_, core)| core.origin == Origin::Mirror)
    }

    pub(super) fn ask_owner(&self, broadcast: Broadcast, ctx: &Context<Self>) -> ResponseFuture<Taken> {
        let (registry, ownership) = (ctx.address(), self.services.ownership.clone());
        Box::pin(async move {
            let Some(ownership) = ownership else { return Err(BroadcastRefusal::Unavailable) };
            let entries = broadcast.entries.iter().map(|entry| entry.entry.clone()).collect();
            match ownership.post(&broadcast.slug, entries).await {
                Ok(Some(answer)) => told_by_owner(&broadcast, answer),
                Ok(None) => registry.send(TakeHere(broadcast)).await.unwrap_or(Err(BroadcastRefusal::Unavailable)),
                Err(error) => Err(not_told(&broadcast, &error)),
            }
        })
    }
}

fn told_by_owner(broadcast: &Broadcast, answer: NodeAnswer) -> Taken {
    match answer {
        NodeAnswer::Posted { accepted, duplicates, seq } => Ok(BroadcastAck { accepted, duplicates, seq }),
        NodeAnswer::HasOrigin { expected } => Err(BroadcastRefusal::HasOrigin { expected }),
        // It ends or goes to another node at this moment.
        other => {
            tracing::info!(session = %broadcast.slug, reason = ?other, "lines of a third party were not taken by the room's owner");
            Err(BroadcastRefusal::Unavailable)
        }
    }
}

fn not_told(broadcast: &Broadcast, error: &Unanswered) -> BroadcastRefusal {
    tracing::warn!(session = %broadcast.slug, %error, "the room's owner could not be given the lines of a third party");
    BroadcastRefusal::Unavailable
}

impl Handler<TakePost> for SessionRegistry {
    type Result = ResponseFuture<Option<Taken>>;

    fn handle(&mut self, TakePost(lines): TakePost, ctx: &mut Self::Context) -> Self::Result {
        let here = self.find(&lines.room).filter(|(_, core)| core.origin != Origin::Mirror && !core.log.is_closed());
        if here.is_none() {
            return Box::pin(async { None });
        }
        let entries = lines.entries.into_iter().map(|entry| BroadcastEntry { numbered: false, entry }).collect();
        let taken = self.take(Broadcast::new(lines.room, entries), ctx);
        Box::pin(async move { Some(taken.await) })
    }
}

impl Handler<TakeHere> for SessionRegistry {
    type Result = ResponseFuture<Taken>;

    fn handle(&mut self, TakeHere(broadcast): TakeHere, ctx: &mut Self::Context) -> Self::Result {
        self.take(broadcast, ctx)
    }
}
