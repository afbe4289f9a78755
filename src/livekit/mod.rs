//! LiveKit's protocols, without I/O: access tokens.

pub mod token;
