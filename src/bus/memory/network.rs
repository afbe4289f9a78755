//! What is between a client and the server, and how it fails.

use std::collections::VecDeque;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::watch;

use crate::bus::log_server::Link;

/// Longest wait for an answer of the server.
pub const ANSWER: Duration = Duration::from_secs(2);

/// The kinds of calls that faults tell apart.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Call {
    Append,
    Hold,
    Ask,
    Other,
}

/// The way of one call to the server and of its answer back; None: it is lost there.
///
/// An answer that takes longer than two seconds comes too late for whoever has asked. The call is carried out all the
/// same, whenever it arrives.
#[derive(Debug, Clone, Copy)]
pub struct Journey {
    pub there: Option<Duration>,
    pub back: Option<Duration>,
}

impl Default for Journey {
    fn default() -> Self {
        Self { there: Some(Duration::ZERO), back: Some(Duration::ZERO) }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Condition {
    Up,
    /// Everything is on its way for as long as this lasts.
    Stalled,
    Cut,
}

type Fate = Box<dyn FnMut(Call) -> Journey + Send>;

/// One client's way to the server.
pub struct Wire {
    condition: watch::Sender<Condition>,
    is_frozen: watch::Sender<bool>,
    pub link: watch::Sender<Link>,
    /// Of the next appends.
    appends: Mutex<VecDeque<Journey>>,
    fate: Mutex<Option<Fate>>,
}

impl Wire {
    pub fn new() -> Self {
        Self {
            condition: watch::Sender::new(Condition::Up),
            is_frozen: watch::Sender::new(false),
            link: watch::Sender::new(Link::Up),
            appends: Mutex::default(),
            fate: Mutex::default(),
        }
    }

    pub fn cut(&self) {
        self.condition.send_replace(Condition::Cut);
        self.link.send_replace(Link::Away("the connection is cut".to_owned()));
    }

    pub fn stall(&self) {
        self.condition.send_replace(Condition::Stalled);
    }

    pub fn mend(&self) {
        self.condition.send_replace(Condition::Up);
        self.link.send_replace(Link::Up);
    }

    pub fn freeze(&self, is_frozen: bool) {
        self.is_frozen.send_replace(is_frozen);
    }

    pub fn next_appends(&self, count: usize, journey: Journey) {
        self.appends.lock().extend(std::iter::repeat_n(journey, count));
    }

    pub fn set_fate(&self, fate: Fate) {
        *self.fate.lock() = Some(fate);
    }

    pub fn journey(&self, call: Call) -> Journey {
        let planned = if call == Call::Append { self.appends.lock().pop_front() } else { None };
        planned.unwrap_or_else(|| self.fate.lock().as_mut().map_or_else(Journey::default, |fate| fate(call)))
    }

    pub fn is_up(&self) -> bool {
        *self.condition.borrow() == Condition::Up
    }

    pub fn is_cut(&self) -> bool {
        *self.condition.borrow() == Condition::Cut
    }

    /// One way; false: what was on it is lost.
    pub async fn pass(&self, time: Option<Duration>) -> bool {
        let Some(time) = time else { return false };
        if !time.is_zero() {
            tokio::time::sleep(time).await;
        }
        self.wait_for(|condition| condition != Condition::Stalled).await;
        !self.is_cut()
    }

    pub async fn until_up(&self) {
        self.wait_for(|condition| condition == Condition::Up).await;
    }

    pub async fn until_cut(&self) {
        self.wait_for(|condition| condition == Condition::Cut).await;
    }

    async fn wait_for(&self, is_so: impl Fn(Condition) -> bool) {
        let mut condition = self.condition.subscribe();
        condition.wait_for(|condition| is_so(*condition)).await.expect("the sender is ours");
    }

    pub async fn until_thawed(&self) {
        self.is_frozen.subscribe().wait_for(|is_frozen| !is_frozen).await.expect("the sender is ours");
    }
}
