//! The state of a session that `/metrics` shows.

use actix::prelude::*;
use chrono::{DateTime, Utc};
use serde::Serialize;

use super::children::{Children, OBSERVE_TIMEOUT};
use super::{Origin, Session};
use crate::actors::ffmpeg_decoder::FfmpegDecoderState;
use crate::actors::gladia_bridge::GladiaBridgeState;
use crate::actors::room_captions::RoomCaptionsState;
use crate::actors::room_participant::RoomParticipantState;
use crate::actors::rtmp_connection::RtmpConnectionState;
use crate::actors::session_core::SessionCore;
use crate::actors::speaker_tracker::SpeakerTrackerState;
use crate::actors::supervision::{Answer, ChildState, Observable, Observe, observe};
use crate::actors::transcript_room::TranscriptRoomState;
use crate::gladia::ledger::Account;
use crate::transcript::{Epoch, Slug, Status};

#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct SessionActorState {
    pub session: Slug,
    pub epoch: Epoch,
    pub origin: &'static str,
    pub phase: &'static str,
    pub status: Status,
    pub started_at: DateTime<Utc>,
    pub uptime_ms: u64,
    pub generation: u64,
    pub degraded: bool,
    pub rebuilds: u32,
    pub viewers: usize,
    pub seq: u64,
    pub edges: EdgeDepths,
    pub audio: Account,
    pub children: ChildrenState,
}

/// Items that wait between two actors.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct EdgeDepths {
    pub tags: u64,
    /// Chunks that the recogniser was not sent.
    pub pcm: u64,
    pub room: u64,
}

/// Bridge, decoder and connection are there where a publisher is heard, the last two where the settings of LiveKit ask
/// for them.
#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct ChildrenState {
    pub transcript_room: ChildState<TranscriptRoomState>,
    pub speaker_tracker: ChildState<SpeakerTrackerState>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub gladia_bridge: Option<ChildState<GladiaBridgeState>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ffmpeg_decoder: Option<ChildState<FfmpegDecoderState>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rtmp_connection: Option<Answer<RtmpConnectionState>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub room_participant: Option<ChildState<RoomParticipantState>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub room_captions: Option<ChildState<RoomCaptionsState>>,
}

impl Observable for Session {
    type State = SessionActorState;
}

impl Handler<Observe<Self>> for Session {
    type Result = ResponseFuture<SessionActorState>;

    fn handle(&mut self, _: Observe<Self>, _: &mut Self::Context) -> Self::Result {
        let (core, children) = (self.core.clone(), self.children.clone());
        let viewers = self.services.directory.get(&core.slug).map_or(0, |room| room.viewers());
        let (phase, generation) = (self.phase.as_str(), self.lifeline.generation());
        let (degraded, rebuilds) = (self.degraded, self.rebuilds);
        Box::pin(async move {
            let children = observe_children(&core, &children).await;
            SessionActorState {
                session: core.slug.clone(),
                epoch: core.epoch,
                origin: core.origin.as_str(),
                phase,
                status: core.log.status(),
                started_at: core.started_at,
                uptime_ms: core.clock_ms(),
                generation,
                degraded,
                rebuilds,
                viewers,
                seq: core.log.last_seq(),
                edges: edge_depths(&core),
                audio: core.ledger().account(),
                children,
            }
        })
    }
}

async fn observe_children(core: &SessionCore, children: &Children) -> ChildrenState {
    let is_ingest = core.origin == Origin::Ingest;
    let publisher = core.presence().publisher().map(|p| p.addr.clone());
    let rtmp_connection = observe(publisher, OBSERVE_TIMEOUT).await;
    ChildrenState {
        transcript_room: children.room.observe().await,
        speaker_tracker: children.tracker.observe().await,
        gladia_bridge: if is_ingest { Some(children.bridge.observe().await) } else { None },
        ffmpeg_decoder: if is_ingest { Some(children.decoder.observe().await) } else { None },
        rtmp_connection: is_ingest.then_some(rtmp_connection),
        room_participant: match children.participant.addr() {
            Some(_) => Some(children.participant.observe().await),
            None => None,
        },
        room_captions: match children.captions.addr() {
            Some(_) => Some(children.captions.observe().await),
            None => None,
        },
    }
}

fn edge_depths(core: &SessionCore) -> EdgeDepths {
    let backlog_ms = core.ledger().backlog_ms();
    EdgeDepths {
        tags: core.tags.len() as u64,
        pcm: backlog_ms / core.config.audio.chunk_ms,
        room: core.results.len() as u64,
    }
}
