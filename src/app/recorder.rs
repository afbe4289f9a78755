//! Keeps the sessions' rows (through the outbox, in order with their entries) and checkpoints.

use std::sync::Arc;

use chrono::Utc;
use futures_util::FutureExt;
use futures_util::future::BoxFuture;

use super::reader::Reader;
use crate::actors::services::{SessionEnd, SessionRecorder};
use crate::actors::session_core::SessionCore;
use crate::db::DurableSink;
use crate::transcript::checkpoint::Checkpoints;
use crate::transcript::session_record::{SessionRecord, SessionState};
use crate::transcript::{Durability, Epoch, Origin, ReadError, StoredTail};

/// Writes the sessions' rows and checkpoints.
pub struct Recorder {
    sink: Arc<DurableSink>,
    checkpoints: Checkpoints,
    reader: Arc<Reader>,
}

impl Recorder {
    pub fn new(sink: Arc<DurableSink>, checkpoints: Checkpoints, reader: Arc<Reader>) -> Self {
        Self { sink, checkpoints, reader }
    }

    /// Queued at once, in the order of the calls; only a full disk makes it take longer.
    fn save(&self, record: SessionRecord) {
        let saved = self.sink.save_session(record);
        actix_rt::spawn(saved);
    }

    fn record(core: &SessionCore, state: SessionState) -> SessionRecord {
        let account = core.ledger().account();
        SessionRecord {
            ended_at: (state == SessionState::Ended).then(Utc::now),
            state,
            last_seq: core.log.last_seq(),
            language: core.log.language(),
            audio: account.for_record(),
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
        if !core.has_pending_gap() {
            self.write_checkpoint(core);
        }
    }

    fn ended(&self, core: &SessionCore, end: SessionEnd) {
        let state = if end == SessionEnd::Ended { SessionState::Ended } else { SessionState::Suspended };
        // Another node's session is not suspended because this one lets go of it.
        let is_elsewhere = core.origin == Origin::Mirror && end != SessionEnd::Ended;
        if !is_elsewhere && end != SessionEnd::HandedOver {
            self.save(Self::record(core, state));
        }
        match end {
            SessionEnd::Suspended => self.write_checkpoint(core),
            SessionEnd::Ended | SessionEnd::Left | SessionEnd::HandedOver => self.checkpoints.remove(core.epoch),
        }
    }

    fn stored_tail(&self, epoch: Epoch) -> BoxFuture<'static, Result<StoredTail, ReadError>> {
        let reader = self.reader.clone();
        async move { reader.stored_tail(epoch).await }.boxed()
    }

    fn keep(&self, record: SessionRecord) -> BoxFuture<'static, bool> {
        let saved = self.sink.save_session(record);
        async move { saved.await != Durability::Nowhere }.boxed()
    }
}

impl Recorder {
    fn write_checkpoint(&self, core: &SessionCore) {
        self.checkpoints.save(core.checkpoint());
    }
}
