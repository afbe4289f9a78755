//! Everything that a session owns and its actors borrow.
//!
//! A child that panics costs a mailbox of wake-ups, never data:
//! audio waits in the ledger, tags and recogniser results in edges, published lines in the log.
//!
//! Locks are held for a moment and never over an await. Where two are held at once they are taken in this order:
//! the registry's table, presence, ledger, then the queue of an edge or the state of the log. Decode, numbered, tracker and
//! loudness are taken alone.

pub mod presence;

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use actix::Addr;
use bytes::Bytes;
use chrono::{DateTime, Utc};
use parking_lot::{Mutex, MutexGuard};
use tokio::sync::Notify;
use tokio::time::Instant;
use uuid::Uuid;

use self::presence::{Absence, Away, Presence};
use super::edge::Edge;
use super::speaker_tracker::SpeakerTracker;
use crate::audio::DecodeState;
use crate::audio::loudness::Loudness;
use crate::audio::state::{Lost, Return};
use crate::audio::{AudioTag, PcmChunk};
use crate::config::Config;
use crate::gladia::ledger::{FileSpool, Ledger, LedgerImage, Limits, ReplayBudget};
use crate::metrics::Metrics;
use crate::transcript::Origin;
use crate::transcript::checkpoint::Checkpoint;
use crate::transcript::{Entry, Epoch, GapReason, NumberedVoice, Slug, Status, TranscriptEvent, TranscriptLog};

/// Tags between `RtmpConnection` and `FfmpegDecoder`: about 23 s of AAC at 44.1 kHz. Past it, TCP pushes back.
pub const TAG_CAPACITY: usize = 1000;
/// A process lives at most so long without writing a checkpoint: it does so each second, when no gap is on its way into
/// the log, and leaves when it hangs.
const UNSEEN_MS: u64 = 60_000;
/// A publisher that has sent no audio for so long is silent.
const SILENT_MS: u64 = 1000;
/// Results between `GladiaBridge` and `TranscriptRoom`.
pub const RESULTS_CAPACITY: usize = 256;

/// The data of one epoch; its actors borrow it.
pub struct SessionCore {
    pub slug: Slug,
    pub epoch: Epoch,
    pub origin: Origin,
    pub started_at: DateTime<Utc>,
    /// Zero of the session clock: `startMs` and `endMs` count from here.
    pub started: Instant,
    /// Who publishes; the connection outlives the session actor.
    presence: Mutex<Presence>,
    /// `RtmpConnection` -> `FfmpegDecoder`.
    pub tags: Edge<AudioTag>,
    /// Tags that are not yet out as PCM, and what is known of their time.
    decode: Mutex<DecodeState>,
    /// `FfmpegDecoder` -> `GladiaBridge`: every PCM byte with its offset, until its text is final.
    ledger: Mutex<Ledger>,
    /// How loud the newest audio was, until the tracker asks.
    loudness: Mutex<Loudness>,
    /// Notified after each [`Self::push_pcm`].
    pub pcm_ready: Notify,
    /// `GladiaBridge` -> `TranscriptRoom`.
    pub results: Edge<TranscriptEvent>,
    /// Entries that have a number and are on their way into the outbox, in order: a room that dies there leaves them to
    /// its successor, who gives no number twice.
    numbered: Mutex<VecDeque<Arc<Entry>>>,
    /// Whom the room asks for speakers; None while it restarts.
    tracker: Mutex<Option<Addr<SpeakerTracker>>>,
    /// Somebody has told who speaks: numbers that a recogniser gives to voices are not shown any more.
    names_speakers: AtomicBool,
    /// Number of the last entry that the LiveKit room was shown.
    pub captioned: AtomicU64,
    /// `TranscriptRoom` -> viewers.
    pub log: Arc<TranscriptLog>,
    pub config: Arc<Config>,
    pub metrics: Arc<Metrics>,
}

/// The beginning of a session's log: empty, or where an earlier process or another node has left it.
#[derive(Clone, Default)]
pub struct SessionSeed {
    pub origin: Origin,
    /// None makes a new one.
    pub epoch: Option<Epoch>,
    pub started_at: Option<DateTime<Utc>>,
    pub last_seq: u64,
    /// Ids of its newest entries with their seq: what is said or posted again is known.
    pub known: Vec<(String, u64)>,
    /// The newest of them whole, in order: what a viewer that joins is shown.
    pub recent: Vec<Entry>,
    /// The status before its own next entries tell; None: what the newest say, and if none does, somebody speaks.
    pub status: Option<Status>,
    /// Session clock when the process before was last seen; None for a new epoch.
    pub clock_ms: Option<u64>,
    /// Session clock now, where it is known better than by the time of day: clocks of nodes differ.
    pub age_ms: Option<u64>,
    /// What was heard after `clock_ms` is still coming from another node: that time is its publisher's absence.
    pub is_handed_over: bool,
    /// Ids of an earlier owner may have numbers up to these: of recogniser sessions, and of statuses.
    pub numbered_until: Option<(u32, u64)>,
    /// Somebody was publishing then.
    pub was_publishing: bool,
    /// The body of the last AAC sequence header.
    pub audio_config: Option<Bytes>,
    /// The ledger as it was then.
    pub recogniser: Option<LedgerImage>,
}

/// Viewers read the rest and go on to the next epoch, however the session came to its end.
impl Drop for SessionCore {
    fn drop(&mut self) {
        self.log.close();
    }
}

impl SessionCore {
    /// A new epoch with a replay budget of its own.
    pub fn new(slug: Slug, config: Arc<Config>, metrics: Arc<Metrics>) -> Self {
        let budget = Arc::new(ReplayBudget::new(config.stt.replay_max_bytes));
        Self::begin(slug, SessionSeed::default(), config, metrics, budget)
    }

    /// An epoch that may have a past. `budget` is the process's: `REPLAY_MAX_BYTES` over all sessions.
    pub fn begin(
        slug: Slug,
        beginning: SessionSeed,
        config: Arc<Config>,
        metrics: Arc<Metrics>,
        budget: Arc<ReplayBudget>,
    ) -> Self {
        let viewers = &config.viewers;
        let epoch = beginning.epoch.unwrap_or_else(Uuid::now_v7);
        let started_at = beginning.started_at.unwrap_or_else(Utc::now);
        let left_ms = beginning.clock_ms.map(|clock_ms| unannounced_from(clock_ms, &beginning.recent));
        // A clock that was set back does not turn the session's.
        let reached = Duration::from_millis(left_ms.unwrap_or(0));
        let by_day = (Utc::now() - started_at).to_std().unwrap_or(Duration::ZERO);
        let age = beginning.age_ms.map_or(by_day, Duration::from_millis).max(reached);
        let now = Instant::now();
        let log = TranscriptLog::new(slug.clone(), epoch, beginning.last_seq, viewers.history, viewers.history_bytes);
        let log = if beginning.origin == Origin::Mirror { log.mirror() } else { log };
        for (id, seq) in &beginning.known {
            log.remember(id, *seq);
        }
        log.restore(&beginning.recent);
        let spool = FileSpool::new(config.server.data_dir.join("spool").join(epoch.to_string()));
        let (limits, spool) = (Limits::from(&config.stt), Box::new(spool));
        let mut ledger = match beginning.recogniser {
            Some(image) => Ledger::restore(now, image, limits, spool, budget),
            None => Ledger::new(limits, spool, budget),
        };
        ledger.number_after(beginning.known.iter().map(|(id, _)| id.as_str()));
        if let Some((hearings, statuses)) = beginning.numbered_until {
            ledger.leap_over(hearings, statuses);
        }
        let names_speakers = beginning.recent.iter().any(names_speaker);
        let was_publishing = beginning.was_publishing && beginning.origin == Origin::Ingest;
        let missing_until_ms = |start_ms| (age.as_millis() as u64).clamp(start_ms, start_ms + UNSEEN_MS);
        let restarted = |start_ms| Away {
            missing_until_ms: was_publishing.then(|| missing_until_ms(start_ms)),
            ..Away::since(start_ms, GapReason::ProcessRestart)
        };
        let away = match beginning.is_handed_over {
            true => left_ms.map(|start_ms| Away::since(start_ms, GapReason::PublisherLost)),
            false => left_ms.map(restarted),
        };
        let mut decode = DecodeState::new(config.audio.chunk_ms);
        if let Some(body) = beginning.audio_config {
            decode.assume(body);
        }
        Self {
            slug,
            epoch,
            origin: beginning.origin,
            started_at,
            started: now.checked_sub(age).unwrap_or(now),
            presence: Mutex::new(Presence::resumed(away)),
            tags: Edge::new(TAG_CAPACITY),
            decode: Mutex::new(decode),
            ledger: Mutex::new(ledger),
            loudness: Mutex::default(),
            pcm_ready: Notify::new(),
            results: Edge::new(RESULTS_CAPACITY),
            numbered: Mutex::new(VecDeque::new()),
            tracker: Mutex::new(None),
            names_speakers: AtomicBool::new(names_speakers),
            captioned: AtomicU64::new(beginning.last_seq),
            log: Arc::new(log),
            config,
            metrics,
        }
    }

    /// Tags that are not yet out as PCM, and what is known of their time.
    pub fn decode(&self) -> MutexGuard<'_, DecodeState> {
        self.decode.lock()
    }

    /// Every PCM byte with its offset, until its text is final.
    pub fn ledger(&self) -> MutexGuard<'_, Ledger> {
        self.ledger.lock()
    }

    /// Entries that have a number and are on their way into the outbox.
    pub fn numbered(&self) -> MutexGuard<'_, VecDeque<Arc<Entry>>> {
        self.numbered.lock()
    }

    /// Whom the room asks for speakers; None while it restarts.
    pub fn tracker(&self) -> MutexGuard<'_, Option<Addr<SpeakerTracker>>> {
        self.tracker.lock()
    }

    /// How loud the newest audio was.
    pub fn loudness(&self) -> MutexGuard<'_, Loudness> {
        self.loudness.lock()
    }

    /// Somebody has told who speaks, in this session.
    pub fn names_speakers(&self) -> bool {
        self.names_speakers.load(Ordering::Relaxed)
    }

    pub fn set_names_speakers(&self) {
        self.names_speakers.store(true, Ordering::Relaxed);
    }

    /// Captions in the LiveKit room go on after this entry.
    pub fn captioned_after(&self) -> u64 {
        self.captioned.load(Ordering::Relaxed)
    }

    /// Who publishes, and since when nobody does.
    pub fn presence(&self) -> MutexGuard<'_, Presence> {
        self.presence.lock()
    }

    /// Announces time without a publisher.
    pub fn announce_absence(&self, absence: Absence) {
        self.announce_gap(absence.start_ms, absence.end_ms, absence.reason);
    }

    /// Everything that came to the room is published.
    pub fn is_room_done(&self) -> bool {
        self.results.is_empty() && self.numbered().is_empty()
    }

    /// A gap is on its way into the log. Do not checkpoint meanwhile: it would record the gap as published.
    pub fn has_pending_gap(&self) -> bool {
        self.ledger().holds_gap()
            || self.results.any(|item| matches!(item, TranscriptEvent::Gap { .. }))
            || self.numbered().iter().any(|entry| matches!(**entry, Entry::Gap(_)))
    }

    /// Says that there is no text for this time.
    pub fn announce_gap(&self, start_ms: u64, end_ms: u64, reason: GapReason) {
        self.results.push_unbounded(TranscriptEvent::gap(start_ms, end_ms, reason));
    }

    /// Says, where the words would have been, that this audio will have none: nobody has decoded it.
    pub fn announce_undecoded(&self, lost: Lost) {
        let mut ledger = self.ledger();
        ledger.lose_undecoded(lost.end_ms.saturating_sub(lost.start_ms));
        ledger.report(&self.metrics);
        drop(ledger);
        self.announce_gap(lost.start_ms, lost.end_ms, GapReason::DecodeError);
    }

    /// Adds a status line to the log, unless another node writes it.
    pub fn announce_status(&self, status: Status, reason: &str) {
        if self.origin != Origin::Mirror {
            self.results.push_unbounded(TranscriptEvent::status(status, reason));
        }
    }

    /// A publisher goes on where another was lost. What was missing between them is exactly known: the time without
    /// anybody is no gap of its own.
    pub fn publisher_returned(&self, returned: Return) {
        if self.presence().goes_on() {
            tracing::debug!(session = %self.slug, missing = ?returned.missing, "the publisher goes on where it was lost");
        }
        if let Some(missing) = returned.missing {
            self.announce_gap(missing.start_ms, missing.end_ms, GapReason::PublisherLost);
        }
    }

    /// Since when the publisher that came at `since_ms` has been silent, if it is.
    pub fn silent_since_ms(&self, since_ms: u64) -> Option<u64> {
        let now = self.clock_ms();
        let sent = self.tags.last_push().map(|at| at.saturating_duration_since(self.started).as_millis() as u64);
        // What came in a burst fills the time after it.
        let last_ms = sent.unwrap_or(0).max(self.ledger().end_clock_ms()).max(since_ms);
        // One that nobody reads is not silent.
        let is_read = self.tags.len() < self.tags.capacity();
        (is_read && last_ms + SILENT_MS <= now).then_some(last_ms)
    }

    /// If the process dies now, something is missing from [`Self::heard_until_ms`] on.
    pub fn is_publishing(&self) -> bool {
        self.presence().is_publishing()
    }

    /// Start of the gap that a successor process announces: the end of decoded audio.
    pub fn heard_until_ms(&self) -> u64 {
        let away = self.presence().away();
        match away {
            Some(away) => away.start_ms,
            // Tags that wait for a decoder die with the process.
            None if self.origin == Origin::Ingest => self.ledger().end_clock_ms(),
            None => self.clock_ms(),
        }
    }

    /// The session as the next process needs it.
    pub fn checkpoint(&self) -> Checkpoint {
        let clock_ms = self.heard_until_ms();
        let recogniser = serde_json::to_value(self.ledger().checkpoint()).unwrap_or_default();
        Checkpoint {
            slug: self.slug.clone(),
            origin: self.origin,
            epoch: self.epoch,
            started_at: self.started_at,
            next_seq: self.log.last_seq() + 1,
            clock_ms,
            is_publishing: self.is_publishing(),
            audio_config: self.decode().last_config().map(hex::encode),
            recogniser,
        }
    }

    /// Milliseconds since the session's start.
    pub fn clock_ms(&self) -> u64 {
        self.started.elapsed().as_millis() as u64
    }

    /// Takes decoded audio into the ledger and wakes the bridge.
    pub fn push_pcm(&self, chunk: PcmChunk) {
        self.loudness().push(&chunk);
        let mut ledger = self.ledger();
        ledger.push(Instant::now(), chunk);
        ledger.report(&self.metrics);
        drop(ledger);
        self.pcm_ready.notify_one();
    }
}

/// Start of a process that has to make an announcement from `clock_ms` on: the one before it may have made a part of it,
/// and then have died before its next checkpoint.
fn unannounced_from(clock_ms: u64, recent: &[Entry]) -> u64 {
    recent.iter().fold(clock_ms, |from, entry| match entry {
        Entry::Gap(gap) if gap.start_ms <= from => from.max(gap.end_ms),
        _ => from,
    })
}

/// A line with a speaker that is not only a number.
fn names_speaker(entry: &Entry) -> bool {
    let Entry::Transcript(line) = entry else { return false };
    line.speaker.as_ref().is_some_and(|speaker| !NumberedVoice::is_identity(&speaker.identity))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::audio::state::Pause;
    use crate::transcript::Gap;

    fn core() -> SessionCore {
        let config = Arc::new(Config::load(&Default::default(), true).unwrap());
        SessionCore::new(Slug::parse("demo").unwrap(), config, Arc::new(Metrics::new()))
    }

    #[test]
    fn what_is_missing_after_a_return_is_what_the_clock_says() {
        let told = |reason, back_ms, missing: Option<(u64, u64)>| {
            let core = core();
            core.presence().missed_since(Away { back_ms, ..Away::since(100, reason) });
            let missing = missing.map(|(start_ms, end_ms)| Pause { start_ms, end_ms });
            core.publisher_returned(Return { missing });
            let gap = core.results.pop().map(|item| match item {
                TranscriptEvent::Gap { start_ms, end_ms, reason, .. } => (start_ms, end_ms, reason),
                other => panic!("{other:?}"),
            });
            (core.presence().away().is_some(), gap)
        };
        let lost = GapReason::PublisherLost;
        assert_eq!(told(lost, Some(20_100), None), (false, None));
        assert_eq!(told(lost, Some(20_100), Some((150, 400))), (false, Some((150, 400, lost))));
        assert_eq!(told(lost, None, None), (true, None), "nobody is back");
        assert_eq!(told(GapReason::ProcessRestart, Some(20_100), None), (true, None));
    }

    /// Whatever became of the recogniser's state in the checkpoint.
    #[test]
    fn no_number_that_is_in_an_id_of_the_log_is_given_again() {
        let config = Arc::new(Config::load(&Default::default(), true).unwrap());
        let ids = ["7.00_00000012", "status.stt.4", "gap.9.12", "process_restart-3", "posted", "99999999999.x"];
        let known = (1..).zip(ids).map(|(seq, id)| (id.to_owned(), seq)).collect();
        let beginning = SessionSeed { known, ..SessionSeed::default() };
        let budget = Arc::new(ReplayBudget::new(1 << 20));
        let core =
            SessionCore::begin(Slug::parse("demo").unwrap(), beginning, config, Arc::new(Metrics::new()), budget);
        let image = core.ledger().checkpoint();
        assert_eq!((image.next_hearing, image.statuses), (8, 4));
    }

    #[tokio::test(start_paused = true)]
    async fn what_waits_for_a_decoder_was_not_heard() {
        let core = core();
        let arrived = Instant::now();
        let pcm = bytes::Bytes::from(vec![0; 32_000]);
        core.push_pcm(PcmChunk { pcm, start_ms: 500, inserted: false, arrived });
        tokio::time::advance(Duration::from_secs(15)).await;
        let body = bytes::Bytes::from_static(&[0xAF, 1, 0]);
        core.tags.try_push(AudioTag { publisher: 1, timestamp_ms: 1000, body, arrived: Instant::now() }).unwrap();
        assert_eq!(core.heard_until_ms(), 1500);
        core.presence().missed_since(Away::since(9000, GapReason::PublisherLost));
        assert_eq!(core.heard_until_ms(), 9000);
    }

    #[tokio::test(start_paused = true)]
    async fn a_publisher_is_silent_from_its_last_audio_on() {
        let core = core();
        let advance = |ms| tokio::time::advance(Duration::from_millis(ms));
        let body = bytes::Bytes::from_static(&[0xAF, 1, 0]);
        let tag = || AudioTag { publisher: 1, timestamp_ms: 0, body: body.clone(), arrived: Instant::now() };
        advance(5000).await;
        core.tags.try_push(tag()).unwrap();
        let sent_ms = core.clock_ms();
        advance(SILENT_MS - 1).await;
        assert_eq!(core.silent_since_ms(0), None);
        advance(1).await;
        assert_eq!(core.silent_since_ms(0), Some(sent_ms));
        assert_eq!(core.silent_since_ms(sent_ms + 1), None, "that was another publisher");
        while core.tags.try_push(tag()).is_ok() {}
        advance(9000).await;
        assert_eq!(core.silent_since_ms(0), None, "nobody reads it");
    }

    #[test]
    fn what_an_earlier_process_may_have_heard_has_bounds() {
        let missing_until_ms = |was_publishing, age_s| {
            let config = Arc::new(Config::load(&Default::default(), true).unwrap());
            let started_at = Some(Utc::now() - Duration::from_secs(age_s));
            let beginning =
                SessionSeed { started_at, clock_ms: Some(90_000), was_publishing, ..SessionSeed::default() };
            let budget = Arc::new(ReplayBudget::new(1 << 20));
            let core =
                SessionCore::begin(Slug::parse("demo").unwrap(), beginning, config, Arc::new(Metrics::new()), budget);
            assert_eq!(core.is_publishing(), was_publishing, "as its next checkpoint says");
            let away = core.presence().away().unwrap();
            away.missing_until_ms
        };
        assert_eq!(missing_until_ms(false, 100), None);
        let until_ms = missing_until_ms(true, 100).unwrap();
        assert!((100_000..101_000).contains(&until_ms), "up to its adoption, not {until_ms}");
        assert_eq!(missing_until_ms(true, 9000), Some(90_000 + UNSEEN_MS), "and not through a long outage");
        assert_eq!(missing_until_ms(true, 10), Some(90_000), "a clock that was set back");
    }

    fn gap(start_ms: u64, end_ms: u64) -> Entry {
        let (session, epoch) = (Slug::parse("demo").unwrap(), Uuid::from_u128(1));
        let (id, reason) = (format!("process_restart-{start_ms}-{end_ms}"), GapReason::ProcessRestart);
        Entry::Gap(Gap { session, epoch, seq: Some(1), id, start_ms, end_ms, reason, durable: true })
    }

    #[test]
    fn gaps_that_begin_together_have_ids_of_their_own() {
        let core = core();
        core.announce_gap(6000, 9000, GapReason::ProcessRestart);
        core.announce_gap(6000, 19_000, GapReason::ProcessRestart);
        core.announce_gap(6000, 19_000, GapReason::ProcessRestart);
        let ids = [(); 3].map(|()| match core.results.pop() {
            Some(TranscriptEvent::Gap { id, .. }) => id,
            other => panic!("{other:?}"),
        });
        assert_ne!(ids[0], ids[1]);
        assert_eq!(ids[1], ids[2], "the same gap again is known");
    }

    /// Killed a second time before a checkpoint was written: the second hole begins where the first was told to end.
    #[test]
    fn what_an_earlier_process_has_announced_is_not_announced_again() {
        assert_eq!(unannounced_from(6000, &[]), 6000);
        assert_eq!(unannounced_from(6000, &[gap(1000, 2000), gap(6000, 9000)]), 9000);
        assert_eq!(unannounced_from(6000, &[gap(6000, 9000), gap(9000, 19_000), gap(20_000, 21_000)]), 19_000);
        assert_eq!(unannounced_from(6000, &[gap(7000, 9000)]), 6000, "something before it is not told yet");
    }

    #[test]
    fn a_clock_that_was_set_back_does_not_turn_the_sessions() {
        let config = Arc::new(Config::load(&Default::default(), true).unwrap());
        let beginning = SessionSeed {
            started_at: Some(Utc::now() + Duration::from_secs(3600)),
            clock_ms: Some(90_000),
            ..SessionSeed::default()
        };
        let budget = Arc::new(ReplayBudget::new(1 << 20));
        let slug = Slug::parse("demo").unwrap();
        let core = SessionCore::begin(slug, beginning, config, Arc::new(Metrics::new()), budget);
        assert!(core.clock_ms() >= 90_000);
    }
}
