//! Who publishes a session, and since when nobody does. Pure: time is an argument, on the session clock.

use actix::Addr;

use crate::actors::rtmp_connection::RtmpConnection;
use crate::transcript::GapReason;

/// The publisher of a session, its generation, and the time without one that is not announced yet: one value, since each
/// change of one is judged by the others.
///
/// Invariants: generations grow; [`Away::back_ms`] is never before [`Away::start_ms`].
#[derive(Default)]
pub struct Presence {
    publisher: Option<PublisherLink>,
    generation: u64,
    away: Option<Away>,
}

/// The living publisher of a session.
#[derive(Clone)]
pub struct PublisherLink {
    pub addr: Addr<RtmpConnection>,
    pub generation: u64,
    /// When it came.
    pub since_ms: u64,
}

/// A time in which nobody published.
///
/// It becomes a gap, once somebody is back, unless that one goes on with the stream of the lost publisher (LiveKit
/// Egress after a drop, an encoder with a backlog): then the clock knows what is missing, if anything.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Away {
    pub start_ms: u64,
    /// None while nobody is there.
    pub back_ms: Option<u64>,
    pub reason: GapReason,
    /// Its end if nobody comes back, when somebody was publishing to the process that stopped then.
    pub missing_until_ms: Option<u64>,
}

impl Away {
    /// Nobody is there from now on.
    pub fn since(start_ms: u64, reason: GapReason) -> Self {
        Self { start_ms, back_ms: None, reason, missing_until_ms: None }
    }
}

/// Time without a publisher that is to be announced.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Absence {
    pub start_ms: u64,
    pub end_ms: u64,
    pub reason: GapReason,
}

impl Presence {
    /// As a process before this one has left it.
    pub fn resumed(away: Option<Away>) -> Self {
        Self { away, ..Self::default() }
    }

    pub fn publisher(&self) -> Option<&PublisherLink> {
        self.publisher.as_ref()
    }

    /// Counts the publishers of this epoch; marks their tags.
    pub fn generation(&self) -> u64 {
        self.generation
    }

    pub fn away(&self) -> Option<Away> {
        self.away
    }

    /// The generation of a publisher that is about to come.
    pub fn next_generation(&mut self) -> u64 {
        self.generation += 1;
        self.generation
    }

    /// A publisher is here; it displaces none.
    pub fn came(&mut self, publisher: PublisherLink) {
        debug_assert!(self.publisher.is_none() && publisher.generation == self.generation);
        self.publisher = Some(publisher);
    }

    /// The publisher is gone, or is to go.
    pub fn left(&mut self) -> Option<PublisherLink> {
        self.publisher.take()
    }

    /// Somebody is back, if anybody was missed.
    pub fn back(&mut self, now_ms: u64) {
        if let Some(away) = &mut self.away {
            away.back_ms.get_or_insert(now_ms.max(away.start_ms));
        }
    }

    /// From then on nobody is heard, unless somebody has been missed before.
    pub fn missed_since(&mut self, away: Away) {
        self.away.get_or_insert(away);
    }

    /// The time before somebody was back, to be announced. None while nobody is.
    pub fn take_absence(&mut self) -> Option<Absence> {
        let Away { start_ms, back_ms, reason, .. } = self.away?;
        let end_ms = back_ms?;
        self.away = None;
        Some(Absence { start_ms, end_ms, reason })
    }

    /// Time that an earlier process has left in the middle of a publish, to which nobody comes back any more.
    pub fn take_missing(&mut self) -> Option<Absence> {
        let Away { start_ms, reason, missing_until_ms, .. } = self.away?;
        let end_ms = missing_until_ms?;
        self.away = None;
        Some(Absence { start_ms, end_ms, reason })
    }

    /// A publisher that is back goes on with its stream: the time away is no absence of its own. True when it was one.
    pub fn goes_on(&mut self) -> bool {
        self.away.take_if(|away| away.reason == GapReason::PublisherLost && away.back_ms.is_some()).is_some()
    }

    /// If the process dies now, something is missing.
    pub fn is_publishing(&self) -> bool {
        self.publisher.is_some() || self.away.is_some_and(|away| away.missing_until_ms.is_some())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LOST: GapReason = GapReason::PublisherLost;

    #[test]
    fn the_time_away_is_from_the_first_loss_to_the_first_return() {
        let mut presence = Presence::default();
        presence.missed_since(Away::since(1000, LOST));
        presence.missed_since(Away::since(1500, LOST));
        assert_eq!(presence.take_absence(), None, "nobody is back");
        presence.back(3000);
        presence.back(4000);
        assert_eq!(presence.take_absence(), Some(Absence { start_ms: 1000, end_ms: 3000, reason: LOST }));
        assert_eq!(presence.take_absence(), None, "it is announced once");
    }

    #[test]
    fn a_clock_that_was_behind_turns_no_absence_around() {
        let mut presence = Presence::resumed(Some(Away::since(5000, GapReason::ProcessRestart)));
        presence.back(4000);
        let absence = presence.take_absence().unwrap();
        assert_eq!((absence.start_ms, absence.end_ms), (5000, 5000));
    }

    #[test]
    fn only_a_lost_publisher_that_is_back_goes_on() {
        for (reason, back_ms, goes_on) in
            [(LOST, Some(2000), true), (LOST, None, false), (GapReason::ProcessRestart, Some(2000), false)]
        {
            let mut presence = Presence::resumed(Some(Away { back_ms, ..Away::since(1000, reason) }));
            assert_eq!(presence.goes_on(), goes_on);
            assert_eq!(presence.away().is_none(), goes_on);
        }
    }

    #[test]
    fn what_an_earlier_process_was_hearing_is_missing_until_it_is_told() {
        let away = Away { missing_until_ms: Some(9000), ..Away::since(1000, GapReason::ProcessRestart) };
        let mut presence = Presence::resumed(Some(away));
        assert!(presence.is_publishing());
        assert_eq!(presence.take_missing().map(|absence| absence.end_ms), Some(9000));
        assert!(!presence.is_publishing());
        assert_eq!(presence.next_generation(), 1);
        assert_eq!(presence.next_generation(), 2);
    }
}
