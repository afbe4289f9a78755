//! Watchdog: an OS thread that asks every arbiter for a sign of life.
//!
//! A thread that hangs for good cannot be repaired from inside. After [`HUNG_AFTER`] without a sign `/health` answers
//! 503; a little later the process exits with 70 and whoever runs it starts it again, losing nothing.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use actix::ArbiterHandle;
use parking_lot::Mutex;

/// Name of the HTTP server's threads.
pub const HTTP_WORKER: &str = "http";
/// An arbiter without a sign of life for so long is hung.
pub const HUNG_AFTER: Duration = Duration::from_secs(10);
/// Then `/health` says so for this long before the process exits.
pub const EXIT_AFTER: Duration = Duration::from_secs(3);
const ASK_INTERVAL: Duration = Duration::from_millis(500);

/// The threads that are asked; more may come.
pub struct Watched {
    threads: Mutex<Vec<(String, ArbiterHandle)>>,
}

impl Watched {
    pub fn new(threads: Vec<(String, ArbiterHandle)>) -> Self {
        Self { threads: Mutex::new(threads) }
    }

    /// The thread's name is `kind` and its number.
    pub fn add(&self, kind: &str, thread: ArbiterHandle) {
        let mut threads = self.threads.lock();
        let number = threads.iter().filter(|(name, _)| name.starts_with(kind)).count();
        threads.push((format!("{kind}-{number}"), thread));
    }
}

/// Stops the thread when dropped.
pub struct Watchdog {
    stop: Arc<AtomicBool>,
}

impl Watchdog {
    /// Watches the threads; `hung` is what `/health` reads. Calls `on_dead` (which exits the process) from its thread.
    pub fn start(
        watched: Arc<Watched>,
        hung_after: Duration,
        exit_after: Duration,
        hung: Arc<AtomicBool>,
        on_dead: impl FnOnce(&str) + Send + 'static,
    ) -> std::io::Result<Self> {
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = stop.clone();
        std::thread::Builder::new().name("watchdog".into()).spawn(move || {
            let origin = Instant::now();
            let mut signs: Vec<Arc<AtomicU64>> = Vec::new();
            let mut on_dead = Some(on_dead);
            while !stopped.load(Ordering::Relaxed) {
                let arbiters = watched.threads.lock().clone();
                let asked_ms = origin.elapsed().as_millis() as u64;
                signs.resize_with(arbiters.len(), || Arc::new(AtomicU64::new(asked_ms)));
                for ((_, arbiter), sign) in arbiters.iter().zip(&signs) {
                    let sign = sign.clone();
                    arbiter.spawn_fn(move || sign.store(origin.elapsed().as_millis() as u64, Ordering::Relaxed));
                }
                // actix replaces a worker that has ended: its thread is gone, not hung.
                let is_gone = |n: usize, (name, arbiter): &(String, ArbiterHandle)| {
                    name.starts_with(HTTP_WORKER) && !arbiter.spawn_fn(|| ()) && n < signs.len()
                };
                if let Some(n) = (0..arbiters.len()).find(|n| is_gone(*n, &arbiters[*n])) {
                    watched.threads.lock().remove(n);
                    signs.remove(n);
                    continue;
                }
                let pause = ASK_INTERVAL.min(hung_after / 4);
                std::thread::sleep(pause);
                let now_ms = origin.elapsed().as_millis() as u64;
                // The whole process has stood still, by SIGSTOP or with its machine: no thread of it is to blame.
                if now_ms - asked_ms >= (pause + hung_after / 2).as_millis() as u64 {
                    tracing::warn!(silent_ms = now_ms - asked_ms, "the process has stood still");
                    signs.iter().for_each(|sign| sign.store(now_ms, Ordering::Relaxed));
                }
                let silent_ms = |sign: &Arc<AtomicU64>| now_ms.saturating_sub(sign.load(Ordering::Relaxed));
                let worst = signs.iter().map(silent_ms).enumerate().max_by_key(|(_, ms)| *ms);
                let Some((n, silent_ms)) = worst else { continue };
                let name = &arbiters[n].0;
                let hangs = silent_ms >= hung_after.as_millis() as u64;
                if hung.swap(hangs, Ordering::Relaxed) != hangs {
                    tracing::error!(thread = %name, silent_ms, hangs, "sign of life lost or back");
                }
                if silent_ms >= (hung_after + exit_after).as_millis() as u64
                    && let Some(on_dead) = on_dead.take()
                {
                    on_dead(name);
                }
            }
        })?;
        Ok(Self { stop })
    }
}

impl Drop for Watchdog {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::mpsc;

    #[test]
    fn a_hung_arbiter_is_reported_and_then_declared_dead() {
        let (name_tx, name_rx) = mpsc::channel();
        let (release_tx, release_rx) = mpsc::channel::<()>();
        let system = std::thread::spawn(move || {
            actix_rt::System::new().block_on(async move {
                let good = actix::Arbiter::new();
                let hung = actix::Arbiter::new();
                let mut arbiters = vec![("good".to_owned(), good.handle()), ("hung".to_owned(), hung.handle())];
                let short = Duration::from_secs(1);
                let report = move |name: &str| name_tx.send(name.to_owned()).unwrap();
                let flag = Arc::new(AtomicBool::new(false));
                let watched = Arc::new(Watched::new(arbiters.split_off(1)));
                watched.add("late", arbiters.remove(0).1);
                let watchdog = Watchdog::start(watched, short, short, flag.clone(), report).unwrap();
                hung.spawn_fn(move || release_rx.recv().unwrap_or(()));
                while !flag.load(Ordering::Relaxed) {
                    tokio::time::sleep(Duration::from_millis(5)).await;
                }
                watchdog
            })
        });
        assert_eq!(name_rx.recv_timeout(Duration::from_secs(20)).unwrap(), "hung");
        release_tx.send(()).unwrap();
        drop(system.join().unwrap());
    }
}
