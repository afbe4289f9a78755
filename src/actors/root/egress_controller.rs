//! The controller of LiveKit's egresses, and what is brought to it.

use actix::prelude::*;

use super::Root;
use crate::actors::egress_controller::{
    EgressController, EgressControllerParams, EgressRefusal, EgressRun, NewsFromNode, PublishDenied, StartEgress,
    StopEgress,
};
use crate::actors::session_registry::{ExplainWaiting, NameInSession, SessionHere, SessionsHere};
use crate::actors::supervision::Lifeline;

impl Root {
    pub(super) fn start_egress_controller(&mut self, lifeline: Lifeline, ctx: &Context<Self>) {
        let params = EgressControllerParams {
            services: self.params.services.clone(),
            webhooks: self.params.webhooks.clone(),
            sessions: ctx.address().recipient(),
            end: ctx.address().recipient(),
            name: ctx.address().recipient(),
            explain: ctx.address().recipient(),
        };
        self.egress_controller.runs_at(Some(EgressController::start(params, lifeline)));
    }
}

/// Passes an order to the controller; one that is being restarted refuses.
macro_rules! order_egress {
    ($($message:ty => $answer:ty);+) => {$(
        impl Handler<$message> for Root {
            type Result = ResponseFuture<Result<$answer, EgressRefusal>>;

            fn handle(&mut self, message: $message, _: &mut Self::Context) -> Self::Result {
                let controller = self.egress_controller.addr();
                Box::pin(async move {
                    let controller = controller.ok_or(EgressRefusal::Restarting)?;
                    controller.send(message).await.unwrap_or(Err(EgressRefusal::Restarting))
                })
            }
        }
    )+};
}

order_egress!(StartEgress => EgressRun; StopEgress => Vec<String>);

/// Passes news to the controller; one that is being restarted asks LiveKit for what it has missed.
macro_rules! tell_controller {
    ($($message:ty),+) => {$(
        impl Handler<$message> for Root {
            type Result = ();

            fn handle(&mut self, message: $message, _: &mut Self::Context) {
                if let Some(controller) = self.egress_controller.addr() {
                    controller.do_send(message);
                }
            }
        }
    )+};
}

tell_controller!(NewsFromNode, PublishDenied);

/// Passes a question to the registry; one that is being restarted knows of no session.
macro_rules! ask_registry {
    ($($message:ty => $answer:ty);+) => {$(
        impl Handler<$message> for Root {
            type Result = ResponseFuture<$answer>;

            fn handle(&mut self, message: $message, _: &mut Self::Context) -> Self::Result {
                let registry = self.registry.addr();
                Box::pin(async move {
                    match registry {
                        Some(registry) => registry.send(message).await.unwrap_or_default(),
                        None => Default::default(),
                    }
                })
            }
        }
    )+};
}

ask_registry!(SessionsHere => Vec<SessionHere>; NameInSession => bool; ExplainWaiting => bool);
