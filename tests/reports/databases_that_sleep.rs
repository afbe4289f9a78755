//! A serverless Postgres suspends when nobody asks it anything: a server without work let none ever sleep. And a
//! `DATABASE_URL` that was lost on the way put the rows somewhere else, in silence.

use std::time::{Duration, Instant};

use stenocast::transcript::Epoch;

use crate::support::chaos_proxy::ChaosProxy;
use crate::support::postgres::cluster;
use crate::support::server::{Server, health, program, request};
use crate::support::store::{batch_of, open_postgres};
use crate::support::wait::until;

/// Health checks of a load balancer, and of whoever looks at the metrics.
const CHECKS: usize = 40;

#[tokio::test]
async fn an_idle_server_asks_an_idle_database_nothing() {
    let database = cluster().fresh_database().await;
    let proxy = ChaosProxy::start(database.addr).await;
    let (dir, url) = (tempfile::tempdir().unwrap(), database.url_at(proxy.addr));
    let settings = [("DATABASE_URL", url.as_str()), ("GLADIA_API_URL", "http://127.0.0.1:9"), ("RETENTION_DAYS", "1")];
    let server = Server::start(dir.path(), &settings).await;
    // What a start asks has its end when nothing more has come for a while.
    let (mut asked, mut since) = (proxy.asked(), Instant::now());
    let is_quiet = async || {
        if proxy.asked() != asked {
            (asked, since) = (proxy.asked(), Instant::now());
        }
        since.elapsed() >= Duration::from_secs(1)
    };
    until("it stops asking", is_quiet).await;
    assert!(asked > 0, "the database is behind the proxy");
    for _ in 0..CHECKS {
        let seen = health(server.http).await.unwrap();
        assert_eq!((seen["status"].as_str(), seen["database"].as_str()), (Some("ok"), Some("up")), "{seen}");
        assert_eq!(request(server.http, "GET", "/metrics", "").await.unwrap().0, 200);
    }
    assert_eq!(proxy.asked(), asked, "bytes to the database");
}

/// Some do not suspend while there is a connection.
#[tokio::test]
async fn an_idle_connection_is_closed() {
    let database = cluster().fresh_database().await;
    let store = open_postgres(database.url() + "&max_idle_connection_lifetime=1");
    stenocast::db::delivery::deliver(&store, &batch_of(Epoch::nil(), 1..=5)).await.unwrap();
    let ours = "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'stenocast' \
                AND datname = current_database()";
    until("it goes", async || database.query(ours).await == ["0"]).await;
    assert_eq!(store.last_seq(Epoch::nil()).await, Ok(Some(5)), "and another is made when there is work");
}

/// What is in `DATABASE_URL`, and what is said about where the rows go.
#[tokio::test]
async fn where_the_rows_go_is_said() {
    let database = cluster().fresh_database().await;
    let postgres = database.url() + "&pgbouncer=true&frobnicate=1";
    for (url, said) in [
        (None, &["stenocast.db", "\"backend\":\"sqlite\""][..]),
        (Some(""), &["DATABASE_URL is set and empty", "stenocast.db"]),
        (Some("  "), &["DATABASE_URL is set and empty", "stenocast.db"]),
        (
            Some(postgres.as_str()),
            &[
                "\"backend\":\"postgres\"",
                &database.name,
                "pgbouncer is ignored",
                "frobnicate is ignored: it is unknown",
            ],
        ),
    ] {
        let dir = tempfile::tempdir().unwrap();
        let settings: Vec<(&str, &str)> = url.iter().map(|url| ("DATABASE_URL", *url)).collect();
        let server = Server::start(dir.path(), &settings).await;
        for part in said {
            assert!(server.log().contains(part), "{url:?}: {part}: {}", server.log());
        }
        assert!(!server.log().contains("test-password"));
        // Migrating says it, too: where nothing came of it because it went elsewhere.
        let mut migrate = program(&["migrate"]);
        let output = migrate.env("DATA_DIR", dir.path()).env("DATABASE_URL", url.unwrap_or("")).output().await.unwrap();
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        let place = if url == Some(&postgres) { &database.name } else { "stenocast.db" };
        assert!(output.status.success() && text.contains("database: ") && text.contains(place), "{text}");
    }
}
