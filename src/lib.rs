//! stenocast: live streams in by RTMP; live, stored, attributable text out.
//!
//! Start reading at [`app`] (what runs), then [`actors`] (who owns what) and [`transcript`] (what is said, in order).

pub mod actors;
pub mod allowance;
pub mod app;
pub mod audio;
pub mod bus;
pub mod cli;
pub mod config;
pub mod db;
pub mod gladia;
pub mod http;
pub mod livekit;
pub mod local_stt;
pub mod metrics;
pub mod rtmp;
pub mod transcript;
pub mod viewers;
pub mod watchdog;
