//! Reads one segment file from front to back, over damage.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

use super::frame::{self, Parsed};

const CHUNK_BYTES: usize = 256 << 10;

/// A place in a segment file, and the bytes after it.
pub struct Scanner {
    file: File,
    /// File offset of `buffer[0]`.
    base: u64,
    buffer: Vec<u8>,
    /// Read position within `buffer`.
    at: usize,
    /// Index of the last frame read; the next has a higher one.
    last_index: u64,
}

/// The next thing in a segment.
#[derive(Debug, PartialEq, Eq)]
pub enum Scan {
    Frame {
        index: u64,
        payload: Vec<u8>,
    },
    /// Bytes `from..to` of the file hold no frame; one follows.
    Skipped {
        from: u64,
        to: u64,
    },
    /// No whole frame follows. Bytes from `valid_end` to `file_bytes` are the start of one, or garbage.
    End {
        valid_end: u64,
        file_bytes: u64,
    },
}

impl Scanner {
    /// Reads frames with an index above `last_index`.
    pub fn new(file: File, last_index: u64) -> Self {
        Self { file, base: 0, buffer: Vec::new(), at: 0, last_index }
    }

    /// A later call after `End` goes on where the last frame ended: the file may have grown.
    pub fn next(&mut self) -> io::Result<Scan> {
        loop {
            let incomplete = match frame::parse(&self.buffer[self.at..]) {
                Parsed::Frame { index, payload } if index > self.last_index => {
                    let payload = payload.to_vec();
                    self.at += frame::HEADER_BYTES + payload.len();
                    self.last_index = index;
                    return Ok(Scan::Frame { index, payload });
                }
                parsed => parsed == Parsed::Incomplete,
            };
            if !incomplete || !self.fill()? {
                return self.skip_damage();
            }
        }
    }

    /// Finds the next good frame, with the rest of the file (at most about a segment) in memory.
    fn skip_damage(&mut self) -> io::Result<Scan> {
        while self.fill()? {}
        let from = self.base + self.at as u64;
        let mut candidate = self.at;
        while let Some(at) = frame::find_magic(&self.buffer, candidate + 1) {
            if matches!(frame::parse(&self.buffer[at..]), Parsed::Frame { index, .. } if index > self.last_index) {
                self.at = at;
                return Ok(Scan::Skipped { from, to: self.base + at as u64 });
            }
            candidate = at;
        }
        let file_bytes = self.base + self.buffer.len() as u64;
        self.buffer.truncate(self.at);
        Ok(Scan::End { valid_end: from, file_bytes })
    }

    /// Reads one more chunk. False at the end of the file.
    fn fill(&mut self) -> io::Result<bool> {
        self.buffer.drain(..self.at);
        self.base += self.at as u64;
        self.at = 0;
        let have = self.buffer.len();
        self.buffer.resize(have + CHUNK_BYTES, 0);
        let read = self.file.read_at(&mut self.buffer[have..], self.base + have as u64);
        self.buffer.truncate(have + *read.as_ref().unwrap_or(&0));
        Ok(read? > 0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    fn scan_all(bytes: &[u8]) -> Vec<Scan> {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(bytes).unwrap();
        let mut scanner = Scanner::new(file, 0);
        let mut found = Vec::new();
        loop {
            found.push(scanner.next().unwrap());
            if matches!(found.last(), Some(Scan::End { .. })) {
                return found;
            }
        }
    }

    fn frame(index: u64, payload: &[u8]) -> Vec<u8> {
        let mut bytes = Vec::new();
        frame::encode(&mut bytes, index, payload);
        bytes
    }

    fn good(index: u64, payload: &[u8]) -> Scan {
        Scan::Frame { index, payload: payload.to_vec() }
    }

    #[test]
    fn damage_in_the_middle_costs_the_damaged_frame_alone() {
        let [a, mut b, c] = [frame(1, b"one"), frame(2, b"two"), frame(3, b"three")];
        b[21] ^= 0xFF;
        let ends = [a.len() as u64, (a.len() + b.len()) as u64, (a.len() + b.len() + c.len()) as u64];
        let found = scan_all(&[a, b, c].concat());
        let skipped = Scan::Skipped { from: ends[0], to: ends[1] };
        let end = Scan::End { valid_end: ends[2], file_bytes: ends[2] };
        assert_eq!(found, [good(1, b"one"), skipped, good(3, b"three"), end]);
    }

    #[test]
    fn a_damaged_length_does_not_swallow_the_frames_after_it() {
        let [mut a, b] = [frame(1, b"one"), frame(2, b"two")];
        a[6] = 0x10; // about a MiB, beyond the end of the file
        let ends = [a.len() as u64, (a.len() + b.len()) as u64];
        let found = scan_all(&[a, b].concat());
        let end = Scan::End { valid_end: ends[1], file_bytes: ends[1] };
        assert_eq!(found, [Scan::Skipped { from: 0, to: ends[0] }, good(2, b"two"), end]);
    }

    #[test]
    fn frames_longer_than_a_chunk_are_read() {
        let long = vec![7; 3 * CHUNK_BYTES + 5];
        let bytes = [frame(1, &long), frame(2, b"x")].concat();
        let end = Scan::End { valid_end: bytes.len() as u64, file_bytes: bytes.len() as u64 };
        assert_eq!(scan_all(&bytes), [good(1, &long), good(2, b"x"), end]);
    }

    #[test]
    fn an_older_frame_in_reused_space_is_not_read_again() {
        let bytes = [frame(5, b"five"), frame(4, b"four")].concat();
        let end = Scan::End { valid_end: frame(5, b"five").len() as u64, file_bytes: bytes.len() as u64 };
        assert_eq!(scan_all(&bytes), [good(5, b"five"), end]);
    }
}
