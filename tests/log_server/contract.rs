//! The contract of a log server: each function is a promise, tried on two nodes' connections to one empty server.

use std::any::Any;
use std::time::Duration;

use bytes::Bytes;
use futures_util::stream::BoxStream;
use futures_util::{FutureExt, StreamExt};
use stenocast::bus::log_server::{
    Appended, Followed, Link, LogServer, Logged, Message, MessageKind, Position, SharedServer, Topic, Unanswered,
};
use stenocast::transcript::Slug;

use super::support::wait::{DEADLINE, until};

/// Two nodes of one server, which is empty.
pub struct Nodes {
    pub a: SharedServer,
    pub b: SharedServer,
    /// Dropped last: the server itself.
    pub _keep: Box<dyn Any>,
}

/// Makes a test of each promise. The name is that of an async function that gives [`Nodes`].
macro_rules! contract {
    ($nodes:ident) => {
        contract!(
            $nodes: an_append_needs_the_position_of_the_rooms_last_message,
            of_two_writers_at_once_one_is_refused,
            a_repetition_is_stored_once,
            an_id_names_a_message_of_one_room,
            a_room_is_read_page_by_page_and_its_head_is_its_last_message,
            long_rooms_are_read_in_order_to_their_end,
            a_follower_gets_what_is_there_and_what_comes,
            a_follower_of_what_is_not_there_is_set_back,
            a_value_is_written_by_whoever_knows_its_revision,
            of_two_holders_at_once_one_is_told_so,
            all_values_are_listed,
            nobody_is_told_apart_from_somebody_who_is_late,
            questions_are_answered_in_any_order,
            what_is_told_reaches_whoever_listens_to_that,
            work_is_waited_for_and_given_to_one_node,
            work_that_is_dropped_comes_again_and_work_that_is_done_does_not,
            settled_stops_before_what_is_not_done,
            a_body_that_is_too_large_is_said_to_be,
            rooms_of_every_name_are_apart,
            any_text_is_an_id_a_fence_and_a_node,
            tidying_leaves_what_the_database_lacks,
            the_link_is_up
        );
    };
    ($nodes:ident: $($promise:ident),+) => {$(
        #[actix_rt::test]
        async fn $promise() {
            crate::contract::$promise($nodes().await).await;
        }
    )+};
}

pub fn room(name: &str) -> Slug {
    Slug::parse(name).unwrap()
}

pub fn message(room: &Slug, id: impl ToString) -> Message {
    let id = id.to_string();
    let body = Bytes::from(format!("body of {id}"));
    Message { room: room.clone(), kind: MessageKind::Entries, fence: "node a:7".to_owned(), id, body }
}

/// Appends until it is stored, as an owner does: refused or unsure, it reads the head.
pub async fn store(server: &dyn LogServer, message: Message, expected: Position) -> Position {
    let stored = async || match server.append(message.clone(), expected).await {
        Appended::Stored(position) => Ok(position),
        Appended::Refused => match server.head(&message.room).await {
            Ok(Some(head)) if head.message.id == message.id => Ok(head.position),
            other => Err(format!("refused at {expected}, and the head is {other:?}")),
        },
        other => Err(format!("{other:?}")),
    };
    until("the message is stored", stored).await
}

/// Appends so many, with their numbers as ids. Gives the last position.
async fn store_many(server: &dyn LogServer, room: &Slug, count: usize) -> Position {
    let mut at = 0;
    for n in 0..count {
        at = store(server, message(room, format!("{room} {n}")), at).await;
    }
    at
}

fn ids(read: &[Logged]) -> Vec<&str> {
    read.iter().map(|logged| &*logged.message.id).collect()
}

pub async fn next(follower: &mut BoxStream<'static, Followed>) -> Followed {
    let next = tokio::time::timeout(DEADLINE, follower.next()).await.expect("a step of the follower");
    next.expect("a follower has no end")
}

pub async fn next_message(follower: &mut BoxStream<'static, Followed>) -> Logged {
    match next(follower).await {
        Followed::Message(logged) => logged,
        Followed::Reset(position) => panic!("the log was not made anew, and yet: reset to {position}"),
    }
}

pub async fn an_append_needs_the_position_of_the_rooms_last_message(Nodes { a, b, .. }: Nodes) {
    let (slug, other) = (room("fence"), room("other"));
    let first = store(&*a, message(&slug, 1), 0).await;
    assert_eq!(b.append(message(&slug, "rival"), 0).await, Appended::Refused);
    let beside = store(&*b, message(&other, 1.5), 0).await;
    assert!(beside > first, "positions are counted over all rooms");
    assert_eq!(b.append(message(&slug, "ahead"), beside).await, Appended::Refused, "it is of another room");
    let second = store(&*b, message(&slug, 2), first).await;
    assert!(second > beside);
    assert_eq!(a.append(message(&slug, "stale"), first).await, Appended::Refused);
    assert_eq!(ids(&a.read(&slug, 0, 10).await.unwrap()), ["1", "2"]);
}

pub async fn of_two_writers_at_once_one_is_refused(Nodes { a, b, .. }: Nodes) {
    let slug = room("race");
    let mut at = 0;
    for n in 0..50 {
        let (a, b) =
            tokio::join!(a.append(message(&slug, format!("a{n}")), at), b.append(message(&slug, format!("b{n}")), at));
        at = match (&a, &b) {
            (Appended::Stored(at), Appended::Refused) | (Appended::Refused, Appended::Stored(at)) => *at,
            _ => panic!("{a:?} and {b:?}"),
        };
    }
    assert_eq!(a.read(&slug, 0, 100).await.unwrap().len(), 50);
}

pub async fn a_repetition_is_stored_once(Nodes { a, b, .. }: Nodes) {
    let slug = room("again");
    let first = store(&*a, message(&slug, 1), 0).await;
    // Known by its id or refused by its place: the server's choice.
    let again = a.append(message(&slug, 1), 0).await;
    assert!(matches!(again, Appended::Refused) || again == Appended::Stored(first), "{again:?}");
    assert_eq!(a.head(&slug).await.unwrap().unwrap().message.id, "1");
    let second = store(&*b, message(&slug, 2), first).await;
    let again = a.append(message(&slug, 1), 0).await;
    assert!(matches!(again, Appended::Refused) || again == Appended::Stored(first), "{again:?}");
    let after = a.append(message(&slug, 1), second).await;
    assert_eq!(after, Appended::Stored(second), "never a position before the room's last message");
    assert_eq!(ids(&a.read(&slug, 0, 10).await.unwrap()), ["1", "2"]);
}

pub async fn an_id_names_a_message_of_one_room(Nodes { a, .. }: Nodes) {
    // Whoever writes names the content with it, room and all: that the server knows ids over all rooms is its own affair.
    let (one, two) = (room("one"), room("two"));
    store(&*a, message(&one, "of one"), 0).await;
    store(&*a, message(&two, "of two"), 0).await;
    assert_eq!(a.head(&one).await.unwrap().unwrap().message.id, "of one");
    assert_eq!(a.head(&two).await.unwrap().unwrap().message.id, "of two");
}

pub async fn a_room_is_read_page_by_page_and_its_head_is_its_last_message(Nodes { a, b, .. }: Nodes) {
    let slug = room("pages");
    assert_eq!((a.head(&slug).await, a.read(&slug, 0, 10).await), (Ok(None), Ok(Vec::new())));
    let owner = Message { kind: MessageKind::Owner, fence: "b:1".to_owned(), ..message(&slug, "owner") };
    let (mut at, mut beside) = (store(&*a, owner.clone(), 0).await, 0);
    for n in 1..10 {
        beside = store(&*b, message(&room("between"), format!("between {n}")), beside).await;
        at = store(&*a, message(&slug, n), at).await;
    }
    let all = b.read(&slug, 0, 100).await.unwrap();
    assert_eq!((&all[0].message, all.len()), (&owner, 10));
    assert_eq!(all[9].message, message(&slug, 9));
    assert!(all.is_sorted_by(|one, two| one.position < two.position && one.at <= two.at));
    assert_eq!(b.head(&slug).await.unwrap().as_ref(), all.last());
    assert_eq!(b.read(&slug, 0, 4).await.unwrap(), all[..4]);
    assert_eq!(b.read(&slug, all[3].position, 4).await.unwrap(), all[4..8]);
    assert_eq!(b.read(&slug, all[3].position + 1, 4).await.unwrap()[0].position, all[4].position, "a place between");
    assert_eq!(b.read(&slug, at, 4).await, Ok(Vec::new()));
    assert_eq!(b.read(&slug, at + 1000, 4).await, Ok(Vec::new()));
}

pub async fn long_rooms_are_read_in_order_to_their_end(Nodes { a, b, .. }: Nodes) {
    let (long, other) = (room("long"), room("beside"));
    let (at, _) = tokio::join!(store_many(&*a, &long, 500), store_many(&*b, &other, 500));
    let all = b.read(&long, 0, usize::MAX).await.unwrap();
    let wanted: Vec<_> = (0..500).map(|n| format!("long {n}")).collect();
    assert_eq!(ids(&all), wanted);
    assert_eq!(b.read(&long, all[99].position, 300).await.unwrap(), all[100..400]);
    assert_eq!(b.read(&long, at, 10).await, Ok(Vec::new()));
}

pub async fn a_follower_gets_what_is_there_and_what_comes(Nodes { a, b, .. }: Nodes) {
    let (one, two) = (room("one"), room("two"));
    let first = store(&*a, message(&one, 1), 0).await;
    let second = store(&*a, message(&two, 2), 0).await;
    let mut all = b.follow(0);
    let mut from_second = b.follow(first);
    let mut new = b.follow(second);
    assert_eq!(next_message(&mut all).await, a.head(&one).await.unwrap().unwrap());
    assert_eq!(next_message(&mut all).await.message.id, "2");
    assert_eq!(next_message(&mut from_second).await.message.id, "2");
    let mut at = first;
    for n in 3..40 {
        at = store(&*a, message(&one, n), at).await;
        for follower in [&mut all, &mut from_second, &mut new] {
            let logged = next_message(follower).await;
            assert_eq!((logged.position, logged.message.id), (at, n.to_string()));
        }
    }
}

pub async fn a_follower_of_what_is_not_there_is_set_back(Nodes { a, b, .. }: Nodes) {
    let slug = room("short");
    let last = store_many(&*a, &slug, 2).await;
    let mut ahead = b.follow(last + 15);
    assert_eq!(next(&mut ahead).await, Followed::Reset(last));
    let third = store(&*a, message(&slug, "third"), last).await;
    assert_eq!(next_message(&mut ahead).await.position, third);
}

pub async fn a_value_is_written_by_whoever_knows_its_revision(Nodes { a, b, .. }: Nodes) {
    let slug = room("held");
    assert_eq!(a.holder(&slug).await, Ok(None));
    assert_eq!(a.hold(&slug, "too soon".into(), Some(1)).await, Ok(None), "there is none of any revision");
    assert_eq!(a.let_go(&slug, 1).await, Ok(false));
    let first = a.hold(&slug, "of a".into(), None).await.unwrap().expect("it was free");
    assert_eq!(b.hold(&slug, "of b".into(), None).await, Ok(None));
    let held = b.holder(&slug).await.unwrap().unwrap();
    assert_eq!((held.value, held.revision), (Bytes::from("of a"), first));
    let second = b.hold(&slug, "of b".into(), Some(first)).await.unwrap().expect("it was known");
    assert_ne!(first, second);
    assert_eq!(a.hold(&slug, "of a again".into(), Some(first)).await, Ok(None));
    assert_eq!(a.let_go(&slug, first).await, Ok(false));
    assert_eq!(a.holder(&slug).await.unwrap().unwrap().value, Bytes::from("of b"));
    assert_eq!(b.let_go(&slug, second).await, Ok(true));
    assert_eq!((a.holder(&slug).await, b.let_go(&slug, second).await), (Ok(None), Ok(false)));
    let third = a.hold(&slug, "of a".into(), None).await.unwrap().expect("it is free again");
    assert!(third != first && third != second, "no revision comes twice");
    assert_eq!(b.hold(&slug, "stale".into(), Some(second)).await, Ok(None));
}

pub async fn of_two_holders_at_once_one_is_told_so(Nodes { a, b, .. }: Nodes) {
    let slug = room("race");
    let mut revision = None;
    for _ in 0..50 {
        let (by_a, by_b) = tokio::join!(a.hold(&slug, "a".into(), revision), b.hold(&slug, "b".into(), revision));
        let (by_a, by_b) = (by_a.unwrap(), by_b.unwrap());
        assert!(by_a.is_some() != by_b.is_some(), "{by_a:?} and {by_b:?}");
        let held = a.holder(&slug).await.unwrap().unwrap();
        assert_eq!(Some(held.revision), by_a.or(by_b));
        assert_eq!(held.value, if by_a.is_some() { "a" } else { "b" });
        revision = Some(held.revision);
    }
}

pub async fn all_values_are_listed(Nodes { a, b, .. }: Nodes) {
    assert_eq!(a.held().await, Ok(Vec::new()));
    for n in 0..50 {
        let slug = room(&format!("room.{n}"));
        a.hold(&slug, n.to_string().into(), None).await.unwrap().unwrap();
    }
    let gone = room("room.7");
    let revision = a.holder(&gone).await.unwrap().unwrap().revision;
    assert_eq!(b.let_go(&gone, revision).await, Ok(true));
    let mut held: Vec<_> = b.held().await.unwrap().into_iter().map(|(slug, held)| (slug, held.value)).collect();
    held.sort();
    let wanted = (0..50).filter(|n| *n != 7).map(|n| (room(&format!("room.{n}")), Bytes::from(n.to_string())));
    let mut wanted: Vec<_> = wanted.collect();
    wanted.sort();
    assert_eq!(held, wanted);
}

pub async fn nobody_is_told_apart_from_somebody_who_is_late(Nodes { a, b, .. }: Nodes) {
    let short = Duration::from_millis(300);
    assert_eq!(a.ask("b.example", Bytes::new(), DEADLINE).await, Err(Unanswered::Nobody));
    let mut questions = b.questions("b.example");
    let late = async || match a.ask("b.example", Bytes::new(), short).await {
        Err(Unanswered::Late) => Ok(()),
        other => Err(format!("{other:?}")),
    };
    until("b listens and does not answer", late).await;
    let ignored = async {
        loop {
            drop(questions.next().await.unwrap());
        }
    };
    let asked = a.ask("b.example", Bytes::new(), short);
    let answer = tokio::select! { answer = asked => answer, () = ignored => unreachable!() };
    assert_eq!(answer, Err(Unanswered::Late), "a question that is dropped is not answered");
    drop(questions);
    let gone = async || a.ask("b.example", Bytes::new(), short).await == Err(Unanswered::Nobody);
    until("dropped questions are not listened to any more", gone).await;
}

pub async fn questions_are_answered_in_any_order(Nodes { a, b, .. }: Nodes) {
    let mut questions = b.questions("b");
    let listens = async || match a.ask("b", "are you there?".into(), Duration::from_millis(100)).await {
        Err(Unanswered::Nobody) => Err("it does not listen".to_owned()),
        _ => Ok(()),
    };
    until("b listens", listens).await;
    let answers = async {
        let mut kept = Vec::new();
        while kept.len() < 10 {
            let question = questions.next().await.unwrap();
            if &*question.request != b"are you there?" {
                kept.push(question);
            }
        }
        for question in kept.into_iter().rev() {
            (question.answer)([b"to ", &*question.request].concat().into());
        }
    };
    let asked = futures_util::future::join_all((0..10).map(|n| a.ask("b", n.to_string().into(), DEADLINE)));
    let (asked, ()) = tokio::join!(asked, answers);
    for (n, answer) in asked.into_iter().enumerate() {
        assert_eq!(answer, Ok(Bytes::from(format!("to {n}"))));
    }
}

pub async fn what_is_told_reaches_whoever_listens_to_that(Nodes { a, b, .. }: Nodes) {
    let (one, two) = (Topic::Interims(room("one.a~b")), Topic::Interims(room("two")));
    a.tell(one.clone(), "to nobody".into());
    // With this answer it is at the server: nodes have connections of their own.
    assert_eq!(a.head(&room("one.a~b")).await, Ok(None));
    let mut heard = [b.hear(one.clone()), b.hear(two.clone()), a.hear(Topic::Reports)];
    for (topic, stream) in [one.clone(), two.clone(), Topic::Reports].into_iter().zip(&mut heard) {
        let reaches = async || {
            a.tell(topic.clone(), "ready".into());
            tokio::time::timeout(Duration::from_millis(100), stream.next()).await.ok().flatten()
        };
        assert_eq!(until("it is heard", reaches).await, Bytes::from("ready"));
    }
    for n in 0..20 {
        for (topic, name) in [(&one, "one"), (&two, "two"), (&Topic::Reports, "reports")] {
            a.tell(topic.clone(), format!("{name} {n}").into());
        }
    }
    for (stream, name) in heard.iter_mut().zip(["one", "two", "reports"]) {
        for n in 0..20 {
            let mut next = stream.next().await.unwrap();
            while next == "ready" {
                next = stream.next().await.unwrap();
            }
            assert_eq!(next, Bytes::from(format!("{name} {n}")));
        }
    }
}

pub async fn work_is_waited_for_and_given_to_one_node(Nodes { a, b, .. }: Nodes) {
    let slug = room("work");
    let (first, at) = tokio::join!(a.work(10), store(&*b, message(&slug, 1), 0));
    let mut hands = first.unwrap();
    assert_eq!(hands.iter().map(|work| work.logged.clone()).collect::<Vec<_>>(), b.read(&slug, 0, 10).await.unwrap());
    let mut at = at;
    for n in 2..=20 {
        at = store(&*b, message(&slug, n), at).await;
    }
    while hands.len() < 20 {
        let (one, two) =
            (a.work(3).await.unwrap(), if hands.len() < 14 { b.work(3).await.unwrap() } else { Vec::new() });
        assert!(one.len() <= 3 && two.len() <= 3);
        hands.extend(one.into_iter().chain(two));
    }
    let mut positions: Vec<_> = hands.iter().map(|work| work.logged.position).collect();
    positions.sort();
    positions.dedup();
    assert_eq!(positions.len(), 20, "nothing is given twice");
    assert_eq!((b.work(0).await.unwrap().len(), a.work(10).now_or_never().is_none()), (0, true));
    assert!(a.settled().await.unwrap() < positions[0]);
    for work in hands {
        work.receipt.is_in_work().await;
        work.receipt.done().await;
    }
    until("all of it is settled", async || a.settled().await == Ok(at)).await;
}

pub async fn work_that_is_dropped_comes_again_and_work_that_is_done_does_not(Nodes { a, b, .. }: Nodes) {
    let last = store_many(&*a, &room("w"), 3).await;
    let mut first = Vec::new();
    while first.len() < 3 {
        first.extend(a.work(10).await.unwrap());
    }
    let mut done: Vec<_> = first.iter().map(|work| work.logged.position).collect();
    let dropped = done.remove(0);
    for work in first.into_iter().skip(1) {
        work.receipt.done().await;
    }
    while done.len() < 3 {
        for work in b.work(10).await.unwrap() {
            assert!(!done.contains(&work.logged.position), "{done:?}");
            done.push(work.logged.position);
            work.receipt.done().await;
        }
    }
    assert!(done.contains(&dropped));
    until("everything is settled", async || b.settled().await == Ok(last)).await;
    assert!(b.work(10).now_or_never().is_none(), "there is no more");
}

pub async fn settled_stops_before_what_is_not_done(Nodes { a, b, .. }: Nodes) {
    let last = store_many(&*a, &room("floor"), 4).await;
    let mut work = Vec::new();
    while work.len() < 4 {
        work.extend(a.work(10).await.unwrap());
    }
    work.sort_by_key(|work| work.logged.position);
    let second = work.remove(1);
    let first = work[0].logged.position;
    for work in work {
        work.receipt.done().await;
    }
    until("the first is settled", async || b.settled().await == Ok(first)).await;
    second.receipt.done().await;
    until("all are settled", async || b.settled().await == Ok(last)).await;
}

pub async fn a_body_that_is_too_large_is_said_to_be(Nodes { a, .. }: Nodes) {
    let slug = room("large");
    for bytes in [1 << 20, 2 << 20] {
        let large = Message { body: vec![0; bytes].into(), ..message(&slug, bytes) };
        assert_eq!(a.append(large, 0).await, Appended::TooLarge, "{bytes}");
    }
    let fits = Message { body: vec![0; 1000 << 10].into(), ..message(&slug, "fits") };
    let at = store(&*a, fits.clone(), 0).await;
    assert_eq!(a.head(&slug).await.unwrap().unwrap().message, fits);
    let empty = Message { body: Bytes::new(), ..message(&slug, "empty") };
    store(&*a, empty.clone(), at).await;
    assert_eq!(a.read(&slug, at, 10).await.unwrap()[0].message, empty);
}

pub async fn rooms_of_every_name_are_apart(Nodes { a, b, .. }: Nodes) {
    let longest = ".".repeat(128);
    let rooms: Vec<_> = ["a.b", "a..b", "a~b", "a", "a-b_C", "A-B_c", "...", "~", &*longest].map(room).into();
    let mut follower = b.follow(0);
    for slug in &rooms {
        store(&*a, message(slug, slug.as_str()), 0).await;
        assert!(a.hold(slug, slug.to_string().into(), None).await.unwrap().is_some(), "{slug}");
        assert_eq!(next_message(&mut follower).await.message.room, *slug);
    }
    for slug in &rooms {
        let read = b.read(slug, 0, 10).await.unwrap();
        assert_eq!(read.iter().map(|logged| &logged.message).collect::<Vec<_>>(), [&message(slug, slug.as_str())]);
        assert_eq!(b.holder(slug).await.unwrap().unwrap().value, Bytes::from(slug.to_string()));
    }
}

pub async fn any_text_is_an_id_a_fence_and_a_node(Nodes { a, b, .. }: Nodes) {
    let slug = room("texts");
    let mut at = 0;
    for text in ["plain", "two words", "a=b", "\u{fc}\u{1f600}", "line\r\nbreak", "a.b.*.>"] {
        let odd = Message { fence: format!("{text}:1"), ..message(&slug, text) };
        at = store(&*a, odd.clone(), at).await;
        assert_eq!(b.head(&slug).await.unwrap().unwrap().message, odd);
        let mut questions = b.questions(text);
        let answers = async {
            loop {
                (questions.next().await.unwrap().answer)("yes".into());
            }
        };
        let asked = until("it is asked", async || a.ask(text, Bytes::new(), Duration::from_secs(1)).await);
        let answer = tokio::select! { answer = asked => answer, () = answers => unreachable!() };
        assert_eq!(answer, Bytes::from("yes"), "{text}");
    }
}

pub async fn tidying_leaves_what_the_database_lacks(Nodes { a, .. }: Nodes) {
    let slug = room("tidy");
    store_many(&*a, &slug, 3).await;
    assert!((0.0..0.8).contains(&a.tidy().await.unwrap()));
    assert_eq!(a.read(&slug, 0, 10).await.unwrap().len(), 3);
}

pub async fn the_link_is_up(Nodes { a, b, .. }: Nodes) {
    assert_eq!((a.link().borrow().clone(), b.link().borrow().clone()), (Link::Up, Link::Up));
}
