//! Reads the container that a decoder child writes: SMJPEG (Loki Software, 1999).
//!
//! It is the smallest of ffmpeg's formats that gives each packet its time and its length. With it a missing packet is
//! seen for what it is: frames that gave no sound.

use std::io;

use bytes::{Buf, Bytes, BytesMut};

const MAGIC: &[u8; 8] = b"\0\nSMJPEG";
/// Magic, version, duration.
const FILE_HEADER_BYTES: usize = 16;
/// Tag and length of a header block.
const BLOCK_HEADER_BYTES: usize = 8;
/// Tag, time, length.
const PACKET_HEADER_BYTES: usize = 12;
/// Minutes of stereo at 16 kHz: a packet is as long as its tag, and one of PCM is as long as its publisher likes.
const MAX_PACKET_BYTES: usize = 16 << 20;

/// Takes bytes as they come and gives whole packets.
#[derive(Debug, Default)]
pub struct Reader {
    pub buffer: BytesMut,
    is_header_read: bool,
}

/// Interleaved samples, and their time since the stream's begin in ms, modulo 2^32.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Packet {
    pub at_ms: u32,
    pub samples: Bytes,
}

impl Reader {
    /// The next packet of what is in the buffer. `None`: more bytes are needed. An error: this is no SMJPEG.
    pub fn packet(&mut self) -> io::Result<Option<Packet>> {
        if !self.is_header_read && !self.read_header()? {
            return Ok(None);
        }
        let Some(head) = self.buffer.get(..PACKET_HEADER_BYTES) else { return Ok(None) };
        if &head[..4] != b"sndD" {
            return Err(broken("a packet that is no sound"));
        }
        let (at_ms, length) = (number(&head[4..]), number(&head[8..]) as usize);
        if length > MAX_PACKET_BYTES {
            return Err(broken("a packet that is too long"));
        }
        if self.buffer.len() < PACKET_HEADER_BYTES + length {
            return Ok(None);
        }
        self.buffer.advance(PACKET_HEADER_BYTES);
        Ok(Some(Packet { at_ms, samples: self.buffer.split_to(length).freeze() }))
    }

    /// True when it was there as a whole.
    fn read_header(&mut self) -> io::Result<bool> {
        let known = self.buffer.len().min(MAGIC.len());
        if self.buffer[..known] != MAGIC[..known] {
            return Err(broken("another signature"));
        }
        let mut at = FILE_HEADER_BYTES;
        loop {
            let Some(tag) = self.buffer.get(at..at + 4) else { return Ok(false) };
            if tag == b"HEND" {
                self.buffer.advance(at + 4);
                self.is_header_read = true;
                return Ok(true);
            }
            let Some(length) = self.buffer.get(at + 4..at + BLOCK_HEADER_BYTES).map(number) else { return Ok(false) };
            if length as usize > MAX_PACKET_BYTES {
                return Err(broken("a header that is too long"));
            }
            at += BLOCK_HEADER_BYTES + length as usize;
        }
    }
}

fn number(bytes: &[u8]) -> u32 {
    u32::from_be_bytes([bytes[0], bytes[1], bytes[2], bytes[3]])
}

fn broken(what: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, format!("the decoder's output has {what}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// As ffmpeg writes it: a text block, the sound block, the header's end, two packets.
    fn stream() -> Vec<u8> {
        let mut bytes = [&MAGIC[..], &[0; 8], b"_TXT", &[0, 0, 0, 3], b"a=b", b"_SND", &[0, 0, 0, 8]].concat();
        bytes.extend([0x3E, 0x80, 16, 2, b'N', b'O', b'N', b'E']);
        bytes.extend(b"HENDsndD\0\0\0\0\0\0\0\x04abcdsndD\0\0\0\x17\0\0\0\x08efghijkl");
        bytes
    }

    #[test]
    fn packets_come_whole_however_the_bytes_are_cut() {
        for size in [1, 3, 7, 200] {
            let mut reader = Reader::default();
            let mut packets = Vec::new();
            for part in stream().chunks(size) {
                reader.buffer.extend_from_slice(part);
                while let Some(packet) = reader.packet().unwrap() {
                    packets.push((packet.at_ms, packet.samples));
                }
            }
            assert_eq!(packets, [(0, Bytes::from_static(b"abcd")), (23, Bytes::from_static(b"efghijkl"))]);
            assert!(reader.buffer.is_empty());
        }
    }

    #[test]
    fn what_is_no_smjpeg_is_an_error() {
        for bytes in [&b"RIFF"[..], b"\0\nSMJPEG\0\0\0\0\0\0\0\0_TXT\xFF\0\0\0"] {
            let mut reader = Reader { buffer: bytes.into(), ..Reader::default() };
            assert!(reader.packet().is_err(), "{bytes:?}");
        }
        let mut stream = stream();
        let at = stream.len() - 20;
        stream[at] = b'v';
        let mut reader = Reader { buffer: stream[..].into(), ..Reader::default() };
        assert!(reader.packet().unwrap().is_some());
        assert!(reader.packet().is_err());
    }
}
