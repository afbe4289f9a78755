//! The soak: hours of publishers that come and go and of viewers that reconnect, on one server, while faults of the
//! drill's own table are drawn from a seed. Everything is counted, and the counts must balance to zero.
//!
//! The time under load has four quarters. The server's process itself is ended and started again in the first one and at
//! the very end, so that memory, descriptors, threads and child processes can be compared between the second and the
//! fourth quarter of one process's life: their medians under load, and what is left at the quiet point after each
//! quarter, when every session has ended.

pub mod balance;
pub mod life;
mod restless;
mod stage;
mod strikes;
mod summary;
pub mod usage;

use std::rc::Rc;
use std::time::{Duration, Instant};

use futures_util::future::{join, join_all};

use stage::Stage;
use strikes::Drawn;
use usage::{Usage, growth};

use crate::harness::Split;
use crate::harness::lasts;
use crate::harness::world::{Setup, World};
use crate::support::server::health;
use crate::support::wait::within;

/// Sessions at a time, besides the victims of faults.
const SESSIONS: usize = 4;
const QUARTERS: u32 = 4;
/// How long the last faults, which end the process, go on after the fourth quarter.
const CLOSING: Duration = Duration::from_secs(20);
/// After the last session's end: threads and sockets that are no longer needed go after ten seconds.
const SETTLING: Duration = Duration::from_secs(15);
const POLL: Duration = Duration::from_millis(200);
/// Longest wait for a server without sessions, viewers and children.
const QUIET_WITHIN: Duration = Duration::from_secs(60);

/// What the server is told. The planned rollover of recogniser sessions is an everyday event here.
const SETTINGS: &[(&str, &str)] = &[
    ("SESSION_GRACE_MS", "30000"),
    ("DECODER", "process"),
    ("GLADIA_SESSION_MAX_S", "45"),
    ("WS_PING_MS", "3000"),
    ("RUST_LOG", "stenocast=info"),
];

#[derive(Debug, Clone, Copy)]
pub struct Options {
    /// Under load; the quiet points between the quarters are in it, the one after them and the closing faults are not.
    pub load: Duration,
    /// The same seed draws the same faults and the same lives of sessions.
    pub seed: u64,
}

/// What was measured in a quarter.
#[derive(Debug, Clone, Default)]
pub struct Quarter {
    /// Median of the samples under load.
    pub load: Usage,
    /// After its end, with every session gone.
    pub quiet: Usage,
}

/// Runs the soak and prints its table; gives everything that is not as it must be.
pub fn run(options: Options) -> Vec<String> {
    actix_rt::System::new().block_on(soak(options))
}

async fn soak(options: Options) -> Vec<String> {
    let setup = Setup {
        settings: SETTINGS,
        disk_mib: None,
        has_local_recogniser: false,
        far: &[],
        late_per_mille: 0,
        pooled: false,
        split: Split::Not,
    };
    let stage = Rc::new(Stage::new(World::start(setup).await, options.seed));
    let begun = Instant::now();
    let mut quarters = Vec::new();
    for n in 1..=QUARTERS {
        // A short soak has quarters that are not only made of coming to rest.
        let at_least = Instant::now() + options.load / (2 * QUARTERS);
        stage.go_on_until(at_least.max(begun + options.load * n / QUARTERS));
        let drawn = if n == 1 { Drawn::All } else { Drawn::AllButRestarts };
        let load = usage::median(&under_load(&stage, drawn).await);
        let quiet = quiet_point(&stage).await;
        quarters.push(Quarter { load, quiet });
        eprintln!("{}", summary::checkpoint(begun.elapsed(), n, &quarters[n as usize - 1], &stage.tally.borrow()));
    }
    stage.go_on_until(Instant::now() + CLOSING);
    under_load(&stage, Drawn::RestartsAlone).await;
    quiet_point(&stage).await;
    let code = stage.world.stop().await;
    stage.note_unless(code == 0, || format!("the stop's exit code is {code}"));
    let tally = stage.tally.take();
    let mut problems = tally.imbalance();
    let (world, begun_in_all) = (&stage.world, tally.sessions_begun);
    problems.extend(balance::compare_with_database(&world.database, tally.entries, begun_in_all).await);
    problems.extend(balance::stored_tail(world.dir()));
    problems.extend(growth(&quarters[1], &quarters[3]));
    if !problems.is_empty() {
        stage.world.keep_log("soak");
    }
    summary::print(options, begun.elapsed(), &quarters, &tally, &problems);
    problems
}

/// Sessions and faults until the stage's time is over and all that has begun has come to its end.
async fn under_load(stage: &Rc<Stage>, drawn: Drawn) -> Vec<Usage> {
    let slots = join_all((0..SESSIONS).map(|slot| life::lives(stage, slot)));
    let faults = join(strikes::general(stage, drawn), strikes::of_the_database(stage, drawn));
    let watching = usage::watch(stage);
    let everything = join(join(slots, faults), stage.all_lives_over());
    tokio::select! {
        _ = everything => {}
        never = watching.run() => match never {},
    }
    watching.samples()
}

/// Waits for a server without anything to do and gives what it still holds.
async fn quiet_point(stage: &Stage) -> Usage {
    let http = stage.world.server().http;
    let is_quiet = async || {
        let now = health(http).await.unwrap_or_default();
        let has_nothing = now["sessions"] == 0 && now["viewers"] == 0 && now["outboxRows"] == 0;
        if has_nothing && stage.usage().children == 0 { Ok(()) } else { Err(now) }
    };
    if let Err(now) = within(QUIET_WITHIN, POLL, is_quiet).await {
        stage.note(format!("not quiet within {QUIET_WITHIN:?}: {now}, {:?}", stage.usage()));
    }
    lasts(SETTLING).await;
    stage.usage()
}
