use std::sync::atomic::{AtomicBool, Ordering};

use std::collections::HashMap;
use std::time::Duration;

use chrono::Utc;
use futures_util::future::BoxFuture;
use tokio::time::Instant;

use super::*;
use crate::transcript::{
    Durability, Entry, Gap, NumberedVoice, Origin, SpeakerSource, SpeakerUpdate, Status, TranscriptEvent, Translated,
    Utterance, Word,
};

use crate::actors::Crash;
use crate::actors::session_core::SessionSeed;
use crate::actors::session_registry::BroadcastEntry;
use crate::actors::speaker_tracker::SpeakerTracker;
use crate::actors::supervision::testing::Parent;
use crate::actors::supervision::{ChildDown, ChildKind};
use crate::config::Config;
use crate::gladia::ledger::ReplayBudget;
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
        voice: None,
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

/// A line of six words; the tracker knows that anna said three of them, and then ben.
struct TwoSpeakers {
    bench: Bench,
    _tracker: Addr<SpeakerTracker>,
}

impl TwoSpeakers {
    async fn begin() -> Self {
        let mut bench = Bench::new();
        // Its times are not those of audio that somebody sends.
        let seed = SessionSeed { origin: Origin::Relay, ..SessionSeed::default() };
        let values = HashMap::from([("SPEAKER_OFFSET_MS".to_owned(), "0".to_owned())]);
        let config = Arc::new(Config::load(&values, true).unwrap());
        let budget = Arc::new(ReplayBudget::new(0));
        let core = SessionCore::begin(bench.core.slug.clone(), seed, config, bench.core.metrics.clone(), budget);
        bench.core = Arc::new(core);
        let parent = bench.parent.clone().recipient();
        let lifeline = Lifeline::new(parent, ChildKind::SpeakerTracker, 1, bench.core.metrics.clone());
        let tracker = SpeakerTracker::start(bench.core.clone(), lifeline);
        *bench.core.tracker() = Some(tracker.clone());
        for (identity, active, ms) in
            [("anna", true, 0), ("anna", true, 400), ("anna", true, 800), ("anna", false, 880), ("ben", true, 920)]
        {
            let at = bench.core.started + Duration::from_millis(ms);
            let (identity, source) = (identity.to_owned(), SpeakerSource::Track);
            tracker.send(SpeakerUpdate { identity, name: None, active, level: 0.6, at, source }).await.unwrap();
        }
        Self { bench, _tracker: tracker }
    }

    fn line(id: &str) -> Utterance {
        let texts = ["Are", "you", "there?", "Yes,", "I", "am."];
        let word = |(n, text): (u64, &str)| Word {
            word: text.to_owned(),
            start_ms: n * 300,
            end_ms: n * 300 + 280,
            confidence: None,
        };
        let words = (0..).zip(texts).map(word).collect();
        Utterance { words: Some(words), end_ms: 1780, ..said(id, "Are you there? Yes, I am.") }
    }

    fn pieces(&self) -> Vec<(Option<u64>, String, Option<String>)> {
        let Read::Items(items) = self.bench.core.log.read(&mut Cursor::after(0), 1000) else { panic!("fell off") };
        let piece = |json: &str| match serde_json::from_str(json).unwrap() {
            Entry::Transcript(t) => Some((t.seq, t.id, t.speaker.map(|speaker| speaker.identity))),
            _ => None,
        };
        items.iter().filter_map(|item| piece(&item.json)).collect()
    }
}

#[actix::test]
async fn a_line_of_two_speakers_is_numbered_in_one_step_and_known_by_its_first_piece() {
    let mut two = TwoSpeakers::begin().await;
    let room = two.bench.room();
    two.bench.core.results.push(TranscriptEvent::Interim(TwoSpeakers::line("1.a"))).await;
    two.bench.until(|b| b.texts().len() == 1).await;
    two.bench.core.results.push(TranscriptEvent::Final(TwoSpeakers::line("1.a"))).await;
    while two.bench.gate.appended.lock().len() < 2 {
        tokio::task::yield_now().await;
    }
    // Both have their numbers, and nobody has seen them.
    room.do_send(Crash);
    two.bench.downs.recv().await.unwrap();
    let seqs = || two.bench.core.numbered().iter().map(|entry| entry.seq()).collect::<Vec<_>>();
    assert_eq!(seqs(), [Some(1), Some(2)]);
    let room = two.bench.room();
    two.bench.gate.open.send_replace(true);
    room.send(Drain).await.unwrap();
    let pieces =
        [(Some(1), "1.a".to_owned(), Some("anna".to_owned())), (Some(2), "1.a.2".to_owned(), Some("ben".to_owned()))];
    assert_eq!(two.pieces(), pieces, "the interim is replaced by the first");
    assert_eq!(two.bench.texts()[1].1, "Yes, I am.");
    two.bench.core.results.push(TranscriptEvent::Final(TwoSpeakers::line("1.a"))).await;
    two.bench
        .core
        .results
        .push(TranscriptEvent::Translation(Translated {
            of: "1.a".into(),
            language: "fr".into(),
            text: "Tu es là ? Oui.".into(),
            start_ms: 0,
            end_ms: 1780,
        }))
        .await;
    room.send(Drain).await.unwrap();
    assert_eq!(two.pieces(), pieces, "it is known");
    assert_eq!(two.bench.texts()[2], (Some(3), "1.a:fr Tu es là ? Oui.".to_owned()));
    assert_eq!(two.bench.core.metrics.speaker_splits_total.get(), 1);
}

#[actix::test]
async fn a_recognisers_number_stands_for_a_name_until_somebody_tells_names() {
    let bench = Bench::new();
    bench.gate.open.send_replace(true);
    let room = bench.room();
    let voiced = |id: &str| {
        let voice = Some(NumberedVoice { session: 1, number: 1 });
        TranscriptEvent::Final(Utterance { voice, ..said(id, id) })
    };
    bench.core.results.push(voiced("1.a")).await;
    room.send(Drain).await.unwrap();
    bench.core.set_names_speakers();
    bench.core.results.push(voiced("1.b")).await;
    room.send(Drain).await.unwrap();
    let Read::Items(items) = bench.core.log.read(&mut Cursor::after(0), 10) else { panic!("fell off") };
    let speaker = |json: &str| serde_json::from_str::<serde_json::Value>(json).unwrap()["speaker"].clone();
    let speakers: Vec<_> = items.iter().map(|item| speaker(&item.json)).collect();
    assert_eq!(speakers, [serde_json::json!({"identity": "speaker-1", "name": null}), serde_json::Value::Null]);
}
