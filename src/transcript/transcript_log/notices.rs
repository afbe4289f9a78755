//! What viewers are told beside the log: that this node hears nothing new of it, and that it does again.

use bytestring::ByteString;
use parking_lot::MutexGuard;

use super::{Item, State, TranscriptLog};
use crate::transcript::{Entry, Status, StatusChange};

/// A status that has no place in the log.
pub(super) struct Notice {
    version: u64,
    status: Status,
    json: ByteString,
    /// The log's own status holds again: who has not seen the other one need not know.
    is_over: bool,
}

impl Notice {
    /// None: a viewer that has read up to this version knows it, or one that begins need not.
    pub fn after(&self, seen: u64) -> Option<Item> {
        let is_new = self.version > seen && !(self.is_over && seen == 0);
        is_new.then(|| Item { seq: None, json: self.json.clone(), stamp: None })
    }
}

impl TranscriptLog {
    /// Tells viewers, those to come included, a status that has no number and is not kept. Once, however often it is said.
    pub fn notice(&self, status: Status, reason: &str) {
        let state = self.state.lock();
        let is_told = state.notice.as_ref().is_some_and(|notice| !notice.is_over && notice.status == status);
        if !is_told && !state.closed {
            self.say(state, status, reason, false);
        }
    }

    /// The log's own status holds again, if it was told that another one does.
    pub fn take_back_notice(&self, reason: &str) {
        let state = self.state.lock();
        if state.notice.as_ref().is_some_and(|notice| !notice.is_over) {
            let status = state.status;
            self.say(state, status, reason, true);
        }
    }

    fn say(&self, mut state: MutexGuard<'_, State>, status: Status, reason: &str, is_over: bool) {
        let version = state.version + 1;
        let change = StatusChange {
            session: self.slug.clone(),
            epoch: self.epoch,
            seq: None,
            id: format!("notice:{version}"),
            status,
            reason: Some(reason.to_owned()),
            durable: true,
        };
        state.notice = Some(Notice { version, status, json: Entry::Status(change).to_json(), is_over });
        self.bump(state);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::transcript::{Cursor, Epoch, Read, Slug};

    fn read(log: &TranscriptLog, cursor: &mut Cursor) -> Vec<(Status, Option<String>)> {
        let Read::Items(items) = log.read(cursor, 9) else { panic!("nothing has left the ring") };
        let status = |item: &Item| match serde_json::from_str(&item.json).unwrap() {
            Entry::Status(change) if change.seq.is_none() => (change.status, change.reason),
            other => panic!("{other:?}"),
        };
        items.iter().map(status).collect()
    }

    #[test]
    fn a_notice_is_read_once_by_everybody_until_it_is_over() {
        let log = TranscriptLog::new(Slug::parse("demo").unwrap(), Epoch::nil(), 0, 9, 1 << 20);
        log.assume(Status::Live);
        log.take_back_notice("back");
        let (mut early, mut late) = (Cursor::after(0), Cursor::after(0));
        assert_eq!(read(&log, &mut early), []);
        log.notice(Status::Degraded, "away");
        log.notice(Status::Degraded, "away");
        let away = [(Status::Degraded, Some("away".to_owned()))];
        assert_eq!((read(&log, &mut early), read(&log, &mut late)), (away.to_vec(), away.to_vec()));
        assert_eq!(read(&log, &mut early), []);
        log.take_back_notice("back");
        log.take_back_notice("back");
        assert_eq!(read(&log, &mut early), [(Status::Live, Some("back".to_owned()))]);
        assert_eq!(read(&log, &mut Cursor::after(0)), [], "the hello has told it");
        assert_eq!((log.last_seq(), log.status()), (0, Status::Live));
    }
}
