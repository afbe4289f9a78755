//! `RtmpConnection`: reads one accepted publisher and hands its audio tags to the decoder.
//!
//! Owns the socket. Ends normally when the publisher says goodbye or closes, or by order of the session; by a fault at
//! a time-out, broken protocol or audio that nobody can decode. It knows nothing of the Session but its lifeline, so a
//! restarted Session adopts it.

mod reader;

use std::cell::{Cell, RefCell};
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;

use actix::prelude::*;
use serde::Serialize;
use tokio::sync::Notify;
use tokio::time::Instant;

use self::reader::Reader;
use super::session_core::SessionCore;
use super::supervision::{Lifeline, Observable, Observe};
use crate::rtmp::{Connection, Ended, PendingPublish, Reason};

/// Why the session closes a publisher.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CloseReason {
    /// A newer publisher took over.
    Displaced,
    Draining,
    SessionEnded,
}

impl From<CloseReason> for Ended {
    fn from(reason: CloseReason) -> Self {
        match reason {
            CloseReason::Displaced => Self::new(Reason::Displaced, "a newer publisher took this stream over"),
            CloseReason::Draining => Self::new(Reason::Draining, "the server is shutting down"),
            CloseReason::SessionEnded => Self::new(Reason::SessionEnded, "the session has ended"),
        }
    }
}

/// Close the socket. No tag of this publisher is pushed after it.
#[derive(Debug, Clone, Copy, Message)]
#[rtype(result = "()")]
pub struct ClosePublisher {
    pub reason: CloseReason,
}

/// A restarted Session takes the living connection over.
#[derive(Message)]
#[rtype(result = "()")]
pub struct Adopt {
    pub lifeline: Lifeline,
}

/// Tells the encoder something about its audio; the publish goes on.
#[derive(Debug, Clone, Copy, Message)]
#[rtype(result = "()")]
pub struct Advise {
    pub text: &'static str,
}

/// One publisher's connection, from its publish to its end.
pub struct RtmpConnection {
    core: Arc<SessionCore>,
    publisher: Option<Box<PendingPublish>>,
    generation: u64,
    peer: SocketAddr,
    started: Instant,
    shared: Rc<Shared>,
    lifeline: Lifeline,
    closed: &'static str,
}

/// State that the actor and its work share.
#[derive(Default)]
struct Shared {
    close: Cell<Option<CloseReason>>,
    close_ordered: Notify,
    advice: Cell<Option<&'static str>>,
    advised: Notify,
    bytes: Cell<u64>,
    tags: Cell<u64>,
    tags_shed: Cell<u64>,
    last_timestamp_ms: Cell<Option<u64>>,
    codec: RefCell<Option<String>>,
}

impl RtmpConnection {
    /// On the calling arbiter, which is the session's. `publisher_generation` marks its tags.
    pub fn start(
        publisher: Box<PendingPublish>,
        core: Arc<SessionCore>,
        publisher_generation: u64,
        lifeline: Lifeline,
    ) -> Addr<Self> {
        let peer = publisher.peer();
        Self {
            core,
            publisher: Some(publisher),
            generation: publisher_generation,
            peer,
            started: Instant::now(),
            shared: Rc::default(),
            lifeline,
            closed: "stopped",
        }
        .start()
    }

    fn ended(&mut self, wire: Connection, end: Ended, ctx: &mut Context<Self>) {
        self.closed = end.reason.as_str();
        wire.say_ended(Some(&self.core.slug), &end);
        if end.reason.is_fault() {
            self.core.metrics.connection_errors_total.with_label_values(&["rtmp"]).inc();
            self.lifeline.fail(end.what.clone());
        }
        // The last words take as long as the peer likes; the session need not wait for them.
        actix_rt::spawn(async move {
            match end.reason {
                Reason::Unpublished => wire.let_go().await,
                reason if reason.is_announced() => wire.refuse(&end.to_string()).await,
                _ => wire.close().await,
            }
        });
        ctx.stop();
    }

    /// The socket did not survive its way to this arbiter.
    fn lost(&mut self, error: &std::io::Error, ctx: &mut Context<Self>) {
        self.closed = Reason::Socket.as_str();
        tracing::warn!(session = %self.core.slug, peer = %self.peer, %error, "rtmp socket lost at its publish");
        self.core.metrics.connection_errors_total.with_label_values(&["rtmp"]).inc();
        self.lifeline.fail(error.to_string());
        ctx.stop();
    }
}

impl Actor for RtmpConnection {
    type Context = Context<Self>;

    fn started(&mut self, ctx: &mut Self::Context) {
        self.lifeline.started();
        self.core.metrics.rtmp_publishers.inc();
        let publisher = self.publisher.take().expect("start is called once");
        match publisher.into_connection() {
            Ok(wire) => {
                let shared = self.shared.clone();
                let reader = Reader::new(self.core.clone(), shared, self.generation);
                let run = reader.run(wire).into_actor(self);
                ctx.spawn(run.map(|(wire, end), actor, ctx| actor.ended(wire, end, ctx)));
            }
            Err(error) => self.lost(&error, ctx),
        }
    }
}

impl Drop for RtmpConnection {
    fn drop(&mut self) {
        self.core.metrics.rtmp_publishers.dec();
        self.core.metrics.rtmp_closed_total.with_label_values(&[self.closed]).inc();
    }
}

impl Handler<ClosePublisher> for RtmpConnection {
    type Result = ();

    fn handle(&mut self, order: ClosePublisher, _: &mut Self::Context) {
        self.shared.close.set(Some(order.reason));
        self.shared.close_ordered.notify_one();
    }
}

impl Handler<Advise> for RtmpConnection {
    type Result = ();

    fn handle(&mut self, advise: Advise, _: &mut Self::Context) {
        self.shared.advice.set(Some(advise.text));
        self.shared.advised.notify_one();
    }
}

crate::stops_and_crashes!(RtmpConnection);

impl Handler<Adopt> for RtmpConnection {
    type Result = ();

    fn handle(&mut self, adopt: Adopt, _: &mut Self::Context) {
        self.lifeline = adopt.lifeline;
        self.lifeline.started();
    }
}

/// The state that `/metrics` shows.
#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct RtmpConnectionState {
    pub generation: u64,
    pub publisher: u64,
    pub peer: String,
    pub uptime_ms: u64,
    pub bytes: u64,
    pub audio_tags: u64,
    pub tags_shed: u64,
    pub last_timestamp_ms: Option<u64>,
    pub codec: Option<String>,
}

impl Observable for RtmpConnection {
    type State = RtmpConnectionState;
}

impl Handler<Observe<Self>> for RtmpConnection {
    type Result = MessageResult<Observe<Self>>;

    fn handle(&mut self, _: Observe<Self>, _: &mut Self::Context) -> Self::Result {
        MessageResult(RtmpConnectionState {
            generation: self.lifeline.generation(),
            publisher: self.generation,
            peer: self.peer.to_string(),
            uptime_ms: self.started.elapsed().as_millis() as u64,
            bytes: self.shared.bytes.get(),
            audio_tags: self.shared.tags.get(),
            tags_shed: self.shared.tags_shed.get(),
            last_timestamp_ms: self.shared.last_timestamp_ms.get(),
            codec: self.shared.codec.borrow().clone(),
        })
    }
}
