//! The state of the controller that `/metrics` shows.

use actix::prelude::*;
use serde::Serialize;

use super::EgressController;
use crate::actors::supervision::{Observable, Observe};
use crate::transcript::Slug;

/// Rooms that are shown.
const MAX_SHOWN: usize = 1000;

#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct EgressControllerState {
    pub generation: u64,
    /// Rooms of LiveKit that are there, of those that could have a session here.
    pub rooms: usize,
    pub egresses: usize,
    pub track_egresses: usize,
    /// Time since LiveKit was last asked for everything, and answered.
    pub reconciled_ms: Option<u64>,
    /// Why it does not answer.
    pub fault: Option<String>,
    /// By slug; the first thousand.
    pub by_room: Vec<RoomEgressState>,
}

#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct RoomEgressState {
    pub session: Slug,
    /// LiveKit's id of the room; none while only its session's end is waited for.
    pub room_id: Option<String>,
    pub egress: Option<String>,
    pub status: Option<&'static str>,
    /// Somebody has stopped it.
    pub is_stopped: bool,
    pub restarts: u64,
    pub failures: u32,
    pub fault: Option<String>,
    pub participants: usize,
    pub microphones: usize,
}

impl EgressController {
    fn egresses(&self) -> usize {
        let running = self.rooms.values().filter_map(|room| room.egress.as_ref());
        running.filter(|egress| egress.status.is_running()).count()
    }

    fn track_egresses(&self) -> usize {
        let microphones = self.rooms.values().flat_map(|room| room.microphones.values());
        microphones.filter(|microphone| microphone.egress.is_some()).count()
    }

    fn present(&self) -> usize {
        self.rooms.values().filter(|room| room.sid.is_some()).count()
    }

    /// Sets the gauges.
    pub(super) fn report(&self) {
        let metrics = &self.params.services.metrics;
        metrics.livekit_rooms.set(self.present() as i64);
        metrics.egress_active.set(self.egresses() as i64);
        metrics.track_egress_active.set(self.track_egresses() as i64);
    }
}

impl Observable for EgressController {
    type State = EgressControllerState;
}

impl Handler<Observe<Self>> for EgressController {
    type Result = MessageResult<Observe<Self>>;

    fn handle(&mut self, _: Observe<Self>, _: &mut Self::Context) -> Self::Result {
        let mut by_room: Vec<_> = self.rooms.iter().collect();
        by_room.sort_by(|a, b| a.0.cmp(b.0));
        let shown = by_room.into_iter().take(MAX_SHOWN).map(|(slug, room)| RoomEgressState {
            session: slug.clone(),
            room_id: room.sid.clone(),
            egress: room.egress.as_ref().map(|egress| egress.id.clone()),
            status: room.egress.as_ref().map(|egress| egress.status.as_str()),
            is_stopped: room.is_refused,
            restarts: room.restarts,
            failures: room.attempts.failures(),
            fault: room.fault.as_ref().map(ToString::to_string),
            participants: room.people.len(),
            microphones: room.microphones.len(),
        });
        MessageResult(EgressControllerState {
            generation: self.lifeline.generation(),
            rooms: self.present(),
            egresses: self.egresses(),
            track_egresses: self.track_egresses(),
            reconciled_ms: self.reconciled.map(|at| at.elapsed().as_millis() as u64),
            fault: self.api_fault.as_ref().map(ToString::to_string),
            by_room: shown.collect(),
        })
    }
}
