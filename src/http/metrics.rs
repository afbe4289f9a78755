//! `GET /metrics`: Prometheus text, or the actor tree as JSON. For operators.

use std::time::Duration;

use actix_web::http::header;
use actix_web::{HttpRequest, HttpResponse, web};

use super::auth::operator;
use super::error::ApiError;
use super::query::Params;
use super::state::AppState;
use crate::actors::root::RootState;
use crate::actors::session::state::{EdgeDepths, SessionActorState};
use crate::actors::supervision::Observe;
use crate::gladia::ledger::Account;

/// Longest wait for the actor tree.
const OBSERVE_TIMEOUT: Duration = Duration::from_secs(2);

pub async fn metrics(req: HttpRequest, state: web::Data<AppState>) -> Result<HttpResponse, ApiError> {
    operator(&state, &req)?;
    let json = wants_json(&req)?;
    let tree = observe(&state).await;
    if json {
        let tree = tree.ok_or_else(|| ApiError::unavailable("no_answer", "the actor tree gave no answer in time"))?;
        return Ok(HttpResponse::Ok().insert_header((header::CACHE_CONTROL, "no-store")).json(tree));
    }
    // Without an answer the other series are still worth having.
    if let Some(tree) = tree {
        set_edge_depths(&state, &tree);
        let coverage = lowest_coverage(sessions(&tree).map(|session| &session.audio));
        state.metrics.audio_coverage_lowest_ratio.set(coverage);
    }
    let text = state.metrics.encode();
    Ok(HttpResponse::Ok().content_type("text/plain; version=0.0.4; charset=utf-8").body(text))
}

fn wants_json(req: &HttpRequest) -> Result<bool, ApiError> {
    match Params::of(req)?.get("format") {
        Some("json") => return Ok(true),
        Some("prometheus") => return Ok(false),
        Some(_) => return Err(ApiError::bad_request("bad_parameter", "format is neither json nor prometheus")),
        None => {}
    }
    let accept = req.headers().get(header::ACCEPT).and_then(|value| value.to_str().ok()).unwrap_or("");
    let mut types = accept.split(',').map(|item| item.split(';').next().unwrap_or("").trim());
    Ok(types.any(|item| item.eq_ignore_ascii_case("application/json")))
}

async fn observe(state: &AppState) -> Option<RootState> {
    let answer = tokio::time::timeout(OBSERVE_TIMEOUT, state.observe.send(Observe::default())).await;
    answer.ok()?.ok()
}

/// Speech before a session's coverage means something: the last sentence is always on its way.
const MEANINGFUL_SPEECH_MS: u64 = 30_000;

/// The sessions that have answered.
fn sessions(tree: &RootState) -> impl Iterator<Item = &SessionActorState> {
    let registry = tree.session_registry.state.state();
    registry.into_iter().flat_map(|registry| &registry.sessions).filter_map(|session| session.actor.state())
}

/// 1 when nobody has spoken for long enough.
fn lowest_coverage<'a>(accounts: impl Iterator<Item = &'a Account>) -> f64 {
    let meaningful = accounts.filter(|audio| audio.spoken_ms >= MEANINGFUL_SPEECH_MS);
    meaningful.map(|audio| audio.coverage).fold(1.0, f64::min)
}

/// Sums the depths of all sessions into the gauge. Every edge is shown, without any session, too.
fn set_edge_depths(state: &AppState, tree: &RootState) {
    let sum = |depth: fn(&EdgeDepths) -> u64| sessions(tree).map(|session| depth(&session.edges)).sum::<u64>();
    let depths =
        [("tags", sum(|edges| edges.tags)), ("pcm", sum(|edges| edges.pcm)), ("room", sum(|edges| edges.room))];
    for (edge, depth) in depths {
        state.metrics.edge_depth.with_label_values(&[edge]).set(depth as i64);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_session_with_least_coverage_counts() {
        let audio = |coverage, spoken_ms| Account { coverage, spoken_ms, ..Account::default() };
        let accounts = [audio(0.9, 60_000), audio(0.25, 30_000), audio(0.1, 29_999)];
        assert_eq!(lowest_coverage(accounts.iter()), 0.25);
        assert_eq!(lowest_coverage([].iter()), 1.0);
    }
}
