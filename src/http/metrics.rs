//! `GET /metrics`: Prometheus text, or the actor tree as JSON. For operators.

use std::collections::BTreeMap;
use std::time::Duration;

use actix_web::http::header;
use actix_web::{HttpRequest, HttpResponse, web};
use serde_json::Value;

use super::auth::operator;
use super::error::ApiError;
use super::query::Params;
use super::state::AppState;
use crate::actors::Observe;

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
        state.metrics.audio_coverage_lowest_ratio.set(lowest_coverage(&tree));
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

async fn observe(state: &AppState) -> Option<Value> {
    let answer = tokio::time::timeout(OBSERVE_TIMEOUT, state.observe.send(Observe)).await;
    answer.ok()?.ok()
}

/// Speech before a session's coverage means something: the last sentence is always on its way.
const MEANINGFUL_SPEECH_MS: u64 = 30_000;

/// 1 when nobody has spoken for long enough.
fn lowest_coverage(tree: &Value) -> f64 {
    let sessions = tree["sessionRegistry"]["state"]["sessions"].as_array().into_iter().flatten();
    let counts = |audio: &&Value| audio["spokenMs"].as_u64().is_some_and(|ms| ms >= MEANINGFUL_SPEECH_MS);
    let audio = sessions.map(|session| &session["audio"]).filter(counts);
    audio.filter_map(|audio| audio["coverage"].as_f64()).fold(1.0, f64::min)
}

/// Those of every session; they are shown without any session, too.
const EDGES: [&str; 3] = ["tags", "pcm", "room"];

/// Sums the `"edges": {name: depth}` objects of the tree into the gauge.
fn set_edge_depths(state: &AppState, tree: &Value) {
    let mut depths = EDGES.map(|edge| (edge, 0)).into();
    sum_edges(tree, &mut depths);
    let gauge = &state.metrics.edge_depth;
    // An edge without any session left would otherwise keep its last depth.
    gauge.reset();
    for (edge, depth) in depths {
        gauge.with_label_values(&[edge]).set(depth);
    }
}

fn sum_edges<'a>(tree: &'a Value, depths: &mut BTreeMap<&'a str, i64>) {
    match tree {
        Value::Object(fields) => {
            for (edge, depth) in fields.get("edges").and_then(Value::as_object).into_iter().flatten() {
                *depths.entry(edge).or_default() += depth.as_i64().unwrap_or(0);
            }
            fields.iter().filter(|(name, _)| *name != "edges").for_each(|(_, value)| sum_edges(value, depths));
        }
        Value::Array(items) => items.iter().for_each(|item| sum_edges(item, depths)),
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn the_session_with_least_coverage_counts() {
        let audio = |coverage, spoken| json!({"audio": {"coverage": coverage, "spokenMs": spoken}});
        let sessions = json!([audio(0.9, 60_000), audio(0.25, 30_000), audio(0.1, 29_999), {}]);
        assert_eq!(lowest_coverage(&json!({"sessionRegistry": {"state": {"sessions": sessions}}})), 0.25);
        assert_eq!(lowest_coverage(&json!({})), 1.0);
    }

    #[test]
    fn edge_depths_are_summed_over_the_tree() {
        let tree = json!({"sessions": [
            {"edges": {"tags": 2, "room": 1}},
            {"children": {"x": {"edges": {"tags": 5}}}},
        ]});
        let mut depths = BTreeMap::new();
        sum_edges(&tree, &mut depths);
        assert_eq!(depths, BTreeMap::from([("room", 1), ("tags", 7)]));
    }
}
