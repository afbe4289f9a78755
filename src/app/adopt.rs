//! Sessions that the process before this one has left go on under their epochs.

use std::collections::HashSet;
use std::time::Duration;

use actix::Addr;

use super::reader::Reader;
use crate::actors::root::Root;
use crate::actors::services::{Services, SessionEnd};
use crate::actors::session_core::SessionSeed;
use crate::actors::session_registry::AdoptSession;
use crate::bus::ownership::{ClaimError, EpochPast};
use crate::db::Storage;
use crate::transcript::checkpoint::Checkpoint;
use crate::transcript::{Entry, Origin, StoredTail};

/// Longest wait for the end of one adopted log.
const LOOK_BACK_TIMEOUT: Duration = Duration::from_secs(2);

/// What the log server has of a session, where it is still this node's. Err: another node has it.
async fn reclaim(services: &Services, checkpoint: &Checkpoint) -> Result<Option<EpochPast>, ()> {
    let Some(ownership) = services.ownership.as_ref().filter(|_| checkpoint.origin != Origin::Mirror) else {
        return Ok(None);
    };
    let claim = ownership.reclaim(&checkpoint.slug, checkpoint.epoch);
    match tokio::time::timeout(LOOK_BACK_TIMEOUT, claim).await {
        Ok(Ok(claimed)) => Ok(claimed.former.map(|former| former.past)),
        Ok(Err(ClaimError::Superseded | ClaimError::Busy(_))) => Err(()),
        // Nobody can be asked: it goes on, and finds out when it writes.
        Ok(Err(_)) | Err(_) => Ok(None),
    }
}

/// The outbox has what the log has not yet; the log has what the outbox has let go of.
fn with_log(mut left: StoredTail, log: Option<EpochPast>) -> StoredTail {
    let Some(log) = log else { return left };
    left.last_seq = left.last_seq.max(log.last_seq);
    left.is_ended |= log.is_ended;
    let first = left.recent.iter().filter_map(Entry::seq).min().unwrap_or(u64::MAX);
    let earlier = log.recent.into_iter().filter(|entry| entry.seq().is_some_and(|seq| seq < first));
    left.recent.splice(..0, earlier);
    let has: HashSet<String> = left.known.iter().map(|(id, _)| id.clone()).collect();
    left.known.extend(log.ids.into_iter().filter(|(id, _)| !has.contains(id)));
    left.known.sort_unstable_by_key(|(_, seq)| *seq);
    left
}

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
        let Ok(elsewhere) = reclaim(services, &checkpoint).await else {
            tracing::info!(session = %checkpoint.slug, %epoch, "session goes on at another node");
            let core = services.new_core(checkpoint.slug, SessionSeed { epoch: Some(epoch), ..SessionSeed::default() });
            services.session_ended(&core, SessionEnd::HandedOver);
            continue;
        };
        let StoredTail { last_seq, known, recent, is_ended, .. } = with_log(left, elsewhere);
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
            ..SessionSeed::default()
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
