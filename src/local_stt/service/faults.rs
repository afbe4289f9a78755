//! Fault switches, for tests and drills. They exist only with `--faults`.
//!
//! `POST /faults` takes a JSON object of the keys below and answers `{"sessions": n}`, the sessions that it reached;
//! `DELETE /faults` switches everything off. With `"session": id` only that session is meant, else the whole service:
//! every present session and, for what lasts, every later one.
//!
//! | key | value | does | lasts |
//! |---|---|---|---|
//! | `reset` | true | TCP reset of the session's socket | now |
//! | `close` | code | closes the socket with this code | now |
//! | `half_open` | true | reads and answers nothing more, keeps the socket | this connection |
//! | `forget` | true | the session is gone: reset, then 403 | now |
//! | `refuse_posts` | {status, times, retry_after} | the next `times` POSTs get `status` (and Retry-After in s) | until used up |
//! | `refuse_upgrades` | {status, times, retry_after} | the same for WebSocket upgrades | until used up |
//! | `stall_results_ms` | ms | results wait so long, acknowledgements do not; 0 lets them go | from now, once |
//! | `lose_acks` | bool | acknowledgements are counted and not sent | until off |
//! | `delay_acks_ms` | ms | audio is acknowledged (and taken) so much later | until 0 |
//! | `duplicate_finals` | bool | each final is sent twice | until off |
//! | `late_finals_ms` | ms | finals come so much later, interims do not | until 0 |
//! | `reorder_finals` | bool | finals change places in pairs | until off |
//! | `withhold_finals` | bool | finals are not sent, their interims and translations are | until off |
//! | `session_cap_s` | seconds of audio | the session ends by itself there | until null |

use serde::{Deserialize, Deserializer, Serialize};

/// One order; what is absent stays as it is.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct FaultOrder {
    pub session: Option<String>,
    pub reset: bool,
    pub close: Option<u16>,
    pub half_open: bool,
    pub forget: bool,
    pub refuse_posts: Option<Refusals>,
    pub refuse_upgrades: Option<Refusals>,
    pub stall_results_ms: Option<u64>,
    pub lose_acks: Option<bool>,
    pub delay_acks_ms: Option<u64>,
    pub duplicate_finals: Option<bool>,
    pub late_finals_ms: Option<u64>,
    pub reorder_finals: Option<bool>,
    pub withhold_finals: Option<bool>,
    #[serde(deserialize_with = "given")]
    pub session_cap_s: Option<Option<f64>>,
    /// Everything off first (what DELETE sends).
    #[serde(skip)]
    pub clear: bool,
}

/// Tells `null` from an absent key.
fn given<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Option<f64>>, D::Error> {
    Option::deserialize(deserializer).map(Some)
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Refusals {
    pub status: u16,
    #[serde(default = "once")]
    pub times: u32,
    #[serde(default)]
    pub retry_after: Option<u64>,
}

fn once() -> u32 {
    1
}

impl Refusals {
    /// Uses one up; `None` when there is none left.
    pub fn take(slot: &mut Option<Self>) -> Option<Self> {
        let refusals = slot.as_mut()?;
        refusals.times = refusals.times.checked_sub(1)?;
        Some(*refusals)
    }
}

/// The faults of a session that last.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Lasting {
    pub lose_acks: bool,
    pub delay_acks_ms: u64,
    pub duplicate_finals: bool,
    pub late_finals_ms: u64,
    pub reorder_finals: bool,
    pub withhold_finals: bool,
    pub session_cap_s: Option<f64>,
}

impl Lasting {
    pub fn apply(&mut self, order: &FaultOrder) {
        if order.clear {
            *self = Self::default();
        }
        self.lose_acks = order.lose_acks.unwrap_or(self.lose_acks);
        self.delay_acks_ms = order.delay_acks_ms.unwrap_or(self.delay_acks_ms);
        self.duplicate_finals = order.duplicate_finals.unwrap_or(self.duplicate_finals);
        self.late_finals_ms = order.late_finals_ms.unwrap_or(self.late_finals_ms);
        self.reorder_finals = order.reorder_finals.unwrap_or(self.reorder_finals);
        self.withhold_finals = order.withhold_finals.unwrap_or(self.withhold_finals);
        self.session_cap_s = order.session_cap_s.unwrap_or(self.session_cap_s);
    }
}

/// The faults of the service.
#[derive(Debug, Default)]
pub struct ServiceFaults {
    pub posts: Option<Refusals>,
    pub upgrades: Option<Refusals>,
    /// The faults that a new session begins with.
    pub lasting: Lasting,
}

impl ServiceFaults {
    pub fn apply(&mut self, order: &FaultOrder) {
        if order.clear {
            *self = Self::default();
        }
        self.posts = order.refuse_posts.or(self.posts);
        self.upgrades = order.refuse_upgrades.or(self.upgrades);
        self.lasting.apply(order);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_order_changes_only_what_it_names() {
        let mut lasting = Lasting::default();
        let order = |json| serde_json::from_str::<FaultOrder>(json).unwrap();
        lasting.apply(&order(r#"{"lose_acks":true,"session_cap_s":2}"#));
        lasting.apply(&order(r#"{"late_finals_ms":50}"#));
        assert_eq!((lasting.lose_acks, lasting.late_finals_ms, lasting.session_cap_s), (true, 50, Some(2.0)));
        lasting.apply(&order(r#"{"session_cap_s":null,"lose_acks":false}"#));
        assert_eq!((lasting.lose_acks, lasting.session_cap_s), (false, None));
        assert!(serde_json::from_str::<FaultOrder>(r#"{"drop":true}"#).is_err());
    }

    #[test]
    fn refusals_are_used_up() {
        let mut slot = Some(Refusals { status: 503, times: 2, retry_after: None });
        assert!(Refusals::take(&mut slot).is_some());
        assert!(Refusals::take(&mut slot).is_some());
        assert_eq!(Refusals::take(&mut slot), None);
    }
}
