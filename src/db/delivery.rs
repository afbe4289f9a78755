//! Brings one batch of outbox records into the database.
//!
//! A row that it refuses is found by bisection, so that it never
//! keeps the others from being stored; alone, it is tried once more over a new connection before it is condemned.

use std::future::Future;
use std::sync::Arc;

use super::error::StoreError;
use super::quarantine::{Refusal, Refused};
use super::rows::{SessionRow, TranscriptRow};
use super::store::{BatchOutcome, Conflict, Store};
use crate::transcript::outbox::{Record, Stored};

/// The outcome of a batch.
#[derive(Debug, Default)]
pub struct Delivery {
    pub inserted: usize,
    pub duplicates: usize,
    /// Session rows written.
    pub sessions: usize,
    pub refused: Vec<Refused>,
}

/// A row and the record that it was made of.
struct Item<R> {
    row: R,
    index: u64,
    record: Record,
}

/// Err: some rows may be in the database, some not; repeat the whole batch later.
pub async fn deliver(store: &Store, batch: &[Stored]) -> Result<Delivery, StoreError> {
    let mut delivery = Delivery::default();
    let mut rows = Vec::new();
    let mut sessions = Vec::new();
    for stored in batch {
        sort(stored, &mut rows, &mut sessions, &mut delivery.refused);
    }
    // A session before its entries, so that whoever finds these finds it, too.
    put_sessions(store, sessions, &mut delivery).await?;
    put_rows(store, rows, &mut delivery).await?;
    Ok(delivery)
}

fn sort(
    stored: &Stored,
    rows: &mut Vec<Item<TranscriptRow>>,
    sessions: &mut Vec<Item<SessionRow>>,
    refused: &mut Vec<Refused>,
) {
    let index = stored.index;
    let record = match &stored.record {
        Ok(record) => record.clone(),
        Err(fault) => {
            let record = serde_json::Value::String(hex::encode(&fault.payload));
            let reason = fault.reason.to_string();
            refused.push(Refused { index, refusal: Refusal::Unreadable, reason, record });
            return;
        }
    };
    let made = match &record {
        Record::Entry(entry) => {
            TranscriptRow::new(entry).map(|row| rows.push(Item { row, index, record: record.clone() }))
        }
        Record::Session(s) => SessionRow::new(s).map(|row| sessions.push(Item { row, index, record: record.clone() })),
    };
    if let Err(error) = made {
        refused.push(Refused::new(index, Refusal::Rejected, error.to_string(), &record));
    }
}

async fn put_rows(store: &Store, rows: Vec<Item<TranscriptRow>>, delivery: &mut Delivery) -> Result<(), StoreError> {
    // A stack of parts, the first on top: the order of writing stays that of the batch.
    let mut parts: Vec<&[Item<TranscriptRow>]> = vec![&rows];
    while let Some(part) = parts.pop() {
        let batch: Arc<[TranscriptRow]> = part.iter().map(|item| item.row.clone()).collect();
        match try_twice(store, part.len() == 1, || store.insert_batch(batch.clone())).await {
            Ok(outcome) => tally(part, outcome, delivery),
            Err(StoreError::Rejected(reason)) => split_or_refuse(part, reason, &mut parts, delivery),
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

async fn put_sessions(store: &Store, rows: Vec<Item<SessionRow>>, delivery: &mut Delivery) -> Result<(), StoreError> {
    let mut parts: Vec<&[Item<SessionRow>]> = vec![&rows];
    while let Some(part) = parts.pop() {
        let batch: Vec<SessionRow> = part.iter().map(|item| item.row.clone()).collect();
        match try_twice(store, part.len() == 1, || store.upsert_sessions(batch.clone())).await {
            Ok(()) => delivery.sessions += part.len(),
            Err(StoreError::Rejected(reason)) => split_or_refuse(part, reason, &mut parts, delivery),
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

/// A refusal may be the connection's doing, or a pooler's; that of a lone row would be its last word.
async fn try_twice<T, F>(store: &Store, is_lone: bool, write: impl Fn() -> F) -> Result<T, StoreError>
where
    F: Future<Output = Result<T, StoreError>>,
{
    match write().await {
        Err(StoreError::Rejected(_)) if is_lone => {
            store.forget_connections();
            write().await
        }
        result => result,
    }
}

fn split_or_refuse<'a, R>(
    part: &'a [Item<R>],
    reason: String,
    parts: &mut Vec<&'a [Item<R>]>,
    delivery: &mut Delivery,
) {
    if let [item] = part {
        delivery.refused.push(Refused::new(item.index, Refusal::Rejected, reason, &item.record));
    } else {
        let (first, second) = part.split_at(part.len() / 2);
        parts.extend([second, first]);
    }
}

fn tally(part: &[Item<TranscriptRow>], outcome: BatchOutcome, delivery: &mut Delivery) {
    delivery.inserted += outcome.inserted;
    delivery.duplicates += outcome.duplicates;
    for conflict in outcome.conflicts {
        let item = &part[conflict.position];
        let Conflict { stored_entry_id, stored_seq, .. } = &conflict;
        let reason = match *stored_seq == item.row.seq {
            true => format!("its number is taken by entry {stored_entry_id}"),
            false => format!("it is stored under number {stored_seq}"),
        };
        tracing::error!(
            epoch = %item.row.session_id.0,
            seq = item.row.seq,
            entry_id = item.row.entry_id,
            stored_entry_id,
            stored_seq,
            "two entries have the same number, or one entry two; the later one goes to quarantine"
        );
        delivery.refused.push(Refused::new(item.index, Refusal::Conflict, reason, &item.record));
    }
}
