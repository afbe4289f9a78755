//! Looks at an actor's state: typed, so that a field that is renamed cannot blind a metric or an alert.

use std::marker::PhantomData;
use std::time::Duration;

use actix::dev::ToEnvelope;
use actix::{Actor, Addr, Handler, Message};
use serde::{Serialize, Serializer};

/// An actor that shows its state.
pub trait Observable: Actor {
    /// State that `/metrics` shows, as JSON in camelCase.
    type State: Serialize + Send + 'static;
}

/// Asks an actor for its state.
pub struct Observe<A>(PhantomData<fn() -> A>);

impl<A> Default for Observe<A> {
    fn default() -> Self {
        Self(PhantomData)
    }
}

impl<A: Observable> Message for Observe<A> {
    type Result = A::State;
}

/// The answer to [`Observe`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Answer<S> {
    State(S),
    /// It does not live at the moment. Shown as `null`.
    Gone,
    /// It was asked, and is busy or hangs. Shown as the text "no answer".
    Silent,
}

impl<S> Answer<S> {
    pub fn state(&self) -> Option<&S> {
        match self {
            Self::State(state) => Some(state),
            Self::Gone | Self::Silent => None,
        }
    }
}

impl<S: Serialize> Serialize for Answer<S> {
    fn serialize<Z: Serializer>(&self, serializer: Z) -> Result<Z::Ok, Z::Error> {
        match self {
            Self::State(state) => state.serialize(serializer),
            Self::Gone => serializer.serialize_none(),
            Self::Silent => serializer.serialize_str("no answer"),
        }
    }
}

/// Asks `addr`, and waits no longer than `timeout`.
pub async fn observe<A>(addr: Option<Addr<A>>, timeout: Duration) -> Answer<A::State>
where
    A: Observable + Handler<Observe<A>>,
    A::Context: ToEnvelope<A, Observe<A>>,
{
    let Some(addr) = addr else { return Answer::Gone };
    match tokio::time::timeout(timeout, addr.send(Observe::default())).await {
        Ok(Ok(state)) => Answer::State(state),
        Ok(Err(_)) => Answer::Gone,
        Err(_) => Answer::Silent,
    }
}
