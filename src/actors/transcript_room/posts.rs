//! Entries from outside (POST broadcast): checked whole, then numbered like the session's own.

use std::collections::HashSet;

use super::writer::{Reply, Writer};
use super::{Answer, Broadcast, BroadcastAck, BroadcastRefusal};
use crate::actors::session_registry::BroadcastEntry;

impl Writer {
    pub(super) fn take_broadcast(&mut self, broadcast: Broadcast, reply: Answer) {
        if let Err(refusal) = self.check_broadcast(&broadcast) {
            let _ = reply.send(Err(refusal));
            return;
        }
        let Broadcast { entries, from_origin, .. } = broadcast;
        if let Some(ms) = from_origin.clock_offset_ms {
            self.core.log.set_clock_offset(ms);
        }
        if let Some(begins) = from_origin.begins.filter(|begins| *begins > self.assigned + 1) {
            let (after, missing) = (self.assigned, begins - self.assigned - 1);
            tracing::error!(session = %self.core.slug, after, missing, "entries of this log are not to be had any more");
            self.assigned = begins - 1;
            self.core.log.skip_to(self.assigned);
        }
        let mut ack = BroadcastAck { accepted: 0, duplicates: 0, seq: 0 };
        let mut ids = Vec::new();
        for BroadcastEntry { mut entry, .. } in entries {
            entry.clean();
            entry.set_epoch(self.core.epoch);
            if entry.is_interim() {
                let known = self.in_flight.contains(entry.id()) || !self.core.log.show_interim(&entry);
                if !known {
                    self.sink.show(&entry);
                }
                ack.duplicates += usize::from(known);
                ack.accepted += usize::from(!known);
                continue;
            }
            ids.push(entry.id().to_owned());
            if let Some(not_durable) = self.not_durable.remove(entry.id()) {
                self.hand_over(not_durable);
            }
            match self.append(entry) {
                Some(_) => ack.accepted += 1,
                None => ack.duplicates += 1,
            }
        }
        ack.seq = self.assigned;
        self.replies.push_back(Reply { ack, ids, answer: reply });
    }

    /// Before any of it is taken: a refused post changes nothing.
    fn check_broadcast(&self, broadcast: &Broadcast) -> Result<(), BroadcastRefusal> {
        let expected = self.assigned + 1;
        let (mut next, mut seen) = (expected, HashSet::new());
        if let Some(begins) = broadcast.from_origin.begins.filter(|begins| *begins > expected) {
            if !self.in_flight.is_empty() {
                return Err(BroadcastRefusal::Unavailable);
            }
            next = begins;
        }
        for BroadcastEntry { numbered, entry } in broadcast.entries.iter().filter(|e| !e.entry.is_interim()) {
            let is_known = self.in_flight.contains(entry.id()) || self.core.log.seq_of(entry.id()).is_some();
            if is_known || !seen.insert(entry.id()) {
                continue;
            }
            if *numbered && entry.seq() != Some(next) {
                return Err(BroadcastRefusal::Hole { expected });
            }
            if self.core.log.is_closed() {
                return Err(BroadcastRefusal::Ended { expected });
            }
            next += 1;
        }
        Ok(())
    }
}
