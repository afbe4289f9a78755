//! `GET /health`: for load balancers and people. 503 when a thread hangs, the server is stopping, or what is said can be
//! stored nowhere.
//!
//! A database or recogniser that is away is said, but is no reason to take the server out: it keeps what it has heard
//! and catches up.

use std::time::Duration;

use actix_web::http::header;
use actix_web::{HttpResponse, web};
use chrono::Utc;
use serde_json::{Value, json};

use super::state::AppState;

/// So long after an entry that could be made durable nowhere.
const NOT_STORING_S: i64 = 30;
/// Longest wait for the database.
const PING_TIMEOUT: Duration = Duration::from_secs(1);

pub async fn health(state: web::Data<AppState>) -> HttpResponse {
    let ping = tokio::time::timeout(PING_TIMEOUT, state.transcripts.ping()).await;
    let database_up = ping.is_ok_and(|answer| answer.is_ok());
    let recogniser = recogniser(&state);
    let (live, draining) = (!state.is_hung(), state.is_draining());
    let last_not_durable_s = state.metrics.entries_not_durable_timestamp_seconds.get();
    let storing = Utc::now().timestamp() - last_not_durable_s > NOT_STORING_S;
    let ready = live && !draining && storing;
    let all_up = database_up && recogniser["state"] != "down";
    let status = match (live, draining, storing, all_up) {
        (false, ..) => "hung",
        (_, true, ..) => "draining",
        (_, _, false, _) => "not_storing",
        (.., false) => "degraded",
        _ => "ok",
    };
    let body = json!({
        "status": status,
        "live": live,
        "ready": ready,
        "mode": state.config.core.mode.as_str(),
        "version": env!("CARGO_PKG_VERSION"),
        "uptimeMs": state.started.elapsed().as_millis() as u64,
        "queueSize": state.metrics.batch_queue_size.get(),
        "outboxRows": state.metrics.outbox_rows.get(),
        "database": if database_up { "up" } else { "down" },
        "recogniser": recogniser,
        "sessions": state.metrics.sessions_active.get(),
        "viewers": state.viewers.len(),
    });
    let mut response = if ready { HttpResponse::Ok() } else { HttpResponse::ServiceUnavailable() };
    response.insert_header((header::CACHE_CONTROL, "no-store")).json(body)
}

/// Which recogniser and whether it is there. The local one hears English only, and says so.
fn recogniser(state: &AppState) -> Value {
    let stt = &state.config.stt;
    if !state.config.core.mode.ingests() {
        return json!({"kind": "none", "state": "none", "languages": []});
    }
    if stt.is_local() {
        let up = state.metrics.stt_process_up.get() == 1;
        return json!({"kind": "local", "state": if up { "up" } else { "down" }, "languages": ["en"]});
    }
    // A remote one is known to be there only while a session talks to it.
    json!({"kind": "gladia", "state": "configured", "languages": stt.languages})
}
