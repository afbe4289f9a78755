//! `POST /drill`: breaks things on purpose, so that operators can see them mend. It exists only with `serve --drill`.
//!
//! | body | does |
//! |---|---|
//! | `{"crash":"gladia_bridge","session":"demo"}` | a panic in that actor of the session (`ws_client`: in one of its viewers); `session_registry`, `batch_writer`, `stt_process` and `rtmp_listener` need no session |
//! | `{"crash":"root"}` | a panic in the root of the actor tree: the process exits with 70 |
//! | `{"hogMs":20000}` | blocks one session thread: `/health` turns 503 after 10 s, then the process exits with 70 |

use std::time::Duration;

use actix_web::{HttpRequest, HttpResponse, web};
use serde::Deserialize;
use serde_json::json;

use super::auth::operator;
use super::error::ApiError;
use super::state::AppState;
use crate::actors::root::Drill;
use crate::actors::supervision::ChildKind;
use crate::transcript::Slug;

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Order {
    crash: Option<String>,
    session: Option<Slug>,
    hog_ms: Option<u64>,
}

pub async fn drill(req: HttpRequest, state: web::Data<AppState>, body: web::Bytes) -> Result<HttpResponse, ApiError> {
    operator(&state, &req)?;
    let Some(root) = &state.drill else {
        return Err(ApiError::new(actix_web::http::StatusCode::NOT_FOUND, "not_found", "start with --drill"));
    };
    let order: Order = serde_json::from_slice(&body).map_err(|e| ApiError::field("body", e))?;
    let drill = match (order.crash, order.hog_ms) {
        (Some(actor), None) if actor == "root" => Drill::CrashRoot,
        (Some(actor), None) => {
            let kind = ChildKind::ALL.into_iter().find(|kind| kind.as_str() == actor);
            let kind = kind.ok_or_else(|| ApiError::field("crash", format!("{actor:?} is no actor")))?;
            if let (ChildKind::WsClient, Some(slug)) = (kind, &order.session) {
                return Ok(HttpResponse::Ok().json(json!({ "done": state.viewers.crash_one(slug) })));
            }
            Drill::Crash { slug: order.session, kind }
        }
        (None, Some(ms)) => Drill::Hog(Duration::from_millis(ms)),
        _ => return Err(ApiError::field("body", "one of crash and hogMs is needed")),
    };
    let done = root.send(drill).await.unwrap_or(false);
    Ok(HttpResponse::Ok().json(json!({ "done": done })))
}
