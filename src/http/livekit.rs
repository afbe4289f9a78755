//! What LiveKit and its rooms' admins ask for: `POST /api/livekit/webhook`, and `POST` and `DELETE
//! /api/sessions/{slug}/egress`.

use std::time::{Duration, Instant};

use actix::Recipient;
use actix_web::http::{StatusCode, header};
use actix_web::{HttpRequest, HttpResponse, web};
use serde_json::json;

use super::auth::{bearer, is_admin};
use super::broadcast::read_body;
use super::error::ApiError;
use super::state::AppState;
use crate::actors::egress_controller::{EgressRefusal, StartEgress, StopEgress};
use crate::livekit::inbox::{Inbox, Posted};
use crate::livekit::token::TokenError;
use crate::livekit::webhook::{self, WebhookError, WebhookEvent};
use crate::transcript::Slug;

/// Largest webhook. A room's and a participant's metadata are in it.
const MAX_WEBHOOK_BYTES: usize = 1 << 20;
/// Longest wait for an egress: longer than LiveKit takes to say that it has no worker.
const ORDER_TIMEOUT: Duration = Duration::from_secs(65);
/// The label of events that nobody has proved to be one.
const UNPROVED: &str = "unproved";

/// The ways to whoever acts on what is asked for here.
pub struct LiveKitWays {
    pub inbox: Inbox,
    pub start: Recipient<StartEgress>,
    pub stop: Recipient<StopEgress>,
}

fn ways(state: &AppState) -> Result<&LiveKitWays, ApiError> {
    let missing = || ApiError::unavailable("unavailable", "the server is starting; try again");
    state.livekit.as_ref().ok_or_else(missing)
}

/// A webhook of LiveKit. Answered before anything comes of it: LiveKit waits, and its next event with it.
pub async fn webhook(
    req: HttpRequest,
    payload: web::Payload,
    state: web::Data<AppState>,
) -> Result<HttpResponse, ApiError> {
    if state.is_draining() {
        return Err(ApiError::draining());
    }
    let ways = ways(&state)?;
    let event = match received(&state, &req, payload).await? {
        Ok(event) => event,
        Err(error) => return Err(refused(&state, ways, &error)),
    };
    let kind = event.kind.as_str();
    let posted = ways.inbox.post(event, Instant::now());
    state.metrics.livekit_webhooks_total.with_label_values(&[kind, posted.as_str()]).inc();
    match posted {
        Posted::Taken | Posted::Duplicate => Ok(HttpResponse::Ok().finish()),
        Posted::Full => Err(ApiError::unavailable("too_many_webhooks", "too many events wait; send this one again")),
    }
}

/// The body is read for whoever has a key of ours, and for nobody else.
async fn received(
    state: &AppState,
    req: &HttpRequest,
    payload: web::Payload,
) -> Result<Result<WebhookEvent, WebhookError>, ApiError> {
    let authorization = req.headers().get(header::AUTHORIZATION).and_then(|value| value.to_str().ok()).unwrap_or("");
    let claims = match webhook::authenticate(&state.keys, authorization) {
        Ok(claims) => claims,
        Err(error) => return Ok(Err(error)),
    };
    let body = read_body(req, payload, MAX_WEBHOOK_BYTES).await?;
    Ok(webhook::read(&claims, &body))
}

fn refused(state: &AppState, ways: &LiveKitWays, error: &WebhookError) -> ApiError {
    let (result, answer) = match error {
        WebhookError::Unreadable(_) => ("unreadable", ApiError::bad_request("bad_body", error.to_string())),
        WebhookError::Token(token) => {
            let code = if *token == TokenError::Missing { "token_missing" } else { "token_invalid" };
            ("forged", ApiError::unauthorized(code, error.to_string()))
        }
        _ => ("forged", ApiError::unauthorized("token_invalid", error.to_string())),
    };
    state.metrics.livekit_webhooks_total.with_label_values(&[UNPROVED, result]).inc();
    if let Some(suppressed) = ways.inbox.may_complain(Instant::now()) {
        tracing::warn!(%error, suppressed, "a webhook was refused");
    }
    answer
}

/// The room of the path, for its admin or an operator.
fn administered(req: &HttpRequest, state: &AppState) -> Result<Slug, ApiError> {
    let slug = Slug::parse(req.match_info().query("slug"))?;
    if !is_admin(state, req) {
        let message = "Authorization: Bearer with ADMIN_TOKEN or a room admin's token is required";
        let token = bearer(req).ok_or_else(|| ApiError::unauthorized("token_missing", message))?;
        state.keys.verify(token)?.may_admin(&slug)?;
    }
    Ok(slug)
}

/// Starts the room's egress: 201; 200 when it runs already.
pub async fn start_egress(req: HttpRequest, state: web::Data<AppState>) -> Result<HttpResponse, ApiError> {
    let slug = administered(&req, &state)?;
    let order = ways(&state)?.start.send(StartEgress(slug.clone()));
    let run = answered(tokio::time::timeout(ORDER_TIMEOUT, order).await)?;
    let mut answer = if run.is_new { HttpResponse::Created() } else { HttpResponse::Ok() };
    answer.insert_header((header::CACHE_CONTROL, "no-store"));
    Ok(answer.json(json!({"session": slug, "egressId": run.egress_id, "status": run.status})))
}

/// Stops the room's egresses, and keeps them from being started again until the room is made anew or somebody asks.
pub async fn stop_egress(req: HttpRequest, state: web::Data<AppState>) -> Result<HttpResponse, ApiError> {
    let slug = administered(&req, &state)?;
    let order = ways(&state)?.stop.send(StopEgress(slug.clone()));
    let stopped = answered(tokio::time::timeout(ORDER_TIMEOUT, order).await)?;
    let mut answer = HttpResponse::Ok();
    answer.insert_header((header::CACHE_CONTROL, "no-store"));
    Ok(answer.json(json!({"session": slug, "stopped": stopped})))
}

type Sent<T> = Result<Result<Result<T, EgressRefusal>, actix::MailboxError>, tokio::time::error::Elapsed>;

fn answered<T>(sent: Sent<T>) -> Result<T, ApiError> {
    let unavailable = || ApiError::unavailable("unavailable", "egresses are being repaired here; try again");
    let answer = sent.map_err(|_| unavailable())?.map_err(|_| unavailable())?;
    answer.map_err(|refusal| match refusal {
        EgressRefusal::Restarting => unavailable(),
        EgressRefusal::Api(_) => ApiError::new(StatusCode::BAD_GATEWAY, refusal.code(), refusal.to_string()),
        _ => ApiError::new(StatusCode::CONFLICT, refusal.code(), refusal.to_string()),
    })
}
