//! `SpeakerTracker`: knows who was speaking when, and names the speakers of an utterance.
//!
//! Owns: the activity of participants by each kind of source, and how late audio is (`attribution`). Receives:
//! [`SpeakerUpdate`]s from any source and [`LabelUtterance`] from the room; takes the loudness of audio from the core. Its
//! loss only means that labels are unknown for some time. Ends when told.

pub mod attribution;
pub mod delay;
mod heard;
pub mod split;
pub mod timeline;

use std::collections::HashMap;
use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use actix::prelude::*;
use serde::Serialize;
use tokio::time::Instant;

use self::attribution::Attribution;
use super::session_core::SessionCore;
use super::supervision::{Lifeline, Observable, Observe};
use crate::transcript::Origin;
use crate::transcript::{Speaker, SpeakerUpdate, Utterance};

/// Interval in which audio is laid beside reports.
const LISTEN_INTERVAL: Duration = Duration::from_millis(500);
const FORGET_INTERVAL: Duration = Duration::from_secs(60);
/// Names of participants that are remembered.
const MAX_NAMES: usize = 1000;
/// A clear delay that changes by less is no news.
const NEWS_MS: i64 = 250;

/// Who said this? Answered at once; None is unknown, never a guess.
#[derive(Debug, Clone, Message)]
#[rtype(result = "Vec<LabelledWords>")]
pub struct LabelUtterance {
    /// Spoken spans in session clock ms: the words where they are known, else the whole utterance.
    pub spans_ms: Vec<(u64, u64)>,
    /// Several speakers may answer, each for some of the spans.
    pub may_split: bool,
}

/// The speaker of some of the spans. The answers for one question cover all spans, in order.
#[derive(Debug, Clone, PartialEq)]
pub struct LabelledWords {
    pub words: Range<usize>,
    pub speaker: Option<Speaker>,
}

impl LabelUtterance {
    pub fn of(utterance: &Utterance, may_split: bool) -> Self {
        let span = |start_ms: u64, end_ms: u64| (start_ms, end_ms.max(start_ms + 1));
        let words = utterance.words.as_deref().unwrap_or_default();
        if words.is_empty() {
            return Self { spans_ms: vec![span(utterance.start_ms, utterance.end_ms)], may_split: false };
        }
        Self { spans_ms: words.iter().map(|word| span(word.start_ms, word.end_ms)).collect(), may_split }
    }
}

/// Names of participants, by identity, as the LiveKit server has them: they outrank what viewers say.
#[derive(Debug, Clone, Message)]
#[rtype(result = "()")]
pub struct NameParticipants(pub Vec<(String, String)>);

/// The actor that knows who spoke when.
pub struct SpeakerTracker {
    core: Arc<SessionCore>,
    attribution: Attribution,
    /// The publisher whose audio is late by what is known of it.
    publisher: u64,
    /// The delay that was logged last.
    told_ms: Option<i64>,
    names: HashMap<String, String>,
    updates: u64,
    lifeline: Lifeline,
}

impl SpeakerTracker {
    pub fn start(core: Arc<SessionCore>, lifeline: Lifeline) -> Addr<Self> {
        let attribution = Attribution::new(core.config.viewers.speaker_offset_ms);
        let publisher = core.presence().generation();
        Actor::start(Self { core, attribution, publisher, told_ms: None, names: HashMap::new(), updates: 0, lifeline })
    }

    /// On the session's clock; what was before its start is negative.
    fn clock_ms(&self, at: Instant) -> i64 {
        match at.checked_duration_since(self.core.started) {
            Some(after) => after.as_millis() as i64,
            None => -(self.core.started.duration_since(at).as_millis() as i64),
        }
    }

    /// Lays new audio beside the reports.
    fn listen(&mut self) {
        let publisher = self.core.presence().generation();
        if std::mem::replace(&mut self.publisher, publisher) != publisher {
            self.attribution.forget_delay();
        }
        let runs = self.core.loudness().take();
        let decode = self.core.decode();
        let placed: Vec<_> =
            runs.into_iter().filter_map(|run| Some((decode.captured_ms(run.start_ms)?, run.frames))).collect();
        drop(decode);
        for (at_ms, frames) in placed {
            self.attribution.hear(at_ms, frames);
        }
        self.attribution.advance(self.clock_ms(Instant::now()));
    }

    /// Says how late the audio is, when that has become clear.
    fn tell_delay(&mut self) {
        let Some(delay_ms) = self.attribution.delay_ms() else { return };
        if self.told_ms.is_none_or(|told_ms| (told_ms - delay_ms).abs() >= NEWS_MS) {
            self.told_ms = Some(delay_ms);
            tracing::info!(session = %self.core.slug, upstream_ms = delay_ms, "audio is later than the reports of its speakers");
        }
    }

    fn named(&self, identity: String) -> Speaker {
        let speaker = self.attribution.speaker(identity);
        let name = self.names.get(&speaker.identity).cloned().or(speaker.name);
        Speaker { name, ..speaker }
    }

    /// When the sound of these spans was captured. None where nothing is known of one of them: then nobody spoke.
    fn captured(&self, spans_ms: &[(u64, u64)]) -> Option<Vec<(i64, i64)>> {
        match self.core.origin {
            Origin::Ingest => {
                let decode = self.core.decode();
                let captured = |(start, end): &(u64, u64)| {
                    let start_ms = decode.captured_ms(*start)?;
                    Some((start_ms, decode.captured_ms(*end)?.max(start_ms)))
                };
                spans_ms.iter().map(captured).collect()
            }
            // Times of another node's, or of a third party's.
            Origin::Relay | Origin::Mirror => {
                Some(spans_ms.iter().map(|(start, end)| (*start as i64, *end as i64)).collect())
            }
        }
    }
}

impl Actor for SpeakerTracker {
    type Context = Context<Self>;

    fn started(&mut self, ctx: &mut Self::Context) {
        self.lifeline.started();
        ctx.run_interval(LISTEN_INTERVAL, |this, _| {
            this.listen();
            this.tell_delay();
        });
        ctx.run_interval(FORGET_INTERVAL, |this, _| this.attribution.forget_old(this.clock_ms(Instant::now())));
    }
}

impl Handler<SpeakerUpdate> for SpeakerTracker {
    type Result = ();

    fn handle(&mut self, update: SpeakerUpdate, _: &mut Self::Context) {
        self.updates += 1;
        if update.active {
            self.core.set_names_speakers();
        }
        let at_ms = self.clock_ms(update.at);
        self.attribution.report(&update, at_ms);
    }
}

impl Handler<NameParticipants> for SpeakerTracker {
    type Result = ();

    fn handle(&mut self, NameParticipants(names): NameParticipants, _: &mut Self::Context) {
        for (identity, name) in names {
            if self.names.len() < MAX_NAMES || self.names.contains_key(&identity) {
                self.names.insert(identity, name);
            }
        }
    }
}

impl Handler<LabelUtterance> for SpeakerTracker {
    type Result = MessageResult<LabelUtterance>;

    fn handle(&mut self, question: LabelUtterance, _: &mut Self::Context) -> Self::Result {
        self.listen();
        let count = question.spans_ms.len();
        let Some(spans) = self.captured(&question.spans_ms) else {
            return MessageResult(vec![LabelledWords { words: 0..count, speaker: None }]);
        };
        let pieces = self.attribution.label(&spans, question.may_split);
        let labelled = |(words, identity): (_, Option<String>)| LabelledWords {
            words,
            speaker: identity.map(|identity| self.named(identity)),
        };
        MessageResult(pieces.into_iter().map(labelled).collect())
    }
}

/// The state that `/metrics` shows.
#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct SpeakerTrackerState {
    pub generation: u64,
    pub participants: usize,
    pub updates: u64,
    /// How much later audio is than the reports of its speakers; null while that is not clear.
    pub upstream_delay_ms: Option<i64>,
}

impl Observable for SpeakerTracker {
    type State = SpeakerTrackerState;
}

impl Handler<Observe<Self>> for SpeakerTracker {
    type Result = MessageResult<Observe<Self>>;

    fn handle(&mut self, _: Observe<Self>, _: &mut Self::Context) -> Self::Result {
        MessageResult(SpeakerTrackerState {
            generation: self.lifeline.generation(),
            participants: self.attribution.participants(),
            updates: self.updates,
            upstream_delay_ms: self.attribution.delay_ms(),
        })
    }
}

crate::stops_and_crashes!(SpeakerTracker);
