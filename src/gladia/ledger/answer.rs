//! How long the recogniser has been silent about speech that it has.
//!
//! The invariant: the last final is never later than the last text.

use std::time::Duration;

use tokio::time::Instant;

/// A time, and what had been sent by then.
type Moment = (Instant, u64);

/// The wait for an answer to speech, from when it was sent.
#[derive(Debug, Default)]
pub(super) struct AnswerWatch {
    /// When the recogniser last said anything, or when the first such speech went out; its last final alone.
    last: Option<(Moment, Moment)>,
}

impl AnswerWatch {
    pub fn is_waiting(&self) -> bool {
        self.last.is_some()
    }

    pub fn begin(&mut self, now: Instant, sent: u64) {
        self.last = Some(((now, sent), (now, sent)));
    }

    pub fn heard(&mut self, now: Instant, sent: u64, is_final: bool) {
        if let Some((last_text, last_final)) = &mut self.last {
            *last_text = (now, sent);
            if is_final {
                *last_final = *last_text;
            }
        }
    }

    /// Guesses are an answer for `patience`, in which the final ought to come.
    pub fn since(&self, patience: Duration) -> Option<Moment> {
        let (last_text, last_final) = self.last?;
        let is_patient = last_text.0 <= last_final.0 + patience;
        Some(if is_patient { last_text } else { (last_final.0 + patience, last_final.1) })
    }
}

/// Speech without an answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Unanswered {
    pub since: Instant,
    /// Audio that was sent since then: a recogniser needs to hear the end of an utterance.
    pub audio: Duration,
    /// So much speech that an answer ought to have come; else a short sound, which may be none.
    pub is_enough: bool,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn guesses_are_an_answer_for_as_long_as_a_final_takes() {
        let (mut watch, start) = (AnswerWatch::default(), Instant::now());
        let at = |s: u64| start + Duration::from_secs(s);
        let patience = Duration::from_secs(20);
        watch.heard(at(0), 0, true);
        assert_eq!(watch.since(patience), None, "nothing was asked");
        watch.begin(at(1), 100);
        assert_eq!(watch.since(patience), Some((at(1), 100)));
        watch.heard(at(15), 900, false);
        assert_eq!(watch.since(patience), Some((at(15), 900)));
        watch.heard(at(40), 3000, false);
        assert_eq!(watch.since(patience), Some((at(21), 100)), "and no longer");
        watch.heard(at(41), 3100, true);
        assert_eq!(watch.since(patience), Some((at(41), 3100)));
    }
}
