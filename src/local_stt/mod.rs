//! The local recogniser and its Gladia-compatible service.
//!
//! `engine` says what an engine is; `moonshine` is the real one, `marker` the deterministic one of tests and drills.
//! `service` puts Gladia Live v2 in front of either.

pub mod audio;
pub mod engine;
pub mod marker;
pub mod models;
pub mod moonshine;
pub mod service;

pub use service::{EngineKind, Limits, SttError, SttOptions, SttService, parse_ready_line, serve};
