//! The chunk layer of RTMP (Adobe's specification 1.0, section 5.3), for bytes of strangers.
//!
//! Every chunk stream has a state of its own, so messages may be interleaved. What we do not use (video, metadata,
//! shared objects) is skipped in the caller's buffer and never copied; everything else has a size limit by its type.

use std::collections::HashMap;

use bytes::{Buf, Bytes, BytesMut};

/// Chunk size until the peer announces another one.
const DEFAULT_CHUNK_BYTES: usize = 128;
const MAX_CHUNK_BYTES: u32 = 16 << 20;
/// Real clients use at most six.
const MAX_CHUNK_STREAMS: usize = 64;
/// Unfinished messages of one connection.
const MAX_PARTIAL_BYTES: usize = 256 << 10;
const MAX_AUDIO_BYTES: usize = 64 << 10;
const MAX_COMMAND_BYTES: usize = 8 << 10;
const MAX_CONTROL_BYTES: usize = 64;
/// A 24-bit timestamp field of this value announces 32 bits more.
const EXTENDED: u32 = 0xFF_FFFF;
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
}

/// A whole message that concerns us.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Message {
    /// Types 3 to 6 (the reader itself obeys 1 and 2), 17 and 20.
    Control { kind: u8, stream_id: u32, payload: Bytes },
    /// `timestamp_ms` goes on growing past 2^32.
    Audio { stream_id: u32, timestamp_ms: u64, body: Bytes },
}

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ChunkError {
    #[error("chunk stream {0} begins without a full header")]
    NoHeader(u32),
    #[error("a new message on chunk stream {0} before the last one ended")]
    Unfinished(u32),
    #[error("a message of type {kind} with {length} bytes; at most {allowed} are allowed")]
    TooLong { kind: u8, length: usize, allowed: usize },
    #[error("chunk size {0}; 1 to {MAX_CHUNK_BYTES} bytes are allowed")]
    ChunkSize(u32),
    #[error("a control message of type {0} is too short")]
    Short(u8),
    #[error("more than {MAX_CHUNK_STREAMS} chunk streams")]
    TooManyStreams,
    #[error("unfinished messages hold more than {MAX_PARTIAL_BYTES} bytes")]
    TooMuchPartial,
}

/// What happens to a message of a type: its size limit, or None when it is skipped.
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
}

impl ChunkStream {
    /// A format 3 header that begins a message repeats the last difference. After a format 0 header the
    /// specification (5.3.1.2.4), FFmpeg and librtmp repeat its timestamp; other senders mean "no difference" there,
    /// which shows by a value that cannot be the distance of two messages.
    fn repeated_delta(&self) -> u32 {
        if self.absolute && self.field > MAX_REPEATED_DELTA_MS { 0 } else { self.field }
    }

    fn is_within_message(&self) -> bool {
        self.received > 0
    }
}

/// See the module. Feed it with [`Self::next`].
#[derive(Debug)]
pub struct ChunkReader {
    streams: HashMap<u32, ChunkStream>,
    chunk_bytes: usize,
    partial_bytes: usize,
    /// The chunk that is being read, and how much of it is missing.
    current: Option<(u32, usize)>,
    audio_clock: Unwrap,
}

impl Default for ChunkReader {
    fn default() -> Self {
        Self {
            streams: HashMap::new(),
            chunk_bytes: DEFAULT_CHUNK_BYTES,
            partial_bytes: 0,
            current: None,
            audio_clock: Unwrap::default(),
        }
    }
}

impl ChunkReader {
    /// Takes bytes from the front of `input` up to the end of the next message that concerns us. `None`: more bytes
    /// are needed. After an error the connection is of no use.
    pub fn next(&mut self, input: &mut BytesMut) -> Result<Option<Message>, ChunkError> {
        loop {
            let (csid, missing) = match self.current {
                Some(current) => current,
                None => match self.read_header(input)? {
                    Some(current) => current,
                    None => return Ok(None),
                },
            };
            let taken = missing.min(input.len());
            self.take_body(csid, input, taken)?;
            self.current = Some((csid, missing - taken));
            if taken < missing {
                return Ok(None);
            }
            self.current = None;
            if let Some(message) = self.finish(csid)? {
                return Ok(Some(message));
            }
        }
    }

    /// Reads a chunk header once it is there as a whole.
    fn read_header(&mut self, input: &mut BytesMut) -> Result<Option<(u32, usize)>, ChunkError> {
        let mut head = Head { bytes: input, at: 0 };
        let Some((format, csid)) = head.basic() else { return Ok(None) };
        if !self.streams.contains_key(&csid) {
            // librtmp begins its ping on a fresh chunk stream 2 with format 1.
            if format > 1 || (format == 1 && csid != 2) {
                return Err(ChunkError::NoHeader(csid));
            }
            if self.streams.len() >= MAX_CHUNK_STREAMS {
                return Err(ChunkError::TooManyStreams);
            }
        }
        let fresh = ChunkStream::default();
        let known = self.streams.get(&csid).unwrap_or(&fresh);
        if format < 3 && known.is_within_message() {
            return Err(ChunkError::Unfinished(csid));
        }
        let Some(header) = head.message(format, known) else { return Ok(None) };
        let used = head.at;
        input.advance(used);
        self.apply(csid, format, header)
    }

    fn apply(&mut self, csid: u32, format: u8, header: Header) -> Result<Option<(u32, usize)>, ChunkError> {
        let stream = self.streams.entry(csid).or_default();
        if !stream.is_within_message() {
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
        if limit(stream.kind).is_some() {
            self.partial_bytes += count;
            if self.partial_bytes > MAX_PARTIAL_BYTES {
                return Err(ChunkError::TooMuchPartial);
            }
            stream.partial.extend_from_slice(&input[..count]);
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
        stream.received = 0;
        if limit(stream.kind).is_none() {
            return Ok(None);
        }
        let payload = Bytes::from(std::mem::take(&mut stream.partial));
        self.partial_bytes -= payload.len();
        let (kind, stream_id, timestamp) = (stream.kind, stream.stream_id, stream.timestamp);
        match kind {
            kind::AUDIO if payload.is_empty() => Ok(None),
            kind::AUDIO => {
                let timestamp_ms = self.audio_clock.unwrap(timestamp);
                Ok(Some(Message::Audio { stream_id, timestamp_ms, body: payload }))
            }
            kind::SET_CHUNK_SIZE => self.set_chunk_size(number(kind, &payload)?).map(|()| None),
            kind::ABORT => {
                self.abort(number(kind, &payload)?);
                Ok(None)
            }
            _ => Ok(Some(Message::Control { kind, stream_id, payload })),
        }
    }

    fn set_chunk_size(&mut self, size: u32) -> Result<(), ChunkError> {
        if !(1..=MAX_CHUNK_BYTES).contains(&size) {
            return Err(ChunkError::ChunkSize(size));
        }
        self.chunk_bytes = size as usize;
        Ok(())
    }

    fn abort(&mut self, csid: u32) {
        if let Some(stream) = self.streams.get_mut(&csid) {
            self.partial_bytes -= stream.partial.len();
            stream.partial.clear();
            stream.received = 0;
        }
    }
}

/// The big-endian number that a control message begins with.
pub fn number(kind: u8, payload: &[u8]) -> Result<u32, ChunkError> {
    payload.first_chunk().map(|bytes| u32::from_be_bytes(*bytes)).ok_or(ChunkError::Short(kind))
}

struct Header {
    field: u32,
    extended: bool,
    length: usize,
    kind: u8,
    stream_id: u32,
}

/// Reads a header without taking it from the buffer: it may not be whole yet.
struct Head<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl Head<'_> {
    fn take<const N: usize>(&mut self) -> Option<[u8; N]> {
        let bytes = self.bytes.get(self.at..)?.first_chunk::<N>()?;
        self.at += N;
        Some(*bytes)
    }

    fn u24(&mut self) -> Option<u32> {
        self.take::<3>().map(|[a, b, c]| u32::from_be_bytes([0, a, b, c]))
    }

    /// Format and chunk stream id.
    fn basic(&mut self) -> Option<(u8, u32)> {
        let [first] = self.take()?;
        let csid = match first & 0x3F {
            0 => 64 + u32::from(self.take::<1>()?[0]),
            1 => 64 + u32::from(u16::from_le_bytes(self.take()?)),
            small => u32::from(small),
        };
        Some((first >> 6, csid))
    }

    fn message(&mut self, format: u8, known: &ChunkStream) -> Option<Header> {
        let mut header = Header {
            field: known.field,
            extended: known.extended,
            length: known.length,
            kind: known.kind,
            stream_id: known.stream_id,
        };
        if format <= 2 {
            header.field = self.u24()?;
            header.extended = header.field == EXTENDED;
        }
        if format <= 1 {
            header.length = self.u24()? as usize;
            [header.kind] = self.take()?;
        }
        if format == 0 {
            header.stream_id = u32::from_le_bytes(self.take()?);
        }
        if header.extended {
            let at = self.at;
            let value = u32::from_be_bytes(self.take()?);
            if format <= 2 {
                header.field = value;
            } else if value != known.field {
                // Some librtmp-based senders do not repeat an extended timestamp in format 3: then these four bytes
                // are payload already. SRS compares them too.
                self.at = at;
            }
        }
        Some(header)
    }
}

/// Makes 32-bit timestamps grow past their wrap.
#[derive(Debug, Default)]
struct Unwrap {
    last: Option<u64>,
}

impl Unwrap {
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
