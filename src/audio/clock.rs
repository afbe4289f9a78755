//! Places audio in session time.
//!
//! A tag says three things of its place: its audio has a length, it has a timestamp, and it arrived. The lengths are
//! the truth of the decoder and lay audio end to end; timestamps and arrival are two witnesses, and neither is believed
//! alone. No audio is ever left out.
//!
//! | timestamps say | arrival says | meaning | done |
//! |---|---|---|---|
//! | as long as the audio, or anything else that is not below | on time | jitter, groups with one timestamp, zeros, wrong units, two clocks, drift | nothing |
//! | 60 ms to 2 s more, in one step | as much later | frames were lost | as much silence |
//! | 60 ms to 2 s more, in one step of an otherwise true clock | late already, or the audio runs ahead of it: it cannot tell | frames were lost | as much silence |
//! | more than 2 s more | a second late or more | the publisher paused | session time goes on at the arrival |
//! | more | on time | a claim that the time did not allow | nothing |
//! | nothing | a second late or more in one step, and stays so | the publisher paused and its timestamps did not | session time goes on at the arrival |
//! | nothing | a second late or more in one step, and catches up | the network stalled; a backlog | nothing |
//! | nothing | later and later | a slow encoder, a false sample rate | session time follows, without silence |
//! | nothing | sooner and sooner, below twice real time | a fast encoder, a false sample rate | session time follows: audio takes less of it |
//! | nothing | faster than that | a file, a backlog: what comes at once | nothing; its lead is worked off after it |
//! | less, or anew from another value | whatever | an encoder that began again | as arrival says |
//!
//! Where timestamps say less than arrival does, the next audio waits for at most [`HOLD_MS`], until it is clear whether
//! a backlog follows.

mod capture;
mod window;

use self::capture::Capture;
use self::window::{Lags, Levels};
use super::{SAMPLE_RATE, SAMPLES_PER_MS};

/// Session time is at most so far from arrival when tags come in time. (A backlog is late by itself, and what comes at
/// once is early.)
pub const BOUND_MS: i64 = 1000;
/// A jump of timestamps that is no gap: encoders round and jitter.
const GAP_MS: i64 = 60;
/// Beyond it, the publisher paused: no silence is made for it.
const LONG_GAP_MS: i64 = 2000;
/// Arrival this much behind session time, by one step of [`STEP_MS`] or more, is a pause or a stall.
const PAUSE_MS: i64 = BOUND_MS;
const STEP_MS: i64 = 750;
/// So much arrival time tells the two apart. A backlog then comes faster than it was spoken by this much at least.
pub const HOLD_MS: u64 = 500;
const CATCHING_UP_MS: i64 = 60;
/// A backlog that is so long is one.
const MAX_HELD_TAGS: usize = 500;
/// Arrival may contradict a timestamp by so much.
const SLACK_MS: i64 = 40;
/// Timestamps that vary less are true ones.
const TRUE_MS: i64 = 30;
/// Timestamps that fall by more have begun anew.
const ANEW_MS: i64 = 1000;
/// Session time follows when all tags are so late, and when they are so early.
const FOLLOW_MS: i64 = 250;
const LEAD_MS: i64 = 500;
/// Audio that comes faster than this runs ahead.
const BURST_SPEED: f64 = 2.0;
/// A lead is worked off in steps of this much audio, each of which takes half of its time at least.
const BACK_EVERY: u64 = 400 * SAMPLES_PER_MS;
/// A publisher that comes back may begin again with what it sent last.
const OVERLAP_MS: u64 = 15_000;

/// The silence, pause or step back before a tag's audio.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Before {
    Nothing,
    /// So many samples of silence belong here.
    Silence(u64),
    /// Session time, in ms, at which its audio begins; not before the end of the audio before it.
    Segment(u64),
    /// It begins so many samples before the end of the audio before it.
    Back(u64),
}

/// A tag, as far as time is concerned.
#[derive(Debug, Clone, Copy)]
pub struct Stamp {
    pub timestamp_ms: u64,
    pub arrived_ms: u64,
    /// Of its audio, in samples.
    pub length: u64,
}

/// The verdict about a tag, as far as it is clear.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Verdict {
    /// Of the first of the tags that were held; all of them may go.
    pub held: Option<Before>,
    pub this: Before,
    /// It is held.
    pub is_held: bool,
}

/// A session's clock.
#[derive(Debug, Default)]
pub struct Clock {
    /// Session time at the end of all audio, in samples.
    end: u64,
    /// Audio and inserted silence so far, in samples.
    laid: u64,
    last: Option<Last>,
    levels: Levels,
    lags: Lags,
    hold: Option<Hold>,
    /// Audio since session time went back.
    since_back: u64,
    capture: Capture,
}

#[derive(Debug, Clone, Copy)]
struct Last {
    first_timestamp_ms: u64,
    stamp: Stamp,
}

/// Tags that wait for a verdict.
#[derive(Debug)]
struct Hold {
    since_ms: i64,
    /// Missing by the timestamps.
    claimed_ms: i64,
    /// The place at which session time goes on.
    end: u64,
    laid: u64,
    tags: usize,
    /// The least lag in each half of the time.
    lows_ms: [Option<i64>; 2],
    is_backlog: bool,
}

impl Hold {
    fn add(&mut self, arrived_ms: i64, lag_ms: i64) {
        let half = usize::from(arrived_ms >= self.since_ms + HOLD_MS as i64 / 2);
        self.lows_ms[half] = Some(self.lows_ms[half].map_or(lag_ms, |low| low.min(lag_ms)));
        self.tags += 1;
        self.is_backlog |= lag_ms - self.claimed_ms < PAUSE_MS || self.tags >= MAX_HELD_TAGS;
    }

    /// By how much session time jumps.
    fn jump_ms(&self) -> i64 {
        let is_catching_up = matches!(self.lows_ms, [Some(older), Some(newer)] if older - newer >= CATCHING_UP_MS);
        let low_ms = self.lows_ms.iter().flatten().min().copied().unwrap_or(0);
        if self.is_backlog || is_catching_up { self.claimed_ms } else { low_ms.max(self.claimed_ms) }
    }
}

impl Clock {
    pub fn accept(&mut self, stamp: Stamp) -> Verdict {
        let now_ms = stamp.arrived_ms as i64;
        let mut verdict = Verdict { held: None, this: Before::Nothing, is_held: false };
        if self.hold.as_ref().is_some_and(|hold| now_ms >= hold.since_ms + HOLD_MS as i64) {
            verdict.held = self.settle();
        }
        let level_ms = stamp.timestamp_ms as i64 - ms(self.laid);
        if self.levels.range().is_some_and(|(low, _)| level_ms < low - ANEW_MS) {
            self.levels.clear();
        }
        verdict.this = match self.last {
            None => self.begin(now_ms),
            Some(last) => self.judge(last.stamp, stamp),
        };
        let lag_ms = now_ms - ms(self.end);
        if let Some(hold) = &mut self.hold {
            hold.add(now_ms, lag_ms);
            if hold.is_backlog {
                verdict.held = self.settle();
            }
        } else {
            self.lags.add(now_ms, lag_ms, ms(stamp.length));
        }
        verdict.is_held = self.hold.is_some();
        self.levels.add(ms(self.laid), stamp.timestamp_ms as i64 - ms(self.laid));
        self.capture.arrived(ms(self.laid), now_ms);
        self.lay(stamp.length);
        let first_timestamp_ms = self.last.map_or(stamp.timestamp_ms, |last| last.first_timestamp_ms);
        self.last = Some(Last { first_timestamp_ms, stamp });
        verdict
    }

    /// A publisher of whom nothing is known.
    fn begin(&mut self, now_ms: i64) -> Before {
        self.levels.clear();
        self.lags.clear();
        self.jump(now_ms - ms(self.end))
    }

    /// Begins a hold where it is not clear.
    fn judge(&mut self, last: Stamp, stamp: Stamp) -> Before {
        let lag_ms = stamp.arrived_ms as i64 - ms(self.end);
        let step_ms = stamp.arrived_ms as i64 - last.arrived_ms as i64 - ms(last.length);
        let claimed_ms = self.claimed_ms(stamp, lag_ms, step_ms);
        let rest_ms = lag_ms - claimed_ms;
        if self.hold.is_none() && rest_ms >= PAUSE_MS && step_ms >= STEP_MS {
            self.hold = Some(Hold {
                since_ms: stamp.arrived_ms as i64,
                claimed_ms,
                end: self.end,
                laid: self.laid,
                tags: 0,
                lows_ms: [None, None],
                is_backlog: false,
            });
            return Before::Nothing;
        }
        match claimed_ms {
            1..=LONG_GAP_MS => {
                let silence = claimed_ms as u64 * SAMPLES_PER_MS;
                self.lay(silence);
                self.lags.shift(claimed_ms);
                Before::Silence(silence)
            }
            _ if self.hold.is_some() => Before::Nothing,
            0 => self.follow(stamp.arrived_ms as i64, lag_ms),
            _ => self.jump(lag_ms),
        }
    }

    /// Time that is missing by the timestamps, as far as arrival allows it.
    fn claimed_ms(&self, stamp: Stamp, lag_ms: i64, step_ms: i64) -> i64 {
        let Some((low_ms, high_ms)) = self.levels.range().filter(|_| self.levels.is_known()) else { return 0 };
        let spread_ms = high_ms - low_ms;
        let claimed_ms = stamp.timestamp_ms as i64 - ms(self.laid) - high_ms;
        let is_true = spread_ms <= TRUE_MS;
        let risen_ms = lag_ms - self.lags.low_ms().unwrap_or(lag_ms) + SLACK_MS;
        if claimed_ms < GAP_MS + if is_true { 0 } else { spread_ms } {
            return 0;
        }
        if claimed_ms > LONG_GAP_MS {
            return if is_true && lag_ms >= PAUSE_MS { claimed_ms.min(lag_ms) } else { 0 };
        }
        // A step so long is looked at more closely where the timestamps are no good.
        let is_witnessed = claimed_ms <= risen_ms && (is_true || step_ms < STEP_MS);
        let is_untold = is_true && (claimed_ms <= lag_ms || lag_ms < -FOLLOW_MS);
        if is_witnessed || is_untold { claimed_ms } else { 0 }
    }

    /// Session time keeps near arrival.
    fn follow(&mut self, now_ms: i64, lag_ms: i64) -> Before {
        if lag_ms >= FOLLOW_MS {
            let settled_ms = self.lags.settled_ms(FOLLOW_MS);
            return settled_ms.map_or(Before::Nothing, |settled_ms| self.jump(settled_ms.min(lag_ms)));
        }
        let is_due = lag_ms < -LEAD_MS && self.since_back >= BACK_EVERY;
        if !is_due || self.lags.speed(now_ms) > BURST_SPEED {
            return Before::Nothing;
        }
        let back_ms = (-lag_ms - FOLLOW_MS).min(ms(BACK_EVERY) / 2);
        self.end = self.end.next_multiple_of(SAMPLES_PER_MS) - back_ms as u64 * SAMPLES_PER_MS;
        self.moved(-back_ms);
        Before::Back(back_ms as u64 * SAMPLES_PER_MS)
    }

    /// Session time goes on later, or at the end of the audio when that is later.
    fn jump(&mut self, by_ms: i64) -> Before {
        let at_ms = (ms(self.end) + by_ms).max(self.end.div_ceil(SAMPLES_PER_MS) as i64);
        self.end = at_ms as u64 * SAMPLES_PER_MS;
        self.moved(by_ms);
        Before::Segment(at_ms as u64)
    }

    fn moved(&mut self, by_ms: i64) {
        self.capture.place(ms(self.end), ms(self.laid));
        self.lags.shift(by_ms);
        self.since_back = 0;
        if by_ms >= PAUSE_MS {
            self.levels.clear();
            self.lags.clear();
        }
    }

    fn lay(&mut self, samples: u64) {
        self.end += samples;
        self.laid += samples;
        self.since_back += samples;
    }

    /// Nothing more is waited for: what becomes of the first tag that is held.
    pub fn settle(&mut self) -> Option<Before> {
        let hold = self.hold.take()?;
        let jump_ms = hold.jump_ms();
        if jump_ms <= 0 {
            return Some(Before::Nothing);
        }
        let held = self.laid - hold.laid;
        (self.end, self.laid) = (hold.end, hold.laid);
        let before = self.jump(jump_ms);
        self.lay(held);
        Some(before)
    }

    /// When the tags that are held have waited long enough, in ms of session time.
    pub fn settles_at_ms(&self) -> Option<u64> {
        self.hold.as_ref().map(|hold| hold.since_ms as u64 + HOLD_MS)
    }

    /// The next tag is of somebody of whom nothing is known.
    pub fn forget_publisher(&mut self) {
        self.last = None;
    }

    /// So many samples more came of audio that is here already.
    pub fn is_longer(&mut self, samples: u64) {
        self.lay(samples);
    }

    /// Session time goes on at `at_ms`, or later: what comes before will never be heard.
    pub fn give_up(&mut self, at_ms: u64) {
        self.hold = None;
        self.end = self.end.max(at_ms * SAMPLES_PER_MS);
        self.capture.place(ms(self.end), ms(self.laid));
    }

    /// Does the first tag of another publisher go on where the last one was lost? It may begin again with what was sent
    /// last, and some of it may be missing, but not more than there was time for.
    pub fn goes_on(&self, timestamp_ms: u64, arrived_ms: u64) -> bool {
        let Some(Last { first_timestamp_ms, stamp }) = self.last else { return false };
        let away_ms = arrived_ms.saturating_sub(stamp.arrived_ms);
        let from_ms = stamp.timestamp_ms.saturating_sub(OVERLAP_MS).max(first_timestamp_ms + 1);
        (from_ms..=stamp.timestamp_ms + ms(stamp.length) as u64 + away_ms + SLACK_MS as u64).contains(&timestamp_ms)
    }

    /// Session time at the end of all audio, in ms.
    pub fn end_ms(&self) -> u64 {
        ms(self.end) as u64
    }

    /// By how much the newest audio is later than its place in session time, in ms; negative: earlier.
    pub fn lag_ms(&self) -> Option<i64> {
        let last = self.last?.stamp;
        Some(last.arrived_ms as i64 - ms(self.end.saturating_sub(last.length)))
    }

    pub fn last_timestamp_ms(&self) -> Option<u64> {
        self.last.map(|last| last.stamp.timestamp_ms)
    }

    /// When the sound at this session time was captured, on the same scale. None where nothing was heard.
    pub fn captured_ms(&self, session_ms: u64) -> Option<i64> {
        self.capture.captured_ms(session_ms as i64)
    }
}

fn ms(samples: u64) -> i64 {
    (samples * 1000 / SAMPLE_RATE) as i64
}

#[cfg(test)]
mod tests;
