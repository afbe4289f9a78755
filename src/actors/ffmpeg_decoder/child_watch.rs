//! Tells a decoder that works from one that is frozen, by what it brings and by what it complains of.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use crate::audio::decoder::Complaints;
use crate::audio::state::RunStart;

/// No PCM for so long, with work to do: frozen.
const FROZEN_MS: u64 = 2000;
/// The same before a child's first PCM: a loaded machine starts programs slowly.
const FROZEN_AT_START_MS: u64 = 5000;
pub(super) const WATCHDOG: Duration = Duration::from_millis(250);
/// A decoder that only complains for so long has answered for what it was given before.
const ANSWERED: Duration = Duration::from_secs(1);

/// The signs of life of the running child.
pub(super) struct ChildWatch {
    pub complaints: Arc<Complaints>,
    /// Lines of it that were seen.
    lines: Cell<u64>,
    /// It has, since it last brought sound.
    is_complaining: Cell<bool>,
    progress: Cell<Instant>,
    last_pcm: Cell<Instant>,
    has_brought: Cell<bool>,
    pub closed: Cell<bool>,
    /// The next tag to be fed.
    pub fed: Cell<u64>,
    /// The same at each look since it only complains.
    history: RefCell<VecDeque<u64>>,
}

impl ChildWatch {
    pub fn new(beginning: &RunStart, complaints: Arc<Complaints>) -> Self {
        Self {
            complaints,
            lines: Cell::new(0),
            is_complaining: Cell::new(false),
            progress: Cell::new(Instant::now()),
            last_pcm: Cell::new(Instant::now()),
            has_brought: Cell::new(false),
            closed: Cell::new(false),
            fed: Cell::new(beginning.first_seq),
            history: RefCell::default(),
        }
    }

    /// Looks whether the decoder has only complained since it last brought sound, and then gives what it has answered
    /// for. Whoever complains lives.
    pub fn only_complains(&self) -> Option<u64> {
        let lines = self.complaints.lines();
        let has_complained = self.lines.replace(lines) != lines;
        if has_complained {
            self.is_complaining.set(true);
            self.stamp();
        }
        let mut history = self.history.borrow_mut();
        if !self.is_complaining.get() || self.last_pcm.get().elapsed() < WATCHDOG {
            history.clear();
            return None;
        }
        if !has_complained {
            return Some(0);
        }
        history.push_back(self.fed.get());
        // Tags that were fed before so many looks have their answer.
        let looks = (ANSWERED.as_millis() / WATCHDOG.as_millis()) as usize;
        Some(if history.len() > looks { history.pop_front().unwrap_or(0) } else { 0 })
    }

    pub fn stamp(&self) {
        self.progress.set(Instant::now());
    }

    pub fn pcm(&self) {
        self.has_brought.set(true);
        self.is_complaining.set(false);
        self.last_pcm.set(Instant::now());
        self.stamp();
    }

    pub fn idle_ms(&self) -> u64 {
        self.progress.get().elapsed().as_millis() as u64
    }

    pub fn patience_ms(&self) -> u64 {
        if self.has_brought.get() { FROZEN_MS } else { FROZEN_AT_START_MS }
    }
}
