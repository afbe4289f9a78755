//! The state of a `BatchWriter` that `/metrics` shows.

use actix::prelude::*;
use serde::Serialize;

use super::{BatchWriter, Totals};
use crate::actors::supervision::{Observable, Observe};

/// The state that `/metrics` shows.
#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct BatchWriterState {
    pub backend: &'static str,
    pub database_up: bool,
    pub pending: u64,
    pub in_flight: bool,
    pub retrying: bool,
    pub failures: u32,
    pub last_error: Option<String>,
    pub confirmed_index: u64,
    pub totals: Totals,
}

impl Observable for BatchWriter {
    type State = BatchWriterState;
}

impl Handler<Observe<Self>> for BatchWriter {
    type Result = MessageResult<Observe<Self>>;

    fn handle(&mut self, _: Observe<Self>, _: &mut Self::Context) -> Self::Result {
        MessageResult(BatchWriterState {
            backend: self.params.store.backend_name(),
            database_up: self.database_up.unwrap_or(false),
            pending: self.rows_left(),
            in_flight: self.in_flight,
            retrying: self.held.is_some(),
            failures: self.failures,
            last_error: self.last_error.clone(),
            confirmed_index: self.confirmed,
            totals: self.totals,
        })
    }
}
