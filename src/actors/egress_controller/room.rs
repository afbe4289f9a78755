//! What is known of one room of LiveKit, and what is to be done about it. Pure: time is an argument.

use std::collections::{BTreeMap, VecDeque};
use std::fmt;

use tokio::time::Instant;

use super::policy::{
    Attempts, CALM, ENDING_LIMIT, FIRST_WORD_LIMIT, LAST_WORDS, MAX_PEOPLE, MAX_TRACKS, SECOND_LOOKS, SETTLING,
    SILENT_LIMIT, STARTING_LIMIT,
};
use crate::livekit::api::ApiError;
use crate::livekit::model::{EgressInfo, EgressStatus};
use crate::transcript::Epoch;

/// Ids of earlier rooms of the same name that are remembered.
const MAX_FORMER: usize = 8;
/// Ids of egresses that are remembered because this node has stopped them, or could not.
const MAX_STOPPED: usize = 32;

/// Why a room has no captions of its own.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Fault {
    Api(ApiError),
    /// LiveKit says so, and why.
    Failed(String),
    /// It did not become active.
    Stuck,
    /// It was active, and did not publish.
    Silent,
    /// It did try to publish here, and was refused.
    Denied(&'static str),
}

impl Fault {
    /// The label in metrics, and the end of the reason that viewers are told.
    pub fn as_str(&self) -> &'static str {
        match self {
            Self::Api(error) => error.as_str(),
            Self::Failed(_) => "failed",
            Self::Stuck => "stuck",
            Self::Silent => "silent",
            Self::Denied(_) => "publish_refused",
        }
    }

    /// Of egresses that had begun.
    pub const RESTARTS: [&str; 4] = ["failed", "stuck", "silent", "publish_refused"];

    /// Trying again soon does not help.
    pub fn is_lasting(&self) -> bool {
        matches!(self, Self::Api(ApiError::Denied(_) | ApiError::Quota(_) | ApiError::BadRoute(_)))
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Api(error) => error.fmt(f),
            Self::Failed(why) if why.is_empty() => f.write_str("LiveKit says that the egress failed, and not why"),
            Self::Failed(why) => write!(f, "LiveKit says that the egress failed: {why}"),
            Self::Stuck => write!(f, "the egress was still starting after {} s", STARTING_LIMIT.as_secs()),
            Self::Silent => f.write_str(
                "LiveKit says that the egress is active, and nothing comes: RTMP_PUBLIC_URL does not lead here from there",
            ),
            Self::Denied(why) => write!(
                f,
                "the egress did come, and its publish was refused here ({why}): RTMP_PUBLISH_KEY is another one where it was started"
            ),
        }
    }
}

/// An egress of a room.
#[derive(Debug, Clone)]
pub struct Running {
    pub id: String,
    pub status: EgressStatus,
    /// Since when it has this status, as far as is known here.
    since: Instant,
    /// When its audio was first and last known to come.
    heard: Option<(Instant, Instant)>,
}

impl Running {
    /// Since when it is as it is.
    pub fn since(&self) -> Instant {
        self.since
    }
}

/// What is to be done next.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Step {
    Start,
    /// Several may run.
    Look,
    Stop {
        id: String,
        fault: Option<Fault>,
    },
}

/// A microphone, and the egress that brings it.
#[derive(Debug, Clone)]
pub struct Microphone {
    pub identity: String,
    /// Since when it is known here.
    pub since: Instant,
    /// Its id, and since when it is known here.
    pub egress: Option<(String, Instant)>,
    pub attempts: Attempts,
    pub is_busy: bool,
}

/// See the module.
#[derive(Debug, Default)]
pub struct Room {
    /// Of the room that is there now.
    pub sid: Option<String>,
    pub since: Option<Instant>,
    /// Somebody has asked for an egress.
    pub is_asked: bool,
    /// A viewer has come.
    pub is_watched: bool,
    /// The next start is made also if somebody has stopped one.
    pub force: bool,
    /// Somebody has stopped it; holds until the room is made anew, or somebody starts one.
    pub is_refused: bool,
    /// Its egress has ended when nobody had a microphone: the next one is for the first who has.
    pub is_alone: bool,
    /// What is being started at this moment is to be stopped.
    must_stop: bool,
    pub egress: Option<Running>,
    pub attempts: Attempts,
    pub is_busy: bool,
    pub restarts: u64,
    pub fault: Option<Fault>,
    /// The epoch whose viewers were told of it, and of what kind it was.
    pub told: Option<(Epoch, &'static str)>,
    denied: Option<&'static str>,
    former: VecDeque<String>,
    /// Ids that do not count any more.
    stopped: VecDeque<String>,
    looks: VecDeque<Instant>,
    settled: Option<Instant>,
    /// It has ended, and its session is to end when its last words have come: by this time.
    pub ending: Option<Instant>,
    /// Names by identity.
    pub people: BTreeMap<String, String>,
    pub microphones: BTreeMap<String, Microphone>,
    /// The epoch whose tracker has the names.
    pub named: Option<Epoch>,
}

impl Room {
    /// The room of this id is there. False: it was known to be.
    pub fn begins(&mut self, sid: &str, now: Instant) -> bool {
        // A late word on an earlier room does not bring it back.
        let is_known = self.sid.as_deref() == Some(sid) || self.former.iter().any(|former| former == sid);
        if sid.is_empty() || is_known {
            return false;
        }
        // An egress is of one room, not of a name.
        let (sid, ending) = (Some(sid.to_owned()), self.ending.take());
        *self = Self { sid, since: Some(now), ending, ..self.emptied() };
        true
    }

    /// The room of this id is over. False: it is not the one that is known.
    pub fn ends(&mut self, sid: &str, now: Instant) -> bool {
        if self.sid.as_deref().is_some_and(|known| known != sid) {
            return false;
        }
        self.sid = Some(sid.to_owned());
        *self = Self { ending: Some(now + LAST_WORDS), ..self.emptied() };
        true
    }

    /// What outlives a room under its name.
    fn emptied(&mut self) -> Self {
        let mut former = std::mem::take(&mut self.former);
        former.extend(self.sid.take());
        former.drain(..former.len().saturating_sub(MAX_FORMER));
        let stopped = std::mem::take(&mut self.stopped);
        Self { former, stopped, is_busy: self.is_busy, named: self.named, ..Self::default() }
    }

    /// Nothing is known of it that would be missed.
    pub fn is_forgettable(&self) -> bool {
        self.sid.is_none() && self.ending.is_none() && !self.is_busy
    }

    /// Nothing is started for it until it is made anew, or somebody asks.
    pub fn refuse(&mut self) {
        (self.is_refused, self.is_asked, self.force) = (true, false, false);
        self.must_stop = self.is_busy;
    }

    pub fn name(&mut self, identity: &str, name: &str) -> bool {
        if self.people.len() >= MAX_PEOPLE && !self.people.contains_key(identity) {
            return false;
        }
        self.people.insert(identity.to_owned(), name.to_owned()).is_none_or(|old| old != name)
    }

    pub fn microphone(&mut self, track: &str, identity: &str, now: Instant) {
        if self.microphones.len() < MAX_TRACKS && !self.microphones.contains_key(track) {
            let (identity, attempts) = (identity.to_owned(), Attempts::default());
            let microphone = Microphone { identity, since: now, egress: None, attempts, is_busy: false };
            self.microphones.insert(track.to_owned(), microphone);
            // An egress of a room in which nobody may be heard fails, or ends by itself.
            self.attempts.forgive();
        }
    }

    /// The next step, if there is one. `is_wanted`: the room is to have an egress. `is_heard`: somebody publishes it.
    pub fn next(&mut self, is_wanted: bool, is_heard: bool, now: Instant) -> Option<Step> {
        if self.is_busy {
            return None;
        }
        let Some(egress) = &mut self.egress else {
            let is_anybody = !self.is_alone || !self.microphones.is_empty();
            return (is_wanted && is_anybody && self.attempts.may_try(now)).then_some(Step::Start);
        };
        if is_heard {
            let first = egress.heard.map_or(now, |(first, _)| first);
            egress.heard = Some((first, now));
            self.denied = None;
            if now - first >= CALM {
                self.attempts.forgive();
                self.fault = None;
            }
        }
        let (id, age) = (egress.id.clone(), now - egress.since);
        if self.must_stop && egress.status.is_running() {
            return Some(Step::Stop { id, fault: None });
        }
        let silence = match egress.heard {
            Some((_, last)) => (now - last, SILENT_LIMIT),
            None => (age, FIRST_WORD_LIMIT),
        };
        let fault = match egress.status {
            EgressStatus::Starting if age >= STARTING_LIMIT => Some(Fault::Stuck),
            EgressStatus::Active if silence.0 >= silence.1 => Some(self.denied.map_or(Fault::Silent, Fault::Denied)),
            EgressStatus::Ending | EgressStatus::Unknown if age >= ENDING_LIMIT => {
                self.egress = None;
                return None;
            }
            _ => None,
        };
        if fault.is_some() {
            return Some(Step::Stop { id, fault });
        }
        if self.looks.front().is_some_and(|due| now >= *due) {
            self.looks.pop_front();
            return Some(Step::Look);
        }
        None
    }

    /// An egress of ours is the room's. True: it is another one than was known.
    pub fn runs(&mut self, info: &EgressInfo, now: Instant) -> bool {
        let status = info.status();
        match &mut self.egress {
            Some(egress) if egress.id == info.egress_id => {
                if egress.status != status {
                    (egress.status, egress.since) = (status, now);
                }
                false
            }
            _ => {
                self.denied = None;
                // By this node's own hand, or by somebody who wants it.
                self.is_refused = self.must_stop;
                self.is_alone = false;
                self.egress = Some(Running { id: info.egress_id.clone(), status, since: now, heard: None });
                true
            }
        }
    }

    /// It was started a moment ago: others may have done the same.
    pub fn look_again(&mut self, now: Instant) {
        self.looks = SECOND_LOOKS.iter().map(|after| now + *after).collect();
    }

    pub fn look_now(&mut self, now: Instant) {
        self.looks.push_front(now);
    }

    pub fn has_settled(&mut self, now: Instant) {
        self.settled = Some(now);
    }

    /// One that has ended on somebody's word is to be started all the same.
    pub fn is_forced(&self, now: Instant) -> bool {
        self.force || self.is_alone || self.settled.is_some_and(|at| now - at < SETTLING)
    }

    /// It is over, or is not there any more. Gives the fault, if it was one.
    pub fn is_over(&mut self, id: &str, ended: Option<&EgressInfo>) -> Option<Fault> {
        self.egress.take_if(|egress| egress.id == id)?;
        match ended.map(EgressInfo::status) {
            Some(EgressStatus::Failed | EgressStatus::Aborted | EgressStatus::LimitReached) | None => {
                let why = ended.map_or_else(|| "it is not listed any more".to_owned(), |info| info.error.clone());
                Some(self.denied.map_or(Fault::Failed(why), Fault::Denied))
            }
            // Somebody has stopped it, or the room ends: the next start looks.
            _ => {
                self.is_alone = self.microphones.is_empty();
                None
            }
        }
    }

    pub fn has_failed(&mut self, fault: Fault, now: Instant) {
        self.attempts.failed(now, fault.is_lasting());
        self.fault = Some(fault);
    }

    /// What the viewers of this epoch, in which nobody publishes, are to be told.
    pub fn untold(&mut self, epoch: Epoch) -> Option<&'static str> {
        let label = self.fault.as_ref()?.as_str();
        let is_news = self.told.replace((epoch, label)) != Some((epoch, label));
        is_news.then_some(label)
    }

    /// Its publish was refused here. Anybody may cause that: it explains a fault, and is none.
    pub fn is_denied(&mut self, why: &'static str) {
        if self.egress.as_ref().is_some_and(|egress| egress.heard.is_none()) || self.is_busy {
            self.denied = Some(why);
        }
    }

    /// It is published to another node.
    pub fn is_heard_elsewhere(&mut self, now: Instant) {
        if let Some(egress) = &mut self.egress {
            let first = egress.heard.map_or(now, |(first, _)| first);
            egress.heard = Some((first, now));
        }
    }

    /// Stopped by this node, or it could not be: it does not count any more.
    pub fn forget_egress(&mut self, id: &str) {
        self.egress.take_if(|egress| egress.id == id);
        self.must_stop = false;
        self.stopped.push_back(id.to_owned());
        if self.stopped.len() > MAX_STOPPED {
            self.stopped.pop_front();
        }
    }

    pub fn stopped(&self) -> Vec<String> {
        self.stopped.iter().cloned().collect()
    }
}

/// Which of several egresses of a room stays: that which has been active longest; all nodes come to the same. None while
/// none is active: then it is not known yet.
pub fn first_of(egresses: &[EgressInfo]) -> Option<&EgressInfo> {
    let active = egresses.iter().filter(|one| one.status() == EgressStatus::Active && one.started_at > 0);
    active.min_by_key(|one| (one.started_at, one.egress_id.clone()))
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use serde_json::json;

    use super::*;
    use crate::actors::egress_controller::policy::{GIVEN_UP_PAUSE, MAX_FAILURES, MOST_PAUSE};

    fn info(id: &str, status: &str, started_at: u64) -> EgressInfo {
        serde_json::from_value(json!({"egress_id": id, "status": status, "started_at": started_at.to_string()}))
            .unwrap()
    }

    fn at(begun: Instant, seconds: u64) -> Instant {
        begun + Duration::from_secs(seconds)
    }

    fn room(now: Instant) -> Room {
        let mut room = Room::default();
        assert!(room.begins("RM_1", now));
        room
    }

    #[test]
    fn a_room_made_again_under_its_name_is_another_one() {
        let now = Instant::now();
        let mut room = room(now);
        room.runs(&info("EG_1", "EGRESS_ACTIVE", 1), now);
        assert!(!room.begins("RM_1", now), "it is known");
        assert!(room.begins("RM_2", now));
        assert!(room.egress.is_none(), "that was the other room's");
        assert!(!room.ends("RM_1", now), "a late word on the first is not the second's end");
        assert_eq!(room.sid.as_deref(), Some("RM_2"));
        assert!(room.ends("RM_2", now));
        assert!(room.ending.is_some() && !room.is_forgettable());
        assert!(room.begins("RM_3", now), "while the session of the second may still be ending");
        assert!(room.ending.is_some());
    }

    #[test]
    fn an_egress_that_never_publishes_is_stopped_and_one_that_did_has_more_time() {
        let now = Instant::now();
        for (heard_s, limit_s) in [(None, 20), (Some(10), 50)] {
            let mut room = room(now);
            room.runs(&info("EG_1", "EGRESS_ACTIVE", 1), now);
            if let Some(heard_s) = heard_s {
                assert_eq!(room.next(true, true, at(now, heard_s)), None);
            }
            assert_eq!(room.next(true, false, at(now, limit_s - 1)), None);
            let stop = Step::Stop { id: "EG_1".into(), fault: Some(Fault::Silent) };
            assert_eq!(room.next(true, false, at(now, limit_s)), Some(stop));
        }
        let mut stuck = room(now);
        stuck.runs(&info("EG_1", "EGRESS_STARTING", 0), now);
        let stop = Step::Stop { id: "EG_1".into(), fault: Some(Fault::Stuck) };
        assert_eq!(stuck.next(true, false, at(now, 60)), Some(stop));
    }

    #[test]
    fn an_egress_that_had_nobody_to_hear_is_started_for_the_first_microphone() {
        let now = Instant::now();
        let mut room = room(now);
        room.runs(&info("EG_1", "EGRESS_ACTIVE", 1), now);
        room.is_over("EG_1", Some(&info("EG_1", "EGRESS_COMPLETE", 1)));
        assert_eq!(room.next(true, false, now), None, "nobody is there");
        room.microphone("TR_1", "anna", now);
        assert_eq!(room.next(true, false, now), Some(Step::Start));
        assert!(room.is_forced(now), "nobody has stopped it");
        room.runs(&info("EG_2", "EGRESS_ACTIVE", 1), now);
        assert!(!room.is_forced(now));
        for n in 0..MAX_FAILURES {
            room.is_over("EG_2", Some(&info("EG_2", "EGRESS_ABORTED", 1)));
            room.has_failed(Fault::Failed("Start signal not received".into()), at(now, u64::from(n)));
        }
        assert_eq!(room.next(true, false, at(now, 70)), None, "given up");
        room.microphone("TR_2", "boris", now);
        assert_eq!(room.next(true, false, at(now, 70)), Some(Step::Start));
    }

    #[test]
    fn a_refused_publish_explains_the_silence() {
        let now = Instant::now();
        let mut room = room(now);
        room.is_denied("key_wrong");
        room.runs(&info("EG_1", "EGRESS_ACTIVE", 1), now);
        assert_eq!(room.denied, None, "somebody else tried before it was there");
        room.is_denied("key_wrong");
        let failed = room.is_over("EG_1", Some(&info("EG_1", "EGRESS_FAILED", 1))).unwrap();
        room.has_failed(failed.clone(), now);
        assert_eq!(failed.as_str(), "publish_refused");
        assert!(failed.to_string().contains("RTMP_PUBLISH_KEY"));
        assert_eq!(room.next(true, false, now), None, "not at once");
        assert_eq!(room.next(true, false, at(now, 2)), Some(Step::Start));
    }

    #[test]
    fn failures_make_it_rarer_until_it_is_given_up_and_calm_forgives() {
        let now = Instant::now();
        let mut room = room(now);
        let mut pauses = Vec::new();
        for n in 0..MAX_FAILURES + 2 {
            let before = at(now, u64::from(n) * 1000);
            room.has_failed(Fault::Failed(String::new()), before);
            pauses.push(room.attempts.next.unwrap() - before);
        }
        assert!(pauses.is_sorted() && pauses[0] <= Duration::from_secs(2), "{pauses:?}");
        assert_eq!(pauses.last(), Some(&GIVEN_UP_PAUSE));
        assert!(room.attempts.is_given_up());
        let mut denied = room_with_fault(now, Fault::Api(ApiError::Denied(String::new())));
        assert!(denied.attempts.next.unwrap() - now >= MOST_PAUSE, "somebody has to see to it first");
        denied.runs(&info("EG_1", "EGRESS_ACTIVE", 1), now);
        denied.next(true, true, now);
        denied.next(true, true, at(now, 60));
        assert_eq!((denied.attempts.failures(), &denied.fault), (0, &None));
    }

    fn room_with_fault(now: Instant, fault: Fault) -> Room {
        let mut room = room(now);
        room.has_failed(fault.clone(), now);
        let epoch = Epoch::from_u128(1);
        assert_eq!(room.untold(epoch), Some(fault.as_str()));
        room.has_failed(fault.clone(), now);
        assert_eq!(room.untold(epoch), None, "viewers know");
        assert_eq!(room.untold(Epoch::from_u128(2)), Some(fault.as_str()), "those of another epoch do not");
        room
    }

    #[test]
    fn the_one_that_was_active_first_stays_whoever_looks() {
        let (a, b) = (info("EG_a", "EGRESS_ACTIVE", 6), info("EG_b", "EGRESS_ACTIVE", 5));
        let starting = info("EG_0", "EGRESS_STARTING", 0);
        assert_eq!(first_of(&[a.clone(), b.clone(), starting.clone()]).unwrap().egress_id, "EG_b");
        assert_eq!(first_of(&[info("EG_c", "EGRESS_ACTIVE", 5), b]).unwrap().egress_id, "EG_b");
        assert_eq!(first_of(&[starting]), None, "nobody knows yet which will be first");
    }

    #[test]
    fn what_was_stopped_on_request_stays_stopped_unless_two_nodes_have_stopped_each_others() {
        let now = Instant::now();
        let mut room = room(now);
        room.microphone("TR_1", "anna", now);
        room.runs(&info("EG_1", "EGRESS_ACTIVE", 1), now);
        assert_eq!(room.is_over("EG_1", Some(&info("EG_1", "EGRESS_COMPLETE", 1))), None);
        assert!(!room.is_forced(now));
        room.has_settled(now);
        assert!(room.is_forced(now) && !room.is_forced(at(now, 31)));
        room.refuse();
        room.runs(&info("EG_2", "EGRESS_ACTIVE", 1), now);
        assert_eq!(room.next(false, false, now), None, "somebody else has started it since");
        assert!(!room.is_refused);
        room.forget_egress("EG_2");
        room.is_busy = true;
        room.refuse();
        room.is_busy = false;
        room.runs(&info("EG_3", "EGRESS_STARTING", 0), now);
        let stop = Step::Stop { id: "EG_3".into(), fault: None };
        assert_eq!(room.next(false, false, now), Some(stop), "it was on its way");
        assert!(room.is_refused);
    }
}
