//! Translations of finals: each follows its final into the room. One that comes before its final waits for it; one whose
//! final was never shown goes nowhere, and is counted.

use super::Ledger;
use crate::gladia::phase::TranslationHeard;
use crate::log::{RoomInput, Translated};

/// Finals whose translations are known when they come, and translations that wait for their finals.
const REMEMBERED: usize = 512;

#[derive(Debug, Default)]
pub(super) struct Translations {
    /// The newest finals that went to the room: id, start and end on the session clock.
    told: Vec<(String, u64, u64)>,
    waiting: Vec<(String, TranslationHeard)>,
    /// Those of lines that were never shown, since the last report.
    pub dropped: u64,
}

impl Ledger {
    /// Takes a translation that the present session gives.
    pub fn translation(&mut self, heard: TranslationHeard) {
        let Some(hearing) = &self.hearing else {
            self.translations.dropped += 1;
            return;
        };
        let id = hearing.utterance_id(&heard.id);
        let (start, end) = (hearing.offset_of(heard.start_s), hearing.offset_of(heard.end_s));
        let place = (self.clock.start_ms(start.min(self.sent)), self.clock.end_ms(end.min(self.sent)));
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
        if hearing.is_final_of_earlier_process(&heard.id) {
            // The room knows whether it was shown.
            return self.translate(id, place.0.min(place.1), place.1, heard);
        }
        // A final that was taken away, since an earlier session had said it, is not to come any more.
        if hearing.is_final(&heard.id) && !self.held.iter().any(|held| held.utterance.id == id) {
            self.translations.dropped += 1;
            return;
        }
        if self.translations.waiting.len() == REMEMBERED {
            self.translations.waiting.remove(0);
            self.translations.dropped += 1;
        }
        self.translations.waiting.push((id, heard));
    }

    /// A final goes to the room: what waits for it follows.
    pub(super) fn final_is_told(&mut self, id: &str, start_ms: u64, end_ms: u64) {
        let told = &mut self.translations.told;
        if told.len() == REMEMBERED {
            told.remove(0);
        }
        told.push((id.to_owned(), start_ms, end_ms));
        let waiting = std::mem::take(&mut self.translations.waiting);
        let (due, waiting) = waiting.into_iter().partition(|(of, _)| of == id);
        self.translations.waiting = waiting;
        let due: Vec<(String, TranslationHeard)> = due;
        for (of, heard) in due {
            self.translate(of, start_ms, end_ms, heard);
        }
    }

    /// The session is over, and the finals that translations wait for do not come any more.
    pub(super) fn drop_waiting_translations(&mut self) {
        self.translations.dropped += std::mem::take(&mut self.translations.waiting).len() as u64;
    }

    fn translate(&mut self, of: String, start_ms: u64, end_ms: u64, heard: TranslationHeard) {
        let TranslationHeard { language, text, .. } = heard;
        self.ready.push_back(RoomInput::Translation(Translated { of, language, text, start_ms, end_ms }));
    }
}

impl Translations {
    /// The final of this recogniser session (the beginning of its ids) that was said then.
    fn final_at(&self, session: &str, place: (u64, u64)) -> Option<(String, u64, u64)> {
        let overlap = |told: &(String, u64, u64)| told.2.min(place.1).saturating_sub(told.1.max(place.0));
        let own = self.told.iter().filter(|told| told.0.starts_with(session));
        own.filter(|told| overlap(told) > 0).max_by_key(|told| overlap(told)).cloned()
    }

    /// The final that is meant by `id`. Where a recogniser gives several the same id, the others have got one with `@`
    /// (`Hearing::is_repeated`): then the time tells.
    fn final_of(&self, id: &str, place: (u64, u64)) -> Option<(String, u64, u64)> {
        let is_it = |told: &&(String, u64, u64)| {
            told.0.strip_prefix(id).is_some_and(|rest| rest.is_empty() || rest.starts_with('@'))
        };
        let mut candidates = self.told.iter().rev().filter(is_it);
        let newest = candidates.next()?;
        let is_there = |told: &&(String, u64, u64)| told.1 < place.1 && place.0 < told.2;
        let found = std::iter::once(newest).chain(candidates).find(is_there);
        Some(found.unwrap_or(newest).clone())
    }
}
