//! Lets a viewer in, or says which limit it has met.

use std::sync::{Arc, Weak};

use futures_util::StreamExt;
use futures_util::stream::{self, LocalBoxStream};

use super::feed::{Feed, FeedItem, Resume};
use super::registry::Viewer;
use crate::config::ViewersConfig;
use crate::transcript::directory::ViewerGuard;
use crate::transcript::{Directory, Room, Slug, TranscriptReader};
use crate::viewers::{SocketGuard, Viewers};

/// A viewer that has been let in.
pub struct Admission {
    pub room: Arc<Room>,
    pub viewer: Arc<Viewer>,
    pub in_room: ViewerGuard,
    pub feed: LocalBoxStream<'static, Vec<FeedItem>>,
}

/// A limit that has been reached.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Full {
    #[error("the server has {0} viewers, the most allowed; try again later")]
    Server(usize),
    #[error("the room has {0} viewers, the most allowed; try again later")]
    Room(usize),
}

/// The door for viewers.
pub struct Entrance<'a> {
    pub limits: &'a ViewersConfig,
    pub viewers: &'a Arc<Viewers>,
    pub directory: &'a Directory,
    pub transcripts: &'a Arc<dyn TranscriptReader>,
}

impl Entrance<'_> {
    /// Counts a viewer in, and gives what it is to receive from `resume` on.
    pub fn admit(&self, slug: &Slug, resume: Resume, socket: Option<Weak<SocketGuard>>) -> Result<Admission, Full> {
        let limits = self.limits;
        let viewer = self.viewers.enter(limits.max_clients, socket).ok_or(Full::Server(limits.max_clients))?;
        let room = self.directory.get_or_create(slug);
        let in_room = room.enter(limits.max_per_session).ok_or(Full::Room(limits.max_per_session))?;
        let feed = Feed::new(room.clone(), self.transcripts.clone(), viewer.clone(), self.viewers.closing(), resume);
        let batches = stream::unfold(feed, async |mut feed: Feed| Some((feed.next().await?, feed)));
        Ok(Admission { room, viewer, in_room, feed: batches.boxed_local() })
    }
}
