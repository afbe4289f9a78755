//! LiveKit's protocols.
//!
//! Access tokens and the keys that sign them, its server API, its webhooks, the addresses of Track Egress, and what a
//! participant of ours says and hears in a room: signalling, WebRTC and captions.

pub mod api;
pub mod captions;
pub mod inbox;
pub mod keys;
pub mod model;
pub mod roster;
pub mod rtc;
pub mod signal;
pub mod signal_client;
pub mod token;
pub mod track_url;
pub mod webhook;
pub mod wire;
