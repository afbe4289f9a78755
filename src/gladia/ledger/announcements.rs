//! Everything that is to be said to the room, in order, and the loss that is not announced yet.
//!
//! The invariants: a loss is announced once, in the order in which audio was lost; one interim of an utterance is queued at
//! most, and none behind its final; no two statuses of an epoch have the same id.

use std::collections::VecDeque;
use std::ops::Range;
use std::time::Duration;

use tokio::time::Instant;

use super::clock::Clock;
use super::{LossReason, bytes};
use crate::gladia::status::ReasonedStatus;
use crate::transcript::{TranscriptEvent, Translated, Utterance};

/// A loss that has not grown for so long is announced.
const LOSS_SETTLES: Duration = Duration::from_secs(2);
/// A gap is announced in pieces of at most this.
const GAP_PIECE_MS: u64 = 30_000;

/// Lost audio that is not announced yet.
#[derive(Debug, Clone)]
struct Loss {
    span: Range<u64>,
    reason: LossReason,
    /// When it last grew, as far as [`Announcements::announce_due`] has seen.
    seen: Option<(u64, Instant)>,
}

/// The queue to the room.
#[derive(Debug, Default)]
pub(super) struct Announcements {
    ready: VecDeque<TranscriptEvent>,
    loss: Option<Loss>,
    /// Counts statuses of the epoch.
    statuses: u64,
    last_status: Option<ReasonedStatus>,
}

impl Announcements {
    /// Those of a process that takes over after `statuses` statuses. What was lost before is announced first.
    pub fn restored(statuses: u64, loss: Option<(Range<u64>, LossReason)>) -> Self {
        let loss = loss.map(|(span, reason)| Loss { span, reason, seen: None });
        Self { statuses, loss, ..Self::default() }
    }

    /// Audio is lost. It is announced when it does not grow any more, and a long one piece by piece.
    pub fn lose(&mut self, clock: &Clock, span: Range<u64>, reason: LossReason) {
        match &mut self.loss {
            Some(loss) if loss.reason == reason && loss.span.end == span.start => loss.span.end = span.end,
            _ => {
                self.announce_loss(clock);
                self.loss = Some(Loss { span, reason, seen: None });
            }
        }
        if self.loss.as_ref().is_some_and(|l| l.span.end - l.span.start >= bytes(GAP_PIECE_MS)) {
            self.announce_loss(clock);
        }
    }

    /// Announces a loss that does not grow any more.
    pub fn announce_due(&mut self, clock: &Clock, now: Instant) {
        let Some(loss) = &mut self.loss else { return };
        match loss.seen {
            Some((end, at)) if end == loss.span.end => {
                if now.saturating_duration_since(at) >= LOSS_SETTLES {
                    self.announce_loss(clock);
                }
            }
            _ => loss.seen = Some((loss.span.end, now)),
        }
    }

    pub fn announce_loss(&mut self, clock: &Clock) {
        if let Some(Loss { span, reason, .. }) = self.loss.take() {
            let (start_ms, end_ms) = (clock.start_ms(span.start), clock.end_ms(span.end));
            self.ready.push_back(TranscriptEvent::gap(start_ms, end_ms, reason));
        }
    }

    /// The loss that is not announced yet.
    pub fn pending_loss(&self) -> Option<(Range<u64>, LossReason)> {
        self.loss.as_ref().map(|loss| (loss.span.clone(), loss.reason))
    }

    pub fn status(&mut self, status: ReasonedStatus) {
        self.statuses += 1;
        self.last_status = Some(status);
        let id = format!("status.stt.{}", self.statuses);
        self.ready.push_back(TranscriptEvent::Status { id, status: status.0, reason: Some(status.1.to_owned()) });
    }

    /// The last status said, by this bridge or one before it.
    pub fn last_status(&self) -> Option<ReasonedStatus> {
        self.last_status
    }

    /// Counts the statuses of the epoch.
    pub fn statuses(&self) -> u64 {
        self.statuses
    }

    /// No status gets a number up to this one.
    pub fn number_after(&mut self, number: u64) {
        self.statuses = self.statuses.max(number);
    }

    pub fn interim(&mut self, interim: Utterance) {
        let id = &interim.id;
        let queued = self.ready.iter_mut().rev().find(|item| is_interim(item, id));
        match queued {
            Some(queued) => *queued = TranscriptEvent::Interim(interim),
            None => self.ready.push_back(TranscriptEvent::Interim(interim)),
        }
    }

    pub fn finished(&mut self, utterance: Utterance) {
        self.ready.retain(|item| !is_interim(item, &utterance.id));
        self.ready.push_back(TranscriptEvent::Final(utterance));
    }

    pub fn translation(&mut self, translated: Translated) {
        self.ready.push_back(TranscriptEvent::Translation(translated));
    }

    /// Viewers are to forget these utterances.
    pub fn retract(&mut self, ids: impl IntoIterator<Item = String>) {
        self.ready.extend(ids.into_iter().map(|id| TranscriptEvent::Retracted { id }));
    }

    pub fn front(&self) -> Option<&TranscriptEvent> {
        self.ready.front()
    }

    pub fn pop(&mut self) -> Option<TranscriptEvent> {
        self.ready.pop_front()
    }

    pub fn has_gap(&self) -> bool {
        self.ready.iter().any(|item| matches!(item, TranscriptEvent::Gap { .. }))
    }
}

fn is_interim(item: &TranscriptEvent, id: &str) -> bool {
    matches!(item, TranscriptEvent::Interim(utterance) if utterance.id == id)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::transcript::Status;

    const REASON: LossReason = LossReason::WindowOverflow;

    fn clock() -> Clock {
        let mut clock = Clock::default();
        clock.append(0, bytes(1_000_000), false);
        clock
    }

    /// The gaps that are ready, in ms.
    fn gaps(announcements: &mut Announcements) -> Vec<(u64, u64)> {
        let gap = |item| match item {
            TranscriptEvent::Gap { start_ms, end_ms, .. } => Some((start_ms, end_ms)),
            _ => None,
        };
        std::iter::from_fn(|| announcements.pop()).filter_map(gap).collect()
    }

    #[test]
    fn a_loss_that_grows_is_announced_in_pieces_and_its_end_when_it_has_settled() {
        let (mut announcements, clock, now) = (Announcements::default(), clock(), Instant::now());
        for second in 0..45 {
            announcements.lose(&clock, bytes(second * 1000)..bytes((second + 1) * 1000), REASON);
            announcements.announce_due(&clock, now + Duration::from_secs(second));
        }
        assert_eq!(gaps(&mut announcements), [(0, 30_000)]);
        assert_eq!(announcements.pending_loss(), Some((bytes(30_000)..bytes(45_000), REASON)));
        announcements.announce_due(&clock, now + Duration::from_secs(45));
        assert!(!announcements.has_gap(), "it may still grow");
        announcements.announce_due(&clock, now + Duration::from_secs(46));
        assert_eq!((gaps(&mut announcements), announcements.pending_loss()), (vec![(30_000, 45_000)], None));
    }

    #[test]
    fn another_loss_announces_the_one_before_it() {
        let (mut announcements, clock) = (Announcements::restored(0, Some((0..bytes(500), REASON))), clock());
        announcements.lose(&clock, bytes(500)..bytes(700), REASON);
        announcements.lose(&clock, bytes(800)..bytes(900), REASON);
        assert_eq!(gaps(&mut announcements), [(0, 700)], "they do not touch");
        announcements.lose(&clock, bytes(900)..bytes(950), LossReason::SttUnavailable);
        assert_eq!(gaps(&mut announcements), [(800, 900)], "for another reason");
    }

    #[test]
    fn statuses_of_an_epoch_have_ids_of_their_own() {
        let mut announcements = Announcements::restored(7, None);
        announcements.number_after(5);
        announcements.status((Status::Live, "x"));
        announcements.number_after(20);
        announcements.status((Status::Stalled, "y"));
        let ids = std::iter::from_fn(|| announcements.pop()).filter_map(|item| match item {
            TranscriptEvent::Status { id, .. } => Some(id),
            _ => None,
        });
        assert_eq!(ids.collect::<Vec<_>>(), ["status.stt.8", "status.stt.21"]);
        assert_eq!(announcements.last_status(), Some((Status::Stalled, "y")));
    }

    #[test]
    fn an_utterance_has_one_interim_in_the_queue_and_none_behind_its_final() {
        let mut announcements = Announcements::default();
        let said = |id: &str, text: &str| Utterance {
            id: id.to_owned(),
            text: text.to_owned(),
            start_ms: 0,
            end_ms: 1,
            language: None,
            confidence: None,
            words: None,
            voice: None,
            received_at: chrono::Utc::now(),
            received: Instant::now(),
            decode_ms: None,
            stt_ms: None,
        };
        announcements.interim(said("a", "o"));
        announcements.interim(said("b", "t"));
        announcements.interim(said("a", "one"));
        announcements.finished(said("b", "two"));
        let texts = std::iter::from_fn(|| announcements.pop()).filter_map(|item| match item {
            TranscriptEvent::Interim(said) => Some(format!("? {}", said.text)),
            TranscriptEvent::Final(said) => Some(format!("! {}", said.text)),
            _ => None,
        });
        assert_eq!(texts.collect::<Vec<_>>(), ["? one", "! two"]);
    }
}
