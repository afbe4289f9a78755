//! Where webhooks wait for whoever acts on them: each once, and no more than can be waited for.

use std::collections::{HashSet, VecDeque};
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use tokio::sync::mpsc;

use super::webhook::WebhookEvent;

/// Events that wait. A server that is told that there are more tries again.
const CAPACITY: usize = 1000;
/// An event is known for so long: a token is good for five minutes, and a clock may be a minute off.
const KNOWN_FOR: Duration = Duration::from_secs(8 * 60);
/// Ids that are known at a time.
const MAX_KNOWN: usize = 20_000;
/// Between two log lines about webhooks that were refused.
const COMPLAINT_INTERVAL: Duration = Duration::from_secs(60);

/// What has become of an event.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Posted {
    Taken,
    /// It was sent before.
    Duplicate,
    /// Too many wait; this one may be sent again.
    Full,
}

impl Posted {
    /// The label in metrics.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Taken => "taken",
            Self::Duplicate => "duplicate",
            Self::Full => "full",
        }
    }
}

/// See the module. Shared by the threads that take webhooks.
pub struct Inbox {
    known: Mutex<Known>,
    sender: mpsc::Sender<WebhookEvent>,
    complaints: Mutex<Complaints>,
}

#[derive(Default)]
struct Known {
    ids: HashSet<String>,
    by_age: VecDeque<(Instant, String)>,
}

#[derive(Default)]
struct Complaints {
    last: Option<Instant>,
    suppressed: u64,
}

impl Inbox {
    /// The inbox, and its other end.
    pub fn new() -> (Self, mpsc::Receiver<WebhookEvent>) {
        let (sender, receiver) = mpsc::channel(CAPACITY);
        (Self { known: Mutex::default(), sender, complaints: Mutex::default() }, receiver)
    }

    pub fn post(&self, event: WebhookEvent, now: Instant) -> Posted {
        let mut known = self.known.lock();
        known.forget(now);
        if known.ids.contains(&event.id) {
            return Posted::Duplicate;
        }
        let id = event.id.clone();
        if self.sender.try_send(event).is_err() {
            return Posted::Full;
        }
        known.by_age.push_back((now, id.clone()));
        known.ids.insert(id);
        Posted::Taken
    }

    /// None: a line about a refusal was logged a moment ago. Else how many were not.
    pub fn may_complain(&self, now: Instant) -> Option<u64> {
        let mut complaints = self.complaints.lock();
        if complaints.last.is_some_and(|last| now.saturating_duration_since(last) < COMPLAINT_INTERVAL) {
            complaints.suppressed += 1;
            return None;
        }
        complaints.last = Some(now);
        Some(std::mem::take(&mut complaints.suppressed))
    }
}

impl Known {
    fn forget(&mut self, now: Instant) {
        while let Some((at, _)) = self.by_age.front() {
            let is_old = now.saturating_duration_since(*at) > KNOWN_FOR;
            if !is_old && self.by_age.len() < MAX_KNOWN {
                break;
            }
            if let Some((_, id)) = self.by_age.pop_front() {
                self.ids.remove(&id);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::livekit::webhook::EventKind;

    fn event(id: &str) -> WebhookEvent {
        let id = id.to_owned();
        WebhookEvent { kind: EventKind::Other, id, room: None, participant: None, track: None, egress: None }
    }

    #[test]
    fn an_event_is_taken_once_and_one_that_found_no_room_may_come_again() {
        let (inbox, mut events) = Inbox::new();
        let now = Instant::now();
        assert_eq!(inbox.post(event("a"), now), Posted::Taken);
        assert_eq!(inbox.post(event("a"), now + KNOWN_FOR), Posted::Duplicate);
        assert_eq!(inbox.post(event("a"), now + KNOWN_FOR * 2), Posted::Taken, "nobody can send that again any more");
        for n in 2..CAPACITY {
            assert_eq!(inbox.post(event(&n.to_string()), now), Posted::Taken);
        }
        assert_eq!(inbox.post(event("b"), now), Posted::Full);
        events.try_recv().unwrap();
        assert_eq!(inbox.post(event("b"), now), Posted::Taken, "it was not known yet");
    }

    #[test]
    fn memory_is_bounded_whatever_is_sent() {
        let (inbox, mut events) = Inbox::new();
        let now = Instant::now();
        for n in 0..MAX_KNOWN + 10 {
            inbox.post(event(&n.to_string()), now);
            events.try_recv().unwrap();
        }
        let known = inbox.known.lock();
        assert!(known.ids.len() <= MAX_KNOWN && known.by_age.len() == known.ids.len());
    }

    #[test]
    fn a_flood_is_one_line_a_minute() {
        let (inbox, _events) = Inbox::new();
        let now = Instant::now();
        assert_eq!(inbox.may_complain(now), Some(0));
        assert_eq!((inbox.may_complain(now), inbox.may_complain(now)), (None, None));
        assert_eq!(inbox.may_complain(now + COMPLAINT_INTERVAL), Some(2));
    }
}
