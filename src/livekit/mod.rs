//! LiveKit's protocols, without I/O: access tokens and the keys that sign them.

pub mod keys;
pub mod token;
