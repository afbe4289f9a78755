//! Orders of rooms' admins and operators: start it, stop it.

use actix::prelude::*;
use tokio::sync::oneshot;
use tokio::time::Instant;

use super::room::Room as KnownRoom;
use super::{EgressController, Waiter};
use crate::config::EgressKind;
use crate::livekit::api::ApiError;
use crate::livekit::model::Room;
use crate::transcript::Slug;

/// Start the room's egress, unless it runs.
#[derive(Debug, Clone, Message)]
#[rtype(result = "Result<EgressRun, EgressRefusal>")]
pub struct StartEgress(pub Slug);

/// Stop the room's egresses, until the room is made anew or somebody asks. Gives their ids.
#[derive(Debug, Clone, Message)]
#[rtype(result = "Result<Vec<String>, EgressRefusal>")]
pub struct StopEgress(pub Slug);

/// The egress that a room has.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EgressRun {
    pub egress_id: String,
    pub status: &'static str,
    pub is_new: bool,
}

/// Why there is none. The text goes to whoever asked.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum EgressRefusal {
    #[error("LIVEKIT_EGRESS=off: this server starts no egresses")]
    Off,
    #[error("this node takes no publishers (SERVER_MODE=ws); ask an ingest node")]
    Elsewhere,
    #[error("LIVEKIT_ROOMS leaves this room out")]
    LeftOut,
    #[error("LiveKit has no room of this name now")]
    NoRoom,
    #[error("egresses are being repaired here")]
    Restarting,
    #[error("{0}")]
    Api(ApiError),
}

impl EgressRefusal {
    /// The `code` of the HTTP error.
    pub fn code(&self) -> &'static str {
        match self {
            Self::Off => "egress_off",
            Self::Elsewhere => "egress_elsewhere",
            Self::LeftOut => "room_left_out",
            Self::NoRoom => "no_room",
            Self::Restarting => "unavailable",
            Self::Api(error) => match error {
                ApiError::NoWorker(_) => "egress_no_worker",
                ApiError::Denied(_) => "egress_denied",
                ApiError::Quota(_) => "egress_quota",
                ApiError::Unreachable(_) | ApiError::BadRoute(_) => "livekit_unreachable",
                ApiError::Timeout => "livekit_timeout",
                _ => "egress_failed",
            },
        }
    }
}

impl EgressController {
    fn may_order(&self, slug: &Slug) -> Result<(), EgressRefusal> {
        let config = &self.params.services.config;
        if config.livekit.egress == EgressKind::Off {
            return Err(EgressRefusal::Off);
        }
        if self.calls.is_none() {
            return Err(EgressRefusal::Elsewhere);
        }
        if !self.is_matched(slug) {
            return Err(EgressRefusal::LeftOut);
        }
        Ok(())
    }

    /// The room was looked up for somebody who waits for its egress.
    fn asked(&mut self, slug: &Slug, found: Result<Option<Room>, ApiError>, waiter: Waiter, ctx: &mut Context<Self>) {
        let refusal = match found {
            Ok(Some(there)) => {
                let Some(room) = self.room(slug) else {
                    let _ = waiter.send(Err(EgressRefusal::Restarting));
                    return;
                };
                room.begins(&there.sid, Instant::now());
                (room.is_asked, room.force, room.is_refused) = (true, true, false);
                room.attempts.forgive();
                self.wait(slug, waiter);
                return self.attend(slug, ctx);
            }
            Ok(None) => EgressRefusal::NoRoom,
            Err(error) => {
                self.api_failed(&error);
                EgressRefusal::Api(error)
            }
        };
        let _ = waiter.send(Err(refusal));
    }

    fn wait(&mut self, slug: &Slug, waiter: Waiter) {
        let running = self.rooms.get(slug).and_then(|room| room.egress.as_ref()).filter(|one| one.status.is_running());
        if let Some(egress) = running {
            let run = EgressRun { egress_id: egress.id.clone(), status: egress.status.as_str(), is_new: false };
            let _ = waiter.send(Ok(run));
        } else {
            self.waiters.entry(slug.clone()).or_default().push(waiter);
        }
    }
}

impl Handler<StartEgress> for EgressController {
    type Result = ResponseFuture<Result<EgressRun, EgressRefusal>>;

    fn handle(&mut self, StartEgress(slug): StartEgress, ctx: &mut Self::Context) -> Self::Result {
        if let Err(refusal) = self.may_order(&slug) {
            return Box::pin(async { Err(refusal) });
        }
        let Some(calls) = self.calls.clone() else { return Box::pin(async { Err(EgressRefusal::Elsewhere) }) };
        let (waiter, answered) = oneshot::channel();
        let looked_up = async move { (calls.room(&slug).await, slug) };
        ctx.spawn(looked_up.into_actor(self).map(|(found, slug), this, ctx| this.asked(&slug, found, waiter, ctx)));
        Box::pin(async move { answered.await.unwrap_or(Err(EgressRefusal::Restarting)) })
    }
}

impl Handler<StopEgress> for EgressController {
    type Result = ResponseActFuture<Self, Result<Vec<String>, EgressRefusal>>;

    fn handle(&mut self, StopEgress(slug): StopEgress, _: &mut Self::Context) -> Self::Result {
        if let Err(refusal) = self.may_order(&slug) {
            return Box::pin(async { Err(refusal) }.into_actor(self));
        }
        let Some(calls) = self.calls.clone() else {
            return Box::pin(async { Err(EgressRefusal::Elsewhere) }.into_actor(self));
        };
        // First, so that nothing is started meanwhile.
        self.rooms.entry(slug.clone()).and_modify(KnownRoom::refuse);
        let stopped = async move { (calls.stop_all(&slug).await, slug) };
        Box::pin(stopped.into_actor(self).map(|(stopped, slug), this, _| {
            let stopped = stopped.map_err(EgressRefusal::Api)?;
            for id in &stopped {
                tracing::info!(session = %slug, egress = id, "egress stopped on request");
                this.rooms.entry(slug.clone()).and_modify(|room| room.forget_egress(id));
            }
            Ok(stopped)
        }))
    }
}
