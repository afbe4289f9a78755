//! Chunk headers (specification 5.3.1).

use super::ChunkStream;

/// A 24-bit timestamp field of this value announces 32 bits more.
pub(super) const EXTENDED: u32 = 0xFF_FFFF;

pub(super) struct Header {
    pub field: u32,
    pub extended: bool,
    pub length: usize,
    pub kind: u8,
    pub stream_id: u32,
}

/// Reads a header without taking it from the buffer: it may not be whole yet.
pub(super) struct Head<'a> {
    pub bytes: &'a [u8],
    pub at: usize,
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
    pub fn basic(&mut self) -> Option<(u8, u32)> {
        let [first] = self.take()?;
        let csid = match first & 0x3F {
            0 => 64 + u32::from(self.take::<1>()?[0]),
            1 => 64 + u32::from(u16::from_le_bytes(self.take()?)),
            small => u32::from(small),
        };
        Some((first >> 6, csid))
    }

    pub fn message(&mut self, format: u8, known: &ChunkStream) -> Option<Header> {
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
            } else if value != known.field && value != known.timestamp {
                // Some librtmp-based senders do not repeat an extended timestamp in format 3: then these four bytes
                // are payload already. SRS compares them, too. Others repeat the time where a difference was sent.
                self.at = at;
            }
        }
        Some(header)
    }
}
