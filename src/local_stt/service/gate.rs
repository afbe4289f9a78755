//! The gate between a socket and the WebSocket decoder.
//!
//! actix-web-actors reads everything a client sends into one buffer before it decodes, and checks a frame's size only
//! when the frame is whole. The gate lets one frame through at a time, refuses a frame that is too large by its header,
//! and stops reading at a frame's end while the engine is behind (TCP then pushes back on the client).

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll};

use actix_web::error::PayloadError;
use bytes::{Bytes, BytesMut};
use futures_util::Stream;
use futures_util::task::AtomicWaker;

/// Longest header of a client's frame: 2 bytes, 8 of length, 4 of mask.
const MASK_BYTES: usize = 4;

/// Opened and closed by the session, obeyed by the gate.
#[derive(Default)]
pub struct Valve {
    closed: AtomicBool,
    oversized: AtomicBool,
    waker: AtomicWaker,
}

impl Valve {
    pub fn set_open(&self, open: bool) {
        self.closed.store(!open, Ordering::Release);
        if open {
            self.waker.wake();
        }
    }

    /// A frame was refused for its size.
    pub fn oversized(&self) -> bool {
        self.oversized.load(Ordering::Acquire)
    }
}

/// Lets one WebSocket frame through at a time, and none while its valve is shut.
pub struct FrameGate<S> {
    inner: S,
    valve: Arc<Valve>,
    max_frame: u64,
    chunk: Bytes,
    /// The header of the frame that begins, as far as it has come.
    header: BytesMut,
    /// Bytes of the present frame that have not passed yet.
    left: u64,
    /// A frame has just passed: the decoder gets a turn before the next one.
    pause: bool,
}

impl<S> FrameGate<S> {
    pub fn new(inner: S, valve: Arc<Valve>, max_frame: usize) -> Self {
        let (chunk, header) = (Bytes::new(), BytesMut::new());
        Self { inner, valve, max_frame: max_frame as u64, chunk, header, left: 0, pause: false }
    }

    /// Moves header bytes from the chunk; the payload's length once the header is complete.
    fn take_header(&mut self) -> Option<u64> {
        loop {
            let needed = header_length(&self.header);
            if self.header.len() == needed {
                return Some(payload_length(&self.header));
            }
            if self.chunk.is_empty() {
                return None;
            }
            let more = self.chunk.split_to((needed - self.header.len()).min(self.chunk.len()));
            self.header.extend_from_slice(&more);
        }
    }

    /// The next bytes that may pass, from what is here.
    fn release(&mut self) -> Option<Result<Bytes, PayloadError>> {
        if self.left > 0 {
            let body = self.chunk.split_to((self.left.min(self.chunk.len() as u64)) as usize);
            self.left -= body.len() as u64;
            self.pause = self.left == 0;
            return (!body.is_empty()).then_some(Ok(body));
        }
        let length = self.take_header()?;
        if length > self.max_frame {
            self.valve.oversized.store(true, Ordering::Release);
            return Some(Err(PayloadError::Overflow));
        }
        self.left = length;
        self.pause = length == 0;
        Some(Ok(self.header.split().freeze()))
    }
}

fn header_length(so_far: &[u8]) -> usize {
    let Some(second) = so_far.get(1) else { return 2 };
    let extended = match second & 0x7F {
        126 => 2,
        127 => 8,
        _ => 0,
    };
    2 + extended + if second & 0x80 != 0 { MASK_BYTES } else { 0 }
}

fn payload_length(header: &[u8]) -> u64 {
    let number = |bytes: &[u8]| bytes.iter().fold(0, |n, b| n << 8 | u64::from(*b));
    match header[1] & 0x7F {
        126 => number(&header[2..4]),
        127 => number(&header[2..10]),
        short => u64::from(short),
    }
}

impl<S: Stream<Item = Result<Bytes, PayloadError>> + Unpin> Stream for FrameGate<S> {
    type Item = Result<Bytes, PayloadError>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let this = &mut *self;
        if std::mem::take(&mut this.pause) {
            cx.waker().wake_by_ref();
            return Poll::Pending;
        }
        loop {
            this.valve.waker.register(cx.waker());
            if this.left == 0 && this.valve.closed.load(Ordering::Acquire) {
                return Poll::Pending;
            }
            if let Some(released) = this.release() {
                return Poll::Ready(Some(released));
            }
            match Pin::new(&mut this.inner).poll_next(cx) {
                Poll::Ready(Some(Ok(chunk))) => this.chunk = chunk,
                other => return other,
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures_util::{FutureExt, StreamExt, stream};

    fn frame(length: usize) -> Vec<u8> {
        let mut bytes = vec![0x82];
        match length {
            0..126 => bytes.push(0x80 | length as u8),
            126..65_536 => {
                bytes.push(0x80 | 126);
                bytes.extend((length as u16).to_be_bytes());
            }
            _ => {
                bytes.push(0x80 | 127);
                bytes.extend((length as u64).to_be_bytes());
            }
        }
        bytes.extend([1, 2, 3, 4]);
        bytes.resize(bytes.len() + length, 7);
        bytes
    }

    /// Bytes that pass in each turn of the decoder: until the gate says that it is the decoder's turn.
    fn turns(gate: &mut (impl Stream<Item = Result<Bytes, PayloadError>> + Unpin)) -> Vec<Vec<u8>> {
        let mut turns = vec![Vec::new()];
        loop {
            match gate.next().now_or_never() {
                Some(Some(bytes)) => turns.last_mut().unwrap().extend(bytes.unwrap()),
                Some(None) => break,
                None if turns.last().unwrap().is_empty() => break,
                None => turns.push(Vec::new()),
            }
        }
        turns.retain(|t| !t.is_empty());
        turns
    }

    #[test]
    fn frames_pass_whole_and_one_at_a_time_whatever_the_chunks() {
        let frames: Vec<_> = [0, 1, 125, 126, 3200, 65_535, 65_536, 100_000].map(frame).to_vec();
        for size in [1, 3, 1000, 1 << 20] {
            let chunks: Vec<_> = frames.concat().chunks(size).map(|c| Ok(Bytes::copy_from_slice(c))).collect();
            let mut gate = FrameGate::new(stream::iter(chunks), Arc::default(), 1 << 20);
            assert_eq!(turns(&mut gate), frames, "chunks of {size}");
        }
    }

    #[test]
    fn an_oversized_frame_is_refused_by_its_header() {
        let valve: Arc<Valve> = Arc::default();
        let head = Bytes::from(frame(2000)).slice(..8);
        let mut gate = FrameGate::new(stream::iter([Ok(head)]), valve.clone(), 1999);
        assert!(matches!(gate.next().now_or_never(), Some(Some(Err(PayloadError::Overflow)))));
        assert!(valve.oversized());
    }

    #[test]
    fn a_closed_valve_stops_at_the_end_of_a_frame() {
        let valve: Arc<Valve> = Arc::default();
        let chunks = [Ok(Bytes::from([frame(10), frame(20)].concat()))];
        let mut gate = FrameGate::new(stream::iter(chunks), valve.clone(), 100);
        assert!(matches!(gate.next().now_or_never(), Some(Some(Ok(_)))));
        valve.set_open(false);
        assert_eq!(turns(&mut gate), [vec![7; 10]]);
        valve.set_open(true);
        assert_eq!(turns(&mut gate), [frame(20)]);
    }
}
