//! What is said of sessions by whoever knows the rooms of LiveKit.

use actix::prelude::*;
use chrono::{DateTime, Utc};

use super::SessionRegistry;
use crate::actors::session_core::SessionCore;
use crate::actors::speaker_tracker::NameParticipants;
use crate::transcript::{Epoch, Origin, Slug, Status};

/// Asks which sessions are numbered here.
#[derive(Debug, Clone, Copy, Message)]
#[rtype(result = "Vec<SessionHere>")]
pub struct SessionsHere;

/// A session that is numbered here.
#[derive(Debug, Clone)]
pub struct SessionHere {
    pub slug: Slug,
    pub epoch: Epoch,
    pub started_at: DateTime<Utc>,
    pub is_publishing: bool,
}

/// Names of participants of a room, by identity. False: its session is not here.
#[derive(Debug, Clone, Message)]
#[rtype(result = "bool")]
pub struct NameInSession {
    pub slug: Slug,
    pub names: Vec<(String, String)>,
}

/// Tells those who wait for a publisher why there is none. False: nobody waits.
#[derive(Debug, Clone, Message)]
#[rtype(result = "bool")]
pub struct ExplainWaiting {
    pub slug: Slug,
    pub reason: String,
}

impl Handler<SessionsHere> for SessionRegistry {
    type Result = MessageResult<SessionsHere>;

    fn handle(&mut self, _: SessionsHere, _: &mut Self::Context) -> Self::Result {
        let table = self.sessions.table.lock();
        let here = table.by_slug.values().filter(|record| record.core.origin == Origin::Ingest);
        let session = |core: &SessionCore| SessionHere {
            slug: core.slug.clone(),
            epoch: core.epoch,
            started_at: core.started_at,
            is_publishing: core.presence().publisher().is_some(),
        };
        MessageResult(here.map(|record| session(&record.core)).collect())
    }
}

impl Handler<NameInSession> for SessionRegistry {
    type Result = bool;

    fn handle(&mut self, NameInSession { slug, names }: NameInSession, _: &mut Self::Context) -> bool {
        let Some((_, core)) = self.find(&slug).filter(|(_, core)| core.origin != Origin::Mirror) else { return false };
        let tracker = core.tracker().clone();
        tracker.map(|tracker| tracker.do_send(NameParticipants(names))).is_some()
    }
}

impl Handler<ExplainWaiting> for SessionRegistry {
    type Result = bool;

    fn handle(&mut self, ExplainWaiting { slug, reason }: ExplainWaiting, _: &mut Self::Context) -> bool {
        let Some((_, core)) = self.find(&slug).filter(|(_, core)| core.origin == Origin::Ingest) else { return false };
        let is_waiting = core.presence().publisher().is_none() && core.log.status() == Status::Waiting;
        if is_waiting {
            core.announce_status(Status::Waiting, &reason);
        }
        is_waiting
    }
}
