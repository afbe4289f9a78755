//! Who said these words? Joins what sources tell of the speakers with what is heard in the audio. Pure; times are ms on the
//! session's clock, those of audio and words when they arrived.
//!
//! Each kind of source is a witness of its own, with its own delay. Of two that know something the more exact one answers;
//! one that is less exact speaks only of participants that the other does not know.

use std::collections::HashMap;
use std::ops::Range;

use super::delay::{DelayFilter, LEAST_MS, MOST_MS, Model, STEP_MS};
use super::heard::Heard;
use super::split::{Rules, Under, clear_speaker, runs};
use super::timeline::{Activity, Lifetime, Report, SLOT_MS, Timeline};
use crate::audio::voice::FRAME_MS;
use crate::transcript::{Speaker, SpeakerSource, SpeakerUpdate};

/// A report of the past may take so long.
const SETTLE_MS: i64 = 400;
/// Nobody speaks through a silence of this length: what sources tell ends sooner.
const SILENT_MS: i64 = 30 * STEP_MS;
/// Longest time that is laid beside reports in one go.
const MOST_BEHIND_MS: i64 = 30_000;
/// Names remembered.
const MAX_NAMES: usize = 2000;
/// Candidates that are looked at for one line.
const MAX_CANDIDATES: usize = 16;
/// Delays of so much weight together must give the same answer.
const SURE: f32 = 0.9;
/// A source that loses reports is asked for a clearer answer: by so much more for each share that it loses, at most.
const LOST_CAUTION: f32 = 2.0;
const MOST_CAUTION: f32 = 0.4;
/// What reports of a source that loses most of them are worth as evidence of the delay.
const LEAST_TRUST: f32 = 0.25;
/// Delays of so much weight must lie within what was told.
const LEAST_KNOWN: f32 = 0.35;
/// Below so much of the spoken time, nobody was active.
const NOBODY: f32 = 0.15;

/// A kind of source, in the order in which they are believed.
struct Kind {
    lifetime: Lifetime,
    model: Model,
    rules: Rules,
}

/// Tracks are measured here, 20 ms at a time, and renewed twice a second.
const TRACK: Kind = Kind {
    lifetime: Lifetime { fresh_ms: 550, most_ms: 1500 },
    model: Model { voice_if_active: 0.93, voice_if_not: 0.05, weight: 0.37, jump: 3e-4, drift: 1e-3 },
    rules: Rules { least_share: 0.4, margin: 0.3, change_ms: 260.0, pause_discount: 0.4, change_least_ms: 120.0 },
};
/// A server tells changes only, in windows of 400 ms, and reliably.
const OBSERVER: Kind = Kind {
    lifetime: Lifetime { fresh_ms: 1300, most_ms: 5000 },
    model: Model { voice_if_active: 0.8, voice_if_not: 0.25, weight: 0.37, jump: 3e-4, drift: 1e-3 },
    rules: Rules { least_share: 0.4, margin: 0.3, change_ms: 700.0, pause_discount: 0.8, change_least_ms: 350.0 },
};
/// Browsers pass on what the server tells, renew it each second, and come and go.
const VIEWER: Kind = Kind { lifetime: Lifetime { fresh_ms: 1200, most_ms: 2000 }, ..OBSERVER };

struct Witness {
    timeline: Timeline,
    delay: DelayFilter,
    rules: Rules,
}

/// A name, and whether its holder or LiveKit has told it.
struct Name {
    name: String,
    is_vouched: bool,
}

/// What is known of a session's speakers.
pub struct Attribution {
    /// Tracks, the observer, viewers.
    witnesses: [Witness; 3],
    names: HashMap<String, Name>,
    heard: Heard,
    /// Length of the silence up to that step.
    silent_ms: i64,
    /// Number of the step that is laid beside reports next.
    next: Option<i64>,
    /// A delay that is set, and not estimated.
    fixed_ms: Option<i64>,
}

/// Words of one line, and whose they are.
pub type Piece = (Range<usize>, Option<String>);

/// The answer of one witness.
enum Verdict {
    /// Nobody that it knows has spoken.
    Nobody,
    Unclear,
    Clear(Vec<(Range<usize>, String)>),
}

impl Attribution {
    pub fn new(fixed_ms: Option<i64>) -> Self {
        let witness = |kind: Kind| Witness {
            timeline: Timeline::new(kind.lifetime),
            delay: DelayFilter::new(kind.model),
            rules: kind.rules,
        };
        Self {
            witnesses: [TRACK, OBSERVER, VIEWER].map(witness),
            names: HashMap::new(),
            heard: Heard::default(),
            silent_ms: 0,
            next: None,
            fixed_ms,
        }
    }

    /// Takes a report; `at_ms` is when it was so. One that nobody is active may bring a name all the same.
    pub fn report(&mut self, update: &SpeakerUpdate, at_ms: i64) {
        let SpeakerUpdate { identity, name, active: is_active, level, source, .. } = update;
        let (is_active, level) = (*is_active, *level);
        let is_hearsay = matches!(source, SpeakerSource::Viewer(viewer) if viewer != identity);
        if let Some(name) = name {
            self.name(identity, name, !is_hearsay);
        }
        let witness = match source {
            SpeakerSource::Track => 0,
            SpeakerSource::Observer => 1,
            SpeakerSource::Viewer(_) => 2,
        };
        self.witnesses[witness].timeline.report(Report { identity, is_active, level, at_ms, is_hearsay });
    }

    /// What somebody says about another does not change what is known.
    fn name(&mut self, identity: &str, name: &str, is_vouched: bool) {
        let is_full = self.names.len() >= MAX_NAMES;
        match self.names.get_mut(identity) {
            Some(known) if is_vouched || !known.is_vouched => *known = Name { name: name.to_owned(), is_vouched },
            Some(_) => {}
            None if is_full => {}
            None => drop(self.names.insert(identity.to_owned(), Name { name: name.to_owned(), is_vouched })),
        }
    }

    /// Takes the loudness of audio, frame by frame, from `at_ms` on.
    pub fn hear(&mut self, at_ms: i64, frames: impl IntoIterator<Item = f64>) {
        self.next.get_or_insert(at_ms.div_euclid(STEP_MS));
        for (n, rms) in (0..).zip(frames) {
            self.heard.frame(at_ms + n * FRAME_MS as i64, rms);
        }
    }

    /// Lays what was heard beside what was told, as far as both are complete.
    pub fn advance(&mut self, now_ms: i64) {
        let Some(next) = self.next else { return };
        let ready = (now_ms - SETTLE_MS + LEAST_MS).div_euclid(STEP_MS);
        let next = next.max(ready - MOST_BEHIND_MS / STEP_MS);
        for step in next..ready {
            let at_ms = step * STEP_MS;
            let heard = self.heard.share(at_ms);
            self.silent_ms = if heard == Some(0.0) { self.silent_ms + STEP_MS } else { 0 };
            if self.silent_ms == SILENT_MS {
                let (from_ms, to_ms) = (at_ms - SILENT_MS - MOST_MS, at_ms - LEAST_MS);
                self.witnesses.iter_mut().for_each(|witness| witness.timeline.distrust(from_ms, to_ms));
            }
            if self.heard.is_after_pause(at_ms) {
                self.witnesses.iter_mut().for_each(|witness| witness.delay.doubt());
            }
            for Witness { timeline, delay, .. } in &mut self.witnesses {
                if !timeline.is_empty() {
                    let active = timeline.union(at_ms - LEAST_MS, at_ms - LEAST_MS + STEP_MS);
                    delay.step(heard, active, (1.0 - 2.0 * timeline.lost()).max(LEAST_TRUST));
                }
            }
        }
        self.next = Some(next.max(ready));
    }

    /// Another publisher: what was known of the delay is known no more.
    pub fn forget_delay(&mut self) {
        self.witnesses.iter_mut().for_each(|witness| witness.delay.forget());
    }

    pub fn forget_old(&mut self, now_ms: i64) {
        self.witnesses.iter_mut().for_each(|witness| witness.timeline.forget(now_ms));
    }

    pub fn participants(&self) -> usize {
        self.witnesses.iter().map(|witness| witness.timeline.len()).max().unwrap_or(0)
    }

    /// The delay of the best witness, where it is clear.
    pub fn delay_ms(&self) -> Option<i64> {
        let witness = self.witnesses.iter().find(|witness| !witness.timeline.is_empty())?;
        self.fixed_ms.or_else(|| witness.delay.clear_ms())
    }

    pub fn speaker(&self, identity: String) -> Speaker {
        let name = self.names.get(&identity).map(|known| known.name.clone());
        Speaker { identity, name }
    }

    /// Whose these words are, in one piece or, where it `may_split`, several. None is unknown, never a guess.
    pub fn label(&self, words: &[(i64, i64)], may_split: bool) -> Vec<Piece> {
        let whole = vec![(0..words.len(), None)];
        for (n, witness) in self.witnesses.iter().enumerate() {
            match self.ask(witness, words, may_split) {
                Verdict::Nobody => {}
                Verdict::Unclear => return whole,
                Verdict::Clear(pieces) => {
                    let better = &self.witnesses[..n];
                    let at_ms = words.first().map_or(0, |word| word.0);
                    let is_denied = |who: &str| better.iter().any(|witness| witness.timeline.covers(who, at_ms));
                    if pieces.iter().any(|(_, who)| is_denied(who)) {
                        return whole;
                    }
                    return pieces.into_iter().map(|(words, who)| (words, Some(who))).collect();
                }
            }
        }
        whole
    }

    fn ask(&self, witness: &Witness, words: &[(i64, i64)], may_split: bool) -> Verdict {
        let (Some(from_ms), Some(to_ms)) = (words.iter().map(|w| w.0).min(), words.iter().map(|w| w.1).max()) else {
            return Verdict::Nobody;
        };
        if witness.timeline.is_empty() {
            return Verdict::Nobody;
        }
        let delays = match self.fixed_ms {
            Some(ms) => vec![(ms, 1.0)],
            None => known_delays(witness, from_ms.midpoint(to_ms)),
        };
        let most_ms = delays.iter().map(|d| d.0).max().unwrap_or(MOST_MS);
        let least_ms = delays.iter().map(|d| d.0).min().unwrap_or(LEAST_MS);
        let activity = witness.timeline.activity(from_ms - most_ms, to_ms - least_ms + SLOT_MS);
        let more = (witness.timeline.lost() * LOST_CAUTION).min(MOST_CAUTION);
        let Rules { least_share, margin, .. } = witness.rules;
        let rules = Rules { least_share: least_share + more, margin: margin + more, ..witness.rules };
        Line::new(words, &activity, &delays, &rules).verdict(may_split)
    }
}

/// Delays, with their weights. Those by which the words are of a time before anything was told say nothing, unless most do.
fn known_delays(witness: &Witness, words_ms: i64) -> Vec<(i64, f32)> {
    let mut delays = witness.delay.weights();
    let is_known =
        |delay: &(i64, f32)| witness.timeline.began_ms().is_none_or(|began_ms| words_ms - delay.0 >= began_ms);
    let known: f32 = delays.iter().filter(|delay| is_known(delay)).map(|delay| delay.1).sum();
    if known >= LEAST_KNOWN {
        delays.retain(is_known);
        delays.iter_mut().for_each(|delay| delay.1 /= known);
    }
    delays
}

/// One line beside the activity that belongs to it.
struct Line<'a> {
    words: &'a [(i64, i64)],
    rules: &'a Rules,
    who: Vec<&'a str>,
    /// Of each delay: its weight, and the activity under each word.
    by_delay: Vec<(f32, Vec<Under>)>,
    /// The same, on the average of all delays.
    mean: Vec<Under>,
}

impl<'a> Line<'a> {
    fn new(words: &'a [(i64, i64)], activity: &Activity<'a>, delays: &[(i64, f32)], rules: &'a Rules) -> Self {
        let sums = |slots: &Vec<f32>| {
            let mut sum = 0.0;
            std::iter::once(0.0)
                .chain(slots.iter().map(|slot| {
                    sum += slot * SLOT_MS as f32;
                    sum
                }))
                .collect()
        };
        let mut candidates: Vec<(&str, Vec<f32>)> =
            activity.by_participant.iter().map(|(who, slots)| (*who, sums(slots))).collect();
        candidates.sort_by(|(_, a), (_, b)| b.last().unwrap_or(&0.0).total_cmp(a.last().unwrap_or(&0.0)));
        candidates.truncate(MAX_CANDIDATES);
        let under = |(from_ms, to_ms): (i64, i64), delay_ms: i64, sums: &Vec<f32>| {
            let slot =
                |ms: i64| ((ms - delay_ms - activity.from_ms) / SLOT_MS).clamp(0, sums.len() as i64 - 1) as usize;
            sums[slot(to_ms)] - sums[slot(from_ms)]
        };
        let of_delay = |(delay_ms, weight): &(i64, f32)| {
            let word = |span: &(i64, i64)| candidates.iter().map(|(_, sums)| under(*span, *delay_ms, sums)).collect();
            (*weight, words.iter().map(word).collect::<Vec<Under>>())
        };
        let by_delay: Vec<_> = delays.iter().map(of_delay).collect();
        let mean = |word: usize, c: usize| by_delay.iter().map(|(weight, under)| weight * under[word][c]).sum::<f32>();
        let mean = (0..words.len()).map(|word| (0..candidates.len()).map(|c| mean(word, c)).collect()).collect();
        Self { words, rules, who: candidates.into_iter().map(|(who, _)| who).collect(), by_delay, mean }
    }

    fn verdict(&self, may_split: bool) -> Verdict {
        let all = 0..self.words.len();
        let spoken_ms = self.spoken_ms(&all);
        let most = self.sums(&self.mean, &all).into_iter().fold(0.0, f32::max);
        if most < NOBODY * spoken_ms || spoken_ms <= 0.0 {
            return Verdict::Nobody;
        }
        let mut pieces = match may_split {
            true => runs(&self.mean, &self.pauses_ms(), self.rules),
            false => vec![(all.clone(), 0)],
        };
        // What is not clear by itself belongs to what is beside it.
        loop {
            let unclear = pieces.iter().enumerate().filter(|(_, (words, _))| self.clear(words).is_none());
            let shortest = unclear.min_by(|(_, a), (_, b)| self.spoken_ms(&a.0).total_cmp(&self.spoken_ms(&b.0)));
            let Some((n, _)) = shortest else { break };
            if pieces.len() == 1 {
                return Verdict::Unclear;
            }
            let under = self.sums(&self.mean, &pieces[n].0);
            let before = n.checked_sub(1).map(|b| under[pieces[b].1]);
            let after = pieces.get(n + 1).map(|(_, c)| under[*c]);
            let first = if after.is_none() || before.is_some_and(|b| Some(b) >= after) { n - 1 } else { n };
            let (second, c) = pieces.remove(first + 1);
            pieces[first].0.end = second.end;
            if first == n {
                pieces[first].1 = c;
            }
        }
        let mut clear: Vec<(Range<usize>, usize)> = Vec::new();
        for (words, _) in pieces {
            let Some(c) = self.clear(&words) else { return Verdict::Unclear };
            match clear.last_mut() {
                Some((last, same)) if *same == c => last.end = words.end,
                _ => clear.push((words, c)),
            }
        }
        Verdict::Clear(clear.into_iter().map(|(words, c)| (words, self.who[c].to_owned())).collect())
    }

    /// The speaker of these words, when delays of nearly all weight say the same.
    fn clear(&self, words: &Range<usize>) -> Option<usize> {
        let spoken_ms = self.spoken_ms(words);
        let best = clear_speaker(&self.sums(&self.mean, words), spoken_ms, self.rules)?;
        let is_best = |under: &Vec<Under>| clear_speaker(&self.sums(under, words), spoken_ms, self.rules) == Some(best);
        let sure: f32 = self.by_delay.iter().filter(|(_, under)| is_best(under)).map(|(weight, _)| weight).sum();
        (sure >= SURE).then_some(best)
    }

    fn sums(&self, under: &[Under], words: &Range<usize>) -> Vec<f32> {
        (0..self.who.len()).map(|c| under[words.clone()].iter().map(|word| word[c]).sum()).collect()
    }

    fn spoken_ms(&self, words: &Range<usize>) -> f32 {
        self.words[words.clone()].iter().map(|(from_ms, to_ms)| (to_ms - from_ms) as f32).sum()
    }

    fn pauses_ms(&self) -> Vec<f32> {
        let before = |n: usize| n.checked_sub(1).map_or(0, |before| self.words[n].0 - self.words[before].1);
        (0..self.words.len()).map(|n| before(n).max(0) as f32).collect()
    }
}

#[cfg(test)]
mod tests {
    use tokio::time::Instant;

    use super::*;

    fn update(identity: &str, name: Option<&str>, active: bool, source: SpeakerSource) -> SpeakerUpdate {
        let (identity, name) = (identity.to_owned(), name.map(str::to_owned));
        SpeakerUpdate { identity, name, active, level: 0.5, at: Instant::now(), source }
    }

    fn viewer(identity: &str) -> SpeakerSource {
        SpeakerSource::Viewer(identity.to_owned())
    }

    /// Reports of activity, from and to, with the delay known to be 0.
    fn told(spans: &[(&str, SpeakerSource, i64, i64)]) -> Attribution {
        let mut attribution = Attribution::new(Some(0));
        for (identity, source, from_ms, to_ms) in spans {
            for at_ms in (*from_ms..*to_ms).step_by(400) {
                attribution.report(&update(identity, None, true, source.clone()), at_ms);
            }
            attribution.report(&update(identity, None, false, source.clone()), *to_ms);
        }
        attribution
    }

    fn whose(attribution: &Attribution, words: &[(i64, i64)]) -> Vec<Option<String>> {
        attribution.label(words, true).into_iter().map(|(_, who)| who).collect()
    }

    fn one(who: &str) -> Vec<Option<String>> {
        vec![Some(who.to_owned())]
    }

    #[test]
    fn words_belong_to_whoever_was_active_under_most_of_them() {
        let attribution = told(&[("anna", viewer("anna"), 0, 1000), ("ben", viewer("ben"), 1000, 1400)]);
        assert_eq!(whose(&attribution, &[(0, 1400)]), one("anna"));
        assert_eq!(whose(&attribution, &[(1000, 1400)]), one("ben"));
        assert_eq!(whose(&attribution, &[(500, 1400)]), [None], "of two minds");
        assert_eq!(whose(&attribution, &[(9000, 9500)]), [None]);
        assert_eq!(whose(&Attribution::new(None), &[(0, 500)]), [None]);
    }

    #[test]
    fn a_line_is_cut_where_the_speaker_clearly_changes() {
        let tracks = [("anna", SpeakerSource::Track, 0, 2000), ("ben", SpeakerSource::Track, 2100, 4000)];
        let words: Vec<_> = (0..13).map(|n| (n * 300, n * 300 + 280)).collect();
        let pieces = told(&tracks).label(&words, true);
        assert_eq!(pieces, [(0..7, Some("anna".to_owned())), (7..13, Some("ben".to_owned()))]);
        assert_eq!(told(&tracks).label(&words, false), [(0..13, None)], "an interim is not cut");
        let backchannel = [("anna", SpeakerSource::Track, 0, 4000), ("ben", SpeakerSource::Track, 2100, 2300)];
        assert_eq!(whose(&told(&backchannel), &words), one("anna"));
    }

    #[test]
    fn the_more_exact_source_answers_and_the_other_tells_of_those_it_does_not_know() {
        let tracks = [("anna", SpeakerSource::Track, 0, 1000), ("ben", SpeakerSource::Observer, 0, 3000)];
        assert_eq!(whose(&told(&tracks), &[(0, 1000)]), one("anna"));
        assert_eq!(whose(&told(&tracks), &[(1000, 3000)]), one("ben"));
        let denied = [("anna", SpeakerSource::Track, 0, 1000), ("anna", SpeakerSource::Observer, 1000, 3000)];
        assert_eq!(whose(&told(&denied), &[(1500, 3000)]), [None], "her track says that she was silent");
    }

    #[test]
    fn a_word_about_oneself_counts_more_than_hearsay_and_nobody_renames_another() {
        let attribution = told(&[("anna", viewer("host"), 0, 4000), ("anna", viewer("anna"), 0, 1000)]);
        assert_eq!(whose(&attribution, &[(0, 1000)]), one("anna"));
        assert_eq!(whose(&attribution, &[(2000, 4000)]), [None]);
        let mut attribution = Attribution::new(None);
        let mut name = |name: &str, source: SpeakerSource| {
            attribution.report(&update("anna", Some(name), false, source), 0);
            attribution.speaker("anna".to_owned()).name.unwrap()
        };
        assert_eq!(name("Annie", viewer("host")), "Annie", "better than none");
        assert_eq!(name("Anna", viewer("anna")), "Anna");
        assert_eq!(name("Mallory", viewer("eve")), "Anna");
        assert_eq!(name("Anna I.", SpeakerSource::Observer), "Anna I.");
    }

    #[test]
    fn a_report_that_is_not_renewed_expires() {
        let mut attribution = Attribution::new(Some(0));
        attribution.report(&update("anna", None, true, viewer("anna")), 0);
        assert_eq!(whose(&attribution, &[(0, 1000)]), one("anna"));
        assert_eq!(whose(&attribution, &[(3000, 4000)]), [None]);
        assert_eq!(attribution.participants(), 1);
        attribution.forget_old(20 * 60 * 1000);
        assert_eq!(attribution.participants(), 0);
    }

    /// A client that vanished may be said to speak for ever.
    #[test]
    fn whoever_speaks_through_silence_is_not_believed_until_it_ends() {
        let mut attribution = Attribution::new(Some(0));
        let active = |attribution: &mut Attribution, who: &str, is_active: bool, at_ms: i64| {
            attribution.report(&update(who, None, is_active, viewer(who)), at_ms);
        };
        for at_ms in (0..40_000).step_by(500) {
            active(&mut attribution, "stuck", true, at_ms);
            let speaks = (20_000..24_000).contains(&at_ms);
            active(&mut attribution, "anna", speaks, at_ms);
            let loudness = if speaks { 3000.0 } else { 20.0 };
            attribution.hear(at_ms, std::iter::repeat_n(loudness, 25));
            attribution.advance(at_ms + 500);
        }
        let words = [(20_200, 21_000), (21_000, 23_800)];
        assert_eq!(whose(&attribution, &words), one("anna"));
        assert_eq!(whose(&attribution, &[(30_000, 31_000)]), [None]);
        active(&mut attribution, "stuck", false, 40_000);
        active(&mut attribution, "stuck", true, 41_000);
        assert_eq!(whose(&attribution, &[(41_000, 42_000)]), one("stuck"), "somebody is there after all");
    }

    /// A witness that is gone does not contradict those that are there.
    #[test]
    fn a_source_that_has_told_nothing_for_long_denies_nothing() {
        let spans = [("anna", SpeakerSource::Observer, 0, 1000), ("anna", viewer("anna"), 90_000, 92_000)];
        assert_eq!(whose(&told(&spans), &[(90_000, 92_000)]), one("anna"));
    }

    /// What strangers may send: as much of it as they like, at any time.
    #[test]
    fn a_flood_of_reports_is_bounded() {
        let mut attribution = Attribution::new(None);
        for n in 0..50_000_i64 {
            let identity = format!("p{}", n % 3000);
            let mut update = update(&identity, Some(&identity), n % 3 != 0, viewer("host"));
            update.level = [f32::NAN, f32::INFINITY, -1.0, 0.5][(n % 4) as usize];
            attribution.report(&update, (n * 7919) % 100_000 - 50_000);
        }
        attribution.hear(i64::MIN / 4, [1.0, f64::NAN]);
        attribution.hear(0, std::iter::repeat_n(f64::INFINITY, 5000));
        attribution.advance(100_000);
        attribution.label(&[(0, 900), (900, 700), (-90_000, 90_000)], true);
        assert!(attribution.participants() <= 1000 && attribution.names.len() <= MAX_NAMES);
    }
}
