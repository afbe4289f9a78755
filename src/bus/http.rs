//! The bus over HTTP: POST broadcast to one ws node, over connections that are kept.
//!
//! HTTP/1.1 only and no redirects (they would carry the token elsewhere). No error holds a token.

use std::sync::Arc;
use std::time::Duration;

use actix_web::http::{StatusCode, Version, header};
use awc::error::SendRequestError;
use futures_util::FutureExt;
use futures_util::future::LocalBoxFuture;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use serde_json::Value;

use super::wire::{HOLE, NODE_HEADER, NodeReports, PROTOCOL, PROTOCOL_HEADER, Reports, body};
use super::{Batch, Bus, Outcome};
use crate::config::{Secret, SplitConfig};

const BROADCAST_PATH: &str = "api/realtime/transcribe/broadcast";
const REPORTS_PATH: &str = "api/realtime/transcribe/reports";
const MAX_ANSWER_BYTES: usize = 4 << 20;
const MAX_ERROR_CHARS: usize = 200;
/// Longest wait that a `Retry-After` can ask for.
const MAX_RETRY_AFTER: Duration = Duration::from_secs(30);
/// A poll for reports is answered within this time, news or not.
const POLL_TIMEOUT: Duration = Duration::from_secs(20);
/// Refusals that mean one room, not the whole node.
const ROOM_CODES: [&str; 2] = ["too_many_sessions", "unavailable"];

/// Why `CA_FILE` cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum CaError {
    #[error("CA_FILE {path} cannot be read: {error}")]
    Unreadable { path: String, error: String },
    #[error("CA_FILE {0} holds no certificate; allowed: a PEM file with one or more")]
    Empty(String),
}

/// Certificate authorities that are trusted: the public ones, and those of `CA_FILE`.
pub fn trusted(config: &SplitConfig) -> Result<Arc<rustls::ClientConfig>, CaError> {
    let mut roots = rustls::RootCertStore { roots: webpki_roots::TLS_SERVER_ROOTS.to_vec() };
    if let Some(path) = &config.ca_file {
        let shown = path.display().to_string();
        let unreadable = |error: String| CaError::Unreadable { path: shown.clone(), error };
        let found = CertificateDer::pem_file_iter(path).map_err(|e| unreadable(e.to_string()))?;
        let certificates: Result<Vec<_>, _> = found.collect();
        let (added, _) = roots.add_parsable_certificates(certificates.map_err(|e| unreadable(e.to_string()))?);
        if added == 0 {
            return Err(CaError::Empty(shown));
        }
    }
    let mut tls = rustls::ClientConfig::builder().with_root_certificates(roots).with_no_client_auth();
    tls.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok(Arc::new(tls))
}

/// One ws node.
pub struct HttpBus {
    http: awc::Client,
    base_url: String,
    token: Secret,
    node: String,
    timeout: Duration,
}

impl HttpBus {
    pub fn new(base_url: &str, token: Secret, config: &SplitConfig, tls: Arc<rustls::ClientConfig>) -> Self {
        // In this order, and not at the client: a version makes the connector forget its authorities.
        let connector = awc::Connector::new().max_http_version(Version::HTTP_11).rustls_0_23(tls);
        let http = awc::Client::builder()
            .connector(connector.timeout(config.forward_timeout).limit(0))
            .disable_redirects()
            .timeout(config.forward_timeout)
            .add_default_header((header::USER_AGENT, concat!("stenocast/", env!("CARGO_PKG_VERSION"))))
            .finish();
        let base_url = base_url.trim_end_matches('/').to_owned();
        Self { http, base_url, token, node: config.node_id.clone(), timeout: config.forward_timeout }
    }

    fn headed(&self, request: awc::ClientRequest) -> awc::ClientRequest {
        request
            .bearer_auth(self.token.expose())
            .insert_header((PROTOCOL_HEADER, PROTOCOL))
            .insert_header((NODE_HEADER, self.node.as_str()))
    }

    async fn post(&self, batch: &Batch) -> Outcome {
        let request = self.headed(self.http.post(format!("{}/{BROADCAST_PATH}", self.base_url)));
        let body = body(batch, &[&batch.entries, &batch.interims]);
        let sent = request.insert_header((header::CONTENT_TYPE, "application/json")).send_body(body).await;
        let mut reply = match sent {
            Ok(reply) => reply,
            Err(error) => return unsent(&error),
        };
        let status = reply.status();
        let retry_after = reply.headers().get(header::RETRY_AFTER).and_then(|v| v.to_str().ok()?.parse().ok());
        let Ok(body) = reply.body().limit(MAX_ANSWER_BYTES).await else {
            return Outcome::Unsure("the answer broke off".to_owned());
        };
        understood(status, retry_after.map(Duration::from_secs), &body)
    }

    async fn poll(&self, after: u64) -> Result<Reports, Outcome> {
        let url = format!("{}/{REPORTS_PATH}?after={after}", self.base_url);
        let request = self.headed(self.http.get(url)).timeout(POLL_TIMEOUT);
        let mut reply = request.send().await.map_err(|error| unsent(&error))?;
        let status = reply.status();
        let body = reply.body().limit(MAX_ANSWER_BYTES).await;
        let body = body.map_err(|_| Outcome::Unsure("the answer broke off".to_owned()))?;
        if status != StatusCode::OK {
            return Err(understood(status, None, &body));
        }
        serde_json::from_slice(&body).map_err(|e| Outcome::Incompatible(format!("unreadable reports: {e}")))
    }
}

impl Bus for HttpBus {
    fn append<'a>(&'a self, batch: &'a Batch) -> LocalBoxFuture<'a, Outcome> {
        let late = |_| Outcome::Unsure(format!("no answer within {} ms", self.timeout.as_millis()));
        async move { tokio::time::timeout(self.timeout, self.post(batch)).await.unwrap_or_else(late) }.boxed_local()
    }

    fn reports(&self, after: u64) -> LocalBoxFuture<'_, Result<NodeReports, Outcome>> {
        let node = self.base_url.clone();
        async move { self.poll(after).await.map(|reports| NodeReports { node, reports }) }.boxed_local()
    }
}

fn unsent(error: &SendRequestError) -> Outcome {
    Outcome::Unsure(match error {
        SendRequestError::Connect(error) => format!("no connection: {error}"),
        SendRequestError::Timeout => "no answer in time".to_owned(),
        error => error.to_string(),
    })
}

/// Reads a node's answer to a post. Only those of our own shape count as its word: a proxy in between has others.
fn understood(status: StatusCode, retry_after: Option<Duration>, body: &[u8]) -> Outcome {
    let answer: Value = serde_json::from_slice(body).unwrap_or_default();
    let error = &answer["error"];
    let (code, message) = (error["code"].as_str(), error["message"].as_str().unwrap_or_default());
    let why: String = match code {
        Some(code) => format!("{status}, {code}: {message}").chars().take(MAX_ERROR_CHARS).collect(),
        None => format!("{status}, not in the words of this program"),
    };
    match (status, code) {
        (StatusCode::ACCEPTED, _) => match answer["seq"].as_u64() {
            Some(last_seq) => Outcome::Stored { last_seq },
            None => Outcome::Incompatible("the answer has no seq".to_owned()),
        },
        (StatusCode::CONFLICT, Some(_)) => match (answer["reason"].as_str(), answer["expected"].as_u64()) {
            // Of another conflict the number is that of another log.
            (Some(HOLE), Some(expected)) => Outcome::Refused { expected, why },
            _ => Outcome::Foreign(why),
        },
        (StatusCode::PAYLOAD_TOO_LARGE, _) => Outcome::TooLarge,
        (StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN, Some(_)) => Outcome::Denied(why),
        (StatusCode::SERVICE_UNAVAILABLE | StatusCode::TOO_MANY_REQUESTS, code) => {
            let room = code.is_some_and(|code| ROOM_CODES.contains(&code));
            Outcome::Full { retry_after: retry_after.map(|after| after.min(MAX_RETRY_AFTER)), room, why }
        }
        (StatusCode::BAD_REQUEST | StatusCode::UNPROCESSABLE_ENTITY, Some(_)) => Outcome::Incompatible(why),
        (status, None) if status.is_client_error() => Outcome::Incompatible(why),
        _ => Outcome::Unsure(why),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn answer(status: u16, body: &str) -> Outcome {
        understood(StatusCode::from_u16(status).unwrap(), Some(Duration::from_secs(99)), body.as_bytes())
    }

    #[test]
    fn a_nodes_answers_are_told_from_those_of_a_proxy() {
        let error = |code: &str| format!(r#"{{"error":{{"code":"{code}","message":"m"}},"expected":7}}"#);
        assert_eq!(answer(202, r#"{"accepted":1,"duplicates":0,"seq":5}"#), Outcome::Stored { last_seq: 5 });
        let hole = error("conflict").replace(r#""expected""#, r#""reason":"hole","expected""#);
        let other = hole.replace("hole", "has_origin");
        assert!(matches!(answer(409, &hole), Outcome::Refused { expected: 7, .. }));
        assert!(matches!(answer(409, &other), Outcome::Foreign(_)), "the number is that of another log");
        assert!(matches!(answer(409, &error("conflict")), Outcome::Foreign(_)));
        assert!(matches!(answer(401, &error("token_invalid")), Outcome::Denied(_)));
        assert!(matches!(answer(422, &error("invalid_field")), Outcome::Incompatible(_)));
        assert!(matches!(answer(503, &error("draining")), Outcome::Full { room: false, .. }));
        assert!(matches!(answer(503, &error("too_many_sessions")), Outcome::Full { room: true, .. }));
        assert_eq!(answer(413, ""), Outcome::TooLarge);
        let Outcome::Full { retry_after, .. } = answer(503, "busy") else { panic!("a proxy's 503 is one, too") };
        assert_eq!(retry_after, Some(MAX_RETRY_AFTER));
        assert!(matches!(answer(502, "<html>"), Outcome::Unsure(_)));
        assert!(matches!(answer(404, "<html>"), Outcome::Incompatible(_)), "there is no stenocast at this address");
        assert!(matches!(answer(200, "{}"), Outcome::Unsure(_)));
    }
}
