//! Faults of the drill's table, drawn without replacement, one round after another.

use std::panic::AssertUnwindSafe;
use std::rc::Rc;
use std::time::Duration;

use futures_util::FutureExt;
use rand::Rng;
use rand::seq::SliceRandom;

use super::life::Life;
use super::stage::Stage;
use crate::harness::Fault;
use crate::harness::faults;
use crate::harness::rig::{ROW_DEADLINE, Rig};

const RESTART: Option<&str> = Some("process_restart");

/// What may be drawn.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Drawn {
    All,
    /// Nothing that ends the server's process.
    AllButRestarts,
    /// Nothing but that, each once, however long it takes.
    RestartsAlone,
}

/// Faults of everything but the database, each with a victim of its own.
pub async fn general(stage: &Rc<Stage>, drawn: Drawn) {
    let suits = |fault: &Fault| {
        let restarts = fault.gap == RESTART;
        !fault.alone
            && !fault.has_local_recogniser
            && fault.disk_mib.is_none()
            && match drawn {
                Drawn::All => true,
                Drawn::AllButRestarts => !restarts,
                Drawn::RestartsAlone => restarts,
            }
    };
    let table: Vec<Fault> = faults::beside_the_database().into_iter().filter(suits).collect();
    if drawn == Drawn::RestartsAlone {
        for fault in table {
            strike(stage, fault).await;
        }
        return;
    }
    draw(stage, 1, table, async |fault| strike(stage, fault).await).await;
}

/// Faults of the database, beside the others; they have no victim, they are everybody's.
pub async fn of_the_database(stage: &Rc<Stage>, drawn: Drawn) {
    if drawn == Drawn::RestartsAlone {
        return;
    }
    let table = faults::of_the_database()
        .into_iter()
        .filter(|fault| fault.disk_mib.is_none() && !fault.pooled && !fault.alone)
        .collect();
    draw(stage, 2, table, async |fault| {
        let _no_restart = stage.process.read().await;
        let _nobody_looks = stage.database.write().await;
        let rig = Rig::new(fault, stage.world.clone(), Vec::new());
        let struck = contained(async {
            (fault.inject)(&rig).await;
        });
        report(stage, &rig, struck.await);
    })
    .await;
}

/// Rounds through the table, each in an order of its own, with pauses of up to ten seconds.
async fn draw(stage: &Rc<Stage>, purpose: u64, table: Vec<Fault>, strike: impl AsyncFn(Fault)) {
    let mut draws = stage.draws(purpose + 10 * stage.tally.borrow().strikes().1 as u64);
    let mut round = Vec::new();
    stage.pause(Duration::from_secs(5)).await;
    while !stage.is_over() {
        if round.is_empty() {
            round.clone_from(&table);
            round.shuffle(&mut draws);
        }
        let Some(fault) = round.pop() else { return };
        strike(fault).await;
        stage.pause(Duration::from_millis(draws.random_range(0..10_000))).await;
    }
}

/// A victim publishes and is struck; then it goes on to its end.
async fn strike(stage: &Rc<Stage>, fault: Fault) {
    let life = Life::begin(stage, "victim", fault.gap);
    let mut rig = Rig::new(fault, stage.world.clone(), vec![life.room.clone()]);
    let struck = contained(async {
        rig.speak().await;
        if fault.gap == RESTART {
            let _alone = stage.process.write().await;
            for other in stage.lives() {
                other.may_have("process_restart");
                if other.room.is_publishing() && other.room.slug != life.room.slug {
                    rig.rooms.push(other.room.clone());
                }
            }
            rig.strike().await;
        } else {
            rig.strike().await;
        }
    });
    let struck = struck.await;
    report(stage, &rig, struck);
    let stage = stage.clone();
    actix_rt::spawn(async move { life.finish(&stage).await });
}

/// Runs it to its end; false when it panics or hangs.
async fn contained(strike: impl Future<Output = ()>) -> bool {
    let strike = AssertUnwindSafe(strike).catch_unwind();
    tokio::time::timeout(ROW_DEADLINE, strike).await.is_ok_and(|end| end.is_ok())
}

fn report(stage: &Stage, rig: &Rig, struck: bool) {
    let name = rig.fault.name;
    eprintln!("{} {name}", if struck { "struck:" } else { "MISSED:" });
    stage.tally.borrow_mut().struck(name, struck);
    rig.take_problems().into_iter().for_each(|problem| stage.note(format!("{name}: {problem}")));
}
