//! The body of POST broadcast: any bytes are refused with 400 or 422 and a short reason, or taken; and what was taken
//! is an entry that our own reader and this very check take again, unchanged.

#![no_main]

use libfuzzer_sys::fuzz_target;
use serde_json::{Value, json};
use stenocast::http::broadcast_body::{MAX_ENTRIES, parse};
use stenocast::transcript::Entry;
use stenocast::transcript::entry::MAX_TEXT_BYTES;
use stenocast_fuzz::catch_stack_overflow;

const MAX_REASON_BYTES: usize = 1024;

/// Through JSON, as floats come back from it: that may change their last digit once.
fn settled(entry: &Entry) -> Entry {
    serde_json::from_str(&entry.to_json()).expect("our own entry")
}

fuzz_target!(init: catch_stack_overflow(), |data: &[u8]| {
    let post = match parse(data) {
        Ok(post) => post,
        Err(error) => {
            assert!(matches!(error.status.as_u16(), 400 | 422), "{error:?}");
            assert!((1..=MAX_REASON_BYTES).contains(&error.message.len()), "{} bytes", error.message.len());
            return;
        }
    };
    // A session's row may come alone.
    let least = usize::from(post.from_origin.record.is_none());
    assert!((least..=MAX_ENTRIES).contains(&post.entries.len()));
    if post.entries.is_empty() {
        return;
    }
    let entries: Vec<Entry> = post.entries.iter().map(|e| settled(&e.entry)).collect();
    for (entry, taken) in entries.iter().zip(&post.entries) {
        assert_eq!((entry.id(), entry.seq()), (taken.entry.id(), taken.entry.seq()));
        assert!(*entry.session() == post.slug && !entry.id().is_empty());
        assert_eq!(taken.numbered, taken.entry.seq().is_some() || !taken.entry.epoch().is_nil() || taken.numbered);
        if let Entry::Transcript(t) = entry {
            assert!(t.start_ms <= t.end_ms && t.text.len() <= MAX_TEXT_BYTES);
        }
    }
    if post.entries.iter().all(|e| e.numbered) {
        let values: Vec<Value> = entries.iter().map(|e| serde_json::to_value(e).expect("an entry")).collect();
        let again = json!({"session": post.slug, "transcripts": values}).to_string();
        let again = parse(again.as_bytes()).expect("our own post");
        let again: Vec<Entry> = again.entries.iter().map(|e| settled(&e.entry)).collect();
        let once_more: Vec<Entry> = entries.iter().map(settled).collect();
        assert_eq!(again, once_more);
    }
});
