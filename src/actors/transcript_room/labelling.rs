//! Whose a line is: asks the tracker, and has the pieces of a line that several have said numbered in one step.

use std::sync::Arc;
use std::time::Duration;

use super::pieces::{cut, piece_id};
use super::writer::{Slot, Writer};
use crate::actors::speaker_tracker::{LabelUtterance, LabelledWords};
use crate::transcript::{Entry, NumberedVoice, Speaker, Utterance};

/// Longest wait for the speaker's name; past it the final goes out without.
const LABEL_TIMEOUT: Duration = Duration::from_millis(5);

impl Writer {
    /// A line, in pieces where its speaker changes.
    pub(super) async fn finish(&mut self, utterance: Utterance) {
        let labels = self.label(&utterance, self.may_cut(&utterance)).await;
        let revision = self.revisions.remove(&utterance.id).unwrap_or(0) + 1;
        let pieces = cut(utterance, labels);
        let outcomes: Vec<_> = pieces.iter().map(|(_, speaker)| outcome(speaker.as_ref())).collect();
        let entry = |(n, (utterance, speaker)): (usize, (Utterance, Option<Speaker>))| {
            let revision = if n == 0 { revision } else { 1 };
            Entry::Transcript(self.transcript(utterance, true, revision, speaker))
        };
        let entries = pieces.into_iter().enumerate().map(entry).collect();
        let last = self.append_pieces(entries);
        if last.is_some() {
            self.count(&outcomes);
        }
        self.slots.push_back(last.map_or(Slot::Done, Slot::Waiting));
    }

    fn count(&self, outcomes: &[&str]) {
        let metrics = &self.core.metrics;
        outcomes.iter().for_each(|outcome| metrics.speaker_labels_total.with_label_values(&[outcome]).inc());
        metrics.speaker_splits_total.inc_by(u64::from(outcomes.len() > 1));
    }

    /// The ids of its pieces are free.
    fn may_cut(&self, utterance: &Utterance) -> bool {
        let second = piece_id(&utterance.id, 2);
        !self.in_flight.contains(&second) && self.core.log.seq_of(&second).is_none()
    }

    /// Who said it, and where the speaker changes. While nobody has told who speaks, the recogniser's numbers stand for names.
    pub(super) async fn label(&self, utterance: &Utterance, may_split: bool) -> Vec<LabelledWords> {
        let mut labels = self.ask_tracker(utterance, may_split).await.unwrap_or_default();
        let speaker = utterance.voice.filter(|_| !self.core.names_speakers()).map(NumberedVoice::speaker);
        if speaker.is_some() && labels.iter().all(|label| label.speaker.is_none()) {
            labels = vec![LabelledWords { words: 0..utterance.words.as_ref().map_or(1, Vec::len), speaker }];
        }
        labels
    }

    async fn ask_tracker(&self, utterance: &Utterance, may_split: bool) -> Option<Vec<LabelledWords>> {
        let tracker = self.core.tracker().clone()?;
        let question = LabelUtterance::of(utterance, may_split);
        tokio::time::timeout(LABEL_TIMEOUT, tracker.send(question)).await.ok()?.ok()
    }
}

/// The second is the piece of a line that follows the first.
pub(super) fn is_next_piece(first: &Arc<Entry>, second: &Arc<Entry>) -> bool {
    let (Entry::Transcript(first), Entry::Transcript(second)) = (&**first, &**second) else { return false };
    let Some((of, n)) = second.id.rsplit_once('.').and_then(|(of, n)| Some((of, n.parse::<usize>().ok()?))) else {
        return false;
    };
    n >= 2 && first.id == piece_id(of, n - 1)
}

/// The label of a final, for the metric.
fn outcome(speaker: Option<&Speaker>) -> &'static str {
    match speaker {
        None => "unknown",
        Some(speaker) if NumberedVoice::is_identity(&speaker.identity) => "numbered",
        Some(_) => "named",
    }
}
