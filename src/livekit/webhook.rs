//! Webhooks of a LiveKit server: who may send them, and what they say.
//!
//! The header `Authorization` is a JWT, without "Bearer", that is signed like an access token; its claim `sha256` is the
//! digest of the body, byte for byte. Bodies are protojson: `camelCase`, zero values left out, and from time to time with
//! names that this program does not know.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde::Deserialize;
use sha2::{Digest, Sha256};
use subtle::ConstantTimeEq;

use super::keys::KeyRing;
use super::model::{EgressInfo, Participant, Room, Track};
use super::token::{Claims, TokenError};

/// Longest word on a body that cannot be read.
const MAX_REASON_CHARS: usize = 200;

/// Why a webhook is not taken. The text never holds a token.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum WebhookError {
    #[error("Authorization: {0}")]
    Token(#[from] TokenError),
    #[error("the token has no sha256 of the body; a webhook's own token is required")]
    NoDigest,
    #[error("the token's sha256 is not that of the body as it came")]
    Digest,
    #[error("the body is no event of LiveKit: {0}")]
    Unreadable(String),
}

/// The kind of an event.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum EventKind {
    RoomStarted,
    RoomFinished,
    ParticipantJoined,
    ParticipantLeft,
    ParticipantConnectionAborted,
    TrackPublished,
    TrackUnpublished,
    EgressStarted,
    EgressUpdated,
    EgressEnded,
    /// One that matters to nobody here, or is new.
    Other,
}

impl EventKind {
    pub const ALL: [Self; 11] = [
        Self::RoomStarted,
        Self::RoomFinished,
        Self::ParticipantJoined,
        Self::ParticipantLeft,
        Self::ParticipantConnectionAborted,
        Self::TrackPublished,
        Self::TrackUnpublished,
        Self::EgressStarted,
        Self::EgressUpdated,
        Self::EgressEnded,
        Self::Other,
    ];

    /// LiveKit's name of it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::RoomStarted => "room_started",
            Self::RoomFinished => "room_finished",
            Self::ParticipantJoined => "participant_joined",
            Self::ParticipantLeft => "participant_left",
            Self::ParticipantConnectionAborted => "participant_connection_aborted",
            Self::TrackPublished => "track_published",
            Self::TrackUnpublished => "track_unpublished",
            Self::EgressStarted => "egress_started",
            Self::EgressUpdated => "egress_updated",
            Self::EgressEnded => "egress_ended",
            Self::Other => "other",
        }
    }

    fn of(name: &str) -> Self {
        Self::ALL.into_iter().find(|kind| kind.as_str() == name).unwrap_or(Self::Other)
    }
}

/// What a webhook says.
#[derive(Debug, Clone, PartialEq)]
pub struct WebhookEvent {
    pub kind: EventKind,
    /// The same each time that it is sent; the body's digest where it has none.
    pub id: String,
    pub room: Option<Room>,
    pub participant: Option<Participant>,
    pub track: Option<Track>,
    pub egress: Option<EgressInfo>,
}

#[derive(Deserialize)]
struct Body {
    event: String,
    #[serde(default)]
    id: Option<String>,
    #[serde(default)]
    room: Option<Room>,
    #[serde(default)]
    participant: Option<Participant>,
    #[serde(default)]
    track: Option<Track>,
    #[serde(default, rename = "egressInfo", alias = "egress_info")]
    egress: Option<EgressInfo>,
}

/// Checks who sends, before the body is read. Proxies and people put "Bearer" before the token, LiveKit does not.
pub fn authenticate(keys: &KeyRing, authorization: &str) -> Result<Claims, WebhookError> {
    let authorization = authorization.trim();
    let bare = match authorization.split_once(' ') {
        Some((scheme, token)) if scheme.eq_ignore_ascii_case("bearer") => token.trim(),
        _ => authorization,
    };
    let claims = keys.verify(bare)?;
    claims.sha256.is_some().then_some(claims).ok_or(WebhookError::NoDigest)
}

/// Checks that the body is the one that was signed, and reads it.
pub fn read(claims: &Claims, body: &[u8]) -> Result<WebhookEvent, WebhookError> {
    let digest = Sha256::digest(body);
    let signed = claims.sha256.as_deref().and_then(|text| STANDARD.decode(text).ok()).unwrap_or_default();
    if !bool::from(signed.ct_eq(&digest)) {
        return Err(WebhookError::Digest);
    }
    let unreadable = |error: serde_json::Error| error.to_string().chars().take(MAX_REASON_CHARS).collect();
    let body: Body = serde_json::from_slice(body).map_err(|error| WebhookError::Unreadable(unreadable(error)))?;
    Ok(WebhookEvent {
        kind: EventKind::of(&body.event),
        id: body.id.filter(|id| !id.is_empty()).unwrap_or_else(|| hex::encode(digest)),
        room: body.room,
        participant: body.participant,
        track: body.track,
        egress: body.egress,
    })
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;
    use crate::config::Secret;
    use crate::livekit::model::EgressStatus;
    use crate::livekit::token::sign;

    fn keys() -> KeyRing {
        KeyRing::new(vec![("new".to_owned(), Secret::new("one")), ("old".to_owned(), Secret::new("two"))])
    }

    fn token(key: &str, secret: &str, body: &[u8], exp: i64) -> String {
        let digest = STANDARD.encode(Sha256::digest(body));
        let now = chrono::Utc::now().timestamp();
        sign(&json!({"iss": key, "exp": now + exp, "nbf": now, "sha256": digest}), &Secret::new(secret))
    }

    fn taken(authorization: &str, body: &[u8]) -> Result<WebhookEvent, WebhookError> {
        read(&authenticate(&keys(), authorization)?, body)
    }

    fn event(body: &Value) -> Result<WebhookEvent, WebhookError> {
        let body = body.to_string();
        taken(&token("new", "one", body.as_bytes(), 300), body.as_bytes())
    }

    #[test]
    fn any_of_our_keys_signs_and_nobody_else() {
        let body = br#"{"event":"room_started", "room":{"sid":"RM_1", "name":"demo"}, "id":"EV_1"}"#;
        for (key, secret) in [("new", "one"), ("old", "two")] {
            let token = token(key, secret, body, 300);
            for authorization in [token.clone(), format!("Bearer {token}"), format!("bearer  {token} ")] {
                assert_eq!(taken(&authorization, body).unwrap().room.unwrap().sid, "RM_1");
            }
        }
        assert_eq!(taken(&token("new", "two", body, 300), body), Err(TokenError::Signature.into()));
        assert_eq!(taken(&token("who", "one", body, 300), body), Err(TokenError::UnknownIssuer.into()));
        assert_eq!(taken(&token("new", "one", body, -90), body), Err(TokenError::Expired.into()));
        assert_eq!(taken("", body), Err(TokenError::Missing.into()));
        let good = token("new", "one", body, 300);
        let spaced = String::from_utf8(body.to_vec()).unwrap().replace(", ", ",");
        for other in [&body[..body.len() - 1], spaced.as_bytes(), b""] {
            assert_eq!(taken(&good, other), Err(WebhookError::Digest), "the bytes count, not what they mean");
        }
    }

    #[test]
    fn a_viewers_token_sends_nothing() {
        let claims = json!({"iss": "new", "sub": "anna", "exp": chrono::Utc::now().timestamp() + 60});
        assert_eq!(taken(&sign(&claims, &Secret::new("one")), b"{}"), Err(WebhookError::NoDigest));
        let claims = json!({"iss": "new", "exp": chrono::Utc::now().timestamp() + 60, "sha256": "not base64"});
        assert_eq!(taken(&sign(&claims, &Secret::new("one")), b"{}"), Err(WebhookError::Digest));
    }

    #[test]
    fn events_are_read_whatever_is_new_in_them() {
        let started = event(&json!({"event": "egress_started", "id": "EV_1", "createdAt": "1795347603", "egressInfo":
            {"egressId": "EG_1", "roomName": "demo", "roomComposite": {"roomName": "demo"}}}));
        let started = started.unwrap();
        assert_eq!(started.egress.unwrap().status(), EgressStatus::Starting, "zero is left out");
        for body in [
            json!({"event": "agent_job_ended", "id": "EV_2", "agentJob": {"x": 1}}),
            json!({"event": "something_new", "id": null, "room": null, "numDropped": 3}),
        ] {
            assert_eq!(event(&body).unwrap().kind, EventKind::Other, "{body}");
        }
        let left = json!({"event": "participant_left", "id": "EV_3", "participant":
            {"sid": "PA_1", "identity": "anna", "state": "DISCONNECTED", "kind": "HOLOGRAM", "disconnectReason": "NEW"}});
        assert!(event(&left).unwrap().participant.unwrap().is_voice());
        let anonymous = json!({"event": "room_started"});
        assert_eq!(event(&anonymous).unwrap().id.len(), 64, "two without an id are told apart by what they say");
    }

    #[test]
    fn what_is_signed_and_no_event_is_unreadable() {
        for body in [json!({}), json!([]), json!({"event": 7}), json!({"event": "room_started", "room": "demo"})] {
            assert!(matches!(event(&body), Err(WebhookError::Unreadable(_))), "{body}");
        }
        let body = br#"{"event":"room_start"#;
        assert!(matches!(taken(&token("new", "one", body, 300), body), Err(WebhookError::Unreadable(_))));
    }
}
