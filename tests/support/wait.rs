//! Waits for a condition, with a deadline. Loops with a sleep between two looks are here and nowhere else.

use std::fmt::Display;
use std::time::{Duration, Instant};

/// Longest wait of a test. What it waits for comes much sooner.
pub const DEADLINE: Duration = Duration::from_secs(60);
/// Time between two looks.
const POLL: Duration = Duration::from_millis(10);

/// Answer of a condition: it holds and gives a value, or it does not yet.
pub trait Answer {
    type Value;

    /// Gives the value, or what is seen instead.
    fn read(self) -> Result<Self::Value, String>;
}

impl Answer for bool {
    type Value = ();

    fn read(self) -> Result<(), String> {
        if self { Ok(()) } else { Err("it is not so".to_owned()) }
    }
}

impl<T> Answer for Option<T> {
    type Value = T;

    fn read(self) -> Result<T, String> {
        self.ok_or_else(|| "there is none".to_owned())
    }
}

impl<T, E: Display> Answer for Result<T, E> {
    type Value = T;

    fn read(self) -> Result<T, String> {
        self.map_err(|seen| seen.to_string())
    }
}

/// Waits until the condition holds and gives its value. Panics after [`DEADLINE`].
pub async fn until<A: Answer>(what: &str, condition: impl AsyncFnMut() -> A) -> A::Value {
    within(DEADLINE, POLL, condition).await.unwrap_or_else(|seen| panic!("{}", too_late(what, &seen)))
}

/// Does the same on a thread that has no runtime.
pub fn until_blocking<A: Answer>(what: &str, mut condition: impl FnMut() -> A) -> A::Value {
    let begun = Instant::now();
    loop {
        match condition().read() {
            Ok(value) => return value,
            Err(seen) => assert!(begun.elapsed() < DEADLINE, "{}", too_late(what, &seen)),
        }
        std::thread::sleep(POLL);
    }
}

/// Looks every `every`, and gives up after `limit` with what is seen by then.
pub async fn within<A: Answer>(
    limit: Duration,
    every: Duration,
    mut condition: impl AsyncFnMut() -> A,
) -> Result<A::Value, String> {
    let begun = Instant::now();
    loop {
        let answer = condition().await.read();
        if answer.is_ok() || begun.elapsed() >= limit {
            return answer;
        }
        tokio::time::sleep(every).await;
    }
}

fn too_late(what: &str, seen: &str) -> String {
    format!("not within {DEADLINE:?}: {what}; {seen}")
}
