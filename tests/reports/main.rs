//! Inputs that people met in the wild, one file a kind: the input as data, and the right answer to it.
//!
//! They come from public reports about RTMP servers, encoders, poolers, proxies, recognisers and caption pages. Each of
//! them failed here once.

#[path = "../support/browser.rs"]
mod browser;
#[path = "../support/http.rs"]
mod http;
#[path = "../support/js_client.rs"]
mod js_client;
#[path = "../support/mod.rs"]
mod support;

mod a_page_for_everybody;
mod dead_viewer_connections;
mod poolers_and_neighbours;
mod strings_that_databases_refuse;
mod what_viewers_send;
