//! A store and rows for it, without a server around them.

use std::ops::RangeInclusive;

use stenocast::config::{Config, DatabaseUrl, Secret, StoreConfig};
use stenocast::db::{Store, open_store};
use stenocast::transcript::outbox::{Record, Stored};
use stenocast::transcript::{Entry, Epoch, Slug, Status, StatusChange};

/// The store of a process of its own.
pub fn open_postgres(url: impl Into<String>) -> Store {
    let defaults = Config::load(&Default::default(), true).unwrap().store;
    open_store(&StoreConfig { database: DatabaseUrl::Postgres(Secret::new(url)), ..defaults }).unwrap()
}

/// Entries of session `epoch` with these numbers, as the outbox gives them.
pub fn batch_of(epoch: Epoch, seqs: RangeInclusive<u64>) -> Vec<Stored> {
    let entry = |seq| {
        Entry::Status(StatusChange {
            session: Slug::parse("demo").unwrap(),
            epoch,
            seq: Some(seq),
            id: format!("s{seq}"),
            status: Status::Live,
            reason: None,
            durable: true,
        })
    };
    seqs.map(|seq| Stored { index: seq, record: Ok(Record::Entry(entry(seq).into())) }).collect()
}
