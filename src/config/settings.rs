//! The one table of settings: names, defaults and help.

/// The default of `GLADIA_API_URL`; any other value needs no key.
pub const DEFAULT_API_URL: &str = "https://api.gladia.io";

/// One setting: `NAME` as environment variable, `--name` as flag.
pub struct Setting {
    pub group: &'static str,
    pub name: &'static str,
    pub default: DefaultValue,
    pub help: &'static str,
    pub secret: bool,
}

/// The value of a setting that nobody sets.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DefaultValue {
    Unset,
    /// The text that is read in its place. It stands here alone: the parser takes it from the table.
    Text(&'static str),
    /// The parser works it out, from the machine or from another setting; these words say from what.
    Computed(&'static str),
}

impl DefaultValue {
    /// The default as people see it; empty = not set.
    pub fn shown(self) -> &'static str {
        match self {
            Self::Unset => "",
            Self::Text(words) | Self::Computed(words) => words,
        }
    }
}

const fn setting(group: &'static str, name: &'static str, default: DefaultValue, help: &'static str) -> Setting {
    Setting { group, name, default, help, secret: false }
}

const fn s(group: &'static str, name: &'static str, default: &'static str, help: &'static str) -> Setting {
    setting(group, name, DefaultValue::Text(default), help)
}

const fn unset(group: &'static str, name: &'static str, help: &'static str) -> Setting {
    setting(group, name, DefaultValue::Unset, help)
}

const fn computed(group: &'static str, name: &'static str, from: &'static str, help: &'static str) -> Setting {
    setting(group, name, DefaultValue::Computed(from), help)
}

const fn secret(group: &'static str, name: &'static str, help: &'static str) -> Setting {
    Setting { group, name, default: DefaultValue::Unset, help, secret: true }
}

/// Every setting of `stenocast serve`, in the order of the README.
#[rustfmt::skip]
pub const SETTINGS: &[Setting] = &[
    s("server", "SERVER_MODE", "both", "What runs here: both, rtmp (ingest, forwards to ws nodes) or ws (viewers and database, fed by POST broadcast)"),
    s("server", "HOST", "0.0.0.0", "Address of the HTTP listener (127.0.0.1 with --dev)"),
    s("server", "PORT", "8080", "Port of the HTTP listener; 0 takes a free one"),
    s("server", "DATA_DIR", "./data", "Outbox, spool, checkpoints and the SQLite file: a persistent volume in production"),
    computed("server", "WORKERS", "cores", "HTTP worker threads, and as many session threads"),
    s("server", "SHUTDOWN_TIMEOUT_MS", "15000", "Longest time from SIGTERM to exit"),
    s("server", "LOG_FORMAT", "text", "text or json"),
    s("server", "RUST_LOG", "info", "Log filter, such as info or stenocast=debug"),
    s("rtmp", "RTMP_PORT", "1937", "Port of the RTMP listener; 0 takes a free one"),
    computed("rtmp", "RTMP_HOST", "HOST", "Address of the RTMP listener"),
    secret("rtmp", "RTMP_PUBLISH_KEY", "Secret of publish keys: ?key=hex(HMAC-SHA256(secret, slug)), optionally with &exp="),
    s("rtmp", "RTMP_OPEN", "false", "Without a publish key, listen beyond loopback all the same"),
    s("rtmp", "RTMP_MAX_CONNECTIONS", "1000", "RTMP connections in all"),
    s("rtmp", "RTMP_MAX_PER_IP", "100", "RTMP connections per address"),
    s("rtmp", "RTMP_HANDSHAKE_TIMEOUT_MS", "5000", "From accept to the end of the handshake"),
    s("rtmp", "RTMP_PUBLISH_TIMEOUT_MS", "10000", "From handshake to publish"),
    s("rtmp", "RTMP_FIRST_AUDIO_TIMEOUT_MS", "20000", "From publish to the first audio"),
    s("rtmp", "RTMP_IDLE_TIMEOUT_MS", "10000", "Longest silence of a publisher's socket"),
    s("rtmp", "SESSION_GRACE_MS", "30000", "How long a session waits for a lost publisher"),
    s("rtmp", "MAX_SESSIONS", "500", "Live sessions in this process"),
    s("audio", "DECODER", "auto", "auto or process: an ffmpeg child per session, with either today"),
    s("audio", "FFMPEG_PATH", "ffmpeg", "The ffmpeg program"),
    s("audio", "AUDIO_CHUNK_MS", "100", "Audio sent to the recogniser at a time, 20 to 1000"),
    secret("stt", "GLADIA_API_KEY", "Key of Gladia; without one the local English recogniser is started"),
    s("stt", "GLADIA_API_URL", DEFAULT_API_URL, "Base URL of Gladia or of a compatible service"),
    unset("stt", "GLADIA_REGION", "eu-west or us-west"),
    s("stt", "GLADIA_MODEL", "solaria-1", "Recogniser model"),
    unset("stt", "GLADIA_LANGUAGES", "Comma list of ISO codes, such as en,fr; empty detects"),
    unset("stt", "GLADIA_VOCABULARY", "Comma list of words and names that the recogniser should expect"),
    unset("stt", "GLADIA_TRANSLATE_TO", "Comma list of ISO codes to translate finals into"),
    s("stt", "GLADIA_ENDPOINTING", "0.3", "Seconds of silence that close an utterance, 0.01 to 10"),
    s("stt", "GLADIA_MAX_UTTERANCE_S", "15", "Longest utterance in seconds, 5 to 60"),
    s("stt", "GLADIA_MAX_SESSIONS", "30", "Recogniser sessions at a time that the account allows"),
    s("stt", "GLADIA_SESSION_MAX_S", "10500", "Recogniser session length after which it is replaced"),
    s("stt", "STT_STALL_MS", "15000", "Speech without any answer for so long counts as a stalled recogniser"),
    s("stt", "REPLAY_WINDOW_MS", "600000", "Audio kept for replay while its text is not final"),
    s("stt", "REPLAY_MAX_BYTES", "1GiB", "Disk for replay audio of all sessions"),
    computed("stt", "MODEL_DIR", "user cache", "Model files of the local recogniser"),
    computed("stt", "STT_THREADS", "cores-1", "Inference threads of the local recogniser"),
    computed("stt", "STT_MAX_SESSIONS", "8×threads", "Sessions of the local recogniser"),
    unset("auth", "LIVEKIT_API_KEY", "API key whose tokens are accepted"),
    secret("auth", "LIVEKIT_API_SECRET", "Secret of LIVEKIT_API_KEY"),
    secret("auth", "LIVEKIT_KEYS", "Several pairs for rotation: `key: secret`, separated by commas or lines"),
    unset("auth", "LIVEKIT_KEYS_FILE", "File of such pairs, a line each; SIGHUP reads it again and drops nobody"),
    secret("auth", "BROADCAST_TOKEN", "Bearer token of POST broadcast (required in split mode)"),
    secret("auth", "ADMIN_TOKEN", "Bearer token of /metrics; without one it answers loopback only"),
    unset("auth", "CORS_ORIGINS", "Comma list of allowed origins, or *"),
    unset("viewers", "BASE_PATH", "Path under which a reverse proxy shows the server, such as /captions: for printed links, and for a proxy that does not strip it"),
    s("viewers", "WS_MAX_CLIENTS", "20000", "Viewers in all"),
    s("viewers", "WS_MAX_PER_SESSION", "20000", "Viewers of one room"),
    s("viewers", "WS_PING_MS", "15000", "A viewer is sent something at least so often: a ping when there is nothing else"),
    s("viewers", "WS_STALL_MS", "10000", "A viewer whose socket takes nothing for so long is cut"),
    s("viewers", "ROOM_HISTORY", "1000", "Newest entries kept in memory per session"),
    s("viewers", "ROOM_HISTORY_BYTES", "4MiB", "Bytes kept in memory per session"),
    computed("viewers", "SPEAKER_OFFSET_MS", "estimated", "How much later audio arrives here than the speaker reports, -10000 to 10000; a value fixes it"),
    unset("livekit", "LIVEKIT_URL", "URL of the LiveKit server, such as wss://livekit.example.com"),
    s("livekit", "LIVEKIT_EGRESS", "off", "off, or room_composite: start one audio-only Room Composite Egress a room"),
    s("livekit", "LIVEKIT_EGRESS_START", "room", "When it starts: room (with the room), viewer (with its first viewer) or api (POST /api/sessions/{slug}/egress)"),
    s("livekit", "LIVEKIT_ROOMS", "*", "Comma list of the rooms for which anything is started, with * and ?, such as class-*"),
    unset("livekit", "RTMP_PUBLIC_URL", "URL at which LiveKit reaches RTMP_PORT, such as rtmp://captions.example.com:1937/live"),
    unset("livekit", "HTTP_PUBLIC_URL", "URL at which LiveKit reaches PORT, such as https://captions.example.com"),
    s("livekit", "LIVEKIT_SPEAKERS", "browser", "Who speaks: browser (viewers tell), observer (a hidden participant of ours hears who) or tracks (a Track Egress for each microphone)"),
    s("livekit", "LIVEKIT_CAPTIONS", "off", "Captions into the room: off, data (data packets) or transcription (text streams on lk.transcription)"),
    secret("store", "DATABASE_URL", "sqlite://DATA_DIR/stenocast.db (default) or postgres://user:password@host/db?sslmode="),
    s("store", "DATABASE_POOL", "4", "Database connections"),
    s("store", "FLUSH_INTERVAL_MS", "300", "Longest wait of a row for its batch"),
    s("store", "MAX_BATCH_SIZE", "100", "Rows of one statement"),
    s("store", "MAX_QUEUE_SIZE", "1000", "Pending rows past which a warning is logged"),
    s("store", "OUTBOX_FSYNC", "interval", "interval (group commit) or always"),
    s("store", "OUTBOX_FSYNC_MS", "100", "Interval of the group commit"),
    s("store", "OUTBOX_MAX_BYTES", "10GiB", "Disk for rows that wait for the database"),
    s("store", "RETENTION_DAYS", "0", "Days after which ended sessions are deleted; 0 keeps them"),
    s("split", "BUS", "http", "What is between the nodes: http (posts from node to node) or nats; SERVER_MODE=both has none"),
    unset("split", "WS_SERVER_URL", "Comma list of ws nodes' base URLs, for SERVER_MODE=rtmp"),
    s("split", "FORWARD_TIMEOUT_MS", "2000", "Time-out of one forward request, for SERVER_MODE=rtmp"),
    secret("split", "NATS_URL", "Comma list of the NATS servers, such as nats://user:password@host:4222 or tls://host, for BUS=nats"),
    s("split", "NATS_REPLICAS", "1", "Copies of the log in a NATS cluster: 1, 3 or 5; more than 1 needs NATS 2.12"),
    s("split", "NATS_MAX_AGE", "24h", "How long NATS keeps the log"),
    s("split", "NATS_MAX_BYTES", "8GiB", "Disk for the log in NATS; from 80 % on, entries that are in the database leave it"),
    s("split", "NATS_LEASE_MS", "10000", "A node that cannot be asked and has said nothing for so long has lost its rooms to the others"),
    unset("split", "NATS_CA", "PEM file of the certificate authorities of NATS; it makes TLS a must"),
    unset("split", "NATS_CREDS", "Credentials file (.creds) for NATS"),
    computed("split", "NODE_ID", "host name", "Name of this node, in health, metrics and what it says to others"),
    unset("split", "CA_FILE", "PEM file of further certificate authorities, for WS_SERVER_URL with https"),
];

/// The flag of a setting: `--rtmp-port` for `RTMP_PORT`.
pub fn flag_of(name: &str) -> String {
    name.to_lowercase().replace('_', "-")
}
