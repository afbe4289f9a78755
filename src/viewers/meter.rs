//! Counts what a viewer has sent without one whole message.

use std::cell::Cell;
use std::rc::Rc;

/// Bytes that may wait for the end of a message: several times the largest frame.
pub const MAX_PENDING_BYTES: usize = 128 * 1024;

/// Bytes received since the last whole message, and whether the socket has failed; shared by the stream and its reader.
#[derive(Debug, Clone, Default)]
pub struct Meter(Rc<Counts>);

#[derive(Debug, Default)]
struct Counts {
    pending: Cell<usize>,
    failed: Cell<bool>,
}

impl Meter {
    /// A whole message has come.
    pub fn reset(&self) {
        self.0.pending.set(0);
    }

    pub fn is_over(&self) -> bool {
        self.0.pending.get() > MAX_PENDING_BYTES
    }

    /// So many bytes have come.
    pub fn add(&self, bytes: usize) {
        self.0.pending.set(self.0.pending.get() + bytes);
    }

    /// The socket has ended or broken.
    pub fn fail(&self) {
        self.0.failed.set(true);
    }

    /// The socket ended or broke: what is wrong is not what was sent on it.
    pub fn has_failed(&self) -> bool {
        self.0.failed.get()
    }
}
