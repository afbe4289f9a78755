//! What the bridge does next: a state machine without I/O, driven by inputs and the passage of time.
//!
//! ```text
//!  Idle --audio--> AwaitingEndpoint --> AwaitingSlot --> Opening --POST 201--> Connecting --> Streaming
//!   ^                    ^                                  |                   ^   |            |  |
//!   |                    |<------ Waiting (renew) <---------+-------- fault ----|---+------------+  |
//!   |                    |                                                      +-- Waiting (resume)|
//!   |                    +----- more audio -----+                                                   |
//!   +------------------------ end_session ------+-------------------------------------- Stopping <--+
//!                                               +--> Done                     rollover or finish
//! ```
//!
//! Faults are looked up in `policy`; what was sent, heard and lost is the ledger's. The driver keeps the connection, the
//! POST and the timers in step with [`SttMachine::phase`].

use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use super::ledger::{Ledger, LossReason, Verdict};
use super::policy::{self, Allowance, Fault, Timing};
use super::status::{ReasonedStatus, StatusTracker};
use super::wire::RESEND_FRAME_BYTES;
use crate::config::Secret;
use crate::metrics::Metrics;
use crate::transcript::Status;

mod doubt;
mod faults;
mod liveness;
mod messages;
mod retry;
mod stall;

use doubt::Doubt;
use liveness::Liveness;
use retry::Retry;

pub use super::phase::{Counters, Input, Outgoing, Phase, RecogniserMessage, Refusal};

/// A rollover is made in silence of this length where there is one, within a tenth of the session's life (at most 60 s)
/// before its end.
const ROLLOVER_SILENCE_MS: u64 = 700;
const ROLLOVER_SEEK: Duration = Duration::from_secs(60);
/// Catching up begins and ends at these backlogs.
const CATCH_UP_MS: std::ops::Range<u64> = 1_200..2_000;

/// The state of one session's dealings with the recogniser.
///
/// For the driver: after each [`Self::handle`] look at [`Self::revision`] and do what [`Self::phase`] asks for; send what
/// [`Self::outgoing`] gives, one item at a time, and report each with [`Self::sent`] before asking for the next; wake up at
/// [`Self::wake_at`] at the latest. Nothing else changes the machine.
pub struct SttMachine {
    // What is decided once.
    timing: Timing,
    stall: Duration,
    session_max: Duration,
    metrics: Arc<Metrics>,
    // Where it is.
    phase: Phase,
    /// Changes with each phase, so that the driver notices a return to the same one. Streaming and Stopping share a
    /// connection: between them it does not change, and neither does anything that [`Self::go`] resets.
    revision: u64,
    has_slot: bool,
    closes_normally: bool,
    finish: Option<Instant>,
    // Of the present connection and its session.
    liveness: Liveness,
    /// The connection has brought something new.
    is_proven: bool,
    /// The session has brought a final.
    has_final: bool,
    // Over many of them.
    retry: Retry,
    doubt: Doubt,
    messages: Allowance,
    finals: Allowance,
    complaints: Allowance,
    status: StatusTracker,
    progress: u64,
    tally: Counters,
}

impl SttMachine {
    /// `stall` is `STT_STALL_MS`, `session_max` `GLADIA_SESSION_MAX_S`; `ledger` may be that of a bridge that died.
    pub fn new(
        timing: Timing,
        stall: Duration,
        session_max: Duration,
        metrics: Arc<Metrics>,
        ledger: &Ledger,
        now: Instant,
    ) -> Self {
        let messages = timing.allowance(policy::MESSAGE_BURST, policy::MESSAGE_INTERVAL_MS);
        let finals = timing.allowance(policy::FINAL_BURST, policy::FINAL_INTERVAL_MS);
        let complaints = timing.allowance(policy::COMPLAINT_BURST, policy::COMPLAINT_INTERVAL_MS);
        let status = StatusTracker::new(
            timing.settle,
            ledger.last_status(),
            timing.allowance(policy::STATUS_BURST, policy::STATUS_INTERVAL_MS),
        );
        Self {
            timing,
            stall,
            session_max,
            metrics,
            phase: Phase::Idle,
            revision: 0,
            has_slot: false,
            closes_normally: false,
            finish: None,
            liveness: Liveness::new(now),
            is_proven: false,
            has_final: false,
            retry: Retry::default(),
            doubt: Doubt::default(),
            messages,
            finals,
            complaints,
            status,
            progress: 0,
            tally: Counters::default(),
        }
    }

    pub fn phase(&self) -> Phase {
        self.phase
    }

    pub fn revision(&self) -> u64 {
        self.revision
    }

    /// True while the connection is in use.
    pub fn is_connected(&self) -> bool {
        matches!(self.phase, Phase::Streaming | Phase::Stopping)
    }

    /// The connection just left is to be closed with 1000, which ends the recogniser's session too; otherwise it is cut,
    /// and the session can be resumed.
    pub fn closes_normally(&self) -> bool {
        self.closes_normally
    }

    /// The concurrency slot is in use. It is given back before long waits.
    pub fn has_slot(&self) -> bool {
        self.has_slot
    }

    pub fn tally(&self) -> &Counters {
        &self.tally
    }

    pub fn last_ack(&self) -> Option<Instant> {
        self.liveness.last_ack()
    }

    pub fn status(&self) -> Option<ReasonedStatus> {
        self.status.published()
    }

    /// Grows with every sign of life, for the frozen check.
    pub fn progress(&self) -> u64 {
        self.progress
    }

    /// Gives the latest time for [`Input::Tick`].
    pub fn wake_at(&self, now: Instant) -> Instant {
        let tick = now + self.timing.tick;
        match self.phase {
            Phase::WaitingToResume { until } | Phase::WaitingToRenew { until } => until.min(tick),
            _ => tick,
        }
    }

    /// Takes an input. Afterwards the driver follows [`Self::phase`].
    pub fn handle(&mut self, ledger: &mut Ledger, now: Instant, input: Input) {
        self.progress += 1;
        match (input, self.phase) {
            (_, Phase::Done) => return,
            (Input::Tick, _) => {}
            (Input::Finish { deadline }, _) => self.finish = Some(deadline),
            (Input::EndpointReady, Phase::AwaitingEndpoint) => {
                self.go(if self.has_slot { Phase::Opening } else { Phase::AwaitingSlot });
            }
            (Input::SlotGranted, Phase::AwaitingSlot) => {
                self.has_slot = true;
                self.go(Phase::Opening);
            }
            (Input::EndpointMoved, Phase::WaitingToResume { .. } | Phase::Connecting) => {
                self.fail(ledger, now, Fault::SttRestarted);
            }
            (Input::Opened(result), Phase::Opening) => self.opened(ledger, now, result),
            (Input::Connected(result), Phase::Connecting) => self.connected(ledger, now, result),
            (Input::Heard(heard), Phase::Streaming | Phase::Stopping) => self.heard(ledger, now, heard),
            (Input::Disconnected(fault), Phase::Streaming | Phase::Stopping) => self.disconnected(ledger, now, fault),
            // An answer that came too late for the phase.
            _ => {}
        }
        self.tick(ledger, now);
    }

    fn go(&mut self, phase: Phase) {
        self.phase = phase;
        self.revision += 1;
        self.closes_normally = false;
        if !self.is_connected() {
            self.liveness.expects_no_ack();
        }
    }

    /// Does what time alone brings about.
    fn tick(&mut self, ledger: &mut Ledger, now: Instant) {
        match self.phase {
            Phase::Idle if ledger.is_ambiguous() => {
                ledger.drop_session();
                self.renew(ledger, now);
            }
            Phase::Idle if ledger.session().is_some() => self.go(Phase::Connecting),
            Phase::Idle if ledger.has_work() => self.renew(ledger, now),
            Phase::Idle if self.finish.is_some() => self.done(ledger),
            Phase::WaitingToResume { until } if now >= until => self.go(Phase::Connecting),
            Phase::WaitingToRenew { until } if now >= until => self.renew(ledger, now),
            Phase::Streaming | Phase::Stopping => self.tick_connected(ledger, now),
            _ => {}
        }
        if self.finish.is_some_and(|deadline| now >= deadline) && self.phase != Phase::Done {
            tracing::warn!(backlog_ms = ledger.backlog_ms(), "the recogniser was not done by the deadline");
            ledger.give_up(LossReason::SttUnavailable);
            self.done(ledger);
        }
        ledger.announce_due(now);
        let state = self.state(ledger, now);
        if let Some(change) = self.status.update(now, state) {
            ledger.say_status(change);
        }
    }

    fn done(&mut self, ledger: &mut Ledger) {
        ledger.give_up(LossReason::SttUnavailable);
        self.has_slot = false;
        self.go(Phase::Done);
        self.closes_normally = true;
    }

    fn tick_connected(&mut self, ledger: &mut Ledger, now: Instant) {
        let age = self.liveness.age(now).unwrap_or_default();
        if age >= self.timing.healthy_after {
            self.retry.resumed();
            // One that only acknowledges may end like those before it.
            if self.is_proven && (self.has_final || age >= self.timing.degraded_after) {
                self.retry.worked();
            }
        }
        if self.is_proven || (age >= self.timing.short_life && !ledger.awaits_ack()) {
            self.retry.up();
        }
        if let Some(fault) = self.connection_fault(ledger, now) {
            return self.fail(ledger, now, fault);
        }
        if self.phase == Phase::Streaming {
            if self.finish.is_some() {
                self.phase = Phase::Stopping;
            } else if self.is_rollover_due(ledger, now) {
                tracing::info!(
                    silence_ms = ledger.silence_ms(),
                    "recogniser session is replaced before its time is up"
                );
                self.tally.rollovers += 1;
                ledger.plan_cut();
                self.phase = Phase::Stopping;
            } else if self.is_answer_overdue(ledger, now) {
                self.probe(ledger);
            }
        }
    }

    fn is_rollover_due(&self, ledger: &Ledger, now: Instant) -> bool {
        let Some(session) = ledger.session() else {
            return false;
        };
        let left = self.session_max.saturating_sub(now.saturating_duration_since(session.began));
        let seek = ROLLOVER_SEEK.min(self.session_max / 10);
        left.is_zero() || (left <= seek && !ledger.has_unsent() && ledger.silence_ms() >= ROLLOVER_SILENCE_MS)
    }

    fn opened(&mut self, ledger: &mut Ledger, now: Instant, result: Result<(String, Secret), Fault>) {
        self.count_connect(&result);
        match result {
            Ok((id, url)) => {
                self.retry.opened();
                self.doubt.session_began();
                let number = ledger.begin_session(now, id, url);
                self.session_budget(ledger).spend(now);
                self.has_final = false;
                self.tally.sessions += 1;
                self.metrics.recogniser_sessions_total.inc();
                if number > 1 {
                    self.tally.replays += 1;
                    self.metrics.stt_replays_total.inc();
                }
                self.go(Phase::Connecting);
            }
            Err(fault) => self.fail(ledger, now, fault),
        }
    }

    fn connected(&mut self, ledger: &mut Ledger, now: Instant, result: Result<(), Fault>) {
        self.count_connect(&result);
        self.connection_budget(ledger).spend(now);
        if let Err(fault) = result {
            return self.fail(ledger, now, fault);
        }
        ledger.connected(now);
        if ledger.session().is_some_and(|s| s.connections > 1) {
            self.tally.resumes += 1;
            self.metrics.stt_resumes_total.inc();
        }
        self.liveness.connected(now);
        self.is_proven = false;
        let is_stopping = self.finish.is_some() || ledger.is_cut();
        self.go(if is_stopping { Phase::Stopping } else { Phase::Streaming });
    }

    fn count_connect<T>(&self, result: &Result<T, Fault>) {
        let label = result.as_ref().map_or_else(Fault::as_str, |_| "ok");
        self.metrics.stt_connects_total.with_label_values(&[label]).inc();
    }

    /// The next thing to send on the open connection. Report it with [`Self::sent`].
    pub fn outgoing(&self, ledger: &mut Ledger, now: Instant) -> Option<Outgoing> {
        if !self.is_connected() || self.liveness.is_stop_sent() {
            return None;
        }
        if let Some(pcm) = ledger.next_audio(RESEND_FRAME_BYTES) {
            return Some(Outgoing::Audio(pcm));
        }
        if self.phase == Phase::Stopping {
            return Some(Outgoing::Stop);
        }
        self.liveness.is_keep_alive_due(now, &self.timing).then_some(Outgoing::KeepAlive)
    }

    pub fn sent(&mut self, ledger: &mut Ledger, now: Instant, out: &Outgoing) {
        self.progress += 1;
        self.liveness.sent(now);
        match out {
            Outgoing::Audio(pcm) => {
                ledger.mark_sent(now, pcm.len() as u64);
                self.liveness.audio_sent(now, &self.timing);
                self.metrics.gladia_bytes_sent_total.inc_by(pcm.len() as u64);
            }
            Outgoing::KeepAlive => {}
            Outgoing::Stop => self.liveness.stop_sent(now, &self.timing),
        }
    }

    /// Finds the status that viewers should see now; None when there is nothing to say.
    fn state(&self, ledger: &Ledger, now: Instant) -> Option<ReasonedStatus> {
        if self.doubt.is_probe_announced() && self.phase != Phase::Done {
            return Some(Fault::Stalled.status());
        }
        let recent = |at: Instant| now.saturating_duration_since(at) < self.timing.audio_flows;
        if self.phase == Phase::Done || !(ledger.has_work() || ledger.last_push().is_some_and(recent)) {
            return None;
        }
        if self.doubt.has_stalled() {
            return Some(Fault::Stalled.status());
        }
        if let Some((since, fault)) = self.retry.down() {
            let (status, reason) = fault.status();
            let is_long = now.saturating_duration_since(since) >= self.timing.degraded_after;
            return Some((if is_long { Status::Degraded } else { status }, reason));
        }
        match self.phase {
            Phase::AwaitingEndpoint => Some((Status::Reconnecting, "stt_starting")),
            Phase::AwaitingSlot => Some((Status::Degraded, "waiting_for_slot")),
            Phase::Streaming | Phase::Stopping if self.is_proven => {
                let is_behind = self.status.published().is_some_and(|(status, _)| status == Status::CatchingUp);
                let limit = if is_behind { CATCH_UP_MS.start } else { CATCH_UP_MS.end };
                let is_late = ledger.backlog_ms() > limit;
                Some(if is_late { (Status::CatchingUp, "backlog") } else { (Status::Live, "recogniser_connected") })
            }
            _ => None,
        }
    }
}
