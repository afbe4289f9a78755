//! Reading the outbox: consumers that go through it in order, and viewers that look for the end of one epoch.

use std::fs::File;
use std::io;
use std::sync::Arc;

use parking_lot::Mutex;
use tokio::sync::watch;

use super::record::{self, Record, RecordError};
use super::scan::{Scan, Scanner};
use super::segments::path_of;
use super::writer::Command;
use super::{Inner, OutboxError, Shared};
use crate::transcript::{Entry, Epoch};

/// A record as a consumer gets it.
#[derive(Debug, Clone, PartialEq)]
pub struct Stored {
    pub index: u64,
    /// Err: it was written by another version of the program, or by a faulty one.
    pub record: Result<Record, Undecodable>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Undecodable {
    pub reason: RecordError,
    pub payload: Vec<u8>,
}

/// Reads every record once, in order, beginning after the last one that this consumer has confirmed.
pub struct Consumer {
    inner: Arc<Inner>,
    slot: usize,
    place: Arc<Mutex<Place>>,
}

/// The position of a consumer.
struct Place {
    /// Index of the last record read.
    after: u64,
    open: Option<(u64, Scanner)>,
}

impl Consumer {
    pub(super) fn new(inner: Arc<Inner>, slot: usize, after: u64) -> Self {
        Self { inner, slot, place: Arc::new(Mutex::new(Place { after, open: None })) }
    }

    /// The next records, at most `max`; none when all were read. Reads on a blocking thread; call it within a tokio
    /// runtime, one call at a time. The records of a dropped future count as read.
    pub async fn read(&self, max: usize) -> Result<Vec<Stored>, OutboxError> {
        let (inner, place) = (self.inner.clone(), self.place.clone());
        let read = move || place.lock().read(&inner.shared, max);
        tokio::task::spawn_blocking(read).await.unwrap_or(Err(OutboxError::Closed))
    }

    /// Everything up to `index` has arrived where this consumer takes it.
    pub fn confirm(&self, index: u64) {
        // A closed outbox means a replay after the restart, which is harmless.
        let _ = self.inner.send(Command::Confirm { slot: self.slot, index });
    }

    /// Index of the last record read.
    pub fn position(&self) -> u64 {
        self.place.lock().after
    }

    /// Changes with each append to the index of the last record.
    pub fn watch(&self) -> watch::Receiver<u64> {
        self.inner.shared.last.subscribe()
    }
}

enum Step {
    Record(Stored),
    Moved,
    /// The next record is written, but not yet announced.
    Later,
}

impl Place {
    fn read(&mut self, shared: &Shared, max: usize) -> Result<Vec<Stored>, OutboxError> {
        let last = *shared.last.borrow();
        let mut records = Vec::new();
        while records.len() < max && self.after < last {
            match self.step(shared, last) {
                Ok(Step::Record(stored)) => records.push(stored),
                Ok(Step::Moved) => {}
                Ok(Step::Later) => break,
                Err(error) if records.is_empty() => return Err(error),
                // What was read is delivered first; the next call meets the error again.
                Err(_) => break,
            }
        }
        Ok(records)
    }

    fn step(&mut self, shared: &Shared, last: u64) -> Result<Step, OutboxError> {
        let Some((first, scanner)) = self.scanner(shared)? else {
            return Ok(Step::Moved);
        };
        let first = *first;
        let path = path_of(&shared.dir, first);
        let scan = match scanner.next() {
            Ok(scan) => scan,
            Err(error) => {
                self.open = None;
                return Err(OutboxError::io("cannot read", &path, &error));
            }
        };
        match scan {
            Scan::Frame { index, .. } if index <= self.after => {}
            Scan::Frame { index, .. } if index > last => {
                self.open = None;
                return Ok(Step::Later);
            }
            Scan::Frame { index, payload } => {
                self.after = index;
                let record = Record::decode(&payload).map_err(|reason| Undecodable { reason, payload });
                return Ok(Step::Record(Stored { index, record }));
            }
            Scan::Skipped { from, to } => {
                tracing::error!(path = %path.display(), from, to, "outbox is damaged; the records there are lost");
            }
            Scan::End { valid_end, .. } => self.leave(shared, first, valid_end),
        }
        Ok(Step::Moved)
    }

    /// The open segment, or the one with the next record. None: there was none, and the position has moved on.
    fn scanner(&mut self, shared: &Shared) -> Result<Option<&mut (u64, Scanner)>, OutboxError> {
        if self.open.is_none() {
            let next = {
                let state = shared.state.lock();
                state.segments.iter().find(|s| s.last > self.after).map(|s| (s.first, s.last))
            };
            let Some((first, last)) = next else {
                self.after = *shared.last.borrow();
                return Ok(None);
            };
            let path = path_of(&shared.dir, first);
            match File::open(&path) {
                Ok(file) => self.open = Some((first, Scanner::new(file, first.saturating_sub(1)))),
                Err(error) if error.kind() == io::ErrorKind::NotFound => {
                    tracing::error!(path = %path.display(), "outbox file is gone; the records in it are lost");
                    self.after = last;
                    return Ok(None);
                }
                Err(error) => return Err(OutboxError::io("cannot read", &path, &error)),
            }
        }
        Ok(self.open.as_mut())
    }

    /// The open segment has no more whole frame.
    fn leave(&mut self, shared: &Shared, first: u64, valid_end: u64) {
        self.open = None;
        let last = shared.state.lock().segments.iter().find(|s| s.first == first).map_or(0, |s| s.last);
        if last > self.after {
            let path = path_of(&shared.dir, first);
            tracing::error!(path = %path.display(), from = valid_end, "outbox is damaged; the records there are lost");
            self.after = last;
        }
    }
}

/// See [`super::Outbox::tail`].
pub fn tail(shared: &Shared, epoch: Epoch, after: u64, limit: usize) -> Result<Vec<Arc<Entry>>, OutboxError> {
    let holds = |range: Option<&(u64, u64)>| range.is_some_and(|(_, high)| *high > after);
    let firsts: Vec<u64> = {
        let state = shared.state.lock();
        state.segments.iter().filter(|s| holds(s.epochs.get(&epoch))).map(|s| s.first).collect()
    };
    let mut entries: Vec<Arc<Entry>> = Vec::new();
    for first in firsts {
        let path = path_of(&shared.dir, first);
        let failed = |e: io::Error| OutboxError::io("cannot read", &path, &e);
        let file = match File::open(&path) {
            // Deleted since: the database has it.
            Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
            opened => opened.map_err(failed)?,
        };
        let mut scanner = Scanner::new(file, first.saturating_sub(1));
        while entries.len() < limit {
            match scanner.next().map_err(failed)? {
                Scan::Frame { payload, .. } => entries.extend(entry_of(&payload, epoch, after)),
                Scan::Skipped { .. } => {}
                Scan::End { .. } => break,
            }
        }
    }
    // An append that was repeated after a fault is there twice.
    entries.sort_by_key(|e| e.seq());
    entries.dedup_by_key(|e| e.seq());
    Ok(entries)
}

fn entry_of(payload: &[u8], epoch: Epoch, after: u64) -> Option<Arc<Entry>> {
    let prefix = record::peek(payload).ok()?;
    if prefix.epoch != epoch || prefix.seq? <= after {
        return None;
    }
    match Record::decode(payload).ok()? {
        Record::Entry(entry) => Some(entry),
        Record::Session(_) => None,
    }
}
