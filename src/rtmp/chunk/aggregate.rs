//! Aggregate messages (type 22, specification 7.1.6), as Flash Media Live Encoder sends them: tags as in an FLV file,
//! put into one message. Of these only audio is kept, and no more of it than of one tag at a time.

use super::{MAX_AUDIO_BYTES, kind};

const HEAD_BYTES: usize = 11;
/// Behind each tag: its size once more.
const TRAILER_BYTES: usize = 4;

/// One audio tag of an aggregate, with its time on the clock of the connection.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Tag {
    pub timestamp: u32,
    pub body: Vec<u8>,
}

/// An aggregate message that is being read.
#[derive(Debug)]
pub(super) struct Aggregate {
    /// Of the whole message. Times inside are moved so that the first is this one.
    timestamp: u32,
    first: Option<u32>,
    part: Part,
}

#[derive(Debug)]
enum Part {
    Head(Vec<u8>),
    Audio { timestamp: u32, left: usize, body: Vec<u8> },
    Over { left: usize },
}

/// An audio tag of so many bytes.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct TooLong(pub usize);

impl Aggregate {
    pub fn new(timestamp: u32) -> Self {
        Self { timestamp, first: None, part: Part::Head(Vec::new()) }
    }

    /// Bytes that it holds.
    pub fn held(&self) -> usize {
        match &self.part {
            Part::Head(bytes) => bytes.len(),
            Part::Audio { body, .. } => body.len(),
            Part::Over { .. } => 0,
        }
    }

    /// An audio tag has begun and not ended.
    pub fn is_within_audio(&self) -> bool {
        matches!(self.part, Part::Audio { .. })
    }

    /// Takes the next bytes of the message, and gives the audio that is whole to `tags`.
    pub fn feed(&mut self, mut bytes: &[u8], mut tags: impl FnMut(Tag)) -> Result<(), TooLong> {
        loop {
            match &mut self.part {
                Part::Head(head) => {
                    head.extend_from_slice(take(&mut bytes, HEAD_BYTES - head.len()));
                    if head.len() < HEAD_BYTES {
                        return Ok(());
                    }
                    let head = std::mem::take(head);
                    self.begin(&head)?;
                }
                Part::Audio { left, body, .. } => {
                    let part = take(&mut bytes, *left);
                    *left -= part.len();
                    body.extend_from_slice(part);
                    if *left > 0 {
                        return Ok(());
                    }
                    let done = std::mem::replace(&mut self.part, Part::Over { left: TRAILER_BYTES });
                    if let Part::Audio { timestamp, body, .. } = done {
                        tags(Tag { timestamp, body });
                    }
                }
                Part::Over { left } => {
                    *left -= take(&mut bytes, *left).len();
                    if *left > 0 {
                        return Ok(());
                    }
                    self.part = Part::Head(Vec::new());
                }
            }
        }
    }

    /// The head of a tag is that of FLV (E.4.1): type, size, time with its highest byte last, stream.
    fn begin(&mut self, head: &[u8]) -> Result<(), TooLong> {
        let left = u32::from_be_bytes([0, head[1], head[2], head[3]]) as usize;
        let time = u32::from_be_bytes([head[7], head[4], head[5], head[6]]);
        let first = *self.first.get_or_insert(time);
        self.part = match head[0] & 0x1F {
            kind::AUDIO if left > MAX_AUDIO_BYTES => return Err(TooLong(left)),
            kind::AUDIO if left > 0 => {
                let timestamp = self.timestamp.wrapping_add(time.wrapping_sub(first));
                Part::Audio { timestamp, left, body: Vec::new() }
            }
            _ => Part::Over { left: left + TRAILER_BYTES },
        };
        Ok(())
    }
}

fn take<'a>(bytes: &mut &'a [u8], most: usize) -> &'a [u8] {
    let (part, rest) = bytes.split_at(most.min(bytes.len()));
    *bytes = rest;
    part
}
