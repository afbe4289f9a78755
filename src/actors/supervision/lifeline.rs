//! Lifelines: a parent learns of every end of a child, panics included.
//!
//! An actor that panics runs no handler any more, but its fields are dropped; a [`Lifeline`] field reports from its
//! `Drop`. Make it outside the child's arbiter and move it in: a closure given to a dead arbiter is dropped in
//! silence, and the lifeline in it then reports [`Exit::NeverStarted`].

use std::fmt;

use actix::{Message, Recipient};

use super::policy::ChildKind;
use std::sync::Arc;

use crate::metrics::Metrics;

/// The end of an actor.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Exit {
    /// Its work was done, or it was told to stop.
    Normal,
    /// It gave up and said why.
    Failed(String),
    Panicked,
    /// It made no progress while there was work, and was replaced.
    Frozen,
    /// It was dropped before it ran, by a dead arbiter.
    NeverStarted,
}

impl Exit {
    pub fn is_normal(&self) -> bool {
        *self == Self::Normal
    }
}

impl fmt::Display for Exit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Normal => f.write_str("ended"),
            Self::Failed(why) => write!(f, "failed: {why}"),
            Self::Panicked => f.write_str("panicked"),
            Self::Frozen => f.write_str("frozen"),
            Self::NeverStarted => f.write_str("never started"),
        }
    }
}

/// To the parent: a child has ended.
#[derive(Debug, Clone, Message)]
#[rtype(result = "()")]
pub struct ChildDown {
    pub kind: ChildKind,
    /// Which life of the child; an older one than the parent's current is ignored.
    pub generation: u64,
    pub exit: Exit,
}

/// The field of a child that reports its end to its parent.
pub struct Lifeline {
    parent: Recipient<ChildDown>,
    kind: ChildKind,
    generation: u64,
    exit: Exit,
    metrics: Arc<Metrics>,
    started: bool,
}

impl Lifeline {
    pub fn new(parent: Recipient<ChildDown>, kind: ChildKind, generation: u64, metrics: Arc<Metrics>) -> Self {
        Self { parent, kind, generation, exit: Exit::NeverStarted, metrics, started: false }
    }

    /// Call first in `Actor::started`.
    pub fn started(&mut self) {
        self.started = true;
        self.exit = Exit::Normal;
        self.metrics.actors_live.with_label_values(&[self.kind.as_str()]).inc();
    }

    /// The actor is about to stop because of a fault.
    pub fn fail(&mut self, why: impl Into<String>) {
        self.exit = Exit::Failed(why.into());
    }

    pub fn generation(&self) -> u64 {
        self.generation
    }
}

impl Drop for Lifeline {
    fn drop(&mut self) {
        let kind = self.kind.as_str();
        if self.started {
            self.metrics.actors_live.with_label_values(&[kind]).dec();
        }
        if std::thread::panicking() {
            self.exit = Exit::Panicked;
            self.metrics.actor_panics_total.with_label_values(&[kind]).inc();
        }
        let exit = std::mem::replace(&mut self.exit, Exit::Normal);
        if !exit.is_normal() {
            let now = chrono::Utc::now().timestamp();
            self.metrics.actor_last_fault_timestamp_seconds.with_label_values(&[kind]).set(now);
        }
        self.parent.do_send(ChildDown { kind: self.kind, generation: self.generation, exit });
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::actors::supervision::testing::Parent;
    use actix::prelude::*;

    struct Child(Lifeline);
    impl Actor for Child {
        type Context = Context<Self>;
        fn started(&mut self, _: &mut Self::Context) {
            self.0.started();
        }
    }
    #[derive(Message)]
    #[rtype(result = "()")]
    enum End {
        Stop,
        Fail,
        Panic,
    }
    impl Handler<End> for Child {
        type Result = ();
        fn handle(&mut self, end: End, ctx: &mut Self::Context) {
            match end {
                End::Stop => ctx.stop(),
                End::Fail => {
                    self.0.fail("broken");
                    ctx.stop();
                }
                End::Panic => panic!("on purpose"),
            }
        }
    }

    #[actix::test]
    async fn every_end_is_reported_with_its_generation() {
        let (parent, mut rx) = Parent::start();
        let metrics = Arc::new(Metrics::new());
        let lifeline =
            |generation| Lifeline::new(parent.clone().recipient(), ChildKind::Session, generation, metrics.clone());
        let ends = [End::Stop, End::Fail, End::Panic];
        let exits = [Exit::Normal, Exit::Failed("broken".into()), Exit::Panicked];
        for (generation, (end, exit)) in (1..).zip(ends.into_iter().zip(exits)) {
            let child = Child(lifeline(generation)).start();
            child.do_send(end);
            let down = rx.recv().await.unwrap();
            assert_eq!((down.generation, down.exit), (generation, exit));
        }
        drop(lifeline(9));
        assert_eq!(rx.recv().await.unwrap().exit, Exit::NeverStarted);
        assert_eq!(metrics.actor_panics_total.with_label_values(&["session"]).get(), 1);
        assert!(metrics.actor_last_fault_timestamp_seconds.with_label_values(&["session"]).get() > 0);
        assert_eq!(metrics.actors_live.with_label_values(&["session"]).get(), 0);
    }
}
