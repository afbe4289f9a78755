//! `RoomCaptions`: captions of a session as data packets in its LiveKit room (`LIVEKIT_CAPTIONS=data`).
//!
//! Owns: a place in the session's log, which it reads like a viewer, and one request at a time. Receives: nothing by
//! mailbox. Sends: each final until it has arrived or is too old to be a caption, and the newest interim five times a second;
//! a slow LiveKit holds up nobody else. Where it was is in the session's core: a successor goes on there. Ends when the
//! log is over and sent, or on `Shutdown`.

use std::cell::RefCell;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use actix::prelude::*;
use serde::Serialize;
use tokio::sync::watch;
use tokio::time::Instant;
use tracing::Instrument;

use super::session_core::SessionCore;
use super::supervision::{Lifeline, Observable, Observe};
use super::{Crash, Shutdown};
use crate::livekit::api::{ApiClient, ApiError, ApiServer, Data};
use crate::livekit::captions::{Caption, CaptionFeed, TOPIC, messages};

/// Longest wait for an answer. A caption that was cut off may come twice, with the same id.
const FINAL_TIMEOUT: Duration = Duration::from_secs(5);
const INTERIM_TIMEOUT: Duration = Duration::from_secs(2);
/// Pauses after a failure: each twice the one before.
const BACKOFF_FIRST: Duration = Duration::from_millis(500);
const BACKOFF_MOST: Duration = Duration::from_secs(10);
/// Longest wait for the last captions of a session that is over.
const LAST_WORDS: Duration = Duration::from_secs(5);

/// Sends the captions of one session.
pub struct RoomCaptions {
    shared: Rc<Shared>,
    closing: watch::Sender<bool>,
    lifeline: Lifeline,
}

struct Shared {
    core: Arc<SessionCore>,
    api: ApiClient,
    state: RefCell<State>,
}

#[derive(Default)]
struct State {
    sent: u64,
    failed: u64,
    late: u64,
    skipped: u64,
    /// Failures in a row.
    failures: u32,
    resume_at: Option<Instant>,
    fault: Option<String>,
}

/// What became of one request.
enum Sent {
    Yes,
    /// Nobody is there who could see it.
    NoRoom,
    No(String),
}

impl RoomCaptions {
    pub fn start(
        arbiter: &ArbiterHandle,
        core: Arc<SessionCore>,
        server: Arc<ApiServer>,
        lifeline: Lifeline,
    ) -> Addr<Self> {
        Self::start_in_arbiter(arbiter, move |_| {
            let shared = Shared { api: server.client(), core, state: RefCell::default() };
            Self { shared: Rc::new(shared), closing: watch::Sender::new(false), lifeline }
        })
    }
}

impl Actor for RoomCaptions {
    type Context = Context<Self>;

    fn started(&mut self, ctx: &mut Self::Context) {
        self.lifeline.started();
        let core = &self.shared.core;
        let span = tracing::info_span!("captions", session = %core.slug, epoch = %core.epoch);
        let run = run(self.shared.clone(), self.closing.subscribe());
        // Inside the actor, so that a panic of the loop is a panic of the actor.
        ctx.spawn(run.instrument(span).into_actor(self).map(|(), _, ctx| ctx.stop()));
    }
}

async fn run(shared: Rc<Shared>, mut closing: watch::Receiver<bool>) {
    let core = &shared.core;
    let mut feed = CaptionFeed::new(core.log.clone(), core.captioned_after(), Instant::now());
    loop {
        let caption = feed.next(Instant::now());
        shared.skipped(feed.take_skipped());
        if let Some(caption) = caption {
            shared.send(&caption).await;
            continue;
        }
        // Of a session that goes on, a successor sends the rest.
        if feed.is_over() || *closing.borrow_and_update() {
            return;
        }
        let wake_at = feed.wake_at();
        tokio::select! {
            () = feed.changed() => {}
            _ = closing.changed() => {}
            () = at(wake_at) => {}
        }
    }
}

async fn at(moment: Option<Instant>) {
    match moment {
        Some(moment) => tokio::time::sleep_until(moment).await,
        None => std::future::pending().await,
    }
}

impl Shared {
    /// Sends a caption whole, a final again and again.
    async fn send(&self, caption: &Caption) {
        let messages = messages(&caption.json);
        for message in &messages {
            if !self.deliver(caption, message).await {
                break;
            }
        }
        if let Some(seq) = caption.seq {
            self.core.captioned.fetch_max(seq, Ordering::Relaxed);
        }
    }

    /// False when the caption is given up.
    async fn deliver(&self, caption: &Caption, message: &str) -> bool {
        loop {
            if caption.is_late(Instant::now()) {
                self.late();
                return false;
            }
            let resume_at = self.state.borrow().resume_at.filter(|at| *at > Instant::now());
            match resume_at {
                Some(_) if !caption.is_final() => return false,
                Some(at) => tokio::time::sleep_until(at).await,
                None => {}
            }
            match self.post(caption.is_final(), message).await {
                Sent::Yes => {
                    self.reached();
                    return true;
                }
                Sent::NoRoom => {
                    self.state.borrow_mut().resume_at = Some(Instant::now() + BACKOFF_FIRST * 4);
                    self.core.metrics.livekit_captions_total.with_label_values(&["no_room"]).inc();
                    return false;
                }
                Sent::No(error) => self.failed(&error),
            }
            if !caption.is_final() {
                return false;
            }
        }
    }

    async fn post(&self, is_final: bool, message: &str) -> Sent {
        let data = Data {
            room: self.core.slug.as_str(),
            payload: message.as_bytes(),
            topic: TOPIC,
            is_reliable: is_final,
            to_identities: &[],
        };
        let timeout = if is_final { FINAL_TIMEOUT } else { INTERIM_TIMEOUT };
        match tokio::time::timeout(timeout, self.api.send_data(data)).await {
            Ok(Ok(())) => Sent::Yes,
            Ok(Err(ApiError::NotFound(_))) => Sent::NoRoom,
            Ok(Err(error)) => Sent::No(error.to_string()),
            Err(_) => Sent::No(ApiError::Timeout.to_string()),
        }
    }

    fn reached(&self) {
        let mut state = self.state.borrow_mut();
        if state.failures > 0 {
            tracing::info!("captions reach LiveKit's room again");
        }
        state.sent += 1;
        (state.failures, state.resume_at, state.fault) = (0, None, None);
        self.core.metrics.livekit_captions_total.with_label_values(&["sent"]).inc();
    }

    fn failed(&self, error: &str) {
        let mut state = self.state.borrow_mut();
        if state.failures == 0 {
            tracing::warn!(error, "captions do not reach LiveKit's room; finals are sent again, up to 20 s long");
        }
        let pause = BACKOFF_FIRST.saturating_mul(1 << state.failures.min(16)).min(BACKOFF_MOST);
        state.failures += 1;
        state.failed += 1;
        state.resume_at = Some(Instant::now() + pause);
        state.fault = Some(error.to_owned());
        self.core.metrics.livekit_captions_total.with_label_values(&["failed"]).inc();
    }

    fn late(&self) {
        self.state.borrow_mut().late += 1;
        self.core.metrics.livekit_captions_total.with_label_values(&["late"]).inc();
    }

    fn skipped(&self, entries: u64) {
        self.state.borrow_mut().skipped += entries;
        self.core.metrics.livekit_captions_total.with_label_values(&["skipped"]).inc_by(entries);
    }
}

impl Handler<Shutdown> for RoomCaptions {
    type Result = ();

    fn handle(&mut self, _: Shutdown, ctx: &mut Self::Context) {
        self.closing.send_replace(true);
        ctx.run_later(LAST_WORDS, |_, ctx| ctx.stop());
    }
}

impl Handler<Crash> for RoomCaptions {
    type Result = ();

    fn handle(&mut self, _: Crash, _: &mut Self::Context) {
        panic!("crash requested");
    }
}

/// The state that `/metrics` shows.
#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct RoomCaptionsState {
    pub generation: u64,
    pub sent: u64,
    /// Requests without success.
    pub failed: u64,
    /// Finals that were too old when their turn came.
    pub late: u64,
    /// Entries that had left the log's ring by then.
    pub skipped: u64,
    pub fault: Option<String>,
}

impl Observable for RoomCaptions {
    type State = RoomCaptionsState;
}

impl Handler<Observe<Self>> for RoomCaptions {
    type Result = MessageResult<Observe<Self>>;

    fn handle(&mut self, _: Observe<Self>, _: &mut Self::Context) -> Self::Result {
        let state = self.shared.state.borrow();
        MessageResult(RoomCaptionsState {
            generation: self.lifeline.generation(),
            sent: state.sent,
            failed: state.failed,
            late: state.late,
            skipped: state.skipped,
            fault: state.fault.clone(),
        })
    }
}
