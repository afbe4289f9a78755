//! Announcements to the session about its audio: times in which nothing came, or nothing could be decoded.
//!
//! The invariant: no time is announced twice. Whatever is announced here or elsewhere raises one mark, and a pause or a
//! return begins at that mark at the earliest.

use std::collections::VecDeque;

use super::{LEAST_PAUSE_MS, Lost, Pause, Return};

/// About the length of an AAC frame of unknown configuration.
pub(super) const ORPHAN_MS: u64 = 23;
/// Frames without a configuration for so long are told at once: their publisher does not know.
const FIRST_ORPHANS_MS: u64 = 1500;
/// A long loss is announced in pieces.
const ORPHANS_PIECE_MS: u64 = 30_000;

/// Times to be announced, each kind in its order.
#[derive(Debug, Default)]
pub(super) struct Announcements {
    /// Frames that come without a configuration.
    orphans: Option<Lost>,
    losses: VecDeque<Lost>,
    pauses: VecDeque<Pause>,
    returns: VecDeque<Return>,
    /// Time up to which audio was announced as lost.
    until_ms: u64,
}

impl Announcements {
    /// Audio up to this time is announced.
    pub fn raise(&mut self, ms: u64) {
        self.until_ms = self.until_ms.max(ms);
    }

    /// A frame without a configuration, where session time is at `end_ms`. True when so many have come that its publisher
    /// has to be told; `is_known`: it was.
    pub fn orphan(&mut self, arrived_ms: u64, end_ms: u64, is_known: bool) -> bool {
        let start_ms = arrived_ms.max(end_ms);
        let orphans = self.orphans.get_or_insert(Lost { start_ms, end_ms: start_ms, tags: 0 });
        orphans.end_ms = orphans.end_ms.max(arrived_ms + ORPHAN_MS);
        orphans.tags += 1;
        let piece_ms = if is_known { ORPHANS_PIECE_MS } else { FIRST_ORPHANS_MS };
        let is_piece = orphans.end_ms >= orphans.start_ms + piece_ms;
        if is_piece {
            self.end_orphans();
        }
        is_piece
    }

    /// No more of them come for now.
    pub fn end_orphans(&mut self) {
        if let Some(lost) = self.orphans.take() {
            self.raise(lost.end_ms);
            self.losses.push_back(lost);
        }
    }

    /// Its publisher stayed, and session time goes from `end_ms` on to `at_ms`.
    pub fn pause(&mut self, end_ms: u64, at_ms: u64) {
        let start_ms = end_ms.max(self.until_ms);
        if at_ms >= start_ms + LEAST_PAUSE_MS {
            self.pauses.push_back(Pause { start_ms, end_ms: at_ms });
        }
    }

    /// A publisher goes on where another was lost.
    pub fn publisher_returned(&mut self, missing: Option<Pause>) {
        self.returns.push_back(Return { missing });
    }

    pub fn pop_loss(&mut self) -> Option<Lost> {
        self.losses.pop_front()
    }

    pub fn pop_pause(&mut self) -> Option<Pause> {
        self.pauses.pop_front()
    }

    /// The next return, without what was announced before.
    pub fn pop_return(&mut self) -> Option<Return> {
        let missing = self.returns.pop_front()?.missing;
        let unannounced = missing.map(|missing| Pause { start_ms: missing.start_ms.max(self.until_ms), ..missing });
        Some(Return { missing: unannounced.filter(|missing| missing.start_ms < missing.end_ms) })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pause_begins_where_the_last_announcement_ended() {
        let mut announcements = Announcements::default();
        announcements.raise(5000);
        announcements.pause(3000, 5500);
        assert_eq!(announcements.pop_pause(), None, "half a second is left of it");
        announcements.pause(3000, 7000);
        assert_eq!(announcements.pop_pause(), Some(Pause { start_ms: 5000, end_ms: 7000 }));
    }

    #[test]
    fn a_return_says_only_what_nobody_has_said() {
        let mut announcements = Announcements::default();
        let missing = |start_ms, end_ms| Some(Pause { start_ms, end_ms });
        announcements.publisher_returned(missing(1000, 4000));
        announcements.publisher_returned(missing(1000, 2000));
        announcements.raise(2500);
        assert_eq!(announcements.pop_return(), Some(Return { missing: missing(2500, 4000) }));
        assert_eq!(announcements.pop_return(), Some(Return { missing: None }));
        assert_eq!(announcements.pop_return(), None);
    }

    #[test]
    fn a_long_row_of_orphans_is_told_early_and_then_in_pieces() {
        let mut announcements = Announcements::default();
        let told = (0..200).filter(|n| announcements.orphan(n * 23, 0, false)).count();
        assert_eq!(told, 3, "4.6 s in pieces of 1.5 s");
        let losses: Vec<_> = std::iter::from_fn(|| announcements.pop_loss()).collect();
        assert!(losses.windows(2).all(|pair| pair[0].end_ms <= pair[1].start_ms), "{losses:?}");
    }
}
