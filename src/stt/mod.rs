//! The local recogniser and its Gladia-compatible service.

pub mod audio;
pub mod engine;
pub mod marker;
pub mod models;
pub mod moonshine;
