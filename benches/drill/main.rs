//! `make drill`: every fault of the table, twice with zeros before a release. Arguments choose rows by a part of their
//! name, `--quick` those of `make test`; `--at-a-time N` runs so many beside each other (default 3).
//!
//! `make soak`: `soak --hours H [--seed S]`, see [`soak`].

mod harness;
mod soak;
#[path = "../../tests/support/mod.rs"]
mod support;

use std::time::Duration;

fn main() {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let passed = match words.split_first() {
        Some((first, options)) if first == "soak" => soak::run(soak_options(options)).is_empty(),
        _ => drill(words),
    };
    std::process::exit(i32::from(!passed));
}

fn drill(words: Vec<String>) -> bool {
    let mut words = words.into_iter();
    let (mut wanted, mut at_a_time, mut quick) = (Vec::new(), 3, false);
    while let Some(word) = words.next() {
        match word.as_str() {
            "--at-a-time" => at_a_time = words.next().and_then(|n| n.parse().ok()).expect("--at-a-time N"),
            "--quick" => quick = true,
            _ => wanted.push(word),
        }
    }
    let mut faults = harness::faults::all();
    faults.retain(|fault| fault.quick || !quick);
    faults.retain(|fault| wanted.is_empty() || wanted.iter().any(|part| fault.name.contains(part.as_str())));
    let rows = harness::run(faults, at_a_time);
    harness::report::print(&rows);
    !rows.is_empty() && rows.iter().all(harness::report::Row::passed)
}

fn soak_options(words: &[String]) -> soak::Options {
    let (mut hours, mut seed) = (2.0, rand::random::<u32>().into());
    for pair in words.chunks(2) {
        match pair {
            [name, value] if name == "--hours" => hours = value.parse().expect("--hours takes a number such as 0.1"),
            [name, value] if name == "--seed" => seed = value.parse().expect("--seed takes a whole number"),
            _ => panic!("soak takes --hours H and --seed S, not {pair:?}"),
        }
    }
    soak::Options { load: Duration::from_secs_f64(hours * 3600.0), seed }
}
