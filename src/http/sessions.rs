//! `GET /api/sessions` and `GET /api/sessions/{slug}/transcripts`: what was said, in pages.

use std::collections::HashMap;

use actix_web::http::StatusCode;
use actix_web::http::header;
use actix_web::{HttpRequest, HttpResponse, web};
use serde::Serialize;
use serde_json::json;

use super::auth::{bearer, is_admin, viewer, viewer_token};
use super::error::ApiError;
use super::query::Params;
use super::selection::Selection;
use super::state::AppState;
use crate::livekit::token::TokenError;
use crate::transcript::reader::bounded;
use crate::transcript::{Cursor, Epoch, Read, Room, SessionInfo, Slug, TranscriptLog};

const MAX_PAGE: u64 = 1000;
const DEFAULT_PAGE: u64 = 100;
/// Entries that one request looks at for those that it selects.
const MAX_LOOKED_AT: usize = 10_000;

#[derive(Serialize)]
struct Listed {
    #[serde(flatten)]
    info: SessionInfo,
    /// True while it is in this node's memory and has not ended.
    live: bool,
    viewers: usize,
}

/// All sessions for operators, those of its own room for a viewer; newest first.
pub async fn sessions(req: HttpRequest, state: web::Data<AppState>) -> Result<HttpResponse, ApiError> {
    let params = Params::of(&req)?;
    let limit = params.number("limit", 1..=MAX_PAGE)?.unwrap_or(DEFAULT_PAGE) as usize;
    let before = params.epoch("before")?;
    let slug = match reader_of(&state, &req, &params)? {
        Some(room) => Some(room),
        None => params.get("session").map(Slug::parse).transpose()?,
    };
    let stored = bounded(state.transcripts.sessions(slug.clone(), before, limit)).await?;
    let mut listed = list(&state, stored, slug.as_ref(), before);
    listed.sort_by_key(|one| std::cmp::Reverse(one.info.epoch));
    listed.truncate(limit);
    let next = (listed.len() == limit).then(|| listed.last().map(|one| one.info.epoch)).flatten();
    Ok(no_store().json(json!({"sessions": listed, "next": next})))
}

/// Merges what is stored with what this node knows better: a session that has only begun may not be in the database yet,
/// and the log knows how far it is.
fn list(state: &AppState, stored: Vec<SessionInfo>, slug: Option<&Slug>, before: Option<Epoch>) -> Vec<Listed> {
    let mut found: HashMap<Epoch, SessionInfo> = stored.into_iter().map(|info| (info.epoch, info)).collect();
    let rooms = state.directory.rooms();
    let wanted = rooms.iter().filter(|room| slug.is_none_or(|slug| slug == room.slug()));
    let logs: HashMap<Epoch, (&Room, std::sync::Arc<TranscriptLog>)> = wanted
        .filter_map(|room| Some((&**room, room.current()?)))
        .map(|(room, log)| (log.epoch(), (room, log)))
        .collect();
    for (epoch, (_, log)) in logs.iter().filter(|(epoch, _)| before.is_none_or(|before| **epoch < before)) {
        let info = found.entry(*epoch).or_insert_with(|| begun(log));
        info.seq = info.seq.max(log.last_seq());
        info.status = log.status();
    }
    found.into_values().map(|info| listed(info, &logs)).collect()
}

fn listed(info: SessionInfo, logs: &HashMap<Epoch, (&Room, std::sync::Arc<TranscriptLog>)>) -> Listed {
    let here = logs.get(&info.epoch);
    let live = here.is_some_and(|(_, log)| !log.is_closed());
    Listed { info, live, viewers: here.map_or(0, |(room, _)| room.viewers_anywhere()) }
}

fn begun(log: &TranscriptLog) -> SessionInfo {
    let started = log.epoch().get_timestamp().and_then(|at| {
        let (seconds, nanos) = at.to_unix();
        chrono::DateTime::from_timestamp(i64::try_from(seconds).ok()?, nanos)
    });
    SessionInfo {
        session: log.slug().clone(),
        epoch: log.epoch(),
        started_at: started.unwrap_or_default(),
        ended_at: None,
        status: log.status(),
        seq: log.last_seq(),
    }
}

/// None for an operator, who may read all; else the one room of the viewer's token.
fn reader_of(state: &AppState, req: &HttpRequest, params: &Params) -> Result<Option<Slug>, ApiError> {
    if is_admin(state, req) {
        return Ok(None);
    }
    let token = viewer_token(req, params).ok_or(TokenError::Missing)?;
    let claims = state.keys.verify(token)?;
    let room = Slug::parse(&claims.video.room).map_err(|_| TokenError::OtherRoom)?;
    claims.may_view(&room)?;
    if params.get("session").is_some_and(|asked| asked != room.as_str()) {
        return Err(TokenError::OtherRoom.into());
    }
    Ok(Some(room))
}

/// One page of a session's durable entries, or of a selection of them, from the log's ring where it reaches back, else
/// from the database.
pub async fn transcripts(
    req: HttpRequest,
    path: web::Path<String>,
    state: web::Data<AppState>,
) -> Result<HttpResponse, ApiError> {
    let slug = Slug::parse(&path)?;
    let params = Params::of(&req)?;
    let epoch = params.epoch("epoch")?;
    let after = params.after()?.unwrap_or(0);
    let limit = params.number("limit", 1..=MAX_PAGE)?.unwrap_or(DEFAULT_PAGE) as usize;
    let selection = Selection::of(&params)?;
    if bearer(&req).is_none() || !is_admin(&state, &req) {
        viewer(&state, &req, &params, &slug)?;
    }
    let room = state.directory.get(&slug);
    let log = room.and_then(|room| match epoch {
        Some(epoch) => room.log_of(epoch),
        None => room.current(),
    });
    let epoch = match &log {
        Some(log) => Some(log.epoch()),
        None => stored_epoch(&state, &slug, epoch).await?,
    };
    let (entries, next) = match epoch {
        Some(epoch) => selected(&state, log.as_deref(), epoch, after, limit, &selection).await?,
        None => (Page::new(), None),
    };
    Ok(no_store().content_type("application/json").body(page_json(&slug, epoch, &entries, next)))
}

/// The entries are JSON already.
fn page_json(slug: &Slug, epoch: Option<Epoch>, entries: &Page, next: Option<u64>) -> String {
    let (slug, epoch, next) = (json!(slug), json!(epoch), json!(next));
    let joined = entries.iter().map(|(_, json)| json.as_str()).collect::<Vec<_>>().join(",");
    format!(r#"{{"session":{slug},"epoch":{epoch},"entries":[{joined}],"next":{next}}}"#)
}

type Page = Vec<(u64, String)>;

/// At most `limit` selected entries after `after`, and the number after which to go on: None at the end of what there
/// is.
async fn selected(
    state: &AppState,
    log: Option<&TranscriptLog>,
    epoch: Epoch,
    mut after: u64,
    limit: usize,
    selection: &Selection,
) -> Result<(Page, Option<u64>), ApiError> {
    let most = if selection.is_everything() { limit } else { MAX_PAGE as usize };
    let (mut found, mut looked_at) = (Page::new(), 0);
    loop {
        let page = match log {
            Some(log) => page_of(state, log, after, most).await?,
            None => read_store(state, epoch, after, most).await?,
        };
        let is_last = page.len() < most;
        looked_at += page.len();
        for (seq, json) in page {
            after = seq;
            if selection.takes(&json) {
                found.push((seq, json));
            }
            if found.len() == limit {
                return Ok((found, Some(after)));
            }
        }
        if is_last || looked_at >= MAX_LOOKED_AT {
            return Ok((found, (!is_last).then_some(after)));
        }
    }
}

async fn page_of(state: &AppState, log: &TranscriptLog, after: u64, limit: usize) -> Result<Page, ApiError> {
    let mut page = Page::new();
    let mut after = after;
    if after < log.readable_after() {
        page = read_store(state, log.epoch(), after, limit).await?;
        after = page.last().map_or(after, |(seq, _)| *seq);
    }
    if page.len() < limit {
        match log.read(&mut Cursor::after(after), limit - page.len()) {
            Read::Items(items) => {
                page.extend(items.into_iter().filter_map(|item| Some((item.seq?, item.json.to_string()))));
            }
            // The database lags behind the ring: an end here would look like the end of the session.
            Read::FellOff { .. } => {
                return Err(ApiError::unavailable(
                    "history_late",
                    "the entries are not in the database yet; try again",
                ));
            }
        }
    }
    Ok(page)
}

/// The session that was asked for, else the room's latest; None where it has none.
async fn stored_epoch(state: &AppState, slug: &Slug, epoch: Option<Epoch>) -> Result<Option<Epoch>, ApiError> {
    let Some(epoch) = epoch else {
        let latest = bounded(state.transcripts.latest_session(slug.clone())).await?;
        return Ok(latest.map(|latest| latest.epoch));
    };
    let known = bounded(state.transcripts.session(epoch)).await?.filter(|info| info.session == *slug);
    let unknown = || ApiError::new(StatusCode::NOT_FOUND, "unknown_epoch", format!("{slug} has no session {epoch}"));
    known.map(|_| Some(epoch)).ok_or_else(unknown)
}

async fn read_store(state: &AppState, epoch: Epoch, after: u64, limit: usize) -> Result<Page, ApiError> {
    let entries = bounded(state.transcripts.transcripts(epoch, after, limit)).await?;
    Ok(entries.iter().filter_map(|entry| Some((entry.seq()?, entry.to_json().to_string()))).collect())
}

fn no_store() -> actix_web::HttpResponseBuilder {
    let mut response = HttpResponse::Ok();
    response.insert_header((header::CACHE_CONTROL, "no-store"));
    response
}
