//! A request body that stops when too much of it has come without one whole message.
//!
//! The WebSocket decoder looks at a frame's size only when the frame is whole: a declared 300 MB would sit in memory.

use std::pin::Pin;
use std::task::{Context, Poll};

use actix_web::error::PayloadError;
use bytes::Bytes;
use futures_util::Stream;

use crate::viewers::Meter;

/// A payload that stamps the meter of its viewer.
pub struct Metered<S> {
    stream: S,
    meter: Meter,
}

impl<S> Metered<S> {
    pub fn new(stream: S, meter: Meter) -> Self {
        Self { stream, meter }
    }
}

impl<S: Stream<Item = Result<Bytes, PayloadError>> + Unpin> Stream for Metered<S> {
    type Item = Result<Bytes, PayloadError>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        if self.meter.is_over() {
            return Poll::Ready(Some(Err(PayloadError::Overflow)));
        }
        let next = Pin::new(&mut self.stream).poll_next(cx);
        match &next {
            Poll::Ready(Some(Ok(chunk))) => {
                self.meter.add(chunk.len());
                if self.meter.is_over() {
                    return Poll::Ready(Some(Err(PayloadError::Overflow)));
                }
            }
            Poll::Ready(Some(Err(_))) => self.meter.fail(),
            Poll::Ready(None) | Poll::Pending => {}
        }
        next
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::viewers::meter::MAX_PENDING_BYTES;
    use futures_util::{StreamExt, stream};

    #[actix::test]
    async fn a_message_that_never_ends_is_cut_and_others_pass() {
        let chunks = || stream::repeat_with(|| Ok(Bytes::from_static(&[0; 1024])));
        let meter = Meter::default();
        let mut endless = Metered::new(chunks(), meter.clone());
        let mut passed = 0;
        while endless.next().await.is_some_and(|chunk| chunk.is_ok()) {
            passed += 1;
        }
        assert_eq!(passed, MAX_PENDING_BYTES / 1024);
        let meter = Meter::default();
        let mut messages = Metered::new(chunks(), meter.clone());
        for _ in 0..1000 {
            assert!(messages.next().await.is_some_and(|chunk| chunk.is_ok()));
            meter.reset();
        }
    }
}
