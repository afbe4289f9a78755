//! Names on the server: the streams, the subjects, and how a room's name is written in them.
//!
//! A slug has `.`, which parts the tokens of a subject, and `~`, which no key of a bucket may have. Both are written as
//! `=` and two hexadecimal digits; `=` is in no slug.

use std::fmt::Write;

use crate::bus::log_server::Topic;
use crate::transcript::Slug;

/// The stream of all rooms' logs.
pub const LOG: &str = "SC_LOG";
pub const LOG_SUBJECTS: &str = "sc.log.*";
/// The stream of the bucket `SC_ROOM`, which says who has which room.
pub const ROOMS: &str = "KV_SC_ROOM";
pub const ROOMS_SUBJECTS: &str = "$KV.SC_ROOM.>";
/// The durable consumer of those who write the database.
pub const DATABASE: &str = "db";
pub const FENCE: &str = "Sc-Fence";
pub const KIND: &str = "Sc-Kind";
/// The version of what nodes write into the log.
pub const PROTO: &str = "Sc-Proto";

const LOG_PREFIX: &str = "sc.log.";
const ROOMS_PREFIX: &str = "$KV.SC_ROOM.";

pub fn log_subject(room: &Slug) -> String {
    format!("{LOG_PREFIX}{}", token(room.as_str()))
}

pub fn room_of_log(subject: &str) -> Option<Slug> {
    room_of(subject.strip_prefix(LOG_PREFIX)?)
}

pub fn holder_subject(room: &Slug) -> String {
    format!("{ROOMS_PREFIX}{}", token(room.as_str()))
}

pub fn room_of_holder(subject: &str) -> Option<Slug> {
    room_of(subject.strip_prefix(ROOMS_PREFIX)?)
}

pub fn node_subject(node: &str) -> String {
    format!("sc.node.{}", token(node))
}

pub fn topic_subject(topic: &Topic) -> String {
    match topic {
        Topic::Interims(room) => format!("sc.int.{}", token(room.as_str())),
        Topic::Reports => "sc.report".to_owned(),
    }
}

fn room_of(token: &str) -> Option<Slug> {
    Slug::parse(&unescape(token)?).ok()
}

/// Any text as one token of a subject.
fn token(text: &str) -> String {
    escape(text, |byte| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_'))
}

/// Any text as the value of a header.
pub fn header(text: &str) -> String {
    escape(text, |byte| byte.is_ascii_graphic() && byte != b'=')
}

fn escape(text: &str, is_plain: impl Fn(u8) -> bool) -> String {
    let mut escaped = String::with_capacity(text.len());
    for byte in text.bytes() {
        if is_plain(byte) {
            escaped.push(byte.into());
        } else {
            write!(escaped, "={byte:02X}").expect("writing to memory succeeds");
        }
    }
    escaped
}

/// The text before it was escaped; None when nobody escapes so.
pub fn unescape(text: &str) -> Option<String> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.bytes();
    while let Some(byte) = rest.next() {
        let byte = match byte {
            b'=' => {
                let (high, low) = (char::from(rest.next()?).to_digit(16)?, char::from(rest.next()?).to_digit(16)?);
                (high * 16 + low) as u8
            }
            byte => byte,
        };
        bytes.push(byte);
    }
    String::from_utf8(bytes).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_slug_is_one_token_and_comes_back() {
        for slug in ["demo", "a.b", "a..b", "...", "~", "A.b_c~d-9"] {
            let slug = Slug::parse(slug).unwrap();
            let subject = log_subject(&slug);
            assert_eq!(subject.matches('.').count(), 2, "{subject}");
            assert_eq!(room_of_log(&subject), Some(slug.clone()));
            assert_eq!(room_of_holder(&holder_subject(&slug)), Some(slug));
        }
        assert_eq!(log_subject(&Slug::parse("a.b~c").unwrap()), "sc.log.a=2Eb=7Ec");
        for odd in ["sc.log.", "sc.log.a b", "sc.log.a=2", "sc.log.a=XY", "sc.int.a", "sc.log.=FF"] {
            assert_eq!(room_of_log(odd), None, "{odd}");
        }
    }

    #[test]
    fn a_header_is_visible_ascii_and_comes_back() {
        for text in ["node-1:17", "a=b", "two words\r\n\u{fc}", ""] {
            let value = header(text);
            assert!(value.bytes().all(|b| b.is_ascii_graphic()), "{value}");
            assert_eq!(unescape(&value).as_deref(), Some(text));
        }
        assert_eq!(node_subject("host.example org"), "sc.node.host=2Eexample=20org");
    }
}
