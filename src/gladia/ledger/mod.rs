//! The loss ledger: a session's audio from the first byte until its text is published, and what became of it.
//!
//! Sans I/O: time is an argument, storage a trait. It lives in the session's core, behind its mutex, so it survives the
//! bridge. It alone knows how these run beside each other:
//!
//! - *session offset*: bytes of PCM since the session began. Every cursor is one.
//! - *session clock*: what viewers see as `startMs` (`clock`).
//! - *the recogniser's count*: bytes since its own session began (`hearing`).
//!
//! Cursors, oldest first: `trimmed` <= `acked` <= `sent` <= end of the window. Audio is *resent* from `acked` and
//! *trimmed* at min(acked, max(finalised, acked - 30 s)), and never past speech to which nothing has been said yet: an
//! acknowledgement says that audio arrived, not that its text came back. Bytes are in exactly one state, and
//! `received + inserted = acknowledged + in flight + lost + skipped` always holds.
//!
//! `sending` has what goes out, `text` what comes back, `account` the sums, `checkpoint` what a restarted process needs.

mod account;
mod checkpoint;
pub mod clock;
mod dedupe;
pub mod ranges;
mod sending;
pub mod speech;
pub mod spool;
pub mod stt_session;
mod text;
mod translations;
mod window;

use std::collections::{HashMap, VecDeque};
use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use chrono::{DateTime, Utc};
use tokio::time::Instant;

pub use account::{Account, LossReason};
pub use checkpoint::LedgerImage;
pub use sending::SessionRef;
pub use spool::{FileSpool, MemorySpool, ReplayBudget, Spool};
pub use stt_session::{Recognised, RecognisedWord};
pub use text::Verdict;

use self::account::Counts;
use self::clock::{BYTES_PER_MS, Clock};
use self::ranges::Ranges;
use self::speech::SpeechDetector;
use self::stt_session::SttSession;
use self::text::{Open, Unconfirmed, WaitingFinal};
use self::translations::Translations;
use self::window::Window;
use crate::audio::PcmChunk;
use crate::config::SttConfig;
use crate::gladia::policy::Allowance;
use crate::gladia::status::Shown;
use crate::transcript::TranscriptEvent;

/// Acknowledged audio is kept for so long while no final has covered it.
const KEEP_ACKED_MS: u64 = 30_000;
/// Audio before the first byte that matters, for a new recogniser session to find its feet.
const LEAD_MS: u64 = 1_000;
/// Positions older than this are forgotten: no final comes so late.
const REMEMBER_MS: u64 = 300_000;
/// A loss that has not grown for so long is announced.
const LOSS_SETTLES: Duration = Duration::from_secs(2);
/// Given up at the old end of a full window, for a connection to get its first acknowledgement: at most this, and a tenth
/// of the window.
const EDGE_MARGIN_MS: u64 = 30_000;
/// A gap is announced in pieces of at most this.
const GAP_PIECE_MS: u64 = 30_000;

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
    window: Window,
    clock: Clock,
    detector: SpeechDetector,
    /// Audio that holds speech.
    spoken: Ranges,
    /// Next byte that the recogniser has not acknowledged.
    acked: u64,
    /// Next byte to send.
    sent: u64,
    /// Everything before is done with.
    trimmed: u64,
    /// Everything before was said all there is to say of, by a recogniser session that ended properly.
    done: u64,
    hearing: Option<SttSession>,
    next_hearing: u32,
    /// Where the present recogniser session is to end; nothing past it is sent to it.
    stop_at: Option<u64>,
    open: Vec<Open>,
    held: Vec<WaitingFinal>,
    /// Finals whose place is not known before the connection's first acknowledgement.
    unplaced: Vec<(Instant, DateTime<Utc>, Recognised)>,
    /// The recogniser has heard speech twice in a row.
    is_garbled: bool,
    suspect: Option<Unconfirmed>,
    /// What an earlier session said about it could not be read.
    unread: Option<Range<u64>>,
    /// What has final text that is on its way to the room, in it, or published.
    covered: Ranges,
    /// What has published final text.
    committed: Ranges,
    uncommitted: HashMap<String, Range<u64>>,
    ready: VecDeque<TranscriptEvent>,
    translations: Translations,
    loss: Option<Loss>,
    /// Audio was lost that the present connection was in the middle of sending.
    is_torn: bool,
    /// The window's old end has reached audio that is not acknowledged: with each chunk more of it falls out.
    is_at_edge: bool,
    counts: Counts,
    marks: VecDeque<ChunkTiming>,
    answer: AnswerWatch,
    last_push: Option<Instant>,
    statuses: u64,
    shown: Option<Shown>,
    /// Audio before this was an earlier process's and is nowhere any more.
    restored_at: u64,
    /// How often recogniser sessions may be begun and connected to; the bridge's machine sets and spends them.
    pub(in crate::gladia) session_budget: Option<Allowance>,
    pub(in crate::gladia) connection_budget: Option<Allowance>,
}

/// Lost audio that is not announced yet.
#[derive(Debug, Clone)]
struct Loss {
    span: Range<u64>,
    reason: LossReason,
    /// When it last grew, as far as [`Ledger::announce_due`] has seen.
    seen: Option<(u64, Instant)>,
}

/// When a chunk was decoded and sent, for the latency of the text that ends in it.
#[derive(Debug, Clone, Copy)]
struct ChunkTiming {
    end: u64,
    decode_ms: u64,
    sent: Option<Instant>,
}

/// How long the recogniser has been silent about speech that it has.
#[derive(Debug, Default)]
struct AnswerWatch {
    /// When it last said anything, or when the first such speech went out; and what had been sent then.
    said: Option<(Instant, u64)>,
    /// The same for finals alone.
    told: Option<(Instant, u64)>,
}

impl AnswerWatch {
    fn is_waiting(&self) -> bool {
        self.said.is_some()
    }

    fn begin(&mut self, now: Instant, sent: u64) {
        (self.said, self.told) = (Some((now, sent)), Some((now, sent)));
    }

    fn heard(&mut self, now: Instant, sent: u64, is_final: bool) {
        self.said = self.said.map(|_| (now, sent));
        if is_final {
            self.told = self.said;
        }
    }

    /// Guesses are an answer for `patience`, in which the final ought to come.
    fn since(&self, patience: Duration) -> Option<(Instant, u64)> {
        let (said, told) = (self.said?, self.told?);
        Some(if said.0 <= told.0 + patience { said } else { (told.0 + patience, told.1) })
    }
}

/// Speech without an answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Unanswered {
    pub since: Instant,
    /// Audio that was sent since then: a recogniser needs to hear the end of an utterance.
    pub audio: Duration,
    /// So much speech that an answer ought to have come; else a short sound, which may be none.
    pub is_enough: bool,
}

impl Ledger {
    /// An empty ledger. `budget` is shared by all sessions.
    pub fn new(limits: Limits, spool: Box<dyn Spool>, budget: Arc<ReplayBudget>) -> Self {
        let window = Window::new(0, bytes(limits.window.as_millis() as u64), spool, budget);
        Self {
            limits,
            window,
            clock: Clock::default(),
            detector: SpeechDetector::default(),
            spoken: Ranges::default(),
            acked: 0,
            sent: 0,
            trimmed: 0,
            done: 0,
            hearing: None,
            next_hearing: 1,
            stop_at: None,
            open: Vec::new(),
            held: Vec::new(),
            unplaced: Vec::new(),
            is_garbled: false,
            suspect: None,
            unread: None,
            covered: Ranges::default(),
            committed: Ranges::default(),
            uncommitted: HashMap::new(),
            ready: VecDeque::new(),
            translations: Translations::default(),
            loss: None,
            is_torn: false,
            is_at_edge: false,
            counts: Counts::default(),
            marks: VecDeque::new(),
            answer: AnswerWatch::default(),
            last_push: None,
            statuses: 0,
            shown: None,
            restored_at: 0,
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
        self.counts.spoken += self.detector.feed(offset, &chunk.pcm, &mut self.spoken);
        let decode_ms = now.saturating_duration_since(chunk.arrived).as_millis() as u64;
        self.marks.push_back(ChunkTiming { end: offset + len, decode_ms, sent: None });
        self.last_push = Some(now);
        self.window.push(chunk.pcm);
        self.count_overflow();
        self.verify();
    }

    /// After audio fell out of the window: what no recogniser session ever got is lost.
    fn count_overflow(&mut self) {
        let start = self.window.start();
        // What a restarted process has never had cannot fall out of its window.
        let is_cut = start > self.trimmed.max(self.restored_at);
        if is_cut {
            self.lose_unanswered(self.trimmed..start.min(self.acked));
        }
        if start > self.acked {
            let reason = if self.hearing.as_ref().is_some_and(|h| h.connection.count > 0) {
                LossReason::WindowOverflow
            } else {
                LossReason::SttUnavailable
            };
            self.is_torn |= self.sent > self.acked;
            self.is_at_edge = true;
            self.lose(self.acked..start, reason);
            self.acked = start;
            self.sent = self.sent.max(start);
        }
        if is_cut {
            self.trimmed = start;
            self.forget(start.saturating_sub(bytes(REMEMBER_MS)));
        }
    }

    /// A connection begins after an outage that was longer than the window: what would fall out of it before the first
    /// acknowledgement comes is given up now, or every connection would be torn at its start.
    pub(super) fn step_back_from_edge(&mut self) {
        if !std::mem::take(&mut self.is_at_edge) {
            return;
        }
        let margin = bytes(EDGE_MARGIN_MS).min((self.window.end() - self.window.start()) / 10) & !1;
        self.window.drop_before(self.window.start() + margin);
        self.count_overflow();
        self.is_at_edge = false;
    }

    /// Books `span` as lost (it is in no other state any more) and prepares its announcement.
    fn lose(&mut self, span: Range<u64>, reason: LossReason) {
        if span.is_empty() {
            return;
        }
        self.counts.lose(reason, span.clone());
        match &mut self.loss {
            Some(loss) if loss.reason == reason && loss.span.end == span.start => loss.span.end = span.end,
            _ => {
                self.announce_loss();
                self.loss = Some(Loss { span, reason, seen: None });
            }
        }
        if self.loss.as_ref().is_some_and(|l| l.span.end - l.span.start >= bytes(GAP_PIECE_MS)) {
            self.announce_loss();
        }
    }

    /// Announces a loss that does not grow any more. (One that does is announced piece by piece.)
    pub fn announce_due(&mut self, now: Instant) {
        let Some(loss) = &mut self.loss else { return };
        match loss.seen {
            Some((end, at)) if end == loss.span.end => {
                if now.saturating_duration_since(at) >= LOSS_SETTLES {
                    self.announce_loss();
                }
            }
            _ => loss.seen = Some((loss.span.end, now)),
        }
    }

    fn announce_loss(&mut self) {
        if let Some(Loss { span, reason, .. }) = self.loss.take() {
            let (start_ms, end_ms) = (self.clock.start_ms(span.start), self.clock.end_ms(span.end));
            self.ready.push_back(TranscriptEvent::gap(start_ms, end_ms, reason));
        }
    }

    /// Says something about the session, in order with everything else. Ids are unique in the epoch.
    pub fn say_status(&mut self, shown: Shown) {
        self.statuses += 1;
        self.shown = Some(shown);
        let id = format!("status.stt.{}", self.statuses);
        self.ready.push_back(TranscriptEvent::Status { id, status: shown.0, reason: Some(shown.1.to_owned()) });
    }

    /// The last status said, by this bridge or one before it.
    pub fn shown(&self) -> Option<Shown> {
        self.shown
    }

    /// The next thing for the room. It stays here until [`Self::delivered`].
    pub fn front(&self) -> Option<&TranscriptEvent> {
        self.ready.front()
    }

    /// A gap waits for the room.
    pub fn holds_gap(&self) -> bool {
        self.ready.iter().any(|item| matches!(item, TranscriptEvent::Gap { .. }))
    }

    /// The front is in the room's edge.
    pub fn delivered(&mut self) -> Option<TranscriptEvent> {
        self.ready.pop_front()
    }

    /// The room has published the final `id` (or had it already): its audio is done with.
    pub fn committed(&mut self, id: &str) {
        let Some(span) = self.uncommitted.remove(id) else {
            return;
        };
        self.committed.insert(span.clone());
        self.counts.finalise(&self.spoken, span);
        self.trim();
    }

    /// Moves the old end of the window to where nothing before can be needed.
    fn trim(&mut self) {
        let finalised = self.frontier(&self.committed).saturating_sub(bytes(LEAD_MS));
        let keep = bytes(KEEP_ACKED_MS.max(self.limits.max_utterance.as_millis() as u64 + 15_000));
        let owed = self.unanswered(self.acked).map_or(u64::MAX, |(first, _)| first.saturating_sub(bytes(LEAD_MS)));
        let mut to = self.acked.min(finalised.max(self.acked.saturating_sub(keep).min(owed)));
        if let Some(suspect) = &self.suspect {
            to = to.min(suspect.from.saturating_sub(bytes(LEAD_MS)).max(self.trimmed));
        }
        if to > self.trimmed {
            self.trimmed = to;
            self.window.drop_before(to);
            self.forget(to.saturating_sub(bytes(REMEMBER_MS)));
        }
        self.verify();
    }

    fn forget(&mut self, before: u64) {
        self.clock.forget_before(before);
        for ranges in [&mut self.spoken, &mut self.covered, &mut self.committed] {
            ranges.forget_before(before);
        }
        self.counts.forget(before);
        while self.marks.front().is_some_and(|m| m.end <= before) {
            self.marks.pop_front();
        }
    }

    /// First byte whose text is not all there, judged by the finals in `finals`.
    fn frontier(&self, finals: &Ranges) -> u64 {
        let end = finals.end().unwrap_or(0);
        let open = self.open.iter().map(|o| o.start).min();
        let first = [self.hole(finals), open].into_iter().flatten().fold(end, u64::min);
        first.max(self.done).max(self.trimmed)
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
        let recent = self.sent.saturating_sub(bytes(10_000))..self.sent;
        let last = self.spoken.within(&recent).last().map_or(recent.start, |r| r.end);
        (self.sent - last) / BYTES_PER_MS
    }

    fn verify(&self) {
        debug_assert_eq!(self.check(), Ok(()));
    }
}

#[cfg(test)]
mod tests;
