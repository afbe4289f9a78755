//! How often in a row something has failed, and since when nothing works. Each count has one place where it goes back to
//! 0: a hot loop once came from one that was reset in the wrong place.

use tokio::time::Instant;

use super::super::policy::{self, Fault};

/// Failures in a row, which lengthen the waits of the tables in `policy`.
#[derive(Debug, Default)]
pub(super) struct Retry {
    /// Of connections to the present recogniser session.
    resumes: u32,
    /// Recogniser sessions that were given up.
    renewals: u32,
    /// Requests for a session that were refused.
    refusals: u32,
    /// The first fault's time and the last fault, until something works.
    down: Option<(Instant, Fault)>,
}

impl Retry {
    pub fn failed(&mut self, now: Instant, fault: &Fault) {
        let since = self.down.as_ref().map_or(now, |(since, _)| *since);
        self.down = Some((since, fault.clone()));
    }

    /// Since when nothing works, and the last reason.
    pub fn down(&self) -> Option<(Instant, &Fault)> {
        self.down.as_ref().map(|(since, fault)| (*since, fault))
    }

    /// The connection works.
    pub fn up(&mut self) {
        self.down = None;
    }

    /// The same session may be tried again.
    pub fn may_resume(&self) -> bool {
        self.resumes < policy::MAX_RESUMES
    }

    /// The step of the table that the next resume waits for: a connection that lived shortly is no first failure.
    pub fn next_resume(&mut self, was_short: bool) -> u32 {
        let step = self.resumes.max(u32::from(was_short));
        self.resumes += 1;
        step
    }

    pub fn next_renewal(&mut self) -> u32 {
        self.renewals += 1;
        self.renewals - 1
    }

    pub fn next_refusal(&mut self) -> u32 {
        self.refusals += 1;
        self.refusals - 1
    }

    /// The connection has brought something new, or lives for long, or its session is given up: resumes count from 0.
    pub fn resumed(&mut self) {
        self.resumes = 0;
    }

    /// The recogniser has given a session.
    pub fn opened(&mut self) {
        (self.refusals, self.resumes) = (0, 0);
    }

    /// The session has proved its worth: one that only acknowledges may end like those before it.
    pub fn worked(&mut self) {
        self.renewals = 0;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn resumes_have_an_end_until_something_works() {
        let mut retry = Retry::default();
        let steps: Vec<_> = std::iter::from_fn(|| retry.may_resume().then(|| retry.next_resume(true))).collect();
        assert_eq!(steps.len() as u32, policy::MAX_RESUMES);
        assert_eq!(steps[..2], [1, 1], "a short life is no first failure");
        retry.resumed();
        assert_eq!(retry.next_resume(false), 0);
    }

    #[test]
    fn a_session_that_is_given_resets_refusals_and_not_renewals() {
        let mut retry = Retry::default();
        assert_eq!([retry.next_refusal(), retry.next_refusal()], [0, 1]);
        assert_eq!([retry.next_renewal(), retry.next_renewal()], [0, 1]);
        retry.opened();
        assert_eq!((retry.next_refusal(), retry.next_renewal()), (0, 2), "or sessions would be opened in a hot loop");
        retry.worked();
        assert_eq!(retry.next_renewal(), 0);
    }

    #[tokio::test(start_paused = true)]
    async fn it_is_down_from_the_first_fault_to_the_first_success() {
        let (mut retry, begun) = (Retry::default(), Instant::now());
        retry.failed(begun, &Fault::HalfOpen);
        retry.failed(begun + std::time::Duration::from_secs(9), &Fault::Stalled);
        assert_eq!(retry.down(), Some((begun, &Fault::Stalled)));
        retry.up();
        assert_eq!(retry.down(), None);
    }
}
