//! The fault drill: each row of [`faults::all`] runs against the real binary, real ffmpeg, real Postgres behind a proxy
//! and the local recogniser, which answers marked audio. What was published, seen and stored is compared marker by
//! marker. The whole table: `make drill`; a part of it: `make drill ROWS=kill`.

pub mod faults;
pub mod report;
pub mod rig;
pub mod room;
pub mod verdict;
pub mod watcher;
pub mod world;

use std::collections::VecDeque;
use std::sync::{Mutex, mpsc};
use std::time::Duration;

use futures_util::FutureExt;
use futures_util::future::LocalBoxFuture;

use report::Row;
use rig::Rig;

/// How long after a fault it counts as mended.
pub enum Recovery {
    /// At the victim's next final.
    NextFinal,
    /// As measured.
    Took(Duration),
    /// There is nothing that comes back.
    Never,
}

/// When a fault strikes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum When {
    /// Before the victim publishes.
    Before,
    /// The victim has its third final.
    Speaking,
}

/// What may be far away from the server: behind a proxy that takes its time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Leg {
    /// Everybody's.
    Recogniser,
    /// The victim's.
    Publisher,
    /// The victim's.
    Viewer,
    /// Every node's way to NATS.
    Nats,
}

/// The processes of a world, and what is between them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Split {
    /// One process does everything.
    Not,
    /// An ingest node posts to two ws nodes.
    Http,
    /// Two ingest nodes and two ws nodes share so many NATS servers.
    Nats { servers: usize },
}

impl Split {
    /// How many nodes ingest, and how many only show and store.
    pub fn nodes(self) -> (usize, usize) {
        match self {
            Self::Not => (1, 0),
            Self::Http => (1, 2),
            Self::Nats { .. } => (2, 2),
        }
    }
}

/// One row. [`PLAIN`] is what most have in common.
#[derive(Clone, Copy)]
pub struct Fault {
    pub name: &'static str,
    /// Part of `make test`.
    pub quick: bool,
    pub when: When,
    /// Utterances of the victim's (first) publisher, one each [`room::PERIOD_MS`].
    pub markers: u32,
    pub bystanders: usize,
    /// The fault strikes the bystanders as well, so that they prove nothing about isolation.
    pub hits_all: bool,
    /// The reason of the gap that viewers must see; without one, no gap may be seen and no audio may be lost.
    pub gap: Option<&'static str>,
    /// Begins of series of `/metrics`, each of which must not be zero in the end: the fault has struck.
    pub proof: &'static [&'static str],
    /// Viewers must be told with this status.
    pub status: Option<&'static str>,
    pub settings: &'static [(&'static str, &'static str)],
    /// A disk of its own for `DATA_DIR`.
    pub disk_mib: Option<u32>,
    /// The database is behind PgBouncer in transaction mode.
    pub pooled: bool,
    /// The server runs the recogniser itself, as a child process.
    pub has_local_recogniser: bool,
    pub split: Split,
    /// At a round trip of 80 ms.
    pub far: &'static [Leg],
    /// Of a thousand writes from or to what is far away, so many are 500 ms late, and so is what follows them.
    pub late_per_mille: u64,
    /// Its settings or its counts are of the whole process, so that a soak has no place for it.
    pub alone: bool,
    pub inject: Inject,
}

/// Breaks something, and mends it where it does not mend itself.
pub type Inject = for<'a> fn(&'a Rig) -> LocalBoxFuture<'a, Recovery>;

/// For rows whose publisher comes back: a busy machine may take its time to start an encoder.
pub const LONG_GRACE: (&str, &str) = ("SESSION_GRACE_MS", "12000");

pub const PLAIN: Fault = Fault {
    name: "nothing at all",
    quick: false,
    when: When::Speaking,
    markers: 9,
    bystanders: 2,
    hits_all: false,
    gap: None,
    proof: &[],
    status: None,
    settings: &[],
    disk_mib: None,
    pooled: false,
    has_local_recogniser: false,
    split: Split::Not,
    far: &[],
    late_per_mille: 0,
    alone: false,
    inject: |_| Box::pin(async { Recovery::NextFinal }),
};

/// Goes by while something is as it is: an outage, an absence, a fault before the next one.
pub async fn lasts(time: Duration) {
    tokio::time::sleep(time).await;
}

/// Runs the faults, some at a time, each on a thread of its own. Rows come back in the order of the table.
pub fn run(faults: Vec<Fault>, at_a_time: usize) -> Vec<Row> {
    raise_open_files_limit();
    let queue: Mutex<VecDeque<(usize, Fault)>> = Mutex::new(faults.into_iter().enumerate().collect());
    let (done, rows) = mpsc::channel();
    std::thread::scope(|scope| {
        for _ in 0..at_a_time.max(1) {
            let (queue, done) = (&queue, done.clone());
            scope.spawn(move || {
                loop {
                    let next = queue.lock().expect("no row panics with it").pop_front();
                    let Some((n, fault)) = next else { return };
                    let row = run_one(fault);
                    eprintln!("{}", row.line());
                    let _ = done.send((n, row));
                }
            });
        }
    });
    drop(done);
    let mut rows: Vec<_> = rows.into_iter().collect();
    rows.sort_by_key(|(n, _)| *n);
    rows.into_iter().map(|(_, row)| row).collect()
}

fn run_one(fault: Fault) -> Row {
    let drilled = std::panic::catch_unwind(|| {
        actix_rt::System::new().block_on(async {
            // A rig that hangs must not hang the table.
            let row = std::panic::AssertUnwindSafe(Rig::drill(fault)).catch_unwind();
            tokio::time::timeout(rig::ROW_DEADLINE, row).await
        })
    });
    match drilled {
        Ok(Ok(Ok(row))) => row,
        Ok(Err(_)) => Row::failed(fault.name, format!("not over within {:?}", rig::ROW_DEADLINE)),
        Ok(Ok(Err(panic))) | Err(panic) => {
            let text = panic.downcast_ref::<String>().cloned();
            let text = text.or_else(|| panic.downcast_ref::<&str>().map(|s| (*s).to_owned()));
            Row::failed(fault.name, text.unwrap_or_else(|| "panicked".into()))
        }
    }
}

/// Two thousand viewers take as many descriptors.
fn raise_open_files_limit() {
    use nix::sys::resource::{Resource, getrlimit, setrlimit};
    if let Ok((_, hard)) = getrlimit(Resource::RLIMIT_NOFILE) {
        let _ = setrlimit(Resource::RLIMIT_NOFILE, hard, hard);
    }
}
