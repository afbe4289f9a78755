//! The local recogniser and its Gladia-compatible service.

pub mod engine;
pub mod models;
pub mod moonshine;
