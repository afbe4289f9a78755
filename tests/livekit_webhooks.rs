//! Webhooks of LiveKit: who is believed, and what comes of them for sessions.

mod support;

use serde_json::{Value, json};
use stenocast::livekit::token::sign;
use support::app::{KEY, TestApp, viewer_token};
use support::cluster::Cluster;
use support::livekit::webhooks::{Webhook, authorization, make, post};
use support::livekit::{FakeLiveKit, sdk::ServerSdk};
use support::nats::Version;
use support::publisher::{ffmpeg, marked_audio, publish, write_wav};
use support::stt::{Stt, marker_service};
use support::viewer::Viewer;
use support::wait::until;

const PATH: &str = "/api/livekit/webhook";
/// As captured from a real server.
const CAPTURED: [&str; 8] = [
    include_str!("fixtures/livekit/webhook_0.json"),
    include_str!("fixtures/livekit/webhook_1.json"),
    include_str!("fixtures/livekit/webhook_2.json"),
    include_str!("fixtures/livekit/webhook_3.json"),
    include_str!("fixtures/livekit/webhook_4.json"),
    include_str!("fixtures/livekit/webhook_5.json"),
    include_str!("fixtures/livekit/webhook_6.json"),
    include_str!("fixtures/livekit/webhook_7.json"),
];

async fn server(stt: &Stt, livekit: Option<&FakeLiveKit>, more: &[(&str, &str)]) -> TestApp {
    let url = livekit.map(FakeLiveKit::url).unwrap_or_default();
    let settings = [("GLADIA_API_URL", stt.url.as_str()), ("SESSION_GRACE_MS", "86400000")];
    let livekit_url = [("LIVEKIT_URL", url.as_str())];
    let livekit_url = if livekit.is_some() { &livekit_url[..] } else { &[] };
    TestApp::start(&[&settings[..], livekit_url, more].concat()).await
}

async fn send(app: &TestApp, webhook: &Webhook) -> u16 {
    post(app.app.http_addr(), PATH, webhook).await.expect("it answers")
}

fn signed(livekit: &FakeLiveKit, body: &str) -> Webhook {
    Webhook { body: body.to_owned(), authorization: authorization(&livekit.server, body.as_bytes()) }
}

fn webhooks(app: &TestApp, event: &str, result: &str) -> u64 {
    app.app.metrics().livekit_webhooks_total.with_label_values(&[event, result]).get()
}

#[actix::test]
async fn captured_webhooks_are_taken_once_and_without_a_server_to_ask() {
    let (stt, livekit) = (marker_service().await, FakeLiveKit::start());
    let app = server(&stt, None, &[]).await;
    for body in CAPTURED {
        let webhook = signed(&livekit, body);
        assert_eq!(send(&app, &webhook).await, 200, "{body}");
        assert_eq!(send(&app, &webhook).await, 200, "sent again, as after a lost answer");
    }
    assert_eq!((webhooks(&app, "track_published", "taken"), webhooks(&app, "track_published", "duplicate")), (2, 2));
    for body in [
        r#"{"event":"something_new", "id":"EV_1", "room":{"sid":"RM_1", "name":"demo", "flavour":"VANILLA"}}"#,
        r#"{"event":"participant_joined", "id":"EV_2", "participant":{"identity":"x", "kind":"HOLOGRAM"}}"#,
        r#"{"event":"room_finished", "id":"EV_3", "room":{"sid":"RM_9", "name":"nobody/knows this"}}"#,
        r#"{"event":"egress_ended", "id":"EV_4", "egressInfo":{"egressId":"EG_1", "status":"EGRESS_PAUSED"}}"#,
    ] {
        assert_eq!(send(&app, &signed(&livekit, body)).await, 200, "{body}");
    }
    app.stop().await;
}

#[actix::test]
async fn what_is_not_livekits_word_is_refused_and_costs_nobody_else_anything() {
    let (stt, livekit) = (marker_service().await, FakeLiveKit::start());
    let app = server(&stt, None, &[]).await;
    let good = signed(&livekit, CAPTURED[0]);
    let at = |seconds: i64| chrono::Utc::now().timestamp() + seconds;
    let token = |secret: &str, claims: Value| sign(&claims, &stenocast::config::Secret::new(secret));
    let digest = sha256(CAPTURED[0]);
    let forged = [
        String::new(),
        "Bearer".to_owned(),
        viewer_token("demo"),
        token("another-secret", json!({"iss": KEY.0, "exp": at(60), "sha256": digest})),
        token(KEY.1, json!({"iss": "another-key", "exp": at(60), "sha256": digest})),
        token(KEY.1, json!({"iss": KEY.0, "exp": at(-120), "sha256": digest})),
        token(KEY.1, json!({"iss": KEY.0, "exp": at(60), "sha256": sha256("another body")})),
        token(KEY.1, json!({"iss": KEY.0, "sha256": digest})),
    ];
    for authorization in &forged {
        let webhook = Webhook { body: good.body.clone(), authorization: authorization.clone() };
        assert_eq!(send(&app, &webhook).await, 401, "{authorization}");
    }
    let truncated = Webhook { body: good.body[..200].to_owned(), ..good.clone() };
    assert_eq!(send(&app, &truncated).await, 401, "the digest is of the whole");
    assert_eq!(send(&app, &signed(&livekit, &good.body[..200])).await, 400, "genuine, and no event");
    assert_eq!(send(&app, &signed(&livekit, "[]")).await, 400);
    let large = format!(r#"{{"event":"room_started", "room":{{"metadata":"{}"}}}}"#, "x".repeat(2 << 20));
    assert_eq!(send(&app, &signed(&livekit, &large)).await, 413);
    let bearer = Webhook { authorization: format!("Bearer {}", good.authorization), ..good };
    assert_eq!(send(&app, &bearer).await, 200, "a proxy has put it in order");
    assert_eq!(webhooks(&app, "unproved", "forged"), forged.len() as u64 + 1);
    assert_eq!(webhooks(&app, "unproved", "unreadable"), 2);
    assert_eq!(support::server::request(app.app.http_addr(), "GET", PATH, "").await.unwrap().0, 405);
    app.stop().await;
}

fn sha256(text: &str) -> String {
    use base64::Engine;
    use sha2::Digest;
    base64::engine::general_purpose::STANDARD.encode(sha2::Sha256::digest(text))
}

#[actix::test]
async fn livekits_own_sdk_takes_our_fakes_webhooks_and_we_take_its_signature() {
    let (stt, livekit) = (marker_service().await, FakeLiveKit::start());
    let app = server(&stt, None, &[]).await;
    let mut sdk = ServerSdk::start(&livekit.http_url());
    livekit.create_room("demo");
    livekit.join("demo", "anna", "Anna");
    livekit.publish_microphone("demo", "anna");
    for webhook in livekit.server.webhooks.all() {
        let given = json!({"body": webhook.body, "authorization": webhook.authorization});
        let received = sdk.order("receiveWebhook", given).await.unwrap();
        assert_eq!(received[1], "demo", "{received}");
    }
    let body = CAPTURED[2];
    let authorization = sdk.order("signWebhook", json!({"body": body})).await.unwrap();
    let webhook = Webhook { body: body.to_owned(), authorization: authorization.as_str().unwrap().to_owned() };
    assert_eq!(send(&app, &webhook).await, 200);
    app.stop().await;
}

#[actix::test]
async fn a_flood_of_webhooks_is_taken_or_told_to_wait_and_the_server_lives_on() {
    let (stt, livekit) = (marker_service().await, FakeLiveKit::start());
    let app = server(&stt, None, &[]).await;
    let event = |n: usize| {
        let room = json!({"sid": format!("RM_{n}"), "name": format!("flood-{}", n % 300)});
        make(&livekit.server, "room_started", json!({"room": room}))
    };
    let floods: Vec<_> = (0..8)
        .map(|part| {
            let events: Vec<_> = (0..250).map(|n| event(part * 250 + n)).collect();
            let addr = app.app.http_addr();
            actix_rt::spawn(async move {
                let mut answers = Vec::new();
                for webhook in &events {
                    answers.push(post(addr, PATH, webhook).await.expect("it answers"));
                }
                answers
            })
        })
        .collect();
    let answers: Vec<u16> = futures_util::future::join_all(floods).await.into_iter().flat_map(Result::unwrap).collect();
    assert!(answers.iter().all(|status| matches!(status, 200 | 503)), "{answers:?}");
    let forged = Webhook { authorization: viewer_token("demo"), ..event(0) };
    for _ in 0..200 {
        assert_eq!(send(&app, &forged).await, 401);
    }
    let health = support::server::health(app.app.http_addr()).await.unwrap();
    assert_eq!(health["status"], "ok", "{health}");
    app.stop().await;
}

#[actix::test]
async fn a_session_ends_with_its_room_after_its_last_words() {
    let (stt, livekit) = (marker_service().await, FakeLiveKit::start());
    let app = server(&stt, Some(&livekit), &[]).await;
    livekit.send_webhooks_to_addr(app.app.http_addr());
    livekit.create_room("demo");
    let mut viewer = Viewer::join(&app, "demo").await;
    let path = app.dir.path().join("words.wav");
    write_wav(&path, &marked_audio(1..=3, 700));
    publish(&path, &app.rtmp_url("demo"), false).await;
    livekit.delete_room("demo");
    viewer.until_ended().await;
    assert_eq!(viewer.finals(), ["marker 1", "marker 2", "marker 3"]);
    let reason = viewer.seen.iter().find(|m| m["status"] == "ended").map(|m| m["reason"].clone());
    assert_eq!(reason, Some(json!("room_finished")), "and not when the grace period is over, a day later");
    app.stop().await;
}

#[actix::test]
async fn a_room_that_is_made_again_under_its_name_is_not_ended_by_news_of_the_one_before() {
    let (stt, livekit) = (marker_service().await, FakeLiveKit::start());
    let app = server(&stt, Some(&livekit), &[]).await;
    livekit.send_webhooks_to_addr(app.app.http_addr());
    let first = livekit.create_room("demo");
    livekit.delete_room("demo");
    let second = livekit.create_room("demo");
    let path = app.dir.path().join("words.wav");
    write_wav(&path, &marked_audio(1..=2, 700));
    let mut viewer = Viewer::join(&app, "demo").await;
    publish(&path, &app.rtmp_url("demo"), false).await;
    viewer.until("both words", |seen| support::viewer::finals(seen).len() == 2).await;
    // The word on the first room's end comes once more, late, and under another id.
    livekit.send_event("room_finished", json!({"room": {"sid": first, "name": "demo"}}));
    livekit.send_event("room_finished", json!({"room": {"sid": "RM_renamed", "name": "demo"}}));
    until("they were read", async || webhooks(&app, "room_finished", "taken") >= 3).await;
    until("LiveKit was asked", async || livekit.calls("ListRooms").len() >= 4).await;
    let state = app.session("demo").await;
    assert_eq!((&state["session"], &state["phase"]), (&json!("demo"), &json!("waiting")), "{state:#}");
    livekit.send_event("room_finished", json!({"room": {"sid": second, "name": "demo"}}));
    viewer.until_ended().await;
    app.stop().await;
}

#[actix::test]
async fn participants_of_the_room_give_names_to_those_who_speak() {
    let (stt, livekit) = (marker_service().await, FakeLiveKit::start());
    let app = server(&stt, Some(&livekit), &[]).await;
    livekit.send_webhooks_to_addr(app.app.http_addr());
    livekit.join("talk", "tester", "Tess of LiveKit");
    let mut viewer = Viewer::join(&app, "talk").await;
    let mut browser = Viewer::join(&app, "talk").await;
    let path = app.dir.path().join("words.wav");
    write_wav(&path, &marked_audio(1..=4, 700));
    let publisher = ffmpeg(&path, &app.rtmp_url("talk"), true);
    viewer.until("the session", |seen| seen.iter().any(|m| m["status"] == "live")).await;
    let speaking = actix_rt::spawn(async move {
        let mut often = tokio::time::interval(std::time::Duration::from_millis(200));
        loop {
            often.tick().await;
            browser.send(&json!({"type": "active_speakers", "speakers": [{"identity": "tester", "level": 0.8}]})).await;
        }
    });
    let is_named = |message: &Value| message["isFinal"] == true && message["speaker"]["name"] == "Tess of LiveKit";
    viewer.until("a named final", |seen| seen.iter().any(is_named)).await;
    speaking.abort();
    drop(publisher);
    app.stop().await;
}

#[actix::test]
async fn in_a_cluster_the_end_of_a_room_reaches_the_node_that_has_its_session() {
    let (stt, livekit) = (marker_service().await, FakeLiveKit::start());
    let url = livekit.url();
    let nats = support::nats::Nats::start(Version::Newest).await;
    let nats_url = nats.url();
    let settings = [("GLADIA_API_URL", stt.url.as_str()), ("LIVEKIT_URL", url.as_str())];
    let cluster = Cluster::start_on(nats, &nats_url, &settings).await;
    let mut viewer = cluster.join(0, "demo").await;
    let audio = cluster.audio("words", 1..=3);
    publish(&audio, &cluster.rtmp_url(0, "demo"), true).await;
    let event = make(&livekit.server, "room_finished", json!({"room": {"sid": "RM_1", "name": "demo"}}));
    assert_eq!(post(cluster.ingest(1).http, PATH, &event).await.unwrap(), 200);
    viewer.until_ended().await;
    let reason = viewer.seen.iter().find(|m| m["status"] == "ended").map(|m| m["reason"].clone());
    assert_eq!(reason, Some(json!("room_finished")));
}
