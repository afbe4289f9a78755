//! Sessions that the process before this one has left go on under their epochs.

use std::time::Duration;

use actix::Addr;

use super::reader::Reader;
use crate::actors::root::Root;
use crate::actors::services::{Services, SessionEnd};
use crate::actors::session_core::SessionSeed;
use crate::actors::session_registry::AdoptSession;
use crate::db::Storage;
use crate::transcript::StoredTail;
use crate::transcript::checkpoint::Checkpoint;

/// Longest wait for the end of one adopted log.
const LOOK_BACK_TIMEOUT: Duration = Duration::from_secs(2);

/// Hands them to the registry, each with what is known of its log.
pub(super) async fn adopt(
    root: &Addr<Root>,
    left: impl Iterator<Item = Checkpoint>,
    services: &Services,
    storage: &Storage,
    reader: &Reader,
) {
    let mut is_answering = storage.degraded.is_none();
    for checkpoint in left {
        let epoch = checkpoint.epoch;
        // Viewers and publishers wait at the door meanwhile. Without a database that answers, the outbox and the checkpoint
        // know enough.
        let looked_up = match is_answering {
            true => tokio::time::timeout(LOOK_BACK_TIMEOUT, reader.stored_tail(epoch)).await.ok().and_then(Result::ok),
            false => None,
        };
        is_answering = looked_up.is_some();
        let left = match looked_up {
            Some(left) => left,
            None => reader.left_in_outbox(epoch, checkpoint.next_seq).await,
        };
        let StoredTail { last_seq, known, recent, is_ended, .. } = left;
        let in_outbox = storage.recovery.last_seq.get(&checkpoint.epoch).copied().unwrap_or(0);
        let last_seq = checkpoint.next_seq.saturating_sub(1).max(in_outbox).max(last_seq);
        let beginning = SessionSeed {
            origin: checkpoint.origin,
            epoch: Some(checkpoint.epoch),
            started_at: Some(checkpoint.started_at),
            last_seq,
            known,
            recent,
            clock_ms: Some(checkpoint.clock_ms),
            was_publishing: checkpoint.is_publishing,
            audio_config: checkpoint.audio_config.as_deref().and_then(|hex| hex::decode(hex).ok()).map(Into::into),
            recogniser: serde_json::from_value(checkpoint.recogniser).ok(),
        };
        if is_ended {
            // It died between the last line of the log and the removal of its checkpoint.
            tracing::info!(session = %checkpoint.slug, %epoch, last_seq, "session had ended");
            let core = services.new_core(checkpoint.slug, beginning);
            services.session_ended(&core, SessionEnd::Ended);
            continue;
        }
        tracing::info!(session = %checkpoint.slug, %epoch, last_seq, "session adopted");
        let _ = root.send(AdoptSession { slug: checkpoint.slug, beginning }).await;
    }
}
