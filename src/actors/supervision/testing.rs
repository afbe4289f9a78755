//! A parent for the tests of one actor.

use actix::prelude::*;
use tokio::sync::mpsc;

use super::ChildDown;

/// Parent that keeps what its children report of their ends.
pub struct Parent(mpsc::UnboundedSender<ChildDown>);

impl Parent {
    /// Starts one; the reports come out of the receiver, which need not be kept.
    pub fn start() -> (Addr<Self>, mpsc::UnboundedReceiver<ChildDown>) {
        let (sender, downs) = mpsc::unbounded_channel();
        (Actor::start(Self(sender)), downs)
    }
}

impl Actor for Parent {
    type Context = Context<Self>;
}

impl Handler<ChildDown> for Parent {
    type Result = ();

    fn handle(&mut self, down: ChildDown, _: &mut Self::Context) {
        let _ = self.0.send(down);
    }
}
