//! Lines of third parties for rooms whose session is at another node of the cluster.

use std::time::Duration;

use actix::prelude::*;

use super::{Broadcast, BroadcastAck, BroadcastEntry, BroadcastRefusal, SessionRegistry};
use crate::actors::session_core::SessionSeed;
use crate::bus::log_server::Unanswered;
use crate::bus::ownership::{Claimed, LateBatch, NodeAnswer, Ownership};
use crate::transcript::Origin;

/// Tries of a post whose room another one is claiming.
const TRIES: usize = 20;
const PAUSE: Duration = Duration::from_millis(50);

type Taken = Result<BroadcastAck, BroadcastRefusal>;

/// Lines that another node was given, for a session that is here. None: there is none.
#[derive(Debug, Clone, Message)]
#[rtype(result = "Option<Result<BroadcastAck, BroadcastRefusal>>")]
pub struct TakePost(pub LateBatch);

/// Lines for a room that is this node's now.
#[derive(Message)]
#[rtype(result = "Result<BroadcastAck, BroadcastRefusal>")]
struct TakeHere {
    broadcast: Broadcast,
    /// None: a session is here already.
    claimed: Option<Claimed>,
}

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
            match told(&ownership, &broadcast).await {
                Ok(Some(answer)) => told_by_owner(&broadcast, answer),
                Ok(None) => {
                    let claimed = match ownership.claim_for_lines(&broadcast.slug).await {
                        Ok(claimed) => claimed,
                        Err(error) => return Err(not_told(&broadcast, &error)),
                    };
                    let is_ours_alone = claimed.is_some();
                    let here = TakeHere { broadcast: broadcast.clone(), claimed };
                    let mut taken = registry.send(here).await.unwrap_or(Err(BroadcastRefusal::Unavailable));
                    // Another post has claimed the room, and is about to begin its session.
                    for _ in 0..TRIES {
                        if is_ours_alone || taken != Err(BroadcastRefusal::Unavailable) {
                            break;
                        }
                        tokio::time::sleep(PAUSE).await;
                        let here = TakeHere { broadcast: broadcast.clone(), claimed: None };
                        taken = registry.send(here).await.unwrap_or(Err(BroadcastRefusal::Unavailable));
                    }
                    taken
                }
                Err(error) => Err(not_told(&broadcast, &error)),
            }
        })
    }
}

/// Gives the lines to the room's owner. One whose session has ended a moment ago is about to let go of the room.
async fn told(ownership: &Ownership, broadcast: &Broadcast) -> Result<Option<NodeAnswer>, Unanswered> {
    let entries: Vec<_> = broadcast.entries.iter().map(|entry| entry.entry.clone()).collect();
    for _ in 1..TRIES {
        match ownership.post(&broadcast.slug, entries.clone()).await {
            Ok(Some(NodeAnswer::NotOwner | NodeAnswer::Unavailable { .. })) => tokio::time::sleep(PAUSE).await,
            answer => return answer,
        }
    }
    ownership.post(&broadcast.slug, entries).await
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

fn not_told(broadcast: &Broadcast, error: &impl std::fmt::Display) -> BroadcastRefusal {
    tracing::warn!(session = %broadcast.slug, %error, "nobody could be given the lines of a third party");
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

    fn handle(&mut self, TakeHere { broadcast, claimed }: TakeHere, ctx: &mut Self::Context) -> Self::Result {
        let slug = &broadcast.slug;
        let is_here = self.find(slug).is_some_and(|(_, core)| core.origin != Origin::Mirror && !core.log.is_closed());
        match claimed {
            Some(claimed) if !is_here && self.is_full().is_none() => {
                if let Some((mirror, core)) = self.find(slug) {
                    self.supersede(&mirror, &core);
                }
                let seed = SessionSeed { origin: Origin::Relay, ..self.seed_of(claimed) };
                self.begin(slug.clone(), seed, ctx);
            }
            Some(claimed) if !is_here => self.let_go(slug.clone(), claimed.epoch),
            // Another post was quicker, or is about to begin the session.
            None if !is_here => return Box::pin(async { Err(BroadcastRefusal::Unavailable) }),
            _ => {}
        }
        self.take(broadcast, ctx)
    }
}
