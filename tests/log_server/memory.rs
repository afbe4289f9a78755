//! The server inside this process: the contract, and the faults that it is there for.

use std::sync::Arc;
use std::time::Duration;

use futures_util::{FutureExt, StreamExt};
use stenocast::bus::log_server::{Appended, Followed, Link, LogServer, Message, ServerError, Topic, Unanswered};
use stenocast::bus::memory::{MemoryClient, MemoryServer};
use tokio::time::Instant;

use super::contract::{Nodes, message, next, next_message, room, store};

fn nodes_of(server: MemoryServer) -> Nodes {
    Nodes { a: server.connect(), b: server.connect(), _keep: Box::new(server) }
}

mod as_newer_servers {
    async fn nodes() -> crate::contract::Nodes {
        super::nodes_of(super::MemoryServer::new())
    }

    contract!(nodes);
}

mod as_servers_before_2_12 {
    async fn nodes() -> crate::contract::Nodes {
        let server = super::MemoryServer::new();
        server.know_repetitions_first();
        super::nodes_of(server)
    }

    contract!(nodes);
}

fn pair() -> (MemoryServer, Arc<MemoryClient>, Arc<MemoryClient>) {
    let server = MemoryServer::new();
    let (a, b) = (server.connect(), server.connect());
    (server, a, b)
}

fn is_away<T>(answer: &Result<T, ServerError>) -> bool {
    matches!(answer, Err(ServerError::Away(_)))
}

fn is_unsure(appended: &Appended) -> bool {
    matches!(appended, Appended::Unsure(_))
}

const SHORT: Duration = Duration::from_millis(100);

#[tokio::test(start_paused = true)]
async fn an_append_whose_answer_is_lost_is_stored() {
    let (_, a, b) = pair();
    let slug = room("lost");
    a.lose_answers(1);
    assert!(is_unsure(&a.append(message(&slug, 1), 0).await));
    let head = b.head(&slug).await.unwrap().unwrap();
    assert_eq!(head.message, message(&slug, 1));
    assert_eq!(a.append(message(&slug, 1), 0).await, Appended::Refused);
    a.delay_answers(1, SHORT * 5);
    let began = Instant::now();
    assert_eq!(a.append(message(&slug, 2), head.position).await, Appended::Stored(2));
    assert_eq!(began.elapsed(), SHORT * 5);
}

#[tokio::test(start_paused = true)]
async fn an_append_that_is_late_is_stored_late_or_refused_then() {
    let (server, a, b) = pair();
    let (free, taken) = (room("free"), room("taken"));
    let mut follower = b.follow(0);
    a.delay_appends(2, Duration::from_secs(10));
    for slug in [&free, &taken] {
        assert!(is_unsure(&a.append(message(slug, "late"), 0).await));
    }
    assert_eq!(server.messages().len(), 0);
    store(&*b, message(&taken, "in time"), 0).await;
    assert_eq!(next_message(&mut follower).await.message.id, "in time");
    assert_eq!(next_message(&mut follower).await.message.room, free);
    tokio::time::advance(Duration::from_secs(20)).await;
    assert!(follower.next().now_or_never().is_none(), "the other one is refused");
}

#[tokio::test(start_paused = true)]
async fn what_is_sent_into_a_stalled_connection_arrives_after_it_and_into_a_cut_one_never() {
    let (server, a, b) = pair();
    let slug = room("stalled");
    let mut follower = a.follow(0);
    a.stall();
    assert!(is_unsure(&a.append(message(&slug, "stalled"), 0).await));
    assert!(is_away(&a.head(&slug).await));
    let mut questions = a.questions("a");
    assert_eq!(b.ask("a", "?".into(), SHORT).await, Err(Unanswered::Late));
    assert_eq!(server.messages().len(), 0);
    a.mend();
    assert_eq!(next_message(&mut follower).await.message.id, "stalled");
    assert_eq!(questions.next().await.unwrap().request, "?");
    a.cut();
    assert!(is_unsure(&a.append(message(&slug, "cut"), 1).await));
    assert!(is_away(&a.hold(&slug, "v".into(), None).await) && is_away(&a.held().await) && is_away(&a.settled().await));
    assert!(is_away(&a.work(1).await.map(|work| work.len())));
    assert!(matches!(a.ask("b", "?".into(), SHORT).await, Err(Unanswered::Away(_))));
    assert_eq!(b.ask("a", "?".into(), SHORT).await, Err(Unanswered::Nobody));
    assert!(matches!(&*a.link().borrow(), Link::Away(_)));
    store(&*b, message(&slug, "meanwhile"), 1).await;
    assert!(follower.next().now_or_never().is_none());
    a.mend();
    assert_eq!(next_message(&mut follower).await.message.id, "meanwhile");
    assert_eq!((&*a.link().borrow(), server.messages().len()), (&Link::Up, 2));
}

#[tokio::test(start_paused = true)]
async fn what_is_told_while_the_connection_is_cut_is_forgotten() {
    let (_, a, b) = pair();
    let mut heard = b.hear(Topic::Reports);
    for cut in [&a, &b] {
        cut.cut();
        a.tell(Topic::Reports, "meanwhile".into());
        cut.mend();
    }
    a.tell(Topic::Reports, "after".into());
    assert_eq!(heard.next().await.unwrap(), "after");
}

#[tokio::test(start_paused = true)]
async fn a_frozen_node_is_late_and_finds_its_questions_when_it_thaws() {
    let (_, a, b) = pair();
    let mut questions = b.questions("b");
    b.freeze();
    assert_eq!(a.ask("b", "frozen".into(), SHORT).await, Err(Unanswered::Late));
    assert!(questions.next().now_or_never().is_none());
    b.thaw();
    let question = questions.next().await.unwrap();
    assert_eq!(question.request, "frozen");
    (question.answer)("too late".into());
}

#[tokio::test(start_paused = true)]
async fn a_full_log_says_so_and_goes_on_when_it_was_tidied() {
    let (server, a, _) = pair();
    let slug = room("full");
    server.set_capacity(Some(10_000));
    let big = |n: u64| Message { body: vec![b'x'; 900].into(), ..message(&slug, n) };
    for n in 0..10 {
        store(&*a, big(n), n).await;
    }
    assert!(matches!(a.append(big(10), 10).await, Appended::Full(_)));
    assert!(a.tidy().await.unwrap() > 0.8, "nothing is in the database yet");
    for work in a.work(5).await.unwrap() {
        work.receipt.done().await;
    }
    assert_eq!(a.settled().await, Ok(5));
    assert!(a.tidy().await.unwrap() < 0.8);
    assert_eq!(a.append(big(10), 10).await, Appended::Stored(11));
    assert_eq!(a.read(&slug, 0, 100).await.unwrap()[0].position, 6, "what the database lacks is there");
}

#[tokio::test(start_paused = true)]
async fn a_log_that_has_lost_its_end_is_told_to_its_followers_even_when_it_has_grown_again() {
    let (server, a, b) = pair();
    let slug = room("end");
    let (mut all, mut behind) = (b.follow(0), b.follow(0));
    for n in 0..5 {
        store(&*a, message(&slug, n), n).await;
        assert_eq!(next_message(&mut all).await.position, n + 1);
    }
    for work in a.work(10).await.unwrap() {
        work.receipt.done().await;
    }
    assert_eq!(next_message(&mut behind).await.position, 1);
    server.lose_end(2);
    assert_eq!((a.settled().await, a.head(&slug).await.unwrap().unwrap().position), (Ok(3), 3));
    for n in 4..8 {
        store(&*a, message(&slug, format!("new {n}")), n - 1).await;
    }
    assert_eq!(next(&mut all).await, Followed::Reset(3));
    assert_eq!(next_message(&mut all).await.message.id, "new 4");
    assert_eq!(next_message(&mut behind).await.position, 2);
    let work = a.work(10).await.unwrap();
    assert_eq!(
        work.iter().map(|work| &*work.logged.message.id).collect::<Vec<_>>(),
        ["new 4", "new 5", "new 6", "new 7"]
    );
    server.make_anew();
    assert_eq!(next(&mut all).await, Followed::Reset(0));
    assert_eq!((a.head(&slug).await, a.held().await.map(|held| held.len())), (Ok(None), Ok(0)));
}

#[tokio::test(start_paused = true)]
async fn a_purged_room_expects_nothing_and_followers_pass_over_it() {
    let (server, a, b) = pair();
    let (gone, other) = (room("gone"), room("other"));
    store(&*a, message(&gone, 1), 0).await;
    let before = store(&*a, message(&other, 2), 0).await;
    let mut follower = b.follow(0);
    server.purge(&gone);
    assert_eq!(a.append(message(&gone, 3), 1).await, Appended::Refused);
    assert_eq!(a.append(message(&gone, 1), 0).await, Appended::Stored(before + 1), "not known as a repetition");
    assert_eq!(next_message(&mut follower).await.position, before);
    assert_eq!(next_message(&mut follower).await.position, before + 1);
    assert_eq!(a.settled().await, Ok(1));
}

#[tokio::test(start_paused = true)]
async fn the_work_of_a_node_that_is_gone_comes_again_after_half_a_minute() {
    let (_, a, b) = pair();
    store(&*a, message(&room("w"), 1), 0).await;
    let work = a.work(1).await.unwrap().remove(0);
    let half = Duration::from_secs(20);
    tokio::time::advance(half).await;
    work.receipt.is_in_work().await;
    a.cut();
    drop(work);
    let began = Instant::now();
    let again = b.work(1).await.unwrap().remove(0);
    assert_eq!(began.elapsed(), Duration::from_secs(30));
    drop(again);
    assert_eq!(b.work(1).await.unwrap().len(), 1);
    assert_eq!(began.elapsed(), Duration::from_secs(32), "a node that lives says that it lets go of it");
}
