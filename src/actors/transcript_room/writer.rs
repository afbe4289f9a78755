//! The one future that writes a session's log: numbers, makes durable, publishes.

use std::collections::{HashMap, HashSet, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use chrono::{SecondsFormat, Utc};
use futures_util::StreamExt;
use futures_util::future::BoxFuture;
use futures_util::stream::FuturesOrdered;
use tokio::sync::{mpsc, watch};
use tokio::time::Instant;

use super::labelling::is_next_piece;
use super::pieces::piece_id;
use super::{Answer, Ingest};
use crate::actors::session_core::SessionCore;
use crate::actors::session_registry::{BroadcastAck, BroadcastRefusal};
use crate::transcript::{
    Durability, Entry, EntrySink, Gap, Latency, Origin, Speaker, Status, StatusChange, Transcript, TranscriptEvent,
    Translated, Translation, Utterance,
};

/// Entries handed to the outbox and not yet answered.
const MAX_APPENDS_IN_FLIGHT: usize = 64;
/// Open utterances whose revision is counted.
const MAX_OPEN_UTTERANCES: usize = 64;
/// Entries without a durable place that are remembered.
const MAX_NOT_DURABLE: usize = 1000;

/// The one future that writes the log.
pub(super) struct Writer {
    pub(super) core: Arc<SessionCore>,
    pub(super) sink: Arc<dyn EntrySink>,
    done: watch::Sender<u64>,
    /// Last number given, published or not.
    pub(super) assigned: u64,
    appends: FuturesOrdered<BoxFuture<'static, (Arc<Entry>, Durability, Duration)>>,
    /// Ids of the entries in `appends`.
    pub(super) in_flight: HashSet<String>,
    /// For each item looked at and still in the edge: does it wait for its append?
    pub(super) slots: VecDeque<Slot>,
    pub(super) revisions: HashMap<String, u32>,
    /// Posts whose entries are not all durable and published.
    pub(super) replies: VecDeque<Reply>,
    /// Lines that were cut: the id of the last piece, and that of the first.
    cut: HashMap<String, String>,
    /// Entries that were shown and could be made durable nowhere; one that is posted again gets another try.
    pub(super) not_durable: HashMap<String, Arc<Entry>>,
}

/// A post that is to be answered once the log has reached `ack.seq` and none of `ids` is on its way any more.
pub(super) struct Reply {
    pub ack: BroadcastAck,
    pub ids: Vec<String>,
    pub answer: Answer,
}

#[derive(PartialEq)]
pub(super) enum Slot {
    Waiting(u64),
    Done,
}

impl Writer {
    pub fn new(core: Arc<SessionCore>, sink: Arc<dyn EntrySink>, done: watch::Sender<u64>) -> Self {
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
            cut: HashMap::new(),
            not_durable: HashMap::new(),
        };
        // What the room before this one had numbered: the same rows again, which the database skips.
        let left: Vec<_> = writer.core.numbered().iter().cloned().collect();
        writer.assigned = left.last().and_then(|entry| entry.seq()).unwrap_or(writer.assigned);
        for pieces in left.chunk_by(is_next_piece) {
            match pieces {
                [first, second, ..] if second.id() == piece_id(first.id(), 2) => {
                    writer.hand_over_pieces(pieces.to_vec());
                }
                others => others.iter().for_each(|entry| writer.hand_over(entry.clone())),
            }
        }
        writer
    }

    pub async fn run(mut self, mut ingest: mpsc::UnboundedReceiver<Ingest>) {
        let core = self.core.clone();
        loop {
            let room_for_more = self.appends.len() < MAX_APPENDS_IN_FLIGHT;
            tokio::select! {
                biased;
                Some((entry, durability, took)) = self.appends.next(), if !self.appends.is_empty() => {
                    self.publish(&entry, durability, took);
                }
                input = core.results.peek(self.slots.len()), if room_for_more => self.take(input).await,
                Some((broadcast, reply)) = ingest.recv(), if room_for_more => self.take_broadcast(broadcast, reply),
            }
            self.release();
        }
    }

    async fn take(&mut self, input: TranscriptEvent) {
        let entry = match input {
            TranscriptEvent::Interim(utterance) => return self.show(utterance).await,
            TranscriptEvent::Retracted { id } => return self.retract(id),
            TranscriptEvent::Final(utterance) => return self.finish(utterance).await,
            TranscriptEvent::Gap { id, start_ms, end_ms, reason } => Entry::Gap(Gap {
                session: self.core.slug.clone(),
                epoch: self.core.epoch,
                seq: None,
                id,
                start_ms,
                end_ms,
                reason,
                durable: true,
            }),
            TranscriptEvent::Status { id, status, reason } => Entry::Status(StatusChange {
                session: self.core.slug.clone(),
                epoch: self.core.epoch,
                seq: None,
                id,
                status,
                reason,
                durable: true,
            }),
            TranscriptEvent::Translation(translated) => match self.translation(translated) {
                Some(entry) => entry,
                None => return self.slots.push_back(Slot::Done),
            },
        };
        let slot = match self.append(entry) {
            Some(seq) => Slot::Waiting(seq),
            None => Slot::Done,
        };
        self.slots.push_back(slot);
    }

    /// Numbers an entry and hands it to the sink. None when the log has its id already.
    pub(super) fn append(&mut self, entry: Entry) -> Option<u64> {
        self.append_pieces(vec![entry])
    }

    /// The same for all pieces of a line, in one step. Answers the last number. What is known of them is known by the
    /// first.
    pub(super) fn append_pieces(&mut self, mut pieces: Vec<Entry>) -> Option<u64> {
        pieces.iter_mut().for_each(Entry::clean);
        let first = pieces.first()?;
        if self.in_flight.contains(first.id()) || self.core.log.seq_of(first.id()).is_some() {
            tracing::debug!(session = %self.core.slug, id = first.id(), "duplicate entry skipped");
            self.commit(first);
            return None;
        }
        for piece in &mut pieces {
            self.assigned += 1;
            piece.set_seq(self.assigned);
        }
        let pieces: Vec<_> = pieces.into_iter().map(Arc::new).collect();
        self.core.numbered().extend(pieces.iter().cloned());
        self.hand_over_pieces(pieces);
        Some(self.assigned)
    }

    pub(super) fn hand_over(&mut self, entry: Arc<Entry>) {
        self.hand_over_pieces(vec![entry]);
    }

    fn hand_over_pieces(&mut self, pieces: Vec<Arc<Entry>>) {
        if let [first, .., last] = &pieces[..] {
            self.cut.insert(last.id().to_owned(), first.id().to_owned());
        }
        let appends = self.sink.append_all(pieces.clone());
        let asked = Instant::now();
        for (entry, append) in pieces.into_iter().zip(appends) {
            self.in_flight.insert(entry.id().to_owned());
            let metrics = self.core.metrics.clone();
            self.appends.push_back(Box::pin(async move {
                let durability = append.await;
                let took = asked.elapsed();
                metrics.outbox_append_seconds.observe(took.as_secs_f64());
                (entry, durability, took)
            }));
        }
    }

    /// Durable, or as durable as can be: viewers may see it.
    fn publish(&mut self, entry: &Arc<Entry>, durability: Durability, took: Duration) {
        self.in_flight.remove(entry.id());
        let mut shown = entry.clone();
        if durability == Durability::Nowhere {
            self.core.metrics.entries_not_durable_total.inc();
            self.core.metrics.entries_not_durable_timestamp_seconds.set(Utc::now().timestamp());
            Arc::make_mut(&mut shown).set_durable(false);
            if self.not_durable.len() < MAX_NOT_DURABLE {
                self.not_durable.insert(entry.id().to_owned(), entry.clone());
            }
        }
        // Else it was posted again to be made durable.
        let is_new = self.core.log.seq_of(entry.id()) != entry.seq();
        match is_new.then(|| self.core.log.publish(&shown)) {
            Some(Ok(())) => self.trace(&shown, took),
            Some(Err(error)) => tracing::error!(session = %self.core.slug, %error, "entry not published"),
            None => {}
        }
        {
            let mut numbered = self.core.numbered();
            if numbered.front().is_some_and(|first| first.id() == entry.id()) {
                numbered.pop_front();
            }
        }
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

    /// The ledger may let go of a final's audio, once the last of its pieces is published.
    fn commit(&mut self, entry: &Entry) {
        let Entry::Transcript(line) = entry else { return };
        match self.cut.remove(&line.id) {
            Some(first) => self.core.ledger().published(&first),
            None if self.cut.values().any(|first| *first == line.id) => {}
            None => self.core.ledger().published(&line.id),
        }
    }

    /// Takes finished items off the edge, in order, and answers broadcasts whose last entry is published.
    fn release(&mut self) {
        while self.slots.front() == Some(&Slot::Done) {
            self.slots.pop_front();
            self.core.results.pop();
            self.done.send_modify(|n| *n += 1);
        }
        let published = self.core.log.last_seq();
        let is_settled =
            |reply: &Reply| reply.ack.seq <= published && !reply.ids.iter().any(|id| self.in_flight.contains(id));
        while self.replies.front().is_some_and(is_settled) {
            let Some(Reply { ack, ids, answer }) = self.replies.pop_front() else { break };
            let is_durable = !ids.iter().any(|id| self.not_durable.contains_key(id));
            let _ = answer.send(if is_durable { Ok(ack) } else { Err(BroadcastRefusal::Unavailable) });
        }
    }

    async fn show(&mut self, utterance: Utterance) {
        let speaker = self.label(&utterance, false).await.into_iter().next().and_then(|label| label.speaker);
        if self.revisions.len() >= MAX_OPEN_UTTERANCES {
            self.revisions.clear();
        }
        let revision = self.revisions.entry(utterance.id.clone()).or_insert(0);
        *revision += 1;
        let revision = *revision;
        if !self.in_flight.contains(&utterance.id) {
            let mut line = Entry::Transcript(self.transcript(utterance, false, revision, speaker));
            line.clean();
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
                voice: None,
                received_at: Utc::now(),
                received: Instant::now(),
                decode_ms: None,
                stt_ms: None,
            };
            self.core.log.show_interim(&Entry::Transcript(self.transcript(nothing, false, revision + 1, None)));
        }
        self.slots.push_back(Slot::Done);
    }

    pub(super) fn transcript(
        &self,
        u: Utterance,
        is_final: bool,
        revision: u32,
        speaker: Option<Speaker>,
    ) -> Transcript {
        let server = u.received.elapsed();
        let latency = Latency { decode_ms: u.decode_ms, stt_ms: u.stt_ms, server_ms: Some(server.as_millis() as u64) };
        Transcript {
            session: self.core.slug.clone(),
            epoch: self.core.epoch,
            seq: None,
            id: u.id,
            is_final,
            revision,
            text: u.text,
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

    /// None when nobody has seen the final.
    fn translation(&self, translated: Translated) -> Option<Entry> {
        let Translated { of, language, text, start_ms, end_ms } = translated;
        let outcome = |label| self.core.metrics.translations_total.with_label_values(&[label]).inc();
        if !self.in_flight.contains(&of) && self.core.log.seq_of(&of).is_none() {
            outcome("dropped");
            tracing::warn!(session = %self.core.slug, of, language, "translation of a line that was never shown");
            return None;
        }
        outcome("delivered");
        Some(Entry::Translation(Translation {
            session: self.core.slug.clone(),
            epoch: self.core.epoch,
            seq: None,
            id: format!("{of}:{language}"),
            of,
            language,
            text,
            start_ms,
            end_ms,
            durable: true,
        }))
    }

    /// `took`: from its number to its place in the log, which is the outbox append where no hop lies between.
    fn trace(&self, entry: &Entry, took: Duration) {
        let Entry::Transcript(line) = entry else { return };
        let total = (Utc::now() - line.timestamp).to_std().unwrap_or_default();
        // Posted lines may carry any time: that of an archive says nothing about this server.
        if self.core.origin != Origin::Relay {
            self.core.metrics.server_latency_seconds.observe(total.as_secs_f64());
        }
        // Where another node shows the lines, or has numbered them, that is told when they have arrived there.
        if self.core.origin == Origin::Mirror || !self.core.config.server.mode.serves() {
            return;
        }
        tracing::info!(
            session = %self.core.slug,
            seq = line.seq,
            httpLatencyMs = took.as_secs_f64() * 1000.0,
            totalLatencyFromGladiaMs = total.as_secs_f64() * 1000.0,
            timestamp = %line.timestamp.to_rfc3339_opts(SecondsFormat::Millis, true),
            "Transcript posted to WS broadcast"
        );
    }
}
