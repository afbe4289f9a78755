//! Everything that viewers and operators reach by HTTP; one file per resource.
//!
//! [`start`] runs the server on a listener that is bound already. Rooms are found in the [`Directory`], which the
//! sessions fill; entries from outside go to the session registry.
//!
//! [`Directory`]: crate::log::Directory

pub mod access_log;
pub mod auth;
pub mod broadcast;
pub mod broadcast_body;
pub mod client_message;
pub mod delivery;
pub mod drill;
pub mod error;
pub mod events;
pub mod feed;
pub mod health;
pub mod metered_payload;
pub mod metrics;
pub mod page;
pub mod query;
mod selection;
pub mod sessions;
pub mod socket;
pub mod state;
pub mod transcribe;
pub mod viewers;

use std::io;
use std::net::TcpListener;
use std::sync::{Arc, Weak};
use std::time::Duration;

use actix::Arbiter;
use actix_cors::Cors;
use actix_web::dev::{Server, ServerHandle};
use actix_web::http::{Method, StatusCode};
use actix_web::middleware::{Condition, from_fn};
use actix_web::{App, FromRequest, Handler, HttpServer, Resource, Responder, web};
use tokio::time::{Instant, MissedTickBehavior};

pub use error::ApiError;
pub use state::{AppState, ReadError, SessionInfo, TranscriptReader};
pub use viewers::Viewers;

use crate::config::{AuthConfig, Config, ServerMode};
use crate::log::Directory;
use crate::watchdog::HTTP_WORKER;

/// Longest time for a request's head to come in.
const HEAD_TIMEOUT: Duration = Duration::from_secs(10);
/// Longest idle time of a connection between two requests.
const KEEP_ALIVE: Duration = Duration::from_secs(75);
/// Longest wait for a client to close its side.
const DISCONNECT_TIMEOUT: Duration = Duration::from_secs(1);
/// Longest wait for requests in flight when the server stops gracefully.
const STOP_TIMEOUT_S: u64 = 5;
/// How often rooms without session and viewer are forgotten.
const ROOM_SWEEP: Duration = Duration::from_secs(60);

/// Runs the server until its handle stops it. Call it inside an actix system; await the `Server` to drive it.
///
/// To stop: set the state's `draining`, call `state.viewers.close_all()`, then `ServerHandle::stop`.
pub fn start(config: &Config, state: Arc<AppState>, listener: TcpListener) -> io::Result<(Server, ServerHandle)> {
    let stall = config.viewers.stall;
    let mode = config.core.mode;
    let data = web::Data::from(state.clone());
    let server = HttpServer::new(move || {
        let auth = &data.config.auth;
        // Called once in each worker, which is an arbiter of its own.
        if let (Some(watched), Some(worker)) = (&data.watched, Arbiter::try_current()) {
            watched.add(HTTP_WORKER, worker);
        }
        App::new()
            .wrap(Condition::new(!auth.cors_origins.is_empty(), cors(auth)))
            .wrap(from_fn(access_log::log))
            .app_data(data.clone())
            .configure(|cfg| routes(cfg, mode))
            .default_service(web::to(not_found))
    })
    .workers(config.core.workers)
    .on_connect(move |connection, extensions| socket::on_connect(connection, extensions, stall))
    .client_request_timeout(HEAD_TIMEOUT)
    .client_disconnect_timeout(DISCONNECT_TIMEOUT)
    .keep_alive(KEEP_ALIVE)
    .shutdown_timeout(STOP_TIMEOUT_S)
    .disable_signals()
    .listen(listener)?
    .run();
    actix_rt::spawn(sweep(Arc::downgrade(&state.viewers), Arc::downgrade(&state.directory)));
    let handle = server.handle();
    Ok((server, handle))
}

/// The resources of a mode: an ingest node has no viewers.
pub fn routes(cfg: &mut web::ServiceConfig, mode: ServerMode) {
    cfg.service(read("/health", health::health));
    cfg.service(read("/metrics", metrics::metrics));
    cfg.service(web::resource("/drill").route(web::post().to(drill::drill)));
    if !mode.serves() {
        return;
    }
    cfg.service(stream("/api/realtime/transcribe", transcribe::transcribe));
    cfg.service(stream("/api/realtime/events", events::events));
    let broadcast = web::resource("/api/realtime/transcribe/broadcast").route(web::post().to(broadcast::broadcast));
    cfg.service(broadcast.default_service(web::to(|| refuse_method("POST"))));
    cfg.service(read("/api/sessions", sessions::sessions));
    cfg.service(read("/api/sessions/{slug}/transcripts", sessions::transcripts));
    page::configure(cfg);
}

/// A resource that is only read.
fn read<F, Args>(path: &str, handler: F) -> Resource
where
    F: Handler<Args>,
    Args: FromRequest + 'static,
    F::Output: Responder + 'static,
{
    stream(path, handler.clone()).route(web::head().to(handler))
}

/// A resource without an end: a HEAD of it would never be over.
fn stream<F, Args>(path: &str, handler: F) -> Resource
where
    F: Handler<Args>,
    Args: FromRequest + 'static,
    F::Output: Responder + 'static,
{
    web::resource(path).route(web::get().to(handler)).default_service(web::to(|| refuse_method("GET")))
}

async fn refuse_method(allowed: &str) -> Result<&'static str, ApiError> {
    let message = format!("only {allowed} is allowed here");
    Err(ApiError::new(StatusCode::METHOD_NOT_ALLOWED, "method_not_allowed", message))
}

async fn not_found() -> Result<&'static str, ApiError> {
    Err(ApiError::new(StatusCode::NOT_FOUND, "not_found", "there is nothing at this address"))
}

fn cors(auth: &AuthConfig) -> Cors {
    let base = Cors::default()
        .allowed_methods([Method::GET, Method::POST])
        .allowed_headers(["authorization", "content-type", "last-event-id"])
        .max_age(3600);
    if auth.cors_origins.iter().any(|origin| origin == "*") {
        return base.allow_any_origin().send_wildcard();
    }
    auth.cors_origins.iter().fold(base, |cors, origin| cors.allowed_origin(origin))
}

/// Cuts stuck viewers and forgets empty rooms, as long as there is a server.
async fn sweep(viewers: Weak<Viewers>, directory: Weak<Directory>) {
    let Some(interval) = viewers.upgrade().map(|viewers| viewers.sweep_interval()) else {
        return;
    };
    let mut ticks = tokio::time::interval(interval);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut rooms_swept = Instant::now();
    loop {
        ticks.tick().await;
        let (Some(viewers), Some(directory)) = (viewers.upgrade(), directory.upgrade()) else {
            return;
        };
        viewers.sweep();
        if rooms_swept.elapsed() >= ROOM_SWEEP {
            directory.sweep();
            rooms_swept = Instant::now();
        }
    }
}
