//! What all nodes of a simulation share: chance, and the account of what was said.

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use chrono::Utc;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use stenocast::bus::log_server::{Message, MessageKind};
use stenocast::bus::wire::LogBatch;
use stenocast::transcript::{Epoch, Slug};
use uuid::Builder;

/// What the database has of an epoch.
#[derive(Clone, Default)]
pub struct StoredIds {
    pub last_seq: u64,
    pub ids: BTreeSet<String>,
}

/// Lets the simulation's time go on; no clock on a wall does.
pub async fn pass(millis: u64) {
    tokio::time::sleep(Duration::from_millis(millis)).await;
}

pub struct World {
    rng: RefCell<StdRng>,
    ids: Cell<u64>,
    /// Every entry that a node has made durable.
    produced: RefCell<BTreeSet<(Slug, Epoch, String)>>,
    database: RefCell<BTreeMap<Epoch, StoredIds>>,
    /// So far apart may the nodes' clocks be.
    skew_ms: u64,
}

impl World {
    pub fn new(seed: u64) -> Self {
        let mut rng = StdRng::seed_from_u64(seed);
        let skew_ms = *[0, 5_000, 3_600_000].get(rng.random_range(0..3)).expect("three");
        Self {
            rng: RefCell::new(rng),
            ids: Cell::new(0),
            produced: RefCell::default(),
            database: RefCell::default(),
            skew_ms,
        }
    }

    pub fn random<T>(&self, choose: impl FnOnce(&mut StdRng) -> T) -> T {
        choose(&mut self.rng.borrow_mut())
    }

    pub fn next_id(&self) -> u64 {
        self.ids.set(self.ids.get() + 1);
        self.ids.get()
    }

    /// An epoch of a node that has asked nobody.
    pub fn new_epoch(&self) -> Epoch {
        let now = Utc::now().timestamp_millis() as u64;
        let millis = now - self.skew_ms + self.random(|rng| rng.random_range(0..=2 * self.skew_ms));
        Builder::from_unix_timestamp_millis(millis, &self.random(StdRng::random)).into_uuid()
    }

    pub fn produced(&self, room: &Slug, epoch: Epoch, id: &str) {
        self.produced.borrow_mut().insert((room.clone(), epoch, id.to_owned()));
    }

    pub fn write(&self, message: &Message) {
        if message.kind == MessageKind::Owner {
            return;
        }
        let batch = LogBatch::parse(&message.room, &message.body).expect("a batch");
        let mut database = self.database.borrow_mut();
        let stored = database.entry(batch.epoch).or_default();
        stored.last_seq = stored.last_seq.max(batch.numbers().map_or(0, |(_, last)| last));
        stored.ids.extend(batch.transcripts.iter().map(|entry| entry.id().to_owned()));
    }

    pub fn stored(&self, epoch: Epoch) -> StoredIds {
        self.database.borrow().get(&epoch).cloned().unwrap_or_default()
    }

    pub fn all_produced(&self) -> BTreeSet<(Slug, Epoch, String)> {
        self.produced.borrow().clone()
    }
}
