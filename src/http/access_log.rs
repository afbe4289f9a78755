//! One line and one count per request. The query is left out: it may hold a token.

use actix_web::Error;
use actix_web::body::MessageBody;
use actix_web::dev::{ServiceRequest, ServiceResponse};
use actix_web::middleware::Next;
use actix_web::web;
use tokio::time::Instant;

use super::state::AppState;

/// Label of requests that no route took: their paths are made up by strangers.
const UNMATCHED: &str = "unmatched";

pub async fn log(
    req: ServiceRequest,
    next: Next<impl MessageBody>,
) -> Result<ServiceResponse<impl MessageBody>, Error> {
    let started = Instant::now();
    let state = req.app_data::<web::Data<AppState>>().cloned();
    let response = next.call(req).await?;
    let (request, status) = (response.request(), response.status());
    let route = request.match_pattern().unwrap_or_else(|| UNMATCHED.to_owned());
    if let Some(state) = state {
        state.metrics.http_requests_total.with_label_values(&[&route, status.as_str()]).inc();
    }
    let peer = request.peer_addr().map(|peer| peer.ip().to_string()).unwrap_or_default();
    tracing::debug!(
        method = %request.method(),
        path = request.path(),
        status = status.as_u16(),
        peer,
        took_ms = started.elapsed().as_secs_f64() * 1000.0,
        "http request"
    );
    Ok(response)
}
