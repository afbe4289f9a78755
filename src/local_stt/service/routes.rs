//! The HTTP side: Gladia's routes, `/health`, and `/faults` where it is switched on.

use std::sync::atomic::Ordering;

use actix::Actor;
use actix_web::http::{StatusCode, header};
use actix_web::{HttpRequest, HttpResponse, web};
use actix_web_actors::ws;
use futures_util::stream;
use serde::Deserialize;
use serde_json::{Value, json};

use super::Service;
use super::breaker::Breaker;
use super::faults::{FaultOrder, Refusals};
use super::gate::{FrameGate, Valve};
use super::request;
use super::results::request_id;
use super::session::{Break, Session};
use super::socket::Socket;
use crate::gladia::wire::{ErrorBody, LiveReply, MAX_FRAME_BYTES, timestamp};

/// Longest time for the whole of a POST.
pub const MAX_BODY_BYTES: usize = 1024 * 1024;
/// Piece of an audio file in a response.
const FILE_PIECE: usize = 256 * 1024;
const DEFAULT_PAGE: usize = 20;
const MAX_PAGE: usize = 100;
/// Gladia's call id, in every answer about one session.
const CALL_ID: &str = "x-aipi-call-id";

type Shared = web::Data<Service>;

pub fn configure(config: &mut web::ServiceConfig) {
    config
        .app_data(web::PayloadConfig::new(MAX_BODY_BYTES))
        .route("/health", web::get().to(health))
        .route("/v2/live", web::post().to(create))
        .route("/v2/live", web::get().to(list_or_upgrade))
        .route("/v2/live/{id}", web::get().to(get))
        .route("/v2/live/{id}", web::delete().to(delete))
        .route("/v2/live/{id}/file", web::get().to(file))
        .route("/faults", web::post().to(order_fault))
        .route("/faults", web::delete().to(clear_faults))
        .default_service(web::to(not_found));
}

/// The one shape of every error.
fn refuse(request: &HttpRequest, status: u16, message: &str, validation_errors: Option<Vec<String>>) -> HttpResponse {
    let body = ErrorBody {
        timestamp: timestamp(),
        path: request.path().to_owned(),
        request_id: request_id(&uuid::Uuid::new_v4().to_string()),
        status_code: status,
        message: message.to_owned(),
        validation_errors,
    };
    HttpResponse::build(StatusCode::from_u16(status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR)).json(body)
}

fn refuse_by_fault(request: &HttpRequest, refusals: Refusals) -> HttpResponse {
    let mut response = refuse(request, refusals.status, "refused by a fault switch", None);
    if let Some(seconds) = refusals.retry_after {
        response.headers_mut().insert(header::RETRY_AFTER, seconds.into());
    }
    response
}

async fn not_found(request: HttpRequest) -> HttpResponse {
    refuse(&request, 404, &format!("Cannot {} {}", request.method(), request.path()), None)
}

async fn health(service: Shared) -> HttpResponse {
    let (about, load) = (&service.about, service.engine.load());
    let status = if load.broken { StatusCode::SERVICE_UNAVAILABLE } else { StatusCode::OK };
    HttpResponse::build(status).json(json!({
        "ready": !load.broken,
        "engine": about.engine,
        "model": about.model,
        "language": about.language,
        "threads": about.threads,
        "sessions": service.registry.working(),
        "maxSessions": service.options.max_sessions,
        "load": load.busy,
        "queueMs": load.queue_ms,
        "finalsWaiting": load.finals_waiting,
        "interimsWaiting": load.interims_waiting,
        "interimsShed": load.interims_shed,
        "version": env!("CARGO_PKG_VERSION"),
    }))
}

async fn create(request: HttpRequest, body: web::Bytes, service: Shared) -> HttpResponse {
    if let Some(refusals) = Refusals::take(&mut service.faults.lock().posts) {
        return refuse_by_fault(&request, refusals);
    }
    let accepted = match request::accept(&body, service.about.exact_endpointing) {
        Ok(accepted) => accepted,
        Err(errors) => return refuse(&request, 400, "Invalid parameter", Some(errors)),
    };
    let max = service.options.max_sessions;
    let Some(ticket) = service.registry.admit(max) else {
        let message = format!("Maximum number of concurrent sessions reached ({max}; STT_MAX_SESSIONS)");
        return refuse(&request, 429, &message, None);
    };
    let (id, token) = (ticket.id.clone(), ticket.token.clone());
    Session::new(service.into_inner(), ticket, accepted).start();
    let connection = request.connection_info();
    let scheme = if connection.scheme() == "https" { "wss" } else { "ws" };
    let url = format!("{scheme}://{}/v2/live?token={token}", connection.host());
    HttpResponse::Created().insert_header((CALL_ID, id.clone())).json(LiveReply { id, created_at: timestamp(), url })
}

#[derive(Deserialize)]
struct TokenQuery {
    token: Option<String>,
}

/// One path, two meanings, told apart by the Upgrade header.
async fn list_or_upgrade(request: HttpRequest, payload: web::Payload, service: Shared) -> HttpResponse {
    if request.headers().contains_key(header::UPGRADE) {
        upgrade(&request, payload, &service)
    } else {
        list(&request, &service)
    }
}

fn upgrade(request: &HttpRequest, payload: web::Payload, service: &Service) -> HttpResponse {
    if let Some(refusals) = Refusals::take(&mut service.faults.lock().upgrades) {
        return refuse_by_fault(request, refusals);
    }
    let query = web::Query::<TokenQuery>::from_query(request.query_string()).ok();
    let token = query.and_then(|q| q.into_inner().token).unwrap_or_default();
    let Some((session_id, session)) = service.registry.by_token(&token) else {
        return refuse(request, 403, "Unknown or expired token", None);
    };
    let valve = std::sync::Arc::new(Valve::default());
    let socket = Socket {
        number: service.connections.fetch_add(1, Ordering::Relaxed),
        session,
        session_id,
        breaker: request.conn_data::<Breaker>().cloned(),
        valve: valve.clone(),
        partial: None,
        closing: false,
        muted: false,
        told: false,
    };
    let gate = FrameGate::new(payload, valve, MAX_FRAME_BYTES);
    let response = ws::WsResponseBuilder::new(socket, request, gate).frame_size(MAX_FRAME_BYTES).start();
    response.unwrap_or_else(|error| error.error_response())
}

#[derive(Deserialize)]
struct ListQuery {
    offset: Option<usize>,
    limit: Option<usize>,
}

fn list(request: &HttpRequest, service: &Service) -> HttpResponse {
    let query = request.query_string();
    let Ok(page) = web::Query::<ListQuery>::from_query(query) else {
        return refuse(request, 400, "Invalid parameter", Some(vec!["offset and limit must be numbers".to_owned()]));
    };
    let (offset, limit) = (page.offset.unwrap_or(0), page.limit.unwrap_or(DEFAULT_PAGE).clamp(1, MAX_PAGE));
    // `status` may be given several times.
    let wanted: Vec<&str> = query.split('&').filter_map(|pair| pair.strip_prefix("status=")).collect();
    let mut items = service.registry.documents();
    items.retain(|d| wanted.is_empty() || d["status"].as_str().is_some_and(|s| wanted.contains(&s)));
    let connection = request.connection_info();
    let link = |offset: usize| {
        format!("{}://{}/v2/live?offset={offset}&limit={limit}", connection.scheme(), connection.host())
    };
    let next = (items.len() > offset.saturating_add(limit)).then(|| link(offset + limit));
    let items: Vec<Value> = items.into_iter().skip(offset).take(limit).collect();
    HttpResponse::Ok().json(json!({"first": link(0), "current": link(offset), "next": next, "items": items}))
}

async fn get(request: HttpRequest, id: web::Path<String>, service: Shared) -> HttpResponse {
    match service.registry.document(&id) {
        Some(document) => HttpResponse::Ok().insert_header((CALL_ID, id.as_str())).json(document),
        None => refuse(&request, 404, "Session not found", None),
    }
}

async fn delete(request: HttpRequest, id: web::Path<String>, service: Shared) -> HttpResponse {
    match service.registry.delete(&id) {
        Some(true) => HttpResponse::Accepted().finish(),
        Some(false) => refuse(&request, 403, "The session is not finished", None),
        None => refuse(&request, 404, "Session not found", None),
    }
}

async fn file(request: HttpRequest, id: web::Path<String>, service: Shared) -> HttpResponse {
    let Some(finished) = service.registry.finished(&id) else {
        return refuse(&request, 404, "No finished session of this id", None);
    };
    let Some(length) = finished.audio.as_ref().map(super::recording::Recording::wav_bytes) else {
        return refuse(&request, 404, "Audio is not kept; start the recogniser with --keep-audio", None);
    };
    let pieces = stream::unfold(0u64, move |offset| {
        let finished = finished.clone();
        async move {
            let read = move || finished.audio.as_ref().map(|audio| audio.read_wav(offset, FILE_PIECE));
            match web::block(read).await {
                Ok(Some(Ok(piece))) if piece.is_empty() => None,
                Ok(Some(Ok(piece))) => Some((Ok(piece.clone()), offset + piece.len() as u64)),
                Ok(Some(Err(error))) => Some((Err(error), length)),
                Ok(None) | Err(_) => None,
            }
        }
    });
    HttpResponse::Ok().content_type("application/octet-stream").no_chunking(length).streaming(pieces)
}

async fn order_fault(request: HttpRequest, body: web::Bytes, service: Shared) -> HttpResponse {
    if !service.options.faults {
        return not_found(request).await;
    }
    match serde_json::from_slice::<FaultOrder>(&body) {
        Ok(order) => apply(&request, order, &service).await,
        Err(error) => refuse(&request, 400, "Invalid parameter", Some(vec![error.to_string()])),
    }
}

async fn clear_faults(request: HttpRequest, service: Shared) -> HttpResponse {
    if !service.options.faults {
        return not_found(request).await;
    }
    apply(&request, FaultOrder { clear: true, ..Default::default() }, &service).await
}

/// Answers when every session has obeyed.
async fn apply(request: &HttpRequest, order: FaultOrder, service: &Service) -> HttpResponse {
    let sessions = match &order.session {
        None => {
            service.faults.lock().apply(&order);
            service.registry.sessions()
        }
        Some(id) => match service.registry.by_id(id) {
            Some(session) => vec![session],
            None => return refuse(request, 404, "Session not found", None),
        },
    };
    let mut reached = 0;
    for session in sessions {
        reached += usize::from(session.send(Break(order.clone())).await.is_ok());
    }
    HttpResponse::Ok().json(json!({"sessions": reached}))
}
