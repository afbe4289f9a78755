//! `POST /api/realtime/transcribe/broadcast`: entries from a node that numbers them, or from any program with text of
//! its own.

use std::time::Duration;

use actix_web::http::StatusCode;
use actix_web::http::header;
use actix_web::{HttpRequest, HttpResponse, web};
use bytes::BytesMut;
use futures_util::StreamExt;

use super::auth::Broadcaster;
use super::broadcast_body::{self, Post};
use super::error::ApiError;
use super::state::AppState;
use crate::actors::session_registry::{Broadcast, BroadcastAck, BroadcastRefusal};
use crate::bus::wire::{HOLE, MAX_POST_BYTES, PROTOCOL, PROTOCOL_HEADER};

/// Largest body.
pub const MAX_BODY_BYTES: usize = MAX_POST_BYTES;
/// From the request's head to the end of its body.
const BODY_TIMEOUT: Duration = Duration::from_secs(30);
/// Longest wait for the entries to be in the outbox.
const TAKE_TIMEOUT: Duration = Duration::from_secs(30);

pub async fn broadcast(
    req: HttpRequest,
    payload: web::Payload,
    state: web::Data<AppState>,
) -> Result<HttpResponse, ApiError> {
    if state.is_draining() {
        return Err(ApiError::draining());
    }
    let broadcaster = Broadcaster::of(&state, &req)?;
    check_protocol(&req)?;
    let body = read_body(&req, payload, MAX_BODY_BYTES).await?;
    let Post { slug, entries, from_origin } = broadcast_body::parse(&body)?;
    broadcaster.may_broadcast(&slug)?;
    if from_origin.record.is_some() {
        broadcaster.is_node()?;
    }
    let ack = take(&state, Broadcast { slug, entries, from_origin }).await?;
    let count = |result, n: usize| {
        state.metrics.broadcast_entries_total.with_label_values(&[result]).inc_by(n as u64);
    };
    count("accepted", ack.accepted);
    count("duplicate", ack.duplicates);
    Ok(HttpResponse::Accepted().json(ack))
}

/// Another node says which version of the protocol it speaks; anybody else need not.
pub fn check_protocol(req: &HttpRequest) -> Result<(), ApiError> {
    let given = req.headers().get(PROTOCOL_HEADER).map(|value| value.to_str().unwrap_or("?"));
    match given {
        None | Some(PROTOCOL) => Ok(()),
        Some(other) => {
            let message =
                format!("this node speaks version {PROTOCOL} of the protocol between nodes, the sender {other}");
            Err(ApiError::bad_request("protocol_version", message))
        }
    }
}

/// Reads a body of at most `limit` bytes.
pub(super) async fn read_body(req: &HttpRequest, payload: web::Payload, limit: usize) -> Result<BytesMut, ApiError> {
    let too_large = || {
        let message = format!("the body has more than {limit} bytes, the most allowed");
        ApiError::new(StatusCode::PAYLOAD_TOO_LARGE, "too_large", message)
    };
    let declared = req.headers().get(header::CONTENT_LENGTH).and_then(|value| value.to_str().ok()?.parse().ok());
    if declared.is_some_and(|length: u64| length > limit as u64) {
        return Err(too_large());
    }
    let read = async {
        // Decompressed where the request says so: the limit holds for what comes out.
        let mut payload = actix_web::dev::Decompress::from_headers(payload, req.headers());
        let mut body = BytesMut::new();
        while let Some(chunk) = payload.next().await {
            let chunk =
                chunk.map_err(|_| ApiError::bad_request("bad_body", "the body broke off or is not as encoded"))?;
            if body.len() + chunk.len() > limit {
                return Err(too_large());
            }
            body.extend_from_slice(&chunk);
        }
        Ok(body)
    };
    tokio::time::timeout(BODY_TIMEOUT, read).await.unwrap_or_else(|_| {
        let message = format!("the body took longer than {} s", BODY_TIMEOUT.as_secs());
        Err(ApiError::new(StatusCode::REQUEST_TIMEOUT, "body_timeout", message))
    })
}

async fn take(state: &AppState, entries: Broadcast) -> Result<BroadcastAck, ApiError> {
    let answer = tokio::time::timeout(TAKE_TIMEOUT, state.broadcast.send(entries)).await;
    let unavailable = || ApiError::unavailable("unavailable", "the session could not take the entries; try again");
    match answer.map_err(|_| unavailable())?.map_err(|_| unavailable())? {
        Ok(ack) => Ok(ack),
        Err(refusal) => Err(match refusal {
            BroadcastRefusal::Hole { expected } => ApiError::conflict(HOLE, refusal.to_string(), expected),
            BroadcastRefusal::HasOrigin { expected } => ApiError::conflict("has_origin", refusal.to_string(), expected),
            BroadcastRefusal::Ended { expected } => ApiError::conflict("ended", refusal.to_string(), expected),
            BroadcastRefusal::OtherSlug => ApiError::field("epoch", refusal.to_string()),
            BroadcastRefusal::TooManySessions(_) => ApiError::unavailable("too_many_sessions", refusal.to_string()),
            BroadcastRefusal::Draining => ApiError::draining(),
            BroadcastRefusal::Unavailable => unavailable(),
        }),
    }
}
