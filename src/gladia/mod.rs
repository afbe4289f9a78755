//! The recogniser's protocol (Gladia Live v2): wire types, ledger, client.

pub mod ledger;
pub mod wire;
