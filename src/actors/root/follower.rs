//! The follower of a node that shows what a log server has.

use actix::prelude::*;

use super::Root;
use crate::actors::follower::{Follower, FollowerParams};
use crate::actors::supervision::Lifeline;

impl Root {
    pub(super) fn is_following(&self) -> bool {
        let services = &self.params.services;
        services.log_server.is_some() && services.config.server.mode.serves()
    }

    pub(super) fn start_follower(&mut self, lifeline: Lifeline, ctx: &Context<Self>) {
        let services = &self.params.services;
        let Some(server) = services.log_server.clone() else { return };
        let params = FollowerParams {
            server,
            // Two nodes may have one name by mistake; their viewers are counted all the same.
            node: services.ownership.as_ref().map_or_else(String::new, |ownership| ownership.instance().to_owned()),
            registry: ctx.address().recipient(),
            directory: services.directory.clone(),
            reports: services.reports.clone(),
            metrics: services.metrics.clone(),
            caught_up: services.caught_up.clone(),
        };
        let follower = Follower::start(&self.params.arbiters[0], params, lifeline);
        self.follower.runs_at(Some(follower));
    }
}
