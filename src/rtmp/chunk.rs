//! The chunk layer of RTMP (Adobe's specification 1.0, section 5.3), for bytes of strangers.
//!
//! Every chunk stream has a state of its own, so messages may be interleaved. What we do not use (video, metadata,
//! shared objects) is skipped in the caller's buffer and never copied; everything else has a size limit by its type.
//! Odd but harmless senders are followed: limits are on memory, not on how often something happens.

mod aggregate;
mod header;

use std::collections::{HashMap, VecDeque};

use bytes::{Buf, Bytes, BytesMut};

use aggregate::{Aggregate, Tag, TooLong};
use header::{Head, Header};

/// Chunk size until the peer announces another one.
const DEFAULT_CHUNK_BYTES: usize = 128;
/// No message is longer (5.4.1), so larger chunks are the same as this one.
const MAX_CHUNK_BYTES: u32 = 0xFF_FFFF;
/// Of 31 bits; the highest must be 0.
const CHUNK_SIZES: std::ops::RangeInclusive<u32> = 1..=0x7FFF_FFFF;
/// Real clients use at most six. With more, the one that was used longest ago is forgotten: 100 KiB in all.
const MAX_CHUNK_STREAMS: usize = 1024;
/// Unfinished messages of one connection.
const MAX_PARTIAL_BYTES: usize = 512 << 10;
const MAX_AUDIO_BYTES: usize = 256 << 10;
/// A connect may hold long tokens.
const MAX_COMMAND_BYTES: usize = 64 << 10;
const MAX_CONTROL_BYTES: usize = 64;
/// See [`ChunkStream::repeated_delta`].
const MAX_REPEATED_DELTA_MS: u32 = 1000;

/// Message types (section 5.4 and 7.1 of the specification).
pub mod kind {
    pub const SET_CHUNK_SIZE: u8 = 1;
    pub const ABORT: u8 = 2;
    pub const ACKNOWLEDGEMENT: u8 = 3;
    pub const USER_CONTROL: u8 = 4;
    pub const WINDOW_SIZE: u8 = 5;
    pub const PEER_BANDWIDTH: u8 = 6;
    pub const AUDIO: u8 = 8;
    pub const VIDEO: u8 = 9;
    pub const COMMAND_AMF3: u8 = 17;
    pub const DATA_AMF0: u8 = 18;
    pub const COMMAND_AMF0: u8 = 20;
    pub const AGGREGATE: u8 = 22;
}

/// A whole message that concerns us.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Message {
    /// Types 3 to 6 (the reader itself obeys 1 and 2), 17 and 20.
    Control { kind: u8, stream_id: u32, payload: Bytes },
    /// `timestamp_ms` goes on growing past 2^32.
    Audio { stream_id: u32, timestamp_ms: u64, body: Bytes },
    /// The sender began another message before this one was whole.
    Unfinished { kind: u8 },
}

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ChunkError {
    #[error("chunk stream {0} begins without the length of its message")]
    NoHeader(u32),
    #[error("a message of type {kind} with {length} bytes; at most {allowed} are allowed")]
    TooLong { kind: u8, length: usize, allowed: usize },
    #[error("chunk size {0}; {min} to {max} bytes are allowed", min = CHUNK_SIZES.start(), max = CHUNK_SIZES.end())]
    ChunkSize(u32),
    #[error("a control message of type {0} is too short")]
    Short(u8),
    #[error("more than {MAX_CHUNK_STREAMS} chunk streams with unfinished messages")]
    TooManyStreams,
    #[error("unfinished messages hold more than {MAX_PARTIAL_BYTES} bytes")]
    TooMuchPartial,
}

/// The size limit of a message type; None when it is skipped.
fn limit(kind: u8) -> Option<usize> {
    match kind {
        kind::AUDIO => Some(MAX_AUDIO_BYTES),
        kind::COMMAND_AMF0 | kind::COMMAND_AMF3 => Some(MAX_COMMAND_BYTES),
        kind::SET_CHUNK_SIZE..=kind::PEER_BANDWIDTH => Some(MAX_CONTROL_BYTES),
        _ => None,
    }
}

/// The last header of a chunk stream and the message that it is in.
#[derive(Debug, Default)]
struct ChunkStream {
    timestamp: u32,
    /// As sent: absolute in a format 0 header, else the difference.
    field: u32,
    absolute: bool,
    extended: bool,
    length: usize,
    kind: u8,
    stream_id: u32,
    received: usize,
    partial: Vec<u8>,
    aggregate: Option<Box<Aggregate>>,
    /// Grows with every header on the connection.
    used: u64,
}

impl ChunkStream {
    /// A format 3 header that begins a message repeats the last difference. After a format 0 header the
    /// specification (5.3.1.2.4), `FFmpeg` and librtmp repeat its timestamp; other senders mean "no difference" there,
    /// which shows by a value that cannot be the distance of two messages.
    fn repeated_delta(&self) -> u32 {
        if self.absolute && self.field > MAX_REPEATED_DELTA_MS { 0 } else { self.field }
    }

    fn is_within_message(&self) -> bool {
        self.received > 0
    }

    /// Bytes kept of the message that it is in.
    fn held(&self) -> usize {
        self.partial.len() + self.aggregate.as_ref().map_or(0, |aggregate| aggregate.held())
    }

    /// Gives up the message that it is in. True when that is a loss.
    fn give_up(&mut self) -> bool {
        self.received = 0;
        let used = limit(self.kind).is_some() || self.aggregate.as_ref().is_some_and(|a| a.is_within_audio());
        (self.partial, self.aggregate) = (Vec::new(), None);
        used
    }
}

/// Puts messages together out of the chunks of one connection. Feed it with [`Self::next`].
#[derive(Debug)]
pub struct ChunkReader {
    streams: HashMap<u32, ChunkStream>,
    chunk_bytes: usize,
    partial_bytes: usize,
    /// The chunk that is being read, and how much of it is missing.
    current: Option<(u32, usize)>,
    headers: u64,
    audio_clock: Unwrap,
    /// Messages that are whole and not given out yet.
    ready: VecDeque<Message>,
    /// The fault that ended the connection. The messages before it are given out first.
    error: Option<ChunkError>,
}

impl Default for ChunkReader {
    fn default() -> Self {
        Self {
            streams: HashMap::new(),
            chunk_bytes: DEFAULT_CHUNK_BYTES,
            partial_bytes: 0,
            current: None,
            headers: 0,
            audio_clock: Unwrap::default(),
            ready: VecDeque::new(),
            error: None,
        }
    }
}

impl ChunkReader {
    /// Takes bytes from the front of `input` up to the end of the next message that concerns us. `None`: more bytes
    /// are needed. After an error the connection is of no use.
    pub fn next(&mut self, input: &mut BytesMut) -> Result<Option<Message>, ChunkError> {
        while self.ready.is_empty() && self.error.is_none() {
            match self.read_chunk(input) {
                Ok(true) => {}
                Ok(false) => break,
                Err(error) => self.error = Some(error),
            }
        }
        match (self.ready.pop_front(), &self.error) {
            (None, Some(error)) => Err(error.clone()),
            (message, _) => Ok(message),
        }
    }

    /// Reads what is there of the next chunk. False: more bytes are needed.
    fn read_chunk(&mut self, input: &mut BytesMut) -> Result<bool, ChunkError> {
        let Some((csid, missing)) = self.current.map_or_else(|| self.read_header(input), |chunk| Ok(Some(chunk)))?
        else {
            return Ok(false);
        };
        let taken = missing.min(input.len());
        self.take_body(csid, input, taken)?;
        self.current = (taken < missing).then_some((csid, missing - taken));
        if self.current.is_none() {
            let message = self.finish(csid)?;
            self.ready.extend(message);
        }
        Ok(self.current.is_none())
    }

    /// Reads a chunk header once it is there as a whole.
    fn read_header(&mut self, input: &mut BytesMut) -> Result<Option<(u32, usize)>, ChunkError> {
        let mut head = Head { bytes: input, at: 0 };
        let Some((format, csid)) = head.basic() else { return Ok(None) };
        if let Some(stream) = self.streams.get_mut(&csid).filter(|stream| format < 3 && stream.is_within_message()) {
            self.partial_bytes -= stream.held();
            if stream.give_up() {
                self.ready.push_back(Message::Unfinished { kind: stream.kind });
            }
        }
        // A short header without a full one before it counts from 0, as librtmp's ping does.
        if format > 1 && !self.streams.contains_key(&csid) {
            return Err(ChunkError::NoHeader(csid));
        }
        let fresh = ChunkStream::default();
        let Some(header) = head.message(format, self.streams.get(&csid).unwrap_or(&fresh)) else { return Ok(None) };
        let used = head.at;
        input.advance(used);
        self.make_room(csid)?;
        self.apply(csid, format, header)
    }

    /// Forgets the chunk stream that was used longest ago, where one more would be too many.
    fn make_room(&mut self, csid: u32) -> Result<(), ChunkError> {
        if self.streams.len() < MAX_CHUNK_STREAMS || self.streams.contains_key(&csid) {
            return Ok(());
        }
        let idle = self.streams.iter().filter(|(_, stream)| !stream.is_within_message());
        let oldest = idle.min_by_key(|(_, stream)| stream.used).map(|(csid, _)| *csid);
        let oldest = oldest.ok_or(ChunkError::TooManyStreams)?;
        self.streams.remove(&oldest);
        Ok(())
    }

    fn apply(&mut self, csid: u32, format: u8, header: Header) -> Result<Option<(u32, usize)>, ChunkError> {
        let stream = self.streams.entry(csid).or_default();
        self.headers += 1;
        stream.used = self.headers;
        let begins = !stream.is_within_message();
        if begins {
            stream.timestamp = match format {
                0 => header.field,
                3 => stream.timestamp.wrapping_add(stream.repeated_delta()),
                _ => stream.timestamp.wrapping_add(header.field),
            };
        }
        if format < 3 {
            stream.field = header.field;
            stream.absolute = format == 0;
            stream.extended = header.extended;
        }
        (stream.length, stream.kind, stream.stream_id) = (header.length, header.kind, header.stream_id);
        if begins && stream.kind == kind::AGGREGATE {
            stream.aggregate = Some(Box::new(Aggregate::new(stream.timestamp)));
        }
        match limit(stream.kind) {
            Some(allowed) if stream.length > allowed => {
                Err(ChunkError::TooLong { kind: stream.kind, length: stream.length, allowed })
            }
            _ => Ok(Some((csid, self.chunk_bytes.min(stream.length - stream.received)))),
        }
    }

    fn take_body(&mut self, csid: u32, input: &mut BytesMut, count: usize) -> Result<(), ChunkError> {
        let stream = self.streams.get_mut(&csid).expect("a header came before");
        stream.received += count;
        let held = stream.held();
        if limit(stream.kind).is_some() {
            stream.partial.extend_from_slice(&input[..count]);
        } else if let Some(aggregate) = &mut stream.aggregate {
            let (ready, clock, stream_id) = (&mut self.ready, &mut self.audio_clock, stream.stream_id);
            let unpack = |tag: Tag| ready.push_back(clock.audio(stream_id, tag.timestamp, tag.body.into()));
            aggregate.feed(&input[..count], unpack).map_err(|TooLong(length)| ChunkError::TooLong {
                kind: kind::AUDIO,
                length,
                allowed: MAX_AUDIO_BYTES,
            })?;
        }
        self.partial_bytes = self.partial_bytes + stream.held() - held;
        if self.partial_bytes > MAX_PARTIAL_BYTES {
            return Err(ChunkError::TooMuchPartial);
        }
        input.advance(count);
        Ok(())
    }

    /// After a whole chunk: the message, if it is whole and not for the reader itself.
    fn finish(&mut self, csid: u32) -> Result<Option<Message>, ChunkError> {
        let stream = self.streams.get_mut(&csid).expect("a header came before");
        if stream.received < stream.length {
            return Ok(None);
        }
        self.partial_bytes -= stream.held();
        let (kind, stream_id, timestamp) = (stream.kind, stream.stream_id, stream.timestamp);
        let payload = Bytes::from(std::mem::take(&mut stream.partial));
        let cut_short = stream.give_up() && kind == kind::AGGREGATE;
        if limit(kind).is_none() {
            return Ok(cut_short.then_some(Message::Unfinished { kind }));
        }
        match kind {
            kind::AUDIO if payload.is_empty() => Ok(None),
            kind::AUDIO => Ok(Some(self.audio_clock.audio(stream_id, timestamp, payload))),
            kind::SET_CHUNK_SIZE => self.set_chunk_size(number(kind, &payload)?).map(|()| None),
            kind::ABORT => {
                self.abort(&payload);
                Ok(None)
            }
            _ => Ok(Some(Message::Control { kind, stream_id, payload })),
        }
    }

    fn set_chunk_size(&mut self, size: u32) -> Result<(), ChunkError> {
        if !CHUNK_SIZES.contains(&size) {
            return Err(ChunkError::ChunkSize(size));
        }
        self.chunk_bytes = size.min(MAX_CHUNK_BYTES) as usize;
        Ok(())
    }

    /// The sender itself gives up the message of a chunk stream (5.4.2).
    fn abort(&mut self, payload: &[u8]) {
        let Ok(csid) = number(kind::ABORT, payload) else { return };
        if let Some(stream) = self.streams.get_mut(&csid) {
            self.partial_bytes -= stream.held();
            stream.give_up();
        }
    }
}

/// The big-endian number that a control message begins with.
pub fn number(kind: u8, payload: &[u8]) -> Result<u32, ChunkError> {
    payload.first_chunk().map(|bytes| u32::from_be_bytes(*bytes)).ok_or(ChunkError::Short(kind))
}

/// Makes 32-bit timestamps grow past their wrap.
#[derive(Debug, Default)]
struct Unwrap {
    last: Option<u64>,
}

impl Unwrap {
    fn audio(&mut self, stream_id: u32, timestamp: u32, body: Bytes) -> Message {
        Message::Audio { stream_id, timestamp_ms: self.unwrap(timestamp), body }
    }

    fn unwrap(&mut self, timestamp: u32) -> u64 {
        let value = match self.last {
            None => u64::from(timestamp),
            Some(last) => {
                let step = timestamp.wrapping_sub(last as u32) as i32;
                last.checked_add_signed(i64::from(step)).unwrap_or(u64::from(timestamp))
            }
        };
        self.last = Some(value);
        value
    }
}

#[cfg(test)]
mod tests;
