//! `RtmpListener`: accepts RTMP connections and brings those that may publish to the registry.
//!
//! Owns every connection until its publish, and a handle of the listening socket; the parent holds another, so that no
//! publisher is refused while this actor restarts. Sends [`Publish`]. Ends only when stopped. What strangers send costs
//! their own connection: limits on number, time and size, and nothing is spawned beyond a task.

use std::io;
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use actix::prelude::*;
use serde::Serialize;
use socket2::{Domain, Protocol as SocketProtocol, SockRef, Socket, TcpKeepalive, Type};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::{Instant, sleep, timeout_at};

use super::egress_controller::PublishDenied;
use super::session_registry::{Publish, PublishRefusal};
use super::supervision::backoff;
use super::supervision::{Lifeline, Observable, Observe};
use crate::config::Config;
use crate::metrics::Metrics;
use crate::rtmp::ended::Line;
use crate::rtmp::{Connection, Connections, Ended, Event, Phase, PublishRequest, Reason, Target, TargetError};
use crate::transcript::Slug;

const BACKLOG: i32 = 1024;
const KEEPALIVE: Duration = Duration::from_secs(15);
/// Sent data that the peer does not acknowledge for so long ends the connection.
const TCP_USER_TIMEOUT: Duration = Duration::from_secs(15);
/// A registry that has died is there again by then, even after an escalation.
const REGISTRY_RESTART: Duration = Duration::from_secs(15);
const ASK_AGAIN: Duration = Duration::from_millis(50);
/// Between two attempts to accept after an error (out of file descriptors, mostly).
const ACCEPT_BACKOFF_FIRST: Duration = Duration::from_millis(50);
const ACCEPT_BACKOFF_MOST: Duration = Duration::from_secs(2);

/// Stop accepting: the server drains. Publishers that are connected stay.
#[derive(Debug, Clone, Copy, Message)]
#[rtype(result = "()")]
pub struct StopAccepting;

/// Accepts publishers' connections and sees them to their session.
pub struct RtmpListener {
    listener: Option<std::net::TcpListener>,
    address: Option<SocketAddr>,
    gatekeeper: Rc<Gatekeeper>,
    accepting: Option<SpawnHandle>,
    lifeline: Option<Lifeline>,
}

/// The means of every connection before its publish.
struct Gatekeeper {
    config: Arc<Config>,
    metrics: Arc<Metrics>,
    connections: Arc<Connections>,
    registry: Recipient<Publish>,
    denied: Option<Recipient<PublishDenied>>,
}

/// A listening socket for [`RtmpListener::start`]. Port 0 takes a free one.
pub fn bind(address: SocketAddr) -> io::Result<std::net::TcpListener> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(SocketProtocol::TCP))?;
    socket.set_reuse_address(true)?;
    socket.bind(&address.into())?;
    socket.listen(BACKLOG)?;
    socket.set_nonblocking(true)?;
    Ok(socket.into())
}

impl RtmpListener {
    /// On the calling arbiter. Publishers that are allowed to are brought to `registry`.
    pub fn start(
        listener: std::net::TcpListener,
        config: Arc<Config>,
        metrics: Arc<Metrics>,
        registry: Recipient<Publish>,
    ) -> Addr<Self> {
        let connections = Connections::new(config.rtmp.max_connections, config.rtmp.max_per_ip, metrics.clone());
        Self::new(listener, connections, config, metrics, registry).start()
    }

    /// One that its parent starts, and starts again: the socket and the count of connections outlive it.
    pub fn new(
        listener: std::net::TcpListener,
        connections: Arc<Connections>,
        config: Arc<Config>,
        metrics: Arc<Metrics>,
        registry: Recipient<Publish>,
    ) -> Self {
        let address = listener.local_addr().ok();
        let gatekeeper = Rc::new(Gatekeeper { config, metrics, connections, registry, denied: None });
        Self { listener: Some(listener), address, gatekeeper, accepting: None, lifeline: None }
    }

    /// Whoever is publishing is told of refused publishes, too.
    pub fn telling(mut self, denied: Recipient<PublishDenied>) -> Self {
        if let Some(gatekeeper) = Rc::get_mut(&mut self.gatekeeper) {
            gatekeeper.denied = Some(denied);
        }
        self
    }

    /// A panic of this actor is reported to its parent.
    pub fn supervised(mut self, lifeline: Lifeline) -> Self {
        self.lifeline = Some(lifeline);
        self
    }
}

impl Actor for RtmpListener {
    type Context = Context<Self>;

    fn started(&mut self, ctx: &mut Self::Context) {
        if let Some(lifeline) = &mut self.lifeline {
            lifeline.started();
        }
        let Some(listener) = self.listener.take() else { return };
        self.accepting = Some(ctx.spawn(accept(listener, self.gatekeeper.clone()).into_actor(self)));
    }
}

impl Handler<StopAccepting> for RtmpListener {
    type Result = ();

    fn handle(&mut self, _: StopAccepting, ctx: &mut Self::Context) {
        if let Some(accepting) = self.accepting.take() {
            ctx.cancel_future(accepting);
        }
    }
}

crate::stops_and_crashes!(RtmpListener);

/// The state that `/metrics` shows.
#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct RtmpListenerState {
    pub address: Option<String>,
    pub accepting: bool,
    pub connections: usize,
}

impl Observable for RtmpListener {
    type State = RtmpListenerState;
}

impl Handler<Observe<Self>> for RtmpListener {
    type Result = MessageResult<Observe<Self>>;

    fn handle(&mut self, _: Observe<Self>, _: &mut Self::Context) -> Self::Result {
        MessageResult(RtmpListenerState {
            address: self.address.map(|a| a.to_string()),
            accepting: self.accepting.is_some(),
            connections: self.gatekeeper.connections.count(),
        })
    }
}

/// Accepts for ever. An error is the machine's (descriptors, memory) or one peer's, never the end.
async fn accept(listener: std::net::TcpListener, gatekeeper: Rc<Gatekeeper>) {
    let mut errors = 0;
    let listener = loop {
        match listener.try_clone().and_then(TcpListener::from_std) {
            Ok(listener) => break listener,
            Err(error) => accept_failed(&gatekeeper, &error, &mut errors).await,
        }
    };
    loop {
        match listener.accept().await {
            Ok((socket, peer)) => {
                errors = 0;
                gatekeeper.metrics.rtmp_accepted_total.inc();
                gatekeeper.clone().enter(socket, peer);
            }
            Err(error) => accept_failed(&gatekeeper, &error, &mut errors).await,
        }
    }
}

async fn accept_failed(gatekeeper: &Gatekeeper, error: &io::Error, errors: &mut u32) {
    gatekeeper.metrics.connection_errors_total.with_label_values(&["rtmp"]).inc();
    tracing::warn!(%error, "rtmp accept failed");
    sleep(backoff(ACCEPT_BACKOFF_FIRST, ACCEPT_BACKOFF_MOST, *errors)).await;
    *errors += 1;
}

impl Gatekeeper {
    fn enter(self: Rc<Self>, socket: TcpStream, peer: SocketAddr) {
        let guard = match self.connections.admit(peer.ip()) {
            Ok(guard) => guard,
            Err(error) => {
                let line = Line { peer, session: None, phase: Phase::Handshake, reason: error.as_str() };
                self.connections.ends.refused(&line, &error.to_string());
                return self.metrics.rtmp_refused_total.with_label_values(&[error.as_str()]).inc();
            }
        };
        if let Err(error) = tune(&socket) {
            tracing::debug!(%peer, %error, "rtmp socket options");
        }
        let wire = Connection::new(socket, peer, guard, self.metrics.clone());
        actix_rt::spawn(self.serve(wire));
    }

    /// One connection up to its publish.
    async fn serve(self: Rc<Self>, mut wire: Connection) {
        match self.until_publish(&mut wire).await {
            Ok(request) => match self.authorise(&request) {
                Ok(slug) => self.bring(slug, wire).await,
                Err(error) => {
                    wire.say_refused(error.as_str(), &error.to_string());
                    self.tell_denied(&request, &error);
                    self.metrics.rtmp_refused_total.with_label_values(&[error.as_str()]).inc();
                    wire.refuse(&error.to_string()).await;
                }
            },
            Err(ended) => {
                wire.say_ended(None, &ended);
                self.metrics.rtmp_closed_total.with_label_values(&[ended.reason.as_str()]).inc();
                match ended.reason {
                    // It has its answer: that there is nothing to play.
                    Reason::Play => wire.close().await,
                    reason if reason.is_announced() => wire.refuse(&ended.to_string()).await,
                    _ => {}
                }
            }
        }
    }

    async fn until_publish(&self, wire: &mut Connection) -> Result<PublishRequest, Ended> {
        let limits = &self.config.rtmp;
        let begun = Instant::now();
        let mut handshaken = None;
        loop {
            if let Some(Event::Publish(request)) = wire.next_event()? {
                return Ok(request);
            }
            if wire.is_handshaken() {
                handshaken.get_or_insert_with(Instant::now);
            }
            let deadline = handshaken.map_or(begun + limits.handshake_timeout, |at| at + limits.publish_timeout);
            match timeout_at(deadline, wire.exchange()).await {
                Err(_) if handshaken.is_none() => {
                    let what = format!("no RTMP handshake within {} ms", limits.handshake_timeout.as_millis());
                    return Err(Ended::new(Reason::HandshakeTimeout, what));
                }
                Err(_) => {
                    let what = format!("no publish within {} ms", limits.publish_timeout.as_millis());
                    return Err(Ended::new(Reason::PublishTimeout, what));
                }
                Ok(Ok(true)) => {}
                Ok(Ok(false)) => return Err(Ended::new(Reason::Eof, "the peer closed the connection")),
                Ok(Err(error)) => return Err(error.into()),
            }
        }
    }

    fn authorise(&self, request: &PublishRequest) -> Result<Slug, TargetError> {
        let target = Target::parse(&request.app, &request.name, &request.tc_url)?;
        target.authorise(self.config.rtmp.publish_key.as_ref(), SystemTime::now())?;
        Ok(target.slug)
    }

    /// A room's own egress may be among those that have the wrong key.
    fn tell_denied(&self, request: &PublishRequest, error: &TargetError) {
        if let (Some(denied), Ok(target)) = (&self.denied, Target::parse(&request.app, &request.name, &request.tc_url))
        {
            denied.do_send(PublishDenied { slug: target.slug, reason: error.as_str() });
        }
    }

    async fn bring(&self, slug: Slug, wire: Connection) {
        let peer = wire.peer();
        let mut publisher = match wire.into_pending() {
            Ok(publisher) => Box::new(publisher),
            Err(error) => return tracing::warn!(%peer, %error, "rtmp socket lost before its publish"),
        };
        tracing::info!(%peer, session = %slug, "publish asked");
        let deadline = Instant::now() + REGISTRY_RESTART;
        let answer = loop {
            match self.registry.send(Publish { slug: slug.clone(), publisher }).await {
                // Nobody has read its socket meanwhile: it has lost nothing by waiting.
                Ok(Err((PublishRefusal::Restarting, same))) if Instant::now() < deadline => publisher = same,
                answer => break answer,
            }
            sleep(ASK_AGAIN).await;
        };
        match answer {
            Ok(Ok(())) => {}
            Ok(Err((refusal, publisher))) => {
                publisher.say_refused(refusal.as_str(), &refusal.to_string());
                self.metrics.rtmp_refused_total.with_label_values(&[refusal.as_str()]).inc();
                publisher.refuse(&refusal.to_string()).await;
            }
            // The connection was lost with the message; its encoder comes again.
            Err(error) => {
                tracing::warn!(%peer, %error, "the registry did not answer a publish");
                self.metrics.rtmp_refused_total.with_label_values(&["failed"]).inc();
            }
        }
    }
}

fn tune(socket: &TcpStream) -> io::Result<()> {
    socket.set_nodelay(true)?;
    let socket = SockRef::from(socket);
    socket.set_tcp_keepalive(&TcpKeepalive::new().with_time(KEEPALIVE).with_interval(KEEPALIVE))?;
    socket.set_tcp_user_timeout(Some(TCP_USER_TIMEOUT))
}
