//! Two ingest nodes and two ws nodes on NATS. The victim publishes at the first ingest node, the bystander at the second;
//! each has a viewer at either ws node, and one that goes to the other ws node when its own is gone.

use std::time::Duration;

use nix::sys::signal::Signal;

use super::database::away as postgres_away;
use super::nodes::both_restarted;
use crate::harness::rig::Rig;
use crate::harness::{Fault, LONG_GRACE, Leg, PLAIN, Recovery, Split, lasts};

const NATS: Fault = Fault { split: Split::Nats { servers: 1 }, bystanders: 1, alone: true, ..PLAIN };
/// The whole cluster is struck.
const ALL: Fault = Fault { hits_all: true, ..NATS };

const BROKEN: &str = r#"bus_errors_total{kind="disconnected"}"#;
/// NATS has not answered.
const UNANSWERED: &str = r#"forward_posts_total{result="unsure"}"#;
const FULL: &str = r#"forward_posts_total{result="full"}"#;
const HANDED_OVER: &str = "rooms_handed_over_total ";

/// What the smallest log holds.
const LOG_BYTES: usize = 1 << 20;

/// The victim's publisher moves so often.
const MOVES: usize = 10;

pub const FAULTS: &[Fault] = &[
    Fault {
        name: "NATS: kill -9, away for 1 s",
        quick: true,
        proof: &[BROKEN],
        inject: |rig| Box::pin(killed(rig, 1)),
        ..ALL
    },
    Fault {
        name: "NATS: kill -9, away for 20 s",
        markers: 30,
        proof: &[BROKEN, UNANSWERED],
        inject: |rig| Box::pin(killed(rig, 20)),
        ..ALL
    },
    Fault {
        name: "NATS: kill -9, away for 60 s",
        markers: 64,
        proof: &[BROKEN, UNANSWERED],
        inject: |rig| Box::pin(killed(rig, 60)),
        ..ALL
    },
    Fault {
        name: "NATS: restarted by SIGTERM",
        proof: &[BROKEN],
        inject: |rig| {
            Box::pin(async {
                let nats = &mut rig.world.nats().await.servers[0];
                nats.stop().await;
                nats.start_again().await;
                Recovery::NextFinal
            })
        },
        ..ALL
    },
    Fault {
        name: "NATS: killed, back without its data",
        markers: 20,
        proof: &[r#"bus_errors_total{kind="reset"}"#],
        inject: |rig| {
            Box::pin(async {
                let nats = &mut rig.world.nats().await.servers[0];
                nats.kill();
                nats.start_empty().await;
                Recovery::NextFinal
            })
        },
        ..ALL
    },
    Fault {
        name: "NATS: frozen for 10 s",
        markers: 24,
        proof: &[UNANSWERED],
        inject: |rig| {
            Box::pin(async {
                let nats = &rig.world.nats().await.servers[0];
                nats.freeze().await;
                lasts(Duration::from_secs(10)).await;
                nats.thaw();
                Recovery::NextFinal
            })
        },
        ..ALL
    },
    Fault {
        name: "three NATS servers: the log's leader killed",
        split: Split::Nats { servers: 3 },
        markers: 24,
        proof: &[UNANSWERED],
        inject: |rig| {
            Box::pin(async {
                rig.world.nats().await.leader("SC_LOG").await.kill();
                Recovery::NextFinal
            })
        },
        ..ALL
    },
    Fault {
        name: "NATS full while Postgres is away",
        markers: 50,
        settings: &[("NATS_MAX_BYTES", "1MiB")],
        proof: &[FULL],
        inject: |rig| {
            Box::pin(async {
                rig.world.proxy.break_off();
                rig.post_lines(LOG_BYTES + LOG_BYTES / 4).await;
                lasts(Duration::from_secs(10)).await;
                rig.world.proxy.restore();
                Recovery::Took(rig.until_zero("outboxRows").await)
            })
        },
        ..ALL
    },
    Fault {
        name: "ingest node of NATS: kill -9, publisher goes to the other",
        quick: true,
        settings: &[LONG_GRACE],
        gap: Some("process_restart"),
        inject: |rig| {
            Box::pin(async {
                rig.world.end_ingest(0, Signal::SIGKILL).await;
                rig.move_publisher(1, rig.fault.markers).await;
                lasts(Duration::from_secs(3)).await;
                rig.world.start_ingest(0).await;
                Recovery::NextFinal
            })
        },
        ..NATS
    },
    Fault {
        name: "ingest node of NATS: SIGTERM, publisher goes to the other",
        settings: &[LONG_GRACE],
        gap: Some("publisher_lost"),
        inject: |rig| {
            Box::pin(async {
                rig.victim().note_cut();
                let code = rig.world.end_ingest(0, Signal::SIGTERM).await;
                if code != 0 {
                    rig.note(format!("SIGTERM's exit code is {code}"));
                }
                rig.move_publisher(1, rig.fault.markers).await;
                rig.world.start_ingest(0).await;
                Recovery::NextFinal
            })
        },
        ..NATS
    },
    Fault {
        name: "ingest node of NATS: SIGSTOP for 30 s, its room is taken over",
        markers: 34,
        settings: &[LONG_GRACE],
        gap: Some("process_restart"),
        inject: |rig| {
            Box::pin(async {
                rig.world.ingest(0).signal(Signal::SIGSTOP);
                rig.move_publisher(1, rig.fault.markers).await;
                lasts(Duration::from_secs(30)).await;
                rig.world.ingest(0).signal(Signal::SIGCONT);
                Recovery::NextFinal
            })
        },
        ..NATS
    },
    Fault {
        name: "publisher moves between ingest nodes every 2 s, ten times",
        settings: &[LONG_GRACE],
        gap: Some("publisher_lost"),
        proof: &[HANDED_OVER],
        inject: |rig| {
            Box::pin(async {
                for n in 1..=MOVES {
                    rig.move_publisher(n % 2, rig.fault.markers).await;
                    lasts(Duration::from_secs(2)).await;
                }
                Recovery::NextFinal
            })
        },
        ..NATS
    },
    Fault {
        name: "ws node of NATS: kill -9, away for 3 s",
        hits_all: true,
        inject: |rig| {
            Box::pin(async {
                rig.world.end_ws_node(0, Signal::SIGKILL).await;
                lasts(Duration::from_secs(3)).await;
                rig.world.start_ws_node(0).await;
                Recovery::NextFinal
            })
        },
        ..NATS
    },
    Fault {
        name: "ws nodes of NATS: both restarted, one after the other",
        markers: 20,
        inject: |rig| Box::pin(both_restarted(rig)),
        ..ALL
    },
    Fault {
        name: "two ws nodes of NATS: Postgres away 10 s",
        markers: 20,
        inject: |rig| Box::pin(postgres_away(rig, 10)),
        ..ALL
    },
    Fault {
        name: "between nodes and NATS: every connection cut",
        proof: &[BROKEN],
        inject: |rig| {
            Box::pin(async {
                rig.world.legs_of(Leg::Nats).iter().for_each(|way| way.cut());
                Recovery::NextFinal
            })
        },
        ..ALL
    },
    Fault {
        name: "between nodes and NATS: answers lost",
        markers: 32,
        proof: &[BROKEN, UNANSWERED],
        inject: |rig| {
            Box::pin(async {
                rig.world.legs_of(Leg::Nats).iter().for_each(|way| way.freeze_answers());
                Recovery::NextFinal
            })
        },
        ..ALL
    },
    Fault {
        name: "between nodes and NATS at 80 ms: every connection cut, what is on its way lost",
        far: &[Leg::Nats],
        proof: &[BROKEN],
        inject: |rig| {
            Box::pin(async {
                rig.world.legs_of(Leg::Nats).iter().for_each(|way| way.cut());
                Recovery::NextFinal
            })
        },
        ..ALL
    },
];

async fn killed(rig: &Rig, seconds: u64) -> Recovery {
    let nats = &mut rig.world.nats().await.servers[0];
    nats.kill();
    lasts(Duration::from_secs(seconds)).await;
    nats.start_again().await;
    Recovery::NextFinal
}
