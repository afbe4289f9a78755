//! What the integration tests share. Each test binary uses a part of it.
#![allow(dead_code)]

pub mod app;
pub mod browser;
pub mod certificates;
pub mod chaos_proxy;
pub mod cluster;
pub mod front;
pub mod http;
pub mod js_client;
pub mod livekit;
pub mod marked_speech;
pub mod modes;
pub mod nats;
pub mod nextjs;
pub mod npm;
pub mod pace;
pub mod parent;
pub mod pgbouncer;
pub mod postgres;
pub mod publisher;
pub mod raw_publisher;
pub mod recogniser;
pub mod rtmp;
pub mod rtmp_bytes;
pub mod server;
pub mod store;
pub mod stt;
pub mod viewer;
pub mod virtual_recogniser;
pub mod wait;
