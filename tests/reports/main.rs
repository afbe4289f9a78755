//! Inputs that people met in the wild, one file a kind: the input as data, and the right answer to it.
//!
//! They come from public reports about RTMP servers, encoders, poolers, proxies, recognisers and caption pages. Each of
//! them failed here once.

#[path = "../support/mod.rs"]
mod support;

mod a_page_for_everybody;
mod aac_configurations;
mod audio;
mod backlogs_that_overlap;
mod broken_frames;
mod channels_that_cancel;
mod codecs_of_flash;
mod databases_of_others;
mod databases_that_sleep;
mod dead_viewer_connections;
mod frames_without_a_configuration;
mod odd_audio_tags;
mod pauses_that_timestamps_hide;
mod poolers_and_neighbours;
mod proxies_in_front;
mod quarantined_rows;
mod recogniser_habits;
mod recogniser_loops;
mod recogniser_messages;
mod rtmp_encoders;
mod rtmp_ends;
mod strings_that_databases_refuse;
mod timestamps_that_lie;
mod translations_out_of_order;
mod what_viewers_send;
mod words_cut_in_two;
