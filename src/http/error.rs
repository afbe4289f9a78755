//! The one place where a fault becomes an HTTP answer: `{"error":{"code":"…","message":"…"}}`.

use std::fmt;

use actix_web::http::StatusCode;
use actix_web::http::header::{self, HeaderValue};
use actix_web::{HttpResponse, ResponseError};
use serde_json::json;

use crate::livekit::token::TokenError;
use crate::transcript::{ReadError, SlugError};

/// After how many seconds a refused client may try again.
const RETRY_AFTER_S: &str = "5";

/// An answer that is an error. The message is for the caller; it holds no secret.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ApiError {
    pub status: StatusCode,
    pub code: &'static str,
    pub message: String,
    /// The next sequence number that the log takes, for a 409.
    pub expected: Option<u64>,
    /// Which kind of conflict a 409 is.
    pub reason: Option<&'static str>,
    /// The methods that a resource has, for a 405.
    pub allow: Option<&'static str>,
}

impl ApiError {
    pub fn new(status: StatusCode, code: &'static str, message: impl Into<String>) -> Self {
        Self { status, code, message: message.into(), expected: None, reason: None, allow: None }
    }

    pub fn bad_request(code: &'static str, message: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, code, message)
    }

    /// `field` is the path of what was wrong, such as `transcripts[3].startMs`.
    pub fn field(field: &str, message: impl fmt::Display) -> Self {
        Self::new(StatusCode::UNPROCESSABLE_ENTITY, "invalid_field", format!("{field}: {message}"))
    }

    pub fn unauthorized(code: &'static str, message: impl Into<String>) -> Self {
        Self::new(StatusCode::UNAUTHORIZED, code, message)
    }

    pub fn unavailable(code: &'static str, message: impl Into<String>) -> Self {
        Self::new(StatusCode::SERVICE_UNAVAILABLE, code, message)
    }

    pub fn draining() -> Self {
        Self::unavailable("draining", "the server is stopping; connect again in a moment")
    }

    pub fn method(allow: &'static str) -> Self {
        let message = format!("the methods allowed here are {allow}");
        Self { allow: Some(allow), ..Self::new(StatusCode::METHOD_NOT_ALLOWED, "method_not_allowed", message) }
    }

    pub fn conflict(reason: &'static str, message: impl Into<String>, expected: u64) -> Self {
        Self { expected: Some(expected), reason: Some(reason), ..Self::new(StatusCode::CONFLICT, "conflict", message) }
    }
}

impl fmt::Display for ApiError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.code, self.message)
    }
}

impl std::error::Error for ApiError {}

impl ResponseError for ApiError {
    fn status_code(&self) -> StatusCode {
        self.status
    }

    fn error_response(&self) -> HttpResponse {
        let mut body = json!({"error": {"code": self.code, "message": self.message}});
        if let Some(expected) = self.expected {
            body["expected"] = expected.into();
        }
        if let Some(reason) = self.reason {
            body["reason"] = reason.into();
        }
        let mut response = HttpResponse::build(self.status).json(body);
        let headers = response.headers_mut();
        headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
        if let Some(allow) = self.allow {
            headers.insert(header::ALLOW, HeaderValue::from_static(allow));
        }
        match self.status {
            StatusCode::UNAUTHORIZED => headers.insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer")),
            StatusCode::TOO_MANY_REQUESTS | StatusCode::SERVICE_UNAVAILABLE => {
                headers.insert(header::RETRY_AFTER, HeaderValue::from_static(RETRY_AFTER_S))
            }
            StatusCode::UPGRADE_REQUIRED => headers.insert(header::UPGRADE, HeaderValue::from_static("websocket")),
            _ => return response,
        };
        response
    }
}

impl From<SlugError> for ApiError {
    fn from(error: SlugError) -> Self {
        Self::bad_request("bad_session", error.to_string())
    }
}

impl From<TokenError> for ApiError {
    fn from(error: TokenError) -> Self {
        let status = if error.is_forbidden() { StatusCode::FORBIDDEN } else { StatusCode::UNAUTHORIZED };
        Self::new(status, error.code(), error.to_string())
    }
}

impl From<ReadError> for ApiError {
    fn from(_: ReadError) -> Self {
        Self::unavailable("database_unavailable", "stored transcripts cannot be read now; try again")
    }
}
