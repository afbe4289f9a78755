//! WebRTC to a LiveKit server, without I/O: one peer connection for each direction.
//!
//! str0m does ICE, DTLS and SCTP; no media is ever sent, and what the server sends of it is counted and dropped.

pub mod crypto;
pub mod peer;

pub use peer::{Datagram, Peer, PeerError, PeerEvent};
