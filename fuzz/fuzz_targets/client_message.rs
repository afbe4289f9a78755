//! What viewers say on their WebSocket: refused with an answer that is JSON, or within its limits.

#![no_main]

use libfuzzer_sys::fuzz_target;
use serde_json::Value;
use stenocast::viewers::client_message::{ClientMessage, error_json, instant_of};
use tokio::time::Instant;

fuzz_target!(|text: &str| {
    match ClientMessage::parse(text) {
        Ok(ClientMessage::ActiveSpeakers { at, speakers }) => {
            assert!(speakers.len() <= 64);
            for speaker in speakers {
                assert!(
                    (1..=256).contains(&speaker.identity.len())
                        && speaker.level.is_none_or(|level| (0.0..=1.0).contains(&level))
                );
                assert!(speaker.name.is_none_or(|name| name.len() <= 256));
            }
            let now = Instant::now();
            let then = instant_of(at, 1_800_000_000_000, now);
            assert!(then <= now && now.duration_since(then).as_millis() <= 5000);
        }
        Ok(ClientMessage::Auth { .. } | ClientMessage::Ping) => {}
        Err(reason) => {
            let answer: Value = serde_json::from_str(&error_json("bad_message", &reason)).expect("JSON");
            assert_eq!(answer["message"], *reason);
        }
    }
});
