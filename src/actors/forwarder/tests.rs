//! The actor with an outbox on disk, rooms in memory and a target that is told what to answer.

use std::collections::VecDeque;

use chrono::Utc;
use futures_util::FutureExt;
use parking_lot::Mutex;

use super::*;
use crate::actors::supervision::ChildKind;
use crate::actors::supervision::testing::Parent;
use crate::bus::wire::{NodeReports, Report, Reports};
use crate::bus::{Batch, Outcome};
use crate::config::Fsync;
use crate::transcript::outbox::OutboxOptions;
use crate::transcript::{Entry, SpeakerUpdate, TranscriptLog};

/// A ws node in memory: keeps what it takes, by epoch and number, and answers as it is told.
#[derive(Default)]
struct Node {
    posts: Mutex<Vec<Batch>>,
    answers: Mutex<VecDeque<Outcome>>,
    /// Reports that it has for whoever asks.
    reports: Mutex<Option<Reports>>,
    /// Largest post that it takes, in entries.
    most: Mutex<Option<usize>>,
}

impl Node {
    fn texts(&self) -> Vec<String> {
        self.posts.lock().iter().flat_map(|post| &post.entries).map(|json| text(json)).collect()
    }

    fn interims(&self) -> Vec<String> {
        self.posts.lock().iter().flat_map(|post| &post.interims).map(|json| text(json)).collect()
    }
}

fn text(json: &str) -> String {
    match serde_json::from_str(json).unwrap() {
        Entry::Transcript(line) => line.text,
        other => other.id().to_owned(),
    }
}

struct InMemory(Arc<Node>);

impl Bus for InMemory {
    fn append<'a>(&'a self, batch: &'a Batch) -> LocalBoxFuture<'a, Outcome> {
        async move {
            if let Some(answer) = self.0.answers.lock().pop_front() {
                return answer;
            }
            if self.0.most.lock().is_some_and(|most| batch.entries.len() > most) {
                return Outcome::TooLarge;
            }
            self.0.posts.lock().push(batch.clone());
            Outcome::Stored { last_seq: 0 }
        }
        .boxed_local()
    }

    fn reports(&self, _: u64) -> LocalBoxFuture<'_, Result<NodeReports, Outcome>> {
        async move {
            let reports = self.0.reports.lock().take();
            match reports {
                Some(reports) => Ok(NodeReports { node: TARGET.to_owned(), reports }),
                None => std::future::pending().await,
            }
        }
        .boxed_local()
    }
}

const TARGET: &str = "http://ws-1";

struct Bench {
    _dir: tempfile::TempDir,
    outbox: Outbox,
    directory: Arc<Directory>,
    metrics: Arc<Metrics>,
    node: Arc<Node>,
    log: Arc<TranscriptLog>,
    max_bytes: u64,
}

impl Bench {
    /// A room whose ring holds so many entries.
    fn new(ring: usize) -> Self {
        Self::with_outbox(ring, 1 << 30)
    }

    fn with_outbox(ring: usize, max_bytes: u64) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let metrics = Arc::new(Metrics::new());
        let options = OutboxOptions {
            data_dir: dir.path().to_owned(),
            fsync: Fsync::Interval,
            fsync_interval: Duration::from_secs(1),
            max_bytes,
            segment_bytes: (max_bytes / 16).min(1 << 20),
            consumers: vec![TARGET.to_owned(), "http://ws-2".to_owned()],
        };
        let (outbox, _) = Outbox::open(options, metrics.clone()).unwrap();
        let slug = Slug::parse("demo").unwrap();
        let log = Arc::new(TranscriptLog::new(slug.clone(), Epoch::now_v7(), 0, ring, 1 << 20));
        let directory = Arc::new(Directory::default());
        directory.get_or_create(&slug).set_current(log.clone());
        Self { _dir: dir, outbox, directory, metrics, node: Arc::default(), log, max_bytes }
    }

    fn start(&self) -> Addr<Forwarder> {
        let params = ForwarderParams {
            url: TARGET.to_owned(),
            queue: self.outbox.consumer(TARGET).unwrap(),
            outbox: self.outbox.clone(),
            max_outbox_bytes: self.max_bytes,
            directory: self.directory.clone(),
            metrics: self.metrics.clone(),
        };
        let node = self.node.clone();
        let bus: MakeBus = Box::new(move || Rc::new(InMemory(node)) as Rc<dyn Bus>);
        let lifeline = Lifeline::new(Parent::start().0.recipient(), ChildKind::Forwarder, 1, self.metrics.clone());
        Forwarder::start(&Arbiter::current(), params, bus, lifeline)
    }

    fn line(&self, text: &str, seq: Option<u64>) -> Entry {
        let (session, epoch) = (self.log.slug(), self.log.epoch());
        let json = serde_json::json!({
            "type": "transcript", "session": session, "epoch": epoch, "seq": seq, "id": text, "isFinal": seq.is_some(),
            "text": text, "startMs": 0, "endMs": 1, "timestamp": Utc::now(),
        });
        serde_json::from_value(json).unwrap()
    }

    /// As a room does: into the outbox, then into the log.
    async fn say(&self, seq: u64) {
        let entry = self.line(&format!("l{seq}"), Some(seq));
        self.outbox.append(&Record::Entry(Arc::new(entry.clone()))).await.unwrap();
        self.log.publish(&entry).unwrap();
    }

    async fn flush(&self, forwarder: &Addr<Forwarder>) -> u64 {
        forwarder.send(Flush { deadline: Duration::from_secs(20) }).await.unwrap()
    }
}

fn lines(seqs: impl IntoIterator<Item = u64>) -> Vec<String> {
    seqs.into_iter().map(|seq| format!("l{seq}")).collect()
}

async fn until(what: &str, condition: impl Fn() -> bool) {
    let wait = async {
        while !condition() {
            tokio::task::yield_now().await;
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(20), wait).await.unwrap_or_else(|_| panic!("{what}: not within 20 s"));
}

#[actix::test]
async fn what_gathers_while_a_post_is_under_way_is_the_next_one() {
    let bench = Bench::new(1000);
    for seq in 1..=5 {
        bench.say(seq).await;
    }
    let forwarder = bench.start();
    assert_eq!(bench.flush(&forwarder).await, 0);
    assert_eq!(bench.node.texts(), lines(1..=5));
    assert_eq!(bench.node.posts.lock().len(), 1);
    bench.say(6).await;
    assert_eq!(bench.flush(&forwarder).await, 0);
    assert_eq!(bench.node.texts(), lines(1..=6), "nothing is sent twice");
}

#[actix::test]
async fn an_answer_that_is_not_clear_repeats_the_post() {
    let bench = Bench::new(1000);
    let unclear = [
        Outcome::Unsure("reset".into()),
        Outcome::Full { retry_after: None, room: false, why: "draining".into() },
        Outcome::Full { retry_after: None, room: true, why: "too_many_sessions".into() },
    ];
    bench.node.answers.lock().extend(unclear);
    let forwarder = bench.start();
    for seq in 1..=3 {
        bench.say(seq).await;
    }
    assert_eq!(bench.flush(&forwarder).await, 0);
    assert_eq!(bench.node.texts(), lines(1..=3));
}

#[actix::test]
async fn a_hole_on_the_other_side_is_healed_from_there_on() {
    let bench = Bench::new(1000);
    let forwarder = bench.start();
    for seq in 1..=4 {
        bench.say(seq).await;
    }
    assert_eq!(bench.flush(&forwarder).await, 0);
    let before = bench.node.texts().len();
    // It was set up anew with half of what it had.
    bench.node.answers.lock().push_back(Outcome::Refused { expected: 3, why: "hole".into() });
    bench.say(5).await;
    assert_eq!(bench.flush(&forwarder).await, 0);
    assert_eq!(bench.node.texts()[before..], lines(3..=5));
    assert_eq!(bench.node.posts.lock().last().unwrap().begins, None);
}

/// Whatever a target answers, it does not make us ask it again and again.
#[actix::test]
async fn a_target_that_asks_for_one_number_and_then_another_is_given_time() {
    let bench = Bench::new(1000);
    for seq in 1..=4 {
        bench.say(seq).await;
    }
    let hole = |expected| Outcome::Refused { expected, why: "hole".into() };
    bench.node.answers.lock().extend((0..10_000).map(|n| hole(if n % 2 == 0 { 3 } else { 1 })));
    let begun = tokio::time::Instant::now();
    let _forwarder = bench.start();
    until("it was asked six times", || bench.node.answers.lock().len() <= 9994).await;
    assert!(begun.elapsed() > Duration::from_millis(300), "the fourth time and later ones with growing pauses");
}

/// The number in such an answer is that of another log.
#[actix::test]
async fn a_room_that_is_somebody_elses_there_waits_and_loses_nothing() {
    let bench = Bench::new(1000);
    bench.node.answers.lock().push_back(Outcome::Foreign("409, conflict".into()));
    let forwarder = bench.start();
    for seq in 1..=3 {
        bench.say(seq).await;
    }
    assert_eq!(bench.flush(&forwarder).await, 0);
    assert_eq!(bench.node.texts(), lines(1..=3));
}

/// A target that is away for days pins no log of a session that has ended.
#[actix::test]
async fn a_log_that_its_room_lets_go_of_is_let_go_of_and_its_rows_are_sent() {
    let mut bench = Bench::new(1000);
    bench.node.answers.lock().extend((0..1000).map(|_| Outcome::Unsure("no connection".into())));
    let forwarder = bench.start();
    for seq in 1..=3 {
        bench.say(seq).await;
    }
    until("its sender waits", || bench.node.answers.lock().len() < 999).await;
    let room = bench.directory.get(bench.log.slug()).unwrap();
    bench.log.close();
    let old = Arc::downgrade(&bench.log);
    for _ in 0..4 {
        bench.log = Arc::new(TranscriptLog::new(room.slug().clone(), Epoch::now_v7(), 0, 10, 1000));
        room.set_current(bench.log.clone());
    }
    until("nobody keeps it", || old.upgrade().is_none()).await;
    bench.node.answers.lock().clear();
    assert_eq!(bench.flush(&forwarder).await, 0);
    assert_eq!(bench.node.texts(), lines(1..=3));
}

#[actix::test]
async fn what_neither_ring_nor_outbox_has_any_more_is_said() {
    let bench = Bench::new(2);
    for seq in 1..=3 {
        bench.log.publish(&bench.line(&format!("l{seq}"), Some(seq))).unwrap();
    }
    let forwarder = bench.start();
    for seq in 4..=6 {
        bench.say(seq).await;
    }
    assert_eq!(bench.flush(&forwarder).await, 0);
    let before = bench.node.posts.lock().len();
    bench.node.answers.lock().push_back(Outcome::Refused { expected: 1, why: "hole".into() });
    bench.say(7).await;
    assert_eq!(bench.flush(&forwarder).await, 0);
    let posts = bench.node.posts.lock();
    let sent: Vec<_> = posts[before..].iter().flat_map(|post| &post.entries).map(|json| text(json)).collect();
    assert_eq!((posts[before].begins, sent), (Some(4), lines(4..=7)));
}

#[actix::test]
async fn a_post_that_is_too_large_is_split() {
    let bench = Bench::new(1000);
    *bench.node.most.lock() = Some(3);
    for seq in 1..=10 {
        bench.say(seq).await;
    }
    let forwarder = bench.start();
    assert_eq!(bench.flush(&forwarder).await, 0);
    assert_eq!(bench.node.texts(), lines(1..=10));
}

#[actix::test]
async fn interims_have_one_attempt_and_none_follows_its_final() {
    let bench = Bench::new(1000);
    let forwarder = bench.start();
    bench.say(1).await;
    assert_eq!(bench.flush(&forwarder).await, 0);
    assert!(bench.log.show_interim(&bench.line("half a", None)));
    until("it is there", || bench.node.interims() == ["half a"]).await;
    bench.node.answers.lock().push_back(Outcome::Unsure("reset".into()));
    assert!(bench.log.show_interim(&bench.line("lost", None)));
    until("it was tried", || bench.node.answers.lock().is_empty()).await;
    for text in ["late", "l2"] {
        assert!(bench.log.show_interim(&bench.line(text, None)));
    }
    bench.say(2).await;
    assert_eq!(bench.flush(&forwarder).await, 0);
    until("the newest", || bench.node.interims().iter().any(|text| text == "late")).await;
    let posts = bench.node.posts.lock();
    let (mut is_final, mut after) = (false, Vec::new());
    for post in posts.iter() {
        is_final |= post.entries.iter().any(|json| text(json) == "l2");
        if is_final {
            after.extend(post.interims.iter().map(|json| text(json)).filter(|text| text == "l2"));
        }
    }
    assert_eq!(after, Vec::<String>::new());
}

#[actix::test]
async fn rows_of_an_earlier_process_come_from_the_outbox() {
    let bench = Bench::new(1000);
    // A session that is not in memory any more, with its row.
    let (slug, epoch) = (Slug::parse("past").unwrap(), Epoch::now_v7());
    let record = crate::transcript::SessionRecord::begun(epoch, slug.clone(), Utc::now());
    bench.outbox.append(&Record::Session(Arc::new(record))).await.unwrap();
    for seq in 1..=300 {
        let mut entry = bench.line(&format!("l{seq}"), Some(seq));
        entry.set_epoch(epoch);
        if let Entry::Transcript(line) = &mut entry {
            line.session = slug.clone();
        }
        bench.outbox.append(&Record::Entry(Arc::new(entry))).await.unwrap();
    }
    let forwarder = bench.start();
    assert_eq!(bench.flush(&forwarder).await, 0);
    assert_eq!(bench.node.texts(), lines(1..=300));
    let posts = bench.node.posts.lock();
    assert!(posts.iter().any(|post| post.record.as_ref().is_some_and(|record| record.epoch == epoch)));
}

/// The rooms are looked at before the outbox is read.
#[actix::test]
async fn what_was_said_before_a_forwarder_began_is_sent_whenever_it_finds_the_room() {
    for _ in 0..50 {
        let bench = Bench::new(1000);
        let forwarder = bench.start();
        for seq in 1..=3 {
            bench.say(seq).await;
            tokio::task::yield_now().await;
        }
        assert_eq!(bench.flush(&forwarder).await, 0);
        assert_eq!(bench.node.texts(), lines(1..=3));
    }
}

/// The row of an ended session comes after its last entry; nothing is sent again for it.
#[actix::test]
async fn the_last_row_of_a_session_goes_alone() {
    let bench = Bench::new(1000);
    let forwarder = bench.start();
    for seq in 1..=3 {
        bench.say(seq).await;
    }
    assert_eq!(bench.flush(&forwarder).await, 0);
    bench.log.close();
    let record = crate::transcript::SessionRecord::begun(bench.log.epoch(), bench.log.slug().clone(), Utc::now());
    bench.outbox.append(&Record::Session(Arc::new(record))).await.unwrap();
    assert_eq!(bench.flush(&forwarder).await, 0);
    assert_eq!(bench.node.texts(), lines(1..=3));
    assert!(bench.node.posts.lock().iter().any(|post| post.record.is_some() && post.entries.is_empty()));
}

/// One node that is away for days must not cost the others their place on the disk.
#[actix::test]
async fn a_target_that_is_behind_for_good_does_not_fill_the_outbox() {
    let bench = Bench::with_outbox(10, 256 << 10);
    bench.node.answers.lock().extend((0..100_000).map(|_| Outcome::Unsure("no connection".into())));
    let _forwarder = bench.start();
    let other = bench.outbox.consumer("http://ws-2").unwrap();
    let given_up = bench.metrics.forward_rows_given_up_total.with_label_values(&[TARGET]);
    let mut seq = 0;
    while given_up.get() == 0 {
        let is_room = bench.outbox.stats().bytes < (250 << 10);
        if is_room {
            seq += 1;
            bench.say(seq).await;
            other.confirm(seq);
        } else {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }
    until("its segments are gone", || bench.outbox.stats().bytes < (200 << 10)).await;
    bench.say(seq + 1).await;
}

#[actix::test]
async fn a_successor_goes_on_after_what_was_confirmed() {
    let bench = Bench::new(1000);
    let first = bench.start();
    for seq in 1..=3 {
        bench.say(seq).await;
    }
    assert_eq!(bench.flush(&first).await, 0);
    first.send(crate::actors::Shutdown).await.unwrap();
    bench.say(4).await;
    let second = bench.start();
    assert_eq!(bench.flush(&second).await, 0);
    assert_eq!(bench.node.texts(), lines(1..=4));
}

#[actix::test]
async fn speakers_and_viewers_come_back() {
    let bench = Bench::new(10);
    let room = bench.directory.get(bench.log.slug()).unwrap();
    let heard: Arc<Mutex<Vec<SpeakerUpdate>>> = Arc::default();
    let sink = heard.clone();
    room.set_speaker_sink(Some(Arc::new(move |update| sink.lock().push(update))));
    let report = Report {
        is_track: false,
        session: bench.log.slug().clone(),
        identity: "anna".into(),
        name: Some("Anna".into()),
        active: true,
        level: 0.5,
        age_ms: 40,
        viewer: "anna".into(),
    };
    let viewers = [(bench.log.slug().clone(), 3)].into();
    *bench.node.reports.lock() = Some(Reports { next: 1, reports: vec![report], viewers });
    let _forwarder = bench.start();
    until("the report", || heard.lock().len() == 1).await;
    assert_eq!((heard.lock()[0].identity.as_str(), room.viewers_anywhere()), ("anna", 3));
}
