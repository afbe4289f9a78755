//! The actors, one per file.
//!
//! `supervision` holds the policy table and the small supervisor toolkit, `edge` the queues between the actors of a
//! session, `session_core` what a session owns and its actors borrow, `services` what all sessions share.
//!
//! ```text
//! Root
//!  |- BatchWriter, SttProcess, RtmpListener, Forwarder, Follower, RoomKeeper, EgressController
//!  `- SessionRegistry
//!      `- Session(slug)            all on one arbiter
//!          |- TranscriptRoom
//!          |- SpeakerTracker
//!          |- GladiaBridge
//!          |- FfmpegDecoder
//!          |- RtmpConnection
//!          `- RoomParticipant, RoomCaptions   on a thread of their own
//! ```

pub mod batch_writer;
pub mod edge;
pub mod egress_controller;
pub mod ffmpeg_decoder;
pub mod follower;
pub mod forwarder;
pub mod gladia_bridge;
pub mod room_captions;
pub mod room_keeper;
pub mod room_participant;
pub mod root;
pub mod rtmp_connection;
pub mod rtmp_listener;
pub mod services;
pub mod session;
pub mod session_core;
pub mod session_registry;
pub mod speaker_tracker;
pub mod stt_process;
pub mod supervision;
pub mod track_activity;
pub mod transcript_room;
pub mod ws_client;

use actix::Message;

/// Tells an actor to stop at once; what must not be lost is in the session's core already.
#[derive(Debug, Clone, Copy, Message)]
#[rtype(result = "()")]
pub struct Shutdown;

/// Makes an actor panic. Reachable from code alone (tests and drills), never from a socket.
#[derive(Debug, Clone, Copy, Message)]
#[rtype(result = "()")]
pub struct Crash;

/// Gives an actor the handlers of [`Shutdown`] and [`Crash`].
#[macro_export]
macro_rules! stops_and_crashes {
    ($actor:ty) => {
        impl actix::Handler<$crate::actors::Shutdown> for $actor {
            type Result = ();

            fn handle(&mut self, _: $crate::actors::Shutdown, ctx: &mut Self::Context) {
                actix::ActorContext::stop(ctx);
            }
        }

        impl actix::Handler<$crate::actors::Crash> for $actor {
            type Result = ();

            fn handle(&mut self, _: $crate::actors::Crash, _: &mut Self::Context) {
                panic!("crash requested");
            }
        }
    };
}
