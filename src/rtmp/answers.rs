//! The server's answers, as bytes: single chunks with full headers and time 0.

use rml_amf0::Amf0Value;

use super::chunk::kind;

/// We announce large chunks, so that our answers are single ones.
pub const CHUNK_BYTES: u32 = 65_536;
/// As announced: the peer is acknowledged at least so often.
pub const WINDOW_BYTES: u32 = 2_500_000;
const CSID_CONTROL: u8 = 2;
const CSID_COMMAND: u8 = 3;
const STREAM_BEGIN: u16 = 0;
const PING_RESPONSE: u16 = 7;
/// Of Set Peer Bandwidth.
const LIMIT_DYNAMIC: u8 = 2;
/// Version and abilities that clients know from Flash Media Server.
const SERVER_VERSION: &str = "FMS/3,0,1,123";
const CAPABILITIES: f64 = 31.0;
/// Descriptions are sentences; whatever a stranger has put into one must not make it longer than a chunk.
const MAX_TEXT_BYTES: usize = 1024;

/// Level of an onStatus.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Level {
    Status,
    Warning,
    Error,
}

impl Level {
    fn as_str(self) -> &'static str {
        match self {
            Self::Status => "status",
            Self::Warning => "warning",
            Self::Error => "error",
        }
    }
}

/// A message. `payload` is shorter than [`CHUNK_BYTES`].
pub fn message(csid: u8, kind: u8, stream_id: u32, payload: &[u8]) -> Vec<u8> {
    let length = (payload.len() as u32).to_be_bytes();
    let mut bytes = vec![csid, 0, 0, 0, length[1], length[2], length[3], kind];
    bytes.extend(stream_id.to_le_bytes());
    bytes.extend(payload);
    bytes
}

/// A server's settings, said after the handshake.
pub fn greeting() -> Vec<u8> {
    let window = WINDOW_BYTES.to_be_bytes();
    [
        message(CSID_CONTROL, kind::SET_CHUNK_SIZE, 0, &CHUNK_BYTES.to_be_bytes()),
        message(CSID_CONTROL, kind::WINDOW_SIZE, 0, &window),
        stream_begin(0),
        message(CSID_CONTROL, kind::PEER_BANDWIDTH, 0, &[&window[..], &[LIMIT_DYNAMIC]].concat()),
        command(0, "onBWDone", 0.0, [Amf0Value::Null, Amf0Value::Number(8192.0)]),
    ]
    .concat()
}

/// The number is the running total (5.4.3), wrapping at 2^32.
pub fn acknowledgement(received: u64) -> Vec<u8> {
    message(CSID_CONTROL, kind::ACKNOWLEDGEMENT, 0, &(received as u32).to_be_bytes())
}

/// `data` is that of the request.
pub fn pong(data: &[u8]) -> Vec<u8> {
    message(CSID_CONTROL, kind::USER_CONTROL, 0, &[&PING_RESPONSE.to_be_bytes()[..], data].concat())
}

pub fn stream_begin(stream_id: u32) -> Vec<u8> {
    let payload = [&STREAM_BEGIN.to_be_bytes()[..], &stream_id.to_be_bytes()].concat();
    message(CSID_CONTROL, kind::USER_CONTROL, 0, &payload)
}

/// The answer to connect.
pub fn connected(transaction: f64, object_encoding: f64) -> Vec<u8> {
    let properties = object([("fmsVer", text(SERVER_VERSION)), ("capabilities", Amf0Value::Number(CAPABILITIES))]);
    let information = object([
        ("level", text(Level::Status.as_str())),
        ("code", text("NetConnection.Connect.Success")),
        ("description", text("connected")),
        ("objectEncoding", Amf0Value::Number(object_encoding)),
    ]);
    command(0, "_result", transaction, [properties, information])
}

/// The answer to createStream.
pub fn stream_created(transaction: f64, stream_id: u32) -> Vec<u8> {
    command(0, "_result", transaction, [Amf0Value::Null, Amf0Value::Number(f64::from(stream_id))])
}

/// The answer to a command that has no result.
pub fn done(transaction: f64) -> Vec<u8> {
    command(0, "_result", transaction, [Amf0Value::Null, Amf0Value::Undefined])
}

/// Flash Media Server's answer to `FCPublish`.
pub fn fc_publish(transaction: f64) -> Vec<u8> {
    let information = status(Level::Status, "NetStream.Publish.Start", "the stream name is free to publish");
    command(0, "onFCPublish", transaction, [Amf0Value::Null, information])
}

/// onStatus (7.2.2).
pub fn on_status(stream_id: u32, level: Level, code: &str, description: &str) -> Vec<u8> {
    command(stream_id, "onStatus", 0.0, [Amf0Value::Null, status(level, code, description)])
}

fn status(level: Level, code: &str, description: &str) -> Amf0Value {
    let description = &description[..description.floor_char_boundary(MAX_TEXT_BYTES)];
    object([("level", text(level.as_str())), ("code", text(code)), ("description", text(description))])
}

fn text(text: &str) -> Amf0Value {
    Amf0Value::Utf8String(text.to_owned())
}

fn object<const N: usize>(properties: [(&str, Amf0Value); N]) -> Amf0Value {
    Amf0Value::Object(properties.into_iter().map(|(name, value)| (name.to_owned(), value)).collect())
}

fn command<const N: usize>(stream_id: u32, name: &str, transaction: f64, values: [Amf0Value; N]) -> Vec<u8> {
    let mut all = vec![text(name), Amf0Value::Number(transaction)];
    all.extend(values);
    let payload = rml_amf0::serialize(&all).expect("short texts are all that can be written");
    message(CSID_COMMAND, kind::COMMAND_AMF0, stream_id, &payload)
}
