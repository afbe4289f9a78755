//! Egresses of LiveKit's rooms: started once, watched, started again, stopped; and what is said when they cannot be.

mod support;

use std::net::TcpListener;

use serde_json::{Value, json};
use support::app::{KEY, TestApp};
use support::livekit::egress::Manner;
use support::livekit::sdk::ServerSdk;
use support::livekit::{FakeLiveKit, Fault};
use support::modes::ask;
use support::publisher::{marked_audio, publish, write_wav};
use support::stt::{Stt, marker_service};
use support::viewer::Viewer;
use support::wait::until;

const ADMIN: &str = "an-admin-token-of-this-test-0123456789";
const PUBLISH_KEY: &str = "a-publish-key-of-this-test-0123456789";

/// A port that nobody listens on: LiveKit has to be told where the server will be.
fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

struct World {
    stt: Stt,
    livekit: FakeLiveKit,
}

impl World {
    async fn begin() -> Self {
        Self { stt: marker_service().await, livekit: FakeLiveKit::start() }
    }

    /// A server that listens where its `RTMP_PUBLIC_URL` says, and gets LiveKit's webhooks.
    async fn server(&self, more: &[(&str, &str)]) -> TestApp {
        let app = self.deaf_server(free_port(), more).await;
        self.livekit.send_webhooks_to_addr(app.app.http_addr());
        app
    }

    /// The same without webhooks, at a port of the caller.
    async fn deaf_server(&self, port: u16, more: &[(&str, &str)]) -> TestApp {
        self.server_in(tempfile::tempdir().unwrap(), port, more).await
    }

    async fn server_in(&self, dir: tempfile::TempDir, port: u16, more: &[(&str, &str)]) -> TestApp {
        let (livekit, rtmp_port) = (self.livekit.url(), port.to_string());
        let public = format!("rtmp://127.0.0.1:{port}/live");
        let settings = [
            ("GLADIA_API_URL", self.stt.url.as_str()),
            ("LIVEKIT_URL", &livekit),
            ("LIVEKIT_EGRESS", "room_composite"),
            ("RTMP_PUBLIC_URL", &public),
            ("RTMP_PORT", &rtmp_port),
            ("RTMP_OPEN", "false"),
            ("RTMP_PUBLISH_KEY", PUBLISH_KEY),
            ("ADMIN_TOKEN", ADMIN),
        ];
        TestApp::start_in(dir, &[&settings[..], more].concat()).await
    }

    /// Waits until somebody publishes the room; other egresses may run beside its own.
    async fn one_composite_publishes(&self, app: &TestApp, room: &str) {
        let is_heard = async || app.session(room).await["children"]["rtmpConnection"].is_object();
        until("the room is published", is_heard).await;
    }

    /// Waits until exactly one egress of the room runs, and somebody publishes.
    async fn one_publishes(&self, app: &TestApp, room: &str) -> String {
        let one = async || {
            let running = self.livekit.running(room);
            let is_heard = app.session(room).await["children"]["rtmpConnection"].is_object();
            match &running[..] {
                [only] if is_heard => Ok(only.clone()),
                _ => Err(format!("{running:?}, heard: {is_heard}; {}", egress_state(app).await)),
            }
        };
        until("one egress publishes", one).await
    }
}

async fn egress_state(app: &TestApp) -> Value {
    app.tree().await["egressController"]["state"].clone()
}

async fn of_room(app: &TestApp, room: &str) -> Value {
    let state = egress_state(app).await;
    let rooms = state["byRoom"].as_array().cloned().unwrap_or_default();
    rooms.into_iter().find(|one| one["session"] == room).unwrap_or(Value::Null)
}

async fn order(app: &TestApp, method: &str, room: &str) -> (u16, Value) {
    ask(app.app.http_addr(), ADMIN, method, &format!("/api/sessions/{room}/egress"), "").await
}

fn starts(app: &TestApp, result: &str) -> u64 {
    app.app.metrics().egress_starts_total.with_label_values(&[result]).get()
}

fn restarts(app: &TestApp, reason: &str) -> u64 {
    app.app.metrics().egress_restarts_total.with_label_values(&[reason]).get()
}

/// Marked speech at 48 kHz, as microphones give it.
fn words(markers: impl IntoIterator<Item = u32>) -> Vec<i16> {
    let slow = marked_audio(markers, 700);
    let next = slow.iter().skip(1).chain(slow.last());
    let between = |a: i16, b: i16, n: i32| (i32::from(a) + (i32::from(b) - i32::from(a)) * n / 3) as i16;
    slow.iter().zip(next).flat_map(|(a, b)| (0..3).map(move |n| between(*a, *b, n))).collect()
}

#[actix::test]
async fn a_room_starts_its_own_captions_and_ends_them() {
    let world = World::begin().await;
    let app = world.server(&[]).await;
    world.livekit.create_room("demo");
    world.livekit.join("demo", "anna", "Anna");
    world.one_publishes(&app, "demo").await;
    let mut viewer = Viewer::join(&app, "demo").await;
    world.livekit.say("demo", "anna", &words(1..=3));
    viewer.until("all words", |seen| support::viewer::finals(seen).len() == 3).await;
    assert_eq!(viewer.finals(), ["marker 1", "marker 2", "marker 3"]);
    let request = world.livekit.calls("StartRoomCompositeEgress").remove(0);
    assert_eq!((&request["audio_only"], &request["room_name"]), (&json!(true), &json!("demo")));
    world.livekit.delete_room("demo");
    viewer.until_ended().await;
    until("nothing of the room is left", async || {
        let state = of_room(&app, "demo").await;
        if state.is_null() { Ok(()) } else { Err(format!("{state}")) }
    })
    .await;
    assert_eq!((starts(&app, "started"), world.livekit.running("demo").len()), (1, 0));
    app.stop().await;
}

#[actix::test]
async fn an_egress_is_started_and_stopped_on_request_with_typed_answers() {
    let world = World::begin().await;
    let app = world.server(&[("LIVEKIT_EGRESS_START", "api"), ("LIVEKIT_ROOMS", "class-*, demo")]).await;
    let (status, answer) = order(&app, "POST", "demo").await;
    assert_eq!((status, &answer["error"]["code"]), (409, &json!("no_room")), "{answer}");
    world.livekit.create_room("demo");
    for (fault, code) in [
        (Fault::NoWorker, "egress_no_worker"),
        (Fault::Denied, "egress_denied"),
        (Fault::Quota, "egress_quota"),
        (Fault::BadGateway, "livekit_unreachable"),
    ] {
        world.livekit.fault("StartRoomCompositeEgress", Some(fault));
        let (status, answer) = order(&app, "POST", "demo").await;
        assert_eq!((status, &answer["error"]["code"]), (502, &json!(code)), "{answer}");
        assert!(!answer.to_string().contains("key="), "{answer}");
    }
    let fault = of_room(&app, "demo").await["fault"].to_string();
    assert!(fault.contains("LIVEKIT_URL"), "an operator sees it: {fault}");
    world.livekit.fault("StartRoomCompositeEgress", None);
    let (status, answer) = order(&app, "POST", "demo").await;
    assert_eq!(status, 201, "{answer}");
    let id = world.one_publishes(&app, "demo").await;
    let (status, answer) = order(&app, "POST", "demo").await;
    assert_eq!((status, answer["egressId"].as_str()), (200, Some(id.as_str())), "it runs already");
    let (status, answer) = order(&app, "DELETE", "demo").await;
    assert_eq!((status, &answer["stopped"]), (200, &json!([id])), "{answer}");
    until("it has stopped", async || world.livekit.running("demo").is_empty()).await;
    assert_eq!(order(&app, "DELETE", "demo").await, (200, json!({"session": "demo", "stopped": []})));

    let (status, answer) = order(&app, "POST", "other").await;
    assert_eq!((status, &answer["error"]["code"]), (409, &json!("room_left_out")));
    let path = "/api/sessions/demo/egress";
    let http = app.app.http_addr();
    assert_eq!(ask(http, "", "POST", path, "").await.0, 401);
    assert_eq!(ask(http, &app.token("demo"), "POST", path, "").await.0, 403, "a viewer is no admin");
    let slug = stenocast::transcript::Slug::parse("demo").unwrap();
    let secret = stenocast::config::Secret::new(KEY.1);
    let ttl = std::time::Duration::from_secs(60);
    let admin = stenocast::livekit::token::mint(KEY.0, &secret, "boss", None, &slug, ttl, true);
    assert_eq!(ask(http, &admin, "POST", path, "").await.0, 201);
    assert_eq!(ask(http, &admin, "POST", "/api/sessions/class-1/egress", "").await.0, 403);
    assert_eq!(ask(http, &admin, "PUT", path, "").await.0, 405);
    app.stop().await;
}

#[actix::test]
async fn without_egresses_an_order_says_so() {
    let world = World::begin().await;
    let app = world.server(&[("LIVEKIT_EGRESS", "off")]).await;
    world.livekit.create_room("demo");
    let (status, answer) = order(&app, "POST", "demo").await;
    assert_eq!((status, &answer["error"]["code"]), (409, &json!("egress_off")), "{answer}");
    assert!(world.livekit.calls("StartRoomCompositeEgress").is_empty());
    app.stop().await;
}

#[actix::test]
async fn the_first_viewer_starts_it_where_that_is_wanted() {
    let world = World::begin().await;
    let app = world.server(&[("LIVEKIT_EGRESS_START", "viewer")]).await;
    world.livekit.create_room("demo");
    world.livekit.create_room("unwatched");
    until("both are known", async || egress_state(&app).await["rooms"] == 2).await;
    assert!(world.livekit.calls("StartRoomCompositeEgress").is_empty());
    let _viewer = Viewer::join(&app, "demo").await;
    world.one_publishes(&app, "demo").await;
    assert!(world.livekit.egresses("unwatched").is_empty());
    app.stop().await;
}

#[actix::test]
async fn an_egress_that_fails_is_started_again() {
    let world = World::begin().await;
    world.livekit.egresses_will(&[Manner::Fails, Manner::Fails, Manner::Publishes(0)]);
    let app = world.server(&[]).await;
    world.livekit.create_room("demo");
    let id = world.one_publishes(&app, "demo").await;
    assert_eq!(restarts(&app, "failed"), 2);
    world.livekit.fail_egress(&id);
    until("another one", async || world.livekit.running("demo").iter().any(|running| *running != id)).await;
    world.one_publishes(&app, "demo").await;
    app.stop().await;
}

#[actix::test]
async fn an_egress_that_says_it_is_active_and_never_publishes_is_replaced() {
    let world = World::begin().await;
    world.livekit.egresses_will(&[Manner::SaysActive, Manner::Publishes(0)]);
    let app = world.server(&[]).await;
    world.livekit.create_room("demo");
    until("the first says that it is active", async || of_room(&app, "demo").await["status"] == "active").await;
    world.one_publishes(&app, "demo").await;
    let all = world.livekit.egresses("demo");
    assert_eq!(all.iter().map(|(_, status)| *status).collect::<Vec<_>>(), ["EGRESS_COMPLETE", "EGRESS_ACTIVE"]);
    assert_eq!(restarts(&app, "silent"), 1);
    app.stop().await;
}

#[actix::test]
async fn an_egress_whose_publish_is_refused_here_is_told_so() {
    let world = World::begin().await;
    let (there, here) = (free_port(), free_port());
    // Two nodes behind one name, with different keys: what one starts comes to the other.
    let public = format!("rtmp://127.0.0.1:{there}/live");
    let starter = world.deaf_server(here, &[("RTMP_PUBLIC_URL", &public), ("LIVEKIT_EGRESS_START", "api")]).await;
    let other_key = [("RTMP_PUBLISH_KEY", "another-publish-key-0123456789"), ("LIVEKIT_EGRESS_START", "api")];
    let app = world.deaf_server(there, &other_key).await;
    world.livekit.send_webhooks_to(&[
        format!("http://{}/api/livekit/webhook", starter.app.http_addr()),
        format!("http://{}/api/livekit/webhook", app.app.http_addr()),
    ]);
    world.livekit.create_room("demo");
    until("both know the room", async || {
        !of_room(&app, "demo").await.is_null() && !of_room(&starter, "demo").await.is_null()
    })
    .await;
    assert_eq!(order(&starter, "POST", "demo").await.0, 201);
    until("the refusal explains it", async || restarts(&app, "publish_refused") >= 1).await;
    let fault = of_room(&app, "demo").await["fault"].to_string();
    assert!(fault.contains("RTMP_PUBLISH_KEY"), "{fault}");
    // It sees that it failed, and not why.
    until("the starter knows", async || restarts(&starter, "failed") >= 1).await;
    starter.stop().await;
    app.stop().await;
}

#[actix::test]
async fn viewers_of_a_session_that_waits_are_told_why_nobody_comes() {
    let world = World::begin().await;
    let app = world.server(&[("LIVEKIT_EGRESS_START", "api"), ("SESSION_GRACE_MS", "86400000")]).await;
    world.livekit.create_room("demo");
    let mut viewer = Viewer::join(&app, "demo").await;
    let path = app.dir.path().join("words.wav");
    write_wav(&path, &marked_audio(1..=1, 700));
    let slug = stenocast::transcript::Slug::parse("demo").unwrap();
    let key = stenocast::rtmp::publish_key(&stenocast::config::Secret::new(PUBLISH_KEY), &slug, None);
    publish(&path, &format!("{}?key={key}", app.rtmp_url("demo")), false).await;
    let is_waiting = |message: &Value| message["type"] == "status" && message["status"] == "waiting";
    viewer.until("nobody publishes", |seen| seen.iter().any(is_waiting)).await;
    world.livekit.fault("StartRoomCompositeEgress", Some(Fault::NoWorker));
    assert_eq!(order(&app, "POST", "demo").await.0, 502);
    let says_why = |message: &Value| is_waiting(message) && message["reason"] == "egress_no_worker";
    viewer.until("why", |seen| seen.iter().any(says_why)).await;
    app.stop().await;
}

#[actix::test]
async fn two_nodes_that_react_to_one_room_leave_one_egress() {
    let world = World::begin().await;
    let port = free_port();
    let public = format!("rtmp://127.0.0.1:{port}/live");
    let one = world.deaf_server(port, &[]).await;
    let two = world.deaf_server(free_port(), &[("RTMP_PUBLIC_URL", &public)]).await;
    // Both have looked before either has started.
    world.livekit.fault("StartRoomCompositeEgress", Some(Fault::Slow(500)));
    world.livekit.send_webhooks_to(&[
        format!("http://{}/api/livekit/webhook", one.app.http_addr()),
        format!("http://{}/api/livekit/webhook", two.app.http_addr()),
    ]);
    world.livekit.join("demo", "anna", "Anna");
    world.livekit.publish_microphone("demo", "anna");
    until("both have started one", async || world.livekit.egresses("demo").len() >= 2).await;
    let id = world.one_publishes(&one, "demo").await;
    until("both agree", async || {
        let known = [of_room(&one, "demo").await["egress"].clone(), of_room(&two, "demo").await["egress"].clone()];
        if known.iter().all(|known| known == &json!(id)) { Ok(()) } else { Err(format!("{known:?}, not {id}")) }
    })
    .await;
    let duplicates = |app: &TestApp| app.app.metrics().egress_duplicates_total.get();
    assert!(duplicates(&one) + duplicates(&two) >= 1);
    assert_eq!(world.livekit.egresses("demo").len(), 2, "none was started for one that was stopped");
    // What one node was told to stop, the other does not start again.
    assert_eq!(order(&one, "DELETE", "demo").await.0, 200);
    until("the other takes it as it is", async || of_room(&two, "demo").await["isStopped"] == true).await;
    assert!(world.livekit.running("demo").is_empty());
    one.stop().await;
    two.stop().await;
}

#[actix::test]
async fn what_no_webhook_told_is_found_and_a_restart_finds_its_egress() {
    let world = World::begin().await;
    let port = free_port();
    world.livekit.create_room("demo");
    world.livekit.create_room("no slug at all");
    world.livekit.create_room("secret-1");
    let rooms = [("LIVEKIT_ROOMS", "demo")];
    let app = world.deaf_server(port, &rooms).await;
    let id = world.one_publishes(&app, "demo").await;
    let ignored = |reason: &str| app.app.metrics().livekit_rooms_ignored_total.with_label_values(&[reason]).get();
    assert_eq!((ignored("name"), ignored("pattern")), (1, 1));
    assert!(world.livekit.egresses("secret-1").is_empty());
    let is_well = |state: &Value| state["audio"]["receivedMs"].as_u64().is_some_and(|ms| ms > 2000);
    app.session_until("demo", "its egress is well, and would try again", is_well).await;
    let dir = app.stop().await;
    let app = world.server_in(dir, port, &rooms).await;
    assert_eq!(world.one_publishes(&app, "demo").await, id, "it has come back by itself");
    until("it is known", async || of_room(&app, "demo").await["egress"] == json!(id)).await;
    assert_eq!(world.livekit.egresses("demo").len(), 1);
    app.stop().await;
}

#[actix::test]
async fn a_room_deleted_and_made_again_within_a_second_has_an_egress_of_its_own() {
    let world = World::begin().await;
    let app = world.server(&[]).await;
    world.livekit.create_room("demo");
    world.livekit.join("demo", "anna", "Anna");
    let first = world.one_publishes(&app, "demo").await;
    let mut viewer = Viewer::join(&app, "demo").await;
    world.livekit.delete_room("demo");
    world.livekit.create_room("demo");
    world.livekit.join("demo", "anna", "Anna");
    viewer.until_ended().await;
    let second =
        until("another egress", async || world.livekit.running("demo").into_iter().find(|id| *id != first)).await;
    assert_eq!(world.one_publishes(&app, "demo").await, second);
    let mut viewer = Viewer::join(&app, "demo").await;
    world.livekit.say("demo", "anna", &words(7..=7));
    viewer.until("a word of the second", |seen| support::viewer::finals(seen) == ["marker 7"]).await;
    app.stop().await;
}

#[actix::test]
async fn egresses_of_others_are_let_be_and_livekits_own_sdk_sees_what_we_do() {
    let world = World::begin().await;
    world.livekit.egresses_will(&[Manner::SaysActive, Manner::Publishes(0)]);
    let mut sdk = ServerSdk::start(&world.livekit.http_url());
    sdk.order("createRoom", json!({"name": "demo"})).await.unwrap();
    let foreign = json!({"room": "demo", "url": "rtmp://a.rtmp.example.com/live2/a-stream-key"});
    let foreign = sdk.order("startEgress", foreign).await.unwrap();
    let app = world.server(&[]).await;
    until("ours runs beside it", async || world.livekit.running("demo").len() == 2).await;
    let listed = sdk.order("listEgress", json!({"room": "demo"})).await.unwrap();
    let ours = listed.as_array().unwrap().iter().map(|one| one[0].clone()).find(|id| *id != foreign).unwrap();
    until("it publishes", async || app.session("demo").await["children"]["rtmpConnection"].is_object()).await;
    assert_eq!(order(&app, "DELETE", "demo").await.1["stopped"], json!([ours]), "and not the other one");
    assert_eq!(world.livekit.running("demo"), [foreign.as_str().unwrap()]);
    let error = sdk.order("stopEgress", json!({"id": ours})).await.unwrap_err();
    assert!(error.contains("failed_precondition"), "{error}");
    assert_eq!(sdk.order("stopEgress", json!({"id": foreign})).await.unwrap(), 2, "EGRESS_ENDING");
    assert_eq!(sdk.order("listRooms", json!({})).await.unwrap(), json!(["demo"]));
    sdk.order("deleteRoom", json!({"name": "demo"})).await.unwrap();
    until("the room is gone here, too", async || egress_state(&app).await["rooms"] == 0).await;
    app.stop().await;
}

#[actix::test]
async fn an_egress_that_nobody_can_stop_does_not_block_its_room() {
    let world = World::begin().await;
    world.livekit.egresses_will(&[Manner::SaysActive, Manner::Publishes(0)]);
    let app = world.server(&[]).await;
    world.livekit.fault("StopEgress", Some(Fault::NoWorker));
    world.livekit.create_room("demo");
    until("a second one publishes beside it", async || {
        let is_heard = app.session("demo").await["children"]["rtmpConnection"].is_object();
        is_heard && world.livekit.running("demo").len() == 2
    })
    .await;
    app.stop().await;
}

#[actix::test]
async fn each_microphone_has_an_egress_while_its_track_lives() {
    let world = World::begin().await;
    let settings = [("LIVEKIT_SPEAKERS", "tracks"), ("HTTP_PUBLIC_URL", "http://127.0.0.1:9")];
    let app = world.server(&settings).await;
    world.livekit.create_room("demo");
    world.one_publishes(&app, "demo").await;
    world.livekit.egresses_will(&[Manner::SaysActive]);
    world.livekit.join("demo", "anna", "Anna");
    world.livekit.join("demo", "boris", "Boris");
    let microphone = world.livekit.publish_microphone("demo", "anna");
    world.livekit.publish("demo", "anna", false, "CAMERA");
    world.livekit.publish("demo", "boris", true, "SCREEN_SHARE_AUDIO");
    let starts = async || {
        let calls = world.livekit.calls("StartTrackEgress");
        calls.iter().map(|call| call["track_id"].as_str().unwrap_or("").to_owned()).collect::<Vec<_>>()
    };
    until("the microphone has one", async || starts().await == [microphone.clone()]).await;
    let call = world.livekit.calls("StartTrackEgress").remove(0);
    let url = call["websocket_url"].as_str().unwrap_or("").to_owned();
    assert!(url.starts_with(&format!("ws://127.0.0.1:9/api/egress/track/demo/{microphone}?identity=anna&")), "{url}");
    let of_track = async || world.livekit.running("demo").len() == 2;
    until("it is known", async || egress_state(&app).await["trackEgresses"] == 1).await;
    let id = world.livekit.running("demo").pop().unwrap();
    world.livekit.fail_egress(&id);
    until("it is started again", async || starts().await.len() == 2 && of_track().await).await;
    world.livekit.unpublish("demo", &microphone);
    until("it is gone with its track", async || egress_state(&app).await["trackEgresses"] == 0).await;
    assert_eq!(starts().await.len(), 2, "nothing else has a microphone's egress");
    app.stop().await;
}

#[actix::test]
async fn a_line_has_the_name_of_the_microphone_that_it_came_from() {
    let world = World::begin().await;
    let http = free_port().to_string();
    let public = format!("http://127.0.0.1:{http}");
    let settings = [("LIVEKIT_SPEAKERS", "tracks"), ("PORT", &http), ("HTTP_PUBLIC_URL", &public)];
    let app = world.server(&[&settings[..], &[("SPEAKER_OFFSET_MS", "200")]].concat()).await;
    world.livekit.create_room("demo");
    for (identity, name) in [("anna", "Anna of LiveKit"), ("boris", "Boris of LiveKit")] {
        world.livekit.join("demo", identity, name);
        world.livekit.publish_microphone("demo", identity);
    }
    world.one_composite_publishes(&app, "demo").await;
    until("both microphones are heard", async || {
        let running = world.livekit.egresses("demo").iter().filter(|(_, status)| *status == "EGRESS_ACTIVE").count();
        if running == 3 { Ok(()) } else { Err(format!("{:?}", world.livekit.egresses("demo"))) }
    })
    .await;
    let mut viewer = Viewer::join(&app, "demo").await;
    let finals = |seen: &[Value], name: &str| {
        seen.iter().filter(|m| m["isFinal"] == true && m["speaker"]["name"] == name).count()
    };
    world.livekit.say("demo", "anna", &words(1..=2));
    viewer.until("both words of hers", |seen| finals(seen, "Anna of LiveKit") == 2).await;
    world.livekit.say("demo", "boris", &words(3..=3));
    viewer.until("his word", |seen| finals(seen, "Boris of LiveKit") == 1).await;
    assert_eq!(viewer.finals(), ["marker 1", "marker 2", "marker 3"]);
    app.stop().await;
}
