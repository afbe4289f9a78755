//! Reports of viewers on their way to the nodes that number the logs: a ring of the newest, which those nodes poll.

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::Notify;
use tokio::time::Instant;

use super::wire::{Report, Reports};
use crate::transcript::{Slug, SpeakerSource, SpeakerUpdate};

/// Reports kept: seconds of a thousand viewers that report twice a second.
const MAX_REPORTS: usize = 8192;
/// A report that nobody has fetched for so long would label nothing any more.
const LIFETIME: Duration = Duration::from_secs(60);

/// The newest reports of viewers of rooms that another node numbers.
#[derive(Default)]
pub struct ReportRing {
    state: Mutex<State>,
    news: Notify,
}

struct State {
    /// Number of the last report; numbers begin with 1, and 0 is a poller's before its first answer.
    last: u64,
    /// The newest, each with the number after the one before it.
    reports: VecDeque<(Slug, SpeakerUpdate)>,
}

impl Default for State {
    fn default() -> Self {
        Self { last: 1, reports: VecDeque::new() }
    }
}

impl ReportRing {
    pub fn push(&self, slug: &Slug, update: &SpeakerUpdate) {
        let mut state = self.state.lock();
        state.last += 1;
        state.reports.push_back((slug.clone(), update.clone()));
        let is_old = |front: &(Slug, SpeakerUpdate)| front.1.at.elapsed() > LIFETIME;
        while state.reports.len() > MAX_REPORTS || state.reports.front().is_some_and(is_old) {
            state.reports.pop_front();
        }
        drop(state);
        self.news.notify_waiters();
    }

    /// Number of the last report.
    pub fn last(&self) -> u64 {
        self.state.lock().last
    }

    /// Waits until there is a report after this one.
    pub async fn wait_after(&self, after: u64) {
        loop {
            let news = self.news.notified();
            tokio::pin!(news);
            news.as_mut().enable();
            if self.state.lock().last != after {
                return;
            }
            news.await;
        }
    }

    /// The reports after this one. A number that was never given is of an earlier process: then all of them.
    pub fn after(&self, after: u64, viewers: BTreeMap<Slug, usize>) -> Reports {
        let now = Instant::now();
        let state = self.state.lock();
        let missed = if after > state.last { u64::MAX } else { state.last - after };
        let skip = state.reports.len() - missed.min(state.reports.len() as u64) as usize;
        let report = |(slug, update): &(Slug, SpeakerUpdate)| {
            let viewer = match &update.source {
                SpeakerSource::Viewer(viewer) => viewer,
                SpeakerSource::Track => &update.identity,
                SpeakerSource::Observer => return None,
            };
            Some(Report {
                session: slug.clone(),
                identity: update.identity.clone(),
                name: update.name.clone(),
                active: update.active,
                level: update.level,
                age_ms: now.saturating_duration_since(update.at).as_millis() as u64,
                viewer: viewer.clone(),
                is_track: update.source == SpeakerSource::Track,
            })
        };
        let reports = state.reports.iter().skip(skip).filter_map(report).collect();
        Reports { next: state.last, reports, viewers }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn report(identity: &str) -> SpeakerUpdate {
        let source = SpeakerSource::Viewer(identity.to_owned());
        SpeakerUpdate {
            identity: identity.to_owned(),
            name: None,
            active: true,
            level: 0.5,
            at: Instant::now(),
            source,
        }
    }

    fn identities(reports: &Reports) -> Vec<&str> {
        reports.reports.iter().map(|report| report.identity.as_str()).collect()
    }

    #[tokio::test(start_paused = true)]
    async fn each_poll_gets_what_came_after_the_last_one() {
        let ring = ReportRing::default();
        let slug = Slug::parse("demo").unwrap();
        ring.push(&slug, &report("anna"));
        ring.wait_after(0).await;
        let first = ring.after(0, BTreeMap::new());
        assert_eq!((identities(&first), first.next), (vec!["anna"], 2));
        tokio::time::advance(Duration::from_millis(700)).await;
        ring.push(&slug, &report("bob"));
        let second = ring.after(first.next, BTreeMap::new());
        assert_eq!((identities(&second), second.reports[0].age_ms), (vec!["bob"], 0));
        assert_eq!(ring.after(0, BTreeMap::new()).reports[0].age_ms, 700);
        assert_eq!(identities(&ring.after(99, BTreeMap::new())).len(), 2, "this process is younger than the poller");
    }

    #[tokio::test(start_paused = true)]
    async fn old_reports_and_too_many_are_forgotten() {
        let ring = ReportRing::default();
        let slug = Slug::parse("demo").unwrap();
        ring.push(&slug, &report("anna"));
        tokio::time::advance(LIFETIME * 2).await;
        (0..MAX_REPORTS + 5).for_each(|_| ring.push(&slug, &report("bob")));
        assert_eq!(ring.after(0, BTreeMap::new()).reports.len(), MAX_REPORTS);
    }
}
