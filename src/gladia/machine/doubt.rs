//! Whether a recogniser that says nothing about speech is believed.

use std::time::Duration;

/// Doublings of the patience, at most.
const MAX_DOUBLINGS: u32 = 10;

/// Suspicions about the present recogniser session and those before it.
///
/// Invariants: `announce` holds only while `is_probing`; `silent_stalls` and `false_alarms` are 0 once there was text.
#[derive(Debug, Default)]
pub(super) struct Doubt {
    /// The session was asked to end because text is missing.
    is_probing: bool,
    /// So much speech is without text that a status is published.
    announce: bool,
    /// The session before this one has ended with text missing. When this one, too, has nothing to say about the same, it
    /// is believed.
    is_second_opinion: bool,
    /// Stalls in a row without any text.
    silent_stalls: u32,
    /// Suspicions in a row that came to nothing: noise.
    false_alarms: u32,
}

/// The judgement of a session that has ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Opinion {
    /// It has said all that there is to say.
    Believed,
    /// It is doubted, and another session hears the same.
    First,
    /// It, too, had nothing to say.
    Second,
}

impl Doubt {
    /// Gives how long speech may be without text: longer after each suspicion.
    pub fn patience(&self, stall: Duration, most: Duration) -> Duration {
        let doublings = self.silent_stalls.max(self.false_alarms).min(MAX_DOUBLINGS);
        stall.saturating_mul(1 << doublings).min(most.max(stall))
    }

    /// The session is asked to say all that it has to say.
    pub fn probe(&mut self, announce: bool) {
        (self.is_probing, self.announce) = (true, announce);
    }

    pub fn is_probing(&self) -> bool {
        self.is_probing
    }

    /// It has stalled, and there was no text since.
    pub fn has_stalled(&self) -> bool {
        self.silent_stalls > 0
    }

    /// A probe that is not over, and is published.
    pub fn is_probe_announced(&self) -> bool {
        self.is_probing && self.announce
    }

    /// The probe had no answer: the recogniser has stalled.
    pub fn stalled(&mut self) {
        self.silent_stalls += 1;
    }

    /// Another session begins.
    pub fn session_began(&mut self) {
        self.is_probing = false;
    }

    /// The probe is over, whatever came of it. True when there was one.
    pub fn end_probe(&mut self) -> bool {
        std::mem::take(&mut self.is_probing)
    }

    /// A session has ended as it should.
    pub fn opinion(&mut self, is_doubtful: bool) -> Opinion {
        if !is_doubtful {
            return Opinion::Believed;
        }
        if !std::mem::replace(&mut self.is_second_opinion, true) {
            return Opinion::First;
        }
        self.false_alarms += 1;
        Opinion::Second
    }

    /// Two sessions agree: there was nothing to say.
    pub fn settled(&mut self) {
        self.is_second_opinion = false;
    }

    /// There is text.
    pub fn text(&mut self) {
        (self.silent_stalls, self.false_alarms) = (0, 0);
        self.is_second_opinion = false;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const STALL: Duration = Duration::from_secs(10);
    const MOST: Duration = Duration::from_secs(60);

    #[test]
    fn patience_grows_with_each_suspicion_and_ends_with_text() {
        let mut doubt = Doubt::default();
        let mut patience = Vec::new();
        for _ in 0..5 {
            patience.push(doubt.patience(STALL, MOST).as_secs());
            doubt.stalled();
        }
        assert_eq!(patience, [10, 20, 40, 60, 60]);
        assert!(doubt.has_stalled());
        doubt.text();
        assert_eq!(doubt.patience(STALL, MOST), STALL);
        assert!(!doubt.has_stalled());
        assert_eq!(doubt.patience(MOST * 2, MOST), MOST * 2, "what is configured counts");
    }

    #[test]
    fn the_second_session_with_nothing_to_say_is_a_false_alarm() {
        let mut doubt = Doubt::default();
        assert_eq!(doubt.opinion(false), Opinion::Believed);
        assert_eq!(doubt.opinion(true), Opinion::First);
        assert_eq!(doubt.patience(STALL, MOST), STALL);
        assert_eq!(doubt.opinion(true), Opinion::Second);
        assert_eq!(doubt.patience(STALL, MOST), STALL * 2);
        doubt.settled();
        assert_eq!(doubt.opinion(true), Opinion::First);
    }

    #[test]
    fn a_probe_is_announced_until_it_is_over() {
        let mut doubt = Doubt::default();
        doubt.probe(true);
        assert!(doubt.is_probing() && doubt.is_probe_announced());
        assert!(doubt.end_probe());
        assert!(!doubt.is_probe_announced() && !doubt.end_probe());
        doubt.probe(false);
        assert!(doubt.is_probing() && !doubt.is_probe_announced());
        doubt.session_began();
        assert!(!doubt.is_probing());
    }
}
