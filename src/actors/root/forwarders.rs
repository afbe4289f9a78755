//! The forwarders of a node that only ingests: one for each ws node, or one for the log server that all nodes share.

use std::rc::Rc;
use std::time::Duration;

use actix::prelude::*;
use futures_util::future::join_all;

use super::Root;
use crate::actors::batch_writer::Flush;
use crate::actors::forwarder::{Forwarder, ForwarderParams, ForwarderState, MakeBus};
use crate::actors::supervision::{ChildDown, ChildKind, ChildState, Supervised};
use crate::actors::{Crash, Shutdown};
use crate::bus::Bus;
use crate::bus::cluster::ClusterBus;
use crate::bus::http::HttpBus;
use crate::config::{BusKind, Config};

/// One for each target, in the order of `WS_SERVER_URL`.
#[derive(Default)]
pub(super) struct Forwarders {
    all: Vec<Supervised<Forwarder>>,
    /// Counted over all of them: a report of an end names one.
    generation: u64,
}

impl Forwarders {
    fn addrs(&self) -> impl Iterator<Item = Addr<Forwarder>> {
        self.all.iter().filter_map(Supervised::addr)
    }

    pub fn crash(&self) -> bool {
        self.addrs().map(|forwarder| forwarder.do_send(Crash)).count() > 0
    }

    pub fn stop(&mut self) {
        for forwarder in self.all.iter_mut().filter_map(Supervised::give_up) {
            forwarder.do_send(Shutdown);
        }
    }

    /// Answers how many rows are left for the target that lacks most.
    pub fn flush(&self, flush: Flush) -> impl Future<Output = u64> + use<> {
        let flushed: Vec<_> = self.addrs().map(|forwarder| forwarder.send(flush)).collect();
        async move { join_all(flushed).await.into_iter().map(Result::unwrap_or_default).max().unwrap_or(0) }
    }

    pub fn observe(&self, timeout: Duration) -> impl Future<Output = Vec<ChildState<ForwarderState>>> + use<> {
        join_all(self.all.iter().map(|forwarder| forwarder.observe(timeout)).collect::<Vec<_>>())
    }
}

/// Name of the log server among targets.
const LOG_SERVER: &str = "nats";

/// Where a node that only ingests sends its logs: consumers of the outbox, by name.
pub fn targets(config: &Config) -> Vec<String> {
    match config.split.bus {
        _ if config.server.mode.serves() => Vec::new(),
        BusKind::Http => config.split.ws_server_urls.clone(),
        BusKind::Nats => vec![LOG_SERVER.to_owned()],
    }
}

impl Root {
    pub(super) fn start_forwarders(&mut self, ctx: &mut Context<Self>) {
        let config = &self.params.services.config;
        for n in 0..targets(config).len() {
            self.forwarders.all.push(Supervised::new(ChildKind::Forwarder));
            self.start_forwarder(n, ctx);
        }
    }

    fn start_forwarder(&mut self, n: usize, ctx: &mut Context<Self>) {
        self.forwarders.generation += 1;
        let generation = self.forwarders.generation;
        let services = self.params.services.clone();
        let parent = ctx.address().recipient();
        let mut lifeline = self.forwarders.all[n].begin_as(generation, parent, &services.metrics);
        let config = services.config.clone();
        let url = targets(&config)[n].clone();
        let outbox = self.params.storage.outbox.clone();
        let queue = match outbox.consumer(&url) {
            Ok(queue) => queue,
            Err(error) => return lifeline.fail(error.to_string()),
        };
        let params = ForwarderParams {
            url: url.clone(),
            queue,
            outbox,
            max_outbox_bytes: config.store.outbox_max_bytes,
            directory: services.directory.clone(),
            metrics: services.metrics.clone(),
        };
        let tls = self.params.tls.clone();
        let bus: MakeBus = match (services.ownership.clone(), config.auth.broadcast_token.clone()) {
            (Some(ownership), _) => Box::new(move || Rc::new(ClusterBus::new(ownership)) as Rc<dyn Bus>),
            (None, Some(token)) => {
                Box::new(move || Rc::new(HttpBus::new(&url, token, &config.split, tls)) as Rc<dyn Bus>)
            }
            (None, None) => return lifeline.fail("no BROADCAST_TOKEN".to_owned()),
        };
        let arbiter = &self.params.arbiters[n % self.params.arbiters.len()];
        let forwarder = Forwarder::start(arbiter, params, bus, lifeline);
        self.forwarders.all[n].runs_at(Some(forwarder));
    }

    pub(super) fn forwarder_down(&mut self, down: &ChildDown, ctx: &mut Context<Self>) {
        let Some(n) = self.forwarders.all.iter().position(|one| one.generation() == down.generation) else { return };
        let decision = self.forwarders.all[n].decide(down);
        if let Some(delay) = self.restart_delay(down, decision) {
            ctx.run_later(delay, move |this, ctx| this.start_forwarder(n, ctx));
        }
    }
}
