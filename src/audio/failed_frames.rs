//! Announcements of frames that gave no sound.
//!
//! Every such frame is counted as lost at once. Told are *holes*: frames that fail less than a second apart are one
//! hole, from the first to the end of the last, since nothing between them can be trusted. A hole is told when a second
//! of sound has followed it, and in pieces of 30 s while it lasts. One that is shorter than 100 ms tears no word: the
//! first is told like any other, those of the next 30 s are told together as one.

use std::collections::VecDeque;

use super::state::Lost;

/// Sound that ends a hole.
const CALM_MS: u64 = 1000;
/// A hole that loses less is short.
const SHORT_MS: u64 = 100;
/// Short holes are told at most so often, and long ones in pieces of this.
const PIECE_MS: u64 = 30_000;
/// A hole that has lost so much, and most of its time, is trouble that a publisher has to know of.
const TROUBLE_MS: u64 = 1500;

/// The frames without sound that are to be announced.
#[derive(Debug, Default)]
pub struct Holes {
    open: Option<Hole>,
    /// Short ones that wait to be told together.
    short: Option<Hole>,
    short_told_ms: Option<u64>,
    ready: VecDeque<Lost>,
}

/// Frames without sound, on the session clock.
#[derive(Debug, Clone, Copy)]
struct Hole {
    start_ms: u64,
    end_ms: u64,
    lost_ms: u64,
    tags: usize,
    /// A part of it is told.
    is_announced: bool,
}

impl Holes {
    /// So many frames gave no sound, from `start_ms` to `end_ms`. `is_first`: nothing of this publisher was heard yet,
    /// so there may be nothing to wait for.
    pub fn fail(&mut self, start_ms: u64, end_ms: u64, tags: usize, is_first: bool) {
        self.sound(start_ms);
        let lost_ms = end_ms.saturating_sub(start_ms);
        let hole =
            self.open.get_or_insert(Hole { start_ms, end_ms: start_ms, lost_ms: 0, tags: 0, is_announced: false });
        // What comes faster than in real time steps back in session time (audio::clock).
        hole.end_ms = hole.end_ms.max(end_ms);
        if !hole.is_announced {
            hole.start_ms = hole.start_ms.min(start_ms);
        }
        (hole.lost_ms, hole.tags) = (hole.lost_ms + lost_ms, hole.tags + tags);
        let is_due = is_first && !hole.is_announced && hole.is_trouble();
        if is_due || hole.end_ms >= hole.start_ms + PIECE_MS {
            self.ready.push_back(hole.lost());
            *hole = Hole { start_ms: hole.end_ms, end_ms: hole.end_ms, lost_ms: 0, tags: 0, is_announced: true };
        }
    }

    /// There is sound up to here.
    pub fn sound(&mut self, until_ms: u64) {
        if self.open.is_some_and(|hole| until_ms >= hole.end_ms + CALM_MS) {
            self.close();
        }
        if self.short.is_some_and(|hole| until_ms >= hole.start_ms + PIECE_MS) {
            self.tell_short();
        }
    }

    /// No more comes for now: everything is told.
    pub fn end(&mut self) {
        self.close();
        self.tell_short();
    }

    /// The next one to tell.
    pub fn pop(&mut self) -> Option<Lost> {
        self.ready.pop_front()
    }

    /// Nothing can be decoded at present, and has not been for a while.
    pub fn is_trouble(&self) -> bool {
        self.open.is_some_and(|hole| hole.is_announced || hole.is_trouble())
    }

    fn close(&mut self) {
        let Some(hole) = self.open.take().filter(|hole| hole.lost_ms > 0) else { return };
        let is_quiet = self.short_told_ms.is_some_and(|announced_ms| hole.start_ms < announced_ms + PIECE_MS);
        if hole.lost_ms >= SHORT_MS || hole.is_announced || !is_quiet {
            if hole.lost_ms < SHORT_MS {
                self.short_told_ms = Some(hole.end_ms);
            }
            // In order.
            self.tell_short();
            self.ready.push_back(hole.lost());
        } else {
            let short = self.short.get_or_insert(hole);
            if short.start_ms != hole.start_ms {
                (short.end_ms, short.tags) = (short.end_ms.max(hole.end_ms), short.tags + hole.tags);
            }
        }
    }

    fn tell_short(&mut self) {
        if let Some(hole) = self.short.take() {
            self.short_told_ms = Some(hole.end_ms);
            self.ready.push_back(hole.lost());
        }
    }
}

impl Hole {
    fn is_trouble(&self) -> bool {
        self.lost_ms >= TROUBLE_MS && self.lost_ms * 2 >= self.end_ms - self.start_ms
    }

    fn lost(&self) -> Lost {
        Lost { start_ms: self.start_ms, end_ms: self.end_ms, tags: self.tags }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const FRAME_MS: u64 = 20;

    /// Frames of 20 ms, of which some fail; what is told, and when.
    fn told(frames: u64, fails: impl Fn(u64) -> bool, is_first: bool) -> Vec<(u64, Lost)> {
        let mut holes = Holes::default();
        let mut told = Vec::new();
        for n in 0..frames {
            let (start_ms, end_ms) = (n * FRAME_MS, (n + 1) * FRAME_MS);
            match fails(n) {
                true => holes.fail(start_ms, end_ms, 1, is_first),
                false => holes.sound(end_ms),
            }
            told.extend(std::iter::from_fn(|| holes.pop()).map(|lost| (end_ms, lost)));
        }
        holes.end();
        told.extend(std::iter::from_fn(|| holes.pop()).map(|lost| (u64::MAX, lost)));
        told
    }

    fn lost(start_ms: u64, end_ms: u64, tags: usize) -> Lost {
        Lost { start_ms, end_ms, tags }
    }

    #[test]
    fn a_hole_is_announced_once_with_its_place_and_length() {
        assert_eq!(told(1000, |n| (100..300).contains(&n), false), [(7000, lost(2000, 6000, 200))]);
        assert_eq!(told(300, |n| n >= 100, false), [(u64::MAX, lost(2000, 6000, 200))], "to the end");
        let every_other = told(1000, |n| (100..300).contains(&n) && n % 2 == 0, false);
        assert_eq!(every_other, [(6980, lost(2000, 5980, 100))], "there is nothing to hear between them");
    }

    #[test]
    fn a_hole_that_lasts_is_announced_in_pieces() {
        let pieces = told(4000, |n| n < 3500, false);
        let wanted = [(30_000, 0, 30_000), (60_000, 30_000, 60_000), (71_000, 60_000, 70_000)];
        assert_eq!(pieces, wanted.map(|(at, start, end)| (at, lost(start, end, (end - start) as usize / 20))));
    }

    #[test]
    fn a_publisher_that_was_never_heard_is_announced_of_soon() {
        assert_eq!(told(1000, |_| true, true)[0], (1500, lost(0, 1500, 75)));
    }

    /// One frame of 75, once in 1.5 s.
    #[test]
    fn single_frames_are_told_now_and_then_and_each_is_in_something_told() {
        let all = told(6000, |n| n % 75 == 10, false);
        assert_eq!(all[0], (1220, lost(200, 220, 1)), "the first at once");
        assert!(all.len() <= 6, "{all:?}");
        assert_eq!(all.iter().map(|(_, lost)| lost.tags).sum::<usize>(), 80);
        assert!(all.windows(2).all(|pair| pair[0].1.end_ms <= pair[1].1.start_ms), "{all:?}");
    }

    #[test]
    fn trouble_begins_with_a_second_and_a_half_and_ends_with_sound() {
        let mut holes = Holes::default();
        holes.fail(1000, 2400, 70, false);
        assert!(!holes.is_trouble());
        // A frame of noise in between is no recovery.
        holes.sound(2420);
        holes.fail(2420, 2540, 6, false);
        assert!(holes.is_trouble());
        holes.sound(3539);
        assert!(holes.is_trouble());
        holes.sound(3540);
        assert!(!holes.is_trouble());
    }

    #[test]
    fn session_time_that_steps_back_turns_no_hole_around() {
        let mut holes = Holes::default();
        holes.fail(638, 661, 1, false);
        holes.fail(439, 462, 1, false);
        assert!(!holes.is_trouble());
        holes.end();
        assert_eq!(holes.pop(), Some(Lost { start_ms: 439, end_ms: 661, tags: 2 }));
    }
}
