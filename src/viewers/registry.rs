//! All viewers of this process: how many, whether they are to leave, and which of them are stuck.
//!
//! actix polls a connection's body only while its socket takes bytes, so a viewer that does not read stops its own
//! timers too (actix-web #2441) and has to be cut from outside. Each viewer stamps every poll here; a sweep shuts
//! down the sockets of those that were not polled although there was something to say.

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
    ping: Duration,
    stall: Duration,
    metrics: Arc<Metrics>,
    count: AtomicUsize,
    next_id: AtomicU64,
    all: Mutex<HashMap<u64, Weak<Viewer>>>,
    closing: watch::Sender<bool>,
    base: Instant,
}

/// One viewer; leaves the count when dropped.
pub struct Viewer {
    id: u64,
    owner: Arc<Viewers>,
    socket: Option<Weak<SocketGuard>>,
    /// Milliseconds since `Viewers::base`.
    polled_at_ms: AtomicU64,
    /// Version of the log that was read last.
    seen: AtomicU64,
    place: Mutex<Place>,
    /// When a sweep first saw it behind without a poll since; 0 when it is not.
    behind_since_ms: AtomicU64,
    cut: AtomicBool,
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

    fn log(&self) -> Option<&TranscriptLog> {
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

    /// Cuts the stuck ones; gives their number.
    pub fn sweep(&self) -> usize {
        let now_ms = self.now_ms();
        let all: Vec<_> = self.all.lock().values().filter_map(Weak::upgrade).collect();
        let stuck = all.iter().filter(|viewer| viewer.is_stuck(now_ms));
        stuck.filter(|viewer| viewer.cut()).count()
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

    /// The interval at which [`Self::sweep`] is worth it.
    pub fn sweep_interval(&self) -> Duration {
        (self.stall / 4).clamp(Duration::from_millis(20), Duration::from_secs(1))
    }

    fn now_ms(&self) -> u64 {
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

    fn is_stuck(&self, now_ms: u64) -> bool {
        let polled_at_ms = self.polled_at_ms.load(Ordering::Relaxed);
        let stall_ms = self.owner.stall.as_millis() as u64;
        // Its ping timer polls it even when nothing is said.
        let ping_ms = self.owner.ping.as_millis() as u64;
        if now_ms.saturating_sub(polled_at_ms) > stall_ms + ping_ms {
            return true;
        }
        if !self.is_behind() {
            self.behind_since_ms.store(0, Ordering::Relaxed);
            return false;
        }
        let since_ms = self.behind_since_ms.load(Ordering::Relaxed);
        if since_ms == 0 || since_ms < polled_at_ms {
            self.behind_since_ms.store(now_ms.max(1), Ordering::Relaxed);
            return false;
        }
        now_ms - since_ms > stall_ms
    }

    fn is_behind(&self) -> bool {
        self.place.lock().log().is_some_and(|log| log.version() > self.seen.load(Ordering::Relaxed))
    }

    /// True the first time.
    fn cut(&self) -> bool {
        if self.cut.swap(true, Ordering::Relaxed) {
            return false;
        }
        if let Some(socket) = self.socket.as_ref().and_then(Weak::upgrade) {
            socket.shut_down();
        }
        self.owner.metrics.ws_closed_total.with_label_values(&["stalled"]).inc();
        tracing::info!(viewer = self.id, "viewer cut: its socket took nothing");
        true
    }
}

impl Drop for Viewer {
    fn drop(&mut self) {
        self.owner.all.lock().remove(&self.id);
        self.owner.count.fetch_sub(1, Ordering::Relaxed);
        self.owner.metrics.ws_connections.dec();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::transcript::{Epoch, Slug};

    const PING: Duration = Duration::from_secs(15);
    const STALL: Duration = Duration::from_secs(10);

    #[tokio::test(start_paused = true)]
    async fn only_a_viewer_that_is_behind_and_not_polled_is_cut() {
        let viewers = Arc::new(Viewers::new(PING, STALL, Arc::new(Metrics::new())));
        let log = Arc::new(TranscriptLog::new(Slug::parse("demo").unwrap(), Epoch::nil(), 0, 10, 1000));
        let [reading, idle, stuck] = [(); 3].map(|()| viewers.enter(3, None).unwrap());
        assert!(viewers.enter(3, None).is_none());
        for viewer in [&reading, &idle, &stuck] {
            viewer.reads(Place::Live(log.clone()));
            viewer.saw(log.version());
        }
        tokio::time::advance(PING - Duration::from_secs(1)).await;
        log.close();
        idle.saw(log.version());
        assert_eq!(viewers.sweep(), 0, "it has had no time to read");
        tokio::time::advance(STALL + Duration::from_millis(1)).await;
        reading.polled();
        idle.polled();
        assert_eq!(viewers.sweep(), 1);
        assert!(stuck.cut.load(Ordering::Relaxed));
        assert_eq!(viewers.sweep(), 0, "cut once");
        tokio::time::advance(PING + STALL + Duration::from_millis(1)).await;
        reading.polled();
        assert_eq!(viewers.sweep(), 1, "not even its ping timer ran");
        drop((reading, idle, stuck));
        assert_eq!((viewers.len(), viewers.all.lock().len()), (0, 0));
    }
}
