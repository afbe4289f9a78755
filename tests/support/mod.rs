//! What the integration tests share. Each test binary uses a part of it.
#![allow(dead_code)]

pub mod app;
pub mod chaos_proxy;
pub mod pgbouncer;
pub mod postgres;
pub mod publisher;
pub mod raw_publisher;
pub mod rtmp_bytes;
pub mod server;
pub mod store;
pub mod stt;
pub mod viewer;
