//! Who is asking: tokens of viewers, the broadcaster and operators.

use actix_web::HttpRequest;
use actix_web::http::StatusCode;
use actix_web::http::header;
use sha2::{Digest, Sha256};
use subtle::ConstantTimeEq;

use super::error::ApiError;
use super::query::Params;
use super::state::AppState;
use crate::config::Secret;
use crate::livekit::token::{Claims, TokenError};
use crate::transcript::Slug;

/// The subprotocol that the server selects.
pub const SUBPROTOCOL: &str = "stenocast.v1";
/// Before the token in `Sec-WebSocket-Protocol`: browsers can set no other header on a WebSocket.
const TOKEN_PROTOCOL: &str = "bearer.";

const BEARER: &str = "bearer ";

/// The token of `Authorization: Bearer …`.
pub fn bearer(req: &HttpRequest) -> Option<&str> {
    let value = req.headers().get(header::AUTHORIZATION)?.to_str().ok()?;
    let (scheme, token) = value.split_once(' ')?;
    scheme.eq_ignore_ascii_case("bearer").then(|| token.trim())
}

/// The viewer's token: the first of header, subprotocol and query is the one that counts, good or bad.
pub fn viewer_token<'a>(req: &'a HttpRequest, params: &'a Params) -> Option<&'a str> {
    bearer(req).or_else(|| protocol_token(req)).or_else(|| params.get("token").map(bare))
}

/// People paste what stands in a header.
fn bare(token: &str) -> &str {
    let token = token.trim();
    match token.split_at_checked(BEARER.len()) {
        Some((scheme, rest)) if scheme.eq_ignore_ascii_case(BEARER) => rest.trim(),
        _ => token,
    }
}

fn protocol_token(req: &HttpRequest) -> Option<&str> {
    offered_protocols(req).find_map(|item| item.strip_prefix(TOKEN_PROTOCOL))
}

/// Items of `Sec-WebSocket-Protocol`, in one line or several.
pub fn offered_protocols(req: &HttpRequest) -> impl Iterator<Item = &str> {
    let lines = req.headers().get_all(header::SEC_WEBSOCKET_PROTOCOL);
    lines.filter_map(|line| line.to_str().ok()).flat_map(|line| line.split(',')).map(str::trim)
}

/// Verifies the request's token for reading `slug`.
pub fn viewer(state: &AppState, req: &HttpRequest, params: &Params, slug: &Slug) -> Result<Claims, ApiError> {
    let token = viewer_token(req, params).ok_or(TokenError::Missing)?;
    let claims = state.keys.verify(token)?;
    claims.may_view(slug)?;
    Ok(claims)
}

/// Compares in time that depends on neither value.
pub fn same_secret(given: &str, secret: &Secret) -> bool {
    let digest = |text: &str| Sha256::digest(text.as_bytes());
    digest(given).ct_eq(&digest(secret.expose())).into()
}

/// True when the request holds `ADMIN_TOKEN`.
pub fn is_admin(state: &AppState, req: &HttpRequest) -> bool {
    let secret = state.config.auth.admin_token.as_ref();
    bearer(req).zip(secret).is_some_and(|(given, secret)| same_secret(given, secret))
}

/// Headers that reverse proxies add.
const FORWARDED: [&str; 3] = ["forwarded", "x-forwarded-for", "x-real-ip"];

/// Lets operators in: by `ADMIN_TOKEN`, or from loopback where none is configured.
pub fn operator(state: &AppState, req: &HttpRequest) -> Result<(), ApiError> {
    if state.config.auth.admin_token.is_none() {
        // The socket's address: a forwarded header could be made up. That there is one means that a proxy on this
        // machine speaks for somebody elsewhere.
        let forwarded = FORWARDED.iter().any(|name| req.headers().contains_key(*name));
        let loopback = !forwarded && req.peer_addr().is_some_and(|peer| peer.ip().to_canonical().is_loopback());
        let refusal =
            || ApiError::new(StatusCode::FORBIDDEN, "loopback_only", "without ADMIN_TOKEN this answers loopback only");
        return loopback.then_some(()).ok_or_else(refusal);
    }
    if is_admin(state, req) {
        return Ok(());
    }
    Err(ApiError::unauthorized("token_invalid", "Authorization: Bearer with ADMIN_TOKEN is required"))
}

/// Lets those pass who may broadcast.
pub enum Broadcaster {
    /// Any room.
    Trusted,
    /// The room of which the token's holder is admin.
    RoomAdmin(Claims),
}

impl Broadcaster {
    /// Checked before the body is read; the room is known only after it.
    pub fn of(state: &AppState, req: &HttpRequest) -> Result<Self, ApiError> {
        let token = bearer(req).ok_or_else(|| {
            ApiError::unauthorized(
                "token_missing",
                "Authorization: Bearer with BROADCAST_TOKEN or a room admin's token is required",
            )
        })?;
        let secret = state.config.auth.broadcast_token.as_ref();
        if secret.is_some_and(|secret| same_secret(token, secret)) {
            return Ok(Self::Trusted);
        }
        Ok(Self::RoomAdmin(state.keys.verify(token)?))
    }

    /// Lets another node of ours pass.
    pub fn is_node(&self) -> Result<(), ApiError> {
        match self {
            Self::Trusted => Ok(()),
            Self::RoomAdmin(_) => {
                Err(ApiError::new(StatusCode::FORBIDDEN, "nodes_only", "this takes BROADCAST_TOKEN alone"))
            }
        }
    }

    pub fn may_broadcast(&self, slug: &Slug) -> Result<(), ApiError> {
        match self {
            Self::Trusted => Ok(()),
            Self::RoomAdmin(claims) => Ok(claims.may_admin(slug)?),
        }
    }
}
