//! Whether the recogniser has stalled: speech went in, and nothing was said about it.

use tokio::time::Instant;

use super::doubt::Opinion;
use super::{Fault, Ledger, Phase, SttMachine, Verdict};

/// Patience factor for a short sound, which usually has no text.
const LITTLE_SPEECH_FACTOR: u32 = 4;

impl SttMachine {
    /// Speech went in and no text came back. By energy it is speech; it may be noise, or the recogniser has stalled.
    pub(super) fn is_answer_overdue(&self, ledger: &Ledger, now: Instant) -> bool {
        let Some(unanswered) = ledger.unanswered_speech() else { return false };
        let patience = self.doubt.patience(self.stall, self.timing.stall_most);
        let factor = if unanswered.is_enough { 1 } else { LITTLE_SPEECH_FACTOR };
        let is_late = now.saturating_duration_since(unanswered.since) >= patience.saturating_mul(factor);
        is_late && unanswered.audio >= self.stall
    }

    /// Asks the recogniser in the only way that the protocol has: a session that is stopped says all it has to say, and
    /// then that it has ended. One that has stalled does neither.
    pub(super) fn probe(&mut self, ledger: &mut Ledger) {
        tracing::info!("speech brings no text; the recogniser session is asked to end");
        self.tally.stalls += 1;
        self.metrics.stt_stalls_total.inc();
        self.doubt.probe(ledger.unanswered_speech().is_some_and(|unanswered| unanswered.is_enough));
        ledger.plan_cut();
        self.phase = Phase::Stopping;
    }

    pub(super) fn session_ended(&mut self, ledger: &mut Ledger, now: Instant) {
        let is_doubtful = self.doubt.end_probe() || ledger.is_text_missing();
        if !self.liveness.is_stop_sent() {
            // Nobody has asked it for all that it has to say, and a word may have been under way: what has no text is for
            // the next one.
            return self.fail(ledger, now, Fault::Closed { code: 1000 });
        }
        let is_much = ledger.is_much_text_missing();
        match self.doubt.opinion(is_doubtful) {
            Opinion::Believed => {}
            Opinion::Second if !is_much => self.doubt.settled(),
            // Nobody will say what it was: that is announced.
            Opinion::Second if self.finish.is_some() => return self.done(ledger),
            Opinion::First | Opinion::Second => {
                tracing::info!("it has ended and text is missing; another session hears the same");
                ledger.drop_session();
                return self.renew(ledger, now);
            }
        }
        if ledger.ended() == Verdict::Forgotten {
            self.fail(ledger, now, Fault::Forgotten);
        } else if self.finish.is_some() && !ledger.has_work() {
            self.done(ledger);
        } else {
            self.go(Phase::Idle);
        }
    }
}
