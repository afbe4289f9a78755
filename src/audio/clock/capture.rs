//! When was it said? Session time to the time at which the publisher captured the sound, as well as arrivals tell.
//!
//! Audio that came late in a burst was captured before: between two samples lies as much time as audio, at least. So a
//! sample was captured no later than any later one arrived, less the audio between them.

use std::collections::VecDeque;

/// Later arrivals within so much testify. (A fast encoder's, further on, would say that it was captured long before.)
const WITNESS_MS: i64 = 1000;
/// Arrival is noted once in so much of it.
const BUCKET_MS: i64 = 100;
/// Arrivals that differ by less are noted as one.
const SAME_MS: i64 = 30;
/// As long as voice activity is remembered.
const REMEMBER_MS: i64 = 15 * 60 * 1000;
/// A bound for what jitters all the time: then an older part is forgotten sooner.
const MAX_NOTES: usize = 4096;

/// All times in ms. *Laid* counts audio and inserted silence since the process began, without jumps.
#[derive(Debug, Default)]
pub(super) struct Capture {
    /// Place at which session time and laid audio part: from this session time on the audio is that from this place on.
    places: VecDeque<(i64, i64)>,
    arrivals: VecDeque<Arrival>,
    /// Not yet noted: the present bucket.
    present: Option<(i64, Arrival)>,
}

#[derive(Debug, Clone, Copy)]
struct Arrival {
    laid_ms: i64,
    arrived_ms: i64,
    /// Arrival less laid, the least.
    lag_ms: i64,
}

impl Capture {
    /// Session time goes on at `session_ms`, for audio from `laid_ms` on.
    pub fn place(&mut self, session_ms: i64, laid_ms: i64) {
        self.places.push_back((session_ms, laid_ms));
        if self.places.len() > MAX_NOTES {
            self.places.pop_front();
        }
    }

    pub fn arrived(&mut self, laid_ms: i64, arrived_ms: i64) {
        let bucket = arrived_ms / BUCKET_MS;
        let lag_ms = arrived_ms - laid_ms;
        match &mut self.present {
            Some((present, arrival)) if *present == bucket => arrival.lag_ms = arrival.lag_ms.min(lag_ms),
            _ => {
                let next = (bucket, Arrival { laid_ms, arrived_ms, lag_ms });
                if let Some((_, arrival)) = self.present.replace(next) {
                    self.note(arrival);
                }
            }
        }
    }

    fn note(&mut self, arrival: Arrival) {
        if self.arrivals.back().is_some_and(|last| (last.lag_ms - arrival.lag_ms).abs() <= SAME_MS) {
            return;
        }
        self.arrivals.push_back(arrival);
        let is_old = |next: &Arrival| next.arrived_ms < arrival.arrived_ms - REMEMBER_MS;
        while self.arrivals.get(1).is_some_and(is_old) || self.arrivals.len() > MAX_NOTES {
            self.arrivals.pop_front();
        }
        let oldest = self.arrivals.front().map_or(0, |first| first.laid_ms);
        while self.places.get(1).is_some_and(|(_, laid_ms)| *laid_ms < oldest) {
            self.places.pop_front();
        }
    }

    /// None where nothing of this process was heard.
    pub fn captured_ms(&self, session_ms: i64) -> Option<i64> {
        let next = self.places.partition_point(|(at, _)| *at <= session_ms);
        let (at, from) = *self.places.get(next.checked_sub(1)?)?;
        // In a gap: the end of the audio before it.
        let end = self.places.get(next).map_or(i64::MAX, |(_, laid_ms)| *laid_ms);
        let laid_ms = (from + session_ms - at).min(end);
        let all = || self.arrivals.iter().chain(self.present.iter().map(|(_, arrival)| arrival));
        let of_its_own = all().take_while(|arrival| arrival.laid_ms <= laid_ms).last()?;
        let latest = (laid_ms + of_its_own.lag_ms).max(of_its_own.arrived_ms) + WITNESS_MS;
        let later = all().filter(|a| a.laid_ms > laid_ms && a.arrived_ms <= latest);
        let lag_ms = later.map(|a| a.lag_ms).fold(of_its_own.lag_ms, i64::min);
        Some(laid_ms + lag_ms)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Ten seconds of 20 ms tags, with these arrivals.
    fn capture(arrival: impl Fn(i64) -> i64) -> Capture {
        let mut capture = Capture::default();
        capture.place(0, 0);
        for at in (0..10_000).step_by(20) {
            capture.arrived(at, arrival(at));
        }
        capture
    }

    fn assert_near(got: Option<i64>, wanted: i64) {
        assert!(got.is_some_and(|got| (got - wanted).abs() <= 2 * SAME_MS + BUCKET_MS), "{got:?}, not {wanted}");
    }

    #[test]
    fn what_came_late_in_a_burst_was_captured_before() {
        // From 4 s to 7 s nothing comes; then all of it at once.
        let capture = capture(|at| if (4000..7000).contains(&at) { 7000 } else { at });
        for at in [0, 1000, 3990, 4000, 5000, 6990, 7000, 9000] {
            assert_near(capture.captured_ms(at), at);
        }
    }

    #[test]
    fn a_slow_encoder_is_captured_when_it_arrives() {
        let capture = capture(|at| at * 5 / 4);
        for at in [0, 2000, 5000, 9000] {
            assert_near(capture.captured_ms(at), at * 5 / 4);
        }
    }

    #[test]
    fn session_time_that_jumped_is_mapped_by_its_part() {
        let mut capture = Capture::default();
        capture.place(1000, 0);
        for at in (0..2000).step_by(20) {
            capture.arrived(at, 1000 + at);
        }
        capture.place(9000, 2000);
        for at in (2000..4000).step_by(20) {
            capture.arrived(at, 7500 + at);
        }
        assert_eq!(capture.captured_ms(999), None, "before it all");
        assert_near(capture.captured_ms(2000), 2000);
        assert_near(capture.captured_ms(2990), 2990);
        assert_near(capture.captured_ms(9000), 9500);
        assert_near(capture.captured_ms(10_000), 10_500);
        let in_the_gap = capture.captured_ms(5000).unwrap();
        assert!(in_the_gap <= 9500, "{in_the_gap}");
    }

    #[test]
    fn little_is_noted_of_a_calm_stream_and_not_more_than_the_bound_of_a_wild_one() {
        let mut calm = Capture::default();
        let mut wild = Capture::default();
        for at in (0..600_000).step_by(20) {
            calm.arrived(at, at + at % 7);
            wild.arrived(at, at + at * 7919 % 977);
            wild.place(at, at);
        }
        assert!(calm.arrivals.len() < 5, "{}", calm.arrivals.len());
        assert!(wild.arrivals.len() <= MAX_NOTES && wild.places.len() <= MAX_NOTES);
    }
}
