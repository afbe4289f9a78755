use proptest::prelude::*;

use super::*;

/// A clock that hears tags, and what became of them.
struct Bench {
    clock: Clock,
    length: u64,
    /// Of every tag: session time of its begin as the verdicts place it, and arrival, in ms.
    heard: Vec<(i64, i64)>,
    befores: Vec<Before>,
    /// Place of the first tag that is held.
    held: Option<usize>,
}

impl Bench {
    fn new(length: u64) -> Self {
        Self { clock: Clock::default(), length, heard: vec![], befores: vec![], held: None }
    }

    fn tag(&mut self, timestamp_ms: u64, arrived_ms: u64) {
        let verdict = self.clock.accept(Stamp { timestamp_ms, arrived_ms, length: self.length });
        if let Some(before) = verdict.held {
            self.release(before);
        }
        if verdict.is_held {
            self.held.get_or_insert(self.befores.len());
        }
        self.befores.push(verdict.this);
        self.heard.push((0, arrived_ms as i64));
    }

    fn release(&mut self, before: Before) {
        let held = self.held.take().expect("a verdict is of tags that are held");
        self.befores[held] = before;
    }

    /// Lays the audio as the chunker does, and gives the silence that was made.
    fn end(&mut self) -> u64 {
        if let Some(before) = self.clock.settle() {
            self.release(before);
        }
        let (mut position, mut silence) = (0u64, 0);
        for (n, before) in self.befores.iter().enumerate() {
            match *before {
                Before::Nothing => {}
                Before::Silence(samples) => {
                    position += samples;
                    silence += samples;
                }
                Before::Segment(at_ms) => {
                    position = position.next_multiple_of(SAMPLES_PER_MS).max(at_ms * SAMPLES_PER_MS);
                }
                Before::Back(samples) => position = position.next_multiple_of(SAMPLES_PER_MS) - samples,
            }
            // As the ledger's clock does: what was before never ends after it.
            for earlier in self.heard[..n].iter_mut().rev().take_while(|earlier| earlier.0 > ms(position)) {
                earlier.0 = ms(position);
            }
            self.heard[n].0 = ms(position);
            position += self.length;
        }
        assert!(position.abs_diff(self.clock.end) <= self.befores.len() as u64 * SAMPLES_PER_MS, "the clock knows");
        silence
    }

    fn jumps(&self) -> Vec<Before> {
        self.befores.iter().copied().filter(|before| *before != Before::Nothing).collect()
    }

    /// The most that session time is later than arrival, and earlier.
    fn distance_ms(&self) -> (i64, i64) {
        let early = self.heard.iter().map(|(at, arrived)| at - arrived).max().unwrap_or(0);
        let late = self.heard.iter().map(|(at, arrived)| arrived - at).max().unwrap_or(0);
        (early, late)
    }
}

/// Frame length in ms where the timestamps and arrivals below are of frames.
const FRAME_MS: u64 = 20;
const FRAME: u64 = FRAME_MS * SAMPLES_PER_MS;
const START_MS: u64 = 5000;

fn heard(tags: impl IntoIterator<Item = (u64, u64)>) -> (Bench, u64) {
    heard_of(FRAME, tags)
}

fn heard_of(length: u64, tags: impl IntoIterator<Item = (u64, u64)>) -> (Bench, u64) {
    let mut bench = Bench::new(length);
    for (timestamp_ms, arrived_ms) in tags {
        bench.tag(timestamp_ms, START_MS + arrived_ms);
    }
    let silence = bench.end();
    (bench, silence)
}

/// Pseudo-random, 0..`below`.
fn noise(n: u64, below: u64) -> u64 {
    n.wrapping_mul(0x9E37_79B9_7F4A_7C15).rotate_left(23).wrapping_mul(0xBF58_476D_1CE4_E5B9) % below
}

/// Timestamps that say nothing true, of tag `n` with a length of `l` ms; the audio comes in time.
type Lie = fn(u64, u64) -> u64;
const LIES: &[(&str, Lie)] = &[
    ("groups of 2", |n, l| n / 2 * 2 * l),
    ("groups of 3", |n, l| n / 3 * 3 * l),
    ("groups of 8", |n, l| n / 8 * 8 * l),
    ("groups of 32", |n, l| n / 32 * 32 * l),
    ("jitter", |n, l| n * l + noise(n, 180)),
    ("jitter from the middle on", |n, l| n * l + if n > 300 { noise(n, 180) } else { 0 }),
    ("all zero", |_, _| 0),
    ("all the same", |_, _| 4_000_000),
    ("half speed", |n, l| n * l / 2),
    ("double speed", |n, l| n * l * 2),
    ("an offset beyond 2^32", |n, l| (1 << 32) - 3000 + n * l),
    ("seconds", |n, l| n * l / 1000),
    ("of 90 kHz", |n, l| n * l * 90),
    ("backward steps", |n, l| (n * l + 10_000).saturating_sub(n / 50 * 700)),
    ("forward steps", |n, l| n * l + n / 50 * 700),
    ("leaps", |n, l| n * l + n / 50 * 10_000),
    ("begun again", |n, l| n % 100 * l),
    ("two clocks in turn", |n, l| n * l + n % 2 * 3_600_000),
    ("two clocks, three tags each", |n, l| n * l + n / 3 % 2 * 900),
    ("noise", |n, _| noise(n, 100_000)),
];

#[test]
fn timestamps_that_lie_make_no_silence_and_no_gap() {
    for length_ms in [10, 20, 23, 64, 128] {
        for (name, lie) in LIES {
            let tags = (0..20_000 / length_ms).map(|n| (lie(n, length_ms), n * length_ms + noise(n, 30)));
            let (bench, silence) = heard_of(length_ms * SAMPLES_PER_MS, tags);
            assert_eq!(silence, 0, "{name}, {length_ms} ms");
            assert_eq!(bench.jumps().len(), 1, "{name}, {length_ms} ms: {:?}", bench.jumps());
            let (early, late) = bench.distance_ms();
            assert!(early <= 60 && late <= 60, "{name}: {early} ms early, {late} ms late");
        }
    }
}

#[test]
fn frames_that_were_lost_are_as_much_silence() {
    for missing in [3, 10, 50, 99] {
        let tags = (0..200).map(|n| (n + if n >= 100 { missing } else { 0 }) * FRAME_MS);
        for arrival in [0, 1] {
            // In time, or all at once.
            let (bench, silence) = heard(tags.clone().map(|t| (t, t * (1 - arrival))));
            assert_eq!(silence, missing * FRAME, "{missing} frames, {arrival}");
            assert_eq!(bench.jumps().len(), 2);
        }
    }
}

#[test]
fn a_loss_within_a_backlog_is_as_much_silence() {
    // Three seconds of nothing, then all that was said meanwhile at once, half a second of it missing.
    let tags = (0..400u64).filter(|n| !(120..145).contains(n)).map(|n| n * FRAME_MS);
    let (bench, silence) = heard(tags.map(|t| (t, if (2000..5000).contains(&t) { 5000 } else { t })));
    assert_eq!(silence, 25 * FRAME, "{:?}", bench.jumps());
    assert_eq!(bench.jumps().len(), 2);
}

/// Audio of 5 s, then nothing for `pause_ms`, then more. Timestamps go on by `announced_ms` meanwhile.
fn pause(pause_ms: u64, announced_ms: u64, group: u64) -> Bench {
    let timestamp = |n: u64| n * FRAME_MS + if n >= 250 { announced_ms } else { 0 };
    let arrival =
        |n: u64| (n / group * group + group) * FRAME_MS + noise(n / group, 40) + if n >= 250 { pause_ms } else { 0 };
    let (bench, silence) = heard((0..600).map(|n| (timestamp(n), arrival(n))));
    assert_eq!(silence, 0);
    bench
}

#[test]
fn a_pause_is_one_whatever_the_timestamps_say_of_it() {
    for pause_ms in [3000, 7000, 15_000, 3_600_000] {
        for announced_ms in [0, pause_ms / 2, pause_ms, 2 * pause_ms] {
            for group in [1, 5] {
                let bench = pause(pause_ms, announced_ms, group);
                let [_, Before::Segment(at_ms)] = bench.jumps()[..] else { panic!("{:?}", bench.jumps()) };
                let wanted = START_MS + 5000 + pause_ms;
                assert!(at_ms.abs_diff(wanted) <= 200, "{at_ms}, not {wanted}: {pause_ms} {announced_ms} {group}");
                let (early, late) = bench.distance_ms();
                assert!(early <= 250 && late <= 250, "{early} {late}");
            }
        }
    }
}

#[test]
fn a_stall_with_a_backlog_is_nothing() {
    for stall_ms in [1000, 3000, 7000, 30_000] {
        for speed in [1.5, 3.0, 100.0] {
            let arrival = |n: u64| {
                let said = n * FRAME_MS;
                if said < 5000 { said } else { said.max(5000 + stall_ms + ((said - 5000) as f64 / speed) as u64) }
            };
            let (bench, silence) = heard((0..6000).map(|n| (n * FRAME_MS, arrival(n))));
            assert_eq!((silence, bench.jumps().len()), (0, 1), "{stall_ms} ms, {speed}: {:?}", bench.jumps());
            let captured = |at: u64| bench.clock.captured_ms(at).unwrap() - at as i64;
            let worst = (START_MS..START_MS + 110_000).step_by(100).map(captured).max().unwrap();
            assert!(speed < 10.0 || worst < 200, "what came late was captured {worst} ms late");
        }
    }
}

#[test]
fn slow_and_fast_encoders_are_followed_without_silence_and_gap() {
    for percent in [70, 80, 95, 99, 101, 105, 125, 150, 190] {
        for group in [1, 8] {
            let tags = (0..6000).map(|n| (n * FRAME_MS, (n / group * group * FRAME_MS * 100 / percent) + noise(n, 20)));
            let (bench, silence) = heard(tags);
            assert_eq!(silence, 0, "{percent} %");
            let (early, late) = bench.distance_ms();
            assert!(early <= BOUND_MS && late <= BOUND_MS, "{percent} %: {early} ms early, {late} ms late");
            let pauses = bench.heard.windows(2).filter(|pair| pair[1].0 - pair[0].0 >= PAUSE_MS);
            assert_eq!(pauses.count(), 0, "{percent} %");
            assert!(bench.heard.is_sorted_by_key(|(at, _)| *at), "{percent} %");
        }
    }
}

#[test]
fn what_comes_at_once_lies_end_to_end_and_its_lead_is_worked_off() {
    let at_once = (0..500).map(|n| (n * FRAME_MS, 0));
    let (bench, _) = heard(at_once.clone());
    assert_eq!(bench.distance_ms().0, 499 * FRAME_MS as i64, "a file");
    // Ten seconds at once, and then it is live.
    let (bench, silence) = heard(at_once.chain((0..2000).map(|n| ((500 + n) * FRAME_MS, n * FRAME_MS))));
    assert_eq!(silence, 0);
    let (at, arrived) = bench.heard.last().unwrap();
    assert!((at - arrived).abs() <= LEAD_MS, "{}", at - arrived);
}

#[test]
fn audio_that_waits_for_a_backlog_waits_half_a_second_at_most() {
    let mut bench = Bench::new(FRAME);
    for n in 0..100 {
        bench.tag(n * FRAME_MS, n * FRAME_MS);
    }
    bench.tag(2000, 9000);
    assert_eq!(bench.clock.settles_at_ms(), Some(9500));
    assert_eq!(bench.clock.settle(), Some(Before::Segment(9000)));
    assert_eq!(bench.clock.settles_at_ms(), None);
    assert_eq!(bench.clock.settle(), None);
}

#[test]
fn a_publisher_goes_on_where_another_was_lost_if_there_was_time_for_what_is_missing() {
    let mut bench = Bench::new(FRAME);
    assert!(!bench.clock.goes_on(0, 0));
    for n in 0..1000 {
        bench.tag(7000 + n * FRAME_MS, n * FRAME_MS);
    }
    // The last one was at 26,980 and arrived at 19,980.
    for (timestamp_ms, arrived_ms, goes_on) in [
        (27_000, 20_000, true),
        (27_000, 60_000, true),
        (26_940, 23_000, true),
        (26_000, 23_000, true),
        (28_000, 21_000, true),
        (29_000, 21_000, false),
        (11_000, 23_000, false),
        (7000, 20_000, false),
        (0, 20_000, false),
    ] {
        assert_eq!(bench.clock.goes_on(timestamp_ms, arrived_ms), goes_on, "{timestamp_ms} at {arrived_ms}");
    }
    bench.clock.forget_publisher();
    assert!(!bench.clock.goes_on(27_000, 20_000));
}

/// Arrival: mostly live, with jitter, stalls, pauses and bursts; any timestamps.
fn arrivals() -> impl Strategy<Value = Vec<(u64, u64)>> {
    let step = prop_oneof![
        6 => Just(FRAME_MS),
        2 => 0..60u64,
        1 => Just(0u64),
        1 => prop_oneof![0..400u64, 1000..20_000u64],
    ];
    let timestamp =
        prop_oneof![4 => Just(None), 1 => (0..5_000u64).prop_map(Some), 1 => (0..1u64 << 33).prop_map(Some)];
    prop::collection::vec((step, timestamp), 1..800).prop_map(|steps| {
        let (mut arrived, mut own) = (0, 0);
        let tags = steps.into_iter().map(|(step, timestamp)| {
            arrived += step;
            own += FRAME_MS;
            (timestamp.unwrap_or(own), arrived)
        });
        tags.collect()
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    /// Whatever comes whenever: audio keeps its order, time never runs backwards, silence was allowed by arrival or by
    /// timestamps, and session time does not run away from arrival.
    #[test]
    fn session_time_keeps_to_arrival(tags in arrivals()) {
        let (mut bench, silence) = heard(tags.iter().copied());
        prop_assert!(bench.heard.is_sorted_by_key(|(at, _)| *at));
        prop_assert_eq!(bench.clock.laid, tags.len() as u64 * FRAME + silence, "all that came was laid, once");
        let (_, late) = bench.distance_ms();
        // A stall is late by itself; what comes after it in time is not.
        let longest = tags.windows(2).map(|pair| pair[1].1 - pair[0].1).max().unwrap_or(0);
        // Places are known to a frame.
        let bound = BOUND_MS.max(longest as i64) + 2 * BOUND_MS + FRAME_MS as i64;
        prop_assert!(late <= bound, "{} ms late, {} allowed", late, bound);
        // Ten calm seconds bring it home, from whichever side.
        let (own, arrived) = *tags.last().unwrap();
        let lead_ms = (ms(bench.clock.end) - START_MS as i64 - arrived as i64).max(0) as u64;
        let calm = 500 + lead_ms / 5;
        for n in 1..=calm {
            bench.tag(own + n * FRAME_MS, START_MS + arrived + n * FRAME_MS);
        }
        bench.end();
        let (at, arrived) = *bench.heard.last().unwrap();
        prop_assert!((at - arrived).abs() <= BOUND_MS, "{} ms apart after a calm time", at - arrived);
    }
}
