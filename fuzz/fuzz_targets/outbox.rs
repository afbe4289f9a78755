//! The outbox's files after anything at all has happened to them: no panic, what lies before the damage is read back,
//! and the outbox goes on: a new record is taken and is read last.
//!
//! Input: a byte. Even: the rest is a segment file, byte by byte. Odd: the rest damages a good one, in steps of a
//! place (2 bytes), a kind (1) and a length or a value (1).

#![no_main]

use std::path::Path;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use libfuzzer_sys::fuzz_target;
use stenocast::config::Fsync;
use stenocast::transcript::outbox::{Consumer, Outbox, OutboxOptions, Record, Stored};
use stenocast::transcript::{Entry, Epoch, Gap, GapReason, SessionRecord, Slug};
use stenocast_fuzz::{Bytes, metrics, scratch};

const CONSUMER: &str = "database";
const GOOD_RECORDS: u64 = 12;
const MAX_DAMAGES: usize = 8;
const FRAME_HEADER_BYTES: usize = 20;

fn open(dir: &Path) -> Outbox {
    let options = OutboxOptions {
        data_dir: dir.to_owned(),
        fsync: Fsync::Interval,
        fsync_interval: Duration::from_secs(3600),
        max_bytes: 64 << 20,
        segment_bytes: 8 << 20,
        consumers: vec![CONSUMER.to_owned()],
    };
    Outbox::open(options, metrics()).expect("damage is no reason not to start").0
}

fn record(seq: u64) -> Record {
    let (session, epoch) = (Slug::parse("demo").expect("a slug"), Epoch::from_u128(7));
    if seq.is_multiple_of(5) {
        return Record::Session(Arc::new(SessionRecord::begun(epoch, session, Default::default())));
    }
    let id = format!("{seq}-{}", "x".repeat((seq * 37 % 150) as usize));
    let reason = GapReason::PublisherLost;
    let gap = Gap { session, epoch, seq: Some(seq), id, start_ms: seq, end_ms: seq + 1, reason, durable: true };
    Record::Entry(Arc::new(Entry::Gap(gap)))
}

/// A segment as the outbox writes it, and the ends of its frames.
fn good() -> &'static (Vec<u8>, Vec<usize>) {
    static GOOD: OnceLock<(Vec<u8>, Vec<usize>)> = OnceLock::new();
    GOOD.get_or_init(|| {
        let dir = scratch();
        let outbox = open(dir.path());
        let ends = (1..=GOOD_RECORDS).scan(0, |end, seq| {
            let record = record(seq);
            assert_eq!(block_on(outbox.append(&record)), Ok(seq));
            *end += FRAME_HEADER_BYTES + record.encode().expect("a record").len();
            Some(*end)
        });
        let ends = ends.collect();
        drop(outbox);
        (std::fs::read(segment(dir.path())).expect("a segment"), ends)
    })
}

fn segment(dir: &Path) -> std::path::PathBuf {
    dir.join("outbox").join(format!("{:020}.seg", 1))
}

fn block_on<F: Future>(future: F) -> F::Output {
    static RUNTIME: OnceLock<tokio::runtime::Runtime> = OnceLock::new();
    let build = || tokio::runtime::Builder::new_multi_thread().worker_threads(1).build().expect("a runtime");
    RUNTIME.get_or_init(build).block_on(future)
}

fn read_all(consumer: &Consumer) -> Vec<Stored> {
    let mut all = Vec::new();
    loop {
        let some = block_on(consumer.read(100)).expect("the files are there");
        if some.is_empty() {
            return all;
        }
        all.extend(some);
    }
}

/// Damages `file`; gives the place of the first damage.
fn damage(file: &mut Vec<u8>, input: &mut Bytes) -> usize {
    let mut first = file.len();
    for _ in 0..MAX_DAMAGES {
        if input.is_empty() {
            break;
        }
        let at = usize::from(input.u16()) % (file.len() + 1);
        let (kind, value) = (input.u8(), input.u8());
        match kind % 4 {
            0 => file.truncate(at),
            1 => drop(file.splice(at..at, std::iter::repeat_n(value, usize::from(kind)))),
            2 => drop(file.drain(at..(at + usize::from(value)).min(file.len()))),
            _ if at < file.len() => file[at] = value,
            _ => {}
        }
        first = first.min(at);
    }
    first
}

fuzz_target!(|data: &[u8]| {
    let mut input = Bytes(data);
    let is_raw = input.u8().is_multiple_of(2);
    let (good, ends) = good();
    let (file, intact) = if is_raw {
        (input.0.to_vec(), 0)
    } else {
        let mut file = good.clone();
        let first = damage(&mut file, &mut input);
        (file, ends.iter().filter(|end| **end <= first).count())
    };
    let dir = scratch();
    std::fs::create_dir(dir.path().join("outbox")).expect("a new directory");
    std::fs::write(segment(dir.path()), &file).expect("a new file");

    let outbox = open(dir.path());
    let found = read_all(&outbox.consumer(CONSUMER).expect("it was named"));
    assert!(found.len() >= intact, "{} of {intact} intact records", found.len());
    for (seq, stored) in (1..=intact as u64).zip(&found) {
        assert_eq!((stored.index, stored.record.as_ref()), (seq, Ok(&record(seq))));
    }
    assert!(found.is_sorted_by_key(|stored| stored.index));
    let tail = block_on(outbox.tail(Epoch::from_u128(7), 0, 1000)).expect("the files are there");
    assert!(tail.is_sorted_by_key(|entry| entry.seq()));

    let index = block_on(outbox.append(&record(1))).expect("there is room");
    drop(outbox);
    let again = read_all(&open(dir.path()).consumer(CONSUMER).expect("it was named"));
    assert_eq!(again.len(), found.len() + 1);
    assert_eq!(again.last().map(|stored| (stored.index, stored.record.as_ref())), Some((index, Ok(&record(1)))));
});
