//! Captions as text streams on the participant's reliable channel.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use chrono::Utc;
use prost::Message;
use tokio::time::Instant;

use crate::actors::session_core::SessionCore;
use crate::livekit::captions::{CaptionFeed, InRoom, stream};
use crate::livekit::roster::Roster;
use crate::livekit::rtc::{Peer, PeerError};
use crate::livekit::wire::DataPacket;
use crate::transcript::Entry;

/// Bytes that may wait in the channel before the next caption is taken from the log.
const MAX_BUFFERED: usize = 64 << 10;
/// Pause before a channel that is full is looked at again.
const FULL: Duration = Duration::from_millis(50);

/// See the module.
pub(super) struct CaptionWriter {
    core: Arc<SessionCore>,
    /// None until the channel is open.
    feed: Option<CaptionFeed>,
    /// Of the caption under way.
    packets: VecDeque<DataPacket>,
    sequence: u32,
    full_until: Option<Instant>,
}

impl CaptionWriter {
    pub(super) fn new(core: &Arc<SessionCore>) -> Self {
        Self { core: core.clone(), feed: None, packets: VecDeque::new(), sequence: 0, full_until: None }
    }

    /// The channel is open: captions go on after the last one that the room was shown.
    pub(super) fn begin(&mut self) {
        let after = self.core.captioned_after();
        self.feed = Some(CaptionFeed::new(self.core.log.clone(), after, Instant::now()));
    }

    /// Writes as much as the channel takes.
    pub(super) fn write(&mut self, channel: &mut Peer, roster: &Roster) -> Result<(), PeerError> {
        self.full_until = None;
        loop {
            while let Some(packet) = self.packets.front_mut() {
                packet.sequence = self.sequence + 1;
                if channel.buffered() > MAX_BUFFERED || !channel.send(&packet.encode_to_vec())? {
                    self.full_until = Some(Instant::now() + FULL);
                    return Ok(());
                }
                self.sequence += 1;
                self.packets.pop_front();
            }
            if !self.next(roster) {
                return Ok(());
            }
        }
    }

    /// False when there is no caption now.
    fn next(&mut self, roster: &Roster) -> bool {
        let Some(feed) = &mut self.feed else { return false };
        let now = Instant::now();
        let metrics = &self.core.metrics.livekit_captions_total;
        metrics.with_label_values(&["skipped"]).inc_by(feed.take_skipped());
        let Some(caption) = feed.next(now) else { return false };
        if let Some(seq) = caption.seq {
            self.core.captioned.fetch_max(seq, Ordering::Relaxed);
        }
        let Entry::Transcript(line) = &caption.entry else { return true };
        if caption.is_late(now) {
            metrics.with_label_values(&["late"]).inc();
            return true;
        }
        // Of those alone who are in the room: a label that the recogniser has made up is nobody's identity.
        let identity = line.speaker.as_ref().map(|speaker| speaker.identity.as_str());
        let speaker = identity.filter(|identity| roster.has(identity));
        let speaker = speaker.map(|identity| InRoom { identity, track: roster.microphone_of(identity) });
        self.packets.extend(stream(line, speaker, Utc::now().timestamp_millis()));
        metrics.with_label_values(&["sent"]).inc();
        true
    }

    /// When [`Self::write`] may do something although nothing new has come.
    pub(super) fn wake_at(&self) -> Option<Instant> {
        let interim = self.feed.as_ref().and_then(CaptionFeed::wake_at);
        self.full_until.into_iter().chain(interim).min()
    }

    /// Returns when something new has come into the log.
    pub(super) async fn changed(&mut self) {
        match &mut self.feed {
            Some(feed) => feed.changed().await,
            None => std::future::pending().await,
        }
    }

    /// Everything that there was is in the server's hands.
    pub(super) fn is_done(&mut self, channel: &mut Peer) -> bool {
        let is_read = self.feed.as_ref().is_none_or(CaptionFeed::is_over);
        is_read && self.packets.is_empty() && channel.buffered() == 0
    }
}
