//! What became of the audio, in sums.

use std::collections::BTreeMap;
use std::ops::Range;

use serde::{Deserialize, Serialize};

use super::clock::BYTES_PER_MS;
use super::ranges::Ranges;
use super::{Ledger, bytes};
use crate::metrics::Metrics;
use crate::transcript::session_record::AudioAccount;

/// Recognisers cut words tighter than the speech detector cuts speech.
const FINAL_MARGIN_MS: u64 = 250;

/// Why audio will never become text: the reason of the gap that says so.
pub type LossReason = crate::transcript::GapReason;

/// The account of a session, in ms of audio and in bytes of PCM.
/// `received + inserted = acknowledged + inFlight + lost + skipped` holds exactly for the bytes, for the ms up to rounding.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Account {
    /// From publishers: decoded, or given up before it was (then also lost, as `decode_error`), or skipped.
    pub received_ms: u64,
    /// PCM of publishers' audio.
    pub decoded_ms: u64,
    /// Silence put in where a publisher sent none.
    pub inserted_ms: u64,
    /// Sent to a recogniser at least once.
    pub sent_ms: u64,
    /// Sent again, after a drop or to a new recogniser session.
    pub resent_ms: u64,
    pub acknowledged_ms: u64,
    /// Not acknowledged by the present recogniser session; part of it may not be sent yet.
    pub in_flight_ms: u64,
    /// Sent twice by a publisher that was cut off and came back: it was heard the first time.
    pub skipped_ms: u64,
    pub lost_ms: u64,
    pub lost_by_reason_ms: BTreeMap<String, u64>,
    /// Holds speech, by energy.
    pub spoken_ms: u64,
    /// Speech whose final text is published.
    pub finalised_ms: u64,
    /// Finalised speech / speech; 1 when nothing was spoken.
    pub coverage: f64,
    pub bytes: AccountBytes,
}

/// The same counts in bytes of PCM16 at 16 kHz mono, in the order of the audio's way.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct AccountBytes {
    pub received: u64,
    pub decoded: u64,
    pub inserted: u64,
    pub sent: u64,
    pub resent: u64,
    pub acknowledged: u64,
    pub in_flight: u64,
    #[serde(default)]
    pub skipped: u64,
    pub lost: u64,
    pub spoken: u64,
    pub finalised: u64,
}

impl Account {
    /// What the session's row keeps.
    pub fn for_record(&self) -> AudioAccount {
        AudioAccount {
            received_ms: self.received_ms,
            decoded_ms: self.decoded_ms,
            inserted_ms: self.inserted_ms,
            sent_ms: self.sent_ms,
            resent_ms: self.resent_ms,
            acknowledged_ms: self.acknowledged_ms,
            spoken_ms: self.spoken_ms,
            finalised_ms: self.finalised_ms,
            lost_ms: self.lost_ms,
        }
    }
}

/// In bytes, each kept by its own events so that [`Ledger::check`] compares independent sums.
#[derive(Debug, Clone, Default)]
pub(super) struct Counts {
    pub received: u64,
    /// Of that, what never became PCM.
    pub undecoded: u64,
    /// Of that, what was heard before.
    pub skipped: u64,
    pub inserted: u64,
    pub sent: u64,
    pub resent: u64,
    /// End of what was sent at least once.
    pub sent_until: u64,
    pub acknowledged: u64,
    pub lost: [u64; LossReason::ALL.len()],
    pub spoken: u64,
    pub finalised: u64,
    finalised_spans: Ranges,
    pub lost_spans: Ranges,
    reported: Reported,
}

/// What the process-wide metrics know already.
#[derive(Debug, Clone, Default)]
struct Reported {
    received: u64,
    skipped: u64,
    inserted: u64,
    sent: u64,
    resent: u64,
    acknowledged: u64,
    lost: [u64; LossReason::ALL.len()],
    spoken: u64,
    finalised: u64,
}

impl Counts {
    pub fn lose(&mut self, reason: LossReason, span: Range<u64>) {
        self.lost[index_of(reason)] += span.end - span.start;
        self.lost_spans.insert(span);
    }

    /// Audio that has no offset, since it was given up before it was PCM.
    pub fn lose_undecoded(&mut self, len: u64) {
        self.received += len;
        self.undecoded += len;
        self.lost[index_of(LossReason::DecodeError)] += len;
    }

    pub fn send(&mut self, span: Range<u64>) {
        let new = span.end - span.start.max(self.sent_until).min(span.end);
        self.sent += new;
        self.resent += span.end - span.start - new;
        self.sent_until = self.sent_until.max(span.end);
    }

    pub fn forget(&mut self, before: u64) {
        self.finalised_spans.forget_before(before);
        self.lost_spans.forget_before(before);
    }

    /// What another process has counted is not reported again.
    pub fn forget_reported(&mut self) {
        let Self { received, skipped, inserted, sent, resent, acknowledged, lost, spoken, finalised, .. } =
            self.clone();
        self.reported = Reported { received, skipped, inserted, sent, resent, acknowledged, lost, spoken, finalised };
    }

    /// What became PCM.
    pub fn decoded(&self) -> u64 {
        self.received - self.undecoded - self.skipped
    }

    pub fn lost_bytes(&self) -> u64 {
        self.lost.iter().sum()
    }

    /// Speech in and right beside `span` has its text.
    pub fn finalise(&mut self, spoken: &Ranges, span: Range<u64>) {
        let margin = bytes(FINAL_MARGIN_MS);
        for new in self.finalised_spans.insert(span.start.saturating_sub(margin)..span.end + margin) {
            self.finalised += spoken.overlap(&new);
        }
        self.finalised = self.finalised.min(self.spoken);
    }
}

impl Ledger {
    pub fn account(&self) -> Account {
        let ms = |bytes: u64| bytes / BYTES_PER_MS;
        let c = &self.counts;
        let lost = LossReason::ALL.iter().zip(c.lost).filter(|(_, bytes)| *bytes > 0);
        Account {
            received_ms: ms(c.received),
            decoded_ms: ms(c.decoded()),
            inserted_ms: ms(c.inserted),
            sent_ms: ms(c.sent),
            resent_ms: ms(c.resent),
            acknowledged_ms: ms(c.acknowledged),
            in_flight_ms: ms(self.in_flight_bytes()),
            skipped_ms: ms(c.skipped),
            lost_ms: ms(c.lost_bytes()),
            lost_by_reason_ms: lost.map(|(r, bytes)| (r.as_str().to_owned(), ms(bytes))).collect(),
            spoken_ms: ms(c.spoken),
            finalised_ms: ms(c.finalised),
            coverage: if c.spoken == 0 { 1.0 } else { c.finalised as f64 / c.spoken as f64 },
            bytes: AccountBytes {
                received: c.received,
                decoded: c.decoded(),
                inserted: c.inserted,
                sent: c.sent,
                resent: c.resent,
                acknowledged: c.acknowledged,
                in_flight: self.in_flight_bytes(),
                skipped: c.skipped,
                lost: c.lost_bytes(),
                spoken: c.spoken,
                finalised: c.finalised,
            },
        }
    }

    /// Audio of a publisher that was given up before it was PCM. Whoever gives it up announces it.
    pub fn lose_undecoded(&mut self, ms: u64) {
        self.counts.lose_undecoded(bytes(ms));
        self.verify();
    }

    /// Audio of a publisher, in bytes of PCM, that it has sent before: it was heard then.
    pub fn skip(&mut self, len: u64) {
        self.counts.received += len;
        self.counts.skipped += len;
        self.verify();
    }

    /// Pushed and neither acknowledged nor lost.
    pub fn in_flight_bytes(&self) -> u64 {
        self.cursors.end() - self.cursors.acked()
    }

    /// The invariants. An error says which one is broken.
    pub fn check(&self) -> Result<(), String> {
        let c = &self.counts;
        let gone = c.acknowledged + self.in_flight_bytes() + c.lost_bytes() + c.skipped;
        let come = c.received + c.inserted;
        if come != gone {
            return Err(format!("{come} bytes came and {gone} are accounted for: {c:?}"));
        }
        let ends = [self.window.end(), self.clock.end()];
        let is_together = ends == [self.cursors.end(); 2] && self.window.start() <= self.cursors.acked();
        if !self.cursors.is_ordered() || !is_together {
            let (cursors, start) = (&self.cursors, self.window.start());
            return Err(format!(
                "{cursors:?} are out of order; the window begins at {start}, its end and the clock's: {ends:?}"
            ));
        }
        Ok(())
    }

    /// Adds what is new since the last call to the process's metrics. Counters never fall: a replay counts once.
    pub fn report(&mut self, metrics: &Metrics) {
        let dropped = std::mem::take(&mut self.translations.dropped);
        metrics.translations_total.with_label_values(&["dropped"]).inc_by(dropped);
        let missing = std::mem::take(&mut self.translations.missing);
        metrics.translations_total.with_label_values(&["missing"]).inc_by(missing);
        let c = &mut self.counts;
        let known = &mut c.reported;
        let pairs = [
            (&mut known.received, c.received, &metrics.audio_received_seconds_total),
            (&mut known.skipped, c.skipped, &metrics.audio_skipped_seconds_total),
            (&mut known.inserted, c.inserted, &metrics.audio_inserted_seconds_total),
            (&mut known.sent, c.sent, &metrics.audio_sent_seconds_total),
            (&mut known.resent, c.resent, &metrics.audio_resent_seconds_total),
            (&mut known.acknowledged, c.acknowledged, &metrics.audio_acknowledged_seconds_total),
            (&mut known.spoken, c.spoken, &metrics.audio_spoken_seconds_total),
            (&mut known.finalised, c.finalised, &metrics.audio_finalised_seconds_total),
        ];
        for (known, count, series) in pairs {
            if count > *known {
                series.inc_by(seconds(count - *known));
                *known = count;
            }
        }
        for (n, reason) in LossReason::ALL.iter().enumerate() {
            if c.lost[n] > known.lost[n] {
                let series = metrics.audio_lost_seconds_total.with_label_values(&[reason.as_str()]);
                series.inc_by(seconds(c.lost[n] - known.lost[n]));
                known.lost[n] = c.lost[n];
            }
        }
    }
}

fn index_of(reason: LossReason) -> usize {
    LossReason::ALL.iter().position(|r| *r == reason).expect("every reason is listed")
}

fn seconds(bytes: u64) -> f64 {
    bytes as f64 / (BYTES_PER_MS * 1000) as f64
}
