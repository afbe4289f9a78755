//! TranscriptRoom: numbers a session's results, makes them durable and shows them.
//!
//! Owns: the order of the log (it alone assigns seq). Receives: [`RoomInput`] from the session's `room` edge, and
//! [`Broadcast`]s from outside. Sends: durable entries to the outbox, then to the log that viewers read. Ends when told.
//!
//! An item leaves the edge only after it was published, so a panic here repeats the item instead of losing it; the
//! log refuses an id that it has, which makes the repetition harmless.

use std::collections::{HashMap, HashSet, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use actix::prelude::*;
use chrono::{DateTime, SecondsFormat, Utc};
use futures_util::StreamExt;
use futures_util::future::BoxFuture;
use futures_util::stream::FuturesOrdered;
use serde_json::json;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::Instant;

use super::Observe;
use super::session_core::SessionCore;
use super::session_registry::{Broadcast, BroadcastAck, BroadcastEntry, BroadcastRefusal};
use super::speaker_tracker::LabelUtterance;
use super::supervision::Lifeline;
use crate::log::checkpoint::Origin;
use crate::log::entry::sanitise_text;
use crate::log::{
    Durability, Entry, EntrySink, Gap, GapReason, Latency, Speaker, Status, StatusChange, Transcript, Word,
};

/// Longest wait for the speaker's name; past it the final goes out without.
const LABEL_TIMEOUT: Duration = Duration::from_millis(5);
/// Entries handed to the outbox and not yet answered.
const MAX_APPENDS_IN_FLIGHT: usize = 64;
/// Open utterances whose revision is counted.
const MAX_OPEN_UTTERANCES: usize = 64;

/// What comes out of the recogniser, or is to be said about the session, in order.
#[derive(Debug, Clone)]
pub enum RoomInput {
    /// The recogniser's present guess of an open utterance.
    Interim(Utterance),
    /// The recogniser took an open utterance back: it will never have a final.
    Retracted {
        id: String,
    },
    Final(Utterance),
    /// Audio that will never become text. `id` makes a repeated announcement harmless.
    Gap {
        id: String,
        start_ms: u64,
        end_ms: u64,
        reason: GapReason,
    },
    Status {
        id: String,
        status: Status,
        reason: Option<String>,
    },
}

/// One utterance in session time, with ids that are unique in the epoch.
#[derive(Debug, Clone)]
pub struct Utterance {
    /// The same for all interims and the final of an utterance.
    pub id: String,
    pub text: String,
    pub start_ms: u64,
    pub end_ms: u64,
    pub language: Option<String>,
    pub confidence: Option<f64>,
    pub words: Option<Vec<Word>>,
    /// When the recogniser's message reached us.
    pub received_at: DateTime<Utc>,
    pub received: Instant,
    /// Arrival of the last audio tag of the utterance to its PCM chunk.
    pub decode_ms: Option<u64>,
    /// Sending the last audio of the utterance to the recogniser's message.
    pub stt_ms: Option<u64>,
}

/// Answers once everything that is in the room edge now has been published.
#[derive(Debug, Clone, Copy, Message)]
#[rtype(result = "()")]
pub struct Drain;

/// See the module.
pub struct TranscriptRoom {
    core: Arc<SessionCore>,
    sink: Arc<dyn EntrySink>,
    ingest: mpsc::UnboundedSender<Ingest>,
    ingest_rx: Option<mpsc::UnboundedReceiver<Ingest>>,
    /// Items taken off the edge in this life.
    done: watch::Sender<u64>,
    lifeline: Lifeline,
}

type Ingest = (Vec<BroadcastEntry>, oneshot::Sender<Result<BroadcastAck, BroadcastRefusal>>);

impl TranscriptRoom {
    pub fn start(core: Arc<SessionCore>, sink: Arc<dyn EntrySink>, lifeline: Lifeline) -> Addr<Self> {
        let (ingest, ingest_rx) = mpsc::unbounded_channel();
        let done = watch::Sender::new(0);
        Actor::start(Self { core, sink, ingest, ingest_rx: Some(ingest_rx), done, lifeline })
    }
}

impl Actor for TranscriptRoom {
    type Context = Context<Self>;

    fn started(&mut self, ctx: &mut Self::Context) {
        self.lifeline.started();
        let Some(ingest) = self.ingest_rx.take() else { return };
        let writer = Writer::new(self.core.clone(), self.sink.clone(), self.done.clone());
        ctx.spawn(writer.run(ingest).into_actor(self));
    }
}

impl Handler<Drain> for TranscriptRoom {
    type Result = ResponseFuture<()>;

    fn handle(&mut self, _: Drain, _: &mut Self::Context) -> Self::Result {
        let core = self.core.clone();
        let mut done = self.done.subscribe();
        Box::pin(async move {
            while !core.is_room_done() {
                if done.changed().await.is_err() {
                    return;
                }
            }
        })
    }
}

impl Handler<Broadcast> for TranscriptRoom {
    type Result = ResponseFuture<Result<BroadcastAck, BroadcastRefusal>>;

    fn handle(&mut self, broadcast: Broadcast, _: &mut Self::Context) -> Self::Result {
        let (reply, answer) = oneshot::channel();
        let sent = self.ingest.send((broadcast.entries, reply));
        Box::pin(async move {
            sent.map_err(|_| BroadcastRefusal::Unavailable)?;
            answer.await.unwrap_or(Err(BroadcastRefusal::Unavailable))
        })
    }
}

impl Handler<Observe> for TranscriptRoom {
    type Result = MessageResult<Observe>;

    fn handle(&mut self, _: Observe, _: &mut Self::Context) -> Self::Result {
        MessageResult(json!({
            "generation": self.lifeline.generation(),
            "lastSeq": self.core.log.last_seq(),
            "status": self.core.log.status().as_str(),
            "waiting": self.core.room.len(),
            "handled": *self.done.borrow(),
        }))
    }
}

crate::stops_and_crashes!(TranscriptRoom);

/// The one future that writes the log.
struct Writer {
    core: Arc<SessionCore>,
    sink: Arc<dyn EntrySink>,
    done: watch::Sender<u64>,
    /// Last number given, published or not.
    assigned: u64,
    appends: FuturesOrdered<BoxFuture<'static, (Arc<Entry>, Durability)>>,
    /// Ids of the entries in `appends`.
    in_flight: HashSet<String>,
    /// For each item looked at and still in the edge: does it wait for its append?
    slots: VecDeque<Slot>,
    revisions: HashMap<String, u32>,
    /// Broadcasts whose entries are not all published: answered when the log reaches the number.
    replies: VecDeque<(BroadcastAck, oneshot::Sender<Result<BroadcastAck, BroadcastRefusal>>)>,
}

#[derive(PartialEq)]
enum Slot {
    Waiting(u64),
    Done,
}

impl Writer {
    fn new(core: Arc<SessionCore>, sink: Arc<dyn EntrySink>, done: watch::Sender<u64>) -> Self {
        let assigned = core.log.last_seq();
        let mut writer = Self {
            core,
            sink,
            done,
            assigned,
            appends: FuturesOrdered::new(),
            in_flight: HashSet::new(),
            slots: VecDeque::new(),
            revisions: HashMap::new(),
            replies: VecDeque::new(),
        };
        // What the room before this one had numbered: the same rows again, which the database skips.
        let left: Vec<_> = writer.core.numbered.lock().iter().cloned().collect();
        for entry in left {
            writer.assigned = entry.seq().unwrap_or(writer.assigned);
            writer.hand_over(entry);
        }
        writer
    }

    async fn run(mut self, mut ingest: mpsc::UnboundedReceiver<Ingest>) {
        let core = self.core.clone();
        loop {
            let room_for_more = self.appends.len() < MAX_APPENDS_IN_FLIGHT;
            tokio::select! {
                biased;
                Some((entry, durability)) = self.appends.next(), if !self.appends.is_empty() => {
                    self.publish(&entry, durability);
                }
                input = core.room.peek(self.slots.len()), if room_for_more => self.take(input).await,
                Some((entries, reply)) = ingest.recv(), if room_for_more => self.take_broadcast(entries, reply),
            }
            self.release();
        }
    }

    async fn take(&mut self, input: RoomInput) {
        let entry = match input {
            RoomInput::Interim(utterance) => return self.show(utterance).await,
            RoomInput::Retracted { id } => return self.retract(id),
            RoomInput::Final(utterance) => {
                let speaker = self.label(&utterance).await;
                let revision = self.revisions.remove(&utterance.id).unwrap_or(0) + 1;
                Entry::Transcript(self.transcript(utterance, true, revision, speaker))
            }
            RoomInput::Gap { id, start_ms, end_ms, reason } => Entry::Gap(Gap {
                session: self.core.slug.clone(),
                epoch: self.core.epoch,
                seq: None,
                id,
                start_ms,
                end_ms,
                reason,
                durable: true,
            }),
            RoomInput::Status { id, status, reason } => Entry::Status(StatusChange {
                session: self.core.slug.clone(),
                epoch: self.core.epoch,
                seq: None,
                id,
                status,
                reason,
                durable: true,
            }),
        };
        let slot = match self.append(entry) {
            Some(seq) => Slot::Waiting(seq),
            None => Slot::Done,
        };
        self.slots.push_back(slot);
    }

    /// Numbers an entry and hands it to the sink. None when the log has its id already.
    fn append(&mut self, mut entry: Entry) -> Option<u64> {
        if self.in_flight.contains(entry.id()) || self.core.log.seq_of(entry.id()).is_some() {
            tracing::debug!(session = %self.core.slug, id = entry.id(), "duplicate entry skipped");
            self.commit(&entry);
            return None;
        }
        self.assigned += 1;
        entry.set_seq(self.assigned);
        let entry = Arc::new(entry);
        self.core.numbered.lock().push_back(entry.clone());
        self.hand_over(entry);
        Some(self.assigned)
    }

    fn hand_over(&mut self, entry: Arc<Entry>) {
        self.in_flight.insert(entry.id().to_owned());
        let append = self.sink.append(entry.clone());
        let metrics = self.core.metrics.clone();
        let asked = Instant::now();
        self.appends.push_back(Box::pin(async move {
            let durability = append.await;
            metrics.outbox_append_seconds.observe(asked.elapsed().as_secs_f64());
            (entry, durability)
        }));
    }

    /// Durable, or as durable as can be: viewers may see it.
    fn publish(&mut self, entry: &Arc<Entry>, durability: Durability) {
        self.in_flight.remove(entry.id());
        let mut shown = entry.clone();
        if durability == Durability::Nowhere {
            self.core.metrics.entries_not_durable_total.inc();
            Arc::make_mut(&mut shown).set_durable(false);
        }
        match self.core.log.publish(&shown) {
            Ok(()) => self.trace(&shown),
            Err(error) => tracing::error!(session = %self.core.slug, %error, "entry not published"),
        }
        self.core.numbered.lock().pop_front();
        // Whoever drains the room looks again.
        self.done.send_modify(|_| ());
        self.commit(entry);
        if matches!(&**entry, Entry::Status(change) if change.status == Status::Ended) {
            self.core.log.close();
        }
        let seq = entry.seq().unwrap_or(0);
        if let Some(slot) = self.slots.iter_mut().find(|slot| **slot == Slot::Waiting(seq)) {
            *slot = Slot::Done;
        }
    }

    /// The ledger may let go of a final's audio.
    fn commit(&self, entry: &Entry) {
        if let Entry::Transcript(line) = entry {
            self.core.ledger.lock().committed(&line.id);
        }
    }

    /// Takes finished items off the edge, in order, and answers broadcasts whose last entry is published.
    fn release(&mut self) {
        while self.slots.front() == Some(&Slot::Done) {
            self.slots.pop_front();
            self.core.room.pop();
            self.done.send_modify(|n| *n += 1);
        }
        let published = self.core.log.last_seq();
        while self.replies.front().is_some_and(|(ack, _)| ack.seq <= published) {
            if let Some((ack, reply)) = self.replies.pop_front() {
                let _ = reply.send(Ok(ack));
            }
        }
    }

    async fn show(&mut self, utterance: Utterance) {
        let speaker = self.label(&utterance).await;
        if self.revisions.len() >= MAX_OPEN_UTTERANCES {
            self.revisions.clear();
        }
        let revision = self.revisions.entry(utterance.id.clone()).or_insert(0);
        *revision += 1;
        let revision = *revision;
        if !self.in_flight.contains(&utterance.id) {
            let line = Entry::Transcript(self.transcript(utterance, false, revision, speaker));
            self.core.log.show_interim(&line);
        }
        self.slots.push_back(Slot::Done);
    }

    fn retract(&mut self, id: String) {
        if let Some(revision) = self.revisions.remove(&id) {
            let now = self.core.clock_ms();
            let nothing = Utterance {
                id,
                text: String::new(),
                start_ms: now,
                end_ms: now,
                language: None,
                confidence: None,
                words: None,
                received_at: Utc::now(),
                received: Instant::now(),
                decode_ms: None,
                stt_ms: None,
            };
            self.core.log.show_interim(&Entry::Transcript(self.transcript(nothing, false, revision + 1, None)));
        }
        self.slots.push_back(Slot::Done);
    }

    fn take_broadcast(
        &mut self,
        entries: Vec<BroadcastEntry>,
        reply: oneshot::Sender<Result<BroadcastAck, BroadcastRefusal>>,
    ) {
        if let Err(refusal) = self.check_broadcast(&entries) {
            let _ = reply.send(Err(refusal));
            return;
        }
        let mut ack = BroadcastAck { accepted: 0, duplicates: 0, seq: 0 };
        for BroadcastEntry { mut entry, .. } in entries {
            entry.set_epoch(self.core.epoch);
            if entry.is_interim() {
                let known = self.in_flight.contains(entry.id()) || !self.core.log.show_interim(&entry);
                ack.duplicates += usize::from(known);
                ack.accepted += usize::from(!known);
                continue;
            }
            match self.append(entry) {
                Some(_) => ack.accepted += 1,
                None => ack.duplicates += 1,
            }
        }
        ack.seq = self.assigned;
        self.replies.push_back((ack, reply));
    }

    /// Before any of it is taken: a refused post changes nothing.
    fn check_broadcast(&self, entries: &[BroadcastEntry]) -> Result<(), BroadcastRefusal> {
        let expected = self.assigned + 1;
        let (mut next, mut seen) = (expected, HashSet::new());
        for BroadcastEntry { numbered, entry } in entries.iter().filter(|e| !e.entry.is_interim()) {
            let is_known = self.in_flight.contains(entry.id()) || self.core.log.seq_of(entry.id()).is_some();
            if is_known || !seen.insert(entry.id()) {
                continue;
            }
            if *numbered && entry.seq() != Some(next) {
                return Err(BroadcastRefusal::Hole { expected });
            }
            if self.core.log.is_closed() {
                return Err(BroadcastRefusal::Ended { expected });
            }
            next += 1;
        }
        Ok(())
    }

    async fn label(&self, utterance: &Utterance) -> Option<Speaker> {
        let tracker = self.core.tracker.lock().clone()?;
        let question = LabelUtterance::of(utterance);
        tokio::time::timeout(LABEL_TIMEOUT, tracker.send(question)).await.ok()?.ok()?
    }

    fn transcript(&self, u: Utterance, is_final: bool, revision: u32, speaker: Option<Speaker>) -> Transcript {
        let server = u.received.elapsed();
        let latency = Latency { decode_ms: u.decode_ms, stt_ms: u.stt_ms, server_ms: Some(server.as_millis() as u64) };
        Transcript {
            session: self.core.slug.clone(),
            epoch: self.core.epoch,
            seq: None,
            id: u.id,
            is_final,
            revision,
            text: sanitise_text(&u.text),
            start_ms: u.start_ms,
            end_ms: u.end_ms,
            language: u.language,
            confidence: u.confidence,
            speaker,
            words: u.words,
            timestamp: u.received_at,
            latency,
            durable: true,
        }
    }

    fn trace(&self, entry: &Entry) {
        let Entry::Transcript(line) = entry else { return };
        let total = (Utc::now() - line.timestamp).to_std().unwrap_or_default();
        // Posted lines may carry any time: that of an archive says nothing about this server.
        if self.core.origin != Origin::Relay {
            self.core.metrics.server_latency_seconds.observe(total.as_secs_f64());
        }
        tracing::info!(
            session = %self.core.slug,
            seq = line.seq,
            totalLatencyFromGladiaMs = total.as_millis() as u64,
            timestamp = %line.timestamp.to_rfc3339_opts(SecondsFormat::Millis, true),
            "Transcript posted to WS broadcast"
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::actors::Crash;
    use crate::actors::supervision::{ChildDown, ChildKind};
    use crate::config::Config;
    use crate::log::{Cursor, Read, Slug};
    use crate::metrics::Metrics;
    use parking_lot::Mutex;

    /// A sink whose appends are answered when the test lets them.
    #[derive(Default)]
    struct Gate {
        appended: Mutex<Vec<Arc<Entry>>>,
        open: watch::Sender<bool>,
    }

    impl EntrySink for Gate {
        fn append(&self, entry: Arc<Entry>) -> BoxFuture<'static, Durability> {
            self.appended.lock().push(entry);
            let mut open = self.open.subscribe();
            Box::pin(async move {
                open.wait_for(|open| *open).await.unwrap();
                Durability::Outbox
            })
        }
    }

    struct Parent(mpsc::UnboundedSender<ChildDown>);
    impl Actor for Parent {
        type Context = Context<Self>;
    }
    impl Handler<ChildDown> for Parent {
        type Result = ();
        fn handle(&mut self, down: ChildDown, _: &mut Self::Context) {
            self.0.send(down).unwrap();
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
            let (tx, downs) = mpsc::unbounded_channel();
            Self { core: Arc::new(core), gate: Arc::new(Gate::default()), parent: Parent(tx).start(), downs }
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
        bench.core.room.push(RoomInput::Final(said("a", "one"))).await;
        bench.core.room.push(RoomInput::Interim(said("b", "tw"))).await;
        bench.until(|b| b.texts().iter().any(|(seq, text)| seq.is_none() && text == "tw")).await;
        assert_eq!(bench.core.log.last_seq(), 0, "the append is not answered yet");
        bench.core.room.push(RoomInput::Final(said("b", "two"))).await;
        bench.gate.open.send_replace(true);
        room.send(Drain).await.unwrap();
        assert_eq!(bench.texts(), [(Some(1), "one".into()), (Some(2), "two".into())]);
        assert!(bench.core.room.is_empty());
    }

    #[actix::test]
    async fn an_item_repeated_after_a_panic_is_published_once() {
        let mut bench = Bench::new();
        let room = bench.room();
        bench.core.room.push(RoomInput::Final(said("a", "one"))).await;
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
        room.do_send(Broadcast { slug: bench.core.slug.clone(), entries });
        while bench.gate.appended.lock().is_empty() {
            tokio::task::yield_now().await;
        }
        room.do_send(Crash);
        bench.downs.recv().await.unwrap();
        let room = bench.room();
        bench.core.room.push(RoomInput::Final(said("a", "one"))).await;
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
            bench.core.room.push(RoomInput::Final(said(id, id))).await;
        }
        let status = RoomInput::Status { id: "s".into(), status: Status::Ended, reason: None };
        bench.core.room.push(status).await;
        room.send(Drain).await.unwrap();
        assert_eq!(bench.texts(), [(Some(1), "a".into()), (Some(2), "b".into()), (Some(3), "ended".into())]);
        assert!(bench.core.log.is_closed());
    }

    #[actix::test]
    async fn a_retracted_utterance_is_shown_as_empty() {
        let bench = Bench::new();
        let room = bench.room();
        bench.core.room.push(RoomInput::Interim(said("a", "hm"))).await;
        bench.core.room.push(RoomInput::Retracted { id: "a".into() }).await;
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
        let post = |entries| room.send(Broadcast { slug: bench.core.slug.clone(), entries });
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
}
