//! Reads JSON that is not quite what the schema says.
//!
//! A field may be missing, null or of another type, a number may be
//! written as text, and some writers make text that is no JSON at all. Whoever reads says what a field falls back to;
//! here each value is taken for what it can only mean, and each oddity is noted by its field's name.

use std::borrow::Cow;

use serde_json::Value;

/// Longest id that is taken as it is, in characters.
const MAX_ID_CHARS: usize = 128;
/// Longest language code, in bytes.
const MAX_LANGUAGE_BYTES: usize = 16;

/// The fields of one message that were not as the schema has them, each once.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Odd(Vec<&'static str>);

impl Odd {
    pub fn note(&mut self, field: &'static str) {
        if !self.0.contains(&field) {
            self.0.push(field);
        }
    }

    pub fn fields(&self) -> &[&'static str] {
        &self.0
    }
}

/// A message as JSON. What is no JSON only for a bare NaN, a number out of range, half a surrogate pair, a raw control
/// character or bytes that are no UTF-8 is mended first (and noted).
pub fn parse(bytes: &[u8], odd: &mut Odd) -> Result<Value, serde_json::Error> {
    let bytes = bytes.strip_prefix(b"\xEF\xBB\xBF").unwrap_or(bytes);
    serde_json::from_slice(bytes).or_else(|error| {
        let value = serde_json::from_str(&mend(&String::from_utf8_lossy(bytes))).map_err(|_| error)?;
        odd.note("json");
        Ok(value)
    })
}

/// See [`parse`].
fn mend(text: &str) -> String {
    let mut mended = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(c) = rest.chars().next() {
        if c == '"' {
            rest = mend_string(rest, &mut mended);
        } else if c.is_ascii_alphanumeric() || matches!(c, '-' | '+' | '.') {
            let length = rest.find(|c: char| !c.is_ascii_alphanumeric() && !matches!(c, '-' | '+' | '.' | '_'));
            let (word, after) = rest.split_at(length.unwrap_or(rest.len()));
            let is_json = serde_json::from_str::<Value>(word).is_ok();
            mended.push_str(if is_json { word } else { "null" });
            rest = after;
        } else {
            mended.push(if c.is_control() { ' ' } else { c });
            rest = &rest[c.len_utf8()..];
        }
    }
    mended
}

/// Mends the string that `text` begins with; answers what follows it.
fn mend_string<'a>(text: &'a str, mended: &mut String) -> &'a str {
    mended.push('"');
    let mut rest = &text[1..];
    while let Some(c) = rest.chars().next() {
        let taken = match c {
            '"' => {
                mended.push('"');
                return &rest[1..];
            }
            '\\' if rest[1..].starts_with('u') => mend_escape(rest, mended),
            '\\' => {
                let next = rest[1..].chars().next();
                mended.push('\\');
                mended.extend(next);
                1 + next.map_or(0, char::len_utf8)
            }
            _ => {
                mended.push(if c.is_control() { ' ' } else { c });
                c.len_utf8()
            }
        };
        rest = &rest[taken..];
    }
    rest
}

/// `\uXXXX`, alone or in a surrogate pair; half a pair becomes U+FFFD. Answers its length.
fn mend_escape(text: &str, mended: &mut String) -> usize {
    let unit = |at: usize| {
        let digits = text.get(at..at + 6)?.strip_prefix("\\u")?;
        u16::from_str_radix(digits, 16).ok()
    };
    let is_pair =
        |high: u16| (0xD800..0xDC00).contains(&high) && unit(6).is_some_and(|low| (0xDC00..0xE000).contains(&low));
    let length = match unit(0) {
        Some(first) if is_pair(first) => 12,
        Some(first) if !(0xD800..0xE000).contains(&first) => 6,
        found => {
            mended.push('\u{FFFD}');
            return if found.is_some() { 6 } else { 2 };
        }
    };
    mended.push_str(&text[..length]);
    length
}

/// The field `name` of an object; None when it is missing or null, and for what is no object.
pub fn field<'a>(object: &'a Value, name: &str) -> Option<&'a Value> {
    object.get(name).filter(|value| !value.is_null())
}

/// The object in the field `name`, or `object` itself where there is none: some writers leave a level out.
pub fn part<'a>(object: &'a Value, name: &str) -> &'a Value {
    field(object, name).filter(|value| value.is_object()).unwrap_or(object)
}

/// A finite number, also when it is written as text.
pub fn number(value: &Value) -> Option<f64> {
    let number = match value {
        Value::Number(number) => number.as_f64(),
        Value::String(text) => text.trim().parse().ok(),
        _ => None,
    };
    number.filter(|number| number.is_finite())
}

/// A text; a number is one, too.
pub fn text(value: &Value) -> Option<Cow<'_, str>> {
    match value {
        Value::String(text) => Some(Cow::Borrowed(text)),
        Value::Number(number) => Some(Cow::Owned(number.to_string())),
        _ => None,
    }
}

/// True or false, also as 0, 1, "true", "false".
pub fn flag(value: &Value) -> Option<bool> {
    match value {
        Value::Bool(flag) => Some(*flag),
        Value::Number(number) => {
            [(0.0, false), (1.0, true)].into_iter().find(|(n, _)| number.as_f64() == Some(*n)).map(|f| f.1)
        }
        Value::String(text) => match text.trim().to_ascii_lowercase().as_str() {
            "true" | "1" => Some(true),
            "false" | "0" => Some(false),
            _ => None,
        },
        _ => None,
    }
}

/// A number of 0..=1.
pub fn fraction(value: &Value) -> Option<f64> {
    number(value).filter(|number| (0.0..=1.0).contains(number))
}

/// An id: a text or number without control characters, of some length.
pub fn id(value: &Value) -> Option<String> {
    let id: String = text(value)?.chars().filter(|c| !c.is_control()).take(MAX_ID_CHARS).collect();
    Some(id.trim().to_owned()).filter(|id| !id.is_empty())
}

/// A language code: letters, digits, `-` and `_`.
pub fn language(value: &Value) -> Option<String> {
    let code = value.as_str()?.trim();
    let is_code = code.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '-' | '_'));
    (is_code && (1..=MAX_LANGUAGE_BYTES).contains(&code.len())).then(|| code.to_owned())
}

/// An optional field: None when it is missing or null; noted when it is there and is nothing that `read` takes.
pub fn optional<'a, T>(
    object: &'a Value,
    name: &'static str,
    odd: &mut Odd,
    read: impl Fn(&'a Value) -> Option<T>,
) -> Option<T> {
    let value = field(object, name)?;
    let read = read(value);
    if read.is_none() {
        odd.note(name);
    }
    read
}

/// A field that the schema requires: noted when it is missing, too.
pub fn required<'a, T>(
    object: &'a Value,
    name: &'static str,
    odd: &mut Odd,
    read: impl Fn(&'a Value) -> Option<T>,
) -> Option<T> {
    let read = field(object, name).and_then(read);
    if read.is_none() {
        odd.note(name);
    }
    read
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn what_is_nearly_json_is_read() {
        for (text, expected) in [
            (
                "{\"a\":NaN,\"b\":-Infinity,\"c\":1e999,\"d\":\"NaN 1e999\"}",
                json!({"a":null,"b":null,"c":null,"d":"NaN 1e999"}),
            ),
            ("\u{FEFF}{\"a\":1}", json!({"a":1})),
            (r#"{"a":"x\ud83d y","b":"\ud83d\ude00","c":"\u00e9\\u"}"#, json!({"a":"x\u{FFFD} y","b":"😀","c":"é\\u"})),
            ("{\"a\":\"one\ntwo\u{7}\"}", json!({"a":"one two "})),
            (r#"{"a":[true,None,False,-1.5e3]}"#, json!({"a":[true,null,null,-1500.0]})),
        ] {
            assert_eq!(parse(text.as_bytes(), &mut Odd::default()).unwrap(), expected, "{text}");
        }
        let mut odd = Odd::default();
        assert_eq!(parse(b"{\"a\":\"\xff\"}", &mut odd).unwrap(), json!({"a":"\u{FFFD}"}));
        assert_eq!(odd.fields(), ["json"]);
        for text in ["", "{", "{\"a\":\"\\ud83", "\"", "[1,", "\\"] {
            assert!(parse(text.as_bytes(), &mut Odd::default()).is_err(), "{text}");
        }
    }

    #[test]
    fn a_value_is_what_it_can_only_mean() {
        assert_eq!(
            [json!(1), json!("1.5 "), json!("x"), json!(null), json!([1])].map(|v| number(&v)),
            [Some(1.0), Some(1.5), None, None, None]
        );
        assert_eq!([json!("NaN"), json!("inf"), json!(true)].map(|v| number(&v)), [None; 3]);
        assert_eq!(
            [json!(1), json!("False"), json!(2), json!("yes")].map(|v| flag(&v)),
            [Some(true), Some(false), None, None]
        );
        assert_eq!(
            [json!(7), json!(" a\u{0}b "), json!(""), json!({})].map(|v| id(&v)),
            [Some("7".into()), Some("ab".into()), None, None]
        );
        assert_eq!(
            ["en", "zh-Hant", "", "e n", "a-language-of-length"].map(|v| language(&json!(v)).is_some()),
            [true, true, false, false, false]
        );
        let mut odd = Odd::default();
        assert_eq!(optional(&json!({"a": null}), "a", &mut odd, number), None);
        assert_eq!(odd.fields(), [] as [&str; 0]);
        assert_eq!(optional(&json!({"a": []}), "a", &mut odd, number), None);
        assert_eq!(required(&json!({"a": null}), "b", &mut odd, number), None);
        assert_eq!(odd.fields(), ["a", "b"]);
    }
}
