//! One recogniser session: which of its bytes are which of ours, and which of its words are to be kept.
//!
//! A recogniser session counts the bytes that it got. We count the bytes of the session. The two run in step except
//! where a connection was resumed after the recogniser had counted bytes whose acknowledgement was lost: those are sent
//! again and heard twice, and from then on its count is ahead of ours. [`Splice`]s describe it.

use std::collections::VecDeque;
use std::ops::Range;

use serde::{Deserialize, Serialize};
use tokio::time::Instant;

use super::clock::BYTES_PER_MS;
use super::ranges::Ranges;
use crate::config::Secret;
use crate::transcript::clean;

/// Finals of a session that are known again when they are repeated.
const REMEMBERED_FINALS: usize = 256;
/// Acknowledged positions may be rounded by so many bytes (10 ms).
const ROUNDING: u64 = 320;
/// Positions beyond this are nonsense (9,000 years), and sums of those within it do not overflow.
pub const MAX_POSITION: u64 = 1 << 53;

/// What the recogniser said about one utterance; times in seconds of its own session, NaN where nothing tells them.
#[derive(Debug, Clone, PartialEq)]
pub struct Recognised {
    pub id: String,
    pub is_final: bool,
    /// Whether it is final was not said in words that can be read.
    pub is_doubtful: bool,
    pub text: String,
    pub start_s: f64,
    pub end_s: f64,
    pub language: Option<String>,
    pub confidence: Option<f64>,
    /// The voice's number, where the recogniser tells voices apart.
    pub voice: Option<u32>,
    /// Empty when the recogniser gives none.
    pub words: Vec<RecognisedWord>,
}

#[derive(Debug, Clone, PartialEq)]
pub struct RecognisedWord {
    /// With its leading space, as it came.
    pub word: String,
    pub start_s: f64,
    pub end_s: f64,
    pub confidence: Option<f64>,
}

/// From byte `wire` on, the recogniser hears our byte `session`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Splice {
    pub wire: u64,
    pub session: u64,
    /// Our bytes up to here were heard before the splice already.
    pub heard_until: u64,
    /// What was heard just before the splice was another process's, which is gone: it has no place among our bytes, and
    /// its text is that of the moment before them.
    #[serde(default)]
    pub is_foreign: bool,
}

/// A final that has come.
#[derive(Debug)]
struct KnownFinal {
    id: String,
    /// Its text and times; None for one of a process before this one.
    said: Option<(String, f64, f64)>,
}

/// A session of the recogniser, and its place among our bytes.
#[derive(Debug)]
pub struct SttSession {
    /// Counts recogniser sessions of the epoch from 1; part of every utterance id.
    pub number: u32,
    /// The recogniser's id of the session; no secret.
    pub id: String,
    /// Holds the token.
    pub url: Secret,
    pub began: Instant,
    pub splices: Vec<Splice>,
    /// Acknowledged bytes in the recogniser's count.
    pub wire_acked: u64,
    /// Words before this are an earlier session's.
    pub own_from: u64,
    /// Words from here on are the next session's.
    pub own_until: Option<u64>,
    /// What has text from earlier sessions.
    pub excluded: Ranges,
    /// The recogniser's ids of the newest finals: one that comes again is no news.
    finals: VecDeque<KnownFinal>,
    pub connection: Connection,
    /// It has heard speech twice in a row.
    pub heard_twice: bool,
    /// Bytes that another process may have sent since its checkpoint; 0 once the first acknowledgement has shown how many.
    pub carried_doubt: u64,
}

/// The present (or last) connection of the session.
#[derive(Debug, Default)]
pub struct Connection {
    /// How often it was connected.
    pub count: u32,
    wire_start: u64,
    session_start: u64,
    splices_before: usize,
    /// Bytes that the recogniser may have counted without our knowing: sent and not acknowledged before.
    doubtful: u64,
    drift: u64,
    is_first_ack: bool,
    /// The doubt is about another process's bytes.
    is_foreign: bool,
}

impl SttSession {
    pub fn new(number: u32, id: String, url: Secret, base: u64, now: Instant) -> Self {
        Self {
            number,
            id,
            url,
            began: now,
            splices: vec![Splice { wire: 0, session: base, heard_until: base, is_foreign: false }],
            wire_acked: 0,
            own_from: 0,
            own_until: None,
            excluded: Ranges::default(),
            finals: VecDeque::new(),
            connection: Connection::default(),
            heard_twice: false,
            carried_doubt: 0,
        }
    }

    /// A connection was opened: audio goes on at `acked`, of `sent` sent before.
    pub fn connected(&mut self, acked: u64, sent: u64) {
        let sent_before = if self.connection.count == 0 { 0 } else { sent.saturating_sub(acked) };
        let doubtful = sent_before.max(self.carried_doubt);
        self.connection = Connection {
            count: self.connection.count + 1,
            wire_start: self.wire_acked,
            session_start: acked,
            splices_before: self.splices.len(),
            doubtful,
            drift: 0,
            is_first_ack: true,
            is_foreign: self.carried_doubt > 0,
        };
        // Audio was dropped from the window in between.
        if self.to_session(self.wire_acked) != acked {
            self.set_drift(0);
        }
    }

    /// The recogniser acknowledges its bytes `start..end`; answers up to which of ours. None when that is old news.
    /// Source of the drift rule: the protocol has no client offset, so audio whose acknowledgement was lost is sent
    /// twice, and the first acknowledgement after a reconnect begins where the recogniser's count stood.
    pub fn acked(&mut self, start: u64, end: u64, sent: u64) -> Option<u64> {
        let (start, end) = (start.min(MAX_POSITION), end.min(MAX_POSITION));
        if end <= self.wire_acked {
            return None;
        }
        let ahead = start.saturating_sub(self.wire_acked);
        self.carried_doubt = 0;
        if std::mem::take(&mut self.connection.is_first_ack) && ahead.min(self.connection.doubtful) > 0 {
            self.set_drift(ahead);
        }
        let beyond = end.saturating_sub(self.to_wire(sent));
        if beyond > 0 && self.connection.doubtful > self.connection.drift {
            self.set_drift(self.connection.drift + beyond);
        }
        self.wire_acked = end;
        Some(self.to_session(end).min(sent))
    }

    /// A resumed connection begins with an acknowledgement of what an earlier one had acknowledged: the recogniser counts
    /// from zero again, and its times tell nothing any more.
    pub fn counts_anew(&self, start: u64, end: u64) -> bool {
        let c = &self.connection;
        c.count > 1 && c.is_first_ack && !c.is_foreign && start < end && start + ROUNDING < c.wire_start
    }

    /// On a resumed connection, a time before it began.
    pub fn is_before_resume(&self, end_s: f64) -> bool {
        self.connection.count > 1 && !self.connection.is_foreign && wire_bytes(end_s) <= self.connection.wire_start
    }

    /// Where a text that ends at `end_s` belongs is not known before the first acknowledgement of the connection: the audio
    /// may be in the recogniser's count twice.
    pub fn is_unplaced(&self, end_s: f64) -> bool {
        let c = &self.connection;
        c.is_first_ack && c.doubtful > 0 && !c.is_foreign && wire_bytes(end_s) > c.wire_start
    }

    /// Our bytes that the recogniser has heard twice in a row on this connection.
    pub fn doubled(&self) -> Range<u64> {
        let c = &self.connection;
        c.session_start..c.session_start + if c.is_foreign { 0 } else { c.drift }
    }

    /// Two connections in a row sent the same audio and brought no acknowledgement: how much of it the recogniser counted
    /// how often cannot be told any more.
    pub fn is_ambiguous(&self, acked: u64, sent: u64) -> bool {
        self.connection.is_first_ack && self.connection.doubtful > 0 && sent > acked
    }

    /// `drift` of our bytes from the start of this connection on are in the recogniser's count twice.
    fn set_drift(&mut self, drift: u64) {
        let c = &mut self.connection;
        c.drift = drift.min(c.doubtful);
        let (wire, session) = (c.wire_start + c.drift, c.session_start);
        self.splices.truncate(c.splices_before);
        let is_foreign = self.connection.is_foreign;
        let heard_until = if is_foreign { session } else { self.to_session(wire) };
        self.splices.push(Splice { wire, session, heard_until, is_foreign });
    }

    pub(super) fn splice_at(&self, wire: u64) -> usize {
        self.splices.partition_point(|s| s.wire <= wire).max(1) - 1
    }

    /// Our offset of the recogniser's byte `wire`.
    pub fn to_session(&self, wire: u64) -> u64 {
        self.in_splice(self.splice_at(wire), wire)
    }

    fn in_splice(&self, n: usize, wire: u64) -> u64 {
        let at = self.splices[n].session + wire.saturating_sub(self.splices[n].wire);
        self.splices.get(n + 1).filter(|next| next.is_foreign).map_or(at, |next| at.min(next.session))
    }

    /// The recogniser's count once our bytes up to `session` are sent on the present connection.
    fn to_wire(&self, session: u64) -> u64 {
        let c = &self.connection;
        c.wire_start + c.drift + session.saturating_sub(c.session_start)
    }

    pub fn is_final(&self, wire_id: &str) -> bool {
        self.finals.iter().any(|f| f.id == wire_id)
    }

    /// True for one of which a process before this one knew.
    pub fn is_final_of_earlier_process(&self, wire_id: &str) -> bool {
        self.finals.iter().any(|f| f.id == wire_id && f.said.is_none())
    }

    /// True when a final has come and what is said now is that final again, or a late guess. A final that has the id of
    /// another (some recognisers count anew, or give none) gets an id of its own instead. `is_timed` is false for one whose
    /// times are ours.
    pub fn is_repeated(&self, said: &mut Recognised, is_timed: bool) -> bool {
        let Some(known) = self.finals.iter().rev().find(|f| f.id == said.id) else {
            return said.is_final && is_timed && self.is_echo(said);
        };
        let is_same = known.said.as_ref().is_none_or(|(text, start_s, end_s)| {
            let is_there = said.start_s < *end_s && *start_s < said.end_s || said.start_s == *start_s;
            if is_timed { is_there } else { *text == said.text }
        });
        if is_same || !said.is_final {
            return true;
        }
        said.id = format!("{}@{}", said.id, (said.start_s * 1000.0) as u64);
        self.is_final(&said.id)
    }

    /// Nobody says the same words twice at one time: it is a final with another id, or with full stops put in.
    fn is_echo(&self, said: &Recognised) -> bool {
        let mut known = self.finals.iter().filter_map(|f| f.said.as_ref());
        let is_there = |start_s: f64, end_s: f64| {
            let shared_s = said.end_s.min(end_s) - said.start_s.max(start_s);
            shared_s * 2.0 > (said.end_s - said.start_s).max(end_s - start_s)
        };
        known.any(|(text, start_s, end_s)| is_there(*start_s, *end_s) && is_same_speech(text, &said.text))
    }

    pub fn note_final(&mut self, said: &Recognised) {
        let what = (said.text.clone(), said.start_s, said.end_s);
        self.remember_final(said.id.clone(), Some(what));
    }

    /// One of a process before this one.
    pub fn restore_final(&mut self, wire_id: &str) {
        self.remember_final(wire_id.to_owned(), None);
    }

    fn remember_final(&mut self, id: String, said: Option<(String, f64, f64)>) {
        self.finals.push_back(KnownFinal { id, said });
        if self.finals.len() > REMEMBERED_FINALS {
            self.finals.pop_front();
        }
    }

    pub fn finals(&self) -> impl Iterator<Item = &String> {
        self.finals.iter().map(|f| &f.id)
    }

    /// Unique in the epoch, and clean as the log wants it: the room's answer is matched by it.
    pub fn utterance_id(&self, wire_id: &str) -> String {
        clean::id(&format!("{}.{wire_id}", self.number)).into_owned()
    }

    /// The recogniser's time, in seconds, of our offset.
    pub fn seconds_of(&self, session: u64) -> f64 {
        let splice = self.splices.iter().rev().find(|s| s.session <= session).unwrap_or(&self.splices[0]);
        (splice.wire + session.saturating_sub(splice.session)) as f64 / (BYTES_PER_MS * 1000) as f64
    }

    /// Our offset of the recogniser's time, not bounded by what was sent.
    pub fn offset_of(&self, seconds: f64) -> u64 {
        self.to_session(wire_bytes(seconds))
    }

    /// Our offsets of a time span: each end by the splice in which its first or last sample lies.
    pub fn range_of(&self, start_s: f64, end_s: f64, sent: u64) -> Range<u64> {
        let (start, end) = (wire_bytes(start_s), wire_bytes(end_s));
        let (first, last) = (self.splice_at(start), self.splice_at(end.saturating_sub(1)));
        let at = |n: usize, wire: u64| self.in_splice(n, wire).min(sent);
        let start = at(first, start);
        start..at(last, end).max(start)
    }
}

/// The same words, whatever their case and punctuation.
fn is_same_speech(one: &str, other: &str) -> bool {
    let letters =
        |text: &str| text.chars().filter(|c| c.is_alphanumeric()).flat_map(char::to_lowercase).collect::<String>();
    one.trim() == other.trim() || Some(letters(one)).filter(|l| !l.is_empty()) == Some(letters(other))
}

/// Seconds of the recogniser's session as its count of bytes, on a sample.
pub(super) fn wire_bytes(seconds: f64) -> u64 {
    // A float that is negative or not a number becomes 0.
    ((seconds * 1000.0 * BYTES_PER_MS as f64 / 2.0).round() as u64).min(MAX_POSITION / 2) * 2
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn positions_that_no_audio_has_are_within_what_was_sent() {
        let mut session = SttSession::new(1, "s".into(), Secret::new("ws://x"), 6400, Instant::now());
        session.connected(6400, 6400);
        for end_s in [1e300, -1.0, f64::NAN] {
            let (text, language) = (" a".to_owned(), None);
            let said = Recognised {
                id: "1".into(),
                is_final: true,
                is_doubtful: false,
                text,
                start_s: 0.0,
                end_s,
                language,
                confidence: None,
                voice: None,
                words: vec![],
            };
            let span = session.keep(&said, 9600, |_| false).unwrap().span;
            assert!(span.start == 6400 && span.end <= 9600, "{span:?}");
        }
        assert_eq!(session.acked(u64::MAX - 1, u64::MAX, 9600), Some(9600));
        assert_eq!(session.acked(0, u64::MAX, 9600), None);
    }
}
