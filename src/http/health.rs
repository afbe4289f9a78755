//! `GET /health`: for load balancers and people. 503 when a thread hangs, the server is stopping, what is said can be
//! stored nowhere, or the log server of its cluster is away.
//!
//! A database or recogniser that is away, or rows in quarantine, are said (`degraded`), but are no reason to take the
//! server out: it keeps what it has heard and catches up. The database itself is not asked, however often somebody asks
//! here: a serverless one would never suspend.

use std::time::Duration;

use actix_web::http::header;
use actix_web::{HttpRequest, HttpResponse, web};
use chrono::Utc;
use serde_json::{Value, json};

use super::auth::operator;
use super::state::AppState;
use crate::bus::log_server::Link;
use crate::transcript::StorageState;

/// So long after an entry that could be made durable nowhere.
const NOT_STORING_S: i64 = 30;
/// So long after the log server has gone.
const BUS_AWAY: Duration = Duration::from_secs(5);

pub async fn health(req: HttpRequest, state: web::Data<AppState>) -> HttpResponse {
    let storage = state.transcripts.storage().await;
    let recogniser = recogniser(&state);
    let reasons = reasons(&state, &storage, &recogniser, operator(&state, &req).is_ok());
    let (live, draining, storing) = (!state.is_hung(), state.is_draining(), is_storing(&state));
    let bus_away = state.link.as_ref().and_then(|link| link.away_for()).is_some_and(|away| away > BUS_AWAY);
    let ready = live && !draining && storing && !bus_away;
    let status = match (live, draining, storing) {
        (false, ..) => "hung",
        (_, true, _) => "draining",
        (.., false) => "not_storing",
        _ if bus_away => "bus_away",
        _ if !reasons.is_empty() => "degraded",
        _ => "ok",
    };
    let mut body =
        json!({"status": status, "reasons": reasons, "live": live, "ready": ready, "recogniser": recogniser});
    body["database"] = json!(if storage.fault.is_none() { "up" } else { "down" });
    body["quarantined"] = json!(storage.quarantined);
    add_counts(&mut body, &state);
    let mut response = if ready { HttpResponse::Ok() } else { HttpResponse::ServiceUnavailable() };
    response.insert_header((header::CACHE_CONTROL, "no-store")).json(body)
}

/// True when no entry has been without a durable place for [`NOT_STORING_S`].
fn is_storing(state: &AppState) -> bool {
    let last_not_durable_s = state.metrics.entries_not_durable_timestamp_seconds.get();
    Utc::now().timestamp() - last_not_durable_s > NOT_STORING_S
}

fn add_counts(body: &mut Value, state: &AppState) {
    if let Some(link) = &state.link {
        body["bus"] = json!(link.state().as_str());
    }
    body["mode"] = json!(state.config.server.mode.as_str());
    body["node"] = json!(state.config.split.node_id);
    body["version"] = json!(env!("CARGO_PKG_VERSION"));
    body["uptimeMs"] = json!(state.started.elapsed().as_millis() as u64);
    body["queueSize"] = json!(state.metrics.batch_queue_size.get());
    body["outboxRows"] = json!(state.metrics.outbox_rows.get());
    body["sessions"] = json!(state.metrics.sessions_active.get());
    body["viewers"] = json!(state.viewers.len());
}

/// Says what is not as it should be. The database's own words may name users and hosts, so they are for operators.
fn reasons(state: &AppState, storage: &StorageState, recogniser: &Value, is_operator: bool) -> Vec<String> {
    let mut reasons = Vec::new();
    let mut add = |what: String, why: Option<&String>| {
        reasons.push(match why.filter(|_| is_operator) {
            Some(why) => format!("{what}: {why}"),
            None => what,
        });
    };
    if let Some(fault) = &storage.fault {
        add("the database takes no rows, they wait in the outbox".to_owned(), Some(fault));
    }
    if storage.quarantined > 0 {
        let what = format!("{} row(s) in quarantine, see `stenocast quarantine list`", storage.quarantined);
        add(what, storage.quarantine_reason.as_ref());
    }
    for url in targets(state) {
        let rows = state.metrics.forward_queue_rows.with_label_values(&[url]).get();
        if state.metrics.forward_target_up.with_label_values(&[url]).get() == 0 {
            add(format!("a ws node takes no entries, {rows} row(s) wait for it in the outbox"), Some(url));
        }
    }
    if let Some((link, away)) = state.link.as_ref().and_then(|link| Some((link, link.away_for()?))) {
        let why = if let Link::Away(why) = link.state() { Some(why) } else { None };
        add(format!("bus: the log server has been away for {} s", away.as_secs()), why.as_ref());
    }
    if recogniser["state"] == "down" {
        add("the local recogniser is not there".to_owned(), None);
    }
    reasons
}

/// The ws nodes that this one sends to.
fn targets(state: &AppState) -> &[String] {
    if state.config.server.mode.serves() { &[] } else { &state.config.split.ws_server_urls }
}

/// Says which recogniser there is, and whether it answers. The local one hears English only, and says so.
fn recogniser(state: &AppState) -> Value {
    let stt = &state.config.stt;
    if !state.config.server.mode.ingests() {
        return json!({"kind": "none", "state": "none", "languages": []});
    }
    if stt.is_local() {
        let up = state.metrics.stt_process_up.get() == 1;
        return json!({"kind": "local", "state": if up { "up" } else { "down" }, "languages": ["en"]});
    }
    // A remote one is known to be there only while a session talks to it.
    json!({"kind": "gladia", "state": "configured", "languages": stt.languages})
}
