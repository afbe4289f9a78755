//! Speech whose text is in doubt, though the recogniser has acknowledged it.
//!
//! The invariant: a suspicion reaches back to where the first of its kind began, until it is cleared; what cannot be read is
//! heard again once and no more.

use std::ops::Range;
use std::time::Duration;

use tokio::time::Instant;

/// After a resume: the finals of `from..until` may have been lost with the old connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Unconfirmed {
    pub from: u64,
    pub until: u64,
    since: Instant,
}

impl Unconfirmed {
    /// The finals ought to have come by now.
    pub fn is_over(&self, now: Instant, patience: Duration) -> bool {
        now.saturating_duration_since(self.since) >= patience
    }
}

/// The suspicions that wait for text to clear them.
#[derive(Debug, Default)]
pub(super) struct Suspicions {
    unconfirmed: Option<Unconfirmed>,
    /// What an earlier recogniser session said about it could not be read.
    unread: Option<Range<u64>>,
}

impl Suspicions {
    /// A connection was resumed: audio between the last text (`text_end`) and `until` may stay without text.
    pub fn resumed(&mut self, now: Instant, text_end: u64, done: u64, until: u64) {
        let from = self.unconfirmed.map_or(text_end, |unconfirmed| unconfirmed.from);
        self.unconfirmed = Some(Unconfirmed { from: from.max(done), until, since: now });
    }

    pub fn unconfirmed(&self) -> Option<&Unconfirmed> {
        self.unconfirmed.as_ref()
    }

    /// All text in question has come, or another session hears it all again.
    pub fn confirm(&mut self) {
        self.unconfirmed = None;
    }

    /// What was said of `span` cannot be read. True when that is the second time: then nobody will say it.
    pub fn is_unread_again(&mut self, span: &Range<u64>) -> bool {
        let is_second = self.unread.take().is_some_and(|was| was.start < span.end && span.start < was.end);
        if !is_second {
            self.unread = Some(span.clone());
        }
        is_second
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn resumes_in_a_row_doubt_everything_since_the_first_and_begin_the_wait_anew() {
        let (mut suspicions, now) = (Suspicions::default(), Instant::now());
        let at = |s: u64| now + Duration::from_secs(s);
        suspicions.resumed(now, 100, 0, 500);
        suspicions.resumed(at(10), 300, 0, 900);
        let unconfirmed = *suspicions.unconfirmed().unwrap();
        assert_eq!((unconfirmed.from, unconfirmed.until), (100, 900));
        let patience = Duration::from_secs(20);
        assert!(!unconfirmed.is_over(at(29), patience) && unconfirmed.is_over(at(30), patience));
        suspicions.resumed(at(11), 300, 200, 900);
        assert_eq!(suspicions.unconfirmed().unwrap().from, 200, "of what is done with nothing is in doubt");
        suspicions.confirm();
        suspicions.resumed(at(12), 300, 200, 900);
        assert_eq!(suspicions.unconfirmed().unwrap().from, 300);
    }

    #[test]
    fn what_cannot_be_read_is_heard_again_once() {
        let mut suspicions = Suspicions::default();
        assert!(!suspicions.is_unread_again(&(0..100)));
        assert!(!suspicions.is_unread_again(&(100..200)), "it is other audio");
        assert!(suspicions.is_unread_again(&(150..300)));
        assert!(!suspicions.is_unread_again(&(150..300)), "that was lost, and is over");
    }
}
