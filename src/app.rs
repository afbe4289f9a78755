//! Starting everything, in one ordered function; used by `main` and by the tests. `shutdown` is its counterpart.

mod adopt;
mod cluster;
mod known_labels;
mod reader;
mod recorder;
mod shutdown;

use std::net::{SocketAddr, TcpListener};
use std::sync::{Arc, Weak};
use std::time::Duration;

use actix::prelude::*;
use actix_web::dev::ServerHandle;
use tokio::sync::{Semaphore, watch};

use crate::actors::batch_writer::Flush;
use crate::actors::root::{self, OpenDoors, Root, RootParams};
use crate::actors::rtmp_listener;
use crate::actors::services::Services;
use crate::actors::stt_process::SttCommand;
use crate::audio::decoder::DecoderError;
use crate::audio::process;
use crate::bus;
use crate::bus::link::LinkClock;
use crate::bus::log_server::{Link, ServerError, SharedServer};
use crate::bus::nats::NatsServer;
use crate::config::{BusKind, Config, ServerMode};
use crate::db::{Storage, StorageError, StoreError};
use crate::gladia::endpoint::SttEndpoint;
use crate::gladia::ledger::{FileSpool, ReplayBudget};
use crate::http::livekit::LiveKitWays;
use crate::http::{self, AppState};
use crate::livekit::api::ApiServer;
use crate::livekit::inbox::Inbox;
use crate::livekit::keys::KeyRing;
use crate::metrics::Metrics;
use crate::transcript::checkpoint::{CheckpointError, Checkpoints};
use crate::transcript::{Directory, Entry, Origin, Slug};
use crate::viewers::Viewers;
use crate::watchdog::{EXIT_AFTER, HUNG_AFTER, Watchdog, Watched};
use reader::Reader;
use recorder::Recorder;
pub use shutdown::ShutdownReport;

/// Longest wait for viewers' sockets to close.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(2);
/// Exit code of a process with a hung thread, or without its root.
const EXIT_HUNG: i32 = 70;

/// Why the server did not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    #[error("cannot listen on {what} {addr}: {error}; is another server running? {name} chooses another port")]
    Bind { what: &'static str, name: &'static str, addr: SocketAddr, error: std::io::Error },
    #[error(transparent)]
    Storage(#[from] StorageError),
    #[error(transparent)]
    Checkpoints(#[from] CheckpointError),
    /// The log server cannot be used as it is; waiting does not help.
    #[error("BUS=nats: {0}")]
    Bus(String),
    #[error("{0}")]
    Other(String),
}

impl StartError {
    fn program(error: std::io::Error) -> Self {
        Self::Other(format!("this program cannot be found: {error}"))
    }
}

/// A running server.
pub struct App {
    config: Arc<Config>,
    metrics: Arc<Metrics>,
    directory: Arc<Directory>,
    storage: Arc<Storage>,
    checkpoints: Checkpoints,
    root: Addr<Root>,
    rtmp_addr: Option<SocketAddr>,
    http_addr: SocketAddr,
    server: ServerHandle,
    /// Alive while an HTTP worker is.
    http_state: Weak<AppState>,
    viewers: Arc<Viewers>,
    keys: Arc<KeyRing>,
    draining: watch::Sender<bool>,
    stt_url: watch::Receiver<Option<String>>,
    arbiters: Vec<Arbiter>,
    _watchdog: Watchdog,
}

impl App {
    /// Starts downstream first: storage, recogniser, sessions, then the doors (RTMP, HTTP).
    pub async fn start(config: Config) -> Result<Self, StartError> {
        let _ = rustls::crypto::ring::default_provider().install_default();
        let config = Arc::new(config);
        let metrics = Arc::new(Metrics::new());
        known_labels::declare(&metrics);
        metrics.node_info.with_label_values(&[&config.split.node_id, config.server.mode.as_str()]).set(1.0);
        let http_listener = bind("HTTP", "PORT", SocketAddr::new(config.server.host, config.server.port))?;
        let rtmp_listener = match config.server.mode.ingests() {
            true => Some(bind_rtmp(&config)?),
            false => None,
        };
        let log_server = log_server(&config, &metrics).await?;
        let targets = root::targets(&config);
        let storage = Arc::new(Storage::open(&config, targets.clone(), metrics.clone()).await?);
        let (checkpoints, left) = Checkpoints::open(&config.server.data_dir)?;
        let rooms = cluster::rooms(log_server.as_ref(), &config).await?;
        if let Some(rooms) = &rooms {
            let noted = cluster::note_left(rooms, &storage, &targets, &left).await;
            noted.map_err(|e| StartError::Other(format!("the outbox cannot be read: {e}")))?;
        }
        if let Err(error) = FileSpool::remove_left_overs(&config.server.data_dir) {
            tracing::warn!(%error, "old replay audio could not be removed");
        }
        let directory = Arc::new(Directory::default());
        let reader = Arc::new(Reader::new(&storage));
        let (stt_url, stt_url_rx) = watch::channel((!config.stt.is_local()).then(|| config.stt.api_url.clone()));
        let tls = bus::http::trusted(&config.split).map_err(|e| StartError::Other(e.to_string()))?;
        let keys = Arc::new(KeyRing::new(config.auth.keys.clone()));
        let livekit = config.livekit.url.as_ref().map(|url| Arc::new(ApiServer::new(url, keys.clone(), tls.clone())));
        let livekit_arbiter = livekit.is_some().then(Arbiter::new);
        let services = Arc::new(Services {
            config: config.clone(),
            metrics: metrics.clone(),
            directory: directory.clone(),
            sink: storage.sink.clone(),
            stt: SttEndpoint { base_url: stt_url_rx.clone(), api_key: config.stt.api_key.clone() },
            stt_slots: stt_slots(&config),
            replay_budget: Arc::new(ReplayBudget::new(config.stt.replay_max_bytes)),
            recorder: Arc::new(Recorder::new(storage.sink.clone(), checkpoints.clone(), reader.clone())),
            reports: Arc::default(),
            log_server,
            ownership: rooms.as_ref().map(|rooms| rooms.ownership.clone()),
            caught_up: Arc::default(),
            keys: keys.clone(),
            livekit_arbiter: livekit_arbiter.as_ref().map(Arbiter::handle),
            livekit,
        });
        let mut arbiters: Vec<Arbiter> = (0..config.server.workers).map(|_| Arbiter::new()).collect();
        let handles: Vec<_> = arbiters.iter().map(Arbiter::handle).collect();
        arbiters.extend(livekit_arbiter);
        let wants_stt = config.server.mode.ingests() && config.stt.is_local();
        let engine = config.server.drill_engine.as_deref();
        let rtmp_addr = rtmp_listener.as_ref().map(local_addr).transpose()?;
        let stt_process = match wants_stt {
            true => Some((SttCommand::from_config(&config.local_stt, engine).map_err(StartError::program)?, stt_url)),
            false => None,
        };
        let (inbox, webhooks) = Inbox::new();
        let root = Root::start(RootParams {
            services: services.clone(),
            storage: storage.clone(),
            arbiters: Arc::new(handles.clone()),
            stt_process,
            rtmp: rtmp_listener,
            lost_rooms: rooms.map(|rooms| rooms.lost),
            webhooks: Arc::new(tokio::sync::Mutex::new(webhooks)),
            tls,
        });
        let ingests = config.server.mode.ingests();
        if ingests && !process::is_installed(&config.audio.ffmpeg_path) {
            let error = DecoderError::Missing(config.audio.ffmpeg_path.clone());
            tracing::error!(%error, "no publisher can be heard");
        }
        let is_here = |origin| match origin {
            Origin::Ingest => ingests,
            Origin::Relay => true,
            Origin::Mirror => !services.follows(origin),
        };
        let left = left.into_iter().filter(|c| is_here(c.origin));
        adopt::adopt(&root, left, &services, &storage, &reader).await;
        cluster::rooms_are_here(&services).await;
        let (draining, draining_rx) = watch::channel(false);
        let mut state = AppState::new(
            config.clone(),
            metrics.clone(),
            directory.clone(),
            root.clone().recipient(),
            root.clone().recipient(),
            reader,
            draining_rx,
        );
        state.keys = keys.clone();
        let (start, stop) = (root.clone().recipient(), root.clone().recipient());
        state.livekit = Some(LiveKitWays { inbox, start, stop });
        state.reports = services.reports.clone();
        state.link = services.log_server.as_ref().map(watch_link);
        state.drill = config.server.drill.then(|| root.clone().recipient());
        let (viewers, hung) = (state.viewers.clone(), state.hung.clone());
        let sessions = handles.into_iter().enumerate().map(|(n, handle)| (format!("sessions-{n}"), handle));
        let main = std::iter::once(("main".to_owned(), Arbiter::current()));
        let watched = Arc::new(Watched::new(main.chain(sessions).collect()));
        state.watched = Some(watched.clone());
        let _watchdog = Watchdog::start(watched, HUNG_AFTER, EXIT_AFTER, hung, |thread| {
            tracing::error!(%thread, "thread hung for good, leaving for a restart");
            std::process::exit(EXIT_HUNG);
        })
        .map_err(|e| StartError::Other(format!("the watchdog thread did not start: {e}")))?;
        let http_addr = local_addr(&http_listener)?;
        let state = Arc::new(state);
        let http_state = Arc::downgrade(&state);
        let started = http::start(&config, state, http_listener);
        let (running, server) = started.map_err(|e| StartError::Other(format!("HTTP did not start: {e}")))?;
        actix_rt::spawn(running);
        let _ = root.send(OpenDoors).await;
        actix_rt::spawn(leave_without(root.clone(), draining.subscribe()));
        let rtmp = rtmp_addr.map(|addr| addr.to_string());
        let recogniser = ingests.then(|| if wants_stt { "local, English only" } else { config.stt.api_url.as_str() });
        tracing::info!(mode = config.server.mode.as_str(), http = %http_addr, rtmp, recogniser, "server started");
        Ok(Self {
            config,
            metrics,
            directory,
            storage,
            checkpoints,
            root,
            rtmp_addr,
            http_addr,
            server,
            http_state,
            viewers,
            keys,
            draining,
            stt_url: stt_url_rx,
            arbiters,
            _watchdog,
        })
    }

    pub fn config(&self) -> &Config {
        &self.config
    }

    pub fn metrics(&self) -> &Metrics {
        &self.metrics
    }

    pub fn directory(&self) -> &Directory {
        &self.directory
    }

    pub fn storage(&self) -> &Storage {
        &self.storage
    }

    /// The top of the actor tree: ends sessions, answers `Observe`.
    pub fn root(&self) -> &Addr<Root> {
        &self.root
    }

    pub fn http_addr(&self) -> SocketAddr {
        self.http_addr
    }

    /// The API keys that are valid now.
    pub fn keys(&self) -> &KeyRing {
        &self.keys
    }

    /// Reads again what can be changed without a restart. What is not valid changes nothing.
    pub fn reload(&self) {
        if self.config.auth.keys_file.is_none() {
            tracing::info!("nothing to read again: LIVEKIT_KEYS_FILE is not set");
            return;
        }
        match self.config.auth.read_keys_again() {
            Ok(pairs) => {
                let count = pairs.len();
                self.keys.exchange(pairs);
                self.metrics.reloads_total.with_label_values(&["ok"]).inc();
                tracing::info!(keys = count, "API keys read again");
            }
            Err(faults) => {
                self.metrics.reloads_total.with_label_values(&["refused"]).inc();
                tracing::error!(%faults, "the API keys stay as they were");
            }
        }
    }

    /// None in mode `ws`.
    pub fn rtmp_addr(&self) -> Option<SocketAddr> {
        self.rtmp_addr
    }

    /// Rows of the newest session of `slug` in the database, after everything that is in the outbox now was written.
    pub async fn stored_entries(&self, slug: &Slug) -> Result<Vec<Entry>, StoreError> {
        let _ = self.root.send(Flush { deadline: CLOSE_TIMEOUT }).await;
        let Some(store) = &self.storage.store else { return Ok(Vec::new()) };
        let Some(session) = store.latest_session(slug).await? else { return Ok(Vec::new()) };
        store.transcripts(session.epoch, 0, usize::MAX >> 1).await
    }

    /// Waits until a recogniser is there.
    pub async fn recogniser_ready(&self, timeout: Duration) -> Result<(), StartError> {
        let mut url = self.stt_url.clone();
        let ready = tokio::time::timeout(timeout, url.wait_for(Option::is_some)).await;
        match ready {
            Ok(Ok(_)) => Ok(()),
            _ => Err(StartError::Other(format!("no recogniser within {} s", timeout.as_secs()))),
        }
    }
}

/// Says when the log server goes, and when it is back.
fn watch_link(server: &SharedServer) -> Arc<LinkClock> {
    LinkClock::start(server.link(), |link| match link {
        Link::Connecting => {}
        Link::Up => tracing::info!("the log server is there"),
        Link::Away(error) => tracing::warn!(error, "the log server is away; what is said waits until it is back"),
    })
}

/// The root has no supervisor: without it nothing is repaired any more, and a restart loses nothing.
async fn leave_without(root: Addr<Root>, draining: watch::Receiver<bool>) {
    loop {
        tokio::time::sleep(Duration::from_secs(1)).await;
        if *draining.borrow() {
            return;
        }
        if !root.connected() {
            tracing::error!("the root of the actor tree is gone, leaving for a restart");
            std::process::exit(EXIT_HUNG);
        }
    }
}

fn bind(what: &'static str, name: &'static str, addr: SocketAddr) -> Result<TcpListener, StartError> {
    let listener = TcpListener::bind(addr).map_err(|error| StartError::Bind { what, name, addr, error })?;
    listener.set_nonblocking(true).map_err(|error| StartError::Bind { what, name, addr, error })?;
    Ok(listener)
}

fn bind_rtmp(config: &Config) -> Result<TcpListener, StartError> {
    let addr = SocketAddr::new(config.rtmp.host, config.rtmp.port);
    rtmp_listener::bind(addr).map_err(|error| StartError::Bind { what: "RTMP", name: "RTMP_PORT", addr, error })
}

fn local_addr(listener: &TcpListener) -> Result<SocketAddr, StartError> {
    listener.local_addr().map_err(|e| StartError::Other(format!("the listener has no address: {e}")))
}

/// The log server of a cluster. One that is away is waited for later, by those who need it.
async fn log_server(config: &Config, metrics: &Arc<Metrics>) -> Result<Option<SharedServer>, StartError> {
    if config.server.mode == ServerMode::Both || config.split.bus != BusKind::Nats {
        return Ok(None);
    }
    let started = NatsServer::start(config.split.nats.clone(), &config.split.node_id, metrics.clone()).await;
    let server = started.map_err(|error| StartError::Bus(error.to_string()))?;
    match server.ready().await {
        Err(ServerError::Unusable(why)) => Err(StartError::Bus(why)),
        Err(ServerError::Away(why)) => {
            tracing::warn!(error = why, "starting without NATS; this node is not ready until it is there");
            Ok(Some(Arc::new(server)))
        }
        Ok(()) => Ok(Some(Arc::new(server))),
    }
}

/// A recogniser of our own has its own limit; an account has `GLADIA_MAX_SESSIONS`.
fn stt_slots(config: &Config) -> Arc<Semaphore> {
    let slots = if config.stt.is_local() { config.local_stt.max_sessions } else { config.stt.max_sessions };
    Arc::new(Semaphore::new(slots))
}
