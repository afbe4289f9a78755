//! A row that the database refuses for what is in it: nobody knew, since health said ok, and nobody could do anything
//! about it but edit files.

use std::path::Path;

use serde_json::{Value, json};

use crate::support::postgres::cluster;
use crate::support::server::{Server, health, program, request, request_as};
use crate::support::wait::until;

const REFUSE: &str = "CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN \
    IF NEW.text LIKE '%odd%' THEN RAISE check_violation USING MESSAGE = 'nein danke'; END IF; RETURN NEW; END $$; \
    CREATE TRIGGER t BEFORE INSERT ON transcripts FOR EACH ROW EXECUTE FUNCTION refuse()";

async fn post(server: &Server, texts: &[&str]) {
    let line = |(n, text): (usize, &&str)| json!({"id": format!("l{n}"), "isFinal": true, "text": text, "startMs": n * 1000, "endMs": n * 1000 + 900});
    let lines: Vec<Value> = texts.iter().enumerate().map(line).collect();
    let body = json!({"session": "demo", "transcripts": lines}).to_string();
    let path = "/api/realtime/transcribe/broadcast";
    let (status, answer) = request_as(server.http, "b", "POST", path, &body).await.unwrap();
    assert_eq!(status, 202, "{answer}");
}

async fn health_until(server: &Server, what: &str, holds: impl Fn(&Value) -> bool) -> Value {
    let answer = async || {
        let seen = health(server.http).await.unwrap();
        if holds(&seen) { Ok(seen) } else { Err(seen) }
    };
    until(what, answer).await
}

/// Exit code, and what was said.
async fn quarantine(dir: &Path, url: &str, args: &[&str]) -> (i32, String) {
    let mut command = program(&[&["quarantine"], args].concat());
    command.env("DATA_DIR", dir).env("DATABASE_URL", url);
    let output = command.output().await.unwrap();
    let said = [output.stdout, output.stderr].concat();
    (output.status.code().unwrap(), String::from_utf8_lossy(&said).into_owned())
}

#[tokio::test]
async fn it_is_told_shown_tried_again_and_given_up() {
    let database = cluster().fresh_database().await;
    let (dir, url) = (tempfile::tempdir().unwrap(), database.url());
    let settings = [("DATABASE_URL", url.as_str()), ("BROADCAST_TOKEN", "b"), ("GLADIA_API_URL", "http://127.0.0.1:9")];
    let server = Server::start(dir.path(), &settings).await;
    let seen = health_until(&server, "ok", |seen| seen["status"] == "ok").await;
    assert_eq!((seen["quarantined"].as_u64(), &seen["reasons"]), (Some(0), &json!([])));
    assert_eq!(quarantine(dir.path(), &url, &["list"]).await.0, 0);

    database.execute(REFUSE).await;
    post(&server, &["one", "an odd one", "three", "another odd one"]).await;
    let seen = health_until(&server, "degraded", |seen| seen["quarantined"] == 2).await;
    assert_eq!(
        (seen["status"].as_str(), seen["ready"].as_bool()),
        (Some("degraded"), Some(true)),
        "200: finals are kept"
    );
    assert!(seen["reasons"][0].as_str().unwrap().contains("nein danke"), "{seen}");
    let metrics = async || request(server.http, "GET", "/metrics", "").await.unwrap().1;
    until("the metric follows", async || metrics().await.contains("stenocast_quarantine_rows 2")).await;
    assert_eq!(
        database.query("SELECT text FROM transcripts WHERE kind = 'final' ORDER BY seq").await,
        ["one", "three"]
    );

    let (code, said) = quarantine(dir.path(), &url, &["list"]).await;
    assert!(code == 0 && said.contains("2 row(s)") && said.contains("nein danke"), "{code} {said}");
    let (code, said) = quarantine(dir.path(), &url, &["list", "--json"]).await;
    let rows: Vec<Value> = said.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!((code, rows[0]["refused"]["record"]["text"].as_str()), (0, Some("an odd one")));
    let index = |n: usize| rows[n]["refused"]["index"].to_string();

    let (code, said) = quarantine(dir.path(), &url, &["retry"]).await;
    assert!(code == 1 && said.contains("0 row(s) stored, 2 left"), "{code} {said}");
    let away = "postgres://u:p@127.0.0.1:1/d";
    let (code, said) = quarantine(dir.path(), away, &["retry"]).await;
    assert!(code == 69 && said.contains("2 left"), "{code} {said}");
    for (args, code) in [(&["drop"][..], 64), (&["drop", "999999"], 1), (&["retry", "999999"], 1), (&["drop", "x"], 64)]
    {
        let (seen, said) = quarantine(dir.path(), &url, args).await;
        assert_eq!(seen, code, "{args:?} {said}");
    }

    database.execute("DROP TRIGGER t ON transcripts").await;
    let (code, said) = quarantine(dir.path(), &url, &["retry", &index(0)]).await;
    assert!(code == 0 && said.contains("1 row(s) stored, 0 left"), "{code} {said}");
    let (code, said) = quarantine(dir.path(), &url, &["drop", &index(1)]).await;
    assert!(code == 0 && said.contains("1 row(s) dropped, 0 left"), "{code} {said}");
    let stored = database.query("SELECT text FROM transcripts WHERE kind = 'final' ORDER BY seq").await;
    assert_eq!(stored, ["one", "an odd one", "three"], "in its place");
    health_until(&server, "ok again", |seen| seen["status"] == "ok" && seen["quarantined"] == 0).await;
}
