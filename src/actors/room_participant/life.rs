//! The participant's life over all its connections: when it joins, and when it comes again.

use std::rc::Rc;
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::Instant;

use super::link::{Fault, Link};
use super::{Phase, Shared};
use crate::livekit::api::ApiError;
use crate::livekit::signal::{Departure, End};
use crate::livekit::signal_client::ConnectError;

/// Pauses between attempts: each twice the one before.
const BACKOFF_FIRST: Duration = Duration::from_millis(500);
const BACKOFF_MOST: Duration = Duration::from_secs(30);
/// A token that was refused is not taken a moment later.
const REFUSED_PAUSE: Duration = Duration::from_secs(30);
/// Whoever has our identity would be sent out by us, and we by them.
const DISPLACED_PAUSE: Duration = Duration::from_secs(30);
/// An operator who has sent us out means it.
const REMOVED_PAUSE: Duration = Duration::from_secs(300);
/// A connection that has lived for so long was a good one.
const GOOD: Duration = Duration::from_secs(60);
/// Longest wait for the last captions.
const LAST_CAPTIONS: Duration = Duration::from_secs(3);

/// The one loop of the actor.
pub(super) struct Life {
    pub(super) shared: Rc<Shared>,
    pub(super) closing: watch::Receiver<bool>,
}

impl Life {
    /// Runs until the session is over.
    pub(super) async fn run(mut self) {
        let (mut closing, shared) = (self.closing.clone(), self.shared.clone());
        let stays = async {
            let mut failures = 0;
            loop {
                if self.await_room().await.is_err() {
                    return;
                }
                let joined_at = Instant::now();
                let Some(fault) = self.stay().await else { return };
                failures = if joined_at.elapsed() >= GOOD { 0 } else { failures + 1 };
                let delay = self.shared.failed(&fault, self.pause_after(&fault, failures));
                tokio::time::sleep(delay).await;
            }
        };
        // While it is in a room it sees the end by itself, and says goodbye.
        tokio::select! {
            () = stays => {}
            () = closed_outside(&mut closing, &shared) => {}
        }
    }

    /// A room is never made by our joining it.
    async fn await_room(&mut self) -> Result<(), ()> {
        let api = self.shared.api();
        let room = self.shared.core.slug.as_str().to_owned();
        let mut errors = 0;
        loop {
            self.shared.enter(Phase::WaitingForRoom);
            let pause = match api.list_rooms(&[&room]).await {
                Ok(rooms) if !rooms.is_empty() => return Ok(()),
                Ok(_) | Err(ApiError::NotFound(_)) => self.shared.timing.look_for_room,
                Err(error) => {
                    errors += 1;
                    self.shared.api_failed(&error);
                    backoff(errors)
                }
            };
            tokio::time::sleep(pause).await;
            if *self.closing.borrow() {
                return Err(());
            }
        }
    }

    /// Is in the room until something ends it; None when the session is over.
    async fn stay(&mut self) -> Option<Fault> {
        let mut link = match self.join().await {
            Ok(link) => link,
            Err(fault) => return Some(fault),
        };
        loop {
            let rotate_at = link.rotate_at();
            tokio::select! {
                fault = link.run() => return Some(fault),
                () = closed(&mut self.closing) => {
                    last_captions(&mut link).await;
                    link.leave().await;
                    return None;
                }
                () = at(rotate_at) => {}
            }
            if link.rotate_at().is_none_or(|at| at > Instant::now()) {
                continue;
            }
            // The next one is there before this one goes: who speaks is known without a gap.
            let joined = tokio::select! {
                joined = self.join() => joined,
                fault = link.run() => return Some(fault),
            };
            match joined {
                Ok(next) => std::mem::replace(&mut link, next).leave().await,
                Err(fault) => return Some(fault),
            }
        }
    }

    fn pause_after(&self, fault: &Fault, failures: u32) -> Duration {
        match is_room_gone(fault) {
            true => self.shared.timing.look_for_room,
            false => pause_after(fault, failures),
        }
    }

    async fn join(&self) -> Result<Link, Fault> {
        let shared = &self.shared;
        shared.enter(Phase::Joining);
        let joined = Link::join(shared.clone(), shared.new_identity(), shared.is_udp_due()).await;
        let result = if joined.is_ok() { "joined" } else { "failed" };
        shared.core.metrics.livekit_joins_total.with_label_values(&[result]).inc();
        let link = joined?;
        shared.joined(&link.identity);
        Ok(link)
    }
}

async fn last_captions(link: &mut Link) {
    let sent = async {
        while !link.is_done() {
            if link.step().await.is_err() {
                return;
            }
        }
    };
    let _ = tokio::time::timeout(LAST_CAPTIONS, sent).await;
}

async fn closed(closing: &mut watch::Receiver<bool>) {
    // A sender that is gone is an actor that is gone.
    let _ = closing.wait_for(|is_closing| *is_closing).await;
}

/// The end while it is in no room.
async fn closed_outside(closing: &mut watch::Receiver<bool>, shared: &Shared) {
    closed(closing).await;
    if shared.is_in_room() {
        std::future::pending::<()>().await;
    }
}

async fn at(moment: Option<Instant>) {
    match moment {
        Some(moment) => tokio::time::sleep_until(moment).await,
        None => std::future::pending().await,
    }
}

/// There is nobody any more.
pub(super) fn is_room_gone(fault: &Fault) -> bool {
    matches!(fault, Fault::NotConnected(ConnectError::NoRoom) | Fault::Ended(End::Left(Departure::RoomGone)))
}

fn backoff(failures: u32) -> Duration {
    let most = BACKOFF_FIRST.saturating_mul(1 << failures.saturating_sub(1).min(16)).min(BACKOFF_MOST);
    // Rooms that a server's restart has ended at the same moment do not come back at the same moment.
    most.mul_f64(rand::random_range(0.5..1.0))
}

fn pause_after(fault: &Fault, failures: u32) -> Duration {
    match fault {
        Fault::NotConnected(ConnectError::Refused { status: 401 | 403, .. }) => REFUSED_PAUSE,
        Fault::Ended(End::Left(Departure::Displaced)) => DISPLACED_PAUSE,
        Fault::Ended(End::Left(Departure::Removed)) => REMOVED_PAUSE,
        _ => backoff(failures),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_grow_and_a_fight_for_an_identity_is_not_taken_up() {
        let closed = |failures| pause_after(&Fault::Closed, failures);
        assert!(closed(1) <= BACKOFF_FIRST && closed(40) <= BACKOFF_MOST && closed(40) >= BACKOFF_MOST / 2);
        let left = |departure| pause_after(&Fault::Ended(End::Left(departure)), 1);
        assert!(left(Departure::Again) <= BACKOFF_FIRST, "as the server wants it");
        assert_eq!([left(Departure::Displaced), left(Departure::Removed)], [DISPLACED_PAUSE, REMOVED_PAUSE]);
        let refused = |status| Fault::NotConnected(ConnectError::Refused { status, reason: String::new() });
        assert_eq!(pause_after(&refused(401), 1), REFUSED_PAUSE);
        assert!(pause_after(&refused(500), 1) <= BACKOFF_FIRST);
    }
}
