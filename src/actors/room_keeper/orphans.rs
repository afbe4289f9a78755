//! Rooms whose owner is gone: their sessions are adopted, so that they come to an end, and leftovers find somebody.

use std::collections::HashMap;
use std::time::Duration;

use actix::prelude::*;
use tokio::time::Instant;

use super::{Adopted, RoomKeeper, RoomKeeperParams};
use crate::actors::session_registry::AdoptClaimed;
use crate::bus::log_server::{Held, ServerError};
use crate::bus::ownership::{ClaimError, Holding};
use crate::transcript::Slug;

/// Watches the holdings of all rooms.
pub(super) struct Orphans {
    params: RoomKeeperParams,
    /// Time without a sign of life after which a room's owner is asked whether it lives. No clock of another machine counts:
    /// what counts is how long this node has seen no change.
    lease: Duration,
    seen: HashMap<Slug, (u64, Instant)>,
}

impl Orphans {
    pub fn new(params: RoomKeeperParams) -> Self {
        let lease = params.services.config.split.nats.lease;
        Self { params, lease, seen: HashMap::new() }
    }

    pub async fn watch(mut self, keeper: Addr<RoomKeeper>) {
        loop {
            // All nodes look; that they look at different times spares most of the races, which are harmless.
            tokio::time::sleep(self.lease.mul_f64(rand::random_range(0.4..0.6))).await;
            if let Err(error) = self.look(&keeper).await {
                tracing::debug!(%error, "the rooms' owners could not be looked up");
            }
        }
    }

    async fn look(&mut self, keeper: &Addr<RoomKeeper>) -> Result<(), ServerError> {
        let held = self.params.ownership.server().held().await?;
        let now = Instant::now();
        let mut seen = HashMap::with_capacity(held.len());
        for (room, held) in held {
            let known = self.seen.remove(&room).filter(|(revision, _)| *revision == held.revision);
            let (revision, since) = known.unwrap_or((held.revision, now));
            seen.insert(room.clone(), (revision, since));
            if since.elapsed() >= self.lease {
                self.adopt_if_orphaned(&room, &held, keeper).await?;
            }
        }
        self.seen = seen;
        Ok(())
    }

    async fn adopt_if_orphaned(&self, room: &Slug, held: &Held, keeper: &Addr<RoomKeeper>) -> Result<(), ServerError> {
        let ownership = &self.params.ownership;
        let holding = serde_json::from_slice::<Holding>(&held.value).ok();
        if let Some(holding) = &holding {
            if holding.instance == ownership.instance() {
                return ownership.let_go_if_forgotten(room, held.revision).await;
            }
            let mode = self.params.services.config.server.mode;
            let can_go_on = if holding.is_of_third_parties() { mode.serves() } else { mode.ingests() };
            if !can_go_on || ownership.is_there(&holding.instance).await? {
                return Ok(());
            }
        }
        let node = holding.map_or_else(String::new, |holding| holding.node);
        match ownership.adopt(room, held.revision).await {
            Ok(Some(claimed)) => {
                tracing::warn!(session = %room, epoch = %claimed.epoch, node, "session of a node that is gone is adopted");
                self.params.services.metrics.rooms_adopted_total.inc();
                keeper.do_send(Adopted);
                let _ = self.params.adopt.send(AdoptClaimed { slug: room.clone(), claimed }).await;
                Ok(())
            }
            Ok(None) => {
                tracing::info!(session = %room, node, "room of a node that is gone is free");
                Ok(())
            }
            Err(ClaimError::Away(why)) => Err(ServerError::Away(why)),
            // Somebody was quicker.
            Err(error) => {
                tracing::debug!(session = %room, %error, "a room was not adopted");
                Ok(())
            }
        }
    }
}
