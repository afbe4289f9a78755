//! Audio that a publisher that was cut off and comes back sends a second time: it does not know what has arrived.
//!
//! A tag is a double when an earlier one of the same stream had the same timestamp and the same bytes. Nothing else is:
//! audio that may not have been heard is heard.

use std::collections::VecDeque;
use std::hash::{DefaultHasher, Hash, Hasher};

/// Tags remembered: 24 s of AAC at 44.1 kHz.
const MAX_TAGS: usize = 1024;

#[derive(Debug, Default)]
pub(super) struct Overlap {
    sent: VecDeque<Sent>,
    /// Doubles may come up to this timestamp.
    until_ms: Option<u64>,
}

#[derive(Debug, Clone, Copy)]
struct Sent {
    timestamp_ms: u64,
    hash: u64,
    /// Its double has come.
    is_doubled: bool,
}

impl Overlap {
    /// A tag that is heard.
    pub fn note(&mut self, timestamp_ms: u64, body: &[u8]) {
        self.sent.push_back(Sent { timestamp_ms, hash: hash(body), is_doubled: false });
        if self.sent.len() > MAX_TAGS {
            self.sent.pop_front();
        }
    }

    /// The publisher was cut off and is back.
    pub fn begin(&mut self) {
        self.until_ms = self.sent.iter().map(|sent| sent.timestamp_ms).max();
        for sent in &mut self.sent {
            sent.is_doubled = false;
        }
    }

    /// Another stream.
    pub fn clear(&mut self) {
        *self = Self::default();
    }

    /// Was it heard before?
    pub fn is_double(&mut self, timestamp_ms: u64, body: &[u8]) -> bool {
        if self.until_ms.is_none_or(|until_ms| timestamp_ms > until_ms) {
            self.until_ms = None;
            return false;
        }
        let hash = hash(body);
        let is_it = |sent: &&mut Sent| !sent.is_doubled && (sent.timestamp_ms, sent.hash) == (timestamp_ms, hash);
        let first = self.sent.iter_mut().find(is_it);
        first.map(|sent| sent.is_doubled = true).is_some()
    }
}

fn hash(body: &[u8]) -> u64 {
    let mut hasher = DefaultHasher::new();
    body.hash(&mut hasher);
    hasher.finish()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_was_sent_before_a_return_is_a_double_and_once_each() {
        let mut overlap = Overlap::default();
        for n in 0..4u8 {
            overlap.note(u64::from(n / 2) * 20, &[n]);
        }
        assert!(!overlap.is_double(20, &[2]), "nobody came back");
        overlap.begin();
        assert!(!overlap.is_double(0, &[9]), "other bytes");
        assert!(!overlap.is_double(0, &[2]), "another time");
        assert!(overlap.is_double(20, &[2]));
        assert!(!overlap.is_double(20, &[2]), "sent twice now");
        assert!(overlap.is_double(20, &[3]));
        assert!(!overlap.is_double(40, &[4]));
        assert!(!overlap.is_double(20, &[3]), "over");
        overlap.begin();
        assert!(overlap.is_double(20, &[2]), "cut off a second time");
    }
}
