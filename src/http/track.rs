//! `GET /api/egress/track/{slug}/{track}`: the WebSocket of a Track Egress, which brings one microphone's audio.
//!
//! The URL is signed for exactly that (`livekit::track_url`). Every refusal comes before the upgrade.

use actix_web::http::StatusCode;
use actix_web::{HttpRequest, HttpResponse, ResponseError, web};
use actix_web_actors::ws::{HandshakeError, WsResponseBuilder};
use chrono::Utc;

use super::error::ApiError;
use super::query::Params;
use super::state::AppState;
use crate::actors::track_activity::intake::{Held, Intake};
use crate::actors::track_activity::sockets::MAX_TRACKS;
use crate::actors::track_activity::{MAX_FRAME_BYTES, TrackActivity, TrackParams};
use crate::livekit::track_url::{Microphone, TrackUrlError};
use crate::transcript::Slug;

pub async fn track(
    req: HttpRequest,
    payload: web::Payload,
    place: web::Path<(String, String)>,
    state: web::Data<AppState>,
) -> Result<HttpResponse, ApiError> {
    open(&req, payload, &place, &state).inspect_err(|error| {
        state.metrics.track_refused_total.with_label_values(&[error.status_code().as_str()]).inc();
        tracing::warn!(
            path = req.path(),
            status = error.status.as_u16(),
            reason = error.message,
            "track egress refused"
        );
    })
}

fn open(
    req: &HttpRequest,
    payload: web::Payload,
    (slug, track): &(String, String),
    state: &web::Data<AppState>,
) -> Result<HttpResponse, ApiError> {
    if state.is_draining() {
        return Err(ApiError::draining());
    }
    let params = Params::of(req)?;
    let [identity, exp, key] = ["identity", "exp", "key"].map(|name| params.get(name).unwrap_or(""));
    let microphone = Microphone::new(Slug::parse(slug)?, track, identity)?;
    microphone.verify(exp, key, Utc::now(), &state.keys)?;
    let full = || {
        let message = format!("the room has {MAX_TRACKS} tracks already, the most that are measured");
        ApiError::new(StatusCode::TOO_MANY_REQUESTS, "too_many_tracks", message)
    };
    let intake = Intake::default();
    let params = TrackParams {
        place: state.tracks.enter(&microphone).ok_or_else(full)?,
        room: state.directory.get_or_create(&microphone.slug),
        metrics: state.metrics.clone(),
        draining: state.draining.clone(),
        intake: intake.clone(),
        microphone,
    };
    let builder = WsResponseBuilder::new(TrackActivity::new(params), req, Held::new(payload, intake));
    builder.frame_size(MAX_FRAME_BYTES).start().map_err(|error| handshake_refusal(error.as_error()))
}

fn handshake_refusal(error: Option<&HandshakeError>) -> ApiError {
    let message = "a WebSocket handshake (RFC 6455, version 13) is needed here";
    match error {
        Some(HandshakeError::BadWebsocketKey) => ApiError::bad_request("bad_handshake", message),
        _ => ApiError::new(StatusCode::UPGRADE_REQUIRED, "upgrade_required", message),
    }
}

impl From<TrackUrlError> for ApiError {
    fn from(error: TrackUrlError) -> Self {
        let message = error.to_string();
        match error {
            TrackUrlError::Expired => Self::unauthorized("url_expired", message),
            TrackUrlError::Key => Self::unauthorized("key_invalid", message),
            TrackUrlError::Track | TrackUrlError::Identity | TrackUrlError::Expiry => {
                Self::bad_request("bad_parameter", message)
            }
        }
    }
}
