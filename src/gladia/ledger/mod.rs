//! The loss ledger: a session's audio from the first byte until its text is published, and what became of it.
//!
//! Sans I/O: time is an argument, storage a trait. It lives in the session's core, behind its mutex, so it survives the
//! bridge. It alone knows how these run beside each other:
//!
//! - *session offset*: bytes of PCM since the session began. Every cursor is one.
//! - *session clock*: what viewers see as `startMs` (`clock`).
//! - *the recogniser's count*: bytes since its own session began (`stt_session`).
//!
//! Audio is *resent* from the acknowledged cursor and *trimmed* at min(acked, max(finalised, acked - 30 s)), and never past
//! speech to which nothing has been said yet: an acknowledgement says that audio arrived, not that its text came back.
//! Bytes are in exactly one state, and `received + inserted = acknowledged + in flight + lost + skipped` always holds.
//!
//! Its parts keep an invariant each, which stands at the head of their files: `cursors`, `coverage` (speech and its text),
//! `utterances` (heard and not said yet), `suspicions`, `announcements` (said to the room), `translations`, `timings`,
//! `answer`, `account` (the sums), `window` (the audio). `sending` has what goes out, `text` what comes back, `losses` what
//! will never be text, `checkpoint` what a restarted process needs: they join the parts.

mod account;
mod announcements;
mod answer;
mod checkpoint;
pub mod clock;
mod coverage;
mod cursors;
mod dedupe;
mod losses;
pub mod ranges;
mod sending;
pub mod speech;
pub mod spool;
pub mod stt_session;
mod suspicions;
mod text;
mod timings;
mod translations;
mod utterances;
mod window;

use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

pub use account::{Account, LossReason};
pub use answer::Unanswered;
pub use checkpoint::LedgerImage;
pub use sending::SessionRef;
pub use spool::{FileSpool, MemorySpool, ReplayBudget, Spool};
pub use stt_session::{Recognised, RecognisedWord};
pub use text::Verdict;

use self::account::Counts;
use self::announcements::Announcements;
use self::answer::AnswerWatch;
use self::clock::{BYTES_PER_MS, Clock};
use self::coverage::Coverage;
use self::cursors::Cursors;
use self::ranges::Ranges;
use self::stt_session::SttSession;
use self::suspicions::Suspicions;
use self::timings::ChunkTimings;
use self::translations::Translations;
use self::utterances::Utterances;
use self::window::Window;
use crate::audio::PcmChunk;
use crate::config::SttConfig;
use crate::gladia::policy::Allowance;
use crate::gladia::status::ReasonedStatus;
use crate::transcript::TranscriptEvent;

/// Acknowledged audio is kept for so long while no final has covered it.
const KEEP_ACKED_MS: u64 = 30_000;
/// Audio before the first byte that matters, for a new recogniser session to find its feet.
const LEAD_MS: u64 = 1_000;
/// Positions older than this are forgotten: no final comes so late.
const REMEMBER_MS: u64 = 300_000;

const fn bytes(ms: u64) -> u64 {
    ms * BYTES_PER_MS
}

/// What the ledger takes from the configuration.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// Audio kept at most.
    pub window: Duration,
    /// Longest utterance of the recogniser.
    pub max_utterance: Duration,
}

impl From<&SttConfig> for Limits {
    fn from(stt: &SttConfig) -> Self {
        Self { window: stt.replay_window, max_utterance: Duration::from_secs(stt.max_utterance_s) }
    }
}

/// The account of every byte of a session's audio until its text is final.
pub struct Ledger {
    limits: Limits,
    // The audio.
    window: Window,
    clock: Clock,
    cursors: Cursors,
    counts: Counts,
    timings: ChunkTimings,
    last_push: Option<Instant>,
    // The recogniser session that hears it, and what became of it as text.
    session: Option<SttSession>,
    next_session: u32,
    answer: AnswerWatch,
    suspicions: Suspicions,
    utterances: Utterances,
    coverage: Coverage,
    translations: Translations,
    announcements: Announcements,
    /// How often recogniser sessions may be begun and connected to; the bridge's machine sets and spends them.
    pub(in crate::gladia) session_budget: Option<Allowance>,
    pub(in crate::gladia) connection_budget: Option<Allowance>,
}

impl Ledger {
    /// An empty ledger. `budget` is shared by all sessions.
    pub fn new(limits: Limits, spool: Box<dyn Spool>, budget: Arc<ReplayBudget>) -> Self {
        let window = Window::new(0, bytes(limits.window.as_millis() as u64), spool, budget);
        Self {
            limits,
            window,
            clock: Clock::default(),
            cursors: Cursors::default(),
            counts: Counts::default(),
            timings: ChunkTimings::default(),
            last_push: None,
            session: None,
            next_session: 1,
            answer: AnswerWatch::default(),
            suspicions: Suspicions::default(),
            utterances: Utterances::default(),
            coverage: Coverage::default(),
            translations: Translations::default(),
            announcements: Announcements::default(),
            session_budget: None,
            connection_budget: None,
        }
    }

    /// Takes decoded audio. What no longer fits is lost from the old end, counted and announced.
    pub fn push(&mut self, now: Instant, chunk: PcmChunk) {
        let len = chunk.pcm.len() as u64;
        let offset = self.clock.end();
        self.clock.append(chunk.start_ms, len, chunk.inserted);
        if chunk.inserted {
            self.counts.inserted += len;
        } else {
            self.counts.received += len;
        }
        self.counts.spoken += self.coverage.feed(offset, &chunk.pcm);
        let decode_ms = now.saturating_duration_since(chunk.arrived).as_millis() as u64;
        self.cursors.extend(len);
        self.timings.decoded(self.cursors.end(), decode_ms);
        self.last_push = Some(now);
        self.window.push(chunk.pcm);
        self.count_overflow();
        self.verify();
    }

    /// Says something about the session, in order with everything else. Ids are unique in the epoch.
    pub fn say_status(&mut self, status: ReasonedStatus) {
        self.announcements.status(status);
    }

    /// The last status said, by this bridge or one before it.
    pub fn last_status(&self) -> Option<ReasonedStatus> {
        self.announcements.last_status()
    }

    /// The next thing for the room. It stays here until [`Self::delivered`].
    pub fn front(&self) -> Option<&TranscriptEvent> {
        self.announcements.front()
    }

    /// A gap waits for the room.
    pub fn holds_gap(&self) -> bool {
        self.announcements.has_gap()
    }

    /// The front is in the room's edge.
    pub fn delivered(&mut self) -> Option<TranscriptEvent> {
        self.announcements.pop()
    }

    /// The room has published the final `id` (or had it already): its audio is done with.
    pub fn published(&mut self, id: &str) {
        let Some(span) = self.coverage.publish(id) else {
            return;
        };
        self.counts.finalise(self.coverage.spoken(), span);
        self.trim();
    }

    /// Moves the old end of the window to where nothing before can be needed.
    fn trim(&mut self) {
        let acked = self.cursors.acked();
        let finalised = self.frontier(self.coverage.published()).saturating_sub(bytes(LEAD_MS));
        let keep = bytes(KEEP_ACKED_MS.max(self.limits.max_utterance.as_millis() as u64 + 15_000));
        let unanswered = self.unanswered(acked).map_or(u64::MAX, |(first, _)| first.saturating_sub(bytes(LEAD_MS)));
        let mut to = acked.min(finalised.max(acked.saturating_sub(keep).min(unanswered)));
        if let Some(unconfirmed) = self.suspicions.unconfirmed() {
            to = to.min(unconfirmed.from.saturating_sub(bytes(LEAD_MS)));
        }
        if self.cursors.trim(to) {
            self.window.drop_before(to);
            self.forget(to.saturating_sub(bytes(REMEMBER_MS)));
        }
        self.verify();
    }

    fn forget(&mut self, before: u64) {
        self.clock.forget_before(before);
        self.coverage.forget_before(before);
        self.counts.forget(before);
        self.timings.forget_before(before);
    }

    /// First byte whose text is not all there, judged by the finals in `finals`.
    fn frontier(&self, finals: &Ranges) -> u64 {
        let end = finals.end().unwrap_or(0);
        let first = [self.hole(finals), self.utterances.first_open()].into_iter().flatten().fold(end, u64::min);
        first.max(self.cursors.done()).max(self.cursors.trimmed())
    }

    /// Session clock at the end of the audio.
    pub fn end_clock_ms(&self) -> u64 {
        self.clock.end_ms(self.clock.end())
    }

    /// Past the newest byte.
    pub fn end(&self) -> u64 {
        self.clock.end()
    }

    /// When audio last came in.
    pub fn last_push(&self) -> Option<Instant> {
        self.last_push
    }

    /// Silence at the end of what was sent.
    pub fn silence_ms(&self) -> u64 {
        self.coverage.silence_before(self.cursors.sent(), bytes(10_000)) / BYTES_PER_MS
    }

    fn verify(&self) {
        debug_assert_eq!(self.check(), Ok(()));
    }
}

#[cfg(test)]
mod tests;
