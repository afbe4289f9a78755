//! Commands of strangers: any bytes are read without a panic, without deep recursion and without keeping more than they
//! hold; and what `rml_amf0` writes is read as it was.
//!
//! Input: a payload; the same bytes choose the values that are written.

#![no_main]

use std::collections::HashMap;

use libfuzzer_sys::fuzz_target;
use rml_amf0::Amf0Value;
use stenocast::rtmp::amf::{self, Command, Value};
use stenocast_fuzz::{Bytes, catch_stack_overflow};

const MAX_VALUES: usize = 16;
const MADE_DEPTH: usize = 3;

/// A value that the bytes choose.
fn make(input: &mut Bytes, depth: usize) -> Amf0Value {
    let short = |input: &mut Bytes| {
        let length = usize::from(input.u8() % 8);
        String::from_utf8_lossy(input.take(length)).into_owned()
    };
    match input.u8() % if depth < MADE_DEPTH { 7 } else { 5 } {
        0 => Amf0Value::Number(f64::from(input.u32())),
        1 => Amf0Value::Boolean(input.u8() & 1 == 1),
        2 => Amf0Value::Utf8String(short(input)),
        3 => Amf0Value::Null,
        4 => Amf0Value::Undefined,
        5 => {
            let count = input.u8() % 4;
            Amf0Value::StrictArray((0..count).map(|_| make(input, depth + 1)).collect())
        }
        _ => {
            let count = input.u8() % 4;
            let named = (0..count).map(|_| (format!("n{}", short(input)), make(input, depth + 1)));
            Amf0Value::Object(named.collect())
        }
    }
}

fn is_read_as(made: &Amf0Value, read: &Value) -> bool {
    match (made, read) {
        (Amf0Value::Number(made), Value::Number(read)) => made == read,
        (Amf0Value::Utf8String(made), Value::Text(read)) => made == read,
        (Amf0Value::Null | Amf0Value::Undefined, Value::Null) => true,
        (Amf0Value::Boolean(_) | Amf0Value::StrictArray(_), Value::Other) => true,
        (Amf0Value::Object(made), Value::Object(read)) => {
            let read: HashMap<_, _> = read.iter().cloned().collect();
            made.len() == read.len()
                && made.iter().all(|(name, made)| match (made, &read[name]) {
                    (Amf0Value::Object(_), read) => matches!(read, Value::Object(_)),
                    (made, read) => is_read_as(made, read),
                })
        }
        _ => false,
    }
}

fuzz_target!(init: catch_stack_overflow(), |data: &[u8]| {
    if let Ok(values) = amf::read(data) {
        assert!(values.len() <= MAX_VALUES);
        let text_bytes = |value: &Value| if let Value::Text(text) = value { text.len() } else { 0 };
        let kept: usize = values.iter().map(text_bytes).sum();
        // Each byte that is no UTF-8 becomes three.
        assert!(kept <= 3 * data.len());
    }
    let _ = Command::read(data);

    let mut input = Bytes(data);
    let made: Vec<_> = (0..1 + input.u8() % 8).map(|_| make(&mut input, 0)).collect();
    let written = rml_amf0::serialize(&made).expect("short values");
    let read = amf::read(&written).expect("not deep");
    assert!(made.len() == read.len() && made.iter().zip(&read).all(|(made, read)| is_read_as(made, read)));
});
