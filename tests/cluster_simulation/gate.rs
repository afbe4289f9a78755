//! Freezes what a node does, as SIGSTOP does: its timers run, and nothing reads them.

use std::cell::{Cell, RefCell};
use std::future::Future;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, Waker};

#[derive(Default)]
pub struct Gate {
    is_frozen: Cell<bool>,
    waiting: RefCell<Vec<Waker>>,
}

impl Gate {
    pub fn freeze(&self) {
        self.is_frozen.set(true);
    }

    pub fn is_frozen(&self) -> bool {
        self.is_frozen.get()
    }

    pub fn thaw(&self) {
        self.is_frozen.set(false);
        self.waiting.take().into_iter().for_each(Waker::wake);
    }
}

/// A future that makes no step while its gate is frozen.
pub struct Gated {
    pub gate: Rc<Gate>,
    pub inner: Pin<Box<dyn Future<Output = ()>>>,
}

impl Future for Gated {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<()> {
        if self.gate.is_frozen() {
            self.gate.waiting.borrow_mut().push(context.waker().clone());
            return Poll::Pending;
        }
        self.inner.as_mut().poll(context)
    }
}
