//! A Track Egress for each microphone, where `LIVEKIT_SPEAKERS=tracks`: its audio tells who speaks, and nothing else.
//!
//! It dials once and does not reconnect, so it is started again while its track lives.

use actix::prelude::*;
use tokio::time::Instant;

use super::EgressController;
use crate::livekit::api::ApiError;
use crate::livekit::model::EgressInfo;
use crate::livekit::track_url::Microphone;
use crate::transcript::Slug;

impl EgressController {
    /// Starts what is due, while the room is transcribed.
    pub(super) fn attend_microphones(&mut self, slug: &Slug, now: Instant, ctx: &mut Context<Self>) {
        if !self.controls_tracks() || !self.is_matched(slug) {
            return;
        }
        let is_here = self.here.contains_key(slug);
        let Some(room) = self.rooms.get_mut(slug) else { return };
        if room.sid.is_none() || room.is_refused || !(is_here || room.egress.is_some()) {
            return;
        }
        let is_due = |one: &super::room::Microphone| one.egress.is_none() && !one.is_busy && one.attempts.may_try(now);
        let due: Vec<(String, String)> = room
            .microphones
            .iter_mut()
            .filter(|(_, one)| is_due(one))
            .map(|(track, one)| {
                one.is_busy = true;
                (track.clone(), one.identity.clone())
            })
            .collect();
        for (track, identity) in due {
            match Microphone::new(slug.clone(), &track, &identity) {
                Ok(microphone) => self.start_track(microphone, ctx),
                // It stays busy: nothing will change about its name.
                Err(error) => tracing::warn!(session = %slug, %error, "a microphone has no egress"),
            }
        }
    }

    fn start_track(&mut self, microphone: Microphone, ctx: &mut Context<Self>) {
        let Some(calls) = self.calls.clone() else { return };
        let started = async move { (calls.start_track(&microphone).await, microphone) };
        ctx.spawn(started.into_actor(self).map(|(started, microphone), this, _| {
            this.track_has_started(&microphone, started);
        }));
    }

    fn track_has_started(&mut self, microphone: &Microphone, started: Result<(String, bool), ApiError>) {
        let metrics = &self.params.services.metrics;
        let slug = &microphone.slug;
        let result = match &started {
            Ok((_, true)) => "started",
            Ok((_, false)) => "found",
            Err(error) => error.as_str(),
        };
        metrics.track_egress_starts_total.with_label_values(&[result]).inc();
        let room = self.rooms.get_mut(slug);
        let Some(known) = room.and_then(|room| room.microphones.get_mut(&microphone.track)) else {
            // The track is gone, and its egress goes with it.
            return;
        };
        known.is_busy = false;
        match started {
            Ok((id, _)) => {
                tracing::info!(session = %slug, egress = id, track = microphone.track, "track egress started");
                known.egress = Some((id, Instant::now()));
            }
            Err(error) => {
                let is_lasting = matches!(error, ApiError::Denied(_) | ApiError::Quota(_) | ApiError::BadRoute(_));
                known.attempts.failed(Instant::now(), is_lasting);
                let failures = known.attempts.failures();
                tracing::warn!(session = %slug, track = microphone.track, %error, failures, "no track egress; it is tried again");
            }
        }
    }

    pub(super) fn track_egress_happened(&mut self, slug: &Slug, info: &EgressInfo, ctx: &mut Context<Self>) {
        let track = info.track.as_ref().map_or("", |track| track.track_id.as_str());
        let room = self.rooms.get_mut(slug);
        let Some(known) = room.and_then(|room| room.microphones.get_mut(track)) else { return };
        if !info.status().is_over() || known.egress.as_ref().is_none_or(|(id, _)| *id != info.egress_id) {
            return;
        }
        known.egress = None;
        // Also of one that was well: it would not have ended while its track lives.
        known.attempts.failed(Instant::now(), false);
        let failures = known.attempts.failures();
        self.params.services.metrics.track_egress_restarts_total.inc();
        tracing::info!(session = %slug, track, error = info.error, failures, "track egress ended while its track lives");
        self.attend(slug, ctx);
    }
}
