//! What encoders and scripts say in RTMP that is unusual, and legal or harmless: all of them are heard to the last frame.
//!
//! Reports: publish without a type or with another one, chunk sizes near 2^31, commands without their null, publishes
//! on message stream 0, audio under another message stream's id, AMF0 dates and long strings in connect, aggregate
//! messages of Flash Media Live Encoder, dozens of chunk streams, tokens of many KiB, unfinished video messages.

use tokio::io::AsyncWriteExt;

use crate::support::rtmp::{Server, tags};
use crate::support::rtmp_bytes::{connect, handshake, message, message_at, text};
use crate::support::wait::until;
use stenocast::actors::supervision::Exit;

const CLIP: &str = "audio_aac44s.flv";
const FRAMES: usize = 20;

const NULL: &[u8] = &[5];
const NUMBER: &[u8] = &[0, 0x40, 0, 0, 0, 0, 0, 0, 0];
const DATE: &[u8] = &[11, 0x42, 0x76, 0, 0, 0, 0, 0, 0, 0, 0];
const UNSUPPORTED: &[u8] = &[13];
const REFERENCE: &[u8] = &[7, 0, 0];
const LONG_STRING: &[u8] = &[12, 0, 0, 0, 2, b'h', b'i'];
const XML: &[u8] = &[15, 0, 0, 0, 4, b'<', b'a', b'/', b'>'];
const TYPED_OBJECT: &[u8] = &[16, 0, 1, b'T', 0, 1, b'x', 5, 0, 0, 9];
const AVM_PLUS: &[u8] = &[17, 10, 11, 1, 3, b'k', 6, 3, b'v', 1];
const END: &[u8] = &[0, 0, 9];

/// Time in ms and body.
type Tag = (u32, Vec<u8>);

/// One way to publish: what is said up to the publish, and how audio is put into messages.
struct Case {
    people: &'static str,
    begin: Vec<u8>,
    media: fn(&[Tag]) -> Vec<u8>,
}

fn command(name: &str, values: &[&[u8]]) -> Vec<u8> {
    [&text(name)[..], NUMBER, &values.concat()].concat()
}

fn say(stream: u8, name: &str, values: &[&[u8]]) -> Vec<u8> {
    message(20, stream, &command(name, values))
}

fn connect_with(more: &[u8]) -> Vec<u8> {
    let object = [&[3][..], more, &[0, 3], b"app", &text("live"), END].concat();
    say(0, "connect", &[&object])
}

/// createStream and a publish with these values behind its name.
fn publish(room: &str, stream: u8, kind: &[&[u8]]) -> Vec<u8> {
    let room = text(room);
    let values = [&[NULL, &room[..]][..], kind].concat();
    [say(0, "createStream", &[NULL]), say(stream, "publish", &values)].concat()
}

fn usual(room: &str) -> Vec<u8> {
    [connect(), publish(room, 1, &[&text("live")])].concat()
}

fn on_stream(stream: u8, tags: &[Tag]) -> Vec<u8> {
    tags.iter().flat_map(|(time, body)| message_at(*time, 8, stream, body)).collect()
}

fn plain(tags: &[Tag]) -> Vec<u8> {
    on_stream(1, tags)
}

/// Every tag in a chunk of its own, with a header of `format`, on chunk stream 4.
fn one_chunk(time: u32, kind: u8, body: &[u8]) -> Vec<u8> {
    let (time, length) = (time.to_be_bytes(), (body.len() as u32).to_be_bytes());
    [&[4, time[1], time[2], time[3], length[1], length[2], length[3], kind, 1, 0, 0, 0][..], body].concat()
}

fn huge_chunks(size: u32, tags: &[Tag]) -> Vec<u8> {
    let size = message(1, 0, &size.to_be_bytes());
    [size, tags.iter().flat_map(|(time, body)| one_chunk(*time, 8, body)).collect()].concat()
}

/// As in an FLV file.
fn flv_tag(time: u32, kind: u8, body: &[u8]) -> Vec<u8> {
    let (length, time) = ((body.len() as u32).to_be_bytes(), time.to_be_bytes());
    let head = [kind, length[1], length[2], length[3], time[1], time[2], time[3], time[0], 0, 0, 0];
    [&head[..], body, &(body.len() as u32 + 11).to_be_bytes()].concat()
}

fn aggregates(tags: &[Tag]) -> Vec<u8> {
    let group = |group: &[Tag]| {
        let inside = group.iter().flat_map(|(time, body)| [flv_tag(*time, 9, &[7; 90]), flv_tag(*time, 8, body)]);
        message_at(group[0].0, 22, 1, &inside.flatten().collect::<Vec<_>>())
    };
    tags.chunks(4).flat_map(group).collect()
}

/// 200 chunk streams with something on each, and audio on a new one every time.
fn many_chunk_streams(tags: &[Tag]) -> Vec<u8> {
    let chunk = |n: usize, mut bytes: Vec<u8>| {
        bytes.splice(0..1, [0, n as u8]);
        bytes
    };
    let size = message(1, 0, &60_000u32.to_be_bytes());
    let others = (0..200).flat_map(|n| chunk(n, one_chunk(0, 9, &[1, 2])));
    let audio = tags.iter().enumerate().flat_map(|(n, (time, body))| chunk(n + 100, one_chunk(*time, 8, body)));
    [size, others.chain(audio).collect()].concat()
}

/// The first header on the chunk stream, and all later ones, leave the message stream out.
fn short_headers(tags: &[Tag]) -> Vec<u8> {
    let mut last = 0;
    let chunk = |(time, body): &Tag| {
        let mut bytes = one_chunk(time - last, 8, body);
        last = *time;
        bytes[0] |= 0x40;
        bytes.drain(8..12);
        bytes
    };
    [message(1, 0, &60_000u32.to_be_bytes()), tags.iter().flat_map(chunk).collect()].concat()
}

/// A video message of 300 bytes of which 128 are sent, before every audio tag.
fn unfinished_video(tags: &[Tag]) -> Vec<u8> {
    let video = [&[4, 0, 0, 0, 0, 1, 44, 9, 1, 0, 0, 0][..], &[7; 128]].concat();
    tags.iter().flat_map(|tag| [video.clone(), on_stream(1, std::slice::from_ref(tag))].concat()).collect()
}

fn commands_between(tags: &[Tag]) -> Vec<u8> {
    let noise = say(0, "_checkbw", &[NULL]).repeat(15);
    tags.iter().flat_map(|tag| [noise.clone(), on_stream(1, std::slice::from_ref(tag))].concat()).collect()
}

/// Pings, odd windows, acknowledgements, an abort, empty messages and metadata of every AMF0 type.
fn odd_company(tags: &[Tag]) -> Vec<u8> {
    let metadata =
        [&text("@setDataFrame")[..], &text("onMetaData"), DATE, LONG_STRING, UNSUPPORTED, REFERENCE].concat();
    let company = [
        message(4, 0, &[0, 6, 0, 0, 0, 9]),
        message(4, 0, &[0, 3, 0, 0, 0, 1, 0, 0, 0, 9]),
        message(4, 0, &[7]),
        message(5, 0, &[0; 4]),
        message(5, 0, &[1]),
        message(3, 0, &[0xFF; 4]),
        message(2, 0, &[0, 0, 0, 9]),
        message(2, 0, &[0]),
        message(6, 0, &[0, 0, 0, 1, 9]),
        message(8, 1, &[]),
        message(9, 1, &[]),
        message(18, 1, &metadata),
        message(15, 1, &[0, 1, 2]),
        message(16, 1, &[0; 300]),
        message(77, 1, &[0; 300]),
    ]
    .concat();
    tags.iter().flat_map(|tag| [company.clone(), on_stream(1, std::slice::from_ref(tag))].concat()).collect()
}

fn cases() -> Vec<Case> {
    let live = text("live");
    let case = |people, begin: Vec<u8>, media| Case { people, begin, media };
    let with_publish = |people, kind: &[&[u8]]| case(people, [connect(), publish(people, 1, kind)].concat(), plain);
    let with_connect = |people, more: &[u8]| {
        let begin = [connect_with(more), publish(people, 1, &[&live])].concat();
        case(people, begin, plain)
    };
    let odd = |name: &str, value: &[u8]| [&[0, name.len() as u8][..], name.as_bytes(), value].concat();
    let all_odd = [DATE, UNSUPPORTED, REFERENCE, LONG_STRING, XML, TYPED_OBJECT, AVM_PLUS].concat();
    let long_token = [&[0, 5][..], b"tcUrl", &[12, 0, 0, 0x75, 0x30], &[b'x'; 30_000]].concat();
    let room = |people: &str| text(people);
    vec![
        with_publish("no-type", &[]),
        with_publish("null-type", &[NULL]),
        with_publish("number-type", &[NUMBER]),
        with_publish("upper-case-type", &[&text("LIVE")]),
        with_publish("unknown-type", &[&text("whatever")]),
        with_publish("record", &[&text("record")]),
        with_publish("append", &[&text("append")]),
        with_publish("more-arguments", &[&live, &all_odd]),
        with_connect("date", &odd("now", DATE)),
        with_connect("unsupported", &odd("x", UNSUPPORTED)),
        with_connect("reference", &odd("x", REFERENCE)),
        with_connect("long-string", &odd("x", LONG_STRING)),
        with_connect("xml", &odd("x", XML)),
        with_connect("typed-object", &odd("x", TYPED_OBJECT)),
        with_connect("avm-plus", &odd("x", AVM_PLUS)),
        with_connect("connect-of-30-kib", &long_token),
        case(
            "no-nulls",
            [
                connect(),
                say(0, "releaseStream", &[&room("no-nulls")]),
                say(0, "createStream", &[]),
                say(1, "publish", &[&room("no-nulls"), &live]),
            ]
            .concat(),
            plain,
        ),
        case("stream-0", [connect(), publish("stream-0", 0, &[&live])].concat(), |tags| on_stream(0, tags)),
        case(
            "stream-never-made",
            [connect(), say(9, "publish", &[NULL, &room("stream-never-made"), &live])].concat(),
            |t| on_stream(9, t),
        ),
        case("audio-elsewhere", usual("audio-elsewhere"), |tags| on_stream(0, tags)),
        case("audio-on-5", usual("audio-on-5"), |tags| on_stream(5, tags)),
        case("chunks-of-2-31", usual("chunks-of-2-31"), |tags| huge_chunks(0x7FFF_FFFF, tags)),
        case("chunks-of-2-24", usual("chunks-of-2-24"), |tags| huge_chunks(0x0100_0000, tags)),
        case("aggregates", usual("aggregates"), aggregates),
        case("many-chunk-streams", usual("many-chunk-streams"), many_chunk_streams),
        case("short-headers", usual("short-headers"), short_headers),
        case("unfinished-video", usual("unfinished-video"), unfinished_video),
        case("300-commands", usual("300-commands"), commands_between),
        case("odd-company", usual("odd-company"), odd_company),
        case(
            "publish-twice",
            [usual("publish-twice"), say(1, "publish", &[NULL, &room("publish-twice"), &live])].concat(),
            plain,
        ),
        case("connect-twice", [connect(), usual("connect-twice")].concat(), plain),
        case(
            "amf3-commands",
            [
                connect(),
                message(17, 0, &[&[0][..], &command("createStream", &[NULL])].concat()),
                message(17, 1, &command("publish", &[NULL, &room("amf3-commands"), &live])),
            ]
            .concat(),
            plain,
        ),
    ]
}

fn clip() -> Vec<Tag> {
    tags(CLIP).into_iter().take(1 + FRAMES).map(|(time, body)| (time as u32, body.to_vec())).collect()
}

/// Samples at 16 kHz in so many AAC frames at 44.1 kHz.
fn samples(frames: usize) -> usize {
    (frames as f64 * 1024.0 * 16_000.0 / 44_100.0).round() as usize
}

#[actix::test]
async fn every_one_of_them_is_heard() {
    let server = Server::start(&[]);
    let clip = clip();
    for (n, case) in cases().into_iter().enumerate() {
        let mut socket = handshake(server.address).await;
        socket.write_all(&case.begin).await.unwrap();
        let begun = async || server.seen.lock().sessions.contains_key(case.people);
        until(case.people, begun).await;
        socket.write_all(&(case.media)(&clip)).await.unwrap();
        socket.write_all(&say(0, "FCUnpublish", &[NULL, &text(case.people)])).await.unwrap();
        server.flushed(n + 1).await;
        let seen = server.seen.lock();
        assert_eq!(seen.connection_exits.last(), Some(&(case.people.to_owned(), Exit::Normal)));
        let heard = seen.sessions[case.people].pcm().len();
        assert!(heard.abs_diff(samples(FRAMES)) <= 1, "{}: {heard} samples", case.people);
    }
}
