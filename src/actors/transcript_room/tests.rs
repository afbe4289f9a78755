use std::sync::atomic::{AtomicBool, Ordering};

use std::collections::HashMap;
use std::time::Duration;

use chrono::Utc;
use futures_util::future::BoxFuture;
use tokio::time::Instant;

use super::*;
use crate::transcript::{Durability, Entry, Gap, Status, TranscriptEvent, Utterance};

use crate::actors::Crash;
use crate::actors::session_registry::BroadcastEntry;
use crate::actors::supervision::testing::Parent;
use crate::actors::supervision::{ChildDown, ChildKind};
use crate::config::Config;
use crate::metrics::Metrics;
use crate::transcript::{Cursor, GapReason, Read, Slug};
use parking_lot::Mutex;

/// A sink whose appends are answered when the test lets them.
#[derive(Default)]
struct Gate {
    appended: Mutex<Vec<Arc<Entry>>>,
    open: watch::Sender<bool>,
    /// Nothing can be stored anywhere.
    is_full: AtomicBool,
}

impl EntrySink for Gate {
    fn append(&self, entry: Arc<Entry>) -> BoxFuture<'static, Durability> {
        self.appended.lock().push(entry);
        let mut open = self.open.subscribe();
        let durability = if self.is_full.load(Ordering::Relaxed) { Durability::Nowhere } else { Durability::Outbox };
        Box::pin(async move {
            open.wait_for(|open| *open).await.unwrap();
            durability
        })
    }
}

struct Bench {
    core: Arc<SessionCore>,
    gate: Arc<Gate>,
    parent: Addr<Parent>,
    downs: mpsc::UnboundedReceiver<ChildDown>,
}

impl Bench {
    fn new() -> Self {
        let config = Arc::new(Config::load(&HashMap::new(), true).unwrap());
        let core = SessionCore::new(Slug::parse("demo").unwrap(), config, Arc::new(Metrics::new()));
        let (parent, downs) = Parent::start();
        Self { core: Arc::new(core), gate: Arc::new(Gate::default()), parent, downs }
    }

    fn room(&self) -> Addr<TranscriptRoom> {
        let parent = self.parent.clone().recipient();
        let lifeline = Lifeline::new(parent, ChildKind::TranscriptRoom, 1, self.core.metrics.clone());
        TranscriptRoom::start(self.core.clone(), self.gate.clone(), lifeline)
    }

    fn texts(&self) -> Vec<(Option<u64>, String)> {
        let Read::Items(items) = self.core.log.read(&mut Cursor::after(0), 1000) else { panic!("fell off") };
        let line = |json: &str| match serde_json::from_str(json).unwrap() {
            Entry::Transcript(t) => t.text,
            Entry::Gap(g) => g.reason.as_str().to_owned(),
            Entry::Status(s) => s.status.as_str().to_owned(),
            Entry::Translation(t) => format!("{} {}", t.id, t.text),
        };
        items.iter().map(|item| (item.seq, line(&item.json))).collect()
    }

    async fn until(&self, condition: impl Fn(&Self) -> bool) {
        let mut watch = self.core.log.watch();
        let wait = async {
            while !condition(self) {
                watch.changed().await.unwrap();
            }
        };
        tokio::time::timeout(Duration::from_secs(10), wait).await.expect("the condition in 10 s");
    }
}

fn said(id: &str, text: &str) -> Utterance {
    Utterance {
        id: id.into(),
        text: text.into(),
        start_ms: 0,
        end_ms: 100,
        language: None,
        confidence: None,
        words: None,
        received_at: Utc::now(),
        received: Instant::now(),
        decode_ms: None,
        stt_ms: None,
    }
}

#[actix::test]
async fn a_final_is_shown_only_when_it_is_durable_while_interims_pass() {
    let bench = Bench::new();
    let room = bench.room();
    bench.core.results.push(TranscriptEvent::Final(said("a", "one"))).await;
    bench.core.results.push(TranscriptEvent::Interim(said("b", "tw"))).await;
    bench.until(|b| b.texts().iter().any(|(seq, text)| seq.is_none() && text == "tw")).await;
    assert_eq!(bench.core.log.last_seq(), 0, "the append is not answered yet");
    bench.core.results.push(TranscriptEvent::Final(said("b", "two"))).await;
    bench.gate.open.send_replace(true);
    room.send(Drain).await.unwrap();
    assert_eq!(bench.texts(), [(Some(1), "one".into()), (Some(2), "two".into())]);
    assert!(bench.core.results.is_empty());
}

#[actix::test]
async fn an_item_repeated_after_a_panic_is_published_once() {
    let mut bench = Bench::new();
    let room = bench.room();
    bench.core.results.push(TranscriptEvent::Final(said("a", "one"))).await;
    while bench.gate.appended.lock().is_empty() {
        tokio::task::yield_now().await;
    }
    room.do_send(Crash);
    let down = bench.downs.recv().await.unwrap();
    assert_eq!(down.exit, crate::actors::supervision::Exit::Panicked);
    bench.gate.open.send_replace(true);
    let room = bench.room();
    room.send(Drain).await.unwrap();
    assert_eq!(bench.texts(), [(Some(1), "one".into())]);
    let appended: Vec<_> = bench.gate.appended.lock().iter().map(|e| (e.seq(), e.id().to_owned())).collect();
    assert_eq!(appended, [(Some(1), "a".to_owned()), (Some(1), "a".to_owned())], "the same row twice");
}

#[actix::test]
async fn a_number_given_before_a_panic_is_not_given_again() {
    let mut bench = Bench::new();
    let room = bench.room();
    let gap = Entry::Gap(Gap {
        session: bench.core.slug.clone(),
        epoch: bench.core.epoch,
        seq: None,
        id: "from outside".into(),
        start_ms: 0,
        end_ms: 1,
        reason: GapReason::PublisherLost,
        durable: true,
    });
    let entries = vec![BroadcastEntry { numbered: false, entry: gap }];
    room.do_send(Broadcast::new(bench.core.slug.clone(), entries));
    while bench.gate.appended.lock().is_empty() {
        tokio::task::yield_now().await;
    }
    room.do_send(Crash);
    bench.downs.recv().await.unwrap();
    let room = bench.room();
    bench.core.results.push(TranscriptEvent::Final(said("a", "one"))).await;
    bench.gate.open.send_replace(true);
    room.send(Drain).await.unwrap();
    assert_eq!(bench.texts(), [(Some(1), "publisher_lost".into()), (Some(2), "one".into())]);
}

#[actix::test]
async fn duplicate_ids_are_skipped_and_the_end_closes_the_log() {
    let bench = Bench::new();
    bench.gate.open.send_replace(true);
    let room = bench.room();
    for id in ["a", "a", "b", "a"] {
        bench.core.results.push(TranscriptEvent::Final(said(id, id))).await;
    }
    let status = TranscriptEvent::Status { id: "s".into(), status: Status::Ended, reason: None };
    bench.core.results.push(status).await;
    room.send(Drain).await.unwrap();
    assert_eq!(bench.texts(), [(Some(1), "a".into()), (Some(2), "b".into()), (Some(3), "ended".into())]);
    assert!(bench.core.log.is_closed());
}

#[actix::test]
async fn a_retracted_utterance_is_shown_as_empty() {
    let bench = Bench::new();
    let room = bench.room();
    bench.core.results.push(TranscriptEvent::Interim(said("a", "hm"))).await;
    bench.core.results.push(TranscriptEvent::Retracted { id: "a".into() }).await;
    room.send(Drain).await.unwrap();
    assert_eq!(bench.texts(), [(None, String::new())]);
}

#[actix::test]
async fn broadcasts_are_numbered_checked_and_idempotent() {
    let bench = Bench::new();
    bench.gate.open.send_replace(true);
    let room = bench.room();
    let gap = |id: &str, seq| {
        let mut entry = Entry::Gap(Gap {
            session: bench.core.slug.clone(),
            epoch: bench.core.epoch,
            seq: None,
            id: id.into(),
            start_ms: 0,
            end_ms: 1,
            reason: GapReason::PublisherLost,
            durable: true,
        });
        entry.set_seq(seq);
        BroadcastEntry { numbered: true, entry }
    };
    let post = |entries| room.send(Broadcast::new(bench.core.slug.clone(), entries));
    let first = post(vec![gap("a", 1), gap("b", 2)]).await.unwrap();
    assert_eq!(first, Ok(BroadcastAck { accepted: 2, duplicates: 0, seq: 2 }));
    let again = post(vec![gap("b", 2), gap("c", 3)]).await.unwrap();
    assert_eq!(again, Ok(BroadcastAck { accepted: 1, duplicates: 1, seq: 3 }));
    let hole = post(vec![gap("e", 5)]).await.unwrap();
    assert_eq!(hole, Err(BroadcastRefusal::Hole { expected: 4 }));
    let later_hole = post(vec![gap("d", 4), gap("f", 6)]).await.unwrap();
    assert_eq!(later_hole, Err(BroadcastRefusal::Hole { expected: 4 }), "what precedes the hole is not taken");
    assert_eq!(bench.core.log.last_seq(), 3);
    let mended = post(vec![gap("d", 4), gap("e", 5), gap("f", 6), gap("d", 4)]).await.unwrap();
    assert_eq!(mended, Ok(BroadcastAck { accepted: 3, duplicates: 1, seq: 6 }));
}

#[actix::test]
async fn a_post_that_could_be_stored_nowhere_is_refused_until_it_is_stored() {
    let bench = Bench::new();
    bench.gate.open.send_replace(true);
    bench.gate.is_full.store(true, Ordering::Relaxed);
    let room = bench.room();
    let gap = |id: &str| {
        let entry = Entry::Gap(Gap {
            session: bench.core.slug.clone(),
            epoch: bench.core.epoch,
            seq: None,
            id: id.into(),
            start_ms: 0,
            end_ms: 1,
            reason: GapReason::PublisherLost,
            durable: true,
        });
        BroadcastEntry { numbered: false, entry }
    };
    let post = |ids: &[&str]| {
        let entries = ids.iter().map(|id| gap(id)).collect();
        room.send(Broadcast::new(bench.core.slug.clone(), entries))
    };
    assert_eq!(post(&["a", "b"]).await.unwrap(), Err(BroadcastRefusal::Unavailable));
    assert_eq!(post(&["a", "b"]).await.unwrap(), Err(BroadcastRefusal::Unavailable), "it is still nowhere");
    assert!(bench.core.metrics.entries_not_durable_timestamp_seconds.get() > 0);
    bench.gate.is_full.store(false, Ordering::Relaxed);
    let stored = post(&["a", "b", "c"]).await.unwrap();
    assert_eq!(stored, Ok(BroadcastAck { accepted: 1, duplicates: 2, seq: 3 }));
    let appended: Vec<_> = bench.gate.appended.lock().iter().filter_map(|e| e.seq()).collect();
    assert_eq!(appended, [1, 2, 1, 2, 1, 2, 3], "each under its number");
    assert_eq!(bench.texts().len(), 3, "viewers have each once");
}
