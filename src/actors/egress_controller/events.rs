//! What webhooks say of rooms, participants, tracks and egresses.

use actix::prelude::*;
use tokio::time::Instant;

use super::EgressController;
use crate::bus::ownership::RoomNews;
use crate::livekit::model::{EgressInfo, Participant, Room};
use crate::livekit::webhook::{EventKind, WebhookEvent};
use crate::transcript::Slug;

/// Something has happened at the LiveKit server.
#[derive(Message)]
#[rtype(result = "()")]
pub(super) struct Happened(pub WebhookEvent);

impl Handler<Happened> for EgressController {
    type Result = ();

    fn handle(&mut self, Happened(event): Happened, ctx: &mut Self::Context) {
        if let Some(egress) = &event.egress {
            return self.egress_happened(egress, ctx);
        }
        let Some(there) = event.room.clone() else { return };
        let Some(slug) = self.slug_of(&there.name) else { return };
        match event.kind {
            EventKind::RoomStarted => drop(self.begun(&slug, &there, ctx)),
            EventKind::RoomFinished => {
                let news = RoomNews { room: slug.clone(), sid: there.sid.clone(), is_over: true, names: Vec::new() };
                self.tell_owner(news, ctx);
                self.finish(slug, there.sid, ctx);
            }
            _ => self.in_room(&slug, &there, &event, ctx),
        }
    }
}

impl EgressController {
    fn in_room(&mut self, slug: &Slug, there: &Room, event: &WebhookEvent, ctx: &mut Context<Self>) {
        let Some(participant) = event.participant.as_ref().filter(|participant| participant.is_voice()) else { return };
        match event.kind {
            EventKind::ParticipantJoined => {
                self.begun(slug, there, ctx);
                self.joined(slug, &there.sid, participant, ctx);
            }
            EventKind::TrackPublished => {
                self.begun(slug, there, ctx);
                let microphone = event.track.as_ref().filter(|track| track.is_microphone());
                if let (Some(track), Some(room)) = (microphone, self.rooms.get_mut(slug)) {
                    room.microphone(&track.sid, &participant.identity, Instant::now());
                }
                self.attend(slug, ctx);
            }
            EventKind::TrackUnpublished => {
                if let (Some(track), Some(room)) = (&event.track, self.rooms.get_mut(slug)) {
                    room.microphones.remove(&track.sid);
                }
            }
            EventKind::ParticipantLeft => {
                if let Some(room) = self.rooms.get_mut(slug) {
                    // The name stays: what was said last is still to be labelled.
                    room.microphones.retain(|_, microphone| microphone.identity != participant.identity);
                }
            }
            _ => {}
        }
    }

    fn joined(&mut self, slug: &Slug, sid: &str, participant: &Participant, ctx: &mut Context<Self>) {
        self.is_named(slug, &participant.identity, &participant.name);
        if !participant.name.is_empty() {
            let names = vec![(participant.identity.clone(), participant.name.clone())];
            self.tell_owner(RoomNews { room: slug.clone(), sid: sid.to_owned(), is_over: false, names }, ctx);
        }
    }

    /// LiveKit tells of an egress; perhaps of somebody else's.
    fn egress_happened(&mut self, info: &EgressInfo, ctx: &mut Context<Self>) {
        let Some(slug) = self.slug_of(info.room()) else { return };
        if info.track.is_some() {
            return self.track_egress_happened(&slug, info, ctx);
        }
        let is_ours = self.calls.as_ref().is_some_and(|calls| calls.is_ours(info));
        let now = Instant::now();
        let Some(room) = self.rooms.get_mut(&slug) else { return };
        let is_known = room.egress.as_ref().is_some_and(|egress| egress.id == info.egress_id);
        let is_of_room = info.room_id.is_empty() || room.sid.as_ref() == Some(&info.room_id);
        if !(is_ours || is_known) || !is_of_room || room.stopped().contains(&info.egress_id) {
            return;
        }
        let has_another = room.egress.as_ref().is_some_and(|egress| egress.status.is_running());
        if info.status().is_over() {
            if let Some(fault) = room.is_over(&info.egress_id, Some(info)) {
                self.is_to_restart(&slug, fault, now);
            }
        } else if is_known || !has_another {
            room.runs(info, now);
        } else {
            room.look_now(now);
        }
        self.attend(&slug, ctx);
    }
}
