//! Since when the log server has been away.

use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::watch;
use tokio::time::Instant;

use super::log_server::Link;

/// The state of the link, and since when there has been none.
pub struct LinkClock {
    link: watch::Receiver<Link>,
    away_since: Mutex<Option<Instant>>,
}

impl LinkClock {
    /// `changed` hears of the first state and of each later one. Within a runtime.
    pub fn start(link: watch::Receiver<Link>, changed: impl Fn(&Link) + Send + 'static) -> Arc<Self> {
        let clock = Arc::new(Self { link: link.clone(), away_since: Mutex::new(Some(Instant::now())) });
        let weak = Arc::downgrade(&clock);
        let mut link = link;
        link.mark_changed();
        tokio::spawn(async move {
            while link.changed().await.is_ok() {
                let Some(clock) = weak.upgrade() else { return };
                let state = link.borrow_and_update().clone();
                clock.note(&state);
                changed(&state);
            }
        });
        clock
    }

    fn note(&self, state: &Link) {
        let mut since = self.away_since.lock();
        match state {
            Link::Up => *since = None,
            Link::Connecting | Link::Away(_) => drop(since.get_or_insert_with(Instant::now)),
        }
    }

    pub fn state(&self) -> Link {
        self.link.borrow().clone()
    }

    /// None: it is there.
    pub fn away_for(&self) -> Option<Duration> {
        let since = *self.away_since.lock();
        since.filter(|_| !self.link.borrow().is_up()).map(|since| since.elapsed())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn the_time_without_a_link_counts_from_its_loss() {
        let (link, state) = watch::channel(Link::Connecting);
        let seen = Arc::new(Mutex::new(Vec::new()));
        let noted = seen.clone();
        let clock = LinkClock::start(state, move |link| noted.lock().push(link.as_str()));
        let pass = async |seconds| tokio::time::sleep(Duration::from_secs(seconds)).await;
        pass(3).await;
        assert_eq!(clock.away_for(), Some(Duration::from_secs(3)));
        link.send_replace(Link::Up);
        pass(1).await;
        assert_eq!(clock.away_for(), None);
        link.send_replace(Link::Away("cut".into()));
        pass(2).await;
        link.send_replace(Link::Away("refused".into()));
        pass(2).await;
        assert_eq!(clock.away_for(), Some(Duration::from_secs(4)));
        assert_eq!(*seen.lock(), ["connecting", "up", "away", "away"]);
    }
}
