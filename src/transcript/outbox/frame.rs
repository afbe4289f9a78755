//! One record on disk: `magic(4) length(4) crc32(4) index(8) payload`, little-endian.
//!
//! The CRC covers index and payload. The magic's first byte never occurs in UTF-8, so a reader that lost its place in
//! a damaged file finds the next frame by it.

/// Starts every frame.
pub const MAGIC: [u8; 4] = [0xF5, b'S', b'C', 0xF7];
/// Bytes before the payload.
pub const HEADER_BYTES: usize = 20;
/// Longest payload. An entry's text is at most 16 KiB; its word list may be several times that.
pub const MAX_PAYLOAD_BYTES: usize = 4 << 20;

/// The meaning of the bytes at some place.
#[derive(Debug, PartialEq, Eq)]
pub enum Parsed<'a> {
    Frame {
        index: u64,
        payload: &'a [u8],
    },
    /// The start of a frame, or of garbage that looks like one; more bytes are needed to tell.
    Incomplete,
    Corrupt,
}

/// Appends the frame of `payload` to `out`. The caller has checked its length.
pub fn encode(out: &mut Vec<u8>, index: u64, payload: &[u8]) {
    debug_assert!(payload.len() <= MAX_PAYLOAD_BYTES);
    out.extend_from_slice(&MAGIC);
    out.extend_from_slice(&(payload.len() as u32).to_le_bytes());
    out.extend_from_slice(&checksum(index, payload).to_le_bytes());
    out.extend_from_slice(&index.to_le_bytes());
    out.extend_from_slice(payload);
}

/// Looks at the frame that should begin at `bytes[0]`.
pub fn parse(bytes: &[u8]) -> Parsed<'_> {
    let known = bytes.len().min(MAGIC.len());
    if bytes[..known] != MAGIC[..known] {
        return Parsed::Corrupt;
    }
    if bytes.len() < HEADER_BYTES {
        return Parsed::Incomplete;
    }
    let length = u32_at(bytes, 4) as usize;
    if length > MAX_PAYLOAD_BYTES {
        return Parsed::Corrupt;
    }
    let Some(payload) = bytes.get(HEADER_BYTES..HEADER_BYTES + length) else {
        return Parsed::Incomplete;
    };
    let index = u64::from_le_bytes(bytes[12..20].try_into().expect("8 bytes"));
    if checksum(index, payload) != u32_at(bytes, 8) {
        return Parsed::Corrupt;
    }
    Parsed::Frame { index, payload }
}

/// Finds the place where the next frame may begin, at or after `from`: a whole magic, or a part of one at the very end.
pub fn find_magic(bytes: &[u8], from: usize) -> Option<usize> {
    (from..bytes.len()).find(|&at| {
        let known = (bytes.len() - at).min(MAGIC.len());
        bytes[at..at + known] == MAGIC[..known]
    })
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(bytes[at..at + 4].try_into().expect("4 bytes"))
}

fn checksum(index: u64, payload: &[u8]) -> u32 {
    let mut crc = crc32fast::Hasher::new();
    crc.update(&index.to_le_bytes());
    crc.update(payload);
    crc.finalize()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_frame_is_found_whole_incomplete_or_corrupt() {
        let mut bytes = Vec::new();
        encode(&mut bytes, 7, b"hello");
        assert_eq!(parse(&bytes), Parsed::Frame { index: 7, payload: b"hello" });
        for cut in 0..bytes.len() {
            assert_eq!(parse(&bytes[..cut]), Parsed::Incomplete, "cut at {cut}");
        }
        for flipped in [0, 3, 8, 12, 19, 20, 24] {
            let mut bad = bytes.clone();
            bad[flipped] ^= 1;
            assert_eq!(parse(&bad), Parsed::Corrupt, "bit flipped in byte {flipped}");
        }
    }

    #[test]
    fn the_magic_is_found_again_after_garbage() {
        let mut bytes = b"garbage \xF5S".to_vec();
        let at = bytes.len();
        encode(&mut bytes, 1, b"x");
        assert_eq!(find_magic(&bytes, 0), Some(at));
        assert_eq!(find_magic(&bytes, at + 1), None);
        assert_eq!(find_magic(b"end \xF5S", 0), Some(4));
    }
}
