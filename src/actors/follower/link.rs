//! Tells viewers when the log server is away: they stay, and what is said meanwhile comes later.

use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use super::{SWEEP, Shared};
use crate::bus::log_server::Link;
use crate::transcript::{Status, TranscriptLog};

/// Away for so long, it is told.
const TELL_AFTER: Duration = Duration::from_secs(1);
/// `reason` of that status, and of the one after it.
const BUS_AWAY: &str = "bus_away";
const BUS_BACK: &str = "bus_back";

pub(super) async fn tell_viewers(shared: Rc<Shared>) {
    let mut link = shared.params.server.link();
    loop {
        // One that an earlier life of this actor has told of.
        mirrors(&shared).for_each(|log| log.take_back_notice(BUS_BACK));
        let Ok(_) = link.wait_for(|link| !link.is_up()).await else { return };
        if tokio::time::timeout(TELL_AFTER, link.wait_for(Link::is_up)).await.is_ok() {
            continue;
        }
        loop {
            mirrors(&shared).for_each(|log| log.notice(Status::Degraded, BUS_AWAY));
            if tokio::time::timeout(SWEEP, link.wait_for(Link::is_up)).await.is_ok() {
                break;
            }
        }
    }
}

/// Logs of other nodes that go on.
fn mirrors(shared: &Shared) -> impl Iterator<Item = Arc<TranscriptLog>> {
    let logs = shared.params.directory.rooms().into_iter().filter_map(|room| room.current());
    logs.filter(|log| log.is_mirror() && !log.is_closed())
}
