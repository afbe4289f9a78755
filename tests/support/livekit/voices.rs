//! The voices in a room, on one clock.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;

use parking_lot::Mutex;
use tokio::sync::broadcast;

use super::super::pace::Pace;
use super::Task;

pub const FRAME_MS: u64 = 10;
/// Samples of a frame: mono, 48 kHz.
pub const FRAME: usize = 480;
/// Frames that a slow listener may be behind.
const BEHIND: usize = 1000;

/// 10 ms of everybody who is in the room.
pub struct Frame {
    pub by_identity: BTreeMap<String, Vec<i16>>,
    pub muted: BTreeSet<String>,
}

impl Frame {
    pub fn mix(&self) -> Vec<i16> {
        let mut mix = vec![0i16; FRAME];
        for voice in self.by_identity.values() {
            mix.iter_mut().zip(voice).for_each(|(sum, sample)| *sum = sum.saturating_add(*sample));
        }
        mix
    }
}

#[derive(Default)]
struct Said {
    waiting: BTreeMap<String, VecDeque<i16>>,
    muted: BTreeSet<String>,
}

/// See the module. The clock stops when it is dropped.
pub struct Voices {
    said: Arc<Mutex<Said>>,
    frames: broadcast::Sender<Arc<Frame>>,
    _clock: Task,
}

impl Voices {
    pub fn start() -> Self {
        let (said, frames) = (Arc::new(Mutex::new(Said::default())), broadcast::channel(BEHIND).0);
        let clock = tokio::spawn(run(said.clone(), frames.clone()));
        Self { said, frames, _clock: Task(clock) }
    }

    /// After what was said before.
    pub fn say(&self, identity: &str, samples: &[i16]) {
        self.said.lock().waiting.entry(identity.to_owned()).or_default().extend(samples);
    }

    /// What is said meanwhile is not heard.
    pub fn mute(&self, identity: &str, is_muted: bool) {
        let mut said = self.said.lock();
        match is_muted {
            true => drop(said.muted.insert(identity.to_owned())),
            false => drop(said.muted.remove(identity)),
        }
    }

    pub fn forget(&self, identity: &str) {
        self.said.lock().waiting.remove(identity);
    }

    /// Everything that was given to [`Self::say`] was heard.
    pub fn is_silent(&self) -> bool {
        self.said.lock().waiting.values().all(VecDeque::is_empty)
    }

    pub fn listen(&self) -> broadcast::Receiver<Arc<Frame>> {
        self.frames.subscribe()
    }
}

async fn run(said: Arc<Mutex<Said>>, frames: broadcast::Sender<Arc<Frame>>) {
    let pace = Pace::begin();
    for n in 1u64.. {
        pace.reaches(n * FRAME_MS).await;
        let mut said = said.lock();
        let muted = said.muted.clone();
        let by_identity = said.waiting.iter_mut().map(|(identity, waiting)| {
            let mut frame: Vec<i16> = waiting.drain(..FRAME.min(waiting.len())).collect();
            frame.resize(FRAME, 0);
            if muted.contains(identity) {
                frame.fill(0);
            }
            (identity.clone(), frame)
        });
        let by_identity = by_identity.collect();
        drop(said);
        let _ = frames.send(Arc::new(Frame { by_identity, muted }));
    }
}
