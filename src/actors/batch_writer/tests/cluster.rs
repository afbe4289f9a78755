//! Rows that wait in a log server: two nodes with one database, beside what is in a node's outbox.

use super::*;
use crate::actors::batch_writer::bus_rows::BusRows;
use crate::bus::Batch;
use crate::bus::log_server::{LogServer, Message, MessageKind, Position};
use crate::bus::memory::{MemoryClient, MemoryServer};
use crate::bus::wire;
use crate::db::BothQueues;
use crate::transcript::SessionRecord;

/// A node with a database.
struct Node {
    client: Arc<MemoryClient>,
    rows: Arc<BusRows>,
    outbox: Arc<MemoryQueue>,
    metrics: Arc<Metrics>,
    dir: tempfile::TempDir,
    parent: Addr<Parent>,
}

impl Node {
    fn new(server: &MemoryServer) -> Self {
        let (client, metrics) = (server.connect(), Arc::new(Metrics::new()));
        let rows = BusRows::start(client.clone(), metrics.clone());
        let outbox =
            Arc::new(MemoryQueue { last: watch::Sender::new(0), position: Mutex::new(0), confirmed: Mutex::default() });
        let (dir, parent) = (tempfile::tempdir().unwrap(), Parent::start().0);
        Self { client, rows, outbox, metrics, dir, parent }
    }

    fn write_to(&self, backend: &Arc<MemoryBackend>) -> Addr<BatchWriter> {
        backend.begun.lock().get_or_insert_with(Instant::now);
        self.rows.rewind();
        let params = BatchWriterParams {
            queue: BothQueues::new([self.outbox.clone(), self.rows.clone()]),
            store: Store::new(backend.clone(), DbRuntime::current()),
            quarantine: Quarantine::new(self.dir.path()),
            config: Config::load(&Default::default(), true).unwrap().store,
            metrics: self.metrics.clone(),
            lifeline: Lifeline::new(self.parent.clone().recipient(), ChildKind::BatchWriter, 1, self.metrics.clone()),
        };
        BatchWriter::new(params).start()
    }
}

/// What a room's owner says: so many entries a message.
struct Owner {
    client: Arc<MemoryClient>,
    position: Position,
    seq: u64,
}

impl Owner {
    fn new(server: &MemoryServer) -> Self {
        Self { client: server.connect(), position: 0, seq: 0 }
    }

    async fn put(&mut self, kind: MessageKind, body: String) {
        let (room, fence, id) = (Slug::parse("demo").unwrap(), "f1".to_owned(), format!("m{}", self.position));
        let message = Message { room, kind, fence, id, body: body.into() };
        match self.client.append(message, self.position).await {
            crate::bus::log_server::Appended::Stored(position) => self.position = position,
            other => panic!("{other:?}"),
        }
    }

    async fn say(&mut self, messages: usize, entries: usize) {
        for _ in 0..messages {
            let mut batch = Batch::new(Slug::parse("demo").unwrap(), Epoch::nil());
            for _ in 0..entries {
                self.seq += 1;
                let Ok(Record::Entry(entry)) = stored(self.seq).record else { panic!("an entry") };
                batch.entries.push(entry.to_json());
            }
            batch.record = Some(SessionRecord::begun(batch.epoch, batch.slug.clone(), Utc::now()));
            self.put(MessageKind::Entries, wire::body(&batch, &[&batch.entries])).await;
        }
    }
}

/// Waits until everything in the log is in the database; gives the numbers there.
async fn all_settled(server: &MemoryServer, backend: &MemoryBackend) -> Vec<i64> {
    let (client, last) = (server.connect(), server.messages().last().map_or(0, |logged| logged.position));
    for _ in 0..60_000 {
        if client.settled().await.unwrap() == last {
            return written(backend);
        }
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
    panic!("settled: {:?} of {last}", client.settled().await);
}

fn written(backend: &MemoryBackend) -> Vec<i64> {
    let mut seqs: Vec<i64> = backend.batches.lock().iter().flat_map(|(_, seqs)| seqs.clone()).collect();
    seqs.sort_unstable();
    seqs
}

fn all(seqs: u64) -> Vec<i64> {
    (1..=seqs as i64).collect()
}

#[actix::test]
async fn two_nodes_write_each_row_once() {
    tokio::time::pause();
    let (server, backend) = (MemoryServer::new(), Arc::<MemoryBackend>::default());
    let mut owner = Owner::new(&server);
    owner.put(MessageKind::Owner, "{}".into()).await;
    let nodes = [Node::new(&server), Node::new(&server)];
    let _writers = nodes.each_ref().map(|node| node.write_to(&backend));
    for _ in 0..30 {
        owner.say(50, 2).await;
    }
    assert_eq!(all_settled(&server, &backend).await, all(3000));
    let inserted = nodes.each_ref().map(|node| node.metrics.batch_rows_total.with_label_values(&["inserted"]).get());
    assert!(inserted.iter().all(|rows| *rows > 0), "{inserted:?}");
}

#[actix::test]
async fn a_message_is_done_with_once_its_rows_are_committed() {
    tokio::time::pause();
    let statement = Duration::from_secs(4);
    let (server, backend) = (MemoryServer::new(), Arc::new(MemoryBackend { statement, ..Default::default() }));
    let mut owner = Owner::new(&server);
    owner.say(2, 1).await;
    let node = Node::new(&server);
    let writer = node.write_to(&backend);
    tokio::time::sleep(statement).await;
    assert_eq!(node.client.settled().await.unwrap(), 0);
    // Nothing is lost, and nothing waits for the log server to give it again.
    writer.do_send(crate::actors::Crash);
    tokio::time::sleep(Duration::from_millis(10)).await;
    let begun = Instant::now();
    let _writer = node.write_to(&backend);
    let mut written = all_settled(&server, &backend).await;
    // The statement of the first life goes through, too; a database skips what it has.
    written.dedup();
    assert_eq!(written, [1, 2]);
    assert!(begun.elapsed() < statement * 2, "{:?}", begun.elapsed());
}

#[actix::test]
async fn while_the_database_is_away_rows_are_kept_and_no_more_fetched() {
    tokio::time::pause();
    let (server, backend) = (MemoryServer::new(), Arc::<MemoryBackend>::default());
    *backend.down.lock() = Some(StoreError::Unavailable("gone".into()));
    let mut owner = Owner::new(&server);
    owner.say(900, 1).await;
    let node = Node::new(&server);
    let writer = node.write_to(&backend);
    node.outbox.append(3);
    tokio::time::sleep(Duration::from_secs(300)).await;
    let pending = serde_json::to_value(writer.send(Observe::default()).await.unwrap()).unwrap()["pending"].clone();
    // Each message has a session's row, too.
    assert_eq!(pending, 500 * 2 + 3);
    // What is held is given to nobody else, for as long as it takes.
    let other = server.connect();
    let mut left = Vec::new();
    while let Ok(Ok(work)) = tokio::time::timeout(Duration::from_secs(25), other.work(100)).await {
        left.extend(work);
    }
    assert_eq!(left.len(), 400);
    *backend.down.lock() = None;
    for work in left {
        work.receipt.done().await;
    }
    let written = all_settled(&server, &backend).await;
    assert_eq!((written.len(), written.last()), (500 + 3, Some(&500)));
}

#[actix::test]
async fn what_cannot_be_read_goes_to_quarantine() {
    tokio::time::pause();
    let (server, backend) = (MemoryServer::new(), Arc::<MemoryBackend>::default());
    let mut owner = Owner::new(&server);
    owner.put(MessageKind::Entries, "no JSON".into()).await;
    owner.put(MessageKind::Entries, wire::body(&Batch::new(Slug::parse("other").unwrap(), Epoch::nil()), &[])).await;
    owner.say(1, 1).await;
    let node = Node::new(&server);
    let _writer = node.write_to(&backend);
    assert_eq!(all_settled(&server, &backend).await, [1]);
    assert_eq!(Quarantine::new(node.dir.path()).summary().unwrap().rows, 2);
}

#[actix::test]
async fn neither_queue_waits_for_the_other() {
    tokio::time::pause();
    let (server, backend) = (MemoryServer::new(), Arc::<MemoryBackend>::default());
    let node = Node::new(&server);
    node.client.cut();
    let _writer = node.write_to(&backend);
    node.outbox.append(250);
    tokio::time::sleep(Duration::from_secs(5)).await;
    assert_eq!((written(&backend), node.outbox.confirmed.lock().last().copied()), (all(250), Some(250)));
    let mut owner = Owner::new(&server);
    owner.say(5, 1).await;
    node.client.mend();
    assert_eq!(all_settled(&server, &backend).await.len(), 255);
}
