//! A node of the simulation: real ownership and bus, and a model of what is around them, which is the registry, the
//! sessions, the outbox with its forwarder, and the keeper of rooms.

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use chrono::Utc;
use futures_util::StreamExt;
use rand::Rng;
use stenocast::bus::cluster::ClusterBus;
use stenocast::bus::log_server::{Question, SharedServer};
use stenocast::bus::memory::MemoryClient;
use stenocast::bus::ownership::{
    ClaimError, Claimed, Handover, Holding, Identity, LateBatch, Lost, NodeAnswer, NodeRequest, Ownership,
};
use stenocast::bus::{Batch, Bus, Outcome};
use stenocast::transcript::checkpoint::Checkpoint;
use stenocast::transcript::{
    Entry, Epoch, Gap, GapReason, Origin, SessionRecord, SessionState, Slug, Status, StatusChange,
};
use tokio::sync::Notify;
use tokio::sync::mpsc::UnboundedReceiver;
use tokio::task::AbortHandle;
use tokio::time::{Instant, timeout};

use super::disk::{Disk, Row};
use super::gate::{Gate, Gated};
use super::world::{StoredIds, World, pass};

const LEASE: Duration = Duration::from_secs(10);
const CLAIM_TIMEOUT: Duration = Duration::from_secs(4);
const LOOK_BACK_TIMEOUT: Duration = Duration::from_secs(2);

#[derive(Clone, Copy, PartialEq, Eq)]
enum Phase {
    Live,
    Ending,
}

struct Session {
    epoch: Epoch,
    last_seq: u64,
    known: BTreeSet<String>,
    is_publishing: bool,
    idle_since: Instant,
    phase: Phase,
}

/// One process of a node.
pub struct Life {
    world: Rc<World>,
    name: String,
    disk: Rc<RefCell<Disk>>,
    pub client: Arc<MemoryClient>,
    ownership: Arc<Ownership>,
    bus: ClusterBus,
    pub gate: Rc<Gate>,
    is_ready: Cell<bool>,
    sessions: RefCell<BTreeMap<Slug, Session>>,
    claiming: RefCell<BTreeSet<Slug>>,
    senders: RefCell<BTreeSet<Epoch>>,
    news: Notify,
    tasks: RefCell<Vec<AbortHandle>>,
}

impl Life {
    pub fn start(
        world: &Rc<World>,
        name: &str,
        disk: &Rc<RefCell<Disk>>,
        client: Arc<MemoryClient>,
        server: SharedServer,
    ) -> Rc<Self> {
        let me = Identity::new(name, &disk.borrow().home);
        let (ownership, lost) = Ownership::new(server, me);
        let life = Rc::new(Self {
            world: world.clone(),
            name: name.to_owned(),
            disk: disk.clone(),
            client,
            bus: ClusterBus::new(ownership.clone()),
            ownership,
            gate: Rc::default(),
            is_ready: Cell::new(false),
            sessions: RefCell::default(),
            claiming: RefCell::default(),
            senders: RefCell::default(),
            news: Notify::new(),
            tasks: RefCell::default(),
        });
        life.note_left();
        life.spawn(life.clone().answer_questions());
        life.spawn(life.clone().let_go_of_lost(lost));
        life.spawn(life.clone().adopt_own());
        life.spawn(life.clone().adopt_orphans());
        life.spawn(life.clone().renew());
        life.spawn(life.clone().leave_rows());
        life
    }

    /// Ends everything at once, as `kill -9` does.
    pub fn kill(&self) {
        self.client.cut();
        self.tasks.borrow_mut().drain(..).for_each(|task| task.abort());
    }

    /// The connection works again, unless the process is gone.
    pub fn mend(&self) {
        if !self.tasks.borrow().is_empty() {
            self.client.mend();
        }
    }

    pub fn is_idle(&self) -> bool {
        self.is_ready.get() && self.sessions.borrow().is_empty() && self.senders.borrow().is_empty()
    }

    /// What is still to be done, for people.
    pub fn left(&self) -> String {
        let sessions = self.sessions.borrow().iter().map(|(room, s)| format!("{room} {}", s.epoch)).collect::<Vec<_>>();
        format!(
            "{}: ready {}, sessions {sessions:?}, senders {:?}",
            self.name,
            self.is_ready.get(),
            self.senders.borrow()
        )
    }

    fn spawn(self: &Rc<Self>, task: impl Future<Output = ()> + 'static) {
        let task = Gated { gate: self.gate.clone(), inner: Box::pin(task) };
        self.tasks.borrow_mut().push(tokio::task::spawn_local(task).abort_handle());
    }

    async fn pause(&self, millis: std::ops::Range<u64>) {
        let pause = self.world.random(|rng| rng.random_range(millis));
        pass(pause).await;
    }

    // ---- start

    fn note_left(&self) {
        let mut disk = self.disk.borrow_mut();
        // Which ones are in the log already is not on disk.
        disk.forget_stored();
        for (room, epoch) in &disk.checkpoints {
            self.ownership.session_begins(room, *epoch);
        }
        let live: BTreeSet<_> = disk.checkpoints.values().collect();
        for row in disk.kept().iter().filter(|row| !live.contains(&row.epoch)) {
            self.ownership.has_leftovers(row.epoch);
        }
    }

    async fn adopt_own(self: Rc<Self>) {
        let left = self.disk.borrow().checkpoints.clone();
        for (room, epoch) in left {
            let claim = timeout(LOOK_BACK_TIMEOUT, self.ownership.reclaim(&room, epoch)).await;
            let past = match claim {
                Ok(Ok(claimed)) => claimed.former.map(|former| former.past),
                Ok(Err(ClaimError::Superseded | ClaimError::Busy(_))) => {
                    self.ownership.session_gone(epoch);
                    self.disk.borrow_mut().checkpoints.remove(&room);
                    continue;
                }
                Ok(Err(_)) | Err(_) => None,
            };
            let past = past.unwrap_or_default();
            let StoredIds { last_seq: stored, ids: mut known } = self.world.stored(epoch);
            known.extend(past.ids.into_keys());
            let last_seq = {
                let disk = self.disk.borrow();
                known.extend(disk.kept().iter().filter(|row| row.epoch == epoch).map(|row| row.entry.id().to_owned()));
                disk.last_seq(epoch).max(past.last_seq).max(stored)
            };
            if past.is_ended {
                self.disk.borrow_mut().checkpoints.remove(&room);
                self.ownership.session_gone(epoch);
                self.ownership.session_over(&room, epoch);
                continue;
            }
            self.begin(&room, epoch, last_seq, known, false);
        }
        let left: BTreeMap<Epoch, (Slug, u64)> = {
            let disk = self.disk.borrow();
            let rows = disk.kept().iter().rev().map(|row| (row.epoch, (row.room.clone(), row.seq - 1)));
            let records = disk.records.iter().map(|(epoch, (room, _))| (*epoch, (room.clone(), u64::MAX)));
            records.chain(rows).collect()
        };
        for (epoch, (room, after)) in left {
            self.send_from(room, epoch, after);
        }
        self.is_ready.set(true);
    }

    // ---- publishers and sessions

    /// A publisher of the room has come to this node.
    pub fn publish(self: &Rc<Self>, room: &Slug) {
        if !self.is_ready.get() || self.gate.is_frozen() {
            return;
        }
        if let Some(session) = self.sessions.borrow_mut().get_mut(room) {
            session.is_publishing |= session.phase == Phase::Live;
            return;
        }
        if self.claiming.borrow_mut().insert(room.clone()) {
            self.spawn(self.clone().claim(room.clone()));
        }
    }

    pub fn unpublish(&self, room: &Slug) {
        if let Some(session) = self.sessions.borrow_mut().get_mut(room)
            && std::mem::take(&mut session.is_publishing)
        {
            session.idle_since = Instant::now();
        }
    }

    async fn claim(self: Rc<Self>, room: Slug) {
        let claimed = timeout(CLAIM_TIMEOUT, self.ownership.claim(&room)).await;
        let claimed = claimed.unwrap_or_else(|_| Err(ClaimError::Away("no answer in time".to_owned())));
        self.claiming.borrow_mut().remove(&room);
        match claimed {
            Ok(claimed) => {
                let epoch = claimed.epoch;
                self.begin_claimed(&room, claimed, true);
                if !self.is_here(&room, epoch) {
                    // An orphan was adopted meanwhile.
                    self.ownership.session_over(&room, epoch);
                    self.ownership.all_stored(&room, epoch).await;
                }
            }
            Err(ClaimError::Busy(_)) => {}
            Err(_) => {
                let epoch = self.world.new_epoch();
                self.begin(&room, epoch, 0, BTreeSet::new(), true);
            }
        }
    }

    fn begin_claimed(self: &Rc<Self>, room: &Slug, claimed: Claimed, is_publishing: bool) {
        let (last_seq, known) = claimed.former.map_or_else(Default::default, |former| {
            let ids: BTreeSet<String> = former.past.ids.into_keys().collect();
            (former.past.last_seq, ids)
        });
        self.begin(room, claimed.epoch, last_seq, known, is_publishing);
    }

    fn begin(self: &Rc<Self>, room: &Slug, epoch: Epoch, last_seq: u64, known: BTreeSet<String>, is_publishing: bool) {
        if let Some(session) = self.sessions.borrow_mut().get_mut(room) {
            session.is_publishing |= is_publishing && session.phase == Phase::Live;
            return;
        }
        tracing::debug!(node = self.name, %room, %epoch, last_seq, is_publishing, "session begins");
        self.ownership.session_begins(room, epoch);
        let session = Session { epoch, last_seq, known, is_publishing, idle_since: Instant::now(), phase: Phase::Live };
        self.sessions.borrow_mut().insert(room.clone(), session);
        let mut disk = self.disk.borrow_mut();
        disk.checkpoints.insert(room.clone(), epoch);
        if last_seq == 0 {
            disk.records.insert(epoch, (room.clone(), SessionRecord::begun(epoch, room.clone(), Utc::now())));
        }
        drop(disk);
        self.send_from(room.clone(), epoch, last_seq);
        self.spawn(self.clone().live(room.clone(), epoch));
    }

    /// Speaks while there is a publisher, and ends a while after that.
    async fn live(self: Rc<Self>, room: Slug, epoch: Epoch) {
        let grace = Duration::from_millis(self.world.random(|rng| rng.random_range(500..8_000)));
        loop {
            self.pause(50..700).await;
            let is_over = {
                let sessions = self.sessions.borrow();
                let Some(session) = sessions.get(&room).filter(|s| s.epoch == epoch && s.phase == Phase::Live) else {
                    return;
                };
                !session.is_publishing && session.idle_since.elapsed() >= grace
            };
            if is_over {
                break;
            }
            if self.sessions.borrow()[&room].is_publishing {
                self.say(&room, epoch);
            }
        }
        let id = format!("ended-{}", self.world.next_id());
        let ended = StatusChange {
            session: room.clone(),
            epoch,
            seq: None,
            id,
            status: Status::Ended,
            reason: None,
            durable: true,
        };
        self.push(&room, epoch, Entry::Status(ended));
        let last_seq = self.sessions.borrow_mut().remove(&room).map_or(0, |session| session.last_seq);
        tracing::debug!(node = self.name, %room, %epoch, last_seq, "session ends");
        let begun = SessionRecord::begun(epoch, room.clone(), Utc::now());
        let record = SessionRecord { state: SessionState::Ended, last_seq, ended_at: Some(Utc::now()), ..begun };
        self.disk.borrow_mut().records.insert(epoch, (room.clone(), record));
        self.ownership.session_gone(epoch);
        self.ownership.session_over(&room, epoch);
        self.disk.borrow_mut().checkpoints.remove(&room);
        self.news.notify_waiters();
    }

    fn say(self: &Rc<Self>, room: &Slug, epoch: Epoch) {
        let n = self.world.next_id();
        let gap = Gap {
            session: room.clone(),
            epoch,
            seq: None,
            id: format!("e{n}"),
            start_ms: n,
            end_ms: n + 1,
            reason: GapReason::DecodeError,
            durable: true,
        };
        self.push(room, epoch, Entry::Gap(gap));
    }

    /// Numbers an entry and makes it durable here. Known ones are dropped.
    fn push(self: &Rc<Self>, room: &Slug, epoch: Epoch, mut entry: Entry) {
        let mut sessions = self.sessions.borrow_mut();
        let Some(session) = sessions.get_mut(room).filter(|session| session.epoch == epoch) else { return };
        if !session.known.insert(entry.id().to_owned()) {
            return;
        }
        session.last_seq += 1;
        let seq = session.last_seq;
        drop(sessions);
        entry.set_seq(seq);
        tracing::debug!(node = self.name, %room, %epoch, seq, id = entry.id(), "says");
        self.world.produced(room, epoch, entry.id());
        self.disk.borrow_mut().rows.push(Row { room: room.clone(), epoch, seq, entry, is_stored: false });
        self.send_from(room.clone(), epoch, seq - 1);
        self.news.notify_waiters();
    }

    /// The session goes on elsewhere; its last words are still coming.
    fn hand_over(self: &Rc<Self>, room: &Slug, epoch: Epoch) -> Option<Handover> {
        let mut sessions = self.sessions.borrow_mut();
        let session = sessions.get_mut(room).filter(|s| s.epoch == epoch && s.phase == Phase::Live)?;
        (session.phase, session.is_publishing) = (Phase::Ending, false);
        let checkpoint = checkpoint(room, epoch, session.last_seq);
        drop(sessions);
        tracing::debug!(node = self.name, %room, %epoch, "session is handed over");
        self.spawn(self.clone().last_words(room.clone(), epoch));
        Some(Handover { clock_ms: 1, checkpoint })
    }

    async fn last_words(self: Rc<Self>, room: Slug, epoch: Epoch) {
        for _ in 0..self.world.random(|rng| rng.random_range(0..4)) {
            self.pause(50..1_500).await;
            self.say(&room, epoch);
        }
        self.sessions.borrow_mut().remove(&room);
        self.ownership.session_gone(epoch);
        self.disk.borrow_mut().checkpoints.remove(&room);
        self.news.notify_waiters();
    }

    // ---- the forwarder

    fn send_from(self: &Rc<Self>, room: Slug, epoch: Epoch, after: u64) {
        if self.senders.borrow_mut().insert(epoch) {
            self.spawn(self.clone().send(room, epoch, after));
        }
    }

    fn is_here(&self, room: &Slug, epoch: Epoch) -> bool {
        self.sessions.borrow().get(room).is_some_and(|session| session.epoch == epoch)
    }

    async fn send(self: Rc<Self>, room: Slug, epoch: Epoch, after: u64) {
        // What waits in the outbox comes first.
        let mut cursor = self.disk.borrow().first_waiting(epoch).map_or(after, |first| first - 1);
        let mut refusals = 0;
        loop {
            let news = self.news.notified();
            tokio::pin!(news);
            news.as_mut().enable();
            let limit = self.world.random(|rng| rng.random_range(1..6));
            let rows = self.disk.borrow().next_rows(epoch, cursor, limit);
            let record = self.disk.borrow().records.get(&epoch).map(|(_, record)| record.clone());
            if rows.is_empty() && record.is_none() {
                if self.is_here(&room, epoch) {
                    news.await;
                    continue;
                }
                self.bus.finished(room.clone(), epoch).await;
                if self.disk.borrow().next_rows(epoch, cursor, 1).is_empty() && !self.is_here(&room, epoch) {
                    self.senders.borrow_mut().remove(&epoch);
                    return;
                }
                continue;
            }
            let last = rows.last().map_or(cursor, |row| row.seq);
            let mut batch = Batch::new(room.clone(), epoch);
            // What lies between was numbered by another node.
            batch.begins = rows.first().map(|row| row.seq).filter(|first| *first != cursor + 1);
            batch.entries = rows.iter().map(|row| row.entry.to_json()).collect();
            batch.record = record.clone();
            let outcome = self.bus.append(&batch).await;
            let numbers = rows.iter().map(|row| row.seq).collect::<Vec<_>>();
            tracing::debug!(node = self.name, %room, %epoch, ?numbers, ?outcome, "appended");
            match outcome {
                Outcome::Stored { .. } => {
                    (cursor, refusals) = (last, 0);
                    let mut disk = self.disk.borrow_mut();
                    if !rows.is_empty() {
                        disk.stored(epoch, last);
                    }
                    if disk.records.get(&epoch).map(|(_, record)| record) == record.as_ref() {
                        disk.records.remove(&epoch);
                    }
                    continue;
                }
                Outcome::Refused { expected, .. } => {
                    let known = expected.saturating_sub(1);
                    if known > cursor {
                        cursor = known.min(last);
                        self.disk.borrow_mut().stored(epoch, cursor);
                    } else {
                        cursor = known;
                    }
                    refusals += 1;
                    if refusals <= 3 {
                        continue;
                    }
                }
                Outcome::Full { .. } | Outcome::Unsure(_) | Outcome::Foreign(_) => refusals += 1,
                other => panic!("{other:?}"),
            }
            self.pause(50..(100 << refusals.min(6))).await;
        }
    }

    /// Rows that the database has leave the outbox.
    async fn leave_rows(self: Rc<Self>) {
        loop {
            self.pause(200..2_000).await;
            if self.is_ready.get() {
                let (disk, senders) = (self.disk.borrow(), self.senders.borrow());
                self.bus.is_read(&|epoch| senders.contains(&epoch) || disk.first_waiting(epoch).is_some());
            }
            let prefix = self.disk.borrow().stored_prefix() as u64;
            let left = self.bus.may_leave(prefix) as usize;
            let mut disk = self.disk.borrow_mut();
            disk.left = disk.left.max(left);
        }
    }

    // ---- the keeper of rooms

    async fn renew(self: Rc<Self>) {
        loop {
            self.pause(500..1_500).await;
            let live: Vec<_> = {
                let sessions = self.sessions.borrow();
                sessions.iter().map(|(room, s)| (room.clone(), checkpoint(room, s.epoch, s.last_seq))).collect()
            };
            for (room, checkpoint) in live {
                self.ownership.renew(&room, 1, checkpoint).await;
            }
        }
    }

    async fn let_go_of_lost(self: Rc<Self>, mut lost: UnboundedReceiver<Lost>) {
        while let Some(Lost { room, epoch }) = lost.recv().await {
            self.hand_over(&room, epoch);
        }
    }

    async fn answer_questions(self: Rc<Self>) {
        let mut questions = self.ownership.server().questions(self.ownership.instance());
        while let Some(Question { request, answer }) = questions.next().await {
            let life = self.clone();
            self.spawn(async move { answer(life.reply(&request).await.to_bytes()) });
        }
    }

    async fn reply(self: Rc<Self>, request: &Bytes) -> NodeAnswer {
        match serde_json::from_slice(request).expect("a question") {
            NodeRequest::Ping => NodeAnswer::Pong,
            NodeRequest::Release { room, wants, .. } => self.release(room, wants).await,
            NodeRequest::Late(late) => self.take_late(*late).await,
            NodeRequest::Post(_) | NodeRequest::RoomNews(_) => NodeAnswer::NotOwner,
        }
    }

    async fn release(self: Rc<Self>, room: Slug, wants: Option<Epoch>) -> NodeAnswer {
        let here = self.ownership.session_of(&room);
        if let (Some(here), Some(wants)) = (here, wants)
            && here >= wants
        {
            return NodeAnswer::Busy { why: "a later session of the room goes on".to_owned() };
        }
        let mut handover = None;
        if let Some(epoch) = here {
            let is_ending = self.sessions.borrow().get(&room).is_some_and(|session| session.phase == Phase::Ending);
            if is_ending {
                return NodeAnswer::Busy { why: "the session is ending".to_owned() };
            }
            handover = self.hand_over(&room, epoch).map(Box::new);
        }
        match self.ownership.release(&room).await {
            Some(_) => NodeAnswer::Released { handover },
            None => NodeAnswer::NotOwner,
        }
    }

    async fn take_late(self: Rc<Self>, late: LateBatch) -> NodeAnswer {
        if self.ownership.session_of(&late.room) == Some(late.epoch) {
            let phase = self.sessions.borrow().get(&late.room).filter(|s| s.epoch == late.epoch).map(|s| s.phase);
            match phase {
                Some(Phase::Live) => {
                    for mut entry in late.entries {
                        if let Entry::Status(change) = &mut entry {
                            change.status = Status::Live;
                        }
                        self.push(&late.room, late.epoch, entry);
                    }
                    return NodeAnswer::Taken;
                }
                _ => return NodeAnswer::Unavailable { why: "the session is being repaired".to_owned() },
            }
        }
        match self.ownership.take_late(late).await {
            Some(Outcome::Stored { .. }) => NodeAnswer::Taken,
            Some(outcome) => NodeAnswer::Unavailable { why: outcome.as_str().to_owned() },
            None => NodeAnswer::NotOwner,
        }
    }

    async fn adopt_orphans(self: Rc<Self>) {
        let mut seen: HashMap<Slug, (u64, Instant)> = HashMap::new();
        loop {
            self.pause(4_000..6_000).await;
            let Ok(held) = self.ownership.server().held().await else { continue };
            let before = std::mem::take(&mut seen);
            for (room, held) in held {
                let known = before.get(&room).filter(|(revision, _)| *revision == held.revision);
                let (revision, since) = known.copied().unwrap_or((held.revision, Instant::now()));
                seen.insert(room.clone(), (revision, since));
                if since.elapsed() < LEASE {
                    continue;
                }
                let holding: Holding = serde_json::from_slice(&held.value).expect("a holding");
                if holding.instance == self.ownership.instance() {
                    let _ = self.ownership.let_go_if_forgotten(&room, held.revision).await;
                    continue;
                }
                if self.ownership.is_there(&holding.instance).await != Ok(false) {
                    continue;
                }
                if let Ok(Some(claimed)) = self.ownership.adopt(&room, held.revision).await {
                    let (epoch, is_former) = (claimed.epoch, claimed.former.is_some());
                    if !self.sessions.borrow().contains_key(&room) && is_former {
                        self.begin_claimed(&room, claimed, false);
                    } else {
                        self.ownership.session_over(&room, epoch);
                        self.ownership.all_stored(&room, epoch).await;
                    }
                }
            }
        }
    }
}

fn checkpoint(room: &Slug, epoch: Epoch, last_seq: u64) -> Checkpoint {
    Checkpoint {
        slug: room.clone(),
        origin: Origin::Ingest,
        epoch,
        started_at: Utc::now(),
        next_seq: last_seq + 1,
        clock_ms: 1,
        is_publishing: true,
        audio_config: None,
        recogniser: serde_json::Value::Null,
    }
}
