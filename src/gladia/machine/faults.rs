//! What becomes of a fault: found, noted, looked up in the policy table.

use std::time::Duration;

use tokio::time::Instant;

use super::super::policy::{self, Allowance, Fault, Reaction};
use super::{Ledger, Phase, SttMachine, Verdict};

impl SttMachine {
    pub(super) fn connection_fault(&mut self, ledger: &mut Ledger, now: Instant) -> Option<Fault> {
        if ledger.has_overflowed() {
            return Some(Fault::WindowOverflow);
        }
        match ledger.tick(now, self.liveness.last_heard()) {
            Verdict::Forgotten => return Some(Fault::Forgotten),
            Verdict::Unreadable => return Some(Fault::Unreadable),
            _ => {}
        }
        if self.liveness.is_ack_overdue(now) {
            // One that talks is not half open: it does not say any more what it has heard.
            let talks = self.liveness.talks(now, &self.timing);
            return Some(if talks { Fault::Unacknowledged } else { Fault::HalfOpen });
        }
        if self.liveness.is_stop_overdue(now, &self.timing) {
            return Some(Fault::StopTimeout);
        }
        let is_stalled = self.doubt.is_probing() && self.liveness.is_probe_unanswered(now, &self.timing);
        is_stalled.then(|| {
            self.doubt.stalled();
            Fault::Stalled
        })
    }

    /// Looks the fault up in the table and waits accordingly.
    pub(super) fn fail(&mut self, ledger: &mut Ledger, now: Instant, fault: Fault) {
        self.note(&fault, now);
        let life = self.liveness.take_age(now).unwrap_or(Duration::MAX);
        let mut reaction = fault.reaction();
        let is_resumable = ledger.session().is_some() && !ledger.is_ambiguous();
        if reaction == Reaction::Resume && (!is_resumable || !self.retry.may_resume()) {
            reaction = Reaction::Renew;
        }
        if reaction == Reaction::Resume {
            let n = self.retry.next_resume(life < self.timing.short_life);
            let until = now + self.timing.delay(policy::RESUME_DELAYS_MS, n);
            let until = until.max(self.connection_budget(ledger).ready_at(now));
            return self.go(Phase::WaitingToResume { until });
        }
        if self.finish.is_some() && ledger.session().is_some() && ledger.is_settled() && self.is_over(&fault) {
            return self.done(ledger);
        }
        let was_connected = self.is_connected();
        let until = now + self.renewal_delay(reaction, &fault);
        self.retry.resumed();
        ledger.drop_session();
        if until > now + Duration::from_secs(5) {
            self.has_slot = false;
        }
        self.go(Phase::WaitingToRenew { until });
        self.closes_normally = was_connected;
    }

    /// The recogniser does not know the session any more, so no text can come.
    fn is_over(&self, fault: &Fault) -> bool {
        matches!(fault, Fault::Closed { .. } | Fault::SessionGone { .. } | Fault::StopTimeout)
    }

    /// The next recogniser session, as soon as their budget allows one.
    pub(super) fn renew(&mut self, ledger: &mut Ledger, now: Instant) {
        let until = self.session_budget(ledger).ready_at(now);
        if until <= now {
            return self.go(Phase::AwaitingEndpoint);
        }
        self.metrics.recogniser_sessions_deferred_total.inc();
        self.note(&Fault::SessionBudget, now);
        self.has_slot = false;
        self.go(Phase::WaitingToRenew { until });
    }

    /// The ledger keeps the budgets: they outlive a bridge that panics.
    pub(super) fn session_budget<'l>(&self, ledger: &'l mut Ledger) -> &'l mut Allowance {
        let fresh = || self.timing.allowance(policy::SESSION_BURST, policy::SESSION_INTERVAL_MS);
        ledger.session_budget.get_or_insert_with(fresh)
    }

    pub(super) fn connection_budget<'l>(&self, ledger: &'l mut Ledger) -> &'l mut Allowance {
        let fresh = || self.timing.allowance(policy::CONNECTION_BURST, policy::CONNECTION_INTERVAL_MS);
        ledger.connection_budget.get_or_insert_with(fresh)
    }

    fn renewal_delay(&mut self, reaction: Reaction, fault: &Fault) -> Duration {
        if reaction == Reaction::Renew {
            return self.timing.delay(policy::RENEW_DELAYS_MS, self.retry.next_renewal());
        }
        let n = self.retry.next_refusal();
        match (reaction, fault) {
            // Retry-After: 0 still waits the first delay, or this would loop hot; whoever names a time is asked then, however
            // often.
            (_, Fault::RateLimited { retry_after: Some(wait) })
                if *wait >= self.timing.delay(policy::RATE_LIMITED_DELAYS_MS, 0) =>
            {
                *wait
            }
            (Reaction::RateLimited, _) => self.timing.delay(policy::RATE_LIMITED_DELAYS_MS, n),
            _ => self.timing.delay(policy::REFUSED_DELAYS_MS, n),
        }
    }

    fn note(&mut self, fault: &Fault, now: Instant) {
        tracing::warn!(fault = fault.as_str(), error = %fault, "recogniser fault");
        self.metrics.stt_faults_total.with_label_values(&[fault.as_str()]).inc();
        self.metrics.connection_errors_total.with_label_values(&["stt"]).inc();
        self.tally.faults += 1;
        self.tally.last_fault = Some(fault.to_string());
        self.retry.failed(now, fault);
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::audio::PcmChunk;
    use crate::gladia::ledger::{Limits, MemorySpool, ReplayBudget};
    use crate::gladia::machine::Input;
    use crate::gladia::policy::Timing;
    use crate::metrics::Metrics;

    /// How long each of three refusals in a row is waited out, in ms, with the default tables.
    fn waits_after(retry_after_s: Option<u64>) -> [u128; 3] {
        let limits = Limits { window: Duration::from_secs(60), max_utterance: Duration::from_secs(15) };
        let budget = Arc::new(ReplayBudget::new(u64::MAX));
        let (mut ledger, mut now) = (Ledger::new(limits, Box::<MemorySpool>::default(), budget), Instant::now());
        ledger.push(now, PcmChunk { pcm: vec![0; 3200].into(), start_ms: 0, inserted: false, arrived: now });
        let (timing, long) = (Timing::default(), Duration::from_secs(10_000));
        let mut machine = SttMachine::new(timing, long, long, Arc::new(Metrics::new()), &ledger, now);
        [(); 3].map(|()| {
            let refused = Fault::RateLimited { retry_after: retry_after_s.map(Duration::from_secs) };
            for input in [Input::Tick, Input::EndpointReady, Input::SlotGranted, Input::Opened(Err(refused))] {
                machine.handle(&mut ledger, now, input);
            }
            let Phase::WaitingToRenew { until } = machine.phase() else { panic!("{:?}", machine.phase()) };
            let waits = (until - now).as_millis();
            now = until;
            waits
        })
    }

    #[test]
    fn retry_after_is_honoured_and_never_makes_a_hot_loop() {
        assert_eq!(waits_after(None), [1000, 2000, 5000]);
        assert_eq!(waits_after(Some(0)), [1000, 2000, 5000], "at once is no time");
        assert_eq!(waits_after(Some(1)), [1000; 3], "whoever names a time is asked then");
        assert_eq!(waits_after(Some(7)), [7000; 3]);
    }
}
