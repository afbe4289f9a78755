//! Rooms and sessions: a session ends with its room, and its speakers have the names of the room's participants.

use actix::prelude::*;
use tokio::time::Instant;

use super::policy::END_TIMEOUT;
use super::{EgressController, NewsFromNode};
use crate::actors::session_registry::{EndSession, ExplainWaiting, NameInSession};
use crate::bus::ownership::RoomNews;
use crate::livekit::api::ApiError;
use crate::livekit::model::Room;
use crate::transcript::Slug;

impl EgressController {
    /// What is due for the room's session.
    pub(super) fn attend_session(&mut self, slug: &Slug, now: Instant, ctx: &mut Context<Self>) {
        self.explain(slug, ctx);
        let Some(room) = self.rooms.get_mut(slug) else { return };
        let here = self.here.get(slug);
        if let Some(here) = here.filter(|here| room.named != Some(here.epoch) && !room.people.is_empty()) {
            room.named = Some(here.epoch);
            let names = room.people.iter().map(|(identity, name)| (identity.clone(), name.clone())).collect();
            self.params.name.do_send(NameInSession { slug: slug.clone(), names });
        }
        let Some(until) = room.ending else { return };
        let (is_late, is_publishing) = (now >= until, here.map(|here| here.is_publishing));
        match is_publishing {
            Some(false) => self.end_session(slug),
            Some(true) if is_late => {
                room.ending = None;
                tracing::info!(session = %slug, "a publisher goes on though its room has ended; so does the session");
            }
            None if is_late => room.ending = None,
            _ => {}
        }
    }

    /// Tells those who wait for a publisher why there is none, once it is known that they wait.
    fn explain(&mut self, slug: &Slug, ctx: &mut Context<Self>) {
        let Some(here) = self.here.get(slug).filter(|here| !here.is_publishing) else { return };
        let Some(label) = self.rooms.get_mut(slug).and_then(|room| room.untold(here.epoch)) else { return };
        let slug = slug.clone();
        let told = self.params.explain.send(ExplainWaiting { slug: slug.clone(), reason: format!("egress_{label}") });
        ctx.spawn(told.into_actor(self).map(move |told, this, _| {
            if let Some(room) = this.rooms.get_mut(&slug).filter(|_| !told.unwrap_or_default()) {
                room.told = None;
            }
        }));
    }

    /// The last words come first, and then the end.
    pub(super) fn end_session(&mut self, slug: &Slug) {
        if let Some(room) = self.rooms.get_mut(slug) {
            room.ending = None;
        }
        let (slug, deadline) = (slug.clone(), Instant::now() + END_TIMEOUT);
        self.here.remove(&slug);
        self.params.end.do_send(EndSession { slug, reason: "room_finished".to_owned(), deadline });
    }

    /// LiveKit says that the room of this id is over. A room is made again under its name at once, if somebody wants to:
    /// so LiveKit is asked what is there now, where it can be.
    pub(super) fn finish(&mut self, slug: Slug, sid: String, ctx: &mut Context<Self>) {
        let Some(calls) = self.calls.clone() else { return self.finished(&slug, &sid, None, ctx) };
        let looked_up = async move { (calls.room(&slug).await, slug, sid) };
        ctx.spawn(looked_up.into_actor(self).map(|(there, slug, sid), this, ctx| {
            this.finished(&slug, &sid, Some(there), ctx);
        }));
    }

    fn finished(
        &mut self,
        slug: &Slug,
        sid: &str,
        there: Option<Result<Option<Room>, ApiError>>,
        ctx: &mut Context<Self>,
    ) {
        let now = Instant::now();
        let is_asked = matches!(there, Some(Ok(_)));
        let successor = there.and_then(Result::ok).flatten().filter(|there| there.sid != sid);
        let known = self.rooms.get(slug).and_then(|room| room.sid.clone());
        // Of an unknown room it is believed when LiveKit has none of the name any more.
        let is_same = known.as_deref() == Some(sid) || (known.is_none() && is_asked && successor.is_none());
        let is_of_successor = |there: &Room| {
            let session = self.here.get(slug);
            there.creation_time > 0 && session.is_some_and(|here| here.started_at.timestamp() > there.creation_time)
        };
        let is_over = is_same && !successor.as_ref().is_some_and(is_of_successor);
        if is_same {
            tracing::info!(session = %slug, "room ended");
            let Some(room) = self.room(slug) else { return };
            room.ends(sid, now);
            if !is_over {
                room.ending = None;
            }
        } else {
            tracing::debug!(session = %slug, "an earlier room of this name has ended");
        }
        if let Some(successor) = successor {
            self.begun(slug, &successor, ctx);
        }
        self.attend(slug, ctx);
    }

    /// This room is there. False: it was known to be.
    pub(super) fn begun(&mut self, slug: &Slug, there: &Room, ctx: &mut Context<Self>) -> bool {
        let now = Instant::now();
        // The end of the room before it was missed: a session that is older than this room was that one's.
        let is_older = |started_s: i64| there.creation_time > 0 && started_s < there.creation_time;
        let is_left = self.here.get(slug).is_some_and(|here| is_older(here.started_at.timestamp()));
        let Some(room) = self.room(slug) else { return false };
        let is_left = is_left && room.sid.is_some();
        if !room.begins(&there.sid, now) {
            return false;
        }
        // It does not wait for this one's publisher.
        if room.ending.is_some() || is_left {
            self.end_session(slug);
        }
        tracing::info!(session = %slug, "room is there");
        self.attend(slug, ctx);
        true
    }

    pub(super) fn is_named(&mut self, slug: &Slug, identity: &str, name: &str) {
        let Some(room) = self.room(slug) else { return };
        if name.is_empty() || !room.name(identity, name) || !self.here.contains_key(slug) {
            return;
        }
        let names = vec![(identity.to_owned(), name.to_owned())];
        self.params.name.do_send(NameInSession { slug: slug.clone(), names });
    }

    /// The session may be at another node of the cluster.
    pub(super) fn tell_owner(&self, news: RoomNews, ctx: &mut Context<Self>) {
        let Some(ownership) = self.params.services.ownership.clone() else { return };
        if self.here.contains_key(&news.room) {
            return;
        }
        let told = async move {
            let slug = news.room.clone();
            if let Err(error) = ownership.tell_owner(news).await {
                tracing::debug!(session = %slug, %error, "news of a room did not reach the node that has it");
            }
        };
        ctx.spawn(told.into_actor(self));
    }
}

impl Handler<NewsFromNode> for EgressController {
    type Result = ();

    fn handle(&mut self, NewsFromNode(news): NewsFromNode, ctx: &mut Self::Context) {
        for (identity, name) in &news.names {
            self.is_named(&news.room, identity, name);
        }
        if news.is_over {
            self.finish(news.room, news.sid, ctx);
        }
    }
}
