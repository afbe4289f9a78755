//! Supervision with OTP's semantics: restart kinds, intensity within a period, back-off, generations, escalation.
//!
//! `actix::Supervisor` restarts neither after a panic nor within a budget, so this small one is ours.

pub mod lifeline;
pub mod observe;
pub mod policy;
pub mod restarts;
pub mod supervised;
#[cfg(test)]
pub mod testing;

pub use lifeline::{ChildDown, Exit, Lifeline};
pub use observe::{Answer, Observable, Observe, observe};
pub use policy::{ChildKind, Policy, Restart, Scope};
pub use restarts::{Decision, Restarts, backoff};
pub use supervised::{ChildState, Supervised};
