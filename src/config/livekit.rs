//! The settings of everything that is done at a LiveKit server.

use wildmatch::WildMatch;

use super::AuthConfig;
use super::reader::Reader;

/// What is started at a LiveKit server, and where it finds us.
#[derive(Debug, Clone)]
pub struct LiveKitConfig {
    /// Its base URL, by http or https, without a slash at its end.
    pub url: Option<String>,
    pub egress: EgressKind,
    pub egress_start: EgressStart,
    pub rooms: RoomPatterns,
    /// Up to the name of a room, such as `rtmp://captions.example.com:1937/live`.
    pub rtmp_public_url: Option<String>,
    /// Without a slash at its end, with `BASE_PATH` where a proxy wants it.
    pub http_public_url: Option<String>,
    pub speakers: SpeakersFrom,
    pub captions: CaptionsTo,
}

/// The egress that is started for a room.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum EgressKind {
    Off,
    RoomComposite,
}

/// The event that starts a room's egress.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum EgressStart {
    Room,
    Viewer,
    Api,
}

/// Who tells who speaks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SpeakersFrom {
    /// Viewers that are in the room.
    Browser,
    /// A hidden participant of ours.
    Observer,
    /// A Track Egress for each microphone.
    Tracks,
}

/// The way of captions into a room.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CaptionsTo {
    Off,
    /// Data packets, by the API.
    Data,
    /// Text streams of the participant that also is the observer.
    Transcription,
}

/// Names of rooms; `*` stands for any letters, `?` for one.
#[derive(Debug, Clone)]
pub struct RoomPatterns(Vec<WildMatch>);

impl RoomPatterns {
    pub fn new(patterns: &[String]) -> Self {
        Self(patterns.iter().map(|pattern| WildMatch::new(pattern)).collect())
    }

    pub fn matches(&self, room: &str) -> bool {
        self.0.iter().any(|pattern| pattern.matches(room))
    }
}

impl LiveKitConfig {
    /// A participant of ours is in the rooms.
    pub fn joins_rooms(&self) -> bool {
        self.speakers == SpeakersFrom::Observer || self.captions == CaptionsTo::Transcription
    }

    /// Names of settings that need a server, as they are set.
    fn wants_server(&self) -> Vec<&'static str> {
        let wants = [
            (self.egress != EgressKind::Off, "LIVEKIT_EGRESS=room_composite"),
            (self.speakers == SpeakersFrom::Observer, "LIVEKIT_SPEAKERS=observer"),
            (self.speakers == SpeakersFrom::Tracks, "LIVEKIT_SPEAKERS=tracks"),
            (self.captions == CaptionsTo::Data, "LIVEKIT_CAPTIONS=data"),
            (self.captions == CaptionsTo::Transcription, "LIVEKIT_CAPTIONS=transcription"),
        ];
        wants.into_iter().filter_map(|(is_set, name)| is_set.then_some(name)).collect()
    }
}

impl Reader<'_> {
    pub(super) fn livekit(&mut self, auth: &AuthConfig) -> LiveKitConfig {
        let config = LiveKitConfig {
            url: self.livekit_url(),
            egress: self
                .choice("LIVEKIT_EGRESS", &[("off", EgressKind::Off), ("room_composite", EgressKind::RoomComposite)]),
            egress_start: self.choice(
                "LIVEKIT_EGRESS_START",
                &[("room", EgressStart::Room), ("viewer", EgressStart::Viewer), ("api", EgressStart::Api)],
            ),
            rooms: RoomPatterns::new(&self.list("LIVEKIT_ROOMS")),
            rtmp_public_url: self.rtmp_public_url(),
            http_public_url: self.text("HTTP_PUBLIC_URL").map(|text| self.url("HTTP_PUBLIC_URL", text)),
            speakers: self.choice(
                "LIVEKIT_SPEAKERS",
                &[
                    ("browser", SpeakersFrom::Browser),
                    ("observer", SpeakersFrom::Observer),
                    ("tracks", SpeakersFrom::Tracks),
                ],
            ),
            captions: self.choice(
                "LIVEKIT_CAPTIONS",
                &[("off", CaptionsTo::Off), ("data", CaptionsTo::Data), ("transcription", CaptionsTo::Transcription)],
            ),
        };
        self.livekit_faults(&config, auth);
        config
    }

    /// What is missing for what is asked for.
    fn livekit_faults(&mut self, config: &LiveKitConfig, auth: &AuthConfig) {
        if config.url.is_none() || auth.is_generated {
            for name in config.wants_server() {
                self.fault(format!("{name} needs LIVEKIT_URL, and an API key and secret of that server"));
            }
        }
        if config.egress != EgressKind::Off && config.rtmp_public_url.is_none() {
            self.fault(
                "LIVEKIT_EGRESS=room_composite needs RTMP_PUBLIC_URL, such as rtmp://captions.example.com:1937/live"
                    .to_owned(),
            );
        }
        if config.speakers == SpeakersFrom::Tracks && config.http_public_url.is_none() {
            self.fault(
                "LIVEKIT_SPEAKERS=tracks needs HTTP_PUBLIC_URL, such as https://captions.example.com".to_owned(),
            );
        }
    }

    /// LiveKit's own tools write it with ws and wss; the API is at the same place by http and https.
    fn livekit_url(&mut self) -> Option<String> {
        let url = self.text("LIVEKIT_URL")?;
        let schemes = [("wss://", "https://"), ("ws://", "http://"), ("https://", "https://"), ("http://", "http://")];
        let found = schemes.iter().find_map(|(scheme, http)| Some((http, url.strip_prefix(scheme)?)));
        match found {
            Some((http, host)) if !host.is_empty() && !host.starts_with('/') && !host.contains(['@', ' ']) => {
                Some(format!("{http}{}", host.trim_end_matches('/')))
            }
            _ => {
                self.fault("LIVEKIT_URL is no URL; allowed: such as wss://livekit.example.com".to_owned());
                None
            }
        }
    }

    /// The publish key is added for each room; whoever writes one here would have it for all of them.
    fn rtmp_public_url(&mut self) -> Option<String> {
        let url = self.text("RTMP_PUBLIC_URL")?;
        let rest = url.strip_prefix("rtmp://").or_else(|| url.strip_prefix("rtmps://"));
        let place = rest.map(|rest| rest.trim_end_matches('/')).filter(|rest| !rest.contains(['?', '#', ' ', '@']));
        let fault = match place.map(|place| place.split_once('/').unwrap_or((place, "live"))) {
            Some((host, "live")) if !host.is_empty() => {
                let scheme = &url[..url.len() - rest.unwrap_or_default().len()];
                return Some(format!("{scheme}{host}/live"));
            }
            Some((_, app)) if app != "live" => "has another application than live",
            _ => "is no URL of an RTMP server",
        };
        self.fault(format!("RTMP_PUBLIC_URL {fault}; allowed: such as rtmp://captions.example.com:1937/live"));
        None
    }
}
