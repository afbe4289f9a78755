//! News of LiveKit's rooms: they come to any node, and matter at the one that has the room's session.

use super::messages::{Holding, NodeAnswer, NodeRequest, RoomNews};
use super::{ASK_TIMEOUT, Ownership};
use crate::bus::log_server::{ServerError, Unanswered};
use crate::transcript::Slug;

impl Ownership {
    /// Tells the node that has the room. False: there is none, or it is this one.
    pub async fn tell_owner(&self, news: RoomNews) -> Result<bool, Unanswered> {
        let held = self.held_by(&news.room).await.map_err(|error| Unanswered::Away(error.to_string()))?;
        let Some(owner) = held.filter(|owner| owner.instance != self.me.instance) else { return Ok(false) };
        let answer = self.ask(&owner.instance, &NodeRequest::RoomNews(Box::new(news)), ASK_TIMEOUT).await?;
        Ok(answer == NodeAnswer::Taken)
    }

    /// Another node has a publisher of the room, as far as that one has said.
    pub async fn is_published_elsewhere(&self, room: &Slug) -> Result<bool, ServerError> {
        let held = self.held_by(room).await?.filter(|owner| owner.instance != self.me.instance);
        Ok(held.and_then(|owner| owner.checkpoint).is_some_and(|checkpoint| checkpoint.is_publishing))
    }

    async fn held_by(&self, room: &Slug) -> Result<Option<Holding>, ServerError> {
        let held = self.server.holder(room).await?;
        Ok(held.and_then(|held| serde_json::from_slice(&held.value).ok()))
    }
}
