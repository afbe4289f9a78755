//! The state that all handlers share.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use actix::Recipient;
use tokio::sync::watch;
use tokio::time::Instant;

use super::livekit::LiveKitWays;
use crate::actors::root::{Drill, Root};
use crate::actors::session_registry::Broadcast;
use crate::actors::supervision::Observe;
use crate::actors::track_activity::sockets::TrackSockets;
use crate::bus::ReportRing;
use crate::bus::link::LinkClock;
use crate::config::Config;
use crate::livekit::keys::KeyRing;
use crate::metrics::Metrics;
use crate::transcript::{Directory, TranscriptReader};
use crate::viewers::Viewers;
use crate::watchdog::Watched;

/// The configuration, the rooms and the ways to the actors: one per process, shared by the HTTP workers.
pub struct AppState {
    pub config: Arc<Config>,
    pub metrics: Arc<Metrics>,
    pub directory: Arc<Directory>,
    /// Takes the entries of POST broadcast.
    pub broadcast: Recipient<Broadcast>,
    /// Answers with the actor tree.
    pub observe: Recipient<Observe<Root>>,
    pub transcripts: Arc<dyn TranscriptReader>,
    /// True once new viewers and broadcasts are refused.
    pub draining: watch::Receiver<bool>,
    pub viewers: Arc<Viewers>,
    /// Reports of viewers of rooms that another node numbers.
    pub reports: Arc<ReportRing>,
    /// The link to the log server of a cluster; None without one.
    pub link: Option<Arc<LinkClock>>,
    pub keys: Arc<KeyRing>,
    /// Sockets of Track Egress.
    pub tracks: Arc<TrackSockets>,
    /// Set once there is somebody to act on webhooks and orders.
    pub livekit: Option<LiveKitWays>,
    pub started: Instant,
    /// Takes orders to break things; None without `--drill`.
    pub drill: Option<Recipient<Drill>>,
    /// Set by the watchdog when a thread gave no sign of life.
    pub hung: Arc<AtomicBool>,
    /// List in which each HTTP worker enters itself for the watchdog.
    pub watched: Option<Arc<Watched>>,
}

impl AppState {
    pub fn new(
        config: Arc<Config>,
        metrics: Arc<Metrics>,
        directory: Arc<Directory>,
        broadcast: Recipient<Broadcast>,
        observe: Recipient<Observe<Root>>,
        transcripts: Arc<dyn TranscriptReader>,
        draining: watch::Receiver<bool>,
    ) -> Self {
        let keys = Arc::new(KeyRing::new(config.auth.keys.clone()));
        let viewers = Arc::new(Viewers::new(config.viewers.ping, config.viewers.stall, metrics.clone()));
        let (started, hung) = (Instant::now(), Arc::new(AtomicBool::new(false)));
        Self {
            config,
            metrics,
            directory,
            broadcast,
            observe,
            transcripts,
            draining,
            viewers,
            reports: Arc::default(),
            link: None,
            keys,
            tracks: Arc::default(),
            livekit: None,
            started,
            drill: None,
            hung,
            watched: None,
        }
    }

    pub fn is_draining(&self) -> bool {
        *self.draining.borrow()
    }

    pub fn is_hung(&self) -> bool {
        self.hung.load(Ordering::Relaxed)
    }
}
