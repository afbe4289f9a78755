//! Voice activity per participant, as one kind of source tells it. Pure; times are ms on the session's clock.

use std::collections::{HashMap, VecDeque};

/// Activity older than this is forgotten: longer than any utterance takes to become final.
pub const REMEMBER_MS: i64 = 15 * 60 * 1000;
/// Participants remembered.
const MAX_PARTICIPANTS: usize = 1000;
/// Intervals remembered per participant.
const MAX_INTERVALS: usize = 2000;
/// Reports that disagree by less about the level go on with an interval.
const SAME_LEVEL: f32 = 0.05;
/// A participant of whom nothing was told for so long is not known any more.
const COVERS_MS: i64 = 60_000;
/// Weight of the last end of activity in the share of those that were lost.
const LOST_MEMORY: f32 = 0.05;
/// Whoever is so much less loud than another at the same time is heard through that one's microphone.
const CROSSTALK: f32 = 0.3;
/// What activity counts then, and what it counts when nothing was heard of it for some time.
const CROSSTALK_WEIGHT: f32 = 0.25;
const STALE_WEIGHT: f32 = 0.2;
/// Stands for 0, so that levels may have a sign.
const UNKNOWN_LEVEL: f32 = 1e-6;

/// What participants were doing, by one kind of source.
#[derive(Debug)]
pub struct Timeline {
    lifetime: Lifetime,
    participants: HashMap<String, Participant>,
    /// Of the first report.
    began_ms: Option<i64>,
    /// Share of activity of late whose end was never told.
    lost: f32,
}

/// A report that is neither renewed nor withdrawn counts whole for `fresh_ms`, and a little until `most_ms`.
#[derive(Debug, Clone, Copy)]
pub struct Lifetime {
    pub fresh_ms: i64,
    pub most_ms: i64,
}

/// Intervals in order, which do not overlap. What a participant says of itself stands apart from what others say of it.
#[derive(Debug, Default)]
struct Participant {
    own: VecDeque<Interval>,
    told: VecDeque<Interval>,
    /// From here on it is said to be active and nobody is heard, until it is said not to be.
    stuck_from_ms: Option<i64>,
}

#[derive(Debug, Clone, Copy)]
struct Interval {
    from_ms: i64,
    /// Last word about it.
    seen_ms: i64,
    to_ms: Option<i64>,
    level: f32,
}

/// One report.
#[derive(Debug, Clone, Copy)]
pub struct Report<'a> {
    pub identity: &'a str,
    pub is_active: bool,
    /// 0..=1, 0 when unknown.
    pub level: f32,
    pub at_ms: i64,
    /// By another participant.
    pub is_hearsay: bool,
}

/// Who was active in each slot of a span, and how much that counts, 0..=1.
#[derive(Debug)]
pub struct Activity<'a> {
    pub from_ms: i64,
    pub by_participant: Vec<(&'a str, Vec<f32>)>,
}

/// Length of a slot.
pub const SLOT_MS: i64 = 20;

impl Timeline {
    pub fn new(lifetime: Lifetime) -> Self {
        Self { lifetime, participants: HashMap::new(), began_ms: None, lost: 0.0 }
    }

    pub fn len(&self) -> usize {
        self.participants.len()
    }

    pub fn is_empty(&self) -> bool {
        self.participants.is_empty()
    }

    /// The source has told about this participant not long before.
    pub fn covers(&self, identity: &str, at_ms: i64) -> bool {
        self.participants.get(identity).is_some_and(|participant| {
            let lanes = [&participant.own, &participant.told];
            let last_ms = lanes.into_iter().filter_map(|lane| lane.back()).map(|last| last.end_ms(0)).max();
            last_ms.is_some_and(|last_ms| last_ms >= at_ms - COVERS_MS)
        })
    }

    /// Nobody was heard, by whatever delay, for a part of this span: who is said to have been active all the time was not.
    /// A client that is gone may be said to speak for ever, and one that lies says so itself.
    pub fn distrust(&mut self, from_ms: i64, to_ms: i64) {
        let lifetime_ms = self.lifetime.most_ms;
        for participant in self.participants.values_mut() {
            let mut until_ms = from_ms;
            for interval in participant.within(from_ms, to_ms, lifetime_ms) {
                if interval.from_ms <= until_ms {
                    until_ms = until_ms.max(interval.end_ms(lifetime_ms));
                }
            }
            if until_ms >= to_ms {
                participant.stuck_from_ms.get_or_insert(from_ms);
            }
        }
    }

    pub fn report(&mut self, report: Report) {
        let Report { identity, is_active, level, at_ms, is_hearsay } = report;
        if !self.participants.contains_key(identity) {
            if self.participants.len() >= MAX_PARTICIPANTS || !is_active {
                return;
            }
            self.participants.insert(identity.to_owned(), Participant::default());
        }
        let Some(participant) = self.participants.get_mut(identity) else { return };
        self.began_ms.get_or_insert(at_ms);
        let intervals = if is_hearsay { &mut participant.told } else { &mut participant.own };
        let lifetime_ms = self.lifetime.most_ms;
        let is_end_lost = intervals.back().is_some_and(|last| last.to_ms.is_none() && last.end_ms(lifetime_ms) < at_ms);
        let last_end_ms = intervals.back().map_or(i64::MIN, |last| last.end_ms(lifetime_ms));
        let open = intervals.back_mut().filter(|last| last.to_ms.is_none() && last.end_ms(lifetime_ms) >= at_ms);
        match (open, is_active) {
            (Some(open), true) if (open.level - level).abs() < SAME_LEVEL || at_ms <= open.from_ms => {
                open.seen_ms = open.seen_ms.max(at_ms);
            }
            (Some(open), true) => {
                open.to_ms = Some(at_ms);
                Self::begin(intervals, at_ms, level);
            }
            (Some(open), false) => {
                participant.stuck_from_ms = None;
                open.to_ms = Some(at_ms.max(open.from_ms));
                self.lost *= 1.0 - LOST_MEMORY;
            }
            (None, true) => {
                Self::begin(intervals, at_ms.max(last_end_ms), level);
                if is_end_lost {
                    self.lost += (1.0 - self.lost) * LOST_MEMORY;
                }
            }
            (None, false) => {}
        }
    }

    /// Nothing was told of the time before.
    pub fn began_ms(&self) -> Option<i64> {
        self.began_ms
    }

    /// Share of activity of late whose end was never told, 0..=1: so many other reports were lost, too.
    pub fn lost(&self) -> f32 {
        self.lost
    }

    fn begin(intervals: &mut VecDeque<Interval>, from_ms: i64, level: f32) {
        if intervals.len() >= MAX_INTERVALS {
            intervals.pop_front();
        }
        intervals.push_back(Interval { from_ms, seen_ms: from_ms, to_ms: None, level });
    }

    pub fn forget(&mut self, now_ms: i64) {
        let lifetime_ms = self.lifetime.most_ms;
        let is_old = |interval: &Interval| interval.end_ms(lifetime_ms) < now_ms - REMEMBER_MS;
        for participant in self.participants.values_mut() {
            for intervals in [&mut participant.own, &mut participant.told] {
                while intervals.front().is_some_and(is_old) {
                    intervals.pop_front();
                }
            }
        }
        self.participants.retain(|_, p| !p.own.is_empty() || !p.told.is_empty());
    }

    /// Anybody is active in this span: the share of it in which somebody is. What is stale counts half.
    pub fn union(&self, from_ms: i64, to_ms: i64) -> f32 {
        let share = |p: &Participant| {
            let overlap_ms = |i: &Interval, end_ms: i64| (end_ms.min(to_ms) - i.from_ms.max(from_ms)).max(0);
            let of_interval = |i: &Interval| {
                let fresh_ms = overlap_ms(i, i.end_ms(self.lifetime.fresh_ms));
                fresh_ms + (overlap_ms(i, i.end_ms(self.lifetime.most_ms)) - fresh_ms) / 2
            };
            p.within(from_ms, to_ms, self.lifetime.most_ms).map(of_interval).sum::<i64>()
        };
        let trusted = self.participants.values().filter(|p| p.stuck_from_ms.is_none_or(|stuck_ms| stuck_ms >= to_ms));
        let most_ms = trusted.map(share).max().unwrap_or(0);
        most_ms.min(to_ms - from_ms) as f32 / (to_ms - from_ms).max(1) as f32
    }

    /// Who was active in these slots.
    pub fn activity(&self, from_ms: i64, to_ms: i64) -> Activity<'_> {
        let slots = ((to_ms - from_ms) / SLOT_MS).max(0) as usize;
        let mut by_participant: Vec<(&str, Vec<f32>)> = Vec::new();
        for (identity, participant) in &self.participants {
            let mut levels = Vec::new();
            for interval in participant.within(from_ms, to_ms, self.lifetime.most_ms) {
                levels.resize(slots, f32::NAN);
                let slot = |ms: i64| ((ms - from_ms + SLOT_MS / 2).div_euclid(SLOT_MS).max(0) as usize).min(slots);
                let (from, to) = (slot(interval.from_ms), slot(interval.end_ms(self.lifetime.most_ms)));
                // The sign says that it is stale.
                levels[from..to].fill(-interval.level - UNKNOWN_LEVEL);
                let fresh = slot(interval.to_ms.unwrap_or(interval.seen_ms + self.lifetime.fresh_ms)).min(to);
                let trusted = participant.stuck_from_ms.map_or(to, slot);
                levels[from..fresh.min(trusted).max(from)].fill(interval.level + UNKNOWN_LEVEL);
            }
            if !levels.is_empty() {
                by_participant.push((identity, levels));
            }
        }
        by_participant.sort_by_key(|(identity, _)| *identity);
        for slot in 0..slots {
            let levels = by_participant.iter().map(|(_, levels)| levels[slot]);
            let loudest = levels.fold(0.0, f32::max);
            for (_, levels) in &mut by_participant {
                levels[slot] = match levels[slot] {
                    level if level.is_nan() => 0.0,
                    level if level < 0.0 => STALE_WEIGHT,
                    level if level > UNKNOWN_LEVEL && level < loudest - CROSSTALK => CROSSTALK_WEIGHT,
                    _ => 1.0,
                };
            }
        }
        Activity { from_ms, by_participant }
    }
}

impl Participant {
    /// Its intervals that touch the span: its own word, where it has said any.
    fn within(&self, from_ms: i64, to_ms: i64, lifetime_ms: i64) -> impl Iterator<Item = &Interval> {
        let intervals = if self.own.is_empty() { &self.told } else { &self.own };
        let first = intervals.partition_point(|interval| interval.end_ms(lifetime_ms) <= from_ms);
        intervals.range(first..).take_while(move |interval| interval.from_ms < to_ms)
    }
}

impl Interval {
    fn end_ms(&self, lifetime_ms: i64) -> i64 {
        self.to_ms.unwrap_or(self.seen_ms + lifetime_ms)
    }
}
