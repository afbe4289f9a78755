//! `EgressController`: the rooms of a LiveKit server as far as they concern us. Starts and stops their egresses, ends
//! sessions with their rooms, and names participants.
//!
//! Owns: what it knows of rooms, which LiveKit can be asked for again. Receives: webhooks, orders from HTTP, news from
//! other nodes. Sends: calls to LiveKit, ends and names to sessions. Ends on `Shutdown` only; egresses then go on, and
//! find the next process.

mod calls;
mod events;
mod orders;
mod policy;
mod reconcile;
mod room;
mod sessions;
mod state;
mod tracks;

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use actix::prelude::*;
use tokio::sync::{Mutex, mpsc, oneshot};
use tokio::time::Instant;

use self::calls::{Calls, Found, Order};
use self::events::Happened;
pub use self::orders::{EgressRefusal, EgressRun, StartEgress, StopEgress};
use self::policy::{LOOK_INTERVAL, MAX_IGNORED, MAX_ROOMS};
use self::room::{Fault, Room, Step};
pub use self::state::EgressControllerState;

/// The labels of egresses that had begun and are started anew.
pub const RESTART_REASONS: [&str; 4] = Fault::RESTARTS;

use super::services::Services;
use super::session_registry::{EndSession, ExplainWaiting, NameInSession, SessionHere, SessionsHere};
use super::supervision::Lifeline;
use crate::bus::ownership::RoomNews;
use crate::config::{EgressKind, EgressStart, SpeakersFrom};
use crate::livekit::api::ApiError;
use crate::livekit::webhook::WebhookEvent;
use crate::transcript::Slug;

/// Webhooks in the order of their coming; whoever is the controller now listens.
pub type Webhooks = Arc<Mutex<mpsc::Receiver<WebhookEvent>>>;

/// Another node was told this, and the room's session is here.
#[derive(Message)]
#[rtype(result = "()")]
pub struct NewsFromNode(pub RoomNews);

/// A publish of this room was refused here before it began.
#[derive(Debug, Clone, Message)]
#[rtype(result = "()")]
pub struct PublishDenied {
    pub slug: Slug,
    pub reason: &'static str,
}

/// The parts of an `EgressController`.
#[derive(Clone)]
pub struct EgressControllerParams {
    pub services: Arc<Services>,
    pub webhooks: Webhooks,
    pub sessions: Recipient<SessionsHere>,
    pub end: Recipient<EndSession>,
    pub name: Recipient<NameInSession>,
    pub explain: Recipient<ExplainWaiting>,
}

type Waiter = oneshot::Sender<Result<EgressRun, EgressRefusal>>;

/// See the module.
pub struct EgressController {
    params: EgressControllerParams,
    /// None where nothing is asked of LiveKit.
    calls: Option<Calls>,
    rooms: HashMap<Slug, Room>,
    /// Sessions that are numbered here, a second ago.
    here: HashMap<Slug, SessionHere>,
    waiters: HashMap<Slug, Vec<Waiter>>,
    ignored: HashSet<String>,
    reconciled: Option<Instant>,
    api_fault: Option<ApiError>,
    lifeline: Lifeline,
}

impl EgressController {
    pub fn start(params: EgressControllerParams, lifeline: Lifeline) -> Addr<Self> {
        let config = &params.services.config;
        let server = params.services.livekit.as_ref().filter(|_| config.server.mode.ingests());
        let calls = server.map(|server| Calls::new(server, config));
        Actor::start(Self {
            calls,
            rooms: HashMap::new(),
            here: HashMap::new(),
            waiters: HashMap::new(),
            ignored: HashSet::new(),
            reconciled: None,
            api_fault: None,
            params,
            lifeline,
        })
    }

    /// Egresses of rooms are this node's to start.
    fn controls(&self) -> bool {
        self.calls.is_some() && self.params.services.config.livekit.egress == EgressKind::RoomComposite
    }

    fn controls_tracks(&self) -> bool {
        self.calls.is_some() && self.params.services.config.livekit.speakers == SpeakersFrom::Tracks
    }

    /// Something may be started for a room of this name.
    fn is_matched(&self, slug: &Slug) -> bool {
        self.params.services.config.livekit.rooms.matches(slug.as_str())
    }

    /// The room of this name. None: it is none that could have a session here.
    fn slug_of(&mut self, name: &str) -> Option<Slug> {
        let parsed = Slug::parse(name);
        let reason = match &parsed {
            Err(_) => "name",
            Ok(slug) if !self.is_matched(slug) => "pattern",
            Ok(_) => return parsed.ok(),
        };
        if self.ignored.len() < MAX_IGNORED && self.ignored.insert(name.to_owned()) {
            self.params.services.metrics.livekit_rooms_ignored_total.with_label_values(&[reason]).inc();
            match &parsed {
                Err(error) => tracing::warn!(%error, "nothing is started for a room of LiveKit whose name is no slug"),
                Ok(slug) => {
                    tracing::info!(session = %slug, "nothing is started for a room that LIVEKIT_ROOMS leaves out");
                }
            }
        }
        parsed.ok()
    }

    fn room(&mut self, slug: &Slug) -> Option<&mut Room> {
        if self.rooms.len() >= MAX_ROOMS && !self.rooms.contains_key(slug) {
            return None;
        }
        Some(self.rooms.entry(slug.clone()).or_default())
    }

    fn is_wanted(&mut self, slug: &Slug) -> bool {
        let (controls, is_matched) = (self.controls(), self.is_matched(slug));
        let services = self.params.services.clone();
        let Some(room) = self.rooms.get_mut(slug) else { return false };
        let viewers = || services.directory.get(slug).map_or(0, |room| room.viewers_anywhere());
        let is_due = match services.config.livekit.egress_start {
            EgressStart::Room => true,
            EgressStart::Api => false,
            EgressStart::Viewer => {
                room.is_watched = room.is_watched || viewers() > 0;
                room.is_watched
            }
        };
        controls && is_matched && room.sid.is_some() && !room.is_refused && (is_due || room.is_asked)
    }

    /// Looks after one room: does what is due.
    fn attend(&mut self, slug: &Slug, ctx: &mut Context<Self>) {
        let now = Instant::now();
        self.attend_session(slug, now, ctx);
        if self.calls.is_some() {
            let is_wanted = self.is_wanted(slug);
            let is_heard = self.here.get(slug).is_some_and(|here| here.is_publishing);
            let step = self.rooms.get_mut(slug).and_then(|room| room.next(is_wanted, is_heard, now));
            if let Some(step) = step {
                self.take(slug, step, ctx);
            }
            self.attend_microphones(slug, now, ctx);
        }
        if self.rooms.get(slug).is_some_and(Room::is_forgettable) {
            self.rooms.remove(slug);
        }
    }

    fn look(&mut self, ctx: &mut Context<Self>) {
        let here = self.params.sessions.send(SessionsHere);
        let looked = here.into_actor(self).map(|here, this, ctx| {
            let here = here.unwrap_or_default();
            this.here = here.into_iter().map(|session| (session.slug.clone(), session)).collect();
            let slugs: Vec<Slug> = this.rooms.keys().cloned().collect();
            for slug in &slugs {
                this.attend(slug, ctx);
            }
            this.report();
        });
        ctx.spawn(looked);
    }

    fn take(&mut self, slug: &Slug, step: Step, ctx: &mut Context<Self>) {
        let (Some(calls), Some(room)) = (self.calls.clone(), self.rooms.get_mut(slug)) else { return };
        room.is_busy = true;
        let (sid, stopped) = (room.sid.clone().unwrap_or_default(), room.stopped());
        let order = Order { slug: slug.clone(), is_forced: room.is_forced(Instant::now()), sid, stopped };
        let services = self.params.services.clone();
        let made = async move {
            let done = match step {
                Step::Start => Done::Started(calls.start(&order).await),
                Step::Look => Done::Looked(calls.look(&order).await),
                Step::Stop { fault: Some(Fault::Silent | Fault::Denied(_)), .. }
                    if is_published_elsewhere(&services, &order.slug).await =>
                {
                    Done::HeardElsewhere
                }
                Step::Stop { id, fault } => Done::Stopped { result: calls.stop(&id).await, id, fault },
            };
            (order, done)
        };
        ctx.spawn(made.into_actor(self).map(|(order, done), this, ctx| this.done(&order, done, ctx)));
    }

    fn done(&mut self, order: &Order, done: Done, ctx: &mut Context<Self>) {
        let (slug, now) = (&order.slug, Instant::now());
        let Some(room) = self.rooms.get_mut(slug) else { return };
        room.is_busy = false;
        if room.sid.as_ref() != Some(&order.sid) {
            // Another room has the name by now. What was started may be its, and is found there.
            room.look_now(now);
            self.answer(slug, &Err(EgressRefusal::NoRoom));
            return self.attend(slug, ctx);
        }
        match done {
            Done::Started(Ok(found)) => self.has_started(slug, found, now),
            Done::Started(Err(error)) => {
                self.params.services.metrics.egress_starts_total.with_label_values(&[error.as_str()]).inc();
                self.answer(slug, &Err(EgressRefusal::Api(error.clone())));
                self.has_failed(slug, Fault::Api(error), now);
            }
            Done::Looked(Ok(Found::Runs { info, duplicates, .. })) => {
                room.runs(&info, now);
                self.has_settled(slug, duplicates, now);
            }
            Done::Looked(Ok(_)) => drop(room.egress.take()),
            Done::Looked(Err(error)) => self.api_failed(&error),
            Done::HeardElsewhere => room.is_heard_elsewhere(now),
            Done::Stopped { id, fault, result } => self.has_stopped(slug, &id, fault, result, now),
        }
        self.attend(slug, ctx);
    }

    fn has_started(&mut self, slug: &Slug, found: Found, now: Instant) {
        let metrics = self.params.services.metrics.clone();
        let Some(room) = self.rooms.get_mut(slug) else { return };
        room.force = false;
        match found {
            Found::Runs { info, is_new, duplicates } => {
                room.runs(&info, now);
                if is_new {
                    room.look_again(now);
                    tracing::info!(session = %slug, egress = info.egress_id, "egress started");
                } else {
                    tracing::info!(session = %slug, egress = info.egress_id, "egress of the room was found");
                }
                let result = if is_new { "started" } else { "found" };
                metrics.egress_starts_total.with_label_values(&[result]).inc();
                let run = EgressRun { egress_id: info.egress_id.clone(), status: info.status().as_str(), is_new };
                self.has_settled(slug, duplicates, now);
                self.answer(slug, &Ok(run));
            }
            Found::StoppedOnRequest | Found::None => {
                room.is_refused = true;
                tracing::info!(session = %slug, "the room's egress was stopped on request; it is not started again");
            }
        }
    }

    fn has_settled(&mut self, slug: &Slug, duplicates: usize, now: Instant) {
        let Some(room) = self.rooms.get_mut(slug).filter(|_| duplicates > 0) else { return };
        room.has_settled(now);
        room.look_again(now);
        self.params.services.metrics.egress_duplicates_total.inc_by(duplicates as u64);
        tracing::warn!(session = %slug, duplicates, "egresses beside the room's first one were stopped");
    }

    fn has_stopped(&mut self, slug: &Slug, id: &str, fault: Option<Fault>, result: Result<(), ApiError>, now: Instant) {
        let Some(room) = self.rooms.get_mut(slug) else { return };
        // Also when it could not be: LiveKit lists some that nobody can stop any more.
        room.forget_egress(id);
        if let Err(error) = result {
            tracing::warn!(session = %slug, egress = id, %error, "egress could not be stopped; it does not count any more");
            self.api_failed(&error);
        }
        match fault {
            Some(fault) => self.is_to_restart(slug, fault, now),
            None => tracing::info!(session = %slug, egress = id, "egress stopped"),
        }
    }

    /// An egress that had begun is to be started anew.
    fn is_to_restart(&mut self, slug: &Slug, fault: Fault, now: Instant) {
        if let Some(room) = self.rooms.get_mut(slug) {
            room.restarts += 1;
        }
        self.params.services.metrics.egress_restarts_total.with_label_values(&[fault.as_str()]).inc();
        self.has_failed(slug, fault, now);
    }

    fn has_failed(&mut self, slug: &Slug, fault: Fault, now: Instant) {
        let Some(room) = self.rooms.get_mut(slug) else { return };
        let error = fault.to_string();
        room.has_failed(fault, now);
        let failures = room.attempts.failures();
        match room.attempts.is_given_up() {
            true => tracing::error!(session = %slug, error, failures, "egress is given up for a while; no captions"),
            false => tracing::warn!(session = %slug, error, failures, "no egress; it is tried again"),
        }
    }

    fn api_failed(&self, error: &ApiError) {
        self.params.services.metrics.livekit_api_errors_total.with_label_values(&[error.as_str()]).inc();
    }

    fn answer(&mut self, slug: &Slug, answer: &Result<EgressRun, EgressRefusal>) {
        for waiter in self.waiters.remove(slug).unwrap_or_default() {
            let _ = waiter.send(answer.clone());
        }
    }
}

/// The outcome of a step.
enum Done {
    Started(Result<Found, ApiError>),
    Looked(Result<Found, ApiError>),
    Stopped { id: String, fault: Option<Fault>, result: Result<(), ApiError> },
    HeardElsewhere,
}

/// In doubt it is, where several nodes share the rooms.
async fn is_published_elsewhere(services: &Services, slug: &Slug) -> bool {
    let Some(ownership) = &services.ownership else { return false };
    ownership.is_published_elsewhere(slug).await.unwrap_or(true)
}

impl Actor for EgressController {
    type Context = Context<Self>;

    fn started(&mut self, ctx: &mut Self::Context) {
        self.lifeline.started();
        let (webhooks, controller) = (self.params.webhooks.clone(), ctx.address());
        let passed_on = async move {
            let mut webhooks = webhooks.lock().await;
            while let Some(event) = webhooks.recv().await {
                // One after the other: what waits, waits in the inbox.
                if controller.send(Happened(event)).await.is_err() {
                    return;
                }
            }
        };
        ctx.spawn(passed_on.into_actor(self));
        ctx.run_interval(LOOK_INTERVAL, Self::look);
        if self.calls.is_some() {
            self.reconcile(ctx);
        }
    }
}

impl Handler<PublishDenied> for EgressController {
    type Result = ();

    fn handle(&mut self, denied: PublishDenied, _: &mut Self::Context) {
        if let Some(room) = self.rooms.get_mut(&denied.slug) {
            room.is_denied(denied.reason);
        }
    }
}

crate::stops_and_crashes!(EgressController);
