//! What a restarted process needs to go on with the recogniser session of the one before it.

use std::sync::Arc;
use std::time::Duration;

use chrono::Utc;
use serde::{Deserialize, Serialize};
use tokio::time::Instant;

use super::announcements::Announcements;
use super::clock::Clock;
use super::coverage::Coverage;
use super::cursors::Cursors;
use super::ranges::Ranges;
use super::stt_session::{MAX_POSITION, Splice, SttSession};
use super::{Ledger, Limits, LossReason, REMEMBER_MS, ReplayBudget, Spool, bytes};
use crate::config::Secret;

/// More recogniser sessions or connections than an epoch has.
const MAX_COUNT: u32 = 1 << 30;
/// Recogniser sessions and statuses that a process may have begun after its last checkpoint: their numbers are in ids that
/// were published, and are not given again.
const LEAP: u32 = 1000;
/// No recogniser session is older; a clock may have been set.
const MAX_AGE_MS: i64 = 86_400_000;
/// Beyond what a recogniser's count comes to that acknowledges [`MAX_POSITION`] and hears more after it.
const MAX_WIRE: u64 = 8 * MAX_POSITION;

/// Serde image of a ledger without its audio. `url` holds a token: keep the file private.
#[derive(Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct LedgerImage {
    pub clock: Clock,
    pub acked: u64,
    pub done: u64,
    pub next_hearing: u32,
    pub statuses: u64,
    pub received: u64,
    #[serde(default)]
    pub undecoded: u64,
    #[serde(default)]
    pub skipped: u64,
    pub inserted: u64,
    #[serde(default)]
    pub sent: u64,
    #[serde(default)]
    pub resent: u64,
    pub lost_bytes: Vec<u64>,
    pub spoken: u64,
    pub finalised: u64,
    /// End of the last published final.
    pub finalised_until: u64,
    /// Speech that was acknowledged and had no published final.
    pub unanswered: Vec<(u64, u64)>,
    /// What of it was lost, from `remembered_from` on: what was lost once is not to be lost again.
    #[serde(default)]
    pub lost_spans: Vec<(u64, u64)>,
    /// Nothing before can still get a final, or be announced as lost.
    #[serde(default)]
    pub remembered_from: u64,
    /// Lost, and not announced yet: where, and the place of its reason among all.
    #[serde(default)]
    pub pending_loss: Option<(u64, u64, usize)>,
    pub session: Option<SessionImage>,
}

impl std::fmt::Debug for LedgerImage {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("LedgerImage")
            .field("acked", &self.acked)
            .field("end", &self.clock.end())
            .finish_non_exhaustive()
    }
}

#[derive(Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct SessionImage {
    pub number: u32,
    pub id: String,
    pub url: String,
    pub splices: Vec<Splice>,
    pub wire_acked: u64,
    pub own_from: u64,
    pub finals: Vec<String>,
    pub connections: u32,
    /// When it began, as Unix time: its age counts towards the recogniser's cap.
    #[serde(default)]
    pub began_ms: Option<i64>,
}

impl LedgerImage {
    /// True for what a ledger can have written. A file may have lain on a bad disk, and a ledger that is wrong from its
    /// beginning would take every later restart down with it.
    fn is_sound(&self) -> bool {
        let end = self.clock.end();
        let cursors = [self.done, self.finalised_until, self.spoken, self.acked];
        let are_within = |spans: &[(u64, u64)]| spans.iter().all(|(start, stop)| start <= stop && *stop <= self.acked);
        let is_small = end <= MAX_POSITION && self.statuses <= MAX_POSITION && self.next_hearing <= MAX_COUNT;
        is_small
            && cursors.into_iter().all(|at| at <= end)
            && self.remembered_from <= self.acked
            && are_within(&self.unanswered)
            && are_within(&self.lost_spans)
            && self.pending_loss.is_none_or(|(from, to, n)| from <= to && to <= end && n < LossReason::ALL.len())
            && self.is_counted()
            && self.finalised <= self.spoken
            && self.clock.is_sound()
            && self.session.as_ref().is_none_or(|session| session.is_sound(end))
    }

    /// True when every byte is in one state, and as much was lost as is remembered to be.
    fn is_counted(&self) -> bool {
        let mut spans = Ranges::default();
        for (start, stop) in &self.lost_spans {
            spans.insert(*start..*stop);
        }
        let remembered = spans.overlap(&(self.remembered_from..self.acked));
        let lost = self.lost_bytes.iter().try_fold(0u64, |sum, lost| sum.checked_add(*lost));
        let lost = lost.and_then(|lost| lost.checked_sub(self.undecoded));
        let decoded = self.received.checked_sub(self.undecoded).and_then(|rest| rest.checked_sub(self.skipped));
        decoded.and_then(|decoded| decoded.checked_add(self.inserted)) == Some(self.clock.end())
            && self.undecoded.max(self.skipped).max(self.resent) <= MAX_POSITION
            && self.sent <= self.clock.end()
            && lost.is_some_and(|lost| (remembered..=remembered + self.remembered_from).contains(&lost))
    }
}

impl SessionImage {
    fn is_sound(&self, end: u64) -> bool {
        let in_range = |s: &Splice| s.wire <= MAX_WIRE && s.session <= end && s.heard_until <= MAX_WIRE;
        !self.splices.is_empty()
            && self.splices.is_sorted_by_key(|s| s.wire)
            && self.splices.iter().all(in_range)
            && self.wire_acked.max(self.own_from) <= MAX_WIRE
            && self.number.max(self.connections) <= MAX_COUNT
    }
}

impl Ledger {
    /// The log has these ids: no session and no status of ours gets a number that is in one of them.
    pub fn number_after<'a>(&mut self, ids: impl Iterator<Item = &'a str>) {
        for id in ids {
            if let Some(number) = id.strip_prefix("status.stt.").and_then(|n| n.parse().ok()) {
                self.announcements.number_after(number);
            } else if let Some(number) = id.split_once('.').and_then(|(n, _)| n.parse::<u32>().ok())
                && number < MAX_COUNT
            {
                self.next_session = self.next_session.max(number + 1);
            }
        }
    }

    /// Recogniser sessions and statuses up to these numbers are another ledger's.
    pub fn leap_over(&mut self, hearings: u32, statuses: u64) {
        self.next_session = self.next_session.max(hearings.min(MAX_COUNT) + 1);
        self.announcements.number_after(statuses);
    }

    pub fn checkpoint(&self) -> LedgerImage {
        let session = self.session.as_ref().map(|s| SessionImage {
            number: s.number,
            id: s.id.clone(),
            url: s.url.expose().to_owned(), // the restarted process resumes with it
            splices: s.splices.clone(),
            wire_acked: s.wire_acked,
            own_from: s.own_from,
            // One that is not published yet is not known to have come.
            finals: s.finals().filter(|f| !self.coverage.is_unpublished(&s.utterance_id(f))).cloned().collect(),
            connections: s.connection.count,
            began_ms: Some(Utc::now().timestamp_millis() - s.began.elapsed().as_millis() as i64),
        });
        let place = |reason: LossReason| LossReason::ALL.iter().position(|r| *r == reason).unwrap_or(0);
        // A final that is not published yet may be lost with the process.
        let first_unsure = self.coverage.first_unpublished().unwrap_or(u64::MAX);
        let acked = self.cursors.acked();
        let finalised_until = self.coverage.published().end().unwrap_or(0).min(acked);
        let remembered_from = finalised_until.max(self.cursors.trimmed().saturating_sub(bytes(REMEMBER_MS)));
        let remembered = |ranges: &Ranges| ranges.within(&(remembered_from..acked)).map(|r| (r.start, r.end)).collect();
        LedgerImage {
            clock: self.clock.clone(),
            acked,
            done: self.cursors.done().min(first_unsure),
            next_hearing: self.next_session,
            statuses: self.announcements.statuses(),
            received: self.counts.received,
            undecoded: self.counts.undecoded,
            skipped: self.counts.skipped,
            inserted: self.counts.inserted,
            sent: self.counts.sent,
            resent: self.counts.resent,
            lost_bytes: self.counts.lost.to_vec(),
            spoken: self.counts.spoken,
            finalised: self.counts.finalised,
            finalised_until,
            unanswered: remembered(self.coverage.spoken()),
            lost_spans: remembered(&self.counts.lost_spans),
            remembered_from,
            pending_loss: self.announcements.pending_loss().map(|(span, why)| (span.start, span.end, place(why))),
            session,
        }
    }

    /// A ledger that goes on where `image` was taken. Audio that was in flight then is lost (`process_restart`). Of the
    /// acknowledged audio the recogniser alone knows; speech whose finals do not come any more is announced as lost too.
    /// An image that no ledger can have written is left out, except for the numbers that keep ids unique.
    pub fn restore(
        now: Instant,
        image: LedgerImage,
        limits: Limits,
        spool: Box<dyn Spool>,
        budget: Arc<ReplayBudget>,
    ) -> Self {
        let mut ledger = Self::new(limits, spool, budget);
        if !image.is_sound() {
            tracing::error!(?image, "recogniser state in a checkpoint is not sound; it is left out");
            ledger.next_session = image.next_hearing.clamp(1, MAX_COUNT) + LEAP;
            ledger.announcements.number_after(image.statuses.min(MAX_POSITION) + u64::from(LEAP));
            return ledger;
        }
        let end = image.clock.end();
        ledger.window.begin_at(end);
        ledger.clock = image.clock;
        ledger.next_session = image.next_hearing + LEAP;
        let counts = &mut ledger.counts;
        (counts.received, counts.undecoded, counts.inserted) = (image.received, image.undecoded, image.inserted);
        counts.skipped = image.skipped;
        (counts.sent, counts.resent) = (image.sent, image.resent);
        (counts.spoken, counts.finalised) = (image.spoken, image.finalised);
        for (lost, was) in counts.lost.iter_mut().zip(&image.lost_bytes) {
            *lost = *was;
        }
        counts.sent_until = end;
        counts.acknowledged =
            (counts.received + counts.inserted).saturating_sub(end - image.acked + counts.lost_bytes());
        counts.forget_reported();
        ledger.coverage =
            Coverage::restored(image.finalised_until, image.unanswered.iter().map(|(start, stop)| *start..*stop));
        ledger.session = image.session.map(|s| {
            let age_ms = s.began_ms.map_or(0, |began| Utc::now().timestamp_millis() - began).clamp(0, MAX_AGE_MS);
            let began = now.checked_sub(Duration::from_millis(age_ms as u64)).unwrap_or(now);
            let mut session = SttSession::new(s.number, s.id, Secret::new(s.url), 0, began);
            session.splices = s.splices;
            (session.wire_acked, session.own_from) = (s.wire_acked, s.own_from);
            s.finals.iter().for_each(|f| session.restore_final(f));
            session.connection.count = s.connections.max(1);
            // The image is up to a second old, and the recogniser has counted on meanwhile.
            session.carried_doubt = MAX_POSITION;
            session
        });
        for (start, stop) in image.lost_spans {
            ledger.counts.lost_spans.insert(start..stop);
        }
        let trimmed = image.remembered_from.max(image.finalised_until).min(image.acked);
        ledger.cursors = Cursors::restored(trimmed, image.done, end);
        let pending_loss = image.pending_loss.map(|(from, to, n)| (from..to, LossReason::ALL[n]));
        ledger.announcements = Announcements::restored(image.statuses + u64::from(LEAP), pending_loss);
        ledger.lose(image.acked..end, LossReason::ProcessRestart);
        ledger.announce_loss();
        ledger.verify();
        ledger
    }
}

#[cfg(test)]
mod tests {
    use super::super::{MemorySpool, Recognised};
    use super::*;
    use crate::audio::PcmChunk;
    use crate::transcript::TranscriptEvent;
    use serde_json::{Value, json};

    const LIMITS: Limits = Limits { window: Duration::from_secs(60), max_utterance: Duration::from_secs(15) };

    fn restored(image: Value) -> Ledger {
        let image = serde_json::from_value(image).unwrap();
        let budget = Arc::new(ReplayBudget::new(1 << 20));
        Ledger::restore(Instant::now(), image, LIMITS, Box::<MemorySpool>::default(), budget)
    }

    fn image() -> Value {
        let mut ledger = Ledger::new(LIMITS, Box::<MemorySpool>::default(), Arc::new(ReplayBudget::new(1 << 20)));
        let now = Instant::now();
        ledger.push(now, PcmChunk { pcm: vec![0; 6400].into(), start_ms: 40, inserted: false, arrived: now });
        ledger.begin_session(now, "a".into(), Secret::new("ws://x"));
        ledger.connected(now);
        ledger.mark_sent(now, 6400);
        ledger.acknowledged(0, 3200);
        serde_json::to_value(ledger.checkpoint()).unwrap()
    }

    #[test]
    fn an_image_that_no_ledger_has_written_gives_a_new_ledger_with_new_ids() {
        let sound = restored(image());
        assert_eq!((sound.end(), sound.account().lost_ms, sound.session().is_some()), (6400, 100, true));
        let session = |field: &str, value: Value| {
            let mut session = image()["session"].clone();
            session[field] = value;
            ("session", session)
        };
        for (field, value) in [
            ("acked", json!(9600)),
            ("done", json!(u64::MAX)),
            ("received", json!(1)),
            ("undecoded", json!(1)),
            ("skipped", json!(1)),
            ("sent", json!(6401)),
            ("resent", json!(u64::MAX)),
            ("inserted", json!(u64::MAX)),
            ("lostBytes", json!([u64::MAX, u64::MAX])),
            ("finalisedUntil", json!(6401)),
            ("unanswered", json!([[0, 3201]])),
            ("lostSpans", json!([[3, 1]])),
            ("rememberedFrom", json!(3201)),
            ("statuses", json!(u64::MAX)),
            ("clock", json!({"segments": [{"offset": 9, "ms": 0}, {"offset": 3, "ms": 0}], "end": 6400})),
            ("clock", json!({"segments": [{"offset": 0, "ms": u64::MAX}], "end": 6400})),
            session("splices", json!([])),
            session("splices", json!([{"wire": 0, "session": u64::MAX, "heard_until": 0}])),
            session("connections", json!(u32::MAX)),
        ] {
            let mut damaged = image();
            damaged[field] = value.clone();
            let mut ledger = restored(damaged);
            assert!(ledger.end() == 0 && ledger.session().is_none(), "{field}: {value}");
            assert_eq!(ledger.begin_session(Instant::now(), "b".into(), Secret::new("ws://x")), 2 + LEAP);
            assert_eq!(ledger.check(), Ok(()));
        }
    }
    #[test]
    fn numbers_that_may_have_been_given_since_the_image_are_not_given_again() {
        let mut ledger = restored(image());
        assert_eq!(ledger.begin_session(Instant::now(), "b".into(), Secret::new("ws://x")), 2 + LEAP);
        ledger.say_status((crate::transcript::Status::Live, "x"));
        let ids = std::iter::from_fn(|| ledger.delivered()).filter_map(|item| match item {
            crate::transcript::TranscriptEvent::Status { id, .. } => Some(id),
            _ => None,
        });
        assert_eq!(ids.collect::<Vec<_>>(), [format!("status.stt.{}", LEAP + 1)]);
    }

    #[test]
    fn a_loss_is_announced_however_often_the_process_is_killed_before_it_could_be() {
        let gaps = |ledger: &mut Ledger| {
            let all = std::iter::from_fn(|| ledger.delivered());
            let gap = all.filter_map(|item| match item {
                crate::transcript::TranscriptEvent::Gap { start_ms, end_ms, .. } => Some((start_ms, end_ms)),
                _ => None,
            });
            gap.collect::<Vec<_>>()
        };
        let mut ledger = restored(image());
        assert!(ledger.holds_gap(), "until it is delivered, the image before is the one that counts");
        assert_eq!(gaps(&mut ledger), [(140, 240)]);
        assert!(!ledger.holds_gap());
        // One that is not even complete is in the image.
        ledger.announcements = Announcements::restored(0, Some((3200..6400, LossReason::WindowOverflow)));
        let mut again = restored(serde_json::to_value(ledger.checkpoint()).unwrap());
        assert_eq!(gaps(&mut again), [(140, 240)]);
    }

    #[test]
    fn what_the_recogniser_counted_after_the_image_does_not_shift_time() {
        let mut ledger = restored(image());
        let now = Instant::now();
        ledger.connected(now);
        ledger.push(now, PcmChunk { pcm: vec![0; 32_000].into(), start_ms: 2000, inserted: false, arrived: now });
        ledger.mark_sent(now, 32_000);
        // The process before had sent 28,800 bytes more than its checkpoint knew.
        assert!(ledger.acknowledged(32_000, 35_200));
        assert_eq!(ledger.account().in_flight_ms, 900, "100 ms of the second are acknowledged");
        // Text of what it sent comes yet, before all of ours; what is said to ours is no echo of it.
        let said = |id: &str, start_s, end_s| Recognised {
            id: id.into(),
            is_final: true,
            is_doubtful: false,
            text: format!(" {id}"),
            start_s,
            end_s,
            language: None,
            confidence: None,
            voice: None,
            words: vec![],
        };
        ledger.text(now, chrono::Utc::now(), &said("old", 0.5, 0.95));
        ledger.text(now, chrono::Utc::now(), &said("new", 1.0, 1.5));
        let finals = std::iter::from_fn(|| ledger.delivered()).filter_map(|item| match item {
            TranscriptEvent::Final(u) => Some((u.id, u.start_ms, u.end_ms)),
            _ => None,
        });
        let finals: Vec<_> = finals.collect();
        assert_eq!(finals, [("1.old".to_owned(), 240, 240), ("1.new".to_owned(), 2000, 2500)]);
    }

    #[test]
    fn what_one_restart_lost_the_next_does_not_lose_again() {
        let mut ledger = restored(image());
        let now = Instant::now();
        let loud: Vec<u8> = (0..32_000).flat_map(|n: i32| if n % 2 == 0 { [0, 40] } else { [0, 216] }).collect();
        ledger.push(now, PcmChunk { pcm: loud.into(), start_ms: 240, inserted: false, arrived: now });
        ledger.connected(now);
        ledger.mark_sent(now, 64_000);
        assert!(ledger.acknowledged(3200, 67_200));
        let image = serde_json::to_value(ledger.checkpoint()).unwrap();
        assert_eq!((&image["lostSpans"], &image["rememberedFrom"]), (&json!([[3200, 6400]]), &json!(0)));
        let mut ledger = restored(image);
        ledger.give_up(LossReason::SttUnavailable);
        let account = ledger.account();
        assert_eq!((account.received_ms, account.acknowledged_ms, account.lost_ms), (2200, 0, 2200));
    }
    #[test]
    fn a_recogniser_that_acknowledges_nonsense_leaves_a_sound_image() {
        let mut ledger = restored(image());
        let now = Instant::now();
        ledger.begin_session(now, "b".into(), Secret::new("ws://x"));
        ledger.connected(now);
        ledger.push(now, PcmChunk { pcm: vec![0; 3200].into(), start_ms: 300, inserted: false, arrived: now });
        ledger.mark_sent(now, 3200);
        ledger.acknowledged(0, u64::MAX);
        ledger.connected(now);
        let again = restored(serde_json::to_value(ledger.checkpoint()).unwrap());
        assert_eq!((again.end(), again.session().is_some()), (9600, true));
    }
}
