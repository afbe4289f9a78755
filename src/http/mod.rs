//! Everything that viewers and operators reach by HTTP; one file per resource.
//!
//! [`start`] runs the server on a listener that is bound already. Rooms are found in the [`Directory`], which the
//! sessions fill; entries from outside go to the session registry.
//!
//! [`Directory`]: crate::transcript::Directory

pub mod access_log;
pub mod admission;
pub mod auth;
pub mod broadcast;
pub mod broadcast_body;
mod cors;
pub mod drill;
pub mod error;
pub mod events;
pub mod health;
pub mod livekit;
pub mod metered_payload;
pub mod metrics;
pub mod page;
pub mod query;
pub mod reports;
mod selection;
pub mod sessions;
pub mod socket;
pub mod state;
pub mod track;
pub mod transcribe;

use std::io;
use std::net::TcpListener;
use std::sync::{Arc, Weak};
use std::time::Duration;

use actix::Arbiter;
use actix_web::dev::{Server, ServerHandle};
use actix_web::http::header;
use actix_web::http::{Method, StatusCode};
use actix_web::middleware::{Condition, NormalizePath, TrailingSlash, from_fn};
use actix_web::{App, FromRequest, Handler, HttpRequest, HttpResponse, HttpServer, Resource, Responder, web};
use tokio::time::MissedTickBehavior;

pub use error::ApiError;
pub use state::AppState;

use crate::config::{Config, ServerMode};
use crate::viewers::Viewers;
use crate::watchdog::HTTP_WORKER;

/// Longest time for a request's head to come in.
const HEAD_TIMEOUT: Duration = Duration::from_secs(10);
/// Longest idle time of a connection between two requests.
const KEEP_ALIVE: Duration = Duration::from_secs(75);
/// Longest wait for a client to close its side.
const DISCONNECT_TIMEOUT: Duration = Duration::from_secs(1);
/// Longest wait for requests in flight when the server stops gracefully.
const STOP_TIMEOUT_S: u64 = 5;

/// Runs the server until its handle stops it. Call it inside an actix system; await the `Server` to drive it.
///
/// To stop: set the state's `draining`, call `state.viewers.close_all()`, then `ServerHandle::stop`.
pub fn start(config: &Config, state: Arc<AppState>, listener: TcpListener) -> io::Result<(Server, ServerHandle)> {
    let stall = config.viewers.stall;
    let mode = config.server.mode;
    let data = web::Data::from(state.clone());
    let server = HttpServer::new(move || {
        let auth = &data.config.auth;
        // Called once in each worker, which is an arbiter of its own.
        if let (Some(watched), Some(worker)) = (&data.watched, Arbiter::try_current()) {
            watched.add(HTTP_WORKER, worker);
        }
        App::new()
            .wrap(Condition::new(!auth.cors_origins.is_empty(), cors::of(auth)))
            .wrap(from_fn(access_log::log))
            // `//health` is what a base URL with a slash at its end makes.
            .wrap(NormalizePath::new(TrailingSlash::MergeOnly))
            .app_data(data.clone())
            .configure(|cfg| mount(cfg, mode, &data.config.viewers.base_path))
            .default_service(web::to(not_found))
    })
    .workers(config.server.workers)
    .on_connect(move |connection, extensions| socket::on_connect(connection, extensions, stall))
    .client_request_timeout(HEAD_TIMEOUT)
    .client_disconnect_timeout(DISCONNECT_TIMEOUT)
    .keep_alive(KEEP_ALIVE)
    .shutdown_timeout(STOP_TIMEOUT_S)
    .disable_signals()
    .listen(listener)?
    .run();
    actix_rt::spawn(sweep(Arc::downgrade(&state.viewers)));
    let handle = server.handle();
    Ok((server, handle))
}

/// Everything at the root, where load balancers and proxies that strip a path look, and under the base path.
fn mount(cfg: &mut web::ServiceConfig, mode: ServerMode, base_path: &str) {
    if !base_path.is_empty() {
        let page = format!("{base_path}/");
        cfg.service(web::resource(base_path).route(web::get().to(move |req: HttpRequest| to_page(req, page.clone()))));
        cfg.service(web::scope(base_path).configure(|cfg| routes(cfg, mode)));
    }
    routes(cfg, mode);
}

/// The page's own addresses are relative to its folder.
async fn to_page(req: HttpRequest, page: String) -> HttpResponse {
    let query = req.query_string();
    let place = if query.is_empty() { page } else { format!("{page}?{query}") };
    HttpResponse::PermanentRedirect().insert_header((header::LOCATION, place)).finish()
}

/// The resources of a mode: an ingest node has no viewers.
pub fn routes(cfg: &mut web::ServiceConfig, mode: ServerMode) {
    cfg.service(read("/health", health::health));
    cfg.service(read("/metrics", metrics::metrics));
    cfg.service(resource("/drill", "POST").route(web::post().to(drill::drill)));
    cfg.service(read("/api/sessions", sessions::sessions));
    cfg.service(stream("/api/egress/track/{slug}/{track}", track::track));
    cfg.service(resource("/api/livekit/webhook", "POST").route(web::post().to(livekit::webhook)));
    let egress = resource("/api/sessions/{slug}/egress", "POST, DELETE");
    cfg.service(egress.route(web::post().to(livekit::start_egress)).route(web::delete().to(livekit::stop_egress)));
    if !mode.serves() {
        return;
    }
    cfg.service(read("/api/realtime/transcribe/reports", reports::reports));
    cfg.service(stream("/api/realtime/transcribe", transcribe::transcribe));
    cfg.service(stream("/api/realtime/events", events::events));
    let broadcast = resource("/api/realtime/transcribe/broadcast", "POST");
    cfg.service(broadcast.route(web::post().to(broadcast::broadcast)));
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
    resource(path, "GET, HEAD").route(web::get().to(handler.clone())).route(web::head().to(handler))
}

/// A resource without an end: a HEAD of it would never be over.
fn stream<F, Args>(path: &str, handler: F) -> Resource
where
    F: Handler<Args>,
    Args: FromRequest + 'static,
    F::Output: Responder + 'static,
{
    resource(path, "GET").route(web::get().to(handler))
}

/// Registers a path, also with a slash at its end. Other methods than the allowed ones are told those.
fn resource(path: &str, allowed: &'static str) -> Resource {
    let mut paths = vec![path.to_owned()];
    if path != "/" {
        paths.push(format!("{path}/"));
    }
    web::resource(paths).default_service(web::to(move |method: Method| refuse_method(method, allowed)))
}

async fn refuse_method(method: Method, allowed: &'static str) -> Result<HttpResponse, ApiError> {
    match method {
        Method::OPTIONS => Ok(HttpResponse::NoContent().insert_header((header::ALLOW, allowed)).finish()),
        _ => Err(ApiError::method(allowed)),
    }
}

async fn not_found() -> Result<&'static str, ApiError> {
    Err(ApiError::new(StatusCode::NOT_FOUND, "not_found", "there is nothing at this address"))
}

/// Cuts stuck viewers, as long as there is a server.
async fn sweep(viewers: Weak<Viewers>) {
    let Some(interval) = viewers.upgrade().map(|viewers| viewers.sweep_interval()) else {
        return;
    };
    let mut ticks = tokio::time::interval(interval);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        let Some(viewers) = viewers.upgrade() else {
            return;
        };
        viewers.sweep();
    }
}
