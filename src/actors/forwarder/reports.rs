//! Brings back from a ws node who speaks and who watches there.

use std::collections::HashMap;
use std::rc::Rc;
use std::time::Duration;

use tokio::time::Instant;

use super::Shared;
use crate::actors::supervision::backoff;
use crate::bus::wire::{NodeReports, Report, Reports};
use crate::transcript::{SpeakerSource, SpeakerUpdate};

const PAUSE_FIRST: Duration = Duration::from_millis(200);
const PAUSE_MOST: Duration = Duration::from_secs(10);
/// A node that has said nothing for so long has no viewers any more.
const SILENT_NODE: Duration = Duration::from_secs(30);
/// A report of an age beyond it labels nothing any more.
const MAX_AGE: Duration = Duration::from_secs(15 * 60);

/// Polls the target as long as the forwarder lives; each poll waits there for news.
pub(super) async fn poll(shared: Rc<Shared>) {
    let (mut after, mut failures) = (0, 0);
    let mut heard: HashMap<String, Instant> = HashMap::new();
    loop {
        match shared.bus.reports(after).await {
            Ok(NodeReports { node, reports }) => {
                failures = 0;
                shared.target.is_up(&shared.params.metrics);
                after = reports.next;
                take(&shared, &node, reports);
                heard.insert(node, Instant::now());
                for (silent, _) in heard.extract_if(|_, at| at.elapsed() > SILENT_NODE) {
                    nobody_watches(&shared, &silent);
                }
            }
            Err(outcome) => {
                shared.target.failed_by(&outcome, &shared.params.metrics);
                for (node, _) in heard.drain() {
                    nobody_watches(&shared, &node);
                }
                tokio::time::sleep(backoff(PAUSE_FIRST, PAUSE_MOST, failures)).await;
                failures += 1;
            }
        }
    }
}

fn nobody_watches(shared: &Shared, node: &str) {
    for room in shared.params.directory.rooms() {
        room.set_viewers_elsewhere(node, 0);
    }
}

fn take(shared: &Shared, node: &str, reports: Reports) {
    let directory = &shared.params.directory;
    for room in directory.rooms() {
        let viewers = reports.viewers.get(room.slug()).copied().unwrap_or(0);
        room.set_viewers_elsewhere(node, viewers);
    }
    let now = Instant::now();
    for Report { session, identity, name, active, level, age_ms, viewer, is_track } in reports.reports {
        let at = now.checked_sub(Duration::from_millis(age_ms).min(MAX_AGE)).unwrap_or(now);
        if let Some(room) = directory.get(&session) {
            let source = if is_track { SpeakerSource::Track } else { SpeakerSource::Viewer(viewer) };
            room.report_speaker(SpeakerUpdate { identity, name, active, level, at, source });
        }
    }
}
