//! What all sessions of a process share: configuration, metrics, the rooms' directory, storage, the recogniser.

use std::sync::Arc;

use tokio::sync::Semaphore;

use super::gladia_bridge::SttEndpoint;
use super::session_core::{Beginning, SessionCore};
use crate::config::Config;
use crate::gladia::ledger::ReplayBudget;
use crate::log::{Directory, EntrySink, Slug};
use crate::metrics::Metrics;

/// See the module.
pub struct Services {
    pub config: Arc<Config>,
    pub metrics: Arc<Metrics>,
    pub directory: Arc<Directory>,
    /// Where entries become durable.
    pub sink: Arc<dyn EntrySink>,
    pub stt: SttEndpoint,
    /// Recogniser sessions that the account allows at a time.
    pub stt_slots: Arc<Semaphore>,
    /// Disk for replay audio of all sessions.
    pub replay_budget: Arc<ReplayBudget>,
    pub recorder: Arc<dyn SessionRecorder>,
}

/// Keeps the sessions' rows and checkpoints. Never blocks.
pub trait SessionRecorder: Send + Sync {
    fn started(&self, core: &SessionCore);
    /// Once a second.
    fn checkpoint(&self, core: &SessionCore);
    /// `suspended`: the epoch goes on in the next process.
    fn ended(&self, core: &SessionCore, suspended: bool);
}

impl Services {
    /// What a session that begins here owns.
    pub fn new_core(&self, slug: Slug, beginning: Beginning) -> SessionCore {
        let budget = self.replay_budget.clone();
        SessionCore::begin(slug, beginning, self.config.clone(), self.metrics.clone(), budget)
    }

    pub fn session_started(&self, core: &SessionCore) {
        self.recorder.started(core);
    }

    pub fn checkpoint(&self, core: &SessionCore) {
        self.recorder.checkpoint(core);
    }

    pub fn session_ended(&self, core: &SessionCore, suspended: bool) {
        self.recorder.ended(core, suspended);
    }
}
