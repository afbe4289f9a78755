//! Promise 2: what was acknowledged survives `kill -9` in mid-write. A second run of this test binary is the victim.

use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use stenocast::config::Fsync;
use stenocast::metrics::Metrics;
use stenocast::transcript::outbox::{Outbox, OutboxOptions, Record};
use stenocast::transcript::{Entry, Epoch, Slug, Status, StatusChange};

const VICTIM_DIR: &str = "OUTBOX_KILL_DIR";
const ACKNOWLEDGED_BEFORE_KILL: usize = 2000;

fn options(dir: &Path) -> OutboxOptions {
    OutboxOptions {
        data_dir: dir.to_owned(),
        fsync: Fsync::Interval,
        fsync_interval: Duration::from_millis(5),
        max_bytes: 1 << 30,
        segment_bytes: 64 << 10,
        consumers: vec!["database".to_owned()],
    }
}

fn entry(seq: u64) -> Entry {
    Entry::Status(StatusChange {
        session: Slug::parse("demo").unwrap(),
        epoch: Epoch::from_u128(1),
        seq: Some(seq),
        id: format!("status-{seq}"),
        status: Status::Live,
        reason: Some("x".repeat(seq as usize % 700)),
        durable: true,
    })
}

/// Not a test of its own: does nothing unless started by the one below.
#[tokio::test]
async fn victim() {
    let Ok(dir) = std::env::var(VICTIM_DIR) else {
        return;
    };
    let (outbox, _) = Outbox::open(options(Path::new(&dir)), Arc::new(Metrics::new())).unwrap();
    let mut stdout = std::io::stdout();
    let mut seq = 0;
    loop {
        // Several at a time, as several rooms do.
        let appends: Vec<_> =
            (1..=8).map(|n| (seq + n, outbox.append(&Record::Entry(Arc::new(entry(seq + n)))))).collect();
        for (n, append) in appends {
            append.await.unwrap();
            writeln!(stdout, "acknowledged {n}").unwrap();
            seq = n;
        }
    }
}

#[tokio::test]
async fn nothing_acknowledged_is_lost_by_kill_9() {
    let dir = tempfile::tempdir().unwrap();
    let mut child = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "victim", "--nocapture", "--test-threads=1"])
        .env(VICTIM_DIR, dir.path())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    let number = |line: std::io::Result<String>| -> Option<u64> {
        line.ok()?.rsplit_once("acknowledged ").and_then(|(_, n)| n.parse().ok())
    };
    let mut acknowledged: Vec<u64> = lines.by_ref().filter_map(number).take(ACKNOWLEDGED_BEFORE_KILL).collect();
    child.kill().unwrap();
    child.wait().unwrap();
    // What it had said before it died. Its last line may be cut short: not a number that counts.
    let rest: Vec<u64> = lines.filter_map(number).collect();
    acknowledged.extend(&rest[..rest.len().saturating_sub(1)]);
    assert!(acknowledged.len() >= ACKNOWLEDGED_BEFORE_KILL, "the victim ended early: {}", acknowledged.len());

    let (outbox, recovery) = Outbox::open(options(dir.path()), Arc::new(Metrics::new())).unwrap();
    let consumer = outbox.consumer("database").unwrap();
    let mut found = Vec::new();
    loop {
        let some = consumer.read(500).await.unwrap();
        if some.is_empty() {
            break;
        }
        for stored in some {
            let Ok(Record::Entry(found_entry)) = stored.record else { panic!("an unreadable record") };
            let seq = found_entry.seq().unwrap();
            assert_eq!(*found_entry, entry(seq));
            found.push(seq);
        }
    }
    let expected: Vec<u64> = (1..=found.len() as u64).collect();
    assert_eq!(found, expected, "a hole, a double or a wrong order");
    assert!(found.len() as u64 >= *acknowledged.last().unwrap());
    assert_eq!(recovery.last_seq[&Epoch::from_u128(1)], found.len() as u64);
    assert_eq!(recovery.damage, []);
}
