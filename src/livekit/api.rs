//! LiveKit's server API: Twirp with JSON bodies.
//!
//! HTTP/1.1 only and no redirects (they would carry the token elsewhere). Every call has a token of its own that grants
//! what the call needs and nothing else. No error holds a key, a secret or a publish URL.

use std::sync::Arc;
use std::time::Duration;

use actix_web::http::{StatusCode, Version, header};
use awc::error::{ConnectError, SendRequestError};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use chrono::Utc;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::keys::KeyRing;
use super::model::{EgressInfo, Participant, Room};
use super::token::sign;
use crate::config::Secret;

/// Time that a token is good for; the server's clock may differ by so much.
const TOKEN_TTL_S: i64 = 600;
/// Longest wait for an answer. Starting an egress took 22 s until a server said that it has no worker.
const START_TIMEOUT: Duration = Duration::from_secs(30);
const TIMEOUT: Duration = Duration::from_secs(10);
/// Longest wait for a connection.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
const MAX_ANSWER_BYTES: usize = 8 << 20;
const MAX_ERROR_CHARS: usize = 200;
/// Pages of a list that are read.
const MAX_PAGES: usize = 50;
/// The audio of an egress, for speech: what the recogniser hears has 16 kHz.
const AUDIO_HZ: u32 = 48_000;
const AUDIO_KBPS: u32 = 64;

/// Why a call has failed, for operators.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ApiError {
    #[error("no egress worker took it: the egress service is not running, or has no CPU to spare ({0})")]
    NoWorker(String),
    #[error(
        "LiveKit refuses our token: LIVEKIT_API_KEY and its secret are not those of the server, or lack a grant ({0})"
    )]
    Denied(String),
    #[error("LiveKit's limit for this account or server is reached ({0})")]
    Quota(String),
    #[error("LiveKit does not know it ({0})")]
    NotFound(String),
    #[error("LiveKit cannot do that in the present state ({0})")]
    Precondition(String),
    #[error("there is no LiveKit API at LIVEKIT_URL ({0})")]
    BadRoute(String),
    #[error("LiveKit at LIVEKIT_URL cannot be reached ({0})")]
    Unreachable(String),
    #[error("LiveKit gave no answer in time")]
    Timeout,
    #[error("LiveKit answered {code}: {message}")]
    Other { code: String, message: String },
}

impl ApiError {
    /// The label in metrics and answers.
    pub fn as_str(&self) -> &'static str {
        match self {
            Self::NoWorker(_) => "no_worker",
            Self::Denied(_) => "denied",
            Self::Quota(_) => "quota",
            Self::NotFound(_) => "not_found",
            Self::Precondition(_) => "precondition",
            Self::BadRoute(_) => "bad_route",
            Self::Unreachable(_) => "unreachable",
            Self::Timeout => "timeout",
            Self::Other { .. } => "other",
        }
    }

    pub const LABELS: [&str; 9] =
        ["no_worker", "denied", "quota", "not_found", "precondition", "bad_route", "unreachable", "timeout", "other"];

    /// What was asked for may have been done all the same.
    pub fn is_unsure(&self) -> bool {
        matches!(self, Self::Timeout | Self::Unreachable(_) | Self::Other { .. })
    }
}

/// The grant of one call's token, on rooms.
#[derive(Debug, Clone, Copy)]
enum Grant<'a> {
    Record,
    List,
    Admin(&'a str),
}

impl Grant<'_> {
    fn video(self) -> Value {
        match self {
            Self::Record => json!({"roomRecord": true}),
            Self::List => json!({"roomList": true}),
            Self::Admin(room) => json!({"roomAdmin": true, "room": room}),
        }
    }
}

/// A LiveKit server and how it is spoken to; makes clients for any thread.
pub struct ApiServer {
    url: String,
    keys: Arc<KeyRing>,
    tls: Arc<rustls::ClientConfig>,
}

impl ApiServer {
    /// `url` is by http or https; `tls` has the trusted authorities and speaks HTTP/1.1 alone.
    pub fn new(url: &str, keys: Arc<KeyRing>, tls: Arc<rustls::ClientConfig>) -> Self {
        Self { url: url.trim_end_matches('/').to_owned(), keys, tls }
    }

    pub fn url(&self) -> &str {
        &self.url
    }

    pub fn keys(&self) -> &Arc<KeyRing> {
        &self.keys
    }

    pub fn tls(&self) -> &Arc<rustls::ClientConfig> {
        &self.tls
    }

    /// A client of this thread.
    pub fn client(self: &Arc<Self>) -> ApiClient {
        // In this order, and not at the client: a version makes the connector forget its authorities.
        let connector = awc::Connector::new().max_http_version(Version::HTTP_11).rustls_0_23(self.tls.clone());
        let http = awc::Client::builder()
            .connector(connector.timeout(CONNECT_TIMEOUT))
            .disable_redirects()
            .timeout(TIMEOUT)
            .add_default_header((header::USER_AGENT, concat!("stenocast/", env!("CARGO_PKG_VERSION"))))
            .finish();
        ApiClient { http, server: self.clone() }
    }

    fn token(&self, grant: Grant<'_>) -> String {
        let (key, secret) = self.keys.signer();
        // Without nbf: a clock that is ahead costs nothing then.
        let claims = json!({"iss": key, "exp": Utc::now().timestamp() + TOKEN_TTL_S, "video": grant.video()});
        sign(&claims, &secret)
    }
}

/// Calls the API. Bound to the thread it was made on.
#[derive(Clone)]
pub struct ApiClient {
    http: awc::Client,
    server: Arc<ApiServer>,
}

/// Data for participants of a room.
#[derive(Debug, Clone, Copy)]
pub struct Data<'a> {
    pub room: &'a str,
    pub payload: &'a [u8],
    pub topic: &'a str,
    /// Sent again until it has arrived; else lost when it is lost.
    pub is_reliable: bool,
    /// All participants when empty.
    pub to_identities: &'a [String],
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct EgressPage {
    items: Vec<EgressInfo>,
    next_page_token: Option<PageToken>,
}

#[derive(Default, Deserialize, Serialize)]
#[serde(default)]
struct PageToken {
    token: String,
}

impl ApiClient {
    /// Starts an audio-only Room Composite Egress that publishes to `rtmp_url`. Without layout and base URL of its own no
    /// browser runs for it.
    pub async fn start_room_composite_egress(&self, room: &str, rtmp_url: &Secret) -> Result<EgressInfo, ApiError> {
        let request = json!({
            "room_name": room,
            "audio_only": true,
            "stream_outputs": [{"protocol": "RTMP", "urls": [rtmp_url.expose()]}],
            "advanced": {"audio_frequency": AUDIO_HZ, "audio_bitrate": AUDIO_KBPS},
        });
        self.call("Egress/StartRoomCompositeEgress", Grant::Record, &request, START_TIMEOUT).await
    }

    /// Starts a Track Egress that opens `websocket_url`.
    pub async fn start_track_egress(
        &self,
        room: &str,
        track: &str,
        websocket_url: &Secret,
    ) -> Result<EgressInfo, ApiError> {
        let request = json!({"room_name": room, "track_id": track, "websocket_url": websocket_url.expose()});
        self.call("Egress/StartTrackEgress", Grant::Record, &request, START_TIMEOUT).await
    }

    /// Lists egresses of one room, or of all; `active` leaves out those that have ended.
    pub async fn list_egress(&self, room: Option<&str>, active: bool) -> Result<Vec<EgressInfo>, ApiError> {
        let mut items = Vec::new();
        let mut request = json!({"room_name": room.unwrap_or(""), "active": active});
        for _ in 0..MAX_PAGES {
            let page: EgressPage = self.call("Egress/ListEgress", Grant::Record, &request, TIMEOUT).await?;
            items.extend(page.items);
            match page.next_page_token.filter(|next| !next.token.is_empty()) {
                Some(next) => request["page_token"] = json!(next),
                None => break,
            }
        }
        Ok(items)
    }

    pub async fn stop_egress(&self, egress_id: &str) -> Result<EgressInfo, ApiError> {
        self.call("Egress/StopEgress", Grant::Record, &json!({"egress_id": egress_id}), START_TIMEOUT).await
    }

    /// Lists the rooms of these names; all when there is none.
    pub async fn list_rooms(&self, names: &[&str]) -> Result<Vec<Room>, ApiError> {
        #[derive(Default, Deserialize)]
        #[serde(default)]
        struct Rooms {
            rooms: Vec<Room>,
        }
        let request = json!({"names": names});
        let answer: Rooms = self.call("RoomService/ListRooms", Grant::List, &request, TIMEOUT).await?;
        Ok(answer.rooms)
    }

    pub async fn list_participants(&self, room: &str) -> Result<Vec<Participant>, ApiError> {
        #[derive(Default, Deserialize)]
        #[serde(default)]
        struct Participants {
            participants: Vec<Participant>,
        }
        let (grant, request) = (Grant::Admin(room), json!({"room": room}));
        let answer: Participants = self.call("RoomService/ListParticipants", grant, &request, TIMEOUT).await?;
        Ok(answer.participants)
    }

    /// Sends a data packet into a room. Participants get it without a sender.
    pub async fn send_data(&self, data: Data<'_>) -> Result<(), ApiError> {
        let request = json!({
            "room": data.room,
            "data": STANDARD.encode(data.payload),
            "kind": if data.is_reliable { "RELIABLE" } else { "LOSSY" },
            "topic": data.topic,
            "destination_identities": data.to_identities,
        });
        let grant = Grant::Admin(data.room);
        self.call::<Value>("RoomService/SendData", grant, &request, TIMEOUT).await.map(|_| ())
    }

    async fn call<T: DeserializeOwned>(
        &self,
        method: &str,
        grant: Grant<'_>,
        request: &Value,
        timeout: Duration,
    ) -> Result<T, ApiError> {
        let answer = tokio::time::timeout(timeout, self.post(method, grant, request, timeout)).await;
        let body = answer.unwrap_or(Err(ApiError::Timeout))?;
        serde_json::from_slice(&body).map_err(|error| ApiError::Other {
            code: "unreadable".to_owned(),
            message: shown(&format!("the answer to {method} is not understood: {error}")),
        })
    }

    async fn post(
        &self,
        method: &str,
        grant: Grant<'_>,
        request: &Value,
        timeout: Duration,
    ) -> Result<bytes::Bytes, ApiError> {
        let post = self.http.post(format!("{}/twirp/livekit.{method}", self.server.url));
        let post = post.bearer_auth(self.server.token(grant)).timeout(timeout);
        let mut reply = post.send_json(request).await.map_err(|error| unsent(&error))?;
        let status = reply.status();
        let body = reply.body().limit(MAX_ANSWER_BYTES).await;
        let body = body.map_err(|_| ApiError::Unreachable("the answer broke off".to_owned()))?;
        if status.is_success() { Ok(body) } else { Err(refusal(status, &body)) }
    }
}

fn unsent(error: &SendRequestError) -> ApiError {
    ApiError::Unreachable(match error {
        SendRequestError::Timeout => return ApiError::Timeout,
        SendRequestError::Connect(ConnectError::Timeout) => "no connection in time".to_owned(),
        SendRequestError::Connect(ConnectError::Resolver(_) | ConnectError::NoRecords) => {
            "the host name cannot be resolved".to_owned()
        }
        // Of TLS the reason is in the error alone: an unknown authority, a wrong name.
        SendRequestError::Connect(error) => shown(&format!("no connection: {error}")),
        SendRequestError::Response(_) => "the answer is not HTTP".to_owned(),
        _ => "the connection broke off".to_owned(),
    })
}

/// Reads an error of Twirp. Some versions hide the kind of error in its message, or a proxy answers in their place.
fn refusal(status: StatusCode, body: &[u8]) -> ApiError {
    let answer: Value = serde_json::from_slice(body).unwrap_or_default();
    let message = shown(answer["msg"].as_str().unwrap_or(""));
    let Some(code) = answer["code"].as_str() else {
        let why = format!("status {status}, not in the words of LiveKit");
        return match status {
            StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => ApiError::Denied(why),
            StatusCode::TOO_MANY_REQUESTS => ApiError::Quota(why),
            StatusCode::REQUEST_TIMEOUT | StatusCode::GATEWAY_TIMEOUT => ApiError::Timeout,
            status if status.is_server_error() => ApiError::Unreachable(why),
            _ => ApiError::BadRoute(why),
        };
    };
    match code {
        _ if message.contains("no response from") => ApiError::NoWorker(message),
        _ if message.contains("room does not exist") => ApiError::NotFound(message),
        "unavailable" => ApiError::NoWorker(message),
        "unauthenticated" | "permission_denied" => ApiError::Denied(message),
        "resource_exhausted" => ApiError::Quota(message),
        "not_found" => ApiError::NotFound(message),
        "failed_precondition" => ApiError::Precondition(message),
        "bad_route" => ApiError::BadRoute(message),
        "deadline_exceeded" => ApiError::Timeout,
        _ if status == StatusCode::TOO_MANY_REQUESTS => ApiError::Quota(message),
        code => ApiError::Other { code: shown(code), message },
    }
}

/// Makes a text of a server fit to be shown: short, without control characters, and without the key of a URL in it.
fn shown(text: &str) -> String {
    let mut pieces = text.split("key=");
    let mut whole = pieces.next().unwrap_or("").to_owned();
    for piece in pieces {
        whole.push_str("key=…");
        whole.push_str(piece.trim_start_matches(|c: char| c.is_ascii_alphanumeric() || c == '%'));
    }
    whole.chars().filter(|c| !c.is_control()).take(MAX_ERROR_CHARS).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn errors_are_told_apart_whoever_says_them() {
        let read = |status: u16, body: &str| refusal(StatusCode::from_u16(status).unwrap(), body.as_bytes()).as_str();
        let twirp = |code: &str, msg: &str| json!({"code": code, "msg": msg, "meta": {}}).to_string();
        for (status, body, expected) in [
            (503, twirp("unavailable", "no response from servers"), "no_worker"),
            (500, twirp("unknown", "no response from servers"), "no_worker"),
            (500, twirp("internal", "no response from egress service"), "no_worker"),
            (401, twirp("unauthenticated", "permissions denied"), "denied"),
            (403, twirp("permission_denied", ""), "denied"),
            (429, twirp("resource_exhausted", "egress limit exceeded"), "quota"),
            (404, twirp("not_found", "egress does not exist"), "not_found"),
            (500, twirp("unknown", "requested room does not exist"), "not_found"),
            (412, twirp("failed_precondition", "egress with status EGRESS_COMPLETE cannot be stopped"), "precondition"),
            (404, twirp("bad_route", "no handler for path"), "bad_route"),
            (408, twirp("deadline_exceeded", "request timed out"), "timeout"),
            (400, twirp("invalid_argument", "invalid URL"), "other"),
            (404, "<html>".to_owned(), "bad_route"),
            (502, "<html>".to_owned(), "unreachable"),
            (504, String::new(), "timeout"),
            (401, "[]".to_owned(), "denied"),
            (301, String::new(), "bad_route"),
        ] {
            assert_eq!(read(status, &body), expected, "{status} {body}");
            assert!(ApiError::LABELS.contains(&expected));
        }
    }

    #[test]
    fn no_key_comes_back_in_an_error() {
        let said = shown("invalid url rtmp://h/live/demo?key=63234b1d&exp=1\u{7}: and key=aa%20 again");
        assert_eq!(said, "invalid url rtmp://h/live/demo?key=…&exp=1: and key=… again");
        assert_eq!(shown(&"x".repeat(999)).len(), MAX_ERROR_CHARS);
    }

    #[test]
    fn a_page_of_egresses_is_read_with_and_without_a_next_one() {
        let read = |value| serde_json::from_value::<EgressPage>(value).unwrap();
        assert!(read(json!({"items": [], "next_page_token": null})).next_page_token.is_none());
        let page = read(json!({"items": [{"egress_id": "EG_1"}], "next_page_token": {"token": "t"}}));
        assert_eq!((page.items.len(), page.next_page_token.unwrap().token.as_str()), (1, "t"));
    }
}
