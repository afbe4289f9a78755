//! `WsClient`: one viewer's WebSocket.
//!
//! - owns: its [`Feed`] (a cursor into the room's log), its token's deadline.
//! - receives: nothing by mailbox. It pulls from the feed whenever actix polls it, and actix polls it only while the
//!   socket takes bytes, so nothing queues up for a viewer that does not read.
//! - sends: frames to the socket; speaker reports to the room.
//! - ends: when the socket does, or with one of the contract's close codes.

use std::collections::HashSet;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use actix::prelude::*;
use actix_http::ws::Item;
use actix_web_actors::ws::{CloseCode, CloseReason, Message as Frame, ProtocolError, WebsocketContext};
use bytestring::ByteString;
use chrono::Utc;
use futures_util::stream::LocalBoxStream;
use tokio::time::Instant;

use super::supervision::ChildKind;
use crate::config::Config;
use crate::livekit::keys::KeyRing;
use crate::livekit::token::Claims;
use crate::metrics::Metrics;
use crate::transcript::directory::ViewerGuard;
use crate::transcript::{Room, SpeakerSource, SpeakerUpdate};
use crate::viewers::client_message::{ClientMessage, FloodGate, ReportClock, ReportedSpeaker, error_json};
use crate::viewers::feed::{self, FeedItem, close_code};
use crate::viewers::fragments::{Fragments, Joined};
use crate::viewers::{Admission, Delivery, Meter, Viewer};

/// The largest message that a viewer may send, in one frame or several.
pub const MAX_FRAME_BYTES: usize = 16 * 1024;
const NOT_BINARY: &str = "only text messages are allowed";
/// Pings that may stay without any sign of life.
const MISSED_PINGS: u32 = 2;

/// The server, as a viewer's connection needs it.
pub struct Server {
    pub config: Arc<Config>,
    pub metrics: Arc<Metrics>,
    pub keys: Arc<KeyRing>,
}

/// One viewer's connection.
pub struct WsClient {
    server: Server,
    room: Arc<Room>,
    claims: Claims,
    viewer: Arc<Viewer>,
    /// Counts it in its room.
    _in_room: ViewerGuard,
    feed: Option<LocalBoxStream<'static, Vec<FeedItem>>>,
    delivery: Delivery,
    /// Bytes received since the last whole message.
    meter: Meter,
    heard_at: Instant,
    /// Time of the last message to it.
    said_at: Instant,
    gate: FloodGate,
    fragments: Fragments,
    clock: ReportClock,
    /// Whom this viewer has reported as speaking.
    speaking: HashSet<String>,
    expiry: Option<SpawnHandle>,
    life: Life,
}

impl WsClient {
    pub fn new(server: Server, claims: Claims, admission: Admission, meter: Meter) -> Self {
        let Admission { room, viewer, in_room, feed } = admission;
        let now = Instant::now();
        let delivery = Delivery::new(&server.metrics, &room);
        let life = Life(server.metrics.clone());
        Self {
            server,
            room,
            claims,
            viewer,
            _in_room: in_room,
            feed: Some(feed),
            delivery,
            meter,
            heard_at: now,
            said_at: now,
            gate: FloodGate::new(now),
            fragments: Fragments::new(MAX_FRAME_BYTES),
            clock: ReportClock::default(),
            speaking: HashSet::new(),
            expiry: None,
            life,
        }
    }

    fn metrics(&self) -> &Metrics {
        &self.server.metrics
    }

    /// Passes one batch to the socket.
    fn deliver(&mut self, items: Vec<FeedItem>, ctx: &mut WebsocketContext<Self>) {
        self.said_at = Instant::now();
        for item in items {
            match item {
                FeedItem::Unnumbered { json, stamp } => {
                    self.delivery.sent(stamp, None);
                    ctx.text(json);
                }
                FeedItem::Entry { epoch, seq, json, stamp } => {
                    self.delivery.sent(stamp, Some((epoch, seq)));
                    ctx.text(json);
                }
                FeedItem::Close { code, reason } => self.close(code, &reason, ctx),
            }
        }
    }

    fn close(&mut self, code: u16, reason: &str, ctx: &mut WebsocketContext<Self>) {
        self.metrics().ws_closed_total.with_label_values(&[&code.to_string()]).inc();
        tracing::debug!(session = %self.room.slug(), code, reason, "viewer closed");
        ctx.close(Some(CloseReason { code: CloseCode::from(code), description: Some(reason.to_owned()) }));
        ctx.stop();
    }

    fn expire_with_token(&mut self, ctx: &mut WebsocketContext<Self>) {
        if let Some(handle) = self.expiry.take() {
            ctx.cancel_future(handle);
        }
        let left = self.claims.remaining(Utc::now());
        self.expiry = Some(ctx.run_later(left, |act, ctx| {
            act.close(close_code::TOKEN_EXPIRED, "the token has expired", ctx);
        }));
    }

    fn ping(&mut self, ctx: &mut WebsocketContext<Self>) {
        if self.heard_at.elapsed() > self.server.config.viewers.ping * (MISSED_PINGS + 1) {
            tracing::debug!(session = %self.room.slug(), "viewer gave no sign of life");
            self.metrics().ws_closed_total.with_label_values(&["silent"]).inc();
            ctx.stop();
            return;
        }
        ctx.ping(b"");
    }

    /// Tells the viewer's script that the connection lives when nothing else has for an interval.
    fn beat(&mut self, ctx: &mut WebsocketContext<Self>) {
        let ping = self.server.config.viewers.ping;
        if self.said_at.elapsed() >= ping {
            self.say_ping(ctx);
        }
        let left = ping.saturating_sub(self.said_at.elapsed());
        ctx.run_later(left.max(Duration::from_millis(1)), Self::beat);
    }

    fn say_ping(&mut self, ctx: &mut WebsocketContext<Self>) {
        self.said_at = Instant::now();
        self.delivery.sent(None, None);
        ctx.text(feed::ping(&self.room, &self.viewer));
    }

    fn hear(&mut self, text: &ByteString, ctx: &mut WebsocketContext<Self>) {
        match ClientMessage::parse(text) {
            Ok(ClientMessage::ActiveSpeakers { at, mut speakers }) => {
                let at = self.clock.instant(at, Utc::now().timestamp_millis(), Instant::now());
                self.keep_own(&mut speakers);
                let mut silent = std::mem::take(&mut self.speaking);
                for speaker in speakers {
                    silent.remove(&speaker.identity);
                    self.speaking.insert(speaker.identity.clone());
                    self.report(speaker.identity, speaker.name, true, speaker.level.unwrap_or(0.0), at);
                }
                silent.into_iter().for_each(|identity| self.report(identity, None, false, 0.0, at));
            }
            Ok(ClientMessage::Auth { token }) => self.renew(&token, ctx),
            Ok(ClientMessage::Ping) => self.say_ping(ctx),
            Err(message) => self.complain("bad_message", &message, ctx),
        }
    }

    /// Browsers send the whole list, and anybody may make one up: about others only a room admin's word counts.
    fn keep_own(&self, speakers: &mut Vec<ReportedSpeaker>) {
        let all = speakers.len();
        if self.claims.may_admin(self.room.slug()).is_err() {
            speakers.retain(|speaker| speaker.identity == self.claims.sub);
        }
        self.metrics().speaker_reports_ignored_total.inc_by((all - speakers.len()) as u64);
    }

    fn report(&self, identity: String, name: Option<String>, active: bool, level: f32, at: Instant) {
        // The token vouches for its own name, and only for that.
        let own_name = (identity == self.claims.sub).then(|| self.claims.name.clone()).flatten();
        let name = own_name.or(name);
        let source = SpeakerSource::Viewer(self.claims.sub.clone());
        self.room.report_speaker(SpeakerUpdate { identity, name, active, level, at, source });
    }

    fn renew(&mut self, token: &str, ctx: &mut WebsocketContext<Self>) {
        let verified = self.server.keys.verify(token).and_then(|claims| {
            claims.may_view(self.room.slug())?;
            Ok(claims)
        });
        match verified {
            Ok(claims) if claims.sub == self.claims.sub => {
                self.claims = claims;
                self.expire_with_token(ctx);
            }
            Ok(_) => self.complain("token_refused", "the token has another identity (sub)", ctx),
            Err(error) => self.complain("token_refused", &error.to_string(), ctx),
        }
    }

    fn complain(&mut self, code: &str, message: &str, ctx: &mut WebsocketContext<Self>) {
        self.said_at = Instant::now();
        self.metrics().ws_bad_messages_total.inc();
        ctx.text(error_json(code, message));
    }

    /// Ends the connection after a fault of its socket or protocol. An unmasked frame is never consumed: without the
    /// stop it would come back for ever.
    fn fail(&mut self, error: &ProtocolError, ctx: &mut WebsocketContext<Self>) {
        tracing::debug!(session = %self.room.slug(), %error, "viewer's socket failed");
        // A socket that is simply gone is how most viewers leave.
        if self.meter.has_failed() && !self.meter.is_over() {
            return ctx.stop();
        }
        let code = match error {
            ProtocolError::Overflow => close_code::TOO_BIG,
            ProtocolError::Io(_) if self.meter.is_over() => close_code::TOO_BIG,
            // What else the library calls an I/O error: reserved bits, and text that is no UTF-8.
            ProtocolError::Io(error) if error.kind() != io::ErrorKind::InvalidData => close_code::NOT_TEXT,
            _ => close_code::PROTOCOL,
        };
        self.refuse(code, ctx);
    }

    /// Closes a connection on which came what may not come.
    fn refuse(&mut self, code: u16, ctx: &mut WebsocketContext<Self>) {
        self.metrics().connection_errors_total.with_label_values(&["ws"]).inc();
        let reason = match code {
            close_code::TOO_BIG => "message too big",
            close_code::NOT_TEXT => "text that is not UTF-8",
            _ => "not the WebSocket protocol",
        };
        self.close(code, reason, ctx);
    }

    fn join(&mut self, item: Item, ctx: &mut WebsocketContext<Self>) {
        match self.fragments.add(item) {
            Joined::More => {}
            Joined::Text(text) => self.hear(&text, ctx),
            Joined::Binary => self.complain("bad_message", NOT_BINARY, ctx),
            Joined::TooBig => self.refuse(close_code::TOO_BIG, ctx),
            Joined::NotUtf8 => self.refuse(close_code::NOT_TEXT, ctx),
        }
    }

    /// False, and closed, when the viewer sends too much. The parts of a message count as one; what is allowed in bytes
    /// between two whole ones bounds how many there can be.
    fn admit(&mut self, frame: &Frame, ctx: &mut WebsocketContext<Self>) -> bool {
        let now = Instant::now();
        self.heard_at = now;
        let is_part = matches!(frame, Frame::Continuation(item) if !matches!(item, Item::Last(_)));
        if is_part {
            return true;
        }
        if !self.fragments.is_open() || matches!(frame, Frame::Continuation(_)) {
            self.meter.reset();
        }
        let admitted = self.gate.admit(now);
        if !admitted {
            self.close(close_code::POLICY, "too many messages", ctx);
        }
        admitted
    }
}

impl Actor for WsClient {
    type Context = WebsocketContext<Self>;

    fn started(&mut self, ctx: &mut Self::Context) {
        self.life.0.actors_live.with_label_values(&[ChildKind::WsClient.as_str()]).inc();
        self.expire_with_token(ctx);
        // A first interval of its own spreads the pings of viewers that came at the same moment.
        let ping = self.server.config.viewers.ping;
        let first = ping.mul_f64(rand::random_range(0.5..1.0)).max(Duration::from_millis(1));
        ctx.run_later(first, move |act, ctx| {
            act.ping(ctx);
            ctx.run_interval(ping, Self::ping);
        });
        ctx.run_later(ping, Self::beat);
        if let Some(feed) = self.feed.take() {
            ctx.spawn(Pump { feed });
        }
    }
}

impl StreamHandler<Result<Frame, ProtocolError>> for WsClient {
    fn handle(&mut self, frame: Result<Frame, ProtocolError>, ctx: &mut Self::Context) {
        let frame = match frame {
            Ok(frame) => frame,
            Err(error) => return self.fail(&error, ctx),
        };
        if !self.admit(&frame, ctx) {
            return;
        }
        match frame {
            Frame::Text(text) => self.hear(&text, ctx),
            Frame::Ping(payload) => ctx.pong(&payload),
            Frame::Continuation(item) => self.join(item, ctx),
            Frame::Binary(_) => self.complain("bad_message", NOT_BINARY, ctx),
            Frame::Close(reason) => {
                ctx.close(reason);
                ctx.stop();
            }
            Frame::Pong(_) | Frame::Nop => {}
        }
    }
}

/// Pulls one batch each time that the connection is polled; then the socket has its turn.
struct Pump {
    feed: LocalBoxStream<'static, Vec<FeedItem>>,
}

impl ActorFuture<WsClient> for Pump {
    type Output = ();

    fn poll(
        mut self: Pin<&mut Self>,
        act: &mut WsClient,
        ctx: &mut WebsocketContext<WsClient>,
        task: &mut Context<'_>,
    ) -> Poll<()> {
        act.viewer.polled();
        match self.feed.as_mut().poll_next(task) {
            Poll::Ready(Some(items)) => {
                act.deliver(items, ctx);
                task.waker().wake_by_ref();
                Poll::Pending
            }
            Poll::Ready(None) => Poll::Ready(()),
            Poll::Pending => Poll::Pending,
        }
    }
}

/// Counts the actor, however it ends.
struct Life(Arc<Metrics>);

impl Drop for Life {
    fn drop(&mut self) {
        let kind = [ChildKind::WsClient.as_str()];
        self.0.actors_live.with_label_values(&kind).dec();
        if std::thread::panicking() {
            self.0.actor_panics_total.with_label_values(&kind).inc();
        }
    }
}
