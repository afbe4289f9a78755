//! `GET /api/realtime/transcribe`: a viewer's WebSocket. Every refusal comes before the upgrade.

use actix_web::http::StatusCode;
use actix_web::http::header::{self, HeaderValue};
use actix_web::{HttpRequest, HttpResponse, web};
use actix_web_actors::ws::{self, HandshakeError};

use super::admission::{admit, counted};
use super::auth::{SUBPROTOCOL, offered_protocols};
use super::error::ApiError;
use super::metered_payload::Metered;
use super::state::AppState;
use crate::actors::ws_client::{MAX_FRAME_BYTES, Server, WsClient};
use crate::viewers::Meter;

pub async fn transcribe(
    req: HttpRequest,
    payload: web::Payload,
    state: web::Data<AppState>,
) -> Result<HttpResponse, ApiError> {
    counted(&state, open(&req, payload, &state))
}

fn open(req: &HttpRequest, payload: web::Payload, state: &web::Data<AppState>) -> Result<HttpResponse, ApiError> {
    let (claims, admission) = admit(req, state, |resume| resume)?;
    let meter = Meter::default();
    let server = Server { config: state.config.clone(), metrics: state.metrics.clone(), keys: state.keys.clone() };
    let client = WsClient::new(server, claims, admission, meter.clone());
    let builder = ws::WsResponseBuilder::new(client, req, Metered::new(payload, meter)).frame_size(MAX_FRAME_BYTES);
    let mut response = builder.start().map_err(|error| handshake_refusal(error.as_error::<HandshakeError>()))?;
    if offered_protocols(req).any(|offered| offered == SUBPROTOCOL) {
        response.headers_mut().insert(header::SEC_WEBSOCKET_PROTOCOL, HeaderValue::from_static(SUBPROTOCOL));
    }
    Ok(response)
}

fn handshake_refusal(error: Option<&HandshakeError>) -> ApiError {
    let message =
        "a WebSocket handshake (RFC 6455, version 13) is needed here; /api/realtime/events is the same as SSE";
    match error {
        Some(HandshakeError::BadWebsocketKey) => ApiError::bad_request("bad_handshake", message),
        _ => ApiError::new(StatusCode::UPGRADE_REQUIRED, "upgrade_required", message),
    }
}
