//! PgBouncer in transaction mode: between two transactions of ours the same server connection is another program's. What
//! it left there must not harm us, and nothing of ours must be there.

use futures_util::future::join_all;
use stenocast::db::delivery::deliver;
use stenocast::db::{Store, StoreError};
use stenocast::transcript::Epoch;

use crate::support::pgbouncer::PgBouncer;
use crate::support::postgres::{Database, cluster};
use crate::support::store::{batch_of, open_postgres};
use crate::support::wait::until;

/// Names that tokio-postgres, and others, give their statements.
const NEIGHBOURS_STATEMENTS: std::ops::Range<u32> = 0..60;
/// What our use of a connection must leave as it is.
const SETTINGS: [&str; 7] = [
    "statement_timeout",
    "lock_timeout",
    "search_path",
    "idle_in_transaction_session_timeout",
    "timezone",
    "role",
    "default_transaction_read_only",
];
const SERVER_CONNECTIONS: u32 = 3;

/// Leaves statements of its own on every server connection.
async fn settle(pooler: &PgBouncer) {
    let neighbours = join_all((0..SERVER_CONNECTIONS).map(|_| pooler.connect())).await;
    for neighbour in &neighbours {
        neighbour.batch_execute("BEGIN").await.unwrap();
    }
    for neighbour in &neighbours {
        for n in NEIGHBOURS_STATEMENTS {
            neighbour.batch_execute(&format!("PREPARE s{n} AS SELECT {n}")).await.unwrap();
        }
        neighbour.batch_execute("COMMIT").await.unwrap();
    }
}

async fn settings(pooler: &PgBouncer) -> Vec<String> {
    let neighbour = pooler.connect().await;
    let mut found = Vec::new();
    for name in SETTINGS {
        let answer = neighbour.simple_query(&format!("SHOW {name}")).await.unwrap();
        let value = answer.iter().find_map(|m| match m {
            tokio_postgres::SimpleQueryMessage::Row(row) => row.get(0),
            _ => None,
        });
        found.push(format!("{name} = {}", value.unwrap()));
    }
    found
}

/// Delivers as the `BatchWriter` does: again and again, until it is taken.
async fn deliver_at_last(store: &Store, epoch: Epoch, seqs: std::ops::RangeInclusive<u64>) {
    let batch = batch_of(epoch, seqs.clone());
    let delivery = until("the batch is taken", async || deliver(store, &batch).await).await;
    assert_eq!((delivery.refused.len(), delivery.inserted + delivery.duplicates), (0, seqs.count()));
}

async fn rows(database: &Database) -> u64 {
    database.query("SELECT count(*) FROM transcripts").await[0].parse().unwrap()
}

#[tokio::test]
async fn two_processes_and_a_neighbour_share_a_pool() {
    let database = cluster().fresh_database().await;
    let pooler = PgBouncer::start(&database, SERVER_CONNECTIONS).await;
    settle(&pooler).await;
    // Both migrate at once, through the pooler.
    let ours = [open_postgres(pooler.url()), open_postgres(pooler.url() + "&pgbouncer=true&connection_limit=2")];
    let migrated = join_all(ours.iter().map(stenocast::db::Store::migrate)).await;
    assert_eq!(migrated, [Ok(()), Ok(())]);
    let work = ours.iter().enumerate().map(|(n, store)| async move {
        let epoch = Epoch::from_u128(n as u128 + 1);
        for first in (1..=200).step_by(10) {
            let delivery = deliver(store, &batch_of(epoch, first..=first + 9)).await.unwrap();
            assert_eq!((delivery.inserted, delivery.refused.len()), (10, 0));
            // A repetition asks in more than one statement.
            let delivery = deliver(store, &batch_of(epoch, first..=first + 9)).await.unwrap();
            assert_eq!((delivery.duplicates, delivery.refused.len()), (10, 0));
            assert_eq!(store.last_seq(epoch).await, Ok(Some(first + 9)));
            assert_eq!(store.transcripts(epoch, 0, 1000).await.unwrap().len() as u64, first + 9);
        }
    });
    join_all(work).await;
    assert_eq!(rows(&database).await, 400);
}

#[tokio::test]
async fn a_neighbour_finds_the_connection_as_it_was() {
    let database = cluster().fresh_database().await;
    let pooler = PgBouncer::start(&database, 1).await;
    let before = settings(&pooler).await;
    let store = open_postgres(pooler.url() + "&schema=captions&options=-c%20timezone%3DAsia/Tokyo");
    store.migrate().await.unwrap();
    deliver_at_last(&store, Epoch::nil(), 1..=9).await;
    // One whose refusal says nothing, so that a canary is written, too.
    database.execute("ALTER TABLE captions.transcripts RENAME TO away").await;
    deliver(&store, &batch_of(Epoch::nil(), 10..=12)).await.unwrap_err();
    database.execute("ALTER TABLE captions.away RENAME TO transcripts").await;
    store.purge(chrono::Utc::now()).await.unwrap();
    assert_eq!(settings(&pooler).await, before);
    let neighbour = pooler.connect().await;
    for sql in [
        "SELECT 1 FROM pg_prepared_statements",
        "SELECT 1 FROM pg_cursors WHERE name <> ''",
        "SELECT 1 FROM pg_listening_channels()",
        "SELECT 1 FROM pg_locks WHERE locktype = 'advisory'",
    ] {
        assert!(neighbour.query_typed(sql, &[]).await.unwrap().is_empty(), "{sql}");
    }
}

/// Whatever a pooler does to a connection, no row is condemned for it and all arrive in the end.
#[tokio::test]
async fn what_a_pooler_does_costs_no_row() {
    let database = cluster().fresh_database().await;
    let pooler = PgBouncer::start_with(
        &database,
        &[("default_pool_size", "1"), ("query_wait_timeout", "1"), ("server_idle_timeout", "1")],
    )
    .await;
    let store = open_postgres(pooler.url());
    store.migrate().await.unwrap();
    deliver_at_last(&store, Epoch::nil(), 1..=5).await;

    pooler.order("PAUSE").await;
    let error = deliver(&store, &batch_of(Epoch::nil(), 6..=9)).await.unwrap_err();
    assert!(matches!(error, StoreError::Unavailable(_)), "{error}");
    pooler.order("RESUME").await;
    deliver_at_last(&store, Epoch::nil(), 6..=9).await;

    database.disconnect_all().await;
    deliver_at_last(&store, Epoch::nil(), 10..=14).await;

    // KILL ends connections in mid life and pauses; the clients are told by FATAL errors.
    pooler.order(&format!("KILL {}", database.name)).await;
    let error = deliver(&store, &batch_of(Epoch::nil(), 15..=19)).await.unwrap_err();
    assert!(matches!(error, StoreError::Unavailable(_)), "{error}");
    pooler.order(&format!("RESUME {}", database.name)).await;
    deliver_at_last(&store, Epoch::nil(), 15..=19).await;

    // Somebody else has the only server connection.
    let neighbour = pooler.connect().await;
    neighbour.batch_execute("BEGIN; SELECT 1").await.unwrap();
    let error = deliver(&store, &batch_of(Epoch::nil(), 20..=24)).await.unwrap_err();
    assert!(matches!(&error, StoreError::Unavailable(why) if why.contains("query_wait_timeout")), "{error}");
    neighbour.batch_execute("COMMIT").await.unwrap();
    deliver_at_last(&store, Epoch::nil(), 20..=24).await;
    assert_eq!(rows(&database).await, 24);
}

#[tokio::test]
async fn a_full_pooler_is_a_reason_to_wait() {
    let database = cluster().fresh_database().await;
    let pooler = PgBouncer::start_with(&database, &[("max_client_conn", "2")]).await;
    let others = [pooler.connect().await, pooler.connect().await];
    let store = open_postgres(pooler.url());
    let error = deliver(&store, &batch_of(Epoch::nil(), 1..=5)).await.unwrap_err();
    assert!(matches!(&error, StoreError::Unavailable(why) if why.contains("no more connections")), "{error}");
    drop(others);
    deliver_at_last(&store, Epoch::nil(), 1..=5).await;
}

/// A connection that refuses good rows (here: by a trigger that knows it) is not the row's fault.
#[tokio::test]
async fn a_lone_row_is_tried_on_a_new_connection_before_it_is_condemned() {
    let database = cluster().fresh_database().await;
    let store = open_postgres(database.url());
    deliver_at_last(&store, Epoch::nil(), 1..=5).await;
    database
        .execute(
            "CREATE TABLE bad AS SELECT pid FROM pg_stat_activity WHERE datname = current_database(); \
             CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN \
                IF EXISTS (SELECT 1 FROM bad WHERE pid = pg_backend_pid()) OR NEW.seq = 8 THEN \
                    RAISE check_violation USING MESSAGE = 'nein danke'; END IF; RETURN NEW; END $$; \
             CREATE TRIGGER t BEFORE INSERT ON transcripts FOR EACH ROW EXECUTE FUNCTION refuse()",
        )
        .await;
    let delivery = deliver(&store, &batch_of(Epoch::nil(), 6..=9)).await.unwrap();
    let refused: Vec<_> = delivery.refused.iter().map(|r| (r.index, r.reason.as_str())).collect();
    assert_eq!((delivery.inserted, refused), (3, vec![(8, "nein danke")]));
}
