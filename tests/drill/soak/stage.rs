//! What everybody in a soak shares.

use std::cell::{Cell, RefCell};
use std::rc::{Rc, Weak};
use std::time::{Duration, Instant};

use rand::SeedableRng;
use rand::rngs::StdRng;
use tokio::sync::RwLock;

use super::balance::Tally;
use super::life::Life;
use super::usage::{self, Usage};
use crate::harness::lasts;
use crate::harness::world::World;
use crate::support::wait::within;

const POLL: Duration = Duration::from_millis(100);
/// Load a core (average of a minute) above which an ffmpeg child may take longer to start than its watchdog waits: then
/// its audio may end as an announced gap. It must be announced all the same.
const STARVED: f64 = 5.0;

/// See the module.
pub struct Stage {
    pub world: Rc<World>,
    seed: u64,
    until: Cell<Instant>,
    next_life: Cell<u32>,
    lives: RefCell<Vec<Weak<Life>>>,
    pub tally: RefCell<Tally>,
    /// Held for writing by whoever ends the server's process; for reading by whatever must not meet that.
    pub process: RwLock<()>,
    /// Held for writing by a fault of the database, for reading by a look into it.
    pub database: RwLock<()>,
}

impl Stage {
    pub fn new(world: World, seed: u64) -> Self {
        Self {
            world: Rc::new(world),
            seed,
            until: Cell::new(Instant::now()),
            next_life: Cell::new(0),
            lives: RefCell::default(),
            tally: RefCell::default(),
            process: RwLock::new(()),
            database: RwLock::new(()),
        }
    }

    /// The draws of one purpose do not depend on how many another has made.
    pub fn draws(&self, purpose: u64) -> StdRng {
        StdRng::seed_from_u64(self.seed ^ purpose.wrapping_mul(0x9E37_79B9_7F4A_7C15))
    }

    /// Nothing new begins after this.
    pub fn go_on_until(&self, until: Instant) {
        self.until.set(until);
    }

    pub fn is_over(&self) -> bool {
        Instant::now() >= self.until.get()
    }

    /// Waits, at most until nothing new begins.
    pub async fn pause(&self, length: Duration) {
        let left = self.until.get().saturating_duration_since(Instant::now());
        lasts(length.min(left)).await;
    }

    pub fn next_life(&self) -> u32 {
        self.next_life.replace(self.next_life.get() + 1)
    }

    pub fn enter(&self, life: &Rc<Life>) {
        self.tally.borrow_mut().sessions_begun += 1;
        self.lives.borrow_mut().push(Rc::downgrade(life));
    }

    /// Those whose counts are not taken yet.
    pub fn lives(&self) -> Vec<Rc<Life>> {
        let mut lives = self.lives.borrow_mut();
        lives.retain(|life| life.strong_count() > 0);
        lives.iter().filter_map(Weak::upgrade).collect()
    }

    pub async fn all_lives_over(&self) {
        let are_over = async || self.is_over() && self.lives().is_empty();
        let _ = within(Duration::MAX, POLL, are_over).await;
    }

    /// From now on nobody's decoder may be blamed for being slow to start: see [`STARVED`].
    pub fn look_at_load(&self) {
        let text = std::fs::read_to_string("/proc/loadavg").unwrap_or_default();
        let load: f64 = text.split(' ').next().and_then(|load| load.parse().ok()).unwrap_or(0.0);
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        let mut tally = self.tally.borrow_mut();
        tally.looks += 1;
        if load > STARVED * cores as f64 {
            tally.starved += 1;
            self.lives().iter().for_each(|life| life.may_have("decode_error"));
        }
    }

    /// What the server's process holds at the moment; nothing where there is none.
    pub fn usage(&self) -> Usage {
        self.world.pid().map(usage::of).unwrap_or_default()
    }

    pub fn note(&self, problem: String) {
        eprintln!("PROBLEM: {problem}");
        self.tally.borrow_mut().problems.push(problem);
    }

    pub fn note_unless(&self, holds: bool, problem: impl FnOnce() -> String) {
        if !holds {
            self.note(problem());
        }
    }
}
