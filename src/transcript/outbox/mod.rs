//! The outbox: entries and session rows on local disk, from before anybody sees them until every consumer has them.
//!
//! One thread appends CRC-framed records to segment files and answers after `write(2)`, which survives `kill -9`;
//! `fdatasync` follows by group commit, or comes first with `OUTBOX_FSYNC=always`. Consumers (the `BatchWriter`; in
//! split mode a forwarder for each target) read in order and confirm; a segment that all have confirmed is deleted.
//! Records carry an ever-growing index. After a crash some may be read again: consumers are idempotent.
//!
//! `frame` and `record` are the formats, `scan` reads a file over damage, `segments` is recovery, `writer` the
//! thread, `reader` what consumers and resuming viewers read with.

mod cursors;
mod frame;
mod reader;
mod record;
mod scan;
mod segments;
mod syncer;
mod writer;

use std::collections::VecDeque;
use std::fs::{File, TryLockError};
use std::future::Future;
use std::io::{self, Read, Seek, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc;
use std::thread::JoinHandle;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::{oneshot, watch};

pub use reader::{Consumer, Stored, Undecodable};
pub use record::{Record, RecordError};
pub use segments::{Damage, Recovery};

use crate::config::{Fsync, StoreConfig};
use crate::metrics::Metrics;
use crate::transcript::{Entry, Epoch};
use cursors::Cursor;
use segments::Segment;
use writer::{Append, Command};

/// Size at which a new segment is begun.
const SEGMENT_BYTES: u64 = 8 << 20;
/// Smallest segment, when `OUTBOX_MAX_BYTES` is small.
const SEGMENT_MIN_BYTES: u64 = 4 << 10;
/// Appends that wait for the thread; past it the disk is hanging and appends fail at once.
const MAX_QUEUED_BYTES: usize = 64 << 20;

/// The place and the limits of the outbox.
#[derive(Debug, Clone)]
pub struct OutboxOptions {
    /// `DATA_DIR`; the outbox is in `outbox/` below it.
    pub data_dir: PathBuf,
    pub fsync: Fsync,
    pub fsync_interval: Duration,
    /// All segments together; past it the outbox is full.
    pub max_bytes: u64,
    pub segment_bytes: u64,
    /// The consumers that have to confirm a record before it may go.
    pub consumers: Vec<String>,
}

impl OutboxOptions {
    pub fn new(data_dir: &Path, config: &StoreConfig, consumers: Vec<String>) -> Self {
        Self {
            data_dir: data_dir.to_owned(),
            fsync: config.fsync,
            fsync_interval: config.fsync_interval,
            max_bytes: config.outbox_max_bytes,
            segment_bytes: (config.outbox_max_bytes / 8).clamp(SEGMENT_MIN_BYTES, SEGMENT_BYTES),
            consumers,
        }
    }
}

/// Why the outbox did not take a record, or could not be opened.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum OutboxError {
    #[error("the outbox is full: {bytes} bytes of at most {max_bytes} (OUTBOX_MAX_BYTES) wait for their consumers")]
    Full { bytes: u64, max_bytes: u64 },
    #[error("{doing} {}: {error}", path.display())]
    Io { doing: &'static str, path: PathBuf, error: String },
    #[error("the record has {0} bytes; at most {max} are allowed", max = frame::MAX_PAYLOAD_BYTES)]
    TooLong(usize),
    #[error(transparent)]
    Record(#[from] RecordError),
    #[error("the disk does not keep up: {0} bytes wait to be written")]
    Overloaded(usize),
    #[error("the outbox is closed")]
    Closed,
    #[error("the data directory {} is in use by another process ({holder}); every process needs a DATA_DIR of its own", path.display())]
    Locked { path: PathBuf, holder: String },
    #[error("the outbox has no consumer {0:?}")]
    NoConsumer(String),
}

impl OutboxError {
    fn io(doing: &'static str, path: &Path, error: &io::Error) -> Self {
        Self::Io { doing, path: path.to_owned(), error: error.to_string() }
    }
}

/// Cheap to clone. The last clone (or [`Consumer`]) that goes writes everything out, syncs and unlocks.
#[derive(Clone)]
pub struct Outbox {
    inner: Arc<Inner>,
}

struct Inner {
    shared: Arc<Shared>,
    commands: mpsc::Sender<Command>,
    thread: Option<JoinHandle<()>>,
    metrics: Arc<Metrics>,
    /// Held as long as the process uses the directory.
    _lock: File,
}

/// State that the thread and the readers share.
struct Shared {
    dir: PathBuf,
    state: Mutex<State>,
    /// Index of the last record written.
    last: watch::Sender<u64>,
    queued_bytes: AtomicUsize,
}

struct State {
    segments: VecDeque<Segment>,
    cursors: Vec<Cursor>,
}

impl State {
    fn bytes(&self) -> u64 {
        self.segments.iter().map(|s| s.bytes).sum()
    }

    /// Rows up to here are every consumer's; without consumers nothing is kept.
    fn confirmed(&self) -> u64 {
        self.cursors.iter().map(|c| c.confirmed).min().unwrap_or(u64::MAX)
    }
}

/// The outbox in numbers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "camelCase")]
pub struct OutboxStats {
    pub last_index: u64,
    /// Rows up to here are every consumer's.
    pub confirmed_index: u64,
    pub bytes: u64,
    pub segments: usize,
}

impl Outbox {
    /// Locks `DATA_DIR`, reads what an earlier process left and starts the thread. Blocks for the time that takes
    /// (about 1 s per GiB of backlog); call it before serving.
    pub fn open(options: OutboxOptions, metrics: Arc<Metrics>) -> Result<(Self, Recovery), OutboxError> {
        let dir = options.data_dir.join("outbox");
        std::fs::create_dir_all(dir.join("cursors")).map_err(failed("cannot create", &dir))?;
        let lock = lock(&options.data_dir)?;
        cursors::remove_others(&dir, &options.consumers).map_err(failed("cannot read", &dir))?;
        let cursors = cursors::load(&dir, &options.consumers);
        let confirmed = cursors.iter().map(|c| c.confirmed).min().unwrap_or(0);
        let (segments, mut recovery) = segments::recover(&dir, confirmed).map_err(failed("cannot read", &dir))?;
        let furthest = cursors.iter().map(|c| c.confirmed).max().unwrap_or(0);
        recovery.last_index = recovery.last_index.max(furthest);
        report(&recovery, &dir, &metrics);
        let shared = Arc::new(Shared {
            dir,
            state: Mutex::new(State { segments, cursors }),
            last: watch::Sender::new(recovery.last_index),
            queued_bytes: AtomicUsize::new(0),
        });
        let (commands, inbox) = mpsc::channel();
        let thread = writer::spawn(shared.clone(), &options, metrics.clone(), inbox)
            .map_err(failed("cannot start the writer thread of", &shared.dir))?;
        let inner = Inner { shared, commands, thread: Some(thread), metrics, _lock: lock };
        Ok((Self { inner: Arc::new(inner) }, recovery))
    }

    /// Queues the record at once, so the order of calls is the order on disk; the future answers with its index when
    /// it is written. A dropped future changes nothing.
    pub fn append(&self, record: &Record) -> impl Future<Output = Result<u64, OutboxError>> + Send + use<> {
        self.append_all(std::slice::from_ref(record)).remove(0)
    }

    /// The same for records that belong together: all or none of them are in the file. One answer for each.
    pub fn append_all(&self, records: &[Record]) -> Vec<impl Future<Output = Result<u64, OutboxError>> + Send + use<>> {
        let queued: Vec<Result<_, OutboxError>> = match self.queue(records) {
            Ok(answers) => answers.into_iter().map(Ok).collect(),
            Err(error) => records.iter().map(|_| Err(error.clone())).collect(),
        };
        let answer =
            |queued: Result<oneshot::Receiver<_>, _>| async move { queued?.await.unwrap_or(Err(OutboxError::Closed)) };
        queued.into_iter().map(answer).collect()
    }

    fn queue(&self, records: &[Record]) -> Result<Vec<oneshot::Receiver<Result<u64, OutboxError>>>, OutboxError> {
        let payloads: Vec<_> = records.iter().map(Record::encode).collect::<Result<_, _>>()?;
        if let Some(long) = payloads.iter().find(|payload| payload.len() > frame::MAX_PAYLOAD_BYTES) {
            return Err(OutboxError::TooLong(long.len()));
        }
        let bytes = payloads.iter().map(Vec::len).sum();
        let queued = self.inner.shared.queued_bytes.fetch_add(bytes, Ordering::Relaxed);
        if queued > MAX_QUEUED_BYTES {
            self.inner.shared.queued_bytes.fetch_sub(bytes, Ordering::Relaxed);
            self.inner.metrics.outbox_errors_total.inc_by(records.len() as u64);
            return Err(OutboxError::Overloaded(queued));
        }
        let (appends, answers) = payloads.into_iter().map(Append::new).unzip::<_, _, Vec<_>, Vec<_>>();
        self.inner.send(Command::Append(appends))?;
        Ok(answers)
    }

    /// One of the consumers named at open.
    pub fn consumer(&self, name: &str) -> Result<Consumer, OutboxError> {
        let state = self.inner.shared.state.lock();
        match state.cursors.iter().position(|c| c.name == name) {
            Some(slot) => Ok(Consumer::new(self.inner.clone(), slot, state.cursors[slot].confirmed)),
            None => Err(OutboxError::NoConsumer(name.to_owned())),
        }
    }

    /// Entries of `epoch` with a number above `after` that are still here, ascending, at most `limit`: what the
    /// database may not have yet. Reads on a blocking thread; call it within a tokio runtime.
    pub async fn tail(&self, epoch: Epoch, after: u64, limit: usize) -> Result<Vec<Arc<Entry>>, OutboxError> {
        let inner = self.inner.clone();
        let read = move || reader::tail(&inner.shared, epoch, after, limit);
        tokio::task::spawn_blocking(read).await.unwrap_or(Err(OutboxError::Closed))
    }

    /// Changes with each append to the index of the last record.
    pub fn watch(&self) -> watch::Receiver<u64> {
        self.inner.shared.last.subscribe()
    }

    /// Everything appended before is on the disk itself when this answers.
    pub fn sync(&self) -> impl Future<Output = Result<(), OutboxError>> + Send + use<> {
        let (reply, answer) = oneshot::channel();
        let sent = self.inner.send(Command::Sync { reply });
        async move {
            sent?;
            answer.await.unwrap_or(Err(OutboxError::Closed))
        }
    }

    /// Index up to which the consumer that is furthest behind has confirmed, and the one that is furthest; None without
    /// consumers.
    pub fn confirmed_range(&self) -> Option<(u64, u64)> {
        let state = self.inner.shared.state.lock();
        let confirmed = || state.cursors.iter().map(|cursor| cursor.confirmed);
        Some((confirmed().min()?, confirmed().max()?))
    }

    pub fn stats(&self) -> OutboxStats {
        let state = self.inner.shared.state.lock();
        let last_index = *self.inner.shared.last.borrow();
        OutboxStats {
            last_index,
            confirmed_index: state.confirmed().min(last_index),
            bytes: state.bytes(),
            segments: state.segments.len(),
        }
    }
}

impl Inner {
    fn send(&self, command: Command) -> Result<(), OutboxError> {
        self.commands.send(command).map_err(|_| OutboxError::Closed)
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        let _ = self.send(Command::Close);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// Takes `DATA_DIR/lock`, which the kernel releases whatever way this process ends.
fn lock(data_dir: &Path) -> Result<File, OutboxError> {
    let path = data_dir.join("lock");
    let failed = |e: io::Error| OutboxError::io("cannot write", &path, &e);
    let mut file = File::options().read(true).write(true).create(true).truncate(false).open(&path).map_err(failed)?;
    match file.try_lock() {
        Ok(()) => {}
        Err(TryLockError::WouldBlock) => {
            let mut holder = String::new();
            let _ = file.read_to_string(&mut holder);
            return Err(OutboxError::Locked { path: data_dir.to_owned(), holder: holder.trim().to_owned() });
        }
        Err(TryLockError::Error(e)) => return Err(failed(e)),
    }
    file.set_len(0).and_then(|()| file.rewind()).map_err(failed)?;
    writeln!(file, "process {}", std::process::id()).map_err(failed)?;
    Ok(file)
}

fn failed(doing: &'static str, path: &Path) -> impl FnOnce(io::Error) -> OutboxError {
    move |error| OutboxError::io(doing, path, &error)
}

fn report(recovery: &Recovery, dir: &Path, metrics: &Metrics) {
    let faults = recovery.damage.len() + usize::from(recovery.truncated_bytes > 0);
    metrics.outbox_errors_total.inc_by(faults as u64);
    if recovery.truncated_bytes > 0 {
        let bytes = recovery.truncated_bytes;
        tracing::warn!(bytes, dir = %dir.display(), "outbox had an unfinished tail; it was cut off");
    }
    for damage in &recovery.damage {
        let segment = damage.segment.display();
        tracing::error!(%segment, from = damage.from, to = damage.to, "outbox is damaged; the records there are lost");
    }
    if recovery.unconfirmed > 0 {
        tracing::info!(rows = recovery.unconfirmed, "outbox has rows of an earlier run; they go to the database now");
    }
}
