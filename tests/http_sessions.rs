//! Sessions and stored transcripts by HTTP.

mod support;

use serde_json::Value;
use stenocast::transcript::Epoch;
use support::http::*;

fn seqs(page: &Value) -> Vec<u64> {
    page["entries"].as_array().unwrap().iter().map(|entry| entry["seq"].as_u64().unwrap()).collect()
}

#[actix::test]
async fn pages_follow_each_other_from_ring_and_database() {
    let server = TestServer::with(&[("ROOM_HISTORY", "50")]);
    let speech = server.begin("demo");
    speech.say(330);
    speech.interim("open", "half");
    let good = token("demo");
    let mut all = Vec::new();
    let mut after = Value::from(0);
    while !after.is_null() {
        let path = format!("/api/sessions/demo/transcripts?after={after}&limit=100");
        let (status, page) = server.get_json(&path, Some(&good)).await;
        assert_eq!((status, page["epoch"].as_str()), (200, Some(&*speech.epoch().to_string())));
        all.extend(seqs(&page));
        after = page["next"].clone();
    }
    assert_eq!(all, (1..=330).collect::<Vec<_>>());
    // The ring alone answers when the database is away; older entries are a 503.
    server.store.set_down(true);
    let (status, page) = server.get_json("/api/sessions/demo/transcripts?after=300", Some(&good)).await;
    assert_eq!((status, seqs(&page).len()), (200, 30));
    assert_eq!(server.get("/api/sessions/demo/transcripts", Some(&good)).await.0, 503);
    server.stop().await;
}

#[actix::test]
async fn kinds_and_languages_can_be_selected() {
    let server = TestServer::with(&[("ROOM_HISTORY", "50")]);
    let speech = server.begin("demo");
    for n in 0..60 {
        speech.say(1);
        for language in ["fr", "de"] {
            speech.translate(&format!("u{n}"), language);
        }
    }
    let good = token("demo");
    let select = async |query: &str| {
        let (status, page) = server.get_json(&format!("/api/sessions/demo/transcripts?{query}"), Some(&good)).await;
        assert_eq!(status, 200);
        page
    };
    let all = select("limit=1000").await;
    assert_eq!(seqs(&all), (1..=180).collect::<Vec<_>>());
    // Ring and database, and a page that ends within the selection.
    let french = select("kind=translation&language=fr&limit=40").await;
    assert_eq!((seqs(&french).len(), &seqs(&french)[..2]), (40, &[2, 5][..]));
    let rest = select(&format!("kind=translation&language=fr&limit=40&after={}", french["next"])).await;
    assert_eq!((seqs(&rest).len(), seqs(&rest).last(), &rest["next"]), (20, Some(&179), &Value::Null));
    assert_eq!(rest["entries"][0]["of"].as_str(), Some("u40"));
    assert_eq!(seqs(&select("language=de&limit=1000").await).len(), 120, "finals and German");
    assert_eq!(seqs(&select("kind=gap").await).len(), 0);
    server.stop().await;
}

#[actix::test]
async fn an_epoch_can_be_asked_for() {
    let server = TestServer::start();
    let epochs: Vec<Epoch> = (0..5)
        .map(|_| {
            let speech = server.begin("demo");
            speech.say(3);
            speech.end();
            speech.epoch()
        })
        .collect();
    server.begin("other").say(1);
    let good = token("demo");
    for epoch in &epochs {
        let path = format!("/api/sessions/demo/transcripts?epoch={epoch}&token={good}");
        let (status, page) = server.get_json(&path, None).await;
        assert_eq!((status, seqs(&page), &page["next"]), (200, vec![1, 2, 3, 4], &Value::Null));
    }
    let unknown = format!("/api/sessions/demo/transcripts?epoch={}", Epoch::now_v7());
    assert_eq!(server.get_json(&unknown, Some(&good)).await.0, 404);
    let others = format!("/api/sessions/other/transcripts?epoch={}", epochs[0]);
    assert_eq!(server.get_json(&others, Some(&token("other"))).await.0, 404, "another room's epoch");
    let (status, page) = server.get_json("/api/sessions/never/transcripts", Some(&token("never"))).await;
    assert_eq!((status, &page["epoch"], seqs(&page).len()), (200, &Value::Null, 0));
    server.stop().await;
}

#[actix::test]
async fn parameters_and_tokens_are_checked() {
    let server = TestServer::start();
    let good = token("demo");
    for (path, bearer, status, part) in [
        ("/api/sessions/demo/transcripts?limit=0", Some(&good), 400, "1 to 1000"),
        ("/api/sessions/demo/transcripts?limit=1001", Some(&good), 400, "1 to 1000"),
        ("/api/sessions/demo/transcripts?after=x", Some(&good), 400, "0 to"),
        ("/api/sessions/demo/transcripts?epoch=x", Some(&good), 400, "UUID"),
        ("/api/sessions/demo/transcripts?kind=words", Some(&good), 400, "final, gap, status, translation"),
        ("/api/sessions/a%20b/transcripts", Some(&good), 400, "character"),
        ("/api/sessions/demo/transcripts", None, 401, "no token"),
        ("/api/sessions/other/transcripts", Some(&good), 403, "another room"),
        ("/api/sessions", None, 401, "no token"),
        ("/api/sessions?session=other", Some(&good), 403, "another room"),
        ("/api/nothing", None, 404, "nothing"),
    ] {
        let (got, body) = server.get_json(path, bearer.map(String::as_str)).await;
        let message = body["error"]["message"].as_str().unwrap();
        assert!(got == status && message.contains(part), "{path}: {got} {message}");
    }
    server.stop().await;
}

#[actix::test]
async fn operators_list_all_sessions_and_viewers_their_own() {
    let server = TestServer::start();
    let old = server.begin("demo");
    old.end();
    let live = server.begin("demo");
    live.say(2);
    server.begin("other");
    let _viewer = server.view("demo", "").await;
    let (_, all) = server.get_json("/api/sessions", Some(ADMIN_TOKEN)).await;
    assert_eq!(all["sessions"].as_array().unwrap().len(), 3);
    let (_, own) = server.get_json("/api/sessions", Some(&token("demo"))).await;
    let listed: Vec<_> =
        own["sessions"].as_array().unwrap().iter().map(|s| (s["epoch"].as_str().unwrap(), &s["live"])).collect();
    let (live_epoch, old_epoch) = (live.epoch().to_string(), old.epoch().to_string());
    assert_eq!(listed, [(&*live_epoch, &true.into()), (&*old_epoch, &false.into())]);
    assert_eq!((&own["sessions"][0]["seq"], &own["sessions"][0]["viewers"]), (&2.into(), &1.into()));
    let (_, page) = server.get_json("/api/sessions?limit=1", Some(ADMIN_TOKEN)).await;
    let next = page["next"].as_str().unwrap();
    let (_, rest) = server.get_json(&format!("/api/sessions?before={next}"), Some(ADMIN_TOKEN)).await;
    assert_eq!(rest["sessions"].as_array().unwrap().len(), 2);
    server.stop().await;
}
