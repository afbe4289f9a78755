//! All viewers of this process: how many, what each reads, and whether they are to leave.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Weak};
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::watch;
use tokio::time::Instant;

use crate::metrics::Metrics;
use crate::transcript::{Epoch, Slug, TranscriptLog};
use crate::viewers::SocketGuard;

/// All viewers of this process, and a second handle to the socket of each.
pub struct Viewers {
    pub(super) ping: Duration,
    pub(super) stall: Duration,
    pub(super) metrics: Arc<Metrics>,
    count: AtomicUsize,
    next_id: AtomicU64,
    pub(super) all: Mutex<HashMap<u64, Weak<Viewer>>>,
    closing: watch::Sender<bool>,
    base: Instant,
}

/// One viewer; leaves the count when dropped.
pub struct Viewer {
    pub(super) id: u64,
    pub(super) owner: Arc<Viewers>,
    pub(super) socket: Option<Weak<SocketGuard>>,
    /// Milliseconds since `Viewers::base`.
    pub(super) polled_at_ms: AtomicU64,
    /// Version of the log that was read last.
    pub(super) seen: AtomicU64,
    pub(super) place: Mutex<Place>,
    /// When a sweep first saw it behind without a poll since; 0 when it is not.
    pub(super) behind_since_ms: AtomicU64,
    pub(super) cut: AtomicBool,
    /// See [`Viewers::crash_one`].
    crash: AtomicBool,
}

/// The room that a viewer reads now.
#[derive(Clone)]
pub enum Place {
    /// Nothing: nobody has published yet.
    Nowhere,
    Live(Arc<TranscriptLog>),
    /// An epoch that is read from the database or has been read to its end, and its last sequence number.
    Stored(Epoch, u64),
}

impl Place {
    /// The log's epoch and last sequence number.
    pub fn last(&self) -> (Option<Epoch>, u64) {
        match self {
            Self::Nowhere => (None, 0),
            Self::Live(log) => (Some(log.epoch()), log.last_seq()),
            Self::Stored(epoch, seq) => (Some(*epoch), *seq),
        }
    }

    pub(super) fn log(&self) -> Option<&TranscriptLog> {
        match self {
            Self::Live(log) => Some(log),
            Self::Nowhere | Self::Stored(..) => None,
        }
    }
}

impl Viewers {
    pub fn new(ping: Duration, stall: Duration, metrics: Arc<Metrics>) -> Self {
        Self {
            ping,
            stall,
            metrics,
            count: AtomicUsize::new(0),
            next_id: AtomicU64::new(1),
            all: Mutex::new(HashMap::new()),
            closing: watch::Sender::new(false),
            base: Instant::now(),
        }
    }

    /// Admits one more viewer, or None when there are `max` already.
    pub fn enter(self: &Arc<Self>, max: usize, socket: Option<Weak<SocketGuard>>) -> Option<Arc<Viewer>> {
        let admitted = |n: usize| (n < max).then_some(n + 1);
        self.count.fetch_update(Ordering::Relaxed, Ordering::Relaxed, admitted).ok()?;
        let id = self.next_id.fetch_add(1, Ordering::Relaxed);
        let viewer = Arc::new(Viewer {
            id,
            owner: self.clone(),
            socket,
            polled_at_ms: AtomicU64::new(self.now_ms()),
            seen: AtomicU64::new(0),
            place: Mutex::new(Place::Nowhere),
            behind_since_ms: AtomicU64::new(0),
            cut: AtomicBool::new(false),
            crash: AtomicBool::new(false),
        });
        self.all.lock().insert(id, Arc::downgrade(&viewer));
        self.metrics.ws_connections.inc();
        Some(viewer)
    }

    pub fn len(&self) -> usize {
        self.count.load(Ordering::Relaxed)
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Tells every viewer to read what is left and go, with code 1001.
    pub fn close_all(&self) {
        self.closing.send_replace(true);
    }

    pub fn closing(&self) -> watch::Receiver<bool> {
        self.closing.subscribe()
    }

    /// The next poll of one viewer of the slug panics: a drill. False when there is none.
    pub fn crash_one(&self, slug: &Slug) -> bool {
        let all: Vec<_> = self.all.lock().values().filter_map(Weak::upgrade).collect();
        let of_slug = |viewer: &&Arc<Viewer>| viewer.place.lock().log().is_some_and(|log| log.slug() == slug);
        all.iter().find(of_slug).map(|viewer| viewer.crash.store(true, Ordering::Relaxed)).is_some()
    }

    /// Ends every viewer's connection as a broken network would: a drill. They resume by themselves.
    pub fn cut_all(&self) {
        let all: Vec<_> = self.all.lock().values().filter_map(Weak::upgrade).collect();
        all.iter().filter_map(|viewer| viewer.socket.as_ref()?.upgrade()).for_each(|socket| socket.shut_down());
    }

    pub(super) fn now_ms(&self) -> u64 {
        self.base.elapsed().as_millis() as u64
    }
}

impl Viewer {
    /// Its connection was polled: its socket takes bytes.
    pub fn polled(&self) {
        if self.crash.load(Ordering::Relaxed) {
            panic!("crash requested");
        }
        self.polled_at_ms.store(self.owner.now_ms(), Ordering::Relaxed);
    }

    /// It reads this now.
    pub fn reads(&self, place: Place) {
        self.seen.store(0, Ordering::Relaxed);
        *self.place.lock() = place;
    }

    /// The longest time between two signs to it that its connection lives.
    pub fn ping_interval(&self) -> Duration {
        self.owner.ping
    }

    pub fn place(&self) -> Place {
        self.place.lock().clone()
    }

    /// It has read its log up to `version`.
    pub fn saw(&self, version: u64) {
        self.seen.store(version, Ordering::Relaxed);
    }
}

impl Drop for Viewer {
    fn drop(&mut self) {
        self.owner.all.lock().remove(&self.id);
        self.owner.count.fetch_sub(1, Ordering::Relaxed);
        self.owner.metrics.ws_connections.dec();
    }
}
