//! Lets viewers in, by WebSocket and by server-sent events: the token, the query and the limits.

use std::sync::Arc;

use actix_web::http::StatusCode;
use actix_web::{HttpRequest, HttpResponse, ResponseError};

use super::auth::viewer;
use super::error::ApiError;
use super::query::Params;
use super::state::AppState;
use crate::livekit::token::Claims;
use crate::viewers::admission::{Admission, Entrance};
use crate::viewers::{Resume, SocketGuard};

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
) -> Result<(Claims, Admission), ApiError> {
    if state.is_draining() {
        return Err(ApiError::draining());
    }
    let params = Params::of(req)?;
    let slug = params.slug()?;
    let asked = Resume { epoch: params.epoch("epoch")?, after: params.after()? };
    let claims = viewer(state, req, &params, &slug)?;
    let socket = req.conn_data::<Arc<SocketGuard>>().map(Arc::downgrade);
    let entrance = Entrance {
        limits: &state.config.viewers,
        viewers: &state.viewers,
        directory: &state.directory,
        transcripts: &state.transcripts,
    };
    let admission = entrance
        .admit(&slug, resume(asked), socket)
        .map_err(|full| ApiError::new(StatusCode::TOO_MANY_REQUESTS, "too_many_viewers", full.to_string()))?;
    Ok((claims, admission))
}
