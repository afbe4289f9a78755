//! Another node goes on with the session: its state goes there, and its last words follow as they come.

use std::time::Duration;

use actix::prelude::*;
use tokio::time::Instant;

use super::publishing::{MAX_TAKEOVERS, TAKEOVER_PERIOD};
use super::{End, Origin, Phase, Session, Then};
use crate::actors::session_registry::PublishRefusal;
use crate::bus::ownership::Handover;

/// Longest wait for the last words of a session that goes on elsewhere.
const LAST_WORDS_TIMEOUT: Duration = Duration::from_secs(30);

/// The room is another node's, or is to be. Answers the session's state, or why it stays.
#[derive(Debug, Clone, Message)]
#[rtype(result = "Result<Handover, String>")]
pub struct HandOver {
    /// The other node, for people.
    pub to: String,
    /// It asks, and may be told to wait; else the room is its already.
    pub is_asked: bool,
}

impl Handler<HandOver> for Session {
    type Result = Result<Handover, String>;

    fn handle(&mut self, HandOver { to, is_asked }: HandOver, ctx: &mut Self::Context) -> Self::Result {
        if self.phase == Phase::Ending || self.core.origin == Origin::Mirror {
            return Err("the session is ending".to_owned());
        }
        if is_asked && self.is_publisher_sending() && self.count_takeover().is_err() {
            return Err(PublishRefusal::TakeoverLimit.to_string());
        }
        let mut checkpoint = self.core.checkpoint();
        // Its recogniser's last words come to us, not to the other node.
        if let Some(recogniser) = checkpoint.recogniser.as_object_mut() {
            recogniser.remove("session");
        }
        let handover = Handover { clock_ms: self.core.clock_ms(), checkpoint };
        tracing::info!(session = %self.core.slug, epoch = %self.core.epoch, to, "session goes on at another node");
        let deadline = Instant::now() + LAST_WORDS_TIMEOUT;
        self.end(End { reason: "taken_over".into(), deadline, then: Then::GoesOnElsewhere }, ctx);
        Ok(handover)
    }
}

impl Session {
    /// A publisher that is still sending is displaced: not too often, or two encoders would fight for ever.
    pub(super) fn count_takeover(&mut self) -> Result<(), PublishRefusal> {
        while self.takeovers.front().is_some_and(|at| at.elapsed() >= TAKEOVER_PERIOD) {
            self.takeovers.pop_front();
        }
        if self.takeovers.len() >= MAX_TAKEOVERS {
            return Err(PublishRefusal::TakeoverLimit);
        }
        self.takeovers.push_back(Instant::now());
        Ok(())
    }
}
