//! `RoomKeeper`: what this node says to others about its rooms, on a log server that several nodes share.
//!
//! Owns: nothing that its death would lose. Receives: other nodes' questions (let go of a room, number these leftovers),
//! and from [`Ownership`] which rooms are lost. Sends: orders to the registry. Adopts rooms whose owner is gone. Ends on
//! `Shutdown` only.

mod orphans;

use std::sync::Arc;

use actix::prelude::*;
use serde::Serialize;
use tokio::sync::{Mutex, mpsc};

use self::orphans::Orphans;
use super::egress_controller::NewsFromNode;
use super::services::Services;
use super::session_registry::{AdoptClaimed, BroadcastRefusal, HandOverRoom, TakeLate, TakePost};
use super::supervision::{Lifeline, Observable, Observe};
use crate::bus::Outcome;
use crate::bus::log_server::Question;
use crate::bus::ownership::{LateBatch, Lost, NodeAnswer, NodeRequest, Ownership};
use crate::transcript::{Epoch, Slug};

/// Lost rooms, in the order of their loss; whoever keeps the rooms now listens.
pub type LostRooms = Arc<Mutex<mpsc::UnboundedReceiver<Lost>>>;

/// The parts of a `RoomKeeper`.
#[derive(Clone)]
pub struct RoomKeeperParams {
    pub ownership: Arc<Ownership>,
    pub lost: LostRooms,
    pub services: Arc<Services>,
    pub hand_over: Recipient<HandOverRoom>,
    pub take_late: Recipient<TakeLate>,
    pub take_post: Recipient<TakePost>,
    pub adopt: Recipient<AdoptClaimed>,
    pub news: Recipient<NewsFromNode>,
}

/// Answers other nodes and lets go of lost rooms.
pub struct RoomKeeper {
    params: RoomKeeperParams,
    lifeline: Lifeline,
    handed_over: u64,
    adopted: u64,
}

impl RoomKeeper {
    pub fn start(params: RoomKeeperParams, lifeline: Lifeline) -> Addr<Self> {
        Actor::start(Self { params, lifeline, handed_over: 0, adopted: 0 })
    }
}

impl Actor for RoomKeeper {
    type Context = Context<Self>;

    fn started(&mut self, ctx: &mut Self::Context) {
        self.lifeline.started();
        let ownership = &self.params.ownership;
        ctx.add_stream(ownership.server().questions(ownership.instance()));
        ctx.add_stream(ownership.server().questions(&ownership.home()));
        let params = self.params.clone();
        ctx.spawn(let_go_of_lost(params).into_actor(self));
        let orphans = Orphans::new(self.params.clone());
        ctx.spawn(orphans.watch(ctx.address()).into_actor(self));
    }
}

/// A session of a node that is gone goes on here.
#[derive(Message)]
#[rtype(result = "()")]
struct Adopted;

impl Handler<Adopted> for RoomKeeper {
    type Result = ();

    fn handle(&mut self, _: Adopted, _: &mut Self::Context) {
        self.adopted += 1;
    }
}

impl StreamHandler<Question> for RoomKeeper {
    fn handle(&mut self, question: Question, ctx: &mut Self::Context) {
        let Question { request, answer } = question;
        let request = match serde_json::from_slice::<NodeRequest>(&request) {
            Ok(request) => request,
            Err(error) => {
                tracing::warn!(%error, "a question of another node is not understood");
                let why = format!("not understood: {error}");
                return answer(NodeAnswer::Unavailable { why }.to_bytes());
            }
        };
        self.handed_over += u64::from(matches!(request, NodeRequest::Release { .. }));
        let params = self.params.clone();
        let answered = async move { answer(reply(&params, request).await.to_bytes()) };
        ctx.spawn(answered.into_actor(self));
    }
}

async fn reply(params: &RoomKeeperParams, request: NodeRequest) -> NodeAnswer {
    match request {
        NodeRequest::Ping => NodeAnswer::Pong,
        NodeRequest::Release { room, by, wants } => release(params, room, by, wants).await,
        NodeRequest::Late(late) => take_late(params, *late).await,
        NodeRequest::Post(lines) => take_post(params, *lines).await,
        NodeRequest::RoomNews(news) => {
            params.news.do_send(NewsFromNode(*news));
            NodeAnswer::Taken
        }
    }
}

async fn release(params: &RoomKeeperParams, room: Slug, by: String, wants: Option<Epoch>) -> NodeAnswer {
    let here = params.ownership.session_of(&room);
    if let (Some(here), Some(wants)) = (here, wants)
        && here >= wants
    {
        return NodeAnswer::Busy { why: "a later session of the room goes on".to_owned() };
    }
    let mut handover = None;
    if let Some(epoch) = here {
        let order = HandOverRoom { room: room.clone(), epoch, to: by, is_asked: true };
        match params.hand_over.send(order).await {
            Ok(Ok(state)) => handover = state,
            Ok(Err(why)) => return NodeAnswer::Busy { why },
            // The registry is being restarted: the other node takes the room without its session's state.
            Err(_) => {}
        }
    }
    match params.ownership.release(&room).await {
        Some(_) => {
            params.services.metrics.rooms_handed_over_total.inc();
            NodeAnswer::Released { handover: handover.map(Box::new) }
        }
        None => NodeAnswer::NotOwner,
    }
}

async fn take_late(params: &RoomKeeperParams, late: LateBatch) -> NodeAnswer {
    let is_here = params.ownership.session_of(&late.room) == Some(late.epoch);
    if is_here && let Ok(Some(taken)) = params.take_late.send(TakeLate(late.clone())).await {
        return match taken {
            Ok(()) => NodeAnswer::Taken,
            // Perhaps it ends at this moment: then the next try is for its log.
            Err(refusal) => NodeAnswer::Unavailable { why: refusal.to_string() },
        };
    }
    if is_here {
        return NodeAnswer::Unavailable { why: "the session is being repaired".to_owned() };
    }
    match params.ownership.take_late(late).await {
        Some(Outcome::Stored { .. }) => NodeAnswer::Taken,
        Some(outcome) => NodeAnswer::Unavailable { why: format!("the log did not take them: {}", outcome.as_str()) },
        None => NodeAnswer::NotOwner,
    }
}

async fn take_post(params: &RoomKeeperParams, lines: LateBatch) -> NodeAnswer {
    match params.take_post.send(TakePost(lines)).await {
        Ok(Some(Ok(ack))) => NodeAnswer::Posted { accepted: ack.accepted, duplicates: ack.duplicates, seq: ack.seq },
        Ok(Some(Err(BroadcastRefusal::HasOrigin { expected }))) => NodeAnswer::HasOrigin { expected },
        Ok(Some(Err(refusal))) => NodeAnswer::Unavailable { why: refusal.to_string() },
        Ok(None) => NodeAnswer::NotOwner,
        Err(error) => NodeAnswer::Unavailable { why: error.to_string() },
    }
}

/// Sessions whose room another node has go on there.
async fn let_go_of_lost(params: RoomKeeperParams) {
    let mut lost = params.lost.lock().await;
    while let Some(Lost { room, epoch }) = lost.recv().await {
        let order = HandOverRoom { room, epoch, to: "the room's new owner".to_owned(), is_asked: false };
        // A session that was asked is ending already.
        let _ = params.hand_over.send(order).await;
    }
}

/// The state that `/metrics` shows.
#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct RoomKeeperState {
    pub generation: u64,
    pub instance: String,
    /// Rooms that this node writes or has something left of.
    pub rooms: usize,
    /// Times that another node has asked for a room.
    pub asked: u64,
    /// Sessions of nodes that were gone.
    pub adopted: u64,
}

impl Observable for RoomKeeper {
    type State = RoomKeeperState;
}

impl Handler<Observe<Self>> for RoomKeeper {
    type Result = MessageResult<Observe<Self>>;

    fn handle(&mut self, _: Observe<Self>, _: &mut Self::Context) -> Self::Result {
        MessageResult(RoomKeeperState {
            generation: self.lifeline.generation(),
            instance: self.params.ownership.instance().to_owned(),
            rooms: self.params.ownership.len(),
            asked: self.handed_over,
            adopted: self.adopted,
        })
    }
}

crate::stops_and_crashes!(RoomKeeper);
