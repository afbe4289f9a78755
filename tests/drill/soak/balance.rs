//! The counts of a soak, and whether they balance.

use std::collections::BTreeMap;
use std::path::Path;

use serde_json::Value;

use crate::harness::verdict::Verdict;
use crate::harness::watcher::Seen;
use crate::support::postgres::Database;

/// Milliseconds by which the counts of a row may differ: each of them is rounded. No publisher here says anything twice,
/// so nothing is skipped.
const ROUNDING_MS: i64 = 5;

/// A publish that is asked for while these are at work may be refused: one for each time.
const TURNS_AWAY: [&str; 2] = ["panic: SessionRegistry", "panic: RtmpListener"];

/// Everything that is counted in a soak.
#[derive(Debug, Default)]
pub struct Tally {
    pub sessions_begun: usize,
    /// Those that came to their end and were compared.
    pub sessions_judged: usize,
    /// Markers that have left their publisher.
    pub published: usize,
    /// Of those, with a final that was seen.
    pub heard: usize,
    /// Of those, inside a gap that was announced.
    pub in_gaps: usize,
    pub duplicated: usize,
    /// Entries that were seen and are no row, and numbers without a row.
    pub rows_lost: usize,
    /// Durable entries that viewers saw.
    pub entries: usize,
    /// Rows of those sessions.
    pub rows: usize,
    pub gaps: BTreeMap<String, usize>,
    /// Complaints of publishers that were turned away at their start and came again.
    pub refused: Vec<String>,
    /// Of viewers.
    pub reconnects: usize,
    /// Accounts of live sessions that were looked at.
    pub accounts: usize,
    /// Looks at the machine's load, and how many of them found it starved.
    pub looks: usize,
    pub starved: usize,
    /// By fault: how often it was drawn, and how often it struck.
    pub faults: BTreeMap<&'static str, (usize, usize)>,
    /// Of finals, from the recogniser's message to a viewer.
    pub delays_ms: Vec<f64>,
    pub problems: Vec<String>,
}

impl Tally {
    /// Adds one session that has come to its end.
    pub fn add(&mut self, verdict: Verdict, seen: &Seen, rows: usize, reconnects: usize) {
        self.sessions_judged += 1;
        self.published += verdict.expected;
        self.heard += verdict.heard;
        self.in_gaps += verdict.in_holes;
        self.duplicated += verdict.duplicated;
        self.rows_lost += verdict.rows_lost;
        self.entries += seen.entries.len();
        self.rows += rows;
        for (reason, n) in verdict.gaps {
            *self.gaps.entry(reason).or_default() += n;
        }
        self.reconnects += reconnects;
        self.delays_ms.extend(&seen.delays_ms);
        for problem in &verdict.problems {
            eprintln!("PROBLEM: {problem}");
        }
        self.problems.extend(verdict.problems);
    }

    /// Looks whether the account of a live session adds up, in bytes.
    pub fn account(&mut self, bytes: &Value, session: &Value) {
        self.accounts += 1;
        let count = |name: &str| bytes[name].as_u64().unwrap_or(0);
        let came = count("received") + count("inserted");
        let went = count("acknowledged") + count("inFlight") + count("lost") + count("skipped");
        if came != went {
            self.problems.push(format!("{session}: the account does not add up: {bytes}"));
        }
    }

    pub fn struck(&mut self, fault: &'static str, struck: bool) {
        let (drawn, hits) = self.faults.entry(fault).or_default();
        *drawn += 1;
        *hits += usize::from(struck);
    }

    /// Strikes, and draws.
    pub fn strikes(&self) -> (usize, usize) {
        self.faults.values().fold((0, 0), |(strikes, draws), (drawn, struck)| (strikes + struck, draws + drawn))
    }

    /// Everything that is not as it must be.
    pub fn imbalance(&self) -> Vec<String> {
        let (strikes, draws) = self.strikes();
        let may_be_refused: usize = TURNS_AWAY.iter().filter_map(|fault| Some(self.faults.get(fault)?.1)).sum();
        let lost = self.published as i64 - self.heard as i64 - self.in_gaps as i64;
        let checks = [
            (self.published > 0, "nothing was published".to_owned()),
            (lost == 0, format!("{lost} of {} markers are neither heard nor in a gap", self.published)),
            (self.duplicated == 0, format!("{} finals came twice", self.duplicated)),
            (self.rows_lost == 0, format!("{} rows are missing", self.rows_lost)),
            (self.rows == self.entries, format!("{} rows, {} entries were seen", self.rows, self.entries)),
            (
                self.sessions_begun == self.sessions_judged,
                format!("{} sessions began, {} came to an end", self.sessions_begun, self.sessions_judged),
            ),
            (
                self.refused.len() <= may_be_refused,
                format!("{} publishes were refused, {may_be_refused} may be: {:?}", self.refused.len(), self.refused),
            ),
            (self.reconnects > 0, "no viewer reconnected".to_owned()),
            (self.accounts > 0, "no account of a live session was looked at".to_owned()),
            // A fault whose victim is not where it is looked for is no fault of the server; most must strike.
            (strikes * 10 >= draws * 9 && strikes > 0, format!("of {draws} faults drawn {strikes} struck")),
        ];
        let failed = checks.into_iter().filter(|(holds, _)| !holds).map(|(_, problem)| problem);
        failed.chain(self.problems.iter().cloned()).collect()
    }
}

/// The database as a whole: no entry that nobody saw, each session has ended, and each account adds up.
pub async fn compare_with_database(database: &Database, entries: usize, sessions: usize) -> Vec<String> {
    let mut problems = Vec::new();
    for (table, expected) in [("transcripts", entries), ("sessions", sessions)] {
        let rows = database.query(&format!("SELECT count(*) FROM {table}")).await;
        if rows[0] != expected.to_string() {
            problems.push(format!("{} rows of {table} in all, {expected} were seen", rows[0]));
        }
    }
    let open = database.query("SELECT slug || ' is ' || state FROM sessions WHERE state <> 'ended'").await;
    problems.extend(open.iter().map(|session| format!("a session without an end: {session}")));
    let sql = format!(
        "SELECT row_to_json(sessions) FROM sessions \
         WHERE abs(received_ms + inserted_ms - acknowledged_ms - lost_ms) > {ROUNDING_MS}"
    );
    let wrong = database.query(&sql).await;
    problems.extend(wrong.iter().map(|session| format!("its account does not add up: {session}")));
    let silent = database
        .query(
            "SELECT slug || ' lost ' || lost_ms FROM sessions s WHERE lost_ms > 0 AND NOT EXISTS \
             (SELECT 1 FROM transcripts t WHERE t.session_id = s.session_id AND kind = 'gap')",
        )
        .await;
    problems.extend(silent.iter().map(|session| format!("without a gap, {session} ms")));
    problems
}

/// What is left in the data directory of sessions that have ended.
pub fn stored_tail(data_dir: &Path) -> Vec<String> {
    let files = |name| std::fs::read_dir(data_dir.join(name)).into_iter().flatten().flatten();
    ["sessions", "spool"]
        .into_iter()
        .flat_map(files)
        .map(|file| format!("left behind: {}", file.path().display()))
        .collect()
}
