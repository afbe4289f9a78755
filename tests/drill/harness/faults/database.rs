//! Postgres, and the disk of the outbox before it. Recovery is measured from the mending to the last row's commit.

use std::time::{Duration, Instant};

use crate::harness::rig::{POLL, Rig};
use crate::harness::{Fault, PLAIN, Recovery, lasts};
use crate::support::wait::within;

/// They learn of the new setting when they come back.
const DISCONNECT_OTHERS: &str = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity \
    WHERE datname = current_database() AND pid <> pg_backend_pid()";
/// Statements that fail of deadlock before one succeeds.
const DEADLOCKS: u32 = 5;
const POOLER_RESTARTS: usize = 3;

/// The database has refused or failed at least once.
const FAILED: &[&str] = &[r#"connection_errors_total{kind="database"}"#];

pub const FAULTS: &[Fault] = &[
    Fault {
        name: "Postgres: away 10 s",
        proof: FAILED,
        quick: true,
        markers: 14,
        inject: |rig| Box::pin(away(rig, 10)),
        ..PLAIN
    },
    Fault {
        name: "Postgres: away 10 min (scaled: 30 s)",
        proof: FAILED,
        markers: 32,
        inject: |rig| Box::pin(away(rig, 30)),
        ..PLAIN
    },
    Fault {
        name: "Postgres: connections cut in mid batch",
        markers: 14,
        inject: |rig| {
            Box::pin(async {
                for cut in 0..6 {
                    // In the statement, then in the answer after its commit.
                    match cut % 2 {
                        0 => rig.world.proxy.cut_after_sent(300 + cut * 200),
                        _ => rig.world.proxy.cut_after_answered(1 + cut * 7),
                    }
                    lasts(Duration::from_millis(1500)).await;
                }
                if rig.world.proxy.cuts() < 4 {
                    rig.note(format!("only {} connections were cut", rig.world.proxy.cuts()));
                }
                Recovery::Took(rig.until_zero("outboxRows").await)
            })
        },
        ..PLAIN
    },
    Fault {
        name: "Postgres: 2 s a statement",
        markers: 14,
        inject: |rig| {
            Box::pin(async {
                on_insert(rig, "STATEMENT", "PERFORM pg_sleep(2); RETURN NULL;").await;
                lasts(Duration::from_secs(10)).await;
                rig.world.database.execute("DROP TRIGGER drill ON transcripts").await;
                Recovery::Took(rig.until_zero("outboxRows").await)
            })
        },
        ..PLAIN
    },
    Fault {
        name: "Postgres: read-only for 5 s",
        proof: FAILED,
        markers: 12,
        inject: |rig| {
            Box::pin(async {
                read_only(rig, "on").await;
                lasts(Duration::from_secs(5)).await;
                read_only(rig, "off").await;
                Recovery::Took(rig.until_zero("outboxRows").await)
            })
        },
        ..PLAIN
    },
    Fault {
        name: "Postgres: deadlock error x 5",
        proof: FAILED,
        markers: 14,
        inject: |rig| {
            Box::pin(async {
                rig.world.database.execute("DROP SEQUENCE IF EXISTS deadlocks; CREATE SEQUENCE deadlocks").await;
                let fail = format!(
                    "IF nextval('deadlocks') <= {DEADLOCKS} THEN RAISE EXCEPTION 'deadlock detected' \
                     USING ERRCODE = '40P01'; END IF; RETURN NEW;"
                );
                on_insert(rig, "ROW", &fail).await;
                let begun = Instant::now();
                let is_used_up = format!("SELECT 1 FROM deadlocks WHERE last_value > {DEADLOCKS}");
                let all_failed = async || !rig.world.database.query(&is_used_up).await.is_empty();
                let _ = within(Duration::MAX, POLL, all_failed).await;
                rig.until_zero("outboxRows").await;
                rig.world.database.execute("DROP TRIGGER drill ON transcripts").await;
                Recovery::Took(begun.elapsed())
            })
        },
        ..PLAIN
    },
    Fault {
        name: "Postgres behind PgBouncer, transaction mode: pooler restarted three times",
        pooled: true,
        markers: 14,
        inject: |rig| {
            Box::pin(async {
                for _ in 0..POOLER_RESTARTS {
                    let before = rig.world.proxy.accepted();
                    rig.world.restart_pooler().await;
                    rig.until("a new connection", || rig.world.proxy.accepted() > before).await;
                    // The next restart meets it at work.
                    lasts(Duration::from_secs(1)).await;
                }
                Recovery::Took(rig.until_zero("outboxRows").await)
            })
        },
        ..PLAIN
    },
    Fault {
        name: "disk full for 5 s",
        proof: &["outbox_errors_total "],
        markers: 14,
        disk_mib: Some(8),
        inject: |rig| {
            Box::pin(async {
                let filler = rig.server().inside(rig.world.dir()).join("filler");
                let full = fill(&filler);
                assert_eq!(full.kind(), std::io::ErrorKind::StorageFull, "{full}");
                lasts(Duration::from_secs(5)).await;
                std::fs::remove_file(&filler).expect("the filler is ours");
                Recovery::NextFinal
            })
        },
        ..PLAIN
    },
];

pub async fn away(rig: &Rig, seconds: u64) -> Recovery {
    rig.world.proxy.break_off();
    lasts(Duration::from_secs(seconds)).await;
    rig.world.proxy.restore();
    Recovery::Took(rig.until_zero("outboxRows").await)
}

/// Runs PL/pgSQL with every insert of entries.
async fn on_insert(rig: &Rig, each: &str, body: &str) {
    let function = format!(
        "CREATE OR REPLACE FUNCTION drill() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN {body} END $$; \
         CREATE TRIGGER drill BEFORE INSERT ON transcripts FOR EACH {each} EXECUTE FUNCTION drill()"
    );
    rig.world.database.execute(&function).await;
}

async fn read_only(rig: &Rig, value: &str) {
    let client = rig.world.database.connect().await;
    // This connection may have begun read-only itself; the two statements must not be one transaction.
    client.batch_execute("SET default_transaction_read_only = off").await.expect("a setting of our own");
    let sql = format!("ALTER DATABASE {} SET default_transaction_read_only = {value}", rig.world.database.name);
    client.batch_execute(&sql).await.expect("the setting is changed");
    client.batch_execute(DISCONNECT_OTHERS).await.expect("they are disconnected");
}

/// Writes until the disk says no.
fn fill(path: &std::path::Path) -> std::io::Error {
    use std::io::Write;
    let mut file = std::fs::File::create(path).expect("a file on the server's disk");
    let piece = vec![0; 4096];
    loop {
        if let Err(error) = file.write_all(&piece) {
            return error;
        }
    }
}
