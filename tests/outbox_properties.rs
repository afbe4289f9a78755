//! Promise 2, on the disk's side: what the outbox has taken is read back in order whatever happens to the files.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use proptest::prelude::*;
use stenocast::config::Fsync;
use stenocast::metrics::Metrics;
use stenocast::transcript::outbox::{Consumer, Outbox, OutboxError, OutboxOptions, Record};
use stenocast::transcript::{Entry, Epoch, Gap, GapReason, SessionRecord, Slug};

const DATABASE: &str = "database";

fn options(dir: &Path) -> OutboxOptions {
    OutboxOptions {
        data_dir: dir.to_owned(),
        fsync: Fsync::Interval,
        fsync_interval: Duration::from_millis(1),
        max_bytes: 64 << 20,
        segment_bytes: 2 << 10,
        consumers: vec![DATABASE.to_owned()],
    }
}

fn open(options: OutboxOptions) -> Outbox {
    Outbox::open(options, Arc::new(Metrics::new())).unwrap().0
}

/// A gap entry whose id has `length` characters.
fn record(epoch: u128, seq: u64, length: usize) -> Record {
    Record::Entry(Arc::new(Entry::Gap(Gap {
        session: Slug::parse("demo").unwrap(),
        epoch: Epoch::from_u128(epoch),
        seq: Some(seq),
        id: format!("{seq}-{}", "x".repeat(length)),
        start_ms: 0,
        end_ms: seq,
        reason: GapReason::PublisherLost,
        durable: true,
    })))
}

async fn append_all(outbox: &Outbox, lengths: &[usize]) -> Vec<Record> {
    let records: Vec<_> = (1..).zip(lengths).map(|(seq, length)| record(1, seq, *length)).collect();
    let appends: Vec<_> = records.iter().map(|r| outbox.append(r)).collect();
    for (n, append) in (1..).zip(appends) {
        assert_eq!(append.await, Ok(n));
    }
    records
}

async fn read_all(consumer: &Consumer) -> Vec<Record> {
    let mut all = Vec::new();
    loop {
        let some = consumer.read(7).await.unwrap();
        if some.is_empty() {
            return all;
        }
        all.extend(some.into_iter().map(|s| s.record.unwrap()));
    }
}

fn segments(dir: &Path) -> Vec<PathBuf> {
    let files = std::fs::read_dir(dir.join("outbox")).unwrap().map(|f| f.unwrap().path());
    let mut segments: Vec<_> = files.filter(|p| p.extension().is_some_and(|e| e == "seg")).collect();
    segments.sort();
    segments
}

fn block_on<F: Future>(future: F) -> F::Output {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(future)
}

/// True when `part` is `whole` with some records left out.
fn is_subsequence(part: &[Record], whole: &[Record]) -> bool {
    let mut rest = whole.iter();
    part.iter().all(|p| rest.any(|w| w == p))
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn a_file_cut_anywhere_gives_back_a_prefix(
        lengths in prop::collection::vec(0usize..600, 1..40),
        cut in 0.0f64..1.0,
    ) {
        block_on(async {
            let dir = tempfile::tempdir().unwrap();
            let outbox = open(options(dir.path()));
            let written = append_all(&outbox, &lengths).await;
            drop(outbox);
            let last = segments(dir.path()).pop().unwrap();
            let bytes = std::fs::metadata(&last).unwrap().len();
            let keep = (bytes as f64 * cut) as u64;
            std::fs::File::options().write(true).open(&last).unwrap().set_len(keep).unwrap();

            let (outbox, recovery) = Outbox::open(options(dir.path()), Arc::new(Metrics::new())).unwrap();
            let found = read_all(&outbox.consumer(DATABASE).unwrap()).await;
            prop_assert_eq!(&found[..], &written[..found.len()]);
            prop_assert_eq!(recovery.unconfirmed, found.len() as u64);
            prop_assert!(recovery.damage.is_empty());
            // What comes next follows what was kept.
            let next = record(1, 999, 3);
            prop_assert_eq!(outbox.append(&next).await, Ok(found.len() as u64 + 1));
            let again = read_all(&outbox.consumer(DATABASE).unwrap()).await;
            prop_assert_eq!(again, [&found[..], &[next]].concat());
            Ok(())
        })?;
    }

    #[test]
    fn a_damaged_byte_costs_no_more_than_its_record(
        lengths in prop::collection::vec(0usize..600, 2..40),
        place in 0.0f64..1.0,
        which in 0.0f64..1.0,
        flip in 1u8..=255,
    ) {
        block_on(async {
            let dir = tempfile::tempdir().unwrap();
            let outbox = open(options(dir.path()));
            let written = append_all(&outbox, &lengths).await;
            drop(outbox);
            let files = segments(dir.path());
            let path = &files[(files.len() as f64 * which) as usize];
            let mut bytes = std::fs::read(path).unwrap();
            let at = (bytes.len() as f64 * place) as usize;
            bytes[at] ^= flip;
            std::fs::write(path, bytes).unwrap();

            let outbox = open(options(dir.path()));
            let found = read_all(&outbox.consumer(DATABASE).unwrap()).await;
            prop_assert_eq!(found.len(), written.len() - 1);
            prop_assert!(is_subsequence(&found, &written));
            Ok(())
        })?;
    }

    #[test]
    fn confirmed_records_are_not_read_again_and_their_files_go(
        lengths in prop::collection::vec(0usize..600, 1..60),
        part in 0.0f64..=1.0,
    ) {
        block_on(async {
            let dir = tempfile::tempdir().unwrap();
            let outbox = open(options(dir.path()));
            let written = append_all(&outbox, &lengths).await;
            let files = segments(dir.path()).len();
            let done = (written.len() as f64 * part) as usize;
            let consumer = outbox.consumer(DATABASE).unwrap();
            consumer.confirm(done as u64);
            drop((consumer, outbox));

            let (outbox, recovery) = Outbox::open(options(dir.path()), Arc::new(Metrics::new())).unwrap();
            let found = read_all(&outbox.consumer(DATABASE).unwrap()).await;
            prop_assert_eq!(&found[..], &written[done..]);
            prop_assert_eq!(recovery.unconfirmed as usize, found.len());
            let left = segments(dir.path()).len();
            prop_assert!(left <= files);
            prop_assert!(done < written.len() || left <= 1, "{} files left", left);
            Ok(())
        })?;
    }
}

#[tokio::test]
async fn two_consumers_keep_a_record_until_both_have_it() {
    let dir = tempfile::tempdir().unwrap();
    let mut options = options(dir.path());
    options.consumers = vec!["http://ws-1:8080".into(), "http://ws-2:8080".into()];
    let outbox = open(options.clone());
    let written = append_all(&outbox, &[900; 20]).await;
    let [one, two] = [0, 1].map(|n| outbox.consumer(&options.consumers[n]).unwrap());
    assert_eq!(read_all(&one).await, written);
    one.confirm(20);
    assert_eq!(read_all(&two).await, written);
    two.confirm(12);
    outbox.sync().await.unwrap();
    assert_eq!(outbox.stats().confirmed_index, 12);
    drop((one, two, outbox));
    let outbox = open(options.clone());
    assert_eq!(read_all(&outbox.consumer(&options.consumers[0]).unwrap()).await, []);
    assert_eq!(read_all(&outbox.consumer(&options.consumers[1]).unwrap()).await, written[12..]);
}

#[tokio::test]
async fn a_full_outbox_refuses_and_heals_when_rows_are_confirmed() {
    let dir = tempfile::tempdir().unwrap();
    let outbox = open(OutboxOptions { max_bytes: 8 << 10, ..options(dir.path()) });
    let consumer = outbox.consumer(DATABASE).unwrap();
    let mut taken = 0;
    let error = loop {
        match outbox.append(&record(1, taken + 1, 500)).await {
            Ok(index) => taken = index,
            Err(error) => break error,
        }
        assert!(taken < 100, "the outbox never filled");
    };
    assert!(matches!(error, OutboxError::Full { max_bytes: 8192, .. }), "{error}");
    assert!(taken > 5);
    consumer.confirm(taken);
    assert_eq!(outbox.append(&record(1, taken + 1, 500)).await, Ok(taken + 1));
    assert!(outbox.stats().bytes <= 8 << 10);
}

#[tokio::test]
async fn a_directory_that_vanishes_is_reported_and_made_again() {
    let dir = tempfile::tempdir().unwrap();
    let outbox = open(OutboxOptions { fsync: Fsync::Always, ..options(dir.path()) });
    append_all(&outbox, &[3000]).await;
    // In place of the directory there is a file: nothing can be created in it.
    let outbox_dir = dir.path().join("outbox");
    std::fs::remove_dir_all(&outbox_dir).unwrap();
    std::fs::write(&outbox_dir, "").unwrap();
    let error = outbox.append(&record(1, 2, 10)).await.unwrap_err();
    assert!(error.to_string().contains(outbox_dir.to_str().unwrap()), "{error}");
    std::fs::remove_file(&outbox_dir).unwrap();
    assert_eq!(outbox.append(&record(1, 2, 10)).await, Ok(2));
    // The lost file does not stop the reader.
    assert_eq!(read_all(&outbox.consumer(DATABASE).unwrap()).await, [record(1, 2, 10)]);
}

#[tokio::test]
async fn the_end_of_an_epoch_is_found_for_a_resuming_viewer() {
    let dir = tempfile::tempdir().unwrap();
    let outbox = open(options(dir.path()));
    for seq in 1..=30 {
        outbox.append(&record(1, seq, 100)).await.unwrap();
        outbox.append(&record(2, seq + 100, 100)).await.unwrap();
    }
    let session = SessionRecord::begun(Epoch::from_u128(1), Slug::parse("demo").unwrap(), Default::default());
    outbox.append(&Record::Session(Arc::new(session))).await.unwrap();
    // Repeated by a room that was restarted in mid-append.
    outbox.append(&record(1, 30, 100)).await.unwrap();
    drop(outbox);
    let (outbox, recovery) = Outbox::open(options(dir.path()), Arc::new(Metrics::new())).unwrap();
    let seqs = async |epoch, after, limit| {
        let entries = outbox.tail(Epoch::from_u128(epoch), after, limit).await.unwrap();
        entries.iter().map(|e| e.seq().unwrap()).collect::<Vec<_>>()
    };
    assert_eq!(seqs(1, 26, 100).await, [27, 28, 29, 30]);
    assert_eq!(seqs(2, 0, 3).await, [101, 102, 103]);
    assert_eq!(seqs(2, 130, 3).await, [0u64; 0]);
    assert_eq!(seqs(3, 0, 3).await, [0u64; 0]);
    assert_eq!(recovery.last_seq[&Epoch::from_u128(1)], 30);
    assert_eq!(recovery.last_seq[&Epoch::from_u128(2)], 130);
}

#[test]
fn two_processes_never_share_a_directory() {
    let dir = tempfile::tempdir().unwrap();
    let first = open(options(dir.path()));
    let error = Outbox::open(options(dir.path()), Arc::new(Metrics::new())).err().unwrap();
    assert!(matches!(error, OutboxError::Locked { .. }), "{error}");
    assert!(error.to_string().contains(&format!("process {}", std::process::id())), "{error}");
    drop(first);
    open(options(dir.path()));
}

#[test]
fn an_unusable_directory_is_named() {
    let file = tempfile::NamedTempFile::new().unwrap();
    let error = Outbox::open(options(file.path()), Arc::new(Metrics::new())).err().unwrap();
    assert!(error.to_string().contains(file.path().to_str().unwrap()), "{error}");
}

#[tokio::test]
async fn interims_are_never_taken() {
    let dir = tempfile::tempdir().unwrap();
    let outbox = open(options(dir.path()));
    let Record::Entry(gap) = record(1, 1, 1) else { unreachable!() };
    let Entry::Gap(mut gap) = gap.as_ref().clone() else { unreachable!() };
    gap.seq = None;
    let result = outbox.append(&Record::Entry(Arc::new(Entry::Gap(gap)))).await;
    assert!(matches!(result, Err(OutboxError::Record(_))), "{result:?}");
    assert_eq!(outbox.stats().last_index, 0);
}
