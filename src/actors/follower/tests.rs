//! The actor with a registry, sessions in memory, and a log server that is told what to have.

use bytes::Bytes;
use chrono::Utc;
use futures_util::future::BoxFuture;
use futures_util::stream::{self, BoxStream};
use futures_util::{FutureExt, StreamExt};
use parking_lot::Mutex;
use tokio::sync::{broadcast, watch};

use super::*;
use crate::actors::services::testing::services;
use crate::actors::services::{Services, SessionEnd, SessionRecorder};
use crate::actors::session_core::SessionCore;
use crate::actors::session_registry::SessionRegistry;
use crate::actors::supervision::ChildKind;
use crate::actors::supervision::testing::Parent;
use crate::actors::{Crash, Shutdown};
use crate::bus::Batch;
use crate::bus::log_server::{
    Appended, Held, LogServer, Logged, Message, MessageKind, Question, ServerError, Topic, Unanswered, Work,
};
use crate::bus::wire::{self, NodeReports};
use crate::transcript::{
    Cursor, Entry, Epoch, Item, Read, ReadError, SessionRecord, SpeakerSource, SpeakerUpdate, StoredTail, TranscriptLog,
};

type Answer<'a, T> = BoxFuture<'a, Result<T, ServerError>>;

/// A log in memory, which everything is read from and nothing appended to by the follower.
struct Server {
    steps: watch::Sender<Vec<Followed>>,
    settled: Mutex<Position>,
    link: watch::Sender<Link>,
    heard: broadcast::Sender<(Topic, Bytes)>,
    told: Mutex<Vec<Bytes>>,
    reads: Mutex<usize>,
    owned: Mutex<Vec<Slug>>,
}

impl Server {
    fn new() -> Arc<Self> {
        Arc::new(Self {
            steps: watch::Sender::new(Vec::new()),
            settled: Mutex::new(0),
            link: watch::Sender::new(Link::Up),
            heard: broadcast::Sender::new(64),
            told: Mutex::default(),
            reads: Mutex::default(),
            owned: Mutex::default(),
        })
    }

    fn last(&self) -> Position {
        match self.steps.borrow().last() {
            Some(Followed::Message(logged)) => logged.position,
            Some(Followed::Reset(position)) => *position,
            None => 0,
        }
    }

    fn put(&self, room: &str, kind: MessageKind, fence: &str, body: impl Into<Bytes>) {
        let (room, fence, body) = (slug(room), fence.to_owned(), body.into());
        let position = self.last() + 1;
        let message = Message { room, kind, fence, id: position.to_string(), body };
        let logged = Logged { position, at: Utc::now(), message };
        self.steps.send_modify(|steps| steps.push(Followed::Message(logged)));
    }

    fn own(&self, room: &str, fence: &str) {
        self.put(room, MessageKind::Owner, fence, "{}");
    }

    fn say(&self, room: &str, epoch: u128, fence: &str, seqs: impl IntoIterator<Item = u64>) {
        self.put(room, MessageKind::Entries, fence, body(room, epoch, seqs));
    }

    /// The log begins after this position.
    fn purge(&self, until: Position) {
        let is_gone = |step: &mut Followed| matches!(step, Followed::Message(logged) if logged.position <= until);
        self.steps.send_modify(|steps| steps.retain_mut(|step| !is_gone(step)));
    }

    fn of_room(&self, room: &Slug) -> Vec<Logged> {
        let steps = self.steps.borrow();
        let begin = steps.iter().rposition(|step| matches!(step, Followed::Reset(_))).unwrap_or(0);
        let message = |step: &Followed| match step {
            Followed::Message(logged) if logged.message.room == *room => Some(logged.clone()),
            _ => None,
        };
        steps[begin..].iter().filter_map(message).collect()
    }
}

impl LogServer for Server {
    fn append(&self, _: Message, _: Position) -> BoxFuture<'_, Appended> {
        async { Appended::Unsure("not used here".into()) }.boxed()
    }
    fn head(&self, room: &Slug) -> Answer<'_, Option<Logged>> {
        let last = self.of_room(room).pop();
        async move { Ok(last) }.boxed()
    }
    fn read(&self, room: &Slug, after: Position, limit: usize) -> Answer<'_, Vec<Logged>> {
        *self.reads.lock() += 1;
        let all = self.of_room(room).into_iter();
        let page = all.filter(|logged| logged.position > after).take(limit).collect();
        async move { Ok(page) }.boxed()
    }
    fn follow(&self, after: Position) -> BoxStream<'static, Followed> {
        let steps = self.steps.subscribe();
        let is_next = |after: Position, step: &Followed| match step {
            Followed::Message(logged) => logged.position > after,
            Followed::Reset(_) => true,
        };
        let begin = steps.borrow().iter().position(|step| is_next(after, step)).unwrap_or(steps.borrow().len());
        stream::unfold((steps, begin), |(mut steps, n)| async move {
            let step = steps.wait_for(|steps| steps.len() > n).await.ok()?[n].clone();
            Some((step, (steps, n + 1)))
        })
        .boxed()
    }
    fn settled(&self) -> Answer<'_, Position> {
        let settled = *self.settled.lock();
        async move { Ok(settled) }.boxed()
    }
    fn work(&self, _: usize) -> Answer<'_, Vec<Work>> {
        std::future::pending().boxed()
    }
    fn tidy(&self) -> Answer<'_, f64> {
        async { Ok(0.0) }.boxed()
    }
    fn holder(&self, _: &Slug) -> Answer<'_, Option<Held>> {
        async { Ok(None) }.boxed()
    }
    fn hold(&self, _: &Slug, _: Bytes, _: Option<u64>) -> Answer<'_, Option<u64>> {
        async { Ok(None) }.boxed()
    }
    fn let_go(&self, _: &Slug, _: u64) -> Answer<'_, bool> {
        async { Ok(false) }.boxed()
    }
    fn held(&self) -> Answer<'_, Vec<(Slug, Held)>> {
        let held = |slug: &Slug| (slug.clone(), Held { value: Bytes::new(), revision: 1, at: Utc::now() });
        let owned = self.owned.lock().iter().map(held).collect();
        async move { Ok(owned) }.boxed()
    }
    fn ask(&self, _: &str, _: Bytes, _: Duration) -> BoxFuture<'_, Result<Bytes, Unanswered>> {
        async { Err(Unanswered::Nobody) }.boxed()
    }
    fn questions(&self, _: &str) -> BoxStream<'static, Question> {
        stream::pending().boxed()
    }
    fn tell(&self, _: Topic, body: Bytes) {
        self.told.lock().push(body);
    }
    fn hear(&self, topic: Topic) -> BoxStream<'static, Bytes> {
        let heard = (self.heard.subscribe(), topic);
        stream::unfold(heard, |(mut heard, topic)| async move {
            loop {
                let (of, body) = heard.recv().await.ok()?;
                if of == topic {
                    return Some((body, (heard, topic)));
                }
            }
        })
        .boxed()
    }
    fn link(&self) -> watch::Receiver<Link> {
        self.link.subscribe()
    }
}

fn slug(room: &str) -> Slug {
    Slug::parse(room).unwrap()
}

fn line(room: &str, epoch: u128, seq: Option<u64>, id: &str) -> Entry {
    let epoch = Epoch::from_u128(epoch);
    let json = serde_json::json!({
        "type": "transcript", "session": room, "epoch": epoch, "seq": seq, "id": id, "isFinal": seq.is_some(),
        "text": id, "startMs": 0, "endMs": 1, "timestamp": Utc::now(),
    });
    serde_json::from_value(json).unwrap()
}

fn body(room: &str, epoch: u128, seqs: impl IntoIterator<Item = u64>) -> String {
    let mut batch = Batch::new(slug(room), Epoch::from_u128(epoch));
    let entries = seqs.into_iter().map(|seq| line(room, epoch, Some(seq), &format!("{epoch}-{seq}")).to_json());
    batch.entries = entries.collect();
    wire::body(&batch, &[&batch.entries])
}

/// What the database has of every log.
#[derive(Default)]
struct Database {
    seqs: Mutex<Vec<u64>>,
    is_down: std::sync::atomic::AtomicBool,
    kept: Mutex<usize>,
}

impl SessionRecorder for Database {
    fn started(&self, _: &SessionCore) {
        *self.kept.lock() += 1;
    }
    fn checkpoint(&self, _: &SessionCore) {
        *self.kept.lock() += 1;
    }
    fn ended(&self, _: &SessionCore, _: SessionEnd) {
        *self.kept.lock() += 1;
    }
    fn stored_tail(&self, epoch: Epoch) -> BoxFuture<'static, Result<StoredTail, ReadError>> {
        let seqs = self.seqs.lock().clone();
        if self.is_down.load(std::sync::atomic::Ordering::Relaxed) {
            return async { Err(ReadError("down".into())) }.boxed();
        }
        let n = epoch.as_u128();
        let recent: Vec<_> = seqs.iter().map(|seq| line("demo", n, Some(*seq), &format!("{n}-{seq}"))).collect();
        let known = recent.iter().map(|entry| (entry.id().to_owned(), entry.seq().unwrap())).collect();
        let last_seq = seqs.last().copied().unwrap_or(0);
        async move { Ok(StoredTail { last_seq, known, recent, ..StoredTail::default() }) }.boxed()
    }
    fn keep(&self, _: SessionRecord) -> BoxFuture<'static, bool> {
        *self.kept.lock() += 1;
        async { true }.boxed()
    }
}

struct Bench {
    server: Arc<Server>,
    database: Arc<Database>,
    services: Arc<Services>,
    registry: Addr<SessionRegistry>,
}

impl Bench {
    fn new(settings: &[(&str, &str)]) -> Self {
        Self::with(settings, true)
    }

    /// With a registry that takes no more rooms than `MAX_SESSIONS`, as without a log server.
    fn with_few_rooms(settings: &[(&str, &str)]) -> Self {
        Self::with(settings, false)
    }

    fn with(settings: &[(&str, &str)], is_cluster: bool) -> Self {
        let (server, database) = (Server::new(), Arc::<Database>::default());
        let mut services = services(settings);
        let inner = Arc::get_mut(&mut services).unwrap();
        inner.log_server = is_cluster.then(|| server.clone() as SharedServer);
        inner.recorder = database.clone();
        let lifeline =
            Lifeline::new(Parent::start().0.recipient(), ChildKind::SessionRegistry, 1, services.metrics.clone());
        let arbiters = Arc::new(vec![Arbiter::current()]);
        let registry = SessionRegistry::start(Arc::default(), services.clone(), arbiters, lifeline);
        Self { server, database, services, registry }
    }

    fn follow(&self) -> Addr<Follower> {
        let services = &self.services;
        let params = FollowerParams {
            server: self.server.clone(),
            node: "ws-1".into(),
            registry: self.registry.clone().recipient(),
            directory: services.directory.clone(),
            reports: services.reports.clone(),
            metrics: services.metrics.clone(),
            caught_up: services.caught_up.clone(),
        };
        let lifeline = Lifeline::new(Parent::start().0.recipient(), ChildKind::Follower, 1, services.metrics.clone());
        Follower::start(&Arbiter::current(), params, lifeline)
    }

    async fn log(&self, room: &str, epoch: u128) -> Arc<TranscriptLog> {
        let room = self.services.directory.get_or_create(&slug(room));
        until(async || room.log_of(Epoch::from_u128(epoch))).await
    }

    /// Waits until the mirror of a room has this number last; gives what its ring has.
    async fn shows(&self, room: &str, epoch: u128, last: u64) -> Vec<u64> {
        let log = self.log(room, epoch).await;
        until(async || (log.last_seq() >= last).then_some(())).await;
        assert_eq!(log.last_seq(), last);
        items(&log).iter().filter_map(|item| item.seq).collect()
    }
}

fn items(log: &TranscriptLog) -> Vec<Item> {
    match log.read(&mut Cursor::after(log.readable_after()), 10_000) {
        Read::Items(items) => items,
        Read::FellOff { .. } => panic!("all of the ring was asked for"),
    }
}

/// Waits for it, in the clock's time.
async fn until<T>(mut what: impl AsyncFnMut() -> Option<T>) -> T {
    for _ in 0..30_000 {
        if let Some(it) = what().await {
            return it;
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    panic!("it did not happen");
}

#[actix::test]
async fn a_session_that_is_silent_is_here_before_anybody_asks() {
    tokio::time::pause();
    let bench = Bench::new(&[]);
    bench.server.own("demo", "f1");
    bench.server.say("demo", 1, "f1", 1..=3);
    bench.server.own("free", "f2");
    bench.server.say("free", 2, "f2", 1..=3);
    *bench.server.settled.lock() = bench.server.last();
    *bench.server.owned.lock() = vec![slug("demo")];
    *bench.database.seqs.lock() = vec![1, 2, 3];
    let _follower = bench.follow();
    let _ = bench.services.caught_up.subscribe().wait_for(|caught_up| *caught_up).await;
    assert_eq!(bench.shows("demo", 1, 3).await, [1, 2, 3]);
    assert!(bench.services.directory.get(&slug("free")).is_none(), "nobody owns it");
}

#[actix::test]
async fn a_mirror_joins_the_database_and_goes_on_with_the_log() {
    tokio::time::pause();
    let bench = Bench::new(&[]);
    bench.server.own("demo", "f1");
    bench.server.say("demo", 1, "f1", 1..=3);
    *bench.server.settled.lock() = 2;
    bench.server.say("demo", 1, "f1", 4..=5);
    // Another node has written what comes later already.
    *bench.database.seqs.lock() = vec![1, 2, 3, 5];
    bench.server.say("demo", 1, "f1", [6]);
    bench.follow();
    assert_eq!(bench.shows("demo", 1, 6).await, [1, 2, 3, 4, 5, 6]);
    bench.server.say("demo", 1, "f1", 7..=8);
    assert_eq!(bench.shows("demo", 1, 8).await.len(), 8);
    assert_eq!((*bench.server.reads.lock(), *bench.database.kept.lock()), (0, 0), "nothing of it is kept here");
}

#[actix::test]
async fn messages_of_somebody_who_does_not_own_the_room_are_dropped() {
    tokio::time::pause();
    let bench = Bench::new(&[]);
    bench.server.say("demo", 1, "f1", [1]);
    bench.server.own("demo", "f2");
    bench.server.put("demo", MessageKind::Entries, "f1", body("demo", 1, [2]));
    bench.server.put("demo", MessageKind::Entries, "f2", "no JSON");
    bench.server.say("demo", 1, "f2", [2, 3]);
    bench.follow();
    assert_eq!(bench.shows("demo", 1, 3).await, [1, 2, 3]);
    assert_eq!(bench.services.metrics.bus_stale_messages_total.get(), 1);
}

#[actix::test]
async fn what_a_mirror_lacks_is_read_from_the_log_and_what_is_not_there_is_skipped() {
    tokio::time::pause();
    for (purged, ring) in [(0, (1..=30).collect::<Vec<u64>>()), (11, (11..=30).collect())] {
        let bench = Bench::new(&[]);
        bench.server.own("demo", "f1");
        (1..=29).for_each(|seq| bench.server.say("demo", 1, "f1", [seq]));
        *bench.server.settled.lock() = bench.server.last();
        // The database has not what it was said to have.
        *bench.database.seqs.lock() = vec![1, 2, 3, 4, 5];
        bench.server.purge(purged);
        bench.server.say("other", 9, "f9", [1]);
        bench.server.say("demo", 1, "f1", [30]);
        bench.follow();
        assert_eq!(bench.shows("demo", 1, 30).await, ring);
        assert_eq!(bench.shows("other", 9, 1).await, [1]);
    }
}

#[actix::test]
async fn without_a_database_the_log_is_shown_as_far_as_it_goes_back() {
    tokio::time::pause();
    let bench = Bench::new(&[]);
    bench.database.is_down.store(true, std::sync::atomic::Ordering::Relaxed);
    (1..=20).for_each(|seq| bench.server.say("demo", 1, "f1", [seq]));
    bench.server.purge(4);
    *bench.server.settled.lock() = 18;
    bench.follow();
    assert_eq!(bench.shows("demo", 1, 20).await, (5..=20).collect::<Vec<u64>>());
}

#[actix::test]
async fn after_a_reset_the_log_goes_on_and_fences_begin_anew() {
    tokio::time::pause();
    let bench = Bench::new(&[]);
    bench.server.own("demo", "f7");
    (1..=9).for_each(|seq| bench.server.say("demo", 1, "f7", [seq]));
    bench.follow();
    bench.shows("demo", 1, 9).await;
    bench.server.steps.send_modify(|steps| steps.push(Followed::Reset(0)));
    bench.server.own("demo", "f1");
    bench.server.say("demo", 1, "f1", [8, 9, 10]);
    assert_eq!(bench.shows("demo", 1, 10).await.len(), 10);
    assert_eq!(bench.services.metrics.bus_stale_messages_total.get(), 0);
}

#[actix::test]
async fn a_follower_that_begins_anew_repeats_nothing_to_viewers() {
    tokio::time::pause();
    let bench = Bench::new(&[]);
    bench.server.say("demo", 1, "f1", 1..=3);
    let follower = bench.follow();
    bench.shows("demo", 1, 3).await;
    follower.do_send(Crash);
    bench.server.say("demo", 1, "f1", 4..=5);
    until(async || (!follower.connected()).then_some(())).await;
    let follower = bench.follow();
    assert_eq!(bench.shows("demo", 1, 5).await, [1, 2, 3, 4, 5]);
    follower.send(Shutdown).await.unwrap();
}

#[actix::test]
async fn the_last_entries_of_an_epoch_come_after_the_next_one_has_begun() {
    tokio::time::pause();
    let bench = Bench::new(&[]);
    bench.server.say("demo", 1, "f1", 1..=2);
    bench.server.own("demo", "f2");
    bench.server.say("demo", 2, "f2", 1..=2);
    bench.server.say("demo", 1, "f2", [3]);
    bench.server.say("demo", 2, "f2", [3]);
    bench.follow();
    assert_eq!(bench.shows("demo", 2, 3).await, [1, 2, 3]);
    assert_eq!(bench.shows("demo", 1, 3).await, [1, 2, 3]);
    assert_eq!(bench.services.directory.get(&slug("demo")).unwrap().current().unwrap().epoch(), Epoch::from_u128(2));
}

#[actix::test]
async fn a_room_that_is_not_taken_holds_up_no_other_and_is_read_again() {
    tokio::time::pause();
    let bench = Bench::with_few_rooms(&[("MAX_SESSIONS", "1"), ("ROOM_HISTORY", "5000")]);
    bench.server.say("first", 1, "f1", [1]);
    bench.follow();
    bench.shows("first", 1, 1).await;
    (1..=1500).for_each(|seq| bench.server.say("demo", 2, "f2", [seq]));
    bench.server.say("first", 1, "f1", [2]);
    bench.shows("first", 1, 2).await;
    assert_eq!(bench.services.directory.len(), 1);
    // The first session ends, and there is room.
    let mut ended = Batch::new(slug("first"), Epoch::from_u128(1));
    let status = serde_json::json!({
        "type": "status", "session": "first", "epoch": ended.epoch, "seq": 3, "id": "end", "status": "ended",
    });
    ended.entries = vec![status.to_string().into()];
    bench.server.put("first", MessageKind::Entries, "f1", wire::body(&ended, &[&ended.entries]));
    assert_eq!(bench.shows("demo", 2, 1500).await.len(), 1500);
    assert!(*bench.server.reads.lock() > 0, "it was not held in memory");
}

#[actix::test]
async fn who_comes_to_a_quiet_room_is_shown_its_log() {
    tokio::time::pause();
    for with_owner_record in [false, true] {
        let bench = Bench::new(&[]);
        bench.server.say("demo", 1, "f1", 1..=3);
        bench.server.say("demo", 1, "f1", 4..=5);
        if with_owner_record {
            bench.server.own("demo", "f2");
        }
        *bench.server.settled.lock() = bench.server.last();
        *bench.database.seqs.lock() = vec![1, 2, 3, 4, 5];
        bench.follow();
        let rooms = [slug("demo"), slug("empty")].map(|slug| bench.services.directory.get_or_create(&slug));
        tokio::time::sleep(SWEEP * 3).await;
        assert!(rooms[0].current().is_none());
        let _viewers = rooms.each_ref().map(|room| room.enter(10).unwrap());
        assert_eq!(bench.shows("demo", 1, 5).await, [1, 2, 3, 4, 5]);
        assert!(rooms[1].current().is_none());
    }
}

#[actix::test]
async fn interims_come_to_rooms_that_are_watched() {
    tokio::time::pause();
    let bench = Bench::new(&[]);
    bench.server.say("demo", 1, "f1", [1]);
    bench.follow();
    let log = bench.log("demo", 1).await;
    bench.shows("demo", 1, 1).await;
    let tell = |epoch: u128, id: &str| {
        let mut batch = Batch::new(slug("demo"), Epoch::from_u128(epoch));
        batch.interims = vec![line("demo", epoch, None, id).to_json()];
        let body = wire::body(&batch, &[&batch.interims]);
        let _ = bench.server.heard.send((Topic::Interims(slug("demo")), body.into()));
    };
    tell(1, "nobody-watches");
    tokio::time::sleep(SWEEP * 2).await;
    let room = bench.services.directory.get(&slug("demo")).unwrap();
    let viewer = room.enter(10).unwrap();
    until(async || (bench.server.heard.receiver_count() > 0).then_some(())).await;
    ["1-1", "new"].into_iter().for_each(|id| tell(1, id));
    tell(2, "of-another-epoch");
    let shown = until(async || items(&log).into_iter().find(|item| item.seq.is_none())).await;
    assert!(shown.json.contains("\"new\""), "{shown:?}");
    tokio::time::sleep(SWEEP * 2).await;
    assert_eq!(items(&log).len(), 2, "a final is not taken back, and no session begins for a guess");
    drop(viewer);
    until(async || (bench.server.heard.receiver_count() == 0).then_some(())).await;
}

#[actix::test]
async fn the_others_are_told_who_speaks_and_who_watches() {
    tokio::time::pause();
    let bench = Bench::new(&[]);
    let room = bench.services.directory.get_or_create(&slug("demo"));
    let _viewer = room.enter(10).unwrap();
    bench.follow();
    let told = async || bench.server.told.lock().pop().map(|body| serde_json::from_slice(&body).unwrap());
    let first: NodeReports = until(told).await;
    assert_eq!((first.node.as_str(), first.reports.viewers[&slug("demo")]), ("ws-1", 1));
    let source = SpeakerSource::Viewer("anna".into());
    let (identity, at) = ("anna".to_owned(), Instant::now());
    let update = SpeakerUpdate { identity, name: None, active: true, level: 0.5, at, source };
    bench.services.reports.push(&slug("demo"), &update);
    let next: NodeReports = until(told).await;
    assert_eq!(next.reports.reports.len(), 1);
    let last: NodeReports = until(told).await;
    assert_eq!(last.reports.reports.len(), 0);
}

#[actix::test]
async fn viewers_are_told_while_the_log_server_is_away() {
    tokio::time::pause();
    let bench = Bench::new(&[]);
    bench.server.say("demo", 1, "f1", [1]);
    let follower = bench.follow();
    bench.shows("demo", 1, 1).await;
    let log = bench.log("demo", 1).await;
    let notices = |cursor: &mut Cursor| {
        let Read::Items(items) = log.read(cursor, 9) else { panic!("nothing has left the ring") };
        items.into_iter().map(|item| item.json).collect::<Vec<_>>()
    };
    let mut cursor = Cursor::after(1);
    notices(&mut cursor);
    bench.server.link.send_replace(Link::Away("cut".into()));
    tokio::time::sleep(Duration::from_millis(900)).await;
    assert_eq!(notices(&mut cursor).len(), 0, "a short cut is none");
    let away = until(async || notices(&mut cursor).pop()).await;
    assert!(away.contains("\"bus_away\"") && away.contains("\"seq\":null"), "{away}");
    // Its successor knows what was told.
    follower.do_send(Crash);
    until(async || (!follower.connected()).then_some(())).await;
    bench.server.link.send_replace(Link::Up);
    bench.follow();
    let back = until(async || notices(&mut cursor).pop()).await;
    assert!(back.contains("\"bus_back\"") && back.contains("\"status\":\"live\""), "{back}");
}
