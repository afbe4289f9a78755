//! The writer of a node with a database.

use std::sync::Arc;

use actix::prelude::*;

use super::Root;
use crate::actors::batch_writer::{BatchWriter, BatchWriterParams};
use crate::actors::supervision::Lifeline;
use crate::db::{BothQueues, DATABASE_CONSUMER, RowQueue};

impl Root {
    /// None where the mode has no database.
    pub(super) fn start_batch_writer(&self, lifeline: Lifeline) -> Option<Addr<BatchWriter>> {
        let storage = &self.params.storage;
        let store = storage.store.clone()?;
        let outbox = match storage.outbox.consumer(DATABASE_CONSUMER) {
            Ok(outbox) => Arc::new(outbox),
            Err(error) => {
                tracing::error!(%error, "the outbox cannot be read");
                return None;
            }
        };
        let queue: Arc<dyn RowQueue> = match &self.bus_rows {
            Some(bus_rows) => {
                bus_rows.rewind();
                BothQueues::new([outbox, bus_rows.clone()])
            }
            None => outbox,
        };
        let params = BatchWriterParams {
            queue,
            store,
            quarantine: storage.quarantine.clone(),
            config: self.params.services.config.store.clone(),
            metrics: self.params.services.metrics.clone(),
            lifeline,
        };
        Some(BatchWriter::new(params).start())
    }
}
