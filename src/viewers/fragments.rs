//! Messages that come in several frames (RFC 6455, section 5.4), put together within a size limit.

use actix_http::ws::Item;
use bytes::{Bytes, BytesMut};
use bytestring::ByteString;

/// A message that comes in fragments. Control frames may come in between; they do not pass here.
#[derive(Debug)]
pub struct Fragments {
    max_bytes: usize,
    open: Option<Open>,
}

#[derive(Debug)]
struct Open {
    is_text: bool,
    bytes: BytesMut,
}

/// The message after a frame.
#[derive(Debug, PartialEq, Eq)]
pub enum Joined {
    /// It goes on.
    More,
    Text(ByteString),
    /// A whole binary message.
    Binary,
    TooBig,
    NotUtf8,
}

impl Fragments {
    /// `max_bytes` is the most of one message.
    pub fn new(max_bytes: usize) -> Self {
        Self { max_bytes, open: None }
    }

    /// True between the first and the last frame of a message.
    pub fn is_open(&self) -> bool {
        self.open.is_some()
    }

    /// Frames come in the order that the decoder guarantees: a first one, any number of others, a last one.
    pub fn add(&mut self, item: Item) -> Joined {
        let (part, is_last) = match item {
            Item::FirstText(part) => (self.begin(true, part), false),
            Item::FirstBinary(part) => (self.begin(false, part), false),
            Item::Continue(part) => (part, false),
            Item::Last(part) => (part, true),
        };
        let Some(mut open) = self.open.take() else {
            return Joined::More;
        };
        if open.bytes.len() + part.len() > self.max_bytes {
            return Joined::TooBig;
        }
        open.bytes.extend_from_slice(&part);
        match (is_last, open.is_text) {
            (false, _) => {
                self.open = Some(open);
                Joined::More
            }
            (true, true) => ByteString::try_from(open.bytes.freeze()).map_or(Joined::NotUtf8, Joined::Text),
            (true, false) => Joined::Binary,
        }
    }

    fn begin(&mut self, is_text: bool, part: Bytes) -> Bytes {
        self.open = Some(Open { is_text, bytes: BytesMut::new() });
        part
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn joined(max_bytes: usize, items: &[(char, &[u8])]) -> Vec<Joined> {
        let mut fragments = Fragments::new(max_bytes);
        let item = |(kind, part): &(char, &[u8])| {
            let part = Bytes::copy_from_slice(part);
            match kind {
                't' => Item::FirstText(part),
                'b' => Item::FirstBinary(part),
                'c' => Item::Continue(part),
                _ => Item::Last(part),
            }
        };
        items.iter().map(|one| fragments.add(item(one))).collect()
    }

    #[test]
    fn parts_become_one_message() {
        let text = Joined::Text("h\u{e9}y".into());
        // A character may be torn apart.
        assert_eq!(joined(4, &[('t', b"h\xc3"), ('c', b""), ('c', b"\xa9"), ('l', b"y")])[3], text);
        assert_eq!(joined(4, &[('t', b""), ('l', b"")])[1], Joined::Text("".into()));
        assert_eq!(joined(4, &[('b', b"\xff"), ('l', b"\xff")])[1], Joined::Binary);
        assert_eq!(joined(4, &[('t', b"h\xc3"), ('l', b"y")])[1], Joined::NotUtf8);
        assert_eq!(joined(4, &[('t', b"abc"), ('c', b"de"), ('l', b"")])[1], Joined::TooBig);
        assert_eq!(joined(4, &[('t', b"abcde")])[0], Joined::TooBig);
    }
}
