//! What the log servers promise: the same contract for each of them, and what only one can show.

#[path = "../support/mod.rs"]
mod support;

#[macro_use]
mod contract;
mod memory;
mod nats;
