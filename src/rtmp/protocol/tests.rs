use bytes::Bytes;
use proptest::prelude::*;
use rml_amf0::Amf0Value;

use super::*;

fn command(name: &str, transaction: f64, object: Amf0Value, arguments: &[Amf0Value]) -> Vec<u8> {
    let head = [Amf0Value::Utf8String(name.to_owned()), Amf0Value::Number(transaction), object];
    rml_amf0::serialize(&[&head, arguments].concat()).unwrap()
}

fn text(text: &str) -> Amf0Value {
    Amf0Value::Utf8String(text.to_owned())
}

/// A message in chunks of 128 bytes.
fn message(csid: u8, kind: u8, stream_id: u32, payload: &[u8]) -> Vec<u8> {
    let head = answers::message(csid, kind, stream_id, payload);
    let (head, body) = head.split_at(12);
    let parts: Vec<&[u8]> = body.chunks(128).collect();
    [head, &parts.join(&[0xC0 | csid][..])].concat()
}

fn say(name: &str, stream_id: u32, object: Amf0Value, arguments: &[Amf0Value]) -> Vec<u8> {
    message(3, kind::COMMAND_AMF0, stream_id, &command(name, 1.0, object, arguments))
}

fn connect(app: &str) -> Vec<u8> {
    say("connect", 0, Amf0Value::Object([("app".to_owned(), text(app))].into()), &[])
}

fn create_stream() -> Vec<u8> {
    say("createStream", 0, Amf0Value::Null, &[])
}

fn publish(name: &str) -> Vec<u8> {
    say("publish", 1, Amf0Value::Null, &[text(name), text("live")])
}

fn audio(timestamp: u8, body: &[u8]) -> Vec<u8> {
    let mut bytes = message(4, kind::AUDIO, 1, body);
    bytes[3] = timestamp;
    bytes
}

/// C0, C1 and C2 of a plain client.
fn handshake() -> Vec<u8> {
    let mut bytes = vec![1; HANDSHAKE_BYTES];
    bytes[0] = 3;
    bytes
}

/// A session as ffmpeg sends it, with the goodbye at the end.
fn session() -> Vec<u8> {
    let mut bytes = handshake();
    bytes.extend(connect("live"));
    bytes.extend(message(2, kind::SET_CHUNK_SIZE, 0, &128u32.to_be_bytes()));
    bytes.extend(say("releaseStream", 0, Amf0Value::Null, &[text("room")]));
    bytes.extend(say("FCPublish", 0, Amf0Value::Null, &[text("room")]));
    bytes.extend(create_stream());
    bytes.extend(say("_checkbw", 0, Amf0Value::Null, &[]));
    bytes.extend(publish("room?key=ab"));
    bytes.extend(message(5, kind::DATA_AMF0, 1, &rml_amf0::serialize(&vec![text("@setDataFrame")]).unwrap()));
    bytes.extend(audio(0, &[0xAF, 0, 0x12, 0x10]));
    bytes.extend(message(6, kind::VIDEO, 1, &[7; 400]));
    bytes.extend(audio(23, &[0xAF, 1, 9, 9]));
    bytes.extend(say("FCUnpublish", 0, Amf0Value::Null, &[text("room")]));
    bytes
}

/// Feeds a new connection `step` bytes at a time, accepting its publish; up to the first error or goodbye.
fn run(bytes: &[u8], step: usize) -> (Vec<Event>, Option<ProtocolError>, Protocol) {
    let mut protocol = Protocol::default();
    let (events, error) = feed(&mut protocol, bytes, step);
    (events, error, protocol)
}

fn feed(protocol: &mut Protocol, bytes: &[u8], step: usize) -> (Vec<Event>, Option<ProtocolError>) {
    let mut input = BytesMut::new();
    let mut events = Vec::new();
    for part in bytes.chunks(step) {
        input.extend_from_slice(part);
        loop {
            match protocol.next(&mut input) {
                Ok(None) => break,
                Ok(Some(event)) => {
                    if matches!(event, Event::Publish(_)) {
                        protocol.accept();
                    }
                    let over = event == Event::Unpublished;
                    events.push(event);
                    if over {
                        return (events, None);
                    }
                }
                Err(error) => return (events, Some(error)),
            }
        }
    }
    (events, None)
}

fn publish_request(app: &str, name: &str) -> PublishRequest {
    PublishRequest { app: app.into(), name: name.into(), tc_url: String::new() }
}

fn contains(output: &[u8], text: &str) -> bool {
    output.windows(text.len()).any(|part| part == text.as_bytes())
}

#[test]
fn a_session_is_the_same_however_its_bytes_are_cut() {
    let wanted = vec![
        Event::Publish(publish_request("live", "room?key=ab")),
        Event::Audio { timestamp_ms: 0, body: Bytes::from_static(&[0xAF, 0, 0x12, 0x10]) },
        Event::Audio { timestamp_ms: 23, body: Bytes::from_static(&[0xAF, 1, 9, 9]) },
        Event::Unpublished,
    ];
    for step in [1, 128, 1000, 64 << 10] {
        let (events, error, mut protocol) = run(&session(), step);
        assert_eq!((&events, error), (&wanted, None), "{step} bytes at a time");
        let output = protocol.take_output();
        for answer in ["NetConnection.Connect.Success", "_result", "NetStream.Publish.Start"] {
            assert!(contains(&output, answer), "{answer}");
        }
    }
}

#[test]
fn every_goodbye_is_understood() {
    let by_name = say("deleteStream", 0, Amf0Value::Null, &[text("room")]);
    let by_number = say("deleteStream", 0, Amf0Value::Null, &[Amf0Value::Number(1.0)]);
    let close = say("closeStream", 1, Amf0Value::Null, &[]);
    let by_false = say("publish", 1, Amf0Value::Null, &[Amf0Value::Boolean(false)]);
    let with_query = say("FCUnpublish", 0, Amf0Value::Null, &[text("room?key=ab")]);
    for goodbye in [by_name, by_number, close, by_false, with_query] {
        let bytes = [handshake(), connect("live"), create_stream(), publish("room"), goodbye].concat();
        let (events, error, _) = run(&bytes, 64 << 10);
        assert_eq!((events.last(), error), (Some(&Event::Unpublished), None));
    }
}

#[test]
fn acknowledgements_count_all_bytes_and_wait_until_all_is_read() {
    let begin = [handshake(), connect("live"), create_stream(), publish("room")].concat();
    let (_, _, mut protocol) = run(&begin, 64 << 10);
    let acks = |protocol: &mut Protocol| {
        let output = protocol.take_output();
        let at = |w: &[u8]| w[0] == 2 && w[7] == kind::ACKNOWLEDGEMENT && w[4..7] == [0, 0, 4];
        let number = |w: &[u8]| u32::from_be_bytes(w[12..16].try_into().unwrap());
        output.windows(16).filter(|w| at(w)).map(number).collect::<Vec<_>>()
    };
    let after_publish = (begin.len() - HANDSHAKE_BYTES) as u32;
    assert_eq!(acks(&mut protocol), [after_publish]);

    let block = message(6, kind::VIDEO, 1, &vec![0; 70_000]);
    for n in 1..=3 {
        feed(&mut protocol, &block, 4096);
        assert!(acks(&mut protocol).is_empty());
        protocol.caught_up();
        assert_eq!(acks(&mut protocol), [after_publish + n * block.len() as u32]);
        protocol.caught_up();
        assert!(acks(&mut protocol).is_empty());
    }
    // A window of the peer's own is honoured at once.
    feed(&mut protocol, &message(2, kind::WINDOW_SIZE, 0, &1000u32.to_be_bytes()), 4096);
    feed(&mut protocol, &message(6, kind::VIDEO, 1, &[0; 3000]), 64);
    feed(&mut protocol, &audio(1, &[1]), 64);
    assert_eq!(acks(&mut protocol).len(), 3);
}

#[test]
fn pings_are_answered_and_players_are_told() {
    let ping = message(2, kind::USER_CONTROL, 0, &[0, 6, 1, 2, 3, 4]);
    let (_, error, mut protocol) = run(&[handshake(), ping].concat(), 64 << 10);
    assert_eq!(error, None);
    assert!(protocol.take_output().ends_with(&[0, 7, 1, 2, 3, 4]));

    let play = say("play", 1, Amf0Value::Null, &[text("room")]);
    let (_, error, mut protocol) = run(&[handshake(), connect("live"), create_stream(), play].concat(), 64 << 10);
    assert_eq!(error, Some(ProtocolError::Play));
    assert!(contains(&protocol.take_output(), "NetStream.Play.Failed"));
}

#[test]
fn a_refusal_says_bad_name_and_why() {
    let mut protocol = Protocol::default();
    let mut input = BytesMut::from(&[handshake(), connect("live"), create_stream(), publish("room")].concat()[..]);
    assert!(matches!(protocol.next(&mut input), Ok(Some(Event::Publish(_)))));
    protocol.take_output();
    protocol.refuse("no such key");
    let output = protocol.take_output();
    assert!(contains(&output, "onStatus") && contains(&output, "NetStream.Publish.BadName"));
    assert!(contains(&output, "no such key"));
}

#[test]
fn a_key_never_shows() {
    let request = publish_request("live?key=s3cret", "room?key=s3cret");
    let shown = format!("{:?}", Event::Publish(request));
    assert!(shown.contains("room") && !shown.contains("s3cret"), "{shown}");
}

/// Each of these ended the process, or more, when `rml_rtmp` read it by itself.
#[test]
fn what_used_to_be_deadly_costs_one_connection() {
    let begin = || [handshake(), connect("live"), create_stream(), publish("room")].concat();
    let after = |bytes: Vec<u8>| run(&[begin(), bytes].concat(), 64 << 10).1;
    let say_raw = |payload: &[u8]| message(3, kind::COMMAND_AMF0, 0, payload);
    // A command of one value; a metadata message of one value.
    assert_eq!(after(say_raw(&rml_amf0::serialize(&vec![text("hello, world!")]).unwrap())), None);
    assert_eq!(after(message(5, 18, 1, &rml_amf0::serialize(&vec![text("@setDataFrame")]).unwrap())), None);
    // Nesting, which overflows the stack: short enough for the size limit, and in every type that holds AMF0.
    let deep = [&[2, 0, 1, b'x'][..], &[3, 0, 1, b'a'].repeat(2000)].concat();
    assert_eq!(after(say_raw(&deep)), Some(ProtocolError::Amf(AmfError::TooDeep)));
    assert_eq!(after(message(3, 17, 0, &deep)), Some(ProtocolError::Amf(AmfError::TooDeep)));
    let arrays = [10, 0, 0, 0, 1].repeat(1600);
    assert_eq!(after(say_raw(&arrays)), Some(ProtocolError::Amf(AmfError::TooDeep)));
    assert_eq!(after(message(5, 18, 1, &[3, 0, 1, b'a'].repeat(20_000))), None);
    assert_eq!(after(message(5, 15, 1, &[10, 0, 0, 0, 1].repeat(20_000))), None);
    // Size bombs, endless streams, and bytes that are no AMF0.
    let long = |kind, length: u32| [&[3, 0, 0, 0][..], &length.to_be_bytes()[1..], &[kind, 0, 0, 0, 0]].concat();
    assert!(matches!(after(long(20, 0xFF_FFFF)), Some(ProtocolError::Chunk(ChunkError::TooLong { .. }))));
    assert_eq!(after(create_stream().repeat(1000)), Some(ProtocolError::TooManyCommands));
    assert_eq!(after(say_raw(&[99; 40])), None);
    // Interleaved chunk streams, which are legal.
    let sound = audio(5, &[1; 200]);
    let (head, tail) = sound.split_at(12 + 128);
    let mixed = [head, &message(6, kind::VIDEO, 1, &[2; 50]), tail].concat();
    let (events, error, _) = run(&[begin(), mixed].concat(), 64 << 10);
    assert_eq!((events.len(), error), (2, None));
}

/// What comes after a publish on message stream 1, the answers to it, and the error.
fn after_publish(bytes: &[u8]) -> (Vec<Event>, Vec<u8>, Option<ProtocolError>) {
    let mut protocol = Protocol::default();
    let begin = [handshake(), connect("live"), create_stream(), publish("room")].concat();
    let (begun, error) = feed(&mut protocol, &begin, 64 << 10);
    assert_eq!((begun.len(), error), (1, None));
    protocol.take_output();
    let (events, error) = feed(&mut protocol, bytes, 64 << 10);
    (events, protocol.take_output(), error)
}

#[test]
fn audio_is_taken_on_any_message_stream_but_not_before_its_publish() {
    let mut bytes = [handshake(), connect("live"), create_stream()].concat();
    bytes.extend(audio(1, &[1]));
    for stream in [0, 1, 9] {
        let publish = say("publish", stream, Amf0Value::Null, &[text("room"), text("live")]);
        let sound = message(7, kind::AUDIO, 2, &[2]);
        let (events, error, _) = run(&[bytes.clone(), publish, sound].concat(), 64 << 10);
        assert_eq!((&events[0], error), (&Event::Ignored(Ignored::EarlyAudio), None));
        assert_eq!(events[1], Event::Publish(publish_request("live", "room")));
        assert!(matches!(events[2..], [Event::Audio { .. }]), "{stream}: {events:?}");
    }
}

#[test]
fn commands_of_a_long_life_are_no_flood() {
    let ping = say("_checkbw", 0, Amf0Value::Null, &[]);
    let (_, _, error) = after_publish(&ping.repeat(400));
    assert_eq!(error, None);
    let year = [audio(1, &[7; 500]), ping].concat().repeat(3000);
    let (events, _, error) = after_publish(&year);
    assert_eq!((events.len(), error), (3000, None));
}

#[test]
fn a_second_publish_is_refused_and_the_first_goes_on() {
    let second = |stream, name: &str| say("publish", stream, Amf0Value::Null, &[text(name), text("live")]);
    let bytes = [
        second(2, "other"),
        message(4, kind::AUDIO, 2, &[2]),
        message(4, kind::AUDIO, 1, &[1]),
        second(1, "third"),
        message(4, kind::AUDIO, 1, &[3]),
    ];
    let (events, said, error) = after_publish(&bytes.concat());
    let [Event::Ignored(a), Event::Ignored(b), Event::Audio { .. }, Event::Ignored(c), Event::Audio { .. }] =
        events[..]
    else {
        panic!("{events:?}")
    };
    assert_eq!([a, b, c], [Ignored::SecondPublish, Ignored::ForeignAudio, Ignored::SecondPublish]);
    assert!(error.is_none() && contains(&said, "open a connection for each room"));
    // The same once more is a repetition.
    let (events, said, error) = after_publish(&publish("room"));
    assert!(events.is_empty() && error.is_none() && contains(&said, "NetStream.Publish.Start"));
    let many: Vec<u8> = (2..40).flat_map(|stream| second(stream, "other")).collect();
    assert_eq!(after_publish(&many).2, Some(ProtocolError::SecondPublish));
}

#[test]
fn another_stream_s_end_is_not_the_publish_s() {
    let number = |n: f64| [Amf0Value::Number(n)];
    let delete = |n| say("deleteStream", 0, Amf0Value::Null, &number(n));
    let more = create_stream();
    let close = say("closeStream", 2, Amf0Value::Null, &[]);
    let old = say("FCUnpublish", 0, Amf0Value::Null, &[text("another-room")]);
    let (events, _, error) = after_publish(&[more.clone(), delete(2.0), close, old, audio(1, &[1])].concat());
    assert!(matches!(events[..], [Event::Audio { .. }]) && error.is_none(), "{events:?}");
    for goodbye in
        [delete(1.0), delete(0.0), delete(7.0), delete(f64::NAN), say("deleteStream", 0, Amf0Value::Null, &[])]
    {
        assert_eq!(after_publish(&[more.clone(), goodbye].concat()).0, [Event::Unpublished]);
    }
}

#[test]
fn a_play_beside_a_publish_is_refused_by_itself() {
    let play = say("play", 1, Amf0Value::Null, &[text("room")]);
    let (events, said, error) = after_publish(&[play, audio(1, &[1])].concat());
    assert!(matches!(events[..], [Event::Ignored(Ignored::Play), Event::Audio { .. }]) && error.is_none());
    assert!(contains(&said, "NetStream.Play.Failed"));
}

#[test]
fn phases_are_told_apart() {
    let mut protocol = Protocol::default();
    let mut phases = vec![protocol.phase()];
    for bytes in [handshake(), connect("live"), create_stream(), publish("room")] {
        feed(&mut protocol, &bytes, 64 << 10);
        phases.push(protocol.phase());
    }
    assert_eq!(phases, [Phase::Handshake, Phase::Connect, Phase::Publish, Phase::Publish, Phase::Streaming]);
}

#[test]
fn acknowledgements_become_rare() {
    assert_eq!([0, 4 << 20, 1 << 30].map(ack_every), [64 << 10, 64 << 10, 2_500_000]);
}

#[test]
fn what_is_no_rtmp_is_turned_away_at_once() {
    let (events, error, _) = run(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n", 64 << 10);
    assert_eq!((events, error), (vec![], Some(ProtocolError::Stranger(Stranger::Http))));
    let mut protocol = Protocol::default();
    assert_eq!(feed(&mut protocol, b"GET / HTTP/1.1\r\n", 1).1, Some(Stranger::Http.into()));
    protocol.refuse("this port speaks RTMP");
    let said = protocol.take_output();
    assert!(said.starts_with(b"HTTP/1.1 400 ") && contains(&said, "this port speaks RTMP"));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    #[test]
    fn damaged_sessions_never_panic(
        damage in prop::collection::vec((HANDSHAKE_BYTES..3800usize, any::<u8>()), 1..12),
        cut in 0usize..4200, step in 1usize..3000,
    ) {
        let mut bytes = session();
        for (at, value) in damage {
            if let Some(byte) = bytes.get_mut(at) {
                *byte = value;
            }
        }
        bytes.truncate(bytes.len().min(HANDSHAKE_BYTES + cut));
        let (_, _, mut protocol) = run(&bytes, step);
        protocol.refuse("the end");
        prop_assert!(!protocol.take_output().is_empty());
    }

    #[test]
    fn inserted_bytes_never_panic(at in HANDSHAKE_BYTES..3700usize, noise in prop::collection::vec(any::<u8>(), 1..200)) {
        let mut bytes = session();
        let at = at.min(bytes.len());
        bytes.splice(at..at, noise);
        run(&bytes, 777);
    }
}

#[test]
fn a_publish_streams_only_when_it_is_accepted() {
    let mut protocol = Protocol::default();
    assert_eq!(protocol.phase(), Phase::Handshake);
    for (bytes, phase) in [(handshake(), Phase::Connect), (connect("live"), Phase::Publish)] {
        feed(&mut protocol, &bytes, 4096);
        assert_eq!(protocol.phase(), phase);
    }
    let asked = protocol.next(&mut BytesMut::from(&publish("a b")[..]));
    assert_eq!(asked, Ok(Some(Event::Publish(publish_request("live", "a b")))));
    assert_eq!(protocol.phase(), Phase::Publish, "what is refused now was never streaming");
    protocol.accept();
    assert_eq!(protocol.phase(), Phase::Streaming);
}
