//! The call of the example `examples/nextjs`: livekit-client in Chromium, against the LiveKit server for tests.

mod support;

use std::sync::Arc;

use parking_lot::Mutex;
use serde_json::json;
use stenocast::transcript::{SpeakerUpdate, Status};
use support::app::KEY;
use support::browser::Browser;
use support::http::TestServer;
use support::livekit::FakeLiveKit;
use support::nextjs::NextJs;
use support::wait::until;

#[actix::test]
async fn who_speaks_in_a_call_is_told_to_the_server() {
    let keys = [("LIVEKIT_API_KEY", KEY.0), ("LIVEKIT_API_SECRET", KEY.1), ("CORS_ORIGINS", "*")];
    let server = TestServer::with(&keys);
    let speech = server.begin("demo");
    speech.status(Status::Live);
    let heard: Arc<Mutex<Vec<SpeakerUpdate>>> = Arc::default();
    let sink = heard.clone();
    server.room("demo").set_speaker_sink(Some(Arc::new(move |update| sink.lock().push(update))));
    let is_heard = async |active: bool| {
        until("the speaker is told", async || {
            let mut heard = heard.lock();
            let at = heard.iter().position(|update| update.active == active);
            at.map(|at| heard.drain(..=at).next_back().unwrap()).ok_or("not yet")
        })
        .await
    };
    let livekit = FakeLiveKit::start();
    let (stenocast, url) = (server.url(""), livekit.url());
    let settings = [keys[0], keys[1], ("STENOCAST_URL", &stenocast), ("LIVEKIT_URL", &url)];
    let app = NextJs::start(&settings).await;
    let mut browser = Browser::start();
    browser.act("goto", json!({"url": app.url})).await;
    browser.act("fill", json!({"selector": "input[name=room]", "text": "demo"})).await;
    browser.act("fill", json!({"selector": "input[name=name]", "text": "Anna"})).await;
    browser.act("click", json!({"selector": "button[type=submit]"})).await;
    browser.wait("document.querySelectorAll('.call li').length === 1").await;
    let hub = &livekit.server.rtc;
    let identity = hub.present("demo").pop().expect("somebody is in the call");
    livekit.join("demo", "ben", "Ben <i>");
    browser.wait("document.querySelectorAll('.call li bdi')[1]?.textContent === 'Ben <i>'").await;
    browser.is_accessible().await;

    hub.speak("demo", &identity, 0.5);
    browser.wait("document.querySelector('.call li').dataset.speaking === 'true'").await;
    let update = is_heard(true).await;
    assert_eq!((update.identity.as_str(), update.name.as_deref()), (identity.as_str(), Some("Anna")));
    hub.speak("demo", &identity, 0.0);
    is_heard(false).await;

    // A browser that may not use the microphone says so, and the call goes on.
    browser.act("click", json!({"selector": ".call button"})).await;
    browser.wait("document.querySelector('.call .problem')?.textContent.includes('microphone cannot be used')").await;
    browser.screenshot("nextjs-call").await;

    // Sent out of the call: captions go on, and the way back is a button.
    hub.send_out("demo", &identity, 4);
    browser.wait("document.querySelector('.problem')?.textContent.includes('You were removed from the call.')").await;
    speech.say(1);
    browser.wait("document.querySelectorAll('.lines .line').length === 1").await;
    browser.act("click", json!({"selector": ".problem button"})).await;
    browser.wait("document.querySelectorAll('.call li').length === 2").await;
    server.stop().await;
}
