//! The segment files `outbox/{first index}.seg`, what is in them, and what recovery finds at start.

use std::collections::{HashMap, VecDeque};
use std::fs::{File, OpenOptions};
use std::io;
use std::path::{Path, PathBuf};

use super::record;
use super::scan::{Scan, Scanner};
use crate::transcript::Epoch;

const EXTENSION: &str = "seg";
/// Extension of a file without any readable record.
const BAD_EXTENSION: &str = "bad";

/// One segment file. Its name is the index of its first record.
#[derive(Debug, Default, Clone)]
pub struct Segment {
    pub first: u64,
    /// 0 while it is empty.
    pub last: u64,
    pub bytes: u64,
    /// Lowest and highest sequence number of each epoch in it.
    pub epochs: HashMap<Epoch, (u64, u64)>,
}

impl Segment {
    pub fn new(first: u64) -> Self {
        Self { first, ..Self::default() }
    }

    pub fn note(&mut self, index: u64, prefix: Option<record::Prefix>) {
        self.last = index;
        if let Some(record::Prefix { epoch, seq: Some(seq) }) = prefix {
            let (low, high) = self.epochs.entry(epoch).or_insert((seq, seq));
            *low = seq.min(*low);
            *high = seq.max(*high);
        }
    }
}

/// Bytes `from..to` of a segment could not be read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Damage {
    pub segment: PathBuf,
    pub from: u64,
    pub to: u64,
}

/// The content of the outbox when it was opened.
#[derive(Debug, Default, Clone)]
pub struct Recovery {
    /// Records that not every consumer has confirmed.
    pub unconfirmed: u64,
    /// Index of the last record ever written, as far as known.
    pub last_index: u64,
    /// Damage in the middle; the records in it are lost here (and reported).
    pub damage: Vec<Damage>,
    /// Bytes of an unfinished or damaged tail that were cut off.
    pub truncated_bytes: u64,
    /// Highest sequence number of each epoch that still has entries here.
    pub last_seq: HashMap<Epoch, u64>,
}

pub fn path_of(dir: &Path, first: u64) -> PathBuf {
    dir.join(format!("{first:020}.{EXTENSION}"))
}

/// Scans every segment, cuts off the tail of the last and removes empty ones. `confirmed` is what all consumers have.
pub fn recover(dir: &Path, confirmed: u64) -> io::Result<(VecDeque<Segment>, Recovery)> {
    let mut recovery = Recovery { last_index: confirmed, ..Recovery::default() };
    let mut segments = VecDeque::new();
    let firsts = list(dir)?;
    for (n, &first) in firsts.iter().enumerate() {
        let is_last = n + 1 == firsts.len();
        let segment = recover_one(dir, first, is_last, confirmed, &mut recovery)?;
        let path = path_of(dir, first);
        match (segment.last, segment.bytes) {
            (0, 0) => std::fs::remove_file(path)?,
            // Nothing in it can be read by us; perhaps by a person.
            (0, _) => std::fs::rename(&path, path.with_extension(BAD_EXTENSION))?,
            _ => segments.push_back(segment),
        }
    }
    Ok((segments, recovery))
}

fn recover_one(dir: &Path, first: u64, is_last: bool, confirmed: u64, report: &mut Recovery) -> io::Result<Segment> {
    let path = path_of(dir, first);
    let mut segment = Segment::new(first);
    let mut scanner = Scanner::new(File::open(&path)?, first.saturating_sub(1));
    loop {
        match scanner.next()? {
            Scan::Frame { index, payload } => {
                let prefix = record::peek(&payload).ok();
                segment.note(index, prefix);
                report.unconfirmed += u64::from(index > confirmed);
                report.last_index = report.last_index.max(index);
                if let Some(record::Prefix { epoch, seq: Some(seq) }) = prefix {
                    let highest = report.last_seq.entry(epoch).or_insert(seq);
                    *highest = seq.max(*highest);
                }
            }
            Scan::Skipped { from, to } => report.damage.push(Damage { segment: path.clone(), from, to }),
            Scan::End { valid_end, file_bytes } => {
                segment.bytes = file_bytes;
                if is_last && file_bytes > valid_end {
                    OpenOptions::new().write(true).open(&path)?.set_len(valid_end)?;
                    report.truncated_bytes = file_bytes - valid_end;
                    segment.bytes = valid_end;
                } else if file_bytes > valid_end {
                    report.damage.push(Damage { segment: path.clone(), from: valid_end, to: file_bytes });
                }
                return Ok(segment);
            }
        }
    }
}

/// First indices of the segment files, ascending. Other files are left alone.
fn list(dir: &Path) -> io::Result<Vec<u64>> {
    let mut firsts = Vec::new();
    for file in std::fs::read_dir(dir)? {
        let path = file?.path();
        let stem = path.file_stem().and_then(|s| s.to_str()).and_then(|s| s.parse().ok());
        if let (Some(first), true) = (stem, path.extension().is_some_and(|e| e == EXTENSION)) {
            firsts.push(first);
        }
    }
    firsts.sort_unstable();
    Ok(firsts)
}
