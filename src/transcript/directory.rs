//! Which log a slug has now. Viewers find their room here and stay subscribed to it over epochs.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use parking_lot::{Mutex, RwLock};
use tokio::sync::watch;

use super::entry::Epoch;
use super::slug::Slug;
use super::transcript_log::TranscriptLog;
use crate::transcript::SpeakerUpdate;

/// Ended logs kept in memory per room, so that a viewer of the last epoch reads it to its end.
const MAX_ENDED_LOGS: usize = 2;

/// All rooms that have a session or a viewer.
#[derive(Default)]
pub struct Directory {
    rooms: RwLock<HashMap<Slug, Arc<Room>>>,
}

/// The meeting point of a session and its viewers.
pub struct Room {
    slug: Slug,
    current: watch::Sender<Option<Arc<TranscriptLog>>>,
    ended: Mutex<Vec<Arc<TranscriptLog>>>,
    viewers: AtomicUsize,
    /// Viewers of it on other nodes, by node.
    viewers_elsewhere: Mutex<HashMap<String, usize>>,
    speaker_sink: Mutex<Option<SpeakerSink>>,
    /// The newest entry that any viewer was sent.
    delivered: Mutex<(Epoch, u64)>,
}

/// Takes a viewer's speaker messages; never blocks.
pub type SpeakerSink = Arc<dyn Fn(SpeakerUpdate) + Send + Sync>;

/// Counts a viewer in its room until dropped.
pub struct ViewerGuard(Arc<Room>);

impl Directory {
    pub fn get(&self, slug: &Slug) -> Option<Arc<Room>> {
        self.rooms.read().get(slug).cloned()
    }

    pub fn get_or_create(&self, slug: &Slug) -> Arc<Room> {
        if let Some(room) = self.get(slug) {
            return room;
        }
        let mut rooms = self.rooms.write();
        rooms.entry(slug.clone()).or_insert_with(|| Arc::new(Room::new(slug.clone()))).clone()
    }

    /// Forgets rooms without session and without viewer. A room that somebody still holds stays.
    pub fn sweep(&self) {
        self.rooms.write().retain(|_, room| {
            let live = room.current.borrow().as_ref().is_some_and(|log| !log.is_closed());
            live || room.viewers() > 0 || Arc::strong_count(room) > 1
        });
    }

    /// All rooms, in no order.
    pub fn rooms(&self) -> Vec<Arc<Room>> {
        self.rooms.read().values().cloned().collect()
    }

    /// Viewers here of each room that has any.
    pub fn viewers(&self) -> BTreeMap<Slug, usize> {
        let rooms = self.rooms.read();
        let watched = rooms.values().filter(|room| room.viewers() > 0);
        watched.map(|room| (room.slug().clone(), room.viewers())).collect()
    }

    pub fn len(&self) -> usize {
        self.rooms.read().len()
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

impl Room {
    fn new(slug: Slug) -> Self {
        Self {
            slug,
            current: watch::Sender::new(None),
            ended: Mutex::new(Vec::new()),
            viewers: AtomicUsize::new(0),
            viewers_elsewhere: Mutex::default(),
            speaker_sink: Mutex::new(None),
            delivered: Mutex::new((Epoch::nil(), 0)),
        }
    }

    pub fn slug(&self) -> &Slug {
        &self.slug
    }

    /// The newest epoch's log (live or ended), None before the first publisher.
    pub fn current(&self) -> Option<Arc<TranscriptLog>> {
        self.current.borrow().clone()
    }

    /// The log of `epoch` if it is still in memory.
    pub fn log_of(&self, epoch: Epoch) -> Option<Arc<TranscriptLog>> {
        let current = self.current().filter(|log| log.epoch() == epoch);
        current.or_else(|| self.ended.lock().iter().rfind(|log| log.epoch() == epoch).cloned())
    }

    /// The log that goes on after the entry `seq` of `epoch`, as far as it is in memory; the current one when `epoch` is
    /// unknown. That may be one of `epoch` itself, which this node had let go of.
    pub fn log_after(&self, epoch: Epoch, seq: u64) -> Option<Arc<TranscriptLog>> {
        let goes_on = |log: &&Arc<TranscriptLog>| log.epoch() != epoch || !log.is_closed() || log.last_seq() > seq;
        let ended = self.ended.lock();
        let current = self.current().filter(|log| goes_on(&log))?;
        let place = ended.iter().position(|log| log.epoch() == epoch);
        let next = place.and_then(|place| ended[place + 1..].iter().find(goes_on)).cloned();
        Some(next.unwrap_or(current))
    }

    /// A new epoch begins.
    pub fn set_current(&self, log: Arc<TranscriptLog>) {
        // Locked first: whoever looks for the old log finds it in one of the two places at any moment.
        let mut ended = self.ended.lock();
        if let Some(old) = self.current.send_replace(Some(log)) {
            ended.push(old);
            if ended.len() > MAX_ENDED_LOGS {
                ended.remove(0);
            }
        }
    }

    /// Changes with each new epoch.
    pub fn watch(&self) -> watch::Receiver<Option<Arc<TranscriptLog>>> {
        self.current.subscribe()
    }

    pub fn viewers(&self) -> usize {
        self.viewers.load(Ordering::Relaxed)
    }

    /// Viewers on this node and, as far as it is told, on others.
    pub fn viewers_anywhere(&self) -> usize {
        self.viewers() + self.viewers_elsewhere.lock().values().sum::<usize>()
    }

    pub fn set_viewers_elsewhere(&self, node: &str, viewers: usize) {
        let mut elsewhere = self.viewers_elsewhere.lock();
        match viewers {
            0 => drop(elsewhere.remove(node)),
            some => drop(elsewhere.insert(node.to_owned(), some)),
        }
    }

    /// A log that a later one has followed already: its last entries come late.
    pub fn add_followed(&self, log: Arc<TranscriptLog>) {
        let mut ended = self.ended.lock();
        let place = ended.partition_point(|other| other.epoch() < log.epoch());
        ended.insert(place, log);
        if ended.len() > MAX_ENDED_LOGS {
            ended.remove(0);
        }
    }

    /// Admits one more viewer, or None when there are `max` already.
    pub fn enter(self: &Arc<Self>, max: usize) -> Option<ViewerGuard> {
        let admitted = self.viewers.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |n| (n < max).then_some(n + 1));
        admitted.ok().map(|_| ViewerGuard(self.clone()))
    }

    pub fn set_speaker_sink(&self, sink: Option<SpeakerSink>) {
        *self.speaker_sink.lock() = sink;
    }

    /// True for the first viewer that is sent this entry.
    pub fn is_first_delivery(&self, epoch: Epoch, seq: u64) -> bool {
        let mut delivered = self.delivered.lock();
        let is_first = delivered.0 != epoch || delivered.1 < seq;
        if is_first {
            *delivered = (epoch, seq);
        }
        is_first
    }

    /// Passes a viewer's report on to the session's `SpeakerTracker`; dropped when there is none.
    pub fn report_speaker(&self, update: SpeakerUpdate) {
        let sink = self.speaker_sink.lock().clone();
        if let Some(sink) = sink {
            sink(update);
        }
    }
}

impl Drop for ViewerGuard {
    fn drop(&mut self) {
        self.0.viewers.fetch_sub(1, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn viewers_are_counted_and_capped_and_empty_rooms_are_swept() {
        let directory = Directory::default();
        let slug = Slug::parse("demo").unwrap();
        let room = directory.get_or_create(&slug);
        let first = room.enter(1).expect("room for one");
        assert!(room.enter(1).is_none());
        drop(room);
        directory.sweep();
        assert_eq!(directory.len(), 1);
        drop(first);
        directory.sweep();
        assert_eq!(directory.len(), 0);
    }

    #[test]
    fn an_ended_epoch_can_still_be_read() {
        let directory = Directory::default();
        let slug = Slug::parse("demo").unwrap();
        let room = directory.get_or_create(&slug);
        let logs: Vec<_> =
            (1u128..=2).map(|n| Arc::new(TranscriptLog::new(slug.clone(), Epoch::from_u128(n), 0, 10, 1000))).collect();
        room.set_current(logs[0].clone());
        room.set_current(logs[1].clone());
        assert_eq!(room.current().unwrap().epoch(), Epoch::from_u128(2));
        assert!(room.log_of(Epoch::from_u128(1)).is_some());
        assert!(room.log_of(Epoch::from_u128(9)).is_none());
        let after = |n| room.log_after(Epoch::from_u128(n), 0).map(|log| log.epoch().as_u128());
        assert_eq!([after(1), after(2), after(9)], [Some(2), Some(2), Some(2)], "the second one goes on");
        logs[1].close();
        assert_eq!([after(1), after(2), after(9)], [Some(2), None, Some(2)]);
    }

    /// A mirror that was let go of and came back stands twice among the ended ones.
    #[test]
    fn an_epoch_that_stands_twice_is_left_once_it_is_read() {
        let room = Room::new(Slug::parse("demo").unwrap());
        let log = |epoch, last_seq| {
            Arc::new(TranscriptLog::new(room.slug().clone(), Epoch::from_u128(epoch), last_seq, 10, 1000))
        };
        for log in [log(1, 5), log(1, 9), log(2, 3)] {
            if let Some(before) = room.current() {
                before.close();
            }
            room.set_current(log);
        }
        let after = |seq| room.log_after(Epoch::from_u128(1), seq).map(|log| (log.epoch().as_u128(), log.last_seq()));
        assert_eq!(after(5), Some((1, 9)), "its rest");
        assert_eq!(after(9), Some((2, 3)), "and then the next one");
        assert_eq!(room.log_of(Epoch::from_u128(1)).map(|log| log.last_seq()), Some(9));
    }
}
