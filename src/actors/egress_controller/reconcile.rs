//! Compares what is known with what LiveKit lists: at the start, each minute, and so whenever a webhook was missed.

use std::collections::HashMap;
use std::time::Duration;

use actix::prelude::*;
use tokio::time::Instant;

use super::EgressController;
use super::calls::Listed;
use super::policy::{MAX_ASKED, RECONCILE_AGAIN, RECONCILE_INTERVAL};
use crate::livekit::api::ApiError;
use crate::livekit::model::{EgressInfo, Participant, Room};
use crate::transcript::Slug;

impl EgressController {
    pub(super) fn reconcile(&mut self, ctx: &mut Context<Self>) {
        let Some(calls) = self.calls.clone() else { return };
        let begun = Instant::now();
        let matters = |slug: &Slug, room: &super::room::Room| room.is_alone || self.here.contains_key(slug);
        let mut ask_for: Vec<Slug> =
            self.rooms.iter().filter(|(slug, room)| matters(slug, room)).map(|(slug, _)| slug.clone()).collect();
        ask_for.truncate(MAX_ASKED);
        let listed = async move { calls.list(ask_for).await };
        ctx.spawn(listed.into_actor(self).map(move |listed, this, ctx| this.listed(listed, begun, ctx)));
    }

    fn reconcile_after(&self, pause: Duration, ctx: &mut Context<Self>) {
        // All nodes look; that they look at different times spares most of the races, which are harmless.
        let pause = pause.mul_f64(rand::random_range(0.8..1.2));
        ctx.run_later(pause, Self::reconcile);
    }

    fn listed(&mut self, listed: Result<Listed, ApiError>, begun: Instant, ctx: &mut Context<Self>) {
        let metrics = self.params.services.metrics.clone();
        let listed = match listed {
            Ok(listed) => listed,
            Err(error) => {
                self.api_failed(&error);
                metrics.livekit_api_up.set(0);
                if self.api_fault.as_ref().map(ApiError::as_str) != Some(error.as_str()) {
                    tracing::error!(%error, "the LiveKit server cannot be asked; missed webhooks are not made up for");
                }
                self.api_fault = Some(error);
                return self.reconcile_after(RECONCILE_AGAIN, ctx);
            }
        };
        metrics.livekit_api_up.set(1);
        if self.api_fault.take().is_some() {
            tracing::info!("the LiveKit server answers again");
        }
        let is_first = self.reconciled.replace(begun).is_none();
        self.compare_rooms(&listed.rooms, begun, is_first, ctx);
        self.compare_egresses(&listed.egresses, begun, ctx);
        for (slug, participants) in &listed.participants {
            self.compare_participants(slug, participants, begun, ctx);
        }
        // Trackers that were restarted have no names.
        self.rooms.values_mut().for_each(|room| room.named = None);
        self.reconcile_after(RECONCILE_INTERVAL, ctx);
    }

    fn healed(&self, what: &str) {
        self.params.services.metrics.livekit_missed_total.with_label_values(&[what]).inc();
    }

    fn compare_rooms(&mut self, there: &[Room], begun: Instant, is_first: bool, ctx: &mut Context<Self>) {
        let mut by_slug: HashMap<Slug, &Room> = HashMap::new();
        for room in there {
            if let Some(slug) = self.slug_of(&room.name) {
                by_slug.insert(slug, room);
            }
        }
        // What has begun since is not listed, and no news of its end.
        let is_old = |since: Option<Instant>| since.is_none_or(|since| since < begun);
        let gone: Vec<(Slug, String)> = self
            .rooms
            .iter()
            .filter(|(slug, room)| !by_slug.contains_key(*slug) && is_old(room.since))
            .filter_map(|(slug, room)| Some((slug.clone(), room.sid.clone()?)))
            .collect();
        for (slug, sid) in gone {
            self.healed("room_finished");
            self.finish(slug, sid, ctx);
        }
        for (slug, room) in by_slug {
            let is_newer = self.rooms.get(&slug).is_some_and(|known| !is_old(known.since));
            if !is_newer && self.begun(&slug, room, ctx) && !is_first {
                self.healed("room_started");
            }
        }
    }

    fn compare_egresses(&mut self, there: &[EgressInfo], begun: Instant, ctx: &mut Context<Self>) {
        let now = Instant::now();
        let mut by_room: HashMap<Slug, Vec<&EgressInfo>> = HashMap::new();
        for info in there.iter().filter(|info| info.status().is_running()) {
            let is_ours = self.calls.as_ref().is_some_and(|calls| calls.is_ours(info));
            if let (true, Ok(slug)) = (is_ours, Slug::parse(info.room())) {
                by_room.entry(slug).or_default().push(info);
            }
        }
        let slugs: Vec<Slug> = self.rooms.keys().cloned().collect();
        for slug in slugs {
            let listed = by_room.remove(&slug).unwrap_or_default();
            let Some(room) = self.rooms.get_mut(&slug) else { continue };
            let stopped = room.stopped();
            let of_room = |info: &&&EgressInfo| {
                let is_of_room = info.room_id.is_empty() || room.sid.as_ref() == Some(&info.room_id);
                is_of_room && !stopped.contains(&info.egress_id)
            };
            let ours: Vec<&EgressInfo> = listed.iter().filter(of_room).copied().collect();
            let known = room.egress.as_ref().map(|egress| (egress.id.clone(), egress.since()));
            match (known, &ours[..]) {
                (Some((id, since)), ours) if since < begun && !ours.iter().any(|info| info.egress_id == id) => {
                    let fault = room.is_over(&id, None);
                    self.healed("egress_ended");
                    if let Some(fault) = fault.filter(|_| ours.is_empty()) {
                        self.is_to_restart(&slug, fault, now);
                    }
                }
                (_, [only]) if !room.is_busy => drop(room.runs(only, now)),
                (_, [_, _, ..]) => room.look_now(now),
                _ => {}
            }
            self.attend(&slug, ctx);
        }
        self.compare_tracks(there, begun);
    }

    /// Track egresses that are not listed any more are started again, while their tracks live.
    fn compare_tracks(&mut self, there: &[EgressInfo], begun: Instant) {
        if !self.controls_tracks() {
            return;
        }
        let running: Vec<&str> =
            there.iter().filter(|info| info.status().is_running()).map(|info| info.egress_id.as_str()).collect();
        for room in self.rooms.values_mut() {
            for microphone in room.microphones.values_mut() {
                let is_gone = microphone
                    .egress
                    .as_ref()
                    .is_some_and(|(id, since)| *since < begun && !running.contains(&id.as_str()));
                if is_gone {
                    microphone.egress = None;
                }
            }
        }
    }

    fn compare_participants(&mut self, slug: &Slug, there: &[Participant], begun: Instant, ctx: &mut Context<Self>) {
        for participant in there.iter().filter(|participant| participant.is_voice()) {
            self.is_named(slug, &participant.identity, &participant.name);
        }
        let Some(room) = self.rooms.get_mut(slug) else { return };
        let voices = there.iter().filter(|participant| participant.is_voice());
        let microphones: HashMap<&str, &str> = voices
            .flat_map(|one| {
                one.tracks.iter().filter(|track| track.is_microphone()).map(|t| (t.sid.as_str(), one.identity.as_str()))
            })
            .collect();
        room.microphones
            .retain(|track, one| one.is_busy || one.since >= begun || microphones.contains_key(track.as_str()));
        for (track, identity) in microphones {
            room.microphone(track, identity, begun);
        }
        self.attend(slug, ctx);
    }
}
