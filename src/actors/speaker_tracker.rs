//! `SpeakerTracker`: knows who was speaking when, and names the speaker of an utterance.
//!
//! Owns: a timeline of voice activity per participant. Receives: [`SpeakerUpdate`]s from any source and
//! [`LabelUtterance`] from the room. Its loss only means that labels are unknown. Ends when told.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use actix::prelude::*;
use serde::Serialize;
use tokio::time::Instant;

use super::session_core::SessionCore;
use super::supervision::{Lifeline, Observable, Observe};
use crate::transcript::Origin;
use crate::transcript::{Speaker, SpeakerSource, SpeakerUpdate, Utterance};

/// A report that is neither renewed nor withdrawn counts for so long.
const REPORT_LIFETIME: Duration = Duration::from_secs(2);
/// Activity older than this is forgotten: longer than any utterance takes to become final.
const TIMELINE: Duration = Duration::from_secs(15 * 60);
/// Participants remembered per session.
const MAX_PARTICIPANTS: usize = 1000;
/// Intervals remembered per participant and source.
const MAX_INTERVALS: usize = 2000;
/// A speaker must have been active in so much of the spoken time; less is no answer.
const MIN_SHARE: f64 = 0.3;
/// Weight of what one participant says about another; its word about itself counts 1.
const HEARSAY_WEIGHT: f64 = 0.5;

/// Who said this? Answered at once; None is unknown, never a guess.
#[derive(Debug, Clone, Message)]
#[rtype(result = "Option<Speaker>")]
pub struct LabelUtterance {
    /// Spoken spans in session clock ms: the words where they are known, else the whole utterance.
    pub spans_ms: Vec<(u64, u64)>,
}

impl LabelUtterance {
    pub fn of(utterance: &Utterance) -> Self {
        let words = utterance.words.as_deref().unwrap_or_default();
        let mut spans_ms: Vec<_> = words.iter().map(|w| (w.start_ms, w.end_ms)).filter(|(s, e)| e > s).collect();
        if spans_ms.is_empty() {
            spans_ms.push((utterance.start_ms, utterance.end_ms.max(utterance.start_ms + 1)));
        }
        Self { spans_ms }
    }
}

/// The actor that knows who spoke when.
pub struct SpeakerTracker {
    core: Arc<SessionCore>,
    timeline: Timeline,
    updates: u64,
    lifeline: Lifeline,
}

impl SpeakerTracker {
    pub fn start(core: Arc<SessionCore>, lifeline: Lifeline) -> Addr<Self> {
        Actor::start(Self { core, timeline: Timeline::default(), updates: 0, lifeline })
    }
}

impl SpeakerTracker {
    /// When the sound at this session time was captured. None where nothing is known of it: then nobody spoke.
    fn captured(&self, session_ms: u64) -> Option<Instant> {
        let captured_ms = match self.core.origin {
            Origin::Ingest => self.core.decode().captured_ms(session_ms)?,
            // Times of another node's, or of a third party's.
            Origin::Relay | Origin::Mirror => session_ms as i64,
        };
        let shifted_ms = captured_ms - self.core.config.viewers.speaker_offset_ms;
        let distance = Duration::from_millis(shifted_ms.unsigned_abs());
        let started = self.core.started;
        if shifted_ms >= 0 { started.checked_add(distance) } else { started.checked_sub(distance) }
    }
}

impl Actor for SpeakerTracker {
    type Context = Context<Self>;

    fn started(&mut self, ctx: &mut Self::Context) {
        self.lifeline.started();
        ctx.run_interval(Duration::from_secs(60), |this, _| this.timeline.forget(Instant::now()));
    }
}

impl Handler<SpeakerUpdate> for SpeakerTracker {
    type Result = ();

    fn handle(&mut self, update: SpeakerUpdate, _: &mut Self::Context) {
        self.updates += 1;
        self.timeline.report(update);
    }
}

impl Handler<LabelUtterance> for SpeakerTracker {
    type Result = MessageResult<LabelUtterance>;

    fn handle(&mut self, question: LabelUtterance, _: &mut Self::Context) -> Self::Result {
        let spans: Option<Vec<_>> =
            question.spans_ms.iter().map(|(s, e)| Some((self.captured(*s)?, self.captured(*e)?))).collect();
        MessageResult(spans.and_then(|spans| self.timeline.speaker_of(&spans)))
    }
}

/// The state that `/metrics` shows.
#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct SpeakerTrackerState {
    pub generation: u64,
    pub participants: usize,
    pub updates: u64,
}

impl Observable for SpeakerTracker {
    type State = SpeakerTrackerState;
}

impl Handler<Observe<Self>> for SpeakerTracker {
    type Result = MessageResult<Observe<Self>>;

    fn handle(&mut self, _: Observe<Self>, _: &mut Self::Context) -> Self::Result {
        MessageResult(SpeakerTrackerState {
            generation: self.lifeline.generation(),
            participants: self.timeline.participants.len(),
            updates: self.updates,
        })
    }
}

crate::stops_and_crashes!(SpeakerTracker);

/// Voice activity per participant. Pure.
#[derive(Default)]
struct Timeline {
    participants: HashMap<String, Participant>,
}

#[derive(Default)]
struct Participant {
    name: Option<String>,
    by_source: HashMap<SpeakerSource, Vec<Interval>>,
}

struct Interval {
    from: Instant,
    /// Last word about it.
    seen: Instant,
    to: Option<Instant>,
    level: f32,
}

impl Interval {
    fn end(&self) -> Instant {
        self.to.unwrap_or(self.seen + REPORT_LIFETIME)
    }
}

impl Timeline {
    fn report(&mut self, update: SpeakerUpdate) {
        if self.participants.len() >= MAX_PARTICIPANTS && !self.participants.contains_key(&update.identity) {
            return;
        }
        let identity = update.identity;
        let participant = self.participants.entry(identity.clone()).or_default();
        // What somebody says about another does not change what is known.
        let is_hearsay = matches!(&update.source, SpeakerSource::Viewer(viewer) if *viewer != identity);
        if update.name.is_some() && (!is_hearsay || participant.name.is_none()) {
            participant.name = update.name;
        }
        let intervals = participant.by_source.entry(update.source).or_default();
        let open = intervals.last_mut().filter(|i| i.to.is_none() && i.end() >= update.at);
        match (open, update.active) {
            (Some(open), true) => {
                open.seen = open.seen.max(update.at);
                open.level = open.level.max(update.level);
            }
            (Some(open), false) => open.to = Some(update.at.max(open.from)),
            (None, true) => {
                if intervals.len() >= MAX_INTERVALS {
                    intervals.remove(0);
                }
                intervals.push(Interval { from: update.at, seen: update.at, to: None, level: update.level });
            }
            (None, false) => {}
        }
    }

    fn forget(&mut self, now: Instant) {
        for participant in self.participants.values_mut() {
            for intervals in participant.by_source.values_mut() {
                intervals.retain(|i| now.duration_since(i.end()) < TIMELINE);
            }
            participant.by_source.retain(|_, intervals| !intervals.is_empty());
        }
        self.participants.retain(|_, p| !p.by_source.is_empty());
    }

    /// The participant with the largest active share of the spans, or None.
    fn speaker_of(&self, spans: &[(Instant, Instant)]) -> Option<Speaker> {
        let spoken: Duration = spans.iter().map(|(from, to)| to.saturating_duration_since(*from)).sum();
        let best = self
            .participants
            .iter()
            .map(|(identity, participant)| (participant.activity(identity, spans), identity, participant))
            .max_by(|(a, a_id, _), (b, b_id, _)| a.total_cmp(b).then(b_id.cmp(a_id)))?;
        let (activity, identity, participant) = best;
        let enough = activity > 0.0 && activity >= MIN_SHARE * HEARSAY_WEIGHT * spoken.as_secs_f64();
        enough.then(|| Speaker { identity: identity.clone(), name: participant.name.clone() })
    }
}

impl Participant {
    /// Weighted active seconds within the spans: the best witness counts.
    fn activity(&self, identity: &str, spans: &[(Instant, Instant)]) -> f64 {
        let witness = |(source, intervals): (&SpeakerSource, &Vec<Interval>)| {
            let weight = match source {
                SpeakerSource::Viewer(viewer) if viewer != identity => HEARSAY_WEIGHT,
                _ => 1.0,
            };
            let overlap = |i: &Interval, span: &(Instant, Instant)| {
                let from = i.from.max(span.0);
                let to = i.end().min(span.1);
                // A louder participant wins where two spoke at once.
                to.saturating_duration_since(from).as_secs_f64() * (1.0 + f64::from(i.level) * 0.1)
            };
            let active: f64 = intervals.iter().flat_map(|i| spans.iter().map(move |s| overlap(i, s))).sum();
            active * weight
        };
        self.by_source.iter().map(witness).fold(0.0, f64::max)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn update(identity: &str, source: &str, active: bool, at: Instant) -> SpeakerUpdate {
        SpeakerUpdate {
            identity: identity.into(),
            name: Some(identity.to_uppercase()),
            active,
            level: 0.5,
            at,
            source: SpeakerSource::Viewer(source.into()),
        }
    }

    fn seconds(n: f64) -> Duration {
        Duration::from_secs_f64(n)
    }

    #[test]
    fn the_most_active_participant_is_the_speaker() {
        let zero = Instant::now();
        let mut timeline = Timeline::default();
        timeline.report(update("anna", "anna", true, zero));
        timeline.report(update("anna", "anna", false, zero + seconds(1.0)));
        timeline.report(update("ben", "ben", true, zero + seconds(1.0)));
        timeline.report(update("ben", "ben", false, zero + seconds(1.4)));
        let speaker = timeline.speaker_of(&[(zero, zero + seconds(1.4))]).unwrap();
        assert_eq!(speaker, Speaker { identity: "anna".into(), name: Some("ANNA".into()) });
        let speaker = timeline.speaker_of(&[(zero + seconds(1.0), zero + seconds(1.4))]).unwrap();
        assert_eq!(speaker.identity, "ben");
    }

    #[test]
    fn unknown_stays_unknown() {
        let zero = Instant::now();
        let mut timeline = Timeline::default();
        assert_eq!(timeline.speaker_of(&[(zero, zero + seconds(1.0))]), None);
        timeline.report(update("anna", "anna", true, zero));
        timeline.report(update("anna", "anna", false, zero + seconds(0.1)));
        assert_eq!(timeline.speaker_of(&[(zero, zero + seconds(5.0))]), None, "a tenth of a second of five");
        assert_eq!(timeline.speaker_of(&[(zero + seconds(9.0), zero + seconds(10.0))]), None);
    }

    #[test]
    fn a_word_about_oneself_counts_more_than_hearsay() {
        let zero = Instant::now();
        let mut timeline = Timeline::default();
        timeline.report(update("mallory", "eve", true, zero));
        timeline.report(update("anna", "anna", true, zero));
        assert_eq!(timeline.speaker_of(&[(zero, zero + seconds(1.0))]).unwrap().identity, "anna");
    }

    #[test]
    fn nobody_renames_another() {
        let zero = Instant::now();
        let named =
            |name: &str, source: &str| SpeakerUpdate { name: Some(name.into()), ..update("anna", source, true, zero) };
        let name = |timeline: &Timeline| timeline.speaker_of(&[(zero, zero + seconds(1.0))]).unwrap().name;
        let mut timeline = Timeline::default();
        timeline.report(named("Annie", "host"));
        assert_eq!(name(&timeline).as_deref(), Some("Annie"), "better than none");
        timeline.report(named("Anna", "anna"));
        timeline.report(named("Mallory", "eve"));
        assert_eq!(name(&timeline).as_deref(), Some("Anna"));
    }

    #[test]
    fn a_report_that_is_not_renewed_expires() {
        let zero = Instant::now();
        let mut timeline = Timeline::default();
        timeline.report(update("anna", "anna", true, zero));
        assert!(timeline.speaker_of(&[(zero + seconds(1.0), zero + seconds(2.0))]).is_some());
        assert!(timeline.speaker_of(&[(zero + seconds(3.0), zero + seconds(4.0))]).is_none());
        timeline.forget(zero + TIMELINE + seconds(3.0));
        assert!(timeline.participants.is_empty());
    }
}
