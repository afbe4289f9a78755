//! One epoch's log: assigns sequence numbers, keeps the newest entries in a ring and wakes viewers.
//!
//! Written by the session's `TranscriptRoom` alone; read from the HTTP workers' threads by any number of viewers. Each
//! viewer owns a [`Cursor`] and pulls, so a slow one costs the others nothing and holds no memory here.

mod notices;

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};

use bytestring::ByteString;
use chrono::{DateTime, TimeDelta, Utc};
use parking_lot::Mutex;
use tokio::sync::watch;
use tokio::time::Instant;

use self::notices::Notice;
use super::entry::{Entry, Epoch, Status};
use super::slug::Slug;

/// Open utterances whose newest interim is kept for viewers that join or lag.
const MAX_OPEN_INTERIMS: usize = 8;

/// Ids that a repetition is recognised by: days of speech in about 20 MB. A session may live for months.
pub const MAX_KNOWN_IDS: usize = 100_000;

/// The numbered entries of one epoch, of which the newest are in memory.
pub struct TranscriptLog {
    slug: Slug,
    epoch: Epoch,
    max_entries: usize,
    max_bytes: usize,
    state: Mutex<State>,
    version: watch::Sender<u64>,
    /// How much later this machine's clock is than that of the node whose times the entries carry, in ms.
    clock_offset_ms: AtomicI64,
    /// Another node numbers it: there may be entries that have not come here yet.
    is_mirror: bool,
}

struct State {
    /// Last published sequence number; 0 before the first.
    last_seq: u64,
    ring: VecDeque<Stored>,
    ring_bytes: usize,
    /// Sequence numbers of the newest [`MAX_KNOWN_IDS`] durable entries' ids, for idempotence.
    seq_of_id: HashMap<Arc<str>, u64>,
    /// Their ids, oldest first.
    known: VecDeque<Arc<str>>,
    interims: Vec<Interim>,
    notice: Option<Notice>,
    version: u64,
    status: Status,
    /// Of the newest final that has one.
    language: Option<String>,
    closed: bool,
}

impl State {
    fn know(&mut self, id: &str, seq: u64) {
        let id: Arc<str> = id.into();
        if self.seq_of_id.insert(id.clone(), seq).is_some() {
            return;
        }
        self.known.push_back(id);
        if self.known.len() > MAX_KNOWN_IDS
            && let Some(oldest) = self.known.pop_front()
        {
            self.seq_of_id.remove(&oldest);
        }
    }
}

struct Stored {
    seq: u64,
    json: ByteString,
    stamp: Option<Stamp>,
}

struct Interim {
    id: String,
    version: u64,
    json: ByteString,
    stamp: Option<Stamp>,
}

/// The place in the log that a viewer has read to. Start at [`Cursor::after`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Cursor {
    /// Last sequence number read.
    pub seq: u64,
    interim_version: u64,
}

impl Cursor {
    /// A cursor that reads every entry with a sequence number above `seq`.
    pub fn after(seq: u64) -> Self {
        Self { seq, interim_version: 0 }
    }
}

/// One message to a viewer: a durable entry, or an interim where `seq` is None.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Item {
    pub seq: Option<u64>,
    pub json: ByteString,
    /// None for what is no transcript.
    pub stamp: Option<Stamp>,
}

/// The times that the delivery latency of a transcript is measured from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Stamp {
    /// When the recogniser's message reached the server.
    pub received: DateTime<Utc>,
    /// When the entry came into this log.
    pub shown: Instant,
}

impl Stamp {
    fn of(entry: &Entry, clock_offset_ms: i64) -> Option<Self> {
        match entry {
            Entry::Transcript(t) => {
                let received = t.timestamp + TimeDelta::milliseconds(clock_offset_ms);
                Some(Self { received, shown: Instant::now() })
            }
            Entry::Gap(_) | Entry::Status(_) | Entry::Translation(_) => None,
        }
    }
}

/// Result of [`TranscriptLog::read`].
#[derive(Debug, PartialEq, Eq)]
pub enum Read {
    /// In order; empty when there is nothing new.
    Items(Vec<Item>),
    /// The entry after the cursor is no longer in the ring; it may be in the database.
    FellOff { first_in_ring: u64 },
}

/// Why an entry was not published.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PublishError {
    #[error("entry {id} is in the log already as number {seq}")]
    Duplicate { id: String, seq: u64 },
    #[error("entry has number {got}, the log expects {expected}")]
    OutOfOrder { got: u64, expected: u64 },
    #[error("the log has ended")]
    Closed,
}

impl TranscriptLog {
    /// `last_seq` is 0 for a new epoch, or what an adopted one has reached.
    pub fn new(slug: Slug, epoch: Epoch, last_seq: u64, max_entries: usize, max_bytes: usize) -> Self {
        Self {
            slug,
            epoch,
            max_entries: max_entries.max(1),
            max_bytes,
            state: Mutex::new(State {
                last_seq,
                ring: VecDeque::new(),
                ring_bytes: 0,
                seq_of_id: HashMap::new(),
                known: VecDeque::new(),
                interims: Vec::new(),
                notice: None,
                version: 1,
                status: Status::Waiting,
                language: None,
                closed: false,
            }),
            version: watch::Sender::new(1),
            clock_offset_ms: AtomicI64::new(0),
            is_mirror: false,
        }
    }

    /// The same for a log that another node numbers.
    pub fn mirror(self) -> Self {
        Self { is_mirror: true, ..self }
    }

    /// True where entries may exist that have not come here yet.
    pub fn is_mirror(&self) -> bool {
        self.is_mirror
    }

    pub fn slug(&self) -> &Slug {
        &self.slug
    }

    pub fn epoch(&self) -> Epoch {
        self.epoch
    }

    /// Last published sequence number; 0 before the first.
    pub fn last_seq(&self) -> u64 {
        self.state.lock().last_seq
    }

    pub fn status(&self) -> Status {
        self.state.lock().status
    }

    /// The status of a log whose own entries have not said one yet.
    pub fn assume(&self, status: Status) {
        self.state.lock().status = status;
    }

    /// The language spoken last, as the recogniser has it.
    pub fn language(&self) -> Option<String> {
        self.state.lock().language.clone()
    }

    /// True once the epoch is over: nothing more will be published.
    pub fn is_closed(&self) -> bool {
        self.state.lock().closed
    }

    /// The sequence number that `id` already has, if any.
    pub fn seq_of(&self, id: &str) -> Option<u64> {
        self.state.lock().seq_of_id.get(id).copied()
    }

    /// Marks an entry of an adopted epoch as present without keeping its text (it is in the database).
    pub fn remember(&self, id: &str, seq: u64) {
        let mut state = self.state.lock();
        state.know(id, seq);
        state.last_seq = state.last_seq.max(seq);
    }

    /// Gives an adopted epoch the ring of its earlier life, for viewers that join: the newest of `entries` (in order),
    /// as far as they reach its last number without a hole.
    pub fn restore(&self, entries: &[Entry]) {
        let mut state = self.state.lock();
        for entry in entries.iter().rev() {
            let expected = state.ring.front().map_or(state.last_seq, |oldest| oldest.seq - 1);
            let json = entry.to_json();
            let is_full = state.ring.len() == self.max_entries || state.ring_bytes + json.len() > self.max_bytes;
            if entry.seq() != Some(expected) || is_full {
                break;
            }
            state.ring_bytes += json.len();
            state.ring.push_front(Stored { seq: expected, json, stamp: None });
        }
    }

    /// The clock of the node that numbers this log is so much behind ours.
    pub fn set_clock_offset(&self, ms: i64) {
        self.clock_offset_ms.store(ms, Ordering::Relaxed);
    }

    fn stamp(&self, entry: &Entry) -> Option<Stamp> {
        Stamp::of(entry, self.clock_offset_ms.load(Ordering::Relaxed))
    }

    /// Entries up to `seq` are not to be had any more. The ring begins anew: it has no holes.
    pub fn skip_to(&self, seq: u64) {
        let mut state = self.state.lock();
        if seq > state.last_seq {
            state.last_seq = seq;
            state.ring.clear();
            state.ring_bytes = 0;
        }
    }

    /// Publishes a durable entry. Its `seq` must be the last one plus one.
    pub fn publish(&self, entry: &Entry) -> Result<(), PublishError> {
        let json = entry.to_json();
        let mut state = self.state.lock();
        let expected = state.last_seq + 1;
        let got = entry.seq().unwrap_or(0);
        if state.closed {
            return Err(PublishError::Closed);
        }
        if let Some(&seq) = state.seq_of_id.get(entry.id()) {
            let id = entry.id().to_owned();
            return Err(PublishError::Duplicate { id, seq });
        }
        if got != expected {
            return Err(PublishError::OutOfOrder { got, expected });
        }
        state.last_seq = got;
        state.know(entry.id(), got);
        state.interims.retain(|i| i.id != entry.id());
        match entry {
            Entry::Status(change) => state.status = change.status,
            Entry::Transcript(line) if line.language.is_some() => state.language.clone_from(&line.language),
            Entry::Transcript(_) | Entry::Gap(_) | Entry::Translation(_) => {}
        }
        state.ring_bytes += json.len();
        state.ring.push_back(Stored { seq: got, json, stamp: self.stamp(entry) });
        while state.ring.len() > self.max_entries || (state.ring_bytes > self.max_bytes && state.ring.len() > 1) {
            let Some(old) = state.ring.pop_front() else {
                break;
            };
            state.ring_bytes -= old.json.len();
        }
        self.bump(state);
        Ok(())
    }

    /// Shows an interim; it replaces the one with the same id. False when its utterance is final already.
    pub fn show_interim(&self, entry: &Entry) -> bool {
        let json = entry.to_json();
        let mut state = self.state.lock();
        if state.closed || state.seq_of_id.contains_key(entry.id()) {
            return false;
        }
        state.interims.retain(|i| i.id != entry.id());
        if state.interims.len() >= MAX_OPEN_INTERIMS {
            state.interims.remove(0);
        }
        let version = state.version + 1;
        state.interims.push(Interim { id: entry.id().to_owned(), version, json, stamp: self.stamp(entry) });
        self.bump(state);
        true
    }

    /// The epoch is over. Viewers read the rest and then look for the next epoch.
    pub fn close(&self) {
        let mut state = self.state.lock();
        state.closed = true;
        state.interims.clear();
        self.bump(state);
    }

    /// Reads at most `max` entries after the cursor, then interims that changed since its last read, and moves it.
    pub fn read(&self, cursor: &mut Cursor, max: usize) -> Read {
        let state = self.state.lock();
        let mut items = Vec::new();
        if state.last_seq > cursor.seq {
            let first_in_ring = state.ring.front().map_or(state.last_seq + 1, |s| s.seq);
            if cursor.seq + 1 < first_in_ring {
                return Read::FellOff { first_in_ring };
            }
            let skip = (cursor.seq + 1 - first_in_ring) as usize;
            let found = state.ring.iter().skip(skip).take(max);
            items.extend(found.map(|s| Item { seq: Some(s.seq), json: s.json.clone(), stamp: s.stamp }));
            cursor.seq += items.len() as u64;
        }
        if cursor.seq == state.last_seq {
            let seen = cursor.interim_version;
            let changed = state.interims.iter().filter(|i| i.version > seen);
            items.extend(changed.map(|i| Item { seq: None, json: i.json.clone(), stamp: i.stamp }));
            items.extend(state.notice.as_ref().and_then(|notice| notice.after(seen)));
            cursor.interim_version = state.version;
        }
        Read::Items(items)
    }

    /// Lowest `after` for which [`Self::read`] gives every later entry.
    pub fn readable_after(&self) -> u64 {
        let state = self.state.lock();
        state.ring.front().map_or(state.last_seq, |s| s.seq - 1)
    }

    /// Counts what was published, shown and closed.
    pub fn version(&self) -> u64 {
        *self.version.borrow()
    }

    /// Changes each time something was published, shown or closed.
    pub fn watch(&self) -> watch::Receiver<u64> {
        self.version.subscribe()
    }

    fn bump(&self, mut state: parking_lot::MutexGuard<'_, State>) {
        state.version += 1;
        let version = state.version;
        drop(state);
        self.version.send_replace(version);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::transcript::entry::{Latency, StatusChange, Transcript};

    fn log(max_entries: usize) -> TranscriptLog {
        TranscriptLog::new(Slug::parse("demo").unwrap(), Epoch::nil(), 0, max_entries, 1 << 20)
    }

    #[test]
    fn a_session_of_months_remembers_its_newest_ids_alone() {
        let log = log(10);
        for seq in 1..=MAX_KNOWN_IDS as u64 + 5 {
            log.remember(&format!("id-{seq}"), seq);
        }
        let state = log.state.lock();
        assert_eq!((state.known.len(), state.seq_of_id.len()), (MAX_KNOWN_IDS, MAX_KNOWN_IDS));
        drop(state);
        assert_eq!((log.seq_of("id-5"), log.seq_of("id-6")), (None, Some(6)));
    }

    fn line(id: &str, seq: Option<u64>) -> Entry {
        Entry::Transcript(Transcript {
            session: Slug::parse("demo").unwrap(),
            epoch: Epoch::nil(),
            seq,
            id: id.into(),
            is_final: seq.is_some(),
            revision: 1,
            text: format!("text of {id}"),
            start_ms: 0,
            end_ms: 1,
            language: None,
            confidence: None,
            speaker: None,
            words: None,
            timestamp: Default::default(),
            latency: Latency::default(),
            durable: true,
        })
    }

    fn seqs(read: Read) -> Vec<Option<u64>> {
        match read {
            Read::Items(items) => items.into_iter().map(|i| i.seq).collect(),
            Read::FellOff { .. } => panic!("fell off"),
        }
    }

    #[test]
    fn a_reader_gets_each_entry_once_and_in_order() {
        let log = log(100);
        let mut cursor = Cursor::after(0);
        for seq in 1..=5 {
            log.publish(&line(&format!("u{seq}"), Some(seq))).unwrap();
        }
        assert_eq!(seqs(log.read(&mut cursor, 3)), [Some(1), Some(2), Some(3)]);
        assert_eq!(seqs(log.read(&mut cursor, 3)), [Some(4), Some(5)]);
        assert_eq!(seqs(log.read(&mut cursor, 3)), []);
        assert_eq!(seqs(log.read(&mut Cursor::after(4), 10)), [Some(5)]);
    }

    #[test]
    fn duplicates_and_holes_are_refused() {
        let log = log(100);
        log.publish(&line("a", Some(1))).unwrap();
        let again = log.publish(&line("a", Some(2)));
        assert_eq!(again, Err(PublishError::Duplicate { id: "a".into(), seq: 1 }));
        let hole = log.publish(&line("b", Some(3)));
        assert_eq!(hole, Err(PublishError::OutOfOrder { got: 3, expected: 2 }));
        assert_eq!(log.last_seq(), 1);
    }

    #[test]
    fn a_reader_that_falls_behind_the_ring_is_told() {
        let log = log(2);
        for seq in 1..=4 {
            log.publish(&line(&format!("u{seq}"), Some(seq))).unwrap();
        }
        let mut cursor = Cursor::after(1);
        assert_eq!(log.read(&mut cursor, 9), Read::FellOff { first_in_ring: 3 });
        assert_eq!(log.readable_after(), 2);
    }

    #[test]
    fn interims_are_latest_wins_and_vanish_with_their_final() {
        let log = log(10);
        let mut cursor = Cursor::after(0);
        assert!(log.show_interim(&line("a", None)));
        assert!(log.show_interim(&line("a", None)));
        assert_eq!(seqs(log.read(&mut cursor, 9)), [None]);
        assert_eq!(seqs(log.read(&mut cursor, 9)), []);
        log.publish(&line("a", Some(1))).unwrap();
        assert!(!log.show_interim(&line("a", None)), "a late interim of a final");
        assert_eq!(seqs(log.read(&mut cursor, 9)), [Some(1)]);
    }

    #[test]
    fn the_status_and_the_end_are_seen() {
        let log = log(10);
        let mut watch = log.watch();
        log.publish(&Entry::Status(StatusChange {
            session: Slug::parse("demo").unwrap(),
            epoch: Epoch::nil(),
            seq: Some(1),
            id: "s".into(),
            status: Status::Live,
            reason: None,
            durable: true,
        }))
        .unwrap();
        assert_eq!(log.status(), Status::Live);
        assert!(watch.has_changed().unwrap());
        watch.mark_unchanged();
        log.close();
        assert!(log.is_closed() && watch.has_changed().unwrap());
        assert_eq!(log.publish(&line("x", Some(2))), Err(PublishError::Closed));
    }
}
