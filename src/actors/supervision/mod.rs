//! Supervision with OTP's semantics: restart kinds, intensity within a period, back-off, generations, escalation.
//!
//! `actix::Supervisor` restarts neither after a panic nor within a budget, so this small one is ours.

pub mod lifeline;
pub mod policy;
pub mod restarts;

pub use lifeline::{ChildDown, Exit, Lifeline};
pub use policy::{ChildKind, Policy, Restart};
pub use restarts::{Decision, Restarts, backoff};
