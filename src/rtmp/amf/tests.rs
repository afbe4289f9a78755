use proptest::prelude::*;
use rml_amf0::Amf0Value;

use super::*;

/// `{"app": <value>}`, open at its end.
fn object_of(value: &[u8]) -> Vec<u8> {
    [&[3, 0, 3][..], b"app", value].concat()
}

fn text(text: &str) -> Vec<u8> {
    [&[2, 0, text.len() as u8][..], text.as_bytes()].concat()
}

const NUMBER: [u8; 9] = [0, 0x3F, 0xF0, 0, 0, 0, 0, 0, 0];
const END: [u8; 3] = [0, 0, 9];

#[test]
fn reads_what_a_real_command_holds() {
    let object = [("app".to_owned(), Amf0Value::Utf8String("live".to_owned()))].into_iter().collect();
    let values = vec![Amf0Value::Utf8String("connect".to_owned()), Amf0Value::Number(1.0), Amf0Value::Object(object)];
    let command = Command::read(&rml_amf0::serialize(&values).unwrap()).unwrap().unwrap();
    assert_eq!((command.name.as_str(), command.transaction, command.property("app")), ("connect", 1.0, Some("live")));
    assert_eq!(Command::read(&[]), Ok(None));
    assert_eq!(Command::read(&NUMBER), Ok(None));
}

/// What is neither text, number nor object is read over, wherever it stands, also where AMF0 has no more to say of it.
#[test]
fn values_of_every_type_are_read_over() {
    let odd: &[(&str, Vec<u8>)] = &[
        ("boolean", vec![1, 1]),
        ("undefined", vec![6]),
        ("reference", vec![7, 0, 1]),
        ("date", [&[11][..], &[0; 10]].concat()),
        ("unsupported", vec![13]),
        ("recordset", vec![14]),
        ("xml", [&[15, 0, 0, 0, 4][..], b"<a/>"].concat()),
        ("typed object", [&[16, 0, 1, b'C'][..], &[0, 1, b'a'], &NUMBER, &END].concat()),
        ("array", [&[10, 0, 0, 0, 2][..], &NUMBER, &[5]].concat()),
        ("ecma array", [&[8, 0, 0, 0, 7, 0, 1, b'a'][..], &NUMBER, &END].concat()),
        ("avm+ integer", vec![17, 4, 0x81, 0x00]),
        ("avm+ double", [&[17, 5][..], &[0; 8]].concat()),
        ("avm+ date", [&[17, 8, 1][..], &[0; 8]].concat()),
        ("avm+ array", [&[17, 9, 5, 3, b'k', 4, 1, 1, 2][..], &[3]].concat()),
        ("avm+ object", vec![17, 10, 0x1B, 1, 3, b's', 4, 7, 3, b'd', 6, 3, b'x', 1]),
        ("avm+ class told before", vec![17, 9, 5, 1, 10, 0x13, 1, 3, b's', 2, 10, 1, 3]),
        ("avm+ bytes", vec![17, 12, 5, 1, 2]),
    ];
    for (name, value) in odd {
        let inside = [&object_of(value)[..], &[0, 1, b'b'], &text("c"), &END].concat();
        let payload = [text("x"), value.clone(), inside, value.clone(), text("end")].concat();
        let values = read(&payload).unwrap();
        assert_eq!((values.len(), values.last()), (5, Some(&Value::Text("end".into()))), "{name}");
        let Value::Object(properties) = &values[2] else { panic!("{name}") };
        assert_eq!(properties[1], ("b".to_owned(), Value::Text("c".into())), "{name}");
    }
    let long = [&[12, 0, 1, 0x11, 0x70][..], &[b'x'; 70_000]].concat();
    assert_eq!(read(&long), Ok(vec![Value::Text("x".repeat(70_000))]));
}

#[test]
fn the_object_may_be_missing_and_a_transaction_too() {
    let read = |parts: &[Vec<u8>]| Command::read(&parts.concat()).unwrap().unwrap();
    let without_object = read(&[text("publish"), NUMBER.to_vec(), text("room"), text("live")]);
    assert_eq!(without_object.arguments, [Value::Text("room".into()), Value::Text("live".into())]);
    let without_id = read(&[text("publish"), vec![5], text("room")]);
    assert_eq!((without_id.transaction, without_id.arguments.len()), (0.0, 1));
    assert_eq!(read(&[text("createStream")]).arguments, []);
}

#[test]
fn an_ecma_array_ends_at_its_marker_or_else_by_its_count() {
    let property = [&[0, 1, b'a'][..], &text("v")].concat();
    for (count, properties, end) in [(1, 1, true), (0, 2, true), (9, 2, true), (2, 2, false), (0, 0, false)] {
        let end = if end { &END[..] } else { &[] };
        let payload = [&[8, 0, 0, 0, count][..], &property.repeat(properties), end, &text("next")].concat();
        let values = read(&payload).unwrap();
        assert!(matches!(&values[0], Value::Object(kept) if kept.len() == properties), "{count}: {values:?}");
        assert_eq!(values.get(1), Some(&Value::Text("next".into())), "{count}");
    }
}

#[test]
fn what_cannot_be_read_ends_the_values_only() {
    for (payload, kept) in [
        ([&text("a")[..], &[2, 0, 9, b'x']].concat(), 1),
        ([&text("a")[..], &[4]].concat(), 1),
        ([&text("a")[..], &[99, 1, 2]].concat(), 1),
        ([&text("a")[..], &[10, 255, 255, 255, 255]].concat(), 1),
        ([&text("a")[..], &object_of(&text("live"))].concat(), 2),
        (text("a").repeat(100), MAX_VALUES),
    ] {
        assert_eq!(read(&payload).unwrap().len(), kept, "{payload:?}");
    }
    let cut = Command::read(&[&text("connect")[..], &NUMBER, &object_of(&text("live"))].concat()).unwrap().unwrap();
    assert_eq!(cut.property("app"), Some("live"), "an object without its end");
    let wild = [&[2, 0, 2, 0xFF, b'a'][..]].concat();
    assert_eq!(read(&wild), Ok(vec![Value::Text("\u{FFFD}a".into())]));
}

#[test]
fn deep_nesting_is_refused_before_it_can_use_the_stack() {
    for part in [&[3, 0, 1, b'a'][..], &[10, 0, 0, 0, 1], &[8, 0, 0, 0, 1, 0, 1, b'a'], &[16, 0, 0, 0, 1, b'a']] {
        assert_eq!(read(&part.repeat(10_000)), Err(AmfError::TooDeep));
    }
    assert_eq!(read(&[&[17][..], &[9, 3, 1].repeat(10_000)].concat()), Err(AmfError::TooDeep));
    assert!(read(&[3, 0, 1, b'a'].repeat(MAX_DEPTH)).is_ok());
}

proptest! {
    #[test]
    fn random_bytes_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..400)) {
        let _ = Command::read(&bytes);
        let _ = Command::read(&[text("connect"), bytes].concat());
    }
}
