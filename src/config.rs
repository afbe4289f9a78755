//! Configuration: environment variables and flags of the same names, checked as a whole.
//!
//! [`SETTINGS`] is the one table of names, defaults and help; the command line, the README's table and the parser all
//! come from it. [`Config::load`] reports every fault at once.

use std::collections::HashMap;
use std::fmt;
use std::net::IpAddr;
use std::path::PathBuf;
use std::time::Duration;

/// One setting: `NAME` as environment variable, `--name` as flag.
pub struct Setting {
    pub group: &'static str,
    pub name: &'static str,
    /// As shown to people; empty = not set.
    pub default: &'static str,
    pub help: &'static str,
    pub secret: bool,
}

const fn s(group: &'static str, name: &'static str, default: &'static str, help: &'static str) -> Setting {
    Setting { group, name, default, help, secret: false }
}

const fn secret(group: &'static str, name: &'static str, help: &'static str) -> Setting {
    Setting { group, name, default: "", help, secret: true }
}

/// Every setting of `stenocast serve`, in the order of the README.
#[rustfmt::skip]
pub const SETTINGS: &[Setting] = &[
    s("core", "SERVER_MODE", "both", "What runs here: both, or ws (viewers and database only, fed by POST broadcast); rtmp (ingest only, forwards) is not supported yet"),
    s("core", "HOST", "0.0.0.0", "Address of the HTTP listener (127.0.0.1 with --dev)"),
    s("core", "PORT", "8080", "Port of the HTTP listener; 0 takes a free one"),
    s("core", "DATA_DIR", "./data", "Outbox, spool, checkpoints and the SQLite file: a persistent volume in production"),
    s("core", "WORKERS", "cores", "HTTP worker threads, and as many session threads"),
    s("core", "SHUTDOWN_TIMEOUT_MS", "15000", "Longest time from SIGTERM to exit"),
    s("core", "LOG_FORMAT", "text", "text or json"),
    s("core", "RUST_LOG", "info", "Log filter, such as info or stenocast=debug"),
    s("rtmp", "RTMP_PORT", "1937", "Port of the RTMP listener; 0 takes a free one"),
    s("rtmp", "RTMP_HOST", "HOST", "Address of the RTMP listener"),
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
    s("stt", "GLADIA_API_URL", "https://api.gladia.io", "Base URL of Gladia or of a compatible service"),
    s("stt", "GLADIA_REGION", "", "eu-west or us-west"),
    s("stt", "GLADIA_MODEL", "solaria-1", "Recogniser model"),
    s("stt", "GLADIA_LANGUAGES", "", "Comma list of ISO codes, such as en,fr; empty detects"),
    s("stt", "GLADIA_VOCABULARY", "", "Comma list of words and names that the recogniser should expect"),
    s("stt", "GLADIA_TRANSLATE_TO", "", "Comma list of ISO codes to translate finals into"),
    s("stt", "GLADIA_ENDPOINTING", "0.3", "Seconds of silence that close an utterance, 0.01 to 10"),
    s("stt", "GLADIA_MAX_UTTERANCE_S", "15", "Longest utterance in seconds, 5 to 60"),
    s("stt", "GLADIA_MAX_SESSIONS", "30", "Recogniser sessions at a time that the account allows"),
    s("stt", "GLADIA_SESSION_MAX_S", "10500", "Recogniser session length after which it is replaced"),
    s("stt", "STT_STALL_MS", "15000", "Speech without any answer for so long counts as a stalled recogniser"),
    s("stt", "REPLAY_WINDOW_MS", "600000", "Audio kept for replay while its text is not final"),
    s("stt", "REPLAY_MAX_BYTES", "1GiB", "Disk for replay audio of all sessions"),
    s("stt", "MODEL_DIR", "user cache", "Model files of the local recogniser"),
    s("stt", "STT_THREADS", "cores-1", "Inference threads of the local recogniser"),
    s("stt", "STT_MAX_SESSIONS", "8×threads", "Sessions of the local recogniser"),
    s("auth", "LIVEKIT_API_KEY", "", "API key whose tokens are accepted"),
    secret("auth", "LIVEKIT_API_SECRET", "Secret of LIVEKIT_API_KEY"),
    secret("auth", "LIVEKIT_KEYS", "Several pairs for rotation: `key: secret`, separated by commas or lines"),
    s("auth", "LIVEKIT_URL", "", "URL of the LiveKit server; nothing uses it yet"),
    secret("auth", "BROADCAST_TOKEN", "Bearer token of POST broadcast (required in split mode)"),
    secret("auth", "ADMIN_TOKEN", "Bearer token of /metrics; without one it answers loopback only"),
    s("auth", "CORS_ORIGINS", "", "Comma list of allowed origins, or *"),
    s("viewers", "WS_MAX_CLIENTS", "20000", "Viewers in all"),
    s("viewers", "WS_MAX_PER_SESSION", "20000", "Viewers of one room"),
    s("viewers", "WS_PING_MS", "15000", "Ping interval"),
    s("viewers", "WS_STALL_MS", "10000", "A viewer whose socket takes nothing for so long is cut"),
    s("viewers", "ROOM_HISTORY", "1000", "Newest entries kept in memory per session"),
    s("viewers", "ROOM_HISTORY_BYTES", "4MiB", "Bytes kept in memory per session"),
    s("viewers", "SPEAKER_OFFSET_MS", "0", "How much later audio arrives here than the speaker reports, -10000 to 10000"),
    secret("store", "DATABASE_URL", "sqlite://DATA_DIR/stenocast.db (default) or postgres://user:password@host/db?sslmode="),
    s("store", "DATABASE_POOL", "4", "Database connections"),
    s("store", "FLUSH_INTERVAL_MS", "300", "Longest wait of a row for its batch"),
    s("store", "MAX_BATCH_SIZE", "100", "Rows of one statement"),
    s("store", "MAX_QUEUE_SIZE", "1000", "Pending rows past which a warning is logged"),
    s("store", "OUTBOX_FSYNC", "interval", "interval (group commit) or always"),
    s("store", "OUTBOX_FSYNC_MS", "100", "Interval of the group commit"),
    s("store", "OUTBOX_MAX_BYTES", "10GiB", "Disk for rows that wait for the database"),
    s("store", "RETENTION_DAYS", "0", "Days after which ended sessions are deleted; 0 keeps them"),
    s("split", "BUS", "http", "http; nats is not supported yet"),
    s("split", "WS_SERVER_URL", "", "Comma list of ws nodes' base URLs, for SERVER_MODE=rtmp"),
    s("split", "FORWARD_TIMEOUT_MS", "2000", "Time-out of one forward request, for SERVER_MODE=rtmp"),
    s("split", "NATS_URL", "", "URL of NATS, for BUS=nats"),
    s("split", "NODE_ID", "host name", "Name of this node, for BUS=nats"),
];

/// The flag of a setting: `--rtmp-port` for RTMP_PORT.
pub fn flag_of(name: &str) -> String {
    name.to_lowercase().replace('_', "-")
}

/// A string that never shows in a log or an error.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(String);

impl Secret {
    pub fn new(text: impl Into<String>) -> Self {
        Self(text.into())
    }

    /// The text itself. Name the reason where you call it.
    pub fn expose(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("***")
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ServerMode {
    Both,
    Rtmp,
    Ws,
}

impl ServerMode {
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Both => "both",
            Self::Rtmp => "rtmp",
            Self::Ws => "ws",
        }
    }

    /// Publishers are taken here.
    pub fn ingests(self) -> bool {
        self != Self::Ws
    }

    /// Viewers and the database are here.
    pub fn serves(self) -> bool {
        self != Self::Rtmp
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LogFormat {
    Text,
    Json,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DecoderKind {
    Auto,
    Process,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fsync {
    Interval,
    Always,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BusKind {
    Http,
    Nats,
}

#[derive(Debug, Clone)]
pub struct Config {
    pub core: CoreConfig,
    pub rtmp: RtmpConfig,
    pub audio: AudioConfig,
    pub stt: SttConfig,
    pub auth: AuthConfig,
    pub viewers: ViewersConfig,
    pub store: StoreConfig,
    pub split: SplitConfig,
}

#[derive(Debug, Clone)]
pub struct CoreConfig {
    pub mode: ServerMode,
    pub dev: bool,
    /// `--drill`: POST /drill exists.
    pub drill: bool,
    /// `--drill-engine`: what the local recogniser runs instead of the real one.
    pub drill_engine: Option<String>,
    pub host: IpAddr,
    pub port: u16,
    pub data_dir: PathBuf,
    pub workers: usize,
    pub shutdown_timeout: Duration,
    pub log_format: LogFormat,
    pub log_filter: String,
}

#[derive(Debug, Clone)]
pub struct RtmpConfig {
    pub host: IpAddr,
    pub port: u16,
    pub publish_key: Option<Secret>,
    pub max_connections: usize,
    pub max_per_ip: usize,
    pub handshake_timeout: Duration,
    pub publish_timeout: Duration,
    pub first_audio_timeout: Duration,
    pub idle_timeout: Duration,
    pub grace: Duration,
    pub max_sessions: usize,
}

#[derive(Debug, Clone)]
pub struct AudioConfig {
    pub decoder: DecoderKind,
    pub ffmpeg_path: PathBuf,
    /// Milliseconds per chunk; 1 ms is 32 bytes of PCM16 at 16 kHz mono.
    pub chunk_ms: u64,
}

#[derive(Debug, Clone)]
pub struct SttConfig {
    pub api_key: Option<Secret>,
    /// Without trailing slash.
    pub api_url: String,
    pub region: Option<String>,
    pub model: String,
    pub languages: Vec<String>,
    pub vocabulary: Vec<String>,
    pub translate_to: Vec<String>,
    pub endpointing_s: f64,
    pub max_utterance_s: u64,
    pub max_sessions: usize,
    pub session_max: Duration,
    pub stall: Duration,
    pub replay_window: Duration,
    pub replay_max_bytes: u64,
    pub model_dir: PathBuf,
    pub threads: usize,
    pub local_max_sessions: usize,
}

impl SttConfig {
    /// True when `serve` has to start the local recogniser.
    pub fn is_local(&self) -> bool {
        self.api_key.is_none() && self.api_url == DEFAULT_API_URL
    }
}

#[derive(Debug, Clone)]
pub struct AuthConfig {
    /// (API key, secret); never empty.
    pub keys: Vec<(String, Secret)>,
    pub livekit_url: Option<String>,
    pub broadcast_token: Option<Secret>,
    pub admin_token: Option<Secret>,
    pub cors_origins: Vec<String>,
}

#[derive(Debug, Clone)]
pub struct ViewersConfig {
    pub max_clients: usize,
    pub max_per_session: usize,
    pub ping: Duration,
    pub stall: Duration,
    pub history: usize,
    pub history_bytes: usize,
    pub speaker_offset_ms: i64,
}

#[derive(Debug, Clone)]
pub struct StoreConfig {
    pub database: DatabaseUrl,
    pub pool: usize,
    pub flush_interval: Duration,
    pub max_batch_size: usize,
    pub max_queue_size: usize,
    pub fsync: Fsync,
    pub fsync_interval: Duration,
    pub outbox_max_bytes: u64,
    /// None keeps everything.
    pub retention: Option<Duration>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum DatabaseUrl {
    Sqlite(PathBuf),
    Postgres(Secret),
}

#[derive(Debug, Clone)]
pub struct SplitConfig {
    pub bus: BusKind,
    pub ws_server_urls: Vec<String>,
    pub forward_timeout: Duration,
    pub nats_url: Option<String>,
    pub node_id: String,
}

/// The default of GLADIA_API_URL; any other value needs no key.
pub const DEFAULT_API_URL: &str = "https://api.gladia.io";
/// API key of the pair that `--dev` makes.
pub const DEV_API_KEY: &str = "devkey";

/// All faults of a configuration, one line each.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ConfigFaults(pub Vec<String>);

impl fmt::Display for ConfigFaults {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "the configuration has {} fault(s):", self.0.len())?;
        for fault in &self.0 {
            writeln!(f, "  - {fault}")?;
        }
        Ok(())
    }
}

impl std::error::Error for ConfigFaults {}

impl Config {
    /// Checks the given values (name to text; absent or empty = default). `dev` is the `--dev` flag.
    pub fn load(values: &HashMap<String, String>, dev: bool) -> Result<Self, ConfigFaults> {
        let mut r = Reader { values, faults: Vec::new() };
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        let mode =
            r.choice("SERVER_MODE", &[("both", ServerMode::Both), ("rtmp", ServerMode::Rtmp), ("ws", ServerMode::Ws)]);
        let host: IpAddr = match r.text("HOST") {
            None if dev => [127, 0, 0, 1].into(),
            None => [0, 0, 0, 0].into(),
            Some(_) => r.parse("HOST", [0, 0, 0, 0].into(), "an IP address"),
        };
        let data_dir = PathBuf::from(r.text("DATA_DIR").unwrap_or("./data"));
        let core = CoreConfig {
            mode,
            dev,
            drill: false,
            drill_engine: None,
            host,
            port: r.parse("PORT", 8080, "a port, 0 to 65535"),
            workers: r.within("WORKERS", cores as u64, 1, 256) as usize,
            shutdown_timeout: r.millis("SHUTDOWN_TIMEOUT_MS", 15_000, 100, 3_600_000),
            log_format: r.choice("LOG_FORMAT", &[("text", LogFormat::Text), ("json", LogFormat::Json)]),
            log_filter: r.log_filter(),
            data_dir: data_dir.clone(),
        };
        let rtmp = r.rtmp(host);
        let audio = AudioConfig {
            decoder: r.choice("DECODER", &[("auto", DecoderKind::Auto), ("process", DecoderKind::Process)]),
            ffmpeg_path: PathBuf::from(r.text("FFMPEG_PATH").unwrap_or("ffmpeg")),
            chunk_ms: r.within("AUDIO_CHUNK_MS", 100, 20, 1000),
        };
        let stt = r.stt(cores);
        let auth = r.auth(mode, dev);
        let viewers = ViewersConfig {
            max_clients: r.within("WS_MAX_CLIENTS", 20_000, 1, 1_000_000) as usize,
            max_per_session: r.within("WS_MAX_PER_SESSION", 20_000, 1, 1_000_000) as usize,
            ping: r.millis("WS_PING_MS", 15_000, 100, 3_600_000),
            stall: r.millis("WS_STALL_MS", 10_000, 100, 3_600_000),
            history: r.within("ROOM_HISTORY", 1000, 1, 1_000_000) as usize,
            history_bytes: r.bytes("ROOM_HISTORY_BYTES", 4 << 20) as usize,
            speaker_offset_ms: r.offset("SPEAKER_OFFSET_MS", 0, 10_000),
        };
        let store = r.store(&data_dir);
        let split = r.split(mode);
        if !r.faults.is_empty() {
            return Err(ConfigFaults(r.faults));
        }
        Ok(Self { core, rtmp, audio, stt, auth, viewers, store, split })
    }

    /// The values of all settings in the process environment.
    pub fn environment() -> HashMap<String, String> {
        let known = SETTINGS.iter().filter_map(|s| Some((s.name.to_owned(), std::env::var(s.name).ok()?)));
        known.collect()
    }
}

/// What is agreed and not built yet: `serve` refuses it instead of doing nothing in silence.
pub fn unsupported(values: &HashMap<String, String>) -> Vec<String> {
    let asked = |(name, value, instead): &(&str, &str, &str)| {
        let given = values.get(*name).is_some_and(|text| text.trim() == *value);
        given.then(|| format!("{name}={value} is not supported yet; allowed: {instead}"))
    };
    [("SERVER_MODE", "rtmp", "both, ws"), ("BUS", "nats", "http")].iter().filter_map(asked).collect()
}

struct Reader<'a> {
    values: &'a HashMap<String, String>,
    faults: Vec<String>,
}

impl<'a> Reader<'a> {
    fn text(&self, name: &str) -> Option<&'a str> {
        debug_assert!(SETTINGS.iter().any(|s| s.name == name), "{name} is not in SETTINGS");
        self.values.get(name).map(|v| v.trim()).filter(|v| !v.is_empty())
    }

    fn fault(&mut self, fault: String) {
        self.faults.push(fault);
    }

    fn parse<T: std::str::FromStr>(&mut self, name: &str, default: T, allowed: &str) -> T {
        let Some(text) = self.text(name) else {
            return default;
        };
        text.parse().unwrap_or_else(|_| {
            self.fault(format!("{name} is {text:?}; allowed: {allowed}"));
            default
        })
    }

    fn log_filter(&mut self) -> String {
        let text = self.text("RUST_LOG").unwrap_or("info");
        if tracing_subscriber::EnvFilter::try_new(text).is_err() {
            self.fault(format!(
                "RUST_LOG is {text:?}; allowed: error, warn, info, debug, trace, or such as stenocast=debug"
            ));
        }
        text.to_owned()
    }

    fn livekit_url(&mut self) -> Option<String> {
        let url = self.text("LIVEKIT_URL")?;
        let rest = ["wss://", "ws://", "https://", "http://"].iter().find_map(|scheme| url.strip_prefix(scheme));
        if rest.is_none_or(|host| host.is_empty() || host.starts_with('/')) {
            self.fault("LIVEKIT_URL is no URL; allowed: such as wss://livekit.example.com".to_owned());
        }
        Some(url.to_owned())
    }

    fn languages(&mut self, name: &str) -> Vec<String> {
        let codes = self.list(name);
        let is_odd = |code: &&String| !matches!(code.len(), 2 | 3) || !code.bytes().all(|b| b.is_ascii_lowercase());
        if let Some(odd) = codes.iter().find(is_odd) {
            self.fault(format!("{name} has {odd:?}; allowed: a comma list of ISO codes such as en,fr"));
        }
        codes
    }

    fn within(&mut self, name: &str, default: u64, low: u64, high: u64) -> u64 {
        let Some(text) = self.text(name) else {
            return default;
        };
        match text.parse::<u64>() {
            Ok(n) if (low..=high).contains(&n) => n,
            _ => {
                self.fault(format!("{name} is {text:?}; allowed: a whole number from {low} to {high}"));
                default
            }
        }
    }

    fn offset(&mut self, name: &str, default: i64, most: i64) -> i64 {
        let value: i64 = self.parse(name, default, &format!("a whole number from -{most} to {most}"));
        if value.abs() > most {
            self.fault(format!("{name} is {value}; allowed: a whole number from -{most} to {most}"));
        }
        value
    }

    fn millis(&mut self, name: &str, default: u64, low: u64, high: u64) -> Duration {
        Duration::from_millis(self.within(name, default, low, high))
    }

    /// `1048576`, `512KiB`, `4MiB`, `1GiB`, also `MB` and the like (decimal).
    fn bytes(&mut self, name: &str, default: u64) -> u64 {
        let Some(text) = self.text(name) else {
            return default;
        };
        parse_bytes(text).filter(|n| *n > 0).unwrap_or_else(|| {
            self.fault(format!("{name} is {text:?}; allowed: a number of bytes such as 1048576, 512KiB, 4MiB or 1GiB"));
            default
        })
    }

    fn choice<T: Copy>(&mut self, name: &str, choices: &[(&str, T)]) -> T {
        let Some(text) = self.text(name) else {
            return choices[0].1;
        };
        if let Some((_, value)) = choices.iter().find(|(label, _)| *label == text) {
            return *value;
        }
        let labels: Vec<_> = choices.iter().map(|(label, _)| *label).collect();
        self.fault(format!("{name} is {text:?}; allowed: {}", labels.join(", ")));
        choices[0].1
    }

    fn secret(&self, name: &str) -> Option<Secret> {
        self.text(name).map(Secret::new)
    }

    fn list(&self, name: &str) -> Vec<String> {
        let text = self.text(name).unwrap_or("");
        text.split(',').map(str::trim).filter(|t| !t.is_empty()).map(str::to_owned).collect()
    }

    /// `*`, or origins as a browser sends them: scheme, host and port, no path.
    fn origins(&mut self, name: &str) -> Vec<String> {
        let origins = self.list(name);
        let is_origin = |text: &str| {
            let host = text.strip_prefix("http://").or_else(|| text.strip_prefix("https://"));
            text == "*" || host.is_some_and(|host| !host.is_empty() && !host.contains(['/', '?', '#', ' ', '@']))
        };
        for bad in origins.iter().filter(|origin| !is_origin(origin)) {
            self.fault(format!("{name} has {bad:?}; allowed: * or origins such as https://example.org"));
        }
        origins
    }

    fn url(&mut self, name: &str, text: &str) -> String {
        if !(text.starts_with("http://") || text.starts_with("https://")) {
            self.fault(format!("{name} is not a URL; allowed: http://… or https://…"));
        }
        text.trim_end_matches('/').to_owned()
    }

    fn rtmp(&mut self, host: IpAddr) -> RtmpConfig {
        let publish_key = self.secret("RTMP_PUBLISH_KEY");
        let open = self.choice("RTMP_OPEN", &[("false", false), ("true", true)]);
        let given = self.text("RTMP_HOST").is_some();
        let mut rtmp_host: IpAddr = self.parse("RTMP_HOST", host, "an IP address");
        if publish_key.is_none() && !open && !rtmp_host.is_loopback() {
            if given {
                self.fault(format!(
                    "RTMP_HOST is {rtmp_host}, beyond loopback, without RTMP_PUBLISH_KEY; set a key, or RTMP_OPEN=true to let anybody publish"
                ));
            }
            rtmp_host = [127, 0, 0, 1].into();
        }
        RtmpConfig {
            host: rtmp_host,
            port: self.parse("RTMP_PORT", 1937, "a port, 0 to 65535"),
            publish_key,
            max_connections: self.within("RTMP_MAX_CONNECTIONS", 1000, 1, 100_000) as usize,
            max_per_ip: self.within("RTMP_MAX_PER_IP", 100, 1, 100_000) as usize,
            handshake_timeout: self.millis("RTMP_HANDSHAKE_TIMEOUT_MS", 5000, 50, 600_000),
            publish_timeout: self.millis("RTMP_PUBLISH_TIMEOUT_MS", 10_000, 50, 600_000),
            first_audio_timeout: self.millis("RTMP_FIRST_AUDIO_TIMEOUT_MS", 20_000, 50, 3_600_000),
            idle_timeout: self.millis("RTMP_IDLE_TIMEOUT_MS", 10_000, 50, 3_600_000),
            grace: self.millis("SESSION_GRACE_MS", 30_000, 0, 86_400_000),
            max_sessions: self.within("MAX_SESSIONS", 500, 1, 100_000) as usize,
        }
    }

    fn stt(&mut self, cores: usize) -> SttConfig {
        let api_url = match self.text("GLADIA_API_URL") {
            None => DEFAULT_API_URL.to_owned(),
            Some(text) => self.url("GLADIA_API_URL", text),
        };
        let endpointing_s: f64 = self.parse("GLADIA_ENDPOINTING", 0.3, "seconds from 0.01 to 10");
        if !(0.01..=10.0).contains(&endpointing_s) {
            self.fault(format!("GLADIA_ENDPOINTING is {endpointing_s}; allowed: seconds from 0.01 to 10"));
        }
        let region = self.text("GLADIA_REGION").map(str::to_owned);
        if let Some(region) = region.as_deref().filter(|r| !matches!(*r, "eu-west" | "us-west")) {
            self.fault(format!("GLADIA_REGION is {region:?}; allowed: eu-west, us-west"));
        }
        let threads = self.within("STT_THREADS", (cores as u64 - 1).max(1), 1, 256) as usize;
        SttConfig {
            api_key: self.secret("GLADIA_API_KEY"),
            api_url,
            region,
            model: self.text("GLADIA_MODEL").unwrap_or("solaria-1").to_owned(),
            languages: self.languages("GLADIA_LANGUAGES"),
            vocabulary: self.list("GLADIA_VOCABULARY"),
            translate_to: self.languages("GLADIA_TRANSLATE_TO"),
            endpointing_s,
            max_utterance_s: self.within("GLADIA_MAX_UTTERANCE_S", 15, 5, 60),
            max_sessions: self.within("GLADIA_MAX_SESSIONS", 30, 1, 100_000) as usize,
            session_max: Duration::from_secs(self.within("GLADIA_SESSION_MAX_S", 10_500, 5, 10_800)),
            stall: self.millis("STT_STALL_MS", 15_000, 100, 3_600_000),
            replay_window: self.millis("REPLAY_WINDOW_MS", 600_000, 1000, 86_400_000),
            replay_max_bytes: self.bytes("REPLAY_MAX_BYTES", 1 << 30),
            model_dir: self.text("MODEL_DIR").map_or_else(default_model_dir, PathBuf::from),
            threads,
            local_max_sessions: self.within("STT_MAX_SESSIONS", 8 * threads as u64, 1, 100_000) as usize,
        }
    }

    fn auth(&mut self, mode: ServerMode, dev: bool) -> AuthConfig {
        let mut keys = Vec::new();
        match (self.text("LIVEKIT_API_KEY"), self.secret("LIVEKIT_API_SECRET")) {
            (Some(key), Some(secret)) => keys.push((key.to_owned(), secret)),
            (Some(_), None) => self.fault("LIVEKIT_API_KEY is set without LIVEKIT_API_SECRET".to_owned()),
            (None, Some(_)) => self.fault("LIVEKIT_API_SECRET is set without LIVEKIT_API_KEY".to_owned()),
            (None, None) => {}
        }
        let pairs = self.text("LIVEKIT_KEYS").unwrap_or("");
        for (n, pair) in pairs.split([',', '\n']).map(str::trim).filter(|p| !p.is_empty()).enumerate() {
            match pair.split_once(':').map(|(k, s)| (k.trim(), s.trim())) {
                Some((key, secret)) if !key.is_empty() && !secret.is_empty() => {
                    keys.push((key.to_owned(), Secret::new(secret)));
                }
                _ => self.fault(format!("LIVEKIT_KEYS, pair {}: allowed is `key: secret`", n + 1)),
            }
        }
        if keys.is_empty() && dev {
            keys.push((DEV_API_KEY.to_owned(), Secret::new(random_hex())));
        } else if keys.is_empty() {
            self.fault(
                "no token secret: set LIVEKIT_API_KEY and LIVEKIT_API_SECRET (or LIVEKIT_KEYS), or start with --dev for a random one".to_owned(),
            );
        }
        let broadcast_token = self.secret("BROADCAST_TOKEN");
        if mode != ServerMode::Both && broadcast_token.is_none() {
            self.fault(format!("BROADCAST_TOKEN is required with SERVER_MODE={}", mode.as_str()));
        }
        AuthConfig {
            keys,
            livekit_url: self.livekit_url(),
            broadcast_token,
            admin_token: self.secret("ADMIN_TOKEN"),
            cors_origins: self.origins("CORS_ORIGINS"),
        }
    }

    fn store(&mut self, data_dir: &std::path::Path) -> StoreConfig {
        let database = match self.text("DATABASE_URL") {
            None => DatabaseUrl::Sqlite(data_dir.join("stenocast.db")),
            Some(url) if url.starts_with("postgres://") || url.starts_with("postgresql://") => {
                let url = Secret::new(url);
                if let Err(error) = crate::db::check_postgres_url(&url) {
                    self.fault(error.to_string());
                }
                DatabaseUrl::Postgres(url)
            }
            Some(url) => match url.strip_prefix("sqlite://") {
                Some(path) if !path.is_empty() => {
                    DatabaseUrl::Sqlite(PathBuf::from(path.replace("DATA_DIR", &data_dir.to_string_lossy())))
                }
                _ => {
                    self.fault("DATABASE_URL has an unknown scheme; allowed: sqlite://path or postgres://user:password@host/db".to_owned());
                    DatabaseUrl::Sqlite(data_dir.join("stenocast.db"))
                }
            },
        };
        let days = self.within("RETENTION_DAYS", 0, 0, 36_500);
        StoreConfig {
            database,
            pool: self.within("DATABASE_POOL", 4, 1, 256) as usize,
            flush_interval: self.millis("FLUSH_INTERVAL_MS", 300, 1, 60_000),
            max_batch_size: self.within("MAX_BATCH_SIZE", 100, 1, 10_000) as usize,
            max_queue_size: self.within("MAX_QUEUE_SIZE", 1000, 1, 10_000_000) as usize,
            fsync: self.choice("OUTBOX_FSYNC", &[("interval", Fsync::Interval), ("always", Fsync::Always)]),
            fsync_interval: self.millis("OUTBOX_FSYNC_MS", 100, 1, 60_000),
            outbox_max_bytes: self.bytes("OUTBOX_MAX_BYTES", 10 << 30),
            retention: (days > 0).then(|| Duration::from_secs(days * 86_400)),
        }
    }

    fn split(&mut self, mode: ServerMode) -> SplitConfig {
        let bus = self.choice("BUS", &[("http", BusKind::Http), ("nats", BusKind::Nats)]);
        let urls = self.list("WS_SERVER_URL");
        let ws_server_urls: Vec<String> = urls.iter().map(|u| self.url("WS_SERVER_URL", u)).collect();
        let nats_url = self.text("NATS_URL").map(str::to_owned);
        if mode == ServerMode::Rtmp && bus == BusKind::Http && ws_server_urls.is_empty() {
            self.fault("WS_SERVER_URL is required with SERVER_MODE=rtmp and BUS=http".to_owned());
        }
        if bus == BusKind::Nats && nats_url.is_none() {
            self.fault("NATS_URL is required with BUS=nats".to_owned());
        }
        SplitConfig {
            bus,
            ws_server_urls,
            forward_timeout: self.millis("FORWARD_TIMEOUT_MS", 2000, 50, 600_000),
            nats_url,
            node_id: self.text("NODE_ID").map_or_else(host_name, str::to_owned),
        }
    }
}

/// `1048576`, `512KiB`, `1GB`; None when it is neither.
pub fn parse_bytes(text: &str) -> Option<u64> {
    let digits = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let (number, unit) = text.split_at(digits);
    let factor: u64 = match unit.trim() {
        "" | "B" => 1,
        "KiB" => 1 << 10,
        "MiB" => 1 << 20,
        "GiB" => 1 << 30,
        "TiB" => 1 << 40,
        "KB" | "kB" => 1000,
        "MB" => 1_000_000,
        "GB" => 1_000_000_000,
        _ => return None,
    };
    number.parse::<u64>().ok()?.checked_mul(factor)
}

/// `$XDG_CACHE_HOME/stenocast/models`, else `~/.cache/stenocast/models`.
pub fn default_model_dir() -> PathBuf {
    let cache = std::env::var_os("XDG_CACHE_HOME").filter(|v| !v.is_empty()).map(PathBuf::from);
    let home = || PathBuf::from(std::env::var_os("HOME").unwrap_or_else(|| ".".into())).join(".cache");
    cache.unwrap_or_else(home).join("stenocast").join("models")
}

fn host_name() -> String {
    std::fs::read_to_string("/proc/sys/kernel/hostname")
        .map_or_else(|_| "stenocast".to_owned(), |s| s.trim().to_owned())
}

fn random_hex() -> String {
    hex::encode(rand::random::<[u8; 24]>())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn load(pairs: &[(&str, &str)], dev: bool) -> Result<Config, ConfigFaults> {
        let values = pairs.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect();
        Config::load(&values, dev)
    }

    #[test]
    fn defaults_are_those_of_the_table() {
        let c = load(&[], true).unwrap();
        assert_eq!((c.core.port, c.rtmp.port), (8080, 1937));
        assert_eq!(c.core.host.to_string(), "127.0.0.1");
        assert_eq!(c.stt.api_url, DEFAULT_API_URL);
        assert!(c.stt.is_local());
        assert_eq!(c.store.database, DatabaseUrl::Sqlite("./data/stenocast.db".into()));
        assert_eq!(c.auth.keys.len(), 1);
        for setting in SETTINGS {
            let value = load(&[(setting.name, setting.default)], true);
            let words = ["cores", "HOST", "user cache", "cores-1", "8×threads", "host name"];
            assert!(words.contains(&setting.default) || value.is_ok(), "{}: {value:?}", setting.name);
        }
    }

    #[test]
    fn all_faults_are_reported_at_once_and_say_what_is_allowed() {
        let faults = load(&[("PORT", "x"), ("SERVER_MODE", "all"), ("AUDIO_CHUNK_MS", "5"), ("BUS", "nats")], false)
            .unwrap_err();
        let text = faults.to_string();
        for part in ["PORT is \"x\"", "both, rtmp, ws", "20 to 1000", "NATS_URL is required", "--dev"] {
            assert!(text.contains(part), "{part} is not in {text}");
        }
        assert_eq!(faults.0.len(), 5);
    }

    #[test]
    fn secrets_never_show() {
        let c = load(
            &[
                ("LIVEKIT_KEYS", "a: s3cret-1, b: s3cret-2"),
                ("DATABASE_URL", "postgres://u:s3cret-3@h/d"),
                ("ADMIN_TOKEN", "s3cret-4"),
            ],
            false,
        )
        .unwrap();
        assert_eq!(c.auth.keys.len(), 2);
        assert!(!format!("{c:?}").contains("s3cret"));
        let faults = load(&[("LIVEKIT_KEYS", "s3cret"), ("DATABASE_URL", "mysql://u:s3cret@h")], false).unwrap_err();
        assert!(!faults.to_string().contains("s3cret"), "{faults}");
    }

    #[test]
    fn rtmp_stays_on_loopback_without_a_key() {
        let keys = ("LIVEKIT_KEYS", "a: b");
        assert!(load(&[keys], false).unwrap().rtmp.host.is_loopback());
        assert!(!load(&[keys, ("RTMP_PUBLISH_KEY", "k")], false).unwrap().rtmp.host.is_loopback());
        assert!(!load(&[keys, ("RTMP_OPEN", "true")], false).unwrap().rtmp.host.is_loopback());
        assert!(load(&[keys, ("RTMP_HOST", "0.0.0.0")], false).is_err());
    }

    /// The README's table is this one. `UPDATE_README=1 cargo test readme` writes it anew.
    #[test]
    fn the_readme_shows_every_setting() {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/README.md");
        let readme = std::fs::read_to_string(path).unwrap();
        let begin = readme.find("<!-- configuration table: begin").expect("the begin mark");
        let begin = begin + readme[begin..].find('\n').unwrap() + 1;
        let end = readme.find("<!-- configuration table: end").expect("the end mark");
        let mut table = "| group | name | default | meaning |\n|---|---|---|---|\n".to_owned();
        for s in SETTINGS {
            let default = if s.default.is_empty() { String::new() } else { format!("`{}`", s.default) };
            table += &format!("| {} | `{}` | {default} | {} |\n", s.group, s.name, s.help.replace('|', "\\|"));
        }
        if std::env::var_os("UPDATE_README").is_some() {
            std::fs::write(path, format!("{}{table}{}", &readme[..begin], &readme[end..])).unwrap();
            return;
        }
        assert_eq!(&readme[begin..end], table, "UPDATE_README=1 cargo test readme mends it");
    }

    #[test]
    fn byte_sizes_have_units() {
        assert_eq!(parse_bytes("1GiB"), Some(1 << 30));
        assert_eq!(parse_bytes("5 MB"), Some(5_000_000));
        assert_eq!(parse_bytes("17"), Some(17));
        assert_eq!(parse_bytes("many"), None);
    }
}
