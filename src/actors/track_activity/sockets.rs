//! The sockets of Track Egress that are open: one for each track, so many for each room.

use std::collections::HashMap;
use std::sync::Arc;

use actix::Addr;
use parking_lot::Mutex;

use super::{Replaced, TrackActivity};
use crate::livekit::track_url::Microphone;
use crate::transcript::Slug;

/// Tracks of a room that are measured at a time.
pub const MAX_TRACKS: usize = 200;

/// The sockets of a process, by room and track.
#[derive(Default)]
pub struct TrackSockets {
    rooms: Mutex<HashMap<Slug, HashMap<String, Socket>>>,
}

struct Socket {
    /// Tells sockets of one track apart.
    number: u64,
    /// None before it has started.
    addr: Option<Addr<TrackActivity>>,
}

/// The place of one socket, until it is dropped.
pub struct Place {
    sockets: Arc<TrackSockets>,
    slug: Slug,
    track: String,
    number: u64,
}

impl TrackSockets {
    /// A place for a new socket; the one before it of the same track has to go. None: the room has no more.
    pub fn enter(self: &Arc<Self>, microphone: &Microphone) -> Option<Place> {
        let Microphone { slug, track, .. } = microphone;
        let mut rooms = self.rooms.lock();
        let tracks = rooms.entry(slug.clone()).or_default();
        if tracks.len() >= MAX_TRACKS && !tracks.contains_key(track) {
            return None;
        }
        let before = tracks.remove(track);
        let number = before.as_ref().map_or(1, |before| before.number + 1);
        if let Some(before) = before.and_then(|before| before.addr) {
            before.do_send(Replaced);
        }
        tracks.insert(track.clone(), Socket { number, addr: None });
        Some(Place { sockets: self.clone(), slug: slug.clone(), track: track.clone(), number })
    }

    /// Sockets that are open.
    pub fn len(&self) -> usize {
        self.rooms.lock().values().map(HashMap::len).sum()
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

impl Place {
    /// The socket is `addr`. One that was replaced before it has started is told now.
    pub fn take(&self, addr: Addr<TrackActivity>) {
        let mut rooms = self.sockets.rooms.lock();
        let socket = rooms.get_mut(&self.slug).and_then(|tracks| tracks.get_mut(&self.track));
        match socket.filter(|socket| socket.number == self.number) {
            Some(socket) => socket.addr = Some(addr),
            None => addr.do_send(Replaced),
        }
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut rooms = self.sockets.rooms.lock();
        let Some(tracks) = rooms.get_mut(&self.slug) else { return };
        if tracks.get(&self.track).is_some_and(|socket| socket.number == self.number) {
            tracks.remove(&self.track);
        }
        if tracks.is_empty() {
            rooms.remove(&self.slug);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn microphone(track: &str) -> Microphone {
        Microphone::new(Slug::parse("demo").unwrap(), track, "anna").unwrap()
    }

    #[test]
    fn a_room_has_so_many_tracks_and_each_has_one_socket() {
        let sockets = Arc::new(TrackSockets::default());
        let enter = |n: usize| sockets.enter(&microphone(&format!("TR_{n}")));
        let places: Vec<_> = (0..MAX_TRACKS).filter_map(enter).collect();
        assert_eq!(places.len(), MAX_TRACKS);
        assert!(enter(MAX_TRACKS).is_none());
        let newer = enter(0).expect("the newer one of a track wins");
        drop(places);
        assert_eq!(sockets.len(), 1, "its place is not that of the older one");
        drop(newer);
        assert!(sockets.is_empty() && sockets.rooms.lock().is_empty());
    }
}
