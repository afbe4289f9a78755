//! Gives one viewer its entries, in order: a hello, what it missed, what is said now, and the next epoch after the end.
//!
//! WebSocket and SSE share it. It is pulled: nothing is read from the log while the viewer's socket is full, so a slow
//! viewer holds a cursor and no memory.

use std::collections::VecDeque;
use std::sync::Arc;

use bytestring::ByteString;
use chrono::{SecondsFormat, Utc};
use serde::Serialize;
use tokio::sync::watch;
use tokio::time::Instant;

use super::registry::{Place, Viewer};
use crate::transcript::reader::bounded;
use crate::transcript::{
    Cursor, Entry, Epoch, Item, Read, Room, SessionInfo, Stamp, Status, TranscriptLog, TranscriptReader,
};

/// Entries of one read; the socket is looked at again after each.
const BATCH: usize = 64;
/// Entries of one read from the database.
const PAGE: usize = 200;
/// Version of the wire protocol.
const PROTOCOL: u32 = 1;

/// Close codes: RFC 6455's, and two of our own from 4000 on.
pub mod close_code {
    pub const DRAINING: u16 = 1001;
    pub const PROTOCOL: u16 = 1002;
    pub const NOT_TEXT: u16 = 1007;
    pub const POLICY: u16 = 1008;
    pub const TOO_BIG: u16 = 1009;
    pub const FAULT: u16 = 1011;
    pub const RESTARTED: u16 = 1012;
    pub const TOKEN_EXPIRED: u16 = 4001;
    pub const TOO_SLOW: u16 = 4008;
}

/// One message to a viewer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum FeedItem {
    /// A hello or an interim: no place in the log.
    Unnumbered { json: ByteString, stamp: Option<Stamp> },
    /// A durable entry.
    Entry { epoch: Epoch, seq: u64, json: ByteString, stamp: Option<Stamp> },
    /// The last one.
    Close { code: u16, reason: String },
}

/// The place where a viewer says it stands.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Resume {
    pub epoch: Option<Epoch>,
    /// None: a fresh viewer, which gets what the ring has.
    pub after: Option<u64>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Hello<'a> {
    r#type: &'static str,
    session: &'a str,
    epoch: Option<Epoch>,
    /// Last sequence number of the log now.
    seq: u64,
    recovered: bool,
    status: Status,
    protocol: u32,
    /// Something is said at least so often: a connection that has been silent for longer is dead.
    ping_ms: u64,
}

#[derive(Serialize)]
struct Ping<'a> {
    r#type: &'static str,
    session: &'a str,
    epoch: Option<Epoch>,
    /// Last sequence number of the log that the viewer reads.
    seq: u64,
    timestamp: String,
}

/// The message that says that the connection lives, for scripts: a browser does not show them the protocol's own pings.
pub fn ping(room: &Room, viewer: &Viewer) -> ByteString {
    let (epoch, seq) = viewer.place().last();
    let timestamp = Utc::now().to_rfc3339_opts(SecondsFormat::Millis, true);
    let ping = Ping { r#type: "ping", session: room.slug().as_str(), epoch, seq, timestamp };
    serde_json::to_string(&ping).expect("plain fields").into()
}

/// The entries of one viewer, pulled as its socket takes them.
pub struct Feed {
    room: Arc<Room>,
    rooms: watch::Receiver<Option<Arc<TranscriptLog>>>,
    reader: Arc<dyn TranscriptReader>,
    viewer: Arc<Viewer>,
    closing: watch::Receiver<bool>,
    ping_ms: u64,
    state: State,
}

enum State {
    Start(Resume),
    /// Reads the database, then joins `then`; without one the epoch is no longer in memory.
    Archive {
        epoch: Epoch,
        after: u64,
        page: VecDeque<Entry>,
        then: Option<Arc<TranscriptLog>>,
    },
    Live(Live),
    /// For the epoch after this one (read to this number), for more of it, or for the first one.
    Waiting(Option<(Epoch, u64)>),
    Over,
}

struct Live {
    log: Arc<TranscriptLog>,
    cursor: Cursor,
    changes: watch::Receiver<u64>,
    since: Instant,
}

impl Feed {
    pub fn new(
        room: Arc<Room>,
        reader: Arc<dyn TranscriptReader>,
        viewer: Arc<Viewer>,
        closing: watch::Receiver<bool>,
        resume: Resume,
    ) -> Self {
        let rooms = room.watch();
        let ping_ms = viewer.ping_interval().as_millis() as u64;
        Self { room, rooms, reader, viewer, closing, ping_ms, state: State::Start(resume) }
    }

    /// The next messages, waiting for them; None after a [`FeedItem::Close`]. Not empty.
    pub async fn next(&mut self) -> Option<Vec<FeedItem>> {
        loop {
            let items = match std::mem::replace(&mut self.state, State::Over) {
                State::Over => return None,
                State::Start(resume) => self.start(resume).await,
                State::Archive { epoch, after, page, then } => self.archive(epoch, after, page, then).await,
                State::Live(live) => self.live(live).await,
                State::Waiting(finished) => self.wait(finished).await,
            };
            if !items.is_empty() {
                return Some(items);
            }
        }
    }

    async fn start(&mut self, resume: Resume) -> Vec<FeedItem> {
        let Some(epoch) = resume.epoch else {
            return match self.room.current() {
                Some(log) => self.enter(log, resume.after).await,
                None => self.hello_waiting(resume.after.is_none_or(|after| after == 0)),
            };
        };
        if let Some(log) = self.room.log_of(epoch) {
            return self.enter(log, Some(resume.after.unwrap_or(0))).await;
        }
        let after = resume.after.unwrap_or(0);
        if let Some((info, page)) = self.archived(epoch, after).await {
            self.viewer.reads(Place::Stored(epoch, info.seq));
            self.state = State::Archive { epoch, after, page, then: None };
            return vec![self.hello(Some(epoch), info.seq, true, Status::Ended)];
        }
        match self.room.current() {
            Some(log) => self.snapshot(log, false),
            None => self.hello_waiting(false),
        }
    }

    /// Begins to read `log` after `after`, from the database first where the ring does not reach back.
    async fn enter(&mut self, log: Arc<TranscriptLog>, after: Option<u64>) -> Vec<FeedItem> {
        let oldest = log.readable_after();
        let Some(after) = after else {
            return self.snapshot(log, oldest == 0);
        };
        // Another node was further: what follows comes here, too.
        let is_ahead = after > log.last_seq();
        if is_ahead && (!log.is_mirror() || log.status() == Status::Ended) {
            return self.snapshot(log, false);
        }
        if after >= oldest {
            let hello = self.hello(Some(log.epoch()), log.last_seq(), true, log.status());
            self.go_live(log, after);
            return vec![hello];
        }
        match self.bridge(log.epoch(), after, oldest).await {
            Some(page) => {
                let hello = self.hello(Some(log.epoch()), log.last_seq(), true, log.status());
                self.viewer.reads(Place::Stored(log.epoch(), log.last_seq()));
                self.state = State::Archive { epoch: log.epoch(), after, page, then: Some(log) };
                vec![hello]
            }
            None => self.snapshot(log, false),
        }
    }

    /// A hello, then all that the ring has.
    fn snapshot(&mut self, log: Arc<TranscriptLog>, recovered: bool) -> Vec<FeedItem> {
        let hello = self.hello(Some(log.epoch()), log.last_seq(), recovered, log.status());
        let oldest = log.readable_after();
        self.go_live(log, oldest);
        vec![hello]
    }

    fn hello_waiting(&mut self, recovered: bool) -> Vec<FeedItem> {
        self.state = State::Waiting(None);
        vec![self.hello(None, 0, recovered, Status::Waiting)]
    }

    fn hello(&self, epoch: Option<Epoch>, seq: u64, recovered: bool, status: Status) -> FeedItem {
        let session = self.room.slug().as_str();
        let (protocol, ping_ms) = (PROTOCOL, self.ping_ms);
        let hello = Hello { r#type: "hello", session, epoch, seq, recovered, status, protocol, ping_ms };
        let json = serde_json::to_string(&hello).expect("plain fields").into();
        FeedItem::Unnumbered { json, stamp: None }
    }

    fn go_live(&mut self, log: Arc<TranscriptLog>, after: u64) {
        self.viewer.reads(Place::Live(log.clone()));
        let changes = log.watch();
        self.state = State::Live(Live { log, cursor: Cursor::after(after), changes, since: Instant::now() });
    }

    /// The first page of an epoch that is only in the database; None when it cannot be read without a hole.
    async fn archived(&self, epoch: Epoch, after: u64) -> Option<(SessionInfo, VecDeque<Entry>)> {
        let info = bounded(self.reader.session(epoch)).await.ok()??;
        let page = bounded(self.reader.transcripts(epoch, after, PAGE)).await.ok()?;
        let complete = follows(after, &page) && (!page.is_empty() || after == info.seq);
        (info.session == *self.room.slug() && complete).then(|| (info, page.into()))
    }

    /// The first page after `after` when the database has everything up to `oldest`, where the ring begins.
    async fn bridge(&self, epoch: Epoch, after: u64, oldest: u64) -> Option<VecDeque<Entry>> {
        let page = bounded(self.reader.transcripts(epoch, after, PAGE)).await.ok()?;
        if page.is_empty() || !follows(after, &page) {
            return None;
        }
        if after + (page.len() as u64) < oldest {
            // Rows reach the database in order: where the last one is, those before it are.
            let last = bounded(self.reader.transcripts(epoch, oldest - 1, 1)).await.ok()?;
            last.first().filter(|entry| entry.seq() == Some(oldest))?;
        }
        Some(page.into())
    }

    async fn archive(
        &mut self,
        epoch: Epoch,
        mut after: u64,
        mut page: VecDeque<Entry>,
        then: Option<Arc<TranscriptLog>>,
    ) -> Vec<FeedItem> {
        if let Some(log) = then.as_ref().filter(|log| after >= log.readable_after()) {
            self.go_live(log.clone(), after);
            return Vec::new();
        }
        if page.is_empty() {
            page = match bounded(self.reader.transcripts(epoch, after, PAGE)).await {
                Ok(entries) if follows(after, &entries) => entries.into(),
                _ => return self.close(close_code::FAULT, "the history cannot be read now".into()),
            };
        }
        if page.is_empty() {
            if then.is_some() {
                return self.close(close_code::FAULT, "the history is not in the database yet".into());
            }
            self.state = State::Waiting(Some((epoch, after)));
            return Vec::new();
        }
        let entries = page.drain(..page.len().min(BATCH));
        let numbered = entries.filter_map(|entry| {
            let seq = entry.seq()?;
            after = seq;
            Some(FeedItem::Entry { epoch, seq, json: entry.to_json(), stamp: None })
        });
        let items = numbered.collect();
        self.state = State::Archive { epoch, after, page, then };
        items
    }

    async fn live(&mut self, mut live: Live) -> Vec<FeedItem> {
        // Marked before the read: what comes in during it wakes us again.
        let version = *live.changes.borrow_and_update();
        let another = self.rooms.borrow_and_update().as_ref().is_some_and(|log| log.epoch() != live.log.epoch());
        let read = live.log.read(&mut live.cursor, BATCH);
        self.viewer.saw(version);
        let items = match read {
            Read::FellOff { .. } => {
                return self.close(close_code::TOO_SLOW, format!("too slow; last seq {}", live.cursor.seq));
            }
            Read::Items(items) => items,
        };
        if !items.is_empty() {
            let messages = items.into_iter().map(|item| live.message(item)).collect();
            self.state = State::Live(live);
            return messages;
        }
        if live.log.is_closed() {
            let seq = live.cursor.seq;
            if another && live.log.status() != Status::Ended && seq == live.log.last_seq() {
                return self.close(close_code::RESTARTED, format!("room restarted; last seq {seq}"));
            }
            // Beyond it, too: another node was further, and this one has let go of the log.
            let at_end = seq >= live.log.last_seq();
            self.state = if at_end { State::Waiting(Some((live.log.epoch(), seq))) } else { State::Live(live) };
            return Vec::new();
        }
        if *self.closing.borrow() {
            return self.close(close_code::DRAINING, format!("last seq {}", live.cursor.seq));
        }
        tokio::select! {
            _ = live.changes.changed() => {}
            _ = self.rooms.changed() => {}
            _ = self.closing.changed() => {}
        }
        self.state = State::Live(live);
        Vec::new()
    }

    async fn wait(&mut self, finished: Option<(Epoch, u64)>) -> Vec<FeedItem> {
        self.viewer.reads(finished.map_or(Place::Nowhere, |(epoch, seq)| Place::Stored(epoch, seq)));
        self.rooms.borrow_and_update();
        let next = match finished {
            Some((epoch, seq)) => self.room.log_after(epoch, seq),
            None => self.room.current(),
        };
        if let Some(log) = next {
            let read = finished.filter(|(epoch, _)| *epoch == log.epoch()).map_or(0, |(_, seq)| seq);
            return self.enter(log, Some(read)).await;
        }
        if *self.closing.borrow() {
            let seq = finished.map_or(0, |(_, seq)| seq);
            return self.close(close_code::DRAINING, format!("last seq {seq}"));
        }
        tokio::select! {
            _ = self.rooms.changed() => {}
            _ = self.closing.changed() => {}
        }
        self.state = State::Waiting(finished);
        Vec::new()
    }

    fn close(&mut self, code: u16, reason: String) -> Vec<FeedItem> {
        self.state = State::Over;
        vec![FeedItem::Close { code, reason }]
    }
}

impl Live {
    fn message(&self, item: Item) -> FeedItem {
        let Item { seq, json, stamp } = item;
        // What was said before the viewer came is no measure of delivery.
        let stamp = stamp.filter(|stamp| stamp.shown >= self.since);
        match seq {
            Some(seq) => FeedItem::Entry { epoch: self.log.epoch(), seq, json, stamp },
            None => FeedItem::Unnumbered { json, stamp },
        }
    }
}

/// True when `entries` have the numbers after `after`, without a hole.
fn follows(after: u64, entries: &[Entry]) -> bool {
    (after + 1..).zip(entries).all(|(seq, entry)| entry.seq() == Some(seq))
}
