//! Messages of LiveKit's signalling and of its data channels, as far as our participant says or reads them.
//!
//! Source: `livekit_rtc.proto` and `livekit_models.proto` of `livekit/protocol`. Fields that are not here are skipped by
//! the decoder, and enums are numbers, so that a value nobody knows yet costs nothing.

use std::collections::HashMap;

use prost::{Message, Oneof};

/// Values of the enums that matter.
pub mod number {
    /// `SignalTarget`.
    pub const PUBLISHER: i32 = 0;
    pub const SUBSCRIBER: i32 = 1;
    /// `ParticipantInfo.State`.
    pub const JOINED: i32 = 1;
    pub const ACTIVE: i32 = 2;
    pub const DISCONNECTED: i32 = 3;
    /// `ParticipantInfo.Kind`.
    pub const EGRESS: i32 = 2;
    pub const AGENT: i32 = 4;
    /// `TrackType`.
    pub const AUDIO: i32 = 0;
    pub const VIDEO: i32 = 1;
    /// `TrackSource`.
    pub const MICROPHONE: i32 = 2;
    /// `LeaveRequest.Action`.
    pub const DISCONNECT: i32 = 0;
    pub const RESUME: i32 = 1;
    pub const RECONNECT: i32 = 2;
    /// `DisconnectReason`.
    pub const CLIENT_INITIATED: i32 = 1;
    pub const DUPLICATE_IDENTITY: i32 = 2;
    pub const SERVER_SHUTDOWN: i32 = 3;
    pub const PARTICIPANT_REMOVED: i32 = 4;
    pub const ROOM_DELETED: i32 = 5;
    pub const JOIN_FAILURE: i32 = 7;
    pub const ROOM_CLOSED: i32 = 10;
}

/// From us to the server.
#[derive(Clone, PartialEq, Message)]
pub struct SignalRequest {
    #[prost(oneof = "Request", tags = "1, 2, 3, 6, 7, 8, 16")]
    pub message: Option<Request>,
}

#[derive(Clone, PartialEq, Oneof)]
pub enum Request {
    /// Of the publisher's connection.
    #[prost(message, tag = "1")]
    Offer(SessionDescription),
    /// Of the subscriber's connection.
    #[prost(message, tag = "2")]
    Answer(SessionDescription),
    #[prost(message, tag = "3")]
    Trickle(TrickleRequest),
    #[prost(message, tag = "6")]
    Subscription(UpdateSubscription),
    #[prost(message, tag = "7")]
    TrackSetting(UpdateTrackSettings),
    #[prost(message, tag = "8")]
    Leave(LeaveRequest),
    #[prost(message, tag = "16")]
    PingReq(Ping),
}

/// From the server to us.
#[derive(Clone, PartialEq, Message)]
pub struct SignalResponse {
    #[prost(oneof = "Response", tags = "1, 2, 3, 4, 5, 8, 10, 16, 19, 20")]
    pub message: Option<Response>,
}

#[derive(Clone, PartialEq, Oneof)]
pub enum Response {
    #[prost(message, tag = "1")]
    Join(JoinResponse),
    /// Of the publisher's connection.
    #[prost(message, tag = "2")]
    Answer(SessionDescription),
    /// Of the subscriber's connection.
    #[prost(message, tag = "3")]
    Offer(SessionDescription),
    #[prost(message, tag = "4")]
    Trickle(TrickleRequest),
    #[prost(message, tag = "5")]
    Update(ParticipantUpdate),
    #[prost(message, tag = "8")]
    Leave(LeaveRequest),
    #[prost(message, tag = "10")]
    SpeakersChanged(SpeakersChanged),
    /// A newer token for the next connection.
    #[prost(string, tag = "16")]
    RefreshToken(String),
    #[prost(message, tag = "19")]
    Reconnect(ReconnectResponse),
    #[prost(message, tag = "20")]
    PongResp(Pong),
}

#[derive(Clone, PartialEq, Message)]
pub struct JoinResponse {
    #[prost(message, optional, tag = "1")]
    pub room: Option<Room>,
    #[prost(message, optional, tag = "2")]
    pub participant: Option<ParticipantInfo>,
    #[prost(message, repeated, tag = "3")]
    pub other_participants: Vec<ParticipantInfo>,
    #[prost(bool, tag = "6")]
    pub subscriber_primary: bool,
    /// Another server is to be asked; what else is in the message is empty then.
    #[prost(string, tag = "7")]
    pub alternative_url: String,
    /// Seconds.
    #[prost(int32, tag = "10")]
    pub ping_timeout: i32,
    /// Seconds.
    #[prost(int32, tag = "11")]
    pub ping_interval: i32,
    #[prost(message, optional, tag = "12")]
    pub server_info: Option<ServerInfo>,
}

#[derive(Clone, PartialEq, Message)]
pub struct ReconnectResponse {}

#[derive(Clone, PartialEq, Message)]
pub struct ServerInfo {
    #[prost(string, tag = "2")]
    pub version: String,
    #[prost(int32, tag = "3")]
    pub protocol: i32,
}

#[derive(Clone, PartialEq, Message)]
pub struct Room {
    #[prost(string, tag = "1")]
    pub sid: String,
    #[prost(string, tag = "2")]
    pub name: String,
}

#[derive(Clone, PartialEq, Message)]
pub struct ParticipantUpdate {
    #[prost(message, repeated, tag = "1")]
    pub participants: Vec<ParticipantInfo>,
}

#[derive(Clone, PartialEq, Message)]
pub struct ParticipantInfo {
    #[prost(string, tag = "1")]
    pub sid: String,
    #[prost(string, tag = "2")]
    pub identity: String,
    #[prost(int32, tag = "3")]
    pub state: i32,
    #[prost(message, repeated, tag = "4")]
    pub tracks: Vec<TrackInfo>,
    #[prost(string, tag = "9")]
    pub name: String,
    #[prost(int32, tag = "14")]
    pub kind: i32,
}

#[derive(Clone, PartialEq, Message)]
pub struct TrackInfo {
    #[prost(string, tag = "1")]
    pub sid: String,
    #[prost(int32, tag = "2")]
    pub kind: i32,
    #[prost(string, tag = "3")]
    pub name: String,
    #[prost(bool, tag = "4")]
    pub muted: bool,
    #[prost(int32, tag = "9")]
    pub source: i32,
}

#[derive(Clone, PartialEq, Message)]
pub struct SpeakersChanged {
    #[prost(message, repeated, tag = "1")]
    pub speakers: Vec<SpeakerInfo>,
}

#[derive(Clone, PartialEq, Message)]
pub struct SpeakerInfo {
    #[prost(string, tag = "1")]
    pub sid: String,
    #[prost(float, tag = "2")]
    pub level: f32,
    #[prost(bool, tag = "3")]
    pub active: bool,
}

#[derive(Clone, PartialEq, Message)]
pub struct SessionDescription {
    /// "offer" or "answer".
    #[prost(string, tag = "1")]
    pub kind: String,
    #[prost(string, tag = "2")]
    pub sdp: String,
    /// An answer has that of its offer.
    #[prost(uint32, tag = "3")]
    pub id: u32,
}

#[derive(Clone, PartialEq, Message)]
pub struct TrickleRequest {
    /// The browser's `RTCIceCandidateInit` as JSON.
    #[prost(string, tag = "1")]
    pub candidate_init: String,
    #[prost(int32, tag = "2")]
    pub target: i32,
    #[prost(bool, tag = "3")]
    pub is_final: bool,
}

#[derive(Clone, PartialEq, Message)]
pub struct UpdateSubscription {
    #[prost(string, repeated, tag = "1")]
    pub track_sids: Vec<String>,
    #[prost(bool, tag = "2")]
    pub subscribe: bool,
}

#[derive(Clone, PartialEq, Message)]
pub struct UpdateTrackSettings {
    #[prost(string, repeated, tag = "1")]
    pub track_sids: Vec<String>,
    /// No media of them is sent.
    #[prost(bool, tag = "3")]
    pub disabled: bool,
}

#[derive(Clone, PartialEq, Message)]
pub struct LeaveRequest {
    #[prost(int32, tag = "2")]
    pub reason: i32,
    #[prost(int32, tag = "3")]
    pub action: i32,
}

#[derive(Clone, PartialEq, Message)]
pub struct Ping {
    /// Milliseconds since 1970.
    #[prost(int64, tag = "1")]
    pub timestamp: i64,
    /// Milliseconds.
    #[prost(int64, tag = "2")]
    pub rtt: i64,
}

#[derive(Clone, PartialEq, Message)]
pub struct Pong {
    #[prost(int64, tag = "1")]
    pub last_ping_timestamp: i64,
    #[prost(int64, tag = "2")]
    pub timestamp: i64,
}

/// A message of the data channels `_reliable` and `_lossy`.
#[derive(Clone, PartialEq, Message)]
pub struct DataPacket {
    /// Of whom it is; an agent may write somebody else's, who was transcribed.
    #[prost(string, tag = "4")]
    pub participant_identity: String,
    /// Everybody, when it is empty.
    #[prost(string, repeated, tag = "5")]
    pub destination_identities: Vec<String>,
    #[prost(oneof = "Payload", tags = "2, 13, 14, 15")]
    pub payload: Option<Payload>,
    /// 1, 2, 3, … on the reliable channel of one connection.
    #[prost(uint32, tag = "16")]
    pub sequence: u32,
    /// Written by the server.
    #[prost(string, tag = "17")]
    pub participant_sid: String,
}

#[derive(Clone, PartialEq, Oneof)]
pub enum Payload {
    #[prost(message, tag = "2")]
    User(UserPacket),
    #[prost(message, tag = "13")]
    StreamHeader(StreamHeader),
    #[prost(message, tag = "14")]
    StreamChunk(StreamChunk),
    #[prost(message, tag = "15")]
    StreamTrailer(StreamTrailer),
}

/// What `SendData` becomes.
#[derive(Clone, PartialEq, Message)]
pub struct UserPacket {
    #[prost(bytes = "vec", tag = "2")]
    pub payload: Vec<u8>,
    #[prost(string, optional, tag = "4")]
    pub topic: Option<String>,
}

/// `DataStream.Header`.
#[derive(Clone, PartialEq, Message)]
pub struct StreamHeader {
    #[prost(string, tag = "1")]
    pub stream_id: String,
    /// Milliseconds since 1970.
    #[prost(int64, tag = "2")]
    pub timestamp: i64,
    #[prost(string, tag = "3")]
    pub topic: String,
    #[prost(string, tag = "4")]
    pub mime_type: String,
    #[prost(uint64, optional, tag = "5")]
    pub total_length: Option<u64>,
    #[prost(map = "string, string", tag = "8")]
    pub attributes: HashMap<String, String>,
    #[prost(oneof = "ContentHeader", tags = "9")]
    pub content: Option<ContentHeader>,
}

#[derive(Clone, PartialEq, Oneof)]
pub enum ContentHeader {
    #[prost(message, tag = "9")]
    Text(TextHeader),
}

/// `DataStream.TextHeader`.
#[derive(Clone, PartialEq, Message)]
pub struct TextHeader {
    /// The text comes from the transcription of somebody's audio.
    #[prost(bool, tag = "5")]
    pub generated: bool,
}

/// `DataStream.Chunk`.
#[derive(Clone, PartialEq, Message)]
pub struct StreamChunk {
    #[prost(string, tag = "1")]
    pub stream_id: String,
    #[prost(uint64, tag = "2")]
    pub chunk_index: u64,
    #[prost(bytes = "vec", tag = "3")]
    pub content: Vec<u8>,
}

/// `DataStream.Trailer`.
#[derive(Clone, PartialEq, Message)]
pub struct StreamTrailer {
    #[prost(string, tag = "1")]
    pub stream_id: String,
    /// Empty for an expected end.
    #[prost(string, tag = "2")]
    pub reason: String,
}

impl From<Request> for SignalRequest {
    fn from(request: Request) -> Self {
        Self { message: Some(request) }
    }
}

impl From<Response> for SignalResponse {
    fn from(response: Response) -> Self {
        Self { message: Some(response) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Bytes as another implementation of protobuf writes them: a tag is `field << 3 | type`.
    #[test]
    fn tags_are_those_of_the_schema() {
        let ping = SignalRequest::from(Request::PingReq(Ping { timestamp: 5, rtt: 7 })).encode_to_vec();
        assert_eq!(ping, [0x82, 1, 4, 8, 5, 16, 7]);
        let leave = SignalRequest::from(Request::Leave(LeaveRequest { reason: 1, action: 0 })).encode_to_vec();
        assert_eq!(leave, [8 << 3 | 2, 2, 16, 1]);
        let off = UpdateTrackSettings { track_sids: vec!["T".to_owned()], disabled: true };
        assert_eq!(
            SignalRequest::from(Request::TrackSetting(off)).encode_to_vec(),
            [7 << 3 | 2, 5, 10, 1, b'T', 24, 1]
        );
        // speakers_changed { speakers { sid: "P", level: 0.5, active: true } }, and a field that nobody knows.
        let bytes = [82, 12, 10, 10, 10, 1, b'P', 21, 0, 0, 0, 63, 24, 1, 0xF8, 6, 9];
        let speakers = vec![SpeakerInfo { sid: "P".into(), level: 0.5, active: true }];
        let expected = SignalResponse::from(Response::SpeakersChanged(SpeakersChanged { speakers }));
        assert_eq!(SignalResponse::decode(&bytes[..]), Ok(expected));
        assert!(SignalResponse::decode(&bytes[..9]).is_err(), "a frame that is cut");
    }
}
