//! What only Postgres can do: encryption, locks, errors that say nothing about whose fault they are.

mod support;

use stenocast::db::delivery::deliver;
use stenocast::db::{Refusal, Store, StoreError};
use stenocast::transcript::Epoch;
use stenocast::transcript::outbox::Stored;
use support::postgres::{Database, cluster};
use support::store::{batch_of, open_postgres};

fn open(url: String) -> Store {
    open_postgres(url)
}

/// The URL of `database` at `localhost`, with these parameters.
fn url_with(database: &Database, parameters: &str) -> String {
    let plain = database.url().replace("127.0.0.1", "localhost");
    plain.replace("sslmode=disable", parameters)
}

fn batch(seqs: std::ops::RangeInclusive<u64>) -> Vec<Stored> {
    batch_of(Epoch::nil(), seqs)
}

/// Whether this server's connections to `database` are encrypted.
async fn encrypted(database: &Database) -> Vec<String> {
    let sql = "SELECT DISTINCT ssl FROM pg_stat_ssl JOIN pg_stat_activity USING (pid) \
               WHERE application_name = 'stenocast' AND datname = current_database()";
    database.query(sql).await
}

#[tokio::test]
async fn sslmode_means_what_it_means_to_libpq() {
    let certificate = cluster().certificate();
    let trusting = format!("&sslrootcert={}", certificate.display());
    for (parameters, expected) in [
        ("sslmode=disable".to_owned(), "f"),
        (String::new(), "t"),
        ("sslmode=prefer".to_owned(), "t"),
        ("sslmode=require".to_owned(), "t"),
        ("sslmode=require&channel_binding=require".to_owned(), "t"),
        (format!("sslmode=verify-ca{trusting}"), "t"),
        (format!("sslmode=verify-full{trusting}"), "t"),
    ] {
        let database = cluster().fresh_database().await;
        let store = open(url_with(&database, &parameters));
        store.ping().await.unwrap_or_else(|e| panic!("{parameters}: {e}"));
        assert_eq!(encrypted(&database).await, [expected], "{parameters}");
    }
}

#[tokio::test]
async fn a_certificate_that_proves_nothing_is_refused() {
    let database = cluster().fresh_database().await;
    for parameters in ["sslmode=verify-full", "sslmode=verify-ca"] {
        let error = open(url_with(&database, parameters)).ping().await.unwrap_err();
        assert!(error.to_string().contains("certificate"), "{parameters}: {error}");
    }
    // The authority is right, the name is not: 127.0.0.1 instead of localhost.
    let certificate = cluster().certificate();
    let other_name = |mode: &str| {
        database.url().replace("sslmode=disable", &format!("sslmode={mode}&sslrootcert={}", certificate.display()))
    };
    let error = open(other_name("verify-full")).ping().await.unwrap_err();
    assert!(error.to_string().contains("not valid for name"), "{error}");
    open(other_name("verify-ca")).ping().await.unwrap();
}

#[tokio::test]
async fn a_wrong_password_is_told_without_the_password() {
    let database = cluster().fresh_database().await;
    let error = open(database.url().replace("test-password", "s3cret")).ping().await.unwrap_err();
    let text = error.to_string();
    assert!(text.contains("password authentication failed"), "{text}");
    assert!(!text.contains("s3cret"), "{text}");
}

/// An error of no known class (here: raised by a trigger) for one row: that row alone is at fault.
#[tokio::test]
async fn a_row_refused_for_reasons_of_its_own_is_quarantined() {
    let database = cluster().fresh_database().await;
    let store = open(database.url());
    store.migrate().await.unwrap();
    let trigger = |condition: &str| {
        format!(
            "CREATE OR REPLACE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN \
             IF {condition} THEN RAISE EXCEPTION 'nein danke'; END IF; RETURN NEW; END $$"
        )
    };
    database.execute(&trigger("NEW.seq = 5")).await;
    database.execute("CREATE TRIGGER t BEFORE INSERT ON transcripts FOR EACH ROW EXECUTE FUNCTION refuse()").await;
    let delivery = deliver(&store, &batch(1..=9)).await.unwrap();
    assert_eq!((delivery.inserted, delivery.refused.len()), (8, 1));
    let refused = &delivery.refused[0];
    assert_eq!((refused.index, refused.refusal, refused.reason.as_str()), (5, Refusal::Rejected, "nein danke"));

    // The same words for every row: the database is at fault, and the rows have to wait.
    database.execute(&trigger("true")).await;
    let error = deliver(&store, &batch(10..=12)).await.unwrap_err();
    assert_eq!(error, StoreError::Unavailable("nein danke".into()));
    database.execute("DROP TRIGGER t ON transcripts").await;
    let delivery = deliver(&store, &batch(10..=12)).await.unwrap();
    assert_eq!((delivery.inserted, delivery.refused.len()), (3, 0));
    assert_eq!(database.query("SELECT count(*) FROM transcripts WHERE entry_id = 'canary'").await, ["0"]);
}

#[tokio::test]
async fn a_locked_table_is_a_reason_to_wait() {
    let database = cluster().fresh_database().await;
    let store = open(database.url());
    store.migrate().await.unwrap();
    let holder = database.connect().await;
    holder.batch_execute("BEGIN; LOCK TABLE transcripts IN ACCESS EXCLUSIVE MODE").await.unwrap();
    let error = deliver(&store, &batch(1..=3)).await.unwrap_err();
    assert!(matches!(&error, StoreError::Unavailable(why) if why.contains("lock timeout")), "{error}");
    holder.batch_execute("ROLLBACK").await.unwrap();
    assert_eq!(deliver(&store, &batch(1..=3)).await.unwrap().inserted, 3);
}

#[tokio::test]
async fn missing_rights_are_a_reason_to_wait() {
    let database = cluster().fresh_database().await;
    open(database.url()).migrate().await.unwrap();
    let role = format!("reader_of_{}", database.name);
    let sql = format!(
        "CREATE ROLE {role} LOGIN PASSWORD 'test-password'; GRANT SELECT ON ALL TABLES IN SCHEMA public TO {role};"
    );
    database.execute(&sql).await;
    let store = open(database.url().replace("postgres://stenocast:", &format!("postgres://{role}:")));
    let error = deliver(&store, &batch(1..=3)).await.unwrap_err();
    assert!(matches!(&error, StoreError::Unavailable(why) if why.contains("permission denied")), "{error}");
    database.execute(&format!("GRANT INSERT ON ALL TABLES IN SCHEMA public TO {role}")).await;
    assert_eq!(deliver(&store, &batch(1..=3)).await.unwrap().inserted, 3);
}
