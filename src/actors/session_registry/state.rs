//! The state of all sessions that `/metrics` shows.

use std::time::Duration;

use actix::prelude::*;
use futures_util::future::join_all;
use serde::Serialize;

use super::SessionRegistry;
use crate::actors::session::state::SessionActorState;
use crate::actors::supervision::{Answer, ChildState, Observable, Observe};
use crate::transcript::Slug;

const OBSERVE_TIMEOUT: Duration = Duration::from_millis(700);

#[derive(Debug, Clone, Serialize)]
pub struct SessionRegistryState {
    pub generation: u64,
    pub arbiters: usize,
    pub active: usize,
    /// By slug.
    pub sessions: Vec<SessionState>,
}

#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct SessionState {
    #[serde(flatten)]
    pub actor: SessionAnswer,
    pub restarts: u64,
    pub last_fault: Option<String>,
}

/// The answer of a session, or that there was none.
#[derive(Debug, Clone, Serialize)]
#[serde(untagged)]
pub enum SessionAnswer {
    State(Box<SessionActorState>),
    Silent { session: Slug, state: &'static str },
}

impl SessionAnswer {
    pub fn state(&self) -> Option<&SessionActorState> {
        match self {
            Self::State(state) => Some(state),
            Self::Silent { .. } => None,
        }
    }
}

impl Observable for SessionRegistry {
    type State = SessionRegistryState;
}

impl Handler<Observe<Self>> for SessionRegistry {
    type Result = ResponseFuture<SessionRegistryState>;

    fn handle(&mut self, _: Observe<Self>, _: &mut Self::Context) -> Self::Result {
        let mut sessions: Vec<_> = {
            let table = self.sessions.table.lock();
            let all = table.by_slug.values().chain(&table.ending);
            all.map(|record| (record.core.slug.clone(), record.actor.observe(OBSERVE_TIMEOUT))).collect()
        };
        sessions.sort_by(|a, b| a.0.cmp(&b.0));
        let (generation, arbiters) = (self.lifeline.generation(), self.arbiters.len());
        Box::pin(async move {
            let ask = |(session, child): (Slug, _)| async move {
                let child: ChildState<_> = child.await;
                let actor = match child.state {
                    Answer::State(state) => SessionAnswer::State(Box::new(state)),
                    Answer::Gone | Answer::Silent => SessionAnswer::Silent { session, state: "no answer" },
                };
                SessionState { actor, restarts: child.restarts, last_fault: child.last_fault }
            };
            let sessions = join_all(sessions.into_iter().map(ask)).await;
            SessionRegistryState { generation, arbiters, active: sessions.len(), sessions }
        })
    }
}
