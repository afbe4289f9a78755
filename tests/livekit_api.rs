//! The client of LiveKit's server API, against answers as they were captured from a real server.

mod support;

use std::sync::Arc;
use std::time::Instant;

use stenocast::config::{Config, Secret};
use stenocast::livekit::api::{ApiClient, ApiError, ApiServer, Data};
use stenocast::livekit::keys::KeyRing;
use stenocast::livekit::model::EgressStatus;
use support::app::KEY;
use support::livekit::egress::Manner;
use support::livekit::{FakeLiveKit, Fault};

fn client(url: &str, secret: &str) -> ApiClient {
    let _ = rustls::crypto::ring::default_provider().install_default();
    let keys = Arc::new(KeyRing::new(vec![(KEY.0.to_owned(), Secret::new(secret))]));
    let tls = stenocast::bus::http::trusted(&Config::load(&Default::default(), true).unwrap().split).unwrap();
    Arc::new(ApiServer::new(url, keys, tls)).client()
}

#[actix::test]
async fn rooms_participants_and_egresses_are_read_and_each_call_has_the_grant_it_needs() {
    let livekit = FakeLiveKit::start();
    let api = client(&livekit.http_url(), KEY.1);
    assert!(api.list_rooms(&[]).await.unwrap().is_empty());
    let sid = livekit.create_room("demo");
    livekit.join("demo", "anna", "Anna");
    let track = livekit.publish_microphone("demo", "anna");
    let rooms = api.list_rooms(&["demo"]).await.unwrap();
    assert_eq!((rooms[0].sid.as_str(), rooms[0].num_participants), (sid.as_str(), 1));

    livekit.egresses_will(&[Manner::SaysActive]);
    let url = Secret::new("rtmp://127.0.0.1:1/live/demo?key=63234b1d5598cbde");
    let started = api.start_room_composite_egress("demo", &url).await.unwrap();
    assert_eq!((started.room(), started.status()), ("demo", EgressStatus::Starting));
    let request = &livekit.calls("StartRoomCompositeEgress")[0];
    assert!(request.get("layout").is_none() && request.get("custom_base_url").is_none(), "no browser: {request}");
    let socket = Secret::new("ws://127.0.0.1:1/track");
    let of_track = api.start_track_egress("demo", &track, &socket).await.unwrap();
    assert!(of_track.sends_track_to("ws://127.0.0.1:1"));
    let listed = api.list_egress(Some("demo"), true).await.unwrap();
    assert_eq!(listed.len(), 2);
    assert!(listed[0].publishes_room_to("rtmp://127.0.0.1:1/live") && listed[0].started_at > 0);

    let people = api.list_participants("demo").await.unwrap();
    let voices: Vec<_> = people.iter().filter(|one| one.is_voice()).collect();
    assert_eq!((people.len(), voices.len(), voices[0].name.as_str()), (3, 1, "Anna"), "the egresses are no voices");
    assert!(voices[0].tracks[0].is_microphone());

    let data = Data { room: "demo", payload: b"{}", topic: "t", is_reliable: true, to_identities: &[] };
    api.send_data(data).await.unwrap();
    assert_eq!(livekit.calls("SendData")[0]["data"], "e30=");
    assert_eq!(api.stop_egress(&started.egress_id).await.unwrap().status(), EgressStatus::Ending);
    assert!(matches!(api.stop_egress(&started.egress_id).await, Err(ApiError::Precondition(_))));
    assert!(matches!(api.stop_egress("EG_none").await, Err(ApiError::NotFound(_))));
    assert_eq!(api.list_egress(Some("demo"), false).await.unwrap()[0].status(), EgressStatus::Complete);
}

#[actix::test]
async fn what_goes_wrong_is_told_apart() {
    let livekit = FakeLiveKit::start();
    let api = client(&livekit.http_url(), KEY.1);
    let url = Secret::new("rtmp://h/live/demo");
    let start = async || api.start_room_composite_egress("demo", &url).await.unwrap_err().as_str();
    assert_eq!(start().await, "not_found", "there is no such room");
    livekit.create_room("demo");
    for (fault, expected) in [
        (Fault::Denied, "denied"),
        (Fault::NoWorker, "no_worker"),
        (Fault::Quota, "quota"),
        (Fault::Precondition, "precondition"),
        (Fault::BadGateway, "unreachable"),
    ] {
        livekit.fault("StartRoomCompositeEgress", Some(fault));
        assert_eq!(start().await, expected, "{fault:?}");
    }
    let error = client(&livekit.http_url(), "another-secret").list_rooms(&[]).await.unwrap_err();
    assert!(matches!(error, ApiError::Denied(_)) && error.to_string().contains("LIVEKIT_API_KEY"), "{error}");
    let elsewhere = client(&format!("{}/base", livekit.http_url()), KEY.1);
    assert_eq!(elsewhere.list_rooms(&[]).await.unwrap_err().as_str(), "bad_route");
    let closed = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let error = client(&format!("http://{closed}"), KEY.1).list_rooms(&[]).await.unwrap_err();
    assert!(matches!(error, ApiError::Unreachable(_)), "{error}");
    let error = client("http://livekit.invalid", KEY.1).list_rooms(&[]).await.unwrap_err();
    assert!(matches!(error, ApiError::Unreachable(_)), "{error}");
}

#[actix::test]
async fn a_server_that_says_nothing_is_waited_for_and_no_longer() {
    let livekit = FakeLiveKit::start();
    let api = client(&livekit.http_url(), KEY.1);
    livekit.fault("ListRooms", Some(Fault::Slow(300)));
    assert!(api.list_rooms(&[]).await.is_ok());
    livekit.fault("ListRooms", Some(Fault::AnswerLost));
    let begun = Instant::now();
    assert_eq!(api.list_rooms(&[]).await.unwrap_err(), ApiError::Timeout);
    assert!(begun.elapsed().as_secs() < 20);
}
