//! The group commit: a thread of its own, so that no append waits for a slow disk.

use std::fs::File;
use std::os::unix::fs::MetadataExt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc;
use std::thread::JoinHandle;

use crate::metrics::Metrics;

pub struct Syncer {
    files: Option<mpsc::Sender<Arc<File>>>,
    thread: Option<JoinHandle<()>>,
    deleted: Arc<AtomicBool>,
}

impl Syncer {
    pub fn start(metrics: Arc<Metrics>) -> std::io::Result<Self> {
        let (files, inbox) = mpsc::channel::<Arc<File>>();
        let deleted = Arc::new(AtomicBool::new(false));
        let flag = deleted.clone();
        let work = move || {
            while let Ok(file) = inbox.recv() {
                // A slow disk may have let several requests pile up; one sync serves all for the same file.
                let mut files = vec![file];
                for more in inbox.try_iter() {
                    if !files.iter().any(|f| Arc::ptr_eq(f, &more)) {
                        files.push(more);
                    }
                }
                for file in &files {
                    sync(file, &metrics);
                }
                if files.last().is_some_and(|f| f.metadata().is_ok_and(|m| m.nlink() == 0)) {
                    flag.store(true, Ordering::Relaxed);
                }
            }
        };
        let thread = std::thread::Builder::new().name("outbox-sync".to_owned()).spawn(work)?;
        Ok(Self { files: Some(files), thread: Some(thread), deleted })
    }

    pub fn request(&self, file: &Arc<File>) {
        if let Some(files) = &self.files {
            let _ = files.send(file.clone());
        }
    }

    /// True once after somebody has deleted the newest file under us: what is appended to it would be lost.
    pub fn take_deleted(&self) -> bool {
        self.deleted.swap(false, Ordering::Relaxed)
    }
}

impl Drop for Syncer {
    fn drop(&mut self) {
        self.files = None;
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

fn sync(file: &File, metrics: &Metrics) {
    if let Err(error) = file.sync_data() {
        metrics.outbox_errors_total.inc();
        tracing::error!(%error, "outbox could not be synced; entries would not survive a power loss");
    }
}
