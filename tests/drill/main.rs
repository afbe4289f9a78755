//! Every fault against the real program: the quick ones with every other test, all of them with `make drill`, and hours of
//! them with `make soak`.
//!
//! The long ones are ignored tests, so that one crate has everything and the lints see it. Their options come by the
//! environment, as a test takes no arguments: see [`Choice`] and [`soak_options`].

mod harness;
mod judge;
mod soak;
#[path = "../support/mod.rs"]
mod support;

use std::time::Duration;

use harness::report;

/// Quick rows at a time: two minutes in all on two cores.
const QUICK_AT_A_TIME: usize = 4;

#[test]
fn faults_cost_no_final_and_no_row() {
    Choice { parts: Vec::new(), at_a_time: QUICK_AT_A_TIME, is_quick: true }.run();
}

#[test]
#[ignore = "fourteen minutes: make drill"]
fn the_chosen_faults_cost_no_final_and_no_row() {
    Choice::read(&std::env::var("DRILL_ROWS").unwrap_or_default()).run();
}

#[test]
#[ignore = "hours: make soak"]
fn a_soak_balances() {
    let problems = soak::run(soak_options());
    assert!(problems.is_empty(), "{} problems", problems.len());
}

/// Which rows are drilled, and how.
struct Choice {
    /// Parts of names; all rows when there is none.
    parts: Vec<String>,
    at_a_time: usize,
    is_quick: bool,
}

impl Choice {
    /// Reads parts of names, `--quick` for the rows of `make test`, and `--at-a-time N` for so many beside each other
    /// (default 3).
    fn read(words: &str) -> Self {
        let mut choice = Self { parts: Vec::new(), at_a_time: 3, is_quick: false };
        let mut words = words.split_whitespace();
        while let Some(word) = words.next() {
            match word {
                "--at-a-time" => {
                    choice.at_a_time = words.next().and_then(|n| n.parse().ok()).expect("--at-a-time N");
                }
                "--quick" => choice.is_quick = true,
                _ => choice.parts.push(word.to_owned()),
            }
        }
        choice
    }

    /// Runs the rows and prints their table.
    fn run(&self) {
        let mut faults = harness::faults::all();
        faults.retain(|fault| fault.quick || !self.is_quick);
        faults.retain(|fault| self.parts.is_empty() || self.parts.iter().any(|part| fault.name.contains(part)));
        let rows = harness::run(faults, self.at_a_time);
        report::print(&rows);
        let failed: Vec<&str> = rows.iter().filter(|row| !row.passed()).map(|row| row.name.as_str()).collect();
        assert!(!rows.is_empty(), "no row has such a name: {:?}", self.parts);
        assert!(failed.is_empty(), "{failed:?}");
    }
}

/// Reads `SOAK_HOURS`, and `SOAK_SEED` where the draws shall be those of another soak.
fn soak_options() -> soak::Options {
    let option = |name: &str| std::env::var(name).ok().filter(|text| !text.is_empty());
    let hours = option("SOAK_HOURS").expect("SOAK_HOURS; `make soak` sets it");
    let hours: f64 = hours.parse().expect("HOURS is a number such as 0.1");
    let seed = option("SOAK_SEED")
        .map_or_else(|| rand::random::<u32>().into(), |seed| seed.parse().expect("SEED is a whole number"));
    soak::Options { load: Duration::from_secs_f64(hours * 3600.0), seed }
}
