//! Keeps the sessions' rows (through the outbox, in order with their entries) and checkpoints.

use std::sync::Arc;

use chrono::Utc;

use crate::actors::services::SessionRecorder;
use crate::actors::session_core::SessionCore;
use crate::db::DurableSink;
use crate::log::checkpoint::{Checkpoint, Checkpoints};
use crate::log::session_record::{AudioAccount, SessionRecord, SessionState};

/// See the module.
pub struct Recorder {
    sink: Arc<DurableSink>,
    checkpoints: Checkpoints,
}

impl Recorder {
    pub fn new(sink: Arc<DurableSink>, checkpoints: Checkpoints) -> Self {
        Self { sink, checkpoints }
    }

    /// Queued at once, in the order of the calls; only a full disk makes it take longer.
    fn save(&self, record: SessionRecord) {
        let saved = self.sink.save_session(record);
        actix_rt::spawn(saved);
    }

    fn record(core: &SessionCore, state: SessionState) -> SessionRecord {
        let account = core.ledger.lock().account();
        SessionRecord {
            ended_at: (state == SessionState::Ended).then(Utc::now),
            state,
            last_seq: core.log.last_seq(),
            audio: AudioAccount {
                received_ms: account.received_ms,
                inserted_ms: account.inserted_ms,
                acknowledged_ms: account.acknowledged_ms,
                spoken_ms: account.spoken_ms,
                finalised_ms: account.finalised_ms,
                lost_ms: account.lost_ms,
            },
            losses: account.lost_by_reason_ms,
            ..SessionRecord::begun(core.epoch, core.slug.clone(), core.started_at)
        }
    }
}

impl SessionRecorder for Recorder {
    fn started(&self, core: &SessionCore) {
        self.save(Self::record(core, SessionState::Live));
        self.checkpoint(core);
    }

    fn checkpoint(&self, core: &SessionCore) {
        let recogniser = serde_json::to_value(core.ledger.lock().checkpoint()).unwrap_or_default();
        self.checkpoints.save(Checkpoint {
            slug: core.slug.clone(),
            epoch: core.epoch,
            started_at: core.started_at,
            next_seq: core.log.last_seq() + 1,
            clock_ms: core.clock_ms(),
            recogniser,
        });
    }

    fn ended(&self, core: &SessionCore, suspended: bool) {
        if suspended {
            self.save(Self::record(core, SessionState::Suspended));
            self.checkpoint(core);
        } else {
            self.save(Self::record(core, SessionState::Ended));
            self.checkpoints.remove(core.epoch);
        }
    }
}
