//! Rooms, participants, tracks and egresses as LiveKit tells of them: in webhooks (`camelCase`, zero values left out) and in
//! answers of its API (`snake_case`, zero values written).
//!
//! Read with patience: 64-bit integers are texts or numbers, enums are names that may be new (a number then), null is
//! absent, and a field of another shape than it should be counts as absent.

use serde::Deserialize;
use serde::de::{Deserializer, IgnoredAny};

/// Prefix of the identity of an egress that is in a room: such servers name no kind.
const EGRESS_IDENTITY: &str = "EG_";

/// A room. It has a new `sid` each time that it is made under the same name.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct Room {
    #[serde(deserialize_with = "text")]
    pub sid: String,
    #[serde(deserialize_with = "text")]
    pub name: String,
    /// Unix time in seconds.
    #[serde(alias = "creationTime", deserialize_with = "integer")]
    pub creation_time: i64,
    /// Hidden ones are not counted.
    #[serde(alias = "numParticipants", deserialize_with = "integer")]
    pub num_participants: i64,
}

/// Somebody, or something, in a room.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct Participant {
    #[serde(deserialize_with = "text")]
    pub sid: String,
    #[serde(deserialize_with = "text")]
    pub identity: String,
    #[serde(deserialize_with = "text")]
    pub name: String,
    /// `STANDARD` when absent.
    #[serde(deserialize_with = "text")]
    pub kind: String,
    #[serde(deserialize_with = "or_default")]
    pub permission: Permission,
    #[serde(deserialize_with = "or_default")]
    pub tracks: Vec<Track>,
}

/// The grants of a participant that tell what it is.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct Permission {
    #[serde(deserialize_with = "flag")]
    pub hidden: bool,
    #[serde(deserialize_with = "flag")]
    pub recorder: bool,
    #[serde(deserialize_with = "flag")]
    pub agent: bool,
}

/// What a participant publishes.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct Track {
    #[serde(deserialize_with = "text")]
    pub sid: String,
    /// `AUDIO` when absent.
    #[serde(rename = "type", deserialize_with = "text")]
    pub kind: String,
    #[serde(deserialize_with = "text")]
    pub source: String,
    #[serde(deserialize_with = "flag")]
    pub muted: bool,
}

/// An egress: something that LiveKit sends elsewhere from a room.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(default)]
pub struct EgressInfo {
    #[serde(alias = "egressId", deserialize_with = "text")]
    pub egress_id: String,
    #[serde(alias = "roomId", deserialize_with = "text")]
    pub room_id: String,
    #[serde(alias = "roomName", deserialize_with = "text")]
    pub room_name: String,
    /// Its name; see [`Self::status`].
    #[serde(rename = "status", deserialize_with = "text")]
    status_name: String,
    /// Unix time in nanoseconds; 0 before it has started.
    #[serde(alias = "startedAt", deserialize_with = "integer")]
    pub started_at: i64,
    #[serde(alias = "endedAt", deserialize_with = "integer")]
    pub ended_at: i64,
    #[serde(deserialize_with = "text")]
    pub error: String,
    #[serde(alias = "roomComposite", deserialize_with = "or_default")]
    pub room_composite: Option<RoomComposite>,
    #[serde(deserialize_with = "or_default")]
    pub track: Option<TrackOutput>,
    #[serde(alias = "streamResults", deserialize_with = "or_default")]
    pub stream_results: Vec<StreamInfo>,
}

/// The request of a Room Composite Egress.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct RoomComposite {
    #[serde(alias = "roomName", deserialize_with = "text")]
    pub room_name: String,
    #[serde(alias = "streamOutputs", deserialize_with = "or_default")]
    pub stream_outputs: Vec<StreamOutput>,
    /// The older place of the same.
    #[serde(deserialize_with = "or_default")]
    pub stream: Option<StreamOutput>,
}

/// URLs that an egress publishes to. LiveKit hides their last segment.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct StreamOutput {
    #[serde(deserialize_with = "or_default")]
    pub urls: Vec<String>,
}

/// The request of a Track Egress.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct TrackOutput {
    #[serde(alias = "roomName", deserialize_with = "text")]
    pub room_name: String,
    #[serde(alias = "trackId", deserialize_with = "text")]
    pub track_id: String,
    /// LiveKit gives it back whole, with its key.
    #[serde(alias = "websocketUrl", deserialize_with = "text")]
    pub websocket_url: String,
}

/// The state of one URL that an egress publishes to.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct StreamInfo {
    #[serde(deserialize_with = "text")]
    pub url: String,
    #[serde(deserialize_with = "text")]
    pub status: String,
    #[serde(deserialize_with = "text")]
    pub error: String,
}

/// The state of an egress.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum EgressStatus {
    Starting,
    Active,
    Ending,
    Complete,
    Failed,
    Aborted,
    LimitReached,
    /// One that this program does not know.
    Unknown,
}

impl EgressStatus {
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Starting => "starting",
            Self::Active => "active",
            Self::Ending => "ending",
            Self::Complete => "complete",
            Self::Failed => "failed",
            Self::Aborted => "aborted",
            Self::LimitReached => "limit_reached",
            Self::Unknown => "unknown",
        }
    }

    /// It publishes, or is about to.
    pub fn is_running(self) -> bool {
        matches!(self, Self::Starting | Self::Active)
    }

    /// It will never publish again.
    pub fn is_over(self) -> bool {
        matches!(self, Self::Complete | Self::Failed | Self::Aborted | Self::LimitReached)
    }
}

impl EgressInfo {
    pub fn status(&self) -> EgressStatus {
        match self.status_name.as_str() {
            "" | "0" | "EGRESS_STARTING" => EgressStatus::Starting,
            "1" | "EGRESS_ACTIVE" => EgressStatus::Active,
            "2" | "EGRESS_ENDING" => EgressStatus::Ending,
            "3" | "EGRESS_COMPLETE" => EgressStatus::Complete,
            "4" | "EGRESS_FAILED" => EgressStatus::Failed,
            "5" | "EGRESS_ABORTED" => EgressStatus::Aborted,
            "6" | "EGRESS_LIMIT_REACHED" => EgressStatus::LimitReached,
            _ => EgressStatus::Unknown,
        }
    }

    /// The room's name, wherever it stands.
    pub fn room(&self) -> &str {
        let of_request = self.room_composite.as_ref().map(|request| request.room_name.as_str());
        let of_track = self.track.as_ref().map(|request| request.room_name.as_str());
        [Some(self.room_name.as_str()), of_request, of_track]
            .into_iter()
            .flatten()
            .find(|n| !n.is_empty())
            .unwrap_or("")
    }

    /// Publishes a whole room below this URL, such as `rtmp://host:1937/live`.
    pub fn publishes_room_to(&self, base_url: &str) -> bool {
        let Some(request) = &self.room_composite else { return false };
        let outputs = request.stream_outputs.iter().chain(&request.stream).flat_map(|output| &output.urls);
        let mut urls = outputs.chain(self.stream_results.iter().map(|stream| &stream.url));
        urls.any(|url| is_below(url, base_url))
    }

    /// Sends a track to a WebSocket below this URL.
    pub fn sends_track_to(&self, base_url: &str) -> bool {
        self.track.as_ref().is_some_and(|track| is_below(&track.websocket_url, base_url))
    }
}

/// Scheme and host are the same in any case of letters.
fn is_below(url: &str, base_url: &str) -> bool {
    let base = base_url.trim_end_matches('/');
    let head = url.get(..base.len()).is_some_and(|head| head.eq_ignore_ascii_case(base));
    head && url[base.len()..].starts_with('/')
}

impl Participant {
    /// Somebody who may speak: no egress, no agent, nobody hidden.
    pub fn is_voice(&self) -> bool {
        let Permission { hidden, recorder, agent } = self.permission;
        let is_machine = matches!(self.kind.as_str(), "EGRESS" | "2" | "AGENT" | "4") || hidden || recorder || agent;
        !is_machine && !self.identity.is_empty() && !self.identity.starts_with(EGRESS_IDENTITY)
    }
}

impl Track {
    pub fn is_microphone(&self) -> bool {
        matches!(self.kind.as_str(), "" | "0" | "AUDIO") && matches!(self.source.as_str(), "MICROPHONE" | "2")
    }
}

#[derive(Deserialize)]
#[serde(untagged)]
enum Scalar {
    Text(String),
    Flag(bool),
    Number(serde_json::Number),
    Other(IgnoredAny),
}

fn scalar<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Scalar, D::Error> {
    Ok(Option::deserialize(deserializer)?.unwrap_or(Scalar::Other(IgnoredAny)))
}

fn text<'de, D: Deserializer<'de>>(deserializer: D) -> Result<String, D::Error> {
    Ok(match scalar(deserializer)? {
        Scalar::Text(text) => text,
        Scalar::Number(number) => number.to_string(),
        Scalar::Flag(_) | Scalar::Other(_) => String::new(),
    })
}

fn integer<'de, D: Deserializer<'de>>(deserializer: D) -> Result<i64, D::Error> {
    Ok(match scalar(deserializer)? {
        Scalar::Text(text) => text.trim().parse().unwrap_or(0),
        Scalar::Number(number) => number.as_i64().unwrap_or(0),
        Scalar::Flag(_) | Scalar::Other(_) => 0,
    })
}

fn flag<'de, D: Deserializer<'de>>(deserializer: D) -> Result<bool, D::Error> {
    Ok(matches!(scalar(deserializer)?, Scalar::Flag(true)))
}

fn or_default<'de, T: Default + Deserialize<'de>, D: Deserializer<'de>>(deserializer: D) -> Result<T, D::Error> {
    Ok(Option::deserialize(deserializer)?.unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn both_spellings_are_read() {
        let camel = json!({"egressId": "EG_1", "roomId": "RM_1", "status": "EGRESS_ACTIVE", "startedAt": "1795347603000000000",
            "roomComposite": {"roomName": "demo", "audioOnly": true}, "streamResults": [{"url": "rtmp://h:1937/live/{de...mo}"}]});
        let snake = json!({"egress_id": "EG_1", "room_id": "RM_1", "room_name": "", "status": "EGRESS_ACTIVE",
            "started_at": "1795347603000000000", "ended_at": "0", "error": "", "track": null,
            "room_composite": {"room_name": "demo", "layout": "", "stream_outputs": [], "stream": null},
            "stream_results": [{"url": "rtmp://h:1937/live/{de...mo}", "status": "", "error": ""}]});
        let read = |value| serde_json::from_value::<EgressInfo>(value).unwrap();
        assert_eq!(read(camel.clone()), read(snake));
        let info = read(camel);
        assert_eq!(
            (info.room(), info.status(), info.started_at),
            ("demo", EgressStatus::Active, 1_795_347_603_000_000_000)
        );
    }

    #[test]
    fn what_is_new_or_odd_is_no_fault() {
        let read = |value| serde_json::from_value::<EgressInfo>(value).unwrap();
        for (status, expected) in [
            (json!(null), EgressStatus::Starting),
            (json!(4), EgressStatus::Failed),
            (json!("EGRESS_PAUSED"), EgressStatus::Unknown),
            (json!(17), EgressStatus::Unknown),
            (json!({}), EgressStatus::Starting),
        ] {
            assert_eq!(read(json!({"status": status, "newField": [1]})).status(), expected, "{status}");
        }
        assert_eq!(read(json!({"startedAt": 17, "endedAt": "soon"})).started_at, 17);
        let room: Room = serde_json::from_value(json!({"sid": null, "name": 2026, "numParticipants": "3"})).unwrap();
        assert_eq!((room.sid.as_str(), room.name.as_str(), room.num_participants), ("", "2026", 3));
    }

    #[test]
    fn only_what_publishes_below_our_url_is_ours() {
        let egress = |url: &str| -> EgressInfo {
            serde_json::from_value(json!({"room_composite": {"stream_outputs": [{"urls": [url]}]}})).unwrap()
        };
        let base = "rtmp://Captions.example.com:1937/live";
        for ours in
            ["rtmp://captions.example.com:1937/live/{de...mo}", "RTMP://captions.example.com:1937/live/demo?key=1"]
        {
            assert!(egress(ours).publishes_room_to(base), "{ours}");
        }
        for other in [
            "rtmp://captions.example.com:1937/lively/{de...mo}",
            "rtmp://captions.example.com:1937/live",
            "rtmp://captions.example.com:19370/live/x",
            "rtmp://a.rtmp.youtube.com/live2/{x}",
            "é",
        ] {
            assert!(!egress(other).publishes_room_to(base), "{other}");
        }
        let web = json!({"web": {"url": "https://a"}, "stream_results": [{"url": "rtmp://captions.example.com:1937/live/x"}]});
        assert!(!serde_json::from_value::<EgressInfo>(web).unwrap().publishes_room_to(base), "no room is in it");
    }

    #[test]
    fn machines_and_hidden_ones_have_no_voice() {
        let participant = |value| serde_json::from_value::<Participant>(value).unwrap();
        assert!(participant(json!({"identity": "anna"})).is_voice());
        assert!(participant(json!({"identity": "phone", "kind": "SIP"})).is_voice());
        for machine in [
            json!({"identity": "EG_abc"}),
            json!({"identity": "x", "kind": "EGRESS"}),
            json!({"identity": "x", "kind": "AGENT"}),
            json!({"identity": "x", "permission": {"hidden": true}}),
            json!({"identity": "x", "permission": {"recorder": true}}),
            json!({}),
        ] {
            assert!(!participant(machine.clone()).is_voice(), "{machine}");
        }
        let track = |value| serde_json::from_value::<Track>(value).unwrap();
        assert!(track(json!({"sid": "TR_1", "source": "MICROPHONE"})).is_microphone(), "AUDIO is zero, and left out");
        assert!(!track(json!({"sid": "TR_1", "source": "SCREEN_SHARE_AUDIO"})).is_microphone());
        assert!(!track(json!({"sid": "TR_1", "type": "VIDEO", "source": "CAMERA"})).is_microphone());
    }
}
