//! The log of all rooms, with the fence, the memory of message ids, and what can be lost of it.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::time::Duration;

use chrono::{DateTime, Utc};
use tokio::time::Instant;

use crate::bus::log_server::{Appended, Followed, Logged, Message, Position};
use crate::transcript::Slug;

/// Largest message, with its headers.
const MAX_MESSAGE_BYTES: usize = 1 << 20;
/// Time for which a message's id is remembered.
const ID_WINDOW: Duration = Duration::from_secs(120);
/// From here on messages that are in the database leave the log.
const TIDY_FROM: f64 = 0.8;

#[derive(Default)]
pub struct Log {
    messages: BTreeMap<Position, Logged>,
    rooms: HashMap<Slug, BTreeSet<Position>>,
    last: Position,
    ids: HashMap<String, (Position, Instant)>,
    bytes: usize,
    /// Most bytes that are kept; None: no limit.
    pub capacity: Option<usize>,
    /// A repetition is known before its fence is looked at, as servers before 2.12 do.
    pub is_id_first: bool,
    /// Positions after which the log has become another one, in the order of the events.
    breaks: Vec<Position>,
}

/// Place of a follower.
pub struct Place {
    pub after: Position,
    breaks: usize,
}

impl Log {
    pub fn append(&mut self, message: Message, expected: Position, now: Instant, at: DateTime<Utc>) -> Appended {
        let size = size(&message);
        if size > MAX_MESSAGE_BYTES {
            return Appended::TooLarge;
        }
        let known = self.ids.get(&message.id).filter(|(_, at)| now - *at < ID_WINDOW).map(|(known, _)| *known);
        if self.is_id_first
            && let Some(known) = known
        {
            return Appended::Stored(known.max(expected));
        }
        if self.head(&message.room).map_or(0, |head| head.position) != expected {
            return Appended::Refused;
        }
        // Its first place, as the server says it: the room's last message may be a later one.
        if let Some(known) = known {
            return Appended::Stored(known.max(expected));
        }
        if self.capacity.is_some_and(|capacity| self.bytes + size > capacity) {
            return Appended::Full("maximum bytes exceeded".to_owned());
        }
        self.last += 1;
        self.bytes += size;
        self.ids.insert(message.id.clone(), (self.last, now));
        self.rooms.entry(message.room.clone()).or_default().insert(self.last);
        self.messages.insert(self.last, Logged { position: self.last, at, message });
        Appended::Stored(self.last)
    }

    pub fn head(&self, room: &Slug) -> Option<&Logged> {
        self.rooms.get(room).and_then(BTreeSet::last).map(|position| &self.messages[position])
    }

    pub fn read(&self, room: &Slug, after: Position, limit: usize) -> Vec<Logged> {
        let positions = self.rooms.get(room).into_iter().flat_map(|positions| positions.range(after + 1..));
        positions.take(limit).map(|position| self.messages[position].clone()).collect()
    }

    pub fn all(&self) -> impl Iterator<Item = &Logged> {
        self.after(0)
    }

    pub fn after(&self, position: Position) -> impl Iterator<Item = &Logged> {
        self.messages.range(position + 1..).map(|(_, logged)| logged)
    }

    /// Everything up to it has been in the log, and nothing before the first message is any more.
    pub fn begins_after(&self) -> Position {
        self.messages.first_key_value().map_or(self.last, |(first, _)| first - 1)
    }

    /// Gives how full the log is, of 1.
    pub fn tidy(&mut self, settled: Position) -> f64 {
        if self.fullness() >= TIDY_FROM {
            self.remove(|logged| logged.position <= settled);
        }
        self.fullness()
    }

    fn fullness(&self) -> f64 {
        self.capacity.map_or(0.0, |capacity| self.bytes as f64 / capacity.max(1) as f64)
    }

    pub fn purge(&mut self, room: &Slug) {
        self.remove(|logged| logged.message.room == *room);
        // As the server does it.
        self.ids.clear();
    }

    /// The last `count` messages were never written; their places are given again.
    pub fn lose_end(&mut self, count: usize) -> Position {
        let kept = self.messages.keys().rev().nth(count).copied().unwrap_or(0);
        self.remove(|logged| logged.position > kept);
        self.ids.retain(|_, (position, _)| *position <= kept);
        self.last = kept;
        self.breaks.push(kept);
        kept
    }

    fn remove(&mut self, is_gone: impl Fn(&Logged) -> bool) {
        let gone: Vec<_> = self.messages.values().filter(|logged| is_gone(logged)).map(|l| l.position).collect();
        for position in gone {
            let Some(logged) = self.messages.remove(&position) else { continue };
            self.bytes -= size(&logged.message);
            if let Some(positions) = self.rooms.get_mut(&logged.message.room) {
                positions.remove(&position);
            }
        }
    }

    pub fn place(&self, after: Position) -> Place {
        Place { after, breaks: self.breaks.len() }
    }

    /// The next step of a follower; None: there is nothing new.
    pub fn step(&self, place: &mut Place) -> Option<Followed> {
        let kept = self.breaks[place.breaks..].iter().copied().min().unwrap_or(self.last).min(self.last);
        place.breaks = self.breaks.len();
        if kept < place.after {
            place.after = kept;
            return Some(Followed::Reset(kept));
        }
        let next = self.after(place.after).next()?;
        place.after = next.position;
        Some(Followed::Message(next.clone()))
    }
}

fn size(message: &Message) -> usize {
    message.body.len() + message.id.len() + message.fence.len() + message.room.as_str().len()
}
