//! Inputs that people met in the wild, one file a kind: the input as data, and the right answer to it.
//!
//! They come from public reports about RTMP servers, encoders, poolers, proxies, recognisers and caption pages. Each of
//! them failed here once.

#[path = "../support/mod.rs"]
mod support;

mod strings_that_databases_refuse;
