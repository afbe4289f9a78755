//! CORS: which origins' pages may read answers (`CORS_ORIGINS`).

use actix_cors::Cors;
use actix_web::http::{Method, header};

use crate::config::AuthConfig;

/// Lets the configured origins in; none by default.
pub(super) fn of(auth: &AuthConfig) -> Cors {
    let base = Cors::default()
        .allowed_methods([Method::GET, Method::POST])
        // Tracing libraries add headers of their own to every request.
        .allow_any_header()
        .expose_headers([header::RETRY_AFTER])
        .max_age(3600);
    if auth.cors_origins.iter().any(|origin| origin == "*") {
        return base.allow_any_origin().send_wildcard();
    }
    auth.cors_origins.iter().fold(base, |cors, origin| cors.allowed_origin(origin))
}
