//! Two services: an ingest node and two ws nodes, which share a database. The victim's viewers are at the first of them.

use std::time::Duration;

use nix::sys::signal::Signal;

use crate::harness::rig::Rig;
use crate::harness::{Fault, LONG_GRACE, PLAIN, Recovery, Split, lasts};

const NODES: Fault = Fault { split: Split::Http, bystanders: 1, alone: true, ..PLAIN };

/// The ingest node has seen that a ws node does not answer.
const UNANSWERED: &str = r#"forward_posts_total{result="unsure"}"#;

pub const FAULTS: &[Fault] = &[
    Fault {
        name: "ws node: kill -9, away for 3 s",
        quick: true,
        proof: &[UNANSWERED],
        inject: |rig| {
            Box::pin(async {
                rig.world.end_ws_node(0, Signal::SIGKILL).await;
                lasts(Duration::from_secs(3)).await;
                rig.world.start_ws_node(0).await;
                Recovery::NextFinal
            })
        },
        ..NODES
    },
    Fault {
        name: "ws node: away for 20 s",
        markers: 32,
        proof: &[UNANSWERED],
        inject: |rig| {
            Box::pin(async {
                rig.world.end_ws_node(0, Signal::SIGTERM).await;
                lasts(Duration::from_secs(20)).await;
                rig.world.start_ws_node(0).await;
                Recovery::NextFinal
            })
        },
        ..NODES
    },
    Fault {
        name: "ws nodes: both restarted, one after the other",
        markers: 20,
        hits_all: true,
        proof: &[UNANSWERED],
        inject: |rig| Box::pin(both_restarted(rig)),
        ..NODES
    },
    Fault {
        name: "between the nodes: every connection cut",
        inject: |rig| {
            Box::pin(async {
                // A kept connection that is found closed is no failure: what shows is that there is another.
                let proxy = rig.world.way_of_ws(0);
                let before = proxy.accepted();
                proxy.cut();
                rig.until("the node connects again", || proxy.accepted() > before).await;
                Recovery::NextFinal
            })
        },
        ..NODES
    },
    Fault {
        name: "between the nodes: no connection for 10 s",
        markers: 20,
        proof: &[UNANSWERED],
        inject: |rig| {
            Box::pin(async {
                rig.world.way_of_ws(0).break_off();
                lasts(Duration::from_secs(10)).await;
                rig.world.way_of_ws(0).restore();
                Recovery::NextFinal
            })
        },
        ..NODES
    },
    Fault {
        name: "between the nodes: answers lost",
        proof: &[UNANSWERED],
        inject: |rig| {
            Box::pin(async {
                rig.world.way_of_ws(0).freeze();
                Recovery::NextFinal
            })
        },
        ..NODES
    },
    Fault {
        name: "ingest node: kill -9 under load",
        quick: true,
        hits_all: true,
        settings: &[LONG_GRACE],
        gap: Some("process_restart"),
        inject: |rig| {
            Box::pin(async {
                rig.restart(Signal::SIGKILL).await;
                Recovery::NextFinal
            })
        },
        ..NODES
    },
    Fault {
        name: "ingest node: SIGTERM under load",
        hits_all: true,
        settings: &[LONG_GRACE],
        gap: Some("process_restart"),
        status: Some("suspended"),
        inject: |rig| {
            Box::pin(async {
                rig.restart_in_order().await;
                Recovery::NextFinal
            })
        },
        ..NODES
    },
    Fault {
        name: "panic: Forwarder",
        proof: &[r#"actor_panics_total{kind="forwarder"}"#],
        inject: |rig| {
            Box::pin(async {
                rig.crash("forwarder").await;
                Recovery::NextFinal
            })
        },
        ..NODES
    },
];

/// Both ws nodes, one after the other, as an operator does it.
pub(super) async fn both_restarted(rig: &Rig) -> Recovery {
    for n in 0..2 {
        let code = rig.world.end_ws_node(n, Signal::SIGTERM).await;
        if code != 0 {
            rig.note(format!("SIGTERM's exit code is {code}"));
        }
        lasts(Duration::from_secs(1)).await;
        rig.world.start_ws_node(n).await;
    }
    Recovery::NextFinal
}
