//! The recogniser's protocol (Gladia Live v2): wire types, ledger, client.
//!
//! `wire` is what is said in both directions. `ledger` accounts for every byte of audio and maps times, `machine` decides
//! what to do next from the tables in `policy`, `status` says what viewers are told; all three without I/O. `client` is
//! the HTTP and WebSocket side, `driver` the loop that joins them inside the GladiaBridge actor.

pub mod client;
pub mod driver;
pub mod ledger;
pub mod machine;
pub mod policy;
pub mod status;
pub mod wire;
