//! A child as its supervisor knows it: where it is, which life it lives, and how often it was restarted.

use std::time::Duration;

use actix::dev::ToEnvelope;
use actix::{Actor, Addr, Handler, Recipient};
use serde::Serialize;
use std::sync::Arc;
use tokio::time::Instant;

use super::lifeline::{ChildDown, Lifeline};
use super::observe::{Answer, Observable, Observe, observe};
use super::policy::ChildKind;
use super::restarts::{Decision, Restarts};
use crate::metrics::Metrics;

/// One child over all its lives.
pub struct Supervised<A: Actor> {
    kind: ChildKind,
    addr: Option<Addr<A>>,
    generation: u64,
    started: Instant,
    restarts: Restarts,
}

/// The state of a child that `/metrics` shows.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct ChildState<S> {
    pub restarts: u64,
    pub last_fault: Option<String>,
    pub state: Answer<S>,
}

impl<A: Actor> Supervised<A> {
    pub fn new(kind: ChildKind) -> Self {
        Self { kind, addr: None, generation: 0, started: Instant::now(), restarts: Restarts::new(kind.policy()) }
    }

    /// A new life begins: the lifeline that it is to hold.
    pub fn begin(&mut self, parent: Recipient<ChildDown>, metrics: &Arc<Metrics>) -> Lifeline {
        self.begin_as(self.generation + 1, parent, metrics)
    }

    /// As [`Self::begin`], where generations are counted over many children.
    pub fn begin_as(&mut self, generation: u64, parent: Recipient<ChildDown>, metrics: &Arc<Metrics>) -> Lifeline {
        self.generation = generation;
        self.started = Instant::now();
        Lifeline::new(parent, self.kind, generation, metrics.clone())
    }

    /// Notes the address of the present life.
    pub fn runs_at(&mut self, addr: Option<Addr<A>>) {
        self.addr = addr;
    }

    pub fn addr(&self) -> Option<Addr<A>> {
        self.addr.clone()
    }

    /// The life at hand is given up: its end, whenever it is reported, is an old one's.
    pub fn give_up(&mut self) -> Option<Addr<A>> {
        self.generation += 1;
        self.addr.take()
    }

    pub fn is_running(&self) -> bool {
        self.addr.is_some()
    }

    pub fn generation(&self) -> u64 {
        self.generation
    }

    pub fn restarts(&self) -> &Restarts {
        &self.restarts
    }

    /// Forgets past restarts, after an escalation was dealt with.
    pub fn forgive(&mut self) {
        self.restarts.reset();
    }

    /// Decides what follows the end of the present life. None when an earlier one has ended.
    pub fn decide(&mut self, down: &ChildDown) -> Option<Decision> {
        if self.generation != down.generation {
            return None;
        }
        Some(self.restarts.decide(&down.exit, self.started.elapsed(), Instant::now()))
    }

    /// Asks it for its state; the future does not borrow.
    pub fn observe(&self, timeout: Duration) -> impl Future<Output = ChildState<A::State>> + use<A>
    where
        A: Observable + Handler<Observe<A>>,
        A::Context: ToEnvelope<A, Observe<A>>,
    {
        let (restarts, last_fault) = (self.restarts.total(), self.restarts.last_fault().map(str::to_owned));
        let state = observe(self.addr(), timeout);
        async move { ChildState { restarts, last_fault, state: state.await } }
    }
}
