//! Keeps what a socket has brought and nobody has looked at within bounds: the WebSocket decoder reads all that there is
//! before it gives the next message.

use std::cell::Cell;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll};

use actix_web::error::PayloadError;
use bytes::Bytes;
use futures_util::Stream;

/// Bytes that may wait: several of the largest frame.
const MOST_PENDING: usize = 512 * 1024;

/// What waits, shared by the stream and by whoever takes its messages.
#[derive(Debug, Clone, Default)]
pub struct Intake(Rc<State>);

#[derive(Debug, Default)]
struct State {
    pending: Cell<usize>,
    /// Nothing was taken since the stream was held up.
    is_stuck: Cell<bool>,
    has_failed: Cell<bool>,
}

impl Intake {
    /// A message of so many bytes was taken.
    pub fn took(&self, bytes: usize) {
        // The head of a frame from a client, RFC 6455, section 5.2.
        let head = match bytes {
            0..126 => 6,
            126..65_536 => 8,
            _ => 14,
        };
        self.0.pending.set(self.0.pending.get().saturating_sub(bytes + head));
        self.0.is_stuck.set(false);
    }

    /// A message is longer than any may be.
    pub fn is_full(&self) -> bool {
        self.0.pending.get() > MOST_PENDING
    }

    /// The socket ended or broke: what is wrong is not what was sent on it.
    pub fn has_failed(&self) -> bool {
        self.0.has_failed.get()
    }
}

/// A payload that waits for its messages to be taken.
pub struct Held<S> {
    stream: S,
    intake: Intake,
}

impl<S> Held<S> {
    pub fn new(stream: S, intake: Intake) -> Self {
        Self { stream, intake }
    }
}

impl<S: Stream<Item = Result<Bytes, PayloadError>> + Unpin> Stream for Held<S> {
    type Item = Result<Bytes, PayloadError>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let state = self.intake.0.clone();
        if self.intake.is_full() {
            // What waits is one message, which is too big.
            if state.is_stuck.replace(true) {
                return Poll::Ready(Some(Err(PayloadError::Overflow)));
            }
            cx.waker().wake_by_ref();
            return Poll::Pending;
        }
        let next = Pin::new(&mut self.stream).poll_next(cx);
        match &next {
            Poll::Ready(Some(Ok(chunk))) => state.pending.set(state.pending.get() + chunk.len()),
            Poll::Ready(Some(Err(_)) | None) => state.has_failed.set(true),
            Poll::Pending => {}
        }
        next
    }
}

#[cfg(test)]
mod tests {
    use futures_util::{FutureExt, StreamExt, stream};

    use super::*;

    #[test]
    fn a_stream_waits_for_its_messages_and_one_that_is_too_big_ends_it() {
        let intake = Intake::default();
        let chunks = stream::repeat_with(|| Ok(Bytes::from(vec![0; 64 * 1024])));
        let mut held = Held::new(chunks, intake.clone());
        let mut next = || held.next().now_or_never();
        while let Some(Some(Ok(_))) = next() {}
        for _ in 0..100 {
            intake.took(64 * 1024);
            assert!(matches!(next(), Some(Some(Ok(_)))), "some was taken");
            assert!(next().is_none(), "and no more comes");
        }
        assert!(matches!(next(), Some(Some(Err(PayloadError::Overflow)))));
    }
}
