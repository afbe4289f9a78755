//! The effect of each message of the recogniser, and of the end of its connection.

use chrono::Utc;
use tokio::time::Instant;

use super::{Fault, Ledger, RecogniserMessage, Refusal, SttMachine, Verdict};

impl SttMachine {
    pub(super) fn heard(&mut self, ledger: &mut Ledger, now: Instant, heard: RecogniserMessage) {
        self.liveness.heard(now, heard.is_progress());
        if !self.messages.take(now) {
            return self.fail(ledger, now, Fault::Flood);
        }
        match heard {
            RecogniserMessage::StopAcknowledged => self.liveness.expects_no_ack(),
            RecogniserMessage::Other => {}
            RecogniserMessage::Reported(what) => self.complain(now, "the recogniser reports an error", &what),
            RecogniserMessage::Acknowledged { start, end } if ledger.counts_anew_at(start, end) => {
                self.fail(ledger, now, Fault::Forgotten);
            }
            RecogniserMessage::Acknowledged { start, end } => {
                if ledger.acknowledged(start, end) {
                    self.prove();
                    self.liveness.acknowledged(now, ledger.awaits_ack(), &self.timing);
                    let placed = ledger.place();
                    self.said(ledger, now, placed);
                }
            }
            RecogniserMessage::Refused(Refusal::Quota) => self.fail(ledger, now, Fault::QuotaExceeded),
            RecogniserMessage::Refused(Refusal::Other(why)) => {
                self.fail(ledger, now, Fault::Protocol(format!("audio refused: {why}")));
            }
            RecogniserMessage::Text(said) => {
                let verdict = ledger.text(now, Utc::now(), &said);
                self.said(ledger, now, verdict);
            }
            RecogniserMessage::Unreadable { is_final, start_s, end_s } => {
                let verdict = ledger.unreadable(is_final, start_s, end_s);
                self.said(ledger, now, verdict);
            }
            RecogniserMessage::Translation(heard) => ledger.translation(heard),
            RecogniserMessage::TranslationFailed(why) => {
                self.metrics.translations_total.with_label_values(&["failed"]).inc();
                ledger.translation_failed();
                self.complain(now, "the recogniser has no translation", &why);
            }
            RecogniserMessage::EndSession => self.session_ended(ledger, now),
        }
    }

    fn said(&mut self, ledger: &mut Ledger, now: Instant, verdict: Verdict) {
        match verdict {
            Verdict::Forgotten => self.fail(ledger, now, Fault::Forgotten),
            Verdict::Unreadable => self.fail(ledger, now, Fault::Unreadable),
            Verdict::Guessed => self.prove(),
            Verdict::Taken if !self.finals.take(now) => self.fail(ledger, now, Fault::Flood),
            Verdict::Taken => {
                self.has_final = true;
                self.liveness.final_came(now);
                self.doubt.text();
                self.prove();
            }
            Verdict::Nothing => {}
        }
    }

    /// Says so often only as its budget allows: a recogniser may report errors without end.
    fn complain(&mut self, now: Instant, what: &str, why: &str) {
        if self.complaints.take(now) {
            tracing::warn!(error = why, "{what}");
        }
    }

    fn prove(&mut self) {
        self.is_proven = true;
        self.retry.resumed();
    }

    pub(super) fn disconnected(&mut self, ledger: &mut Ledger, now: Instant, fault: Fault) {
        let is_end = fault == Fault::Closed { code: 1000 } && self.liveness.is_stop_sent();
        if is_end {
            return self.session_ended(ledger, now);
        }
        self.fail(ledger, now, fault);
    }
}
