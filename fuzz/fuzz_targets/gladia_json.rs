//! JSON of the recogniser's protocol, in both directions: nothing panics, and what was understood is understood again
//! as the same kind of thing after we have written it.
//!
//! Input: a byte that chooses the type, JSON.

#![no_main]

use libfuzzer_sys::fuzz_target;
use serde::Serialize;
use serde::de::DeserializeOwned;
use stenocast::gladia::wire::{ClientMessage, ErrorBody, LiveReply, LiveRequest, MessagesConfig, ServerEnvelope};

/// Reads, writes, reads again. Floats may change in their last digit, so the second value is for the caller to judge.
fn twice<T: DeserializeOwned + Serialize>(json: &[u8]) -> Option<(T, T)> {
    let first: T = serde_json::from_slice(json).ok()?;
    let written = serde_json::to_vec(&first).expect("it has string keys");
    let second = serde_json::from_slice(&written).unwrap_or_else(|error| panic!("our own JSON: {error}"));
    Some((first, second))
}

fuzz_target!(|data: &[u8]| {
    let Some((choice, json)) = data.split_first() else { return };
    match choice % 5 {
        0 | 1 => {
            let Some((first, second)) = twice::<ServerEnvelope>(json) else { return };
            assert_eq!((first.message.kind(), &first.session_id), (second.message.kind(), &second.session_id));
            let _ = MessagesConfig::default().allows(&first.message);
        }
        2 => {
            if let Some((first, second)) = twice::<ClientMessage>(json) {
                assert_eq!(first, second);
            }
        }
        3 => drop(twice::<LiveRequest>(json)),
        _ => {
            if let Some((first, second)) = twice::<LiveReply>(json) {
                assert_eq!(first, second);
                assert!(
                    first.url.len() < 8 || !format!("{first:?}").contains(&first.url) || first.id.contains(&first.url)
                );
            }
            drop(twice::<ErrorBody>(json));
        }
    }
});
