//! `GET /api/realtime/transcribe/reports`: who speaks and who watches here, for the nodes that number the logs.

use std::time::Duration;

use actix_web::http::header;
use actix_web::{HttpRequest, HttpResponse, web};
use tokio::time::Instant;

use super::auth::Broadcaster;
use super::broadcast::check_protocol;
use super::error::ApiError;
use super::query::Params;
use super::state::AppState;

/// A poll without news is answered after this time.
const WAIT: Duration = Duration::from_secs(5);
/// Interval in which viewers are counted while a poll waits.
const COUNT_INTERVAL: Duration = Duration::from_millis(500);
/// Time for more reports to come after the first one.
const GATHER: Duration = Duration::from_millis(10);

pub async fn reports(req: HttpRequest, state: web::Data<AppState>) -> Result<HttpResponse, ApiError> {
    if state.is_draining() {
        return Err(ApiError::draining());
    }
    Broadcaster::of(&state, &req)?.is_node()?;
    check_protocol(&req)?;
    let after = Params::of(&req)?.number("after", 0..=u64::MAX)?.unwrap_or(0);
    let (begun, viewers) = (Instant::now(), state.directory.viewers());
    let mut draining = state.draining.clone();
    // A poller that begins is told at once how it stands.
    while after > 0 && begun.elapsed() < WAIT && state.directory.viewers() == viewers {
        tokio::select! {
            () = state.reports.wait_after(after) => {
                tokio::time::sleep(GATHER).await;
                break;
            }
            _ = draining.wait_for(|draining| *draining) => return Err(ApiError::draining()),
            () = tokio::time::sleep(COUNT_INTERVAL) => {}
        }
    }
    let answer = state.reports.after(after, state.directory.viewers());
    Ok(HttpResponse::Ok().insert_header((header::CACHE_CONTROL, "no-store")).json(answer))
}
