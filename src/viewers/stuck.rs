//! Viewers that do not read are found and cut.
//!
//! actix polls a connection's body only while its socket takes bytes, so a viewer that does not read stops its own
//! timers too (actix-web #2441) and has to be cut from outside. Each viewer stamps every poll; a sweep shuts down the
//! sockets of those that were not polled although there was something to say.

use std::sync::Weak;
use std::sync::atomic::Ordering;
use std::time::Duration;

use super::registry::{Viewer, Viewers};

impl Viewers {
    /// Cuts the stuck ones; gives their number.
    pub fn sweep(&self) -> usize {
        let now_ms = self.now_ms();
        let all: Vec<_> = self.all.lock().values().filter_map(Weak::upgrade).collect();
        let stuck = all.iter().filter(|viewer| viewer.is_stuck(now_ms));
        stuck.filter(|viewer| viewer.cut()).count()
    }

    /// The interval at which [`Self::sweep`] is worth it.
    pub fn sweep_interval(&self) -> Duration {
        (self.stall / 4).clamp(Duration::from_millis(20), Duration::from_secs(1))
    }
}

impl Viewer {
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

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::metrics::Metrics;
    use crate::transcript::{Epoch, Slug, TranscriptLog};
    use crate::viewers::Place;

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
