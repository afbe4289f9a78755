//! What only a server that can be killed, filled and set up by others can show.

use std::sync::Arc;
use std::time::Duration;

use async_nats::jetstream::stream::Config as Stream;
use bytes::Bytes;
use futures_util::stream::BoxStream;
use futures_util::{FutureExt, StreamExt};
use stenocast::bus::log_server::{Appended, Followed, Link, LogServer, Message, ServerError, Topic, Unanswered};
use stenocast::bus::nats::NatsServer;
use stenocast::metrics::Metrics;

use super::contract::{Nodes, message, next, next_message, room, store};
use super::support::nats::{Cluster, Nats, Version, config};
use super::support::wait::{DEADLINE, until};

const BOTH: [Version; 2] = [Version::Newest, Version::Debian];

struct Node {
    server: NatsServer,
    metrics: Arc<Metrics>,
}

async fn node(urls: &str, more: &[(&str, &str)]) -> Node {
    let metrics = Arc::new(Metrics::new());
    let server = NatsServer::start(config(urls, more), "n", metrics.clone()).await.unwrap();
    Node { server, metrics }
}

/// Two nodes of a server of its own, for the contract.
async fn nodes_of(version: Version) -> Nodes {
    let nats = Nats::start(version).await;
    let (a, b) = (up(&nats.url(), &[]).await, up(&nats.url(), &[]).await);
    Nodes { a: Arc::new(a.server), b: Arc::new(b.server), _keep: Box::new(nats) }
}

mod newest {
    async fn nodes() -> crate::contract::Nodes {
        super::nodes_of(super::Version::Newest).await
    }

    contract!(nodes);
}

mod of_debian {
    async fn nodes() -> crate::contract::Nodes {
        super::nodes_of(super::Version::Debian).await
    }

    contract!(nodes);
}

/// A node that works.
async fn up(urls: &str, more: &[(&str, &str)]) -> Node {
    let node = node(urls, more).await;
    let up = async || node.server.ready().await;
    until("NATS can be used", up).await;
    node
}

#[actix_rt::test]
async fn a_server_that_is_killed_loses_nothing_and_stores_nothing_twice() {
    for version in BOTH {
        let mut nats = Nats::start(version).await;
        let node = up(&nats.url(), &[]).await;
        let slug = room("kill");
        let mut follower = node.server.follow(0);
        let writer = async {
            let mut at = 0;
            for n in 0..300 {
                at = store(&node.server, message(&slug, n), at).await;
            }
        };
        let killer = async {
            for floor in [50, 150] {
                let far = async || node.server.head(&slug).await.ok().flatten().is_some_and(|h| h.position > floor);
                until("the writer has begun", far).await;
                nats.kill();
                nats.start_again().await;
            }
        };
        tokio::join!(writer, killer);
        let all = node.server.read(&slug, 0, 1000).await.unwrap();
        let ids: Vec<_> = all.iter().map(|logged| logged.message.id.clone()).collect();
        assert_eq!(ids, (0..300).map(|n| n.to_string()).collect::<Vec<_>>(), "{version:?}");
        for logged in &all {
            assert_eq!(&next_message(&mut follower).await, logged, "{version:?}: the follower has no hole");
        }
        assert!(node.metrics.bus_errors_total.with_label_values(&["disconnected"]).get() >= 2);
    }
}

#[actix_rt::test]
async fn a_log_that_was_made_anew_is_told_to_its_followers() {
    let mut nats = Nats::start(Version::Newest).await;
    let node = up(&nats.url(), &[]).await;
    let slug = room("anew");
    let at = store(&node.server, message(&slug, "old 1"), 0).await;
    store(&node.server, message(&slug, "old 2"), at).await;
    let mut follower = node.server.follow(0);
    assert_eq!(next_message(&mut follower).await.message.id, "old 1");
    assert_eq!(next_message(&mut follower).await.message.id, "old 2");
    nats.kill();
    nats.start_empty().await;
    assert_eq!(next(&mut follower).await, Followed::Reset(0));
    until("NATS is back", async || node.server.ready().await).await;
    store(&node.server, message(&slug, "new"), 0).await;
    assert_eq!(next_message(&mut follower).await.message.id, "new");
    let mut late = node.server.follow(17);
    assert_eq!(next(&mut late).await, Followed::Reset(1), "a position that the log does not reach");
}

#[actix_rt::test]
async fn a_node_starts_without_a_server_and_goes_on_when_it_comes() {
    let mut nats = Nats::start(Version::Newest).await;
    nats.kill();
    let node = node(&nats.url(), &[]).await;
    let said = node.server.ready().await;
    assert!(matches!(said, Err(ServerError::Away(_))), "{said:?}");
    assert!(matches!(node.server.append(message(&room("r"), 1), 0).await, Appended::Unsure(_)));
    assert!(matches!(node.server.ask("b", Bytes::new(), DEADLINE).await, Err(Unanswered::Away(_))));
    assert_eq!(node.metrics.bus_up.get(), 0);
    let mut follower = node.server.follow(0);
    nats.start_again().await;
    let mut link = node.server.link();
    tokio::time::timeout(DEADLINE, link.wait_for(|link| *link == Link::Up)).await.unwrap().unwrap();
    assert_eq!(
        (node.metrics.bus_up.get(), node.server.head(&room("r")).await),
        (1, Ok(None)),
        "nothing was kept to be sent"
    );
    store(&node.server, message(&room("r"), 1), 0).await;
    assert_eq!(next_message(&mut follower).await.message.id, "1");
}

#[actix_rt::test]
async fn streams_with_other_settings_are_refused_with_the_difference() {
    let nats = Nats::start(Version::Newest).await;
    let client = async_nats::connect(nats.url()).await.unwrap();
    let foreign = Stream { name: "SC_LOG".into(), subjects: vec!["sc.log.*".into()], ..Stream::default() };
    async_nats::jetstream::new(client.clone()).create_stream(foreign).await.unwrap();
    let node = node(&nats.url(), &[]).await;
    let Err(ServerError::Unusable(why)) = node.server.ready().await else { panic!("the stream was taken") };
    for part in ["max_bytes (NATS_MAX_BYTES) is -1 and should be 67108864", "discard is Old", "nats stream edit SC_LOG"]
    {
        assert!(why.contains(part), "{part} is not in {why}");
    }
    assert!(matches!(node.server.head(&room("r")).await, Err(ServerError::Unusable(_))));
    async_nats::jetstream::new(client).delete_stream("SC_LOG").await.unwrap();
    until("the node has looked again", async || node.server.ready().await).await;
}

#[actix_rt::test]
async fn a_server_without_jetstream_cannot_be_used() {
    let nats = Nats::start(Version::Newest).await;
    let node = up(&nats.url(), &[]).await;
    assert_eq!(node.server.ready().await, Ok(()));
    for version in BOTH {
        let nats = Nats::start_with(version, &["-js=false"]).await;
        let node = self::node(&nats.url(), &[]).await;
        let said = node.server.ready().await.unwrap_err().to_string();
        assert!(said.contains("JetStream"), "{said}");
    }
}

#[actix_rt::test]
async fn copies_need_a_cluster_and_a_version_that_lets_one_alone_write() {
    for (version, part) in [(Version::Debian, "NATS_REPLICAS=1, or NATS 2.12"), (Version::Newest, "NATS_REPLICAS=3")] {
        let nats = Nats::start(version).await;
        let node = node(&nats.url(), &[("NATS_REPLICAS", "3")]).await;
        let Err(ServerError::Unusable(why)) = node.server.ready().await else { panic!("{version:?} was taken") };
        assert!(why.contains(part), "{part} is not in {why}");
    }
}

#[actix_rt::test]
async fn a_full_log_says_so_and_goes_on_when_it_was_tidied() {
    for version in BOTH {
        let nats = Nats::start(version).await;
        let node = up(&nats.url(), &[("NATS_MAX_BYTES", "1MiB")]).await;
        let slug = room("full");
        let big = |n: u32| Message { body: vec![b'x'; 100 << 10].into(), ..message(&slug, n) };
        let (mut at, mut n) = (0, 0);
        let full = loop {
            match node.server.append(big(n), at).await {
                Appended::Stored(position) => (at, n) = (position, n + 1),
                other => break other,
            }
        };
        assert!(matches!(&full, Appended::Full(why) if why.contains("maximum bytes")), "{version:?}: {full:?}");
        assert!(node.server.tidy().await.unwrap() > 0.8, "nothing is in the database yet");
        for work in node.server.work(5).await.unwrap() {
            work.receipt.done().await;
        }
        until("five messages are settled", async || node.server.settled().await == Ok(5)).await;
        assert!(node.server.tidy().await.unwrap() < 0.8);
        assert!(matches!(node.server.append(big(n), at).await, Appended::Stored(_)), "{version:?}");
        let left = node.server.read(&slug, 0, 100).await.unwrap();
        assert_eq!(left[0].position, 6, "{version:?}: what the database lacks is there");
    }
}

#[actix_rt::test]
async fn slugs_with_every_character_have_logs_holders_and_interims_of_their_own() {
    for version in BOTH {
        let nats = Nats::start(version).await;
        let node = up(&nats.url(), &[]).await;
        let rooms: Vec<_> = ["a.b", "a..b", "a~b", "a", "a-b_C", "..."].map(room).into();
        for slug in &rooms {
            let mut heard = node.server.hear(Topic::Interims(slug.clone()));
            store(&node.server, message(slug, slug.as_str()), 0).await;
            assert_eq!(
                node.server.hold(slug, slug.to_string().into(), None).await.map(|r| r.is_some()),
                Ok(true),
                "{slug}"
            );
            node.server.tell(Topic::Interims(slug.clone()), slug.to_string().into());
            assert_eq!(heard.next().await, Some(Bytes::from(slug.to_string())), "{version:?}");
        }
        for slug in &rooms {
            let read = node.server.read(slug, 0, 10).await.unwrap();
            assert_eq!(read.iter().map(|logged| &logged.message).collect::<Vec<_>>(), [&message(slug, slug.as_str())]);
        }
        let mut held: Vec<_> =
            node.server.held().await.unwrap().into_iter().map(|(slug, held)| (slug, held.value)).collect();
        held.sort();
        let mut wanted: Vec<_> = rooms.iter().map(|slug| (slug.clone(), Bytes::from(slug.to_string()))).collect();
        wanted.sort();
        assert_eq!(held, wanted, "{version:?}");
    }
}

/// A subscription reaches the server a moment after it was made.
async fn tell_until_heard(node: &Node, heard: &mut BoxStream<'static, Bytes>, word: &'static str) {
    let hears = async || {
        node.server.tell(Topic::Reports, word.into());
        let next = tokio::time::timeout(Duration::from_millis(100), heard.next()).await.ok().flatten();
        assert_ne!(next.as_deref(), Some(b"meanwhile".as_slice()));
        next.filter(|next| next == word)
    };
    until("what is told is heard", hears).await;
}

#[actix_rt::test]
async fn what_is_told_to_a_dead_server_is_not_told_later() {
    let mut nats = Nats::start(Version::Newest).await;
    let (a, b) = (up(&nats.url(), &[]).await, up(&nats.url(), &[]).await);
    let mut heard = b.server.hear(Topic::Reports);
    tell_until_heard(&a, &mut heard, "before").await;
    nats.kill();
    until("both have seen it", async || a.server.ready().await.is_err() && b.server.ready().await.is_err()).await;
    a.server.tell(Topic::Reports, "meanwhile".into());
    nats.start_again().await;
    until("both are back", async || a.server.ready().await.is_ok() && b.server.ready().await.is_ok()).await;
    tell_until_heard(&a, &mut heard, "after").await;
}

#[actix_rt::test]
async fn a_frozen_server_keeps_no_call_waiting() {
    let nats = Nats::start(Version::Newest).await;
    let node = up(&nats.url(), &[]).await;
    nats.freeze().await;
    let appended = node.server.append(message(&room("r"), 1), 0).await;
    assert!(matches!(appended, Appended::Unsure(_)), "{appended:?}");
    assert!(matches!(node.server.head(&room("r")).await, Err(ServerError::Away(_))));
    nats.thaw();
    // The append that was unsure arrives late, or its repetition does: one of them.
    let at = store(&node.server, message(&room("r"), 1), 0).await;
    store(&node.server, message(&room("r"), 2), at).await;
    let ids: Vec<_> = node.server.read(&room("r"), 0, 10).await.unwrap().into_iter().map(|l| l.message.id).collect();
    assert_eq!(ids, ["1", "2"]);
}

#[actix_rt::test]
async fn a_newer_version_in_the_log_stops_a_node_loudly() {
    let nats = Nats::start(Version::Newest).await;
    let node = up(&nats.url(), &[]).await;
    let mut follower = node.server.follow(0);
    let client = async_nats::connect(nats.url()).await.unwrap();
    client.publish("sc.log.odd", "by hand".into()).await.unwrap();
    client.flush().await.unwrap();
    let known = async || match node.server.head(&room("odd")).await {
        Err(error) if error.to_string().contains("nats stream rmm SC_LOG 1") => Ok(()),
        other => Err(format!("{other:?}")),
    };
    until("a message of nobody is said to be in the way", known).await;
    store(&node.server, message(&room("r"), 1), 0).await;
    assert_eq!(next_message(&mut follower).await.position, 2, "one of nobody is skipped");
    let mut headers = async_nats::HeaderMap::new();
    headers.insert("Sc-Proto", "2");
    client.publish_with_headers("sc.log.r", headers, "from tomorrow".into()).await.unwrap();
    client.flush().await.unwrap();
    let follows = next(&mut follower);
    let mut link = node.server.link();
    let stopped = link.wait_for(|link| matches!(link, Link::Away(why) if why.contains("version 2")));
    tokio::select! {
        followed = follows => panic!("{followed:?}"),
        stopped = tokio::time::timeout(DEADLINE, stopped) => drop(stopped.expect("the node stops").unwrap()),
    }
    assert!(
        matches!(node.server.append(message(&room("r"), 2), 2).await, Appended::Unsure(why) if why.contains("update this node"))
    );
    assert!(matches!(node.server.ready().await, Err(ServerError::Unusable(_))));
}

#[actix_rt::test]
async fn work_that_is_dropped_comes_again_and_work_that_is_done_does_not() {
    for version in BOTH {
        let nats = Nats::start(version).await;
        let (a, b) = (up(&nats.url(), &[]).await, up(&nats.url(), &[]).await);
        let waits = a.server.work(10);
        let mut at = 0;
        let writes = async {
            for n in 0..3 {
                at = store(&a.server, message(&room("w"), n), at).await;
            }
        };
        let (first, ()) = tokio::join!(waits, writes);
        let first = first.unwrap();
        assert!(!first.is_empty(), "{version:?}");
        let mut done: Vec<_> = first.iter().map(|work| work.logged.position).collect();
        let dropped = done.remove(0);
        for (n, work) in first.into_iter().enumerate() {
            if n > 0 {
                work.receipt.is_in_work().await;
                work.receipt.done().await;
            }
        }
        while done.len() < 3 {
            for work in b.server.work(10).await.unwrap() {
                assert!(!done.contains(&work.logged.position), "{version:?}: {done:?}");
                done.push(work.logged.position);
                work.receipt.done().await;
            }
        }
        assert!(done.contains(&dropped));
        until("everything is settled", async || b.server.settled().await == Ok(3)).await;
        assert!(b.server.work(10).now_or_never().is_none(), "there is no more");
    }
}

#[actix_rt::test]
async fn followers_that_are_dropped_leave_nothing_at_the_server() {
    let nats = Nats::start(Version::Newest).await;
    let node = up(&nats.url(), &[]).await;
    store(&node.server, message(&room("r"), 1), 0).await;
    let client = async_nats::connect(nats.url()).await.unwrap();
    let log = async_nats::jetstream::new(client).get_stream("SC_LOG").await.unwrap();
    for _ in 0..20 {
        let mut follower = node.server.follow(0);
        assert_eq!(next_message(&mut follower).await.position, 1);
        drop(follower);
        let long = node.server.read(&room("r"), 0, 100).await.unwrap();
        assert_eq!(long.len(), 1);
    }
    let left = async || match log.get_info().await.map(|info| info.state.consumer_count) {
        Ok(1) => Ok(()),
        other => Err(format!("{other:?} consumers")),
    };
    until("only the database's consumer is left", left).await;
}

#[actix_rt::test]
async fn a_leader_that_is_killed_loses_nothing_and_lets_nobody_write_twice() {
    let mut cluster = Cluster::start(Version::Newest).await;
    let node = up(&cluster.urls(), &[("NATS_REPLICAS", "3")]).await;
    let rival = up(&cluster.urls(), &[("NATS_REPLICAS", "3")]).await;
    let (slug, before) = (room("r3"), room("before"));
    let mut follower = node.server.follow(0);
    let first = store(&node.server, message(&before, "first"), 0).await;
    let mut at = store(&node.server, message(&slug, 0), 0).await;
    for n in 1..200 {
        if n == 100 {
            cluster.leader("SC_LOG").await.kill();
        }
        let stale = rival.server.append(message(&slug, format!("rival {n}")), first);
        let (stored, stale) = tokio::join!(store(&node.server, message(&slug, n), at), stale);
        assert!(!matches!(stale, Appended::Stored(_)), "{stale:?} by a rival that knows no position");
        at = stored;
    }
    let read = async || node.server.read(&slug, 0, 1000).await;
    let all = until("the room is read", read).await;
    assert_eq!(
        all.iter().map(|l| l.message.id.clone()).collect::<Vec<_>>(),
        (0..200).map(|n| n.to_string()).collect::<Vec<_>>()
    );
    assert_eq!(next_message(&mut follower).await.message.id, "first");
    for logged in &all {
        assert_eq!(&next_message(&mut follower).await, logged);
    }
}

#[actix_rt::test]
async fn tls_a_name_and_a_password_are_used_and_never_said() {
    let dir = tempfile::tempdir().unwrap();
    super::support::certificates::make(dir.path());
    let path = |name: &str| dir.path().join(name).to_str().expect("a UTF-8 path").to_owned();
    let (certificate, key, ca) = (path("ws.pem"), path("ws.key"), path("ca.pem"));
    let tls = ["--tls", "--tlscert", &certificate, "--tlskey", &key, "--user", "captions", "--pass", "s3cret-word"];
    let nats = Nats::start_with(Version::Newest, &tls).await;
    let url = format!("nats://captions:s3cret-word@{}", nats.addr);
    let trusted = up(&url, &[("NATS_CA", &ca)]).await;
    assert!(matches!(trusted.server.append(message(&room("demo"), "a"), 0).await, Appended::Stored(1)));
    for (what, url, more) in [
        ("an unknown authority", url.as_str(), vec![]),
        ("a wrong password", &url.replace("s3cret", "other"), vec![("NATS_CA", ca.as_str())]),
    ] {
        let refused = node(url, &more).await;
        let said = until(what, async || match &*refused.server.link().borrow() {
            Link::Away(why) => Ok(why.clone()),
            other => Err(format!("{other:?}")),
        })
        .await;
        assert!(!said.contains("word"), "{said}");
    }
}
