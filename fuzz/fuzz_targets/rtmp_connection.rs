//! A whole RTMP connection: whatever a stranger sends and however the network cuts it, the events are the same, no
//! panic is needed to stop it (a panic that the second belt would catch counts as a crash here), and nothing of the
//! input is kept but a chunk header.
//!
//! Input: a byte of flags (1: the handshake is in the input too), two bytes that choose the read sizes, the stream.

#![no_main]

use bytes::BytesMut;
use libfuzzer_sys::fuzz_target;
use stenocast::rtmp::{Event, Protocol, ProtocolError};
use stenocast_fuzz::{Bytes, catch_stack_overflow};

const HANDSHAKE_BYTES: usize = 1 + 1536 + 1536;
/// Basic header of 3, message header of 11, extended timestamp of 4 bytes.
const MAX_HEADER_BYTES: usize = 18;
const MAX_AUDIO_BYTES: usize = 256 << 10;

type Outcome = (Vec<Event>, Option<ProtocolError>);

/// Feeds `parts` to a new connection and accepts its publish; up to the first error or goodbye.
fn run<'a>(parts: impl Iterator<Item = &'a [u8]>) -> Outcome {
    let mut protocol = Protocol::default();
    let mut input = BytesMut::new();
    let mut events = Vec::new();
    for part in parts {
        input.extend_from_slice(part);
        loop {
            match protocol.next(&mut input) {
                Ok(None) => break,
                Ok(Some(event)) => {
                    if matches!(event, Event::Publish(_)) {
                        protocol.accept();
                    }
                    let over = event == Event::Unpublished;
                    events.push(event);
                    if over {
                        return (events, None);
                    }
                }
                Err(error) => {
                    protocol.refuse("the end");
                    return (events, Some(error));
                }
            }
        }
        assert!(input.len() < MAX_HEADER_BYTES, "{} bytes are kept", input.len());
        protocol.caught_up();
        protocol.take_output();
    }
    (events, None)
}

/// Read sizes from 1 to 4096 bytes, more often short ones.
fn reads(bytes: &[u8], seed: u16) -> impl Iterator<Item = &[u8]> {
    let mut rest = Bytes(bytes);
    let mut state = u32::from(seed) | 1 << 16;
    std::iter::from_fn(move || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        let size = 1 + ((state >> 8) as usize & 0xFFF >> (state >> 28));
        (!rest.is_empty()).then(|| rest.take(size))
    })
}

fuzz_target!(init: catch_stack_overflow(), |data: &[u8]| {
    let mut input = Bytes(data);
    let (flags, seed) = (input.u8(), input.u16());
    let mut bytes = Vec::new();
    if flags & 1 == 0 {
        bytes.resize(HANDSHAKE_BYTES, 1);
        bytes[0] = 3;
    }
    bytes.extend_from_slice(input.0);
    let whole = run(std::iter::once(&bytes[..]));
    assert_eq!(whole, run(reads(&bytes, seed)), "the cuts make a difference");
    let audio = whole.0.iter().filter_map(|event| if let Event::Audio { body, .. } = event { Some(body) } else { None });
    assert!(audio.clone().all(|body| (1..=MAX_AUDIO_BYTES).contains(&body.len())));
    let publishes = whole.0.iter().filter(|event| matches!(event, Event::Publish(_))).count();
    assert!(publishes <= 1 && (audio.count() == 0 || publishes == 1));
});
