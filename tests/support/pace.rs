//! Parties that take their time, since the thing under test is how they are taken: an encoder in real time, a browser that
//! reports now and then, somebody who is away for a while. Nothing waits here for the server: that is `wait`.

use std::time::Duration;

use tokio::time::{Instant, sleep_until};

/// The clock of one such party.
#[derive(Debug, Clone, Copy)]
pub struct Pace {
    pub begun: Instant,
}

impl Pace {
    pub fn begin() -> Self {
        Self { begun: Instant::now() }
    }

    pub fn is_past(&self, ms: impl Into<u64>) -> bool {
        self.begun.elapsed() >= Duration::from_millis(ms.into())
    }

    /// Does nothing until so many ms have passed since the begin.
    pub async fn reaches(&self, ms: impl Into<u64>) {
        sleep_until(self.begun + Duration::from_millis(ms.into())).await;
    }
}
