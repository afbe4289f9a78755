//! What a target has not taken yet, by room, and how far the outbox may be confirmed for it. Pure.
//!
//! The invariant: a row is confirmed only when it and every row before it is stored at the target. Rooms go on side by
//! side, so one that is stuck holds the confirmation back and nothing else. A room with many rows keeps marks of some of
//! them, not all: what is confirmed late is repeated after a restart, which is harmless.

use std::collections::{HashMap, VecDeque};

use crate::transcript::{Epoch, SessionRecord, Slug};

/// Rows of one room that are marked each; beyond them one in [`SPARSE`] is.
const DENSE_MARKS: usize = 64;
const SPARSE: u64 = 256;

/// Rows that were read from the outbox, by room.
#[derive(Default)]
pub(super) struct Backlog {
    rooms: HashMap<Epoch, RoomBacklog>,
    /// Index of the last row read.
    read: u64,
}

/// The rows of one epoch.
pub(super) struct RoomBacklog {
    pub slug: Slug,
    /// Every row of it up to this index is stored.
    floor: u64,
    /// Index and number of some of its rows, ascending.
    marks: VecDeque<(u64, u64)>,
    /// The numbers that it has, and up to which they are stored.
    first_seq: u64,
    last_seq: u64,
    stored_seq: u64,
    record: Option<(u64, SessionRecord)>,
}

impl RoomBacklog {
    fn new(slug: Slug, index: u64) -> Self {
        Self {
            slug,
            floor: index.saturating_sub(1),
            marks: VecDeque::new(),
            first_seq: u64::MAX,
            last_seq: 0,
            stored_seq: 0,
            record: None,
        }
    }

    /// The lowest number that is not known to be stored; None when all are.
    pub fn next_seq(&self) -> Option<u64> {
        let next = self.first_seq.max(self.stored_seq + 1);
        (self.last_seq > 0 && next <= self.last_seq).then_some(next)
    }

    pub fn record(&self) -> Option<&(u64, SessionRecord)> {
        self.record.as_ref()
    }

    fn settle(&mut self) {
        while let Some((index, _)) = self.marks.front().copied().filter(|(_, seq)| *seq <= self.stored_seq) {
            self.floor = self.floor.max(index);
            self.marks.pop_front();
        }
    }

    pub fn is_done(&self) -> bool {
        self.next_seq().is_none() && self.record.is_none()
    }
}

impl Backlog {
    /// `after`: the last row that was confirmed.
    pub fn new(after: u64) -> Self {
        Self { rooms: HashMap::new(), read: after }
    }

    fn room(&mut self, slug: &Slug, epoch: Epoch, index: u64) -> &mut RoomBacklog {
        self.read = self.read.max(index);
        let room = self.rooms.entry(epoch).or_insert_with(|| RoomBacklog::new(slug.clone(), index));
        if room.is_done() {
            room.floor = index - 1;
        }
        room
    }

    pub fn note_entry(&mut self, index: u64, slug: &Slug, epoch: Epoch, seq: u64) {
        let room = self.room(slug, epoch, index);
        room.first_seq = room.first_seq.min(seq);
        room.last_seq = room.last_seq.max(seq);
        let last = room.marks.back().map_or(0, |(index, _)| *index);
        if room.marks.len() < DENSE_MARKS || index >= last + SPARSE {
            room.marks.push_back((index, seq));
        }
        room.settle();
    }

    /// Of several records of an epoch the newest counts.
    pub fn note_record(&mut self, index: u64, record: &SessionRecord) {
        let room = self.room(&record.slug, record.epoch, index);
        room.record = Some((index, record.clone()));
    }

    /// A row that is nobody's: damaged, or of a version that nobody reads any more.
    pub fn note_nothing(&mut self, index: u64) {
        self.read = self.read.max(index);
    }

    /// Everything up to this number is stored at the target. Its rows may not have been read from the outbox yet.
    pub fn stored(&mut self, slug: &Slug, epoch: Epoch, seq: u64) {
        let next = self.read + 1;
        let room = self.rooms.entry(epoch).or_insert_with(|| RoomBacklog::new(slug.clone(), next));
        room.stored_seq = room.stored_seq.max(seq);
        room.settle();
    }

    /// Rows up to this index will never be sent. Gives how many entries that may concern, at most.
    pub fn give_up(&mut self, index: u64) -> u64 {
        let mut entries = 0;
        for room in self.rooms.values_mut() {
            while let Some((_, seq)) = room.marks.front().copied().filter(|(at, _)| *at <= index) {
                room.marks.pop_front();
                entries += seq.saturating_sub(room.stored_seq.max(room.first_seq.saturating_sub(1)));
                room.stored_seq = room.stored_seq.max(seq);
            }
            room.floor = room.floor.max(index);
            room.record.take_if(|(at, _)| *at <= index);
        }
        entries
    }

    /// What this room has in the outbox up to here is there no more. Gives the numbers that were not stored.
    pub fn lose(&mut self, epoch: Epoch) -> Option<(u64, u64)> {
        let room = self.rooms.get_mut(&epoch)?;
        let lost = (room.next_seq()?, room.last_seq);
        room.stored_seq = room.last_seq;
        room.settle();
        Some(lost)
    }

    /// The record that was at this index, or an older one, is stored.
    pub fn record_stored(&mut self, epoch: Epoch, index: u64) {
        if let Some(room) = self.rooms.get_mut(&epoch) {
            room.record.take_if(|(at, _)| *at <= index);
        }
    }

    /// Index of the last row that was noted.
    pub fn read(&self) -> u64 {
        self.read
    }

    pub fn get(&self, epoch: Epoch) -> Option<&RoomBacklog> {
        self.rooms.get(&epoch)
    }

    /// Every row up to here is stored. Entries may be stored before a record that stands before them in the outbox, since
    /// they are sent from the log.
    pub fn confirmable(&self) -> u64 {
        let floor = |room: &RoomBacklog| {
            let before_record = room.record.as_ref().map_or(u64::MAX, |(index, _)| index - 1);
            match room.next_seq() {
                None => before_record,
                Some(_) => room.floor.min(before_record),
            }
        };
        self.rooms.values().filter(|room| !room.is_done()).map(floor).min().unwrap_or(self.read).min(self.read)
    }

    /// Forgets rooms of which everything is stored and nobody sends anything.
    pub fn tidy(&mut self, is_sending: impl Fn(Epoch) -> bool) {
        self.rooms.retain(|epoch, room| !room.is_done() || is_sending(*epoch));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn slug() -> Slug {
        Slug::parse("demo").unwrap()
    }

    const A: Epoch = Epoch::from_u128(1);
    const B: Epoch = Epoch::from_u128(2);

    #[test]
    fn a_stuck_room_holds_back_the_confirmation_and_nothing_else() {
        let mut backlog = Backlog::new(10);
        for (n, epoch) in [A, B, A, B, B].into_iter().enumerate() {
            let index = 11 + n as u64;
            let seq = backlog.get(epoch).map_or(1, |room| room.last_seq + 1);
            backlog.note_entry(index, &slug(), epoch, seq);
        }
        assert_eq!(backlog.confirmable(), 10);
        backlog.stored(&slug(), B, 3);
        assert_eq!(backlog.confirmable(), 10, "A's first row is not stored");
        backlog.stored(&slug(), A, 1);
        assert_eq!(backlog.confirmable(), 11);
        backlog.stored(&slug(), A, 2);
        assert_eq!(backlog.confirmable(), 15);
        backlog.tidy(|_| false);
        assert_eq!((backlog.confirmable(), backlog.rooms.len()), (15, 0));
        backlog.note_entry(16, &slug(), A, 3);
        assert_eq!(backlog.confirmable(), 15);
    }

    #[test]
    fn a_record_is_a_row_like_any_other_and_the_newest_counts() {
        let mut backlog = Backlog::new(0);
        let record = SessionRecord::begun(A, slug(), Default::default());
        backlog.note_record(1, &record);
        backlog.note_entry(2, &slug(), A, 1);
        backlog.note_record(3, &record);
        backlog.stored(&slug(), A, 1);
        assert_eq!(backlog.confirmable(), 2);
        backlog.record_stored(A, 1);
        assert_eq!(backlog.confirmable(), 2, "a newer one waits");
        backlog.record_stored(A, 3);
        assert_eq!(backlog.confirmable(), 3);
    }

    /// The entry is sent from the log before either row is read.
    #[test]
    fn a_record_before_an_entry_that_is_stored_already_is_waited_for() {
        let mut backlog = Backlog::new(49);
        backlog.stored(&slug(), A, 7);
        backlog.note_record(50, &SessionRecord::begun(A, slug(), Default::default()));
        backlog.note_entry(51, &slug(), A, 7);
        assert_eq!(backlog.confirmable(), 49);
        backlog.record_stored(A, 50);
        assert_eq!(backlog.confirmable(), 51);
    }

    #[test]
    fn what_was_sent_before_its_row_was_read_is_not_sent_again() {
        let mut backlog = Backlog::new(0);
        backlog.note_entry(1, &slug(), B, 1);
        backlog.stored(&slug(), A, 2);
        backlog.note_entry(2, &slug(), A, 1);
        backlog.note_entry(3, &slug(), A, 2);
        assert!(backlog.get(A).unwrap().is_done());
        backlog.stored(&slug(), B, 1);
        assert_eq!(backlog.confirmable(), 3);
        backlog.tidy(|epoch| epoch == A);
        backlog.note_entry(4, &slug(), A, 2);
        assert!(backlog.get(A).unwrap().is_done(), "a repetition");
    }

    #[test]
    fn what_is_given_up_holds_nothing_back() {
        let mut backlog = Backlog::new(0);
        for seq in 1..=10 {
            backlog.note_entry(seq, &slug(), A, seq);
        }
        assert_eq!(backlog.give_up(6), 6);
        assert_eq!((backlog.confirmable(), backlog.get(A).unwrap().next_seq()), (6, Some(7)));
    }

    #[test]
    fn a_long_backlog_is_kept_by_few_marks_and_is_never_confirmed_too_far() {
        let mut backlog = Backlog::new(0);
        for seq in 1..=100_000 {
            backlog.note_entry(seq, &slug(), A, seq);
        }
        assert!(backlog.get(A).unwrap().marks.len() < 500);
        for stored in [1, 63, 64, 65, 1000, 99_999] {
            backlog.stored(&slug(), A, stored);
            let confirmable = backlog.confirmable();
            assert!(confirmable <= stored && stored - confirmable <= SPARSE, "{stored}: {confirmable}");
        }
        backlog.stored(&slug(), A, 100_000);
        assert_eq!(backlog.confirmable(), 100_000);
    }
}
