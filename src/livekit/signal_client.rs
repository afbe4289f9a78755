//! The WebSocket of LiveKit's signalling: GET /rtc, and GET /rtc/validate for the reason of a refusal.
//!
//! HTTP/1.1 only (an upgrade needs it) and no redirects. The token goes in a header: a URL ends in logs. No error holds it.

use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use actix_web::http::{StatusCode, Version, header};
use awc::error::{SendRequestError, WsClientError, WsProtocolError};
use awc::ws::{Frame, Message};
use futures_util::stream::LocalBoxStream;
use futures_util::{Sink, StreamExt};

use super::signal::MAX_MESSAGE_BYTES;
use crate::config::Secret;

/// Protocol 16: two peer connections, channels that the server opens. The server knows this client by the name of
/// LiveKit's own for Rust, whose ways it has.
const QUERY: &str = "protocol=16&auto_subscribe=0&adaptive_stream=0&sdk=rust&version=0.7.0";
/// Longest wait for the upgrade: a server that has to find a node for the room takes some seconds.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(15);
const VALIDATE_TIMEOUT: Duration = Duration::from_secs(5);
const MAX_REASON_BYTES: usize = 16 << 10;
const MAX_REASON_CHARS: usize = 200;

/// The writing half.
pub type Outlet = Pin<Box<dyn Sink<Message, Error = WsProtocolError>>>;
/// The reading half.
pub type Inlet = LocalBoxStream<'static, Result<Frame, WsProtocolError>>;

/// Why there is no connection.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ConnectError {
    #[error("LiveKit does not let us in, status {status}: {reason}")]
    Refused { status: u16, reason: String },
    #[error("LiveKit has no such room")]
    NoRoom,
    #[error("LiveKit at LIVEKIT_URL cannot be reached: {0}")]
    Unreachable(String),
    #[error("LiveKit gave no answer in time")]
    Timeout,
}

/// Opens signalling connections. Bound to the thread it was made on.
pub struct SignalClient {
    http: awc::Client,
    url: String,
}

impl SignalClient {
    /// `url` is by http or https; `tls` speaks HTTP/1.1 alone.
    pub fn new(url: &str, tls: Arc<rustls::ClientConfig>) -> Self {
        // In this order, and not at the client: a version makes the connector forget its authorities.
        let connector = awc::Connector::new().max_http_version(Version::HTTP_11).rustls_0_23(tls);
        let http = awc::Client::builder()
            .connector(connector.timeout(CONNECT_TIMEOUT))
            .disable_redirects()
            .timeout(CONNECT_TIMEOUT)
            .add_default_header((header::USER_AGENT, concat!("stenocast/", env!("CARGO_PKG_VERSION"))))
            .finish();
        Self { http, url: url.trim_end_matches('/').to_owned() }
    }

    /// Connects; the first message is still to come.
    pub async fn connect(&self, token: &Secret) -> Result<(Outlet, Inlet), ConnectError> {
        let socket = self.http.ws(format!("{}/rtc?{QUERY}", self.url));
        let socket = socket.bearer_auth(token.expose()).max_frame_size(MAX_MESSAGE_BYTES);
        match tokio::time::timeout(CONNECT_TIMEOUT, socket.connect()).await {
            Err(_) => Err(ConnectError::Timeout),
            Ok(Ok((_, framed))) => {
                let (outlet, inlet) = framed.split();
                Ok((Box::pin(outlet), inlet.boxed_local()))
            }
            Ok(Err(WsClientError::InvalidResponseStatus(StatusCode::NOT_FOUND))) => Err(ConnectError::NoRoom),
            Ok(Err(WsClientError::InvalidResponseStatus(status))) => Err(self.refused(status, token).await),
            Ok(Err(WsClientError::SendRequest(error))) => Err(unsent(&error)),
            Ok(Err(_)) => Err(ConnectError::Unreachable("the answer is no WebSocket upgrade".to_owned())),
        }
    }

    /// The answer to an upgrade has no text; the other route has.
    async fn refused(&self, status: StatusCode, token: &Secret) -> ConnectError {
        let request = self.http.get(format!("{}/rtc/validate?{QUERY}", self.url)).bearer_auth(token.expose());
        let asked = async {
            let mut reply = request.send().await.ok()?;
            let body = reply.body().limit(MAX_REASON_BYTES).await.ok()?;
            (!reply.status().is_success()).then(|| String::from_utf8_lossy(&body).into_owned())
        };
        let reason = tokio::time::timeout(VALIDATE_TIMEOUT, asked).await.ok().flatten().unwrap_or_default();
        let reason = reason.replace(token.expose(), "***"); // an answer may repeat what it was sent
        let reason = reason.chars().filter(|c| !c.is_control()).take(MAX_REASON_CHARS).collect();
        ConnectError::Refused { status: status.as_u16(), reason }
    }
}

fn unsent(error: &SendRequestError) -> ConnectError {
    match error {
        SendRequestError::Timeout | SendRequestError::Connect(awc::error::ConnectError::Timeout) => {
            ConnectError::Timeout
        }
        SendRequestError::Connect(error) => {
            ConnectError::Unreachable(error.to_string().chars().take(MAX_REASON_CHARS).collect())
        }
        _ => ConnectError::Unreachable("the connection broke off".to_owned()),
    }
}
