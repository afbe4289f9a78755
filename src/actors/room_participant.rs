//! `RoomParticipant`: a hidden participant of ours in the LiveKit room of a session.
//!
//! Owns: its connections (`link`), each with an identity of its own. Receives: who speaks, from the server. Sends: that to
//! `SpeakerTracker`, and with `LIVEKIT_CAPTIONS=transcription` captions into the room, pulled from the session's log. It
//! runs on a thread that sessions do not share, and its failure costs labels and captions in the room alone. It makes no
//! room and keeps none open. Ends on `Shutdown`, when the last captions are sent, or by a panic.

mod counting;
mod life;
mod link;
mod udp;
mod writer;

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use actix::prelude::*;
use chrono::Utc;
use serde::Serialize;
use serde_json::json;
use tokio::sync::watch;
use tokio::time::Instant;
use tracing::Instrument;
use uuid::Uuid;

use self::counting::{Counted, Gate};
use self::life::Life;
use self::link::Fault;
use super::session_core::SessionCore;
use super::supervision::{Lifeline, Observable, Observe};
use super::{Crash, Shutdown};
use crate::config::{CaptionsTo, Secret, SpeakersFrom};
use crate::livekit::api::{ApiClient, ApiError, ApiServer};
use crate::livekit::signal::IDENTITY_PREFIX;
use crate::livekit::signal_client::SignalClient;
use crate::livekit::token::sign;
use crate::transcript::SpeakerUpdate;

/// The join has to happen within this time; connections live as long as they like.
const TOKEN_TTL_S: i64 = 600;
/// Longest wait for the last captions and the goodbye.
const LAST_WORDS: Duration = Duration::from_secs(6);

/// The participant of one session.
pub struct RoomParticipant {
    shared: Rc<Shared>,
    closing: watch::Sender<bool>,
    lifeline: Lifeline,
}

/// Time spans that tests shorten.
#[derive(Debug, Clone, Copy)]
pub struct Timing {
    /// A WebRTC connection that is not there by then does not come: UDP is blocked.
    pub udp: Duration,
    /// The server ends a connection without WebRTC 60 s after its join: by then another one is there.
    pub rotate: Duration,
    /// UDP that was blocked is tried again after so long.
    pub udp_again: Duration,
    /// Interval in which a room that is not there is looked for.
    pub look_for_room: Duration,
}

impl Default for Timing {
    fn default() -> Self {
        Self {
            udp: Duration::from_secs(10),
            rotate: Duration::from_secs(45),
            udp_again: Duration::from_secs(300),
            look_for_room: Duration::from_secs(2),
        }
    }
}

/// The part that its connections share with it.
struct Shared {
    core: Arc<SessionCore>,
    server: Arc<ApiServer>,
    api: ApiClient,
    signalling: SignalClient,
    state: RefCell<State>,
    gate: RefCell<Gate>,
    timing: Timing,
    /// When UDP is tried again.
    udp_at: Cell<Instant>,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Phase {
    #[default]
    WaitingForRoom,
    Joining,
    /// With WebRTC.
    InRoom,
    /// Without WebRTC, by one short connection after the other.
    SignallingOnly,
    BackingOff,
}

#[derive(Default)]
struct State {
    phase: Phase,
    identity: Option<String>,
    server: String,
    participants: usize,
    joins: u64,
    updates: u64,
    dropped: u64,
    fault: Option<String>,
    /// The fault at hand was logged.
    has_complained: bool,
    is_udp_blocked: bool,
    in_room: Option<Counted>,
}

impl RoomParticipant {
    pub fn start(
        arbiter: &ArbiterHandle,
        core: Arc<SessionCore>,
        server: Arc<ApiServer>,
        lifeline: Lifeline,
    ) -> Addr<Self> {
        Self::start_with(arbiter, core, server, lifeline, Timing::default())
    }

    /// As [`Self::start`], with other time spans; tests shorten them.
    pub fn start_with(
        arbiter: &ArbiterHandle,
        core: Arc<SessionCore>,
        server: Arc<ApiServer>,
        lifeline: Lifeline,
        timing: Timing,
    ) -> Addr<Self> {
        Self::start_in_arbiter(arbiter, move |_| {
            let shared = Shared {
                api: server.client(),
                signalling: SignalClient::new(server.url(), server.tls().clone()),
                core,
                server,
                timing,
                state: RefCell::new(State::default()),
                gate: RefCell::new(Gate::new(Instant::now())),
                udp_at: Cell::new(Instant::now()),
            };
            Self { shared: Rc::new(shared), closing: watch::Sender::new(false), lifeline }
        })
    }
}

impl Actor for RoomParticipant {
    type Context = Context<Self>;

    fn started(&mut self, ctx: &mut Self::Context) {
        self.lifeline.started();
        let core = &self.shared.core;
        let span = tracing::info_span!("participant", session = %core.slug, epoch = %core.epoch);
        let life = Life { shared: self.shared.clone(), closing: self.closing.subscribe() };
        // Inside the actor, so that a panic of the loop is a panic of the actor.
        ctx.spawn(life.run().instrument(span).into_actor(self).map(|(), _, ctx| ctx.stop()));
    }
}

impl Handler<Shutdown> for RoomParticipant {
    type Result = ();

    fn handle(&mut self, _: Shutdown, ctx: &mut Self::Context) {
        self.closing.send_replace(true);
        ctx.run_later(LAST_WORDS, |_, ctx| ctx.stop());
    }
}

impl Handler<Crash> for RoomParticipant {
    type Result = ();

    fn handle(&mut self, _: Crash, _: &mut Self::Context) {
        panic!("crash requested");
    }
}

/// The state that `/metrics` shows.
#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct RoomParticipantState {
    pub generation: u64,
    pub phase: Phase,
    pub identity: Option<String>,
    pub server: String,
    pub participants: usize,
    pub joins: u64,
    pub speaker_updates: u64,
    /// Reports that came in a flood.
    pub dropped_updates: u64,
    pub is_udp_blocked: bool,
    pub fault: Option<String>,
}

impl Observable for RoomParticipant {
    type State = RoomParticipantState;
}

impl Handler<Observe<Self>> for RoomParticipant {
    type Result = MessageResult<Observe<Self>>;

    fn handle(&mut self, _: Observe<Self>, _: &mut Self::Context) -> Self::Result {
        let state = self.shared.state.borrow();
        MessageResult(RoomParticipantState {
            generation: self.lifeline.generation(),
            phase: state.phase,
            identity: state.identity.clone(),
            server: state.server.clone(),
            participants: state.participants,
            joins: state.joins,
            speaker_updates: state.updates,
            dropped_updates: state.dropped,
            is_udp_blocked: state.is_udp_blocked,
            fault: state.fault.clone(),
        })
    }
}

impl Shared {
    fn api(&self) -> ApiClient {
        self.api.clone()
    }

    fn signalling(&self) -> &SignalClient {
        &self.signalling
    }

    /// It is there to hear who speaks.
    fn listens(&self) -> bool {
        self.core.config.livekit.speakers == SpeakersFrom::Observer
    }

    /// It is there to write captions.
    fn publishes(&self) -> bool {
        self.core.config.livekit.captions == CaptionsTo::Transcription
    }

    /// One that nobody in the room has or has had: whoever comes with an identity that is taken sends the other out.
    fn new_identity(&self) -> String {
        let random = Uuid::new_v4().simple().to_string();
        format!("{IDENTITY_PREFIX}{}-{}", self.core.epoch.simple(), &random[..8])
    }

    /// As an agent, which does not keep a room open and may write for others; hidden from those who look at the room.
    fn token(&self, identity: &str) -> Secret {
        let (key, secret) = self.server.keys().signer();
        let video = json!({
            "roomJoin": true, "room": self.core.slug.as_str(), "canPublish": false, "canSubscribe": true,
            "canPublishData": self.publishes(), "hidden": true, "agent": true,
        });
        // Without nbf: a clock that is ahead costs nothing then.
        let exp = Utc::now().timestamp() + TOKEN_TTL_S;
        Secret::new(sign(
            &json!({"iss": key, "sub": identity, "name": "stenocast", "exp": exp, "video": video}),
            &secret,
        ))
    }

    fn is_udp_due(&self) -> bool {
        Instant::now() >= self.udp_at.get()
    }

    fn is_in_room(&self) -> bool {
        matches!(self.state.borrow().phase, Phase::InRoom | Phase::SignallingOnly)
    }

    fn enter(&self, phase: Phase) {
        let mut state = self.state.borrow_mut();
        state.phase = phase;
        if !matches!(phase, Phase::InRoom | Phase::SignallingOnly | Phase::Joining) {
            (state.identity, state.in_room, state.participants) = (None, None, 0);
        }
    }

    fn joined(&self, identity: &str) {
        let phase = if self.state.borrow().is_udp_blocked { Phase::SignallingOnly } else { Phase::InRoom };
        self.enter(phase);
        let mut state = self.state.borrow_mut();
        state.joins += 1;
        state.identity = Some(identity.to_owned());
        if !state.is_udp_blocked {
            // Of the same kind as what comes next, or as what went on so far.
            self.count(&mut state, "udp");
        } else {
            self.count(&mut state, "signalling");
        }
    }

    /// WebRTC is there.
    fn connected(&self, identity: &str, server: &str) {
        let mut state = self.state.borrow_mut();
        if state.is_udp_blocked {
            tracing::info!("UDP goes through to LiveKit again");
        } else {
            tracing::info!(identity, version = server, "our participant is in the room");
        }
        state.phase = Phase::InRoom;
        state.server = server.to_owned();
        (state.is_udp_blocked, state.has_complained, state.fault) = (false, false, None);
        self.count(&mut state, "udp");
    }

    fn count(&self, state: &mut State, mode: &str) {
        state.in_room = Some(Counted::new(&self.core.metrics.livekit_rooms_joined.with_label_values(&[mode])));
    }

    fn udp_failed(&self, error: &str) {
        self.udp_at.set(Instant::now() + self.timing.udp_again);
        let mut state = self.state.borrow_mut();
        if !state.is_udp_blocked {
            let captions = self.publishes();
            tracing::warn!(
                error,
                captions,
                "no WebRTC to LiveKit; who speaks is heard by signalling alone, captions do not reach the room"
            );
        }
        state.is_udp_blocked = true;
        state.fault = Some(error.to_owned());
        if state.in_room.is_some() {
            state.phase = Phase::SignallingOnly;
            self.count(&mut state, "signalling");
        }
    }

    /// Gives the pause back.
    fn failed(&self, fault: &Fault, pause: Duration) -> Duration {
        self.enter(Phase::BackingOff);
        let mut state = self.state.borrow_mut();
        let delay_ms = pause.as_millis() as u64;
        if life::is_room_gone(fault) {
            tracing::info!("the room is over at LiveKit");
        } else if !state.has_complained {
            tracing::warn!(error = %fault, delay_ms, "not in LiveKit's room; who speaks is not heard from there");
            state.has_complained = true;
        } else {
            tracing::debug!(error = %fault, delay_ms, "still not in LiveKit's room");
        }
        state.fault = Some(fault.to_string());
        pause
    }

    fn api_failed(&self, error: &ApiError) {
        let mut state = self.state.borrow_mut();
        if !state.has_complained {
            tracing::warn!(%error, "the rooms of LiveKit cannot be listed; who speaks is not heard from there");
            state.has_complained = true;
        }
        state.fault = Some(error.to_string());
    }

    /// Passes a report on. A flood, or a tracker that is busy, costs reports: a newer one follows.
    fn report(&self, update: SpeakerUpdate) {
        let mut state = self.state.borrow_mut();
        if !self.gate.borrow_mut().admit(Instant::now()) {
            state.dropped += 1;
            return;
        }
        state.updates += 1;
        self.core.metrics.livekit_speaker_updates_total.inc();
        let tracker = self.core.tracker().clone();
        if let Some(tracker) = tracker {
            let _ = tracker.try_send(update);
        }
    }
}
