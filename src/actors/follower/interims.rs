//! Brings the interims of rooms that are watched here. Nobody keeps them: whoever is late has the next one.

use std::collections::HashMap;
use std::rc::Rc;

use actix_rt::task::JoinHandle;
use futures_util::StreamExt;

use super::{SWEEP, Shared};
use crate::actors::session_registry::{Broadcast, BroadcastEntry};
use crate::bus::log_server::Topic;
use crate::bus::wire::LogBatch;
use crate::transcript::{Entry, Slug};

/// Listens to one room until dropped.
struct Listener(JoinHandle<()>);

impl Drop for Listener {
    fn drop(&mut self) {
        self.0.abort();
    }
}

pub(super) async fn hear(shared: Rc<Shared>) {
    let mut listeners: HashMap<Slug, Listener> = HashMap::new();
    let mut sweep = tokio::time::interval(SWEEP);
    loop {
        sweep.tick().await;
        let watched = shared.params.directory.viewers();
        listeners.retain(|slug, _| watched.contains_key(slug));
        for slug in watched.into_keys() {
            let listen = |slug: &Slug| Listener(actix_rt::spawn(listen(shared.clone(), slug.clone())));
            listeners.entry(slug).or_insert_with_key(listen);
        }
    }
}

async fn listen(shared: Rc<Shared>, slug: Slug) {
    let mut heard = shared.params.server.hear(Topic::Interims(slug.clone()));
    while let Some(body) = heard.next().await {
        match LogBatch::parse(&slug, &body) {
            Ok(batch) => show(&shared, batch).await,
            Err(error) => tracing::debug!(session = %slug, %error, "interims that are unreadable"),
        }
    }
}

/// Shows the interims of the log that is shown. They begin none.
async fn show(shared: &Shared, batch: LogBatch) {
    let log = shared.params.directory.get(&batch.session).and_then(|room| room.current());
    let is_shown = log.is_some_and(|log| log.is_mirror() && log.epoch() == batch.epoch && !log.is_closed());
    let interims = batch.transcripts.into_iter().filter(Entry::is_interim);
    let entries: Vec<_> = interims.map(|entry| BroadcastEntry { numbered: true, entry }).collect();
    if is_shown && !entries.is_empty() {
        // The next one makes up for one that is refused.
        let _ = shared.params.registry.send(Broadcast::new(batch.session, entries)).await;
    }
}
