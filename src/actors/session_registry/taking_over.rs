//! Sessions that come from another node, and those that go to one.

use std::time::Duration;

use actix::prelude::*;
use tokio::sync::oneshot;
use tokio::time::Instant;

use super::publishing::Attached;
use super::{Broadcast, BroadcastEntry, BroadcastRefusal, Publish, PublishRefusal, SessionRegistry};
use crate::actors::session::{End, HandOver, Then};
use crate::actors::session_core::SessionSeed;
use crate::bus::log_server::Link;
use crate::bus::ownership::{ClaimError, Claimed, Former, Handover, LateBatch};
use crate::gladia::ledger::LedgerImage;
use crate::rtmp::PendingPublish;
use crate::transcript::{Entry, Epoch, Origin, Slug};

/// Longest wait of a publisher for its room.
const CLAIM_TIMEOUT: Duration = Duration::from_secs(4);
/// Longest wait of a publisher elsewhere for the end of a session of third parties: less than for any answer.
const RELAY_END_TIMEOUT: Duration = Duration::from_millis(600);
/// Recogniser sessions and statuses that an owner may have begun without anybody knowing their numbers.
const LEAP: u32 = 1000;

/// The room goes to another node. Answers the session's state; None when there is none here.
#[derive(Debug, Clone, Message)]
#[rtype(result = "Result<Option<Handover>, String>")]
pub struct HandOverRoom {
    pub room: Slug,
    pub epoch: Epoch,
    pub to: String,
    /// See [`HandOver`].
    pub is_asked: bool,
}

/// Leftovers of another node, for the session of their epoch. None: there is none here.
#[derive(Debug, Clone, Message)]
#[rtype(result = "Option<Result<(), BroadcastRefusal>>")]
pub struct TakeLate(pub LateBatch);

/// A session of a node that is gone goes on here, until somebody publishes or its grace period is over.
#[derive(Debug, Clone, Message)]
#[rtype(result = "()")]
pub struct AdoptClaimed {
    pub slug: Slug,
    pub claimed: Claimed,
}

/// The outcome of a claim. None: nobody could be asked, and the session begins all the same.
#[derive(Message)]
#[rtype(result = "Result<(), (PublishRefusal, Box<PendingPublish>)>")]
struct RoomClaimed {
    slug: Slug,
    publisher: Box<PendingPublish>,
    claimed: Option<Claimed>,
}

impl SessionRegistry {
    /// There is no session of a publisher here, and there may be one elsewhere.
    pub(super) fn is_to_be_claimed(&self, slug: &Slug) -> bool {
        let is_here = self.find(slug).is_some_and(|(_, core)| core.origin == Origin::Ingest);
        let is_draining = self.sessions.table.lock().draining;
        self.services.ownership.is_some() && !is_here && !is_draining && self.is_full().is_none()
    }

    /// The room is made this node's before a session begins or goes on.
    pub(super) fn claim_first(&self, slug: Slug, publisher: Box<PendingPublish>, ctx: &mut Context<Self>) -> Attached {
        let registry = ctx.address();
        let Some(ownership) = self.services.ownership.clone() else {
            return Box::pin(async move { Err((PublishRefusal::Failed, publisher)) });
        };
        if let Some(waiting) = self.sessions.table.lock().claiming.get_mut(&slug) {
            let (done, claimed) = oneshot::channel();
            waiting.push(done);
            return Box::pin(async move {
                let _ = claimed.await;
                registry.send(Publish { slug, publisher }).await.unwrap_or(Ok(()))
            });
        }
        self.sessions.table.lock().claiming.insert(slug.clone(), Vec::new());
        Box::pin(async move {
            let is_up = *ownership.server().link().borrow() == Link::Up;
            let claimed = match is_up {
                true => tokio::time::timeout(CLAIM_TIMEOUT, ownership.claim(&slug))
                    .await
                    .unwrap_or_else(|_| Err(ClaimError::Away("no answer in time".to_owned()))),
                false => Err(ClaimError::Away("no connection".to_owned())),
            };
            let claimed = match claimed {
                Ok(claimed) => Some(claimed),
                Err(ClaimError::Busy(why)) => {
                    tracing::warn!(session = %slug, reason = why, "publisher refused: the room's owner keeps it");
                    registry.do_send(ClaimOver(slug));
                    return Err((PublishRefusal::TakeoverLimit, publisher));
                }
                // Its words are heard all the same; they are numbered for good once the log server has them.
                Err(error) => {
                    tracing::warn!(session = %slug, %error, "the room could not be claimed; its session begins anew");
                    None
                }
            };
            registry.send(RoomClaimed { slug, publisher, claimed }).await.unwrap_or(Ok(()))
        })
    }

    /// A room that was claimed has no session after all: it is free again.
    pub(super) fn let_go(&self, slug: Slug, epoch: Epoch) {
        if let Some(ownership) = self.services.ownership.clone() {
            ownership.session_over(&slug, epoch);
            actix_rt::spawn(async move { ownership.all_stored(&slug, epoch).await });
        }
    }

    fn claim_over(&self, slug: &Slug) {
        for waiting in self.sessions.table.lock().claiming.remove(slug).unwrap_or_default() {
            let _ = waiting.send(());
        }
    }

    pub(super) fn seed_of(&self, claimed: Claimed) -> SessionSeed {
        let Claimed { epoch, former } = claimed;
        let mut seed = SessionSeed { epoch: Some(epoch), ..SessionSeed::default() };
        let Some(Former { past, clock_ms, is_handed_over, checkpoint }) = former else { return seed };
        seed.last_seq = past.last_seq;
        seed.known = past.ids.into_iter().collect();
        seed.known.sort_unstable_by_key(|(_, seq)| *seq);
        seed.recent = past.recent.into();
        seed.started_at = past.started_at;
        seed.age_ms = clock_ms;
        // Nobody knows how far it was heard: as far as its log says.
        seed.clock_ms = clock_ms.or_else(|| heard_until_ms(&seed.recent));
        seed.is_handed_over = is_handed_over;
        let Some(checkpoint) = checkpoint.filter(|checkpoint| checkpoint.epoch == epoch) else { return seed };
        seed.started_at = seed.started_at.or(Some(checkpoint.started_at));
        seed.clock_ms = Some(checkpoint.clock_ms);
        seed.was_publishing = checkpoint.is_publishing;
        seed.origin = checkpoint.origin;
        seed.audio_config = checkpoint.audio_config.as_deref().and_then(|hex| hex::decode(hex).ok()).map(Into::into);
        if let Ok(image) = serde_json::from_value::<LedgerImage>(checkpoint.recogniser) {
            seed.numbered_until = Some((image.next_hearing + LEAP, image.statuses + u64::from(LEAP)));
            // A recogniser of a node's own is out of reach, and one that is still listened to is not ours.
            let is_reachable = !is_handed_over && !self.services.config.stt.is_local();
            seed.recogniser = is_reachable.then_some(image);
        }
        seed
    }
}

/// End of the last words, or of the last gap, among these entries.
fn heard_until_ms(entries: &[Entry]) -> Option<u64> {
    let end_ms = |entry: &Entry| match entry {
        Entry::Transcript(line) => Some(line.end_ms),
        Entry::Gap(gap) => Some(gap.end_ms),
        Entry::Status(_) | Entry::Translation(_) => None,
    };
    entries.iter().filter_map(end_ms).max()
}

/// A claim has come to nothing.
#[derive(Message)]
#[rtype(result = "()")]
struct ClaimOver(Slug);

impl Handler<ClaimOver> for SessionRegistry {
    type Result = ();

    fn handle(&mut self, ClaimOver(slug): ClaimOver, _: &mut Self::Context) {
        self.claim_over(&slug);
    }
}

impl Handler<RoomClaimed> for SessionRegistry {
    type Result = Attached;

    fn handle(&mut self, claimed: RoomClaimed, ctx: &mut Self::Context) -> Self::Result {
        let RoomClaimed { slug, publisher, claimed } = claimed;
        let epoch = claimed.as_ref().map(|claimed| claimed.epoch);
        let seed = claimed.map_or_else(SessionSeed::default, |claimed| self.seed_of(claimed));
        let attached = self.attach_to(slug.clone(), publisher, seed, ctx);
        self.claim_over(&slug);
        let is_here = self.find(&slug).is_some_and(|(_, core)| Some(core.epoch) == epoch);
        if let (Some(epoch), false) = (epoch, is_here) {
            self.let_go(slug, epoch);
        }
        attached
    }
}

impl Handler<AdoptClaimed> for SessionRegistry {
    type Result = ();

    fn handle(&mut self, AdoptClaimed { slug, claimed }: AdoptClaimed, ctx: &mut Self::Context) {
        if self.find(&slug).is_none() && claimed.former.is_some() {
            let seed = self.seed_of(claimed);
            self.begin(slug, seed, ctx);
        } else {
            self.let_go(slug, claimed.epoch);
        }
    }
}

impl Handler<HandOverRoom> for SessionRegistry {
    type Result = ResponseFuture<Result<Option<Handover>, String>>;

    fn handle(
        &mut self,
        HandOverRoom { room, epoch, to, is_asked }: HandOverRoom,
        _: &mut Self::Context,
    ) -> Self::Result {
        let found = self.find(&room).filter(|(_, core)| core.epoch == epoch && core.origin != Origin::Mirror);
        let Some((session, core)) = found else { return Box::pin(async { Ok(None) }) };
        // A publisher outranks third parties: their epoch ends, and the publisher's begins.
        if core.origin == Origin::Relay && is_asked {
            let deadline = Instant::now() + RELAY_END_TIMEOUT;
            let end = End { reason: "superseded".into(), deadline, then: Then::Over };
            return Box::pin(async move {
                let _ = session.send(end).await;
                Ok(None)
            });
        }
        Box::pin(async move {
            match session.send(HandOver { to, is_asked }).await {
                Ok(answer) => answer.map(Some),
                // It has just ended.
                Err(_) => Ok(None),
            }
        })
    }
}

impl Handler<TakeLate> for SessionRegistry {
    type Result = ResponseFuture<Option<Result<(), BroadcastRefusal>>>;

    fn handle(&mut self, TakeLate(late): TakeLate, _: &mut Self::Context) -> Self::Result {
        let found = self.find(&late.room).filter(|(_, core)| core.epoch == late.epoch && core.origin != Origin::Mirror);
        let Some((session, core)) = found.filter(|(_, core)| !core.log.is_closed()) else {
            return Box::pin(async { None });
        };
        let status = core.log.status();
        let entry = |mut entry: Entry| {
            // What its writer says of its own state is no news of a session that goes on here.
            if let Entry::Status(change) = &mut entry {
                change.status = status;
            }
            BroadcastEntry { numbered: false, entry }
        };
        let entries = late.entries.into_iter().filter(|entry| !entry.is_interim()).map(entry).collect();
        let broadcast = Broadcast::new(late.room, entries);
        Box::pin(async move {
            let answer = session.send(broadcast).await.unwrap_or(Err(BroadcastRefusal::Unavailable));
            Some(answer.map(|_| ()))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::transcript::{Gap, GapReason};

    #[test]
    fn a_session_of_which_only_the_log_is_left_was_heard_as_far_as_that_says() {
        assert_eq!(heard_until_ms(&[]), None, "nothing is missing from a log that says nothing");
        let gap = |start_ms, end_ms| {
            Entry::Gap(Gap {
                session: Slug::parse("demo").unwrap(),
                epoch: Epoch::nil(),
                seq: Some(1),
                id: format!("gap-{start_ms}"),
                start_ms,
                end_ms,
                reason: GapReason::PublisherLost,
                durable: true,
            })
        };
        assert_eq!(heard_until_ms(&[gap(5000, 9000), gap(100, 400)]), Some(9000));
    }
}
