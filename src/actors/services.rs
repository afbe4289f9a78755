//! Services that all sessions of a process share: configuration, metrics, the rooms' directory, storage, the recogniser.

use std::sync::Arc;

use actix::{Arbiter, ArbiterHandle};
use futures_util::future::BoxFuture;
use tokio::sync::{Semaphore, watch};

use super::session_core::{SessionCore, SessionSeed};
use crate::bus::ReportRing;
use crate::bus::log_server::SharedServer;
use crate::bus::log_sink::LogSink;
use crate::bus::ownership::Ownership;
use crate::config::Config;
use crate::gladia::endpoint::SttEndpoint;
use crate::gladia::ledger::ReplayBudget;
use crate::livekit::api::ApiServer;
use crate::livekit::keys::KeyRing;
use crate::metrics::Metrics;
use crate::transcript::{
    AlreadyDurable, Directory, EntrySink, Epoch, Origin, ReadError, SessionRecord, Slug, StoredTail,
};

/// The means that all sessions of a process share.
pub struct Services {
    pub config: Arc<Config>,
    pub metrics: Arc<Metrics>,
    pub directory: Arc<Directory>,
    /// Makes entries durable.
    pub sink: Arc<dyn EntrySink>,
    pub stt: SttEndpoint,
    /// Recogniser sessions that the account allows at a time.
    pub stt_slots: Arc<Semaphore>,
    /// Disk for replay audio of all sessions.
    pub replay_budget: Arc<ReplayBudget>,
    pub recorder: Arc<dyn SessionRecorder>,
    /// Reports of viewers of rooms that another node numbers.
    pub reports: Arc<ReportRing>,
    /// Between the nodes of a cluster with `BUS=nats`; None where posts go from node to node, or nowhere.
    pub log_server: Option<SharedServer>,
    /// The rooms that this node writes on the log server.
    pub ownership: Option<Arc<Ownership>>,
    /// The API keys that are valid now.
    pub keys: Arc<KeyRing>,
    /// The LiveKit server of `LIVEKIT_URL`.
    pub livekit: Option<Arc<ApiServer>>,
    /// The thread of what talks to LiveKit's rooms: a handshake there holds up no session. None: the caller's.
    pub livekit_arbiter: Option<ArbiterHandle>,
    /// True once the follower has shown the rooms that it found.
    pub caught_up: Arc<watch::Sender<bool>>,
}

/// Keeps the sessions' rows and checkpoints. Never blocks.
pub trait SessionRecorder: Send + Sync {
    fn started(&self, core: &SessionCore);
    /// Once a second.
    fn checkpoint(&self, core: &SessionCore);
    /// The session's actor is gone; `end` says whether its epoch is over.
    fn ended(&self, core: &SessionCore, end: SessionEnd);
    /// State in which the log of an epoch was left by an earlier session of it, or an earlier process.
    fn stored_tail(&self, epoch: Epoch) -> BoxFuture<'static, Result<StoredTail, ReadError>>;
    /// The row of a session that another node keeps. False when it could be made durable nowhere.
    fn keep(&self, record: SessionRecord) -> BoxFuture<'static, bool>;
}

/// The meaning of a session actor's end for its epoch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SessionEnd {
    /// It is over.
    Ended,
    /// It goes on in the next process.
    Suspended,
    /// It goes on at another node, which owns its room now.
    HandedOver,
    /// It goes on at its origin: this node has let go of a mirror that nobody watches.
    Left,
}

impl Services {
    /// The thread of what talks to LiveKit's rooms.
    pub fn livekit_thread(&self) -> ArbiterHandle {
        self.livekit_arbiter.clone().unwrap_or_else(Arbiter::current)
    }

    /// Makes the core of a session that begins here.
    pub fn new_core(&self, slug: Slug, beginning: SessionSeed) -> SessionCore {
        let budget = self.replay_budget.clone();
        SessionCore::begin(slug, beginning, self.config.clone(), self.metrics.clone(), budget)
    }

    /// Makes the entries of a session durable.
    pub fn sink_of(&self, core: &SessionCore) -> Arc<dyn EntrySink> {
        match self.writes_itself(core) {
            _ if self.follows(core.origin) => Arc::new(AlreadyDurable),
            Some(ownership) => Arc::new(LogSink::start(ownership.clone(), core.slug.clone(), core.epoch)),
            None => self.sink.clone(),
        }
    }

    /// Such a session is shown by the node that numbers it, and has no forwarder.
    fn writes_itself(&self, core: &SessionCore) -> Option<&Arc<Ownership>> {
        self.ownership.as_ref().filter(|_| core.origin == Origin::Relay)
    }

    /// Such a session is a copy of what the log server has.
    pub fn follows(&self, origin: Origin) -> bool {
        self.log_server.is_some() && origin == Origin::Mirror
    }

    pub fn session_started(&self, core: &SessionCore) {
        if !self.follows(core.origin) {
            self.recorder.started(core);
        }
    }

    pub fn checkpoint(&self, core: &SessionCore) {
        if !self.follows(core.origin) {
            self.recorder.checkpoint(core);
        }
    }

    /// Tells other nodes that the session lives, and what they need should it not any more.
    pub fn renew(&self, core: &SessionCore) {
        if let Some(ownership) = self.ownership.clone().filter(|_| core.origin != Origin::Mirror) {
            let (slug, clock_ms, checkpoint) = (core.slug.clone(), core.clock_ms(), core.checkpoint());
            actix_rt::spawn(async move { ownership.renew(&slug, clock_ms, checkpoint).await });
        }
    }

    pub fn session_ended(&self, core: &SessionCore, end: SessionEnd) {
        if let Some(ownership) = &self.ownership {
            ownership.session_gone(core.epoch);
            if end == SessionEnd::Ended {
                ownership.session_over(&core.slug, core.epoch);
            }
            if self.writes_itself(core).is_some() && end != SessionEnd::Suspended {
                let (ownership, slug, epoch) = (ownership.clone(), core.slug.clone(), core.epoch);
                actix_rt::spawn(async move { ownership.all_stored(&slug, epoch).await });
            }
        }
        if !self.follows(core.origin) {
            self.recorder.ended(core, end);
        }
    }

    pub fn stored_tail(&self, epoch: Epoch) -> BoxFuture<'static, Result<StoredTail, ReadError>> {
        self.recorder.stored_tail(epoch)
    }
}

#[cfg(test)]
pub mod testing {
    use std::collections::HashMap;

    use super::*;
    use crate::transcript::{Durability, Entry};

    /// Everything is durable and nothing is kept.
    struct Nowhere;

    impl EntrySink for Nowhere {
        fn append(&self, _: Arc<Entry>) -> BoxFuture<'static, Durability> {
            Box::pin(async { Durability::Outbox })
        }
    }

    impl SessionRecorder for Nowhere {
        fn started(&self, _: &SessionCore) {}
        fn checkpoint(&self, _: &SessionCore) {}
        fn ended(&self, _: &SessionCore, _: SessionEnd) {}
        fn stored_tail(&self, _: Epoch) -> BoxFuture<'static, Result<StoredTail, ReadError>> {
            Box::pin(async { Ok(StoredTail::default()) })
        }
        fn keep(&self, _: SessionRecord) -> BoxFuture<'static, bool> {
            Box::pin(async { true })
        }
    }

    /// Services without storage and with a recogniser that is not there yet.
    pub fn services(settings: &[(&str, &str)]) -> Arc<Services> {
        let values: HashMap<_, _> = settings.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect();
        let config = Arc::new(Config::load(&values, true).unwrap());
        Arc::new(Services {
            metrics: Arc::new(Metrics::new()),
            directory: Arc::default(),
            sink: Arc::new(Nowhere),
            stt: SttEndpoint { base_url: watch::channel(None).1, api_key: None },
            stt_slots: Arc::new(Semaphore::new(10)),
            replay_budget: Arc::new(ReplayBudget::new(config.stt.replay_max_bytes)),
            recorder: Arc::new(Nowhere),
            reports: Arc::default(),
            caught_up: Arc::default(),
            log_server: None,
            ownership: None,
            keys: Arc::new(KeyRing::new(config.auth.keys.clone())),
            livekit: None,
            livekit_arbiter: None,
            config,
        })
    }
}
