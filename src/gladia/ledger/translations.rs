//! Translations of finals: each follows its final into the room. One that comes before its final waits for it; one whose
//! final was never delivered goes nowhere, and is counted. So is one that is still expected when its session is over.
//!
//! The invariant: a translation is expected only of a final that was delivered, once for each language.

use super::Ledger;
use crate::gladia::phase::TranslationHeard;
use crate::transcript::{Translated, Utterance};

/// Finals whose translations are known when they come, and translations that wait for their finals.
const REMEMBERED: usize = 512;

#[derive(Debug, Default)]
pub(super) struct Translations {
    /// What each final is to be translated to.
    targets: Vec<String>,
    /// The newest finals that went to the room: id, start and end on the session clock.
    delivered: Vec<(String, u64, u64)>,
    /// Id and language of those that the present session has yet to give.
    expected: Vec<(String, String)>,
    /// Failures that the present session has reported; they do not say of what.
    failed: u64,
    waiting: Vec<(String, TranslationHeard)>,
    /// Those of lines that were never delivered, since the last report.
    pub dropped: u64,
    /// Those that did not come before their session was over, since the last report.
    pub missing: u64,
}

impl Ledger {
    /// Each final is to be translated to these languages; one that stays away is counted.
    pub fn expect_translations(&mut self, languages: &[String]) {
        self.translations.targets = languages.to_vec();
    }

    /// The present session says that it has one translation not.
    pub fn translation_failed(&mut self) {
        self.translations.failed += 1;
    }

    /// Takes a translation that the present session gives.
    pub fn translation(&mut self, heard: TranslationHeard) {
        let Some(session) = &self.session else {
            self.translations.dropped += 1;
            return;
        };
        let id = session.utterance_id(&heard.id);
        let (start, end) = (session.offset_of(heard.start_s), session.offset_of(heard.end_s));
        let sent = self.cursors.sent();
        let place = (self.clock.start_ms(start.min(sent)), self.clock.end_ms(end.min(sent)));
        let found = match heard.id.as_str() {
            "" => self.translations.final_at(&id, place),
            _ => self.translations.final_of(&id, place),
        };
        if let Some((of, start_ms, end_ms)) = found {
            return self.translate(of, start_ms, end_ms, heard);
        }
        if heard.id.is_empty() {
            self.translations.dropped += 1;
            return;
        }
        if session.is_final_of_earlier_process(&heard.id) {
            // The room knows whether it was published.
            return self.translate(id, place.0.min(place.1), place.1, heard);
        }
        // A final that was taken away, since an earlier session had said it, is not to come any more.
        if session.is_final(&heard.id) && !self.utterances.is_waiting(&id) {
            self.translations.dropped += 1;
            return;
        }
        if self.translations.waiting.len() == REMEMBERED {
            self.translations.waiting.remove(0);
            self.translations.dropped += 1;
        }
        self.translations.waiting.push((id, heard));
    }

    /// What waits for this final follows it.
    pub(super) fn translate_waiting(&mut self, id: &str, start_ms: u64, end_ms: u64) {
        let waiting = std::mem::take(&mut self.translations.waiting);
        let (due, waiting) = waiting.into_iter().partition(|(of, _)| of == id);
        self.translations.waiting = waiting;
        let due: Vec<(String, TranslationHeard)> = due;
        for (of, heard) in due {
            self.translate(of, start_ms, end_ms, heard);
        }
    }

    /// The session is over: the finals that translations wait for do not come any more, and neither do the translations
    /// that it has yet to give.
    pub(super) fn drop_waiting_translations(&mut self) {
        let translations = &mut self.translations;
        translations.dropped += std::mem::take(&mut translations.waiting).len() as u64;
        let expected = std::mem::take(&mut translations.expected).len() as u64;
        let missing = expected.saturating_sub(std::mem::take(&mut translations.failed));
        if missing > 0 {
            translations.missing += missing;
            tracing::warn!(missing, "the recogniser session is over and had not given all translations");
        }
    }

    fn translate(&mut self, of: String, start_ms: u64, end_ms: u64, heard: TranslationHeard) {
        let TranslationHeard { language, text, .. } = heard;
        self.translations.expected.retain(|(id, to)| *id != of || !is_same_language(to, &language));
        self.announcements.translation(Translated { of, language, text, start_ms, end_ms });
    }
}

/// Their first subtags are: `fr` and `fr-CA`.
fn is_same_language(one: &str, other: &str) -> bool {
    let first = |code: &str| code.split(['-', '_']).next().unwrap_or_default().to_ascii_lowercase();
    first(one) == first(other)
}

impl Translations {
    /// A final goes to the room, and its translations are expected.
    pub fn final_delivered(&mut self, said: &Utterance) {
        if self.delivered.len() == REMEMBERED {
            let (oldest, ..) = self.delivered.remove(0);
            let before = self.expected.len();
            self.expected.retain(|(of, _)| *of != oldest);
            self.missing += (before - self.expected.len()) as u64;
        }
        self.delivered.push((said.id.clone(), said.start_ms, said.end_ms));
        let spoken = said.language.as_deref();
        let others = self.targets.iter().filter(|to| spoken.is_none_or(|spoken| !is_same_language(spoken, to)));
        self.expected.extend(others.map(|to| (said.id.clone(), to.clone())));
    }

    /// The final of this recogniser session (the beginning of its ids) that was said then.
    fn final_at(&self, session: &str, place: (u64, u64)) -> Option<(String, u64, u64)> {
        let overlap = |of: &(String, u64, u64)| of.2.min(place.1).saturating_sub(of.1.max(place.0));
        let own = self.delivered.iter().filter(|of| of.0.starts_with(session));
        own.filter(|of| overlap(of) > 0).max_by_key(|of| overlap(of)).cloned()
    }

    /// The final that is meant by `id`. Where a recogniser gives several the same id, the others have got one with `@`
    /// (`SttSession::is_repeated`): then the time tells.
    fn final_of(&self, id: &str, place: (u64, u64)) -> Option<(String, u64, u64)> {
        let is_it = |of: &&(String, u64, u64)| {
            of.0.strip_prefix(id).is_some_and(|rest| rest.is_empty() || rest.starts_with('@'))
        };
        let mut candidates = self.delivered.iter().rev().filter(is_it);
        let newest = candidates.next()?;
        let is_there = |of: &&(String, u64, u64)| of.1 < place.1 && place.0 < of.2;
        let found = std::iter::once(newest).chain(candidates).find(is_there);
        Some(found.unwrap_or(newest).clone())
    }
}
