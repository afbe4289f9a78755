//! One connection of the participant: its WebSocket, its peer connections, and the captions that go out by them.

use std::collections::VecDeque;
use std::rc::Rc;
use std::time::Duration;

use actix_http::ws::Item;
use awc::ws::{CloseCode, Frame, Message};
use bytes::{Bytes, BytesMut};
use chrono::Utc;
use futures_util::{SinkExt, StreamExt};
use serde_json::json;
use tokio::time::Instant;

use super::Shared;
use super::udp::{Udp, UdpError};
use super::writer::CaptionWriter;
use crate::livekit::rtc::PeerEvent;
use crate::livekit::signal::{End, MAX_MESSAGE_BYTES, Signal, Step, frame, goodbye};
use crate::livekit::signal_client::{ConnectError, Inlet, Outlet};
use crate::livekit::wire::{Request, SessionDescription, TrickleRequest, number};

const GOODBYE_TIMEOUT: Duration = Duration::from_secs(2);
/// Frames that wait for a server that does not read.
const MAX_WAITING: usize = 1000;

/// Why a connection is over, or was none.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(super) enum Fault {
    #[error(transparent)]
    NotConnected(#[from] ConnectError),
    #[error("{}", of_end(.0))]
    Ended(End),
    #[error("the signalling connection was closed")]
    Closed,
    #[error("the server does not read what it is sent")]
    NotRead,
    #[error("the WebRTC connection is gone")]
    MediaLost,
}

fn of_end(end: &End) -> String {
    match end {
        End::Left(departure) => departure.as_str().to_owned(),
        End::Silent(time) => format!("the server has said nothing for {} s", time.as_secs()),
        End::NotJoined(why) => (*why).to_owned(),
    }
}

/// A message that has its turn still to come.
#[derive(Clone)]
enum Waiting {
    Request(Bytes),
    Pong(Bytes),
}

impl From<Waiting> for Message {
    fn from(waiting: Waiting) -> Self {
        match waiting {
            Waiting::Request(bytes) => Self::Binary(bytes),
            Waiting::Pong(bytes) => Self::Pong(bytes),
        }
    }
}

/// See the module.
pub(super) struct Link {
    shared: Rc<Shared>,
    pub(super) identity: String,
    outlet: Outlet,
    inlet: Inlet,
    waiting: VecDeque<Waiting>,
    is_dirty: bool,
    fragments: BytesMut,
    signal: Signal,
    udp: Option<Udp>,
    udp_deadline: Option<Instant>,
    joined_at: Instant,
    captions: Option<CaptionWriter>,
}

impl Link {
    /// Joins the room as `identity`.
    pub(super) async fn join(shared: Rc<Shared>, identity: String, with_udp: bool) -> Result<Self, Fault> {
        let token = shared.token(&identity);
        let (outlet, inlet) = shared.signalling().connect(&token).await?;
        let now = Instant::now();
        let captions = shared.publishes().then(|| CaptionWriter::new(&shared.core));
        let mut link = Self {
            signal: Signal::new(now, shared.listens()),
            shared,
            identity,
            outlet,
            inlet,
            waiting: VecDeque::new(),
            is_dirty: false,
            fragments: BytesMut::new(),
            udp: None,
            udp_deadline: None,
            joined_at: now,
            captions,
        };
        while !link.signal.is_joined() {
            link.step().await?;
        }
        link.joined_at = Instant::now();
        if with_udp {
            link.open_udp().await;
        }
        Ok(link)
    }

    async fn open_udp(&mut self) {
        match Udp::open(self.captions.is_some()).await {
            Ok((udp, offer)) => {
                self.udp = Some(udp);
                self.udp_deadline = Some(self.joined_at + self.shared.timing.udp);
                if let Some(sdp) = offer {
                    let description = SessionDescription { kind: "offer".into(), sdp, id: 1 };
                    self.say(Request::Offer(description));
                }
                self.flush_udp();
            }
            Err(error) => self.give_up_udp(&error.to_string()),
        }
    }

    /// Runs until the connection is over.
    pub(super) async fn run(&mut self) -> Fault {
        loop {
            if let Err(fault) = self.step().await {
                return fault;
            }
        }
    }

    /// One event. Can be dropped at any time.
    pub(super) async fn step(&mut self) -> Result<(), Fault> {
        self.write_captions();
        if self.waiting.len() > MAX_WAITING {
            return Err(Fault::NotRead);
        }
        let caption_at = self.captions.as_ref().and_then(CaptionWriter::wake_at);
        let wake_at = self.udp_deadline.into_iter().chain(caption_at).fold(self.signal.wake_at(), Instant::min);
        let front = self.waiting.front().cloned();
        tokio::select! {
            frame = self.inlet.next() => match frame {
                Some(Ok(frame)) => self.received(frame)?,
                Some(Err(_)) | None => return Err(Fault::Closed),
            },
            wrote = write(&mut self.outlet, front, self.is_dirty) => {
                if wrote.map_err(|_| Fault::Closed)? {
                    self.waiting.pop_front();
                    self.is_dirty = true;
                } else {
                    self.is_dirty = false;
                }
            }
            result = udp_step(&mut self.udp) => {
                if let Err(error) = result {
                    self.give_up_udp(&error.to_string());
                }
                self.udp_happened()?;
            }
            () = next_caption(&mut self.captions) => {}
            () = tokio::time::sleep_until(wake_at) => self.tick()?,
        }
        Ok(())
    }

    fn tick(&mut self) -> Result<(), Fault> {
        let now = Instant::now();
        if self.udp_deadline.is_some_and(|deadline| now >= deadline) {
            self.give_up_udp("no connection by UDP");
        }
        let steps = self.signal.poll(now, Utc::now().timestamp_millis());
        self.follow(steps)
    }

    fn received(&mut self, frame: Frame) -> Result<(), Fault> {
        match frame {
            Frame::Binary(bytes) => self.message(&bytes),
            Frame::Continuation(Item::FirstBinary(bytes)) => {
                self.fragments.clear();
                self.fragments.extend_from_slice(&bytes);
                Ok(())
            }
            Frame::Continuation(Item::Continue(bytes)) => self.fragment(&bytes),
            Frame::Continuation(Item::Last(bytes)) => {
                self.fragment(&bytes)?;
                let whole = self.fragments.split().freeze();
                self.message(&whole)
            }
            Frame::Ping(payload) => {
                self.waiting.push_back(Waiting::Pong(payload));
                Ok(())
            }
            Frame::Close(_) => Err(Fault::Closed),
            // A server of another kind, which is answered all the same by the time-out.
            Frame::Text(_) | Frame::Continuation(Item::FirstText(_)) | Frame::Pong(_) => Ok(()),
        }
    }

    fn fragment(&mut self, bytes: &[u8]) -> Result<(), Fault> {
        if self.fragments.len() + bytes.len() > MAX_MESSAGE_BYTES {
            return Err(Fault::Closed);
        }
        self.fragments.extend_from_slice(bytes);
        Ok(())
    }

    fn message(&mut self, bytes: &[u8]) -> Result<(), Fault> {
        let steps = self.signal.handle(bytes, Instant::now(), Utc::now().timestamp_millis());
        self.follow(steps)
    }

    fn follow(&mut self, steps: Vec<Step>) -> Result<(), Fault> {
        for step in steps {
            match step {
                Step::Joined => {}
                Step::Send(request) => self.say(request),
                Step::Offer { sdp, id } => self.answer(&sdp, id),
                Step::Answer { sdp } => {
                    let accepted = self.udp.as_mut().map_or(Ok(()), |udp| udp.accept(&sdp));
                    self.check_udp(accepted);
                }
                Step::Candidate { target, candidate } => self.candidate(target, &candidate),
                Step::Speaker(update) => self.shared.report(update),
                Step::Over(end) => return Err(Fault::Ended(end)),
            }
        }
        self.shared.state.borrow_mut().participants = self.signal.roster().len();
        self.udp_happened()
    }

    fn say(&mut self, request: Request) {
        self.waiting.push_back(Waiting::Request(Bytes::from(frame(request))));
    }

    fn answer(&mut self, offer: &str, id: u32) {
        let Some(udp) = &mut self.udp else { return };
        match udp.answer(offer) {
            Ok(sdp) => self.say(Request::Answer(SessionDescription { kind: "answer".into(), sdp, id })),
            Err(error) => self.give_up_udp(&error.to_string()),
        }
    }

    fn candidate(&mut self, target: i32, candidate: &str) {
        let ours = self.udp.as_mut().and_then(|udp| udp.candidate(target, candidate));
        if let Some(ours) = ours {
            let candidate_init = json!({"candidate": ours, "sdpMid": "0", "sdpMLineIndex": 0}).to_string();
            self.say(Request::Trickle(TrickleRequest { candidate_init, target, is_final: false }));
        }
    }

    /// Sends what the peer connections have to say, and looks at what has become of them.
    fn udp_happened(&mut self) -> Result<(), Fault> {
        for (target, event) in self.flush_udp() {
            match event {
                PeerEvent::Connected if target == number::SUBSCRIBER => {
                    self.udp_deadline = None;
                    self.shared.connected(&self.identity, self.signal.server());
                }
                PeerEvent::ChannelOpen => {
                    if let Some(captions) = &mut self.captions {
                        captions.begin();
                    }
                }
                PeerEvent::Disconnected => return Err(Fault::MediaLost),
                PeerEvent::Connected => {}
            }
        }
        Ok(())
    }

    fn flush_udp(&mut self) -> Vec<(i32, PeerEvent)> {
        let Some(udp) = &mut self.udp else { return Vec::new() };
        let media_bytes = std::mem::take(&mut udp.media_bytes);
        if media_bytes > 0 {
            self.shared.core.metrics.livekit_media_bytes_total.inc_by(media_bytes);
        }
        match udp.flush() {
            Ok(happened) => happened,
            Err(error) => {
                self.give_up_udp(&error.to_string());
                Vec::new()
            }
        }
    }

    fn check_udp(&mut self, result: Result<(), UdpError>) {
        if let Err(error) = result {
            self.give_up_udp(&error.to_string());
        }
    }

    /// From now on this connection lives by its signalling alone.
    fn give_up_udp(&mut self, error: &str) {
        self.udp = None;
        self.udp_deadline = None;
        self.shared.udp_failed(error);
    }

    /// When the next connection is to be made, should this one not have WebRTC by then.
    pub(super) fn rotate_at(&self) -> Option<Instant> {
        let is_connected = self.udp.as_ref().is_some_and(Udp::is_connected);
        (!is_connected).then_some(self.joined_at + self.shared.timing.rotate)
    }

    fn write_captions(&mut self) {
        let Some(captions) = &mut self.captions else { return };
        let Some(udp) = &mut self.udp else { return };
        let Some(channel) = udp.channel() else { return };
        if let Err(error) = captions.write(channel, self.signal.roster()) {
            self.give_up_udp(&error.to_string());
        }
        self.flush_udp();
    }

    /// Every caption that there was is sent.
    pub(super) fn is_done(&mut self) -> bool {
        let (Some(captions), Some(udp)) = (&mut self.captions, &mut self.udp) else { return true };
        let Some(channel) = udp.channel() else { return true };
        captions.is_done(channel)
    }

    /// Says goodbye.
    pub(super) async fn leave(mut self) {
        if let Some(udp) = &mut self.udp {
            udp.close();
        }
        let goodbye = async {
            for message in self.waiting.drain(..) {
                self.outlet.feed(message.into()).await?;
            }
            self.outlet.feed(Message::Binary(Bytes::from(frame(goodbye())))).await?;
            self.outlet.send(Message::Close(Some(CloseCode::Normal.into()))).await?;
            // A server that finds the connection gone may not read what came before.
            while let Some(Ok(frame)) = self.inlet.next().await {
                if matches!(frame, Frame::Close(_)) {
                    break;
                }
            }
            Ok::<_, awc::error::WsProtocolError>(())
        };
        // Whether it arrives makes no difference here.
        let _ = tokio::time::timeout(GOODBYE_TIMEOUT, goodbye).await;
    }
}

/// True when the message was fed, false when everything is flushed.
async fn write(
    outlet: &mut Outlet,
    front: Option<Waiting>,
    is_dirty: bool,
) -> Result<bool, awc::error::WsProtocolError> {
    match front {
        Some(message) => outlet.feed(message.into()).await.map(|()| true),
        None if is_dirty => outlet.flush().await.map(|()| false),
        None => std::future::pending().await,
    }
}

async fn udp_step(udp: &mut Option<Udp>) -> Result<(), UdpError> {
    match udp {
        Some(udp) => udp.step().await,
        None => std::future::pending().await,
    }
}

async fn next_caption(captions: &mut Option<CaptionWriter>) {
    match captions {
        Some(captions) => captions.changed().await,
        None => std::future::pending().await,
    }
}
