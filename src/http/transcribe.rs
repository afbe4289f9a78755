//! `GET /api/realtime/transcribe`: a viewer's WebSocket. Every refusal comes before the upgrade.

use std::sync::Arc;

use actix_web::http::StatusCode;
use actix_web::http::header::{self, HeaderValue};
use actix_web::{HttpRequest, HttpResponse, ResponseError, web};
use actix_web_actors::ws::{self, HandshakeError};
use futures_util::StreamExt;
use futures_util::stream::{self, LocalBoxStream};

use super::auth::{SUBPROTOCOL, offered_protocols, viewer};
use super::error::ApiError;
use super::feed::{Feed, FeedItem, Resume};
use super::metered_payload::{Meter, Metered};
use super::query::Params;
use super::socket::SocketGuard;
use super::state::AppState;
use super::viewers::Viewer;
use crate::actors::ws_client::{MAX_FRAME_BYTES, WsClient};
use crate::livekit::token::Claims;
use crate::log::Room;
use crate::log::directory::ViewerGuard;

/// A viewer that has been let in.
pub struct Admission {
    pub room: Arc<Room>,
    pub claims: Claims,
    pub viewer: Arc<Viewer>,
    pub in_room: ViewerGuard,
    pub feed: LocalBoxStream<'static, Vec<FeedItem>>,
}

pub async fn transcribe(
    req: HttpRequest,
    payload: web::Payload,
    state: web::Data<AppState>,
) -> Result<HttpResponse, ApiError> {
    counted(&state, open(&req, payload, &state))
}

fn open(req: &HttpRequest, payload: web::Payload, state: &web::Data<AppState>) -> Result<HttpResponse, ApiError> {
    let admission = admit(req, state, |resume| resume)?;
    let Admission { room, claims, viewer, in_room, feed } = admission;
    let meter = Meter::default();
    let client = WsClient::new(state.clone().into_inner(), room, claims, viewer, in_room, feed, meter.clone());
    let builder = ws::WsResponseBuilder::new(client, req, Metered::new(payload, meter)).frame_size(MAX_FRAME_BYTES);
    let mut response = builder.start().map_err(|error| handshake_refusal(error.as_error::<HandshakeError>()))?;
    if offered_protocols(req).any(|offered| offered == SUBPROTOCOL) {
        response.headers_mut().insert(header::SEC_WEBSOCKET_PROTOCOL, HeaderValue::from_static(SUBPROTOCOL));
    }
    Ok(response)
}

/// Counts refusals of viewers.
pub fn counted(state: &AppState, result: Result<HttpResponse, ApiError>) -> Result<HttpResponse, ApiError> {
    result.inspect_err(|error| {
        state.metrics.ws_refused_total.with_label_values(&[error.status_code().as_str()]).inc();
    })
}

/// Lets a viewer in, or says why not: 503, 400, 401, 403, 429, in this order. `resume` may overrule the query.
pub fn admit(
    req: &HttpRequest,
    state: &AppState,
    resume: impl FnOnce(Resume) -> Resume,
) -> Result<Admission, ApiError> {
    if state.is_draining() {
        return Err(ApiError::draining());
    }
    let params = Params::of(req)?;
    let slug = params.slug()?;
    let asked = Resume { epoch: params.epoch("epoch")?, after: params.after()? };
    let claims = viewer(state, req, &params, &slug)?;
    let limits = &state.config.viewers;
    let full = |what: &str, most: usize| {
        let message = format!("{what} has {most} viewers, the most allowed; try again later");
        ApiError::new(StatusCode::TOO_MANY_REQUESTS, "too_many_viewers", message)
    };
    let socket = req.conn_data::<Arc<SocketGuard>>().map(Arc::downgrade);
    let viewer =
        state.viewers.enter(limits.max_clients, socket).ok_or_else(|| full("the server", limits.max_clients))?;
    let room = state.directory.get_or_create(&slug);
    let in_room = room.enter(limits.max_per_session).ok_or_else(|| full("the room", limits.max_per_session))?;
    let feed =
        Feed::new(room.clone(), state.transcripts.clone(), viewer.clone(), state.viewers.closing(), resume(asked));
    let batches = stream::unfold(feed, async |mut feed: Feed| Some((feed.next().await?, feed)));
    Ok(Admission { room, claims, viewer, in_room, feed: batches.boxed_local() })
}

fn handshake_refusal(error: Option<&HandshakeError>) -> ApiError {
    let message =
        "a WebSocket handshake (RFC 6455, version 13) is needed here; /api/realtime/events is the same as SSE";
    match error {
        Some(HandshakeError::BadWebsocketKey) => ApiError::bad_request("bad_handshake", message),
        _ => ApiError::new(StatusCode::UPGRADE_REQUIRED, "upgrade_required", message),
    }
}
