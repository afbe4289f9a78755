//! FLV audio tags: any body is inspected without a panic, its classic form is one, and what our FLV writer makes of it
//! is read back by a reader that follows the specification.
//!
//! Input: four bytes of timestamp, the tag's body.

#![no_main]

use libfuzzer_sys::fuzz_target;
use stenocast::audio::flv;
use stenocast::audio::tag::{self, Length, TagKind};
use stenocast_fuzz::Bytes;

const EX_HEADER: u8 = 9;

/// Timestamp and body of the only tag of a file (FLV specification E.4.1).
fn read_flv(file: &[u8]) -> (u32, &[u8]) {
    assert_eq!((&file[..3], file[3], file[4]), (&b"FLV"[..], 1, 4));
    let header_bytes = u32::from_be_bytes(file[5..9].try_into().unwrap()) as usize;
    assert_eq!(file[header_bytes..header_bytes + 4], [0; 4], "there is no tag before the first");
    let tag = &file[header_bytes + 4..];
    assert_eq!(tag[0], 8, "an audio tag");
    let length = u32::from_be_bytes([0, tag[1], tag[2], tag[3]]) as usize;
    let timestamp = u32::from_be_bytes([tag[7], tag[4], tag[5], tag[6]]);
    assert_eq!(tag[8..11], [0; 3], "the stream is 0");
    let (body, trailer) = tag[11..].split_at(length);
    assert_eq!(trailer, (11 + length as u32).to_be_bytes());
    (timestamp, body)
}

/// A silent frame of Speex has 320 samples in five bits: no codec says more in less.
const MAX_SAMPLES_PER_BYTE: usize = 320 * 8 / 5;

fuzz_target!(|data: &[u8]| {
    let mut input = Bytes(data);
    let timestamp = input.u32();
    let body = bytes::Bytes::copy_from_slice(input.0);
    let Ok(Some(classic)) = tag::normalise(body.clone()) else { return };
    assert!(!classic.is_empty() && classic[0] >> 4 != EX_HEADER && classic.len() <= body.len());
    assert_eq!(tag::normalise(classic.clone()), Ok(Some(classic.clone())), "a classic tag stays as it is");
    match tag::inspect(&classic) {
        Ok(Some(TagKind::Config(config))) => assert!(!config.name().is_empty() && config.rate > 0),
        Ok(Some(TagKind::Other { length: Length::Samples { count, rate }, .. })) => {
            assert!(
                rate >= 5_512 && count as usize <= MAX_SAMPLES_PER_BYTE * classic.len(),
                "{count} samples at {rate} Hz"
            );
        }
        Ok(_) => {}
        Err(refusal) => assert!(!refusal.as_str().is_empty() && !refusal.to_string().is_empty()),
    }
    let file = [&flv::HEADER[..], &flv::audio_tag(timestamp, &classic)].concat();
    assert_eq!(read_flv(&file), (timestamp, &classic[..]));
});
