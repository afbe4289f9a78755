//! What a soak prints.

use std::time::Duration;

use super::balance::Tally;
use super::usage::Usage;
use super::{Options, Quarter};

/// One line after each quarter.
pub fn checkpoint(after: Duration, n: u32, quarter: &Quarter, tally: &Tally) -> String {
    format!(
        "check point {n} after {:.0} s: {} sessions, {} markers, {} heard, {} in gaps, {} twice, {} rows of {} entries, \
         {} faults, {} problems; at rest {}",
        after.as_secs_f64(),
        tally.sessions_judged,
        tally.published,
        tally.heard,
        tally.in_gaps,
        tally.duplicated,
        tally.rows,
        tally.entries,
        tally.strikes().0,
        tally.problems.len(),
        row(&quarter.quiet),
    )
}

pub fn print(options: Options, took: Duration, quarters: &[Quarter], tally: &Tally, problems: &[String]) {
    let hours = options.load.as_secs_f64() / 3600.0;
    println!("\nsoak of {hours:.2} h under load ({:.0} s in all), seed {}\n", took.as_secs_f64(), options.seed);
    println!("| count | |\n|---|---:|");
    let gaps: Vec<String> = tally.gaps.iter().map(|(reason, n)| format!("{n} {reason}")).collect();
    let (strikes, draws) = tally.strikes();
    let counts = [
        ("sessions", format!("{} begun, {} ended", tally.sessions_begun, tally.sessions_judged)),
        ("markers published", tally.published.to_string()),
        ("seen as finals", tally.heard.to_string()),
        ("inside announced gaps", tally.in_gaps.to_string()),
        ("lost", (tally.published as i64 - (tally.heard + tally.in_gaps) as i64).to_string()),
        ("seen or stored twice", tally.duplicated.to_string()),
        ("entries seen, rows in the database", format!("{}, {}", tally.entries, tally.rows)),
        ("gaps announced", if gaps.is_empty() { "none".into() } else { gaps.join(", ") }),
        ("faults that struck, drawn", format!("{strikes}, {draws}")),
        ("publishes turned away at their start", tally.refused.len().to_string()),
        ("reconnects of viewers", tally.reconnects.to_string()),
        ("accounts of live sessions that added up", tally.accounts.to_string()),
        ("machine starved by others, of looks at its load", format!("{} of {}", tally.starved, tally.looks)),
        ("recogniser's message to a viewer, p50 and p99", delays(&tally.delays_ms)),
    ];
    counts.iter().for_each(|(name, count)| println!("| {name} | {count} |"));
    println!(
        "\n| quarter | | resident | proportional | descriptors | threads | children |\n|---|---|---:|---:|---:|---:|---:|"
    );
    for (n, quarter) in quarters.iter().enumerate() {
        println!("| {} | under load (median) | {} |", n + 1, row(&quarter.load));
        println!("| {} | at rest | {} |", n + 1, row(&quarter.quiet));
    }
    println!("\n| fault | drawn | struck |\n|---|---:|---:|");
    tally.faults.iter().for_each(|(name, (drawn, struck))| println!("| {name} | {drawn} | {struck} |"));
    println!("\n{} problems", problems.len());
    problems.iter().for_each(|problem| println!("- {problem}"));
}

fn row(usage: &Usage) -> String {
    let mib = |kib: u64| format!("{:.1} MiB", kib as f64 / 1024.0);
    format!(
        "{} | {} | {} | {} | {}",
        mib(usage.resident_kib),
        mib(usage.proportional_kib),
        usage.descriptors,
        usage.threads,
        usage.children
    )
}

fn delays(delays_ms: &[f64]) -> String {
    let mut sorted = delays_ms.to_vec();
    sorted.sort_by(f64::total_cmp);
    let quantile = |q: f64| sorted.get((sorted.len() as f64 * q) as usize).copied().unwrap_or(f64::NAN);
    format!("{:.1} ms, {:.1} ms", quantile(0.5), quantile(0.99))
}
