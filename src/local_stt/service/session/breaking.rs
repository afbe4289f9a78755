//! Ends of a session's connection that are not the client's wish: faults by order, and the service's own stop.

use std::time::Duration;

use actix::prelude::*;

use super::Session;
use crate::local_stt::service::faults::FaultOrder;
use crate::local_stt::service::socket::ToSocket;

const CLOSE_RESTART: u16 = 1012;

/// A fault order that reaches this session.
#[derive(Message)]
#[rtype(result = "()")]
pub struct Break(pub FaultOrder);

/// The service stops: the client may come back to its successor.
#[derive(Message)]
#[rtype(result = "()")]
pub struct ServiceStops;

impl Session {
    fn half_open(&mut self) {
        if let Some(connection) = &self.out.connection {
            connection.socket.do_send(ToSocket::Mute);
            self.half_open = true;
            self.valve.set_open(false);
        }
    }
}

impl Handler<Break> for Session {
    type Result = ();

    fn handle(&mut self, Break(order): Break, ctx: &mut Self::Context) {
        self.faults.apply(&order);
        if let Some(ms) = order.stall_results_ms {
            self.out.stall(Duration::from_millis(ms));
            // What waits has another time to be sent at.
            self.flush(ctx);
        }
        if order.half_open {
            self.half_open();
        }
        if let Some(code) = order.close
            && let Some(connection) = self.detach()
        {
            connection.socket.do_send(ToSocket::Close(code, "fault switch"));
        }
        if (order.reset || order.forget)
            && let Some(connection) = self.detach()
        {
            connection.reset();
        }
        if order.forget {
            self.service.registry.forget(&self.ticket.id);
            ctx.stop();
        }
    }
}

impl Handler<ServiceStops> for Session {
    type Result = ();

    fn handle(&mut self, _: ServiceStops, ctx: &mut Self::Context) {
        if let Some(connection) = self.detach() {
            connection.socket.do_send(ToSocket::Close(CLOSE_RESTART, "service restarts"));
        }
        ctx.stop();
    }
}
