//! Where replay audio goes that is too old for memory: files under `DATA_DIR/spool`, or memory in tests.
//!
//! Calls are short, sequential writes and reads of at most half a MiB through the page cache; they run where the
//! ledger runs, and only while the recogniser is more than half a minute behind.

use std::collections::VecDeque;
use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::{DirBuilderExt, FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

/// Bytes after which the next file begins, so that old audio can be deleted piecewise.
const FILE_BYTES: u64 = 2 << 20;

/// Bytes at session offsets, appended at the end, forgotten from the front.
pub trait Spool: Send {
    /// `at` is where the last append ended, or any offset when the spool is empty.
    fn append(&mut self, at: u64, bytes: &[u8]) -> io::Result<()>;
    /// Between 1 and `most` bytes from `at`.
    fn read(&self, at: u64, most: usize) -> io::Result<Vec<u8>>;
    fn forget_before(&mut self, at: u64);
}

/// Bytes that the replay windows of all sessions may hold together.
#[derive(Debug)]
pub struct ReplayBudget {
    limit: u64,
    used: AtomicU64,
}

impl ReplayBudget {
    pub fn new(limit_bytes: u64) -> Self {
        Self { limit: limit_bytes, used: AtomicU64::new(0) }
    }

    /// True when the bytes fit and are now taken.
    pub fn take(&self, bytes: u64) -> bool {
        let fits = |used: u64| (used + bytes <= self.limit).then_some(used + bytes);
        self.used.fetch_update(Ordering::Relaxed, Ordering::Relaxed, fits).is_ok()
    }

    pub fn give_back(&self, bytes: u64) {
        self.used.fetch_sub(bytes, Ordering::Relaxed);
    }

    pub fn used_bytes(&self) -> u64 {
        self.used.load(Ordering::Relaxed)
    }
}

/// For tests.
#[derive(Debug, Default)]
pub struct MemorySpool {
    start: u64,
    bytes: VecDeque<u8>,
}

impl Spool for MemorySpool {
    fn append(&mut self, at: u64, bytes: &[u8]) -> io::Result<()> {
        if self.bytes.is_empty() {
            self.start = at;
        }
        self.bytes.extend(bytes);
        Ok(())
    }

    fn read(&self, at: u64, most: usize) -> io::Result<Vec<u8>> {
        let skip = at.checked_sub(self.start).filter(|s| *s < self.bytes.len() as u64);
        let skip = skip.ok_or_else(|| io::Error::other("offset is not in the spool"))?;
        Ok(self.bytes.iter().skip(skip as usize).take(most).copied().collect())
    }

    fn forget_before(&mut self, at: u64) {
        let n = at.saturating_sub(self.start).min(self.bytes.len() as u64);
        self.bytes.drain(..n as usize);
        self.start += n;
    }
}

/// Numbered files in a directory of its own, made at the first append and removed with the value. Readable by the
/// owner alone: it is what people said.
#[derive(Debug)]
pub struct FileSpool {
    directory: PathBuf,
    files: VecDeque<Piece>,
    next_file: u64,
}

#[derive(Debug)]
struct Piece {
    start: u64,
    len: u64,
    file: File,
    path: PathBuf,
}

impl FileSpool {
    pub fn new(directory: PathBuf) -> Self {
        Self { directory, files: VecDeque::new(), next_file: 0 }
    }

    /// Removes what killed processes left behind. Call at start, before any session.
    pub fn remove_left_overs(data_dir: &Path) -> io::Result<()> {
        match std::fs::remove_dir_all(data_dir.join("spool")) {
            Err(fault) if fault.kind() != io::ErrorKind::NotFound => Err(fault),
            _ => Ok(()),
        }
    }

    fn begin_file(&mut self, start: u64) -> io::Result<()> {
        std::fs::DirBuilder::new().recursive(true).mode(0o700).create(&self.directory)?;
        let path = self.directory.join(format!("{}.pcm", self.next_file));
        let file = OpenOptions::new().read(true).write(true).create(true).truncate(true).mode(0o600).open(&path)?;
        self.next_file += 1;
        self.files.push_back(Piece { start, len: 0, file, path });
        Ok(())
    }
}

impl Spool for FileSpool {
    fn append(&mut self, at: u64, bytes: &[u8]) -> io::Result<()> {
        if self.files.back().is_none_or(|p| p.len >= FILE_BYTES || p.start + p.len != at) {
            self.begin_file(at)?;
        }
        let piece = self.files.back_mut().expect("a file was begun");
        piece.file.write_all_at(bytes, piece.len)?;
        piece.len += bytes.len() as u64;
        Ok(())
    }

    fn read(&self, at: u64, most: usize) -> io::Result<Vec<u8>> {
        let piece = self.files.iter().find(|p| (p.start..p.start + p.len).contains(&at));
        let piece = piece.ok_or_else(|| io::Error::other("offset is not in the spool"))?;
        let len = (piece.start + piece.len - at).min(most as u64);
        let mut bytes = vec![0; len as usize];
        piece.file.read_exact_at(&mut bytes, at - piece.start)?;
        Ok(bytes)
    }

    fn forget_before(&mut self, at: u64) {
        while self.files.front().is_some_and(|p| p.start + p.len <= at) {
            if let Some(piece) = self.files.pop_front() {
                // A file that cannot be deleted is removed at the next start.
                let _ = std::fs::remove_file(&piece.path);
            }
        }
    }
}

impl Drop for FileSpool {
    fn drop(&mut self) {
        self.forget_before(u64::MAX);
        if self.next_file > 0 {
            let _ = std::fs::remove_dir(&self.directory);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_hold_what_memory_holds_and_vanish() {
        let dir = tempfile::tempdir().unwrap();
        let home = dir.path().join("spool").join("a");
        let (mut files, mut memory) = (FileSpool::new(home.clone()), MemorySpool::default());
        let mut at = 1000;
        for n in 0..1500u32 {
            let bytes = vec![n as u8; 3200];
            files.append(at, &bytes).unwrap();
            memory.append(at, &bytes).unwrap();
            at += 3200;
        }
        for probe in [1000, 1001, 1000 + FILE_BYTES, at - 1] {
            let read = files.read(probe, 5000).unwrap();
            assert_eq!(read, memory.read(probe, read.len()).unwrap());
        }
        assert!(files.read(at, 1).is_err() && files.read(0, 1).is_err());
        assert_eq!(std::fs::read_dir(&home).unwrap().count(), 3);
        files.forget_before(1000 + 2 * FILE_BYTES);
        assert_eq!(std::fs::read_dir(&home).unwrap().count(), 2);
        drop(files);
        assert!(!home.exists());
        FileSpool::remove_left_overs(dir.path()).unwrap();
        FileSpool::remove_left_overs(dir.path()).unwrap();
    }

    #[test]
    fn the_budget_is_shared() {
        let budget = ReplayBudget::new(10);
        assert!(budget.take(6) && !budget.take(5) && budget.take(4));
        budget.give_back(6);
        assert_eq!(budget.used_bytes(), 4);
    }
}
