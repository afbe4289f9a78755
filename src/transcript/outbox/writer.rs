//! The outbox's one writer thread.

use std::fs::File;
use std::io::{self, Write};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use tokio::sync::oneshot;

use super::segments::{self, Segment};
use super::syncer::Syncer;
use super::{OutboxError, OutboxOptions, Shared, State, cursors, frame, record};
use crate::config::Fsync;
use crate::metrics::Metrics;

/// Appends written and answered together, at most.
const GROUP_BYTES: usize = 1 << 20;
/// A cursor file is replaced at most so often.
const CURSOR_INTERVAL: Duration = Duration::from_secs(1);

pub enum Command {
    /// All or none of them.
    Append(Vec<Append>),
    Confirm {
        slot: usize,
        index: u64,
    },
    Sync {
        reply: oneshot::Sender<Result<(), OutboxError>>,
    },
    Close,
}

/// A record that is to be written, and who waits for it.
pub struct Append {
    payload: Vec<u8>,
    reply: oneshot::Sender<Result<u64, OutboxError>>,
}

impl Append {
    pub fn new(payload: Vec<u8>) -> (Self, oneshot::Receiver<Result<u64, OutboxError>>) {
        let (reply, answer) = oneshot::channel();
        (Self { payload, reply }, answer)
    }
}

struct Writer {
    shared: Arc<Shared>,
    metrics: Arc<Metrics>,
    fsync: Fsync,
    fsync_interval: Duration,
    max_bytes: u64,
    segment_bytes: u64,
    /// The last of the shared segments, open for appending; None before the first append and after a fault.
    current: Option<Arc<File>>,
    next_index: u64,
    syncer: Syncer,
    sync_due: Option<Instant>,
    cursors_due: Option<Instant>,
    /// The last append failed: said once, and once more when it works again.
    failing: bool,
}

pub fn spawn(
    shared: Arc<Shared>,
    options: &OutboxOptions,
    metrics: Arc<Metrics>,
    inbox: Receiver<Command>,
) -> io::Result<JoinHandle<()>> {
    let next_index = *shared.last.borrow() + 1;
    let writer = Writer {
        syncer: Syncer::start(metrics.clone())?,
        shared,
        metrics,
        fsync: options.fsync,
        fsync_interval: options.fsync_interval,
        max_bytes: options.max_bytes,
        segment_bytes: options.segment_bytes,
        current: None,
        next_index,
        sync_due: None,
        cursors_due: None,
        failing: false,
    };
    std::thread::Builder::new().name("outbox".to_owned()).spawn(move || writer.run(&inbox))
}

impl Writer {
    fn run(mut self, inbox: &Receiver<Command>) {
        self.update_gauges();
        let mut carried = None;
        loop {
            let command = match carried.take() {
                Some(command) => command,
                None => match self.wait(inbox) {
                    Ok(command) => command,
                    Err(RecvTimeoutError::Timeout) => {
                        self.tick(Instant::now());
                        continue;
                    }
                    Err(RecvTimeoutError::Disconnected) => Command::Close,
                },
            };
            match command {
                Command::Append(appends) => carried = self.append_group(appends, inbox),
                Command::Confirm { slot, index } => self.confirm(slot, index),
                Command::Sync { reply } => {
                    let _ = reply.send(self.sync_now());
                }
                Command::Close => break,
            }
            self.tick(Instant::now());
        }
        let _ = self.sync_now();
        self.save_cursors();
    }

    fn wait(&self, inbox: &Receiver<Command>) -> Result<Command, RecvTimeoutError> {
        match self.sync_due.into_iter().chain(self.cursors_due).min() {
            None => inbox.recv().map_err(|_| RecvTimeoutError::Disconnected),
            Some(due) => inbox.recv_timeout(due.saturating_duration_since(Instant::now())),
        }
    }

    /// Does what is due by the clock.
    fn tick(&mut self, now: Instant) {
        if self.sync_due.is_some_and(|due| now >= due) {
            self.sync_due = None;
            if let Some(file) = &self.current {
                self.syncer.request(file);
            }
        }
        if self.cursors_due.is_some_and(|due| now >= due) {
            self.save_cursors();
        }
    }

    /// Writes the append and those queued behind it with one `write`, then answers all. Gives back a command of
    /// another kind that ended the group.
    fn append_group(&mut self, mut group: Vec<Append>, inbox: &Receiver<Command>) -> Option<Command> {
        let size = |appends: &[Append]| appends.iter().map(|append| append.payload.len()).sum::<usize>();
        let mut bytes = size(&group);
        let mut other = None;
        while bytes < GROUP_BYTES {
            match inbox.try_recv() {
                Ok(Command::Append(appends)) => {
                    bytes += size(&appends);
                    group.extend(appends);
                }
                Ok(command) => {
                    other = Some(command);
                    break;
                }
                Err(_) => break,
            }
        }
        let result = self.write_group(&group);
        self.shared.queued_bytes.fetch_sub(bytes, Ordering::Relaxed);
        self.note_result(&result, group.len());
        for (n, append) in group.into_iter().enumerate() {
            let _ = append.reply.send(result.clone().map(|first| first + n as u64));
        }
        self.update_gauges();
        other
    }

    /// Index of the group's first record. All or none of them are in the file.
    fn write_group(&mut self, group: &[Append]) -> Result<u64, OutboxError> {
        let mut frames = Vec::new();
        for (append, index) in group.iter().zip(self.next_index..) {
            frame::encode(&mut frames, index, &append.payload);
        }
        self.make_room(frames.len() as u64)?;
        let file = self.open_current()?;
        let path = self.current_path();
        let failed = |doing, e| OutboxError::io(doing, &path, &e);
        if let Err(error) = (&*file).write_all(&frames) {
            self.undo_partial_write(&file, group.len());
            return Err(failed("cannot append to", error));
        }
        if self.fsync == Fsync::Always
            && let Err(error) = file.sync_data()
        {
            // What the disk holds now is not known: leave the file to recovery and begin another.
            self.undo_partial_write(&file, group.len());
            self.current = None;
            return Err(failed("cannot sync", error));
        }
        let first = self.next_index;
        self.next_index += group.len() as u64;
        self.note_written(group, first, frames.len() as u64);
        Ok(first)
    }

    fn note_written(&mut self, group: &[Append], first: u64, bytes: u64) {
        let mut state = self.shared.state.lock();
        let segment = state.segments.back_mut().expect("an open file has its segment");
        for (append, index) in group.iter().zip(first..) {
            segment.note(index, record::peek(&append.payload).ok());
        }
        segment.bytes += bytes;
        drop(state);
        self.shared.last.send_replace(self.next_index - 1);
        if self.fsync == Fsync::Interval && self.sync_due.is_none() {
            self.sync_due = Some(Instant::now() + self.fsync_interval);
        }
    }

    /// Cuts the file back to its last whole record. If even that fails, the file is left to recovery, and the indices
    /// that may be in it are not used again.
    fn undo_partial_write(&mut self, file: &File, appends: usize) {
        let good_bytes = self.shared.state.lock().segments.back().map_or(0, |s| s.bytes);
        if file.set_len(good_bytes).is_err() {
            self.current = None;
            self.next_index += appends as u64;
        }
    }

    fn make_room(&mut self, more: u64) -> Result<(), OutboxError> {
        let max_bytes = self.max_bytes;
        let over = |state: &State| state.bytes() + more > max_bytes;
        if !over(&self.shared.state.lock()) {
            return Ok(());
        }
        self.delete_confirmed(0);
        let state = self.shared.state.lock();
        if over(&state) {
            return Err(OutboxError::Full { bytes: state.bytes(), max_bytes });
        }
        Ok(())
    }

    /// The file to append to; a new one when there is none, or the last is long enough, or was deleted under us.
    fn open_current(&mut self) -> Result<Arc<File>, OutboxError> {
        let bytes = self.shared.state.lock().segments.back().map_or(0, |s| s.bytes);
        if self.syncer.take_deleted() {
            let path = self.current_path();
            tracing::error!(path = %path.display(), "the outbox file was deleted by somebody else; beginning a new one");
            self.current = None;
        }
        if let Some(file) = self.current.as_ref().filter(|_| bytes < self.segment_bytes) {
            return Ok(file.clone());
        }
        if let Some(full) = self.current.take() {
            self.syncer.request(&full);
        }
        let dir = &self.shared.dir;
        let path = segments::path_of(dir, self.next_index);
        let file = create(dir, &path).map_err(|e| OutboxError::io("cannot create", &path, &e))?;
        let file = Arc::new(file);
        let mut state = self.shared.state.lock();
        // A file that was created but never written to has the same name: its place is taken over.
        state.segments.retain(|s| s.last != 0);
        state.segments.push_back(Segment::new(self.next_index));
        self.current = Some(file.clone());
        Ok(file)
    }

    fn current_path(&self) -> std::path::PathBuf {
        let first = self.shared.state.lock().segments.back().map_or(self.next_index, |s| s.first);
        segments::path_of(&self.shared.dir, first)
    }

    fn confirm(&mut self, slot: usize, index: u64) {
        {
            let mut state = self.shared.state.lock();
            let cursor = &mut state.cursors[slot];
            cursor.confirmed = cursor.confirmed.max(index.min(self.next_index - 1));
        }
        self.cursors_due.get_or_insert_with(|| Instant::now() + CURSOR_INTERVAL);
        self.delete_confirmed(self.segment_bytes / 4);
        self.update_gauges();
    }

    /// Deletes segments that all consumers have confirmed; the current one too, once it has `current_bytes`.
    fn delete_confirmed(&mut self, current_bytes: u64) {
        let (confirmed, done) = {
            let state = self.shared.state.lock();
            let confirmed = state.confirmed();
            let newest = state.segments.back().map(|s| s.first);
            let deletable = |s: &&Segment| {
                let is_current = self.current.is_some() && newest == Some(s.first);
                s.last != 0 && s.last <= confirmed && (!is_current || s.bytes >= current_bytes.max(1))
            };
            let done: Vec<u64> = state.segments.iter().filter(deletable).map(|s| s.first).collect();
            (confirmed, done)
        };
        if done.is_empty() {
            return;
        }
        self.save_cursors();
        for first in done {
            let path = segments::path_of(&self.shared.dir, first);
            match std::fs::remove_file(&path) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => {
                    tracing::warn!(%error, path = %path.display(), "outbox file could not be deleted");
                }
                _ => self.forget(first),
            }
        }
        tracing::debug!(confirmed, "outbox files deleted");
    }

    fn forget(&mut self, first: u64) {
        let mut state = self.shared.state.lock();
        if state.segments.back().is_some_and(|s| s.first == first) {
            self.current = None;
        }
        state.segments.retain(|s| s.first != first);
    }

    fn save_cursors(&mut self) {
        self.cursors_due = None;
        let cursors = self.shared.state.lock().cursors.clone();
        for cursor in cursors {
            if let Err(error) = cursors::save(&self.shared.dir, &cursor) {
                tracing::warn!(%error, consumer = cursor.name, "outbox cursor could not be written; rows may be sent again after a restart");
            }
        }
    }

    fn sync_now(&mut self) -> Result<(), OutboxError> {
        self.sync_due = None;
        let Some(file) = &self.current else {
            return Ok(());
        };
        file.sync_data().map_err(|e| OutboxError::io("cannot sync", &self.current_path(), &e))
    }

    fn note_result(&mut self, result: &Result<u64, OutboxError>, appends: usize) {
        match result {
            Err(error) => {
                self.metrics.outbox_errors_total.inc_by(appends as u64);
                if !self.failing {
                    tracing::error!(%error, "outbox does not take entries; they go straight to the database");
                }
            }
            Ok(_) if self.failing => tracing::info!("outbox takes entries again"),
            Ok(_) => {}
        }
        self.failing = result.is_err();
    }

    fn update_gauges(&self) {
        let state = self.shared.state.lock();
        let last = self.next_index - 1;
        self.metrics.outbox_rows.set(last.saturating_sub(state.confirmed()) as i64);
        self.metrics.outbox_bytes.set(state.bytes() as i64);
    }
}

fn create(dir: &Path, path: &Path) -> io::Result<File> {
    let open = || File::options().create(true).append(true).open(path);
    let file = match open() {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            std::fs::create_dir_all(dir.join("cursors"))?;
            open()?
        }
        opened => opened?,
    };
    file.set_len(0)?;
    // The name itself must survive a power loss.
    File::open(dir)?.sync_all()?;
    Ok(file)
}
