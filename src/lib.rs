//! stenocast: live streams in by RTMP; live, stored, attributable text out.
//!
//! Start reading at [`app`] (what runs), then [`actors`] (who owns what) and [`log`] (what is said, in order).

pub mod actors;
pub mod app;
pub mod audio;
pub mod cli;
pub mod config;
pub mod db;
pub mod gladia;
pub mod http;
pub mod livekit;
pub mod log;
pub mod metrics;
pub mod rtmp;
pub mod stt;
pub mod viewers;
pub mod watchdog;
