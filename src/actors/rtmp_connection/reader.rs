//! The work of an `RtmpConnection`, as one future: everything that a publisher sends, in order.

use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::{Instant, sleep, timeout};

use super::{CloseReason, Shared};
use crate::actors::session_core::SessionCore;
use crate::audio::AudioTag;
use crate::audio::state::Lost;
use crate::audio::tag::{self, TagKind, Unsupported};
use crate::audio::track::{Taken, Track, Unused};
use crate::rtmp::{Connection, Ended, Event, Ignored, Reason};

/// A full edge for so long means that no decoder is there. From then on old audio makes room for new: a publisher
/// whose bytes nobody takes for 30 s gives up for good (LiveKit Egress).
const STALL: Duration = Duration::from_secs(10);

/// A long loss is announced in pieces.
const SHED_PIECE_MS: u64 = 30_000;

/// Reads one publisher to its end.
pub(super) struct Reader {
    core: Arc<SessionCore>,
    shared: Rc<Shared>,
    generation: u64,
    track: Track<(u64, Instant)>,
    /// Audio that had to make room, while no decoder takes any.
    shed: Option<Lost>,
}

impl From<Unused> for Ignored {
    fn from(unused: Unused) -> Self {
        match unused {
            Unused::SideTrack => Self::SideTrack,
            Unused::StrayCodec => Self::StrayCodec,
            Unused::BadConfig => Self::BadConfig,
        }
    }
}

impl Reader {
    pub fn new(core: Arc<SessionCore>, shared: Rc<Shared>, generation: u64) -> Self {
        Self { core, shared, generation, track: Track::default(), shed: None }
    }

    pub async fn run(mut self, mut wire: Connection) -> (Connection, Ended) {
        let shared = self.shared.clone();
        let end = tokio::select! {
            biased;
            () = shared.close_ordered.notified() => {
                shared.close.get().unwrap_or(CloseReason::SessionEnded).into()
            }
            end = self.read(&mut wire) => end,
        };
        self.end_shedding();
        (0..self.track.held()).for_each(|_| wire.ignore(Ignored::StrayCodec));
        (wire, end)
    }

    async fn read(&mut self, wire: &mut Connection) -> Ended {
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
                () = &mut first_audio, if self.shared.tags.get() == 0 => {
                    return Ended::new(Reason::NoAudio, format!("no audio within {} ms", no_audio.as_millis()));
                }
                read = timeout(idle, wire.exchange()) => match read {
                    Err(_) => {
                        let what = format!("the publisher sent nothing for {} ms", idle.as_millis());
                        return Ended::new(Reason::Idle, what);
                    }
                    Ok(Err(error)) => return error.into(),
                    Ok(Ok(false)) => return Ended::new(Reason::Eof, "the publisher closed the connection"),
                    Ok(Ok(true)) => {}
                },
            }
        }
    }

    /// Everything in what was read.
    async fn events(&mut self, wire: &mut Connection) -> Option<Ended> {
        loop {
            match wire.next_event() {
                Ok(None) => return None,
                Ok(Some(Event::Audio { timestamp_ms, body })) => {
                    match self.track.take((timestamp_ms, Instant::now()), body) {
                        Ok(taken) => self.taken(wire, taken).await,
                        Err(error) => return Some(self.unsupported(error)),
                    }
                }
                Ok(Some(Event::Unpublished)) => {
                    return Some(Ended::new(Reason::Unpublished, "the publisher said goodbye"));
                }
                // The protocol asks once, and the wire counts what is ignored.
                Ok(Some(Event::Publish(_) | Event::Ignored(_))) => {}
                Err(error) => return Some(error.into()),
            }
        }
    }

    async fn taken(&mut self, wire: &mut Connection, taken: Taken<(u64, Instant)>) {
        if let Some((unused, count)) = taken.unused {
            (0..count).for_each(|_| wire.ignore(unused.into()));
        }
        for ((timestamp_ms, arrived), body) in taken.tags {
            self.announce(&body);
            self.tag(timestamp_ms, body, arrived).await;
        }
    }

    fn announce(&self, body: &[u8]) {
        let name = match tag::inspect(body) {
            Ok(Some(TagKind::Config(config) | TagKind::Adts(config))) => {
                format!("{} {} Hz {} channels", config.name(), config.rate, config.channels)
            }
            Ok(Some(TagKind::Other { codec, .. })) => codec.to_owned(),
            _ => return,
        };
        let mut codec = self.shared.codec.borrow_mut();
        if codec.as_ref() != Some(&name) {
            tracing::info!(session = %self.core.slug, codec = name, "audio announced");
            *codec = Some(name);
        }
    }

    fn unsupported(&self, error: Unsupported) -> Ended {
        self.core.metrics.unsupported_audio_total.with_label_values(&[error.as_str()]).inc();
        Ended::new(Reason::UnsupportedAudio, error.to_string())
    }

    async fn tag(&mut self, timestamp_ms: u64, body: bytes::Bytes, arrived: Instant) {
        let tag = AudioTag { publisher: self.generation, timestamp_ms, body, arrived };
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
                self.core.decode().announced_until(at_ms);
                if at_ms >= shed.start_ms + SHED_PIECE_MS {
                    self.core.announce_undecoded(*shed);
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
            self.core.announce_undecoded(lost);
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
    use crate::config::Config;
    use crate::metrics::Metrics;
    use crate::transcript::{GapReason, Slug, TranscriptEvent};

    fn reader() -> Reader {
        let config = Arc::new(Config::load(&Default::default(), true).unwrap());
        let core = SessionCore::new(Slug::parse("demo").unwrap(), config, Arc::new(Metrics::new()));
        Reader::new(Arc::new(core), Rc::default(), 1)
    }

    #[tokio::test(start_paused = true)]
    async fn without_a_decoder_old_audio_makes_room_and_the_loss_is_announced() {
        let mut reader = reader();
        // Not 0 where making the session took a moment.
        let begun = reader.core.clock_ms();
        let body = || bytes::Bytes::from_static(&[0xAF, 1, 0]);
        for n in 0..TAG_CAPACITY as u64 + 50 {
            tokio::time::advance(Duration::from_millis(20)).await;
            reader.tag(n * 20, body(), Instant::now()).await;
        }
        assert_eq!(reader.core.tags.len(), TAG_CAPACITY);
        assert_eq!(reader.core.tags.peek(0).await.timestamp_ms, 50 * 20, "the oldest are gone");
        assert!(reader.core.results.is_empty(), "it is announced once, at its end");
        reader.core.tags.pop();
        reader.tag(90_000, body(), Instant::now()).await;
        let gap = reader.core.results.pop();
        let Some(TranscriptEvent::Gap { start_ms, end_ms, reason, .. }) = gap else { panic!("{gap:?}") };
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
                reader.tag(n * 20, config.clone(), Instant::now()).await;
            }
            reader.tag(n * 20, frame(), Instant::now()).await;
        }
        assert_eq!(reader.core.tags.len(), TAG_CAPACITY);
        assert_eq!(reader.core.tags.peek(0).await.body, config);
        assert_eq!(reader.core.tags.peek(1).await.body, frame());
        assert_eq!(reader.core.tags.peek(TAG_CAPACITY - 1).await.timestamp_ms, (3 * TAG_CAPACITY as u64 - 1) * 20);
    }
}
