//! What is asked of LiveKit, step by step, without a word on when.
//!
//! Several nodes may start an egress for one room at the same moment, and LiveKit has no word for "unless there is one".
//! So each node lists before it starts and looks again afterwards; of several the one that has been active longest stays,
//! and whoever sees the others stops them. That rule needs no lock between nodes, and it holds for nodes that share
//! nothing but the LiveKit server: a claim in the log server of a cluster would spare a race that is rare, and would be one
//! more thing that may be away.

use std::sync::Arc;

use chrono::Utc;

use super::room::first_of;
use crate::config::{Config, Secret};
use crate::livekit::api::{ApiClient, ApiError, ApiServer};
use crate::livekit::keys::KeyRing;
use crate::livekit::model::{EgressInfo, EgressStatus, Participant, Room};
use crate::livekit::track_url::Microphone;
use crate::rtmp::publish_key;
use crate::transcript::Slug;

/// Calls one server for one node of ours. Bound to its thread.
#[derive(Clone)]
pub struct Calls {
    api: ApiClient,
    keys: Arc<KeyRing>,
    rtmp_url: String,
    publish_key: Option<Secret>,
    http_url: String,
}

/// A room whose egress is to be started.
#[derive(Debug, Clone)]
pub struct Order {
    pub slug: Slug,
    pub sid: String,
    /// Also if somebody has stopped one.
    pub is_forced: bool,
    /// Ids that this node has stopped, or could not.
    pub stopped: Vec<String>,
}

/// The room's egress, as it was found or left.
#[derive(Debug)]
pub enum Found {
    Runs {
        info: Box<EgressInfo>,
        is_new: bool,
        /// How many beside it were stopped.
        duplicates: usize,
    },
    None,
    /// Somebody has stopped it at LiveKit.
    StoppedOnRequest,
}

/// Everything that LiveKit has.
#[derive(Debug)]
pub struct Listed {
    pub rooms: Vec<Room>,
    pub egresses: Vec<EgressInfo>,
    /// Of the rooms that were asked for.
    pub participants: Vec<(Slug, Vec<Participant>)>,
}

impl Calls {
    pub fn new(server: &Arc<ApiServer>, config: &Config) -> Self {
        let livekit = &config.livekit;
        Self {
            api: server.client(),
            keys: server.keys().clone(),
            rtmp_url: livekit.rtmp_public_url.clone().unwrap_or_default(),
            publish_key: config.rtmp.publish_key.clone(),
            http_url: livekit.http_public_url.clone().unwrap_or_default(),
        }
    }

    /// Publishes a room to us. Others of the same room are somebody else's, and are let be.
    pub fn is_ours(&self, egress: &EgressInfo) -> bool {
        !self.rtmp_url.is_empty() && egress.publishes_room_to(&self.rtmp_url)
    }

    pub async fn start(&self, order: &Order) -> Result<Found, ApiError> {
        let listed = self.of_room(order, false).await?;
        if let Found::Runs { info, duplicates, .. } = self.settle(&listed).await {
            return Ok(Found::Runs { info, is_new: false, duplicates });
        }
        let is_on_request = |one: &EgressInfo| {
            let has_ended = matches!(one.status(), EgressStatus::Complete | EgressStatus::Ending);
            has_ended && !order.stopped.contains(&one.egress_id)
        };
        if !order.is_forced && listed.iter().any(is_on_request) {
            return Ok(Found::StoppedOnRequest);
        }
        let started = self.api.start_room_composite_egress(order.slug.as_str(), &self.publish_url(&order.slug)).await?;
        let listed = self.of_room(order, true).await.unwrap_or_default();
        Ok(match self.settle(&listed).await {
            Found::Runs { info, duplicates, .. } if duplicates > 0 => Found::Runs { info, is_new: true, duplicates },
            _ => Found::Runs { info: Box::new(started), is_new: true, duplicates: 0 },
        })
    }

    /// Looks which egress the room has, and stops those beside it.
    pub async fn look(&self, order: &Order) -> Result<Found, ApiError> {
        Ok(self.settle(&self.of_room(order, true).await?).await)
    }

    /// Stops every egress of ours in the room, its tracks' included. Gives their ids.
    pub async fn stop_all(&self, slug: &Slug) -> Result<Vec<String>, ApiError> {
        let listed = self.api.list_egress(Some(slug.as_str()), true).await?;
        let tracks = self.track_base(slug);
        let ours = |one: &&EgressInfo| self.is_ours(one) || (!self.http_url.is_empty() && one.sends_track_to(&tracks));
        let mut stopped = Vec::new();
        for one in listed.iter().filter(ours).filter(|one| one.status().is_running()) {
            self.stop(&one.egress_id).await?;
            stopped.push(one.egress_id.clone());
        }
        Ok(stopped)
    }

    /// One that is over, or unknown, is stopped.
    pub async fn stop(&self, id: &str) -> Result<(), ApiError> {
        match self.api.stop_egress(id).await {
            Ok(_) | Err(ApiError::NotFound(_) | ApiError::Precondition(_)) => Ok(()),
            Err(error) => Err(error),
        }
    }

    /// The room of this name that is there now.
    pub async fn room(&self, slug: &Slug) -> Result<Option<Room>, ApiError> {
        let rooms = self.api.list_rooms(&[slug.as_str()]).await?;
        Ok(rooms.into_iter().find(|room| room.name == slug.as_str()))
    }

    /// Gives the id of the track's egress, and whether it is new.
    pub async fn start_track(&self, microphone: &Microphone) -> Result<(String, bool), ApiError> {
        if let Some(running) = self.of_track(microphone).await?.into_iter().next() {
            return Ok((running, false));
        }
        let url = Secret::new(microphone.url(&self.http_url, Utc::now(), &self.keys));
        let room = microphone.slug.as_str();
        let started = self.api.start_track_egress(room, &microphone.track, &url).await?;
        let first = self.of_track(microphone).await.unwrap_or_default().into_iter().next();
        match first {
            // Another node was as quick. Its word on the same voice is as good as ours.
            Some(first) if first != started.egress_id => {
                self.stop(&started.egress_id).await?;
                Ok((first, false))
            }
            _ => Ok((started.egress_id, true)),
        }
    }

    pub async fn list(&self, ask_for: Vec<Slug>) -> Result<Listed, ApiError> {
        let rooms = self.api.list_rooms(&[]).await?;
        let egresses = self.api.list_egress(None, true).await?;
        let mut participants = Vec::new();
        for slug in ask_for {
            match self.api.list_participants(slug.as_str()).await {
                Ok(people) => participants.push((slug, people)),
                // It has just ended.
                Err(ApiError::NotFound(_)) => {}
                Err(error) => return Err(error),
            }
        }
        Ok(Listed { rooms, egresses, participants })
    }

    /// Ours, of this room and not of an earlier one of the same name. One that LiveKit has forgotten how to stop stays listed.
    async fn of_room(&self, order: &Order, active: bool) -> Result<Vec<EgressInfo>, ApiError> {
        let mut listed = self.api.list_egress(Some(order.slug.as_str()), active).await?;
        listed.retain(|one| {
            let is_of_room = one.room_id.is_empty() || one.room_id == order.sid;
            let is_gone = order.stopped.contains(&one.egress_id) && one.status().is_running();
            self.is_ours(one) && is_of_room && !is_gone
        });
        Ok(listed)
    }

    /// In the order of their ids: all nodes come to the same first.
    async fn of_track(&self, microphone: &Microphone) -> Result<Vec<String>, ApiError> {
        let listed = self.api.list_egress(Some(microphone.slug.as_str()), true).await?;
        let is_of_track = |one: &&EgressInfo| {
            one.status().is_running() && one.track.as_ref().is_some_and(|track| track.track_id == microphone.track)
        };
        let mut ids: Vec<_> = listed.iter().filter(is_of_track).map(|one| one.egress_id.clone()).collect();
        ids.sort();
        Ok(ids)
    }

    async fn settle(&self, listed: &[EgressInfo]) -> Found {
        let mut running: Vec<EgressInfo> = listed.iter().filter(|one| one.status().is_running()).cloned().collect();
        running.sort_by(|a, b| a.egress_id.cmp(&b.egress_id));
        let Some(any) = running.first().cloned() else { return Found::None };
        let Some(first) = first_of(&running).cloned() else {
            return Found::Runs { info: Box::new(any), is_new: false, duplicates: 0 };
        };
        let mut duplicates = 0;
        for one in running.iter().filter(|one| one.egress_id != first.egress_id) {
            match self.stop(&one.egress_id).await {
                Ok(()) => duplicates += 1,
                Err(error) => {
                    tracing::warn!(session = one.room(), egress = one.egress_id, %error, "a second egress could not be stopped");
                }
            }
        }
        Found::Runs { info: Box::new(first), is_new: false, duplicates }
    }

    fn publish_url(&self, slug: &Slug) -> Secret {
        let key = self.publish_key.as_ref().map(|secret| format!("?key={}", publish_key(secret, slug, None)));
        Secret::new(format!("{}/{slug}{}", self.rtmp_url, key.unwrap_or_default()))
    }

    fn track_base(&self, slug: &Slug) -> String {
        let base = self.http_url.replacen("http", "ws", 1);
        format!("{base}/api/egress/track/{slug}")
    }
}
