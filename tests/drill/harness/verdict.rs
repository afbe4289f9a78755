//! Published, seen and stored, compared.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use serde_json::Value;
use stenocast::local_stt::marker;

use super::room::{MARKER_MS, PERIOD_MS, Room, Run};

/// What a publisher had not sent yet when it was cut: what is in its encoder and in its socket.
const IN_FLIGHT: Duration = Duration::from_millis(500);
/// ffmpeg's start on a busy machine, where no final tells when it was over.
const SLOW_START: Duration = Duration::from_secs(4);

/// The ends of a gap are not exact where audio was torn: a chunk, and what a coder adds at its beginning.
const SEAM_MS: u64 = 150;

/// A marker's final: where it lies on the session's clock, and when it came.
struct Heard {
    start_ms: u64,
    at: Instant,
}

/// A durable row of the database.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Stored {
    pub seq: u64,
    pub entry_id: String,
    pub text: String,
}

#[derive(Debug, Default)]
pub struct Verdict {
    /// Markers that have left their publishers: `heard + in_holes + lost`.
    pub expected: usize,
    pub heard: usize,
    pub lost: usize,
    pub duplicated: usize,
    pub rows_lost: usize,
    /// Markers that nobody will ever read, in a hole that viewers were told of.
    pub in_holes: usize,
    pub gaps: BTreeMap<String, usize>,
    pub problems: Vec<String>,
}

/// The markers of a room's viewer and rows against those of its publishers.
pub fn judge(room: &Room, stored: &[Stored]) -> Verdict {
    let seen = room.seen.borrow();
    let mut verdict = Verdict { problems: seen.problems.clone(), ..Verdict::default() };
    for gap in seen.gaps() {
        *verdict.gaps.entry(gap["reason"].as_str().unwrap_or("?").to_owned()).or_default() += 1;
    }
    // What a fault itself has put into the log is not of the publishers.
    let spoken = |value: &&Value| value["text"].as_str().is_some_and(|text| text.starts_with("marker"));
    let all: Vec<&(Instant, Value)> = seen.finals().collect();
    let finals: Vec<&(Instant, Value)> = all.iter().copied().filter(|(_, value)| spoken(&value)).collect();
    let with_next = all.iter().zip(all.iter().skip(1).map(Some).chain([None]));
    let numbers: Vec<Option<u32>> = with_next
        .filter(|((_, value), _)| spoken(&value))
        .map(|((_, value), next)| number_of(value, next.map(|(_, next)| next)))
        .collect();
    let gaps: Vec<(u64, u64)> = seen.gaps().map(|gap| (ms(gap, "startMs"), ms(gap, "endMs"))).collect();
    let mut heard: BTreeMap<u32, Heard> = BTreeMap::new();
    for ((at, value), number) in finals.iter().zip(&numbers) {
        let Some(number) = *number else { continue };
        if heard.insert(number, Heard { start_ms: ms(value, "startMs"), at: *at }).is_some() {
            verdict.duplicated += 1;
            verdict.problems.push(format!("{}: twice seen: {}", room.slug, value["text"]));
        }
    }
    for run in room.runs().iter() {
        judge_run(run, &room.slug, &heard, &gaps, &mut verdict);
    }
    judge_order(room, &numbers, &mut verdict);
    judge_others(room, &mut verdict);
    judge_rows(room, &seen.entries.iter().map(|(_, value)| value).collect::<Vec<_>>(), stored, &mut verdict);
    verdict
}

/// A recogniser session that must be replaced in mid utterance leaves its second word to the next one: then the marker
/// is in two finals, each word in one of them.
fn number_of(value: &Value, next: Option<&Value>) -> Option<u32> {
    match value["text"].as_str().unwrap_or("").trim() {
        "marker" => next?["text"].as_str()?.trim().parse().ok(),
        text => marker::parse(text),
    }
}

/// Every marker that has left this publisher is seen, or lies in a hole that was announced.
fn judge_run(run: &Run, slug: &str, heard: &BTreeMap<u32, Heard>, gaps: &[(u64, u64)], verdict: &mut Verdict) {
    let offset = |number: u32| u64::from(number - run.first) * PERIOD_MS;
    // A marker's final comes after its end, so it bounds the moment at which the first sample was sent.
    let begins = heard
        .range(run.first..run.first + run.count)
        .filter_map(|(number, heard)| heard.at.checked_sub(Duration::from_millis(offset(*number) + MARKER_MS)));
    let begun = begins.min().unwrap_or(run.begun + SLOW_START).max(run.begun);
    let sent_ms = run.cut.map(|cut| {
        let by_the_clock = cut.saturating_duration_since(begun).as_millis() as u64;
        by_the_clock.min(run.sent_ms.unwrap_or(u64::MAX)).saturating_sub(IN_FLIGHT.as_millis() as u64)
    });
    let last_heard = heard.range(run.first..run.first + run.count).next_back().map(|(number, _)| *number);
    let mut lost = 0;
    for number in run.first..run.first + run.count {
        let left = sent_ms.is_none_or(|sent| offset(number) + MARKER_MS <= sent) || Some(number) <= last_heard;
        verdict.expected += usize::from(left);
        verdict.heard += usize::from(heard.contains_key(&number));
        if !left || heard.contains_key(&number) {
            continue;
        }
        // Where it would be on the session's clock, from the nearest marker of the same publisher.
        let nearest = heard.range(run.first..run.first + run.count).min_by_key(|(n, _)| n.abs_diff(number));
        let at = nearest.map(|(n, heard)| (heard.start_ms + offset(number)).saturating_sub(offset(*n)));
        let in_hole = match at {
            Some(at) => gaps.iter().any(|gap| gap.0 < at + MARKER_MS && at < gap.1),
            // Of a publisher of which nothing was heard: wherever there is no room for it, it was in a gap.
            None => lost >= room_between(gaps, last_before(heard, run), first_after(heard, run)),
        };
        if in_hole {
            verdict.in_holes += 1;
        } else {
            verdict.lost += 1;
            lost += 1;
            verdict.problems.push(format!("{slug}: marker {number} (at {at:?} ms) is missing, gaps {gaps:?}"));
        }
    }
}

/// End of what was heard of earlier publishers.
fn last_before(heard: &BTreeMap<u32, Heard>, run: &Run) -> u64 {
    heard.range(..run.first).next_back().map_or(0, |(_, heard)| heard.start_ms + MARKER_MS)
}

/// Begin of what was heard of later publishers.
fn first_after(heard: &BTreeMap<u32, Heard>, run: &Run) -> u64 {
    heard.range(run.first + run.count..).next().map_or(u64::MAX, |(_, heard)| heard.start_ms)
}

/// How many whole markers there is room for between these times without touching a gap.
fn room_between(gaps: &[(u64, u64)], from: u64, to: u64) -> u64 {
    let mut inside: Vec<(u64, u64)> = gaps.iter().copied().filter(|gap| gap.0 < to && gap.1 > from).collect();
    inside.sort_unstable();
    let (mut room, mut free_from) = (0, from);
    for (start, end) in inside.into_iter().chain([(to, to)]) {
        if let Some(more) = start.saturating_sub(free_from).checked_sub(MARKER_MS + SEAM_MS) {
            room += 1 + more / PERIOD_MS;
        }
        free_from = free_from.max(end);
    }
    room
}

/// Every viewer has seen the same, wherever it was connected.
fn judge_others(room: &Room, verdict: &mut Verdict) {
    let all = room.seen.borrow().identities();
    for (n, other) in room.others.iter().enumerate() {
        let other = other.borrow();
        let say = |problem: &dyn std::fmt::Display| format!("{}: viewer {}: {problem}", room.slug, n + 2);
        verdict.problems.extend(other.problems.iter().map(|problem| say(problem)));
        let theirs = other.identities();
        if theirs != all {
            let differs = theirs.iter().zip(&all).find(|(theirs, ours)| theirs != ours);
            verdict.problems.push(say(&format!("{} entries, not the same {}: {differs:?}", theirs.len(), all.len())));
        }
    }
}

/// Markers come in the order in which they were spoken; a damaged one only where a publisher was cut.
fn judge_order(room: &Room, numbers: &[Option<u32>], verdict: &mut Verdict) {
    let spoken: Vec<u32> = numbers.iter().flatten().copied().collect();
    if !spoken.is_sorted() {
        verdict.problems.push(format!("{}: out of order: {spoken:?}", room.slug));
    }
    let damaged = numbers.len() - spoken.len();
    // One at each side of a cut.
    let allowed = 2 * room.runs().iter().filter(|run| run.cut.is_some()).count();
    if damaged > allowed {
        verdict.problems.push(format!("{}: {damaged} finals are of torn audio, {allowed} may be", room.slug));
    }
}

/// Every entry that was seen is a row, once, and the rows' numbers have no hole.
fn judge_rows(room: &Room, entries: &[&Value], stored: &[Stored], verdict: &mut Verdict) {
    let rows: BTreeSet<Stored> = stored.iter().cloned().collect();
    for entry in entries {
        let text = entry["text"].as_str().unwrap_or("").to_owned();
        let id = entry["id"].as_str().unwrap_or("").to_owned();
        if !rows.contains(&Stored { seq: ms(entry, "seq"), entry_id: id, text }) {
            verdict.rows_lost += 1;
            verdict.problems.push(format!("{}: not stored: {entry}", room.slug));
        }
    }
    let last = stored.iter().map(|row| row.seq).max().unwrap_or(0);
    let holes = last as usize - stored.iter().map(|row| row.seq).collect::<BTreeSet<_>>().len();
    if holes > 0 {
        verdict.rows_lost += holes;
        verdict.problems.push(format!("{}: {holes} holes among {last} rows", room.slug));
    }
    let numbers: Vec<u32> = stored.iter().filter_map(|row| marker::parse(&row.text)).collect();
    let twice = numbers.len() - numbers.iter().collect::<BTreeSet<_>>().len();
    if twice > 0 {
        verdict.duplicated += twice;
        verdict.problems.push(format!("{}: {twice} rows say what another says", room.slug));
    }
    if stored.len() != entries.len() {
        verdict.problems.push(format!("{}: {} rows of {} entries", room.slug, stored.len(), entries.len()));
    }
}

fn ms(value: &Value, field: &str) -> u64 {
    value[field].as_u64().unwrap_or(0)
}
