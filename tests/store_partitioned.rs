//! `transcripts` in partitions, as docs/SCALE.md makes them: the program writes and reads it as before.

mod support;

use std::sync::Arc;

use stenocast::config::{Config, DatabaseUrl, Secret, StoreConfig};
use stenocast::db::{TranscriptRow, open_store};
use stenocast::transcript::{Entry, Epoch, Gap, GapReason, Slug};
use support::postgres;

fn recipe() -> String {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/docs/SCALE.md");
    let document = std::fs::read_to_string(path).expect("the document");
    let (_, rest) = document.split_once("<!-- partitions: begin").expect("the begin mark");
    let (_, rest) = rest.split_once("```sql\n").expect("a block");
    rest.split_once("```").expect("its end").0.to_owned()
}

fn gap(epoch: Epoch, seq: u64) -> TranscriptRow {
    let (session, id, reason) = (Slug::parse("demo").unwrap(), format!("gap-{seq}"), GapReason::PublisherLost);
    let gap = Gap { session, epoch, seq: Some(seq), id, start_ms: 0, end_ms: seq, reason, durable: true };
    TranscriptRow::new(&Entry::Gap(gap)).unwrap()
}

#[tokio::test]
async fn a_day_is_a_partition_and_nothing_else_is_different() {
    let database = postgres::cluster().fresh_database().await;
    let url = DatabaseUrl::Postgres(Secret::new(database.url()));
    let defaults = Config::load(&Default::default(), true).unwrap().store;
    let config = StoreConfig { database: url, ..defaults };
    open_store(&config).unwrap().migrate().await.unwrap();
    let client = database.connect().await;
    client.batch_execute(&recipe()).await.unwrap();

    // Another process finds the tables as they are now.
    let store = open_store(&config).unwrap();
    store.migrate().await.unwrap();
    store.ping().await.unwrap();
    let (today, last_year) = (Epoch::now_v7(), Epoch::from_u128(0x0190_0000_0000_7000_8000_0000_0000_0001));
    let rows: Arc<[_]> =
        [today, last_year].into_iter().flat_map(|epoch| (1..=50).map(move |seq| gap(epoch, seq))).collect();
    store.insert_batch(rows.clone()).await.unwrap();
    store.insert_batch(rows).await.unwrap();
    for epoch in [today, last_year] {
        let found = store.transcripts(epoch, 10, 1000).await.unwrap();
        assert_eq!(found.iter().filter_map(Entry::seq).collect::<Vec<_>>(), (11..=50).collect::<Vec<_>>());
        assert_eq!(store.last_seq(epoch).await.unwrap(), Some(50));
    }

    // Today's rows are in today's partition, what is older than all partitions in the default one.
    let partitions = "SELECT tableoid::regclass || ' ' || count(*) FROM transcripts GROUP BY tableoid ORDER BY 1";
    let found = database.query(partitions).await;
    let [of_today] = &found.iter().filter(|name| name.starts_with("transcripts_20")).collect::<Vec<_>>()[..] else {
        panic!("{found:?}");
    };
    assert!(of_today.ends_with(" 50") && found.contains(&"transcripts_default 50".to_owned()), "{found:?}");

    // A session is found in its partition alone, and a day goes as one table.
    let plan =
        format!("EXPLAIN SELECT * FROM transcripts WHERE session_id = '{today}' AND seq > 10 ORDER BY seq LIMIT 100");
    let plan = database.query(&plan).await.join("\n");
    assert!(!plan.contains("transcripts_default"), "{plan}");
    database.execute(&format!("DROP TABLE {}", of_today.split(' ').next().unwrap())).await;
    assert_eq!(store.last_seq(today).await.unwrap(), None);
    assert_eq!(store.last_seq(last_year).await.unwrap(), Some(50));
}
