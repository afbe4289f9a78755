use chrono::Utc;
use serde_json::json;

use super::*;
use crate::bus::log_server::LogServer;
use crate::bus::memory::{Call, Journey, MemoryClient, MemoryServer};
use crate::bus::{Batch, Outcome};
use crate::transcript::Origin;

/// A node with a session in the room `demo`.
struct Node {
    client: Arc<MemoryClient>,
    ownership: Arc<Ownership>,
    lost: mpsc::UnboundedReceiver<Lost>,
    epoch: Epoch,
}

fn slug() -> Slug {
    Slug::parse("demo").unwrap()
}

impl Node {
    async fn with_room(server: &MemoryServer) -> Self {
        let client = server.connect();
        let (ownership, lost) = Ownership::new(client.clone(), Identity::new("a", "home"));
        let epoch = ownership.claim(&slug()).await.unwrap().epoch;
        Self { client, ownership, lost, epoch }
    }

    async fn renew(&self) {
        let (slug, epoch, started_at) = (slug(), self.epoch, Utc::now());
        let (origin, recogniser) = (Origin::Ingest, serde_json::Value::Null);
        let (next_seq, clock_ms, is_publishing, audio_config) = (1, 0, true, None);
        let checkpoint =
            Checkpoint { slug, origin, epoch, started_at, next_seq, clock_ms, is_publishing, audio_config, recogniser };
        self.ownership.renew(&checkpoint.slug.clone(), 0, checkpoint).await;
    }

    async fn append(&self, seq: u64) -> Outcome {
        let entry = json!({"type": "status", "session": "demo", "epoch": self.epoch, "seq": seq, "id": format!("s-{seq}"),
            "status": "live", "durable": true});
        let entries = vec![entry.to_string().into()];
        self.ownership.append(&Batch { entries, ..Batch::new(slug(), self.epoch) }).await
    }
}

#[tokio::test(start_paused = true)]
async fn a_renewal_of_which_the_answer_is_lost_loses_no_room() {
    let server = MemoryServer::new();
    let mut node = Node::with_room(&server).await;
    node.client.set_fate(|call| match call {
        Call::Hold => Journey { back: None, ..Journey::default() },
        _ => Journey::default(),
    });
    node.renew().await;
    node.client.set_fate(|_| Journey::default());
    for seq in 1..=2 {
        node.renew().await;
        assert!(matches!(node.append(seq).await, Outcome::Stored { last_seq } if last_seq == seq));
    }
    assert_eq!(node.ownership.session_of(&slug()), Some(node.epoch));
    assert!(node.lost.try_recv().is_err());
}

#[tokio::test(start_paused = true)]
async fn a_session_goes_on_where_the_log_server_has_lost_everything() {
    let server = MemoryServer::new();
    let mut node = Node::with_room(&server).await;
    server.make_anew();
    node.renew().await;
    assert!(matches!(node.append(1).await, Outcome::Stored { last_seq: 1 }));
    node.renew().await;
    assert!(node.client.holder(&slug()).await.unwrap().is_some());
    assert!(node.lost.try_recv().is_err());
}

#[tokio::test(start_paused = true)]
async fn a_renewal_shows_that_another_node_holds_the_room() {
    let server = MemoryServer::new();
    let mut node = Node::with_room(&server).await;
    let (other, _lost) = Ownership::new(server.connect(), Identity::new("b", "elsewhere"));
    other.claim(&slug()).await.unwrap();
    node.renew().await;
    assert_eq!(node.lost.try_recv().unwrap(), Lost { room: slug(), epoch: node.epoch });
}

#[tokio::test(start_paused = true)]
async fn a_room_that_somebody_has_taken_over_is_no_orphan_any_more() {
    let server = MemoryServer::new();
    let mut node = Node::with_room(&server).await;
    assert!(matches!(node.append(1).await, Outcome::Stored { last_seq: 1 }));
    let seen = node.client.holder(&slug()).await.unwrap().unwrap().revision;
    // It lives after all, and has said so since.
    node.renew().await;
    let (other, _lost) = Ownership::new(server.connect(), Identity::new("b", "elsewhere"));
    assert_eq!(other.adopt(&slug(), seen).await.unwrap_err(), ClaimError::Contended);
    assert!(matches!(node.append(2).await, Outcome::Stored { last_seq: 2 }));
    assert!(node.lost.try_recv().is_err());
    let now = node.client.holder(&slug()).await.unwrap().unwrap().revision;
    assert!(other.adopt(&slug(), now).await.unwrap().is_some(), "a holding that does not change");
}
