//! The queue in front of the inference threads: finals before interims, at most one interim per stream.

use std::collections::{HashMap, VecDeque};
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex};

use super::super::engine::Load;

/// Utilisation is measured over windows of this length.
const BUSY_WINDOW: Duration = Duration::from_secs(5);
/// The longest segment takes some 2 s; a thread at work for longer than this hangs.
const HUNG: Duration = Duration::from_secs(60);

/// Work for an inference thread.
#[derive(Debug)]
pub struct Job {
    pub stream: u64,
    pub segment: u32,
    pub is_final: bool,
    pub samples: Vec<i16>,
    /// Tokens forced at the beginning.
    pub prefix: Vec<i64>,
    /// Lengths of `samples` that are to be recognised as well.
    pub stops: Vec<usize>,
    pub queued: Instant,
}

#[derive(Default)]
struct Queues {
    finals: VecDeque<Job>,
    /// Streams in the order in which their interim was asked for first.
    order: VecDeque<u64>,
    interims: HashMap<u64, Job>,
    shed: u64,
    closed: bool,
    busy: Busy,
    /// Begin of each thread's present work, by thread.
    at_work: HashMap<usize, Instant>,
}

/// The queue in front of the inference threads, finals before interims. Threads of the operating system wait here, not tasks.
#[derive(Default)]
pub struct Scheduler {
    queues: Mutex<Queues>,
    work: Condvar,
}

impl Scheduler {
    pub fn submit(&self, job: Job) {
        let mut queues = self.queues.lock();
        if job.is_final {
            // A guess of a segment that is about to be final is worth nothing.
            queues.drop_interim(job.stream);
            queues.finals.push_back(job);
        } else {
            let stream = job.stream;
            match queues.interims.insert(stream, job) {
                Some(_) => queues.shed += 1,
                None => queues.order.push_back(stream),
            }
        }
        self.work.notify_one();
    }

    /// Waits for work for inference thread `thread`; `None` when the engine ends.
    pub fn next(&self, thread: usize) -> Option<Job> {
        let mut queues = self.queues.lock();
        loop {
            if queues.closed {
                return None;
            }
            if let Some(job) = queues.pop() {
                queues.at_work.insert(thread, Instant::now());
                return Some(job);
            }
            self.work.wait(&mut queues);
        }
    }

    /// Forgets a stream that is gone.
    pub fn forget(&self, stream: u64) {
        let mut queues = self.queues.lock();
        queues.drop_interim(stream);
        queues.finals.retain(|job| job.stream != stream);
    }

    pub fn close(&self) {
        self.queues.lock().closed = true;
        self.work.notify_all();
    }

    /// The thread has done what [`Self::next`] gave it.
    pub fn done(&self, thread: usize) {
        let (mut queues, now) = (self.queues.lock(), Instant::now());
        if let Some(began) = queues.at_work.remove(&thread) {
            queues.busy.add(now.duration_since(began), now);
        }
    }

    pub fn load(&self, threads: usize) -> Load {
        let mut queues = self.queues.lock();
        let now = Instant::now();
        Load {
            queue_ms: queues.finals.front().map_or(0, |job| now.duration_since(job.queued).as_millis() as u64),
            finals_waiting: queues.finals.len(),
            interims_waiting: queues.interims.len(),
            busy: queues.busy.share(threads, now),
            interims_shed: queues.shed,
            broken: queues.at_work.values().any(|began| now.duration_since(*began) > HUNG),
        }
    }
}

impl Queues {
    fn pop(&mut self) -> Option<Job> {
        if let Some(job) = self.finals.pop_front() {
            return Some(job);
        }
        let stream = self.order.pop_front()?;
        self.interims.remove(&stream)
    }

    fn drop_interim(&mut self, stream: u64) {
        if self.interims.remove(&stream).is_some() {
            self.shed += 1;
            self.order.retain(|s| *s != stream);
        }
    }
}

/// Time worked in the present window and the share of the last whole one.
#[derive(Default)]
struct Busy {
    since: Option<Instant>,
    spent: Duration,
    last: f64,
}

impl Busy {
    fn add(&mut self, spent: Duration, now: Instant) {
        self.since.get_or_insert(now);
        self.spent += spent;
    }

    fn share(&mut self, threads: usize, now: Instant) -> f64 {
        let elapsed = self.since.map_or(Duration::ZERO, |since| now.duration_since(since));
        if elapsed >= BUSY_WINDOW {
            self.last = (self.spent.as_secs_f64() / elapsed.as_secs_f64() / threads.max(1) as f64).min(1.0);
            *self = Self { since: Some(now), spent: Duration::ZERO, last: self.last };
        }
        (self.last * 1000.0).round() / 1000.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn job(stream: u64, segment: u32, is_final: bool) -> Job {
        Job { stream, segment, is_final, samples: vec![], prefix: vec![], stops: vec![], queued: Instant::now() }
    }

    fn drain(scheduler: &Scheduler, count: usize) -> Vec<(u64, u32, bool)> {
        (0..count).map(|_| scheduler.next(0).map(|j| (j.stream, j.segment, j.is_final)).unwrap()).collect()
    }

    #[test]
    fn finals_go_first_and_interims_coalesce() {
        let scheduler = Scheduler::default();
        for (stream, segment) in [(1, 0), (2, 0), (1, 1)] {
            scheduler.submit(job(stream, segment, false));
        }
        scheduler.submit(job(3, 0, true));
        let load = scheduler.load(1);
        assert_eq!((load.finals_waiting, load.interims_waiting, load.interims_shed), (1, 2, 1));
        assert_eq!(drain(&scheduler, 3), [(3, 0, true), (1, 1, false), (2, 0, false)]);
    }

    #[test]
    fn a_final_voids_the_guess_of_its_stream() {
        let scheduler = Scheduler::default();
        scheduler.submit(job(1, 0, false));
        scheduler.submit(job(2, 0, false));
        scheduler.submit(job(1, 0, true));
        assert_eq!(drain(&scheduler, 2), [(1, 0, true), (2, 0, false)]);
        scheduler.submit(job(4, 0, true));
        scheduler.forget(4);
        scheduler.close();
        assert!(scheduler.next(0).is_none());
    }
}
