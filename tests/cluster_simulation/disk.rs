//! What a node's death leaves: its outbox and its checkpoints.

use std::collections::BTreeMap;

use stenocast::transcript::{Entry, Epoch, SessionRecord, Slug};

#[derive(Clone)]
pub struct Row {
    pub room: Slug,
    pub epoch: Epoch,
    pub seq: u64,
    pub entry: Entry,
    pub is_stored: bool,
}

pub struct Disk {
    pub home: String,
    pub rows: Vec<Row>,
    /// Rows before it are gone: the database has them.
    pub left: usize,
    /// Sessions that were not over.
    pub checkpoints: BTreeMap<Slug, Epoch>,
    /// Rows of sessions that are to be stored, each with its room.
    pub records: BTreeMap<Epoch, (Slug, SessionRecord)>,
}

impl Disk {
    pub fn new(home: String) -> Self {
        Self { home, rows: Vec::new(), left: 0, checkpoints: BTreeMap::new(), records: BTreeMap::new() }
    }

    /// Rows that may still be read.
    pub fn kept(&self) -> &[Row] {
        &self.rows[self.left..]
    }

    /// The next rows of an epoch after a number, without a hole.
    pub fn next_rows(&self, epoch: Epoch, after: u64, limit: usize) -> Vec<Row> {
        let mut found: Vec<_> = self.kept().iter().filter(|row| row.epoch == epoch && row.seq > after).collect();
        found.sort_by_key(|row| row.seq);
        let first = found.first().map_or(0, |row| row.seq);
        let in_line = found.into_iter().enumerate().take_while(|(n, row)| row.seq == first + *n as u64);
        in_line.take(limit).map(|(_, row)| row.clone()).collect()
    }

    pub fn first_waiting(&self, epoch: Epoch) -> Option<u64> {
        let waiting = self.kept().iter().filter(|row| row.epoch == epoch && !row.is_stored);
        waiting.map(|row| row.seq).min()
    }

    pub fn forget_stored(&mut self) {
        let left = self.left;
        self.rows[left..].iter_mut().for_each(|row| row.is_stored = false);
    }

    pub fn stored(&mut self, epoch: Epoch, up_to: u64) {
        let rows = self.rows.iter_mut().filter(|row| row.epoch == epoch && row.seq <= up_to);
        rows.for_each(|row| row.is_stored = true);
    }

    /// Index up to which everything is stored.
    pub fn stored_prefix(&self) -> usize {
        self.rows.iter().position(|row| !row.is_stored).unwrap_or(self.rows.len())
    }

    pub fn last_seq(&self, epoch: Epoch) -> u64 {
        self.kept().iter().filter(|row| row.epoch == epoch).map(|row| row.seq).max().unwrap_or(0)
    }
}
