//! HTTP and WebSocket to the recogniser: POST /v2/live, then the socket that it names.
//!
//! HTTP/1.1 only (a WebSocket upgrade needs it, and TLS would otherwise agree on HTTP/2), no redirects (they would carry
//! the key elsewhere). URLs of recogniser sessions hold a token, so no error holds a URL.

use std::pin::Pin;
use std::time::Duration;

use actix_web::http::{Uri, Version, header};
use awc::error::{ConnectError, SendRequestError, WsClientError, WsProtocolError};
use awc::ws::{Frame, Message};
use chrono::Utc;
use futures_util::stream::LocalBoxStream;
use futures_util::{Sink, StreamExt};
use serde_json::{Map, Value, json};

use super::lenient::{self, Odd};
use super::policy::Fault;
use super::wire::{KEY_HEADER, LanguageConfig, LiveRequest, MessagesConfig};
use crate::config::{Secret, SttConfig};

/// Largest message taken: `post_final_transcript` of three hours with words is about 2 MB.
pub const MAX_MESSAGE_BYTES: usize = 8 << 20;
const MAX_REPLY_BYTES: usize = 64 << 10;
pub const MAX_ERROR_CHARS: usize = 200;

/// The writing half of an open WebSocket.
pub type Outlet = Pin<Box<dyn Sink<Message, Error = WsProtocolError>>>;
/// The reading half.
pub type Inlet = LocalBoxStream<'static, Result<Frame, WsProtocolError>>;

/// Speaks to one recogniser. Bound to the thread it was made on.
#[derive(Clone)]
pub struct Client {
    http: awc::Client,
    request: LiveRequest,
    region: Option<String>,
    timeout: Duration,
}

impl Client {
    /// `timeout` is for each of: the whole answer to the POST, the WebSocket upgrade.
    pub fn new(stt: &SttConfig, timeout: Duration) -> Self {
        let http = awc::Client::builder()
            .max_http_version(Version::HTTP_11)
            .disable_redirects()
            .timeout(timeout)
            .add_default_header((header::USER_AGENT, concat!("stenocast/", env!("CARGO_PKG_VERSION"))))
            .finish();
        Self { http, request: live_request(stt), region: stt.region.clone(), timeout }
    }

    /// Begins a recogniser session: its id, and its URL, which holds the token.
    pub async fn open(&self, base_url: &str, key: Option<&Secret>) -> Result<(String, Secret), Fault> {
        let answer = tokio::time::timeout(self.timeout, self.post(base_url, key));
        answer.await.unwrap_or(Err(Fault::Timeout))
    }

    async fn post(&self, base_url: &str, key: Option<&Secret>) -> Result<(String, Secret), Fault> {
        let base = base_url.trim_end_matches('/');
        let region = self.region.as_ref().map_or(String::new(), |r| format!("?region={r}"));
        let mut request = self.http.post(format!("{base}/v2/live{region}"));
        if let Some(key) = key {
            request = request.insert_header((KEY_HEADER, key.expose())); // the only authentication there is
        }
        let mut reply = request.send_json(&self.request).await.map_err(send_fault)?;
        let body = reply.body().limit(MAX_REPLY_BYTES).await;
        let body = body.map_err(|_| Fault::Network("the answer broke off".to_owned()))?;
        if !reply.status().is_success() {
            let retry_after = reply.headers().get(header::RETRY_AFTER).and_then(|v| retry_after(v.to_str().ok()?));
            return Err(Fault::from_status(reply.status().as_u16(), retry_after, error_text(&body)));
        }
        let (id, url) = session_of(&body)?;
        Ok((id, socket_url(base, &url)?))
    }

    /// Connects to a session, new or not.
    pub async fn connect(&self, url: &Secret) -> Result<(Outlet, Inlet), Fault> {
        let socket = self.http.ws(url.expose()).max_frame_size(MAX_MESSAGE_BYTES);
        let connected = tokio::time::timeout(self.timeout, socket.connect()).await;
        let (_, framed) = connected.map_err(|_| Fault::Timeout)?.map_err(upgrade_fault)?;
        let (outlet, inlet) = framed.split();
        Ok((Box::pin(outlet), inlet.boxed_local()))
    }
}

/// The request for a session.
fn live_request(stt: &SttConfig) -> LiveRequest {
    let mut processing = Map::new();
    if !stt.vocabulary.is_empty() {
        processing.insert("custom_vocabulary".into(), Value::Bool(true));
        processing.insert("custom_vocabulary_config".into(), json!({ "vocabulary": stt.vocabulary }));
    }
    if !stt.translate_to.is_empty() {
        processing.insert("translation".into(), Value::Bool(true));
        processing.insert("translation_config".into(), json!({ "target_languages": stt.translate_to }));
    }
    LiveRequest {
        encoding: Some("wav/pcm".into()),
        bit_depth: Some(16),
        sample_rate: Some(16_000),
        channels: Some(1),
        model: Some(stt.model.clone()),
        endpointing: Some(stt.endpointing_s),
        maximum_duration_without_endpointing: Some(stt.max_utterance_s as f64),
        language_config: Some(LanguageConfig {
            languages: Some(stt.languages.clone()),
            code_switching: Some(stt.languages.len() != 1),
        }),
        realtime_processing: (!processing.is_empty()).then_some(processing),
        messages_config: Some(MessagesConfig {
            receive_partial_transcripts: Some(true),
            receive_final_transcripts: Some(true),
            receive_speech_events: Some(true),
            receive_realtime_processing_events: Some(!stt.translate_to.is_empty()),
            receive_post_processing_events: Some(false),
            receive_acknowledgments: Some(true),
            receive_errors: Some(true),
            receive_lifecycle_events: Some(true),
            ..MessagesConfig::default()
        }),
        ..LiveRequest::default()
    }
}

/// The id and URL of a new session. Only the URL is needed: without an id, log lines do without.
fn session_of(body: &[u8]) -> Result<(String, String), Fault> {
    let fault = |what: &str| Fault::Protocol(format!("the answer to POST is no session: {what}"));
    let answer = lenient::parse(body, &mut Odd::default()).map_err(|_| fault("it is no JSON"))?;
    let session = lenient::part(&answer, "data");
    let url = lenient::field(session, "url").and_then(Value::as_str).map(str::trim).filter(|url| !url.is_empty());
    let id = lenient::field(session, "id").and_then(lenient::id).unwrap_or_else(|| "unnamed".to_owned());
    let without = || match error_text(body) {
        text if text.is_empty() => fault("it has no url"),
        text => fault(&format!("it has no url, and says: {text}")),
    };
    Ok((id, url.ok_or_else(without)?.to_owned()))
}

/// Resolves the session's URL; it may be relative. A session that was asked for over TLS stays on TLS.
fn socket_url(base: &str, url: &str) -> Result<Secret, Fault> {
    let (scheme, authority) = match base.split_once("://") {
        Some(("https", rest)) => ("wss", rest.split('/').next().unwrap_or(rest)),
        Some((_, rest)) => ("ws", rest.split('/').next().unwrap_or(rest)),
        None => ("ws", base),
    };
    let url = if url.starts_with('/') { format!("{scheme}://{authority}{url}") } else { url.to_owned() };
    let parsed: Uri = url.parse().map_err(|_| Fault::Protocol("the session's URL is none".to_owned()))?;
    match (scheme, parsed.scheme_str()) {
        ("wss", Some("wss")) | ("ws", Some("ws" | "wss")) if parsed.host().is_some() => Ok(Secret::new(url)),
        _ => Err(Fault::Protocol("the session's URL has the wrong scheme".to_owned())),
    }
}

/// Seconds, or an HTTP date.
fn retry_after(text: &str) -> Option<Duration> {
    let seconds = text.trim().parse().ok().and_then(|seconds| Duration::try_from_secs_f64(seconds).ok());
    seconds.or_else(|| {
        let at = chrono::DateTime::parse_from_rfc2822(text.trim()).ok()?;
        (at.with_timezone(&Utc) - Utc::now()).to_std().ok()
    })
}

fn error_text(body: &[u8]) -> String {
    let body = lenient::parse(body, &mut Odd::default()).unwrap_or_default();
    let named = ["message", "error", "detail"].iter().find_map(|name| lenient::field(&body, name));
    let details = lenient::field(&body, "validation_errors");
    let texts: Vec<String> = named.into_iter().chain(details).flat_map(texts_of).collect();
    texts.join("; ").chars().filter(|c| !c.is_control()).take(MAX_ERROR_CHARS).collect()
}

/// NestJS writes a string or a list of strings; others an object with a message.
fn texts_of(value: &Value) -> Vec<String> {
    match value {
        Value::String(text) => vec![text.clone()],
        Value::Array(items) => items.iter().take(16).flat_map(texts_of).collect(),
        Value::Object(fields) => match fields.get("message") {
            Some(message @ Value::String(_)) => texts_of(message),
            _ => vec![value.to_string()],
        },
        Value::Null => Vec::new(),
        other => vec![other.to_string()],
    }
}

fn upgrade_fault(fault: WsClientError) -> Fault {
    match fault {
        WsClientError::InvalidResponseStatus(status) => Fault::from_upgrade(status.as_u16()),
        WsClientError::SendRequest(fault) => send_fault(fault),
        _ => Fault::Protocol("the WebSocket upgrade was answered wrongly".to_owned()),
    }
}

fn send_fault(fault: SendRequestError) -> Fault {
    match fault {
        SendRequestError::Timeout | SendRequestError::Connect(ConnectError::Timeout) => Fault::Timeout,
        SendRequestError::Connect(ConnectError::Io(fault)) => Fault::Network(fault.kind().to_string()),
        SendRequestError::Connect(ConnectError::Resolver(_) | ConnectError::NoRecords) => {
            Fault::Network("the host name cannot be resolved".to_owned())
        }
        SendRequestError::Url(_) => Fault::Protocol("the recogniser's URL is none".to_owned()),
        SendRequestError::Response(_) => Fault::Protocol("the answer is not HTTP".to_owned()),
        _ => Fault::Network("the connection broke off".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Config;
    use std::collections::HashMap;

    fn stt(pairs: &[(&str, &str)]) -> SttConfig {
        let values: HashMap<_, _> = pairs.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect();
        Config::load(&values, true).unwrap().stt
    }

    #[test]
    fn the_request_says_what_was_configured() {
        let config = [("GLADIA_LANGUAGES", "ru,en"), ("GLADIA_VOCABULARY", "Stenocast"), ("GLADIA_TRANSLATE_TO", "fr")];
        let body = serde_json::to_value(live_request(&stt(&config))).unwrap();
        assert_eq!(body["language_config"], json!({ "languages": ["ru", "en"], "code_switching": true }));
        assert_eq!(body["realtime_processing"]["custom_vocabulary_config"]["vocabulary"], json!(["Stenocast"]));
        assert_eq!(body["realtime_processing"]["translation_config"]["target_languages"], json!(["fr"]));
        assert_eq!(body["messages_config"]["receive_acknowledgments"], true);
        assert_eq!(body["messages_config"]["receive_post_processing_events"], false);
        assert_eq!((&body["endpointing"], &body["maximum_duration_without_endpointing"]), (&json!(0.3), &json!(15.0)));
        let plain = serde_json::to_value(live_request(&stt(&[("GLADIA_LANGUAGES", "en")]))).unwrap();
        assert_eq!(plain["language_config"]["code_switching"], false);
        assert!(plain.get("realtime_processing").is_none());
    }

    #[test]
    fn urls_are_resolved_and_never_leave_tls() {
        let url = |base, url| socket_url(base, url).map(|s| s.expose().to_owned());
        assert_eq!(url("https://a.io", "wss://b.io/v2/live?token=t").unwrap(), "wss://b.io/v2/live?token=t");
        assert_eq!(url("https://a.io/x", "/v2/live?token=t").unwrap(), "wss://a.io/v2/live?token=t");
        assert_eq!(url("http://127.0.0.1:9", "/v2/live?token=t").unwrap(), "ws://127.0.0.1:9/v2/live?token=t");
        for bad in ["ws://a.io/?token=s3cret", "http://a.io/?token=s3cret", "s3cret"] {
            let fault = url("https://a.io", bad).unwrap_err();
            assert!(!format!("{fault} {fault:?}").contains("s3cret"));
        }
    }

    #[test]
    fn retry_after_is_read_in_both_forms() {
        assert_eq!(retry_after("7"), Some(Duration::from_secs(7)));
        assert_eq!(retry_after(" 0.5 "), Some(Duration::from_millis(500)));
        assert_eq!([retry_after("-1"), retry_after("NaN"), retry_after("1e300")], [None; 3]);
        let at = (Utc::now() + chrono::Duration::seconds(60)).to_rfc2822();
        assert!(retry_after(&at).is_some_and(|d| d > Duration::from_secs(50)));
        assert_eq!(retry_after("soon"), None);
    }

    #[test]
    fn a_session_needs_no_more_than_its_url() {
        let (id, url) = ("s".to_owned(), "/v2/live?token=t".to_owned());
        for body in [
            json!({ "id": "s", "created_at": null, "url": url }),
            json!({ "id": "s", "created_at": 17, "url": format!(" {url}\n"), "region": {} }),
            json!({ "data": { "id": "s", "url": url } }),
        ] {
            assert_eq!(session_of(body.to_string().as_bytes()).unwrap(), (id.clone(), url.clone()), "{body}");
        }
        for (id, expected) in [(json!(7), "7"), (json!(null), "unnamed"), (json!({}), "unnamed")] {
            let body = json!({ "id": id, "url": url });
            assert_eq!(session_of(body.to_string().as_bytes()).unwrap().0, expected);
        }
        for body in ["", "<html>", "[]", "{}", r#"{"url":null}"#, r#"{"url":5}"#, r#"{"url":""}"#] {
            assert!(matches!(session_of(body.as_bytes()), Err(Fault::Protocol(_))), "{body}");
        }
    }

    #[test]
    fn an_error_is_read_in_every_shape() {
        for (body, expected) in [
            (json!({ "statusCode": "400", "message": ["a", "b"], "validation_errors": null }), "a; b"),
            (json!({ "message": null, "error": { "message": "quota" } }), "quota"),
            (json!({ "message": "no", "validation_errors": "one" }), "no; one"),
            (json!({ "message": "no", "validation_errors": [{ "field": 1 }] }), "no; {\"field\":1}"),
            (json!({ "detail": "nothing here" }), "nothing here"),
            (json!([]), ""),
        ] {
            assert_eq!(error_text(body.to_string().as_bytes()), expected, "{body}");
        }
    }

    #[test]
    fn an_error_is_cut_and_cleaned() {
        let body = json!({ "message": "no\u{7} way", "validation_errors": ["x".repeat(500)] });
        let text = error_text(body.to_string().as_bytes());
        assert!(text.starts_with("no way; xxx") && text.chars().count() == MAX_ERROR_CHARS);
        assert_eq!(error_text(b"<html>"), "");
    }
}
