//! The Gladia-Live-v2-compatible service in front of an engine.

mod breaker;
pub mod faults;
mod gate;
mod intake;
mod outgoing;
mod recording;
mod registry;
mod request;
mod results;
mod routes;
mod session;
mod socket;

use std::net::{SocketAddr, TcpListener};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::Duration;

use actix_web::dev::ServerHandle;
use actix_web::{App, HttpServer, web};
use parking_lot::Mutex;
use tokio::task::JoinHandle;

use self::breaker::Breaker;
use self::faults::ServiceFaults;
use self::registry::Registry;
use self::session::ServiceStops;
use super::engine::{About, Engine};
use super::marker::MarkerEngine;
use super::models::ModelError;
use super::moonshine::Moonshine;

/// Longest time for a request's head.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(10);
/// Begins the line that says that the service is ready; the base URL follows.
const READY: &str = "stenocast stt ready on ";

/// The options that the service is started with.
#[derive(Debug, Clone)]
pub struct SttOptions {
    pub host: String,
    /// 0 = any free one.
    pub port: u16,
    /// For the moonshine engine.
    pub model_dir: PathBuf,
    /// Inference threads of the moonshine engine, at least 1.
    pub threads: usize,
    /// Sessions at a time; more are refused with 429.
    pub max_sessions: usize,
    pub engine: EngineKind,
    /// `/faults` exists.
    pub faults: bool,
    /// Each session's audio is kept (in a temporary file) for `GET /v2/live/{id}/file`.
    pub keep_audio: bool,
    pub limits: Limits,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, clap::ValueEnum)]
pub enum EngineKind {
    /// Silero VAD and Moonshine tiny-en: English speech.
    #[default]
    Moonshine,
    /// Numbers in dual tones, for tests and drills; no model.
    Marker,
}

/// Time limits of the service.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// A session without connection can be resumed for so long; then it is finished.
    pub resume: Duration,
    /// A connection without audio is ended after this (close code 4408).
    pub idle: Duration,
    pub session_max: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            resume: Duration::from_secs(120),
            idle: Duration::from_secs(30),
            session_max: Duration::from_secs(3 * 3600),
        }
    }
}

#[derive(Debug, thiserror::Error)]
pub enum SttError {
    #[error("cannot listen on {host}:{port}: {source}")]
    Bind { host: String, port: u16, source: std::io::Error },
    #[error(transparent)]
    Model(#[from] ModelError),
    #[error("the service failed: {0}")]
    Server(#[from] std::io::Error),
}

/// The means that all handlers and sessions share.
pub(crate) struct Service {
    options: SttOptions,
    engine: Box<dyn Engine>,
    about: About,
    registry: Arc<Registry>,
    faults: Mutex<ServiceFaults>,
    connections: AtomicU64,
}

/// A running service. Dropping it leaves it running; see [`Self::stop`].
pub struct SttService {
    addr: SocketAddr,
    about: About,
    max_sessions: usize,
    server: ServerHandle,
    registry: Arc<Registry>,
    running: JoinHandle<std::io::Result<()>>,
}

/// Loads the engine and listens. Call within an actix system; answers when requests are served.
pub async fn serve(options: SttOptions) -> Result<SttService, SttError> {
    let bind = |source| SttError::Bind { host: options.host.clone(), port: options.port, source };
    let listener = TcpListener::bind((options.host.as_str(), options.port)).map_err(bind)?;
    let addr = listener.local_addr().map_err(bind)?;
    let engine = load(&options).await?;
    let about = engine.about();
    let registry = Arc::new(Registry::default());
    let max_sessions = options.max_sessions;
    let service = web::Data::new(Service {
        options,
        engine,
        about: about.clone(),
        registry: registry.clone(),
        faults: Mutex::default(),
        connections: AtomicU64::new(1),
    });
    let app = move || App::new().app_data(service.clone()).configure(routes::configure);
    // One worker: sessions and sockets are light, the engine has threads of its own.
    let server = HttpServer::new(app)
        .workers(1)
        .disable_signals()
        .client_request_timeout(REQUEST_TIMEOUT)
        .on_connect(Breaker::install)
        .listen(listener)?
        .run();
    let handle = server.handle();
    let running = tokio::spawn(server);
    Ok(SttService { addr, about, max_sessions, server: handle, registry, running })
}

async fn load(options: &SttOptions) -> Result<Box<dyn Engine>, SttError> {
    if options.engine == EngineKind::Marker {
        return Ok(Box::new(MarkerEngine));
    }
    let (dir, threads) = (options.model_dir.clone(), options.threads.max(1));
    let loading = tokio::task::spawn_blocking(move || Moonshine::load(&dir, threads));
    Ok(Box::new(loading.await.map_err(std::io::Error::other)??))
}

impl SttService {
    pub fn addr(&self) -> SocketAddr {
        self.addr
    }

    /// `http://127.0.0.1:8090`; a service on all addresses is named by its loopback one.
    pub fn base_url(&self) -> String {
        let mut addr = self.addr;
        if addr.ip().is_unspecified() {
            addr.set_ip(if addr.is_ipv4() { [127, 0, 0, 1].into() } else { std::net::Ipv6Addr::LOCALHOST.into() });
        }
        format!("http://{addr}")
    }

    /// The line that `stenocast stt` prints on standard output when it is ready.
    pub fn ready_line(&self) -> String {
        let About { model, language, threads, .. } = &self.about;
        let base = self.base_url();
        format!(
            "{READY}{base} (model {model}, language {language} only, {threads} threads, {} sessions)",
            self.max_sessions
        )
    }

    /// Live sessions.
    pub fn sessions(&self) -> usize {
        self.registry.working()
    }

    /// Ends all sessions (close code 1012) and the listener.
    pub async fn stop(self) {
        for session in self.registry.sessions() {
            let _ = session.send(ServiceStops).await;
        }
        self.server.stop(false).await;
        let _ = self.running.await;
    }

    /// Waits until the service ends by itself, which is a fault.
    pub async fn ended(&mut self) -> Result<(), SttError> {
        (&mut self.running).await.map_err(std::io::Error::other)?.map_err(SttError::from)
    }
}

/// The base URL in a line of [`SttService::ready_line`]'s form.
pub fn parse_ready_line(line: &str) -> Option<&str> {
    line.trim().strip_prefix(READY)?.split_whitespace().next().filter(|url| url.starts_with("http://"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_ready_line_is_read_back() {
        let line = format!("{READY}http://127.0.0.1:4711 (model x, language en only, 1 threads, 8 sessions)\n");
        assert_eq!(parse_ready_line(&line), Some("http://127.0.0.1:4711"));
        assert_eq!(parse_ready_line("ready"), None);
    }
}
