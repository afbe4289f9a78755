//! The replay window: a session's audio from its oldest byte that may still be needed to its newest.

use std::collections::VecDeque;
use std::io;
use std::sync::Arc;

use bytes::{Bytes, BytesMut};

use super::clock::BYTES_PER_MS;
use super::spool::{ReplayBudget, Spool};

/// Newest audio kept in memory: the 30 s that a healthy session may need, and what is in flight.
const MEMORY_BYTES: u64 = 32_000 * BYTES_PER_MS;

/// The audio that may be sent again, in memory and on disk. Offsets are session byte offsets.
pub struct Window {
    start: u64,
    end: u64,
    /// Bytes from here on are in memory, earlier ones in the spool.
    memory_start: u64,
    memory: VecDeque<(u64, Bytes)>,
    spool: Box<dyn Spool>,
    spool_fails: bool,
    limit: u64,
    budget: Arc<ReplayBudget>,
}

impl Window {
    /// An empty window at offset `at` that holds at most `limit_bytes`.
    pub fn new(at: u64, limit_bytes: u64, spool: Box<dyn Spool>, budget: Arc<ReplayBudget>) -> Self {
        let memory = VecDeque::new();
        Self { start: at, end: at, memory_start: at, memory, spool, spool_fails: false, limit: limit_bytes, budget }
    }

    /// Oldest byte that is there.
    pub fn start(&self) -> u64 {
        self.start
    }

    /// Past the newest byte.
    pub fn end(&self) -> u64 {
        self.end
    }

    /// Appends audio. Where it does not fit, the oldest is dropped: compare [`Self::start`] before and after.
    pub fn push(&mut self, pcm: Bytes) {
        let len = pcm.len() as u64;
        while !self.budget.take(len) {
            if self.start == self.end {
                self.skip(len);
                return;
            }
            self.drop_before((self.start + len).min(self.end));
        }
        if !pcm.is_empty() {
            self.memory.push_back((self.end, pcm));
            self.end += len;
        }
        if self.end - self.start > self.limit {
            self.drop_before(self.end - self.limit);
        }
        self.move_to_spool();
    }

    /// Nothing fits at all: the new audio itself is dropped.
    fn skip(&mut self, len: u64) {
        self.end += len;
        self.start = self.end;
        self.memory_start = self.end;
    }

    fn move_to_spool(&mut self) {
        while self.end - self.memory_start > MEMORY_BYTES {
            let Some((at, pcm)) = self.memory.front() else {
                return;
            };
            if let Err(fault) = self.spool.append(*at, pcm) {
                if !self.spool_fails {
                    tracing::warn!(error = %fault, "replay audio stays in memory: the spool cannot be written");
                }
                self.spool_fails = true;
                return;
            }
            self.spool_fails = false;
            self.memory_start = at + pcm.len() as u64;
            self.memory.pop_front();
        }
    }

    /// Between 1 and `most` bytes from `at`, which must be in the window.
    pub fn read(&self, at: u64, most: usize) -> io::Result<Bytes> {
        debug_assert!((self.start..self.end).contains(&at));
        if at < self.memory_start {
            let len = (self.memory_start - at).min(most as u64);
            return self.spool.read(at, len as usize).map(Bytes::from);
        }
        let first = self.memory.partition_point(|(start, pcm)| start + pcm.len() as u64 <= at);
        let (start, pcm) = &self.memory[first];
        let head = pcm.slice((at - start) as usize..);
        if head.len() >= most || first + 1 == self.memory.len() {
            return Ok(head.slice(..head.len().min(most)));
        }
        let mut joined = BytesMut::from(&head[..]);
        for (_, pcm) in self.memory.iter().skip(first + 1) {
            let room = most - joined.len();
            joined.extend_from_slice(&pcm[..pcm.len().min(room)]);
            if joined.len() == most {
                break;
            }
        }
        Ok(joined.freeze())
    }

    /// An empty window begins anew at `at`.
    pub fn begin_at(&mut self, at: u64) {
        self.drop_before(self.end);
        (self.start, self.end, self.memory_start) = (at, at, at);
    }

    /// Gives up what is in the spool, because it cannot be read.
    pub fn drop_spooled(&mut self) {
        self.drop_before(self.memory_start);
    }

    /// Forgets everything before `at`.
    pub fn drop_before(&mut self, at: u64) {
        let at = at.min(self.end);
        if at <= self.start {
            return;
        }
        self.budget.give_back(at - self.start);
        self.start = at;
        self.spool.forget_before(at);
        while self.memory.front().is_some_and(|(start, pcm)| start + pcm.len() as u64 <= at) {
            self.memory.pop_front();
        }
        self.memory_start = self.memory_start.max(at);
        if let Some((start, pcm)) = self.memory.front_mut()
            && *start < at
        {
            *pcm = pcm.slice((at - *start) as usize..);
            *start = at;
        }
    }
}

impl Drop for Window {
    fn drop(&mut self) {
        self.budget.give_back(self.end - self.start);
    }
}

#[cfg(test)]
mod tests {
    use super::super::spool::{FileSpool, MemorySpool};
    use super::*;
    use proptest::prelude::*;

    fn read_all(window: &Window, from: u64, piece: usize) -> Vec<u8> {
        let mut bytes = Vec::new();
        while from + (bytes.len() as u64) < window.end() {
            bytes.extend_from_slice(&window.read(from + bytes.len() as u64, piece).unwrap());
        }
        bytes
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(24))]
        #[test]
        fn what_is_in_the_window_reads_as_it_was_pushed(
            pushes in prop::collection::vec((0usize..200_000, 0u64..150_000), 1..40), piece in 1usize..300_000,
        ) {
            let dir = tempfile::tempdir().unwrap();
            let budget = Arc::new(ReplayBudget::new(u64::MAX));
            let spool = Box::new(FileSpool::new(dir.path().join("s")));
            let mut window = Window::new(0, 2_500_000, spool, budget.clone());
            let mut model: Vec<u8> = Vec::new();
            for (n, (len, forget)) in pushes.into_iter().enumerate() {
                let pcm: Vec<u8> = (0..len).map(|i| (i * 7 + n) as u8).collect();
                model.extend_from_slice(&pcm);
                window.push(pcm.into());
                window.drop_before(window.start() + forget);
                prop_assert_eq!(window.end() as usize, model.len());
                prop_assert_eq!(budget.used_bytes(), window.end() - window.start());
                prop_assert!(window.end() - window.start() <= 2_500_000);
            }
            let from = window.start();
            prop_assert!(read_all(&window, from, piece) == model[from as usize..]);
        }
    }

    #[test]
    fn a_full_budget_drops_the_oldest_and_then_the_new() {
        let budget = Arc::new(ReplayBudget::new(100));
        let mut window = Window::new(0, 1000, Box::<MemorySpool>::default(), budget.clone());
        window.push(vec![1; 60].into());
        window.push(vec![2; 60].into());
        assert_eq!((window.start(), window.end()), (60, 120));
        assert!(budget.take(40));
        window.push(vec![3; 80].into());
        assert_eq!((window.start(), window.end(), budget.used_bytes()), (200, 200, 40));
        window.push(vec![4; 50].into());
        assert_eq!(read_all(&window, 200, 7), vec![4; 50]);
        drop(window);
        assert_eq!(budget.used_bytes(), 40);
    }
}
