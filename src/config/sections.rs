//! Reads each section of the configuration: one function a section.

use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::reader::Reader;
use super::{
    AudioConfig, AuthConfig, BusKind, CheckUrl, DEV_API_KEY, DatabaseUrl, DecoderKind, Fsync, LocalSttConfig,
    LogFormat, NatsConfig, RtmpConfig, Secret, ServerConfig, ServerMode, SplitConfig, StoreConfig, SttConfig,
    ViewersConfig,
};

impl Reader<'_> {
    /// An address to listen on, whose default is computed.
    pub(super) fn host(&mut self, name: &str, computed: IpAddr) -> IpAddr {
        let Some(text) = self.given(name) else {
            return computed;
        };
        text.parse().unwrap_or_else(|_| {
            self.fault(format!("{name} is {text:?}; allowed: an IP address"));
            computed
        })
    }

    pub(super) fn server(&mut self, cores: usize, dev: bool) -> ServerConfig {
        let modes = [("both", ServerMode::Both), ("rtmp", ServerMode::Rtmp), ("ws", ServerMode::Ws)];
        ServerConfig {
            mode: self.choice("SERVER_MODE", &modes),
            dev,
            drill: false,
            drill_engine: None,
            host: match self.given("HOST") {
                None if dev => [127, 0, 0, 1].into(),
                _ => self.parse("HOST", "an IP address"),
            },
            port: self.parse("PORT", "a port, 0 to 65535"),
            workers: self.within_or("WORKERS", cores as u64, 1, 256) as usize,
            shutdown_timeout: self.millis("SHUTDOWN_TIMEOUT_MS", 100, 3_600_000),
            log_format: self.choice("LOG_FORMAT", &[("text", LogFormat::Text), ("json", LogFormat::Json)]),
            log_filter: self.log_filter(),
            data_dir: PathBuf::from(self.required("DATA_DIR")),
        }
    }

    pub(super) fn audio(&mut self) -> AudioConfig {
        AudioConfig {
            decoder: self.choice("DECODER", &[("auto", DecoderKind::Auto), ("process", DecoderKind::Process)]),
            ffmpeg_path: PathBuf::from(self.required("FFMPEG_PATH")),
            chunk_ms: self.within("AUDIO_CHUNK_MS", 20, 1000),
        }
    }

    pub(super) fn viewers(&mut self) -> ViewersConfig {
        ViewersConfig {
            base_path: self.base_path("BASE_PATH"),
            max_clients: self.within("WS_MAX_CLIENTS", 1, 1_000_000) as usize,
            max_per_session: self.within("WS_MAX_PER_SESSION", 1, 1_000_000) as usize,
            ping: self.millis("WS_PING_MS", 100, 3_600_000),
            stall: self.millis("WS_STALL_MS", 100, 3_600_000),
            history: self.within("ROOM_HISTORY", 1, 1_000_000) as usize,
            history_bytes: self.bytes("ROOM_HISTORY_BYTES") as usize,
            speaker_offset_ms: self.offset("SPEAKER_OFFSET_MS", 10_000),
        }
    }

    pub(super) fn rtmp(&mut self, host: IpAddr) -> RtmpConfig {
        let publish_key = self.secret("RTMP_PUBLISH_KEY");
        let open = self.choice("RTMP_OPEN", &[("false", false), ("true", true)]);
        let given = self.given("RTMP_HOST").is_some();
        let mut rtmp_host = self.host("RTMP_HOST", host);
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
            port: self.parse("RTMP_PORT", "a port, 0 to 65535"),
            publish_key,
            max_connections: self.within("RTMP_MAX_CONNECTIONS", 1, 100_000) as usize,
            max_per_ip: self.within("RTMP_MAX_PER_IP", 1, 100_000) as usize,
            handshake_timeout: self.millis("RTMP_HANDSHAKE_TIMEOUT_MS", 50, 600_000),
            publish_timeout: self.millis("RTMP_PUBLISH_TIMEOUT_MS", 50, 600_000),
            first_audio_timeout: self.millis("RTMP_FIRST_AUDIO_TIMEOUT_MS", 50, 3_600_000),
            idle_timeout: self.millis("RTMP_IDLE_TIMEOUT_MS", 50, 3_600_000),
            grace: self.millis("SESSION_GRACE_MS", 0, 86_400_000),
            max_sessions: self.within("MAX_SESSIONS", 1, 100_000) as usize,
        }
    }

    pub(super) fn stt(&mut self) -> SttConfig {
        let api_url = self.required("GLADIA_API_URL");
        let endpointing_s: f64 = self.parse("GLADIA_ENDPOINTING", "seconds from 0.01 to 10");
        if !(0.01..=10.0).contains(&endpointing_s) {
            self.fault(format!("GLADIA_ENDPOINTING is {endpointing_s}; allowed: seconds from 0.01 to 10"));
        }
        let region = self.text("GLADIA_REGION").map(str::to_owned);
        if let Some(region) = region.as_deref().filter(|r| !matches!(*r, "eu-west" | "us-west")) {
            self.fault(format!("GLADIA_REGION is {region:?}; allowed: eu-west, us-west"));
        }
        SttConfig {
            api_key: self.token("GLADIA_API_KEY"),
            api_url: self.url("GLADIA_API_URL", api_url),
            region,
            model: self.required("GLADIA_MODEL").to_owned(),
            languages: self.languages("GLADIA_LANGUAGES"),
            vocabulary: self.list("GLADIA_VOCABULARY"),
            translate_to: self.languages("GLADIA_TRANSLATE_TO"),
            endpointing_s,
            max_utterance_s: self.within("GLADIA_MAX_UTTERANCE_S", 5, 60),
            max_sessions: self.within("GLADIA_MAX_SESSIONS", 1, 100_000) as usize,
            session_max: Duration::from_secs(self.within("GLADIA_SESSION_MAX_S", 5, 10_800)),
            stall: self.millis("STT_STALL_MS", 100, 3_600_000),
            replay_window: self.millis("REPLAY_WINDOW_MS", 1000, 86_400_000),
            replay_max_bytes: self.bytes("REPLAY_MAX_BYTES"),
        }
    }

    pub(super) fn local_stt(&mut self, cores: usize) -> LocalSttConfig {
        let threads = self.within_or("STT_THREADS", LocalSttConfig::default_threads(cores) as u64, 1, 256) as usize;
        LocalSttConfig {
            model_dir: self.text("MODEL_DIR").map_or_else(default_model_dir, PathBuf::from),
            threads,
            max_sessions: self.within_or(
                "STT_MAX_SESSIONS",
                LocalSttConfig::default_sessions(threads) as u64,
                1,
                100_000,
            ) as usize,
        }
    }

    pub(super) fn auth(&mut self, mode: ServerMode, dev: bool) -> AuthConfig {
        let mut set_keys = self.set_keys();
        let keys_file = self.text("LIVEKIT_KEYS_FILE").map(PathBuf::from);
        let of_file = keys_file.as_deref().map(|path| self.keys_of_file(path)).unwrap_or_default();
        let has_none = set_keys.is_empty() && keys_file.is_none();
        let is_generated = has_none && dev;
        if is_generated {
            set_keys.push((DEV_API_KEY.to_owned(), Secret::new(random_hex())));
        } else if has_none {
            self.fault(
                "no token secret: set LIVEKIT_API_KEY and LIVEKIT_API_SECRET (or LIVEKIT_KEYS, or LIVEKIT_KEYS_FILE), or start with --dev for a random one".to_owned(),
            );
        }
        let broadcast_token = self.token("BROADCAST_TOKEN");
        if mode != ServerMode::Both && broadcast_token.is_none() {
            self.fault(format!("BROADCAST_TOKEN is required with SERVER_MODE={}", mode.as_str()));
        }
        AuthConfig {
            keys: set_keys.iter().cloned().chain(of_file).collect(),
            set_keys,
            keys_file,
            is_generated,
            broadcast_token,
            admin_token: self.token("ADMIN_TOKEN"),
            cors_origins: self.origins("CORS_ORIGINS"),
        }
    }

    pub(super) fn store(&mut self, data_dir: &Path, check_url: CheckUrl) -> StoreConfig {
        let database = match self.text("DATABASE_URL") {
            None => DatabaseUrl::Sqlite(data_dir.join("stenocast.db")),
            Some(url) if url.starts_with("postgres://") || url.starts_with("postgresql://") => {
                let url = Secret::new(url);
                if let Err(fault) = check_url(&url) {
                    self.fault(fault);
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
        let days = self.within("RETENTION_DAYS", 0, 36_500);
        StoreConfig {
            database,
            is_url_empty: self.values.contains_key("DATABASE_URL") && self.text("DATABASE_URL").is_none(),
            pool: self.within("DATABASE_POOL", 1, 256) as usize,
            flush_interval: self.millis("FLUSH_INTERVAL_MS", 1, 60_000),
            max_batch_size: self.within("MAX_BATCH_SIZE", 1, 10_000) as usize,
            max_queue_size: self.within("MAX_QUEUE_SIZE", 1, 10_000_000) as usize,
            fsync: self.choice("OUTBOX_FSYNC", &[("interval", Fsync::Interval), ("always", Fsync::Always)]),
            fsync_interval: self.millis("OUTBOX_FSYNC_MS", 1, 60_000),
            outbox_max_bytes: self.bytes("OUTBOX_MAX_BYTES"),
            retention: (days > 0).then(|| Duration::from_secs(days * 86_400)),
        }
    }

    pub(super) fn split(&mut self, mode: ServerMode) -> SplitConfig {
        let bus = self.choice("BUS", &[("http", BusKind::Http), ("nats", BusKind::Nats)]);
        let urls = self.list("WS_SERVER_URL");
        let ws_server_urls: Vec<String> = urls.iter().map(|u| self.url("WS_SERVER_URL", u)).collect();
        if let Some(twice) = (1..ws_server_urls.len()).find(|n| ws_server_urls[..*n].contains(&ws_server_urls[*n])) {
            self.fault(format!("WS_SERVER_URL names {} twice", ws_server_urls[twice]));
        }
        let ca_file = self.text("CA_FILE").map(PathBuf::from);
        if let Some(fault) = ca_file.as_deref().and_then(|path| pem_fault("CA_FILE", path)) {
            self.fault(fault);
        }
        let nats = self.nats();
        if mode == ServerMode::Rtmp && bus == BusKind::Http && ws_server_urls.is_empty() {
            self.fault("WS_SERVER_URL is required with SERVER_MODE=rtmp and BUS=http".to_owned());
        }
        if bus == BusKind::Nats && nats.urls.is_empty() {
            self.fault("NATS_URL is required with BUS=nats".to_owned());
        }
        SplitConfig {
            bus,
            ws_server_urls,
            ca_file,
            forward_timeout: self.millis("FORWARD_TIMEOUT_MS", 50, 600_000),
            nats,
            node_id: self.text("NODE_ID").map_or_else(host_name, str::to_owned),
        }
    }

    fn nats(&mut self) -> NatsConfig {
        let (ca, creds) = (self.text("NATS_CA").map(PathBuf::from), self.text("NATS_CREDS").map(PathBuf::from));
        if let Some(fault) = ca.as_deref().and_then(|path| pem_fault("NATS_CA", path)) {
            self.fault(fault);
        }
        if let Some(fault) = creds.as_deref().and_then(creds_fault) {
            self.fault(fault);
        }
        let max_bytes = self.bytes("NATS_MAX_BYTES");
        if !(1 << 20..=i64::MAX as u64).contains(&max_bytes) && max_bytes != 1 {
            self.fault(format!("NATS_MAX_BYTES is {max_bytes}; allowed: 1MiB or more"));
        }
        NatsConfig {
            urls: self.nats_urls("NATS_URL"),
            replicas: self.choice("NATS_REPLICAS", &[("1", 1), ("3", 3), ("5", 5)]),
            max_age: self.duration("NATS_MAX_AGE", ("1m", "3650d")),
            max_bytes,
            lease: self.millis("NATS_LEASE_MS", 1000, 600_000),
            ca,
            creds,
        }
    }
}

/// Says why a file has no certificates.
fn pem_fault(name: &str, path: &Path) -> Option<String> {
    let shown = path.display();
    match std::fs::read_to_string(path) {
        Err(error) => Some(format!("{name} {shown} cannot be read: {error}")),
        Ok(text) if text.contains("-----BEGIN CERTIFICATE-----") => None,
        Ok(_) => Some(format!("{name} {shown} holds no certificate; allowed: a PEM file with one or more")),
    }
}

/// Says why a file is not one that `nsc` writes, without a word of it.
fn creds_fault(path: &Path) -> Option<String> {
    let shown = path.display();
    match std::fs::read_to_string(path) {
        Err(error) => Some(format!("NATS_CREDS {shown} cannot be read: {error}")),
        Ok(text) if text.contains("-----BEGIN NATS USER JWT-----") && text.contains("SEED-----") => None,
        Ok(_) => Some(format!("NATS_CREDS {shown} holds no user; allowed: a .creds file with a JWT and its seed")),
    }
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
