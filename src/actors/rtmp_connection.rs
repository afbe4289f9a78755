//! RtmpConnection: reads one accepted publisher and hands its audio tags to the decoder.
//!
//! Owns the socket. Ends normally when the publisher says goodbye or closes, or by order of the session; by a fault at
//! a time-out, broken protocol or audio that nobody can decode. It knows nothing of the Session but its lifeline, so a
//! restarted Session adopts it.

use std::cell::{Cell, RefCell};
use std::io::ErrorKind;
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use actix::prelude::*;
use serde_json::json;
use tokio::sync::Notify;
use tokio::time::{Instant, sleep, timeout};

use super::Observe;
use super::ffmpeg_decoder::{AudioTag, announce_loss};
use super::session_core::SessionCore;
use super::supervision::Lifeline;
use crate::audio::state::Lost;
use crate::audio::tag::{self, TagKind, Unsupported};
use crate::rtmp::{Event, ProtocolError, Publisher, Wire};

/// A full edge for so long means that no decoder is there. From then on old audio makes room for new: a publisher
/// whose bytes nobody takes for 30 s gives up for good (LiveKit Egress).
const STALL: Duration = Duration::from_secs(10);

/// A long loss is announced in pieces.
const SHED_PIECE_MS: u64 = 30_000;

/// Why the session closes a publisher.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CloseReason {
    /// A newer publisher took over.
    Displaced,
    Draining,
    SessionEnded,
}

impl CloseReason {
    /// The label in metrics.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Displaced => "displaced",
            Self::Draining => "draining",
            Self::SessionEnded => "session_ended",
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

/// See the module.
pub struct RtmpConnection {
    core: Arc<SessionCore>,
    publisher: Option<Box<Publisher>>,
    generation: u64,
    peer: SocketAddr,
    started: Instant,
    shared: Rc<Shared>,
    lifeline: Lifeline,
    closed: &'static str,
}

/// What the actor and its work share.
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
        publisher: Box<Publisher>,
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

    fn ended(&mut self, wire: Option<Wire>, end: End, ctx: &mut Context<Self>) {
        self.closed = end.as_str();
        tracing::info!(session = %self.core.slug, peer = %self.peer, reason = self.closed, "publisher closed");
        if let Some(why) = end.fault() {
            self.core.metrics.connection_errors_total.with_label_values(&["rtmp"]).inc();
            self.lifeline.fail(why);
        }
        if let Some(wire) = wire {
            // The last words take as long as the peer likes; the session need not wait for them.
            actix_rt::spawn(async move {
                match end.last_word() {
                    Some(reason) => wire.refuse(&reason).await,
                    None if matches!(end, End::Unpublished) => wire.let_go().await,
                    None => wire.close().await,
                }
            });
        }
        ctx.stop();
    }
}

impl Actor for RtmpConnection {
    type Context = Context<Self>;

    fn started(&mut self, ctx: &mut Self::Context) {
        self.lifeline.started();
        self.core.metrics.rtmp_publishers.inc();
        let publisher = self.publisher.take().expect("start is called once");
        match publisher.into_wire() {
            Ok(wire) => {
                let shared = self.shared.clone();
                let reader = Reader { core: self.core.clone(), shared, generation: self.generation, shed: None };
                let run = reader.run(wire).into_actor(self);
                ctx.spawn(run.map(|(wire, end), actor, ctx| actor.ended(Some(wire), end, ctx)));
            }
            Err(error) => self.ended(None, End::Socket(error.to_string()), ctx),
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

impl Handler<Observe> for RtmpConnection {
    type Result = MessageResult<Observe>;

    fn handle(&mut self, _: Observe, _: &mut Self::Context) -> Self::Result {
        MessageResult(json!({
            "generation": self.lifeline.generation(),
            "publisher": self.generation,
            "peer": self.peer.to_string(),
            "uptimeMs": self.started.elapsed().as_millis() as u64,
            "bytes": self.shared.bytes.get(),
            "audioTags": self.shared.tags.get(),
            "tagsShed": self.shared.tags_shed.get(),
            "lastTimestampMs": self.shared.last_timestamp_ms.get(),
            "codec": *self.shared.codec.borrow(),
        }))
    }
}

/// How a publish ended.
enum End {
    Unpublished,
    Eof,
    /// As good as the end of the stream: a publisher that closes before it has read our last acknowledgement resets.
    Reset,
    Closed(CloseReason),
    Idle(Duration),
    NoAudio(Duration),
    Unsupported(Unsupported),
    Protocol(ProtocolError),
    Socket(String),
}

impl End {
    /// The label in metrics.
    fn as_str(&self) -> &'static str {
        match self {
            Self::Unpublished => "unpublished",
            Self::Eof => "eof",
            Self::Reset => "reset",
            Self::Closed(reason) => reason.as_str(),
            Self::Idle(_) => "idle",
            Self::NoAudio(_) => "no_audio",
            Self::Unsupported(_) => "unsupported_audio",
            Self::Protocol(_) => "protocol",
            Self::Socket(_) => "socket",
        }
    }

    /// None when it is an end as it should be.
    fn fault(&self) -> Option<String> {
        match self {
            Self::Unpublished | Self::Eof | Self::Reset | Self::Closed(_) => None,
            Self::Idle(time) => Some(format!("the publisher sent nothing for {} ms", time.as_millis())),
            Self::NoAudio(time) => Some(format!("no audio within {} ms", time.as_millis())),
            Self::Unsupported(error) => Some(error.to_string()),
            Self::Protocol(error) => Some(error.to_string()),
            Self::Socket(error) => Some(error.clone()),
        }
    }

    /// What the publisher is told, when it would not know it by itself.
    fn last_word(&self) -> Option<String> {
        match self {
            Self::Closed(CloseReason::Displaced) => Some("a newer publisher took this stream over".to_owned()),
            Self::Idle(_) | Self::NoAudio(_) | Self::Unsupported(_) | Self::Protocol(_) => self.fault(),
            _ => None,
        }
    }
}

/// The actor's work, as one future.
struct Reader {
    core: Arc<SessionCore>,
    shared: Rc<Shared>,
    generation: u64,
    /// Audio that had to make room, while no decoder takes any.
    shed: Option<Lost>,
}

impl Reader {
    async fn run(mut self, mut wire: Wire) -> (Wire, End) {
        let shared = self.shared.clone();
        let end = tokio::select! {
            biased;
            () = shared.close_ordered.notified() => {
                End::Closed(shared.close.get().unwrap_or(CloseReason::SessionEnded))
            }
            end = self.read(&mut wire) => end,
        };
        self.end_shedding();
        (wire, end)
    }

    async fn read(&mut self, wire: &mut Wire) -> End {
        let limits = &self.core.config.rtmp;
        let (idle, no_audio) = (limits.idle_timeout, limits.first_audio_timeout);
        wire.accept();
        let first_audio = sleep(no_audio);
        tokio::pin!(first_audio);
        loop {
            if let Some(end) = self.events(wire).await {
                return end;
            }
            self.shared.bytes.set(wire.received_bytes());
            tokio::select! {
                () = self.shared.advised.notified() => {
                    if let Some(text) = self.shared.advice.take() {
                        wire.warn(text);
                    }
                }
                () = &mut first_audio, if self.shared.tags.get() == 0 => return End::NoAudio(no_audio),
                read = timeout(idle, wire.exchange()) => match read {
                    Err(_) => return End::Idle(idle),
                    Ok(Err(error)) if error.kind() == ErrorKind::ConnectionReset => return End::Reset,
                    Ok(Err(error)) => return End::Socket(error.to_string()),
                    Ok(Ok(false)) => return End::Eof,
                    Ok(Ok(true)) => {}
                },
            }
        }
    }

    /// Everything in what was read.
    async fn events(&mut self, wire: &mut Wire) -> Option<End> {
        loop {
            match wire.next_event() {
                Ok(None) => return None,
                Ok(Some(Event::Audio { timestamp_ms, body })) => match self.inspect(body) {
                    Ok(None) => {}
                    Ok(Some(body)) => self.tag(timestamp_ms, body).await,
                    Err(error) => return Some(self.unsupported(error)),
                },
                Ok(Some(Event::Unpublished)) => return Some(End::Unpublished),
                // The protocol asks once, and the wire counts what is ignored.
                Ok(Some(Event::Publish(_) | Event::Ignored(_))) => {}
                Err(error) => return Some(End::Protocol(error)),
            }
        }
    }

    /// The tag in its classic form, when it holds anything.
    fn inspect(&self, body: bytes::Bytes) -> Result<Option<bytes::Bytes>, Unsupported> {
        let Some(body) = tag::normalise(body)? else { return Ok(None) };
        let name = match tag::inspect(&body)? {
            None => return Ok(None),
            Some(TagKind::AacFrame) => return Ok(Some(body)),
            Some(TagKind::Config(config) | TagKind::Adts(config)) => {
                format!("{} {} Hz {} channels", config.name(), config.rate, config.channels)
            }
            Some(TagKind::Other { codec, .. }) => codec.to_owned(),
        };
        let mut codec = self.shared.codec.borrow_mut();
        if codec.as_ref() != Some(&name) {
            tracing::info!(session = %self.core.slug, codec = name, "audio announced");
            *codec = Some(name);
        }
        Ok(Some(body))
    }

    fn unsupported(&self, error: Unsupported) -> End {
        self.core.metrics.unsupported_audio_total.with_label_values(&[error.as_str()]).inc();
        End::Unsupported(error)
    }

    async fn tag(&mut self, timestamp_ms: u64, body: bytes::Bytes) {
        let tag = AudioTag { publisher: self.generation, timestamp_ms, body, arrived: Instant::now() };
        self.shared.tags.set(self.shared.tags.get() + 1);
        self.shared.last_timestamp_ms.set(Some(timestamp_ms));
        if self.shed.is_none() && timeout(STALL, self.core.tags.push(tag.clone())).await.is_ok() {
            return;
        }
        self.push_or_shed(tag);
    }

    /// Without waiting: the oldest tags make room, except for the configuration of those that stay.
    fn push_or_shed(&mut self, mut tag: AudioTag) {
        if self.shed.is_none() {
            tracing::warn!(session = %self.core.slug, "no decoder takes audio; the oldest is dropped");
        }
        let mut dropped = false;
        while let Err(back) = self.core.tags.try_push(tag) {
            tag = back;
            if let Some(old) = self.core.tags.shed(is_config).filter(|old| !is_config(old)) {
                dropped = true;
                let at_ms = old.arrived.saturating_duration_since(self.core.started).as_millis() as u64;
                let shed = self.shed.get_or_insert(Lost { start_ms: at_ms, end_ms: at_ms, tags: 0 });
                (shed.end_ms, shed.tags) = (at_ms, shed.tags + 1);
                self.core.decode.lock().told_until(at_ms);
                if at_ms >= shed.start_ms + SHED_PIECE_MS {
                    announce_loss(&self.core, *shed);
                    *shed = Lost { start_ms: at_ms, end_ms: at_ms, tags: 0 };
                }
                self.shared.tags_shed.set(self.shared.tags_shed.get() + 1);
            }
        }
        if !dropped {
            self.end_shedding();
        }
    }

    fn end_shedding(&mut self) {
        if let Some(lost) = self.shed.take() {
            tracing::warn!(session = %self.core.slug, tags = lost.tags, "audio dropped while no decoder took any");
            announce_loss(&self.core, lost);
        }
    }
}

/// Without it nobody can decode the frames that follow.
fn is_config(tag: &AudioTag) -> bool {
    matches!(tag::inspect(&tag.body), Ok(Some(TagKind::Config(_))))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::actors::session_core::TAG_CAPACITY;
    use crate::actors::transcript_room::RoomInput;
    use crate::config::Config;
    use crate::log::{GapReason, Slug};
    use crate::metrics::Metrics;

    fn reader() -> Reader {
        let config = Arc::new(Config::load(&Default::default(), true).unwrap());
        let core = SessionCore::new(Slug::parse("demo").unwrap(), config, Arc::new(Metrics::new()));
        Reader { core: Arc::new(core), shared: Rc::default(), generation: 1, shed: None }
    }

    #[tokio::test(start_paused = true)]
    async fn without_a_decoder_old_audio_makes_room_and_the_loss_is_announced() {
        let mut reader = reader();
        // Not 0 where making the session took a moment.
        let begun = reader.core.clock_ms();
        let body = || bytes::Bytes::from_static(&[0xAF, 1, 0]);
        for n in 0..TAG_CAPACITY as u64 + 50 {
            tokio::time::advance(Duration::from_millis(20)).await;
            reader.tag(n * 20, body()).await;
        }
        assert_eq!(reader.core.tags.len(), TAG_CAPACITY);
        assert_eq!(reader.core.tags.peek(0).await.timestamp_ms, 50 * 20, "the oldest are gone");
        assert!(reader.core.room.is_empty(), "it is announced once, at its end");
        reader.core.tags.pop();
        reader.tag(90_000, body()).await;
        let gap = reader.core.room.pop();
        let Some(RoomInput::Gap { start_ms, end_ms, reason, .. }) = gap else { panic!("{gap:?}") };
        assert_eq!((start_ms, end_ms, reason), (begun + 20, begun + 1000, GapReason::DecodeError));
        assert_eq!(reader.shared.tags_shed.get(), 50);
    }

    #[tokio::test(start_paused = true)]
    async fn a_configuration_never_makes_room() {
        let mut reader = reader();
        let config = bytes::Bytes::from_static(&[0xAF, 0, 0x14, 0x08]);
        let frame = || bytes::Bytes::from_static(&[0xAF, 1, 0]);
        // An encoder that says it again and again.
        for n in 0..3 * TAG_CAPACITY as u64 {
            tokio::time::advance(Duration::from_millis(20)).await;
            if n % 100 == 0 {
                reader.tag(n * 20, config.clone()).await;
            }
            reader.tag(n * 20, frame()).await;
        }
        assert_eq!(reader.core.tags.len(), TAG_CAPACITY);
        assert_eq!(reader.core.tags.peek(0).await.body, config);
        assert_eq!(reader.core.tags.peek(1).await.body, frame());
        assert_eq!(reader.core.tags.peek(TAG_CAPACITY - 1).await.timestamp_ms, (3 * TAG_CAPACITY as u64 - 1) * 20);
    }
}
