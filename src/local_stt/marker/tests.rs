use super::*;

const PARAMS: StreamParams = StreamParams { end_silence_ms: 300, max_segment_ms: 15_000, interims: true };

fn events(params: StreamParams, samples: &[i16], chunk: usize) -> Vec<Event> {
    let mut detector = Detector::new(params);
    samples.chunks(chunk).for_each(|c| detector.push(c));
    detector.finish();
    detector.take_events()
}

fn finals(events: &[Event]) -> Vec<(String, u64, u64)> {
    let text = |event: &Event| match event {
        Event::Final(u) => Some((u.text.clone(), u.start_ms, u.end_ms)),
        _ => None,
    };
    events.iter().filter_map(text).collect()
}

fn silence(ms: usize) -> Vec<i16> {
    vec![0; ms * SAMPLES_PER_MS]
}

#[test]
fn numbers_come_back_with_their_times_whatever_the_chunks() {
    let mut audio = silence(1000);
    for number in [0, 7, 17, 90_210, u32::MAX] {
        audio.extend(synthesise(number));
        audio.extend(silence(700));
    }
    let whole = events(PARAMS, &audio, audio.len());
    let found = finals(&whole);
    let numbers: Vec<_> = found.iter().map(|(text, ..)| parse(text).unwrap()).collect();
    assert_eq!(numbers, [0, 7, 17, 90_210, u32::MAX]);
    assert!(found[0].1.abs_diff(1000) <= 4, "{found:?}");
    assert!(found[0].2.abs_diff(1000 + 4 * 120 - 50) <= 4, "{found:?}");
    for chunk in [1, 31, 1600, 3333] {
        assert_eq!(events(PARAMS, &audio, chunk), whole, "chunks of {chunk}");
    }
}

#[test]
fn interims_grow_into_the_final_and_share_its_segment() {
    let events = events(PARAMS, &synthesise(123), 1600);
    let mut texts = Vec::new();
    for event in &events {
        if let Event::Interim(u) | Event::Final(u) = event {
            assert_eq!((u.segment, u.words.len()), (0, 2));
            texts.push(u.text.as_str());
        }
    }
    assert_eq!(texts, ["marker 1", "marker 12", "marker 123", "marker 123"]);
    assert!(matches!(events[0], Event::SpeechStart { .. }));
    let quiet = StreamParams { interims: false, ..PARAMS };
    assert!(!super::tests::events(quiet, &synthesise(123), 1600).iter().any(|e| matches!(e, Event::Interim(_))));
}

#[test]
fn the_shortest_endpointing_does_not_split_a_marker() {
    let shortest = StreamParams { end_silence_ms: 10, ..PARAMS };
    let found = finals(&events(shortest, &track(1, 2, 1500), 1600));
    assert_eq!(found.iter().map(|f| parse(&f.0)).collect::<Vec<_>>(), [Some(1), Some(2)]);
}

#[test]
fn markers_without_a_pause_stay_apart() {
    let audio: Vec<i16> = (1..=5).flat_map(|n| [synthesise(n), silence(100)].concat()).collect();
    let found = finals(&events(PARAMS, &audio, 1600));
    assert_eq!(found.iter().map(|f| parse(&f.0)).collect::<Vec<_>>(), [1, 2, 3, 4, 5].map(Some));
}

#[test]
fn damage_shows() {
    let marker = synthesise(4711);
    let third = 2 * 120 * SAMPLES_PER_MS;
    let lost = [&marker[..third], &marker[third + 120 * SAMPLES_PER_MS..]].concat();
    let twice = [&marker[..third], &marker[third - 120 * SAMPLES_PER_MS..]].concat();
    let cut = marker[..marker.len() / 2].to_vec();
    for damaged in [lost, twice, cut] {
        let found = finals(&events(PARAMS, &[damaged, silence(500)].concat(), 1600));
        assert_eq!(found.iter().map(|f| f.0.as_str()).collect::<Vec<_>>(), [DAMAGED]);
    }
}

#[test]
fn noise_is_no_marker() {
    let mut state = 1u32;
    let noise: Vec<i16> = std::iter::repeat_with(|| {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (state >> 18) as i16 - 8192
    })
    .take(SAMPLE_RATE)
    .collect();
    let events = events(PARAMS, &[noise, silence(500)].concat(), 1600);
    assert!(events.iter().any(|e| matches!(e, Event::Empty { .. })), "{events:?}");
    assert_eq!(finals(&events), vec![]);
    assert_eq!(super::tests::events(PARAMS, &silence(1000), 1600), vec![]);
}

#[test]
fn a_track_keeps_its_period() {
    let audio = track(10, 3, 1500);
    assert_eq!(audio.len(), 3 * 1500 * SAMPLES_PER_MS);
    let found = finals(&events(PARAMS, &audio, 1600));
    let starts: Vec<u64> = found.iter().map(|f| f.1).collect();
    assert_eq!(found.iter().map(|f| parse(&f.0).unwrap()).collect::<Vec<_>>(), [10, 11, 12]);
    assert!(starts.iter().zip([0, 1500, 3000]).all(|(a, b)| a.abs_diff(b) <= 4), "{starts:?}");
}

#[test]
fn any_piece_of_any_track_is_taken_without_harm() {
    let audio = track(98, 4, 900);
    for from in (0..audio.len()).step_by(997) {
        let to = audio.len() - from / 3;
        let found = finals(&events(PARAMS, &audio[from.min(to)..to], 700));
        assert!(found.iter().all(|f| f.0 == DAMAGED || (98..102).contains(&parse(&f.0).unwrap())), "{found:?}");
    }
}
