use proptest::prelude::*;

use tokio::time::Instant;

use super::announcements::ORPHAN_MS;
use super::*;
use crate::audio::SAMPLE_RATE;
use crate::audio::decoder::{Decoded, Input};

/// AAC-LC, 48 kHz and 44.1 kHz, mono: tags of 1024 samples.
const CONFIG_48: &[u8] = &[0xAF, 0, 0x11, 0x88];
const CONFIG_44: &[u8] = &[0xAF, 0, 0x12, 0x08];
const FRAME: &[u8] = &[0xAF, 1, 0x21, 0x17];
/// Samples of the simulated decoder say which they are.
const MODULUS: u64 = 30_011;

fn tag(publisher: u64, timestamp_ms: u64, body: &'static [u8]) -> AudioTag {
    AudioTag { publisher, timestamp_ms, body: Bytes::from_static(body), arrived: Instant::now() }
}

fn state_with(config: &'static [u8]) -> DecodeState {
    let mut state = DecodeState::new(100);
    state.accept(&tag(1, 0, config), 0).unwrap();
    state
}

/// Accepts `count` frames whose timestamps follow from their number.
fn frames(state: &mut DecodeState, from: u64, count: u64, rate: u64) {
    for n in from..from + count {
        state.accept(&tag(1, n * 1024 * 1000 / rate, FRAME), 0).unwrap();
    }
}

/// A decoder that brings a sample for each sixteenth of a millisecond that it was fed, numbered from the run's begin.
struct Simulated {
    beginning: RunStart,
    rate: u64,
    fed: u64,
    brought: u64,
    /// Samples of frames that it could not decode.
    failed: u64,
}

impl Simulated {
    fn begin(state: &mut DecodeState, rate: u64) -> Option<Self> {
        let beginning = state.begin()?;
        Some(Self { beginning, rate, fed: 0, brought: 0, failed: 0 })
    }

    /// True at the end of the run.
    fn feed(&mut self, state: &DecodeState, most: u64) -> bool {
        for _ in 0..most {
            match state.feed(&self.beginning, self.beginning.first_seq + self.fed) {
                Feed::Tag(_) => self.fed += 1,
                Feed::Wait => return false,
                Feed::End => return true,
            }
        }
        false
    }

    fn position(&self, units: u64) -> u64 {
        (units * SAMPLE_RATE + self.rate / 2) / self.rate
    }

    /// Brings at most so many of the samples that are due.
    fn bring(&mut self, state: &mut DecodeState, most: u64) {
        let origin = self.beginning.origin_units;
        let due = self.position(origin + self.fed * 1024) - self.position(origin);
        let count = most.min(due - self.brought);
        let first = self.position(origin) + self.brought;
        let pcm: Vec<u8> = (first..first + count).flat_map(|n| ((n % MODULUS) as i16).to_le_bytes()).collect();
        let at_ms = ((self.brought + self.failed) / SAMPLES_PER_MS) as u32;
        state.decoded(self.beginning.run, &Decoded { at_ms, pcm: pcm.into() }, 0);
        self.brought += count;
    }
}

fn chunks(state: &mut DecodeState) -> Vec<PcmChunk> {
    let mut all = Vec::new();
    while let Some(chunk) = state.front_chunk() {
        all.push(chunk);
        state.pop_chunk();
    }
    all
}

fn numbers(chunks: &[PcmChunk]) -> Vec<u64> {
    let bytes: Vec<u8> = chunks.iter().filter(|c| !c.inserted).flat_map(|c| c.pcm.to_vec()).collect();
    bytes.chunks_exact(2).map(|b| u64::from(u16::from_le_bytes([b[0], b[1]]))).collect()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    /// However decoders die, and however their output is cut, every sample comes out once and in order.
    #[test]
    fn no_sample_is_lost_or_doubled(
        steps in prop::collection::vec((1u64..12, 0u64..6000, prop::bool::weighted(0.3)), 1..60),
        fast in any::<bool>(),
    ) {
        let (config, rate) = if fast { (CONFIG_48, 48_000) } else { (CONFIG_44, 44_100) };
        let mut state = state_with(config);
        let mut accepted = 0;
        let mut decoder: Option<Simulated> = None;
        for (count, samples, dies) in steps {
            frames(&mut state, accepted, count, rate);
            accepted += count;
            if decoder.is_none() {
                decoder = Simulated::begin(&mut state, rate);
            }
            if let Some(decoder) = &mut decoder {
                decoder.feed(&state, 8);
                decoder.bring(&mut state, samples);
            }
            if dies && decoder.take().is_some() {
                // It brought something, or is forgiven.
                state.starts.progress();
                prop_assert_eq!(state.died(), None);
            }
        }
        state.want_flush();
        state.no_more_tags();
        while let Some(mut decoder) = decoder.take().or_else(|| Simulated::begin(&mut state, rate)) {
            prop_assert!(decoder.feed(&state, u64::MAX));
            decoder.bring(&mut state, u64::MAX);
            state.ended(decoder.beginning.run);
        }
        prop_assert!(state.finish_flush());
        let chunks = chunks(&mut state);
        prop_assert_eq!(state.check(), Ok(()));
        let got = numbers(&chunks);
        let wanted: Vec<u64> = (0..(accepted * 1024 * SAMPLE_RATE + rate / 2) / rate).map(|n| n % MODULUS).collect();
        prop_assert_eq!(got, wanted);
        for pair in chunks.windows(2) {
            prop_assert_eq!(pair[1].start_ms, pair[0].start_ms + 100);
        }
    }
}

/// Decodes all that is there at once, to the end of the publish.
fn decode_all(state: &mut DecodeState, rate: u64) -> Vec<PcmChunk> {
    state.want_flush();
    state.no_more_tags();
    while let Some(mut decoder) = Simulated::begin(state, rate) {
        assert!(decoder.feed(state, u64::MAX));
        decoder.bring(state, u64::MAX);
        state.ended(decoder.beginning.run);
    }
    assert!(state.finish_flush());
    chunks(state)
}

#[test]
fn silence_lies_exactly_where_the_timestamps_jump() {
    let mut state = state_with(CONFIG_48);
    frames(&mut state, 0, 30, 48_000);
    // 30 frames are 640 ms; the next one says 1000.
    state.accept(&tag(1, 1000, FRAME), 0).unwrap();
    let chunks = decode_all(&mut state, 48_000);
    let before: u64 = chunks.iter().take_while(|c| !c.inserted).map(|c| c.pcm.len() as u64 / 2).sum();
    let silent: u64 = chunks.iter().filter(|c| c.inserted).map(|c| c.pcm.len() as u64 / 2).sum();
    assert_eq!((before, silent), (640 * SAMPLES_PER_MS, 360 * SAMPLES_PER_MS));
    assert_eq!(chunks.last().unwrap().start_ms, 1000);
    assert_eq!(numbers(&chunks).len(), 31 * 1024 / 3);
}

#[test]
fn a_pause_begins_a_segment_at_its_arrival() {
    let mut state = state_with(CONFIG_48);
    frames(&mut state, 0, 30, 48_000);
    state.accept(&tag(1, 60_000, FRAME), 12_345).unwrap();
    let chunks = decode_all(&mut state, 48_000);
    assert_eq!(chunks.iter().map(|c| c.start_ms).collect::<Vec<_>>(), [0, 100, 200, 300, 400, 500, 600, 12_345]);
    assert!(chunks.iter().all(|c| !c.inserted));
    assert_eq!(state.pop_pause(), Some(Pause { start_ms: 640, end_ms: 12_345 }));
    assert_eq!(state.pop_pause(), None);
}

/// The pause between ten frames and another that is heard at 20 s.
fn pause_before(tag: AudioTag, announced_ms: u64) -> Option<Pause> {
    let mut state = state_with(CONFIG_48);
    frames(&mut state, 0, 10, 48_000);
    state.announced_until(announced_ms);
    if tag.publisher != 1 {
        state.accept(&self::tag(tag.publisher, 0, CONFIG_48), 20_000).unwrap();
    }
    state.accept(&tag, 20_000).unwrap();
    decode_all(&mut state, 48_000);
    state.pop_pause()
}

#[test]
fn only_a_publisher_that_stays_pauses() {
    assert_eq!(pause_before(tag(1, 60_000, FRAME), 0), Some(Pause { start_ms: 214, end_ms: 20_000 }));
    let paused = Some(Pause { start_ms: 214, end_ms: 20_000 });
    assert_eq!(pause_before(tag(1, 213, FRAME), 0), paused, "whatever its timestamp says");
    assert_eq!(pause_before(tag(2, 60_000, FRAME), 0), None, "another publisher");
    assert_eq!(pause_before(tag(1, 60_000, FRAME), 19_900), None, "it was announced as lost");
    assert_eq!(pause_before(tag(1, 60_000, FRAME), 9000), Some(Pause { start_ms: 9000, end_ms: 20_000 }));
}

#[test]
fn frames_that_no_decoder_decoded_at_the_end_are_silent() {
    let mut state = state_with(CONFIG_48);
    frames(&mut state, 0, 30, 48_000);
    state.want_flush();
    state.no_more_tags();
    let mut decoder = Simulated::begin(&mut state, 48_000).unwrap();
    assert!(decoder.feed(&state, u64::MAX));
    decoder.bring(&mut state, 28 * 1024 / 3 - 17);
    state.ended(decoder.beginning.run);
    assert!(state.finish_flush());
    assert_eq!(state.take_failed(), (2, 42));
    let hole = state.pop_hole().unwrap();
    assert!((hole.start_ms, hole.tags) == (597, 2) && (639..=640).contains(&hole.end_ms), "{hole:?}");
    let samples: usize = chunks(&mut state).iter().map(|c| c.pcm.len() / 2).sum();
    assert!(samples.abs_diff(10_240) < 16, "{samples}");
}

/// 300 frames at 48 kHz, of which a decoder that says nothing of it gives no sound for some; the hole that is told.
fn holes_of(failing: std::ops::Range<u64>) -> (Vec<PcmChunk>, (u64, u64), Vec<Lost>) {
    let mut state = state_with(CONFIG_48);
    frames(&mut state, 0, 300, 48_000);
    let beginning = state.begin().unwrap();
    for n in (0..300).filter(|n| !failing.contains(n)) {
        let at = n * 1024 / 3;
        let pcm = vec![1; (((n + 1) * 1024 / 3 - at) * 2) as usize].into();
        // A resampler holds a millisecond back.
        let at_ms = (at / 16).saturating_sub(1) as u32;
        state.decoded(beginning.run, &Decoded { at_ms, pcm }, 0);
    }
    state.want_flush();
    state.no_more_tags();
    state.ended(beginning.run);
    assert!(state.finish_flush());
    let failed = state.take_failed();
    let holes = std::iter::from_fn(|| state.pop_hole()).collect();
    (chunks(&mut state), failed, holes)
}

#[test]
fn frames_without_sound_are_found_by_the_time_of_the_next() {
    for (range, start_ms, end_ms) in [(100..150, 2133, 3200), (0..150, 0, 3200), (250..300, 5333, 6400)] {
        let count = range.end - range.start;
        let (chunks, failed, holes) = holes_of(range.clone());
        assert_eq!(failed, (count, count * 64 / 3), "{range:?}");
        let [hole] = holes[..] else { panic!("{holes:?}") };
        assert_eq!(hole.tags, count as usize);
        assert!(hole.start_ms.abs_diff(start_ms) <= 2 && hole.end_ms.abs_diff(end_ms) <= 2, "{hole:?}");
        let samples: u64 = chunks.iter().map(|c| c.pcm.len() as u64 / 2).sum();
        assert!(samples.abs_diff(300 * 1024 / 3) < 17, "{samples}");
        let silent: u64 = chunks.iter().filter(|c| c.inserted).map(|c| c.pcm.len() as u64 / 2).sum();
        assert!(silent.abs_diff(count * 1024 / 3) < 32, "{silent}");
        let ends: Vec<u64> = chunks.iter().map(|c| c.start_ms + c.pcm.len() as u64 / 32).collect();
        assert!(chunks.iter().skip(1).zip(&ends).all(|(c, end)| c.start_ms.abs_diff(*end) <= 1), "end to end");
    }
    assert_eq!(holes_of(0..0).1, (0, 0));
    assert_eq!(holes_of(0..300).1, (300, 6400), "none gave any");
}

#[test]
fn while_nothing_is_heard_the_complaints_tell() {
    let mut state = state_with(CONFIG_48);
    frames(&mut state, 0, 100, 48_000);
    let run = state.begin().unwrap().run;
    state.no_sound(run, 40, 0);
    assert_eq!((state.take_failed().0, state.waiting()), (40, 60));
    state.no_sound(run, 40, 0);
    assert_eq!(state.take_failed().0, 0, "they are counted once");
    // Some fail without a word; later ones were complained of.
    state.no_sound(run, 78, 80);
    assert_eq!((state.take_failed().0, state.waiting()), (40, 20));
    assert_eq!(state.trouble_change(), Some(Some(Trouble::Undecodable)));
    // What is given up is not said a second time when it is heard after all, and what follows is in its place.
    for n in 79..100 {
        let pcm = vec![1; 341 * 2].into();
        state.decoded(run, &Decoded { at_ms: (n * 64 / 3) as u32, pcm }, 78);
    }
    assert_eq!(state.take_failed().0, 0);
    let heard: usize = chunks(&mut state).iter().filter(|c| !c.inserted).map(|c| c.pcm.len() / 2).sum();
    assert!((18 * 341..=20 * 341).contains(&heard), "{heard}");
}

#[test]
fn a_decoder_begins_where_its_samples_fall_on_those_of_its_predecessor() {
    let mut state = state_with(CONFIG_48);
    frames(&mut state, 0, 100, 48_000);
    let mut decoder = Simulated::begin(&mut state, 48_000).unwrap();
    assert_eq!(decoder.beginning.first_seq, 0);
    decoder.feed(&state, 90);
    decoder.bring(&mut state, 80 * 1024 / 3);
    state.died();
    // 79 frames are out and the 80th in part. At 48 kHz every third frame begins on a sample.
    let next = state.begin().unwrap();
    assert_eq!(next.first_seq, 75);
    assert_eq!(next.config.as_deref(), Some(CONFIG_48));
    assert!(matches!(state.feed(&next, 78), Feed::Tag(Input { timestamp_ms: 64, .. })));
}

#[test]
fn a_configuration_counts_for_its_publisher_and_a_new_one_begins_a_run() {
    let mut state = state_with(CONFIG_48);
    frames(&mut state, 0, 2, 48_000);
    let run = state.begin().unwrap().run;
    state.accept(&tag(1, 50, CONFIG_48), 0).unwrap();
    frames(&mut state, 2, 1, 48_000);
    assert!(matches!(state.feed(&state.begin_of(run), 2), Feed::Tag(_)), "the same again changes nothing");
    state.accept(&tag(1, 60, CONFIG_44), 0).unwrap();
    frames(&mut state, 3, 1, 48_000);
    assert_eq!(state.feed(&state.begin_of(run), 3), Feed::End);
    // Another publisher that says none is taken to have this one.
    state.accept(&tag(2, 0, FRAME), 0).unwrap();
    assert_eq!((state.waiting(), state.ignored_tags()), (5, 0));
    assert!(state.take_assumed() && !state.take_assumed());
}

#[test]
fn a_configuration_outlives_the_process() {
    let mut state = DecodeState::new(100);
    state.assume(state_with(CONFIG_44).last_config().unwrap().clone());
    state.assume(Bytes::from_static(b"\xAFnonsense"));
    state.accept(&tag(7, 0, FRAME), 0).unwrap();
    assert_eq!(state.begin().unwrap().config.as_deref(), Some(CONFIG_44));
}

/// ADTS, AAC-LC, 48 kHz, mono: one frame of two bytes; and the same at 44.1 kHz.
const ADTS_48: &[u8] = &[0xFF, 0xF1, 0x4C, 0x40, 0x01, 0x3F, 0xFC, 0x21, 0x17];
const ADTS_44: &[u8] = &[0xFF, 0xF1, 0x50, 0x40, 0x01, 0x3F, 0xFC, 0x21, 0x17];

#[test]
fn frames_with_headers_of_their_own_need_no_other() {
    let adts =
        |frames: &[&[u8]]| AudioTag { body: [&[0xAF, 1], &frames.concat()[..]].concat().into(), ..tag(1, 0, FRAME) };
    let mut state = DecodeState::new(100);
    state.accept(&adts(&[ADTS_48, ADTS_48]), 0).unwrap();
    let beginning = state.begin().unwrap();
    assert_eq!(beginning.config.as_deref(), Some(CONFIG_48));
    for (n, timestamp_ms) in [(0, 0), (1, 21)] {
        let fed = Feed::Tag(Input { timestamp_ms, body: Bytes::from_static(FRAME) });
        assert_eq!(state.feed(&beginning, n), fed, "without its header");
    }
    state.accept(&adts(&[ADTS_44]), 0).unwrap();
    assert_eq!(state.feed(&beginning, 2), Feed::End, "another configuration in mid stream");

    // A sequence header that says more than they can is not contradicted by them.
    const HE_48: &[u8] = &[0xAF, 0, 0x29, 0x8A, 0x08, 0];
    let mut state = state_with(HE_48);
    state.accept(&adts(&[ADTS_48]), 0).unwrap();
    assert_eq!(state.begin().unwrap().config.as_deref(), Some(HE_48));
}

#[test]
fn frames_without_a_configuration_are_a_loss() {
    let mut state = DecodeState::new(100);
    for n in 0..20 {
        state.accept(&tag(1, n * 21, FRAME), 700 + n * 21).unwrap();
    }
    assert_eq!(state.pop_loss(), None, "more may come");
    state.accept(&tag(1, 420, CONFIG_48), 1120).unwrap();
    state.accept(&tag(1, 420, FRAME), 1120).unwrap();
    assert_eq!(state.pop_loss(), Some(Lost { start_ms: 700, end_ms: 700 + 19 * 21 + ORPHAN_MS, tags: 20 }));
    assert_eq!(state.pop_loss(), None);
}

#[test]
fn a_publisher_without_any_configuration_is_told_soon_and_then_in_pieces() {
    let mut state = DecodeState::new(100);
    let mut told = Vec::new();
    for n in 0..2000 {
        state.accept(&tag(1, n * 20, FRAME), n * 20).unwrap();
        told.extend(state.pop_loss().map(|lost| (lost.start_ms, lost.end_ms)));
        assert_eq!(state.trouble_change().is_some(), told.len() == 1 && told[0].1 == n * 20 + ORPHAN_MS);
    }
    assert_eq!(told, [(0, 1503), (1500, 31_503)].map(|(start, end)| (start, end)));
    state.accept(&tag(1, 40_000, CONFIG_48), 40_000).unwrap();
    assert_eq!(state.trouble_change(), None, "no frame has come yet");
    state.accept(&tag(1, 40_000, FRAME), 40_000).unwrap();
    assert_eq!(state.trouble_change(), Some(None));
}

#[test]
fn a_flush_does_not_wait_for_the_publisher_who_came_meanwhile() {
    let mut state = state_with(CONFIG_48);
    frames(&mut state, 0, 10, 48_000);
    state.want_flush();
    state.accept(&tag(2, 0, CONFIG_44), 0).unwrap();
    state.accept(&tag(2, 0, FRAME), 0).unwrap();
    state.no_more_tags();
    let mut decoder = Simulated::begin(&mut state, 48_000).unwrap();
    assert!(decoder.feed(&state, u64::MAX));
    decoder.bring(&mut state, u64::MAX);
    state.ended(decoder.beginning.run);
    assert!(state.finish_flush());
    assert_eq!(state.waiting(), 1);
    let next = state.begin().unwrap();
    assert_eq!(state.feed(&next, next.first_seq + 1), Feed::Wait, "its run goes on");
}

#[test]
fn tags_that_killed_three_decoders_are_given_up() {
    let mut state = state_with(CONFIG_48);
    state.accept(&tag(1, 0, FRAME), 700).unwrap();
    state.accept(&tag(1, 21, FRAME), 720).unwrap();
    assert_eq!((state.died(), state.died()), (None, None));
    assert_eq!(state.died(), Some(Lost { start_ms: 700, end_ms: 743, tags: 2 }));
    assert_eq!(state.begin(), None);
    // What comes then is decoded again, in the same configuration, at its own time.
    state.accept(&tag(1, 42, FRAME), 5000).unwrap();
    let chunks = decode_all(&mut state, 48_000);
    assert_eq!(chunks.iter().map(|c| c.start_ms).collect::<Vec<_>>(), [5000]);
}

#[test]
fn other_codecs_are_as_long_as_their_timestamps_say() {
    let mut state = DecodeState::new(100);
    // Its frames have no head that can be read.
    let mp3: &[u8] = &[0x2F, 1, 2, 3];
    for n in 0..50 {
        state.accept(&tag(1, 1000 + n * 40, mp3), 0).unwrap();
    }
    let beginning = state.begin().unwrap();
    assert!(matches!(state.feed(&beginning, 49), Feed::Tag(Input { timestamp_ms: 1940, .. })));
    state.pcm(beginning.run, &vec![1; 2 * 2000 * 16]);
    assert_eq!(state.waiting(), 0);
    state.want_flush();
    state.no_more_tags();
    state.ended(beginning.run);
    assert_eq!(chunks(&mut state).len(), 20);
}

/// MP3, layer III, 44.1 kHz, 32 kbit/s: 1152 samples in 104 bytes; and one whose head is broken.
fn mp3(is_broken: bool) -> Bytes {
    let head: [u8; 5] = if is_broken { [0x2F, 0, 0, 0, 0] } else { [0x2F, 0xFF, 0xFB, 0x10, 0xC0] };
    [&head[..], &[0; 100]].concat().into()
}

fn mp3_tags(broken: impl Fn(u64) -> bool) -> (DecodeState, RunStart) {
    let mut state = DecodeState::new(100);
    for n in 0..100 {
        let tag = AudioTag { body: mp3(broken(n)), ..tag(1, n * 1152 * 1000 / 44_100, FRAME) };
        state.accept(&tag, 0).unwrap();
    }
    let beginning = state.begin().unwrap();
    (state, beginning)
}

#[test]
fn a_tag_that_cannot_be_read_is_as_long_as_its_predecessor_and_goes_on_in_its_decoder() {
    let (state, beginning) = mp3_tags(|n| n % 7 == 3);
    let at = |n: u64| (n * 1152 * 1000 + 22_050) / 44_100;
    for n in 0..100 {
        let Feed::Tag(fed) = state.feed(&beginning, n) else { panic!("{n} is of another run") };
        assert_eq!(u64::from(fed.timestamp_ms), at(n));
    }
}

#[test]
fn a_frame_of_another_codec_that_brings_no_sound_is_lost() {
    let (mut state, beginning) = mp3_tags(|_| false);
    // The decoder says nothing of frames 40 to 44, and brings the last one twice.
    let frame = |n: u64| n * 1152 * 160 / 441;
    for n in (0..100).filter(|n| !(40..45).contains(n)).chain([99]) {
        let pcm = vec![1; ((frame(n + 1) - frame(n)) * 2) as usize].into();
        state.decoded(beginning.run, &Decoded { at_ms: (frame(n) / 16) as u32, pcm }, 0);
    }
    state.want_flush();
    state.no_more_tags();
    state.ended(beginning.run);
    assert_eq!(state.check(), Ok(()));
    assert_eq!(state.take_failed(), (5, 130));
    let heard: u64 = chunks(&mut state).iter().filter(|c| !c.inserted).map(|c| c.pcm.len() as u64 / 2).sum();
    assert!(heard.abs_diff(frame(96)) <= 16, "{heard}: nothing that was decoded is thrown away");
}

#[test]
fn a_decoder_of_small_mp3_frames_warms_up_on_what_they_may_refer_to() {
    let (mut state, beginning) = mp3_tags(|_| false);
    state.pcm(beginning.run, &vec![1; 2 * 60 * 1152 * 160 / 441]);
    state.died();
    let next = state.begin().unwrap();
    // A kilobyte is ten of them.
    assert!((46..=50).contains(&next.first_seq), "{}", next.first_seq);
}

#[test]
fn what_cannot_be_decoded_is_an_error_and_changes_nothing() {
    let mut state = state_with(CONFIG_48);
    assert!(state.accept(&tag(1, 0, &[0xAF, 0, 0xF8, 0xE6, 0x40]), 0).is_err());
    assert!(state.accept(&tag(1, 0, &[0x90, b'O', b'p', b'u', b's', 0]), 0).is_err());
    frames(&mut state, 0, 1, 48_000);
    assert_eq!(state.waiting(), 1);
}

impl DecodeState {
    /// The beginning of a run's first decoder.
    fn begin_of(&self, run: u64) -> RunStart {
        RunStart { run, config: None, first_seq: 0, origin_units: 0 }
    }
}

/// The frames of a second publisher, after `frames(state, 0, 10, 48_000)` of the first: does the same decoder go on?
fn goes_on(first_timestamp_ms: u64, config: &'static [u8], flushed: bool) -> bool {
    let mut state = state_with(CONFIG_48);
    frames(&mut state, 0, 10, 48_000);
    let mut decoder = Simulated::begin(&mut state, 48_000).expect("there is work");
    assert!(!decoder.feed(&state, 20));
    if flushed {
        state.want_flush();
        state.no_more_tags();
    }
    state.accept(&tag(2, first_timestamp_ms, config), 0).unwrap();
    state.accept(&tag(2, first_timestamp_ms, FRAME), 0).unwrap();
    // Whatever an old publisher says after its successor has spoken is not for this run.
    state.accept(&tag(1, first_timestamp_ms, FRAME), 0).unwrap();
    assert_eq!(state.waiting(), 11);
    let ended = decoder.feed(&state, 20);
    assert_eq!(decoder.fed, if ended { 10 } else { 11 });
    !ended
}

#[test]
fn a_publisher_that_goes_on_where_one_was_lost_goes_on_in_its_decoder() {
    // Ten frames of 21 1/3 ms: the last one is at 192 ms, the next would be at 213 ms.
    assert!(goes_on(213, CONFIG_48, false));
    assert!(goes_on(213 + 39, CONFIG_48, false));
    assert!(!goes_on(213 + 60, CONFIG_48, false), "there was no time for so much to be missing");
    assert!(!goes_on(0, CONFIG_48, false), "its timestamps began anew");
    assert!(!goes_on(213, CONFIG_44, false), "another configuration");
    assert!(!goes_on(213, CONFIG_48, true), "the decoder was ended already");
}

/// Frames that are all different, as those of real audio. 48 kHz.
fn frame(n: u64) -> Bytes {
    [FRAME, &n.to_be_bytes()].concat().into()
}

/// Ten seconds of a publisher, and two of another one that begins `overlap` frames before their end, after `away_ms`. All
/// that was said meanwhile comes at once where it has a `backlog`. Gives frames that were heard, frames skipped, and what
/// was missing.
fn return_of(overlap: u64, away_ms: u64, missing: u64, backlog: bool) -> (usize, u64, Vec<Return>, Vec<Pause>) {
    let mut state = state_with(CONFIG_48);
    let timestamp = |n: u64| n * 1024 * 1000 / 48_000;
    let send = |state: &mut DecodeState, publisher, n, arrived_ms| {
        let tag = AudioTag { publisher, timestamp_ms: timestamp(n), body: frame(n), arrived: Instant::now() };
        state.accept(&tag, arrived_ms).unwrap();
    };
    for n in 0..469 {
        send(&mut state, 1, n, timestamp(n));
    }
    state.accept(&tag(2, 0, CONFIG_48), 10_000 + away_ms).unwrap();
    let first = 469 - overlap + missing;
    for n in first..469 + 150 {
        let live_ms = 10_000 + away_ms + timestamp(n.saturating_sub(469));
        let arrived_ms = if backlog { timestamp(n).max(10_000 + away_ms) } else { live_ms };
        send(&mut state, 2, n, arrived_ms);
    }
    let chunks = decode_all(&mut state, 48_000);
    assert_eq!(state.check(), Ok(()));
    let samples = numbers(&chunks).len() * 3 / 1024;
    let skipped = state.take_skipped() * 3 / 1024;
    let returns = std::iter::from_fn(|| state.pop_return()).collect();
    (samples, skipped, returns, std::iter::from_fn(|| state.pop_pause()).collect())
}

#[test]
fn what_a_publisher_sends_again_when_it_is_back_is_heard_once() {
    let whole = Return { missing: None };
    for overlap in [0, 1, 2, 10, 43, 140] {
        for away_ms in [300, 1500, 3000] {
            let (heard, skipped, returns, pauses) = return_of(overlap, away_ms, 0, true);
            assert!(heard.abs_diff(469 + 150) <= 1, "{heard} frames, overlap {overlap}");
            // Rounded down, frame by frame.
            assert!((overlap.saturating_sub(1)..=overlap).contains(&skipped), "{skipped} of {overlap}");
            assert_eq!((returns, pauses), (vec![whole], vec![]), "{overlap} frames, {away_ms} ms");
        }
    }
}

#[test]
fn what_is_missing_when_a_publisher_is_back_is_told_to_the_frame() {
    // 47 frames are 1003 ms.
    let (_, _, returns, _) = return_of(0, 3000, 47, true);
    let [Return { missing: Some(Pause { start_ms, end_ms }) }] = returns[..] else { panic!("{returns:?}") };
    assert!(start_ms.abs_diff(10_005) < 5 && end_ms.abs_diff(11_008) < 5, "{start_ms} {end_ms}");
    // Its timestamps go on, and yet nothing of three seconds ever comes.
    let (heard, _, returns, _) = return_of(0, 3000, 0, false);
    let [Return { missing: Some(Pause { start_ms, end_ms }) }] = returns[..] else { panic!("{returns:?}") };
    assert!(start_ms.abs_diff(10_005) < 5 && end_ms.abs_diff(13_000) < 50, "{start_ms} {end_ms}");
    assert!(heard.abs_diff(469 + 150) <= 1);
}

#[test]
fn a_stream_that_begins_again_from_its_beginning_is_heard_again() {
    let mut state = state_with(CONFIG_48);
    frames(&mut state, 0, 100, 48_000);
    state.accept(&tag(2, 0, CONFIG_48), 9000).unwrap();
    for n in 0..100 {
        state.accept(&tag(2, n * 1024 * 1000 / 48_000, FRAME), 9000).unwrap();
    }
    assert_eq!(numbers(&decode_all(&mut state, 48_000)).len(), 2 * 100 * 1024 / 3);
    assert_eq!((state.take_skipped(), state.pop_return()), (0, None));
}

#[test]
fn tags_that_wait_for_a_backlog_are_not_fed_and_do_not_count_as_work() {
    let mut state = state_with(CONFIG_48);
    frames(&mut state, 0, 10, 48_000);
    let beginning = state.begin().unwrap();
    for n in 10..20 {
        let timestamp_ms = n * 1024 * 1000 / 48_000;
        state.accept(&tag(1, timestamp_ms, FRAME), 8000 + timestamp_ms - 213).unwrap();
    }
    assert_eq!((state.feed(&beginning, 9), state.feed(&beginning, 10)).1, Feed::Wait);
    assert_eq!((state.waiting(), state.settles_at_ms()), (10, Some(8500)));
    state.settle();
    assert!(matches!(state.feed(&beginning, 10), Feed::Tag(_)));
    assert_eq!((state.waiting(), state.settles_at_ms()), (20, None));
    let chunks = decode_all(&mut state, 48_000);
    assert_eq!(chunks.iter().map(|c| c.start_ms).collect::<Vec<_>>(), [0, 100, 200, 8000, 8100, 8200]);
}
