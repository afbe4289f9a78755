//! `GET /api/realtime/events`: the same feed as Server-Sent Events, for readers without WebSocket.
//!
//! Each message is one `data:` line; durable entries have the id `{epoch}:{seq}`, which comes back as `Last-Event-ID`.
//! Before the end comes an event named `close` with the code and reason that a WebSocket would have.

use std::fmt::Write;
use std::ops::RangeInclusive;

use actix_web::http::header;
use actix_web::{HttpRequest, HttpResponse, HttpResponseBuilder, web};
use bytes::Bytes;
use chrono::Utc;
use futures_util::StreamExt;
use futures_util::stream;
use serde_json::json;
use tokio::time::Instant;

use super::admission::{admit, counted};
use super::error::ApiError;
use super::state::AppState;
use crate::livekit::token::Claims;
use crate::transcript::Epoch;
use crate::viewers::feed::{self, close_code};
use crate::viewers::{Admission, Delivery, FeedItem, Resume};

/// After how many milliseconds a browser connects again; random, so that a server that comes back is not met by all at once.
const RETRY_MS: RangeInclusive<u32> = 1000..=3000;

pub async fn events(req: HttpRequest, state: web::Data<AppState>) -> Result<HttpResponse, ApiError> {
    counted(&state, open(&req, &state))
}

fn open(req: &HttpRequest, state: &web::Data<AppState>) -> Result<HttpResponse, ApiError> {
    if state.is_draining() {
        // A browser gives up for good at any other answer, and this server is back in a moment.
        let end = close_event(close_code::DRAINING, "the server is stopping");
        return Ok(event_stream().force_close().body(retry() + &end));
    }
    let resume = last_event_id(req)?;
    let (claims, admission) = admit(req, state, |asked| resume.unwrap_or(asked))?;
    let events = Events::new(state, &claims, admission);
    let head = stream::once(async { Ok(Bytes::from(retry())) });
    let body = stream::unfold(events, async |mut events: Events| Some((events.next().await?, events)));
    Ok(event_stream().streaming(head.chain(body)))
}

fn event_stream() -> HttpResponseBuilder {
    let mut response = HttpResponse::Ok();
    response
        .insert_header((header::CONTENT_TYPE, "text/event-stream; charset=utf-8"))
        // A proxy that compresses would collect events, and so would nginx by itself.
        .insert_header((header::CACHE_CONTROL, "no-cache, no-transform"))
        .insert_header(("X-Accel-Buffering", "no"));
    response
}

fn retry() -> String {
    format!("retry: {}\n\n", rand::random_range(RETRY_MS))
}

fn close_event(code: u16, reason: &str) -> String {
    format!("event: close\ndata: {}\n\n", json!({"code": code, "reason": reason}))
}

fn last_event_id(req: &HttpRequest) -> Result<Option<Resume>, ApiError> {
    let Some(value) = req.headers().get("Last-Event-ID").filter(|value| !value.is_empty()) else {
        return Ok(None);
    };
    let parse = |text: &str| {
        let (epoch, seq) = text.split_once(':')?;
        Some(Resume { epoch: Some(Epoch::parse_str(epoch).ok()?), after: Some(seq.parse().ok()?) })
    };
    let resume = value.to_str().ok().and_then(parse);
    let refusal = || ApiError::bad_request("bad_parameter", "Last-Event-ID is not {epoch}:{seq}");
    resume.map(Some).ok_or_else(refusal)
}

struct Events {
    admission: Admission,
    delivery: Delivery,
    /// Time of the next ping, unless something else is said before.
    ping_at: Instant,
    expires: Instant,
    closes: prometheus::IntCounterVec,
    over: bool,
}

impl Events {
    fn new(state: &AppState, claims: &Claims, admission: Admission) -> Self {
        let ping_at = Instant::now() + state.config.viewers.ping;
        let expires = Instant::now() + claims.remaining(Utc::now());
        let delivery = Delivery::new(&state.metrics, &admission.room);
        Self { admission, delivery, ping_at, expires, closes: state.metrics.ws_closed_total.clone(), over: false }
    }

    /// The next bytes; polled only while the socket takes them.
    async fn next(&mut self) -> Option<Result<Bytes, actix_web::Error>> {
        self.admission.viewer.polled();
        if self.over {
            return None;
        }
        tokio::select! {
            () = tokio::time::sleep_until(self.expires) => {
                let reason = "the token has expired".to_owned();
                Some(Ok(self.write(vec![FeedItem::Close { code: close_code::TOKEN_EXPIRED, reason }])))
            }
            () = tokio::time::sleep_until(self.ping_at) => {
                let json = feed::ping(&self.admission.room, &self.admission.viewer);
                Some(Ok(self.write(vec![FeedItem::Unnumbered { json, stamp: None }])))
            }
            items = self.admission.feed.next() => Some(Ok(self.write(items?))),
        }
    }

    fn write(&mut self, items: Vec<FeedItem>) -> Bytes {
        self.ping_at = Instant::now() + self.admission.viewer.ping_interval();
        let mut text = String::new();
        // Writing to a string cannot fail.
        for item in items {
            let _ = match item {
                FeedItem::Unnumbered { json, stamp } => {
                    self.delivery.sent(stamp, None);
                    write!(text, "data: {json}\n\n")
                }
                FeedItem::Entry { epoch, seq, json, stamp } => {
                    self.delivery.sent(stamp, Some((epoch, seq)));
                    write!(text, "id: {epoch}:{seq}\ndata: {json}\n\n")
                }
                FeedItem::Close { code, reason } => {
                    self.over = true;
                    self.closes.with_label_values(&[&code.to_string()]).inc();
                    write!(text, "{}", close_event(code, &reason))
                }
            };
        }
        text.into()
    }
}
