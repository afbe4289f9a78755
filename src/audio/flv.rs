//! The FLV that a decoder child reads: audio only, framed by us whatever the publisher's framing was (one wrong tag
//! length costs ffmpeg 13 % of the audio; ours are right).

use bytes::{BufMut, Bytes, BytesMut};

const AUDIO_TAG: u8 = 8;
const TAG_HEADER_BYTES: usize = 11;

/// Signature, version 1, audio only, header length 9, length of the tag before the first (FLV specification E.2, E.3).
pub const HEADER: [u8; 13] = [b'F', b'L', b'V', 1, 4, 0, 0, 0, 9, 0, 0, 0, 0];

/// One audio tag with its trailing length (E.4.1). `body` is shorter than 16 MiB.
pub fn audio_tag(timestamp_ms: u32, body: &[u8]) -> Bytes {
    let mut tag = BytesMut::with_capacity(TAG_HEADER_BYTES + body.len() + 4);
    tag.put_u8(AUDIO_TAG);
    tag.put_uint(body.len() as u64, 3);
    tag.put_uint(u64::from(timestamp_ms & 0xFF_FFFF), 3);
    tag.put_u8((timestamp_ms >> 24) as u8);
    tag.put_uint(0, 3);
    tag.put_slice(body);
    tag.put_u32((TAG_HEADER_BYTES + body.len()) as u32);
    tag.freeze()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tag_is_framed_as_the_specification_says() {
        let tag = audio_tag(0x1234_5678, &[0xAF, 0x01, 0x55]);
        assert_eq!(hex::encode(tag), "0800000334567812000000af01550000000e");
    }
}
