//! Sends one room's log to a target: one batch under way at a time, and what gathers meanwhile is the next one.
//!
//! Entries come from the log's ring, where they are as soon as they are durable, and from the outbox where the ring does not
//! reach back: after a restart, or a long outage. Interims come from the log too, so none is older than a final that was
//! sent; they have one attempt.

use std::rc::Rc;
use std::sync::{Arc, Weak};
use std::time::Duration;

use bytestring::ByteString;
use chrono::{SecondsFormat, Utc};
use tokio::sync::{Notify, watch};
use tokio::time::Instant;

use super::Shared;
use super::backlog::RoomBacklog;
use crate::actors::supervision::backoff;
use crate::bus::wire::MAX_POST_ENTRIES;
use crate::bus::{Batch, Outcome};
use crate::transcript::{Cursor, Epoch, Read, Slug, Stamp, TranscriptLog};

/// Bytes of entries in a batch; the rest of a post's limit is for interims and what is around them.
const BATCH_BYTES: usize = 768 * 1024;
const INTERIM_BYTES: usize = 128 * 1024;
/// Pauses of a room that its target does not take, though it takes others.
const PAUSE_FIRST: Duration = Duration::from_millis(100);
const PAUSE_MOST: Duration = Duration::from_secs(10);
/// Times in a row that what a target asks for is sent at once.
const MAX_HEALS: u32 = 3;
/// Longest wait for an entry to be in the log when it is in the outbox already.
const STARVED: Duration = Duration::from_millis(50);

pub(super) struct RoomSender {
    shared: Rc<Shared>,
    slug: Slug,
    epoch: Epoch,
    /// The room keeps it, or nobody: logs of sessions that end while a target is away for days would be gigabytes. Without it
    /// the rows of the outbox are all that there is.
    log: Weak<TranscriptLog>,
    changes: Option<watch::Receiver<u64>>,
    /// Rows of it were read from the outbox.
    pub wake: Rc<Notify>,
    /// Everything up to `cursor.seq` is sent, or was stored before.
    cursor: Cursor,
    /// Highest number that this life has seen stored.
    stored: u64,
    most_entries: usize,
    refusals: u32,
    /// What lies between the number stored last and this one is in no place any more.
    begins: Option<u64>,
    /// The ring had nothing where the outbox has something.
    is_starved: bool,
}

/// A batch, and what it stands for.
struct Parcel {
    batch: Batch,
    /// The cursor when all of it is stored.
    cursor: Cursor,
    record: Option<u64>,
    /// Times and numbers of its finals.
    stamps: Vec<(u64, Stamp)>,
}

impl RoomSender {
    /// What came before the oldest row that waits was stored by an earlier life. Where none waits, that is what is up to
    /// `after`, or all of a log that is over; should a row of it be read later, it is gone back to.
    pub fn new(shared: Rc<Shared>, slug: Slug, epoch: Epoch, after: u64) -> Self {
        let log = shared.params.directory.get(&slug).and_then(|room| room.log_of(epoch));
        let next = shared.backlog.borrow().get(epoch).and_then(RoomBacklog::next_seq);
        let over = log.as_ref().filter(|log| log.is_closed()).map(|log| log.last_seq());
        let after = next.map(|next| next - 1).or(over).unwrap_or(after);
        Self {
            changes: log.as_ref().map(|log| log.watch()),
            log: log.as_ref().map(Arc::downgrade).unwrap_or_default(),
            wake: Rc::default(),
            cursor: Cursor::after(after),
            stored: 0,
            most_entries: MAX_POST_ENTRIES,
            refusals: 0,
            begins: None,
            is_starved: false,
            shared,
            slug,
            epoch,
        }
    }

    /// Ends when the session is over and all of it is stored.
    pub async fn run(mut self) {
        loop {
            while !self.has_work() {
                if self.is_over() {
                    return;
                }
                self.wait().await;
            }
            let shared = self.shared.clone();
            let turn = shared.target.turn().await;
            // Only now, so that what has gathered is in it, and the interims are the newest.
            let parcel = self.collect().await;
            if parcel.batch.is_empty() {
                self.cursor = parcel.cursor;
                drop(turn);
                // A row may be in the outbox a moment before it is in the log.
                self.is_starved = tokio::time::timeout(STARVED, self.wait()).await.is_err();
                continue;
            }
            let begun = Instant::now();
            let outcome = shared.bus.append(&parcel.batch).await;
            let pause = self.answered(parcel, outcome, begun.elapsed());
            drop(turn);
            if let Some(pause) = pause {
                tokio::time::sleep(pause).await;
            }
        }
    }

    fn has_work(&mut self) -> bool {
        let backlog = self.shared.backlog.borrow();
        let waiting = backlog.get(self.epoch).filter(|room| !room.is_done());
        let is_changed = self.changes.as_mut().is_some_and(|changes| changes.has_changed().unwrap_or(false));
        waiting.is_some() || is_changed || self.last_in_log() > self.cursor.seq
    }

    fn last_in_log(&self) -> u64 {
        self.log.upgrade().map_or(0, |log| log.last_seq())
    }

    fn is_over(&self) -> bool {
        self.log.upgrade().is_none_or(|log| log.is_closed())
    }

    async fn wait(&mut self) {
        let Some(changes) = &mut self.changes else { return self.wake.notified().await };
        tokio::select! {
            changed = changes.changed() => match changed {
                // It is seen when the log has been read, not before.
                Ok(()) => changes.mark_changed(),
                // The log is gone.
                Err(_) => self.changes = None,
            },
            () = self.wake.notified() => {}
        }
    }

    async fn collect(&mut self) -> Parcel {
        if let Some(changes) = &mut self.changes {
            changes.mark_unchanged();
        }
        let record = self.shared.backlog.borrow().get(self.epoch).and_then(|room| room.record().cloned());
        let next = self.shared.backlog.borrow().get(self.epoch).and_then(RoomBacklog::next_seq);
        if let Some(next) = next.filter(|next| *next <= self.cursor.seq && *next > self.stored) {
            self.cursor = Cursor::after(next - 1);
        }
        let mut parcel = Parcel {
            batch: Batch::new(self.slug.clone(), self.epoch),
            cursor: self.cursor,
            record: record.as_ref().map(|(index, _)| *index),
            stamps: Vec::new(),
        };
        parcel.batch.record = record.map(|(_, record)| record);
        let ring = self.log.upgrade().filter(|_| !std::mem::take(&mut self.is_starved));
        match ring.map(|log| log.read(&mut parcel.cursor, self.most_entries)) {
            Some(Read::Items(items)) => {
                let mut bytes = 0;
                for item in items {
                    bytes += item.json.len();
                    match item.seq {
                        Some(seq) if bytes <= BATCH_BYTES || parcel.batch.entries.is_empty() => {
                            parcel.stamps.extend(item.stamp.map(|stamp| (seq, stamp)));
                            parcel.batch.entries.push(item.json);
                        }
                        Some(seq) => {
                            // The rest is for the next one, and so are the interims.
                            parcel.cursor = Cursor::after(seq - 1);
                            break;
                        }
                        None => parcel.batch.interims.push(item.json),
                    }
                }
                let interims: usize = parcel.batch.interims.iter().map(|json| json.len()).sum();
                if interims > INTERIM_BYTES {
                    parcel.batch.interims.clear();
                }
            }
            None | Some(Read::FellOff { .. }) => self.collect_from_outbox(&mut parcel).await,
        }
        parcel.batch.begins = self.begins;
        parcel
    }

    async fn collect_from_outbox(&mut self, parcel: &mut Parcel) {
        let after = self.cursor.seq;
        let found = match self.shared.params.outbox.tail(self.epoch, after, self.most_entries).await {
            Ok(found) => found,
            Err(error) => return tracing::error!(session = %self.slug, %error, "the outbox cannot be read"),
        };
        let (mut bytes, mut last) = (0, after);
        for entry in found {
            let json: ByteString = entry.to_json();
            bytes += json.len();
            let Some(seq) = entry.seq() else { continue };
            if bytes > BATCH_BYTES && !parcel.batch.entries.is_empty() {
                break;
            }
            if seq != last + 1 {
                if !parcel.batch.entries.is_empty() {
                    break;
                }
                // What lies between is in neither place any more.
                self.begins = Some(seq);
            }
            parcel.batch.entries.push(json);
            last = seq;
        }
        if parcel.batch.entries.is_empty() {
            last = self.after_what_is_gone(after);
        }
        parcel.cursor = Cursor::after(last);
    }

    /// The outbox has nothing after this number. Gives the one after which there is something in the ring.
    fn after_what_is_gone(&mut self, after: u64) -> u64 {
        let log = self.log.upgrade();
        let is_in_ring = log.as_ref().is_some_and(|log| log.last_seq() > after);
        let until = match log {
            Some(log) if is_in_ring => log.readable_after().max(after),
            // It has rows that were read before and are in no place any more: damage, or an outbox that was deleted.
            _ => self.shared.backlog.borrow_mut().lose(self.epoch).map_or(after, |(_, last)| last.max(after)),
        };
        if until > after {
            tracing::error!(session = %self.slug, after, until, "entries are gone before their ws node took them");
            self.begins = Some(until + 1);
            self.shared.progress.notify_one();
        }
        until
    }

    /// Gives the pause before the next batch of this room.
    fn answered(&mut self, parcel: Parcel, outcome: Outcome, took: Duration) -> Option<Duration> {
        let shared = self.shared.clone();
        let (target, metrics) = (&shared.target, &shared.params.metrics);
        let result = outcome.as_str();
        metrics.forward_posts_total.with_label_values(&[result]).inc();
        if outcome.is_of_room() {
            target.is_up(metrics);
        } else {
            self.keep(&parcel);
            target.failed_by(&outcome, metrics);
        }
        match outcome {
            Outcome::Stored { .. } => {
                self.stored(&parcel, took);
                None
            }
            Outcome::Refused { expected, why } => self.refused(&parcel, expected, &why),
            Outcome::Foreign(why) => Some(self.pause(&why)),
            Outcome::Full { why, retry_after, room: true } => {
                Some(self.pause(&why).max(retry_after.unwrap_or_default()))
            }
            Outcome::TooLarge if self.most_entries > 1 => {
                self.most_entries = (parcel.batch.entries.len() / 2).max(1);
                None
            }
            Outcome::TooLarge => Some(self.pause("an entry is more than the node takes in one post")),
            // The target's turns know how long to wait.
            Outcome::Full { .. } | Outcome::Unsure(_) | Outcome::Denied(_) | Outcome::Incompatible(_) => None,
        }
    }

    /// Interims have had their attempt, entries stay.
    fn keep(&mut self, parcel: &Parcel) {
        if parcel.batch.is_fleeting() {
            self.cursor = parcel.cursor;
        }
    }

    fn stored(&mut self, parcel: &Parcel, took: Duration) {
        let metrics = &self.shared.params.metrics;
        self.cursor = parcel.cursor;
        if !parcel.batch.entries.is_empty() {
            self.stored = self.stored.max(parcel.cursor.seq);
        }
        (self.refusals, self.begins) = (0, None);
        self.most_entries = (self.most_entries * 2).min(MAX_POST_ENTRIES);
        {
            let mut backlog = self.shared.backlog.borrow_mut();
            backlog.stored(&self.slug, self.epoch, self.stored);
            if let Some(index) = parcel.record {
                backlog.record_stored(self.epoch, index);
            }
        }
        self.shared.progress.notify_one();
        if parcel.batch.is_fleeting() {
            return;
        }
        metrics.forward_entries_total.inc_by(parcel.batch.entries.len() as u64);
        metrics.forward_latency_seconds.observe(took.as_secs_f64());
        let now = Utc::now();
        for (seq, stamp) in &parcel.stamps {
            let total = (now - stamp.received).to_std().unwrap_or_default();
            metrics.server_latency_seconds.observe(total.as_secs_f64());
            tracing::info!(
                session = %self.slug,
                seq,
                target_url = self.shared.target.url,
                httpLatencyMs = took.as_secs_f64() * 1000.0,
                totalLatencyFromGladiaMs = total.as_secs_f64() * 1000.0,
                timestamp = %stamp.received.to_rfc3339_opts(SecondsFormat::Millis, true),
                "Transcript posted to WS broadcast"
            );
        }
    }

    /// The other side wants another number next: that is sent at once, but a few times in a row only.
    fn refused(&mut self, parcel: &Parcel, expected: u64, why: &str) -> Option<Duration> {
        if parcel.batch.is_fleeting() {
            self.cursor = parcel.cursor;
            return None;
        }
        let known = expected.saturating_sub(1);
        if known == self.cursor.seq {
            return Some(self.pause(why));
        }
        tracing::info!(session = %self.slug, expected, "ws node asks for another number");
        if known > self.cursor.seq {
            let known = known.min(parcel.cursor.seq);
            self.shared.backlog.borrow_mut().stored(&self.slug, self.epoch, known);
            self.stored = self.stored.max(known);
        } else {
            self.stored = self.stored.min(known);
        }
        self.cursor = Cursor::after(known);
        let pause = self.pause(why);
        (self.refusals > MAX_HEALS).then_some(pause)
    }

    fn pause(&mut self, why: &str) -> Duration {
        let pause = backoff(PAUSE_FIRST, PAUSE_MOST, self.refusals);
        if self.refusals == 3 {
            let url = &self.shared.target.url;
            tracing::warn!(session = %self.slug, target_url = url, error = why, "ws node does not take this room; it waits");
        }
        self.refusals += 1;
        pause
    }
}
