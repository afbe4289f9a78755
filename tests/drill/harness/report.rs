//! The printed table.

use std::time::Duration;

/// What a drilled fault has cost.
#[derive(Debug, Default)]
pub struct Row {
    pub name: String,
    /// Over all sessions of the row; zero wherever the publisher stayed.
    pub audio_lost_ms: u64,
    pub finals_expected: usize,
    pub finals_lost: usize,
    pub finals_duplicated: usize,
    pub rows_lost: usize,
    /// Utterances of which viewers were told that nobody could hear them.
    pub in_holes: usize,
    /// Reasons of the gaps that viewers were told, with their number.
    pub gaps: String,
    pub recovery: Option<Duration>,
    /// Of the finals' way from the recogniser's message to a viewer of another session.
    pub others_p99_ms: Option<f64>,
    /// Everything that was not as it must be.
    pub problems: Vec<String>,
}

pub const HEAD: &str = "\
| fault | audio lost ms | finals lost | finals duplicated | rows lost | holes announced | time to recover | others' worst p99 | result |
|---|---:|---:|---:|---:|---|---:|---:|---|";

impl Row {
    pub fn failed(name: &str, problem: String) -> Self {
        Self { name: name.into(), problems: vec![problem], ..Self::default() }
    }

    pub fn passed(&self) -> bool {
        self.problems.is_empty() && self.finals_lost == 0 && self.finals_duplicated == 0 && self.rows_lost == 0
    }

    pub fn line(&self) -> String {
        let recovery = self.recovery.map_or("–".into(), |took| format!("{:.1} s", took.as_secs_f64()));
        let others = self.others_p99_ms.map_or("–".into(), |ms| format!("{ms:.0} ms"));
        let gaps = match (self.gaps.as_str(), self.in_holes) {
            ("", _) => "none".to_owned(),
            (gaps, 0) => gaps.to_owned(),
            (gaps, in_holes) => format!("{gaps}; {in_holes} utterances"),
        };
        format!(
            "| {} | {} | {} of {} | {} | {} | {gaps} | {recovery} | {others} | {} |",
            self.name,
            self.audio_lost_ms,
            self.finals_lost,
            self.finals_expected,
            self.finals_duplicated,
            self.rows_lost,
            if self.passed() { "ok" } else { "FAILED" },
        )
    }
}

/// The whole table, and under it what went wrong.
pub fn print(rows: &[Row]) {
    println!("\n{HEAD}");
    rows.iter().for_each(|row| println!("{}", row.line()));
    let failed: Vec<&Row> = rows.iter().filter(|row| !row.passed()).collect();
    println!("\n{} faults, {} failed", rows.len(), failed.len());
    for row in failed {
        println!("\n{}:", row.name);
        row.problems.iter().for_each(|problem| println!("- {problem}"));
    }
}
