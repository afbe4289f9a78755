//! The recogniser's protocol (Gladia Live v2): wire types, ledger, client.
//!
//! `wire` is what is said in both directions. `ledger` accounts for every byte of audio and maps times. `machine` decides
//! what to do next (its words are in `phase`) from the tables in `policy`; `heard` reads messages for it (with
//! `lenient`, since recognisers write what they write), `status` says what is published of it. None of these does I/O.
//! `client` is the HTTP and WebSocket side; the loop that joins them is in the `GladiaBridge` actor.

pub mod client;
pub mod endpoint;
pub mod heard;
pub mod ledger;
pub mod lenient;
pub mod machine;
pub mod phase;
pub mod policy;
pub mod status;
pub mod wire;
