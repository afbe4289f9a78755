//! Right, wrong and unknown labels of conversations whose speakers are known, from each source: for delays that are fixed,
//! that change, and for what else goes wrong. `cargo test --test attribution -- --nocapture` prints the table.
//!
//! A label is right when it names whoever spoke most of the line's time, and wrong when it names anybody else. The last
//! column counts words in lines of another speaker: a line of two that was not cut has some.

#[path = "support/conversation.rs"]
mod conversation;

use conversation::{Scenario, Score, Source, play, voices};

const LENGTH_MS: i64 = 420_000;
const SEEDS: u64 = 4;
/// Percent of lines.
const MOST_WRONG: f64 = 1.0;

/// A scenario, and whether its delay is fixed and nothing else goes wrong.
fn scenarios() -> Vec<(Scenario, bool)> {
    let fixed = |name, delay_ms| Scenario::new(name, &[(0, delay_ms)]);
    vec![
        (fixed("delay 0 s", 0), true),
        (fixed("delay 1 s", 1000), true),
        (fixed("delay 3 s", 3000), true),
        (Scenario::new("delay grows", &[(0, 300), (150_000, 1500)]), false),
        (Scenario::new("delay changes twice", &[(0, 200), (130_000, 2750), (270_000, 700)]), false),
        (Scenario { overlap: 0.3, ..fixed("overlap", 1000) }, false),
        (Scenario { words: 1..=4, ..fixed("quick changes", 1000) }, false),
        (Scenario { lost: 0.1, ..fixed("lost updates", 1000) }, false),
        (
            Scenario {
                pause: Some((200_000, 12_000)),
                ..Scenario::new("publisher pauses", &[(0, 1000), (206_000, 2200)])
            },
            false,
        ),
    ]
}

/// Plays all scenarios; `least_right` percent are right where the delay is fixed.
fn check(source: Source, least_right: f64) {
    let voices = voices();
    let mut faults = Vec::new();
    let mut table = format!("{:<20} {:<9} lines  right  wrong   null  cut  words\n", "scenario", "source");
    for (scenario, is_fixed) in scenarios() {
        let mut score = Score::default();
        for seed in 0..SEEDS {
            score.add(play(&voices, &scenario, source, LENGTH_MS, seed));
        }
        let [right, wrong, unknown] = [score.right, score.wrong, score.unknown].map(|n| score.share(n));
        let words = 100.0 * score.wrong_words as f64 / score.words as f64;
        let (name, source) = (scenario.name, format!("{source:?}").to_lowercase());
        let Score { lines, cut, .. } = score;
        table += &format!(
            "{name:<20} {source:<9} {lines:>5} {right:>5.1}% {wrong:>5.2}% {unknown:>5.1}% {cut:>4} {words:>5.2}%\n"
        );
        if wrong > MOST_WRONG || (is_fixed && right < least_right) {
            faults.push(format!("{name}: {right:.1} % right, {wrong:.2} % wrong"));
        }
    }
    println!("{table}");
    assert!(faults.is_empty(), "{}", faults.join("\n"));
}

#[test]
fn labels_from_tracks_are_right_or_unknown() {
    check(Source::Tracks, 95.0);
}

#[test]
fn labels_from_an_observer_are_right_or_unknown() {
    check(Source::Observer, 90.0);
}

#[test]
fn labels_from_browsers_are_right_or_unknown() {
    check(Source::Browser, 90.0);
}
