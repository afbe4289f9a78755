//! Configuration: environment variables and flags of the same names, checked as a whole.
//!
//! [`SETTINGS`] is the one table of names, defaults and help; the command line, the README's table and the parser all
//! come from it. [`Config::load`] reports every fault at once.

use std::collections::HashMap;
use std::fmt;
use std::net::IpAddr;
use std::path::PathBuf;
use std::time::Duration;

mod api_keys;
mod livekit;
mod reader;
mod sections;
mod settings;

pub use api_keys::KeyPair;
pub use livekit::{CaptionsTo, EgressKind, EgressStart, LiveKitConfig, RoomPatterns, SpeakersFrom};
pub use reader::{parse_bytes, parse_duration};
pub use sections::default_model_dir;
pub use settings::{DEFAULT_API_URL, DefaultValue, SETTINGS, Setting, flag_of};

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
    pub server: ServerConfig,
    pub rtmp: RtmpConfig,
    pub audio: AudioConfig,
    pub stt: SttConfig,
    pub local_stt: LocalSttConfig,
    pub auth: AuthConfig,
    pub viewers: ViewersConfig,
    pub store: StoreConfig,
    pub split: SplitConfig,
    pub livekit: LiveKitConfig,
}

#[derive(Debug, Clone)]
pub struct ServerConfig {
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

/// The client of a recogniser that speaks Gladia Live v2, whichever it is.
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
}

impl SttConfig {
    /// True when `serve` has to start the local recogniser.
    pub fn is_local(&self) -> bool {
        self.api_key.is_none() && self.api_url == DEFAULT_API_URL
    }
}

/// Our own recogniser, which `serve` starts where [`SttConfig::is_local`].
#[derive(Debug, Clone)]
pub struct LocalSttConfig {
    pub model_dir: PathBuf,
    /// Threads of inference.
    pub threads: usize,
    pub max_sessions: usize,
}

impl LocalSttConfig {
    /// One core is left for everything else.
    pub fn default_threads(cores: usize) -> usize {
        cores.saturating_sub(1).max(1)
    }

    /// A session is idle most of the time: one thread serves eight.
    pub fn default_sessions(threads: usize) -> usize {
        8 * threads
    }
}

#[derive(Debug, Clone)]
pub struct AuthConfig {
    /// Never empty; the first one signs what we send.
    pub keys: Vec<KeyPair>,
    /// Those of them that the settings hold; the others are in the file, which SIGHUP reads again.
    set_keys: Vec<KeyPair>,
    pub keys_file: Option<PathBuf>,
    /// The one pair was made up for `--dev`.
    pub is_generated: bool,
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
    /// None estimates it.
    pub speaker_offset_ms: Option<i64>,
}

#[derive(Debug, Clone)]
pub struct StoreConfig {
    pub database: DatabaseUrl,
    /// `DATABASE_URL` is set, to nothing: a variable that was not passed on, most likely.
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
    /// Further certificate authorities than the public ones.
    pub ca_file: Option<PathBuf>,
    pub forward_timeout: Duration,
    pub nats: NatsConfig,
    pub node_id: String,
}

/// The NATS servers of `BUS=nats`, and the log that is kept there.
#[derive(Debug, Clone)]
pub struct NatsConfig {
    /// Of one cluster; a user name and a password may be in them. Empty: there is none.
    pub urls: Vec<Secret>,
    pub replicas: usize,
    pub max_age: Duration,
    pub max_bytes: u64,
    pub lease: Duration,
    pub ca: Option<PathBuf>,
    pub creds: Option<PathBuf>,
}

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

/// Says what is wrong with a Postgres URL, without a word of it. The database knows, and lies above the configuration.
pub type CheckUrl = fn(&Secret) -> Result<(), String>;

impl Config {
    /// Checks the given values, but takes any Postgres URL; opening the database refuses it then.
    pub fn load(values: &HashMap<String, String>, dev: bool) -> Result<Self, ConfigFaults> {
        Self::load_checked(values, dev, |_| Ok(()))
    }

    /// Checks the given values (name to text; absent or empty = default). `dev` is the `--dev` flag.
    pub fn load_checked(
        values: &HashMap<String, String>,
        dev: bool,
        check_url: CheckUrl,
    ) -> Result<Self, ConfigFaults> {
        let mut r = Reader { values, faults: Vec::new() };
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        let server = r.server(cores, dev);
        let auth = r.auth(server.mode, dev);
        let config = Self {
            rtmp: r.rtmp(server.host),
            audio: r.audio(),
            stt: r.stt(),
            local_stt: r.local_stt(cores),
            livekit: r.livekit(&auth),
            auth,
            viewers: r.viewers(),
            store: r.store(&server.data_dir, check_url),
            split: r.split(server.mode),
            server,
        };
        if r.faults.is_empty() { Ok(config) } else { Err(ConfigFaults(r.faults)) }
    }

    /// The values of all settings in the process environment.
    pub fn environment() -> HashMap<String, String> {
        let known = SETTINGS.iter().filter_map(|s| Some((s.name.to_owned(), std::env::var(s.name).ok()?)));
        known.collect()
    }
}

#[cfg(test)]
mod tests;
