//! `TrackActivity`: one socket on which a Track Egress brings one microphone's audio.
//!
//! - owns: a [`TrackMeter`](meter::TrackMeter); no audio is kept.
//! - receives: frames from the socket; [`Replaced`] when a newer socket brings the same track.
//! - sends: to the room, when voice begins and ends there, on our own arrival clock. The audio goes nowhere.
//! - ends: with its socket, when a newer one takes its place, when it floods or falls silent, and with the server.

pub mod intake;
pub mod meter;
pub mod sockets;

use std::sync::Arc;
use std::time::Duration;

use actix::prelude::*;
use actix_http::ws::Item;
use actix_web_actors::ws::{CloseCode, CloseReason, Message as Frame, ProtocolError, WebsocketContext};
use serde::Deserialize;
use tokio::sync::watch;
use tokio::time::Instant;

use self::intake::Intake;
use self::meter::{BYTES_PER_S, TrackMeter, VoiceReport};
use self::sockets::Place;
use super::supervision::ChildKind;
use crate::livekit::track_url::Microphone;
use crate::metrics::Metrics;
use crate::transcript::{Room, SpeakerSource, SpeakerUpdate};
use crate::viewers::feed::close_code;

/// Largest frame; an egress sends 1920 bytes.
pub const MAX_FRAME_BYTES: usize = 64 * 1024;
/// Closes a socket whose track has another one.
pub const REPLACED: u16 = 4009;
/// An egress pings every 30 s.
const SILENCE: Duration = Duration::from_secs(95);
const CHECK_INTERVAL: Duration = Duration::from_secs(15);
/// Audio may come so much faster than it was spoken, beyond this much at once.
const MOST_SPEED: f64 = 40.0;
const BURST_BYTES: f64 = 60.0 * BYTES_PER_S as f64;

/// A newer socket brings the same track.
#[derive(Debug, Clone, Copy, Message)]
#[rtype(result = "()")]
pub struct Replaced;

/// What a socket is given by whoever lets it in.
pub struct TrackParams {
    pub microphone: Microphone,
    pub room: Arc<Room>,
    pub place: Place,
    pub metrics: Arc<Metrics>,
    /// True once the server stops.
    pub draining: watch::Receiver<bool>,
    pub intake: Intake,
}

/// One track's socket.
pub struct TrackActivity {
    params: TrackParams,
    began: Instant,
    meter: TrackMeter,
    heard_at: Instant,
    /// Bytes that may come now.
    allowance: f64,
    is_text: bool,
    is_replaced: bool,
    _life: Life,
}

/// What an egress writes.
#[derive(Deserialize)]
struct Told {
    muted: Option<Muted>,
}

/// Older ones write it as text.
#[derive(Deserialize)]
#[serde(untagged)]
enum Muted {
    Flag(bool),
    Text(String),
}

impl Muted {
    fn is_set(&self) -> bool {
        match self {
            Self::Flag(is_set) => *is_set,
            Self::Text(text) => text == "true",
        }
    }
}

impl TrackActivity {
    pub fn new(params: TrackParams) -> Self {
        let now = Instant::now();
        let life = Life::begin(params.metrics.clone());
        Self {
            params,
            began: now,
            meter: TrackMeter::default(),
            heard_at: now,
            allowance: BURST_BYTES,
            is_text: false,
            is_replaced: false,
            _life: life,
        }
    }

    fn clock_ms(&self) -> i64 {
        self.began.elapsed().as_millis() as i64
    }

    /// False, and closed, when more comes than any egress sends.
    fn admit(&mut self, bytes: usize, ctx: &mut WebsocketContext<Self>) -> bool {
        let now = Instant::now();
        let since_s = now.duration_since(self.heard_at).as_secs_f64();
        self.heard_at = now;
        self.params.intake.took(bytes);
        self.allowance = (self.allowance + since_s * MOST_SPEED * BYTES_PER_S as f64).min(BURST_BYTES) - bytes as f64;
        let is_admitted = self.allowance >= 0.0;
        if !is_admitted {
            self.close(close_code::POLICY, "more audio than a microphone gives", ctx);
        }
        is_admitted
    }

    fn audio(&mut self, bytes: &[u8]) {
        self.params.metrics.track_audio_seconds_total.inc_by(bytes.len() as f64 / BYTES_PER_S as f64);
        let arrived_ms = self.clock_ms();
        for report in self.meter.feed(bytes, arrived_ms) {
            self.report(report);
        }
    }

    fn told(&mut self, text: &str) {
        match serde_json::from_str(text) {
            Ok(Told { muted: Some(muted) }) if muted.is_set() => self.silence(),
            Ok(Told { .. }) => {}
            Err(error) => {
                let Microphone { slug, track, .. } = &self.params.microphone;
                tracing::debug!(session = %slug, track, %error, "text of a track egress not understood");
            }
        }
    }

    fn silence(&mut self) {
        let now_ms = self.clock_ms();
        if let Some(report) = self.meter.silence(now_ms) {
            self.report(report);
        }
    }

    fn report(&self, report: VoiceReport) {
        let VoiceReport { is_active, level, at_ms } = report;
        let distance = Duration::from_millis(at_ms.unsigned_abs());
        let at = if at_ms < 0 { self.began.checked_sub(distance) } else { self.began.checked_add(distance) };
        self.params.room.report_speaker(SpeakerUpdate {
            identity: self.params.microphone.identity.clone(),
            name: None,
            active: is_active,
            level,
            at: at.unwrap_or_else(Instant::now),
            source: SpeakerSource::Track,
        });
    }

    fn check(&mut self, ctx: &mut WebsocketContext<Self>) {
        if self.heard_at.elapsed() > SILENCE {
            self.close(close_code::POLICY, "nothing was heard, not even a ping", ctx);
        }
    }

    fn close(&self, code: u16, reason: &str, ctx: &mut WebsocketContext<Self>) {
        let Microphone { slug, track, .. } = &self.params.microphone;
        self.params.metrics.track_closed_total.with_label_values(&[&code.to_string()]).inc();
        tracing::info!(session = %slug, track, code, reason, "track egress closed");
        ctx.close(Some(CloseReason { code: CloseCode::from(code), description: Some(reason.to_owned()) }));
        ctx.stop();
    }
}

impl Actor for TrackActivity {
    type Context = WebsocketContext<Self>;

    fn started(&mut self, ctx: &mut Self::Context) {
        let Microphone { slug, track, identity } = &self.params.microphone;
        tracing::info!(session = %slug, track, identity, "track egress connected");
        self.params.place.take(ctx.address());
        ctx.run_interval(CHECK_INTERVAL, Self::check);
        let mut draining = self.params.draining.clone();
        let drained = async move {
            let _ = draining.wait_for(|draining| *draining).await;
        };
        ctx.spawn(drained.into_actor(self).map(|(), this, ctx| this.close(close_code::DRAINING, "draining", ctx)));
    }

    fn stopped(&mut self, _: &mut Self::Context) {
        // The newer socket knows whether voice goes on.
        if !self.is_replaced {
            self.silence();
        }
    }
}

impl Handler<Replaced> for TrackActivity {
    type Result = ();

    fn handle(&mut self, _: Replaced, ctx: &mut Self::Context) {
        self.is_replaced = true;
        self.close(REPLACED, "a newer connection brings this track", ctx);
    }
}

impl StreamHandler<Result<Frame, ProtocolError>> for TrackActivity {
    fn handle(&mut self, frame: Result<Frame, ProtocolError>, ctx: &mut Self::Context) {
        let frame = match frame {
            Ok(frame) => frame,
            Err(ProtocolError::Overflow) => return self.close(close_code::TOO_BIG, "message too big", ctx),
            Err(_) if self.params.intake.is_full() => return self.close(close_code::TOO_BIG, "message too big", ctx),
            Err(_) if self.params.intake.has_failed() => return ctx.stop(),
            Err(_) => return self.close(close_code::PROTOCOL, "not the WebSocket protocol", ctx),
        };
        match frame {
            Frame::Binary(bytes) if self.admit(bytes.len(), ctx) => self.audio(&bytes),
            Frame::Text(text) if self.admit(text.len(), ctx) => self.told(&text),
            Frame::Continuation(item) => self.part(item, ctx),
            Frame::Ping(payload) if self.admit(payload.len(), ctx) => ctx.pong(&payload),
            Frame::Pong(payload) => self.params.intake.took(payload.len()),
            Frame::Close(reason) => {
                ctx.close(reason);
                ctx.stop();
            }
            _ => {}
        }
    }
}

impl TrackActivity {
    /// Audio is a stream: its parts need not wait for each other. Text in parts is no egress's.
    fn part(&mut self, item: Item, ctx: &mut WebsocketContext<Self>) {
        let (is_first, bytes) = match &item {
            Item::FirstText(bytes) | Item::FirstBinary(bytes) => (true, bytes),
            Item::Continue(bytes) | Item::Last(bytes) => (false, bytes),
        };
        if is_first {
            self.is_text = matches!(item, Item::FirstText(_));
        }
        if self.admit(bytes.len(), ctx) && !self.is_text {
            self.audio(bytes);
        }
    }
}

/// Counts the actor, however it ends.
struct Life(Arc<Metrics>);

impl Life {
    fn begin(metrics: Arc<Metrics>) -> Self {
        metrics.actors_live.with_label_values(&[ChildKind::TrackActivity.as_str()]).inc();
        Self(metrics)
    }
}

impl Drop for Life {
    fn drop(&mut self) {
        let kind = [ChildKind::TrackActivity.as_str()];
        self.0.actors_live.with_label_values(&kind).dec();
        if std::thread::panicking() {
            self.0.actor_panics_total.with_label_values(&kind).inc();
        }
    }
}
