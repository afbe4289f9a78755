use super::*;
use crate::actors::services::SessionRecorder;
use crate::actors::services::testing::services;
use crate::actors::supervision::testing::Parent;
use crate::bus::log_server::{LogServer, Question};
use crate::bus::memory::MemoryServer;
use crate::bus::ownership::{Identity, NodeAnswer, NodeRequest, Ownership};
use crate::transcript::{Entry, ReadError, StatusChange, StoredTail};
use futures_util::StreamExt;
use futures_util::future::BoxFuture;

fn registry(services: &Arc<Services>) -> Addr<SessionRegistry> {
    let parent = Parent::start().0.recipient();
    let lifeline = Lifeline::new(parent, ChildKind::SessionRegistry, 1, services.metrics.clone());
    let arbiters = Arc::new(vec![Arbiter::current()]);
    SessionRegistry::start(Arc::default(), services.clone(), arbiters, lifeline)
}

fn adopted(epoch: u128) -> AdoptSession {
    let beginning =
        SessionSeed { epoch: Some(Epoch::from_u128(epoch)), clock_ms: Some(1000), ..SessionSeed::default() };
    AdoptSession { slug: Slug::parse("demo").unwrap(), beginning }
}

#[actix::test]
async fn rooms_that_nobody_uses_are_forgotten() {
    tokio::time::pause();
    let services = services(&[("SESSION_GRACE_MS", "1000")]);
    let registry = registry(&services);
    for n in 0..100 {
        services.directory.get_or_create(&Slug::parse(&format!("looked-at-{n}")).unwrap());
    }
    registry.send(adopted(1)).await.unwrap();
    assert_eq!(services.directory.len(), 101);
    // The session's grace period is over, too.
    tokio::time::sleep(SWEEP_INTERVAL * 4).await;
    assert_eq!(services.directory.len(), 0);
    assert_eq!(services.metrics.sessions_active.get(), 0);
}

#[actix::test]
async fn of_two_epochs_that_a_process_has_left_the_later_one_goes_on() {
    let services = services(&[]);
    let registry = registry(&services);
    for epoch in [1, 2, 1] {
        registry.send(adopted(epoch)).await.unwrap();
    }
    let room = services.directory.get(&Slug::parse("demo").unwrap()).unwrap();
    assert_eq!(room.current().unwrap().epoch(), Epoch::from_u128(2));
    let old = room.log_of(Epoch::from_u128(1)).unwrap();
    let mut changes = old.watch();
    let ended = async {
        while old.status() != crate::transcript::Status::Ended {
            changes.changed().await.unwrap();
        }
    };
    tokio::time::timeout(Duration::from_secs(30), ended).await.expect("the earlier one ends");
}

fn mirrored(epoch: u128, seq: u64) -> Broadcast {
    let slug = Slug::parse("demo").unwrap();
    let change = StatusChange {
        session: slug.clone(),
        epoch: Epoch::from_u128(epoch),
        seq: Some(seq),
        id: format!("{epoch}-{seq}"),
        status: Status::Live,
        reason: None,
        durable: true,
    };
    Broadcast::new(slug, vec![BroadcastEntry { numbered: true, entry: Entry::Status(change) }])
}

/// A database that does not answer.
struct Unreadable;

impl SessionRecorder for Unreadable {
    fn started(&self, _: &SessionCore) {}
    fn checkpoint(&self, _: &SessionCore) {}
    fn ended(&self, _: &SessionCore, _: SessionEnd) {}
    fn stored_tail(&self, _: Epoch) -> BoxFuture<'static, Result<StoredTail, ReadError>> {
        Box::pin(async { Err(ReadError("gone".to_owned())) })
    }
    fn keep(&self, _: crate::transcript::SessionRecord) -> BoxFuture<'static, bool> {
        Box::pin(async { false })
    }
}

#[actix::test]
async fn what_cannot_be_looked_up_is_asked_again_and_not_refused_for_good() {
    let mut services = services(&[]);
    Arc::get_mut(&mut services).unwrap().recorder = Arc::new(Unreadable);
    let registry = registry(&services);
    registry.send(mirrored(2, 1)).await.unwrap().expect("a beginning needs no past");
    for (epoch, seq) in [(1, 2), (3, 2)] {
        let refused = registry.send(mirrored(epoch, seq)).await.unwrap();
        assert_eq!(refused, Err(BroadcastRefusal::Unavailable), "epoch {epoch}");
    }
}

#[actix::test]
async fn a_mirror_is_let_go_of_when_nobody_writes_and_nobody_watches() {
    tokio::time::pause();
    let services = services(&[]);
    let registry = registry(&services);
    registry.send(mirrored(1, 1)).await.unwrap().unwrap();
    let room = services.directory.get(&Slug::parse("demo").unwrap()).unwrap();
    let log = room.current().unwrap();
    let viewer = room.enter(1);
    tokio::time::sleep(Duration::from_secs(2000)).await;
    assert!(!log.is_closed(), "somebody watches");
    drop(viewer);
    tokio::time::sleep(Duration::from_secs(1300)).await;
    assert!(log.is_closed() && services.metrics.sessions_active.get() == 0);
    assert_eq!(log.last_seq(), 1, "nothing of ours is in it");
    // Whoever has read it to its end finds that it goes on.
    assert!(room.log_after(log.epoch(), log.last_seq()).is_none());
    registry.send(mirrored(1, 1)).await.unwrap().unwrap();
    let again = room.log_after(log.epoch(), log.last_seq()).expect("the same epoch");
    assert!(again.epoch() == log.epoch() && !Arc::ptr_eq(&again, &log));
}

#[actix::test]
async fn a_mirror_whose_successor_is_here_is_not_waited_for_long() {
    tokio::time::pause();
    let services = services(&[]);
    let registry = registry(&services);
    registry.send(mirrored(1, 1)).await.unwrap().unwrap();
    registry.send(mirrored(2, 1)).await.unwrap().unwrap();
    let room = services.directory.get(&Slug::parse("demo").unwrap()).unwrap();
    let _viewer = room.enter(1);
    let first = room.log_of(Epoch::from_u128(1)).unwrap();
    tokio::time::sleep(Duration::from_secs(20)).await;
    assert_eq!(registry.send(mirrored(1, 2)).await.unwrap().unwrap().seq, 2);
    tokio::time::sleep(Duration::from_secs(20)).await;
    assert!(!first.is_closed());
    tokio::time::sleep(Duration::from_secs(20)).await;
    assert!(first.is_closed() && !room.current().unwrap().is_closed());
    let refused = registry.send(mirrored(1, 3)).await.unwrap();
    assert_eq!(
        refused,
        Err(BroadcastRefusal::Hole { expected: 1 }),
        "its past is looked up, and this store keeps none"
    );
}

/// A node of a cluster in memory; its registry's address answers other nodes.
async fn cluster_node(server: &MemoryServer) -> (Arc<Services>, Addr<SessionRegistry>) {
    let mut services = services(&[]);
    let inner = Arc::get_mut(&mut services).unwrap();
    let client = server.connect();
    let (ownership, _lost) = Ownership::new(client.clone(), Identity::new("node", &uuid::Uuid::now_v7().to_string()));
    inner.log_server = Some(client.clone());
    inner.ownership = Some(ownership.clone());
    let registry = registry(&services);
    let (mut questions, asked) = (client.questions(ownership.instance()), registry.clone());
    actix_rt::spawn(async move {
        while let Some(Question { request, answer }) = questions.next().await {
            let Ok(NodeRequest::Post(lines)) = serde_json::from_slice(&request) else { panic!("no post") };
            let answered = match asked.send(TakePost(*lines)).await.unwrap() {
                Some(Ok(BroadcastAck { accepted, duplicates, seq })) => {
                    NodeAnswer::Posted { accepted, duplicates, seq }
                }
                Some(Err(BroadcastRefusal::HasOrigin { expected })) => NodeAnswer::HasOrigin { expected },
                Some(Err(refusal)) => NodeAnswer::Unavailable { why: refusal.to_string() },
                None => NodeAnswer::NotOwner,
            };
            answer(answered.to_bytes());
        }
    });
    (services, registry)
}

fn from_third_party(id: &str, is_status: bool) -> Broadcast {
    let slug = Slug::parse("demo").unwrap();
    let mut line = serde_json::json!({"session": slug, "epoch": Epoch::nil(), "seq": null, "id": id});
    let kind = match is_status {
        true => serde_json::json!({"type": "status", "status": "live"}),
        false => serde_json::json!({"type": "gap", "startMs": 0, "endMs": 1, "reason": "publisher_lost"}),
    };
    line.as_object_mut().unwrap().extend(kind.as_object().unwrap().clone());
    Broadcast::new(slug, vec![BroadcastEntry { numbered: false, entry: serde_json::from_value(line).unwrap() }])
}

#[actix::test]
async fn lines_of_third_parties_go_to_the_node_that_has_the_session() {
    tokio::time::pause();
    let server = MemoryServer::new();
    let (owner, at_owner) = cluster_node(&server).await;
    let (here, registry) = cluster_node(&server).await;
    let slug = Slug::parse("demo").unwrap();
    let claimed = owner.ownership.as_ref().unwrap().claim(&slug).await.unwrap();
    let seed = SessionSeed { epoch: Some(claimed.epoch), ..SessionSeed::default() };
    at_owner.send(AdoptSession { slug: slug.clone(), beginning: seed }).await.unwrap();
    let log = owner.directory.get(&slug).unwrap().current().unwrap();
    let post = async |id, is_status| registry.send(from_third_party(id, is_status)).await.unwrap();
    let first = post("a", false).await.unwrap();
    assert_eq!((first.accepted, first.duplicates), (1, 0));
    assert_eq!(post("a", false).await.unwrap().duplicates, 1);
    assert_eq!(log.seq_of("a"), Some(first.seq));
    assert!(matches!(post("s", true).await, Err(BroadcastRefusal::HasOrigin { .. })), "its status it says itself");
    assert!(here.directory.get(&slug).is_none(), "no session begins here");
    // Its session ends, and the room is still its own.
    at_owner.send(EndSession { slug: slug.clone(), reason: "test".into(), deadline: Instant::now() }).await.unwrap();
    assert_eq!(post("b", false).await, Err(BroadcastRefusal::Unavailable));
}

#[actix::test]
async fn a_room_that_nobody_owns_begins_where_the_lines_came() {
    tokio::time::pause();
    let server = MemoryServer::new();
    let (here, registry) = cluster_node(&server).await;
    let taken = registry.send(from_third_party("a", false)).await.unwrap();
    assert_eq!(taken.unwrap().accepted, 1);
    assert_eq!(registry.send(from_third_party("a", false)).await.unwrap().unwrap().duplicates, 1);
    assert!(here.directory.get(&Slug::parse("demo").unwrap()).is_some());
}
