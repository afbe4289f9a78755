//! The AMF0 guard: what it lets through, `rml_amf0` reads without a panic, without deep recursion, and as the same
//! number of values; and `rml_rtmp` makes a command of it.

#![no_main]

use libfuzzer_sys::fuzz_target;
use rml_amf0::Amf0Value;
use rml_rtmp::messages::MessagePayload;
use rml_rtmp::time::RtmpTimestamp;
use stenocast::rtmp::amf::{self, MAX_DEPTH};
use stenocast_fuzz::catch_stack_overflow;

/// Nesting of a value: 0 for a plain one.
fn depth(value: &Amf0Value) -> usize {
    let inner = |values: &mut dyn Iterator<Item = &Amf0Value>| values.map(depth).max().map_or(0, |deepest| deepest + 1);
    match value {
        Amf0Value::Object(properties) => inner(&mut properties.values()),
        Amf0Value::StrictArray(items) => inner(&mut items.iter()),
        _ => 0,
    }
}

fuzz_target!(init: catch_stack_overflow(), |data: &[u8]| {
    let Ok(count) = amf::check(data) else { return };
    let mut rest = data;
    // An error is fine: a string may not be UTF-8.
    if let Ok(values) = rml_amf0::deserialize(&mut rest) {
        assert_eq!(values.len(), count);
        assert!(values.iter().all(|value| depth(value) <= MAX_DEPTH));
    }
    if count >= 3 {
        let data = bytes::Bytes::copy_from_slice(data);
        let payload = MessagePayload { timestamp: RtmpTimestamp::new(0), type_id: 20, message_stream_id: 0, data };
        let _ = payload.to_rtmp_message();
    }
});
