//! Keeps what a restarted process needs to go on with a live session.
//!
//! One small file per session, `DATA_DIR/sessions/{epoch}.json`, is replaced atomically by a thread of its own so that
//! no arbiter waits for the disk.
//!
//! A checkpoint is written about once a second and only the newest matters: of several that wait for the disk, the
//! last wins. It is not synced; after a power loss a damaged one is set aside and reported, and the session's entries
//! are still in the outbox.

use std::collections::HashMap;
use std::fs::OpenOptions;
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread::JoinHandle;

use chrono::{DateTime, Utc};
use parking_lot::{Condvar, Mutex};
use serde::{Deserialize, Serialize};

use super::entry::Epoch;
use super::origin::Origin;
use super::slug::Slug;

const EXTENSION: &str = "json";
const TEMPORARY: &str = "tmp";
/// Extension of a file that could not be read.
const BAD_EXTENSION: &str = "bad";

/// A session as the next process needs it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Checkpoint {
    pub slug: Slug,
    #[serde(default)]
    pub origin: Origin,
    pub epoch: Epoch,
    pub started_at: DateTime<Utc>,
    /// Number of the next durable entry.
    pub next_seq: u64,
    /// Session clock in milliseconds up to which there was audio: what follows is a gap.
    pub clock_ms: u64,
    /// Somebody was publishing: what came after `clock_ms` is missing even if nobody comes back.
    #[serde(default = "yes")]
    pub is_publishing: bool,
    /// The newest AAC sequence header as an FLV tag's body, in hex: for a publisher that comes back and does not say it
    /// again.
    #[serde(default)]
    pub audio_config: Option<String>,
    /// The image of the bridge's ledger; opaque here.
    #[serde(default)]
    pub recogniser: serde_json::Value,
}

#[derive(Debug, thiserror::Error)]
pub enum CheckpointError {
    #[error("cannot use the directory {}: {source}", path.display())]
    Directory { path: PathBuf, source: io::Error },
    #[error("cannot start the checkpoint thread: {0}")]
    Thread(io::Error),
}

/// Cheap to clone. The last clone that goes writes out what waits.
#[derive(Clone)]
pub struct Checkpoints {
    inner: Arc<Inner>,
}

struct Inner {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

struct Shared {
    dir: PathBuf,
    queue: Mutex<Queue>,
    changed: Condvar,
}

#[derive(Default)]
struct Queue {
    /// None: the file is to be removed.
    waiting: HashMap<Epoch, Option<Checkpoint>>,
    writing: bool,
    closed: bool,
}

impl Checkpoints {
    /// Opens `data_dir/sessions` and lists the sessions that an earlier process left, oldest first.
    pub fn open(data_dir: &Path) -> Result<(Self, Vec<Checkpoint>), CheckpointError> {
        let dir = data_dir.join("sessions");
        let found = std::fs::create_dir_all(&dir)
            .and_then(|()| list(&dir))
            .map_err(|source| CheckpointError::Directory { path: dir.clone(), source })?;
        let shared = Arc::new(Shared { dir, queue: Mutex::default(), changed: Condvar::new() });
        let worker = shared.clone();
        let thread = std::thread::Builder::new()
            .name("checkpoints".to_owned())
            .spawn(move || worker.run())
            .map_err(CheckpointError::Thread)?;
        Ok((Self { inner: Arc::new(Inner { shared, thread: Some(thread) }) }, found))
    }

    /// Queues it; never waits for the disk.
    pub fn save(&self, checkpoint: Checkpoint) {
        self.inner.shared.queue(checkpoint.epoch, Some(checkpoint));
    }

    /// The session has ended.
    pub fn remove(&self, epoch: Epoch) {
        self.inner.shared.queue(epoch, None);
    }

    /// Blocks until everything queued before is on its way to the disk (in the page cache: it survives `kill -9`).
    pub fn flush(&self) {
        let shared = &self.inner.shared;
        let mut queue = shared.queue.lock();
        while !queue.waiting.is_empty() || queue.writing {
            shared.changed.wait(&mut queue);
        }
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        self.shared.queue.lock().closed = true;
        self.shared.changed.notify_all();
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

impl Shared {
    fn queue(&self, epoch: Epoch, checkpoint: Option<Checkpoint>) {
        self.queue.lock().waiting.insert(epoch, checkpoint);
        self.changed.notify_all();
    }

    fn run(&self) {
        let mut failing = false;
        while let Some(work) = self.next() {
            for (epoch, checkpoint) in work {
                let result = match &checkpoint {
                    Some(checkpoint) => write(&self.dir, checkpoint),
                    None => remove(&self.dir, epoch),
                };
                if let (Err(error), false) = (&result, failing) {
                    tracing::error!(%error, dir = %self.dir.display(), "checkpoint could not be written; a restart would not adopt its session");
                }
                failing = result.is_err();
            }
            self.queue.lock().writing = false;
            self.changed.notify_all();
        }
    }

    /// Everything that waits; None once closed and empty.
    fn next(&self) -> Option<HashMap<Epoch, Option<Checkpoint>>> {
        let mut queue = self.queue.lock();
        while queue.waiting.is_empty() {
            if queue.closed {
                return None;
            }
            self.changed.wait(&mut queue);
        }
        queue.writing = true;
        Some(std::mem::take(&mut queue.waiting))
    }
}

/// Of an earlier version, which did not say. One gap too many is better than a hole.
fn yes() -> bool {
    true
}

fn write(dir: &Path, checkpoint: &Checkpoint) -> io::Result<()> {
    let path = dir.join(format!("{}.{EXTENSION}", checkpoint.epoch));
    let temporary = path.with_extension(TEMPORARY);
    // The recogniser's URL in it holds a token.
    let mut file = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&temporary)?;
    file.write_all(&serde_json::to_vec(checkpoint)?)?;
    drop(file);
    std::fs::rename(&temporary, &path)
}

fn remove(dir: &Path, epoch: Epoch) -> io::Result<()> {
    match std::fs::remove_file(dir.join(format!("{epoch}.{EXTENSION}"))) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        result => result,
    }
}

fn list(dir: &Path) -> io::Result<Vec<Checkpoint>> {
    let mut found = Vec::new();
    for file in std::fs::read_dir(dir)? {
        let path = file?.path();
        if path.extension().is_some_and(|e| e == TEMPORARY) {
            // Of a process that was killed while it wrote.
            std::fs::remove_file(&path)?;
            continue;
        }
        if path.extension().is_none_or(|e| e != EXTENSION) {
            continue;
        }
        match std::fs::read(&path).map_err(|e| e.to_string()).and_then(|bytes| parse(&bytes)) {
            Ok(checkpoint) => found.push(checkpoint),
            Err(error) => {
                tracing::error!(path = %path.display(), error, "checkpoint is not readable; it is set aside");
                std::fs::rename(&path, path.with_extension(BAD_EXTENSION))?;
            }
        }
    }
    found.sort_by_key(|c: &Checkpoint| c.epoch);
    Ok(found)
}

fn parse(bytes: &[u8]) -> Result<Checkpoint, String> {
    serde_json::from_slice(bytes).map_err(|e| e.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn checkpoint(n: u128, next_seq: u64) -> Checkpoint {
        Checkpoint {
            slug: Slug::parse("demo").unwrap(),
            origin: Origin::Relay,
            epoch: Epoch::from_u128(n),
            started_at: DateTime::UNIX_EPOCH,
            next_seq,
            clock_ms: 1234,
            is_publishing: false,
            audio_config: None,
            recogniser: serde_json::json!({"url": "ws://x", "acknowledged": 99}),
        }
    }

    #[test]
    fn the_newest_of_each_session_is_found_again_and_ended_ones_are_not() {
        let dir = tempfile::tempdir().unwrap();
        let (checkpoints, found) = Checkpoints::open(dir.path()).unwrap();
        assert_eq!(found, []);
        for next_seq in 1..=50 {
            checkpoints.save(checkpoint(2, next_seq));
            checkpoints.save(checkpoint(1, next_seq));
            checkpoints.save(checkpoint(3, next_seq));
        }
        checkpoints.remove(Epoch::from_u128(3));
        checkpoints.remove(Epoch::from_u128(4));
        drop(checkpoints);
        let (_, found) = Checkpoints::open(dir.path()).unwrap();
        assert_eq!(found, [checkpoint(1, 50), checkpoint(2, 50)]);
    }

    #[test]
    fn flush_waits_until_the_files_are_there() {
        let dir = tempfile::tempdir().unwrap();
        let (checkpoints, _) = Checkpoints::open(dir.path()).unwrap();
        for n in 0..20 {
            checkpoints.save(checkpoint(n, 1));
        }
        checkpoints.flush();
        assert_eq!(list(&dir.path().join("sessions")).unwrap().len(), 20);
    }

    #[test]
    fn a_damaged_file_is_set_aside_and_costs_the_others_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let (checkpoints, _) = Checkpoints::open(dir.path()).unwrap();
        checkpoints.save(checkpoint(1, 7));
        drop(checkpoints);
        let sessions = dir.path().join("sessions");
        std::fs::write(sessions.join("x.json"), "{\"slug\":").unwrap();
        std::fs::write(sessions.join("unfinished.tmp"), "{").unwrap();
        let (_, found) = Checkpoints::open(dir.path()).unwrap();
        assert_eq!(found, [checkpoint(1, 7)]);
        assert!(sessions.join("x.bad").exists() && !sessions.join("unfinished.tmp").exists());
    }

    #[test]
    fn an_unusable_directory_is_named() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let error = Checkpoints::open(file.path()).err().unwrap().to_string();
        assert!(error.contains(file.path().to_str().unwrap()), "{error}");
    }
}
