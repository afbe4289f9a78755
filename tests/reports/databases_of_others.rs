//! A database that other programs use, too: their tables have our names, and diesel's record of migrations is theirs.

use std::path::Path;

use crate::support::postgres::{Database, cluster};
use crate::support::server::{Server, health, program};

/// Exit code, and what was said.
async fn migrate(dir: &Path, url: &str, action: &str) -> (i32, String) {
    let mut command = program(&["migrate", action]);
    let output = command.env("DATA_DIR", dir).env("DATABASE_URL", url).output().await.unwrap();
    let said = [output.stdout, output.stderr].concat();
    (output.status.code().unwrap(), String::from_utf8_lossy(&said).into_owned())
}

const HISTORY: &str = "CREATE TABLE __diesel_schema_migrations (version VARCHAR(50) PRIMARY KEY NOT NULL, \
    run_on TIMESTAMP NOT NULL DEFAULT CURRENT_TIMESTAMP);";
/// Of our migrations, and of another program's that are later than any of ours.
const OURS: &str = "INSERT INTO __diesel_schema_migrations (version) VALUES ('20261120000000'), ('20261125000000'), \
    ('20261128000000');";
const LATER: &str = "INSERT INTO __diesel_schema_migrations (version) VALUES ('20990101000000');";

/// What is there before us (SQL of both databases), and what `migrate` has to say: None is success.
fn cases() -> Vec<(String, Option<&'static str>)> {
    vec![
        ("CREATE TABLE sessions (sid TEXT PRIMARY KEY, sess TEXT);".to_owned(), Some("another program's sessions")),
        ("CREATE TABLE transcripts (id INTEGER);".to_owned(), Some("another program's transcripts")),
        (format!("{HISTORY}{LATER} CREATE TABLE sessions (id INTEGER);"), Some("another program's sessions")),
        (format!("{HISTORY}{LATER}"), None),
        (HISTORY.to_owned(), None),
        (format!("{HISTORY}{OURS}"), Some("the tables are not ours")),
        ("CREATE TABLE users (id INTEGER);".to_owned(), None),
    ]
}

#[tokio::test]
async fn postgres_says_what_is_in_the_way_and_what_helps() {
    let dir = tempfile::tempdir().unwrap();
    for (before, fault) in cases() {
        let database = cluster().fresh_database().await;
        database.execute(&before).await;
        let (code, said) = migrate(dir.path(), &database.url(), "up").await;
        match fault {
            None => assert_eq!(code, 0, "{before}: {said}"),
            Some(fault) => {
                assert!(
                    code == 64 && said.contains(fault) && said.contains("?schema=stenocast"),
                    "{before}: {code} {said}"
                );
                let (code, said) = migrate(dir.path(), &(database.url() + "&schema=stenocast"), "up").await;
                assert_eq!(code, 0, "{before}: {said}");
                // The second time there is nothing to do, which is well.
                let (code, said) = migrate(dir.path(), &(database.url() + "&schema=stenocast"), "up").await;
                assert_eq!(code, 0, "{before}: {said}");
            }
        }
        let tables = "SELECT count(*) FROM information_schema.tables WHERE table_name IN ('sessions', 'transcripts') \
                      AND table_schema = ";
        let schema = if fault.is_none() { "'public'" } else { "'stenocast'" };
        assert_eq!(database.query(&format!("{tables}{schema}")).await, ["2"], "{before}");
    }
}

#[tokio::test]
async fn what_is_taken_back_is_ours_alone() {
    let (dir, database) = (tempfile::tempdir().unwrap(), cluster().fresh_database().await);
    database.execute(&format!("{HISTORY}{LATER}")).await;
    let file = format!("sqlite://{}", dir.path().join("shared.db").display());
    sqlite(&dir.path().join("shared.db"), &format!("{HISTORY}{LATER}"));
    for url in [database.url(), file] {
        assert_eq!(migrate(dir.path(), &url, "up").await.0, 0);
        let (code, said) = migrate(dir.path(), &url, "down").await;
        assert!(code == 0 && said.contains("schema version: none"), "{said}");
    }
    assert_eq!(database.query("SELECT version FROM __diesel_schema_migrations").await, ["20990101000000"]);
}

#[tokio::test]
async fn sqlite_says_what_is_in_the_way_and_what_helps() {
    for (before, fault) in cases() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("shared.db");
        sqlite(&path, &before);
        let (code, said) = migrate(dir.path(), &format!("sqlite://{}", path.display()), "up").await;
        match fault {
            None => assert_eq!(code, 0, "{before}: {said}"),
            Some(fault) => assert!(code == 64 && said.contains(fault), "{before}: {code} {said}"),
        }
    }
}

fn sqlite(path: &Path, sql: &str) {
    use diesel::connection::SimpleConnection;
    let mut connection = <diesel::SqliteConnection as diesel::Connection>::establish(path.to_str().unwrap()).unwrap();
    connection.batch_execute(sql).unwrap();
}

/// Since Postgres 15 only the owner may create tables in `public`.
#[tokio::test]
async fn a_role_without_the_right_to_create_is_told_which() {
    let (dir, database) = (tempfile::tempdir().unwrap(), cluster().fresh_database().await);
    let role = format!("guest_of_{}", database.name);
    database.execute(&format!("CREATE ROLE {role} LOGIN PASSWORD 'test-password'")).await;
    let url = database.url().replace("postgres://stenocast:", &format!("postgres://{role}:"));
    let (code, said) = migrate(dir.path(), &url, "up").await;
    assert!(
        code == 64 && said.contains("permission denied") && said.contains("grant the role CREATE"),
        "{code} {said}"
    );
}

/// Where nothing can be stored, the server runs on, keeps everything, and says so.
#[tokio::test]
async fn health_is_not_ok_while_rows_cannot_be_stored() {
    let (dir, database): (_, Database) = (tempfile::tempdir().unwrap(), cluster().fresh_database().await);
    database.execute(&cases()[0].0).await;
    let settings = [("DATABASE_URL", database.url()), ("GLADIA_API_URL", "http://127.0.0.1:9".to_owned())];
    let settings: Vec<_> = settings.iter().map(|(name, value)| (*name, value.as_str())).collect();
    let server = Server::start(dir.path(), &settings).await;
    let seen = health(server.http).await.unwrap();
    assert_eq!((seen["status"].as_str(), seen["database"].as_str()), (Some("degraded"), Some("down")), "{seen}");
    assert!(seen["reasons"][0].as_str().unwrap().contains("?schema=stenocast"), "{seen}");
    assert_eq!(seen["ready"], true, "finals are kept in the outbox");
    assert!(server.log().contains("another program's sessions"));
}
