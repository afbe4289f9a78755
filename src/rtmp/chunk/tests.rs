use proptest::prelude::*;

use super::header::EXTENDED;
use super::*;

/// Writes chunks as a publisher might.
#[derive(Default)]
struct Writer(Vec<u8>);

impl Writer {
    fn basic(&mut self, format: u8, csid: u32) {
        match csid {
            2..=63 => self.0.push(format << 6 | csid as u8),
            64..=319 => self.0.extend([format << 6, (csid - 64) as u8]),
            _ => {
                self.0.push(format << 6 | 1);
                self.0.extend(((csid - 64) as u16).to_le_bytes());
            }
        }
    }

    fn full(&mut self, csid: u32, timestamp: u32, kind: u8, length: usize) -> &mut Self {
        self.basic(0, csid);
        self.0.extend(&timestamp.min(EXTENDED).to_be_bytes()[1..]);
        self.0.extend(&(length as u32).to_be_bytes()[1..]);
        self.0.push(kind);
        self.0.extend(1u32.to_le_bytes());
        if timestamp >= EXTENDED {
            self.0.extend(timestamp.to_be_bytes());
        }
        self
    }

    fn body(&mut self, bytes: &[u8]) -> &mut Self {
        self.0.extend(bytes);
        self
    }

    fn next(&mut self, csid: u32, bytes: &[u8]) -> &mut Self {
        self.basic(3, csid);
        self.body(bytes)
    }

    /// A whole message cut into chunks of 128 bytes.
    fn message(&mut self, csid: u32, timestamp: u32, kind: u8, payload: &[u8]) -> &mut Self {
        self.full(csid, timestamp, kind, payload.len());
        for (n, part) in payload.chunks(DEFAULT_CHUNK_BYTES).enumerate() {
            if n > 0 {
                self.basic(3, csid);
                if timestamp >= EXTENDED {
                    self.0.extend(timestamp.to_be_bytes());
                }
            }
            self.body(part);
        }
        self
    }
}

/// Feeds the bytes `step` at a time: the messages, and the error that ends them.
fn read_to_error(bytes: &[u8], step: usize) -> (Vec<Message>, Option<ChunkError>) {
    let mut reader = ChunkReader::default();
    let mut input = BytesMut::new();
    let mut messages = Vec::new();
    for part in bytes.chunks(step.max(1)) {
        input.extend_from_slice(part);
        loop {
            match reader.next(&mut input) {
                Ok(Some(message)) => messages.push(message),
                Ok(None) => break,
                Err(error) => return (messages, Some(error)),
            }
        }
    }
    (messages, None)
}

/// The messages of a connection without an error.
fn read(bytes: &[u8], step: usize) -> Result<Vec<Message>, ChunkError> {
    let (messages, error) = read_to_error(bytes, step);
    error.map_or(Ok(messages), Err)
}

fn audio(bytes: &[u8]) -> Vec<(u64, Vec<u8>)> {
    let messages = read(bytes, usize::MAX).unwrap();
    assert_eq!(read(bytes, 1).unwrap(), messages, "the cut of the bytes must not matter");
    let audio = |message| match message {
        Message::Audio { timestamp_ms, body, .. } => Some((timestamp_ms, body.to_vec())),
        _ => None,
    };
    messages.into_iter().filter_map(audio).collect()
}

#[test]
fn interleaved_messages_of_several_chunk_streams_are_put_together() {
    let mut w = Writer::default();
    let (sound, picture) = ([1; 200], [2; 300]);
    w.full(4, 40, kind::AUDIO, 200).body(&sound[..128]);
    w.full(6, 41, kind::VIDEO, 300).body(&picture[..128]);
    w.full(3, 0, kind::COMMAND_AMF0, 130).body(&[5; 128]);
    w.next(6, &picture[..128]);
    w.next(4, &sound[128..]);
    w.next(3, &[5; 2]);
    w.next(6, &picture[256..]);
    w.message(4, 60, kind::AUDIO, &[3; 7]);
    assert_eq!(audio(&w.0), [(40, vec![1; 200]), (60, vec![3; 7])]);
}

#[test]
fn headers_of_every_format_and_width_are_understood() {
    for csid in [4, 63, 64, 319, 320, 65_599] {
        let mut w = Writer::default();
        w.message(csid, 1000, kind::AUDIO, &[1; 4]);
        w.basic(1, csid);
        w.body(&[0, 0, 23, 0, 0, 2, kind::AUDIO]).body(&[2; 2]);
        w.basic(2, csid);
        w.body(&[0, 0, 24]).body(&[3; 2]);
        w.next(csid, &[4; 2]);
        let times: Vec<u64> = audio(&w.0).into_iter().map(|(t, _)| t).collect();
        assert_eq!(times, [1000, 1023, 1047, 1071], "csid {csid}");
    }
}

#[test]
fn format_3_after_format_0_repeats_a_small_timestamp_but_not_a_large_one() {
    let times = |first: u32| {
        let mut w = Writer::default();
        w.message(4, first, kind::AUDIO, &[1; 4]).next(4, &[1; 4]);
        audio(&w.0).into_iter().map(|(t, _)| t).collect::<Vec<_>>()
    };
    assert_eq!(times(23), [23, 46]);
    assert_eq!(times(500_000), [500_000, 500_000]);
}

#[test]
fn extended_timestamps_are_read_repeated_or_not() {
    let late = 20_000_000;
    let mut w = Writer::default();
    w.message(4, late, kind::AUDIO, &[7; 300]);
    assert_eq!(audio(&w.0), [(u64::from(late), vec![7; 300])]);

    let mut w = Writer::default();
    w.full(4, late, kind::AUDIO, 300).body(&[7; 128]).next(4, &[7; 128]).next(4, &[7; 44]);
    w.message(4, late + 20, kind::AUDIO, &[8; 4]);
    assert_eq!(audio(&w.0), [(u64::from(late), vec![7; 300]), (u64::from(late + 20), vec![8; 4])]);
}

#[test]
fn timestamps_go_on_past_their_wrap() {
    let mut w = Writer::default();
    for timestamp in [u32::MAX - 20, 3, 26, 10] {
        w.message(4, timestamp, kind::AUDIO, &[1]);
    }
    let times: Vec<u64> = audio(&w.0).into_iter().map(|(t, _)| t).collect();
    let wrap = 1u64 << 32;
    assert_eq!(times, [wrap - 21, wrap + 3, wrap + 26, wrap + 10]);
}

#[test]
fn chunk_size_and_abort_are_obeyed() {
    let mut w = Writer::default();
    w.message(2, 0, kind::SET_CHUNK_SIZE, &1000u32.to_be_bytes());
    w.full(4, 5, kind::AUDIO, 900).body(&[1; 900]);
    w.full(4, 9, kind::AUDIO, 1500).body(&[2; 1000]);
    w.message(2, 0, kind::ABORT, &4u32.to_be_bytes());
    w.full(4, 12, kind::AUDIO, 3).body(&[3; 3]);
    assert_eq!(audio(&w.0), [(5, vec![1; 900]), (12, vec![3; 3])]);
}

#[test]
fn what_is_not_used_is_skipped_whatever_its_length() {
    let mut w = Writer::default();
    w.message(6, 0, kind::VIDEO, &vec![0; 3 << 20]);
    w.message(5, 0, kind::DATA_AMF0, &vec![0; 40_000]);
    w.message(7, 0, 22, &vec![0; 100_000]);
    w.message(7, 0, 16, &vec![0; 100_000]);
    w.message(4, 1, kind::AUDIO, &[]);
    w.message(4, 1, kind::AUDIO, &[9]);
    let mut reader = ChunkReader::default();
    let mut input = BytesMut::from(&w.0[..]);
    let message = reader.next(&mut input).unwrap();
    assert!(matches!(message, Some(Message::Audio { body, .. }) if body[..] == [9]));
    assert_eq!(reader.partial_bytes, 0);
}

#[test]
fn limits_cost_the_connection() {
    let error = |fill: &dyn Fn(&mut Writer)| {
        let mut w = Writer::default();
        fill(&mut w);
        read(&w.0, usize::MAX).unwrap_err()
    };
    let too_long = |kind, length, allowed| ChunkError::TooLong { kind, length, allowed };
    assert_eq!(error(&|w| _ = w.full(3, 0, 20, 70_000)), too_long(20, 70_000, MAX_COMMAND_BYTES));
    assert_eq!(error(&|w| _ = w.full(3, 0, 8, 300_000)), too_long(8, 300_000, MAX_AUDIO_BYTES));
    assert_eq!(error(&|w| _ = w.full(2, 0, 1, 65)), too_long(1, 65, MAX_CONTROL_BYTES));
    assert_eq!(error(&|w| _ = w.message(2, 0, 1, &[0; 4])), ChunkError::ChunkSize(0));
    assert_eq!(error(&|w| _ = w.message(2, 0, 1, &[128, 0, 0, 1])), ChunkError::ChunkSize(0x8000_0001));
    assert_eq!(error(&|w| _ = w.message(2, 0, 1, &[0; 2])), ChunkError::Short(1));
    assert_eq!(error(&|w| _ = w.next(4, &[1])), ChunkError::NoHeader(4));
    let tag = flv_tag(kind::AUDIO, 0, &[]);
    let long = [&tag[..1], &[4, 0, 1], &tag[4..11]].concat();
    let too_long_inside = too_long(8, 0x4_0001, MAX_AUDIO_BYTES);
    assert_eq!(error(&|w| _ = w.message(7, 0, kind::AGGREGATE, &long)), too_long_inside);
    let many = |w: &mut Writer| {
        w.message(2, 0, 1, &60_000u32.to_be_bytes());
        (3..20).for_each(|csid| _ = w.full(csid, 0, 8, 65_000).body(&[1; 60_000]));
    };
    assert_eq!(error(&many), ChunkError::TooMuchPartial);
    let unfinished = |w: &mut Writer| (3..1100).for_each(|csid| _ = w.full(csid, 0, 9, 200).body(&[1; 128]));
    assert_eq!(error(&unfinished), ChunkError::TooManyStreams);
}

#[test]
fn chunk_streams_without_number_are_served_in_bounded_memory() {
    let mut w = Writer::default();
    for csid in 3..5000 {
        w.message(csid, csid, kind::AUDIO, &[1]);
        // The one in use is not forgotten.
        w.next(3, &[2]);
    }
    assert_eq!(audio(&w.0).len(), 2 * (5000 - 3));
    let mut reader = ChunkReader::default();
    let mut input = BytesMut::from(&w.0[..]);
    while reader.next(&mut input).unwrap().is_some() {}
    assert_eq!(reader.streams.len(), MAX_CHUNK_STREAMS);
}

#[test]
fn any_chunk_size_of_the_specification_is_taken() {
    for size in [1, 127, 0xFF_FFFF, 0x100_0000, 0x7FFF_FFFF_u32] {
        let mut w = Writer::default();
        w.message(2, 0, kind::SET_CHUNK_SIZE, &size.to_be_bytes());
        let body = [7; 300];
        w.full(4, 9, kind::AUDIO, body.len());
        for (n, part) in body.chunks(size as usize).enumerate() {
            if n > 0 {
                w.basic(3, 4);
            }
            w.body(part);
        }
        assert_eq!(audio(&w.0), [(9, body.to_vec())], "{size}");
    }
}

#[test]
fn a_chunk_stream_may_begin_with_a_short_header() {
    let mut w = Writer::default();
    w.basic(1, 4);
    w.body(&[0, 0, 40, 0, 0, 2, kind::AUDIO]).body(&[1; 2]);
    w.basic(1, 4);
    w.body(&[0, 0, 23, 0, 0, 3, kind::AUDIO]).body(&[2; 3]);
    assert_eq!(audio(&w.0), [(40, vec![1; 2]), (63, vec![2; 3])]);
}

#[test]
fn an_unfinished_message_costs_itself_only() {
    for format in 0..=2 {
        for kind in [kind::VIDEO, kind::AUDIO, kind::DATA_AMF0, kind::COMMAND_AMF0] {
            let mut w = Writer::default();
            w.message(4, 10, kind::AUDIO, &[1; 5]);
            w.full(6, 11, kind, 200).body(&[9; 128]);
            w.basic(format, 6);
            w.body(
                [&[0, 0, 30, 0, 0, 2, kind::AUDIO, 1, 0, 0, 0][..11], &[0, 0, 1, 0, 0, 2, 8], &[0, 0, 1]]
                    [usize::from(format)],
            );
            let length = if format == 2 { 200 } else { 2 };
            let first = vec![5; length.min(128)];
            w.body(&first);
            if length > 128 {
                w.next(6, &[5; 72]);
            }
            w.message(4, 50, kind::AUDIO, &[3; 5]);
            let messages = read(&w.0, usize::MAX).unwrap();
            assert_eq!(read(&w.0, 1).unwrap(), messages);
            let lost = messages.contains(&Message::Unfinished { kind });
            assert_eq!(lost, limit(kind).is_some(), "format {format}, type {kind}");
            assert!(matches!(messages.last(), Some(Message::Audio { timestamp_ms: 50, .. })));
        }
    }
}

/// A tag as in an FLV file, with its trailer.
fn flv_tag(kind: u8, time: u32, body: &[u8]) -> Vec<u8> {
    let (length, time) = ((body.len() as u32).to_be_bytes(), time.to_be_bytes());
    let head = [kind, length[1], length[2], length[3], time[1], time[2], time[3], time[0], 0, 0, 0];
    [&head[..], body, &(body.len() as u32 + 11).to_be_bytes()].concat()
}

#[test]
fn an_aggregate_is_unpacked_on_the_clock_of_its_message() {
    let late = 0x0200_0000;
    let inside = [
        flv_tag(kind::VIDEO, late, &[7; 5000]),
        flv_tag(kind::AUDIO, late + 3, &[1; 300]),
        flv_tag(kind::DATA_AMF0, late + 5, &[2, 0, 1, b'x']),
        flv_tag(kind::AUDIO, late + 4, &[]),
        flv_tag(kind::AUDIO, late + 26, &[2; 9]),
    ];
    let mut w = Writer::default();
    w.message(4, 990, kind::AUDIO, &[9]);
    w.message(7, 1000, kind::AGGREGATE, &inside.concat());
    // Without the last trailer, which some leave out.
    let short = flv_tag(kind::AUDIO, 0, &[3; 4]);
    w.message(7, 1100, kind::AGGREGATE, &short[..short.len() - 4]);
    w.message(4, 1200, kind::AUDIO, &[9]);
    let wanted = [(990, vec![9]), (1003, vec![1; 300]), (1026, vec![2; 9]), (1100, vec![3; 4]), (1200, vec![9])];
    assert_eq!(audio(&w.0), wanted);
}

#[test]
fn an_aggregate_that_is_cut_short_or_broken_costs_itself_only() {
    let tag = flv_tag(kind::AUDIO, 0, &[1; 300]);
    let mut w = Writer::default();
    w.message(7, 5, kind::AGGREGATE, &tag[..200]);
    w.message(7, 6, kind::AGGREGATE, &tag[..7]);
    w.message(7, 7, kind::AGGREGATE, &[]);
    w.full(7, 8, kind::AGGREGATE, 400).body(&tag[..128]);
    w.message(7, 9, kind::AGGREGATE, &tag);
    let messages = read(&w.0, usize::MAX).unwrap();
    assert_eq!(read(&w.0, 1).unwrap(), messages);
    let unfinished = Message::Unfinished { kind: kind::AGGREGATE };
    assert_eq!((&messages[0], &messages[1]), (&unfinished, &unfinished));
    assert!(matches!(messages[2..], [Message::Audio { timestamp_ms: 9, .. }]));
}

#[test]
fn what_came_before_a_fatal_fault_is_given_out_first_however_the_bytes_are_cut() {
    let unfinished = || {
        let mut w = Writer::default();
        w.full(6, 11, kind::AUDIO, 200).body(&[9; 128]);
        w
    };
    let mut too_long = unfinished();
    too_long.full(6, 12, kind::ABORT, 6_385_776);
    let heard = flv_tag(kind::AUDIO, 0, &[1; 40]);
    let mut aggregate = Writer::default();
    let inside = [&heard[..], &[kind::AUDIO, 0xFF, 0xFF, 0xFF, 0, 0, 0, 0, 0, 0, 0]].concat();
    aggregate.message(7, 5, kind::AGGREGATE, &inside);
    for (name, bytes) in [("unfinished message", too_long.0), ("aggregate", aggregate.0)] {
        let (messages, error) = read_to_error(&bytes, usize::MAX);
        assert_eq!(messages.len(), 1, "{name}: {messages:?}");
        assert!(matches!(error, Some(ChunkError::TooLong { .. })), "{name}: {error:?}");
        for step in 1..20 {
            assert_eq!(read_to_error(&bytes, step), (messages.clone(), error.clone()), "{name}, cut at {step}");
        }
    }
}

#[test]
fn a_message_goes_on_after_a_change_of_the_chunk_size() {
    let mut w = Writer::default();
    w.full(4, 5, kind::AUDIO, 400).body(&[1; 128]);
    w.message(2, 0, kind::SET_CHUNK_SIZE, &200u32.to_be_bytes());
    w.next(4, &[1; 200]).next(4, &[1; 72]);
    assert_eq!(audio(&w.0), [(5, vec![1; 400])]);
}

proptest! {
    #[test]
    fn random_bytes_never_panic_and_their_cut_does_not_matter(
        bytes in prop::collection::vec(any::<u8>(), 0..2000), step in 1usize..300,
    ) {
        prop_assert_eq!(read_to_error(&bytes, usize::MAX), read_to_error(&bytes, step));
    }

    #[test]
    fn messages_come_out_as_they_went_in(
        messages in prop::collection::vec((3u32..12, 0u32..40_000_000, prop::collection::vec(any::<u8>(), 1..700)), 1..20),
        step in 1usize..300,
    ) {
        let mut w = Writer::default();
        for (csid, timestamp, payload) in &messages {
            w.message(*csid, *timestamp, kind::AUDIO, payload);
        }
        let bodies: Vec<Vec<u8>> = read(&w.0, step).unwrap().into_iter().map(|message| match message {
            Message::Audio { body, .. } => body.to_vec(),
            other => panic!("{other:?}"),
        }).collect();
        let wanted: Vec<Vec<u8>> = messages.into_iter().map(|(_, _, payload)| payload).collect();
        prop_assert_eq!(bodies, wanted);
    }
}
