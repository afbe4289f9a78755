//! What is broken on purpose, in tests and drills.

use std::time::Duration;

use actix::prelude::*;

use super::Root;
use crate::actors::Crash;
use crate::actors::session_registry::CrashActor;
use crate::actors::supervision::ChildKind;
use crate::transcript::Slug;

/// Breaks something on purpose. False when there is no such thing.
#[derive(Debug, Message)]
#[rtype(result = "bool")]
pub enum Drill {
    Crash {
        slug: Option<Slug>,
        kind: ChildKind,
    },
    /// A panic in the root itself, which nobody repairs.
    CrashRoot,
    /// Blocks the first session thread.
    Hog(Duration),
}

impl Handler<Drill> for Root {
    type Result = ResponseFuture<bool>;

    fn handle(&mut self, drill: Drill, _: &mut Self::Context) -> Self::Result {
        tracing::warn!(?drill, "drill");
        let done = match drill {
            Drill::CrashRoot => panic!("crash requested"),
            Drill::Hog(duration) => {
                self.params.arbiters.first().is_some_and(|a| a.spawn_fn(move || std::thread::sleep(duration)))
            }
            Drill::Crash { kind: ChildKind::BatchWriter, .. } => crash(self.batch_writer.addr()),
            Drill::Crash { kind: ChildKind::SessionRegistry, .. } => crash(self.registry.addr()),
            Drill::Crash { kind: ChildKind::RtmpListener, .. } => crash(self.rtmp_listener.addr()),
            Drill::Crash { kind: ChildKind::Forwarder, .. } => self.forwarders.crash(),
            Drill::Crash { kind: ChildKind::RoomKeeper, .. } => crash(self.room_keeper.addr()),
            Drill::Crash { kind: ChildKind::Follower, .. } => crash(self.follower.addr()),
            Drill::Crash { kind: ChildKind::EgressController, .. } => crash(self.egress_controller.addr()),
            Drill::Crash { kind: ChildKind::SttProcess, .. } => crash(self.stt_process.addr()),
            Drill::Crash { slug: Some(slug), kind } => {
                let crash = CrashActor { slug, kind };
                self.registry.addr().map(|registry| registry.do_send(crash)).is_some()
            }
            Drill::Crash { slug: None, .. } => false,
        };
        Box::pin(async move { done })
    }
}

/// False when there is none to crash.
fn crash<A>(actor: Option<Addr<A>>) -> bool
where
    A: Actor<Context = Context<A>> + Handler<Crash>,
{
    actor.map(|actor| actor.do_send(Crash)).is_some()
}
