//! The contract of a bus, kept by each of them: HTTP to a real ws node, NATS, and a log server in memory.

mod support;

use std::rc::Rc;
use std::sync::Arc;

use bytestring::ByteString;
use futures_util::future::LocalBoxFuture;
use serde_json::json;
use stenocast::bus::cluster::ClusterBus;
use stenocast::bus::http::{HttpBus, trusted};
use stenocast::bus::log_server::SharedServer;
use stenocast::bus::memory::MemoryServer;
use stenocast::bus::nats::NatsServer;
use stenocast::bus::ownership::{Identity, Ownership};
use stenocast::bus::{Batch, Bus, Outcome};
use stenocast::config::Secret;
use stenocast::metrics::Metrics;
use stenocast::transcript::{Epoch, SessionRecord, Slug};
use support::app::TestApp;
use support::nats::{Nats, Version};
use uuid::Uuid;

const TOKEN: &str = "a-broadcast-token-of-a-contract-0";

type SessionBegins = Box<dyn Fn(&Slug, Epoch)>;

/// A bus, and what lives as long as it.
struct Way {
    bus: Rc<dyn Bus>,
    /// A session of this epoch begins here.
    begins: SessionBegins,
    _kept: Vec<Box<dyn std::any::Any>>,
}

fn cluster(server: SharedServer, kept: Vec<Box<dyn std::any::Any>>) -> Way {
    let (ownership, lost) = Ownership::new(server, Identity::new("ingest-1", "home-1"));
    let bus = Rc::new(ClusterBus::new(ownership.clone()));
    let mut kept = kept;
    kept.push(Box::new(lost));
    Way { bus, begins: Box::new(move |slug, epoch| ownership.session_begins(slug, epoch)), _kept: kept }
}

async fn http() -> Way {
    let ws = TestApp::start(&[("SERVER_MODE", "ws"), ("BROADCAST_TOKEN", TOKEN)]).await;
    let split = &ws.app.config().split;
    let url = format!("http://{}", ws.app.http_addr());
    let bus = Rc::new(HttpBus::new(&url, Secret::new(TOKEN), split, trusted(split).unwrap()));
    Way { bus, begins: Box::new(|_, _| {}), _kept: vec![Box::new(ws)] }
}

async fn nats() -> Way {
    let _ = rustls::crypto::ring::default_provider().install_default();
    let nats = Nats::start(Version::Newest).await;
    let config = support::nats::config(&nats.url(), &[]);
    let server = NatsServer::start(config, "ingest-1", Arc::new(Metrics::new())).await.unwrap();
    server.ready().await.unwrap();
    cluster(Arc::new(server), vec![Box::new(nats)])
}

async fn memory() -> Way {
    let server = MemoryServer::new();
    cluster(server.connect(), vec![Box::new(server)])
}

fn line(slug: &Slug, epoch: Epoch, seq: Option<u64>, id: &str) -> ByteString {
    let line = json!({
        "type": "transcript", "session": slug, "epoch": epoch, "seq": seq, "id": id, "isFinal": seq.is_some(),
        "revision": 1, "text": id, "startMs": 0, "endMs": 1
    });
    line.to_string().into()
}

fn batch(slug: &Slug, epoch: Epoch, seqs: std::ops::RangeInclusive<u64>) -> Batch {
    let entries = seqs.map(|seq| line(slug, epoch, Some(seq), &format!("line {seq}"))).collect();
    Batch { entries, ..Batch::new(slug.clone(), epoch) }
}

/// What is asked of every bus.
async fn keeps_the_contract(way: Way) {
    let (slug, epoch) = (Slug::parse("a.b~c").unwrap(), Uuid::now_v7());
    (way.begins)(&slug, epoch);
    let append = async |batch: &Batch| way.bus.append(batch).await;
    let mut first = batch(&slug, epoch, 1..=2);
    first.record = Some(SessionRecord::begun(epoch, slug.clone(), chrono::Utc::now()));
    first.interims = vec![line(&slug, epoch, None, "line 3")];
    assert_eq!(append(&first).await, Outcome::Stored { last_seq: 2 });
    let again = append(&first).await;
    let is_known = matches!(again, Outcome::Stored { last_seq: 2 } | Outcome::Refused { expected: 3, .. });
    assert!(is_known, "a repetition changes nothing: {again:?}");
    let hole = append(&batch(&slug, epoch, 5..=5)).await;
    assert!(matches!(hole, Outcome::Refused { expected: 3, .. }), "numbers follow each other: {hole:?}");
    assert_eq!(append(&batch(&slug, epoch, 3..=4)).await, Outcome::Stored { last_seq: 4 });
    let gone = Batch { begins: Some(8), ..batch(&slug, epoch, 8..=9) };
    assert_eq!(append(&gone).await, Outcome::Stored { last_seq: 9 }, "unless what is between is nowhere any more");
    let interims = vec![line(&slug, epoch, None, "line 10")];
    let fleeting = append(&Batch { interims, ..Batch::new(slug.clone(), epoch) }).await;
    assert!(matches!(fleeting, Outcome::Stored { .. }), "{fleeting:?}");
    let record = Some(SessionRecord::begun(epoch, slug.clone(), chrono::Utc::now()));
    let row = append(&Batch { record, ..Batch::new(slug.clone(), epoch) }).await;
    assert!(matches!(row, Outcome::Stored { .. }), "{row:?}");
    let mut long = batch(&slug, epoch, 10..=10);
    long.entries = vec![line(&slug, epoch, Some(10), &"x".repeat(2 << 20))];
    assert_eq!(append(&long).await, Outcome::TooLarge);
    assert_eq!(append(&batch(&slug, epoch, 10..=10)).await, Outcome::Stored { last_seq: 10 }, "and costs nothing");
    // A later session of the room follows, and what is left of the earlier one still finds its place.
    let next = Uuid::now_v7();
    (way.begins)(&slug, next);
    assert_eq!(append(&batch(&slug, next, 1..=1)).await, Outcome::Stored { last_seq: 1 });
    let late = append(&batch(&slug, epoch, 11..=11)).await;
    assert!(matches!(late, Outcome::Stored { .. }), "{late:?}");
}

macro_rules! each {
    ($($name:ident: $make:expr;)*) => {$(
        #[actix::test]
        async fn $name() {
            let way: LocalBoxFuture<'_, Way> = Box::pin($make);
            keeps_the_contract(way.await).await;
        }
    )*};
}

each! {
    http_keeps_the_contract: http();
    nats_keeps_the_contract: nats();
    a_log_server_in_memory_keeps_the_contract: memory();
}
