//! What the server's process holds, and whether it grows.

use std::cell::RefCell;
use std::convert::Infallible;
use std::time::Duration;

use serde_json::Value;

use super::Quarter;
use super::stage::Stage;
use crate::harness::lasts;
use crate::support::server::request;

const EVERY: Duration = Duration::from_secs(5);
const KIB_PER_MIB: f64 = 1024.0;

/// Of one process.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Usage {
    pub resident_kib: u64,
    /// Its share of what it has in common with others counts in part.
    pub proportional_kib: u64,
    pub descriptors: u64,
    pub threads: u64,
    pub children: u64,
}

/// One quantity, and how much more of it there may be in the fourth quarter than in the second: the larger of a share
/// and a number.
struct Limit {
    name: &'static str,
    of: fn(&Usage) -> u64,
    share: f64,
    number: f64,
}

/// Medians under load: how many sessions there are at a time differs from quarter to quarter by one or two, and each has
/// a child process, some ten descriptors, and its history and audio in memory.
const UNDER_LOAD: &[Limit] = &[
    Limit { name: "resident memory (KiB)", of: |u| u.resident_kib, share: 0.10, number: 8.0 * KIB_PER_MIB },
    Limit { name: "proportional memory (KiB)", of: |u| u.proportional_kib, share: 0.10, number: 8.0 * KIB_PER_MIB },
    Limit { name: "descriptors", of: |u| u.descriptors, share: 0.15, number: 15.0 },
    Limit { name: "threads", of: |u| u.threads, share: 0.10, number: 2.0 },
    Limit { name: "child processes", of: |u| u.children, share: 0.0, number: 2.0 },
];

/// Nobody is there. The database's four connections come and go.
const QUIET: &[Limit] = &[
    Limit { name: "resident memory (KiB)", of: |u| u.resident_kib, share: 0.10, number: 8.0 * KIB_PER_MIB },
    Limit { name: "proportional memory (KiB)", of: |u| u.proportional_kib, share: 0.10, number: 8.0 * KIB_PER_MIB },
    Limit { name: "descriptors", of: |u| u.descriptors, share: 0.0, number: 4.0 },
    Limit { name: "threads", of: |u| u.threads, share: 0.0, number: 1.0 },
    Limit { name: "child processes", of: |u| u.children, share: 0.0, number: 0.0 },
];

/// Everything of which there is more than there may be.
pub fn growth(second: &Quarter, fourth: &Quarter) -> Vec<String> {
    let exceeded = |when: &str, limits: &[Limit], before: &Usage, after: &Usage| {
        let exceeded = limits.iter().filter_map(|limit| {
            let (before, after) = ((limit.of)(before), (limit.of)(after));
            let allowed = before as f64 + (before as f64 * limit.share).max(limit.number);
            let grown = after as f64 > allowed || before == 0 && limit.name.contains("memory");
            grown.then(|| format!("{} {when}: {before} -> {after}, at most {allowed:.0} may be", limit.name))
        });
        exceeded.collect::<Vec<_>>()
    };
    let under_load = exceeded("under load", UNDER_LOAD, &second.load, &fourth.load);
    let quiet = exceeded("at rest", QUIET, &second.quiet, &fourth.quiet);
    [under_load, quiet].concat()
}

/// The median of each quantity by itself.
pub fn median(samples: &[Usage]) -> Usage {
    let of = |quantity: fn(&Usage) -> u64| {
        let mut values: Vec<u64> = samples.iter().map(quantity).collect();
        values.sort_unstable();
        values.get(values.len() / 2).copied().unwrap_or(0)
    };
    Usage {
        resident_kib: of(|u| u.resident_kib),
        proportional_kib: of(|u| u.proportional_kib),
        descriptors: of(|u| u.descriptors),
        threads: of(|u| u.threads),
        children: of(|u| u.children),
    }
}

/// What the process holds now; zeros when it is gone.
pub fn of(pid: u32) -> Usage {
    let read = |file: &str| std::fs::read_to_string(format!("/proc/{pid}/{file}")).unwrap_or_default();
    let (rollup, status) = (read("smaps_rollup"), read("status"));
    let number = |text: &str, key: &str| {
        let line = text.lines().find_map(|line| line.strip_prefix(key));
        line.and_then(|rest| rest.split_whitespace().next()?.parse().ok()).unwrap_or(0)
    };
    Usage {
        resident_kib: number(&rollup, "Rss:"),
        proportional_kib: number(&rollup, "Pss:"),
        descriptors: std::fs::read_dir(format!("/proc/{pid}/fd")).map_or(0, |files| files.count() as u64),
        threads: number(&status, "Threads:"),
        children: children(pid),
    }
}

fn children(pid: u32) -> u64 {
    let tasks = std::fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten().flatten();
    let of_thread = |task: std::fs::DirEntry| std::fs::read_to_string(task.path().join("children")).unwrap_or_default();
    tasks.map(|task| of_thread(task).split_whitespace().count() as u64).sum()
}

/// Takes samples of the server, and at the same time looks whether the account of each session adds up.
pub struct Watching<'a> {
    stage: &'a Stage,
    samples: RefCell<Vec<Usage>>,
}

pub fn watch(stage: &Stage) -> Watching<'_> {
    Watching { stage, samples: RefCell::default() }
}

impl Watching<'_> {
    pub async fn run(&self) -> Infallible {
        loop {
            lasts(EVERY).await;
            // What is measured while everything comes to its end says nothing about load.
            let usage = self.stage.usage();
            if !self.stage.is_over() && usage.resident_kib > 0 {
                self.samples.borrow_mut().push(usage);
            }
            self.stage.look_at_load();
            self.look_at_accounts().await;
        }
    }

    pub fn samples(self) -> Vec<Usage> {
        self.samples.into_inner()
    }

    async fn look_at_accounts(&self) {
        let Ok(answer) = request(self.stage.world.http(), "GET", "/metrics?format=json", "").await else { return };
        let body = answer.1.split_once("\r\n\r\n").map_or("", |(_, body)| body);
        let Ok(tree) = serde_json::from_str::<Value>(body) else { return };
        for session in tree["sessionRegistry"]["state"]["sessions"].as_array().into_iter().flatten() {
            let bytes = &session["audio"]["bytes"];
            if bytes.is_object() {
                self.stage.tally.borrow_mut().account(bytes, &session["session"]);
            }
        }
    }
}
