//! The clock's memory of the last seconds: how far the timestamps were from the audio, and how late tags were.
//! In buckets, so that a burst of thousands of tags costs no more than a calm second.

use std::collections::VecDeque;

const BUCKET_MS: i64 = 100;
/// Timestamps are judged by so much audio before them.
const TRUST_MS: i64 = 1000;
/// Arrival time over which the lateness of tags is judged.
const LATE_MS: i64 = 1500;
/// Less than this of the newer half below the older one is no catching up.
const CATCHING_UP_MS: i64 = 40;
/// Speed is measured over so much arrival time at most, and as if it were so much at least.
const SPEED_MS: std::ops::RangeInclusive<i64> = BUCKET_MS..=1000;

/// Timestamp less audio, in ms, over the last second of audio.
#[derive(Debug, Default)]
pub(super) struct Levels {
    /// Bucket, least and greatest.
    buckets: VecDeque<(i64, i64, i64)>,
}

impl Levels {
    /// `laid_ms`: the audio before the tag.
    pub fn add(&mut self, laid_ms: i64, level_ms: i64) {
        let bucket = laid_ms / BUCKET_MS;
        match self.buckets.back_mut() {
            Some((last, low, high)) if *last == bucket => {
                (*low, *high) = ((*low).min(level_ms), (*high).max(level_ms));
            }
            _ => self.buckets.push_back((bucket, level_ms, level_ms)),
        }
        while self.buckets.front().is_some_and(|(first, ..)| *first < bucket - TRUST_MS / BUCKET_MS) {
            self.buckets.pop_front();
        }
    }

    /// Least and greatest.
    pub fn range(&self) -> Option<(i64, i64)> {
        let low = self.buckets.iter().map(|(_, low, _)| *low).min()?;
        let high = self.buckets.iter().map(|(.., high)| *high).max()?;
        Some((low, high))
    }

    /// So many buckets are known: a newcomer is not trusted yet.
    pub fn is_known(&self) -> bool {
        self.buckets.len() >= 3
    }

    pub fn clear(&mut self) {
        self.buckets.clear();
    }
}

/// Arrival less session time, in ms, over the last seconds of arrival. Tags come late, never early: what counts is the
/// least.
#[derive(Debug, Default)]
pub(super) struct Lags {
    buckets: VecDeque<Late>,
}

#[derive(Debug)]
struct Late {
    bucket: i64,
    low_ms: i64,
    audio_ms: i64,
}

impl Lags {
    pub fn add(&mut self, arrived_ms: i64, lag_ms: i64, audio_ms: i64) {
        let bucket = arrived_ms / BUCKET_MS;
        match self.buckets.back_mut() {
            Some(last) if last.bucket >= bucket => {
                last.low_ms = last.low_ms.min(lag_ms);
                last.audio_ms += audio_ms;
            }
            _ => self.buckets.push_back(Late { bucket, low_ms: lag_ms, audio_ms }),
        }
        while self.buckets.front().is_some_and(|first| first.bucket < bucket - LATE_MS / BUCKET_MS) {
            self.buckets.pop_front();
        }
    }

    pub fn low_ms(&self) -> Option<i64> {
        self.buckets.iter().map(|late| late.low_ms).min()
    }

    /// Lateness of the quickest tag of the newer half, when none of the whole window was earlier than `least_ms`. None:
    /// some were, or too little is known, or a backlog is being worked off.
    pub fn settled_ms(&self, least_ms: i64) -> Option<i64> {
        let (first, last) = (self.buckets.front()?.bucket, self.buckets.back()?.bucket);
        let middle = last - LATE_MS / BUCKET_MS / 2;
        let low = |is_newer: bool| {
            let half = self.buckets.iter().filter(|late| (late.bucket > middle) == is_newer);
            half.map(|late| late.low_ms).min()
        };
        let (older, newer) = (low(false)?, low(true)?);
        let is_whole = last - first >= LATE_MS / BUCKET_MS - 1;
        (is_whole && older.min(newer) >= least_ms && older - newer < CATCHING_UP_MS).then_some(newer)
    }

    /// More audio than arrival time by this factor, lately.
    pub fn speed(&self, arrived_ms: i64) -> f64 {
        let recent = |late: &&Late| late.bucket * BUCKET_MS > arrived_ms - SPEED_MS.end();
        let audio_ms: i64 = self.buckets.iter().filter(recent).map(|late| late.audio_ms).sum();
        let since_ms = self.buckets.iter().find(recent).map_or(arrived_ms, |late| late.bucket * BUCKET_MS);
        audio_ms as f64 / (arrived_ms - since_ms).clamp(*SPEED_MS.start(), *SPEED_MS.end()) as f64
    }

    /// Session time was moved on by so much.
    pub fn shift(&mut self, ms: i64) {
        for late in &mut self.buckets {
            late.low_ms -= ms;
        }
    }

    pub fn clear(&mut self) {
        self.buckets.clear();
    }
}
