//! Publishers: a session takes each, or a refusal says why none does.

use actix::prelude::*;

use super::SessionRegistry;
use crate::actors::session::{Attach, Session};
use crate::actors::session_core::SessionSeed;
use crate::rtmp::PendingPublish;
use crate::transcript::{Origin, Slug};

/// A connection wants to publish `slug`; its key was checked already.
#[derive(Message)]
#[rtype(result = "Result<(), (PublishRefusal, Box<PendingPublish>)>")]
pub struct Publish {
    pub slug: Slug,
    pub publisher: Box<PendingPublish>,
}

/// Why a publisher was not admitted. The text goes to the publisher.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum PublishRefusal {
    #[error("the server is stopping")]
    Draining,
    #[error("all {0} sessions are in use")]
    TooManySessions(usize),
    #[error("another encoder is publishing this stream; stop it first")]
    TakeoverLimit,
    /// The session that was found is ending: the next one takes the publisher.
    #[error("the session is ending")]
    Ending,
    #[error("the session could not be started")]
    Failed,
    /// There is no registry at the moment; the next one takes the publisher.
    #[error("the server is repairing itself; publish again")]
    Restarting,
}

impl PublishRefusal {
    /// The label in metrics.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Draining => "draining",
            Self::TooManySessions(_) => "too_many_sessions",
            Self::TakeoverLimit => "takeover_limit",
            Self::Ending => "ending",
            Self::Failed => "failed",
            Self::Restarting => "restarting",
        }
    }
}

impl SessionRegistry {
    /// `seed`: what the session goes on with, should it have to begin.
    pub(super) fn admit(
        &self,
        slug: &Slug,
        seed: SessionSeed,
        ctx: &mut Context<Self>,
    ) -> Result<Addr<Session>, PublishRefusal> {
        if self.sessions.table.lock().draining {
            return Err(PublishRefusal::Draining);
        }
        match self.find(slug) {
            Some((addr, core)) if core.origin == Origin::Ingest => return Ok(addr),
            // A publisher here outranks relayed lines: their epoch ends, the publisher's begins.
            Some((addr, core)) => self.supersede(&addr, &core),
            None => {}
        }
        if let Some(most) = self.is_full() {
            return Err(PublishRefusal::TooManySessions(most));
        }
        Ok(self.begin(slug.clone(), seed, ctx))
    }
}

impl Handler<Publish> for SessionRegistry {
    type Result = ResponseFuture<Result<(), (PublishRefusal, Box<PendingPublish>)>>;

    fn handle(&mut self, Publish { slug, publisher }: Publish, ctx: &mut Self::Context) -> Self::Result {
        if self.is_to_be_claimed(&slug) {
            return self.claim_first(slug, publisher, ctx);
        }
        self.attach_to(slug, publisher, SessionSeed::default(), ctx)
    }
}

/// A publisher that is attached, or given back.
pub(super) type Attached = ResponseFuture<Result<(), (PublishRefusal, Box<PendingPublish>)>>;

impl SessionRegistry {
    pub(super) fn attach_to(
        &self,
        slug: Slug,
        publisher: Box<PendingPublish>,
        seed: SessionSeed,
        ctx: &mut Context<Self>,
    ) -> Attached {
        match self.admit(&slug, seed, ctx) {
            Err(refusal) => Box::pin(async move { Err((refusal, publisher)) }),
            Ok(session) => {
                let registry = ctx.address();
                Box::pin(async move {
                    // A session that dies with the publisher in its mailbox has closed its socket: nothing is left to
                    // refuse.
                    match session.send(Attach(publisher)).await.unwrap_or(Ok(())) {
                        // It has told us so, before this answer: now the slug is free.
                        Err((PublishRefusal::Ending, publisher)) => {
                            registry.send(Publish { slug, publisher }).await.unwrap_or(Ok(()))
                        }
                        answer => answer,
                    }
                })
            }
        }
    }
}
