//! What a restarted process needs to go on with the recogniser session of the one before it.

use std::sync::Arc;

use serde::{Deserialize, Serialize};
use tokio::time::Instant;

use super::clock::Clock;
use super::hearing::{Hearing, Splice};
use super::{Ledger, Limits, LossReason, ReplayBudget, Spool};
use crate::config::Secret;

/// Serde image of a ledger without its audio. `url` holds a token: keep the file private.
#[derive(Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Checkpoint {
    pub clock: Clock,
    pub acked: u64,
    pub done: u64,
    pub next_hearing: u32,
    pub statuses: u64,
    pub received: u64,
    pub inserted: u64,
    pub lost_bytes: Vec<u64>,
    pub spoken: u64,
    pub finalised: u64,
    /// End of the last published final.
    pub finalised_until: u64,
    /// Speech that was acknowledged and had no published final.
    pub unanswered: Vec<(u64, u64)>,
    pub session: Option<SessionImage>,
}

impl std::fmt::Debug for Checkpoint {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Checkpoint").field("acked", &self.acked).field("end", &self.clock.end()).finish_non_exhaustive()
    }
}

#[derive(Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct SessionImage {
    pub number: u32,
    pub id: String,
    pub url: String,
    pub splices: Vec<Splice>,
    pub wire_acked: u64,
    pub own_from: u64,
    pub finals: Vec<String>,
    pub connections: u32,
}

impl Ledger {
    pub fn checkpoint(&self) -> Checkpoint {
        let session = self.hearing.as_ref().map(|h| SessionImage {
            number: h.number,
            id: h.id.clone(),
            url: h.url.expose().to_owned(), // the restarted process resumes with it
            splices: h.splices.clone(),
            wire_acked: h.wire_acked,
            own_from: h.own_from,
            // One that is not published yet is not known to have come.
            finals: h.finals().filter(|f| !self.uncommitted.contains_key(&h.utterance_id(f))).cloned().collect(),
            connections: h.connection.count,
        });
        let finalised_until = self.committed.end().unwrap_or(0).min(self.acked);
        Checkpoint {
            clock: self.clock.clone(),
            acked: self.acked,
            done: self.done,
            next_hearing: self.next_hearing,
            statuses: self.statuses,
            received: self.counts.received,
            inserted: self.counts.inserted,
            lost_bytes: self.counts.lost.to_vec(),
            spoken: self.counts.spoken,
            finalised: self.counts.finalised,
            finalised_until,
            unanswered: self.spoken.within(&(finalised_until..self.acked)).map(|r| (r.start, r.end)).collect(),
            session,
        }
    }

    /// A ledger that goes on where `image` was taken. Audio that was in flight then is lost (`process_restart`). Of the
    /// acknowledged audio the recogniser alone knows; speech whose finals do not come any more is announced as lost too.
    pub fn restore(
        now: Instant,
        image: Checkpoint,
        limits: Limits,
        spool: Box<dyn Spool>,
        budget: Arc<ReplayBudget>,
    ) -> Self {
        let mut ledger = Self::new(limits, spool, budget);
        let end = image.clock.end();
        ledger.window.begin_at(end);
        ledger.detector.begin_anew();
        ledger.clock = image.clock;
        (ledger.done, ledger.next_hearing, ledger.statuses) = (image.done, image.next_hearing, image.statuses);
        let counts = &mut ledger.counts;
        (counts.received, counts.inserted) = (image.received, image.inserted);
        (counts.spoken, counts.finalised) = (image.spoken, image.finalised);
        for (lost, was) in counts.lost.iter_mut().zip(&image.lost_bytes) {
            *lost = *was;
        }
        counts.acknowledged =
            (counts.received + counts.inserted).saturating_sub(end - image.acked + counts.lost_bytes());
        counts.forget_reported();
        ledger.covered.insert(0..image.finalised_until);
        ledger.committed = ledger.covered.clone();
        ledger.hearing = image.session.map(|s| {
            let mut hearing = Hearing::new(s.number, s.id, Secret::new(s.url), 0, now);
            hearing.splices = s.splices;
            (hearing.wire_acked, hearing.own_from) = (s.wire_acked, s.own_from);
            s.finals.iter().for_each(|f| hearing.note_final(f));
            hearing.connection.count = s.connections.max(1);
            hearing.carried_doubt = end - image.acked;
            hearing
        });
        for (start, stop) in image.unanswered {
            ledger.spoken.insert(start..stop);
        }
        (ledger.acked, ledger.sent, ledger.restored_at) = (end, end, end);
        ledger.trimmed = image.finalised_until.min(image.acked);
        ledger.lose(image.acked..end, LossReason::ProcessRestart);
        ledger.verify();
        ledger
    }
}
