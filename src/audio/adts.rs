//! AAC frames with a header of their own (ADTS: ISO 13818-7, 6.2), as some encoders put them into FLV tags. A decoder
//! behind an FLV reader wants them without.

use bytes::{BufMut, Bytes, BytesMut};

use super::aac::{AacConfig, AacError};

/// Format byte and packet type of an FLV tag with an AAC frame.
const TAG_HEAD: [u8; 2] = [0xAF, 1];
const HEADER_BYTES: usize = 7;
const CHECKSUM_BYTES: usize = 2;

/// A header in front of `payload`, and the lengths of header and frame.
struct Header {
    bytes: [u8; HEADER_BYTES],
    length: usize,
    frame_length: usize,
}

fn header(payload: &[u8]) -> Option<Header> {
    let bytes: [u8; HEADER_BYTES] = payload.get(..HEADER_BYTES)?.try_into().ok()?;
    // Twelve ones, then the MPEG version, then the layer, always 0. No bare frame begins so: it would be its end.
    let is_header = bytes[0] == 0xFF && bytes[1] & 0xF6 == 0xF0;
    let length = HEADER_BYTES + if bytes[1] & 1 == 0 { CHECKSUM_BYTES } else { 0 };
    let frame_length = usize::from(bytes[3] & 3) << 11 | usize::from(bytes[4]) << 3 | usize::from(bytes[5]) >> 5;
    (is_header && frame_length >= length).then_some(Header { bytes, length, frame_length })
}

/// The configuration in a header.
pub fn config(payload: &[u8]) -> Option<Result<AacConfig, AacError>> {
    header(payload).map(|header| AacConfig::of_adts(header.bytes))
}

/// The configuration of the first of one or more whole frames. Anything else, and what nobody can decode, is no such thing:
/// a bare frame that is damaged may begin like a header.
pub fn config_of_frames(payload: &[u8]) -> Option<AacConfig> {
    let first = header(payload)?;
    let is_whole = first.frame_length == payload.len() || payload.get(first.frame_length..).and_then(header).is_some();
    if is_whole { AacConfig::of_adts(first.bytes).ok() } else { None }
}

/// The frames of an FLV tag, each as the body of a tag of its own, without their headers. What is cut short, or no
/// frame, ends them.
pub fn frames(body: &Bytes) -> impl Iterator<Item = Bytes> + use<> {
    let mut rest = body.slice(TAG_HEAD.len().min(body.len())..);
    std::iter::from_fn(move || {
        let header = header(&rest)?;
        let mut frame = rest.split_to(header.frame_length.min(rest.len()));
        let raw = frame.split_off(header.length.min(frame.len()));
        let mut body = BytesMut::with_capacity(TAG_HEAD.len() + raw.len());
        body.put_slice(&TAG_HEAD);
        body.put_slice(&raw);
        Some(body.freeze())
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// AAC-LC, 44.1 kHz, stereo; with a checksum the header has two bytes more.
    fn frame(raw: &[u8], checksum: bool) -> Vec<u8> {
        let length = raw.len() + if checksum { 9 } else { 7 };
        let protection = u8::from(!checksum);
        let mut bytes = vec![0xFF, 0xF0 | protection, 0x50, 0x80 | (length >> 11) as u8];
        bytes.extend([(length >> 3) as u8, (length << 5) as u8 | 0x1F, 0xFC]);
        bytes.extend(checksum.then_some([1, 2]).into_iter().flatten());
        bytes.extend(raw);
        bytes
    }

    fn split(payload: &[u8]) -> Vec<Vec<u8>> {
        frames(&[&[0xAF, 1], payload].concat().into()).map(|body| body.to_vec()).collect()
    }

    #[test]
    fn headers_are_taken_off_and_each_frame_is_a_tag() {
        let both = [frame(&[0x21, 1, 2], false), frame(&[0x21, 3], true)].concat();
        assert_eq!(split(&both), [vec![0xAF, 1, 0x21, 1, 2], vec![0xAF, 1, 0x21, 3]]);
        let config = config(&both).unwrap().unwrap();
        assert_eq!((config.object_type, config.rate, config.channels), (2, 44_100, 2));
        assert_eq!(config.sequence_header(), Bytes::from_static(&[0xAF, 0, 0x12, 0x10]));
        assert_eq!(AacConfig::parse(&config.sequence_header()[2..]), Ok(config));
    }

    #[test]
    fn broken_headers_are_no_headers() {
        assert!(config(&[0x21, 0x17, 0, 0, 0, 0, 0, 0]).is_none(), "a bare frame");
        assert!(config(&frame(&[1], false)[..6]).is_none());
        let mut short = frame(&[], false);
        (short[4], short[5]) = (0, 0x1F);
        assert!(config(&short).is_none(), "a frame shorter than its header");
        assert_eq!(split(&[frame(&[1, 2, 3], false), vec![0xFF; 3]].concat()).len(), 1);
        assert_eq!(split(&frame(&[1, 2, 3, 4], false)[..9]), [vec![0xAF, 1, 1, 2]], "cut short");
        let mut rate = frame(&[1], false);
        rate[2] |= 0x3C;
        assert_eq!(config(&rate), Some(Err(AacError::Rate(0))));
        assert_eq!(config_of_frames(&rate), None);
        assert!(config_of_frames(&frame(&[1, 2, 3], false)).is_some());
        assert_eq!(config_of_frames(&frame(&[1, 2, 3], false)[..9]), None, "not a whole one");
        assert_eq!(
            config_of_frames(&[frame(&[1, 2, 3], false), vec![7; 40]].concat()),
            None,
            "followed by something else"
        );
    }
}
