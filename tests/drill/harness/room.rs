//! One session of a drill: its publishers, one after the other, and its viewers.

use std::cell::{Ref, RefCell};
use std::path::PathBuf;
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use stenocast::local_stt::marker;
use tokio::process::Child;

use super::watcher::{self, Shared};
use crate::support::publisher::{ffmpeg_reporting, sent_ms, write_wav};

/// One marker begins so often; a three-digit one lasts 670 ms.
pub const PERIOD_MS: u64 = 1200;
pub const MARKER_MS: u64 = 670;

/// See the module.
pub struct Room {
    pub slug: String,
    pub seen: Shared,
    /// By its other viewers, at other nodes.
    pub others: Vec<Shared>,
    runs: RefCell<Vec<Run>>,
    next: std::cell::Cell<u32>,
    /// What its publishers play.
    dir: tempfile::TempDir,
}

/// One publisher: markers `first..first + count`, paced as they are spoken.
pub struct Run {
    pub first: u32,
    pub count: u32,
    pub begun: Instant,
    /// When it was cut off, by us or by the server's end.
    pub cut: Option<Instant>,
    /// Until then, where its encoder says so.
    pub sent_ms: Option<u64>,
    pub child: Option<Child>,
    /// What its encoder reports.
    pub report: Option<PathBuf>,
}

impl Run {
    /// One that begins now and is no child of ours.
    pub fn new(first: u32, count: u32) -> Self {
        Self { first, count, begun: Instant::now(), cut: None, sent_ms: None, child: None, report: None }
    }
}

impl Room {
    /// Its markers count from `first`, so that a word in the wrong room shows. Each of its viewers has the nodes at which
    /// it watches.
    pub fn new(viewers: &[Vec<std::net::SocketAddr>], slug: String, first: u32) -> Self {
        let mut others: Vec<_> = viewers.iter().map(|nodes| watcher::watch(nodes, &slug)).collect();
        let seen = others.remove(0);
        let dir = tempfile::tempdir().expect("a temporary directory");
        Self { slug, seen, others, runs: RefCell::default(), next: std::cell::Cell::new(first), dir }
    }

    /// All of its viewers have seen the end.
    pub fn has_ended(&self) -> bool {
        self.others.iter().chain([&self.seen]).all(|seen| seen.borrow().has_status("ended"))
    }

    /// Starts a publisher of the next `count` markers.
    pub fn publish(&self, rtmp: std::net::SocketAddr, count: u32) {
        let (first, file) = self.record(count);
        let report = file.with_extension("report");
        let child = ffmpeg_reporting(&file, &format!("rtmp://{rtmp}/live/{}", self.slug), &report);
        self.note_run(Run { child: Some(child), report: Some(report), ..Run::new(first, count) });
    }

    /// Counts a publisher of the next `count` markers that is none of our children; gives their audio.
    pub fn next_audio(&self, count: u32) -> PathBuf {
        let (first, file) = self.record(count);
        self.note_run(Run::new(first, count));
        file
    }

    /// The next `count` markers as a file; gives the first.
    fn record(&self, count: u32) -> (u32, PathBuf) {
        let first = self.next.replace(self.next.get() + count);
        let file = self.dir.path().join(format!("{first}.wav"));
        write_wav(&file, &marker::track(first, count, PERIOD_MS as usize));
        (first, file)
    }

    /// Without a server: what it has seen and published is put in by hand.
    pub fn offline(slug: &str) -> Self {
        let dir = tempfile::tempdir().expect("a temporary directory");
        Self {
            slug: slug.into(),
            seen: Shared::default(),
            others: Vec::new(),
            runs: RefCell::default(),
            next: std::cell::Cell::new(0),
            dir,
        }
    }

    /// Counts a publisher as one of its own.
    pub fn note_run(&self, run: Run) {
        self.runs.borrow_mut().push(run);
    }

    pub fn runs(&self) -> Ref<'_, Vec<Run>> {
        self.runs.borrow()
    }

    /// The latest publisher is at work.
    pub fn is_publishing(&self) -> bool {
        let mut runs = self.runs.borrow_mut();
        let child = runs.last_mut().and_then(|run| run.child.as_mut());
        child.is_some_and(|child| child.try_wait().is_ok_and(|end| end.is_none()))
    }

    /// Of all publishers so far, those that are not cut are cut now: their sockets are gone or going.
    pub fn note_cut(&self) {
        for run in self.runs.borrow_mut().iter_mut() {
            if run.cut.is_none() {
                run.cut = Some(Instant::now());
                // An encoder that is slow to start or starved has sent less than the clock says.
                run.sent_ms = run.report.as_deref().map(|report| sent_ms(report).unwrap_or(0));
            }
        }
    }

    /// Sends a signal to the latest publisher's process.
    pub fn signal(&self, signal: Signal) {
        let runs = self.runs.borrow();
        let pid = runs.last().and_then(|run| run.child.as_ref()?.id()).expect("a running publisher");
        nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid as i32), signal).expect("our child");
    }

    /// Ends the latest publisher as a pulled plug would.
    pub async fn cut(&self) {
        self.note_cut();
        self.end_publishers().await;
    }

    /// Kills all publishers; those that were cut need no longer live.
    pub async fn end_publishers(&self) {
        let children: Vec<Child> = self.runs.borrow_mut().iter_mut().filter_map(|run| run.child.take()).collect();
        for mut child in children {
            let _ = child.kill().await;
        }
    }

    /// How much audio the latest publisher has sent, by its own report.
    pub fn latest_sent_ms(&self) -> u64 {
        let runs = self.runs.borrow();
        runs.last().and_then(|run| sent_ms(run.report.as_deref()?)).unwrap_or(0)
    }

    /// Waits for the latest publisher's own end; gives what it complained about, unless it was cut.
    pub async fn published(&self) -> Option<String> {
        let (child, budget, cut) = {
            let mut runs = self.runs.borrow_mut();
            let run = runs.last_mut()?;
            (run.child.take()?, Duration::from_millis(u64::from(run.count) * PERIOD_MS + 30_000), run.cut)
        };
        let output = match tokio::time::timeout(budget, child.wait_with_output()).await {
            Ok(output) => output.expect("our child"),
            Err(_) => return Some(format!("{}: the publisher does not end", self.slug)),
        };
        let complaint = String::from_utf8_lossy(&output.stderr).into_owned();
        (!output.status.success() && cut.is_none())
            .then(|| format!("{}: the publisher noticed: {complaint}", self.slug))
    }
}
