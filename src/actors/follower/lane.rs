//! The messages of one room on their way to its mirror, in order.
//!
//! A room that takes its entries slower than they come holds up no other: what waits is dropped here and read from the
//! log server again. So is what a mirror lacks, from the start of the room's log; what is not there either is skipped.

mod state;

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::time::Duration;

use tokio::time::Instant;

use self::state::{Healing, State, Step};
use super::{PAUSE_FIRST, PAUSE_MOST, Shared};
use crate::actors::session_registry::{Broadcast, BroadcastEntry, BroadcastRefusal, FromOrigin};
use crate::actors::supervision::backoff;
use crate::bus::log_server::{Logged, MessageKind, Position};
use crate::bus::wire::LogBatch;
use crate::transcript::{Epoch, Slug};

/// Messages of one room that wait at most; and bytes, in all rooms.
const MAX_QUEUED: usize = 1000;
const MAX_QUEUED_BYTES: usize = 64 << 20;
/// Messages read from the log server at a time.
const PAGE: usize = 64;
/// Empty answers that are believed to be no delay of the log server.
const MAX_EMPTY: u32 = 5;
const EMPTY_PAUSE: Duration = Duration::from_millis(200);

/// One room.
pub(super) struct Lane {
    pub slug: Slug,
    shared: Rc<Shared>,
    state: RefCell<State>,
    pub is_running: Cell<bool>,
    /// Somebody watches the room, and has nothing to read.
    pub is_wanted: Cell<bool>,
    pub last_used: Cell<Instant>,
}

/// The fate of a message.
#[derive(Debug)]
enum Fed {
    Done,
    Hole { epoch: Epoch, expected: u64 },
    Later(String),
}

impl Lane {
    /// All up to `begun` is in the database.
    pub fn new(slug: Slug, shared: Rc<Shared>, begun: Position) -> Self {
        let state = State { fed: begun, seen: begun, ..State::default() }.into();
        let (is_running, is_wanted) = (false.into(), false.into());
        Self { slug, shared, state, is_running, is_wanted, last_used: Instant::now().into() }
    }

    /// The next message of the room.
    pub fn push(&self, logged: Logged) {
        self.last_used.set(Instant::now());
        let mut state = self.state.borrow_mut();
        let bytes = logged.message.body.len();
        let queued_bytes = &self.shared.queued_bytes;
        let is_full = state.queue.len() >= MAX_QUEUED || queued_bytes.get() + bytes > MAX_QUEUED_BYTES;
        if state.behind.is_none() && (!is_full || state.queue.is_empty() || state.has_reset()) {
            queued_bytes.set(queued_bytes.get() + bytes);
            state.queue.push_back(Step::Message(logged));
            return;
        }
        state.behind = Some(logged.position);
        while self.pop(&mut state).is_some() {}
    }

    fn pop(&self, state: &mut State) -> Option<Step> {
        let step = state.queue.pop_front()?;
        if let Step::Message(logged) = &step {
            let queued_bytes = &self.shared.queued_bytes;
            queued_bytes.set(queued_bytes.get() - logged.message.body.len());
        }
        Some(step)
    }

    /// The log is another one from here on.
    pub fn reset(&self, position: Position) {
        let mut state = self.state.borrow_mut();
        if state.behind.is_some() {
            state.reset(position);
        } else {
            state.queue.push_back(Step::Reset(position));
            if !self.is_running.get() {
                self.pop(&mut state);
                state.reset(position);
            }
        }
    }

    pub fn has_work(&self) -> bool {
        let state = self.state.borrow();
        !state.queue.is_empty() || state.behind.is_some() || self.is_wanted.get()
    }

    /// Works until there is nothing left to do.
    pub async fn run(&self) {
        let mut failures = 0;
        while self.has_work() {
            let (is_behind, is_queued) = {
                let state = self.state.borrow();
                (state.behind.is_some(), !state.queue.is_empty())
            };
            let done = match (is_behind, is_queued) {
                (true, _) => self.read_on().await,
                (_, true) => self.take_next().await,
                _ => self.begin_for_viewers().await,
            };
            match done {
                Ok(()) => failures = 0,
                Err(error) => self.wait(&mut failures, &error).await,
            }
        }
    }

    async fn wait(&self, failures: &mut u32, error: &str) {
        if *failures == 0 {
            tracing::warn!(session = %self.slug, error, "entries of the log server are not shown yet");
        }
        tokio::time::sleep(backoff(PAUSE_FIRST, PAUSE_MOST, *failures)).await;
        *failures += 1;
    }

    /// Deals with the first step of the queue. Err: it is to be tried again.
    async fn take_next(&self) -> Result<(), String> {
        let next = {
            let mut state = self.state.borrow_mut();
            self.pop(&mut state)
        };
        let logged = match next {
            Some(Step::Message(logged)) => logged,
            Some(Step::Reset(position)) => {
                self.state.borrow_mut().reset(position);
                return Ok(());
            }
            None => return Ok(()),
        };
        if logged.position <= self.state.borrow().seen {
            return Ok(());
        }
        match self.feed(&logged).await {
            Fed::Done => self.state.borrow_mut().dealt_with(logged.position),
            Fed::Hole { epoch, expected } => self.heal(epoch, expected, logged.position),
            Fed::Later(why) => {
                self.put_back(logged);
                return Err(why);
            }
        }
        Ok(())
    }

    /// Unless it is to be read from the log server anyway.
    fn put_back(&self, logged: Logged) {
        let mut state = self.state.borrow_mut();
        if state.behind.is_none() {
            let queued_bytes = &self.shared.queued_bytes;
            queued_bytes.set(queued_bytes.get() + logged.message.body.len());
            state.queue.push_front(Step::Message(logged));
        }
    }

    /// From the start of the room's log.
    fn heal(&self, epoch: Epoch, expected: u64, until: Position) {
        tracing::warn!(session = %self.slug, %epoch, expected, "a mirror lacks entries, reading the room's log again");
        let mut state = self.state.borrow_mut();
        if state.has_reset() {
            // What it lacks is in no log any more.
            return state.dealt_with(until);
        }
        let last = state.queue.iter().rev().find_map(|step| match step {
            Step::Message(logged) => Some(logged.position),
            Step::Reset(_) => None,
        });
        state.healing = Some(Healing { epoch, expected, until, seen: state.seen });
        state.behind = Some(state.behind.max(last).unwrap_or(until).max(until));
        (state.fed, state.fence) = (0, None);
        while self.pop(&mut state).is_some() {}
    }

    /// Deals with what the log server has after the last message. Err: it is to be tried again.
    async fn read_on(&self) -> Result<(), String> {
        let _turn = self.shared.reads.acquire().await.map_err(|error| error.to_string())?;
        let (after, era) = {
            let state = self.state.borrow();
            (state.fed, state.era)
        };
        let page = self.read(after).await?;
        if self.state.borrow().era != era {
            return Ok(());
        }
        if page.is_empty() {
            let mut state = self.state.borrow_mut();
            let until = state.behind.take();
            tracing::error!(session = %self.slug, after, until, "messages of the log are not to be had any more");
            state.healing = None;
            return Ok(());
        }
        for logged in page {
            let fed = if self.state.borrow().is_healed_by(&logged) { self.feed(&logged).await } else { Fed::Done };
            if self.state.borrow().era != era {
                return Ok(());
            }
            match fed {
                Fed::Done => self.state.borrow_mut().dealt_with(logged.position),
                Fed::Hole { epoch, expected } => {
                    self.heal(epoch, expected, logged.position);
                    return Ok(());
                }
                Fed::Later(why) => return Err(why),
            }
        }
        Ok(())
    }

    /// The answer may be one of a replica that is late.
    async fn read(&self, after: Position) -> Result<Vec<Logged>, String> {
        for _ in 0..MAX_EMPTY {
            let page = self.shared.params.server.read(&self.slug, after, PAGE).await;
            let page = page.map_err(|error| error.to_string())?;
            if !page.is_empty() {
                return Ok(page);
            }
            tokio::time::sleep(EMPTY_PAUSE).await;
        }
        Ok(Vec::new())
    }

    /// Hands one message to the room.
    async fn feed(&self, logged: &Logged) -> Fed {
        let message = &logged.message;
        if !self.state.borrow_mut().is_of_owner(logged) {
            self.count_stale(logged);
            return Fed::Done;
        }
        if message.kind == MessageKind::Owner {
            return Fed::Done;
        }
        let batch = match LogBatch::parse(&self.slug, &message.body) {
            Ok(batch) => batch,
            Err(error) => {
                tracing::error!(session = %self.slug, position = logged.position, %error, "a message of the log is unreadable");
                return Fed::Done;
            }
        };
        let Some((first, last)) = batch.numbers() else { return Fed::Done };
        let healing = self.state.borrow().healing;
        if healing.is_some_and(|healing| healing.passes_over(&batch, last, logged.position)) {
            return Fed::Done;
        }
        let fed = self.hand_over(&batch, None).await;
        match fed {
            // The log does not go further back.
            Fed::Hole { .. } if healing.is_some() => match self.hand_over(&batch, Some(first)).await {
                Fed::Hole { expected, .. } => {
                    tracing::error!(session = %self.slug, epoch = %batch.epoch, seq = first, expected, "entries of the log do not follow, they are not shown");
                    Fed::Done
                }
                fed => fed,
            },
            fed => fed,
        }
    }

    fn count_stale(&self, logged: &Logged) {
        if logged.position > self.state.borrow().seen {
            self.shared.params.metrics.bus_stale_messages_total.inc();
            tracing::error!(session = %self.slug, position = logged.position, "a message of the log is not by the room's owner, it is not shown");
        }
    }

    async fn hand_over(&self, batch: &LogBatch, begins: Option<u64>) -> Fed {
        let clock_offset_ms = self.state.borrow_mut().clock_offset(batch);
        let entries = batch.transcripts.iter().map(|entry| BroadcastEntry { numbered: true, entry: entry.clone() });
        let broadcast = Broadcast {
            slug: self.slug.clone(),
            entries: entries.collect(),
            from_origin: FromOrigin { record: None, begins, clock_offset_ms },
        };
        let Ok(answer) = self.shared.params.registry.send(broadcast).await else {
            return Fed::Later(BroadcastRefusal::Unavailable.to_string());
        };
        match answer {
            Ok(_) => Fed::Done,
            Err(BroadcastRefusal::Hole { expected }) => Fed::Hole { epoch: batch.epoch, expected },
            // It is this node's own.
            Err(BroadcastRefusal::HasOrigin { .. }) => Fed::Done,
            Err(refusal @ (BroadcastRefusal::Ended { .. } | BroadcastRefusal::OtherSlug)) => {
                tracing::error!(session = %self.slug, epoch = %batch.epoch, error = %refusal, "entries of the log are not taken, they are not shown");
                Fed::Done
            }
            Err(refusal) => Fed::Later(refusal.to_string()),
        }
    }

    /// Begins the mirror of a room whose last message has come long ago.
    async fn begin_for_viewers(&self) -> Result<(), String> {
        let mut last = self.shared.params.server.head(&self.slug).await.map_err(|error| error.to_string())?;
        if last.as_ref().is_some_and(|logged| logged.message.kind == MessageKind::Owner) {
            last = self.last_entries().await?;
        }
        let last = last.filter(|logged| self.state.borrow().may_be_by_owner(logged));
        if let Some(logged) = last {
            match self.feed(&logged).await {
                Fed::Done => {}
                Fed::Hole { epoch, expected } => self.heal(epoch, expected, logged.position),
                Fed::Later(why) => return Err(why),
            }
        }
        self.is_wanted.set(false);
        Ok(())
    }

    /// The last message with entries.
    async fn last_entries(&self) -> Result<Option<Logged>, String> {
        let (mut last, mut after) = (None, 0);
        loop {
            let _turn = self.shared.reads.acquire().await.map_err(|error| error.to_string())?;
            let page = self.shared.params.server.read(&self.slug, after, PAGE).await;
            let page = page.map_err(|error| error.to_string())?;
            let Some(end) = page.last() else { return Ok(last) };
            after = end.position;
            let has_entries = |logged: &Logged| logged.message.kind == MessageKind::Entries;
            last = page.into_iter().rev().find(has_entries).or(last);
        }
    }
}
