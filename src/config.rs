//! Configuration: environment variables and flags of the same names, checked as a whole.
//!
//! [`SETTINGS`] is the one table of names, defaults and help; the command line, the README's table and the parser all
//! come from it. [`Config::load`] reports every fault at once.

use std::collections::HashMap;
use std::fmt;
use std::net::IpAddr;
use std::path::PathBuf;
use std::time::Duration;

mod reader;
mod sections;
mod settings;

pub use reader::parse_bytes;
pub use sections::default_model_dir;
pub use settings::{SETTINGS, Setting, flag_of};

use reader::Reader;

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
    /// The one pair was made up for `--dev`.
    pub is_generated: bool,
    pub livekit_url: Option<String>,
    pub broadcast_token: Option<Secret>,
    pub admin_token: Option<Secret>,
    pub cors_origins: Vec<String>,
}

#[derive(Debug, Clone)]
pub struct ViewersConfig {
    /// Path under which a proxy shows this server, such as `/captions`; empty = at the root.
    pub base_path: String,
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
    /// DATABASE_URL is set, to nothing: a variable that was not passed on, most likely.
    pub is_url_empty: bool,
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
            base_path: r.base_path("BASE_PATH"),
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

#[cfg(test)]
mod tests;
